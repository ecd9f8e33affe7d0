package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// group is which callers a call is for.
type group int

const (
	groupUse         group = iota // key users
	groupRandom                   // key users, services
	groupRegister                 // key users, key administrators
	groupAdminister               // key administrators
	groupDelegate                 // key administrators; others by a grant
	groupRead                     // key users, key administrators, auditors
	groupOwn                      // key users, key administrators, auditors, services: their own
	groupDescribe                 // key users, key administrators, auditors, operators
	groupListTenants              // operators, auditors of all tenants
	groupGovern                   // operators, key administrators
	groupOperate                  // operators
)

// harmless tells whether a group's calls change nothing.
func (g group) harmless() bool {
	return slices.Contains([]group{groupUse, groupRandom, groupRead, groupOwn, groupDescribe, groupListTenants}, g)
}

// object is what the calls of the catalogue are about.
type object struct {
	key            string // enabled
	alias          string // of key
	blob           []byte // under key, without context
	retire, revoke string // grants of key
	mac, pair      string // other keys, of HMAC_256 and ECC_NIST_P256; empty: key stands for them
	macOf, sigOf   []byte // theirs of proven
	dry            bool
}

// proven is what the object's MAC and signature are of.
const proven = "proven"

const (
	hmac256   = pb.MacAlgorithm_MAC_ALGORITHM_HMAC_SHA_256
	ecdsaP256 = pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_256
)

// named is one call of the protocol.
type named struct {
	name    string
	group   group
	request proto.Message
}

func (n named) call(ctx context.Context, conn grpc.ClientConnInterface) error {
	return second(send(ctx, conn, n.request))
}

// mutates tells whether the call takes a request id.
func (n named) mutates() bool { return has(n.request, "request_id") }

func (o object) calls(g group, requests ...proto.Message) (out []named) {
	for _, r := range requests {
		if o.dry {
			r = with(r, "dry_run", true)
		}
		out = append(out, named{string(methodOf(r).Name()), g, r})
	}
	return out
}

// catalogue is every call that names a key, and CreateKey. On an object of fullObject each
// would succeed, and one after the other they do; but for those of needsOther.
func catalogue(o object) []named {
	return slices.Concat(usingCalls(o), administeringCalls(o), readingCalls(o))
}

// needsOther are the calls that end what another one begins, and how they are refused
// before.
var needsOther = map[string]*refusal{
	"CancelKeyDeletion": notPending, "CancelKeyVersionDestruction": notPendingVersion, "ReleaseResource": notFound, "EnablePrincipal": notFound, "RetireGeneration": notFound,
	"StartRewrap": notFound, "StopRewrap": notFound, "ApproveJoin": notFound, "RejectJoin": notFound,
}

func usingCalls(o object) []named {
	spec, pairSpec := pb.DataKeySpec_DATA_KEY_SPEC_AES_128, pb.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P256
	mac, pair := cmp.Or(o.mac, o.key), cmp.Or(o.pair, o.key)
	macOf, sigOf := append([]byte{}, o.macOf...), append([]byte{}, o.sigOf...)
	if o.mac == "" {
		macOf, sigOf = []byte{1}, []byte{1}
	}
	return o.calls(groupUse,
		&pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x")},
		&pb.DecryptRequest{Ciphertext: o.blob},
		&pb.ReEncryptRequest{Ciphertext: o.blob, DestinationKeyId: o.alias, SameContext: true},
		&pb.GenerateDataKeyRequest{KeyId: o.key, Spec: spec},
		&pb.GenerateDataKeyWithoutPlaintextRequest{KeyId: o.key, Spec: spec},
		&pb.GenerateDataKeyPairRequest{KeyId: o.key, Spec: pairSpec},
		&pb.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: o.key, Spec: pairSpec},
		&pb.GenerateMacRequest{KeyId: mac, Message: []byte(proven), MacAlgorithm: hmac256},
		&pb.VerifyMacRequest{KeyId: mac, Message: []byte(proven), MacAlgorithm: hmac256, Mac: macOf},
		&pb.SignRequest{KeyId: pair, Message: []byte(proven), SigningAlgorithm: ecdsaP256},
		&pb.VerifyRequest{KeyId: pair, Message: []byte(proven), SigningAlgorithm: ecdsaP256, Signature: sigOf},
		&pb.GetPublicKeyRequest{KeyId: pair},
	)
}

// harmlessPolicy is a policy that changes nothing for the callers of the tests.
const harmlessPolicy = `@id("nobody") forbid (principal == KMS::User::"spiffe://` + testDomain + `/tenant/default/user/nobody", action, resource);`

func administeringCalls(o object) []named {
	const resource = "volume/catalogue"
	return slices.Concat(
		o.calls(groupAdminister,
			&pb.CreateKeyRequest{},
			&pb.UpdateKeyDescriptionRequest{KeyId: o.key, Description: "d"},
			&pb.TagResourceRequest{KeyId: o.key, Tags: []*pb.Tag{{Key: "t"}}},
			&pb.UntagResourceRequest{KeyId: o.key, TagKeys: []string{"t"}},
			&pb.SetRequiredContextRequest{KeyId: o.key},
			&pb.SetDeletionProtectionRequest{KeyId: o.key},
			&pb.RotateKeyOnDemandRequest{KeyId: o.key},
			&pb.EnableKeyRotationRequest{KeyId: o.key, Period: durationpb.New(90 * 24 * time.Hour)},
			&pb.DisableKeyRotationRequest{KeyId: o.key},
			&pb.DisableKeyVersionRequest{KeyId: o.key, Version: 1},
			&pb.EnableKeyVersionRequest{KeyId: o.key, Version: 1},
			&pb.ScheduleKeyVersionDestructionRequest{KeyId: o.key, Version: 1},
			&pb.CancelKeyVersionDestructionRequest{KeyId: o.key, Version: 1},
			&pb.DeletePolicyRequest{KeyId: o.key},
			&pb.PutPolicyRequest{KeyId: o.key, Text: harmlessPolicy},
			&pb.RevokeGrantRequest{KeyId: o.key, GrantId: o.revoke},
		),
		o.calls(groupDelegate,
			&pb.RetireGrantRequest{KeyId: o.key, GrantId: o.retire},
			&pb.CreateGrantRequest{KeyId: o.key, GranteePrincipal: "spiffe://" + testDomain + userID, Operations: []string{"Decrypt"}, Name: "catalogue"},
		),
		o.calls(groupRegister,
			&pb.BindResourceRequest{KeyId: o.key, Resource: resource},
			&pb.ReleaseResourceRequest{KeyId: o.key, Resource: resource},
		),
		o.calls(groupAdminister,
			&pb.CreateAliasRequest{AliasName: o.alias + "-new", KeyId: o.key},
			&pb.UpdateAliasRequest{AliasName: o.alias, KeyId: o.key},
			&pb.DeleteAliasRequest{AliasName: o.alias},
			&pb.SetKeyDecryptOnlyRequest{KeyId: o.key},
			&pb.DisableKeyRequest{KeyId: o.key},
			&pb.EnableKeyRequest{KeyId: o.key},
			&pb.ScheduleKeyDeletionRequest{KeyId: o.key},
			&pb.CancelKeyDeletionRequest{KeyId: o.key},
		),
	)
}

func readingCalls(o object) []named {
	return o.calls(groupRead,
		&pb.DescribeKeyRequest{KeyId: o.key},
		&pb.ListAliasesRequest{KeyId: o.key},
		&pb.ListResourceTagsRequest{KeyId: o.key},
		&pb.ListKeyRotationsRequest{KeyId: o.key},
		&pb.GetKeyRotationStatusRequest{KeyId: o.key},
		&pb.ListKeyVersionsRequest{KeyId: o.key},
		&pb.ListResourcesRequest{KeyId: o.key},
		&pb.ListGrantsRequest{KeyId: o.key},
		&pb.GetPolicyRequest{KeyId: o.key},
		&pb.ListPolicyRevisionsRequest{KeyId: o.key},
		&pb.ExplainPolicyRequest{KeyId: o.key, Principal: "spiffe://" + testDomain + userID, Operation: "Decrypt"},
	)
}

// wholeCalls are the calls that name no key.
func wholeCalls(o object) []named {
	tenant := "t-" + strings.TrimPrefix(o.alias, "alias/")
	nobody := "spiffe://" + testDomain + "/tenant/default/user/nobody"
	return slices.Concat(
		o.calls(groupRead, &pb.ListKeysRequest{}, &pb.ValidatePolicyRequest{Text: harmlessPolicy}),
		o.calls(groupRandom, &pb.GenerateRandomRequest{NumberOfBytes: 8}),
		o.calls(groupOwn, &pb.ListRetirableGrantsRequest{}),
		o.calls(groupDescribe, &pb.DescribeTenantRequest{Name: "default"}, &pb.ListDisabledPrincipalsRequest{}),
		o.calls(groupListTenants, &pb.ListTenantsRequest{}),
		o.calls(groupGovern,
			&pb.FreezeTenantRequest{Name: "default"}, &pb.ThawTenantRequest{Name: "default"},
			&pb.DisablePrincipalRequest{Principal: nobody}, &pb.EnablePrincipalRequest{Principal: nobody},
		),
		o.calls(groupOperate,
			&pb.CreateTenantRequest{Name: tenant, Administrator: "spiffe://" + testDomain + "/tenant/" + tenant + "/admin/first"},
			&pb.SetTenantQuotaRequest{Name: "default"},
			&pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true},
			&pb.InviteRequest{NodeName: "kms-9"},
			&pb.ListJoinsRequest{},
			&pb.ApproveJoinRequest{NodeName: "kms-9", Identity: "SHA256:" + strings.Repeat("0", 64)},
			&pb.RejectJoinRequest{NodeName: "kms-9"},
			&pb.RemoveRequest{Node: "kms-3"},
			&pb.SetVoterRequest{Node: "kms-3", Voter: true},
			&pb.TransferLeadershipRequest{},
			&pb.DescribeDomainRequest{},
			&pb.DescribeHsmRequest{},
			&pb.RotateDomainRequest{NoRecovery: true},
			&pb.RetireGenerationRequest{Generation: 2},
			&pb.StartRewrapRequest{Generation: 2},
			&pb.StopRewrapRequest{Generation: 2},
			&pb.ApplyRewrapsRequest{Items: []*pb.RewrapItem{{KeyId: o.key, Version: 1, OldSha256: make([]byte, 32), Token: []byte{1}}}},
		),
	)
}

// object makes a key with an alias and a blob.
func (c *testCluster) object(ctx context.Context, alias string) object {
	c.t.Helper()
	o := object{key: c.createKey(ctx), alias: alias}
	made, err := c.dial(adminID).Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: alias, KeyId: o.key})
	must(c.t, err)
	r, err := c.dial(userID).Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x"), IndexToken: made.GetIndexToken()})
	must(c.t, err)
	o.blob = r.GetCiphertext()
	return o
}

// fullObject is an object with everything that the calls of the catalogue need: two
// versions, two grants and a policy. Every running node knows it.
func (c *testCluster) fullObject(ctx context.Context, alias string) object {
	c.t.Helper()
	o := c.object(ctx, alias)
	admin := c.dial(adminID)
	must(c.t, second(admin.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: o.key})))
	must(c.t, second(admin.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: o.key, Text: harmlessPolicy})))
	for _, id := range []*string{&o.retire, &o.revoke} {
		r, err := admin.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
			KeyId: o.key, GranteePrincipal: "spiffe://" + testDomain + "/tenant/default/user/grantee", Operations: []string{"Encrypt", "Decrypt"},
		})
		must(c.t, err)
		*id = r.GetGrantId()
	}
	o.mac, o.pair = c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_HMAC_256, 0), c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_ECC_NIST_P256, 0)
	var err error
	o.macOf, err = c.dial(userID).GenerateMac(ctx, o.mac, []byte(proven), hmac256)
	must(c.t, err)
	o.sigOf, err = c.dial(userID).Sign(ctx, o.pair, []byte(proven), ecdsaP256)
	must(c.t, err)
	return o
}

// keyOfSpec makes a key of a spec; a usage of 0 is the only one there is. Every node
// knows it.
func (c *testCluster) keyOfSpec(ctx context.Context, spec pb.KeySpec, usage pb.KeyUsage, through ...*process) string {
	c.t.Helper()
	r, err := c.dial(adminID, through...).Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: spec, Usage: usage})
	must(c.t, err)
	c.level(ctx)
	return r.GetKey().GetKeyId()
}

// level waits until every running node has what has been answered so far.
func (c *testCluster) level(ctx context.Context) {
	c.t.Helper()
	token := c.latest(c.nodes[0])
	for _, p := range c.nodes {
		c.eventually(p.name+" is level", func() bool {
			return second(c.dial(userID, p).Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1, IndexToken: token})) == nil
		}, p)
	}
}
