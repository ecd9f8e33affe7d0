package cluster

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// What backups and the journal of restrictions are made from.

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
