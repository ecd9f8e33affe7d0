package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// midCall is a mutation that is under way when the leader goes: its request, what it was
// answered, and what tells that it was done once.
type midCall struct {
	as      string
	request proto.Message
	once    func(ctx context.Context, c *testCluster, reply proto.Message) error
	reply   proto.Message
	begun   chan struct{} // closed when the first attempt is made
	done    atomic.Bool   // by an answer
}

// midCalls prepares mutations that would fail, or do more, if they were done twice.
func (c *testCluster) midCalls(ctx context.Context, round int) []*midCall {
	c.t.Helper()
	admin := c.dial(adminID)
	label := fmt.Sprintf("round-%d", round)
	key := func() string { return c.createKey(ctx) }
	plain := func(as string, r proto.Message) *midCall { return &midCall{as: as, request: r} }
	grant := func(key string) string {
		return c.give(ctx, adminID, c.nodes[0], &pb.CreateGrantRequest{KeyId: key, GranteePrincipal: uri(userID), Operations: []string{"Encrypt"}})
	}
	rotated, granted, named, unnamed, doomed, bound, revoked, judged := key(), key(), key(), key(), key(), key(), key(), key()
	must(c.t, second(admin.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{KeyId: unnamed, AliasName: "alias/old-" + label})))
	must(c.t, second(admin.Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: doomed})))
	must(c.t, second(admin.Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: bound, Resource: "r"})))
	must(c.t, second(admin.Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: uri("/tenant/default/user/" + label)})))
	calls := []*midCall{
		{as: adminID, request: &pb.CreateKeyRequest{Description: label}, once: func(ctx context.Context, c *testCluster, reply proto.Message) error {
			all, err := c.dial(adminID).Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, IndexToken: c.latest(c.nodes[0])})
			if err != nil {
				return err
			}
			var made []string
			for _, k := range all.GetKeys() {
				if k.GetDescription() == label {
					made = append(made, k.GetKeyId())
				}
			}
			if want := reply.(*pb.CreateKeyResponse).GetKey().GetKeyId(); !slices.Equal(made, []string{want}) {
				return fmt.Errorf("made the keys %q, answered was %s", made, want)
			}
			return nil
		}},
		{as: adminID, request: &pb.RotateKeyOnDemandRequest{KeyId: rotated}, once: func(ctx context.Context, c *testCluster, reply proto.Message) error {
			k, err := c.dial(adminID).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: rotated})
			if v := k.GetKey().GetCurrentVersion(); err == nil && (v != 2 || reply.(*pb.RotateKeyOnDemandResponse).GetCurrentVersion() != 2) {
				return fmt.Errorf("the key is at version %d, answered was %v", v, reply)
			}
			return err
		}},
		{as: adminID, request: &pb.CreateGrantRequest{KeyId: granted, GranteePrincipal: uri(userID), Operations: []string{"Encrypt"}}, once: func(ctx context.Context, c *testCluster, reply proto.Message) error {
			g, err := c.dial(adminID).Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: granted})
			if err == nil && (len(g.GetGrants()) != 1 || g.GetGrants()[0].GetGrantId() != reply.(*pb.CreateGrantResponse).GetGrantId()) {
				return fmt.Errorf("made the grants %v, answered was %v", g.GetGrants(), reply)
			}
			return err
		}},
		{as: adminID, request: &pb.PutPolicyRequest{KeyId: judged, Text: harmlessPolicy}, once: func(ctx context.Context, c *testCluster, reply proto.Message) error {
			p, err := c.dial(adminID).Policies().ListPolicyRevisions(ctx, &pb.ListPolicyRevisionsRequest{KeyId: judged})
			if err == nil && (len(p.GetPolicies()) != 1 || reply.(*pb.PutPolicyResponse).GetRevision() != 1) {
				return fmt.Errorf("made the revisions %v, answered was %v", p.GetPolicies(), reply)
			}
			return err
		}},
		plain(adminID, &pb.CreateAliasRequest{KeyId: named, AliasName: "alias/new-" + label}),
		plain(adminID, &pb.DeleteAliasRequest{AliasName: "alias/old-" + label}),
		plain(adminID, &pb.CancelKeyDeletionRequest{KeyId: doomed}),
		plain(adminID, &pb.ReleaseResourceRequest{KeyId: bound, Resource: "r"}),
		plain(adminID, &pb.RevokeGrantRequest{KeyId: revoked, GrantId: grant(revoked)}),
		plain(adminID, &pb.EnablePrincipalRequest{Principal: uri("/tenant/default/user/" + label)}),
		plain(operatorID, &pb.CreateTenantRequest{Name: label, Administrator: uri("/tenant/" + label + "/admin/a")}),
		plain(adminID, &pb.DisableKeyRequest{KeyId: named}),
	}
	for _, x := range calls {
		x.request = with(x.request, "request_id", fmt.Sprintf("%s-%s", label, methodOf(x.request).Name()))
		x.begun = make(chan struct{})
	}
	c.level(ctx)
	return calls
}

// insist makes a call through one node after the other until it is answered, and once
// more then.
func (c *testCluster) insist(ctx context.Context, clients []*client.Client, x *midCall, from int) error {
	close(x.begun)
	for i := from; ctx.Err() == nil; i++ {
		attempt, cancel := context.WithTimeout(ctx, 4*time.Second)
		reply, err := send(attempt, clients[i%len(clients)], x.request)
		cancel()
		var told *client.Error
		switch {
		case err == nil && x.reply != nil:
			if !proto.Equal(with(reply, "index_token", []byte(nil)), with(x.reply, "index_token", []byte(nil))) {
				return fmt.Errorf("answered %v, and then %v", x.reply, reply)
			}
			return nil
		case err == nil:
			x.reply = reply
			x.done.Store(true)
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, client.ErrOutcomeUnknown):
		case errors.As(err, &told) && (told.Code == codes.Unavailable || told.Code == codes.DeadlineExceeded || errors.Is(err, client.ErrBusy)):
		default:
			return fmt.Errorf("%s: %w", status.Code(err), err)
		}
	}
	return ctx.Err()
}

// TestMidCall kills or freezes the leader while mutations are under way: repeated under
// their request ids through other nodes, each is done once. In the last rounds nothing can
// be committed before, because the others stand still: the leader goes in the middle of
// every call.
func TestMidCall(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	interrupted, all := 0, 0
	for round := range 4 {
		calls := c.midCalls(ctx, round)
		clients := map[string][]*client.Client{adminID: c.through(ctx, adminID), operatorID: c.through(ctx, operatorID)}
		leader, followers := c.split()
		errs := make([]error, len(calls))
		all += len(calls)
		if round >= 2 {
			for _, p := range followers {
				p.pause()
			}
		}
		var work sync.WaitGroup
		for i, x := range calls {
			work.Go(func() { errs[i] = c.insist(ctx, clients[x.as], x, i) })
		}
		for _, x := range calls {
			<-x.begun
		}
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // somewhere in the middle of them
		for _, x := range calls {
			if !x.done.Load() {
				interrupted++
			}
		}
		if round%2 == 0 {
			leader.kill()
		} else {
			leader.pause()
		}
		if round >= 2 {
			for _, p := range followers {
				p.resume()
			}
		}
		c.eventually("there is another leader", func() bool {
			s, err := c.status(followers[0])
			return err == nil && s.GetLeaderId() != "" && c.leader(followers[0]) != leader
		}, followers...)
		if round%2 == 0 {
			leader.start()
		} else {
			leader.resume()
		}
		work.Wait()
		c.waitVoters(3)
		for i, x := range calls {
			if errs[i] == nil && x.once != nil {
				errs[i] = x.once(ctx, c, x.reply)
			}
			if errs[i] != nil {
				t.Errorf("round %d: %s: %v", round, methodOf(x.request).Name(), errs[i])
			}
		}
	}
	t.Logf("%d of %d calls were interrupted", interrupted, all)
	if interrupted < all/2 { // those of the last rounds
		t.Error("calls were answered by a leader whose followers stood still")
	}
}
