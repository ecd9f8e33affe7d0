package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testOrder makes calls that are wrong in two ways: what is told is what comes first of
// syntax, the key's existence, authorisation, state, usage, operation.
func testOrder(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "order")
	_, stranger := c.tenant(ctx, "disorder")
	banned := c.identity("/tenant/order/user/order-banned")
	x := c.dial(admin)
	state := func(set proto.Message) (key, arn string, blob []byte) {
		k := c.keyOf(ctx, admin)
		blob = c.encrypt(ctx, user, k.GetKeyId(), nil)
		must(c.t, second(x.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: k.GetKeyId()})))
		if set != nil {
			must(c.t, second(send(ctx, x, with(set, "key_id", k.GetKeyId()))))
		}
		return k.GetKeyId(), k.GetArn(), blob
	}
	enabled, enabledARN, blob := state(nil)
	disabled, disabledARN, disabledBlob := state(&pb.DisableKeyRequest{})
	pending, _, _ := state(&pb.ScheduleKeyDeletionRequest{})
	strict, _, strictBlob := state(&pb.SetRequiredContextRequest{ContextKeys: []string{"a"}})
	old, _, oldBlob := state(&pb.DisableKeyVersionRequest{Version: 1})
	absent := uuid.NewString()
	absentARN := strings.Replace(enabledARN, enabled, absent, 1)
	must(c.t, second(x.Keys().UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: strict, Description: "d"})))
	for _, edit := range []proto.Message{&pb.SetRequiredContextRequest{ContextKeys: []string{"a"}}, &pb.DisableKeyVersionRequest{Version: 1}, &pb.SetDeletionProtectionRequest{Enabled: true}} {
		must(c.t, second(send(ctx, x, with(edit, "key_id", disabled))))
	}
	must(c.t, second(x.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{KeyId: enabled, GranteePrincipal: uri(stranger), Operations: []string{"Encrypt"}})))
	must(c.t, second(x.Policies().PutPolicy(ctx, &pb.PutPolicyRequest{Text: defaults + fmt.Sprintf(`forbid (principal == KMS::User::%q, action, resource);`, uri(banned))})))
	c.level(ctx)
	tampered := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	empty, one := []byte(nil), []byte("x")
	badContext := pairs("a", "1", "a", "2")
	invalid, wouldSucceed := invalidWith(), refused(codes.FailedPrecondition, client.ErrDryRun)
	badPolicy := refused(codes.InvalidArgument, client.ErrPolicyInvalid)
	grantee := uri(user)

	for _, y := range []struct {
		what string
		as   string
		r    proto.Message
		want *refusal
	}{
		{"syntax, existence", admin, &pb.ScheduleKeyDeletionRequest{KeyId: absent, PendingWindowDays: 5}, invalid},
		{"syntax, existence", admin, &pb.TagResourceRequest{KeyId: absent}, invalid},
		{"syntax, existence", admin, &pb.UntagResourceRequest{KeyId: absent}, invalid},
		{"syntax, existence", admin, &pb.UpdateKeyDescriptionRequest{KeyId: absent, Description: strings.Repeat("d", 8193)}, invalid},
		{"syntax, existence", admin, &pb.EnableKeyRotationRequest{KeyId: absent, Period: durationpb.New(time.Second)}, invalid},
		{"syntax, existence", admin, &pb.SetRequiredContextRequest{KeyId: absent, ContextKeys: []string{"kms:a"}}, invalid},
		{"syntax, existence", admin, &pb.DisableKeyVersionRequest{KeyId: absent}, invalid},
		{"syntax, existence", admin, &pb.ScheduleKeyVersionDestructionRequest{KeyId: absent, Version: 1, PendingWindowDays: 5}, invalid},
		{"syntax, existence", admin, &pb.PutPolicyRequest{KeyId: absent, Text: "nonsense"}, badPolicy},
		{"syntax, existence", admin, &pb.CreateGrantRequest{KeyId: absent, GranteePrincipal: grantee}, invalid},
		{"syntax, existence", admin, &pb.CreateGrantRequest{KeyId: absent, GranteePrincipal: "x", Operations: []string{"Encrypt"}}, invalid},
		{"syntax, existence", admin, &pb.RevokeGrantRequest{KeyId: absent, GrantId: "x"}, invalid},
		{"syntax, existence", user, &pb.RetireGrantRequest{KeyId: absent, GrantId: "x"}, invalid},
		{"syntax, existence", user, &pb.BindResourceRequest{KeyId: absent}, invalid},
		{"syntax, existence", user, &pb.ReleaseResourceRequest{KeyId: absent}, invalid},
		{"syntax, existence", admin, &pb.CreateAliasRequest{KeyId: absent, AliasName: "none"}, invalid},
		{"syntax, existence", admin, &pb.UpdateAliasRequest{KeyId: absent, AliasName: "alias/service/obs"}, invalid},
		{"syntax, existence", admin, &pb.DeleteAliasRequest{AliasName: "alias/service/none"}, invalid},
		{"syntax, existence", user, &pb.EncryptRequest{KeyId: absent, Plaintext: empty}, invalid},
		{"syntax, existence", user, &pb.EncryptRequest{KeyId: absent, Plaintext: one, EncryptionContext: badContext}, invalid},
		{"syntax, existence", user, &pb.GenerateDataKeyRequest{KeyId: absent, NumberOfBytes: 1025}, invalid},
		{"syntax, existence", user, &pb.DecryptRequest{KeyId: absent, Ciphertext: one}, malformed},
		{"syntax, existence", user, &pb.ReEncryptRequest{SourceKeyId: absent, Ciphertext: one}, malformed},
		{"syntax, existence", user, &pb.SignRequest{KeyId: absent, Message: one}, invalid},
		{"syntax, existence", user, &pb.VerifyMacRequest{KeyId: absent, Message: one, MacAlgorithm: hmac256}, invalid},
		{"syntax, authorisation", banned, &pb.GenerateMacRequest{KeyId: enabled, MacAlgorithm: hmac256}, invalid},
		{"syntax, authorisation", user, &pb.ScheduleKeyDeletionRequest{KeyId: enabled, PendingWindowDays: 5}, invalid},
		{"syntax, authorisation", banned, &pb.EncryptRequest{KeyId: enabled, Plaintext: empty}, invalid},
		{"syntax, authorisation", stranger, &pb.DecryptRequest{KeyId: enabledARN, Ciphertext: one}, malformed},
		{"syntax, state", admin, &pb.ScheduleKeyDeletionRequest{KeyId: pending, PendingWindowDays: 5}, invalid},
		{"syntax, state", admin, &pb.TagResourceRequest{KeyId: pending}, invalid},
		{"syntax, state", admin, &pb.CreateGrantRequest{KeyId: disabled, GranteePrincipal: grantee}, invalid},
		{"syntax, state", user, &pb.EncryptRequest{KeyId: disabled, Plaintext: empty}, invalid},

		{"existence, authorisation", banned, &pb.EncryptRequest{KeyId: absent, Plaintext: one}, notFound},
		{"existence, authorisation", banned, &pb.DescribeKeyRequest{KeyId: absent}, notFound},
		{"existence, authorisation by the ARN of another tenant", stranger, &pb.EncryptRequest{KeyId: absentARN, Plaintext: one}, needsGrant},
		{"existence, operation", admin, &pb.RevokeGrantRequest{KeyId: absent, GrantId: absent}, notFound},

		{"authorisation, state", banned, &pb.EncryptRequest{KeyId: disabled, Plaintext: one}, denied},
		{"authorisation, state", banned, &pb.DecryptRequest{Ciphertext: disabledBlob}, denied},
		{"authorisation, state", stranger, &pb.EncryptRequest{KeyId: disabledARN, Plaintext: one}, needsGrant},
		{"authorisation, state", admin, &pb.EncryptRequest{KeyId: disabled, Plaintext: one}, denied},
		{"authorisation, state", user, &pb.DisableKeyRequest{KeyId: pending}, denied},
		{"authorisation, state", user, &pb.RotateKeyOnDemandRequest{KeyId: disabled}, denied},
		{"authorisation, state", banned, &pb.CreateGrantRequest{KeyId: disabled, GranteePrincipal: grantee, Operations: []string{"Encrypt"}}, denied},
		{"authorisation, usage", banned, &pb.EncryptRequest{KeyId: strict, Plaintext: one}, denied},
		{"authorisation, usage", banned, &pb.SignRequest{KeyId: enabled, Message: one, SigningAlgorithm: ecdsaP256}, denied},
		{"authorisation, usage", stranger, &pb.GetPublicKeyRequest{KeyId: enabledARN}, needsGrant},
		{"authorisation, operation", banned, &pb.DecryptRequest{Ciphertext: tampered(blob)}, denied},
		{"authorisation, operation", stranger, &pb.DecryptRequest{KeyId: enabledARN, Ciphertext: tampered(blob)}, needsGrant},
		{"authorisation, operation", user, &pb.RevokeGrantRequest{KeyId: enabled, GrantId: absent}, denied},
		{"authorisation, operation", user, &pb.DisableKeyVersionRequest{KeyId: enabled, Version: 99}, denied},

		{"state, usage", user, &pb.EncryptRequest{KeyId: disabled, Plaintext: one}, whenDisabled},
		{"state, usage", user, &pb.SignRequest{KeyId: disabled, Message: one, SigningAlgorithm: ecdsaP256}, whenDisabled},
		{"state, usage", user, &pb.GenerateMacRequest{KeyId: pending, Message: one, MacAlgorithm: hmac256}, whenPending},
		{"state, operation", user, &pb.DecryptRequest{Ciphertext: tampered(disabledBlob)}, whenDisabled},
		{"state, operation", user, &pb.DecryptRequest{Ciphertext: tampered(oldBlob)}, versionDisabled},
		{"state, operation", user, &pb.ReEncryptRequest{Ciphertext: tampered(blob), DestinationKeyId: disabled}, whenDisabled},
		{"state, operation", admin, &pb.DisableKeyVersionRequest{KeyId: pending, Version: 99}, whenPending},
		{"state, operation", admin, &pb.CreateGrantRequest{KeyId: disabled, GranteePrincipal: grantee, Operations: []string{"Encrypt"}, ParentGrantId: ""}, whenDisabled},
		{"state, operation", admin, &pb.SetDeletionProtectionRequest{KeyId: pending, Enabled: true}, whenPending},
		{"usage, operation", user, &pb.DecryptRequest{Ciphertext: tampered(strictBlob)}, invalidWith("requires")},

		{"DryRun, before the operation", user, &pb.DecryptRequest{Ciphertext: tampered(blob), DryRun: true}, wouldSucceed},
		{"DryRun, before the operation", user, &pb.DecryptRequest{Ciphertext: blob, EncryptionContext: pairs("wrong", "context"), DryRun: true}, wouldSucceed},
		{"DryRun, before the operation", user, &pb.ReEncryptRequest{Ciphertext: tampered(blob), DryRun: true}, wouldSucceed},
		{"DryRun, behind the syntax", user, &pb.EncryptRequest{KeyId: enabled, Plaintext: empty, DryRun: true}, invalid},
		{"DryRun, behind the existence", user, &pb.EncryptRequest{KeyId: absent, Plaintext: one, DryRun: true}, notFound},
		{"DryRun, behind the authorisation", banned, &pb.EncryptRequest{KeyId: enabled, Plaintext: one, DryRun: true}, denied},
		{"DryRun, behind the state", user, &pb.EncryptRequest{KeyId: disabled, Plaintext: one, DryRun: true}, whenDisabled},
		{"DryRun, behind the usage", user, &pb.EncryptRequest{KeyId: strict, Plaintext: one, DryRun: true}, invalidWith("requires")},
		{"DryRun, behind the usage", user, &pb.SignRequest{KeyId: enabled, Message: one, SigningAlgorithm: ecdsaP256, DryRun: true}, refused(codes.FailedPrecondition, client.ErrUnsupported, "SYMMETRIC")},
		{"DryRun, behind the version", user, &pb.DecryptRequest{KeyId: old, Ciphertext: oldBlob, DryRun: true}, versionDisabled},
		{"DryRun, behind the state", admin, &pb.RotateKeyOnDemandRequest{KeyId: disabled, DryRun: true}, whenDisabled},
	} {
		y.want.check(c.t, fmt.Sprintf("%s: %s by %s", y.what, methodOf(y.r).Name(), y.as), second(send(ctx, c.dial(y.as), y.r)))
	}

	// A frozen tenant comes before its keys.
	must(c.t, second(x.Tenants().FreezeTenant(ctx, &pb.FreezeTenantRequest{})))
	whenFrozen.check(c.t, "a disabled key of a frozen tenant", second(c.dial(user).Encrypt(ctx, disabled, one, nil)))
	denied.check(c.t, "a caller who may not, of a frozen tenant", second(c.dial(banned).Encrypt(ctx, disabled, one, nil)))
	needsGrant.check(c.t, "another tenant's caller, of a frozen tenant", second(c.dial(stranger).Encrypt(ctx, disabledARN, one, nil)))
	must(c.t, second(x.Tenants().ThawTenant(ctx, &pb.ThawTenantRequest{})))
}
