package fsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Outcome is what raft's ApplyFuture carries.
type Outcome struct {
	Result Result
	Term   uint64 // of the entry
	Err    error  // a refused command; wraps a sentinel
}

// Machine is the state machine of one node: the state behind an atomic pointer,
// moved by Raft alone.
type Machine struct {
	key   LogKey
	halt  func(error)
	state atomic.Pointer[State]
	stuck atomic.Bool

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced whenever the state moves
	restricted chan struct{} // the same, when Restricted does
	marks      []Mark        // of the latest ticks, oldest first
	differs    *Difference
}

var (
	_ raft.BatchingFSM = (*Machine)(nil)
	_ raft.FSM         = (*Machine)(nil)
)

// NewMachine makes a machine with an empty state. Entries and snapshots are
// verified under key. halt is called once, from Raft's goroutine, with an error
// that wraps ErrHalted or ErrSnapshot when the machine must not go on; it should
// stop the process.
func NewMachine(key LogKey, halt func(error)) *Machine {
	m := &Machine{key: key, halt: halt, changed: make(chan struct{}), restricted: make(chan struct{})}
	m.state.Store(NewState())
	return m
}

// State returns the present state: a value that does not change.
func (m *Machine) State() *State { return m.state.Load() }

// Changed returns a channel that is closed when the state moves beyond what
// State returns afterwards: take the channel first, then look at the state.
func (m *Machine) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Restricted returns a channel that is closed when State's Restricted moves: take the channel
// first, then look at the state.
func (m *Machine) Restricted() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.restricted
}

// Wait returns when the state has reached the index, or with ctx's error.
func (m *Machine) Wait(ctx context.Context, index uint64) (*State, error) {
	for {
		changed := m.Changed()
		if s := m.State(); s.Index() >= index {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for index %d: %w", index, ctx.Err())
		}
	}
}

func (m *Machine) publish(s *State) {
	before := m.state.Swap(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
	if before.Restricted() != s.Restricted() {
		close(m.restricted)
		m.restricted = make(chan struct{})
	}
}

// Apply implements raft.FSM.
func (m *Machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: the batch is published as one step,
// before any of its futures is answered.
func (m *Machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	s := m.State()
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		next, o := m.applyOne(s, l)
		out[i] = o
		if next != nil {
			s = next
			m.mark(s)
		}
	}
	m.publish(s)
	return out
}

func (m *Machine) applyOne(s *State, l *raft.Log) (*State, Outcome) {
	if m.stuck.Load() {
		return nil, Outcome{Err: ErrHalted}
	}
	err := m.key.VerifyEntry(l.Data)
	if err == nil {
		var next *State
		var result Result
		if next, result, err = s.Apply(l.Index, l.Term, l.Data); next != nil {
			return next, Outcome{Result: result, Term: l.Term, Err: err}
		}
	}
	err = fmt.Errorf("log entry %d: %w", l.Index, err)
	m.stop(err)
	return nil, Outcome{Err: err}
}

func (m *Machine) stop(err error) {
	if m.stuck.CompareAndSwap(false, true) {
		m.halt(err)
	}
}

// Snapshot implements raft.FSM in O(1): the state is the snapshot.
func (m *Machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.stuck.Load() {
		return nil, ErrHalted
	}
	return snapshot{m.State(), m.key, m.stop}, nil
}

// Restore implements raft.FSM. The state moves only when every byte has been
// verified; a halted machine's state does not move at all.
func (m *Machine) Restore(r io.ReadCloser) error {
	if m.stuck.Load() {
		return errors.Join(ErrHalted, r.Close())
	}
	s, err := ReadSnapshot(r, m.key)
	if closing := r.Close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("%w: closing it: %w", ErrSnapshot, closing))
	}
	if err == nil {
		if broken := s.Check(); broken != nil {
			err = fmt.Errorf("%w: %w", ErrSnapshot, broken)
		}
	}
	if err != nil {
		m.stop(err)
		return err
	}
	if present := m.State().Index(); s.Index() < present {
		return fmt.Errorf("%w: it is of index %d, the state is at %d", ErrSnapshot, s.Index(), present)
	}
	m.mu.Lock()
	m.marks, m.differs = nil, nil // they are of another history, for all this machine knows
	m.mu.Unlock()
	m.publish(s)
	return nil
}

type snapshot struct {
	state *State
	key   LogKey
	stop  func(error)
}

// Persist checks the state before it takes the log's place: what is in the snapshot
// later is what is in it now.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if broken := s.state.Check(); broken != nil {
		err := fmt.Errorf("%w: the state is broken, the log is kept: %w", ErrHalted, broken)
		s.stop(err)
		return errors.Join(err, sink.Cancel())
	}
	if err := s.state.WriteSnapshot(sink, s.key); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s snapshot) Release() {}
