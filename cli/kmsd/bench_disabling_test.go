//go:build measure

package main

import (
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// disabling measures a restriction, which holds on every node when it is acknowledged:
// beside one entry of Raft's library, and with a node that cannot be asked.
func (b *bench) disabling() {
	ctx := b.t.Context()
	r := b.start(3, 1)
	_, followers := r.split()
	admin, key := r.dial(adminID, followers[0]).Keys(), r.keys[0]
	disable := func() time.Duration {
		began := time.Now()
		must(b.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})))
		took := time.Since(began)
		must(b.t, second(admin.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})))
		return took
	}
	const request = "disable-key-of-make-bench-0000000000" // as long as the SDK's own
	must(b.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key, RequestId: request})))
	must(b.t, second(admin.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})))
	bare := b.bareRaft(r.testCluster, r.entrySize(request))
	disabled := side{pid: followers[0].cmd.Process.Pid, drive: func(int) (took []time.Duration) {
		for began := time.Now(); time.Since(began) < *benchSlice; {
			took = append(took, disable())
		}
		return took
	}}
	x := b.alternate(1, disabled, bare)
	b.against("disable-key.p50", x[0].p50, x[1].p50, "ms", "")
	b.against("disable-key.p99", x[0].p99, x[1].p99, "ms", "")

	followers[1].kill()
	b.alone("disable-key.one-gone.first", disable().Seconds()*1e3, "ms", "")
	x = b.alternate(1, disabled)
	b.alone("disable-key.one-gone.p50", x[0].p50, "ms", "")
	b.alone("disable-key.one-gone.p99", x[0].p99, "ms", "")
}
