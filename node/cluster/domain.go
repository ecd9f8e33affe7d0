package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// A new generation of the domain key is made by one node, at an operator's word, and
// recorded as proposed. Every other node sees that in the state and pulls it from one
// that has it (pull.go), which records that the node has proved possession. The leader
// activates it when nobody is missing. Each step is begun anew from the state alone,
// after a restart or under another leader. A node that comes later pulls in the same way
// what it lacks, and answers nothing before.

const (
	// installPause is between two attempts to install what this node lacks.
	installPause = time.Second
	// pullTimeout bounds one conversation with one member.
	pullTimeout = 30 * time.Second
	// askTimeout bounds the question to one member what it holds.
	askTimeout = 1500 * time.Millisecond
)

// DomainWait is what a node waits for that lacks a generation.
type DomainWait struct {
	Generation  uint32
	Fingerprint string // of its transfer key; empty in the transfer profile cloned
	// Donors are names of members. One of their Security Officers must trust the key, or the
	// generation must be cloned from one of their partitions.
	Donors []string
	Twin   bool // it is for the twin of a generation that this node holds
}

// DomainHolding is what one member has of the domain key.
type DomainHolding struct {
	Holds   []uint32    // numbers of the cluster's generations in its partition
	Waiting *DomainWait // nil: for nobody
	Problem string      // why it does not get on; empty: it does
}

// domainKeys is what this node knows of its own partition.
type domainKeys struct {
	held atomic.Pointer[[]hsm.Generation]

	mu      sync.Mutex
	waiting *DomainWait
	problem string
	moving  string // why not all key versions are moved away from a generation
	told    string // fingerprint of which a person was told
}

// now is what the partition holds.
func (d *domainKeys) now() []hsm.Generation { return *d.held.Load() }

func (d *domainKeys) add(g hsm.Generation) {
	d.change(func(all []hsm.Generation) []hsm.Generation {
		all = append(all, g)
		slices.SortFunc(all, func(a, b hsm.Generation) int { return cmp.Compare(a.Number, b.Number) })
		return all
	})
}

func (d *domainKeys) drop(g hsm.Generation) {
	d.change(func(all []hsm.Generation) []hsm.Generation { return slices.DeleteFunc(all, g.Equal) })
}

func (d *domainKeys) change(f func([]hsm.Generation) []hsm.Generation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := f(slices.Clone(d.now()))
	d.held.Store(&all)
}

// sameAs tells whether a partition's generation is the one that the state knows.
func sameAs(g fsm.Generation) func(hsm.Generation) bool {
	return hsmGeneration(g).Equal
}

func numbered(number uint32) func(hsm.Generation) bool {
	return func(h hsm.Generation) bool { return h.Number == number }
}

// complete fails if this node lacks a generation under which a state may have tokens: it
// wraps hsm.ErrNotFound.
func (d *domainKeys) complete(s *fsm.State) error {
	held := d.now()
	for _, g := range s.Cluster().Generations {
		if g.InUse() && !slices.ContainsFunc(held, sameAs(g)) {
			return fmt.Errorf("%w: generation %d; it is installed as soon as a Security Officer has trusted this node's transfer key, other nodes may answer", hsm.ErrNotFound, g.Number)
		}
	}
	return nil
}

// holds are the numbers of the cluster's generations that this node has: what has the number
// only is not the cluster's. Of a retired one the state has no check values any more.
func (d *domainKeys) holds(s *fsm.State) (numbers []uint32) {
	for _, h := range d.now() {
		if g, ok := s.Generation(h.Number); ok && (g.Retired() || sameAs(g)(h)) {
			numbers = append(numbers, h.Number)
		}
	}
	return numbers
}

// RotateDomain makes a new generation in this node's partition and proposes it; it becomes
// active by itself when every node has it. propose commits a command in the caller's name.
func (m *Member) RotateDomain(ctx context.Context, noRecovery bool, propose func(context.Context, fsm.Command) (fsm.Result, error)) (number uint32, err error) {
	e, err := m.engine()
	if err != nil {
		return 0, err
	}
	held, err := e.config.Domain.Generations(ctx, hsm.ID(e.cluster))
	if err != nil {
		return 0, err
	}
	number = e.machine.State().NextGeneration()
	if len(held) > 0 { // the partition may know later ones, of an attempt that failed
		number = max(number, held[len(held)-1].Number+1)
	}
	made, err := e.config.Domain.CreateDomain(ctx, hsm.ID(e.cluster), number)
	if err != nil {
		return 0, fmt.Errorf("making generation %d of the domain key: %w", number, err)
	}
	e.domain.add(made)
	command := &fsm.ProposeGeneration{Number: number, Node: e.id, NoRecovery: noRecovery, Checks: domainChecks(made)}
	result, err := propose(ctx, command)
	if errors.Is(err, ErrOutcomeUnknown) {
		return 0, err
	}
	if neverProposed(e.machine.State(), made, err) { // another is: this one is of no use
		_ = e.forget(made) // it has told the log what hinders it; the number is never used again
	}
	if err != nil {
		return 0, err
	}
	return GenerationOf(result)
}

// neverProposed tells whether nothing can ever be wrapped under a generation that this node
// has made: the log has answered, or has never had the proposal, and the state does not know
// those check values. The number says nothing: another node's generation may have it.
func neverProposed(s *fsm.State, made hsm.Generation, err error) bool {
	if err != nil && (fsm.Code(err) == "" || errors.Is(err, fsm.ErrHalted)) && !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrBusy) {
		return false
	}
	g, ok := s.Generation(made.Number)
	return !ok || !sameAs(g)(made)
}

// keepsGenerations refuses to let go of the only node in reach that holds a generation
// under which keys are wrapped: after a removal its partition is destroyed.
func (e *engine) keepsGenerations(ctx context.Context, without string) error {
	holds, err := e.member.Domain(ctx)
	if err != nil {
		return err
	}
	return keepsGenerations(e.machine.State(), holds, without)
}

func keepsGenerations(s *fsm.State, holds map[string]DomainHolding, without string) error {
	wrapped := s.CountTokens()
	for _, g := range s.Cluster().Generations {
		kept := !g.InUse() || wrapped[g.Number] == 0
		for id, h := range holds {
			kept = kept || id != without && slices.Contains(h.Holds, g.Number)
		}
		if !kept {
			return fmt.Errorf("%w: without %s no node in reach would hold generation %d of the domain key, which wraps %d key versions: let another install it first, see kmsctl domain status",
				fsm.ErrMember, without, g.Number, wrapped[g.Number])
		}
	}
	return nil
}

// holdsAll tells whether a member says that it holds every generation in use.
func (e *engine) holdsAll(m *fsm.Member) bool {
	ctx, cancel := context.WithTimeout(e.ctx, askTimeout)
	defer cancel()
	h, err := e.config.Peers.Domain(ctx, m.PeerAddress, e.id)
	lacks := func(g fsm.Generation) bool { return g.InUse() && !slices.Contains(h.Holds, g.Number) }
	return err == nil && !slices.ContainsFunc(e.machine.State().Cluster().Generations, lacks)
}

// GenerationOf is the number of the generation that a command has proposed.
func GenerationOf(proposed fsm.Result) (uint32, error) {
	n, err := strconv.ParseUint(proposed.ID, 10, 32)
	return uint32(n), err
}

// MayRotateDomain says why no generation can be proposed now, if so, or why it could never
// become active.
func (m *Member) MayRotateDomain(noRecovery bool) error {
	s := m.State()
	g, err := s.ActiveGeneration()
	if err != nil {
		return err
	}
	_, err = s.Try(&fsm.ProposeGeneration{Number: s.NextGeneration(), Node: m.ID(), Checks: g.Checks})
	if r := s.Recovery(); err == nil && !noRecovery && len(r.Recipients) < r.Required {
		return fmt.Errorf("%w: the cluster has %d recovery recipients, %d must hold a generation before it becomes active: if every node's HSM token is lost, so is all data; add some (kmsctl recovery recipients add), or say no_recovery (--no-recovery) to accept that", fsm.ErrInvalid, len(r.Recipients), r.Required)
	}
	return err
}

func domainChecks(g hsm.Generation) (out []fsm.DomainCheck) {
	for _, k := range g.Checks {
		out = append(out, fsm.DomainCheck{Kind: uint8(k.Kind), Value: k.Value[:]})
	}
	return out
}

// forget destroys a generation, with those check values and no others, in this node's
// partition.
func (e *engine) forget(g hsm.Generation) error {
	if err := e.config.Domain.DestroyDomain(e.ctx, hsm.ID(e.cluster), g); err != nil && !errors.Is(err, hsm.ErrNotFound) {
		e.log.Warn("a generation of the domain key was not destroyed in this node's partition", "generation", g.Number, "error", err)
		return fmt.Errorf("destroying generation %d of the domain key in this node's partition: %w", g.Number, err)
	}
	e.domain.drop(g)
	e.log.Info("a generation of the domain key was destroyed in this node's partition", "generation", g.Number)
	return nil
}

// activate commits that a generation wraps new keys from here on.
func (e *engine) activate(g fsm.Generation) error {
	ctx, cancel := context.WithTimeout(e.ctx, dutyTimeout)
	defer cancel()
	_, err := e.commit(ctx, fsm.Proposal{Command: &fsm.ActivateGeneration{Number: g.Number}, Principal: e.principal()}, e.id)
	if err == nil {
		e.log.Info("a generation of the domain key is active", "generation", g.Number)
	}
	return err
}

// installLoop keeps this node's partition as the state wants it.
func (e *engine) installLoop() {
	timer := time.NewTicker(installPause)
	defer timer.Stop()
	var settled uint64 // revision of the cluster's record after which there was nothing to do
	for {
		changed := e.machine.Changed()
		s := e.machine.State()
		if self, ok := s.Member(e.id); ok && self.Serves() && s.History() == e.history && s.Cluster().Revision != settled {
			if err := e.belongs(s, self); err != nil {
				e.config.Halt(err)
				return
			}
			installed := e.install(s)
			if e.copyForRecovery(s) && installed {
				settled = s.Cluster().Revision
			}
		}
		select {
		case <-changed:
		case <-e.ctx.Done():
			return
		}
		select { // changes come in bursts, and what failed is not tried again at once
		case <-timer.C:
		case <-e.ctx.Done():
			return
		}
	}
}

// install takes the steps that are this node's; done tells that none is left.
func (e *engine) install(s *fsm.State) (done bool) {
	twin := e.keepTwin(s) // first: a twin that nobody asks for goes, whatever else cannot be done
	if e.member.cloned() {
		if err := e.look(); err != nil {
			e.domain.problemIs(err)
			return false
		}
	}
	var lacking []fsm.Generation
	left := false // of what is to be destroyed
	for _, g := range s.Cluster().Generations {
		held := e.domain.now()
		if !g.Retired() && slices.ContainsFunc(held, numbered(g.Number)) && !slices.ContainsFunc(held, sameAs(g)) {
			if err := e.leftOver(g); err != nil {
				e.domain.problemIs(err)
				return false
			}
			held = e.domain.now()
		}
		switch {
		case g.Retired(): // whatever has the number: no token names it, and none ever will
			if i := slices.IndexFunc(held, numbered(g.Number)); i >= 0 {
				left = e.forget(held[i]) != nil || left
			}
		case !slices.ContainsFunc(held, sameAs(g)), g.State == fsm.GenerationProposed && !slices.Contains(g.Installed, e.id):
			lacking = append(lacking, g)
		}
	}
	for i, g := range lacking {
		more := slices.ContainsFunc(lacking[i+1:], func(g fsm.Generation) bool { return !slices.ContainsFunc(e.domain.now(), sameAs(g)) })
		if err := e.pullFromAny(s, g, more); err != nil {
			if e.ctx.Err() == nil {
				e.domain.problemIs(err)
				e.log.Debug("a generation of the domain key is not installed yet", "generation", g.Number, "error", err)
			}
			return false
		}
		e.log.Info("a generation of the domain key is installed", "generation", g.Number)
	}
	if e.ctx.Err() == nil {
		e.domain.problemIs(twin)
	}
	return len(lacking) == 0 && !left && twin == nil
}

// leftOver destroys what the partition holds under a generation's number if the state says
// that the cluster's is another: no check value is the same. The partition is asked again
// first, and whether it errs: wrong answers destroy nothing. What is the cluster's in part is
// not destroyed by a node on its own.
func (e *engine) leftOver(g fsm.Generation) error {
	held, err := e.config.Domain.Generations(e.ctx, hsm.ID(e.cluster))
	if err != nil {
		return err
	}
	e.domain.change(func([]hsm.Generation) []hsm.Generation { return slices.Clone(held) })
	i := slices.IndexFunc(held, numbered(g.Number))
	switch {
	case i < 0:
		return nil
	case sameAs(g)(held[i]):
		e.log.Warn("this node's partition had given wrong check values", "generation", g.Number)
		return nil
	case shareKeys(hsmGeneration(g), held[i]):
		return fmt.Errorf("%w: this node's partition holds generation %d of the domain key with some of the cluster's check values and some others: it is not destroyed; look after the HSM, or replace the node", hsm.ErrCorrupt, g.Number)
	}
	if err := e.config.Domain.Doubt(e.ctx); err != nil {
		return fmt.Errorf("generation %d of the domain key has other check values than the cluster's: %w", g.Number, err)
	}
	e.log.Warn("this node's partition holds another generation of that number, which the cluster does not know: it was left over", "generation", g.Number)
	return e.forget(held[i])
}

// shareKeys tells whether two generations have a check value in common, but for that of the
// log key, which all have.
func shareKeys(a, b hsm.Generation) bool {
	return slices.ContainsFunc(a.Checks, func(k hsm.KeyCheck) bool { return k.Kind != hsm.KindLog && slices.Contains(b.Checks, k) })
}

// look reads again what this node's partition holds: cloning puts keys there behind the
// node's back.
func (e *engine) look() error {
	held, err := e.config.Domain.Generations(e.ctx, hsm.ID(e.cluster))
	if err == nil {
		e.domain.change(func([]hsm.Generation) []hsm.Generation { return held })
	}
	return err
}

// problemIs notes why this node does not get on; nil: it waits for nobody.
func (d *domainKeys) problemIs(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		d.waiting, d.problem = nil, ""
	case errors.Is(err, hsm.ErrNotTrusted):
		d.problem = ""
	default:
		d.problem = err.Error()
	}
}

// movingIs notes why not all key versions are moved that this node is to; nil: they are, or
// it is not to. It stays when the partition's own problems go.
func (d *domainKeys) movingIs(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moving = ""; err != nil {
		d.moving = err.Error()
	}
}

// HandleDomain tells what this node has of the domain key.
func (m *Member) HandleDomain() (DomainHolding, error) {
	e, err := m.engine()
	if err != nil {
		return DomainHolding{}, err
	}
	out := DomainHolding{Holds: e.domain.holds(e.machine.State())}
	e.domain.mu.Lock()
	defer e.domain.mu.Unlock()
	out.Waiting, out.Problem = e.domain.waiting, cmp.Or(e.domain.problem, e.domain.moving)
	return out, nil
}

// Domain asks every member what it has of the domain key; by raft id.
func (m *Member) Domain(ctx context.Context) (map[string]DomainHolding, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	out := map[string]DomainHolding{}
	for _, x := range e.machine.State().Members() {
		if !x.LeaseHolder() {
			continue
		}
		all.Go(func() {
			var h DomainHolding
			var err error
			if x.ID == e.id {
				h, err = m.HandleDomain()
			} else {
				h, err = e.config.Peers.Domain(ctx, x.PeerAddress, e.id)
			}
			if err != nil {
				h.Problem = "it does not say what it holds: " + err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			out[x.ID] = h
		})
	}
	all.Wait()
	return out, nil
}
