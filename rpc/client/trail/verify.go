package trail

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Kind is what was done to a trail.
type Kind string

// The kinds of findings.
const (
	Altered   Kind = "ALTERED"   // a record is not the one that was written
	Removed   Kind = "REMOVED"   // records are missing
	Inserted  Kind = "INSERTED"  // a record is there that was not written there
	Reordered Kind = "REORDERED" // records stand in another order
	CutOff    Kind = "CUT_OFF"   // the end is missing
	Forged    Kind = "FORGED"    // a checkpoint is none of the node's
	Rewritten Kind = "REWRITTEN" // the node's own checkpoints agree with the records, the cluster's memory does not
)

// Finding is the first thing that is wrong with a trail.
type Finding struct {
	Kind  Kind   `json:"kind"`
	First uint64 `json:"first"` // sequence number of the first record concerned
	Last  uint64 `json:"last"`  // of the last one that may be
	Text  string `json:"text"`
}

// Head is a checkpoint that somebody else remembers.
type Head struct {
	Note   []byte
	Source string // for people
}

// Options of a verification.
type Options struct {
	Identity []byte // SPKI of the node's identity key
	Node     string // raft id; empty: any
	Cluster  string // id; empty: any
	Heads    []Head
	Progress func(records int64) // optional: called now and then with how many were read
}

// Report is the result of a verification.
type Report struct {
	Node     string    `json:"node"`
	Cluster  string    `json:"cluster"`
	First    uint64    `json:"first"`  // sequence number of the first record there is; 0: none is
	Last     uint64    `json:"last"`   // of the last one
	Proved   uint64    `json:"proved"` // up to this record the trail is as it was signed
	ProvedAt time.Time `json:"proved_at,omitzero"`
	ProvedBy string    `json:"proved_by,omitempty"`
	Heads    int       `json:"heads"` // checkpoints that were compared
	Torn     int       `json:"torn"`  // bytes of an unfinished record at the end
	// Sealed are the records that were not read, since they are sealed: the hashes of their
	// segments were taken from HashesFile. Those up to Proved are proved to have those hashes.
	Sealed  []Range  `json:"sealed,omitempty"`
	Finding *Finding `json:"finding,omitempty"`
}

// Range is records by their sequence numbers.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// head is a checkpoint that the records must agree with.
type head struct {
	Checkpoint
	source string
	own    bool
}

const ownCheckpoints = "the node's checkpoints"

// Verify reads a directory of a trail whole and compares it with the node's checkpoints there
// and those that others remember. What is wrong is the report's Finding; an error means that
// nothing can be said.
func Verify(dir string, o Options) (Report, error) {
	v := &verification{o: o}
	if err := v.remembered(); err != nil {
		return v.report, err
	}
	if err := v.own(dir); err != nil {
		return v.report, err
	}
	slices.SortStableFunc(v.heads, func(a, b head) int { return cmp.Compare(a.Size, b.Size) })
	segments, err := Segments(dir)
	if err != nil && len(segments) == 0 {
		if v.missing(dir) {
			return v.report, nil
		}
		return v.report, err
	}
	above, _, err := readAbove(filepath.Join(dir, HashesFile))
	if err != nil {
		return v.report, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	if len(segments) > 0 {
		first := segments[0].Number
		if tlogLeaves(len(above)) < first {
			return v.report, fmt.Errorf("%w: %s tells nothing of the %d segments before the first file", ErrTrail, HashesFile, first)
		}
		v.tree = Tree{size: first * SegmentRecords, upper: above[:storedCount(first):storedCount(first)]}
		v.above = &Tree{upper: above}
		v.report.First = segments[0].First()
	}
	if v.outlived() {
		return v.report, fmt.Errorf("%w: all that is remembered of it lies before record %d, the first that there is: get newer heads", ErrTrail, v.report.First)
	}
	v.skipPast()
	for i, s := range segments {
		if v.report.Finding == nil && v.failed == nil {
			v.segment(s, i == len(segments)-1)
		}
	}
	if v.failed != nil {
		return v.report, v.failed
	}
	if v.report.Finding == nil {
		v.ends()
	}
	return v.report, nil
}

type verification struct {
	o      Options
	report Report
	heads  []head // by size; those behind next are done
	next   int
	tree   Tree
	above  *Tree // as HashesFile has it
	last   Hash  // of the record before
	unread int64 // up to this record it was not read
	named  bool  // records name the one before
	agreed head  // the last one of others that agrees
	forged *Finding
	failed error // nothing can be said
}

func (v *verification) find(k Kind, first, last uint64, format string, args ...any) {
	if v.report.Finding == nil {
		v.report.Finding = &Finding{k, first, last, fmt.Sprintf(format, args...)}
	}
}

// remembered opens the checkpoints of others.
func (v *verification) remembered() error {
	for _, h := range v.o.Heads {
		c, err := OpenCheckpoint(h.Note, v.o.Identity)
		if err == nil {
			err = v.belongs(c)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Source, err)
		}
		v.heads = append(v.heads, head{Checkpoint: c, source: h.Source})
	}
	return nil
}

func (v *verification) belongs(c Checkpoint) error {
	if v.o.Node != "" && c.Node != v.o.Node || v.o.Cluster != "" && c.Cluster != v.o.Cluster {
		return fmt.Errorf("%w: it is of node %s in cluster %s", ErrCheckpoint, c.Node, c.Cluster)
	}
	v.report.Node, v.report.Cluster = c.Node, c.Cluster
	return nil
}

// own opens the node's checkpoints. One that is forged is told at its place.
func (v *verification) own(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"+CheckpointsEnd))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTrail, err)
		}
		err = splitCheckpoints(b, func(note []byte) error {
			c, err := OpenCheckpoint(note, v.o.Identity)
			if err == nil {
				err = v.belongs(c)
			}
			if err != nil {
				at := uint64(max(c.Size, 0))
				if v.forged == nil || at < v.forged.First {
					v.forged = &Finding{Forged, at, at, fmt.Sprintf("a checkpoint in %s: %v", filepath.Base(file), err)}
				}
				return nil
			}
			v.heads = append(v.heads, head{c, ownCheckpoints, true})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// missing tells of a segment in the middle that is not there.
func (v *verification) missing(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	last := int64(-1)
	for _, e := range entries { // in order
		n, _, ok := numbered(e.Name())
		if !ok || n == last {
			continue
		}
		if last >= 0 && n != last+1 {
			s := Segment{Number: last + 1}
			v.find(Removed, s.First(), Segment{Number: n}.First()-1, "the file of segment %d is not there", last+1)
			return true
		}
		last = n
	}
	return false
}

// outlived tells whether what others remember is of records that are all removed: that the
// trail goes on from there nobody can say.
func (v *verification) outlived() bool {
	return len(v.o.Heads) > 0 && !slices.ContainsFunc(v.heads, func(h head) bool { return !h.own && h.Size >= v.tree.size })
}

// skipPast leaves the heads out that end before the records that are read next.
func (v *verification) skipPast() {
	for v.next < len(v.heads) && v.heads[v.next].Size < v.tree.size {
		v.next++
	}
	v.compare()
}

// record is what verification reads of one.
type record struct {
	Sequence uint64 `json:"sequence"`
	Previous string `json:"previous"`
}

const progressEvery = 1 << 12

func (v *verification) segment(s Segment, last bool) {
	if s.Sealed() {
		v.sealed(s)
		return
	}
	torn, err := s.each(nil, func(line []byte) (bool, error) {
		v.line(s, line)
		if v.o.Progress != nil && v.tree.size%progressEvery == 0 {
			v.o.Progress(v.tree.size)
		}
		return v.report.Finding == nil, nil
	})
	at := v.sequence() + 1
	switch {
	case v.report.Finding != nil:
	case isPath(err): // it says nothing of the trail
		v.failed = err
	case err != nil:
		v.find(Altered, at, at, "it cannot be read: %v", err)
	case torn > 0 && !last:
		v.find(Altered, at, at, "%s ends in the middle of a record", filepath.Base(s.Path))
	case !last && v.tree.size != (s.Number+1)*SegmentRecords:
		v.find(Removed, at, Segment{Number: s.Number + 1}.First()-1, "%s ends before its last record", filepath.Base(s.Path))
	case last:
		v.report.Torn = torn
	}
}

// sealed takes a sealed segment's hash as HashesFile has it: the heads behind it prove that, or
// not. Those inside are left out.
func (v *verification) sealed(s Segment) {
	root, ok := v.above.SegmentRoot(s.Number)
	if !ok {
		v.failed = fmt.Errorf("%w: segment %d is sealed, and %s does not have its hash: open it with kmsctl audit open", ErrTrail, s.Number, HashesFile)
		return
	}
	if err := v.tree.take(root); err != nil {
		v.failed = err
		return
	}
	r := Range{s.First(), s.last()}
	if n := len(v.report.Sealed); n > 0 && v.report.Sealed[n-1].Last+1 == r.First {
		v.report.Sealed[n-1].Last = r.Last
	} else {
		v.report.Sealed = append(v.report.Sealed, r)
	}
	v.unread, v.report.Last = v.tree.size, r.Last
	v.skipPast()
}

func isPath(err error) bool {
	_, is := errors.AsType[*fs.PathError](err)
	return is
}

// sequence is the number of the record read last.
func (v *verification) sequence() uint64 { return uint64(v.tree.size) } //nolint:gosec // not negative

func (v *verification) line(s Segment, line []byte) {
	at := v.sequence() + 1
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		v.find(Altered, at, at, "it is no record: %v", err)
		return
	}
	if r.Sequence != at {
		v.outOfOrder(s, r.Sequence, at)
		return
	}
	if !v.follows(r, at) {
		return
	}
	v.last = RecordHash(line)
	full, err := v.tree.Add(v.last)
	if err == nil && full {
		err = v.tree.Turn()
	}
	if err != nil {
		v.find(Altered, at, at, "%v", err)
		return
	}
	v.report.Last = at
	v.compare()
}

// follows checks whether a record names the one before it.
func (v *verification) follows(r record, at uint64) bool {
	if r.Previous == "" && v.named {
		v.find(Altered, at, at, "it does not name the record before it")
		return false
	}
	v.named = r.Previous != ""                               // those of the first release do not
	known := at != v.report.First && v.unread+1 != int64(at) //nolint:gosec // a sequence number
	if v.named && known && r.Previous != v.last.String() {
		v.find(Altered, at-1, at, "record %d names another record before it than stands there", at)
		return false
	}
	return true
}

// outOfOrder tells what a wrong sequence number means.
func (v *verification) outOfOrder(s Segment, got, want uint64) {
	if got < want {
		v.find(Inserted, want, want, "a record %d stands behind record %d", got, want-1)
		return
	}
	later := false
	_, err := s.each(nil, func(line []byte) (bool, error) {
		var r record
		later = json.Unmarshal(line, &r) == nil && r.Sequence == want
		return !later, nil
	})
	if err == nil && later {
		v.find(Reordered, want, want, "record %d stands before it", got)
		return
	}
	v.find(Removed, want, got-1, "record %d is followed by record %d", want-1, got)
}

// compare compares the tree with the heads of its size.
func (v *verification) compare() {
	for ; v.next < len(v.heads) && v.heads[v.next].Size == v.tree.size; v.next++ {
		h := v.heads[v.next]
		root, err := v.tree.Root()
		if err != nil {
			v.find(Altered, v.report.Proved+1, v.sequence(), "%v", err)
			return
		}
		if root != h.Root {
			v.differs(h)
			return
		}
		v.proves(h)
		if !h.own {
			v.agreed = h
		}
		v.report.Heads++
	}
}

func (v *verification) proves(h head) {
	v.report.Proved, v.report.ProvedAt, v.report.ProvedBy = uint64(h.Size), h.Time, h.source //nolint:gosec // not negative
}

// differs tells of records that are not those that a head is of.
func (v *verification) differs(h head) {
	if h.own {
		of := "these records, and what they say of each other,"
		if v.unread > int64(v.report.Proved) { //nolint:gosec // a sequence number
			of = "these records, or the hashes of those that are sealed in " + HashesFile + ","
		}
		v.find(Altered, v.report.Proved+1, v.sequence(), "%s are not those of the checkpoint of %s", of, h.Time.Format(time.RFC3339))
		return
	}
	// The node's own checkpoints may be as false as the records.
	if twice := slices.ContainsFunc(v.heads, func(x head) bool { return x.own && x.Size == h.Size && x.Root != h.Root }); twice {
		v.find(Rewritten, uint64(v.agreed.Size)+1, v.sequence(), "the node has signed two trees of %d records: these are not the records that %s remembers, of %s", h.Size, h.source, h.Time.Format(time.RFC3339)) //nolint:gosec // not negative
	} else {
		v.find(Rewritten, uint64(v.agreed.Size)+1, v.sequence(), "these are not the records that %s remembers, of %s", h.source, h.Time.Format(time.RFC3339)) //nolint:gosec // not negative
	}
	v.proves(v.agreed)
}

// ends looks at what must have followed.
func (v *verification) ends() {
	if v.forged != nil {
		v.report.Finding = v.forged
	}
	if n := len(v.heads); n > 0 && v.heads[n-1].Size > v.tree.size {
		h := v.heads[n-1]
		v.report.Finding = nil
		v.find(CutOff, v.sequence()+1, uint64(h.Size), "the trail ends at record %d; by %s, of %s, it had %d", v.sequence(), h.source, h.Time.Format(time.RFC3339), h.Size) //nolint:gosec // not negative
	}
}
