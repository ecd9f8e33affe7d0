package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestKeyCache has caches of data keys forget what a real cluster restricts.
func TestKeyCache(t *testing.T) {
	c := newCluster(t, 3)
	c.begin()
	for _, id := range []string{"/tenant/default/user/una"} {
		c.issue(id, "una")
	}
	c.waitVoters(3)
	for _, s := range []struct {
		name string
		f    func(ctx context.Context, c *testCluster)
	}{
		{"keys", testCacheOfKeys},
		{"a disabled principal", testCacheOfDisabled},
		{"too many watches", testWatchers},
		{"a node that stops", testCacheAtStop},
		{"a node without a lease", testCacheWithoutLease},
	} {
		if !c.run(s.name, s.f) {
			break
		}
	}
}

// cachedAt is a cache that watches and asks one node.
func (c *testCluster) cachedAt(id string, p *process) *client.KeyCache {
	c.t.Helper()
	k, err := client.NewKeyCache(c.dial(id, p), client.CacheLimits{MaxEntries: 10, MaxAge: time.Hour})
	must(c.t, err)
	c.t.Cleanup(func() { _ = k.Close() })
	c.eventually("the cache works", func() bool { return k.Stats().Unwatched == nil })
	return k
}

// keeps checks that a cache opens a blob and keeps its key.
func (c *testCluster) keeps(ctx context.Context, k *client.KeyCache, blob []byte) {
	c.t.Helper()
	must(c.t, second(k.DecryptDataKey(ctx, blob, nil)))
	before := k.Stats()
	must(c.t, second(k.DecryptDataKey(ctx, blob, nil)))
	if after := k.Stats(); after.Hits != before.Hits+1 || after.Entries == 0 {
		c.t.Fatalf("not kept: %+v, %+v", before, after)
	}
}

// testCacheOfKeys restricts keys at one node, and looks at the caches of all.
func testCacheOfKeys(ctx context.Context, c *testCluster) {
	admin := c.dial(adminID, c.nodes[0])
	first, other := c.createKey(ctx), c.createKey(ctx)
	c.level(ctx)
	user := c.dial(userID, c.nodes[0])
	_, blob, err := user.GenerateDataKey(ctx, first, nil)
	must(c.t, err)
	_, otherBlob, err := user.GenerateDataKey(ctx, other, nil)
	must(c.t, err)
	caches := map[*process]*client.KeyCache{}
	for _, p := range c.nodes {
		caches[p] = c.cachedAt(userID, p)
	}
	for what, step := range map[string]struct {
		restrict, loosen func() error
		refused          error
	}{
		"disabled": {
			func() error { return second(admin.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: first})) },
			func() error { return second(admin.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: first})) },
			client.ErrKeyDisabled,
		},
		"to be deleted": {
			func() error {
				return second(admin.Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: first, PendingWindowDays: 7}))
			},
			func() error {
				_, err := admin.Keys().CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: first})
				if err != nil {
					return err
				}
				return second(admin.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: first}))
			},
			client.ErrKeyPendingDeletion,
		},
		"forbidden": {
			func() error {
				return second(admin.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: first, Text: `forbid (principal is KMS::User, action, resource);`}))
			},
			func() error { return second(admin.Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{KeyId: first})) },
			client.ErrDenied,
		},
	} {
		for _, p := range c.nodes {
			c.eventually("it is allowed", func() bool { return second(caches[p].DecryptDataKey(ctx, blob, nil)) == nil })
			c.keeps(ctx, caches[p], blob)
			c.keeps(ctx, caches[p], otherBlob)
		}
		must(c.t, step.restrict())
		for _, p := range c.nodes {
			began := time.Now()
			c.eventually(what+": the cache of "+p.name+" forgets", func() bool {
				return errors.Is(second(caches[p].DecryptDataKey(ctx, blob, nil)), step.refused)
			})
			if took := time.Since(began); took > client.StaleAfter+time.Second {
				c.t.Errorf("%s: it was served for %s", what, took)
			}
			before := caches[p].Stats()
			must(c.t, second(caches[p].DecryptDataKey(ctx, otherBlob, nil)))
			if after := caches[p].Stats(); after.Hits != before.Hits+1 {
				c.t.Errorf("%s: the other key is forgotten, too: %+v", what, after)
			}
		}
		must(c.t, step.loosen())
	}
}

func testCacheOfDisabled(ctx context.Context, c *testCluster) {
	const una = "/tenant/default/user/una"
	key := c.createKey(ctx)
	c.level(ctx)
	_, blob, err := c.dial(userID, c.nodes[0]).GenerateDataKey(ctx, key, nil)
	must(c.t, err)
	k := c.cachedAt(una, c.nodes[1])
	c.keeps(ctx, k, blob)
	tenants := c.dial(adminID, c.nodes[0]).Tenants()
	must(c.t, second(tenants.DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: "spiffe://" + testDomain + una})))
	c.eventually("who is disabled opens nothing", func() bool {
		return errors.Is(second(k.DecryptDataKey(ctx, blob, nil)), client.ErrPrincipalDisabled)
	})
	c.eventually("and is told why", func() bool { return errors.Is(k.Stats().Unwatched, client.ErrPrincipalDisabled) })
	if s := k.Stats(); s.Entries != 0 {
		c.t.Errorf("stats %+v", s)
	}
}

// testWatchers: one principal has so many watches at a node, others have theirs.
func testWatchers(ctx context.Context, c *testCluster) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watch := func() error {
		stream, err := c.crypto(c.nodes[0]).WatchRestrictions(ctx)
		must(c.t, err)
		must(c.t, stream.Send(&pb.WatchRestrictionsRequest{Ping: 7}))
		m, err := stream.Recv()
		if err == nil && m.GetPong() != 7 {
			c.t.Errorf("answered %v", m)
		}
		return fromStatus(err)
	}
	var err error
	for n := 0; err == nil && n < 200; n++ {
		err = watch()
	}
	refused(codes.ResourceExhausted, client.ErrBusy, "watches for restrictions", "at most 128 of one principal").check(c.t, "one watch too many", err)
	stop()
}

func testCacheAtStop(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx)
	c.level(ctx)
	_, blob, err := c.dial(userID, c.nodes[0]).GenerateDataKey(ctx, key, nil)
	must(c.t, err)
	k := c.cachedAt(userID, c.nodes[2])
	c.keeps(ctx, k, blob)
	c.nodes[2].terminate()
	c.eventually("the cache of a node that stopped is empty", func() bool { return k.Stats().Entries == 0 && k.Stats().Unwatched != nil })
	c.nodes[2].start()
	c.waitVoters(3)
	c.eventually("it works again", func() bool { return k.Stats().Unwatched == nil })
	c.keeps(ctx, k, blob)
}

// testCacheWithoutLease: a node that is alone tells a cache that it knows nothing.
func testCacheWithoutLease(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx)
	c.level(ctx)
	_, blob, err := c.dial(userID, c.nodes[0]).GenerateDataKey(ctx, key, nil)
	must(c.t, err)
	leader, followers := c.split()
	k := c.cachedAt(userID, leader)
	c.keeps(ctx, k, blob)
	for _, p := range followers {
		p.pause()
		defer p.resume()
	}
	c.eventually("the cache of a node without a lease is empty", func() bool {
		return k.Stats().Entries == 0 && errors.Is(k.Stats().Unwatched, client.ErrNoLease)
	})
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := k.DecryptDataKey(short, blob, nil); err == nil {
		c.t.Error("it opens at a node without a lease")
	}
}
