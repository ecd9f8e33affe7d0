package trail

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// The records of a node are the leaves of a Merkle tree as in RFC 6962: record n of the
// sequence is leaf n-1, its leaf hash that of the line without its end. The tree is cut into
// segments of SegmentRecords leaves, each a file of records. What is hashed inside a segment
// is made anew from its records when it is needed; of what is above the segments, HashesFile
// keeps every hash, which is 64 bytes a segment, for ever: a trail whose older segments are
// gone is still one tree.

const (
	segmentLevel = 16
	// SegmentRecords is how many records a segment has.
	SegmentRecords = 1 << segmentLevel
	// HashesFile holds the hashes above the segments, 32 bytes each, in the order of
	// package tlog.
	HashesFile = "segments.hashes"
)

// Hash is a hash of the tree: SHA-256 as RFC 6962 uses it.
type Hash = tlog.Hash

// RecordHash is the leaf hash of a record's line without its end.
func RecordHash(line []byte) Hash { return tlog.RecordHash(line) }

// segmentTree is the tree inside one segment.
type segmentTree []Hash // as tlog stores them

func (s segmentTree) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d of a tree of %d", x, len(s))
		}
		out[i] = s[x]
	}
	return out, nil
}

// add appends leaf n.
func (s segmentTree) add(n int64, leaf Hash) (segmentTree, error) {
	more, err := tlog.StoredHashesForRecordHash(n, leaf, s)
	return append(s, more...), err
}

// Tree is the tree of a trail. Its zero value is the empty one. It implements
// tlog.HashReader.
type Tree struct {
	size    int64       // leaves
	current segmentTree // of the segment that is being filled
	upper   segmentTree // whose leaves are the whole segments' roots
	// open is the closed segment that was filled or read last, opened its tree.
	open   int64
	opened segmentTree
	// closed, unless nil, reads the leaves of a whole segment.
	closed func(segment int64) ([]Hash, error)
}

// Size is how many leaves there are.
func (t *Tree) Size() int64 { return t.size }

// Add appends a leaf. full tells that it was the segment's last: Turn comes next.
func (t *Tree) Add(leaf Hash) (full bool, err error) {
	n := t.size % SegmentRecords
	if t.current, err = t.current.add(n, leaf); err != nil {
		return false, err
	}
	t.size++
	return n == SegmentRecords-1, nil
}

// Turn begins the next segment: the root of the full one goes above.
func (t *Tree) Turn() error {
	if t.size == 0 || t.size%SegmentRecords != 0 || len(t.current) == 0 {
		return errors.New("the segment is not full")
	}
	upper, err := t.upper.add(t.size/SegmentRecords-1, t.current[len(t.current)-1])
	if err == nil {
		t.open, t.opened = t.size/SegmentRecords-1, t.current // proofs from within it follow
		t.upper, t.current = upper, nil
	}
	return err
}

// ReadHashes implements tlog.HashReader.
func (t *Tree) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		if level >= segmentLevel {
			// A segment that is full and not turned has its root below.
			at := tlog.StoredHashIndex(level-segmentLevel, n)
			if at < int64(len(t.upper)) {
				out[i] = t.upper[at]
				continue
			}
			if level != segmentLevel {
				return nil, fmt.Errorf("hash %d of level %d is not there", n, level)
			}
		}
		segment := n << level / SegmentRecords
		in, err := t.segment(segment)
		if err != nil {
			return nil, err
		}
		one, err := in.ReadHashes([]int64{tlog.StoredHashIndex(level, n-segment<<segmentLevel>>level)})
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", segment, err)
		}
		out[i] = one[0]
	}
	return out, nil
}

// segment is the tree inside a segment.
func (t *Tree) segment(n int64) (in segmentTree, err error) {
	switch {
	case n == tlogLeaves(len(t.upper)):
		return t.current, nil
	case t.opened != nil && t.open == n:
		return t.opened, nil
	case t.closed == nil:
		return nil, fmt.Errorf("segment %d is closed", n)
	}
	leaves, err := t.closed(n)
	if err != nil {
		return nil, err
	}
	for i, leaf := range leaves {
		if in, err = in.add(int64(i), leaf); err != nil {
			return nil, err
		}
	}
	t.open, t.opened = n, in
	return in, nil
}

// tlogLeaves is how many leaves a tree of so many stored hashes has.
func tlogLeaves(stored int) int64 {
	n := int64(stored / 2) // at least half of them are leaves
	for storedCount(n) < int64(stored) {
		n++
	}
	return n
}

// Root is the hash of the whole tree.
func (t *Tree) Root() (Hash, error) { return tlog.TreeHash(t.size, t) }

// Clone is the tree as it is now; adding to one leaves the other as it is. Each may be used
// from one goroutine.
func (t *Tree) Clone() *Tree {
	c := *t
	c.current, c.upper = t.current[:len(t.current):len(t.current)], t.upper[:len(t.upper):len(t.upper)]
	return &c
}

// SegmentRoot is the root of a whole segment.
func (t *Tree) SegmentRoot(n int64) (root Hash, ok bool) {
	at := tlog.StoredHashIndex(0, n)
	if at >= int64(len(t.upper)) {
		return root, false
	}
	return t.upper[at], true
}

// take takes a whole segment in by its root.
func (t *Tree) take(root Hash) error {
	upper, err := t.upper.add(t.size/SegmentRecords, root)
	if err == nil {
		t.upper, t.size = upper, t.size+SegmentRecords
	}
	return err
}

// Above are the hashes above the segments, in the order of HashesFile.
func (t *Tree) Above() []Hash { return t.upper }

// readAbove reads HashesFile. What a crash has left unfinished at its end is left out. sound
// tells whether the hashes of inner nodes are those of the segments' roots; they are made anew.
func readAbove(path string) (out segmentTree, sound bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	all := make(segmentTree, len(b)/len(Hash{}))
	for i := range all {
		copy(all[i][:], b[i*len(Hash{}):])
	}
	sound = true
	for n := int64(0); storedCount(n+1) <= int64(len(all)); n++ {
		at := len(out)
		if out, err = out.add(n, all[at]); err != nil {
			return nil, false, err
		}
		sound = sound && slices.Equal(out[at:], all[at:len(out)])
	}
	return out, sound, nil
}

// storedCount is how many hashes a tree of so many leaves stores.
func storedCount(leaves int64) int64 { return tlog.StoredHashCount(leaves) }

// Filling tells whether the segment that is being filled has leaves.
func (t *Tree) Filling() bool { return len(t.current) > 0 }
