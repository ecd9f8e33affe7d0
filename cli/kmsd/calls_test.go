package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestThreeNodes asks everything that leaves three nodes as they are, on one
// cluster: the calls, wrong calls, wrong callers and the audit trail.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Keys", testKeys},
		{"Lists", testLists},
		{"Aliases", testAliases},
		{"Cryptography", testCryptography},
		{"Batches", testBatches},
		{"States", testStates},
		{"DryRuns", testDryRuns},
		{"RequestIDs", testRequestIDs},
		{"IndexTokens", testIndexTokens},
		{"DisableHolds", testDisableHolds},
		{"Tampering", testTampering},
		{"Sizes", testSizes},
		{"Contexts", testContexts},
		{"References", testReferences},
		{"BadPages", testBadPages},
		{"Foreign", testForeign},
		{"Certificates", testCertificates},
		{"Classes", testClasses},
		{"OtherTenant", testOtherTenant},
		{"PeerListener", testPeerListener},
		{"AuditCalls", testAuditCalls},
		{"AuditFields", testAuditFields},
		{"AuditFailures", testAuditFailures},
		{"Canaries", testCanaries},
		{"Minority", testMinority},
		{"Frozen", testFrozen},
		{"SameState", testSameState},
	} {
		c.run(s.name, s.f)
	}
}

// testKeys walks through the life of a key, through each node in turn, and looks
// at every step from another node.
func testKeys(ctx context.Context, c *testCluster) {
	for i, p := range c.nodes {
		admin, auditor := c.dial(adminID, p).Keys(), c.dial(auditorID, c.nodes[(i+1)%len(c.nodes)]).Keys()
		created, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{
			Description: "through " + p.name, Tags: []*pb.Tag{{Key: "z", Value: "last"}, {Key: "a", Value: "first"}},
		})
		must(c.t, err)
		k := created.GetKey()
		id := k.GetKeyId()
		if k.GetState() != pb.KeyState_KEY_STATE_ENABLED || k.GetCurrentVersion() != 1 || k.GetTenant() != "default" ||
			k.GetArn() != fmt.Sprintf("arn:quorumkms:kms:%s:default:key/%s", c.clusterID(), id) || k.GetCreationDate() == nil {
			c.t.Fatalf("created %v", k)
		}
		token := created.GetIndexToken()
		describe := func() *pb.KeyMetadata {
			r, err := auditor.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: id, IndexToken: token})
			must(c.t, err)
			return r.GetKey()
		}
		step := func(what string, index []byte, err error, ok func(k *pb.KeyMetadata) bool) {
			c.t.Helper()
			must(c.t, err)
			token = index
			before := k.GetRevision()
			if k = describe(); k.GetRevision() <= before || !ok(k) {
				c.t.Fatalf("after %s through %s: %v", what, p.name, k)
			}
		}
		described, err := admin.UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: id, Description: "new", ExpectedRevision: k.GetRevision()})
		step("UpdateKeyDescription", described.GetIndexToken(), err, func(k *pb.KeyMetadata) bool { return k.GetDescription() == "new" })
		disabled, err := admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: id})
		step("DisableKey", disabled.GetIndexToken(), err, func(k *pb.KeyMetadata) bool { return k.GetState() == pb.KeyState_KEY_STATE_DISABLED })
		enabled, err := admin.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: id})
		step("EnableKey", enabled.GetIndexToken(), err, func(k *pb.KeyMetadata) bool { return k.GetState() == pb.KeyState_KEY_STATE_ENABLED })
		rotated, err := admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: id})
		step("RotateKeyOnDemand", rotated.GetIndexToken(), err, func(k *pb.KeyMetadata) bool { return k.GetCurrentVersion() == 2 })
		if rotated.GetCurrentVersion() != 2 || rotated.GetKeyId() != id {
			c.t.Fatalf("RotateKeyOnDemand answered %v", rotated)
		}
		testDeletion(ctx, c, admin, id, step)
		testTags(ctx, c, admin, auditor, id, &token)
		rotations, err := auditor.ListKeyRotations(ctx, &pb.ListKeyRotationsRequest{KeyId: id})
		must(c.t, err)
		r := rotations.GetRotations()
		if len(r) != 2 || r[0].GetCause() != pb.RotationCause_ROTATION_CAUSE_CREATED || r[1].GetCause() != pb.RotationCause_ROTATION_CAUSE_ON_DEMAND ||
			r[0].GetVersion() != 1 || r[1].GetVersion() != 2 || r[1].GetRotationDate() == nil {
			c.t.Fatalf("rotations %v", r)
		}
		_, err = admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: id, ExpectedRevision: 1})
		refused(codes.Aborted, client.ErrConflict, "revision").check(c.t, "an old revision", err)
	}
}

type keyStep func(what string, index []byte, err error, ok func(k *pb.KeyMetadata) bool)

// testDeletion schedules and cancels: 0 days mean 30, 7 to 30 are taken.
func testDeletion(ctx context.Context, c *testCluster, admin pb.KeyServiceClient, id string, step keyStep) {
	for _, days := range []uint32{6, 31, 1 << 31} {
		_, err := admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: id, PendingWindowDays: days})
		refused(codes.InvalidArgument, client.ErrInvalid, fmt.Sprint(days), "7 to 30").check(c.t, fmt.Sprint("deletion in ", days, " days"), err)
	}
	for asked, days := range map[uint32]int{0: 30, 7: 7, 30: 30} {
		before := time.Now().Add(-time.Second).Truncate(time.Second)
		r, err := admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: id, PendingWindowDays: asked})
		step("ScheduleKeyDeletion", r.GetIndexToken(), err, func(k *pb.KeyMetadata) bool {
			at := k.GetDeletionDate().AsTime().AddDate(0, 0, -days)
			return k.GetState() == pb.KeyState_KEY_STATE_PENDING_DELETION && r.GetDeletionDate().AsTime().Equal(k.GetDeletionDate().AsTime()) &&
				!at.Before(before) && !at.After(time.Now())
		})
		cancelled, err := admin.CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: id})
		step("CancelKeyDeletion", cancelled.GetIndexToken(), err, func(k *pb.KeyMetadata) bool {
			return k.GetState() == pb.KeyState_KEY_STATE_DISABLED && k.GetDeletionDate() == nil
		})
	}
}

func testTags(ctx context.Context, c *testCluster, admin, other pb.KeyServiceClient, id string, token *[]byte) {
	tags := func() string {
		r, err := other.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: id, IndexToken: *token})
		must(c.t, err)
		var out []string
		for _, tag := range r.GetTags() {
			out = append(out, tag.GetKey()+"="+tag.GetValue())
		}
		return strings.Join(out, " ")
	}
	set, err := admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: id, Tags: []*pb.Tag{{Key: "m"}, {Key: "z", Value: "new"}}})
	must(c.t, err)
	*token = set.GetIndexToken()
	if got := tags(); got != "a=first m= z=new" {
		c.t.Fatalf("tags %q", got)
	}
	page, err := other.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: id, Limit: 1})
	must(c.t, err)
	page, err = admin.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: id, Limit: 2, Marker: page.GetNextMarker()})
	must(c.t, err)
	if len(page.GetTags()) != 2 || page.GetTags()[0].GetKey() != "m" || page.GetNextMarker() != "" {
		c.t.Fatalf("second page of tags: %v", page)
	}
	cleared, err := admin.UntagResource(ctx, &pb.UntagResourceRequest{KeyId: id, TagKeys: []string{"z", "not there"}})
	must(c.t, err)
	*token = cleared.GetIndexToken()
	if got := tags(); got != "a=first m=" {
		c.t.Fatalf("tags %q", got)
	}
}

// testLists pages through keys with a marker that goes from node to node.
func testLists(ctx context.Context, c *testCluster) {
	for range 5 {
		c.createKey(ctx, c.nodes[1])
	}
	index := c.latest(c.nodes[0])
	all, err := c.dial(auditorID, c.nodes[0]).Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, IndexToken: index})
	must(c.t, err)
	var want, got []string
	for _, k := range all.GetKeys() {
		want = append(want, k.GetKeyId())
	}
	if !slices.IsSorted(want) || len(want) < 8 || all.GetNextMarker() != "" {
		c.t.Fatalf("all keys: %q, marker %q", want, all.GetNextMarker())
	}
	marker := ""
	for n := 0; ; n++ {
		keys := c.dial(auditorID, c.nodes[n%len(c.nodes)]).Keys()
		page, err := keys.ListKeys(ctx, &pb.ListKeysRequest{Limit: 3, Marker: marker, IndexToken: index})
		must(c.t, err)
		for _, k := range page.GetKeys() {
			got = append(got, k.GetKeyId())
		}
		if marker = page.GetNextMarker(); marker == "" {
			break
		}
		if len(page.GetKeys()) != 3 {
			c.t.Fatalf("a page of %d in the middle", len(page.GetKeys()))
		}
	}
	if !slices.Equal(got, want) {
		c.t.Fatalf("pages gave %q, want %q", got, want)
	}
}

// testAliases creates through one node and uses through another.
func testAliases(ctx context.Context, c *testCluster) {
	admin, other, user := c.dial(adminID, c.nodes[1]).Keys(), c.dial(adminID, c.nodes[2]).Keys(), c.dial(userID, c.nodes[0])
	one, two := c.createKey(ctx, c.nodes[1]), c.createKey(ctx, c.nodes[1])
	made, err := admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/walk", KeyId: one})
	must(c.t, err)
	_, err = other.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/walk/second", KeyId: one, IndexToken: made.GetIndexToken()})
	must(c.t, err)
	_, err = other.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/walk", KeyId: two})
	refused(codes.AlreadyExists, client.ErrExists, "alias/walk").check(c.t, "a name that is taken", err)

	list := func(key string) string {
		r, err := other.ListAliases(ctx, &pb.ListAliasesRequest{KeyId: key})
		must(c.t, err)
		var names []string
		for _, a := range r.GetAliases() {
			if a.GetArn() != fmt.Sprintf("arn:quorumkms:kms:%s:default:%s", c.clusterID(), a.GetName()) {
				c.t.Errorf("ARN %s", a.GetArn())
			}
			names = append(names, a.GetName())
		}
		return strings.Join(names, " ")
	}
	if got := list(one); got != "alias/walk alias/walk/second" {
		c.t.Fatalf("aliases of the key: %q", got)
	}
	blob, err := user.Encrypt(ctx, "alias/walk", []byte("x"), nil)
	must(c.t, err)
	moved, err := admin.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: "alias/walk", KeyId: two})
	must(c.t, err)
	r, err := user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: "alias/walk", Plaintext: []byte("x"), IndexToken: moved.GetIndexToken()})
	must(c.t, err)
	if !strings.HasSuffix(r.GetKeyId(), two) {
		c.t.Fatalf("the alias still names %s", r.GetKeyId())
	}
	_, err = user.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob, KeyId: "alias/walk"})
	refused(codes.InvalidArgument, client.ErrInvalid, one, two).check(c.t, "a ciphertext of the key the alias named before", err)
	must(c.t, second(user.Decrypt(ctx, blob, nil)))
	gone, err := admin.DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: "alias/walk"})
	must(c.t, err)
	_, err = user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: "alias/walk", Plaintext: []byte("x"), IndexToken: gone.GetIndexToken()})
	refused(codes.NotFound, client.ErrNotFound, "alias/walk").check(c.t, "an alias that was deleted", err)
	if got := list(one) + list(two); got != "alias/walk/second" {
		c.t.Fatalf("aliases afterwards: %q", got)
	}
}

func second[T any](_ T, err error) error { return err }

func (c *testCluster) clusterID() string {
	c.t.Helper()
	s, err := c.status(c.nodes[0])
	must(c.t, err)
	return s.GetClusterId()
}

// latest is an index token that is not older than any change made so far; ask is a
// node that runs.
func (c *testCluster) latest(ask *process) (token []byte) {
	c.t.Helper()
	c.eventually("a leader tells its index", func() bool { // one that is gone is known for a while
		s, err := c.status(c.leader(ask))
		token = s.GetIndexToken()
		return err == nil
	}, ask)
	return token
}

// testDryRuns asks for everything without meaning it.
func testDryRuns(ctx context.Context, c *testCluster) {
	o := c.fullObject(ctx, "alias/dry")
	pending, resource, doomed, off := c.createKey(ctx), c.createKey(ctx), c.fullObject(ctx, "alias/dry-doomed"), "spiffe://"+testDomain+"/tenant/default/user/off"
	admin := c.dial(adminID)
	must(c.t, second(admin.Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: pending})))
	must(c.t, second(admin.Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: resource, Resource: "r"})))
	must(c.t, second(admin.Keys().ScheduleKeyVersionDestruction(ctx, &pb.ScheduleKeyVersionDestructionRequest{KeyId: doomed.key, Version: 1})))
	must(c.t, second(admin.Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: off})))
	c.level(ctx)
	wouldSucceed := refused(codes.FailedPrecondition, client.ErrDryRun, "would have succeeded")
	callers := map[group]*client.Client{groupUse: c.dial(userID), groupRegister: c.dial(userID), groupOperate: c.dial(operatorID)}
	c.unchanged("a dry run", func() {
		o.dry = true
		tried := 0
		for _, x := range append(catalogue(o), wholeCalls(o)...) {
			if !has(x.request, "dry_run") || x.name == "Init" { // a node that has a cluster tells that only when it is meant
				continue
			}
			want, by := wouldSucceed, callers[x.group]
			if other, ok := needsOther[x.name]; ok {
				want = other
			}
			if by == nil {
				by = admin
			}
			tried++
			if x.name == "ApplyRewraps" { // answers what would become of each item
				must(c.t, x.call(ctx, by))
				continue
			}
			want.check(c.t, x.name, x.call(ctx, by))
		}
		if tried < 40 {
			c.t.Errorf("only %d calls were tried", tried)
		}
		for _, x := range (object{dry: true}).calls(groupAdminister,
			&pb.CancelKeyDeletionRequest{KeyId: pending}, &pb.ReleaseResourceRequest{KeyId: resource, Resource: "r"},
			&pb.CancelKeyVersionDestructionRequest{KeyId: doomed.key, Version: 1}, &pb.EnablePrincipalRequest{Principal: off},
		) {
			wouldSucceed.check(c.t, x.name, x.call(ctx, admin))
		}
		_, err := admin.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: pending, DryRun: true})
		whenPending.check(c.t, "a dry run that would fail", err)
		_, err = admin.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/dry", KeyId: o.key, DryRun: true})
		refused(codes.AlreadyExists, client.ErrExists, "alias/dry").check(c.t, "a dry run that would fail", err)
	})
}

// testRequestIDs repeats every mutation under its id, through each node: it is answered
// as it was first, and nothing is done again.
func testRequestIDs(ctx context.Context, c *testCluster) {
	o := c.fullObject(ctx, "alias/repeated")
	c.level(ctx)
	revision := func() string {
		k, err := c.dial(auditorID).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: o.key, IndexToken: c.latest(c.nodes[0])})
		must(c.t, err)
		t, err := c.dial(operatorID).Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{Name: "default"})
		must(c.t, err)
		return fmt.Sprint(k.GetKey().GetRevision(), t.GetDescription())
	}
	repeated := 0
	for _, x := range append(catalogue(o), wholeCalls(o)...) {
		if !x.mutates() || slices.Contains([]string{
			"Init", "Invite", "ApproveJoin", "RejectJoin", "Remove", "SetVoter", "TransferLeadership", "RotateDomain", "RetireGeneration", "StartRewrap", "StopRewrap", "ApplyRewraps",
		}, x.name) {
			continue // those have tests of their own
		}
		repeated++
		by := adminID
		if x.group == groupOperate {
			by = operatorID
		}
		id := "repeated-" + x.name
		request := with(x.request, "request_id", id)
		first, err := send(ctx, c.dial(by, c.nodes[0]), request)
		if err != nil {
			c.t.Errorf("%s: %v", x.name, err)
			continue
		}
		before := revision()
		for _, p := range c.nodes {
			again, err := send(ctx, c.dial(by, p), request)
			if err != nil || !proto.Equal(with(again, "index_token", []byte(nil)), with(first, "index_token", []byte(nil))) {
				c.t.Errorf("%s again through %s: %v, %v; at first %v", x.name, p.name, again, err, first)
			}
		}
		if after := revision(); after != before {
			c.t.Errorf("%s again did something: %s, before %s", x.name, after, before)
		}
		other := with(&pb.UpdateKeyDescriptionRequest{KeyId: o.key, Description: "other"}, "request_id", id)
		if by == operatorID {
			other = with(&pb.SetTenantQuotaRequest{Name: "default", MaxKeys: 77}, "request_id", id)
		}
		refused(codes.InvalidArgument, client.ErrRequestIDReused, id).check(c.t, "another call with the id of "+x.name, second(send(ctx, c.dial(by, c.nodes[1]), other)))
	}
	if repeated < 30 {
		c.t.Errorf("only %d mutations were repeated", repeated)
	}

	create := func(p *process, id string, description string) (*pb.CreateKeyResponse, error) {
		return c.dial(adminID, p).Keys().CreateKey(ctx, &pb.CreateKeyRequest{RequestId: id, Description: description})
	}
	first, err := create(c.nodes[0], "request-1", "a")
	must(c.t, err)
	_, err = create(c.nodes[1], "request-1", "b")
	refused(codes.InvalidArgument, client.ErrRequestIDReused, "request-1").check(c.t, "another body", err)
	c.issue("/tenant/default/admin/bob", "bob")
	other, err := c.dial("/tenant/default/admin/bob", c.nodes[0]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{RequestId: "request-1", Description: "a"})
	must(c.t, err)
	if other.GetKey().GetKeyId() == first.GetKey().GetKeyId() {
		c.t.Fatal("another principal's request id was taken for the first one's")
	}
	_, err = create(c.nodes[0], strings.Repeat("r", 129), "a")
	refused(codes.InvalidArgument, client.ErrInvalid, "request id", "128").check(c.t, "a long request id", err)
}

// testIndexTokens uses on one node at once what was made on another.
func testIndexTokens(ctx context.Context, c *testCluster) {
	for i := range 60 {
		made, err := c.dial(adminID, c.nodes[i%3]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
		must(c.t, err)
		for _, p := range c.nodes {
			r, err := c.dial(userID, p).Crypto().Encrypt(ctx, &pb.EncryptRequest{
				KeyId: made.GetKey().GetKeyId(), Plaintext: []byte("x"), IndexToken: made.GetIndexToken(),
			})
			if err != nil || len(r.GetCiphertext()) == 0 {
				c.t.Fatalf("a key made through %s, at once through %s: %v", c.nodes[i%3].name, p.name, err)
			}
		}
	}
	user := c.dial(userID, c.nodes[0]).Crypto()
	token := c.latest(c.nodes[0])
	for name, bad := range map[string][]byte{
		"short": token[:27], "long": append(bytes.Clone(token), 0), "another cluster's": append([]byte{token[0] ^ 1}, token[1:]...),
	} {
		_, err := user.GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1, IndexToken: bad})
		refused(codes.InvalidArgument, client.ErrInvalid, "index token").check(c.t, "an index token that is "+name, err)
	}
	ahead := bytes.Clone(token)
	ahead[20]++
	_, err := c.crypto(c.nodes[0]).GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1, IndexToken: ahead})
	refused(codes.Unavailable, client.ErrBehind, "behind").check(c.t, "an index that no node has", fromStatus(err))
}
