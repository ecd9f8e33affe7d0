package nodetest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

const (
	// writeTimeout bounds one try of a write, writeTries how often its request id is
	// sent.
	writeTimeout = 12 * time.Second
	writeTries   = 3
	// readTimeout bounds a read: waiting for the index of its token included.
	readTimeout = time.Second
	// confirmTimeout bounds a quorum read.
	confirmTimeout = 5 * time.Second
)

// Client is one session: it carries the highest index that it has seen. One call at a
// time, except Use.
type Client struct {
	cluster *Cluster
	number  int
	seen    uint64
}

// NewClient begins a session.
func (c *Cluster) NewClient() *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients++
	return &Client{cluster: c, number: c.clients}
}

// Pauses are how long a cryptographic operation is held up, and where.
type Pauses struct {
	Work     time.Duration // before the checks
	Lease    time.Duration // after the lease was checked
	State    time.Duration // after the state was read
	HandOver time.Duration // after the checks, before the answer goes out
}

func (c *Client) begin(l *life, n *Node, kind history.Kind, key string, under ...string) history.Call {
	o := history.Operation{Client: c.number, Node: n.Name, Kind: kind, Key: key, Under: under}
	if l != nil {
		o.Node = l.name()
	}
	if kind == history.Read || kind == history.QuorumRead {
		o.After = c.seen
	}
	return c.cluster.History.Begin(o)
}

var errDown = errors.New("nodetest: no process runs there")

// Use is a cryptographic operation with a key on a node, as the key service does it: an
// early check, the work, the gate, the hand-over. by is what it needs besides the key.
func (c *Client) Use(n *Node, key fsm.ID, p Pauses, by ...Right) error {
	l := n.running()
	under := make([]string, len(by))
	for i, r := range by {
		under[i] = r.name()
	}
	call := c.begin(l, n, history.Use, key.String(), under...)
	err := use(l, n, key, by, p, call)
	a := history.Answer{Note: text(err)}
	var lacking errLacking
	if errors.As(err, &lacking) {
		a.Lacks = lacking.right
	}
	call.End(outcomeOf(err), a)
	return err
}

func use(l *life, n *Node, key fsm.ID, by []Right, p Pauses, call history.Call) error {
	if l == nil || l.opened.Load() == nil {
		return errDown
	}
	m := l.opened.Load()
	authorise := func(s *fsm.State) error {
		for _, r := range by {
			if err := r.held(s, key, n.Clock.wall()); err != nil {
				return errLacking{r.name(), err}
			}
		}
		k, ok := s.Key(key)
		if !ok {
			return fsm.ErrNotFound
		}
		return k.Allows(fsm.OpOpen)
	}
	if err := m.Usable(); err != nil {
		return err
	}
	s := m.State() // behind the lease: what it refuses is refused for good
	if err := cmp.Or(m.Serves(s), authorise(s)); err != nil {
		return err
	}
	ctx := gate.Carry(l.end.ctx)
	defer gate.Finish(ctx)
	pending, err := gate.Compute(ctx, func(context.Context) ([]byte, error) {
		time.Sleep(p.Work)
		return []byte{1}, nil
	}, func(b []byte) { clear(b) })
	if err != nil {
		return err
	}
	g := gate.New(&view{Member: m, pauses: p, call: call}, records{}, l.releases, n.Clock.Now)
	if _, err := gate.Release(ctx, g, pending, &audit.Event{}, authorise); err != nil {
		return err
	}
	time.Sleep(p.HandOver)
	if err := gate.Recheck(ctx); err != nil {
		return err
	}
	if l.end.ctx.Err() != nil {
		return errDown // what a dead process holds reaches nobody
	}
	call.HandedOver()
	return nil
}

// view is the member as one operation's gate sees it: with a pause after each of the
// two checks, the first time.
type view struct {
	*cluster.Member
	pauses Pauses
	call   history.Call
}

// Usable implements gate.Freshness.
func (v *view) Usable() error {
	err := v.Member.Usable()
	v.call.Authorised()
	time.Sleep(v.pauses.Lease)
	v.pauses.Lease = 0
	return err
}

// State implements gate.Freshness.
func (v *view) State() *fsm.State {
	s := v.Member.State()
	time.Sleep(v.pauses.State)
	v.pauses.State = 0
	return s
}

// records is an audit trail that forgets.
type records struct{}

// Record implements gate.Recorder.
func (records) Record(audit.Event) error { return nil }

// RecordAll implements gate.Recorder.
func (records) RecordAll([]audit.Event) error { return nil }

// Healthy implements gate.Recorder.
func (records) Healthy() error { return nil }

// command is the command of a write.
func command(kind history.Kind, key fsm.ID) fsm.Command {
	ref := fsm.KeyRef{ID: key, Tenant: fsm.DefaultTenant}
	switch kind {
	case history.Create:
		return &fsm.CreateKey{
			ID: key, Tenant: fsm.DefaultTenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric,
			Version: 1, Generation: 1, Token: []byte("token"),
		}
	case history.Enable:
		return &fsm.EnableKey{KeyRef: ref}
	case history.Disable:
		return &fsm.DisableKey{KeyRef: ref}
	case history.Schedule:
		return &fsm.ScheduleKeyDeletion{KeyRef: ref, Days: fsm.MinDeletionDays}
	case history.Cancel:
		return &fsm.CancelKeyDeletion{KeyRef: ref}
	case history.Touch:
		return &fsm.UpdateKeyDescription{KeyRef: ref, Description: "touched"}
	case history.Rotate, history.Use, history.Read, history.QuorumRead, history.Final, history.Remove,
		history.Grant, history.Permit, history.Forbid:
	}
	panic("nodetest: " + string(kind) + " is no write")
}

// request is a command that may be asked for again.
func request(c fsm.Command) fsm.Proposal {
	return fsm.Proposal{Command: c, Principal: operator, Request: uuid.NewString(), Digest: make([]byte, sha256.Size)}
}

// Write changes a key through the nodes that next names, one a try: the request is
// repeated while its outcome is unknown.
func (c *Client) Write(kind history.Kind, key fsm.ID, next func() *Node) error {
	return c.write(kind, key.String(), command(kind, key), next)
}

func (c *Client) write(kind history.Kind, subject string, command fsm.Command, next func() *Node) error {
	p := request(command)
	n := next()
	call := c.begin(n.running(), n, kind, subject)
	var result fsm.Result
	var err error
	var doubt atomic.Bool
	for range writeTries {
		if result, err = c.try(n, p, &doubt); err == nil || !doubt.Load() {
			break
		}
		refused := outcomeOf(err) == history.Refused
		err = errors.Join(cluster.ErrOutcomeUnknown, err)
		if refused { // but an earlier message may arrive yet: the refusal is not remembered
			break
		}
		n = next()
	}
	if err == nil {
		c.seen = max(c.seen, result.Index)
	}
	call.End(outcomeOf(err), history.Answer{Index: result.Index, Note: text(err)})
	return err
}

// doubtKey is the key of a flag in a call's context: whether one of its messages may yet
// have an effect.
type doubtKey struct{}

func (c *Client) try(n *Node, p fsm.Proposal, doubt *atomic.Bool) (fsm.Result, error) {
	l := n.running()
	if l == nil || l.opened.Load() == nil {
		return fsm.Result{}, errDown
	}
	ctx, cancel := context.WithTimeout(context.WithValue(c.cluster.ctx, doubtKey{}, doubt), writeTimeout)
	defer cancel()
	defer context.AfterFunc(l.end.ctx, cancel)()
	result, err := l.opened.Load().Propose(ctx, p)
	if l.end.ctx.Err() != nil {
		err = cluster.ErrOutcomeUnknown // the connection broke
	}
	if errors.Is(err, cluster.ErrOutcomeUnknown) {
		doubt.Store(true)
	}
	return result, err
}

// Read is an ordinary read: the node waits for what the session has seen and answers
// by itself.
func (c *Client) Read(n *Node, key fsm.ID) {
	l := n.running()
	call := c.begin(l, n, history.Read, key.String())
	s, err := c.await(l, readTimeout, func(ctx context.Context, m *cluster.Member) error {
		_, err := m.Wait(ctx, c.seen)
		return err
	})
	c.read(call, s, key, err)
}

// QuorumRead is a read of a state that is no older than the call.
func (c *Client) QuorumRead(n *Node, key fsm.ID) {
	l := n.running()
	call := c.begin(l, n, history.QuorumRead, key.String())
	s, err := c.await(l, confirmTimeout, func(ctx context.Context, m *cluster.Member) error { return m.Confirm(ctx) })
	c.read(call, s, key, err)
}

func (c *Client) await(l *life, atMost time.Duration, f func(context.Context, *cluster.Member) error) (*fsm.State, error) {
	if l == nil || l.opened.Load() == nil {
		return nil, errDown
	}
	ctx, cancel := context.WithTimeout(l.end.ctx, atMost)
	defer cancel()
	m := l.opened.Load()
	if err := f(ctx, m); err != nil {
		return nil, err
	}
	s := m.State()
	if l.end.ctx.Err() != nil {
		return nil, errDown
	}
	return s, nil
}

func (c *Client) read(call history.Call, s *fsm.State, key fsm.ID, err error) {
	if err != nil {
		call.End(history.Failed, history.Answer{Note: text(err)})
		return
	}
	c.seen = max(c.seen, s.Index())
	call.End(history.OK, history.Answer{Index: s.Index(), Value: valueOf(s, key)})
}

func valueOf(s *fsm.State, key fsm.ID) history.Value {
	k, ok := s.Key(key)
	if !ok {
		return history.Absent
	}
	return history.Value(k.State)
}

// Final reads a key on every node, which must all have caught up.
func (c *Client) Final(key fsm.ID) {
	for _, n := range c.cluster.Nodes {
		call := c.begin(n.running(), n, history.Final, key.String())
		s := n.Member().State()
		call.End(history.OK, history.Answer{Index: s.Index(), Value: valueOf(s, key)})
	}
}

func outcomeOf(err error) history.Outcome {
	switch {
	case err == nil:
		return history.OK
	case errors.Is(err, cluster.ErrOutcomeUnknown):
		return history.Unknown
	case errors.As(err, new(errLacking)):
		return history.Refused
	case errors.Is(err, fsm.ErrConflict), errors.Is(err, fsm.ErrNotInitialized):
		return history.Failed
	case fsm.Code(err) != "":
		return history.Refused
	}
	return history.Failed
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// anyNode draws nodes from a source.
func (c *Cluster) anyNode(random *rand.Rand) func() *Node {
	return func() *Node { return c.Nodes[random.IntN(len(c.Nodes))] }
}
