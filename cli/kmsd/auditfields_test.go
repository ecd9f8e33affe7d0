package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// recordedFields say where the record of a call has what a field of its request says: whatever names
// what the call is about, who it is about, or what it is allowed by.
var recordedFields = map[protoreflect.Name]func(e audit.Event, v protoreflect.Value) bool{
	"request_id":    func(e audit.Event, v protoreflect.Value) bool { return e.RequestID == v.String() },
	"dry_run":       func(e audit.Event, v protoreflect.Value) bool { return e.DryRun == v.Bool() },
	"tenant":        func(e audit.Event, v protoreflect.Value) bool { return e.Tenant == v.String() },
	"key_id":        func(e audit.Event, v protoreflect.Value) bool { return namesKey(v, e.KeyID, e.Alias) },
	"source_key_id": func(e audit.Event, v protoreflect.Value) bool { return namesKey(v, e.KeyID, e.Alias) },
	"destination_key_id": func(e audit.Event, v protoreflect.Value) bool {
		return namesKey(v, e.DestinationKeyID, e.DestinationAlias)
	},
	"alias_name":                     inTarget,
	"version":                        func(e audit.Event, v protoreflect.Value) bool { return uint64(e.KeyVersion) == v.Uint() },
	"encryption_context":             func(e audit.Event, v protoreflect.Value) bool { return maps.Equal(e.Context, pairsOf(v)) },
	"source_encryption_context":      func(e audit.Event, v protoreflect.Value) bool { return maps.Equal(e.Context, pairsOf(v)) },
	"destination_encryption_context": func(e audit.Event, v protoreflect.Value) bool { return maps.Equal(e.DestinationContext, pairsOf(v)) },
	"same_context":                   func(e audit.Event, _ protoreflect.Value) bool { return maps.Equal(e.DestinationContext, e.Context) },
	"ciphertext":                     func(e audit.Event, v protoreflect.Value) bool { return e.CiphertextSHA256 == hexSum(v.Bytes()) },
	"encrypted_key_material":         func(e audit.Event, v protoreflect.Value) bool { return e.CiphertextSHA256 == hexSum(v.Bytes()) },
	"encryption_algorithm":           namesAlgorithm,
	"signing_algorithm":              namesAlgorithm,
	"mac_algorithm":                  namesAlgorithm,
	"grant_id":                       func(e audit.Event, v protoreflect.Value) bool { return e.Grant == v.String() || e.Target == v.String() },
	"name": func(e audit.Event, v protoreflect.Value) bool {
		return e.Target == v.String() || e.Tenant == v.String() || e.Name == "CreateGrant"
	},
	"administrator":      func(e audit.Event, v protoreflect.Value) bool { return inTarget(e, v) || e.Name == "CreateTenant" },
	"grantee_principal":  inTarget,
	"retiring_principal": func(e audit.Event, v protoreflect.Value) bool { return inTarget(e, v) || e.Name == "CreateGrant" },
	"principal":          inTarget,
	"operation":          inTarget,
	"resource":           inTarget,
	"revision":           inTarget,
	"generation":         inTarget,
	"release":            inTarget,
	"node":               inTarget,
	"node_name":          inTarget,
	"change":             inTarget,
	"key":                inTarget, // of SearchRecords, as those that follow
	"result":             inTarget,
	"alarm":              inTarget,
	"of_request":         inTarget,
	"since":              func(e audit.Event, _ protoreflect.Value) bool { return strings.Contains(e.Target, "since=") },
	"until":              func(e audit.Event, _ protoreflect.Value) bool { return strings.Contains(e.Target, "until=") },
	"from":               inTarget,
}

// unrecordedFields are those that are not for the record: secrets, bodies, what a key or a member
// is to be like, which the state has, and how the answer is to look.
var unrecordedFields = strings.Fields(`
	plaintext message message_type signature mac import_token recovery_key recovery_keys report data begin end file confirm
	description tags tag_keys spec usage origin protection_level number_of_bytes context_keys enabled period pending_window_days
	operations constraints parent_grant_id expiration_date expected_revision expected_policy_revision text
	max_keys settings profile lease_duration recovery_required recovery_approvals recovery_drill_days no_recovery
	identity valid_for non_voter voter items cluster_id recovery_epoch dead_nodes journal_problem missed_restrictions
	import_type expiration_model valid_to material_description wrapping_algorithm wrapping_key_spec recipient
	index_token limit marker follow with_proofs prove_from ping`)

func inTarget(e audit.Event, v protoreflect.Value) bool {
	return strings.Contains(e.Target, v.String())
}

func namesKey(v protoreflect.Value, id, alias string) bool {
	return slices.Contains([]string{id, alias}, v.String()) || id != "" && strings.HasSuffix(v.String(), ":key/"+id)
}

func namesAlgorithm(e audit.Event, _ protoreflect.Value) bool { return e.Algorithm != "" }

func pairsOf(v protoreflect.Value) map[string]string {
	out := map[string]string{}
	for i := range v.List().Len() {
		p := v.List().Get(i).Message().Interface().(*pb.ContextPair)
		out[p.GetKey()] = p.GetValue()
	}
	return out
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// TestEveryFieldIsRecordedOrNot: of every field of every request it is decided whether the record
// of the call has it.
func TestEveryFieldIsRecordedOrNot(t *testing.T) {
	seen := map[protoreflect.Name]bool{}
	for _, m := range methods() {
		for i := range m.Input().Fields().Len() {
			name := m.Input().Fields().Get(i).Name()
			seen[name] = true
			_, recorded := recordedFields[name]
			if recorded == slices.Contains(unrecordedFields, string(name)) {
				t.Errorf("%s: recorded: %v, not for the record: %v; it must be one of both", m.Input().Fields().Get(i).FullName(), recorded, !recorded)
			}
		}
	}
	for name := range recordedFields {
		if !seen[name] {
			t.Errorf("no request has a field %s", name)
		}
	}
}

// checkRecorded looks in the record for whatever the request says.
func (c *testCluster) checkRecorded(what string, request proto.Message, e audit.Event) {
	c.t.Helper()
	request.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if is, ok := recordedFields[f.Name()]; ok && !is(e, v) {
			c.t.Errorf("%s: the record has no %s, %v: %+v", what, f.Name(), v, e)
		}
		return true
	})
}

// testAuditFields makes calls that name all that can be named, also such as are refused, and looks
// for it in their records.
func testAuditFields(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	o, other := c.fullObject(ctx, "alias/fields"), c.object(ctx, "alias/fields-other")
	c.level(ctx)
	principal := "spiffe://" + testDomain + userID
	from, to := []*pb.ContextPair{{Key: "from", Value: "1"}}, []*pb.ContextPair{{Key: "to", Value: "2"}}
	user, admin, auditor, operator := c.dial(userID, p), c.dial(adminID, p), c.dial(auditorID, p), c.dial(operatorID, p)
	sealed, err := user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x"), EncryptionContext: from})
	must(c.t, err)
	arn, absent := sealed.GetKeyId(), uuid.NewString()
	for what, x := range map[string]struct {
		by      *client.Client
		request proto.Message
		result  audit.Result
	}{
		"by an alias":                   {user, &pb.EncryptRequest{KeyId: o.alias, Plaintext: []byte("x"), EncryptionContext: from}, audit.Success},
		"by an ARN":                     {user, &pb.GenerateDataKeyRequest{KeyId: arn, Spec: 1, EncryptionContext: from}, audit.Success},
		"named beside its ciphertext":   {user, &pb.DecryptRequest{KeyId: o.alias, Ciphertext: sealed.GetCiphertext(), EncryptionContext: from}, audit.Success},
		"another than the ciphertext's": {user, &pb.DecryptRequest{KeyId: "alias/fields", Ciphertext: other.blob, EncryptionContext: from}, audit.Failed},
		"no such key":                   {user, &pb.EncryptRequest{KeyId: absent, Plaintext: []byte("x"), EncryptionContext: to}, audit.Failed},
		"no such alias":                 {user, &pb.SignRequest{KeyId: "alias/absent", Message: []byte("x"), SigningAlgorithm: ecdsaP256}, audit.Failed},
		"a role that may not":           {auditor, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x"), EncryptionContext: from}, audit.Denied},
		"a role that may not change":    {user, &pb.DisableKeyVersionRequest{KeyId: o.key, Version: 1, RequestId: uuid.NewString()}, audit.Denied},
		"a role that may not look":      {operator, &pb.DescribeKeyRequest{KeyId: o.alias}, audit.Denied},
		"an older version":              {admin, &pb.DisableKeyVersionRequest{KeyId: o.key, Version: 1}, audit.Success},
		"and again":                     {admin, &pb.EnableKeyVersionRequest{KeyId: o.key, Version: 1}, audit.Success},
		"moved":                         {user, &pb.ReEncryptRequest{Ciphertext: sealed.GetCiphertext(), SourceKeyId: o.alias, SourceEncryptionContext: from, DestinationKeyId: other.alias, DestinationEncryptionContext: to}, audit.Success},
		"moved by a trial":              {user, &pb.ReEncryptRequest{Ciphertext: sealed.GetCiphertext(), SourceEncryptionContext: from, DestinationKeyId: other.key, SameContext: true, DryRun: true}, audit.Success},
		"moved nowhere":                 {user, &pb.ReEncryptRequest{Ciphertext: sealed.GetCiphertext(), SourceEncryptionContext: from, DestinationKeyId: absent, DestinationEncryptionContext: to}, audit.Failed},
		"moved by who may not":          {auditor, &pb.ReEncryptRequest{Ciphertext: sealed.GetCiphertext(), SourceEncryptionContext: from, DestinationKeyId: "alias/absent", DestinationEncryptionContext: to}, audit.Denied},
		"grants of one":                 {auditor, &pb.ListGrantsRequest{KeyId: o.key, GranteePrincipal: principal}, audit.Success},
		"a grant":                       {auditor, &pb.ListGrantsRequest{KeyId: o.key, GrantId: o.retire}, audit.Success},
		"what one holds":                {auditor, &pb.ListGrantsRequest{GranteePrincipal: principal}, audit.Success},
		"what one may retire":           {auditor, &pb.ListRetirableGrantsRequest{RetiringPrincipal: principal}, audit.Success},
		"a revision":                    {auditor, &pb.GetPolicyRequest{KeyId: o.key, Revision: 1}, audit.Success},
		"an explanation":                {auditor, &pb.ExplainPolicyRequest{KeyId: o.key, Principal: principal, Operation: "Decrypt", EncryptionContext: from}, audit.Success},
		"a rewrap":                      {operator, &pb.StartRewrapRequest{Generation: 2, Node: "kms-3", DryRun: true}, audit.Failed},
	} {
		e := c.recorded(p, what, func() { _, _ = send(ctx, x.by, x.request) })
		if e.Result != x.result {
			c.t.Errorf("%s: %+v, want %s", what, e, x.result)
		}
		c.checkRecorded(what, x.request, e)
	}
	var moved proto.Message
	e := c.recorded(p, "ReEncrypt", func() {
		moved, err = send(ctx, user, &pb.ReEncryptRequest{Ciphertext: sealed.GetCiphertext(), SourceEncryptionContext: from, DestinationKeyId: other.alias, DestinationEncryptionContext: to})
		must(c.t, err)
	})
	answer := moved.(*pb.ReEncryptResponse)
	if e.KeyID != o.key || e.KeyVersion != sealed.GetKeyVersion() || e.DestinationKeyID != other.key || e.DestinationVersion != answer.GetKeyVersion() ||
		e.DestinationAlias != other.alias || e.DestinationSHA256 != hexSum(answer.GetCiphertext()) || e.DecidedBy == "" || e.DestinationDecidedBy == "" {
		c.t.Errorf("moved: %+v", e)
	}
	// Calls that name no key, without effect.
	dry := o
	dry.dry = true
	callers := map[group]*client.Client{groupRead: auditor, groupRandom: user, groupOwn: user, groupDescribe: auditor, groupListTenants: operator, groupGovern: operator, groupOperate: operator}
	for _, x := range wholeCalls(dry) {
		e := c.recorded(p, x.name, func() { _ = x.call(ctx, callers[x.group]) })
		c.checkRecorded(x.name, x.request, e)
		if e.DecidedBy == "" {
			c.t.Errorf("%s: nothing has decided: %+v", x.name, e)
		}
	}
}
