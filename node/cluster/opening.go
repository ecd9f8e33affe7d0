package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// A new key version is proposed only when a majority of the voters' partitions have
// opened its token, so that no key exists that only one HSM can read. Until then it is
// nowhere but in the memory of the node that made it: a node that dies meanwhile leaves
// nothing behind that would have to be taken back.

// Opening is a new key version that a partition is to open.
type Opening struct {
	Key     fsm.ID
	Version uint32
	Kind    hsm.Kind
	Made    hsm.NewKey
}

// OpenRequest asks a member to open tokens with its own partition.
type OpenRequest struct {
	Node     string // raft id of who asks
	Cluster  fsm.ID
	Openings []Opening // 1..MaxOpenings
}

// OpenResult is what became of an Opening.
type OpenResult struct {
	Problem string // empty: the partition has opened the token
	Passing bool   // the problem may be gone in a moment: it is worth asking again
}

// MaxOpenings is how many tokens one request may bring.
const MaxOpenings = 64

const (
	// openRelease is the cluster's release from which on every member can be asked.
	openRelease = 2
	// openTimeout bounds one call to one member.
	openTimeout = 2 * time.Second
	// againPause is between an answer that may be another in a moment and the next question.
	againPause = 200 * time.Millisecond
	// openAtOnce is how many tokens of a request a partition opens side by side.
	openAtOnce = 8
	// maxAsked bounds the tokens that wait for one member.
	maxAsked = 1024
)

// Opened returns when a majority of the voters' partitions have opened a token that this
// node's partition has made, and opened, itself. ErrUnopened names the others and why
// they did not; a member that cannot be reached, or whose partition cannot be used at the
// moment, is asked again for as long as a command would wait for a leader. In a cluster of the first release nobody is asked.
func (m *Member) Opened(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error {
	o := Opening{Key: key, Version: version, Kind: kind, Made: made}
	e, err := m.engine()
	if err != nil {
		return err
	}
	if e.machine.State().Cluster().Release < openRelease {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.config.Raft.leaderWait())
	defer cancel()
	ctx, release := until(ctx, e.ctx.Done())
	defer release()
	err = e.openings.majority(ctx, e.voters(), e.id, o)
	if err != nil && e.ctx.Err() != nil {
		return ErrShutdown
	}
	return err
}

// majority has voters open what this node, self, has made, until enough have.
func (o *openings) majority(ctx context.Context, voters []raft.Server, self string, x Opening) error {
	need, opened, refused := len(voters)/2+1, 0, 0
	answers := make(chan openAnswer, len(voters)+1)
	missing := map[string]string{} // raft id -> why it has not opened the token
	for _, v := range voters {
		if string(v.ID) == self {
			opened++
			continue
		}
		missing[string(v.ID)] = "no answer yet"
		o.ask(ctx, v, x, answers)
	}
	for opened < need {
		if len(voters)-refused < need {
			return unopened(opened, need, missing)
		}
		select {
		case a := <-answers:
			missing[string(a.voter.ID)] = a.problem
			switch {
			case a.problem == "":
				delete(missing, string(a.voter.ID))
				opened++
			case a.passing:
				time.AfterFunc(a.pause, func() { o.ask(ctx, a.voter, x, answers) })
			default:
				refused++
			}
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", unopened(opened, need, missing), context.Cause(ctx))
		}
	}
	return nil
}

func unopened(opened, need int, missing map[string]string) error {
	var why []string
	for _, id := range slices.Sorted(maps.Keys(missing)) {
		why = append(why, id+": "+missing[id])
	}
	return fmt.Errorf("%w: %d of %d needed: %s", ErrUnopened, opened, need, strings.Join(why, "; "))
}

// voters are Raft's, as this node knows them: those of which a majority commits the key.
func (e *engine) voters() []raft.Server {
	var out []raft.Server
	for _, s := range e.servers() {
		if s.Suffrage == raft.Voter {
			out = append(out, s)
		}
	}
	return out
}

// openings asks other members to open tokens. What comes for a member while it is being
// asked goes into the next request to it: at most one is under way a member.
type openings struct {
	call func(ctx context.Context, address string, all []Opening) ([]OpenResult, error)
	// refuses is told when a member's partition begins to refuse what others may open, and
	// when it opens again: the problem is empty then.
	refuses func(node, problem string)

	mu      sync.Mutex
	queues  map[string]*openQueue // by raft id
	stopped bool
	running sync.WaitGroup
}

// openQueue is what waits for one member.
type openQueue struct {
	waiting []asked
	busy    bool // someone is at work on it
	refuses bool // the last token; of who is at work
}

type asked struct {
	ctx     context.Context //nolint:containedctx // of who waits for the answer
	opening Opening
	voter   raft.Server
	answers chan<- openAnswer // has room
}

type openAnswer struct {
	voter   raft.Server
	problem string // empty: it opened the token
	passing bool   // it is asked again after the pause
	pause   time.Duration
}

func (q asked) answer(r OpenResult, pause time.Duration) {
	select {
	case q.answers <- openAnswer{q.voter, r.Problem, r.Passing, pause}:
	case <-q.ctx.Done():
	}
}

// ask has an answer come over the channel, unless ctx ends before.
func (o *openings) ask(ctx context.Context, v raft.Server, x Opening, answers chan<- openAnswer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped || ctx.Err() != nil {
		return
	}
	q := o.queues[string(v.ID)]
	if q == nil {
		q = &openQueue{}
		o.queues[string(v.ID)] = q
	}
	a := asked{ctx, x, v, answers}
	if len(q.waiting) >= maxAsked {
		a.answer(OpenResult{Problem: fmt.Sprintf("%d new keys wait for it", maxAsked)}, 0)
		return
	}
	q.waiting = append(q.waiting, a)
	if !q.busy {
		q.busy = true
		o.running.Go(func() { o.work(q) })
	}
}

// work asks one member until nothing waits for it.
func (o *openings) work(q *openQueue) {
	for batch := o.next(q); batch != nil; batch = o.next(q) {
		all := make([]Opening, len(batch))
		for i, a := range batch {
			all[i] = a.opening
		}
		results, err := o.call(context.Background(), string(batch[0].voter.Address), all)
		if err == nil && len(results) != len(batch) {
			err = fmt.Errorf("%d answers to %d questions", len(results), len(batch))
		}
		for i, a := range batch {
			if err != nil { // it may not have been asked at all
				a.answer(OpenResult{Problem: err.Error(), Passing: true}, retryPause)
			} else {
				q.note(o.refuses, string(a.voter.ID), results[i].Problem)
				a.answer(results[i], againPause)
			}
		}
	}
}

func (q *openQueue) note(refuses func(node, problem string), node, problem string) {
	if now := problem != ""; now != q.refuses {
		q.refuses = now
		refuses(node, problem)
	}
}

// next is what to ask next: nil if nothing waits, or nobody for it.
func (o *openings) next(q *openQueue) []asked {
	o.mu.Lock()
	defer o.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(a asked) bool { return a.ctx.Err() != nil }) // others were enough
	n := min(len(q.waiting), MaxOpenings)
	if slices.ContainsFunc(q.waiting[:n], func(a asked) bool {
		return a.opening.Kind.Class != hsm.ClassAES && a.opening.Kind.Class != hsm.ClassResident
	}) {
		n = min(n, openAtOnce) // a private key is used once when it is opened, which takes a while
	}
	if q.busy = n > 0 && !o.stopped; !q.busy {
		return nil
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batch
}

func (o *openings) stop() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
	o.running.Wait()
}

func (e *engine) askToOpen(_ context.Context, address string, all []Opening) ([]OpenResult, error) {
	ctx, cancel := context.WithTimeout(e.ctx, openTimeout)
	defer cancel()
	return e.config.Peers.Open(ctx, address, OpenRequest{Node: e.id, Cluster: e.cluster, Openings: all})
}

// openRefused warns: keys are made without that member, and it could not use them.
func (e *engine) openRefused(node, problem string) {
	if problem == "" {
		e.log.Info("a member's HSM opens new keys again", "member", node)
		return
	}
	e.log.Warn("a member's HSM does not open a new key", "member", node, "problem", problem)
}

// HandleOpen opens tokens that another member's partition has made. The answers are in
// the order of the request.
func (m *Member) HandleOpen(ctx context.Context, r OpenRequest) ([]OpenResult, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	switch n := len(r.Openings); {
	case r.Cluster != e.cluster:
		return nil, fmt.Errorf("%w: a token of cluster %s, this is %s", fsm.ErrInvalid, r.Cluster, e.cluster)
	case n == 0 || n > MaxOpenings:
		return nil, fmt.Errorf("%w: %d tokens: must be 1 to %d", fsm.ErrInvalid, n, MaxOpenings)
	}
	results := make([]OpenResult, len(r.Openings))
	atOnce := make(chan struct{}, openAtOnce)
	var all sync.WaitGroup
	for i, o := range r.Openings {
		atOnce <- struct{}{}
		all.Go(func() {
			defer func() { <-atOnce }()
			if err := e.open(ctx, o); err != nil {
				results[i] = OpenResult{Problem: err.Error(), Passing: passes(err)}
			}
		})
	}
	all.Wait()
	return results, nil
}

// passes tells whether a partition that did not open a token may open it in a moment: it is
// lost, has no session, its queue is full, its key went with the session, or it erred once;
// or this node's state is behind. That it refuses its PIN does not pass, nor does anything
// that is said of the token.
func passes(err error) bool {
	switch {
	case errors.Is(err, hsm.ErrPIN):
		return false
	case errors.Is(err, hsm.ErrUnavailable), errors.Is(err, hsm.ErrBusy), errors.Is(err, hsm.ErrStale), errors.Is(err, hsm.ErrWrongAnswer):
		return true
	}
	return errors.Is(err, errGeneration)
}

// open opens one token with this node's partition, of a generation that the state knows.
func (e *engine) open(ctx context.Context, o Opening) error {
	t, err := hsm.ParseToken(o.Made.Token)
	if err != nil {
		return err
	}
	want := hsm.TokenHeader{
		Class: o.Kind.Class, Attributes: t.Header.Attributes, Generation: t.Header.Generation,
		Cluster: hsm.ID(e.cluster), Key: hsm.ID(o.Key), Version: o.Version,
	}
	known := func(g fsm.Generation) bool { return g.Number == want.Generation }
	if !slices.ContainsFunc(e.machine.State().Cluster().Generations, known) {
		return fmt.Errorf("%w: generation %d, which this node's state does not know", errGeneration, want.Generation)
	}
	return hsm.TryOpen(ctx, e.config.Domain, hsm.Ref{Token: o.Made.Token, Want: want, Kind: o.Kind, SPKI: o.Made.SPKI})
}

var errGeneration = errors.New("token of an unknown domain key generation")
