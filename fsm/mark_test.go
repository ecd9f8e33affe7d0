package fsm

import (
	"testing"

	"github.com/hashicorp/raft"
)

// ticked applies a tick that carries a hash, and returns its index.
func ticked(t *testing.T, m *Machine, w *world, claim Mark) uint64 {
	t.Helper()
	index := m.State().Index() + 1
	o := m.Apply(&raft.Log{Index: index, Term: 3, Type: raft.LogCommand, Data: seal(t, w.entry(), &Tick{HashIndex: claim.Index, Hash: claim.Hash[:]})})
	if err := o.(Outcome).Err; err != nil {
		t.Fatal(err)
	}
	return index
}

func TestMarks(t *testing.T) {
	w := oneKey(t)
	m := fed(t, w)
	if m.Mark() != (Mark{}) {
		t.Fatal("a mark before any tick")
	}
	first := ticked(t, m, w, Mark{})
	mark := m.Mark()
	if mark.Index != first || string(mark.Hash[:]) != string(m.State().Hash()) {
		t.Fatalf("mark %+v", mark)
	}
	second := ticked(t, m, w, mark)
	if m.Differs() != nil {
		t.Fatalf("differs at %+v", m.Differs())
	}
	if got, ok := m.MarkAt(first); !ok || got != mark {
		t.Fatalf("mark %+v, %v", got, ok)
	}
	if _, ok := m.MarkAt(first - 1); ok {
		t.Fatal("a mark where no tick is")
	}
	ticked(t, m, w, Mark{Index: first - 1}) // what it does not remember it cannot compare
	if m.Differs() != nil {
		t.Fatalf("differs at %+v", m.Differs())
	}
	other := Mark{Index: second, Hash: [32]byte{1}}
	ticked(t, m, w, other)
	d := m.Differs()
	if d == nil || d.Index != second || string(d.Leader) != string(other.Hash[:]) {
		t.Fatalf("difference %+v", d)
	}
	m.Agreed(second - 1)
	if m.Differs() == nil {
		t.Fatal("an agreement from before it resolved the difference")
	}
	m.Agreed(second)
	if m.Differs() != nil {
		t.Fatal("the difference stays")
	}
}

func TestMarksAreBounded(t *testing.T) {
	w := oneKey(t)
	m := fed(t, w)
	var last uint64
	for range 3 * maxMarks {
		last = ticked(t, m, w, m.Mark())
	}
	if n := len(m.marks); n > maxMarks || m.Mark().Index != last || m.Differs() != nil {
		t.Fatalf("%d marks, the last of %d", n, m.Mark().Index)
	}
	if _, ok := m.MarkAt(last - maxMarks/4); !ok {
		t.Fatal("a late mark is forgotten")
	}
}
