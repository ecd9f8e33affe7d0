package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// boltBytes is a small database with branches, leaves, a long value and buckets of
// both kinds, in pages of 1 KiB.
func boltBytes(t testing.TB, records int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: boltMinPage, NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		logs, err := tx.CreateBucket([]byte("logs"))
		if err != nil {
			return err
		}
		conf, err := tx.CreateBucket([]byte("conf"))
		if err != nil {
			return err
		}
		for i := range records {
			if err := logs.Put(boltKey(uint64(i)), bytes.Repeat([]byte{byte(i)}, 40+i)); err != nil {
				return err
			}
		}
		return errors.Join(conf.Put([]byte("a"), []byte("b")), logs.Put([]byte("long"), make([]byte, 5000)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b[:(bytes.LastIndexFunc(b, func(r rune) bool { return r != 0 })/boltMinPage+1)*boltMinPage]
}

// useBolt reads all of a database with bbolt and writes to it.
func useBolt(path string) error {
	return new(boltStore).do(func() error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true, Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
		if err != nil {
			return nil //nolint:nilerr // refusing is fine
		}
		defer func() { _ = db.Close() }()
		err = db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				if b == nil {
					return nil
				}
				return b.ForEach(func(_, _ []byte) error { return nil })
			})
		})
		if err != nil {
			return err
		}
		return db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("more"))
			if err != nil {
				return err
			}
			return b.Put([]byte("k"), []byte("v"))
		})
	})
}

// FuzzCheckBolt: what the walk lets pass, bbolt reads and writes without a panic.
func FuzzCheckBolt(f *testing.F) {
	for _, records := range []int{0, 3, 60} {
		f.Add(boltBytes(f, records))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkBolt(bytes.NewReader(b), uint64(len(b))) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "db")
		must(t, os.WriteFile(path, b, 0o600))
		if err := useBolt(path); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDamagedBolt damages a database at places drawn at random: the walk refuses it,
// or bbolt takes no harm from it.
func TestDamagedBolt(t *testing.T) {
	whole := boltBytes(t, 60)
	must(t, checkBolt(bytes.NewReader(whole), uint64(len(whole))))
	random := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "db")
	passed, refused := 0, 0
	for range 3000 {
		b := bytes.Clone(whole)
		at := random.IntN(len(b))
		if random.IntN(2) == 0 { // at the beginning of a page, where its structure is
			at = at/boltMinPage*boltMinPage + random.IntN(128)
		}
		switch random.IntN(3) {
		case 0:
			b[at] ^= 1 << random.IntN(8)
		case 1:
			b[at] = byte(random.Uint32())
		default:
			clear(b[at:min(at+1+random.IntN(64), len(b))])
		}
		if checkBolt(bytes.NewReader(b), uint64(len(b))) != nil {
			refused++
			continue
		}
		passed++
		must(t, os.WriteFile(path, b, 0o600))
		must(t, useBolt(path))
	}
	if passed < 100 || refused < 100 {
		t.Errorf("%d passed, %d were refused", passed, refused)
	}
}

// TestCutBolt cuts a database off everywhere.
func TestCutBolt(t *testing.T) {
	whole := boltBytes(t, 60)
	for n := 1; n < len(whole); n += boltMinPage / 2 {
		if checkBolt(bytes.NewReader(whole[:n]), uint64(n)) == nil {
			t.Errorf("cut to %d of %d bytes it passes", n, len(whole))
		}
	}
}

// TestDamagedLogFile damages the real file of a log byte by byte, in its records and
// around them: it does not open, or it is what this node wrote.
func TestDamagedLogFile(t *testing.T) {
	d := newLogDir(t)
	s := d.open()
	must(t, s.SetUint64([]byte(keyTerm), 3))
	for i := uint64(1); i <= 400; i += 20 {
		must(t, s.StoreLogs(entries(i, i+19, 3)))
	}
	must(t, s.Close())
	whole, err := os.ReadFile(d.file())
	must(t, err)
	mark, err := os.ReadFile(d.markFile())
	must(t, err)
	random, page := rand.New(rand.NewPCG(3, 4)), os.Getpagesize()
	refused := 0
	for i := range 200 {
		b := bytes.Clone(whole)
		at := random.IntN(len(b))
		if i%2 == 0 {
			at = at/page*page + random.IntN(256)
		}
		b[at] ^= 1 << random.IntN(8)
		must(t, os.WriteFile(d.file(), b, 0o600))
		must(t, os.WriteFile(d.markFile(), mark, 0o600))
		s, err := d.tryOpen()
		if err == nil {
			d.holds(s, 1, 400)
			must(t, s.Close())
			continue
		}
		refused++
		if !errors.Is(err, ErrAltered) {
			t.Error(fmt.Sprintf("byte %d: ", at), err)
		}
	}
	if refused < 20 {
		t.Errorf("%d of 200 were refused", refused)
	}
}

// TestDamagedUnderneath damages the file of a log that is open: no panic, no fault.
func TestDamagedUnderneath(t *testing.T) {
	for what, damage := range map[string]func(f *os.File) error{
		"cut off": func(f *os.File) error { return f.Truncate(int64(os.Getpagesize())) },
		"overwritten": func(f *os.File) error {
			info, err := f.Stat()
			if err != nil {
				return err
			}
			_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(info.Size())), 0)
			return err
		},
	} {
		d := written(t)
		s := d.open()
		f, err := os.OpenFile(d.file(), os.O_RDWR, 0)
		must(t, err)
		must(t, errors.Join(damage(f), f.Close()))
		d.fatal = nil
		for i := range uint64(9) {
			if err := s.GetLog(i+1, new(raft.Log)); !errors.Is(err, ErrAltered) {
				t.Errorf("%s: entry %d: %v", what, i+1, err)
			}
		}
		if _, err := s.GetUint64([]byte(keyTerm)); !errors.Is(err, ErrAltered) {
			t.Errorf("%s: term: %v", what, err)
		}
		if len(d.fatal) != 10 {
			t.Errorf("%s: %d fatal errors", what, len(d.fatal))
		}
		if err := s.StoreLog(entry(10, 3)); !errors.Is(err, ErrStorage) {
			t.Errorf("%s: writing: %v", what, err)
		}
		if err := s.Close(); err == nil {
			t.Errorf("%s: it closes as if nothing were", what)
		}
	}
}
