package main

import (
	"context"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// group is which callers a call is for.
type group int

const (
	groupUse        group = iota // key users
	groupAdminister              // key administrators
	groupRead                    // key users, key administrators, auditors
	groupOperate                 // operators
)

// object is what the calls of the catalogue are about.
type object struct {
	key   string // enabled
	alias string // of key
	blob  []byte // under key, without context
	dry   bool
}

// named is one call of the protocol.
type named struct {
	name  string
	group group
	call  func(context.Context, *client.Client) error
}

// catalogue is every call that names a key, and those that list or make keys. Each
// would succeed on o, but for CancelKeyDeletion.
func catalogue(o object) []named {
	return append(usingCalls(o), append(administeringCalls(o), readingCalls(o)...)...)
}

func usingCalls(o object) []named {
	spec := pb.DataKeySpec_DATA_KEY_SPEC_AES_128
	return []named{
		{"Encrypt", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x"), DryRun: o.dry}))
		}},
		{"Decrypt", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob, DryRun: o.dry}))
		}},
		{"ReEncrypt", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: o.blob, DestinationKeyId: o.alias, SameContext: true, DryRun: o.dry}))
		}},
		{"GenerateDataKey", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: o.key, Spec: spec, DryRun: o.dry}))
		}},
		{"GenerateDataKeyWithoutPlaintext", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().GenerateDataKeyWithoutPlaintext(ctx, &pb.GenerateDataKeyWithoutPlaintextRequest{KeyId: o.key, Spec: spec, DryRun: o.dry}))
		}},
	}
}

func administeringCalls(o object) []named {
	return []named{
		{"CreateKey", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().CreateKey(ctx, &pb.CreateKeyRequest{DryRun: o.dry}))
		}},
		{"UpdateKeyDescription", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: o.key, Description: "d", DryRun: o.dry}))
		}},
		{"TagResource", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().TagResource(ctx, &pb.TagResourceRequest{KeyId: o.key, Tags: []*pb.Tag{{Key: "t"}}, DryRun: o.dry}))
		}},
		{"UntagResource", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().UntagResource(ctx, &pb.UntagResourceRequest{KeyId: o.key, TagKeys: []string{"t"}, DryRun: o.dry}))
		}},
		{"RotateKeyOnDemand", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: o.key, DryRun: o.dry}))
		}},
		{"CreateAlias", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: o.alias + "-new", KeyId: o.key, DryRun: o.dry}))
		}},
		{"UpdateAlias", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: o.alias, KeyId: o.key, DryRun: o.dry}))
		}},
		{"DeleteAlias", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: o.alias, DryRun: o.dry}))
		}},
		{"DisableKey", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: o.key, DryRun: o.dry}))
		}},
		{"EnableKey", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: o.key, DryRun: o.dry}))
		}},
		{"ScheduleKeyDeletion", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: o.key, DryRun: o.dry}))
		}},
		{"CancelKeyDeletion", groupAdminister, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: o.key, DryRun: o.dry}))
		}},
	}
}

func readingCalls(o object) []named {
	return []named{
		{"DescribeKey", groupRead, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: o.key}))
		}},
		{"ListAliases", groupRead, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().ListAliases(ctx, &pb.ListAliasesRequest{KeyId: o.key}))
		}},
		{"ListResourceTags", groupRead, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: o.key}))
		}},
		{"ListKeyRotations", groupRead, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().ListKeyRotations(ctx, &pb.ListKeyRotationsRequest{KeyId: o.key}))
		}},
	}
}

// wholeCalls are the calls that name no key.
func wholeCalls() []named {
	return []named{
		{"ListKeys", groupRead, func(ctx context.Context, c *client.Client) error {
			return second(c.Keys().ListKeys(ctx, &pb.ListKeysRequest{}))
		}},
		{"GenerateRandom", groupUse, func(ctx context.Context, c *client.Client) error {
			return second(c.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 8}))
		}},
		{"Init", groupOperate, func(ctx context.Context, c *client.Client) error {
			return second(c.Cluster().Init(ctx, &pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true}))
		}},
		{"Invite", groupOperate, func(ctx context.Context, c *client.Client) error {
			return second(c.Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-9"}))
		}},
		{"Remove", groupOperate, func(ctx context.Context, c *client.Client) error {
			return second(c.Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-3"}))
		}},
		{"SetVoter", groupOperate, func(ctx context.Context, c *client.Client) error {
			return second(c.Cluster().SetVoter(ctx, &pb.SetVoterRequest{Node: "kms-3", Voter: true}))
		}},
		{"TransferLeadership", groupOperate, func(ctx context.Context, c *client.Client) error {
			return second(c.Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{}))
		}},
	}
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
