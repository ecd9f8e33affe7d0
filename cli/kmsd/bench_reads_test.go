//go:build measure

package main

import (
	"context"
	"sync/atomic"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// reads measures administrative reads at a follower, and what they cost the cluster.
func (b *bench) reads() {
	r := b.start(3, 50)
	leader, followers := r.split()
	admin := r.dial(adminID, followers[0]).Keys()
	for _, op := range []struct {
		name string
		call func(ctx context.Context, i int) error
	}{
		{"describe-key", func(ctx context.Context, i int) error {
			return second(admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: r.keys[i%len(r.keys)]}))
		}},
		{"list-keys", func(ctx context.Context, _ int) error { // of so many keys
			return second(admin.ListKeys(ctx, &pb.ListKeysRequest{}))
		}},
	} {
		var done atomic.Int64
		busy := side{pid: followers[0].cmd.Process.Pid, call: func(ctx context.Context, i int) error {
			done.Add(1)
			return op.call(ctx, i)
		}}
		x := b.alternate(benchCallers, busy)
		b.alone(op.name+".throughput", x[0].rate, "op/s", "")
		b.alone(op.name+".p99", x[0].p99, "ms", "")
		entries := func(during func()) (perSecond float64) {
			at, before := time.Now(), r.count(leader, "raft_commit_index")
			during()
			return (r.count(leader, "raft_commit_index") - before) / time.Since(at).Seconds()
		}
		rest := entries(func() { time.Sleep(2 * *benchSlice) })
		done.Store(0)
		began := time.Now()
		loaded := entries(func() {
			for range 2 {
				b.run(busy, benchCallers)
			}
		})
		b.alone(op.name+".entries-per-op", max(0, loaded-rest)*time.Since(began).Seconds()/float64(done.Load()), "entries/op", "<= 0.001")
	}
}
