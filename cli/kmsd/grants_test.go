package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// customer is a tenant with a key, and a vendor of another tenant who is to use it.
type customer struct {
	admin, user   string
	vendor, agent string // users of the other tenant
	key, arn      string
}

func (c *testCluster) customer(ctx context.Context, name string) customer {
	c.t.Helper()
	x := customer{}
	x.admin, x.user = c.tenant(ctx, name)
	_, x.vendor = c.tenant(ctx, name+"-isv")
	x.agent = c.identity("/tenant/" + name + "-isv/user/" + name + "-agent")
	k := c.keyOf(ctx, x.admin)
	x.key, x.arn = k.GetKeyId(), k.GetArn()
	return x
}

// give makes a grant in a caller's name through a node.
func (c *testCluster) give(ctx context.Context, by string, p *process, r *pb.CreateGrantRequest) string {
	c.t.Helper()
	made, err := c.dial(by, p).Grants().CreateGrant(ctx, r)
	must(c.t, err)
	return made.GetGrantId()
}

func pairs(kv ...string) (out []*pb.ContextPair) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, &pb.ContextPair{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

// testGrantAcrossTenants lets a vendor use a customer's key: by a grant only, on every
// node at once; and takes it back on every node at once. The customer's records show it.
func testGrantAcrossTenants(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "shop")
	blob := c.encrypt(ctx, x.user, x.key, map[string]string{"app": "crm"})
	vendors, agents := c.through(ctx, x.vendor), c.through(ctx, x.agent)
	open := &pb.DecryptRequest{Ciphertext: blob, KeyId: x.arn, EncryptionContext: pairs("app", "crm")}
	seal := &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs("app", "crm")}
	describe := &pb.DescribeKeyRequest{KeyId: x.arn}
	c.everywhere(ctx, "Decrypt without a grant", needsGrant, vendors, open)
	c.everywhere(ctx, "DescribeKey without a grant", needsGrant, vendors, describe)
	for i, p := range c.nodes {
		grant := c.give(ctx, x.admin, p, &pb.CreateGrantRequest{
			KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt", "Decrypt", "DescribeKey"},
			Constraints: &pb.GrantConstraints{EncryptionContextSubset: pairs("app", "crm")},
		})
		c.everywhere(ctx, "Decrypt", nil, vendors, open)
		c.everywhere(ctx, "Encrypt", nil, vendors, seal)
		c.everywhere(ctx, "DescribeKey, which has no context to constrain", nil, vendors, describe)
		c.everywhere(ctx, "Decrypt by another user of the vendor", needsGrant, agents, open)
		c.everywhere(ctx, "what the grant does not allow", needsGrant, vendors, &pb.GenerateDataKeyRequest{KeyId: x.arn, NumberOfBytes: 1, EncryptionContext: pairs("app", "crm")})
		c.everywhere(ctx, "ReEncrypt, which the grant does not allow", needsGrant, vendors, &pb.ReEncryptRequest{Ciphertext: blob, SourceKeyId: x.arn, SourceEncryptionContext: pairs("app", "crm")})
		c.everywhere(ctx, "ListGrants", needsGrant, vendors, &pb.ListGrantsRequest{KeyId: x.arn})
		c.everywhere(ctx, "DisableKey", denied, vendors, &pb.DisableKeyRequest{KeyId: x.arn})
		c.everywhere(ctx, "Decrypt by the bare id", notFound, vendors, &pb.DecryptRequest{Ciphertext: blob, EncryptionContext: pairs("app", "crm")})
		c.everywhere(ctx, "Decrypt for the customer", nil, vendors, &pb.DecryptRequest{Ciphertext: blob, EncryptionContext: pairs("app", "crm"), Tenant: "shop"})
		e := c.recorded(p, "Decrypt by the vendor", func() { must(c.t, second(send(ctx, vendors[i], open))) })
		if e.Tenant != "shop" || e.Principal != uri(x.vendor) || e.KeyID != x.key || e.DecidedBy != "grant "+grant || e.Result != audit.Success {
			c.t.Errorf("the record of a use by a grant: %+v", e)
		}
		if i == 1 { // the grantee has gone; the key comes back
			must(c.t, second(c.dial(x.admin, p).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: x.key})))
			c.everywhere(ctx, "Decrypt with a disabled key", whenDisabled, vendors, open)
			must(c.t, second(c.dial(x.admin, p).Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: x.key})))
		}
		must(c.t, second(c.dial(x.admin, c.nodes[(i+1)%3]).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: grant})))
		c.everywhere(ctx, "Decrypt after it was revoked", needsGrant, vendors, open)
		c.everywhere(ctx, "Encrypt after it was revoked", needsGrant, vendors, seal)
		e = c.recorded(p, "Decrypt without a grant", func() { _, _ = send(ctx, vendors[i], open) })
		if e.Tenant != "shop" || e.Principal != uri(x.vendor) || e.Result != audit.Denied {
			c.t.Errorf("the record of a use that is denied: %+v", e)
		}
		notFound.check(c.t, "RevokeGrant again", second(c.dial(x.admin, p).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: grant})))
	}
}

// testGrantConstraints: the context equals the pairs, or has them; nothing else will do.
func testGrantConstraints(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "narrow")
	vendor := c.dial(x.vendor)
	seal := func(kv ...string) error {
		return second(vendor.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs(kv...)}))
	}
	fits := func(what string, constraints *pb.GrantConstraints, good, bad [][]string) {
		grant := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt"}, Constraints: constraints})
		for _, kv := range good {
			if err := seal(kv...); err != nil {
				c.t.Errorf("%s: context %q: %v", what, kv, err)
			}
		}
		for _, kv := range bad {
			needsGrant.check(c.t, fmt.Sprintf("%s: context %q", what, kv), seal(kv...))
		}
		must(c.t, second(c.dial(x.admin).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: grant})))
	}
	fits("none", nil, [][]string{nil, {"a", "1"}}, nil)
	fits("subset", &pb.GrantConstraints{EncryptionContextSubset: pairs("b", "2", "a", "1")},
		[][]string{{"a", "1", "b", "2"}, {"b", "2", "c", "3", "a", "1"}}, [][]string{nil, {"a", "1"}, {"a", "1", "b", "3"}, {"A", "1", "b", "2"}, {"a", "1", "b", "2 "}})
	fits("equals", &pb.GrantConstraints{EncryptionContextEquals: pairs("a", "1", "b", "2")},
		[][]string{{"b", "2", "a", "1"}}, [][]string{nil, {"a", "1"}, {"a", "1", "b", "2", "c", "3"}, {"a", "1", "b", "b"}})
	admin := c.dial(x.admin).Grants()
	nine := pairs("1", "", "2", "", "3", "", "4", "", "5", "", "6", "", "7", "", "8", "", "9", "")
	for what, y := range map[string]struct {
		want *refusal
		r    *pb.CreateGrantRequest
	}{
		"no operation":         {invalidWith("operation"), &pb.CreateGrantRequest{}},
		"an unknown operation": {invalidWith("DisableKey"), &pb.CreateGrantRequest{Operations: []string{"DisableKey"}}},
		"an operation twice":   {invalidWith("twice"), &pb.CreateGrantRequest{Operations: []string{"Decrypt", "Decrypt"}}},
		"both constraints": {invalidWith("not both"), &pb.CreateGrantRequest{Constraints: &pb.GrantConstraints{
			EncryptionContextEquals: pairs("a", "1"), EncryptionContextSubset: pairs("a", "1"),
		}}},
		"nine pairs":                      {invalidWith("9 pairs"), &pb.CreateGrantRequest{Constraints: &pb.GrantConstraints{EncryptionContextSubset: nine}}},
		"a key twice":                     {invalidWith("twice"), &pb.CreateGrantRequest{Constraints: &pb.GrantConstraints{EncryptionContextSubset: pairs("a", "1", "a", "2")}}},
		"a grantee that is none":          {invalidWith("grantee"), &pb.CreateGrantRequest{GranteePrincipal: "vendor"}},
		"a grantee elsewhere":             {invalidWith("trust domain"), &pb.CreateGrantRequest{GranteePrincipal: "spiffe://elsewhere.test/tenant/a/user/b"}},
		"an administrator as a grantee":   {invalidWith("uses no keys"), &pb.CreateGrantRequest{GranteePrincipal: uri(adminID)}},
		"an operator as a grantee":        {invalidWith("uses no keys"), &pb.CreateGrantRequest{GranteePrincipal: uri(operatorID)}},
		"a retiring principal of no kind": {invalidWith("retiring principal"), &pb.CreateGrantRequest{RetiringPrincipal: "x"}},
		"a long name":                     {invalidWith("257 bytes"), &pb.CreateGrantRequest{Name: strings.Repeat("n", 257)}},
		"a parent that is none":           {notFound, &pb.CreateGrantRequest{ParentGrantId: "none"}},
		"a revision that has passed":      {conflict, &pb.CreateGrantRequest{ExpectedRevision: 1}},
		"an end in the past":              {invalidWith("have ended"), &pb.CreateGrantRequest{ExpirationDate: timestamppb.New(time.Now().Add(-time.Minute))}},
		"an end at the beginning":         {invalidWith("have ended"), &pb.CreateGrantRequest{ExpirationDate: &timestamppb.Timestamp{}}},
		"an end before there was time":    {invalidWith("have ended"), &pb.CreateGrantRequest{ExpirationDate: timestamppb.New(time.Time{})}},
		"an end that is no date":          {invalidWith("expiration date"), &pb.CreateGrantRequest{ExpirationDate: &timestamppb.Timestamp{Nanos: -1}}},
	} {
		y.r.KeyId = x.key
		if y.r.GranteePrincipal == "" {
			y.r.GranteePrincipal = uri(x.vendor)
		}
		if y.r.Operations == nil && what != "no operation" {
			y.r.Operations = []string{"Encrypt"}
		}
		y.want.check(c.t, what, second(admin.CreateGrant(ctx, y.r)))
	}
	needsGrant.check(c.t, "afterwards", seal())
}

// testGrantDelegation: who holds a grant with CreateGrant gives on no more than it has,
// and nothing of it outlives what it came from.
func testGrantDelegation(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "chain")
	agents := c.through(ctx, x.agent)
	vendor := c.dial(x.vendor).Grants()
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	child := func() *pb.CreateGrantRequest {
		return &pb.CreateGrantRequest{
			KeyId: x.arn, GranteePrincipal: uri(x.agent), Operations: []string{"Encrypt"}, ExpirationDate: timestamppb.New(end),
			Constraints: &pb.GrantConstraints{EncryptionContextSubset: pairs("app", "crm", "site", "1")},
		}
	}
	needsGrant.check(c.t, "CreateGrant without a grant", second(vendor.CreateGrant(ctx, child())))
	plain := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt", "Decrypt"}})
	needsGrant.check(c.t, "CreateGrant with a grant that does not allow it", second(vendor.CreateGrant(ctx, child())))
	parent := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt", "CreateGrant"}, ExpirationDate: timestamppb.New(end),
		Constraints: &pb.GrantConstraints{EncryptionContextSubset: pairs("app", "crm")},
	})
	for what, edit := range map[string]func(r *pb.CreateGrantRequest){
		"more operations":        func(r *pb.CreateGrantRequest) { r.Operations = []string{"Encrypt", "Decrypt"} },
		"no constraints":         func(r *pb.CreateGrantRequest) { r.Constraints = nil },
		"looser constraints":     func(r *pb.CreateGrantRequest) { r.Constraints.EncryptionContextSubset = pairs("site", "1") },
		"other constraints":      func(r *pb.CreateGrantRequest) { r.Constraints.EncryptionContextSubset = pairs("app", "erp") },
		"a later end":            func(r *pb.CreateGrantRequest) { r.ExpirationDate = timestamppb.New(end.Add(time.Second)) },
		"no end":                 func(r *pb.CreateGrantRequest) { r.ExpirationDate = nil },
		"a parent without leave": func(r *pb.CreateGrantRequest) { r.ParentGrantId = plain },
	} {
		r := child()
		edit(r)
		err := second(vendor.CreateGrant(ctx, r))
		want := invalidWith()
		if r.ParentGrantId != "" {
			want = notFound
		}
		want.check(c.t, "a grant that follows from one, with "+what, err)
	}
	seal := &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs("app", "crm", "site", "1")}
	c.everywhere(ctx, "Encrypt by the agent", needsGrant, agents, seal)
	made := c.give(ctx, x.vendor, c.nodes[1], child())
	c.everywhere(ctx, "Encrypt by the agent", nil, agents, seal)
	c.everywhere(ctx, "Encrypt of another site", needsGrant, agents, &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x"), EncryptionContext: pairs("app", "crm")})
	listed, err := c.dial(x.admin).Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key, GrantId: made})
	if must(c.t, err); len(listed.GetGrants()) != 1 || listed.GetGrants()[0].GetParentGrantId() != parent || listed.GetGrants()[0].GetIssuingPrincipal() != uri(x.vendor) {
		c.t.Errorf("the grant that follows: %v", listed.GetGrants())
	}
	// Taking the first back takes the second.
	must(c.t, second(c.dial(x.admin, c.nodes[2]).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: parent})))
	c.everywhere(ctx, "Encrypt by the agent after the vendor's grant was revoked", needsGrant, agents, seal)
	notFound.check(c.t, "the grant that followed", second(c.dial(x.admin).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: made})))

	// A chain as long as may be, all of it ended by its head.
	holders := []string{x.vendor}
	for i := range 9 {
		holders = append(holders, c.identity(fmt.Sprintf("/tenant/chain-isv/user/chain-%d", i)))
	}
	head := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt", "CreateGrant"}})
	for i := range 9 {
		err := second(c.dial(holders[i], c.nodes[i%3]).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
			KeyId: x.arn, GranteePrincipal: uri(holders[i+1]), Operations: []string{"Encrypt", "CreateGrant"},
		}))
		if i < 8 {
			must(c.t, err)
		} else {
			limitReached.check(c.t, "a chain that is too long", err)
		}
	}
	last := c.through(ctx, holders[8])
	c.everywhere(ctx, "Encrypt by the last of the chain", nil, last, seal)
	must(c.t, second(c.dial(x.admin, c.nodes[1]).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: head})))
	c.everywhere(ctx, "Encrypt by the last of a chain that was cut", needsGrant, last, seal)
	left, err := c.dial(x.admin).Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key})
	if must(c.t, err); len(left.GetGrants()) != 1 || left.GetGrants()[0].GetGrantId() != plain {
		c.t.Errorf("grants that are left: %v", left.GetGrants())
	}
}

// testGrantRetirement: who is named in a grant ends it, and its grantee if it may: that
// one, and no other.
func testGrantRetirement(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "done")
	caretaker := c.identity("/tenant/done-isv/user/caretaker")
	vendors := c.through(ctx, x.vendor)
	seal := &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x")}
	make := func(retiring string, operations ...string) string {
		return c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), RetiringPrincipal: retiring, Operations: operations})
	}
	retire := func(by, grant string) error {
		return second(c.dial(by, c.nodes[1]).Grants().RetireGrant(ctx, &pb.RetireGrantRequest{KeyId: x.arn, GrantId: grant}))
	}
	mine := func(id string) (out []string) {
		r, err := c.dial(id).Grants().ListRetirableGrants(ctx, &pb.ListRetirableGrantsRequest{})
		must(c.t, err)
		for _, g := range r.GetGrants() {
			out = append(out, g.GetGrantId())
		}
		return out
	}
	named := make(uri(caretaker), "Encrypt")
	if got := mine(caretaker); !slices.Equal(got, []string{named}) {
		c.t.Errorf("the caretaker may retire %v, want %s", got, named)
	}
	c.everywhere(ctx, "Encrypt", nil, vendors, seal)
	needsGrant.check(c.t, "RetireGrant by the grantee, who may not", retire(x.vendor, named))
	needsGrant.check(c.t, "RetireGrant by a stranger", retire(x.agent, named))
	own := make("", "Decrypt", "RetireGrant")
	needsGrant.check(c.t, "RetireGrant of another grant than that which allows it", retire(x.vendor, named))
	c.everywhere(ctx, "Encrypt", nil, vendors, seal)
	must(c.t, retire(caretaker, named))
	c.everywhere(ctx, "Encrypt after it was retired", needsGrant, vendors, seal)
	if got := mine(caretaker); len(got) != 0 {
		c.t.Errorf("the caretaker may retire %v", got)
	}
	must(c.t, retire(x.vendor, own))
	needsGrant.check(c.t, "RetireGrant again, of what is not there and not the caller's", retire(x.vendor, own))
	byAdmin := make("", "Encrypt")
	must(c.t, second(c.dial(x.admin).Grants().RetireGrant(ctx, &pb.RetireGrantRequest{KeyId: x.key, GrantId: byAdmin})))
	c.everywhere(ctx, "Encrypt", needsGrant, vendors, seal)
	denied.check(c.t, "RevokeGrant by a user", second(c.dial(x.user).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: byAdmin})))

	// What others may retire is for administrators and auditors to know.
	other := make(uri(caretaker), "Encrypt")
	ask := &pb.ListRetirableGrantsRequest{RetiringPrincipal: uri(caretaker)}
	r, err := c.dial(x.admin).Grants().ListRetirableGrants(ctx, ask)
	if must(c.t, err); len(r.GetGrants()) != 1 || r.GetGrants()[0].GetGrantId() != other {
		c.t.Errorf("what the caretaker may retire, as the administrator sees it: %v", r.GetGrants())
	}
	denied.check(c.t, "what another may retire, asked by a user", second(c.dial(x.user).Grants().ListRetirableGrants(ctx, ask)))
	elsewhere, err := c.dial("/tenant/done-isv/admin/done-isv-admin").Grants().ListRetirableGrants(ctx, ask)
	if must(c.t, err); len(elsewhere.GetGrants()) != 0 {
		c.t.Errorf("the vendor's administrator sees grants of the customer's key: %v", elsewhere.GetGrants())
	}
}

// testGrantExpiry: a grant ends by itself, on every node, and then it goes.
func testGrantExpiry(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "brief")
	vendors := c.through(ctx, x.vendor)
	seal := &pb.EncryptRequest{KeyId: x.arn, Plaintext: []byte("x")}
	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	grant := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"Encrypt"}, ExpirationDate: timestamppb.New(end),
	})
	worked := 0
	c.eventually("the grant has ended on every node", func() bool {
		ended := 0
		for _, v := range vendors {
			began := time.Now()
			err := second(send(ctx, v, seal))
			switch {
			case err == nil && began.After(end):
				c.t.Fatalf("a call that began %s after the grant's end was served", began.Sub(end))
			case err == nil:
				worked++
			default:
				needsGrant.check(c.t, "Encrypt after the grant's end", err)
				if time.Now().Before(end) {
					c.t.Errorf("refused %s before the grant's end", time.Until(end))
				}
				ended++
			}
		}
		return ended == len(vendors)
	})
	if worked == 0 && time.Until(end) > 0 {
		c.t.Error("the grant never worked")
	}
	c.eventually("the grant is gone", func() bool {
		r, err := c.dial(x.admin).Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key, GrantId: grant})
		must(c.t, err)
		return len(r.GetGrants()) == 0
	})
	ended := func(e audit.Event) bool {
		return e.Name == "ExpireGrant" && e.Grant == grant && e.Tenant == "brief" && e.Result == audit.Success
	}
	c.eventually("the grant's end is recorded", func() bool { return c.countRecords(ended) > 0 })
	if n := c.countRecords(ended); n != 1 {
		c.t.Errorf("%d records tell that the grant has ended", n)
	}
}

// testGrantToService: a service is given what is constrained to the key's tenant and to a
// resource, and calls with both.
func testGrantToService(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "hosted")
	admin, service := c.dial(x.admin).Grants(), c.through(ctx, serviceID)
	grant := func(constraints *pb.GrantConstraints) *pb.CreateGrantRequest {
		return &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(serviceID), Operations: []string{"Encrypt", "DescribeKey"}, Constraints: constraints}
	}
	for what, constraints := range map[string]*pb.GrantConstraints{
		"no constraints":   nil,
		"no resource":      {EncryptionContextSubset: pairs("tenant", "hosted")},
		"no tenant":        {EncryptionContextSubset: pairs("resource", "bucket/1")},
		"another tenant":   {EncryptionContextSubset: pairs("tenant", "default", "resource", "bucket/1")},
		"other upper case": {EncryptionContextEquals: pairs("Tenant", "hosted", "resource", "bucket/1")},
	} {
		invalidWith("a grant to a service must be constrained").check(c.t, "a grant to a service with "+what, second(admin.CreateGrant(ctx, grant(constraints))))
	}
	seal := func(tenant string, kv ...string) *pb.EncryptRequest {
		return &pb.EncryptRequest{KeyId: x.arn, Tenant: tenant, Plaintext: []byte("x"), EncryptionContext: pairs(kv...)}
	}
	good := seal("hosted", "tenant", "hosted", "resource", "bucket/1")
	c.everywhere(ctx, "without a grant", needsGrant, service, good)
	id := c.give(ctx, x.admin, c.nodes[1], grant(&pb.GrantConstraints{EncryptionContextSubset: pairs("tenant", "hosted", "resource", "bucket/1")}))
	c.everywhere(ctx, "with a grant", nil, service, good)
	c.everywhere(ctx, "by the ARN alone", nil, service, seal("", "tenant", "hosted", "resource", "bucket/1", "object", "o"))
	c.everywhere(ctx, "DescribeKey", nil, service, &pb.DescribeKeyRequest{KeyId: x.arn})
	c.everywhere(ctx, "without a resource", denied, service, seal("hosted", "tenant", "hosted"))
	c.everywhere(ctx, "without a tenant", denied, service, seal("hosted", "resource", "bucket/1"))
	c.everywhere(ctx, "with another tenant", denied, service, seal("hosted", "tenant", "default", "resource", "bucket/1"))
	c.everywhere(ctx, "with another resource", needsGrant, service, seal("hosted", "tenant", "hosted", "resource", "bucket/2"))
	c.everywhere(ctx, "for another tenant", invalidWith("of tenant hosted"), service, seal("default", "tenant", "default", "resource", "bucket/1"))
	must(c.t, second(c.dial(x.admin).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: id})))
	c.everywhere(ctx, "after it was revoked", needsGrant, service, good)
}

// testGrantNames: a name makes a grant once.
func testGrantNames(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "once")
	r := func(ops ...string) *pb.CreateGrantRequest {
		return &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: ops, Name: "the one"}
	}
	ids := make([]string, 24)
	must(c.t, concurrently(8, len(ids), func(i int) error {
		made, err := c.dial(x.admin, c.nodes[i%3]).Grants().CreateGrant(ctx, r([][]string{{"Encrypt", "Decrypt"}, {"Decrypt", "Encrypt"}}[i%2]...))
		ids[i] = made.GetGrantId()
		return err
	}))
	if distinct := slices.Compact(slices.Sorted(slices.Values(ids))); len(distinct) != 1 {
		c.t.Errorf("one name made the grants %q", distinct)
	}
	alreadyThere.check(c.t, "the name for something else", second(c.dial(x.admin).Grants().CreateGrant(ctx, r("Encrypt"))))
	must(c.t, second(c.dial(x.admin).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: ids[0]})))
	if again := c.give(ctx, x.admin, c.nodes[2], r("Encrypt")); again == ids[0] {
		c.t.Error("a grant that was revoked is there again")
	}
}

// testGrantPages lists grants in pages, each from another node, while the leadership
// moves.
func testGrantPages(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "paged")
	const n = 40
	want := make([]string, n)
	must(c.t, concurrently(4, n, func(i int) error {
		grantee, retiring := uri(x.vendor), uri(x.agent)
		if i%4 == 3 {
			grantee = uri(x.agent)
		}
		made, err := c.dial(x.admin, c.nodes[i%3]).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
			KeyId: x.key, GranteePrincipal: grantee, RetiringPrincipal: retiring, Operations: []string{"Encrypt"},
		})
		want[i] = made.GetGrantId()
		return err
	}))
	slices.Sort(want)
	c.level(ctx)
	for what, list := range map[string]struct {
		as   string
		page func(x *client.Client, marker string) ([]*pb.Grant, string, error)
		n    int
	}{
		"ListGrants": {x.admin, func(y *client.Client, marker string) ([]*pb.Grant, string, error) {
			r, err := y.Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key, Limit: 7, Marker: marker})
			return r.GetGrants(), r.GetNextMarker(), err
		}, n},
		"ListGrants of a grantee": {x.admin, func(y *client.Client, marker string) ([]*pb.Grant, string, error) {
			r, err := y.Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: x.key, GranteePrincipal: uri(x.agent), Limit: 3, Marker: marker})
			return r.GetGrants(), r.GetNextMarker(), err
		}, n / 4},
		"ListRetirableGrants": {x.agent, func(y *client.Client, marker string) ([]*pb.Grant, string, error) {
			r, err := y.Grants().ListRetirableGrants(ctx, &pb.ListRetirableGrantsRequest{Limit: 9, Marker: marker})
			return r.GetGrants(), r.GetNextMarker(), err
		}, n},
		"ListRetirableGrants of another": {x.admin, func(y *client.Client, marker string) ([]*pb.Grant, string, error) {
			r, err := y.Grants().ListRetirableGrants(ctx, &pb.ListRetirableGrantsRequest{RetiringPrincipal: uri(x.agent), Limit: 40, Marker: marker})
			return r.GetGrants(), r.GetNextMarker(), err
		}, n},
	} {
		var got []string
		for i, marker := 0, ""; ; i++ {
			grants, next, err := list.page(c.dial(list.as, c.nodes[i%3]), marker)
			must(c.t, err)
			for _, g := range grants {
				got = append(got, g.GetGrantId())
			}
			if marker = next; marker == "" {
				break
			}
			if i == 1 {
				must(c.t, second(c.dial(operatorID).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{})))
			}
		}
		if !slices.IsSorted(got) || len(got) != list.n || len(slices.Compact(got)) != list.n || list.n == n && !slices.Equal(got, want) {
			c.t.Errorf("%s: the pages gave %d grants %q, want %d", what, len(got), got, list.n)
		}
	}
}

// testGrantReEncrypt moves a ciphertext between the keys of two tenants: with a grant
// from the one and the right to the other.
func testGrantReEncrypt(ctx context.Context, c *testCluster) {
	x := c.customer(ctx, "moving")
	theirs := c.keyOf(ctx, "/tenant/moving-isv/admin/moving-isv-admin").GetKeyId()
	blob := c.encrypt(ctx, x.user, x.key, map[string]string{"a": "1"})
	vendors := c.through(ctx, x.vendor)
	move := &pb.ReEncryptRequest{
		Ciphertext: blob, SourceKeyId: x.arn, SourceEncryptionContext: pairs("a", "1"), DestinationKeyId: theirs, DestinationEncryptionContext: pairs("b", "2"),
	}
	c.everywhere(ctx, "ReEncrypt without a grant", needsGrant, vendors, move)
	for _, op := range []string{"ReEncryptTo", "Decrypt", "Encrypt"} {
		id := c.give(ctx, x.admin, c.nodes[0], &pb.CreateGrantRequest{KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{op}})
		c.everywhere(ctx, "ReEncrypt with a grant of "+op, needsGrant, vendors, move)
		must(c.t, second(c.dial(x.admin).Grants().RevokeGrant(ctx, &pb.RevokeGrantRequest{KeyId: x.key, GrantId: id})))
	}
	c.give(ctx, x.admin, c.nodes[1], &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"ReEncryptFrom"},
		Constraints: &pb.GrantConstraints{EncryptionContextEquals: pairs("a", "1")},
	})
	c.everywhere(ctx, "ReEncrypt from", nil, vendors, move)
	back := &pb.ReEncryptRequest{Ciphertext: c.encrypt(ctx, x.vendor, theirs, nil), DestinationKeyId: x.arn, DestinationEncryptionContext: pairs("a", "1")}
	c.everywhere(ctx, "ReEncrypt to", needsGrant, vendors, back)
	c.give(ctx, x.admin, c.nodes[2], &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(x.vendor), Operations: []string{"ReEncryptTo"},
		Constraints: &pb.GrantConstraints{EncryptionContextEquals: pairs("a", "1")},
	})
	c.everywhere(ctx, "ReEncrypt to", nil, vendors, back)
	moved, err := vendors[0].Crypto().ReEncrypt(ctx, move)
	must(c.t, err)
	got, err := vendors[1].Decrypt(ctx, moved.GetCiphertext(), map[string]string{"b": "2"})
	if must(c.t, err); string(got) != "x" {
		c.t.Errorf("what was moved opens as %q", got)
	}
	explained, err := c.dial(x.admin).Policies().ExplainPolicy(ctx, &pb.ExplainPolicyRequest{KeyId: x.key, Principal: uri(x.vendor), Operation: "ReEncryptFrom", EncryptionContext: pairs("a", "1")})
	if must(c.t, err); !explained.GetAllowed() || !strings.Contains(fmt.Sprint(explained.GetSteps()), "amounts to Decrypt") {
		c.t.Errorf("ReEncryptFrom explained: %v", explained)
	}
}
