package cluster

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkStoreLogs shows what the seals add to a batch, which costs a sync each.
func BenchmarkStoreLogs(b *testing.B) {
	for _, n := range []int{1, 256} {
		batch := func(from uint64) []*raft.Log {
			out := entries(from, from+uint64(n)-1, 1)
			for _, l := range out {
				l.Data = bytes.Repeat([]byte{'x'}, 700)
			}
			return out
		}
		stores := func(b *testing.B, store func([]*raft.Log) error) {
			b.ReportAllocs()
			next := uint64(1)
			for b.Loop() {
				if err := store(batch(next)); err != nil {
					b.Fatal(err)
				}
				next += uint64(n)
			}
		}
		b.Run(fmt.Sprintf("plain-%d", n), func(b *testing.B) {
			db, err := openBolt(filepath.Join(b.TempDir(), raftFile))
			must(b, err)
			stores(b, db.StoreLogs)
			must(b, db.Close())
		})
		b.Run(fmt.Sprintf("sealed-%d", n), func(b *testing.B) {
			d := newLogDir(b)
			s := d.open()
			stores(b, s.StoreLogs)
			must(b, s.Close())
		})
	}
}

func longEntry() *raft.Log {
	l := entry(1, 1)
	l.Data = bytes.Repeat([]byte{'x'}, 700)
	return l
}

func BenchmarkSealRecord(b *testing.B) {
	k, l := testSealKey("b"), longEntry()
	b.ReportAllocs()
	for b.Loop() {
		k.sealRecord(l, seal{})
	}
}

func BenchmarkOpenRecord(b *testing.B) {
	k := testSealKey("b")
	sealed, _ := k.sealRecord(longEntry(), seal{})
	b.ReportAllocs()
	for b.Loop() {
		x := sealed
		if _, _, err := k.openRecord(&x); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenSealed opens a log as long as the defaults let it become.
func BenchmarkOpenSealed(b *testing.B) {
	const records = 18_432 // snapshot_threshold and trailing_logs
	d := newLogDir(b)
	s := d.open()
	all := entries(1, records, 0)
	for _, l := range all {
		l.Data = longEntry().Data
	}
	must(b, s.StoreLogs(all))
	b.Run("walk", func(b *testing.B) {
		for b.Loop() {
			must(b, s.load(0))
		}
	})
	b.Run("structure", func(b *testing.B) {
		for b.Loop() {
			must(b, checkBoltFile(d.file()))
		}
	})
	must(b, s.Close())
}
