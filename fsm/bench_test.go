package fsm

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

const benchKeys = 100_000

// benchKey is a key as they are in clusters: short texts, two tags, a token of 154 bytes.
func benchKey(n uint64) *CreateKey {
	c := createKey(0)
	c.ID = ID(sha256Of([]byte{byte(n), byte(n >> 8), byte(n >> 16)})[:16])
	c.Description = "volume of the database"
	c.Tags = []Tag{{"app", "database"}, {"zone", "b"}}
	c.Token = bytes.Repeat([]byte{0xab}, 154)
	return c
}

// crowded is a world with benchKeys keys.
func crowded(b *testing.B) *world {
	b.Helper()
	w := initialized(b)
	w.edit(func(t *tx) {
		for n := range uint64(benchKeys) {
			if _, err := benchKey(n).apply(t); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportAllocs()
	return w
}

// benchApply applies an entry a round, and begins anew when the entries are used
// up; command makes the n-th.
func benchApply(b *testing.B, command func(n uint64) Command) {
	w := crowded(b)
	var entries [][]byte
	for n := range uint64(4096) {
		entries = append(entries, seal(b, w.request(keyID(n).String(), "words"), command(n)))
	}
	var s *State
	for i := 0; b.Loop(); i++ {
		if i%len(entries) == 0 {
			s = w.s
		}
		next, _, err := s.Apply(s.Index()+1, 1, entries[i%len(entries)])
		if err != nil {
			b.Fatal(err)
		}
		s = next
	}
}

func BenchmarkApplyCreateKey(b *testing.B) {
	benchApply(b, func(n uint64) Command { return benchKey(benchKeys + n) })
}

func BenchmarkApplyDisableKey(b *testing.B) {
	benchApply(b, func(n uint64) Command {
		return &DisableKey{KeyRef{ID: benchKey(n % benchKeys).ID, Tenant: DefaultTenant}}
	})
}

func BenchmarkEncodeEntry(b *testing.B) {
	w := initialized(b)
	e := w.request("r", "words")
	for b.Loop() {
		if _, err := EncodeEntry(e, benchKey(1), logKey()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyEntry(b *testing.B) {
	w := initialized(b)
	raw := seal(b, w.request("r", "words"), benchKey(1))
	for b.Loop() {
		if err := logKey().VerifyEntry(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKey(b *testing.B) {
	w := crowded(b)
	var ids []ID
	for n := range uint64(1024) {
		ids = append(ids, benchKey(n*97).ID)
	}
	i := 0
	for b.Loop() {
		if _, ok := w.s.Key(ids[i%len(ids)]); !ok {
			b.Fatal("key is not there")
		}
		i++
	}
}

func BenchmarkWriteSnapshot(b *testing.B) {
	w := crowded(b)
	b.SetBytes(int64(len(snapshotOf(b, w.s))))
	for b.Loop() {
		if err := w.s.WriteSnapshot(io.Discard, logKey()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSnapshot(b *testing.B) {
	benchSnapshot(b, func(snapshot []byte) error {
		_, err := ReadSnapshot(bytes.NewReader(snapshot), logKey())
		return err
	})
}

// BenchmarkVerifySnapshot is what it costs to read a snapshot back before it counts.
func BenchmarkVerifySnapshot(b *testing.B) {
	benchSnapshot(b, func(snapshot []byte) error { return VerifySnapshot(bytes.NewReader(snapshot), logKey()) })
}

func benchSnapshot(b *testing.B, read func([]byte) error) {
	snapshot := snapshotOf(b, crowded(b).s)
	b.SetBytes(int64(len(snapshot)))
	for b.Loop() {
		if err := read(snapshot); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	w := crowded(b)
	for b.Loop() {
		if err := w.s.Check(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory reports what a key costs: with its record, and in the indexes alone.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		w := crowded(b)
		all := heap() - before
		keys := w.s.keys.all()
		before = heap()
		s := NewState()
		for _, item := range keys {
			s.keys.tree.Set(item)
			s.keysByTenant.tree.Set(item.key)
		}
		index := heap() - before
		b.ReportMetric(float64(all)/benchKeys, "B/key")
		b.ReportMetric(float64(index)/benchKeys, "index-B/key")
		runtime.KeepAlive(w)
		runtime.KeepAlive(s)
	}
}

// heap is the size of what lives on the heap, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
