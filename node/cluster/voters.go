package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// touchSlack is how late a node's request for its lease may be before the node does not
// count as in touch any more.
const touchSlack = 500 * time.Millisecond

// inTouch tells the leader whether a node has asked for its lease when it should have.
func (e *engine) inTouch(id string) bool {
	_, ago, ok := e.grantor.progress(id)
	return ok && e.recent(ago)
}

func (e *engine) recent(ago time.Duration) bool { return ago < e.config.Lease.Renew+touchSlack }

// keepsQuorum says why the voters without one of them could commit nothing, if so: a
// majority of those left must be in touch.
func (e *engine) keepsQuorum(without string) error {
	voters, live := 0, 0
	s := e.machine.State()
	for id, srv := range e.servers() {
		m, ok := s.Member(id)
		if srv.Suffrage != raft.Voter || id == without || !ok || !m.Serves() || !m.Voter { // who is to go counts no more
			continue
		}
		voters++
		if id == e.id || e.inTouch(id) {
			live++
		}
	}
	if 2*live > voters {
		return nil
	}
	return fmt.Errorf("%w: without %s only %d of %d voters would be in touch with each other, and nothing could be written any more: bring the others back, or remove those first that are gone for good",
		fsm.ErrMember, without, live, voters)
}

// mayLose refuses, at the leader, what would cost the cluster its quorum. It gives
// nodes the time to be heard of.
func (e *engine) mayLose(ctx context.Context, c fsm.Command) error {
	id := ""
	switch x := c.(type) {
	case *fsm.RemoveNode:
		id = x.ID
		if m, ok := e.machine.State().Member(id); ok && m.Serves() {
			if err := e.keepsGenerations(ctx, id); err != nil {
				return err
			}
		}
	case *fsm.SetVoter:
		if !x.Voter {
			id = x.ID
		}
	}
	if m, ok := e.machine.State().Member(id); !ok || !m.Serves() || !m.Voter || e.servers()[id].Suffrage != raft.Voter {
		return nil // nothing is lost, or it is decided already
	}
	ctx, cancel := context.WithTimeout(ctx, 2*e.config.Lease.Renew)
	defer cancel()
	for {
		err := e.keepsQuorum(id)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return err
		}
	}
}

// SetVoter gives a node a vote or takes it, and returns when it is so.
func (m *Member) SetVoter(ctx context.Context, id string, voter bool, propose func(context.Context, fsm.Command) (fsm.Result, error)) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	if !voter {
		if err := m.leadsNot(ctx, e, id); err != nil {
			return err
		}
	}
	if _, err := propose(ctx, &fsm.SetVoter{ID: id, Voter: voter}); err != nil {
		return err
	}
	return m.WaitVoter(ctx, id, voter)
}

// WaitVoter returns when a node votes, or does so no more.
func (m *Member) WaitVoter(ctx context.Context, id string, voter bool) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	for {
		if srv, ok := e.servers()[id]; !ok || (srv.Suffrage == raft.Voter) == voter {
			return nil
		}
		select {
		case <-time.After(retryPause):
		case <-e.ctx.Done():
			return ErrShutdown
		case <-ctx.Done():
			return fmt.Errorf("%w: the change is committed, but not in effect yet (a node gets its vote when it has caught up): %w", ErrOutcomeUnknown, ctx.Err())
		}
	}
}
