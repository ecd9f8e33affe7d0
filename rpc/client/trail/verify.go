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
	"strconv"
	"time"
)

// Kind is what was done to a trail.
type Kind string

// The kinds of findings.
const (
	Altered   Kind = "ALTERED"   // a record is not the one that was written
	Removed   Kind = "REMOVED"   // records are missing, and no record says that they were removed
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
	// Conflict is a checkpoint that does not go on from one of the heads, as somebody says; what
	// the node has not signed is none. If the records agree with both, it does.
	Conflict []byte
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
	Sealed []Range `json:"sealed,omitempty"`
	// Removal is the record that says that those before First were removed; 0: it may be among those
	// that are sealed.
	Removal uint64   `json:"removal,omitempty"`
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
	source   string
	own      bool // the node's word alone
	convicts bool // it is Options.Conflict
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
		v.first, v.report.First = segments[0], segments[0].First()
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
	v.decide(false)
	if v.report.Finding == nil {
		v.ends()
	}
	if v.report.Finding == nil {
		v.convicts()
	}
	if v.report.Finding == nil {
		return v.report, v.unproved()
	}
	return v.report, nil
}

// unproved tells that nothing can be said of sealed records: there is no checkpoint behind them, or
// none of those that others remember.
func (v *verification) unproved() error {
	sealed := uint64(v.unread) //nolint:gosec // not negative
	switch {
	case v.unread == 0:
		return nil
	case v.report.Proved < sealed:
		return fmt.Errorf("%w: records up to %d are sealed, and no checkpoint proves their hashes: open them (kmsctl audit open)", ErrTrail, sealed)
	case len(v.o.Heads) > 0 && v.agreed.Size < v.unread:
		return fmt.Errorf("%w: records up to %d are sealed, and all that others remember lies before their end: open them (kmsctl audit open), or get newer heads", ErrTrail, sealed)
	}
	return nil
}

type verification struct {
	o      Options
	report Report
	heads  []head // by size; those behind next are done
	next   int
	first  Segment
	tree   Tree
	above  *Tree // as HashesFile has it
	last   Hash  // of the record before
	unread int64 // up to this record, a sealed segment's last, it was not read
	told   bool  // a record says that the node sealed that segment
	named  bool  // records name the one before
	agreed head  // the last one of others that agrees
	doubt  *head // of others: the records are not those that it is of, and what that means comes later
	judged bool  // the conflict was compared
	forged *Finding
	failed error // nothing can be said
}

func (v *verification) find(k Kind, first, last uint64, format string, args ...any) {
	v.decide(false)
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
	if c, err := OpenCheckpoint(v.o.Conflict, v.o.Identity); err == nil && v.belongs(c) == nil {
		v.heads = append(v.heads, head{Checkpoint: c, source: ownCheckpoints, own: true, convicts: true})
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
			v.heads = append(v.heads, head{Checkpoint: c, source: ownCheckpoints, own: true})
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
	Time     time.Time `json:"eventTime"`
	Sequence uint64    `json:"sequence"`
	Previous string    `json:"previous"`
	Name     string    `json:"eventName"`
	Class    string    `json:"principalClass"`
	Target   string    `json:"target"`
}

// RemovalEvent is the name of the record that a node writes before it removes a segment, whose
// records (Segment.Records) are its target. The node removes it once others remember a trail with
// that record, and removes segments in their order: so of the last one that is gone that record is
// always in those that are there.
const RemovalEvent = "AuditSegmentRemoved"

// removes tells whether a record says that all that comes before a segment was removed.
func (r record) removes(first Segment) bool {
	return first.Number > 0 && r.Name == RemovalEvent && r.Class == "node" && r.Target == Segment{Number: first.Number - 1}.Records()
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
	case IsPathError(err): // it says nothing of the trail
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
	if err := s.looksSealed(); err != nil {
		if IsPathError(err) {
			v.failed = err
			return
		}
		v.find(Altered, s.First(), s.last(), "%v", err)
		return
	}
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
	v.unread, v.told, v.report.Last = v.tree.size, false, r.Last
	v.skipPast()
}

// seals notes the record that a node leaves when it seals a segment: of the last one that is sealed
// it stands in records that are not. Of the others it may be sealed itself.
func (v *verification) seals(r record, line []byte) {
	if v.unread == 0 || v.told || r.Name != "GenerateDataKey" || r.Class != "node" {
		return
	}
	var x struct {
		Context map[string]string `json:"encryptionContext"`
		Result  string            `json:"result"`
	}
	err := json.Unmarshal(line, &x)
	v.told = err == nil && x.Result == "SUCCESS" && x.Context["purpose"] == SealPurpose && x.Context["segment"] == strconv.FormatInt(v.unread/SegmentRecords-1, 10)
}

// IsPathError tells whether an error is the file system's: it says nothing of the trail.
func IsPathError(err error) bool {
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
	v.seals(r, line)
	if v.report.Removal == 0 && r.removes(v.first) {
		v.report.Removal = at
	}
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
		switch agrees := root == h.Root; {
		case v.doubt != nil && h.own && (agrees || !h.convicts):
			v.decide(agrees)
			return
		case v.doubt != nil:
			continue
		case !agrees:
			v.differs(h)
			if v.report.Finding != nil {
				return
			}
			continue
		}
		v.judged = v.judged || h.convicts
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
	if h.convicts {
		v.find(Rewritten, uint64(v.agreed.Size)+1, v.sequence(), "these are not the records that the node has signed at %s: it has signed another trail of %d records", h.Time.Format(time.RFC3339), h.Size) //nolint:gosec // not negative
		v.proves(v.agreed)
		return
	}
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
		v.proves(v.agreed)
		return
	}
	v.doubt = &h
	if follows := slices.ContainsFunc(v.heads[v.next:], func(x head) bool { return x.own && !x.convicts }); !follows {
		v.decide(true)
	}
}

// decide tells what was done to records that are not those that somebody remembers: if the node
// has signed these, as its next checkpoint shows, it is rewritten, else altered by somebody without
// its key.
func (v *verification) decide(signed bool) {
	if v.doubt == nil {
		return
	}
	h := *v.doubt
	v.doubt = nil
	if !signed {
		v.find(Altered, v.report.Proved+1, uint64(h.Size), "these are not the records that %s remembers, of %s, nor those that the node has signed", h.source, h.Time.Format(time.RFC3339)) //nolint:gosec // not negative
		return
	}
	v.find(Rewritten, uint64(v.agreed.Size)+1, uint64(h.Size), "these are not the records that %s remembers, of %s", h.source, h.Time.Format(time.RFC3339)) //nolint:gosec // not negative
	v.proves(v.agreed)
}

// ends looks at what must have followed.
func (v *verification) ends() {
	if v.forged != nil {
		v.report.Finding = v.forged
	}
	if v.unread > 0 && !v.told && v.report.Finding == nil {
		last := Segment{Number: v.unread/SegmentRecords - 1}
		v.find(Altered, last.First(), last.last(), "they are sealed, and no record behind them says that the node did that")
	}
	unread := v.report.Removal == 0 && len(v.report.Sealed) > 0 // the record may be among those
	if v.report.First > 1 && !unread && (v.report.Removal == 0 || v.report.Removal > v.report.Proved) {
		v.report.Finding = nil
		if v.report.Removal == 0 {
			v.find(Removed, 1, v.report.First-1, "they are not there, and no record says that they were removed because of their age")
		} else {
			v.find(Removed, 1, v.report.First-1, "they are not there; record %d says that they were removed because of their age, but nobody has signed it", v.report.Removal)
		}
	}
	if n := len(v.heads); n > 0 && v.heads[n-1].Size > v.tree.size {
		h := v.heads[n-1]
		v.report.Finding = nil
		v.find(CutOff, v.sequence()+1, uint64(h.Size), "the trail ends at record %d; by %s, of %s, it had %d", v.sequence(), h.source, h.Time.Format(time.RFC3339), h.Size) //nolint:gosec // not negative
	}
}

// convicts looks at a conflict that the records do not tell of: they end before it, or begin
// behind it.
func (v *verification) convicts() {
	was, is := -1, -1
	for i, h := range v.heads { // by size
		switch {
		case h.convicts:
			is = i
		case !h.own:
			was = i
		}
	}
	if !v.judged && was >= 0 && is >= 0 {
		v.report.Finding = convicted(v.heads[was].Checkpoint, v.heads[is].Checkpoint)
	}
}
