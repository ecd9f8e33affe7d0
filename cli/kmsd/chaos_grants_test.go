//go:build linux && chaos

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	manyGrants     = 10_000 // that are made and used while nothing is wrong
	manyAtOnce     = 32     // callers
	granterID      = userID // who makes them
	usesAtOnce     = 2      // of a grant that was made or revoked just now
	uncertainRight = 20     // tries to get what was forbidden permitted
)

// manyGrants makes grants on any node and uses each at once on any node: not one use may
// be refused. Then one revocation ends all of them: not one use may succeed.
func (l *trial) manyGrants(ctx context.Context) {
	l.t.Helper()
	began, key := time.Now(), l.createKey(ctx)
	l.issue(granteeID, "app")
	g := l.granting(key, granteeID)
	admin, makers, users := l.dial(adminID), l.each(granterID), l.each(granteeID)
	all, err := admin.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: g.key, GranteePrincipal: "spiffe://" + testDomain + granterID, Operations: []string{"CreateGrant", "Encrypt"},
	})
	must(l.t, err)
	mark := func(i int) string { return fmt.Sprint("many ", i) }
	use := func(ctx context.Context, i int) error {
		return answered(ctx, func(ctx context.Context) error { return second(g.use(ctx, anyOf(users), mark(i))) })
	}
	must(l.t, inParallel(ctx, manyAtOnce, manyGrants, func(ctx context.Context, i int) error {
		if _, err := g.create(ctx, anyOf(makers), mark(i), all.GetGrantId()); err != nil {
			return fmt.Errorf("CreateGrant %d: %w", i, err)
		}
		if err := use(ctx, i); err != nil {
			return fmt.Errorf("a use of grant %d, which had been made: %w", i, err)
		}
		return nil
	}))
	say(l.began, "%d grants were made, and used at once on any node, in %.1f s: none was refused", manyGrants, time.Since(began).Seconds())
	must(l.t, second(g.revoke(ctx, admin, all.GetGrantId())))
	must(l.t, inParallel(ctx, manyAtOnce, manyGrants/10, func(ctx context.Context, i int) error {
		if err := use(ctx, 10*i); !errors.Is(err, client.ErrDenied) {
			return fmt.Errorf("a use of grant %d, of which the one that it followed from had been revoked: %v", 10*i, err)
		}
		return nil
	}))
}

// granter makes grants, uses them at once on any node, and revokes them; now and then it
// disables their grantee for a moment.
type granter struct {
	granting
	l         *trial
	id        string    // the key's
	principal string    // the right's name
	admin     *caller   // which asks any node
	operator  *caller   // too
	grantees  []*caller // one a node
	made      int
}

func (l *trial) newGranter(ctx context.Context, i int) *granter {
	id := fmt.Sprintf("%s-%d", granteeID, i+1)
	l.issue(id, fmt.Sprintf("app-%d", i+1))
	key := l.createKey(ctx)
	g := &granter{
		granting: l.granting(key, id), l: l, id: key, principal: "principal " + id,
		admin: l.caller(adminID, l.rotated(i)...), operator: l.caller(operatorID, l.rotated(i)...),
	}
	for _, p := range l.nodes {
		g.grantees = append(g.grantees, l.caller(id, p))
	}
	return g
}

// step is the life of one grant.
func (g *granter) step(ctx context.Context) {
	g.made++
	mark := fmt.Sprintf("%d of %s", g.made, g.principal)
	right, id := "grant "+mark, ""
	err := g.admin.call(ctx, "CreateGrant", history.Grant, right, writeLimit, func(ctx context.Context) (answer, error) {
		r, err := g.create(ctx, g.admin.Client, mark, "")
		id = r.GetGrantId()
		return answer{token: r.GetIndexToken()}, err
	})
	if err != nil {
		return // an id that nobody has told cannot be revoked
	}
	g.useAtOnce(ctx, mark)
	if g.admin.dice.IntN(4) == 0 {
		g.disable(ctx, mark)
	}
	_ = g.admin.call(ctx, "RevokeGrant", history.Forbid, right, writeLimit, func(ctx context.Context) (answer, error) {
		r, err := g.revoke(ctx, g.admin.Client, id)
		return answer{token: r.GetIndexToken()}, err
	})
	g.useAtOnce(ctx, mark)
}

func (g *granter) useAtOnce(ctx context.Context, mark string) {
	for range usesAtOnce {
		c := anyOf(g.grantees)
		_ = c.call(ctx, "Encrypt by grant", history.Use, g.id, useLimit, func(ctx context.Context) (answer, error) {
			r, err := g.use(ctx, c.Client, mark)
			return answer{token: r.GetIndexToken()}, err
		}, "grant "+mark, g.principal)
	}
}

// disable takes every right from the grantee and gives it back.
func (g *granter) disable(ctx context.Context, mark string) {
	c, tenants := g.operator, g.operator.Tenants()
	_ = c.call(ctx, "DisablePrincipal", history.Forbid, g.principal, writeLimit, func(ctx context.Context) (answer, error) {
		r, err := tenants.DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: g.grantee})
		return answer{token: r.GetIndexToken()}, err
	})
	g.useAtOnce(ctx, mark)
	for range uncertainRight {
		err := c.call(ctx, "EnablePrincipal", history.Permit, g.principal, writeLimit, func(ctx context.Context) (answer, error) {
			r, err := tenants.EnablePrincipal(ctx, &pb.EnablePrincipalRequest{Principal: g.grantee})
			return answer{token: r.GetIndexToken()}, err
		})
		if err == nil || errors.Is(err, client.ErrNotFound) {
			return
		}
	}
}
