package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// subject is a key in some state, with a blob from before and an alias.
type subject struct {
	key, alias string
	blob       []byte
	admin      pb.KeyServiceClient
	reader     pb.KeyServiceClient
	user       pb.CryptoServiceClient
	other      string // an enabled key
	otherBlob  []byte
}

// The states of the table and what the calls answer in them; nil is success.
var (
	whenDisabled = refused(codes.FailedPrecondition, client.ErrKeyDisabled, "key is disabled")
	whenPending  = refused(codes.FailedPrecondition, client.ErrKeyPendingDeletion, "key is pending deletion")
	notPending   = refused(codes.FailedPrecondition, client.ErrKeyNotPendingDeletion, "not pending deletion")
)

// stateTable is semantics: operation × state, for Enabled, Disabled and
// PendingDeletion.
var stateTable = []struct {
	name string
	call func(context.Context, *subject) error
	want [3]*refusal
}{
	{"Encrypt", func(ctx context.Context, s *subject) error {
		return second(s.user.Encrypt(ctx, &pb.EncryptRequest{KeyId: s.key, Plaintext: []byte("x")}))
	}, use},
	{"Encrypt by alias", func(ctx context.Context, s *subject) error {
		return second(s.user.Encrypt(ctx, &pb.EncryptRequest{KeyId: s.alias, Plaintext: []byte("x")}))
	}, use},
	{"Decrypt", func(ctx context.Context, s *subject) error {
		return second(s.user.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: s.blob}))
	}, use},
	{"ReEncrypt from", func(ctx context.Context, s *subject) error {
		return second(s.user.ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: s.blob, DestinationKeyId: s.other}))
	}, use},
	{"ReEncrypt to", func(ctx context.Context, s *subject) error {
		return second(s.user.ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: s.otherBlob, DestinationKeyId: s.key}))
	}, use},
	{"GenerateDataKey", func(ctx context.Context, s *subject) error {
		return second(s.user.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: s.key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256}))
	}, use},
	{"GenerateDataKeyWithoutPlaintext", func(ctx context.Context, s *subject) error {
		return second(s.user.GenerateDataKeyWithoutPlaintext(ctx, &pb.GenerateDataKeyWithoutPlaintextRequest{KeyId: s.key, NumberOfBytes: 8}))
	}, use},
	{"RotateKeyOnDemand", func(ctx context.Context, s *subject) error {
		return second(s.admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: s.key}))
	}, use},

	{"DescribeKey", func(ctx context.Context, s *subject) error {
		return second(s.reader.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: s.key}))
	}, always},
	{"ListAliases", func(ctx context.Context, s *subject) error {
		return second(s.reader.ListAliases(ctx, &pb.ListAliasesRequest{KeyId: s.alias}))
	}, always},
	{"ListResourceTags", func(ctx context.Context, s *subject) error {
		return second(s.reader.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: s.key}))
	}, always},
	{"ListKeyRotations", func(ctx context.Context, s *subject) error {
		return second(s.reader.ListKeyRotations(ctx, &pb.ListKeyRotationsRequest{KeyId: s.key}))
	}, always},
	{"DeleteAlias", func(ctx context.Context, s *subject) error {
		return second(s.admin.DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: s.alias}))
	}, always},

	{"CreateAlias", func(ctx context.Context, s *subject) error {
		return second(s.admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: s.alias + "-2", KeyId: s.key}))
	}, edit},
	{"UpdateAlias", func(ctx context.Context, s *subject) error {
		return second(s.admin.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: s.alias, KeyId: s.key}))
	}, edit},
	{"TagResource", func(ctx context.Context, s *subject) error {
		return second(s.admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: s.key, Tags: []*pb.Tag{{Key: "t"}}}))
	}, edit},
	{"UntagResource", func(ctx context.Context, s *subject) error {
		return second(s.admin.UntagResource(ctx, &pb.UntagResourceRequest{KeyId: s.key, TagKeys: []string{"t"}}))
	}, edit},
	{"UpdateKeyDescription", func(ctx context.Context, s *subject) error {
		return second(s.admin.UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: s.key, Description: "d"}))
	}, edit},
	{"EnableKey", func(ctx context.Context, s *subject) error {
		return second(s.admin.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: s.key}))
	}, edit},
	{"DisableKey", func(ctx context.Context, s *subject) error {
		return second(s.admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: s.key}))
	}, edit},
	{"ScheduleKeyDeletion", func(ctx context.Context, s *subject) error {
		return second(s.admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: s.key}))
	}, edit},
	{"CancelKeyDeletion", func(ctx context.Context, s *subject) error {
		return second(s.admin.CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: s.key}))
	}, [3]*refusal{notPending, notPending, nil}},
}

// The rows of the table that are alike.
var (
	use    = [3]*refusal{nil, whenDisabled, whenPending}
	edit   = [3]*refusal{nil, nil, whenPending}
	always = [3]*refusal{}
)

// testStates makes every call on a key in every state; a call that is refused
// changes nothing.
func testStates(ctx context.Context, c *testCluster) {
	admin, user := c.dial(adminID), c.dial(userID)
	other := c.createKey(ctx)
	otherBlob, err := user.Encrypt(ctx, other, []byte("other"), nil)
	must(c.t, err)
	for state, name := range []string{"Enabled", "Disabled", "PendingDeletion"} {
		var refusals []func()
		for i, row := range stateTable {
			s := &subject{
				key: c.createKey(ctx), alias: fmt.Sprintf("alias/state/%d-%d", state, i), other: other, otherBlob: otherBlob,
				admin: admin.Keys(), reader: c.dial(auditorID).Keys(), user: user.Crypto(),
			}
			must(c.t, second(s.admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: s.alias, KeyId: s.key})))
			s.blob, err = user.Encrypt(ctx, s.key, []byte("before"), nil)
			must(c.t, err)
			switch name {
			case "Disabled":
				must(c.t, second(s.admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: s.key})))
			case "PendingDeletion":
				must(c.t, second(s.admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: s.key})))
			}
			call := func() { row.want[state].check(c.t, row.name+" in state "+name, row.call(ctx, s)) }
			if row.want[state] == nil {
				call()
			} else {
				refusals = append(refusals, call)
			}
		}
		c.unchanged("a call refused in state "+name, func() {
			for _, call := range refusals {
				call()
			}
		})
	}
	_, err = user.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: otherBlob, SameContext: true})
	must(c.t, err)
}
