package fsm

import (
	"bytes"
	"fmt"
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

func BenchmarkApplyCreateGrant(b *testing.B) {
	benchApply(b, func(n uint64) Command {
		return edited(createGrant(n, 0), func(c *CreateGrant) {
			c.Key, c.Name, c.Expires = benchKey(n%64).ID, keyID(n).String(), start+period
			c.Constraints.Subset = []Tag{{ContextResource, "bucket/a"}, {ContextTenant, DefaultTenant}}
		})
	})
}

// BenchmarkApplyRecordUse is the largest entry of uses, each of another key.
func BenchmarkApplyRecordUse(b *testing.B) {
	w := crowded(b)
	c := &RecordUse{Uses: make([]Use, MaxUses)}
	for i := range c.Uses {
		c.Uses[i] = Use{benchKey(uint64(i)).ID, 1, start}
	}
	benchEntry(b, w, c)
}

// BenchmarkApplyRecordUseOfOne is the same number of uses of a key with all its versions.
func BenchmarkApplyRecordUseOfOne(b *testing.B) {
	w := crowded(b)
	id := benchKey(0).ID
	w.edit(func(t *tx) {
		old, _ := t.s.Key(id)
		k := *old
		for n := uint32(2); n <= MaxKeyVersions; n++ {
			k.Versions = append(k.Versions, KeyVersion{Version: n, Token: []byte{1}})
		}
		t.putKey(&k)
	})
	c := &RecordUse{Uses: make([]Use, MaxUses)}
	for i := range c.Uses {
		c.Uses[i] = Use{id, uint32(1 + i%MaxKeyVersions), start - int64(MaxUses-i)}
	}
	benchEntry(b, w, c)
}

// BenchmarkApplyDeleteKey is the deletion of a key with all the grants that it may have.
func BenchmarkApplyDeleteKey(b *testing.B) {
	w := crowded(b)
	id := benchKey(0).ID
	w.edit(func(t *tx) {
		old, _ := t.s.Key(id)
		k := *old
		k.State, k.Deletion = KeyPendingDeletion, start
		t.putKey(&k)
		for n := range uint64(MaxGrants) {
			t.putGrant(&Grant{ID: grantID(n), Key: id, Tenant: DefaultTenant, Name: keyID(n).String(), Grantee: user, Operations: []GrantOperation{GrantDecrypt}, Issuer: admin})
		}
	})
	benchEntry(b, w, &DeleteKey{KeyRef{ID: id, Tenant: DefaultTenant}, start})
}

// benchEntry applies one entry again and again to the same state.
func benchEntry(b *testing.B, w *world, c Command) {
	b.Helper()
	raw := seal(b, w.entry(), c)
	for b.Loop() {
		if _, _, err := w.s.Apply(w.s.Index()+1, 1, raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDue: what is not due costs nothing, however much it is.
func BenchmarkDue(b *testing.B) {
	w := crowded(b)
	w.edit(func(t *tx) {
		for n := range uint64(benchKeys) {
			k, _ := t.s.Key(benchKey(n).ID)
			next := *k
			next.Rotation = &Rotation{Period: period, Next: start + int64(n)}
			t.putKey(&next)
		}
	})
	for _, due := range []int64{0, 1, 1000, benchKeys} {
		b.Run(fmt.Sprintf("%d of %d", due, benchKeys), func(b *testing.B) {
			for b.Loop() {
				if got := w.s.Due(start+due-1, 100); len(got) != int(min(due, 100)) {
					b.Fatalf("%d are due", len(got))
				}
			}
		})
	}
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
