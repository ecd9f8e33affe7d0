package trail

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Loaded is a trail as its files have it.
type Loaded struct {
	Tree *Tree
	// Last is the last whole record, without its end; nil if there is none.
	Last []byte
	// Active is the segment that is being written, and Whole how many bytes of it are
	// records; the Torn ones that follow a crash, or a loss of power, has left, or Wrong says
	// why they are not the next record. Path is empty if there is no file yet.
	Active Segment
	Whole  int64
	Torn   int64
	Wrong  error
	// Sure is how many bytes of it are records that are on the disk for certain.
	Sure int64
	// Above is how many of the hashes above the segments are in HashesFile: the others were
	// made anew.
	Above int
}

// Load makes the tree of a directory's records, of which the first signed ones were on the disk
// when they were signed. What stands behind them, and behind the last whole segment, need not have
// been when the power was lost: it ends before the first line that is not the next record of the
// chain. Load verifies nothing else but the files' form. o opens sealed segments, later too, for
// proofs; Load needs one only where HashesFile lacks its hash.
func Load(dir string, signed int64, o Opener) (*Loaded, error) {
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
	if len(segments) > 1 && (info.Size() == 0 || l.Tree.size >= signed) { // the first one names it, or there is none yet
		if err := l.last(segments[len(segments)-2]); err != nil {
			return nil, err
		}
	}
	_, err = l.Active.each(nil, func(line []byte) (bool, error) {
		if l.Wrong != nil {
			return true, l.late(line)
		}
		if l.Tree.size >= (l.Active.Number+1)*SegmentRecords {
			return false, fmt.Errorf("%w: more than %d records in a segment", ErrTrail, SegmentRecords)
		}
		if l.Tree.size >= signed {
			wrong, err := l.next(line, segments[0])
			if l.Wrong = wrong; wrong != nil || err != nil {
				return true, err
			}
		}
		l.Last = append(l.Last[:0], line...)
		l.Whole += int64(len(line)) + 1
		if l.Tree.size < signed {
			l.Sure = l.Whole
		}
		_, err := l.Tree.Add(RecordHash(line))
		return true, err
	})
	if errors.Is(err, errTooLong) && l.Tree.size >= signed {
		l.Wrong, err = cmp.Or(l.Wrong, err), nil
	}
	l.Torn = info.Size() - l.Whole
	return l, err
}

// unsyncedAtMost is much longer than the node ever leaves records to the kernel alone.
const unsyncedAtMost = 5 * time.Minute

// late refuses a line behind one that is wrong if it was written so much later than the last record
// of the chain that what stands between was on the disk.
func (l *Loaded) late(line []byte) error {
	var last, r record
	if l.Last == nil || errors.Join(json.Unmarshal(l.Last, &last), json.Unmarshal(line, &r)) != nil || r.Time.Sub(last.Time) <= unsyncedAtMost {
		return nil //nolint:nilerr // what is no record says nothing
	}
	return fmt.Errorf("%w: behind record %d, of %s: %w; and record %d follows, of %s: that is no loss of power", ErrTrail,
		last.Sequence, last.Time.Format(time.RFC3339), l.Wrong, r.Sequence, r.Time.Format(time.RFC3339))
}

// next tells what is wrong with a line that should be the next record. The error is of one that
// no loss of power leaves behind: the node removes a segment only when the record of that is
// signed.
func (l *Loaded) next(line []byte, first Segment) (wrong, err error) {
	var before, r record
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("what follows is no record: %w", err), nil
	}
	if n := uint64(l.Tree.size) + 1; r.Sequence != n { //nolint:gosec // not negative
		return fmt.Errorf("what follows is record %d, not %d", r.Sequence, n), nil
	}
	if l.Last != nil {
		if err := json.Unmarshal(l.Last, &before); err != nil {
			return fmt.Errorf("the record before is none: %w", err), nil
		}
		earlier := before.Previous == "" && r.Previous == "" // those of the first release do not name it
		if !earlier && r.Previous != RecordHash(l.Last).String() {
			return errors.New("the record that follows names another one before it"), nil
		}
	}
	if r.removes(first) {
		return nil, fmt.Errorf("%w: record %d, which was never signed, says that %s were removed, and they are not there", ErrTrail, r.Sequence, r.Target)
	}
	return nil, nil
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
