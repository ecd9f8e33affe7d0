//go:build measure

package main

import (
	"context"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// benchCreated is the description of keys that are made to be measured.
const benchCreated = "made by make bench"

// creating measures CreateKey through three nodes in turn, beside Raft's library committing
// entries of the same size on the same disk; and that of keys without
// material, which needs no HSM.
func (b *bench) creating() {
	r := b.start(3, 1)
	create := &pb.CreateKeyRequest{Description: benchCreated}
	external := &pb.CreateKeyRequest{Description: benchCreated, Origin: pb.KeyOrigin_KEY_ORIGIN_EXTERNAL}
	must(b.t, second(r.dial(adminID, r.nodes[0]).Keys().CreateKey(b.t.Context(), create)))
	bare := b.bareRaft(r.testCluster, r.entrySize(benchCreated))
	var admins []pb.KeyServiceClient
	for _, p := range r.nodes {
		admins = append(admins, r.dial(adminID, p).Keys())
	}
	leader := r.leader(r.nodes[0])
	through := func(call func(context.Context, pb.KeyServiceClient) error) side {
		return side{pid: leader.cmd.Process.Pid, call: func(ctx context.Context, i int) error { return call(ctx, admins[i%len(admins)]) }}
	}
	made := through(func(ctx context.Context, admin pb.KeyServiceClient) error {
		return second(admin.CreateKey(ctx, create))
	})
	empty := through(func(ctx context.Context, admin pb.KeyServiceClient) error {
		return second(admin.CreateKey(ctx, external))
	})
	b.profile("create-key", leader, made)
	x := b.alternate(benchCallers, made, empty, bare)
	b.against("create-key.throughput", x[0].rate, x[2].rate, "keys/s", ">= 0.25")
	b.against("create-key.cpu", x[0].cpu, x[2].cpu, "us/op", "") // of the leader
	b.against("create-key.p50", x[0].p50, x[2].p50, "ms", "")
	b.against("create-key.p99", x[0].p99, x[2].p99, "ms", "")
	b.against("create-key.no-hsm.throughput", x[1].rate, x[2].rate, "op/s", "")
	b.against("create-key.no-hsm.cpu", x[1].cpu, x[2].cpu, "us/op", "")
	x = b.alternate(1, made, bare)
	b.against("create-key.one-caller.p50", x[0].p50, x[1].p50, "ms", "")
}

// entrySize is the size of the log's entry with a text, in bytes, as Raft was given it.
func (r *benchRig) entrySize(text string) (size int) {
	r.t.Helper()
	_, followers := r.split()
	followers[0].terminate()
	followers[0].logOf(func(db *raftboltdb.BoltStore) {
		size = len(followers[0].find(db, func(l *raft.Log) bool { return l.Type == raft.LogCommand && contains(text)(l) }).Data)
	})
	followers[0].start()
	r.waitVoters(len(r.nodes))
	return size
}
