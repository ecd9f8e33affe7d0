package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// dataKey is what a service asks for that names no key.
func dataKey(tenant string, kv ...string) *pb.GenerateDataKeyRequest {
	return &pb.GenerateDataKeyRequest{Tenant: tenant, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, EncryptionContext: pairs(kv...)}
}

// testServiceKeys: the first use makes the key that a service manages for a tenant, once,
// however many nodes are asked at a time, and also where the tenant has room for no other.
func testServiceKeys(ctx context.Context, c *testCluster) {
	admin, _ := c.tenant(ctx, "store")
	must(c.t, second(c.dial(operatorID).Tenants().SetTenantQuota(ctx, &pb.SetTenantQuotaRequest{Name: "store", MaxKeys: 1})))
	c.level(ctx)
	const askers = 100
	clients := c.through(ctx, serviceID)
	answers := make([]*pb.GenerateDataKeyResponse, askers)
	must(c.t, concurrently(askers, askers, func(i int) (err error) {
		answers[i], err = clients[i%3].Crypto().GenerateDataKey(ctx, dataKey("store", "tenant", "store", "resource", fmt.Sprintf("bucket/%d", i)))
		return err
	}))
	for i, a := range answers {
		if a.GetKeyId() != answers[0].GetKeyId() {
			c.t.Fatalf("%s and %s were made", answers[0].GetKeyId(), a.GetKeyId())
		}
		got, err := clients[(i+1)%3].Crypto().Decrypt(ctx, &pb.DecryptRequest{
			Ciphertext: a.GetCiphertext(), Tenant: "store", EncryptionContext: pairs("tenant", "store", "resource", fmt.Sprintf("bucket/%d", i)),
		})
		if must(c.t, err); string(got.GetPlaintext()) != string(a.GetPlaintext()) {
			c.t.Fatal("a data key opens as another")
		}
	}
	c.level(ctx)
	for _, p := range c.nodes {
		keys, err := c.dial(admin, p).Keys().ListKeys(ctx, &pb.ListKeysRequest{})
		must(c.t, err)
		if len(keys.GetKeys()) != 1 || keys.GetKeys()[0].GetArn() != answers[0].GetKeyId() {
			c.t.Errorf("the keys that %s knows: %v", p.name, keys.GetKeys())
		}
	}
	made := 0
	for _, p := range c.nodes {
		for _, e := range c.trail(p) {
			if e.Name == "CreateServiceKey" && e.Tenant == "store" && e.Result == "SUCCESS" {
				made++
			}
		}
	}
	if made != 1 {
		c.t.Errorf("%d records tell that the key was made", made)
	}
}

// testServiceKeyOthers: nobody else uses the key, nor the service but for the tenant and a
// resource.
func testServiceKeyOthers(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "vault")
	_, stranger := c.tenant(ctx, "prowler")
	other := c.identity("/service/files")
	service := c.through(ctx, serviceID)
	invalidWith("must name the tenant").check(c.t, "no tenant", second(send(ctx, service[0], dataKey("", "tenant", "vault", "resource", "r"))))
	for what, r := range map[string]*pb.GenerateDataKeyRequest{
		"no context":       dataKey("vault"),
		"no resource":      dataKey("vault", "tenant", "vault"),
		"an empty one":     dataKey("vault", "tenant", "vault", "resource", ""),
		"no tenant in it":  dataKey("vault", "resource", "r"),
		"another tenant":   dataKey("vault", "tenant", "prowler", "resource", "r"),
		"the wrong tenant": dataKey("prowler", "tenant", "vault", "resource", "r"),
		"no such tenant":   dataKey("nowhere", "tenant", "nowhere", "resource", "r"),
	} {
		c.everywhere(ctx, "the first use with "+what, denied, service, r)
	}
	listed, err := c.dial(admin).Keys().ListKeys(ctx, &pb.ListKeysRequest{IndexToken: c.latest(c.nodes[0])})
	if must(c.t, err); len(listed.GetKeys()) != 0 {
		c.t.Fatalf("refused uses have made %v", listed.GetKeys())
	}
	refused(codes.FailedPrecondition, client.ErrDryRun).check(c.t, "a first use without effect",
		second(send(ctx, service[1], with(dataKey("vault", "tenant", "vault", "resource", "r"), "dry_run", true))))
	made, err := service[1].Crypto().GenerateDataKey(ctx, dataKey("vault", "tenant", "vault", "resource", "r"))
	must(c.t, err)
	c.level(ctx)
	arn, ec := made.GetKeyId(), pairs("tenant", "vault", "resource", "r")
	open := func(tenant, key string, ec []*pb.ContextPair) *pb.DecryptRequest {
		return &pb.DecryptRequest{Ciphertext: made.GetCiphertext(), Tenant: tenant, KeyId: key, EncryptionContext: ec}
	}
	c.everywhere(ctx, "Decrypt by the service", nil, service, open("vault", "", ec))
	c.everywhere(ctx, "Decrypt by the service and the ARN", nil, service, open("", arn, ec))
	c.everywhere(ctx, "Decrypt without a context", denied, service, open("vault", "", nil))
	c.everywhere(ctx, "Decrypt with another resource", badCiphertext, service, open("vault", "", pairs("tenant", "vault", "resource", "other")))
	c.everywhere(ctx, "Decrypt with another tenant", denied, service, open("vault", "", pairs("tenant", "prowler", "resource", "r")))
	c.everywhere(ctx, "Decrypt for another tenant", denied, service, open("prowler", "", pairs("tenant", "prowler", "resource", "r")))
	c.everywhere(ctx, "Encrypt by alias", nil, service, &pb.EncryptRequest{Tenant: "vault", KeyId: "alias/service/obs", Plaintext: []byte("x"), EncryptionContext: ec})
	c.everywhere(ctx, "BindResource", nil, service, &pb.BindResourceRequest{Tenant: "vault", KeyId: "alias/service/obs", Resource: "bucket/1"})

	alone := refused(codes.PermissionDenied, client.ErrDenied, "service obs alone")
	c.everywhere(ctx, "Decrypt by another service", needsGrant, c.through(ctx, other), open("", arn, ec))
	c.everywhere(ctx, "Decrypt by a user of the tenant", alone, c.through(ctx, user), open("", "", ec))
	c.everywhere(ctx, "Encrypt by a user of the tenant", alone, c.through(ctx, user), &pb.EncryptRequest{KeyId: "alias/service/obs", Plaintext: []byte("x"), EncryptionContext: ec})
	c.everywhere(ctx, "Decrypt by a user of another tenant", needsGrant, c.through(ctx, stranger), open("", arn, ec))
	c.everywhere(ctx, "Decrypt by the administrator", denied, c.through(ctx, admin), open("", "", ec))
	must(c.t, second(c.dial(admin).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: `permit (principal, action, resource);`})))
	c.everywhere(ctx, "Decrypt by a user whom a policy permits everything", alone, c.through(ctx, user), open("", "", ec))
	c.everywhere(ctx, "Decrypt by another service, whom it permits too", needsGrant, c.through(ctx, other), open("", arn, ec))

	// The other service has its own.
	theirs, err := c.dial(other).Crypto().GenerateDataKey(ctx, dataKey("vault", "tenant", "vault", "resource", "r"))
	if must(c.t, err); theirs.GetKeyId() == arn {
		c.t.Error("two services have one key")
	}
	c.level(ctx)
	c.everywhere(ctx, "Encrypt by the other service's ARN", needsGrant, service, &pb.EncryptRequest{KeyId: theirs.GetKeyId(), Plaintext: []byte("x"), EncryptionContext: ec})

	// What a policy forbids the service, it does not get a key for either.
	guarded, _ := c.tenant(ctx, "guarded")
	must(c.t, second(c.dial(guarded).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{
		Text: `permit (principal, action, resource); forbid (principal is KMS::Service, action in KMS::Action::"use", resource);`,
	})))
	c.everywhere(ctx, "a first use that a policy forbids", denied, service, dataKey("guarded", "tenant", "guarded", "resource", "r"))
	listed, err = c.dial(guarded).Keys().ListKeys(ctx, &pb.ListKeysRequest{IndexToken: c.latest(c.nodes[0])})
	if must(c.t, err); len(listed.GetKeys()) != 0 {
		c.t.Errorf("a use that a policy forbids has made %v", listed.GetKeys())
	}
}

// testServiceKeyAdministrator: the tenant sees the key and rotates it, and that is all.
func testServiceKeyAdministrator(ctx context.Context, c *testCluster) {
	admin, _ := c.tenant(ctx, "landlord")
	must(c.t, second(send(ctx, c.dial(serviceID), dataKey("landlord", "tenant", "landlord", "resource", "r"))))
	other := c.keyOf(ctx, admin).GetKeyId()
	x := c.dial(admin)
	must(c.t, second(x.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/mine", KeyId: other})))
	aliases, err := x.Keys().ListAliases(ctx, &pb.ListAliasesRequest{})
	if must(c.t, err); len(aliases.GetAliases()) != 2 || aliases.GetAliases()[1].GetName() != "alias/service/obs" {
		c.t.Fatalf("aliases %v", aliases.GetAliases())
	}
	k, err := x.Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: "alias/service/obs"})
	if must(c.t, err); k.GetKey().GetManager() != pb.KeyManager_KEY_MANAGER_SERVICE || k.GetKey().GetService() != "obs" || k.GetKey().GetState() != pb.KeyState_KEY_STATE_ENABLED {
		c.t.Errorf("the service's key: %v", k.GetKey())
	}
	key := k.GetKey().GetKeyId()
	before := c.dumpOf(ctx, admin)
	reserved := invalidWith("reserved")
	for _, y := range []struct {
		want *refusal
		r    proto.Message
	}{
		{serviceManaged, &pb.DisableKeyRequest{KeyId: key}},
		{serviceManaged, &pb.SetKeyDecryptOnlyRequest{KeyId: key}},
		{serviceManaged, &pb.ScheduleKeyDeletionRequest{KeyId: key}},
		{notPending, &pb.CancelKeyDeletionRequest{KeyId: key}},
		{serviceManaged, &pb.UpdateKeyDescriptionRequest{KeyId: key, Description: "mine"}},
		{serviceManaged, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{Key: "mine"}}}},
		{serviceManaged, &pb.UntagResourceRequest{KeyId: key, TagKeys: []string{"mine"}}},
		{serviceManaged, &pb.SetDeletionProtectionRequest{KeyId: key, Enabled: true}},
		{serviceManaged, &pb.SetRequiredContextRequest{KeyId: key, ContextKeys: []string{"a"}}},
		{serviceManaged, &pb.CreateAliasRequest{AliasName: "alias/theirs", KeyId: key}},
		{serviceManaged, &pb.UpdateAliasRequest{AliasName: "alias/mine", KeyId: key}},
		{reserved, &pb.UpdateAliasRequest{AliasName: "alias/service/obs", KeyId: other}},
		{reserved, &pb.DeleteAliasRequest{AliasName: "alias/service/obs"}},
		{reserved, &pb.CreateAliasRequest{AliasName: "alias/service/files", KeyId: other}},
		{serviceManaged, &pb.PutPolicyRequest{KeyId: key, Text: harmlessPolicy}},
		{serviceManaged, &pb.DeletePolicyRequest{KeyId: key}},
		{serviceManaged, &pb.CreateGrantRequest{KeyId: key, GranteePrincipal: uri(userID), Operations: []string{"Decrypt"}}},
		{serviceManaged, &pb.DisableKeyVersionRequest{KeyId: key, Version: 1}},
		{serviceManaged, &pb.EnableKeyVersionRequest{KeyId: key, Version: 1}},
		{serviceManaged, &pb.ScheduleKeyVersionDestructionRequest{KeyId: key, Version: 1}},
		{serviceManaged, &pb.CancelKeyVersionDestructionRequest{KeyId: key, Version: 1}},
		{denied, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x")}},
	} {
		y.want.check(c.t, string(methodOf(y.r).Name())+" of a service's key", second(send(ctx, x, y.r)))
	}
	if after := c.dumpOf(ctx, admin); after != before {
		c.t.Errorf("the tenant was %s\nand is %s", before, after)
	}
	rotated, err := x.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})
	if must(c.t, err); rotated.GetCurrentVersion() != 2 {
		c.t.Errorf("rotated to %d", rotated.GetCurrentVersion())
	}
	must(c.t, second(x.Keys().EnableKeyRotation(ctx, &pb.EnableKeyRotationRequest{KeyId: key, Period: durationpb.New(90 * 24 * time.Hour)})))
	must(c.t, second(x.Keys().DisableKeyRotation(ctx, &pb.DisableKeyRotationRequest{KeyId: key})))
	c.level(ctx)
	for i, y := range c.through(ctx, serviceID) {
		r, err := y.Crypto().GenerateDataKey(ctx, dataKey("landlord", "tenant", "landlord", "resource", "r"))
		if must(c.t, err); r.GetKeyVersion() != 2 {
			c.t.Errorf("%s sealed with version %d", c.nodes[i].name, r.GetKeyVersion())
		}
	}
}

// testServiceKeyFrozen: the freeze of a tenant stops the service, also before its first use.
func testServiceKeyFrozen(ctx context.Context, c *testCluster) {
	service, operator := c.through(ctx, serviceID), c.dial(operatorID).Tenants()
	admin, _ := c.tenant(ctx, "icy")
	c.level(ctx)
	use := dataKey("icy", "tenant", "icy", "resource", "r")
	must(c.t, second(operator.FreezeTenant(ctx, &pb.FreezeTenantRequest{Name: "icy"})))
	c.everywhere(ctx, "the first use", whenFrozen, service, use)
	listed, err := c.dial(admin).Keys().ListKeys(ctx, &pb.ListKeysRequest{IndexToken: c.latest(c.nodes[0])})
	if must(c.t, err); len(listed.GetKeys()) != 0 {
		c.t.Errorf("a frozen tenant got %v", listed.GetKeys())
	}
	must(c.t, second(operator.ThawTenant(ctx, &pb.ThawTenantRequest{Name: "icy"})))
	c.level(ctx)
	c.everywhere(ctx, "thawed", nil, service, use)
	must(c.t, second(c.dial(admin, c.nodes[2]).Tenants().FreezeTenant(ctx, &pb.FreezeTenantRequest{})))
	c.everywhere(ctx, "frozen again", whenFrozen, service, use)
	must(c.t, second(c.dial(admin).Tenants().ThawTenant(ctx, &pb.ThawTenantRequest{})))
}
