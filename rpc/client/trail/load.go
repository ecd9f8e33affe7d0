package trail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Loaded is a trail as its files have it.
type Loaded struct {
	Tree *Tree
	// Last is the last whole record, without its end; nil if there is none.
	Last []byte
	// Active is the segment that is being written, and Whole how many bytes of it are whole
	// records; what follows them a crash has torn. Path is empty if there is no file yet.
	Active Segment
	Whole  int64
	Torn   int
	// Above is how many of the hashes above the segments are in HashesFile: the others were
	// made anew.
	Above int
}

// Load makes the tree of a directory's records. It verifies nothing but the files' form. o opens
// sealed segments, later too, for proofs; Load needs one only where HashesFile lacks its hash.
func Load(dir string, o Opener) (*Loaded, error) {
	segments, err := Segments(dir)
	if err != nil {
		return nil, err
	}
	above, sound, err := readAbove(filepath.Join(dir, HashesFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	if !sound {
		return nil, fmt.Errorf("%w: %s was altered: its hashes are not those of one tree", ErrTrail, HashesFile)
	}
	l := &Loaded{Tree: &Tree{upper: above}, Above: len(above)}
	l.Tree.closed = func(n int64) ([]Hash, error) { return leavesOf(dir, n, o) }
	if len(segments) == 0 {
		if len(above) > 0 {
			return nil, fmt.Errorf("%w: there are %d whole segments in %s, and no file of records", ErrTrail, tlogLeaves(len(above)), HashesFile)
		}
		return l, nil
	}
	if err := l.whole(segments, o); err != nil {
		return nil, err
	}
	l.Active = segments[len(segments)-1]
	l.Tree.size = l.Active.Number * SegmentRecords
	if tlogLeaves(len(l.Tree.upper)) > l.Active.Number { // it is full, and the next has no file yet
		l.Tree.size += SegmentRecords
		l.Active.Path = ""
		return l, l.last(segments[len(segments)-1])
	}
	if l.Active.Sealed() {
		return nil, fmt.Errorf("%w: segment %d is sealed, and %s does not have it", ErrTrail, l.Active.Number, HashesFile)
	}
	info, err := os.Stat(l.Active.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	l.Torn, err = l.Active.each(nil, func(line []byte) (bool, error) {
		l.Last = append(l.Last[:0], line...)
		if l.Tree.size >= (l.Active.Number+1)*SegmentRecords {
			return false, fmt.Errorf("%w: more than %d records in a segment", ErrTrail, SegmentRecords)
		}
		_, err := l.Tree.Add(RecordHash(line))
		return true, err
	})
	l.Whole = info.Size() - int64(l.Torn)
	if err == nil && l.Last == nil && len(segments) > 1 { // it has no record yet
		err = l.last(segments[len(segments)-2])
	}
	return l, err
}

// whole makes those hashes above the segments that HashesFile lacks.
func (l *Loaded) whole(segments []Segment, o Opener) error {
	last := segments[len(segments)-1].Number
	have := tlogLeaves(l.Above)
	switch {
	case have < segments[0].Number:
		return fmt.Errorf("%w: %s has %d segments, the first file is of segment %d", ErrTrail, HashesFile, have, segments[0].Number)
	case have > last+1:
		return fmt.Errorf("%w: %s has %d segments, the last file is of segment %d", ErrTrail, HashesFile, have, last)
	}
	for _, s := range segments {
		if s.Number < have || s.Number == last {
			continue
		}
		t := &Tree{size: s.Number * SegmentRecords, upper: l.Tree.upper}
		leaves, err := s.leaves(o)
		if errors.Is(err, ErrSealed) {
			return fmt.Errorf("%s has lost its hash, which needs its records: kmsctl audit open gives them, put that file beside it: %w", HashesFile, err)
		}
		if err != nil {
			return err
		}
		if len(leaves) != SegmentRecords {
			return fmt.Errorf("%w: segment %d has %d records, and another follows it", ErrTrail, s.Number, len(leaves))
		}
		for _, leaf := range leaves {
			if _, err := t.Add(leaf); err != nil {
				return err
			}
		}
		if err := t.Turn(); err != nil {
			return err
		}
		l.Tree.upper = t.upper
	}
	return nil
}

// last reads the last record of a segment that no record follows: such a one is not sealed.
func (l *Loaded) last(s Segment) error {
	if s.Sealed() {
		return fmt.Errorf("%w: the sealed segment %d is its end: what followed was removed", ErrTrail, s.Number)
	}
	_, err := s.each(nil, func(line []byte) (bool, error) {
		l.Last = append(l.Last[:0], line...)
		return true, nil
	})
	return err
}

func leavesOf(dir string, n int64, o Opener) ([]Hash, error) {
	leaves, err := FindSegment(dir, n).leaves(o)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: segment %d is not there any more", ErrTrail, n)
	}
	return leaves, err
}
