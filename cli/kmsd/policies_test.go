package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var (
	lockedOut = refused(codes.FailedPrecondition, client.ErrPolicyLockout, "lock")
	noRule    = refused(codes.PermissionDenied, client.ErrDenied, "no policy and no grant permits")
	forbidden = refused(codes.PermissionDenied, client.ErrDenied, "forbids")
)

// defaults is what a tenant's own policy says so that its members can go on.
const defaults = `
@id("all") permit (principal, action, resource) when { principal has tenant && principal.tenant == resource.tenant };
`

// testPolicyLife puts, reads, replaces and deletes the policies of a tenant and of a key,
// with the revisions that were expected.
func testPolicyLife(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "law")
	key := c.keyOf(ctx, admin).GetKeyId()
	x := c.dial(admin)
	shown, err := x.Policies().GetPolicy(ctx, &pb.GetPolicyRequest{})
	if must(c.t, err); shown.GetPolicy().GetRevision() != 0 || !shown.GetPolicy().GetPresent() || !strings.Contains(shown.GetPolicy().GetText(), `@id("default-admins")`) {
		c.t.Fatalf("the default policy: %v", shown.GetPolicy())
	}
	must(c.t, second(x.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: shown.GetPolicy().GetText(), DryRun: false, ExpectedPolicyRevision: proto.Uint32(0)})))
	must(c.t, second(x.Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{ExpectedPolicyRevision: proto.Uint32(1)})))
	notFound.check(c.t, "the policy of a key that has none", second(x.Policies().GetPolicy(ctx, &pb.GetPolicyRequest{KeyId: key})))

	for of, first := range map[string]uint32{"": 3, key: 1} {
		put := func(text string, expect *uint32) (uint32, error) {
			r, err := x.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: of, Text: text, ExpectedPolicyRevision: expect})
			return r.GetRevision(), err
		}
		get := func(revision uint32) (*pb.Policy, error) {
			r, err := x.Policies().GetPolicy(ctx, &pb.GetPolicyRequest{KeyId: of, Revision: revision})
			return r.GetPolicy(), err
		}
		text := func(i uint32) string { return fmt.Sprintf("// revision %d%s", i, defaults) }
		conflict.check(c.t, "a policy is expected where there is none", second(put(text(first), proto.Uint32(first))))
		n, err := put(text(first), proto.Uint32(0))
		if must(c.t, err); n != first {
			c.t.Fatalf("the first policy has revision %d, want %d", n, first)
		}
		conflict.check(c.t, "none is expected where there is one", second(put(text(first+1), proto.Uint32(0))))
		conflict.check(c.t, "another revision is expected", second(put(text(first+1), proto.Uint32(first+1))))
		n, err = put(text(first+1), proto.Uint32(first))
		if must(c.t, err); n != first+1 {
			c.t.Errorf("revision %d, want %d", n, first+1)
		}
		p, err := get(0)
		if must(c.t, err); p.GetRevision() != first+1 || p.GetText() != text(first+1) || !p.GetPresent() || p.GetCreatedBy() != uri(admin) || p.GetTenant() != "law" || p.GetKeyId() != of || p.GetCreationDate() == nil {
			c.t.Errorf("the present policy: %v", p)
		}
		p, err = get(first)
		if must(c.t, err); p.GetText() != text(first) || p.GetPresent() {
			c.t.Errorf("the revision before: %v", p)
		}
		notFound.check(c.t, "a revision that was never", second(get(99)))
		conflict.check(c.t, "DeletePolicy of another revision", second(x.Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{KeyId: of, ExpectedPolicyRevision: proto.Uint32(first)})))
		must(c.t, second(x.Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{KeyId: of, ExpectedPolicyRevision: proto.Uint32(first + 1)})))
		p, err = get(0)
		if of == "" {
			if must(c.t, err); p.GetRevision() != 0 || !strings.Contains(p.GetText(), "default-users") {
				c.t.Errorf("after DeletePolicy: %v", p)
			}
		} else {
			notFound.check(c.t, "after DeletePolicy", err)
		}
		n, err = put(text(first+3), proto.Uint32(0)) // what GetPolicy said is what is expected
		if must(c.t, err); n != first+3 {
			c.t.Errorf("revision %d after one was deleted, want %d", n, first+3)
		}
		for i := first + 4; i < first+24; i++ {
			must(c.t, second(put(text(i), nil)))
		}
		all, err := x.Policies().ListPolicyRevisions(ctx, &pb.ListPolicyRevisionsRequest{KeyId: of})
		must(c.t, err)
		var numbers []uint32
		for i, p := range all.GetPolicies() {
			numbers = append(numbers, p.GetRevision())
			if p.GetPresent() != (i == 0) || p.GetText() != text(p.GetRevision()) {
				c.t.Errorf("revision %d in the history: %v", i, p)
			}
		}
		if len(numbers) != 20 || numbers[0] != first+23 || !slices.IsSortedFunc(numbers, func(a, b uint32) int { return int(b) - int(a) }) {
			c.t.Errorf("the history: %d", numbers)
		}
		notFound.check(c.t, "a revision that is not kept any more", second(get(first)))
	}
	r, err := x.Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{})
	must(c.t, err)
	k, err := x.Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
	if must(c.t, err); r.GetDescription().GetPolicyRevision() != 26 || k.GetKey().GetPolicyRevision() != 24 {
		c.t.Errorf("tenant %v, key %v", r.GetDescription(), k.GetKey())
	}
	must(c.t, second(c.dial(user).Encrypt(ctx, key, []byte("x"), nil)))
	denied.check(c.t, "PutPolicy by a user", second(c.dial(user).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults})))
	// Concurrent changes that expect the same: one is done.
	results := make([]error, 9)
	_ = concurrently(9, 9, func(i int) error {
		results[i] = second(c.dial(admin, c.nodes[i%3]).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults, ExpectedPolicyRevision: proto.Uint32(26)}))
		return nil
	})
	done := 0
	for _, err := range results {
		if err == nil {
			done++
		} else {
			conflict.check(c.t, "PutPolicy that came too late", err)
		}
	}
	if done != 1 {
		c.t.Errorf("%d of nine changes of the same revision were done", done)
	}
}

// testPolicyTexts: what is wrong with a text is told with line and column, and is not put.
func testPolicyTexts(ctx context.Context, c *testCluster) {
	admin, _ := c.tenant(ctx, "texts")
	x := c.dial(admin).Policies()
	for what, y := range map[string]struct {
		text         string
		line, column uint32
		says         string
	}{
		"no statement":              {"permit (principal, action, resource)", 1, 37, ""},
		"an unknown action":         {"\n\npermit (principal, action == KMS::Action::\"Decypt\", resource);", 3, 30, "Decrypt"},
		"an unknown principal type": {"permit (principal is KMS::Root, action, resource);", 1, 22, "KMS::Root"},
		"an unknown attribute":      {"permit (principal, action, resource)\n  when { principal.nmae == \"x\" };", 2, 20, "name"},
		"a wrong type":              {"permit (principal, action, resource) when { resource.tenant == 3 };", 1, 45, ""},
		"nonsense":                  {"hello", 1, 1, ""},
		"a template":                {"permit (principal == ?principal, action, resource);", 1, 22, ""},
	} {
		r, err := x.ValidatePolicy(ctx, &pb.ValidatePolicyRequest{Text: y.text})
		must(c.t, err)
		if len(r.GetProblems()) == 0 {
			c.t.Errorf("%s: nothing is wrong", what)
			continue
		}
		p := r.GetProblems()[0]
		if p.GetLine() != y.line || p.GetColumn() != y.column || !strings.Contains(p.GetText(), y.says) {
			c.t.Errorf("%s: %d:%d: %s; want %d:%d and %q", what, p.GetLine(), p.GetColumn(), p.GetText(), y.line, y.column, y.says)
		}
		refused(codes.InvalidArgument, client.ErrPolicyInvalid, fmt.Sprintf("%d:%d: ", p.GetLine(), p.GetColumn())).
			check(c.t, "PutPolicy of "+what, second(x.PutPolicy(ctx, &pb.PutPolicyRequest{Text: y.text})))
	}
	r, err := x.ValidatePolicy(ctx, &pb.ValidatePolicyRequest{Text: defaults})
	if must(c.t, err); len(r.GetProblems()) != 0 {
		c.t.Errorf("a good policy has problems: %v", r.GetProblems())
	}
	invalidWith("empty").check(c.t, "PutPolicy of nothing", second(x.PutPolicy(ctx, &pb.PutPolicyRequest{})))
	large := "// " + strings.Repeat("x", 32<<10) + defaults
	refused(codes.InvalidArgument, client.ErrPolicyInvalid).check(c.t, "PutPolicy of 32 KiB", second(x.PutPolicy(ctx, &pb.PutPolicyRequest{Text: large})))
	shown, err := x.GetPolicy(ctx, &pb.GetPolicyRequest{})
	if must(c.t, err); shown.GetPolicy().GetRevision() != 0 {
		c.t.Errorf("a policy that was refused is there: %v", shown.GetPolicy())
	}
}

// testPolicyDecides: what a policy forbids beats everything, on every node when PutPolicy
// has returned; and it sees tags, aliases, contexts and the time.
func testPolicyDecides(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "judge")
	admin := c.dial(x.admin)
	users, vendors := c.through(ctx, x.user), c.through(ctx, x.vendor)
	seal := func(kv ...string) *pb.EncryptRequest {
		return &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs(kv...)}
	}
	put := func(i int, of, text string) {
		c.t.Helper()
		must(c.t, second(c.dial(x.admin, c.nodes[i%3]).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: of, Text: text})))
	}
	c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt"}})
	c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.user), Operations: []string{"Encrypt"}})
	c.everywhere(ctx, "the vendor, by a grant", nil, vendors, seal())
	i := 0
	for of, where := range map[string]string{"": "tenant policy", x.key: "key policy"} {
		for range 3 {
			i++
			put(i, of, defaults+`@id("stop") forbid (principal, action == KMS::Action::"Encrypt", resource);`)
			c.everywhere(ctx, "the user, forbidden by the "+where, refused(codes.PermissionDenied, client.ErrDenied, where, "stop", "forbids"), users, seal())
			c.everywhere(ctx, "the vendor, with a grant that is beaten", needsGrant, vendors, seal())
			must(c.t, second(c.dial(x.admin, c.nodes[(i+1)%3]).Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{KeyId: of})))
			c.everywhere(ctx, "the vendor, by a grant again", nil, vendors, seal())
			c.everywhere(ctx, "the user", nil, users, seal())
		}
	}
	// Nothing permits: the grant still does; without it nothing.
	grants, err := admin.Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key, GranteePrincipal: uri(x.user)})
	must(c.t, err)
	put(1, "", `permit (principal is KMS::Admin, action, resource);`)
	c.everywhere(ctx, "the user, by a grant", nil, users, seal())
	must(c.t, second(admin.Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: grants.GetGrants()[0].GetGrantId()})))
	c.everywhere(ctx, "the user, by nothing", noRule, users, seal())

	// What a policy can look at.
	const rest = `permit (principal is KMS::Admin, action, resource); `
	permit := func(condition string) string {
		return rest + `permit (principal is KMS::User, action in KMS::Action::"use", resource is KMS::Key) when { ` + condition + ` };`
	}
	put(2, "", permit(`resource.hasTag("env") && resource.getTag("env") == "test"`))
	c.everywhere(ctx, "no tag", noRule, users, seal())
	must(c.t, second(admin.Keys().TagResource(ctx, &pb.TagResourceRequest{KeyId: x.key, Tags: []*pb.Tag{{Key: "env", Value: "prod"}}})))
	c.everywhere(ctx, "another tag", noRule, users, seal())
	must(c.t, second(admin.Keys().TagResource(ctx, &pb.TagResourceRequest{KeyId: x.key, Tags: []*pb.Tag{{Key: "env", Value: "test"}}})))
	c.level(ctx)
	c.everywhere(ctx, "the tag", nil, users, seal())
	must(c.t, second(admin.Keys().UntagResource(ctx, &pb.UntagResourceRequest{KeyId: x.key, TagKeys: []string{"env"}})))
	c.everywhere(ctx, "the tag is gone", noRule, users, seal())

	put(0, "", permit(`resource.aliases.contains("alias/judged")`))
	c.everywhere(ctx, "no alias", noRule, users, seal())
	must(c.t, second(admin.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/judged", KeyId: x.key})))
	c.level(ctx)
	c.everywhere(ctx, "the alias", nil, users, seal())
	must(c.t, second(admin.Keys().DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: "alias/judged"})))
	c.everywhere(ctx, "the alias is gone", noRule, users, seal())

	put(1, "", permit(`context.encryption_context.hasTag("bucket") && context.encryption_context.getTag("bucket") == "photos"`))
	c.everywhere(ctx, "no context", noRule, users, seal())
	c.everywhere(ctx, "another context", noRule, users, seal("bucket", "films"))
	c.everywhere(ctx, "the context", nil, users, seal("bucket", "photos", "object", "1"))

	put(2, "", permit(fmt.Sprintf(`resource.spec == %q && resource.manager == "CUSTOMER" && resource.usage == "ENCRYPT_DECRYPT"`, "SYMMETRIC")))
	c.everywhere(ctx, "the spec", nil, users, seal())

	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	put(0, "", permit(fmt.Sprintf(`context.time < datetime(%q)`, end.UTC().Format("2006-01-02T15:04:05Z"))))
	c.eventually("the policy's time is over on every node", func() bool {
		over := 0
		for _, u := range users {
			began := time.Now()
			err := second(send(ctx, u, seal()))
			if err == nil && began.After(end) {
				c.t.Fatalf("a call that began %s after the time was over was served", began.Sub(end))
			}
			if err != nil {
				noRule.check(c.t, "after the time", err)
				if time.Now().Before(end) {
					c.t.Errorf("refused %s before the time was over", time.Until(end))
				}
				over++
			}
		}
		return over == len(users)
	})

	// A key's policy permits what the tenant's does not, and only for that key.
	other := c.keyOf(ctx, x.admin).GetKeyId()
	put(1, "", rest)
	put(2, x.key, fmt.Sprintf(`permit (principal == KMS::User::%q, action == KMS::Action::"Encrypt", resource);`, uri(x.user)))
	c.everywhere(ctx, "the key's own policy", nil, users, seal())
	c.everywhere(ctx, "another key", noRule, users, &pb.EncryptRequest{KeyId: other, Plaintext: []byte("x")})
	c.everywhere(ctx, "another operation", noRule, users, &pb.GenerateDataKeyRequest{KeyId: x.key, NumberOfBytes: 1})
	// A policy permits the callers of its own tenant only; the others need a grant.
	agents := c.through(ctx, x.agent)
	put(0, "", `permit (principal, action, resource);`)
	c.everywhere(ctx, "another tenant's user, whom a policy permits", needsGrant, agents, seal())
	// Roles are the frame of every policy.
	c.everywhere(ctx, "an administrator, whom a policy permits to encrypt", denied, c.through(ctx, x.admin), seal())
	c.everywhere(ctx, "a user, whom a policy permits to disable", denied, users, &pb.DisableKeyRequest{KeyId: x.key})
	// A restriction of the administrator itself.
	put(1, x.key, `@id("keep") forbid (principal, action == KMS::Action::"ScheduleKeyDeletion", resource);`)
	c.everywhere(ctx, "ScheduleKeyDeletion", forbidden, c.through(ctx, x.admin), &pb.ScheduleKeyDeletionRequest{KeyId: x.key})
	c.everywhere(ctx, "ScheduleKeyDeletion of another key", refused(codes.FailedPrecondition, client.ErrDryRun), c.through(ctx, x.admin), &pb.ScheduleKeyDeletionRequest{KeyId: other, DryRun: true})
}

// testPolicyLockout: a policy with which nobody could put another is refused.
func testPolicyLockout(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "locks")
	deputy := c.identity("/tenant/locks/admin/locks-deputy")
	key := c.keyOf(ctx, admin).GetKeyId()
	x := c.dial(admin).Policies()
	before := c.dumpOf(ctx, admin)
	for of, name := range map[string]string{"": "PutTenantPolicy", key: "PutKeyPolicy"} {
		for what, text := range map[string]string{
			"forbids all":         defaults + `forbid (principal, action, resource);`,
			"forbids the call":    defaults + `forbid (principal, action == KMS::Action::"` + name + `", resource);`,
			"forbids the class":   defaults + `forbid (principal is KMS::Admin, action, resource);`,
			"permits others only": fmt.Sprintf(`permit (principal == KMS::User::%q, action, resource);`, uri(user)),
		} {
			if of != "" && what == "permits others only" {
				continue // the tenant's policy permits
			}
			lockedOut.check(c.t, name+" that "+what, second(x.PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: of, Text: text})))
			lockedOut.check(c.t, name+" that "+what+", tried", second(x.PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: of, Text: text, DryRun: true})))
		}
	}
	if after := c.dumpOf(ctx, admin); after != before {
		c.t.Errorf("the tenant was %s\nand is %s", before, after)
	}
	// One who is left is enough: the caller, or the first administrator.
	only := func(id string) string {
		return fmt.Sprintf(`permit (principal == KMS::Admin::%q, action, resource);`, uri(id))
	}
	must(c.t, second(x.PutPolicy(ctx, &pb.PutPolicyRequest{Text: only(admin)})))
	noRule.check(c.t, "PutPolicy by another administrator", second(c.dial(deputy).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults})))
	lockedOut.check(c.t, "a policy for another administrator alone", second(x.PutPolicy(ctx, &pb.PutPolicyRequest{Text: only(deputy)})))
	must(c.t, second(x.DeletePolicy(ctx, &pb.DeletePolicyRequest{})))
	must(c.t, second(c.dial(deputy).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: only(deputy)})))
	noRule.check(c.t, "PutPolicy by the first administrator", second(x.PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults})))
	must(c.t, second(c.dial(deputy).Policies().DeletePolicy(ctx, &pb.DeletePolicyRequest{})))
	// One who is disabled is not left.
	must(c.t, second(c.dial(deputy).Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: uri(admin)})))
	lockedOut.check(c.t, "a policy for a disabled administrator", second(c.dial(deputy).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: only(admin)})))
}

// testPolicyExplained asks how calls would be decided, and makes them.
func testPolicyExplained(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "reasons")
	admin := c.dial(x.admin)
	grant := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt", "DescribeKey"},
		Constraints: &pb.GrantConstraints{EncryptionContextSubset: pairs("a", "1")},
	})
	must(c.t, second(admin.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults + `@id("no-random") forbid (principal, action == KMS::Action::"GenerateDataKey", resource);`})))
	c.level(ctx)
	seal := &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs("a", "1")}
	for _, y := range []struct {
		who, operation string
		ec             []*pb.ContextPair
		call           proto.Message
		decidedBy      string
	}{
		{x.user, "Encrypt", pairs("a", "1"), seal, "tenant policy: all"},
		{x.user, "GenerateDataKey", nil, &pb.GenerateDataKeyRequest{KeyId: x.arn, NumberOfBytes: 1}, "tenant policy: no-random"},
		{x.user, "DisableKey", nil, &pb.DisableKeyRequest{KeyId: x.arn, DryRun: true}, "role"},
		{x.vendor, "Encrypt", pairs("a", "1"), seal, "grant " + grant},
		{x.vendor, "Encrypt", nil, &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x")}, "tenant"},
		{x.vendor, "DescribeKey", nil, &pb.DescribeKeyRequest{KeyId: x.arn}, "grant " + grant},
		{x.admin, "DisableKey", nil, &pb.DisableKeyRequest{KeyId: x.arn, DryRun: true}, "tenant policy: all"},
		{x.admin, "BindResource", nil, &pb.BindResourceRequest{KeyId: x.arn, Resource: "r", DryRun: true}, "tenant policy: all"},
		{x.admin, "Encrypt", nil, &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x")}, "role"},
		{serviceID, "Encrypt", nil, &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x")}, "service"},
	} {
		told, err := admin.Policies().ExplainPolicy(ctx, &pb.ExplainPolicyRequest{KeyId: x.key, Principal: uri(y.who), Operation: y.operation, EncryptionContext: y.ec})
		must(c.t, err)
		called := second(send(ctx, c.dial(y.who), y.call))
		what := fmt.Sprintf("%s by %s", y.operation, y.who)
		allowed := called == nil || strings.Contains(called.Error(), "DRY_RUN")
		if told.GetAllowed() != allowed {
			c.t.Errorf("%s: explained as allowed: %v; the call: %v", what, told.GetAllowed(), called)
		}
		if !strings.HasPrefix(told.GetDecidedBy(), y.decidedBy) || (told.GetReason() == "") != told.GetAllowed() || len(told.GetSteps()) < 3 {
			c.t.Errorf("%s: explained by %v, want %q", what, told, y.decidedBy)
		}
	}
	explain := func(r *pb.ExplainPolicyRequest) error { return second(admin.Policies().ExplainPolicy(ctx, r)) }
	invalidWith("unknown").check(c.t, "an unknown operation", explain(&pb.ExplainPolicyRequest{KeyId: x.key, Principal: uri(x.user), Operation: "Decypt"}))
	invalidWith("name no key").check(c.t, "CreateKey of a key", explain(&pb.ExplainPolicyRequest{KeyId: x.key, Principal: uri(x.user), Operation: "CreateKey"}))
	invalidWith("name one").check(c.t, "Decrypt of no key", explain(&pb.ExplainPolicyRequest{Principal: uri(x.user), Operation: "Decrypt"}))
	invalidWith("principal").check(c.t, "no principal", explain(&pb.ExplainPolicyRequest{KeyId: x.key, Operation: "Decrypt"}))
	must(c.t, second(admin.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: x.key})))
	told, err := admin.Policies().ExplainPolicy(ctx, &pb.ExplainPolicyRequest{KeyId: x.key, Principal: uri(x.user), Operation: "Encrypt"})
	if must(c.t, err); told.GetAllowed() || told.GetDecidedBy() != "state" || !strings.Contains(told.GetReason(), "disabled") {
		c.t.Errorf("the use of a disabled key: %v", told)
	}
}

// testRequiredContext: a key wants context keys of every call, at once on every node.
func testRequiredContext(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "context")
	key := c.keyOf(ctx, admin).GetKeyId()
	bare := c.encrypt(ctx, user, key, nil)
	users := c.through(ctx, user)
	set := func(p *process, keys ...string) {
		c.t.Helper()
		must(c.t, second(c.dial(admin, p).Keys().SetRequiredContext(ctx, &pb.SetRequiredContextRequest{KeyId: key, ContextKeys: keys})))
	}
	seal := func(kv ...string) *pb.EncryptRequest {
		return &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x"), EncryptionContext: pairs(kv...)}
	}
	for i, p := range c.nodes {
		set(p, "volume", "tenant")
		c.everywhere(ctx, "no context", invalidWith("requires", "tenant"), users, seal())
		c.everywhere(ctx, "half of it", invalidWith("requires", "volume"), users, seal("tenant", "t"))
		c.everywhere(ctx, "in another case", invalidWith("requires"), users, seal("Tenant", "t", "volume", "v"))
		c.everywhere(ctx, "all of it", nil, users, seal("volume", "", "tenant", "t", "more", "m"))
		c.everywhere(ctx, "what was sealed before", invalidWith("requires"), users, &pb.DecryptRequest{Ciphertext: bare})
		c.everywhere(ctx, "ReEncrypt to less", invalidWith("requires"), users, &pb.ReEncryptRequest{
			Ciphertext: c.encrypt(ctx, user, key, map[string]string{"tenant": "t", "volume": "v"}), SourceEncryptionContext: pairs("tenant", "t", "volume", "v"),
		})
		set(c.nodes[(i+1)%3])
		c.level(ctx)
		c.everywhere(ctx, "nothing is required", nil, users, &pb.DecryptRequest{Ciphertext: bare})
	}
	x := c.dial(admin).Keys()
	set(c.nodes[0], "z", "a")
	k, err := x.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
	if must(c.t, err); !slices.Equal(k.GetKey().GetRequiredContext(), []string{"a", "z"}) {
		c.t.Errorf("required: %q", k.GetKey().GetRequiredContext())
	}
	for what, keys := range map[string][]string{
		"an empty key": {""}, "a key twice": {"a", "a"}, "a reserved key": {"kms:x"}, "too many": strings.Split(strings.Repeat("x,", 16)+"y", ","), "a long key": {strings.Repeat("x", 513)},
	} {
		invalidWith("required context key").check(c.t, what, second(x.SetRequiredContext(ctx, &pb.SetRequiredContextRequest{KeyId: key, ContextKeys: keys})))
	}
}
