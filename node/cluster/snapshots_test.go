package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// snapshotDir is a directory of snapshots whose states are any text that ends in
// "whole".
type snapshotDir struct {
	t     *testing.T
	s     *snapshots
	fatal []error
}

func newSnapshotDir(t *testing.T) *snapshotDir {
	t.Helper()
	d := &snapshotDir{t: t}
	d.s = &snapshots{
		dir: filepath.Join(t.TempDir(), snapshotsDir), key: testSealKey("kms-1.s01"),
		fatal: func(err error) { d.fatal = append(d.fatal, err) },
		verify: func(r io.Reader) error {
			b, err := io.ReadAll(r)
			if err == nil && !bytes.HasSuffix(b, []byte("whole")) {
				err = errors.New("it is not whole")
			}
			return err
		},
	}
	must(t, openSnapshots(d.s, false))
	return d
}

func (d *snapshotDir) create(index uint64) raft.SnapshotSink {
	d.t.Helper()
	sink, err := d.s.Create(1, index, 2, raft.Configuration{Servers: []raft.Server{{ID: "kms-1", Address: "a:1"}}}, 7, nil)
	must(d.t, err)
	return sink
}

func (d *snapshotDir) write(index uint64) string {
	d.t.Helper()
	sink := d.create(index)
	must(d.t, second(fmt.Fprintf(sink, "state %d, whole", index)))
	must(d.t, errors.Join(sink.Close(), sink.Close(), sink.Cancel())) // Raft and the state machine both close it
	return sink.ID()
}

func second[T any](_ T, err error) error { return err }

// holds checks that the store has these snapshots, the newest first.
func (d *snapshotDir) holds(indexes ...uint64) {
	d.t.Helper()
	all, err := d.s.List()
	must(d.t, err)
	if len(all) != len(indexes) || len(d.fatal) > 0 {
		d.t.Fatalf("%d snapshots, want %d; fatal %v", len(all), len(indexes), d.fatal)
	}
	for i, want := range indexes {
		meta, r, err := d.s.Open(all[i].ID)
		must(d.t, err)
		b, err := io.ReadAll(r)
		must(d.t, errors.Join(err, r.Close()))
		if string(b) != fmt.Sprintf("state %d, whole", want) || meta.Index != want || meta.Term != 2 || meta.Version != 1 || meta.Size != int64(len(b)) ||
			meta.ConfigurationIndex != 7 || len(meta.Configuration.Servers) != 1 || meta.Configuration.Servers[0].Address != "a:1" {
			d.t.Fatalf("snapshot %q: %+v", b, meta)
		}
	}
}

func TestSnapshots(t *testing.T) {
	d := newSnapshotDir(t)
	d.holds()
	d.write(5)
	d.write(9)
	d.holds(9, 5)
	d.write(100)
	d.holds(100, 9)
	must(t, d.create(101).Cancel())
	sink := d.create(102) // and the crash comes here
	must(t, second(sink.Write([]byte("half"))))
	must(t, openSnapshots(d.s, false))
	d.holds(100, 9)
	left, err := os.ReadDir(d.s.dir)
	must(t, err)
	if len(left) != 2 {
		t.Errorf("%d directories are left: %v", len(left), left)
	}
}

// TestSnapshotReadBack: what cannot be restored does not count, and ends the process
// before the log is compacted.
func TestSnapshotReadBack(t *testing.T) {
	for what, f := range map[string]func(sink *snapshotSink) error{
		"a state that cannot be restored": func(sink *snapshotSink) error { return second(sink.Write([]byte("half"))) },
		"another state on the disk": func(sink *snapshotSink) error {
			if err := errors.Join(second(sink.Write([]byte("state 6, whole"))), sink.buffer.Flush()); err != nil {
				return err
			}
			return second(sink.file.WriteAt([]byte("S"), 0))
		},
		"nothing on the disk": func(sink *snapshotSink) error { return os.Remove(sink.file.Name()) },
	} {
		d := newSnapshotDir(t)
		d.write(5)
		sink := d.create(6)
		must(t, f(sink.(*snapshotSink)))
		if err := sink.Close(); !errors.Is(err, ErrStorage) || len(d.fatal) != 1 || !strings.Contains(err.Error(), refusedSuffix) {
			t.Errorf("%s: %v, fatal %v", what, err, d.fatal)
		}
		if kept, err := filepath.Glob(filepath.Join(d.s.dir, "*"+refusedSuffix)); err != nil || len(kept) != 1 {
			t.Errorf("%s: kept %v, %v", what, kept, err)
		}
		d.fatal = nil
		d.holds(5)
		must(t, openSnapshots(d.s, false))
		d.holds(5)
	}
}

// TestAlteredSnapshots edits the files of snapshots, newest and older.
func TestAlteredSnapshots(t *testing.T) {
	for _, index := range []uint64{5, 9} {
		for what, x := range map[string]struct {
			f    func(dir string) error
			text string
		}{
			"state": {func(dir string) error {
				return os.WriteFile(filepath.Join(dir, stateFile), []byte("state 7, whole"), 0o600)
			}, "checksum"},
			"a longer state": {func(dir string) error {
				return os.WriteFile(filepath.Join(dir, stateFile), []byte("state 5, whole, whole"), 0o600)
			}, "checksum"},
			"no state":     {func(dir string) error { return os.Remove(filepath.Join(dir, stateFile)) }, stateFile},
			"no meta":      {func(dir string) error { return os.Remove(filepath.Join(dir, metaFile)) }, metaFile},
			"meta is none": {func(dir string) error { return os.WriteFile(filepath.Join(dir, metaFile), []byte("x"), 0o600) }, "damaged"},
			"too much meta": {func(dir string) error {
				return os.WriteFile(filepath.Join(dir, metaFile), make([]byte, maxMeta+1), 0o600)
			}, "more than"},
			"renamed": {func(dir string) error { return os.Rename(dir, dir+"0") }, "its name is"},
		} {
			d := newSnapshotDir(t)
			ids := map[uint64]string{5: d.write(5), 9: d.write(9)}
			must(t, x.f(filepath.Join(d.s.dir, ids[index])))
			err := openSnapshots(d.s, false)
			if !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), x.text) {
				t.Errorf("%s of %d: %v", what, index, err)
			}
			// And under a running node.
			_, listed := d.s.List()
			_, _, opened := d.s.Open(ids[index])
			if what == "renamed" {
				opened = ErrAltered
			}
			if listed = errors.Join(listed, opened); !errors.Is(listed, ErrAltered) || len(d.fatal) == 0 {
				t.Errorf("%s of %d, open: %v, fatal %v", what, index, listed, d.fatal)
			}
		}
	}
}

// TestAlteredMeta changes each byte of meta.json: it is refused, or it says the same.
func TestAlteredMeta(t *testing.T) {
	d := newSnapshotDir(t)
	path := filepath.Join(d.s.dir, d.write(5), metaFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 7)
		must(t, os.WriteFile(path, b, 0o600))
		if err := openSnapshots(d.s, false); err == nil {
			d.holds(5)
		} else if !errors.Is(err, ErrAltered) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	must(t, os.WriteFile(path, whole, 0o600))
	d.s.key = testSealKey("kms-2.s01")
	if err := openSnapshots(d.s, false); !errors.Is(err, ErrAltered) {
		t.Errorf("another node's: %v", err)
	}
}

// TestSnapshotAdoption takes the snapshots of a release that did not seal, made by
// Raft's own store: once.
func TestSnapshotAdoption(t *testing.T) {
	d := newSnapshotDir(t)
	old, err := raft.NewFileSnapshotStoreWithLogger(filepath.Dir(d.s.dir), 2, raftLogger(slog.New(slog.DiscardHandler), SystemClock{}))
	must(t, err)
	write := func(index uint64, text string) string {
		sink, err := old.Create(1, index, 2, raft.Configuration{Servers: []raft.Server{{ID: "kms-1", Address: "a:1"}}}, 7, &raft.InmemTransport{})
		must(t, err)
		must(t, errors.Join(second(io.WriteString(sink, text)), sink.Close()))
		return sink.ID()
	}
	write(5, "state 5, whole")
	write(9, "state 9, whole")
	if err := openSnapshots(d.s, false); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "it has no seal") {
		t.Fatalf("without a seal: %v", err)
	}
	for range 2 {
		must(t, openSnapshots(d.s, true))
		d.holds(9, 5)
	}
	must(t, openSnapshots(d.s, false))
	d.holds(9, 5)
	write(11, "half")
	if err := openSnapshots(d.s, true); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "not whole") {
		t.Fatalf("one that cannot be restored: %v", err)
	}
}

// FuzzSnapshotMeta: whatever meta.json says, it is refused unless this node wrote it.
func FuzzSnapshotMeta(f *testing.F) {
	b, err := json.Marshal(snapshotMeta{SnapshotMeta: raft.SnapshotMeta{Version: 1, ID: "2-5-1", Index: 5, Term: 2}, SHA256: make([]byte, 32), Seal: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	s := &snapshots{dir: f.TempDir(), key: testSealKey("kms-1.s01")}
	f.Fuzz(func(t *testing.T, b []byte) {
		must(t, os.MkdirAll(filepath.Join(s.dir, "2-5-1"), 0o700))
		must(t, os.WriteFile(filepath.Join(s.dir, "2-5-1", metaFile), b, 0o600))
		if _, err := s.meta("2-5-1"); err == nil {
			t.Fatalf("%q is taken", b)
		}
	})
}

// FuzzMark: what reads as a mark writes as the same bytes.
func FuzzMark(f *testing.F) {
	k := testSealKey("kms-1.s01")
	f.Add(mark{index: 7, term: 3, vote: 2, seal: seal{1}}.encode(k))
	f.Add([]byte(markMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMark(b, k); err == nil && !bytes.Equal(m.encode(k), b) {
			t.Fatalf("%+v", m)
		}
	})
}
