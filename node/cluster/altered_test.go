package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// TestAlteredLog edits the real file of a closed log in every way there is.
func TestAlteredLog(t *testing.T) {
	logs := func(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket([]byte("logs")) }
	get := func(tx *bbolt.Tx, i uint64) []byte { return bytes.Clone(logs(tx).Get(boltKey(i))) }
	for _, x := range []struct {
		what string
		f    func(t *testing.T, tx *bbolt.Tx)
		text string
	}{
		{"two entries exchanged", func(t *testing.T, tx *bbolt.Tx) {
			a, b := get(tx, 4), get(tx, 5)
			must(t, errors.Join(logs(tx).Put(boltKey(4), b), logs(tx).Put(boltKey(5), a)))
		}, "log entry 4 is in the place of entry 5"},
		{"an old entry copied to a later place", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(8), get(tx, 2))) }, "log entry 2 is in the place of entry 8"},
		{"an old entry copied behind the end", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(10), get(tx, 2))) }, "log entry 2 is in the place of entry 10"},
		{"an entry taken out", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Delete(boltKey(5))) }, "log entry 5 is missing"},
		{"the first entry cut off", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Delete(boltKey(1))) }, "begins at entry 2, but the newest snapshot is of entry 0"},
		{"the last entry cut off", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Delete(boltKey(9))) }, "the log ends at entry 8, but this node has written up to entry 9"},
		{"all entries gone", func(t *testing.T, tx *bbolt.Tx) {
			for i := range uint64(9) {
				must(t, logs(tx).Delete(boltKey(i+1)))
			}
		}, "the log is empty"},
		{"an entry far behind the end", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(1<<60), get(tx, 2))) }, "in the place of entry 1152921504606846976"},
		{"an entry at 0", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(0), get(tx, 2))) }, "it begins at 0"},
		{"an entry under a name that is no index", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put([]byte("x"), get(tx, 2))) }, "cannot be read"},
		{"an entry that is none", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(3), []byte("\xc1"))) }, "log entry 3 cannot be read"},
		{"an empty entry", func(t *testing.T, tx *bbolt.Tx) { must(t, logs(tx).Put(boltKey(3), nil)) }, "log entry 3 cannot be read"},
		{"a log without its bucket", func(t *testing.T, tx *bbolt.Tx) { must(t, tx.DeleteBucket([]byte("logs"))) }, "the log is empty"},
		{"no vote", func(t *testing.T, tx *bbolt.Tx) { must(t, tx.Bucket([]byte("conf")).Delete([]byte(keyVote))) }, "raft's quorumkms/vote is of term 0, but this node was in term 3"},
		{"no term", func(t *testing.T, tx *bbolt.Tx) { must(t, tx.Bucket([]byte("conf")).Delete([]byte(keyTerm))) }, "raft's CurrentTerm is of term 0, but this node was in term 3"},
		{"a short vote", func(t *testing.T, tx *bbolt.Tx) {
			must(t, tx.Bucket([]byte("conf")).Put([]byte(keyVote), make([]byte, 39)))
		}, "the seal of raft's quorumkms/vote does not verify"},
		{"the vote as the term", func(t *testing.T, tx *bbolt.Tx) {
			conf := tx.Bucket([]byte("conf"))
			must(t, conf.Put([]byte(keyTerm), bytes.Clone(conf.Get([]byte(keyVote)))))
		}, "the seal of raft's CurrentTerm does not verify"},
	} {
		d := written(t)
		d.edit(func(tx *bbolt.Tx) { x.f(t, tx) })
		d.refuses(x.what, x.text)
	}
}

// TestAlteredByte changes each byte of a record, and of the values beside the log: it
// is refused, or it reads as it was written.
func TestAlteredByte(t *testing.T) {
	for _, x := range []struct{ bucket, key string }{
		{"logs", string(boltKey(5))}, {"logs", string(boltKey(9))}, {"conf", keyTerm}, {"conf", keyVote},
	} {
		d := written(t)
		var whole []byte
		d.edit(func(tx *bbolt.Tx) { whole = bytes.Clone(tx.Bucket([]byte(x.bucket)).Get([]byte(x.key))) })
		put := func(b []byte) {
			d.edit(func(tx *bbolt.Tx) { must(t, tx.Bucket([]byte(x.bucket)).Put([]byte(x.key), b)) })
		}
		harmless := 0
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			put(b)
			if s, err := d.tryOpen(); err == nil { // the encoding has bytes that mean nothing, such as the zone of a time
				d.holds(s, 1, 9)
				must(t, s.Close())
				harmless++
			} else if !errors.Is(err, ErrAltered) {
				t.Errorf("%s %x: byte %d: %v", x.bucket, x.key, i, err)
			}
		}
		if harmless > 10 {
			t.Errorf("%s %x: %d of %d bytes may be changed", x.bucket, x.key, harmless, len(whole))
		}
		put(whole)
		s := d.open()
		d.holds(s, 1, 9)
		must(t, s.Close())
	}
}

// TestAlteredWhileOpen changes records under a running node: they are noticed when
// they are read.
func TestAlteredWhileOpen(t *testing.T) {
	d := written(t)
	s := d.open()
	var link seal
	link[0] = 1
	again, _ := d.key.sealRecord(entry(3, 2), link) // its seal is genuine: an entry of an earlier term
	must(t, s.storage.Log.StoreLogs([]*raft.Log{&again, {Index: 4, Term: 3}}))
	must(t, s.storage.Log.DeleteRange(9, 9))
	for index, text := range map[uint64]string{3: "replaced by one", 4: "has no seal", 9: "is missing"} {
		d.fatal = nil
		l := raft.Log{Index: 77}
		err := s.GetLog(index, &l)
		if !errors.Is(err, ErrAltered) || len(d.fatal) != 1 || !strings.Contains(err.Error(), text) || l.Index != 77 {
			t.Errorf("entry %d: %v, fatal %v, log %+v", index, err, d.fatal, l)
		}
	}
	must(t, s.storage.Log.Set([]byte(keyTerm), make([]byte, 40)))
	d.fatal = nil
	if _, err := s.GetUint64([]byte(keyTerm)); !errors.Is(err, ErrAltered) || len(d.fatal) != 1 {
		t.Errorf("term: %v, fatal %v", err, d.fatal)
	}
	must(t, s.Close())
}

// TestRolledBackFiles puts older copies of the files back.
func TestRolledBackFiles(t *testing.T) {
	d := written(t)
	old := t.TempDir()
	d.copyTo(old)
	s := d.open()
	must(t, s.StoreLogs(entries(10, 12, 3)))
	must(t, s.Close())
	newer := t.TempDir()
	d.copyTo(newer)

	d.restore(old, raftFile)
	d.refuses("an older log", "the log ends at entry 9, but this node has written up to entry 12")

	d.restore(newer, raftFile)
	must(t, os.Remove(d.markFile()))
	d.refuses("no mark", "the mark of the log is missing")

	d.restore(newer, markFileName)
	b, err := os.ReadFile(d.markFile())
	must(t, err)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		must(t, os.WriteFile(d.markFile(), bad, 0o600))
		d.refuses(fmt.Sprint("mark: byte ", i), "the mark of the log: it")
	}
	must(t, os.WriteFile(d.markFile(), b[:len(b)-1], 0o600))
	d.refuses("a short mark", "it is damaged")

	// An uncommitted end of an earlier term, put back in place of what follows it.
	d.restore(newer, markFileName)
	s = d.open()
	must(t, s.DeleteRange(11, 12))
	must(t, s.SetUint64([]byte(keyTerm), 4))
	must(t, s.StoreLogs(entries(11, 12, 4)))
	must(t, s.Close())
	d.restore(newer, raftFile)
	d.refuses("a log with another end", "log entry 12 is not the one that this node wrote last at that place")

	d.restore(old, raftFile)
	d.restore(old, markFileName)
	s = d.open() // everything put back: nothing on this disk tells; the cluster can
	d.holds(s, 1, 9)
	must(t, s.Close())
}

// TestOlderVote puts an older vote back, and nothing else.
func TestOlderVote(t *testing.T) {
	d := written(t)
	var old []byte
	d.edit(func(tx *bbolt.Tx) { old = bytes.Clone(tx.Bucket([]byte("conf")).Get([]byte(keyVote))) })
	s := d.open()
	must(t, errors.Join(s.SetUint64([]byte(keyVoteTerm), 8), s.Set([]byte(keyVoteFor), []byte("10.0.0.2:7"))))
	must(t, s.Close())
	d.edit(func(tx *bbolt.Tx) { must(t, tx.Bucket([]byte("conf")).Put([]byte(keyVote), old)) })
	d.refuses("an older vote", "is of term 3, but this node was in term 8")
}

// TestForeignLog opens what another node, or this one in an earlier directory, wrote.
func TestForeignLog(t *testing.T) {
	d := written(t)
	d.key = testSealKey("kms-1.s02")
	d.refuses("a log and a mark of another directory", "the mark of the log: its seal does not verify")
	must(t, os.WriteFile(d.markFile(), mark{}.encode(d.key), 0o600))
	d.refuses("a log of another directory", "the seal of log entry 9 does not verify")
}

// TestPowerLoss loses what was not synced: a mark that is behind the log is none the
// worse.
func TestPowerLoss(t *testing.T) {
	d := written(t)
	old := t.TempDir()
	d.copyTo(old)
	s := d.open()
	must(t, s.StoreLogs(entries(10, 12, 3)))
	must(t, s.SetUint64([]byte(keyTerm), 9))
	must(t, s.Close())
	d.restore(old, markFileName)
	s = d.open()
	d.holds(s, 1, 12)
	must(t, s.DeleteRange(4, 12)) // what the disk has must be low enough before the records go
	b, err := os.ReadFile(d.markFile())
	must(t, err)
	if m, err := decodeMark(b, d.key); err != nil || m.index != 3 {
		t.Errorf("the mark is at %d, %v", m.index, err)
	}
	must(t, s.Close())
}

// TestAdoption opens a log of a release that did not seal: once.
func TestAdoption(t *testing.T) {
	d := newLogDir(t)
	db, err := openBolt(d.file())
	must(t, err)
	must(t, db.StoreLogs(append(entries(1, 4, 2), entries(11, 3000, 3)...)))
	must(t, errors.Join(db.SetUint64([]byte(keyTerm), 3), db.Set([]byte(keyVote), append(boltKey(3), "10.0.0.1:7"...))))
	must(t, db.Close())
	old := t.TempDir()
	d.copyTo(old)

	d.member = true
	d.refuses("a directory that was sealed from birth, with its seals stripped", "the mark of the log is missing")
	d.legacy = true
	d.refuses("a log without its beginning", "the log begins at entry 11, but the newest snapshot is of entry 0")
	d.covered = 10
	s := d.open()
	d.holds(s, 11, 3000)
	if term, err := s.GetUint64([]byte(keyTerm)); err != nil || term != 3 {
		t.Errorf("term %d, %v", term, err)
	}
	if candidate, err := s.Get([]byte(keyVoteFor)); err != nil || string(candidate) != "10.0.0.1:7" {
		t.Errorf("vote for %q, %v", candidate, err)
	}
	must(t, s.StoreLog(entry(3001, 3)))
	must(t, s.Close())
	s = d.open()
	d.holds(s, 11, 3001)
	must(t, s.Close())

	// Cut off before the mark was written, it is done again and gives the same log.
	must(t, os.Remove(d.markFile()))
	s = d.open()
	d.holds(s, 11, 3001)
	must(t, s.Close())

	d.restore(old, raftFile)
	d.refuses("the unsealed log again", "log entry 3000 has no seal")
}

// TestRaftOutOfOrder: what Raft never does is refused, not repaired.
func TestRaftOutOfOrder(t *testing.T) {
	for what, f := range map[string]func(s *sealedStore) error{
		"overwrites":        func(s *sealedStore) error { return s.StoreLog(entry(9, 4)) },
		"a gap in a batch":  func(s *sealedStore) error { return s.StoreLogs([]*raft.Log{entry(10, 3), entry(12, 3)}) },
		"deletes the inner": func(s *sealedStore) error { return s.DeleteRange(3, 5) },
	} {
		d := written(t)
		s := d.open()
		if err := f(s); !errors.Is(err, ErrStorage) || len(d.fatal) != 1 {
			t.Errorf("%s: %v, fatal %v", what, err, d.fatal)
		}
		d.fatal = nil
		d.holds(s, 1, 9)
		must(t, s.Close())
	}
}

// TestReplayedEntry puts genuine records of this node back where newer ones took their
// place, also with the seals before and after them made to fit.
func TestReplayedEntry(t *testing.T) {
	d := written(t)
	old := map[uint64]raft.Log{}
	replaced := func() {
		s := d.open()
		for i := uint64(6); i <= 9; i++ {
			var l raft.Log
			must(t, s.storage.Log.GetLog(i, &l))
			old[i] = l
		}
		must(t, s.DeleteRange(6, 9))
		must(t, s.SetUint64([]byte(keyTerm), 4))
		must(t, s.StoreLogs(entries(6, 9, 4)))
		must(t, s.Close())
	}
	replaced()
	link := func(l *raft.Log) []byte { return l.Extensions[len(l.Extensions)-recordSeal:][:len(seal{})] }
	own := func(l *raft.Log) []byte { return l.Extensions[len(l.Extensions)-len(seal{}):] }
	kept := t.TempDir()
	d.copyTo(kept)
	for _, x := range []struct {
		what string
		f    func(db *boltStore)
		text string
	}{
		{"one record", func(db *boltStore) {
			l := old[8]
			must(t, db.StoreLog(&l))
		}, "log entry 8 is not the one that entry 9 was written after"},
		{"the first that was replaced, which follows the right one", func(db *boltStore) {
			l := old[6]
			must(t, db.StoreLog(&l))
		}, "log entry 6 is not the one that entry 7 was written after"},
		{"the last", func(db *boltStore) {
			l := old[9]
			must(t, db.StoreLog(&l))
		}, "log entry 8 is not the one that entry 9 was written after"},
		{"all of them", func(db *boltStore) {
			for i := uint64(6); i <= 9; i++ {
				l := old[i]
				must(t, db.StoreLog(&l))
			}
		}, "log entry 9 is not the one that this node wrote last at that place"},
		{"one record, with what it was written after made to fit", func(db *boltStore) {
			var before, after raft.Log
			must(t, errors.Join(db.GetLog(7, &before), db.GetLog(9, &after)))
			l := old[8]
			l.Extensions = bytes.Clone(l.Extensions)
			copy(link(&l), own(&before))
			copy(link(&after), own(&l))
			must(t, db.StoreLogs([]*raft.Log{&l, &after}))
		}, "the seal of log entry 9 does not verify"},
		{"one record, with what it was written after made to fit, the next one left", func(db *boltStore) {
			var before raft.Log
			must(t, db.GetLog(8, &before))
			l := old[9]
			l.Extensions = bytes.Clone(l.Extensions)
			copy(link(&l), own(&before))
			must(t, db.StoreLog(&l))
		}, "the seal of log entry 9 does not verify"},
	} {
		db, err := openBolt(d.file())
		must(t, err)
		x.f(db)
		must(t, db.Close())
		d.refuses(x.what, x.text)
		d.restore(kept, raftFile)
	}
	s := d.open()
	d.holds(s, 1, 9)
	must(t, s.Close())
}

// TestAlteredField changes each field of a record, as whoever knows the encoding would.
func TestAlteredField(t *testing.T) {
	for what, change := range map[string]func(l *raft.Log){
		"index":      func(l *raft.Log) { l.Index = 10 },
		"term":       func(l *raft.Log) { l.Term++ },
		"kind":       func(l *raft.Log) { l.Type = raft.LogConfiguration },
		"data":       func(l *raft.Log) { l.Data = append(l.Data, 0) },
		"no data":    func(l *raft.Log) { l.Data = nil },
		"when":       func(l *raft.Log) { l.AppendedAt = l.AppendedAt.Add(1) },
		"extensions": func(l *raft.Log) { l.Extensions = append([]byte{1}, l.Extensions...) },
		"data moved over": func(l *raft.Log) {
			n := len(l.Data) - 1
			l.Data, l.Extensions = l.Data[:n], append([]byte{l.Data[n]}, l.Extensions...)
		},
	} {
		d := written(t)
		db, err := openBolt(d.file())
		must(t, err)
		var l raft.Log
		must(t, db.GetLog(9, &l))
		change(&l)
		must(t, errors.Join(db.StoreLog(&l), db.Close()))
		d.refuses(what, "the seal of log entry")
	}
}

// TestEmptiedDirectory: a member's directory from which everything is gone is not that
// of a new node.
func TestEmptiedDirectory(t *testing.T) {
	d := written(t)
	must(t, errors.Join(os.Remove(d.file()), os.Remove(d.markFile())))
	d.refuses("log and mark gone", "the mark of the log is missing")
}
