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

// subject is a key in some state, with a blob, a grant and an alias from before.
type subject struct {
	key, alias string
	blob       []byte
	grant      string // only where a row makes one
	proof      []byte // a MAC or signature of before, of keys that are not symmetric
	other      string // an enabled key
	otherBlob  []byte
}

// The states of the table, in its order.
const (
	inEnabled = iota
	inDisabled
	inPending
	inDecryptOnly
	inFrozen // the tenant is; the key is enabled
	states
)

var stateNames = [states]string{"Enabled", "Disabled", "PendingDeletion", "DecryptOnly", "a frozen tenant"}

// What the calls answer in a state; nil is success.
var (
	whenDisabled      = refused(codes.FailedPrecondition, client.ErrKeyDisabled, "key is disabled")
	whenPending       = refused(codes.FailedPrecondition, client.ErrKeyPendingDeletion, "key is pending deletion")
	whenDecryptOnly   = refused(codes.FailedPrecondition, client.ErrKeyDecryptOnly, "key only decrypts")
	whenFrozen        = refused(codes.FailedPrecondition, client.ErrTenantFrozen, "tenant is frozen")
	notImported       = refused(codes.FailedPrecondition, client.ErrUnsupported, "of origin KMS")
	notPending        = refused(codes.FailedPrecondition, client.ErrKeyNotPendingDeletion, "not pending deletion")
	notPendingVersion = refused(codes.FailedPrecondition, client.ErrKeyNotPendingDeletion, "not to be destroyed")
)

// The rows of the table that are alike.
var (
	seals  = [states]*refusal{nil, whenDisabled, whenPending, whenDecryptOnly, whenFrozen}
	opens  = [states]*refusal{nil, whenDisabled, whenPending, nil, whenFrozen}
	rotate = [states]*refusal{nil, whenDisabled, whenPending, whenDecryptOnly, nil}
	give   = [states]*refusal{nil, whenDisabled, whenPending, nil, nil}
	edit   = [states]*refusal{nil, nil, whenPending, nil, nil}
	always = [states]*refusal{}
	// The keys of the table are the HSM's; import_test.go has those whose material is imported.
	imports  = [states]*refusal{notImported, notImported, whenPending, notImported, notImported}
	deleting = [states]*refusal{notImported, notImported, notImported, notImported, notImported}
)

// stateRow is a row of the table: a call, by whom, and what it answers.
type stateRow struct {
	what  string // in what it differs from the call's other rows
	as    string
	call  func(s *subject) proto.Message
	want  [states]*refusal
	ready func(ctx context.Context, c *testCluster, s *subject, state int) error // before the key comes into its state; may be nil
}

// stateTable is semantics: operation × state.
var stateTable = []stateRow{
	{"", userID, func(s *subject) proto.Message { return &pb.EncryptRequest{KeyId: s.key, Plaintext: []byte("x")} }, seals, nil},
	{"by alias", userID, func(s *subject) proto.Message { return &pb.EncryptRequest{KeyId: s.alias, Plaintext: []byte("x")} }, seals, nil},
	{"", userID, func(s *subject) proto.Message { return &pb.DecryptRequest{Ciphertext: s.blob} }, opens, nil},
	{"named", userID, func(s *subject) proto.Message { return &pb.DecryptRequest{Ciphertext: s.blob, KeyId: s.alias} }, opens, nil},
	{"from", userID, func(s *subject) proto.Message {
		return &pb.ReEncryptRequest{Ciphertext: s.blob, DestinationKeyId: s.other}
	}, opens, nil},
	{"to", userID, func(s *subject) proto.Message {
		return &pb.ReEncryptRequest{Ciphertext: s.otherBlob, DestinationKeyId: s.key}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.GenerateDataKeyRequest{KeyId: s.key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.GenerateDataKeyWithoutPlaintextRequest{KeyId: s.key, NumberOfBytes: 8}
	}, seals, nil},

	{"", userID, func(s *subject) proto.Message {
		return &pb.GenerateDataKeyPairRequest{KeyId: s.key, Spec: pb.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P256}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: s.key, Spec: pb.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P384}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.SignRequest{KeyId: s.key, Message: []byte(proven), SigningAlgorithm: ecdsaP256}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.VerifyRequest{KeyId: s.alias, Message: []byte(proven), SigningAlgorithm: ecdsaP256, Signature: s.proof}
	}, opens, nil},
	{"", userID, func(s *subject) proto.Message { return &pb.GetPublicKeyRequest{KeyId: s.key} }, opens, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.GenerateMacRequest{KeyId: s.alias, Message: []byte(proven), MacAlgorithm: hmac256}
	}, seals, nil},
	{"", userID, func(s *subject) proto.Message {
		return &pb.VerifyMacRequest{KeyId: s.key, Message: []byte(proven), MacAlgorithm: hmac256, Mac: s.proof}
	}, opens, nil},

	{"to open", adminID, grantOf("Decrypt", "ReEncryptFrom", "DescribeKey"), give, nil},
	{"to seal", adminID, grantOf("Decrypt", "Encrypt"), rotate, nil},
	{"to make data keys", adminID, grantOf("GenerateDataKeyWithoutPlaintext"), rotate, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListGrantsRequest{KeyId: s.key} }, always, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.RevokeGrantRequest{KeyId: s.key, GrantId: s.grant} }, always, withGrant},
	{"", userID, func(s *subject) proto.Message { return &pb.RetireGrantRequest{KeyId: s.key, GrantId: s.grant} }, always, withGrant},

	{"", auditorID, func(s *subject) proto.Message { return &pb.DescribeKeyRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListAliasesRequest{KeyId: s.alias} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListResourceTagsRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListKeyRotationsRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.GetKeyRotationStatusRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListKeyVersionsRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListResourcesRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.ListPolicyRevisionsRequest{KeyId: s.key} }, always, nil},
	{"", auditorID, func(s *subject) proto.Message { return &pb.GetPolicyRequest{KeyId: s.key} }, always, withPolicy},
	{"", auditorID, func(s *subject) proto.Message {
		return &pb.ExplainPolicyRequest{KeyId: s.key, Principal: "spiffe://" + testDomain + userID, Operation: "Decrypt"}
	}, always, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.PutPolicyRequest{KeyId: s.key, Text: harmlessPolicy} }, always, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.DeletePolicyRequest{KeyId: s.key} }, always, withPolicy},
	{"", adminID, func(s *subject) proto.Message { return &pb.DeleteAliasRequest{AliasName: s.alias} }, always, nil},

	{"", adminID, func(s *subject) proto.Message { return &pb.CreateAliasRequest{AliasName: s.alias + "-2", KeyId: s.key} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.UpdateAliasRequest{AliasName: s.alias, KeyId: s.key} }, edit, nil},
	{"from another key", adminID, func(s *subject) proto.Message { return &pb.UpdateAliasRequest{AliasName: s.alias + "-o", KeyId: s.key} }, edit, withOtherAlias},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.TagResourceRequest{KeyId: s.key, Tags: []*pb.Tag{{Key: "t"}}}
	}, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.UntagResourceRequest{KeyId: s.key, TagKeys: []string{"t"}} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.UpdateKeyDescriptionRequest{KeyId: s.key, Description: "d"} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.EnableKeyRequest{KeyId: s.key} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.DisableKeyRequest{KeyId: s.key} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.SetKeyDecryptOnlyRequest{KeyId: s.key} }, give, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.SetDeletionProtectionRequest{KeyId: s.key, Enabled: true} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.SetRequiredContextRequest{KeyId: s.key, ContextKeys: []string{"a"}}
	}, edit, nil},
	{"", userID, func(s *subject) proto.Message { return &pb.BindResourceRequest{KeyId: s.key, Resource: "volume/1"} }, edit, nil},
	{"by an administrator", adminID, func(s *subject) proto.Message { return &pb.BindResourceRequest{KeyId: s.key, Resource: "volume/1"} }, edit, nil},
	// A key that is to be deleted protects nothing: that is what it was asked before.
	{"", userID, func(s *subject) proto.Message { return &pb.ReleaseResourceRequest{KeyId: s.key, Resource: "volume/1"} }, [states]*refusal{inPending: notFound}, withResource},

	{"", adminID, func(s *subject) proto.Message { return &pb.RotateKeyOnDemandRequest{KeyId: s.key} }, rotate, nil},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.EnableKeyRotationRequest{KeyId: s.key, Period: durationpb.New(90 * 24 * time.Hour)}
	}, rotate, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.DisableKeyRotationRequest{KeyId: s.key} }, rotate, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.GetParametersForImportRequest{KeyId: s.key} }, imports, nil},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.ImportKeyMaterialRequest{KeyId: s.key, ImportToken: []byte{1}, EncryptedKeyMaterial: []byte{1}}
	}, imports, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.DeleteImportedKeyMaterialRequest{KeyId: s.key} }, deleting, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.DisableKeyVersionRequest{KeyId: s.key, Version: 1} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message { return &pb.EnableKeyVersionRequest{KeyId: s.key, Version: 1} }, edit, nil},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.ScheduleKeyVersionDestructionRequest{KeyId: s.key, Version: 1}
	}, edit, withVersions},
	{"", adminID, func(s *subject) proto.Message {
		return &pb.CancelKeyVersionDestructionRequest{KeyId: s.key, Version: 1}
	}, edit, withDoomedVersion},

	{"", adminID, func(s *subject) proto.Message { return &pb.ScheduleKeyDeletionRequest{KeyId: s.key} }, edit, nil},
	{
		"", adminID, func(s *subject) proto.Message { return &pb.CancelKeyDeletionRequest{KeyId: s.key} },
		[states]*refusal{notPending, notPending, nil, notPending, notPending},
		nil,
	},
}

func grantOf(operations ...string) func(*subject) proto.Message {
	return func(s *subject) proto.Message {
		return &pb.CreateGrantRequest{KeyId: s.key, GranteePrincipal: "spiffe://" + testDomain + "/tenant/default/user/grantee", Operations: operations}
	}
}

func withGrant(ctx context.Context, c *testCluster, s *subject, _ int) error {
	r, err := c.dial(adminID).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: s.key, GranteePrincipal: "spiffe://" + testDomain + userID, Operations: []string{"Decrypt", "RetireGrant"},
	})
	s.grant = r.GetGrantId()
	return err
}

func withPolicy(ctx context.Context, c *testCluster, s *subject, _ int) error {
	return second(c.dial(adminID).Policies().PutPolicy(ctx, &pb.PutPolicyRequest{KeyId: s.key, Text: harmlessPolicy}))
}

func withOtherAlias(ctx context.Context, c *testCluster, s *subject, _ int) error {
	return second(c.dial(adminID).Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: s.alias + "-o", KeyId: s.other}))
}

func withResource(ctx context.Context, c *testCluster, s *subject, state int) error {
	if state == inPending {
		return nil
	}
	return second(c.dial(userID).Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: s.key, Resource: "volume/1"}))
}

func withVersions(ctx context.Context, c *testCluster, s *subject, _ int) error {
	return second(c.dial(adminID).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: s.key}))
}

func withDoomedVersion(ctx context.Context, c *testCluster, s *subject, state int) error {
	if err := withVersions(ctx, c, s, state); err != nil {
		return err
	}
	return second(c.dial(adminID).Keys().ScheduleKeyVersionDestruction(ctx, &pb.ScheduleKeyVersionDestructionRequest{KeyId: s.key, Version: 1}))
}

// subjectSpecs are the calls whose key is not symmetric.
var subjectSpecs = map[string]pb.KeySpec{
	"CryptoService.Sign": pb.KeySpec_KEY_SPEC_ECC_NIST_P256, "CryptoService.Verify": pb.KeySpec_KEY_SPEC_ECC_NIST_P256,
	"CryptoService.GetPublicKey": pb.KeySpec_KEY_SPEC_ECC_NIST_P256,
	"CryptoService.GenerateMac":  pb.KeySpec_KEY_SPEC_HMAC_256, "CryptoService.VerifyMac": pb.KeySpec_KEY_SPEC_HMAC_256,
}

// subject makes what a row of the table is about, in a state.
func (c *testCluster) subject(ctx context.Context, s *subject, row stateRow, state int) error {
	admin, user := c.dial(adminID).Keys(), c.dial(userID)
	spec := subjectSpecs[qualified(methodOf(row.call(s)))]
	made, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{Spec: spec})
	if err != nil {
		return err
	}
	s.key = made.GetKey().GetKeyId()
	if _, err := admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: s.alias, KeyId: s.key}); err != nil {
		return err
	}
	switch spec {
	case pb.KeySpec_KEY_SPEC_ECC_NIST_P256:
		s.proof, err = user.Sign(ctx, s.key, []byte(proven), ecdsaP256)
	case pb.KeySpec_KEY_SPEC_HMAC_256:
		s.proof, err = user.GenerateMac(ctx, s.key, []byte(proven), hmac256)
	default:
		s.blob, err = user.Encrypt(ctx, s.key, []byte("before"), nil)
	}
	if err != nil {
		return err
	}
	if row.ready != nil {
		if err := row.ready(ctx, c, s, state); err != nil {
			return err
		}
	}
	switch state {
	case inDisabled:
		return second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: s.key}))
	case inPending:
		return second(admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: s.key}))
	case inDecryptOnly:
		return second(admin.SetKeyDecryptOnly(ctx, &pb.SetKeyDecryptOnlyRequest{KeyId: s.key}))
	}
	return nil
}

// testStates makes every call on a key in every state; a call that is refused
// changes nothing.
func testStates(ctx context.Context, c *testCluster) {
	clients := map[string]*client.Client{userID: c.dial(userID), adminID: c.dial(adminID), auditorID: c.dial(auditorID)}
	user, operator := clients[userID], c.dial(operatorID).Tenants()
	other := c.createKey(ctx)
	otherBlob, err := user.Encrypt(ctx, other, []byte("other"), nil)
	must(c.t, err)
	for state := range states {
		subjects := make([]*subject, len(stateTable))
		must(c.t, concurrently(8, len(stateTable), func(i int) error {
			subjects[i] = &subject{alias: fmt.Sprintf("alias/state/%d-%d", state, i), other: other, otherBlob: otherBlob}
			return c.subject(ctx, subjects[i], stateTable[i], state)
		}))
		c.level(ctx)
		var allowed, refusals []func()
		for i, row := range stateTable {
			request := row.call(subjects[i])
			call := func() {
				what := fmt.Sprintf("%s %s in state %s", methodOf(request).Name(), row.what, stateNames[state])
				row.want[state].check(c.t, what, second(send(ctx, clients[row.as], request)))
			}
			if row.want[state] == nil {
				allowed = append(allowed, call)
			} else {
				refusals = append(refusals, call)
			}
		}
		if state == inFrozen {
			must(c.t, second(operator.FreezeTenant(ctx, &pb.FreezeTenantRequest{Name: "default"})))
		}
		c.unchanged("a call refused in state "+stateNames[state], func() {
			for _, call := range refusals {
				call()
			}
		})
		for _, call := range allowed {
			call()
		}
		if state == inFrozen {
			must(c.t, second(operator.ThawTenant(ctx, &pb.ThawTenantRequest{Name: "default"})))
		}
	}
	_, err = user.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: otherBlob, SameContext: true})
	must(c.t, err)
}
