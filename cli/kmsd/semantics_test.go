package main

import (
	"context"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestSemantics asks what tenants, grants, policies and services may, on one cluster of
// nodes that rotate keys each minute if they are asked to.
func TestSemantics(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		p.extra = "rotation: {min_period: 1m}"
	}
	c.begin()
	var rotated *rotation
	c.run("RotationBegins", func(ctx context.Context, c *testCluster) { rotated = beginRotation(ctx, c) })
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Tenants", testTenants},
		{"TenantsApart", testTenantsApart},
		{"Quotas", testQuotas},
		{"Freeze", testFreeze},
		{"DisabledPrincipals", testDisabledPrincipals},
		{"GrantAcrossTenants", testGrantAcrossTenants},
		{"GrantConstraints", testGrantConstraints},
		{"GrantDelegation", testGrantDelegation},
		{"GrantRetirement", testGrantRetirement},
		{"GrantExpiry", testGrantExpiry},
		{"GrantToService", testGrantToService},
		{"GrantNames", testGrantNames},
		{"GrantPages", testGrantPages},
		{"GrantReEncrypt", testGrantReEncrypt},
		{"ServiceKeys", testServiceKeys},
		{"ServiceKeyOthers", testServiceKeyOthers},
		{"ServiceKeyAdministrator", testServiceKeyAdministrator},
		{"ServiceKeyFrozen", testServiceKeyFrozen},
		{"PolicyLife", testPolicyLife},
		{"PolicyTexts", testPolicyTexts},
		{"PolicyDecides", testPolicyDecides},
		{"PolicyLockout", testPolicyLockout},
		{"PolicyExplained", testPolicyExplained},
		{"RequiredContext", testRequiredContext},
		{"Order", testOrder},
		{"Versions", testVersions},
		{"DoomedKey", testDoomedKey},
		{"ManyKeys", testManyKeys},
		{"RateLimits", testRateLimits},
	} {
		c.run(s.name, s.f)
	}
	c.run("RotationIsDone", func(ctx context.Context, c *testCluster) { rotated.check(ctx, c) })
}

// What callers are told whom the table of states does not know.
var (
	denied          = refused(codes.PermissionDenied, client.ErrDenied)
	needsGrant      = refused(codes.PermissionDenied, client.ErrDenied, "no grant of yours allows it")
	principalOff    = refused(codes.PermissionDenied, client.ErrPrincipalDisabled, "principal is disabled")
	serviceManaged  = refused(codes.FailedPrecondition, client.ErrServiceManaged, "managed by a service")
	conflict        = refused(codes.Aborted, client.ErrConflict, "changed meanwhile")
	limitReached    = refused(codes.ResourceExhausted, client.ErrLimit, "limit reached")
	alreadyThere    = refused(codes.AlreadyExists, client.ErrExists, "already exists")
	versionDisabled = refused(codes.FailedPrecondition, client.ErrKeyVersionDisabled, "key version is disabled")
)

// uri is the SPIFFE URI of an identity's path.
func uri(path string) string { return "spiffe://" + testDomain + path }

// identity issues a certificate for a path, once.
func (c *testCluster) identity(path string) string {
	c.t.Helper()
	if !exists(filepath.Join(c.certs(), filepath.Base(path)+".crt")) {
		c.issue(path, filepath.Base(path))
	}
	return path
}

// tenant makes a tenant and gives it an administrator and a user.
func (c *testCluster) tenant(ctx context.Context, name string) (admin, user string) {
	c.t.Helper()
	admin, user = c.identity("/tenant/"+name+"/admin/"+name+"-admin"), c.identity("/tenant/"+name+"/user/"+name+"-user")
	must(c.t, second(c.dial(operatorID).Tenants().CreateTenant(ctx, &pb.CreateTenantRequest{Name: name, Administrator: uri(admin)})))
	return admin, user
}

// keyOf makes a key of a tenant that every running node knows.
func (c *testCluster) keyOf(ctx context.Context, admin string) *pb.KeyMetadata {
	c.t.Helper()
	r, err := c.dial(admin).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)
	c.level(ctx)
	return r.GetKey()
}

// through are clients of one caller, one for each node, that are connected and know no
// index but what they have been told themselves.
func (c *testCluster) through(ctx context.Context, id string) (out []*client.Client) {
	c.t.Helper()
	for _, p := range c.nodes {
		x := c.dial(id, p)
		must(c.t, second(x.Cluster().Status(ctx, &pb.StatusRequest{})))
		out = append(out, x)
	}
	return out
}

// everywhere makes a call through every node and wants the same of each.
func (c *testCluster) everywhere(ctx context.Context, what string, want *refusal, clients []*client.Client, request proto.Message) {
	c.t.Helper()
	for i, x := range clients {
		want.check(c.t, what+" through "+c.nodes[i].name, second(send(ctx, x, request)))
	}
}

// encrypt seals x under a key and returns the ciphertext.
func (c *testCluster) encrypt(ctx context.Context, id, key string, ec map[string]string) []byte {
	c.t.Helper()
	blob, err := c.dial(id).Encrypt(ctx, key, []byte("x"), ec)
	must(c.t, err)
	return blob
}
