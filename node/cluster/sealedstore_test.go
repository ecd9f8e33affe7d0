package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/quorumkms/quorumkms/fsm"
)

// logDir is a directory with a sealed log in a real file.
type logDir struct {
	t       testing.TB
	dir     string
	key     sealKey
	legacy  bool
	member  bool
	covered uint64 // index of the newest snapshot
	fatal   []error
}

func newLogDir(t testing.TB) *logDir {
	t.Helper()
	return &logDir{t: t, dir: t.TempDir(), key: testSealKey("kms-1.s01")}
}

func testSealKey(raftID string) sealKey {
	return newSealKey(fsm.LogKey(bytes.Repeat([]byte{7}, 32)), uuid.MustParse("11111111-2222-4333-8444-555555555555"), raftID)
}

func (d *logDir) file() string     { return filepath.Join(d.dir, raftFile) }
func (d *logDir) markFile() string { return filepath.Join(d.dir, markFileName) }

// covering is a snapshot store whose newest snapshot is of d.covered.
type covering struct{ *logDir }

func (c covering) List() ([]*raft.SnapshotMeta, error) {
	if c.covered == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{{Index: c.covered}}, nil
}

func (covering) Create(raft.SnapshotVersion, uint64, uint64, raft.Configuration, uint64, raft.Transport) (raft.SnapshotSink, error) {
	return nil, errors.ErrUnsupported
}

func (covering) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	return nil, nil, errors.ErrUnsupported
}

func (d *logDir) tryOpen() (*sealedStore, error) {
	db, err := openBolt(d.file())
	if err != nil {
		return nil, err
	}
	on := Storage{Log: db, Snapshots: covering{d}, Mark: &markFile{path: d.markFile()}}
	s, err := openSealed(on, sealing{key: d.key, legacy: d.legacy, member: d.member, fatal: func(err error) { d.fatal = append(d.fatal, err) }})
	if err != nil {
		return nil, errors.Join(err, on.Mark.Close(), db.Close())
	}
	return s, nil
}

func (d *logDir) open() *sealedStore {
	d.t.Helper()
	s, err := d.tryOpen()
	must(d.t, err)
	d.member = true
	return s
}

// refuses fails the test unless the log does not open, for that reason.
func (d *logDir) refuses(what, text string) {
	d.t.Helper()
	s, err := d.tryOpen()
	if err == nil {
		must(d.t, s.Close())
	}
	if !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "join anew") {
		d.t.Errorf("%s: %v\nwant %q", what, err, text)
	}
}

// edit changes the file behind the log's back.
func (d *logDir) edit(f func(*bbolt.Tx)) {
	d.t.Helper()
	db, err := bbolt.Open(d.file(), 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
	must(d.t, err)
	must(d.t, db.Update(func(tx *bbolt.Tx) error { f(tx); return nil }))
	must(d.t, db.Close())
}

// copyTo is a copy of the directory's files; restore puts one of them back.
func (d *logDir) copyTo(dir string) {
	d.t.Helper()
	must(d.t, os.CopyFS(dir, os.DirFS(d.dir)))
}

func (d *logDir) restore(from, name string) {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(from, name))
	must(d.t, err)
	must(d.t, os.WriteFile(filepath.Join(d.dir, name), b, 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogCommand, AppendedAt: time.Unix(1_700_000_000, int64(index)),
		Data: fmt.Appendf(nil, "entry %d of term %d", index, term),
	}
}

func entries(from, to, term uint64) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, entry(i, term))
	}
	return out
}

// holds checks that a log is from..to, as Raft sees it.
func (d *logDir) holds(s *sealedStore, from, to uint64) {
	d.t.Helper()
	first, err := s.FirstIndex()
	must(d.t, err)
	last, err := s.LastIndex()
	must(d.t, err)
	if first != from || last != to {
		d.t.Fatalf("the log is %d to %d, want %d to %d", first, last, from, to)
	}
	for i := from; i <= to && i > 0; i++ {
		var l raft.Log
		must(d.t, s.GetLog(i, &l))
		want := entry(i, l.Term)
		if l.Index != i || !bytes.Equal(l.Data, want.Data) || l.Extensions != nil || !l.AppendedAt.Equal(want.AppendedAt) {
			d.t.Fatalf("entry %d is %+v", i, l)
		}
	}
	for _, i := range []uint64{from - 1, to + 1} {
		if err := s.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			d.t.Fatalf("entry %d: %v", i, err)
		}
	}
	if len(d.fatal) > 0 {
		d.t.Fatalf("fatal: %v", d.fatal)
	}
}

func boltKey(index uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(index >> (56 - 8*i))
	}
	return b
}

// written makes a log of entries 1 to 9 of term 3 and closes it.
func written(t *testing.T) *logDir {
	t.Helper()
	d := newLogDir(t)
	s := d.open()
	must(t, s.SetUint64([]byte(keyTerm), 3))
	must(t, s.SetUint64([]byte(keyVoteTerm), 3))
	must(t, s.Set([]byte(keyVoteFor), []byte("10.0.0.1:7")))
	must(t, s.StoreLogs(entries(1, 4, 3)))
	must(t, s.StoreLogs(entries(5, 8, 3)))
	must(t, s.StoreLog(entry(9, 3)))
	must(t, s.Close())
	return d
}

// TestSealedLog does to a log what Raft does, and opens it again after each step.
func TestSealedLog(t *testing.T) {
	d := written(t)
	steps := []struct {
		what     string
		f        func(s *sealedStore) error
		covered  uint64
		from, to uint64
	}{
		{"nothing", func(*sealedStore) error { return nil }, 0, 1, 9},
		{"no entries", func(s *sealedStore) error { return s.StoreLogs(nil) }, 0, 1, 9},
		{"a conflict at the end", func(s *sealedStore) error { return s.DeleteRange(7, 9) }, 0, 1, 6},
		{"entries of the next term", func(s *sealedStore) error {
			return errors.Join(s.SetUint64([]byte(keyTerm), 4), s.StoreLogs(entries(7, 12, 4)))
		}, 0, 1, 12},
		{"compaction", func(s *sealedStore) error { return s.DeleteRange(1, 5) }, 8, 6, 12},
		{"compaction of all", func(s *sealedStore) error { return s.DeleteRange(6, 12) }, 12, 0, 0},
		{"entries after it", func(s *sealedStore) error { return s.StoreLogs(entries(13, 14, 4)) }, 12, 13, 14},
		{"a snapshot of far ahead, and entries after it", func(s *sealedStore) error {
			return s.StoreLogs(entries(31, 33, 4))
		}, 30, 31, 33},
		{"a conflict from the first", func(s *sealedStore) error { return s.DeleteRange(31, 33) }, 30, 0, 0},
		{"entries in their place", func(s *sealedStore) error {
			return errors.Join(s.SetUint64([]byte(keyTerm), 5), s.StoreLogs(entries(31, 32, 5)))
		}, 30, 31, 32},
	}
	for _, step := range steps {
		d.covered = step.covered
		s := d.open()
		must(t, step.f(s))
		d.holds(s, step.from, step.to)
		must(t, s.Close())
		s = d.open()
		d.holds(s, step.from, step.to)
		must(t, s.Close())
		if t.Failed() {
			t.Fatal(step.what)
		}
	}
}

// cutOff is a log on a disk that fails after a number of deletions.
type cutOff struct {
	LogStorage
	left int
	most uint64 // records deleted at a time
}

func (c *cutOff) DeleteRange(from, to uint64) error {
	if c.left--; c.left < 0 {
		return errors.New("cut off")
	}
	c.most = max(c.most, to-from+1)
	return c.LogStorage.DeleteRange(from, to)
}

// TestCompactionInPieces: a long log is compacted without holding writers up for long,
// and a crash in the middle leaves one that opens.
func TestCompactionInPieces(t *testing.T) {
	const length, keep = 3*deleteAtATime + 100, 50
	d := newLogDir(t)
	s := d.open()
	must(t, s.SetUint64([]byte(keyTerm), 3))
	must(t, s.StoreLogs(entries(1, length, 3)))
	d.covered = length
	disk := &cutOff{LogStorage: s.storage.Log, left: 2}
	s.storage.Log = disk
	if err := s.DeleteRange(1, length-keep); !errors.Is(err, ErrStorage) || len(d.fatal) != 1 {
		t.Fatalf("%v, fatal: %v", err, d.fatal)
	}
	d.fatal = nil
	must(t, s.Close())
	s = d.open()
	d.holds(s, 2*deleteAtATime+1, length)
	disk = &cutOff{LogStorage: s.storage.Log, left: 2}
	s.storage.Log = disk
	must(t, s.DeleteRange(2*deleteAtATime+1, length-keep))
	d.holds(s, length-keep+1, length)
	must(t, s.Close())
	s = d.open()
	d.holds(s, length-keep+1, length)
	must(t, s.Close())
	if disk.most > deleteAtATime {
		t.Errorf("%d records were deleted at a time", disk.most)
	}
}
