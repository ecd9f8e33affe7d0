package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// Observer is told what a member does. Its methods must return at once, and may be called
// from any goroutine.
//
// Raft's library has telemetry of its own, but for the whole process and through a variable
// that anybody may set: what is needed of it is measured here.
type Observer interface {
	// Commit is called when this node, as the leader, is about to bring a command into the
	// log, and done when it has been applied here, with its index, or is known to have
	// failed or not known to have succeeded. A command that the state refuses is applied, too.
	Commit(ctx context.Context, command string) (done func(index uint64, err error))
	// Applied is called for each batch of entries that the state machine has applied.
	Applied(entries int, took time.Duration)
	// Snapshot is called for each snapshot that was written, or was not.
	Snapshot(took time.Duration, err error)
	// Lease is called when a lease has been granted to this node, or not: ErrNoLease means
	// that the leader refuses.
	Lease(err error)
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Commit(context.Context, string) func(uint64, error) { return func(uint64, error) {} }
func (nobody) Applied(int, time.Duration)                         {}
func (nobody) Snapshot(time.Duration, error)                      {}
func (nobody) Lease(error)                                        {}

// watchedMachine is the state machine as Raft sees it: with a look at the clock.
type watchedMachine struct {
	*fsm.Machine
	observer  Observer
	clock     Clock
	committed func(*raft.Log) // is told of the last entry, before it is applied
}

var _ raft.BatchingFSM = watchedMachine{}

// ApplyBatch implements raft.BatchingFSM.
func (m watchedMachine) ApplyBatch(logs []*raft.Log) []any {
	if n := len(logs); n > 0 {
		m.committed(logs[n-1])
	}
	began := m.clock.Now()
	out := m.Machine.ApplyBatch(logs)
	m.observer.Applied(len(logs), m.clock.Now()-began)
	return out
}

// Snapshot implements raft.FSM.
func (m watchedMachine) Snapshot() (raft.FSMSnapshot, error) {
	s, err := m.Machine.Snapshot()
	if err != nil {
		return nil, err
	}
	return watchedSnapshot{s, m.observer, m.clock}, nil
}

type watchedSnapshot struct {
	raft.FSMSnapshot
	observer Observer
	clock    Clock
}

// Persist implements raft.FSMSnapshot.
func (s watchedSnapshot) Persist(sink raft.SnapshotSink) error {
	began := s.clock.Now()
	err := s.FSMSnapshot.Persist(sink)
	s.observer.Snapshot(s.clock.Now()-began, err)
	return err
}

// Vitals is what a member can tell of itself at once, without asking anybody.
type Vitals struct {
	Joined        bool
	Raft          string // Follower, Candidate, Leader, Shutdown; empty while the node belongs to no cluster
	Term          uint64
	LeaderKnown   bool
	LeaderChanges uint64        // that this process has seen
	LastContact   time.Duration // since the leader was last heard of; 0 on the leader itself; -1: never
	Applied       uint64
	Committed     uint64
	LastLog       uint64
	LeaseLeft     time.Duration
	Proposals     int // of this node's calls, under way
}

// Vitals is what this member can tell at once.
func (m *Member) Vitals() Vitals {
	e, err := m.engine()
	if err != nil {
		return Vitals{LastContact: -1}
	}
	_, leader := e.leader()
	v := Vitals{
		Joined: true, Raft: e.raft.State().String(), Term: e.raft.CurrentTerm(), LeaderKnown: leader != "", LeaderChanges: e.leaderChanges.Load(),
		Applied: e.machine.State().Index(), Committed: e.raft.CommitIndex(), LastLog: e.raft.LastIndex(),
		LeaseLeft: max(0, m.LeaseLeft()), Proposals: len(e.proposals),
	}
	switch at := e.raft.LastContact(); {
	case e.leads():
	case at.IsZero():
		v.LastContact = -1
	default:
		v.LastContact = max(0, e.config.Now().Sub(at))
	}
	return v
}
