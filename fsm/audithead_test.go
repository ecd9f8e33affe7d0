package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// leaves is a tree of RFC 6962.
type leaves []tlog.Hash

func (l leaves) ReadHashes(indexes []int64) (out []tlog.Hash, err error) {
	for _, i := range indexes {
		out = append(out, l[i])
	}
	return out, nil
}

func treeOf(t failer, n int64, altered int64) (l leaves) {
	t.Helper()
	for i := range n {
		more, err := tlog.StoredHashes(i, fmt.Appendf(nil, "%d %v", i, i == altered), l)
		if err != nil {
			t.Fatalf("%v", err)
		}
		l = append(l, more...)
	}
	return l
}

func headOf(t failer, l leaves, from, size int64) NextAuditHead {
	t.Helper()
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		t.Fatalf("%v", err)
	}
	h := NextAuditHead{Node: firstNode, From: from, Size: size, Root: root[:], Checkpoint: fmt.Appendf(nil, "of %d", size)}
	if from == 0 || size <= from {
		return h
	}
	proof, err := tlog.ProveTree(size, from, l)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, p := range proof {
		h.Proof = append(h.Proof, p[:])
	}
	return h
}

// TestAuditHeads: a checkpoint takes the place of another only if it goes on from that, and
// one that does not convicts its node for ever.
func TestAuditHeads(t *testing.T) {
	honest, false20 := treeOf(t, 100, -1), treeOf(t, 100, 5)
	record := func(h NextAuditHead) Command { return &RecordAuditHeads{[]NextAuditHead{h}} }
	for what, row := range map[string]struct {
		next     NextAuditHead
		size     int64 // remembered afterwards
		conflict bool
	}{
		"the next":                 {headOf(t, honest, 20, 33), 33, false},
		"the same":                 {headOf(t, honest, 20, 20), 20, false},
		"of another before":        {headOf(t, honest, 19, 33), 20, false},
		"a first one again":        {headOf(t, false20, 0, 33), 20, false},
		"rewritten":                {headOf(t, false20, 20, 33), 20, true},
		"another of the same size": {headOf(t, false20, 20, 20), 20, true},
		"cut off":                  {headOf(t, honest, 20, 10), 20, true},
		"no proof": {func() NextAuditHead {
			h := headOf(t, honest, 20, 33)
			h.Proof = nil
			return h
		}(), 20, true},
	} {
		w := initialized(t)
		w.do(record(headOf(t, honest, 0, 20)))
		w.do(record(row.next))
		h, ok := w.s.AuditHead(firstNode)
		if !ok || h.Size != row.size || (h.Conflict != nil) != row.conflict {
			t.Errorf("%s: %+v", what, h)
		}
		if row.conflict {
			if h.Conflict.Size != row.next.Size || !bytes.Equal(h.Conflict.Checkpoint, row.next.Checkpoint) || h.Conflict.At == 0 {
				t.Errorf("%s: %+v", what, h.Conflict)
			}
			w.do(record(headOf(t, honest, 20, 40))) // what goes on all the same is remembered, and so is the conflict
			if h, _ = w.s.AuditHead(firstNode); h.Size != 40 || h.Conflict == nil {
				t.Errorf("%s, and then the next: %+v", what, h)
			}
		}
		if again := reread(t, w.s); records(t, again) != records(t, w.s) {
			t.Errorf("%s: another state after a snapshot", what)
		}
		if err := w.s.Check(); err != nil {
			t.Error(err)
		}
	}
	w := initialized(t)
	edit := func(f func(*NextAuditHead)) Command {
		h := headOf(t, honest, 0, 20)
		f(&h)
		return record(h)
	}
	w.refuse(&RecordAuditHeads{}, ErrInvalid, "0 audit heads")
	w.refuse(edit(func(h *NextAuditHead) { h.Root = h.Root[1:] }), ErrInvalid, "31 bytes")
	w.refuse(edit(func(h *NextAuditHead) { h.Proof = [][]byte{{1}} }), ErrInvalid, "proof of 1")
	w.refuse(edit(func(h *NextAuditHead) { h.Size = 0 }), ErrInvalid, "0 records")
	w.refuse(edit(func(h *NextAuditHead) { h.Checkpoint = nil }), ErrInvalid, "0 bytes")
	w.refuse(edit(func(h *NextAuditHead) { h.Checkpoint = make([]byte, maxCheckpoint+1) }), ErrInvalid, "2049 bytes")
	w.refuse(edit(func(h *NextAuditHead) { h.Node = "n9-00000009" }), ErrNotFound, "n9")
}

// heads are checkpoints of two trees that differ at leaf 5.
func (d drawer) heads() *RecordAuditHeads {
	c := &RecordAuditHeads{}
	for range 1 + d.upTo(1) {
		tree := treeOf(d.t, 12, int64(d.oneOf(-1, -1, 5)))
		from := int64(d.upTo(10))
		if h, ok := d.w.s.AuditHead(firstNode); ok && !d.oneIn(4) {
			from = min(h.Size, 12)
		}
		h := headOf(d.t, tree, from, int64(1+d.upTo(11)))
		h.Node = d.or(firstNode, nodeID("n2"))
		c.Heads = append(c.Heads, h)
	}
	return c
}

func goldenAuditHeads(w *world) {
	honest, other := treeOf(w.t, 12, -1), treeOf(w.t, 12, 5)
	alive := ""
	for _, m := range w.s.Members() {
		if m.Alive() {
			alive = m.ID
		}
	}
	record := func(heads ...NextAuditHead) {
		for i := range heads {
			heads[i].Node = alive
		}
		w.do(&RecordAuditHeads{heads})
	}
	record(headOf(w.t, honest, 0, 7))
	record(headOf(w.t, honest, 7, 9), headOf(w.t, honest, 7, 10))
	record(headOf(w.t, other, 9, 12))
	w.refuse(&RecordAuditHeads{}, ErrInvalid, "")
}
