package fsm

import (
	"bytes"
	"cmp"
	"slices"
)

// Mark is the running hash right after a tick: where nodes compare their states.
type Mark struct {
	Index uint64
	Hash  [32]byte
}

// Difference says where this machine's running hash is not the one that a tick
// carried. Which of both is wrong it does not say.
type Difference struct {
	Index  uint64
	Own    [32]byte
	Leader []byte // 32 bytes
}

// maxMarks bounds the marks that a machine remembers: minutes of ticks.
const maxMarks = 1024

// mark remembers the running hash at a tick, and compares the one that the tick
// carries with this machine's own at the same index, if it remembers that.
func (m *Machine) mark(s *State) {
	if s.tick == nil {
		return
	}
	own, known := m.MarkAt(s.tick.HashIndex)
	m.mu.Lock()
	defer m.mu.Unlock()
	if known && !bytes.Equal(own.Hash[:], s.tick.Hash) {
		m.differs = &Difference{Index: own.Index, Own: own.Hash, Leader: s.tick.Hash}
	}
	if len(m.marks) == maxMarks {
		m.marks = slices.Delete(m.marks, 0, maxMarks/2)
	}
	m.marks = append(m.marks, Mark{Index: s.index, Hash: s.hash})
}

// Mark is the running hash at the last tick; its index is 0 before the first one
// since the machine was made or took a snapshot in.
func (m *Machine) Mark() Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.marks) == 0 {
		return Mark{}
	}
	return m.marks[len(m.marks)-1]
}

// MarkAt is the running hash at the tick of that index, if it is remembered.
func (m *Machine) MarkAt(index uint64) (Mark, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := slices.BinarySearchFunc(m.marks, index, func(x Mark, index uint64) int {
		return cmp.Compare(x.Index, index)
	})
	if !ok {
		return Mark{}, false
	}
	return m.marks[i], true
}

// Differs is the last difference that is not resolved, or nil.
func (m *Machine) Differs() *Difference {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.differs
}

// Agreed notes that the cluster confirmed this machine's running hash at an index:
// a difference up to there was another node's fault.
func (m *Machine) Agreed(index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.differs != nil && m.differs.Index <= index {
		m.differs = nil
	}
}
