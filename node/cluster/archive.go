package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// What backups and the journal of restrictions are made from.

// Fresh returns a state that holds everything which was acknowledged anywhere in the
// cluster before the call: the leader commits a tick, and this node applies it.
func (m *Member) Fresh(ctx context.Context) (*fsm.State, error) {
	for {
		e, err := m.engine()
		if err != nil {
			return nil, err
		}
		s := e.machine.State()
		result, err := m.Propose(ctx, fsm.Proposal{Command: &fsm.Tick{HashIndex: s.Index(), Hash: s.Hash()}, Principal: e.principal()})
		switch {
		case err == nil:
			return e.machine.Wait(ctx, result.Index)
		case !errors.Is(err, ErrOutcomeUnknown) || ctx.Err() != nil: // another tick does no harm
			return nil, err
		}
	}
}

// LogKey is the key that authenticates entries, snapshots and the journal.
func (m *Member) LogKey() (fsm.LogKey, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	return e.logKey, nil
}

// LogEntry reads this node's log. found is false if the log does not hold the index,
// as a rule because a snapshot took its place; command is nil if what stands there is
// Raft's own. An entry is known to be committed only if the log holds everything from
// it up to one that is.
func (m *Member) LogEntry(index uint64) (term uint64, command []byte, found bool, err error) {
	e, err := m.engine()
	if err != nil {
		return 0, nil, false, err
	}
	var l raft.Log
	switch err := e.store.GetLog(index, &l); {
	case errors.Is(err, raft.ErrLogNotFound):
		return 0, nil, false, nil
	case err != nil:
		return 0, nil, false, fmt.Errorf("reading log entry %d: %w", index, err)
	}
	if l.Type != raft.LogCommand {
		return l.Term, nil, true, nil
	}
	return l.Term, l.Data, true, nil
}
