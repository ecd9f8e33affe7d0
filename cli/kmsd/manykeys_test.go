package main

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testManyKeys pages through many keys, each page from another node, while the nodes
// serve and the leader is killed.
func testManyKeys(ctx context.Context, c *testCluster) {
	const n, page = 1500, 100
	admin, user := c.tenant(ctx, "crowd")
	admins := c.through(ctx, admin)
	want := make([]string, n)
	must(c.t, concurrently(24, n, func(i int) error {
		r, err := admins[i%3].Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
		want[i] = r.GetKey().GetKeyId()
		return err
	}))
	slices.Sort(want)
	c.level(ctx)
	blob := c.encrypt(ctx, user, want[n/2], nil)
	leader, followers := c.split()
	var served, failed atomic.Int64
	serving, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	for _, p := range followers {
		x := c.dial(user, p)
		work.Go(func() {
			for serving.Err() == nil {
				if err := second(x.Decrypt(serving, blob, nil)); err == nil {
					served.Add(1)
				} else if serving.Err() == nil {
					failed.Add(1)
				}
			}
		})
	}
	var got []string
	for i, marker := 0, ""; ; i++ {
		r, err := c.dial(admin, followers[i%2]).Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: page, Marker: marker})
		must(c.t, err)
		for _, k := range r.GetKeys() {
			got = append(got, k.GetKeyId())
		}
		if marker = r.GetNextMarker(); marker == "" {
			break
		}
		if len(r.GetKeys()) != page {
			c.t.Errorf("a page of %d in the middle", len(r.GetKeys()))
		}
		if i == 4 {
			leader.kill()
			if next := c.leader(followers[0]); next == leader {
				c.eventually("there is another leader", func() bool { return c.leader(followers[0]) != leader }, followers...)
			}
		}
	}
	leader.start()
	c.waitVoters(3)
	if !slices.Equal(got, want) {
		c.t.Errorf("the pages gave %d keys, want %d", len(got), len(want))
	}
	stop()
	work.Wait()
	if served.Load() == 0 || failed.Load() > 0 {
		c.t.Errorf("meanwhile %d calls were served and %d failed", served.Load(), failed.Load())
	}
}

// retryAfter is what an answer says of how long to wait.
func retryAfter(err error) (time.Duration, bool) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == "RATE_LIMITED" {
			ms, err := strconv.Atoi(info.GetMetadata()["retry_after_ms"])
			return time.Duration(ms) * time.Millisecond, err == nil
		}
	}
	return 0, false
}

// testRateLimits floods a node that has the quotas of one whose configuration names none:
// its tenant is refused and told for how long, and nobody else, and no restriction.
func testRateLimits(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "flood")
	bystander, _ := c.tenant(ctx, "bystander")
	_, followers := c.split()
	p := followers[0]
	p.terminate()
	p.limits = "connections: 4096"
	p.configure("")
	p.start()
	defer func() {
		p.terminate()
		p.limits = ""
		p.configure("")
		p.start()
		c.waitVoters(3)
	}()
	c.waitVoters(3)
	ask := c.dial(admin, followers[1])
	var keys []string
	for range 10 {
		r, err := ask.Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
		must(c.t, err)
		keys = append(keys, r.GetKey().GetKeyId())
	}
	c.level(ctx)
	blob := c.encrypt(ctx, user, keys[9], nil)
	raw := func(id string) pb.KeyServiceClient {
		return pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(id)))))
	}
	flood, restrict, other, crypto := raw(admin), raw(admin), raw(bystander), c.dial(user, p)
	must(c.t, second(other.ListKeys(ctx, &pb.ListKeysRequest{})))
	var limited, told, wrong atomic.Int64
	flooding, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	for range 4 {
		work.Go(func() {
			for flooding.Err() == nil {
				_, err := flood.ListKeys(flooding, &pb.ListKeysRequest{Limit: 1})
				if err == nil || flooding.Err() != nil {
					continue
				}
				limited.Add(1)
				if after, ok := retryAfter(err); ok && after > 0 && after <= time.Second {
					told.Add(1)
				} else {
					wrong.Add(1)
				}
			}
		})
	}
	c.eventually("the flood is refused", func() bool { return limited.Load() > 100 }, p)
	// What takes something away is not held up, nor are others, nor is cryptography.
	for _, key := range keys[:9] {
		must(c.t, second(restrict.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})))
	}
	must(c.t, second(other.ListKeys(ctx, &pb.ListKeysRequest{})))
	must(c.t, second(crypto.Decrypt(ctx, blob, nil)))
	must(c.t, second(c.dial(admin, followers[1]).Keys().ListKeys(ctx, &pb.ListKeysRequest{}))) // quotas are a node's own
	stop()
	work.Wait()
	if wrong.Load() > 0 || told.Load() == 0 {
		c.t.Errorf("%d refusals told how long to wait, %d did not", told.Load(), wrong.Load())
	}
	// Who waits as long as it is told is served; the SDK does by itself.
	var waited atomic.Int64
	sdk := c.connectSDK(admin, []*process{p}, func(config *client.Config) {
		config.Fixed = true
		config.Retrying = func(string, error) { waited.Add(1) }
	})
	c.eventually("the SDK has been refused, and was served", func() bool {
		_ = concurrently(16, 64, func(int) error { return second(flood.ListKeys(ctx, &pb.ListKeysRequest{Limit: 1})) }) // uses the quota up
		must(c.t, second(sdk.Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: 1})))
		return waited.Load() > 0
	}, p)
}
