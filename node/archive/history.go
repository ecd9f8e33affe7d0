package archive

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
)

// History is what the journals of a cluster's nodes say together.
type History struct {
	Segments []*Segment
	// Problems name the files that were altered or could not be read. What stands
	// before the place where a file was altered is used all the same.
	Problems []error
}

// maxHistory is how many bytes of journals are read into memory at the most.
const maxHistory = 1 << 30

// ReadHistory reads and verifies every journal segment of a cluster in the given
// directories. Only a directory that cannot be listed, and more than 1 GiB of
// journals, are errors.
func ReadHistory(cluster fsm.ID, key fsm.LogKey, dirs ...string) (*History, error) {
	h := &History{}
	total := int64(0)
	for _, dir := range dirs {
		files, err := list(dir, cluster, journalEnd)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			s, err := readSegment(f, key)
			if errors.Is(err, os.ErrNotExist) {
				continue // its node let it go meanwhile; what is missing for it shows as a gap
			}
			if err != nil {
				h.Problems = append(h.Problems, err)
			}
			if s == nil {
				continue
			}
			h.Segments = append(h.Segments, s)
			if total += s.good; total > maxHistory {
				return nil, fmt.Errorf("%w: the journals have more than %d bytes: move segments that lie before the backup out of %s", ErrJournal, maxHistory, dir)
			}
		}
	}
	return h, nil
}

// readSegment reads one file. Its name and its header must agree.
func readSegment(f File, key fsm.LogKey) (*Segment, error) {
	b, err := readBounded(f.Path)
	if err != nil {
		return nil, err
	}
	s, err := ParseSegment(b, key)
	if err != nil {
		err = fmt.Errorf("%s: %w", f.Path, err)
	}
	if s == nil {
		return nil, err
	}
	s.Path = f.Path
	if s.Cluster != f.Cluster || s.RecoveryEpoch != f.Epoch || s.Node != f.Node || s.After != f.Index {
		return nil, fmt.Errorf("%s: %w: it was renamed: it is of node %s, epoch %d, behind index %d", f.Path, ErrJournal, s.Node, s.RecoveryEpoch, s.After)
	}
	return s, err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	return b, errors.Join(err, f.Close())
}

// Restrictions are what happened after a backup.
type Restrictions struct {
	// Entries are all restricting entries known after the backup, by index: also
	// those behind a gap.
	Entries []Entry
	// Covered is up to where they are complete: nothing between the backup and it is
	// missing.
	Covered Coverage
	// Gaps are the spans behind Covered from which entries may be missing, up to the
	// furthest index that a journal tells of. After that nothing is known.
	Gaps []Span
}

// After answers for a backup of a history and index. ErrJournal if two journals differ
// in an entry, which honest nodes' cannot.
func (h *History) After(of fsm.History, index uint64) (Restrictions, error) {
	known := map[uint64]Entry{}
	var spans []covered
	for _, s := range h.Segments {
		if s.history() != of {
			continue
		}
		for _, e := range s.Entries {
			if e.Index <= index {
				continue
			}
			if other, ok := known[e.Index]; ok && (other.Term != e.Term || !bytes.Equal(other.Raw, e.Raw)) {
				return Restrictions{}, fmt.Errorf("%w: %s has another entry %d than the journal of another node", ErrJournal, s.Path, e.Index)
			}
			known[e.Index] = e
		}
		spans = append(append(spans, s.past...), covered{s.from, s.Until})
	}
	r := Restrictions{Covered: Coverage{Index: index}}
	for _, e := range known {
		r.Entries = append(r.Entries, e)
	}
	slices.SortFunc(r.Entries, func(a, b Entry) int { return cmp.Compare(a.Index, b.Index) })
	r.cover(spans)
	return r, nil
}

// covered is a range behind after, up to until, from which a segment has every
// restricting entry.
type covered struct {
	after uint64
	until Coverage
}

// cover walks along the ranges from the backup on.
func (r *Restrictions) cover(spans []covered) {
	slices.SortFunc(spans, func(a, b covered) int { return cmp.Compare(a.after, b.after) })
	at := r.Covered
	for _, s := range spans {
		if s.until.Index < at.Index {
			continue
		}
		if s.after > at.Index {
			r.Gaps = append(r.Gaps, Span{at.Index + 1, s.after})
		}
		at.Index = s.until.Index
		if s.until.Time.After(at.Time) { // it holds behind every later index too
			at.Time = s.until.Time
		}
		if len(r.Gaps) == 0 {
			r.Covered = at
		}
	}
}
