package hsm_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// BenchmarkDerive: an HSM that answers at once, callers under one key.
func BenchmarkDerive(b *testing.B) {
	refs := []hsm.Ref{testRef(1)}
	for _, callers := range []int{1, 32} { // a processor
		b.Run(fmt.Sprintf("seal/callers=%d", callers), func(b *testing.B) {
			benchmark(b, hsm.KeyringConfig{}, callers, refs, hsm.Seal)
		})
		b.Run(fmt.Sprintf("open/callers=%d", callers), func(b *testing.B) {
			benchmark(b, hsm.KeyringConfig{}, callers, refs, hsm.Open)
		})
	}
}

// BenchmarkDeriveManyKeys: messages under 200 keys in turn, half of which fit.
func BenchmarkDeriveManyKeys(b *testing.B) {
	var refs []hsm.Ref
	for n := range byte(200) {
		refs = append(refs, testRef(n))
	}
	benchmark(b, hsm.KeyringConfig{MaxKeys: 100}, 32, refs, hsm.Open)
}

func benchmark(b *testing.B, c hsm.KeyringConfig, callers int, refs []hsm.Ref, use hsm.Use) {
	k := hsm.NewKeyring(&fakeHSM{}, c)
	defer k.Close()
	in := testInput(1)
	b.ReportAllocs()
	b.SetParallelism(callers)
	b.RunParallel(func(pb *testing.PB) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for i := 0; pb.Next(); i++ {
			if _, err := k.Derive(ctx, refs[i%len(refs)], in, use); err != nil {
				b.Error(err)
				return
			}
		}
	})
	s := k.Stats()
	b.ReportMetric(float64(s.Calls)/float64(s.Messages), "calls/msg")
}
