package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testTenants makes tenants: operators do, nobody else, and each name once.
func testTenants(ctx context.Context, c *testCluster) {
	admin := c.identity("/tenant/made/admin/made-admin")
	operator := c.dial(operatorID)
	made := &pb.CreateTenantRequest{Name: "made", Administrator: uri(admin), MaxKeys: 3}
	for what, x := range map[string]struct {
		want *refusal
		r    *pb.CreateTenantRequest
	}{
		"no name":                             {invalidWith("tenant"), &pb.CreateTenantRequest{Administrator: uri(admin)}},
		"a name that is none":                 {invalidWith("tenant"), &pb.CreateTenantRequest{Name: "Made", Administrator: uri("/tenant/Made/admin/x")}},
		"no administrator":                    {invalidWith("administrator"), &pb.CreateTenantRequest{Name: "made"}},
		"an administrator of another tenant":  {invalidWith("/tenant/made/admin/"), &pb.CreateTenantRequest{Name: "made", Administrator: uri(adminID)}},
		"a user as the administrator":         {invalidWith("/tenant/made/admin/"), &pb.CreateTenantRequest{Name: "made", Administrator: uri("/tenant/made/user/x")}},
		"an administrator of another cluster": {invalidWith("trust domain"), &pb.CreateTenantRequest{Name: "made", Administrator: "spiffe://elsewhere.test/tenant/made/admin/x"}},
		"a quota that no cluster has room for": {
			invalidWith("quota"), &pb.CreateTenantRequest{Name: "made", Administrator: uri(admin), MaxKeys: 1 << 40},
		},
	} {
		x.want.check(c.t, what, second(operator.Tenants().CreateTenant(ctx, x.r)))
	}
	for _, id := range []string{adminID, admin, userID, auditorID, serviceID} {
		denied.check(c.t, "CreateTenant by "+id, second(send(ctx, c.dial(id), made)))
	}
	must(c.t, second(send(ctx, operator, made)))
	alreadyThere.check(c.t, "the same tenant again", second(operator.Tenants().CreateTenant(ctx, &pb.CreateTenantRequest{Name: "made", Administrator: uri(admin)})))
	key := c.keyOf(ctx, admin)
	if key.GetTenant() != "made" || !strings.Contains(key.GetArn(), ":made:key/") {
		c.t.Errorf("a key of the tenant: %v", key)
	}
	for _, id := range []string{operatorID, admin, auditorID} {
		r, err := c.dial(id).Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{Name: "made"})
		must(c.t, err)
		d := r.GetDescription()
		if d.GetName() != "made" || d.GetAdministrator() != uri(admin) || d.GetMaxKeys() != 3 || d.GetKeyCount() != 1 || d.GetCreationDate() == nil || d.GetPolicyRevision() != 0 {
			c.t.Errorf("the tenant as %s sees it: %v", id, d)
		}
	}
	// The name that is asked for counts, whatever tenant the client acts for.
	acting := c.connectSDK(operatorID, c.nodes, func(config *client.Config) { config.Tenant = "default" })
	r, err := acting.Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{Name: "made"})
	if must(c.t, err); r.GetDescription().GetName() != "made" {
		c.t.Errorf("asked for tenant made, told of %v", r.GetDescription())
	}
	own, err := c.dial(admin).Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{})
	if must(c.t, err); own.GetDescription().GetName() != "made" {
		c.t.Errorf("asked for the own tenant, told of %v", own.GetDescription())
	}
	notFound.check(c.t, "a tenant that is not there", second(operator.Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{Name: "nowhere"})))
	notFound.check(c.t, "the quota of one that is not there", second(operator.Tenants().SetTenantQuota(ctx, &pb.SetTenantQuotaRequest{Name: "nowhere"})))
	notFound.check(c.t, "the freeze of one that is not there", second(operator.Tenants().FreezeTenant(ctx, &pb.FreezeTenantRequest{Name: "nowhere"})))
	var names []string
	for marker := ""; ; {
		page, err := operator.Tenants().ListTenants(ctx, &pb.ListTenantsRequest{Limit: 1, Marker: marker})
		must(c.t, err)
		for _, t := range page.GetTenants() {
			names = append(names, t.GetName())
		}
		if marker = page.GetNextMarker(); marker == "" {
			break
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) || !slices.Contains(names, "default") || !slices.Contains(names, "made") {
		c.t.Errorf("tenants %q", names)
	}
}

// varying is what may differ between two refusals that must look alike.
var varying = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|tenant "?[a-z-]+"?|alias/[a-z]+|127\.0\.0\.1:[0-9]+`)

func unnamed(err error) string {
	if err == nil {
		return ""
	}
	return varying.ReplaceAllString(err.Error(), "…")
}

// testTenantsApart lets the callers of one tenant look for what another one has: by ids
// it is not there, by ARNs it is forbidden, in the same words whether it is there or not.
func testTenantsApart(ctx context.Context, c *testCluster) {
	owner, ownerUser := c.tenant(ctx, "owner")
	admin, user := c.tenant(ctx, "stranger")
	auditor := c.identity("/tenant/stranger/auditor/stranger-auditor")
	x := c.dial(owner)
	o := object{key: c.keyOf(ctx, owner).GetKeyId(), alias: "alias/secret"}
	must(c.t, second(x.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: o.alias, KeyId: o.key})))
	o.blob = c.encrypt(ctx, ownerUser, o.key, nil)
	must(c.t, second(x.Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: o.key, Resource: "volume/1"})))
	must(c.t, second(x.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: o.key, Text: harmlessPolicy})))
	must(c.t, second(x.Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: uri("/tenant/owner/user/off")})))
	for _, id := range []*string{&o.retire, &o.revoke} {
		g, err := x.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
			KeyId: o.key, GranteePrincipal: uri(ownerUser), RetiringPrincipal: uri(ownerUser), Operations: []string{"Decrypt"},
		})
		must(c.t, err)
		*id = g.GetGrantId()
	}
	c.level(ctx)
	before := c.dumpOf(ctx, owner)

	callers := map[group]string{groupUse: user, groupRegister: user, groupAdminister: admin, groupDelegate: admin, groupRead: auditor}
	arn := func(tenant, resource string) string {
		return fmt.Sprintf("arn:quorumkms:kms:%s:%s:%s", c.clusterID(), tenant, resource)
	}
	absent := uuid.NewString()
	there := object{key: arn("owner", "key/"+o.key), alias: arn("owner", o.alias), blob: o.blob, retire: o.retire, revoke: o.revoke}
	noKey := object{key: arn("owner", "key/"+absent), alias: arn("owner", "alias/nothing"), blob: o.blob, retire: absent, revoke: absent}
	noTenant := object{key: arn("nowhere", "key/"+absent), alias: arn("nowhere", "alias/secret"), blob: o.blob, retire: absent, revoke: absent}
	whole := func(o object) []named { // calls whose every reference is an ARN
		out := catalogue(o)
		for i := range out {
			out[i].request = with(with(out[i].request, "source_key_id", o.key), "alias_name", "alias/secret")
			if out[i].name == "Decrypt" {
				out[i].request = with(out[i].request, "key_id", o.key)
			}
		}
		return out
	}
	tried := 0
	bare, known, lacks, nowhere := catalogue(o), whole(there), whole(noKey), whole(noTenant)
	for i, call := range bare {
		switch call.name {
		case "CreateKey", "DeleteAlias": // the first names no key; the second takes names only
			continue
		}
		tried++
		for _, p := range c.nodes[:2] {
			by := c.dial(callers[call.group], p)
			notFound.check(c.t, call.name+" by id", call.call(ctx, by))
			first := known[i].call(ctx, by)
			needsGrant.check(c.t, call.name+" by ARN", first)
			for what, other := range map[string]error{"a key that is not there": lacks[i].call(ctx, by), "a tenant that is not there": nowhere[i].call(ctx, by)} {
				if unnamed(other) != unnamed(first) {
					c.t.Errorf("%s by ARN: of a key that is there %q, of %s %q", call.name, unnamed(first), what, unnamed(other))
				}
			}
		}
	}
	if tried < 40 {
		c.t.Errorf("only %d calls were tried", tried)
	}
	notFound.check(c.t, "an alias", second(c.dial(user).Encrypt(ctx, o.alias, []byte("x"), nil)))
	notFound.check(c.t, "an alias", second(c.dial(admin).Keys().DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: o.alias})))

	for _, id := range []string{admin, user, auditor} {
		x := c.dial(id)
		keys, err := x.Keys().ListKeys(ctx, &pb.ListKeysRequest{})
		must(c.t, err)
		aliases, err := x.Keys().ListAliases(ctx, &pb.ListAliasesRequest{})
		must(c.t, err)
		grants, err := x.Grants().ListRetirableGrants(ctx, &pb.ListRetirableGrantsRequest{})
		must(c.t, err)
		disabled, err := x.Tenants().ListDisabledPrincipals(ctx, &pb.ListDisabledPrincipalsRequest{})
		must(c.t, err)
		if n := len(keys.GetKeys()) + len(aliases.GetAliases()) + len(grants.GetGrants()) + len(disabled.GetPrincipals()); n != 0 {
			c.t.Errorf("%s sees %v, %v, %v, %v", id, keys, aliases, grants, disabled)
		}
		denied.check(c.t, "ListTenants by "+id, second(x.Tenants().ListTenants(ctx, &pb.ListTenantsRequest{})))
		for _, r := range []proto.Message{ // of the tenant itself
			&pb.ListKeysRequest{}, &pb.ListAliasesRequest{}, &pb.ListDisabledPrincipalsRequest{}, &pb.DescribeTenantRequest{}, &pb.GetPolicyRequest{},
			&pb.ListPolicyRevisionsRequest{}, &pb.ValidatePolicyRequest{Text: harmlessPolicy},
			&pb.ExplainPolicyRequest{Principal: uri(ownerUser), Operation: "ListKeys"}, &pb.ListRetirableGrantsRequest{RetiringPrincipal: uri(ownerUser)},
			&pb.CreateKeyRequest{}, &pb.PutPolicyRequest{Text: harmlessPolicy}, &pb.DeletePolicyRequest{}, &pb.FreezeTenantRequest{}, &pb.ThawTenantRequest{},
			&pb.DisablePrincipalRequest{Principal: uri(ownerUser)}, &pb.EnablePrincipalRequest{Principal: uri("/tenant/owner/user/off")},
			&pb.GenerateRandomRequest{NumberOfBytes: 1},
		} {
			what := fmt.Sprintf("%s for another tenant by %s", methodOf(r).Name(), id)
			of, none := second(send(ctx, x, with(r, "tenant", "owner"))), second(send(ctx, x, with(r, "tenant", "nowhere")))
			denied.check(c.t, what, of)
			if unnamed(of) != unnamed(none) {
				c.t.Errorf("%s: of one that is there %q, of one that is not %q", what, unnamed(of), unnamed(none))
			}
			if has(r, "name") {
				denied.check(c.t, what+" by name", second(send(ctx, x, with(r, "name", "owner"))))
			}
		}
	}
	if after := c.dumpOf(ctx, owner); after != before {
		c.t.Errorf("the tenant was %s\nand is %s", before, after)
	}
}

// dumpOf is what a tenant's administrator sees of its tenant.
func (c *testCluster) dumpOf(ctx context.Context, admin string) string {
	c.t.Helper()
	x := c.dial(admin)
	var out strings.Builder
	keys, err := x.Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, IndexToken: c.latest(c.nodes[0])})
	must(c.t, err)
	for _, k := range keys.GetKeys() {
		k.LastUsed, k.RefusedUse = nil, nil
		grants, err := x.Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: k.GetKeyId(), Limit: 1000})
		must(c.t, err)
		fmt.Fprintln(&out, k, grants.GetGrants())
	}
	for _, r := range []proto.Message{&pb.ListAliasesRequest{}, &pb.DescribeTenantRequest{}, &pb.ListDisabledPrincipalsRequest{}, &pb.GetPolicyRequest{}} {
		reply, err := send(ctx, x, r)
		must(c.t, err)
		fmt.Fprintln(&out, with(reply, "index_token", []byte(nil)))
	}
	return out.String()
}

// testQuotas gives a tenant as many keys as its quota, and no more.
func testQuotas(ctx context.Context, c *testCluster) {
	admin, _ := c.tenant(ctx, "quota")
	operator := c.dial(operatorID).Tenants()
	set := func(n uint64) {
		must(c.t, second(operator.SetTenantQuota(ctx, &pb.SetTenantQuotaRequest{Name: "quota", MaxKeys: n})))
		c.level(ctx)
	}
	create := func(i int) error {
		return second(c.dial(admin, c.nodes[i%3]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{}))
	}
	set(3)
	const askers = 12
	results := make([]error, askers)
	_ = concurrently(askers, askers, func(i int) error { results[i] = create(i); return nil })
	made := 0
	for _, err := range results {
		if err == nil {
			made++
		} else {
			limitReached.check(c.t, "a key beyond the quota", err)
		}
	}
	if made != 3 {
		c.t.Errorf("%d keys were made under a quota of 3", made)
	}
	refused(codes.ResourceExhausted, client.ErrLimit, "3 keys", "quota is 3").check(c.t, "one more", create(1))
	refused(codes.ResourceExhausted, client.ErrLimit).check(c.t, "one more, tried", second(c.dial(admin).Keys().CreateKey(ctx, &pb.CreateKeyRequest{DryRun: true})))
	set(4)
	must(c.t, create(2))
	limitReached.check(c.t, "beyond the raised quota", create(0))
	set(2) // what it has stays
	limitReached.check(c.t, "beyond the lowered quota", create(0))
	r, err := operator.DescribeTenant(ctx, &pb.DescribeTenantRequest{Name: "quota"})
	if must(c.t, err); r.GetDescription().GetKeyCount() != 4 || r.GetDescription().GetMaxKeys() != 2 {
		c.t.Errorf("the tenant: %v", r.GetDescription())
	}
	set(0)
	must(c.t, create(0))
	denied.check(c.t, "the quota by the tenant", second(c.dial(admin).Tenants().SetTenantQuota(ctx, &pb.SetTenantQuotaRequest{Name: "quota"})))
}

// testFreeze freezes a tenant by both sides: on every node at once, each for itself, and
// cryptography only.
func testFreeze(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "cold")
	_, other := c.tenant(ctx, "warm")
	warm := c.keyOf(ctx, "/tenant/warm/admin/warm-admin").GetKeyId()
	key := c.keyOf(ctx, admin).GetKeyId()
	blob := c.encrypt(ctx, user, key, nil)
	use := &pb.DecryptRequest{Ciphertext: blob}
	users, others := c.through(ctx, user), c.through(ctx, other)
	c.level(ctx)
	freeze, thaw := &pb.FreezeTenantRequest{Name: "cold"}, &pb.ThawTenantRequest{Name: "cold"}
	flags := func(want string) {
		c.t.Helper()
		r, err := c.dial(admin).Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{})
		must(c.t, err)
		if got := fmt.Sprint(r.GetDescription().GetFrozenByOperator(), r.GetDescription().GetFrozenByTenant()); got != want {
			c.t.Errorf("frozen by operator and tenant: %s, want %s", got, want)
		}
	}
	for i, by := range []string{operatorID, admin} {
		for round := range 3 {
			must(c.t, second(send(ctx, c.dial(by, c.nodes[(i+round)%3]), freeze)))
			c.everywhere(ctx, "Decrypt, frozen by "+by, whenFrozen, users, use)
			c.everywhere(ctx, "Encrypt, frozen by "+by, whenFrozen, users, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x")})
			c.everywhere(ctx, "Encrypt of another tenant", nil, others, &pb.EncryptRequest{KeyId: warm, Plaintext: []byte("x")})
			must(c.t, second(send(ctx, c.dial(by, c.nodes[round%3]), thaw)))
			c.level(ctx)
			c.everywhere(ctx, "Decrypt, thawed by "+by, nil, users, use)
		}
	}
	// Both at a time: nobody undoes the other's.
	must(c.t, second(send(ctx, c.dial(operatorID), freeze)))
	must(c.t, second(send(ctx, c.dial(admin), freeze)))
	flags("true true")
	must(c.t, second(send(ctx, c.dial(admin), thaw)))
	flags("true false")
	c.everywhere(ctx, "the tenant has thawed its own freeze only", whenFrozen, users, use)
	must(c.t, second(send(ctx, c.dial(admin), freeze)))
	must(c.t, second(send(ctx, c.dial(operatorID), thaw)))
	flags("false true")
	c.everywhere(ctx, "the operator has thawed its own freeze only", whenFrozen, users, use)
	described, err := c.dial(admin).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
	if must(c.t, err); described.GetKey().GetTenantFrozen() == "" || described.GetKey().GetState() != pb.KeyState_KEY_STATE_ENABLED {
		c.t.Errorf("the key of a frozen tenant: %v", described.GetKey())
	}
	must(c.t, second(c.dial(admin).Keys().CreateKey(ctx, &pb.CreateKeyRequest{}))) // no cryptography
	must(c.t, second(c.dial(admin).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
	must(c.t, second(send(ctx, c.dial(admin), &pb.ThawTenantRequest{}))) // its own, unnamed
	flags("false false")
	c.level(ctx)
	c.everywhere(ctx, "Decrypt, thawed by both", nil, users, use)
	for _, id := range []string{user, other, "/tenant/warm/admin/warm-admin", adminID, auditorID, serviceID} {
		denied.check(c.t, "FreezeTenant by "+id, second(send(ctx, c.dial(id), freeze)))
		denied.check(c.t, "ThawTenant by "+id, second(send(ctx, c.dial(id), thaw)))
	}
	invalidWith("name is missing").check(c.t, "FreezeTenant of none by an operator", second(send(ctx, c.dial(operatorID), &pb.FreezeTenantRequest{})))
}

// testDisabledPrincipals takes every right from principals: on every node at once, on
// connections that are open, by either side for itself.
func testDisabledPrincipals(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "strict")
	_, stranger := c.tenant(ctx, "lenient")
	key := c.keyOf(ctx, admin).GetKeyId()
	deputy := c.identity("/tenant/strict/admin/strict-admin-2")
	operator2 := c.identity("/operator/otto")
	auditor := c.identity("/tenant/strict/auditor/strict-auditor")
	use := &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x")}
	users := c.through(ctx, user)
	c.everywhere(ctx, "Encrypt", nil, users, use)
	off, on := &pb.DisablePrincipalRequest{Principal: uri(user)}, &pb.EnablePrincipalRequest{Principal: uri(user)}
	for round := range 6 {
		by := []string{admin, operatorID}[round%2]
		must(c.t, second(send(ctx, c.dial(by, c.nodes[round%3]), off)))
		c.everywhere(ctx, "Encrypt, disabled by "+by, principalOff, users, use)
		c.everywhere(ctx, "ListKeys, disabled by "+by, principalOff, users, &pb.ListKeysRequest{})
		c.everywhere(ctx, "GenerateRandom, disabled by "+by, principalOff, users, &pb.GenerateRandomRequest{NumberOfBytes: 1})
		must(c.t, second(send(ctx, c.dial(by, c.nodes[(round+1)%3]), on)))
		c.level(ctx)
		c.everywhere(ctx, "Encrypt, enabled again", nil, users, use)
	}
	// Each side takes back what it did itself.
	must(c.t, second(send(ctx, c.dial(admin), off)))
	notFound.check(c.t, "an operator gives back what the tenant took", second(send(ctx, c.dial(operatorID), on)))
	must(c.t, second(send(ctx, c.dial(operatorID), off)))
	must(c.t, second(send(ctx, c.dial(deputy), on)))
	notFound.check(c.t, "the tenant gives back what an operator took", second(send(ctx, c.dial(admin), on)))
	c.everywhere(ctx, "Encrypt, disabled by an operator still", principalOff, users, use)

	// Lists: each side its own, in pages.
	must(c.t, second(send(ctx, c.dial(admin), off)))
	list := func(id string) (out []string) {
		for marker := ""; ; {
			r, err := c.dial(id).Tenants().ListDisabledPrincipals(ctx, &pb.ListDisabledPrincipalsRequest{Limit: 1, Marker: marker})
			must(c.t, err)
			for _, d := range r.GetPrincipals() {
				if d.GetPrincipal() == uri(user) {
					out = append(out, fmt.Sprintf("%q by %s", d.GetTenant(), d.GetDisabledBy()))
				}
			}
			if marker = r.GetNextMarker(); marker == "" {
				return out
			}
		}
	}
	byOperator, byTenant := fmt.Sprintf(`"" by %s`, uri(operatorID)), fmt.Sprintf(`"strict" by %s`, uri(admin))
	for id, want := range map[string][]string{operatorID: {byOperator, byTenant}, auditorID: {byOperator, byTenant}, admin: {byTenant}, auditor: {byTenant}} {
		if got := list(id); fmt.Sprint(got) != fmt.Sprint(want) {
			c.t.Errorf("the disabled principals that %s sees: %q, want %q", id, got, want)
		}
	}
	must(c.t, second(send(ctx, c.dial(admin), on)))
	must(c.t, second(send(ctx, c.dial(operatorID), on)))

	// Who may disable whom.
	for _, x := range []struct {
		by, whom string
		want     *refusal
	}{
		{admin, stranger, denied},
		{admin, operatorID, denied},
		{admin, serviceID, denied},
		{admin, auditorID, denied},
		{admin, adminID, denied},
		{admin, admin, invalidWith("nobody disables itself")},
		{operatorID, operatorID, invalidWith("nobody disables itself")},
		{admin, "/node/kms-1", invalidWith("is a node")},
		{operatorID, "/node/kms-1", invalidWith("is a node")},
		{operatorID, "/tenant/strict/root/x", invalidWith("principal")},
		{user, stranger, denied},
		{auditorID, user, denied},
		{auditor, user, denied},
		{serviceID, user, denied},
	} {
		x.want.check(c.t, x.by+" disables "+x.whom, second(c.dial(x.by).Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: uri(x.whom)})))
	}

	// Whoever is disabled can do nothing, not even learn what it did before.
	o := c.fullObject(ctx, "alias/strict")
	made, err := c.dial(deputy).Keys().CreateKey(ctx, &pb.CreateKeyRequest{RequestId: "before it was disabled"})
	must(c.t, err)
	c.issue("/tenant/default/admin/dora", "dora")
	c.issue("/tenant/default/user/ursula", "ursula")
	c.issue("/auditor/amalia", "amalia")
	c.level(ctx)
	for id, by := range map[string]string{
		deputy: admin, auditor: admin, operator2: operatorID, "/tenant/default/admin/dora": adminID, "/tenant/default/user/ursula": adminID,
		"/auditor/amalia": operatorID, serviceID: operatorID,
	} {
		clients := c.through(ctx, id)
		must(c.t, second(c.dial(by, c.nodes[2]).Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: uri(id)})))
		for i, x := range clients {
			if err := second(x.Cluster().Status(ctx, &pb.StatusRequest{})); !errors.Is(err, client.ErrPrincipalDisabled) {
				c.t.Errorf("Status by %s, who is disabled: %v", id, err)
			}
			told := 0
			for _, call := range append(catalogue(o), wholeCalls(o)...) {
				err := call.call(ctx, x)
				if errors.Is(err, client.ErrPrincipalDisabled) {
					told++
				} else if !errors.Is(err, client.ErrDenied) {
					c.t.Errorf("%s by %s, who is disabled, through %s: %v", call.name, id, c.nodes[i].name, err)
				}
			}
			if told == 0 {
				c.t.Errorf("%s was never told that it is disabled", id)
			}
			if id == deputy {
				again, err := x.Keys().CreateKey(ctx, &pb.CreateKeyRequest{RequestId: "before it was disabled"})
				principalOff.check(c.t, "a request that was made before", err)
				if again.GetKey().GetKeyId() == made.GetKey().GetKeyId() {
					c.t.Error("a disabled principal is told what it did before")
				}
			}
		}
		must(c.t, second(c.dial(by).Tenants().EnablePrincipal(ctx, &pb.EnablePrincipalRequest{Principal: uri(id)})))
	}
}
