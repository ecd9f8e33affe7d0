//go:build measure

package main

import (
	"context"
	"strings"

	"github.com/quorumkms/quorumkms/rpc/client"
)

const (
	batchItems   = 128
	batchCallers = 8
)

// batches measures items of batches beside single calls, of one node.
func (b *bench) batches() {
	r := b.start(1, 1)
	node := r.nodes[0]
	pid := node.cmd.Process.Pid
	key := r.keys[0]
	blob, err := r.user.Encrypt(b.t.Context(), key, []byte(strings.Repeat("p", 32)), nil)
	must(b.t, err)
	blobs := make([]client.Ciphertext, batchItems)
	for i := range blobs {
		blobs[i].Blob = blob
	}
	turn := make(chan struct{}, batchCallers) // of as many of the callers
	for _, op := range []struct {
		name        string
		single, all func(ctx context.Context, _ int) error
	}{
		{
			"generate-data-key",
			func(ctx context.Context, _ int) error { _, _, err := r.user.GenerateDataKey(ctx, key, nil); return err },
			func(ctx context.Context, _ int) error {
				return second(r.user.BatchGenerateDataKey(ctx, key, batchItems, nil))
			},
		},
		{
			"decrypt",
			func(ctx context.Context, _ int) error { return second(r.user.Decrypt(ctx, blob, nil)) },
			func(ctx context.Context, _ int) error {
				opened, err := r.user.BatchDecrypt(ctx, blobs)
				for _, x := range opened {
					if x.Err != nil {
						return x.Err
					}
				}
				return err
			},
		},
	} {
		single, all := side{pid: pid, call: op.single}, side{pid: pid, call: func(ctx context.Context, i int) error {
			turn <- struct{}{}
			defer func() { <-turn }()
			return op.all(ctx, i)
		}}
		b.profile("batch."+op.name, node, all)
		x := b.alternate(benchCallers, single, all)
		b.against("batch."+op.name+".items", x[1].rate*batchItems, x[0].rate, "items/s", ">= 8")
		b.against("batch."+op.name+".cpu", x[1].cpu/batchItems, x[0].cpu, "us/item", "")
	}
}
