package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// granteeID is of another tenant than the keys: no policy of theirs helps it.
const granteeID = "/tenant/isv/user/app"

// granting makes, uses and ends grants of one key. Each is for calls with an encryption
// context of its own, so that no other one helps.
type granting struct {
	key     string // ARN
	grantee string // SPIFFE URI
}

func (c *testCluster) granting(key, grantee string) granting {
	c.t.Helper()
	return granting{fmt.Sprintf("arn:quorumkms:kms:%s:default:key/%s", c.clusterID(), key), "spiffe://" + testDomain + grantee}
}

func contextOf(mark string) []*pb.ContextPair { return []*pb.ContextPair{{Key: "mark", Value: mark}} }

// create makes a grant for what has a mark; parent is the one that it follows from, or
// empty.
func (g granting) create(ctx context.Context, c *client.Client, mark, parent string) (*pb.CreateGrantResponse, error) {
	return c.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: g.key, GranteePrincipal: g.grantee, Operations: []string{"Encrypt"}, ParentGrantId: parent,
		Constraints: &pb.GrantConstraints{EncryptionContextEquals: contextOf(mark)},
	})
}

func (g granting) use(ctx context.Context, c *client.Client, mark string) (*pb.EncryptResponse, error) {
	return c.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: g.key, Plaintext: []byte("granted"), EncryptionContext: contextOf(mark)})
}

func (g granting) revoke(ctx context.Context, c *client.Client, id string) (*pb.RevokeGrantResponse, error) {
	return c.Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: g.key, GrantId: id})
}

// each are clients of one node each.
func (c *testCluster) each(id string) (out []*client.Client) {
	c.t.Helper()
	for _, p := range c.nodes {
		out = append(out, c.dial(id, p))
	}
	return out
}

func anyOf[T any](all []T) T { return all[rand.IntN(len(all))] }

// inParallel calls f n times, at most at a time, until it fails or ctx ends.
func inParallel(ctx context.Context, workers, n int, f func(ctx context.Context, i int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				if err := f(ctx, int(i)); err != nil {
					stop(err)
				}
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

// answered asks one node until it answers for good: on a slow machine it may be without a
// lease for a moment.
func answered(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil || errors.Is(err, client.ErrDenied) || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestGrants: a grant is usable on any node as soon as it was made on another, nothing
// having passed between its maker and its holder, and is of no use on any as soon as it
// was revoked.
func TestGrants(t *testing.T) {
	t.Parallel()
	const loops, workers = 1000, 8
	c := newCluster(t, 3)
	c.issue(granteeID, "app")
	c.begin()
	ctx, began := t.Context(), time.Now()
	g := c.granting(c.createKey(ctx), granteeID)
	c.level(ctx)
	admins, grantees := c.each(adminID), c.each(granteeID)
	must(t, inParallel(ctx, workers, loops, func(ctx context.Context, i int) error {
		mark := fmt.Sprint(i)
		use := func(ctx context.Context) error { return second(g.use(ctx, anyOf(grantees), mark)) }
		made, err := g.create(ctx, anyOf(admins), mark, "")
		if err != nil {
			return fmt.Errorf("CreateGrant %d: %w", i, err)
		}
		if err := answered(ctx, use); err != nil {
			return fmt.Errorf("a use of grant %d, which had been made: %w", i, err)
		}
		if _, err := g.revoke(ctx, anyOf(admins), made.GetGrantId()); err != nil {
			return fmt.Errorf("RevokeGrant %d: %w", i, err)
		}
		if err := answered(ctx, use); !errors.Is(err, client.ErrDenied) {
			return fmt.Errorf("a use of grant %d, which had been revoked: %v", i, err)
		}
		return nil
	}))
	t.Logf("%d grants made, used, revoked and refused in %s", loops, time.Since(began).Round(time.Millisecond))
}
