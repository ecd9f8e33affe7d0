package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/rules"
)

const (
	// maxProposals bounds the commands that wait for the log at this node.
	maxProposals = 4096
	// enqueueTimeout bounds how long Raft may take to accept a command; the commit
	// is bounded by the caller's context.
	enqueueTimeout = 2 * time.Second
	// retryPause is between two tries to find the leader.
	retryPause = 50 * time.Millisecond
)

// leaderWait is how long a command waits for a leader: a crash and an election are
// covered. After that this node is more likely cut off, and the caller does better to
// ask another.
func (t RaftTiming) leaderWait() time.Duration { return 2 * (t.Heartbeat + t.Election) }

// Propose brings a command into the log, through the leader wherever it is, and
// returns when this node has applied it. An error that wraps a sentinel of fsm is
// the command's refusal. Answers lost on the way are asked for again under the
// same request id, and a leader is looked for, until ctx ends or leaderWait after the
// first failure; a command without a request id is not repeated.
func (m *Member) Propose(ctx context.Context, p fsm.Proposal) (fsm.Result, error) {
	e, err := m.engine()
	if err != nil {
		return fsm.Result{}, err
	}
	if err := e.machine.State().Permits(p.Command); err != nil {
		return fsm.Result{}, err // a leader of an earlier release would not know the command
	}
	select {
	case e.proposals <- struct{}{}:
		defer func() { <-e.proposals }()
	default:
		return fsm.Result{}, fmt.Errorf("%w: %d", ErrBusy, maxProposals)
	}
	doubt := false // whether an earlier try may have been committed
	var enough <-chan time.Time
	for {
		result, err := e.proposeOnce(ctx, p)
		switch {
		case err == nil || fsm.Code(err) != "" && !errors.Is(err, fsm.ErrHalted):
			return e.applied(ctx, result, err)
		case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, fsm.ErrHalted):
			doubt = true
		case !errors.Is(err, ErrNoLeader):
			return fsm.Result{}, inDoubt(doubt, err)
		}
		if doubt && p.Request == "" {
			return fsm.Result{}, inDoubt(doubt, err)
		}
		if enough == nil {
			enough = time.After(e.config.Raft.leaderWait())
		}
		select {
		case <-time.After(retryPause):
		case <-e.ctx.Done():
			return fsm.Result{}, inDoubt(doubt, ErrShutdown)
		case <-enough:
			return fsm.Result{}, inDoubt(doubt, err)
		case <-ctx.Done():
			return fsm.Result{}, inDoubt(doubt, err)
		}
	}
}

// inDoubt makes an error say that the command may be committed all the same.
func inDoubt(doubt bool, err error) error {
	if !doubt || errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// applied waits until this node has applied what the leader has, so that the
// caller finds here what it just did.
func (e *engine) applied(ctx context.Context, r fsm.Result, err error) (fsm.Result, error) {
	if _, waited := e.machine.Wait(ctx, r.Index); waited != nil {
		return fsm.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, waited)
	}
	return r, err
}

func (e *engine) proposeOnce(ctx context.Context, p fsm.Proposal) (fsm.Result, error) {
	moved := e.leaderMove()
	address, id := e.leader()
	switch id {
	case "":
		return fsm.Result{}, e.noLeader()
	case e.id:
		return e.lead(ctx, p, e.id)
	}
	ctx, cancel := until(ctx, moved)
	defer cancel()
	return e.config.Peers.Propose(ctx, address, p, e.id)
}

// leaderMove is a channel that is closed when the leader changes: take it before
// looking who leads. A leader that is frozen or cut off must not keep a call from its
// successor.
func (e *engine) leaderMove() <-chan struct{} {
	e.leaderMu.Lock()
	defer e.leaderMu.Unlock()
	return e.leaderMoved
}

// until gives a context that also ends when a channel is closed.
func until(ctx context.Context, closed <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the call
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// HandlePropose is the leader's side of a forwarded command. It is never forwarded
// again.
func (m *Member) HandlePropose(ctx context.Context, p fsm.Proposal, proposer string) (fsm.Result, error) {
	e, err := m.engine()
	if err != nil {
		return fsm.Result{}, err
	}
	if _, heads := p.Command.(*fsm.RecordAuditHeads); heads { // whose signatures the leader verifies
		return fsm.Result{}, fmt.Errorf("%w: the leader alone records audit checkpoints", fsm.ErrMember)
	}
	return e.lead(ctx, p, proposer)
}

// lead commits a command as the leader and, if it restricts, waits until it holds
// on every node: also when the state refused it or the request was a repetition. If
// the leadership goes meanwhile, the next leader hears who has applied it: the command
// is repeated there, which is sooner than every lease's end.
func (e *engine) lead(ctx context.Context, p fsm.Proposal, proposer string) (fsm.Result, error) {
	if !e.leads() {
		return fsm.Result{}, e.noLeader()
	}
	if err := e.mayLose(ctx, p.Command); err != nil {
		return fsm.Result{}, err
	}
	moved := e.leaderMove()
	switch c := p.Command.(type) {
	case *fsm.RaiseRelease:
		p.Command = e.vouch(c)
		if _, err := e.machine.State().Try(p.Command); err != nil {
			return fsm.Result{}, err // not even refused in the log: an old release would stop at it
		}
	case *fsm.AddRecoveryCopy:
		if err := copyFits(e.machine.State(), c); err != nil {
			return fsm.Result{}, err // the state cannot tell, and a later one would not be taken
		}
	}
	result, err := e.commit(ctx, p, proposer)
	if fsm.EffectOf(p.Command) != fsm.Restricts || result.Index == 0 {
		return result, err
	}
	if rules.Wait.Off() || rules.RepeatWaits.Off() && e.repeats(p, result.Index) {
		return result, err
	}
	ctx, cancel := until(ctx, moved)
	defer cancel()
	if settled := e.grantor.settle(ctx, leaseHolders(e.machine.State()), result.Index); settled != nil {
		return fsm.Result{}, settled
	}
	return result, err
}

// commit is the one place where entries are made: stamped with the leader's time,
// MACed, applied. Success means that the entry, proposed after the call, was
// committed by this node in its term and executed by its machine.
func (e *engine) commit(ctx context.Context, p fsm.Proposal, proposer string) (fsm.Result, error) {
	if !e.leads() {
		return fsm.Result{}, e.noLeader()
	}
	if err := e.machine.State().Permits(p.Command); err != nil {
		return fsm.Result{}, err
	}
	if err := ctx.Err(); err != nil { // a request that was long on its way: whoever made it may have been told otherwise meanwhile
		return fsm.Result{}, err
	}
	data, err := fsm.EncodeEntry(fsm.Entry{
		Request: p.Request, Digest: p.Digest, Principal: p.Principal, Proposer: proposer,
		Time: max(e.config.Now().UnixNano(), e.machine.State().Now()),
	}, p.Command, e.logKey)
	if err != nil {
		return fsm.Result{}, err
	}
	observed := e.observer.Commit(ctx, fsm.NameOf(p.Command))
	outcome, err := e.append(ctx, data)
	observed(outcome.Result.Index, err)
	if err != nil {
		return fsm.Result{}, err
	}
	e.grantor.ownTerm(outcome.Term)
	return outcome.Result, outcome.Err
}

// append gives an entry to Raft and waits until it has been applied here.
func (e *engine) append(ctx context.Context, data []byte) (fsm.Outcome, error) {
	future := e.raft.Apply(data, enqueueTimeout)
	done := make(chan error, 1)
	go func() { done <- future.Error() }() // ends when Raft answers or shuts down
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return fsm.Outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
	if err != nil {
		return fsm.Outcome{}, e.raftError(err)
	}
	outcome, ok := future.Response().(fsm.Outcome)
	if !ok {
		return fsm.Outcome{}, fmt.Errorf("%w: entry %d has no outcome", ErrStorage, future.Index())
	}
	return outcome, nil
}

// raftError sorts Raft's errors by what is known of the entry.
func (e *engine) raftError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", e.noLeader(), err) // it was not appended
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

func (e *engine) leads() bool { return e.raft.State() == raft.Leader }

// leader returns the peer address and raft id of the leader; empty if unknown.
func (e *engine) leader() (address, id string) {
	a, i := e.raft.LeaderWithID()
	return string(a), string(i)
}

// LeaderKnown tells whether this node knows a leader to bring changes to.
func (m *Member) LeaderKnown() bool {
	e, err := m.engine()
	if err != nil {
		return false
	}
	_, id := e.leader()
	return id != ""
}

func (e *engine) noLeader() error {
	if _, id := e.leader(); id != "" && id != e.id {
		return fmt.Errorf("%w: it is node %s", ErrNoLeader, id)
	}
	return fmt.Errorf("%w: none is known to this node", ErrNoLeader)
}
