package audit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

const cluster = "5e0b9a4e-6a37-4b0e-9d5f-0f2c7a1c2b11"

// identity is a node's key.
type identity struct{ key *ecdsa.PrivateKey }

func newIdentity(t *testing.T) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{key}
}

func (i *identity) Identity() []byte {
	b, err := x509.MarshalPKIXPublicKey(&i.key.PublicKey)
	if err != nil {
		panic(err)
	}
	return b
}

func (i *identity) SignIdentity(_ context.Context, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, i.key, digest[:])
}

// signedTrail writes records, with a checkpoint after every tenth and one at the end.
func signedTrail(t *testing.T, by *identity, records int, edit func(i int, e *Event)) (dir string, heads []Head) {
	t.Helper()
	dir = t.TempDir()
	c, seconds := config(dir), int64(0)
	c.Now = func() time.Time { seconds++; return time.Unix(seconds, 0) }
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= records; i++ {
		e := Event{Name: "Encrypt", KeyID: fmt.Sprintf("key-%d", i), Result: Success}
		if edit != nil {
			edit(i, &e)
		}
		if err := l.Record(e); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 || i == records {
			if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
				t.Fatal(err)
			}
			var last trail.Checkpoint
			if n := len(heads); n > 0 {
				last = heads[n-1].Checkpoint
			}
			h, ok, err := l.Head(last.Size, last.Root[:])
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			heads = append(heads, h)
		}
	}
	shut(t, l)
	return dir, heads
}

func lines(t *testing.T, dir string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, trail.Name(0, trail.RecordsEnd)))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func rewrite(t *testing.T, dir string, all [][]byte) {
	t.Helper()
	b := bytes.Join(all, nil)
	if !bytes.HasSuffix(b, []byte("\n")) {
		b = append(b, '\n')
	}
	if err := os.WriteFile(filepath.Join(dir, trail.Name(0, trail.RecordsEnd)), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// renumber gives records other numbers, and has each name the one before it from there on, as
// somebody would who knows the form.
func renumber(t *testing.T, all [][]byte, from int, chain bool) [][]byte {
	t.Helper()
	var out [][]byte
	previous := ""
	for i, line := range all {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if i >= from {
			var e Event
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatal(err)
			}
			e.Sequence = uint64(i + 1)
			if chain {
				e.Previous = previous
			}
			var err error
			if line, err = json.Marshal(e); err != nil {
				t.Fatal(err)
			}
		}
		previous = trail.RecordHash(line).String()
		out = append(out, append(bytes.Clone(line), '\n'))
	}
	return out
}

func replaced(line []byte, old, with string) []byte {
	return bytes.Replace(line, []byte(old), []byte(with), 1)
}

// TestEveryAttackIsNamed does to a trail's files what somebody may do who has them, and not
// the node's key.
func TestEveryAttackIsNamed(t *testing.T) {
	by := newIdentity(t)
	const records = 57
	for what, row := range map[string]struct {
		do          func(t *testing.T, dir string, all [][]byte)
		kind        trail.Kind
		first, last uint64
		proved      uint64
	}{
		"a record is altered": {func(t *testing.T, dir string, all [][]byte) {
			all[22] = replaced(all[22], "SUCCESS", "DENIED")
			rewrite(t, dir, all)
		}, trail.Altered, 23, 24, 20},
		"the last record is altered": {func(t *testing.T, dir string, all [][]byte) {
			all[56] = replaced(all[56], "SUCCESS", "DENIED")
			rewrite(t, dir, all)
		}, trail.Altered, 51, 57, 50},
		"and those behind it name it": {func(t *testing.T, dir string, all [][]byte) {
			all[22] = replaced(all[22], "SUCCESS", "DENIED")
			rewrite(t, dir, renumber(t, all, 23, true))
		}, trail.Altered, 21, 30, 20},
		"no record any more": {func(t *testing.T, dir string, all [][]byte) {
			all[22] = []byte("nonsense\n")
			rewrite(t, dir, all)
		}, trail.Altered, 23, 23, 20},
		"what a record says of the one before is gone": {func(t *testing.T, dir string, all [][]byte) {
			i := bytes.Index(all[22], []byte(`,"previous"`))
			all[22] = append(bytes.Clone(all[22][:i]), '}', '\n')
			rewrite(t, dir, all)
		}, trail.Altered, 23, 23, 20},
		"a record is removed": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, append(all[:22:22], all[23:]...))
		}, trail.Removed, 23, 23, 20},
		"three are removed": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, append(all[:22:22], all[25:]...))
		}, trail.Removed, 23, 25, 20},
		"removed, and the others renumbered": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, renumber(t, append(all[:22:22], all[23:]...), 22, false))
		}, trail.Altered, 22, 23, 20},
		"removed, renumbered and chained": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, renumber(t, append(all[:22:22], all[23:]...), 22, true))
		}, trail.Altered, 21, 30, 20},
		"the first is removed": {func(t *testing.T, dir string, all [][]byte) { rewrite(t, dir, all[1:]) }, trail.Removed, 1, 1, 0},
		"a record is repeated": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, append(append(all[:23:23], all[22]), all[23:]...))
		}, trail.Inserted, 24, 24, 20},
		"one is inserted, renumbered and chained": {func(t *testing.T, dir string, all [][]byte) {
			rewrite(t, dir, renumber(t, append(append(all[:23:23], all[5]), all[23:]...), 23, true))
		}, trail.Altered, 21, 30, 20},
		"two are exchanged": {func(t *testing.T, dir string, all [][]byte) {
			all[22], all[23] = all[23], all[22]
			rewrite(t, dir, all)
		}, trail.Reordered, 23, 23, 20},
		"the end is cut off": {func(t *testing.T, dir string, all [][]byte) { rewrite(t, dir, all[:40]) }, trail.CutOff, 41, 57, 40},
		"half a record is left": {func(t *testing.T, dir string, all [][]byte) {
			path := filepath.Join(dir, trail.Name(0, trail.RecordsEnd))
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, b[:len(b)-10], 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, trail.CutOff, 57, 57, 50},
		"everything is removed": {func(t *testing.T, dir string, _ [][]byte) {
			if err := os.Remove(filepath.Join(dir, trail.Name(0, trail.RecordsEnd))); err != nil {
				t.Fatal(err)
			}
		}, trail.CutOff, 1, 57, 0},
		"a checkpoint is altered": {func(t *testing.T, dir string, _ [][]byte) {
			path := filepath.Join(dir, trail.Name(0, trail.CheckpointsEnd))
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, bytes.Replace(b, []byte("\n30\n"), []byte("\n31\n"), 1), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, trail.Forged, 31, 31, 57},
	} {
		t.Run(what, func(t *testing.T) {
			dir, heads := signedTrail(t, by, records, nil)
			row.do(t, dir, lines(t, dir))
			r, err := trail.Verify(dir, trail.Options{Identity: by.Identity(), Cluster: cluster, Node: "node-1"})
			if err != nil {
				t.Fatal(err)
			}
			f := r.Finding
			if f == nil || f.Kind != row.kind || f.First != row.first || f.Last != row.last || r.Proved != row.proved {
				t.Errorf("found %+v, proved %d; want %s of %d to %d, proved %d", f, r.Proved, row.kind, row.first, row.last, row.proved)
			}
			// The node itself refuses to go on with it, where it is not the same as before.
			if row.kind != trail.Forged {
				if l, err := Open(config(dir)); !errors.Is(err, ErrAltered) {
					t.Errorf("opened: %v", err)
					if err == nil {
						shut(t, l)
					}
				}
			}
			// Without the node's checkpoints, but with the cluster's memory of the last.
			files, err := filepath.Glob(filepath.Join(dir, "*"+trail.CheckpointsEnd))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			last := trail.Head{Note: heads[len(heads)-1].Note, Source: "the cluster"}
			r, err = trail.Verify(dir, trail.Options{Identity: by.Identity(), Heads: []trail.Head{last}})
			if err != nil || (r.Finding == nil) != (row.kind == trail.Forged) {
				t.Errorf("by the cluster's memory alone: %+v, %v", r.Finding, err)
			}
		})
	}
}

func TestVerifyWhole(t *testing.T) {
	by := newIdentity(t)
	dir, heads := signedTrail(t, by, 57, nil)
	r, err := trail.Verify(dir, trail.Options{Identity: by.Identity(), Heads: []trail.Head{{Note: heads[2].Note, Source: "the cluster"}}})
	if err != nil || r.Finding != nil || r.Proved != 57 || r.First != 1 || r.Last != 57 || r.Heads != 7 || r.Node != "node-1" || r.Cluster != cluster {
		t.Errorf("%+v, %v", r, err)
	}
	other := newIdentity(t)
	if _, err := trail.Verify(dir, trail.Options{Identity: other.Identity(), Heads: []trail.Head{{Note: heads[2].Note}}}); !errors.Is(err, trail.ErrCheckpoint) {
		t.Errorf("with another node's key: %v", err)
	}
	r, err = trail.Verify(dir, trail.Options{Identity: other.Identity()})
	if err != nil || r.Finding == nil || r.Finding.Kind != trail.Forged {
		t.Errorf("with another node's key: %+v, %v", r, err)
	}
	if _, err := trail.Verify(t.TempDir(), trail.Options{Identity: by.Identity()}); err != nil {
		t.Errorf("no trail at all: %v", err)
	}
	// What is written behind the last checkpoint is not proved yet.
	l := open(t, dir)
	for range 3 {
		if err := l.Record(Event{Name: "Encrypt"}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	if r, err = trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.Proved != 57 || r.Last != 60 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestKeyInHand: somebody has the node's HSM sign whatever is wanted, and makes the whole
// trail anew. The cluster remembers another one.
func TestKeyInHand(t *testing.T) {
	by := newIdentity(t)
	_, was := signedTrail(t, by, 57, nil)
	dir, is := signedTrail(t, by, 57, func(i int, e *Event) {
		if i == 23 {
			e.Result = Denied
		}
	})
	plain, err := trail.Verify(dir, trail.Options{Identity: by.Identity()})
	if err != nil || plain.Finding != nil || plain.Proved != 57 {
		t.Fatalf("by itself it must look well: %+v, %v", plain, err)
	}
	for i, h := range was {
		r, err := trail.Verify(dir, trail.Options{Identity: by.Identity(), Heads: []trail.Head{{Note: h.Note, Source: "the cluster"}}})
		want := i >= 2 // the checkpoint of 30 records is the first with the altered one
		if err != nil || (r.Finding != nil) != want || want && (r.Finding.Kind != trail.Rewritten || r.Finding.First > 23 || r.Finding.Last < 23) {
			t.Errorf("remembering %d records: %+v, %v", h.Checkpoint.Size, r.Finding, err)
		}
	}
	// Nor can it be proved to go on from what is remembered.
	for i := range is[1:] {
		from, to := was[i].Checkpoint, is[i+1].Checkpoint
		err := tlog.CheckTree(is[i+1].Proof, to.Size, to.Root, from.Size, from.Root)
		if (err == nil) != (i < 2) {
			t.Errorf("from %d to %d: %v", from.Size, to.Size, err)
		}
	}
}

// TestConflictIsJudged: the records tell whether a checkpoint that is held against the node is one
// of theirs.
func TestConflictIsJudged(t *testing.T) {
	by := newIdentity(t)
	dir, honest := signedTrail(t, by, 57, nil)
	falseDir, rewritten := signedTrail(t, by, 57, func(i int, e *Event) {
		if i == 23 {
			e.Result = Denied
		}
	})
	_, foreign := signedTrail(t, newIdentity(t), 57, nil)
	for what, row := range map[string]struct {
		dir        string
		remembered Head
		conflict   Head
		want       trail.Kind
	}{
		"one of the trail's own, from before": {dir, honest[4], honest[2], ""},
		"one of its own, with a false proof":  {dir, honest[2], honest[4], ""},
		"another key's":                       {dir, honest[2], foreign[5], ""},
		"of a trail that is not there":        {dir, honest[4], rewritten[3], trail.Rewritten},
		"the same, and more is remembered":    {dir, honest[5], rewritten[2], trail.Rewritten},
		"of the trail that is there":          {falseDir, honest[4], rewritten[5], trail.Rewritten},
	} {
		o := trail.Options{Identity: by.Identity(), Node: "node-1", Cluster: cluster, Heads: []trail.Head{{Note: row.remembered.Note, Source: "the cluster"}}, Conflict: row.conflict.Note}
		r, err := trail.Verify(row.dir, o)
		if err != nil || (r.Finding == nil) != (row.want == "") || row.want != "" && r.Finding.Kind != row.want {
			t.Errorf("%s: %+v, %v", what, r.Finding, err)
		}
	}
}

// TestWhoAltered: a checkpoint that others remember, between a record that was altered and the
// node's next one. Without the node's key that one does not agree either.
func TestWhoAltered(t *testing.T) {
	by := newIdentity(t)
	alter := func(i int, e *Event) {
		if i == 23 {
			e.Result = Denied
		}
	}
	dir, _ := signedTrail(t, by, 57, nil)
	_, between := signedTrail(t, by, 25, nil) // the same 25 records
	falseDir, _ := signedTrail(t, by, 57, alter)
	remembered := trail.Head{Note: between[2].Note, Source: "the cluster"}
	all := lines(t, dir)
	all[22] = replaced(all[22], "SUCCESS", "DENIED")
	rewrite(t, dir, renumber(t, all, 23, true))
	cut := t.TempDir()
	if err := os.CopyFS(cut, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	rewrite(t, cut, lines(t, dir)[:27])
	alone := t.TempDir()
	if err := os.CopyFS(alone, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(alone, trail.Name(0, trail.CheckpointsEnd))); err != nil {
		t.Fatal(err)
	}
	for what, row := range map[string]struct {
		dir         string
		kind        trail.Kind
		first, last uint64
	}{
		"without the key":              {dir, trail.Altered, 21, 25},
		"and cut off":                  {cut, trail.Altered, 21, 25},
		"with the key":                 {falseDir, trail.Rewritten, 1, 25},
		"the node's word is not there": {alone, trail.Rewritten, 1, 25},
	} {
		r, err := trail.Verify(row.dir, trail.Options{Identity: by.Identity(), Heads: []trail.Head{remembered}})
		if f := r.Finding; err != nil || f == nil || f.Kind != row.kind || f.First != row.first || f.Last != row.last {
			t.Errorf("%s: %+v, %v", what, r.Finding, err)
		}
	}
}

// TestSegments fills more than one segment, with everything that becomes of them.
func TestSegments(t *testing.T) {
	by := newIdentity(t)
	dir := t.TempDir()
	c := config(dir)
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	const records = 2*trail.SegmentRecords + 100
	var heads []Head
	write := func(n int) {
		for range n {
			if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
			t.Fatal(err)
		}
		from := int64(0)
		if k := len(heads); k > 0 {
			from = heads[k-1].Checkpoint.Size
		}
		h, ok, err := l.Head(from, nil)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if from > 0 {
			if err := tlog.CheckTree(h.Proof, h.Checkpoint.Size, h.Checkpoint.Root, from, heads[len(heads)-1].Checkpoint.Root); err != nil {
				t.Fatalf("from %d to %d: %v", from, h.Checkpoint.Size, err)
			}
		}
		heads = append(heads, h)
	}
	for _, n := range []int{1, trail.SegmentRecords - 2, 1, 1, trail.SegmentRecords, 99} {
		write(n)
		if n == 1 && l.Position().Last == trail.SegmentRecords { // the next segment has no record yet
			shut(t, l)
			l = open(t, dir)
		}
	}
	if got := l.Position(); got.Last != records || got.Signed != records {
		t.Fatalf("at %+v", got)
	}
	if err := l.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify := func(first, finding uint64) {
		t.Helper()
		var all []trail.Head
		for _, h := range heads {
			all = append(all, trail.Head{Note: h.Note, Source: "the cluster"})
		}
		r, err := trail.Verify(dir, trail.Options{Identity: by.Identity(), Heads: all})
		if err != nil || r.First != first || (r.Finding == nil) != (finding == 0) || finding != 0 && (r.Finding.First > finding || r.Finding.Last < finding) {
			t.Errorf("%+v, %+v, %v", r, r.Finding, err)
		}
		if finding == 0 && r.Proved != l.Position().Last {
			t.Errorf("proved up to %d", r.Proved)
		}
	}
	verify(1, 0)
	for _, n := range []int64{0, 1} {
		if _, err := os.Stat(filepath.Join(dir, trail.Name(n, trail.CompressedEnd))); err != nil {
			t.Errorf("segment %d is not compressed: %v", n, err)
		}
	}
	// A record of each segment is proved to be in the last tree.
	tree := l.Snapshot()
	head := heads[len(heads)-1].Checkpoint
	for _, sequence := range []int64{1, 77, trail.SegmentRecords, trail.SegmentRecords + 1, 2 * trail.SegmentRecords, records} {
		proof, err := tlog.ProveRecord(head.Size, sequence-1, tree)
		if err != nil {
			t.Fatal(sequence, err)
		}
		leaf, err := tree.ReadHashes([]int64{tlog.StoredHashIndex(0, sequence-1)})
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(proof, head.Size, head.Root, sequence-1, leaf[0]); err != nil {
			t.Errorf("record %d: %v", sequence, err)
		}
	}
	// It goes on after a restart, also where the hashes above the segments are lost or torn.
	above := filepath.Join(dir, trail.HashesFile)
	for _, damage := range []func() error{
		func() error { return nil },
		func() error { return os.Remove(above) },
		func() error { return os.Truncate(above, 40) },
	} {
		shut(t, l)
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir)
		write(3)
		verify(1, 0)
	}
	// Old segments go when they are old and the cluster remembers what comes behind them.
	shut(t, l)
	c.Keep = 1
	if l, err = Open(c); err != nil {
		t.Fatal(err)
	}
	if err := l.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify(1, 0)
	tidy := func(kept int64) {
		t.Helper()
		l.Kept(kept)
		if err := l.tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	young := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(dir, trail.Name(1, trail.CompressedEnd)), young, young); err != nil {
		t.Fatal(err)
	}
	tidy(trail.SegmentRecords + 5)
	said := int64(l.Position().Last)
	write(1)
	verify(1, 0) // the record of it is not remembered yet
	tidy(said - 1)
	verify(1, 0)
	tidy(said)
	verify(trail.SegmentRecords+1, 0)
	testRemoved(t, by, dir)
	if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity(), Heads: []trail.Head{{Note: heads[0].Note}}}); !errors.Is(err, trail.ErrTrail) || !strings.Contains(err.Error(), "get newer heads") {
		t.Errorf("with a head of removed records alone: %+v, %v", r, err)
	}
	// An altered hash above the segments, or a record in a compressed segment, is found.
	shut(t, l)
	b, err := os.ReadFile(above)
	if err != nil {
		t.Fatal(err)
	}
	b[3] ^= 1
	if err := os.WriteFile(above, b, 0o600); err != nil {
		t.Fatal(err)
	}
	verify(trail.SegmentRecords+1, trail.SegmentRecords)
	if _, err := Open(c); !errors.Is(err, ErrAltered) {
		t.Errorf("opened with an altered hash: %v", err)
	}
}

// testRemoved removes more of a trail whose first segment was removed for its age.
func testRemoved(t *testing.T, by *identity, from string) {
	t.Helper()
	second := func(dir, end string) string { return filepath.Join(dir, trail.Name(1, end)) }
	forge := func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, trail.Name(2, trail.RecordsEnd))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		var e Event
		if err := json.Unmarshal(all[len(all)-1], &e); err != nil {
			t.Fatal(err)
		}
		e = Event{
			Sequence: e.Sequence + 1, Previous: trail.RecordHash(all[len(all)-1]).String(), Name: trail.RemovalEvent, Class: "node", Result: Success,
			Target: trail.Segment{Number: 1}.Records(),
		}
		line, err := json.Marshal(e)
		if err == nil {
			err = os.WriteFile(path, append(append(b, line...), '\n'), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, row := range map[string]struct {
		remove []string
		forged bool
		want   string // of a finding
		opened string // or why not
	}{
		"nothing more": {nil, false, "", ""},
		"its checkpoints, by a removal that was broken off": {[]string{trail.CheckpointsEnd}, false, "", ""},
		"the next segment":                      {[]string{trail.CompressedEnd, trail.CheckpointsEnd}, false, "no record says", ""},
		"and a record is added that says so":    {[]string{trail.CompressedEnd, trail.CheckpointsEnd}, true, "nobody has signed it", "which was never signed"},
		"such a record, and nothing is removed": {nil, true, "", ""},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			for _, end := range row.remove {
				if err := os.Remove(second(dir, end)); err != nil {
					t.Fatal(err)
				}
			}
			if row.forged {
				forge(t, dir)
			}
			r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()})
			if err != nil {
				t.Fatal(err)
			}
			switch f := r.Finding; {
			case row.want == "" && (f != nil || r.Removal <= 2*trail.SegmentRecords || !strings.Contains(strings.Join(r.Text("kms-1"), "\n"), fmt.Sprintf("record %d says", r.Removal))):
				t.Errorf("%+v, removed by record %d", f, r.Removal)
			case row.want != "" && (f == nil || f.Kind != trail.Removed || f.First != 1 || f.Last != 2*trail.SegmentRecords || !strings.Contains(f.Text, row.want)):
				t.Errorf("found %+v", f)
			}
			l, err := Open(config(dir))
			if err == nil {
				shut(t, l)
			}
			if row.opened != "" && (!errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), row.opened)) || row.opened == "" && err != nil {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

// TestRemovedInOrder: a segment that is young enough to stay keeps those behind it.
func TestRemovedInOrder(t *testing.T) {
	by, c := newIdentity(t), config(t.TempDir())
	c.Keep = time.Hour
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 2*trail.SegmentRecords + 1 {
		if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
			t.Fatal(err)
		}
	}
	path := func(n int64) string { return filepath.Join(c.Dir, trail.Name(n, trail.CompressedEnd)) }
	first := func() uint64 {
		t.Helper()
		for range 2 {
			if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
				t.Fatal(err)
			}
			l.Kept(l.signed.Size)
			if err := l.tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		n, err := l.first()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first()
	long := time.Now().Add(-2 * time.Hour)
	robbed := t.TempDir()
	if err := os.CopyFS(robbed, os.DirFS(c.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path(1), long, long); err != nil {
		t.Fatal(err)
	}
	if n := first(); n != 1 {
		t.Errorf("the second segment is old, the first is not: now the trail begins at record %d", n)
	}
	if err := errors.Join(os.Chtimes(path(0), long, long), os.Chtimes(path(1), time.Now(), time.Now())); err != nil {
		t.Fatal(err)
	}
	if n := first(); n != trail.SegmentRecords+1 {
		t.Errorf("the first is old: the trail begins at record %d", n)
	}
	shut(t, l)
	if l, err = Open(c); err != nil { // and finds the record of the first
		t.Fatal(err)
	}
	if err := os.Chtimes(path(1), long, long); err != nil {
		t.Fatal(err)
	}
	if n := first(); n != 2*trail.SegmentRecords+1 {
		t.Errorf("both are old: the trail begins at record %d", n)
	}
	shut(t, l)

	// Nor is more removed where somebody else has removed the oldest.
	if err := os.Remove(filepath.Join(robbed, trail.Name(0, trail.CompressedEnd))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(robbed, trail.Name(1, trail.CompressedEnd)), long, long); err != nil {
		t.Fatal(err)
	}
	c.Dir = robbed
	if l, err = Open(c); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.Kept(int64(l.Position().Last))
		if err := l.tidy(t.Context()); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "the records up to 65536 are missing") {
			t.Errorf("behind records that somebody else removed: %v", err)
		}
	}
	if n, err := l.first(); n != trail.SegmentRecords+1 || err != nil {
		t.Errorf("the trail begins at record %d, %v", n, err)
	}
	shut(t, l)
}

// TestAdopted: the trail of the first release goes on.
func TestAdopted(t *testing.T) {
	dir := t.TempDir()
	var b bytes.Buffer
	for i := range 12 {
		fmt.Fprintf(&b, `{"eventTime":"2026-01-01T00:00:00Z","sequence":%d,"node":"n","eventName":"Encrypt","result":"SUCCESS","stateIndex":0}`+"\n", i+1)
	}
	if err := os.WriteFile(filepath.Join(dir, earlierFile), append(b.Bytes(), `{"torn`...), 0o600); err != nil {
		t.Fatal(err)
	}
	by := newIdentity(t)
	l := open(t, dir)
	if err := l.Record(Event{Name: "Encrypt"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.Proved != 13 {
		t.Errorf("%+v, %v", r, err)
	}
	all := lines(t, dir)
	all[4] = replaced(all[4], "SUCCESS", "DENIED!")
	rewrite(t, dir, all)
	if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding == nil || r.Finding.Kind != trail.Altered {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestEarlierReleaseAgain: the first release, started by mistake, leaves its empty file, which
// must not take the place of the trail; what it has written is for people.
func TestEarlierReleaseAgain(t *testing.T) {
	by := newIdentity(t)
	dir, _ := signedTrail(t, by, 12, nil)
	earlier := filepath.Join(dir, earlierFile)
	if err := os.WriteFile(earlier, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shut(t, open(t, dir))
	if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.Proved != 12 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := os.Stat(earlier); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty file is still there: %v", err)
	}
	if err := os.WriteFile(earlier, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(config(dir)); err == nil || !strings.Contains(err.Error(), "keep it elsewhere") {
		t.Errorf("opened beside records of the earlier release: %v", err)
	}
	if b, err := os.ReadFile(earlier); err != nil || string(b) != "{}\n" {
		t.Errorf("they are %q, %v", b, err)
	}
}

// TestDurable: a durable record waits for the disk, others do not, and many wait together.
func TestDurable(t *testing.T) {
	l := open(t, t.TempDir())
	defer shut(t, l)
	if err := l.Record(Event{Name: "DisableKey", Durable: true}); err != nil {
		t.Fatal(err)
	}
	if p := l.Position(); p.Durable != 1 {
		t.Errorf("answered before the record was on the disk: %+v", p)
	}
}
