package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// transferRecent is how lately a follower must have been heard of to be handed the
// leadership: Raft takes no command until the follower has answered or timed out.
const transferRecent = time.Second

// TransferLeadership hands the leadership to a node, or to the best follower if
// node is empty, and returns the leader's raft id.
func (m *Member) TransferLeadership(ctx context.Context, node string) (string, error) {
	e, err := m.engine()
	if err != nil {
		return "", err
	}
	address, id := e.leader()
	switch {
	case id == "":
		return "", e.noLeader()
	case id == node:
		return id, nil
	case id != e.id:
		return e.config.Peers.TransferLeadership(ctx, address, node)
	}
	return m.HandleTransfer(ctx, node)
}

// HandleTransfer is the leader's side of TransferLeadership.
func (m *Member) HandleTransfer(ctx context.Context, node string) (string, error) {
	e, err := m.engine()
	if err != nil {
		return "", err
	}
	if err := e.transfer(ctx, node); err != nil {
		return "", err
	}
	for {
		if _, id := e.leader(); id != "" && id != e.id {
			return id, nil
		}
		select {
		case <-time.After(retryPause):
		case <-e.ctx.Done():
			return "", ErrShutdown
		case <-ctx.Done():
			return "", fmt.Errorf("%w: no new leader is known yet: %w", ErrNoLeader, ctx.Err())
		}
	}
}

// transfer hands the leadership over. To a follower that did not take it in time it is
// not handed again in the same term: Raft's flag for it may be stuck for good.
func (e *engine) transfer(ctx context.Context, node string) error {
	if !e.leads() {
		return e.noLeader()
	}
	select {
	case e.transferring <- struct{}{}:
		defer func() { <-e.transferring }()
	case <-ctx.Done():
		return fmt.Errorf("%w: it is being handed over already: %w", ErrNoLeader, ctx.Err())
	}
	term := e.raft.CurrentTerm()
	to, err := e.successor(ctx, node, term)
	if err != nil {
		return err
	}
	e.log.Info("handing the leadership over", "to", to.ID)
	if err := e.raft.LeadershipTransferToServer(raft.ServerID(to.ID), raft.ServerAddress(to.PeerAddress)).Error(); err != nil {
		switch {
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		default:
			e.timedOut[to.ID] = term
		}
		return fmt.Errorf("%w: handing the leadership to %s: %w", ErrNoLeader, to.ID, err)
	}
	return nil
}

// successor picks a follower that was heard of in the last second: the one named, or
// the one that has applied the most. It waits for one to be heard of, as nodes are at
// each renewal of their leases.
func (e *engine) successor(ctx context.Context, node string, term uint64) (*fsm.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, e.config.Lease.Renew+transferRecent)
	defer cancel()
	for {
		voters := e.heirs(node, term)
		if len(voters) == 0 {
			return nil, fmt.Errorf("%w: no voter can take the leadership", fsm.ErrMember)
		}
		best, most := (*fsm.Member)(nil), uint64(0)
		for _, m := range voters {
			if applied, ago, ok := e.grantor.progress(m.ID); ok && ago < transferRecent && applied >= most {
				best, most = m, applied
			}
		}
		if best != nil {
			return best, nil
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: no voter that was heard of in the last %s can take the leadership", fsm.ErrMember, transferRecent)
		}
	}
}

// heirs are the voters that may be handed the leadership in this term: the one named,
// or all.
func (e *engine) heirs(node string, term uint64) (out []*fsm.Member) {
	for _, m := range e.machine.State().Members() {
		if m.Serves() && m.Voter && m.ID != e.id && e.timedOut[m.ID] != term && (node == "" || node == m.ID) {
			out = append(out, m)
		}
	}
	return out
}

// StepDown hands the leadership over if this node has it and another could take it.
func (m *Member) StepDown(ctx context.Context) error {
	e, err := m.engine()
	if err != nil || !e.leads() {
		return nil //nolint:nilerr // nothing to hand over
	}
	if !slices.ContainsFunc(e.machine.State().Members(), func(m *fsm.Member) bool { return m.Serves() && m.Voter && m.ID != e.id }) {
		return nil
	}
	return e.transfer(ctx, "")
}
