package archive

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

// update writes the golden segment anew. Never use it once a release is out: there
// are journals like it.
var update = flag.Bool("update", false, "write the golden segment of the present format")

const goldenSegment = "testdata/v1.qkj"

// testKey is the log key of package fsm's golden files.
func testKey() fsm.LogKey { return bytes.Repeat([]byte{0x4c}, 32) }

var testCluster = uuid.MustParse("00000000-0000-0000-0000-000100000000")

const (
	startTime = int64(1_700_000_000_000_000_000) // unix nanoseconds
	testNode  = "n1.0011223344556677"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry is a log entry that restricts, different for each n.
func entry(t testing.TB, n uint64) []byte {
	t.Helper()
	return encode(t, n, &fsm.DisableKey{KeyRef: fsm.KeyRef{ID: uuid.UUID{15: byte(n)}, Tenant: fsm.DefaultTenant}})
}

func encode(t testing.TB, n uint64, c fsm.Command) []byte {
	t.Helper()
	b, err := fsm.EncodeEntry(fsm.Entry{Principal: "spiffe://kms.example/operator/olga", Proposer: testNode, Time: startTime + int64(n)}, c, testKey())
	must(t, err)
	return b
}

// script is a segment that is being made.
type script struct {
	t    testing.TB
	s    *Segment
	b    []byte
	ends []int // of the records
}

func begin(t testing.TB, node string, epoch uint32, after uint64) *script {
	t.Helper()
	s, b, err := beginSegment(testKey(), Header{Cluster: testCluster, RecoveryEpoch: epoch, Node: node, After: after, Created: startTime})
	must(t, err)
	return &script{t: t, s: s, b: b, ends: []int{len(b)}}
}

func (x *script) record(kind byte, body []byte) *script {
	b, tag := record(testKey(), x.s.tag, kind, body)
	x.b, x.s.tag = append(x.b, b...), tag
	x.ends = append(x.ends, len(x.b))
	return x
}

func (x *script) entry(index uint64) *script {
	return x.record(kindEntry, append(numbers(index, 1), entry(x.t, index)...))
}

func (x *script) covered(index uint64) *script {
	return x.record(kindCoverage, numbers(index, uint64(startTime+int64(index))))
}

func (x *script) gap(first, last uint64) *script { return x.record(kindGap, numbers(first, last)) }

func (x *script) parse() *Segment {
	x.t.Helper()
	s, err := ParseSegment(x.b, testKey())
	must(x.t, err)
	return s
}

// short is a segment with a record of every kind.
func short(t testing.TB) *script {
	return begin(t, testNode, 0, 10).entry(12).covered(20).gap(21, 30).entry(31).covered(40)
}

func coverage(index uint64, at uint64) Coverage {
	return Coverage{index, time.Unix(0, startTime+int64(at)).UTC()}
}

func TestSegment(t *testing.T) {
	s := short(t).parse()
	if s.Node != testNode || s.After != 10 || s.Cluster != testCluster || s.Until != coverage(40, 40) || s.Torn != 0 {
		t.Errorf("segment %+v", s)
	}
	if fmt.Sprint(s.Gaps) != "[{21 30}]" || len(s.Entries) != 2 || s.Entries[0].Index != 12 || !bytes.Equal(s.Entries[1].Raw, entry(t, 31)) {
		t.Errorf("gaps %v, entries %v", s.Gaps, s.Entries)
	}
	if s := begin(t, testNode, 0, 10).parse(); s.Until.Index != 10 || !s.Until.Time.IsZero() {
		t.Errorf("an empty segment covers up to %+v", s.Until)
	}
}

// TestGoldenSegment: the journal that was written when the format came out is still
// read, and would still be written.
func TestGoldenSegment(t *testing.T) {
	x := short(t)
	if *update {
		must(t, os.WriteFile(goldenSegment, x.b, 0o644))
	}
	want, err := os.ReadFile(goldenSegment)
	must(t, err)
	if !bytes.Equal(x.b, want) {
		t.Error("the golden segment would be written otherwise now")
	}
	s, err := ParseSegment(want, testKey())
	must(t, err)
	if s.Until != coverage(40, 40) || len(s.Entries) != 2 {
		t.Errorf("golden segment: %+v", s)
	}
}

// TestGoldenBackup: the golden backup, which package backup checks without a key, is
// a state to those who have it.
func TestGoldenBackup(t *testing.T) {
	f, err := os.Open("../../rpc/client/backup/testdata/v1.qkb")
	must(t, err)
	defer f.Close()
	b, err := backup.NewReader(f)
	must(t, err)
	s, err := fsm.ReadSnapshot(b, testKey())
	must(t, err)
	must(t, s.Check())
	h := b.Header()
	if s.Index() != h.Index || s.Records() != h.Records || uint64(s.KeyCount()) != h.Keys || s.Cluster().ID.String() != h.Cluster || h.Keys == 0 {
		t.Errorf("a state at %d with %d records and %d keys, header %+v", s.Index(), s.Records(), s.KeyCount(), h)
	}
}

// TestTorn: whatever a crash leaves of the last record is recognised, and the rest
// still counts.
func TestTorn(t *testing.T) {
	x := short(t)
	whole := 0 // records that are complete
	for at := range len(x.b) {
		for whole < len(x.ends) && x.ends[whole] <= at {
			whole++
		}
		zeroed := append(bytes.Clone(x.b[:at]), make([]byte, len(x.b)-at)...)
		for name, b := range map[string][]byte{"cut": x.b[:at], "zeros from": zeroed} {
			s, err := ParseSegment(b, testKey())
			must(t, err)
			if (s == nil) != (whole == 0) || s != nil && (s.good != int64(x.ends[whole-1]) || s.Torn != int64(len(b)-x.ends[whole-1])) {
				t.Fatalf("%s %d: %+v, want %d records", name, at, s, whole)
			}
		}
	}
}

// TestEveryByteOfASegmentCounts: no byte can be altered unseen.
func TestEveryByteOfASegmentCounts(t *testing.T) {
	x := short(t)
	for i := range x.b {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			flipped := bytes.Clone(x.b)
			flipped[i] ^= mask
			s, err := ParseSegment(flipped, testKey())
			if !errors.Is(err, ErrJournal) {
				t.Fatalf("byte %d flipped by %#x: %v", i, mask, err)
			}
			if s != nil && s.good > int64(i) {
				t.Fatalf("byte %d flipped by %#x: %d bytes are taken for good", i, mask, s.good)
			}
		}
	}
	for i := range x.ends[:len(x.ends)-1] {
		from, to := x.ends[i], x.ends[i+1]
		out := append(bytes.Clone(x.b[:from]), x.b[to:]...)
		twice := append(bytes.Clone(x.b[:to]), x.b[from:]...)
		for name, b := range map[string][]byte{"taken out": out, "doubled": twice} {
			if s, err := ParseSegment(b, testKey()); i+2 < len(x.ends) && !errors.Is(err, ErrJournal) || name == "doubled" && !errors.Is(err, ErrJournal) {
				t.Errorf("record %d %s: %+v, %v", i+1, name, s, err)
			}
		}
	}
	if _, err := ParseSegment(x.b, make(fsm.LogKey, 32)); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("another key: %v", err)
	}
}

// TestSealedButWrongSegments: what verifies is still read strictly.
func TestSealedButWrongSegments(t *testing.T) {
	for _, row := range []struct {
		name string
		x    *script
		text string
	}{
		{"an entry twice", begin(t, testNode, 0, 10).entry(12).entry(12), "entry 12 behind index 12"},
		{"an entry at the beginning", begin(t, testNode, 0, 12).entry(12), "entry 12 behind"},
		{"an entry behind a coverage", begin(t, testNode, 0, 10).covered(20).entry(15), "entry 15 behind"},
		{"a coverage that goes back", begin(t, testNode, 0, 10).covered(20).covered(19), "a coverage of index 19"},
		{"a gap that is covered", begin(t, testNode, 0, 10).covered(20).gap(20, 25), "a gap from 20"},
		{"a gap that ends before it begins", begin(t, testNode, 0, 10).gap(25, 24), "a gap from 25 to 24"},
		{"a short coverage", begin(t, testNode, 0, 10).record('C', make([]byte, 15)), "does not know"},
		{"a long gap", begin(t, testNode, 0, 10).record('G', make([]byte, 17)), "does not know"},
		{"an empty entry", begin(t, testNode, 0, 10).record('E', numbers(11, 1)), "does not know"},
		{"an entry without a MAC", begin(t, testNode, 0, 10).record('E', append(numbers(11, 1), "{}"...)), "entry 11"},
		{"an unknown kind", begin(t, testNode, 0, 10).record('X', nil), "does not know"},
		{"a second header", begin(t, testNode, 0, 10).record('H', []byte("{}")), `kind 'H'`},
	} {
		if _, err := ParseSegment(row.x.b, testKey()); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: %v, want one that says %q", row.name, err, row.text)
		}
	}
	for name, body := range map[string]string{
		"format 2":      fmt.Sprintf(`{"format":2,"cluster":%q,"recovery_epoch":0,"node":"n","after":0,"created":0}`, testCluster),
		"unknown field": fmt.Sprintf(`{"format":1,"cluster":%q,"recovery_epoch":0,"node":"n","after":0,"created":0,"x":1}`, testCluster),
		"white space":   fmt.Sprintf(`{"format":1, "cluster":%q,"recovery_epoch":0,"node":"n","after":0,"created":0}`, testCluster),
		"nothing":       "",
		"too long":      strings.Repeat(" ", maxHeader+1),
	} {
		b, _ := record(testKey(), [tagSize]byte{}, kindHeader, []byte(body))
		if s, err := ParseSegment(append([]byte(segmentMagic), b...), testKey()); s != nil || !errors.Is(err, ErrJournal) {
			t.Errorf("header of %s: %+v, %v", name, s, err)
		}
	}
}

func FuzzParseSegment(f *testing.F) {
	x := short(f)
	f.Add(x.b)
	f.Add(x.b[:len(x.b)-3])
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSegment(b, testKey())
		if err != nil && !errors.Is(err, ErrJournal) {
			t.Fatal(err)
		}
		if s == nil {
			return
		}
		again, err := ParseSegment(b[:s.good], testKey())
		if err != nil || again.Until != s.Until || again.Torn != 0 {
			t.Fatalf("its good part alone: %+v, %v", again, err)
		}
	})
}
