package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/rules"
)

// The lease lets a node answer by itself. A node (the lessee, the leader too)
// asks the leader each second; the leader commits one tick for all that ask at
// about the same time, and grants. A grant counts from the moment the request was
// sent, on the lessee's clock, for Duration; the leader waits out Bound, which is
// longer by more than clocks differ, on its own clock.
//
// After Gray and Cheriton's leases; Raft's commit is the grantor's proof that it
// led when it was asked. A restriction is acknowledged when every lease holder has
// applied it, or can hold no lease granted before it.

// LeaseTiming is the timing of lease requests. How long a lease lasts stands in the
// state, so that it is the same for all nodes.
type LeaseTiming struct {
	Renew time.Duration // how often a lease is renewed
	Batch time.Duration // how long the leader gathers requests for one tick
}

// driftMargin is how much longer the leader waits than a lease lasts: monotonic
// clocks' rates within 20 % of each other are covered.
const driftMargin = 1.25

// leaseDuration is how long a grant is good for, on the lessee's clock; 0 before
// the first entry is applied.
func leaseDuration(s *fsm.State) time.Duration {
	return time.Duration(s.Cluster().LeaseMillis) * time.Millisecond
}

func withMargin(lease time.Duration) time.Duration {
	if rules.Margin.Off() {
		return lease
	}
	return time.Duration(float64(lease) * driftMargin)
}

const (
	// maxSkew is how far a node's wall clock may be from the leader's, a request's
	// way included: grants and deletions end by wall time.
	maxSkew = 5 * time.Second
	// maxLeap is how far wall time may outrun the monotonic clock while a lease lives.
	// It does when a paused virtual machine goes on and its clock is put right: other
	// leases have ended meanwhile.
	maxLeap = 250 * time.Millisecond
)

// LeaseRequest asks the leader for a lease.
type LeaseRequest struct {
	Node        string
	Incarnation uint64
	Nonce       uint64
	Applied     uint64
	HashIndex   uint64 // of the last tick that the node has applied; 0: none
	Hash        []byte // running hash right after it
	Wall        int64  // unix nanoseconds
	Epoch       uint32
	Release     int        // the newest release of the formats that the node knows; 0 from a node of v0.1.0
	Audit       *AuditHead // if it has one that is newer than what its state has
}

// LeaseGrant is the leader's answer.
type LeaseGrant struct {
	Incarnation uint64
	Nonce       uint64
	MinIndex    uint64 // of the tick that was committed for it
	Agreed      bool   // the leader has compared the request's hash with its own
}

// invariant ends the process when what the lease's proof rests on does not hold.
func invariant(holds bool, what string) {
	if !holds {
		panic("cluster: broken invariant of the lease: " + what)
	}
}

// lessee keeps this process's leases, in memory only.
type lessee struct {
	duration    func() time.Duration
	clock       Clock
	wall        func() time.Time
	incarnation uint64

	mu     sync.Mutex
	nonce  uint64
	sent   map[uint64]instant
	leases atomic.Pointer[[]lease] // a set: the newest may need an index that is not applied yet
}

// instant is a moment on both clocks.
type instant struct {
	mono time.Duration
	wall int64 // unix nanoseconds
}

type lease struct {
	asked   instant // just before its request was sent
	expires time.Duration
	min     uint64
}

func newLessee(duration func() time.Duration, c Clock, wall func() time.Time, incarnation uint64) *lessee {
	l := &lessee{duration: duration, clock: c, wall: wall, incarnation: incarnation, sent: map[uint64]instant{}}
	l.leases.Store(&[]lease{})
	return l
}

func (l *lessee) now() instant { return instant{mono: l.clock.Now(), wall: l.wall().UnixNano()} }

// ask notes a request before it is sent.
func (l *lessee) ask() (nonce uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, duration := l.now(), l.duration()
	for n, t := range l.sent {
		if now.mono-t.mono >= duration {
			delete(l.sent, n) // its grant would be born expired
		}
	}
	l.nonce++
	l.sent[l.nonce] = now
	return l.nonce
}

// granted takes a grant in, if it answers a request of this process that is still
// remembered.
func (l *lessee) granted(g LeaseGrant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	asked, ok := l.sent[g.Nonce]
	if !ok || g.Incarnation != l.incarnation {
		return
	}
	delete(l.sent, g.Nonce)
	now, duration := l.now(), l.duration()
	if rules.SendTime.Off() {
		asked = now
	}
	invariant(asked.mono <= now.mono, "the monotonic clock went back")
	next := []lease{{asked: asked, expires: asked.mono + duration, min: g.MinIndex}}
	for _, old := range *l.leases.Load() {
		if old.left(now) > 0 {
			next = append(next, old)
		}
	}
	l.leases.Store(&next)
}

// left is how long a lease is still good for: not at all once wall time has outrun
// the monotonic clock since it was asked for.
func (x lease) left(now instant) time.Duration {
	if time.Duration(now.wall-x.asked.wall)-(now.mono-x.asked.mono) > maxLeap && !rules.Leap.Off() {
		return 0
	}
	return x.expires - now.mono
}

// forget drops every lease.
func (l *lessee) forget() { l.leases.Store(&[]lease{}) }

// left is how long this node may still answer if it learns nothing more, given
// the index it has applied; zero or less: not at all.
func (l *lessee) left(applied uint64) time.Duration {
	now, best := l.now(), time.Duration(0)
	for _, x := range *l.leases.Load() {
		if applied >= x.min || rules.MinIndex.Off() {
			best = max(best, x.left(now))
		}
	}
	return best
}

// grantor is the leader's side. What it knows lives with the process and only
// grows; floor belongs to the term of its last own committed entry.
type grantor struct {
	duration func() time.Duration
	clock    Clock

	mu      sync.Mutex
	bound   map[string]time.Duration // raft id -> when the last lease it may have been granted is over
	acked   map[string]uint64        // raft id -> index it is known to have applied
	heard   map[string]time.Duration // raft id -> when it was last heard of
	lag     map[string]lag           // raft id -> the restriction that it has been behind the longest
	views   map[string]view          // raft id -> how its last request compared with this node
	knows   map[string]knowledge     // raft id -> what its software knows
	term    uint64
	floor   time.Duration // when the leases of earlier terms are over
	changed chan struct{} // closed and replaced when acked grows
}

// lag is a restriction that a node has not confirmed, and since when that is known.
type lag struct {
	index uint64
	since time.Duration
}

// view is how a node's request compared with the leader's own state and clock.
type view struct {
	index   uint64        // where hashes were compared; of a difference, where it was first seen; 0: nowhere
	differs bool          // its running hash is another one at the same index
	skewed  bool          // its wall clock is too far away
	ahead   time.Duration // how far its wall clock was ahead of the leader's, less the request's way
}

func newGrantor(duration func() time.Duration, c Clock) *grantor {
	return &grantor{
		duration: duration, clock: c, changed: make(chan struct{}),
		bound: map[string]time.Duration{}, acked: map[string]uint64{}, heard: map[string]time.Duration{},
		lag: map[string]lag{}, views: map[string]view{}, knows: map[string]knowledge{},
	}
}

// ownTerm notes the term of an entry that this node proposed and saw committed.
func (g *grantor) ownTerm(term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if term <= g.term {
		return
	}
	if !rules.Floor.Off() && (g.term == 0 || !rules.FloorPerTerm.Off()) {
		g.floor = g.clock.Now() + withMargin(g.duration())
	}
	g.term = term
}

// requested records the bound of a lease that is about to be granted: before the
// tick is proposed. A node that has not confirmed a restriction for as long as a
// lease lasts gets none, or every further restriction would wait for it.
func (g *grantor) requested(node string, restricted uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, behind := g.clock.Now(), g.lag[node]
	if g.acked[node] >= behind.index {
		delete(g.lag, node)
		behind = lag{index: restricted, since: now}
		if g.acked[node] < restricted {
			g.lag[node] = behind
		}
	}
	if now-behind.since > g.duration() {
		return fmt.Errorf("%w: it has applied %d and for %s has not confirmed the restriction at %d",
			ErrNoLease, g.acked[node], (now - behind.since).Round(time.Millisecond), behind.index)
	}
	g.bound[node] = max(g.bound[node], now+withMargin(g.duration()))
	return nil
}

// compared notes how a node's request compared with this one.
func (g *grantor) compared(node string, v view) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.views[node]; v.differs && old.differs {
		v.index = old.index
	}
	g.views[node] = v
}

// differing are the nodes whose running hash was another one when they last asked, with the
// index at which that was first seen.
func (g *grantor) differing() map[string]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[string]uint64{}
	for node, v := range g.views {
		if v.differs {
			out[node] = v.index
		}
	}
	return out
}

// poll counts voters: all; those that agree with this node, itself included, behind
// where any other differs; those whose hash differs; and those whose clock does. What was
// heard longer ago than a lease lasts does not count.
type poll struct{ voters, agree, differ, skewed int }

func (g *grantor) poll(self string, s *fsm.State) poll {
	g.mu.Lock()
	defer g.mu.Unlock()
	var p poll
	var views []view
	behind := uint64(0) // an agreement from before a difference says nothing about it
	for _, m := range s.Members() {
		if !m.Serves() || !m.Voter {
			continue
		}
		p.voters++
		heard, ok := g.heard[m.ID]
		switch v := g.views[m.ID]; {
		case m.ID == self:
			p.agree++
		case ok && g.clock.Now()-heard < g.duration():
			views = append(views, v)
			if v.differs {
				behind = max(behind, v.index)
			}
		}
	}
	for _, v := range views {
		switch {
		case v.differs:
			p.differ++
		case v.index >= behind:
			p.agree++
		}
		if v.skewed {
			p.skewed++
		}
	}
	return p
}

// ack notes what a node has applied.
func (g *grantor) ack(node string, applied uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heard[node] = g.clock.Now()
	if applied <= g.acked[node] {
		return
	}
	g.acked[node] = applied
	close(g.changed)
	g.changed = make(chan struct{})
}

// progress is what a node is known to have applied, and how long ago it was heard
// of; ok is false if never.
func (g *grantor) progress(node string) (index uint64, ago time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, ok := g.heard[node]
	return g.acked[node], g.clock.Now() - at, ok
}

// overSince tells whether no lease that a holder may have been granted before the
// given term, or by this node, can be alive any more. It knows nothing before this
// node has committed an entry of its own in that term.
func (g *grantor) overSince(node string, term uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.term >= term && g.clock.Now() >= max(g.floor, g.bound[node])
}

// bounded tells whether a bound is recorded for a node.
func (g *grantor) bounded(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bound[node] > 0
}

// over is when no lease that a holder may have can be alive any more. It holds
// right after this node has committed an entry of its own.
func (g *grantor) over(node string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.floor, g.bound[node])
}

// settle returns when every holder has applied the index or can hold no lease
// granted before now. The deadlines are taken once, after the commit.
func (g *grantor) settle(ctx context.Context, holders []string, index uint64) error {
	until := make(map[string]time.Duration, len(holders))
	for _, h := range holders {
		until[h] = g.over(h)
	}
	for {
		g.mu.Lock()
		changed := g.changed
		now, next := g.clock.Now(), time.Duration(0)
		for h, deadline := range until {
			switch {
			case g.acked[h] >= index || now >= deadline:
				delete(until, h)
			case next == 0 || deadline < next:
				next = deadline
			}
		}
		g.mu.Unlock()
		if len(until) == 0 {
			return nil
		}
		timer := time.NewTimer(next - now) // the clock is read again behind it
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: committed at %d, but not every node has confirmed it: %w", ErrOutcomeUnknown, index, ctx.Err())
		}
		timer.Stop()
	}
}

// leaseHolders are the members a restriction waits for.
func leaseHolders(s *fsm.State) []string {
	var out []string
	for _, m := range s.Members() {
		if m.LeaseHolder() && (m.Serves() || !rules.LeavingWaits.Off()) {
			out = append(out, m.ID)
		}
	}
	return out
}

// waiter is a lease request that waits for the next tick.
type waiter struct {
	request LeaseRequest
	agreed  bool
	index   uint64           // that the leader had applied when the request arrived
	answer  chan leaseAnswer // buffered
}

type leaseAnswer struct {
	grant LeaseGrant
	err   error
}

// HandleLease answers a node's lease request: only as the leader, only to a
// member that may serve and agrees with the cluster, with a tick committed after the
// request arrived.
func (m *Member) HandleLease(ctx context.Context, r LeaseRequest) (LeaseGrant, error) {
	e, err := m.engine()
	if err != nil {
		return LeaseGrant{}, err
	}
	s := e.machine.State()
	member, ok := s.Member(r.Node)
	if ok && !member.Alive() && !e.inRaft(r.Node) {
		return LeaseGrant{}, fmt.Errorf("%w: %s", ErrRemoved, r.Node)
	}
	if !e.leads() {
		return LeaseGrant{}, e.noLeader()
	}
	if !ok || !member.Serves() {
		return LeaseGrant{}, fmt.Errorf("%w: %s is no active member", fsm.ErrMember, r.Node)
	}
	if r.Epoch != s.Cluster().RecoveryEpoch {
		return LeaseGrant{}, fmt.Errorf("%w: %s is of recovery epoch %d, the cluster of %d", fsm.ErrMember, r.Node, r.Epoch, s.Cluster().RecoveryEpoch)
	}
	if max(r.Release, fsm.FirstRelease) < s.Cluster().Release {
		return LeaseGrant{}, fmt.Errorf("%w: %s runs a version that knows release %d, the cluster is at release %d: upgrade this node", fsm.ErrRelease, r.Node, max(r.Release, fsm.FirstRelease), s.Cluster().Release)
	}
	e.grantor.ack(r.Node, r.Applied)
	e.grantor.reported(r.Node, r.Release)
	e.offered(member, s, r.Audit)
	agreed, err := e.compare(r)
	if err != nil {
		return LeaseGrant{}, err
	}
	if rules.BoundFirst.Off() {
		defer time.AfterFunc(2*e.config.Lease.Batch, func() { _ = e.grantor.requested(r.Node, s.Restricted()) })
	} else if err := e.grantor.requested(r.Node, s.Restricted()); err != nil {
		return LeaseGrant{}, err
	}
	t := waiter{request: r, agreed: agreed, index: s.Index(), answer: make(chan leaseAnswer, 1)}
	select {
	case e.waiters <- t:
	case <-ctx.Done():
		return LeaseGrant{}, ctx.Err()
	case <-e.ctx.Done():
		return LeaseGrant{}, ErrShutdown
	}
	select {
	case a := <-t.answer:
		return a.grant, a.err
	case <-ctx.Done():
		return LeaseGrant{}, ctx.Err()
	case <-e.ctx.Done():
		return LeaseGrant{}, ErrShutdown
	}
}

// compare refuses a node whose running hash or wall clock is not the leader's.
func (e *engine) compare(r LeaseRequest) (agreed bool, err error) {
	own, known := e.machine.MarkAt(r.HashIndex)
	ahead := time.Unix(0, r.Wall).Sub(e.config.Now())
	skew := ahead.Abs()
	v := view{index: own.Index, differs: known && !bytes.Equal(own.Hash[:], r.Hash), skewed: skew > maxSkew, ahead: ahead}
	e.grantor.compared(r.Node, v)
	p := e.grantor.poll(e.id, e.machine.State())
	e.clockWrong.Store(p.skewed*2 > p.voters)
	switch p.judge(v) {
	case leaderDiffers:
		err := fmt.Errorf("%w: the running hashes of %d of %d voters are others than this leader's, which at index %d is %x", ErrDiverged, p.differ, p.voters, own.Index, own.Hash)
		e.diverged(err)
		return false, err
	case nodeDiffers:
		return false, fmt.Errorf("%w: at index %d its running hash is %x, that of the leader and the majority %x", ErrDiverged, own.Index, r.Hash, own.Hash)
	case nobodyKnows:
		return false, fmt.Errorf("%w: the running hashes of nodes differ and no majority agrees: nobody serves until an operator has found out which are right", ErrNoLease)
	case clockDiffers:
		return false, fmt.Errorf("%w: its wall clock is %s away from the leader's, at most %s are allowed: set it right on the host that is wrong", ErrNoLease, skew.Round(time.Millisecond), maxSkew)
	case fits:
	}
	return known, nil
}

// judgement is what a leader makes of a lease request.
type judgement int

const (
	fits judgement = iota
	leaderDiffers
	nodeDiffers
	nobodyKnows
	clockDiffers
)

// judge lets a majority decide which state is right. A node that differs from one
// stops, and so does a leader; where no majority agrees, nobody serves.
func (p poll) judge(v view) judgement {
	switch {
	case p.differ*2 > p.voters:
		return leaderDiffers
	case v.differs && p.agree*2 > p.voters:
		return nodeDiffers
	case v.differs, p.differ > 0 && p.agree*2 <= p.voters:
		return nobodyKnows
	case v.skewed:
		return clockDiffers
	}
	return fits
}

// HandleAck notes that a node has applied an index.
func (m *Member) HandleAck(node string, applied uint64) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	e.grantor.ack(node, applied)
	return nil
}

// grantLoop gathers lease requests and commits one tick for each batch.
func (e *engine) grantLoop() {
	for {
		var batch []waiter
		select {
		case t := <-e.waiters:
			batch = append(batch, t)
		case <-e.ctx.Done():
			return
		}
		gather := time.NewTimer(e.config.Lease.Batch)
		for open := true; open; {
			select {
			case t := <-e.waiters:
				batch = append(batch, t)
			case <-gather.C:
				open = false
			case <-e.ctx.Done():
				gather.Stop()
				return
			}
		}
		e.tick(batch)
	}
}

func (e *engine) tick(batch []waiter) {
	e.ticks.begin(e.config.Clock.Now())
	mark := e.machine.Mark()
	result, err := fsm.Result{Index: e.machine.State().Index()}, error(nil)
	if !rules.Tick.Off() {
		result, err = e.commit(e.ctx, fsm.Proposal{
			Command:   &fsm.Tick{HashIndex: mark.Index, Hash: mark.Hash[:]},
			Principal: e.principal(),
		}, e.id)
	}
	if err == nil || !e.leads() {
		e.ticks.end()
	}
	for _, t := range batch {
		a := leaseAnswer{err: err}
		if err == nil {
			invariant(result.Index > t.index || rules.Tick.Off(), "a grant's index is that of an entry from before its request")
			invariant(e.grantor.bounded(t.request.Node) || rules.BoundFirst.Off(), "a grant's bound is not recorded")
			a.grant = LeaseGrant{Incarnation: t.request.Incarnation, Nonce: t.request.Nonce, MinIndex: result.Index, Agreed: t.agreed}
		}
		t.answer <- a
	}
}

// renewLoop keeps this node's lease alive: a request each Renew, at once when the
// leader changes, and more often while there is no lease.
func (e *engine) renewLoop() {
	const impatient = 10 // parts of Renew between requests while there is no lease
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-e.leaderChanged:
		case <-e.ctx.Done():
			return
		}
		e.watchTicks()
		wait := e.config.Lease.Renew
		if e.lessee.left(e.machine.State().Index()) <= 0 {
			wait /= impatient
		}
		timer.Reset(wait)
		select {
		case e.renewals <- struct{}{}:
			e.wait.Go(e.renew)
		default: // enough requests are under way
		}
	}
}

func (e *engine) renew() {
	defer func() { <-e.renewals }()
	ctx, cancel := context.WithTimeout(e.ctx, max(e.config.Lease.Renew, e.lessee.duration()))
	defer cancel()
	_ = e.obtain(ctx) // it is asked for again soon; Usable says why there is none
}

// obtain asks for a lease. With it, this node has seen a tick that was committed
// after the call began, once it has applied its index.
func (e *engine) obtain(ctx context.Context) error {
	nonce := e.lessee.ask()
	s, mark := e.machine.State(), e.machine.Mark()
	grant, err := e.askLease(ctx, LeaseRequest{
		Node: e.id, Incarnation: e.lessee.incarnation, Nonce: nonce, Applied: min(e.settled.Load(), s.Index()),
		HashIndex: mark.Index, Hash: mark.Hash[:], Wall: e.config.Now().UnixNano(), Epoch: s.Cluster().RecoveryEpoch,
		Release: fsm.NewestRelease, Audit: e.auditHead(s),
	})
	e.observer.Lease(err)
	if err != nil {
		e.log.Debug("no lease granted", "error", err)
		e.noteRefusal(err)
		return err
	}
	if grant.Agreed {
		e.machine.Agreed(mark.Index)
	}
	e.refusal.Store(nil)
	e.lessee.granted(grant)
	_, err = e.machine.Wait(ctx, grant.MinIndex)
	return err
}

// noteRefusal remembers why there is no lease, and ends a node that the cluster does
// not want.
func (e *engine) noteRefusal(err error) {
	switch {
	case errors.Is(err, ErrRemoved):
		if _, err := e.onlyTwin(0); err != nil {
			e.log.Warn("a twin of a domain key may be left in this node's partition: kmsd recovery twin destroy", "error", err)
		}
		e.config.Halt(fmt.Errorf("%w: its data directory is of no further use; to come back it joins with an empty one", err))
	case errors.Is(err, ErrDiverged):
		e.diverged(err)
	case errors.Is(err, ErrNoLease):
		text := err.Error()
		e.refusal.Store(&text)
	}
}

// diverged ends this node and keeps the evidence: the data directory as it is, with
// a note that keeps the next start from using it.
func (e *engine) diverged(err error) {
	e.log.Error("the state of this node is not the cluster's", "error", err)
	e.config.Halt(errors.Join(err, noteEvidence(e.config.DataDir, err, e.config.Now())))
}

func (e *engine) askLease(ctx context.Context, r LeaseRequest) (LeaseGrant, error) {
	moved := e.leaderMove()
	address, id := e.leader()
	if id == e.id {
		return e.member.HandleLease(ctx, r)
	}
	ctx, cancel := until(ctx, moved)
	defer cancel()
	if id == "" {
		return e.askAnyone(ctx, r)
	}
	return e.config.Peers.Lease(ctx, address, r)
}

// askAnyone asks the other nodes in turn while no leader is known: none grants, but
// a node that was removed while it was cut off learns it so.
func (e *engine) askAnyone(ctx context.Context, r LeaseRequest) (LeaseGrant, error) {
	others := e.peers()
	if len(others) == 0 {
		return LeaseGrant{}, e.noLeader()
	}
	ctx, cancel := context.WithTimeout(ctx, e.config.Lease.Renew)
	defer cancel()
	return e.config.Peers.Lease(ctx, others[r.Nonce%uint64(len(others))], r)
}

// ackLoop follows the state: for each one it waits until no result that was checked
// on an earlier one is on its way out (R0), and tells the leader if it restricts.
func (e *engine) ackLoop() {
	var told uint64
	for {
		changed := e.machine.Changed()
		s := e.machine.State()
		if s.Index() > e.settled.Load() {
			if !rules.HandedOver.Off() && e.config.HandedOver(e.ctx) != nil {
				return
			}
			e.settled.Store(s.Index())
		}
		restricted, index := s.Restricted(), s.Index()
		if rules.AckApplied.Off() {
			restricted, index = e.raft.LastIndex(), e.raft.LastIndex()
		}
		if restricted > told {
			if e.tellApplied(index) {
				told = restricted
				continue
			}
			changed = nil // try again soon, whatever happens meanwhile
		}
		retry := time.NewTimer(e.config.Lease.Renew / 10)
		select {
		case <-changed:
		case <-retry.C:
		case <-e.ctx.Done():
			retry.Stop()
			return
		}
		retry.Stop()
	}
}

func (e *engine) tellApplied(index uint64) bool {
	address, id := e.leader()
	switch id {
	case "":
		return false
	case e.id:
		e.grantor.ack(e.id, index)
		return true
	}
	ctx, cancel := context.WithTimeout(e.ctx, e.config.Lease.Renew)
	defer cancel()
	return e.config.Peers.Ack(ctx, address, e.id, index) == nil
}

// Usable is nil while this node holds a lease whose index it has applied, and no
// tick has shown a running hash other than its own.
func (m *Member) Usable() error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	if d := e.machine.Differs(); d != nil {
		return fmt.Errorf("%w: its running hash at index %d is not the leader's; it stops if a majority says the same", ErrNoLease, d.Index)
	}
	if e.lessee.left(e.machine.State().Index()) > 0 {
		return nil
	}
	if why := e.refusal.Load(); why != nil {
		return fmt.Errorf("%w (%s); other nodes may answer", ErrNoLease, *why)
	}
	return fmt.Errorf("%w: it has lost touch with the cluster's leader; other nodes may answer", ErrNoLease)
}

// LeaseLeft is how long this node may still answer if it learns nothing more.
func (m *Member) LeaseLeft() time.Duration {
	e, err := m.engine()
	if err != nil {
		return 0
	}
	return e.lessee.left(e.machine.State().Index())
}

// Serves is nil if this node is a member that may serve, in that state.
func (m *Member) Serves(s *fsm.State) error {
	e, err := m.engine()
	asked := serving{state: s}
	if err == nil {
		asked.held = e.domain.held.Load()
		if last := e.served.Load(); last != nil && *last == asked {
			return nil
		}
	}
	if self, ok := s.Member(m.ID()); (!ok || !self.Serves()) && !rules.Membership.Off() {
		return fmt.Errorf("%w: %s", ErrRemoved, m.ID())
	}
	if err != nil {
		return err
	}
	if err := e.domain.complete(s); err != nil {
		return err
	}
	kept := asked // what is compared stays on the stack
	e.served.Store(&kept)
	return nil
}

// serving is what the answer of Serves depends on: none of it changes, all of it is replaced.
type serving struct {
	state *fsm.State
	held  *[]hsm.Generation
}
