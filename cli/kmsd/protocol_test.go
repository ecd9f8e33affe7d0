package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// methods are the calls of the protocol by their request.
var methods = sync.OnceValue(func() map[protoreflect.FullName]protoreflect.MethodDescriptor {
	out := map[protoreflect.FullName]protoreflect.MethodDescriptor{}
	for _, f := range []protoreflect.FileDescriptor{
		pb.File_quorumkms_v1_key_proto, pb.File_quorumkms_v1_crypto_proto, pb.File_quorumkms_v1_grant_proto,
		pb.File_quorumkms_v1_policy_proto, pb.File_quorumkms_v1_tenant_proto, pb.File_quorumkms_v1_cluster_proto,
		pb.File_quorumkms_v1_backup_proto, pb.File_quorumkms_v1_recovery_proto, pb.File_quorumkms_v1_hsm_proto,
		pb.File_quorumkms_v1_audit_proto,
	} {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				out[m.Input().FullName()] = m
			}
		}
	}
	return out
})

func methodOf(request proto.Message) protoreflect.MethodDescriptor {
	return methods()[request.ProtoReflect().Descriptor().FullName()]
}

// send makes the call that a request is for, and returns its answer.
func send(ctx context.Context, conn grpc.ClientConnInterface, request proto.Message) (proto.Message, error) {
	m := methodOf(request)
	typ, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	reply := typ.New().Interface()
	return reply, conn.Invoke(ctx, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()), request, reply)
}

// has tells whether a message has a field.
func has(m proto.Message, field protoreflect.Name) bool {
	return m.ProtoReflect().Descriptor().Fields().ByName(field) != nil
}

// with is a copy of a message with a field set, if it has that field.
func with(m proto.Message, field protoreflect.Name, value any) proto.Message {
	m = proto.Clone(m)
	if f := m.ProtoReflect().Descriptor().Fields().ByName(field); f != nil {
		m.ProtoReflect().Set(f, protoreflect.ValueOf(value))
	}
	return m
}

// uncatalogued are the calls that stand in no table, and the tests that make them.
var uncatalogued = map[string]string{
	"ClusterService.Status": "testClasses: anyone may", "ClusterService.Upgrade": "upgrade_test.go",
	"ClusterService.RecoveryPlan": "recover_test.go", "ClusterService.Recover": "recover_test.go",
	"KeyService.GetParametersForImport": "import_test.go", "KeyService.ImportKeyMaterial": "import_test.go",
	"KeyService.DeleteImportedKeyMaterial": "import_test.go",
	"RecoveryService.DescribeRecovery":     "recovery_test.go", "RecoveryService.AddRecoveryRecipient": "recovery_test.go",
	"RecoveryService.RemoveRecoveryRecipient": "recovery_test.go", "RecoveryService.ApproveRecipientChange": "recovery_test.go",
	"RecoveryService.CancelRecipientChange": "recovery_test.go", "RecoveryService.RecordRecoveryReport": "recovery_test.go",
	"RecoveryService.ChangeRecoverySettings": "recovery_test.go",
	"AuditService.DescribeTrails":            "trails_test.go", "AuditService.ReadTrail": "trails_test.go", "AuditService.SearchRecords": "trails_test.go",
	"CryptoService.WatchRestrictions":    "keycache_test.go",
	"CryptoService.BatchGenerateDataKey": "batch_test.go", "CryptoService.BatchEncrypt": "batch_test.go", "CryptoService.BatchDecrypt": "batch_test.go",
	"BackupService.Create": "backup_test.go", "BackupService.Verify": "backup_test.go", "BackupService.Restore": "restore_test.go",
}

// TestProtocolIsCovered: every call of the protocol stands in the catalogue, and every
// one that names a key in the table of states.
func TestProtocolIsCovered(t *testing.T) {
	var catalogued, stated []string
	for _, x := range append(catalogue(object{}), wholeCalls(object{})...) {
		catalogued = append(catalogued, qualified(methodOf(x.request)))
	}
	for _, row := range stateTable {
		stated = append(stated, qualified(methodOf(row.call(&subject{}))))
	}
	seen := 0
	for _, m := range methods() {
		name := qualified(m)
		seen++
		if _, elsewhere := uncatalogued[name]; elsewhere == slices.Contains(catalogued, name) {
			t.Errorf("%s: in the catalogue: %v, said to be tested elsewhere: %v", m.FullName(), !elsewhere, elsewhere)
		}
		in := m.Input().Fields()
		if in.ByName("key_id") == nil && in.ByName("ciphertext") == nil && in.ByName("alias_name") == nil {
			continue
		}
		if !slices.Contains(stated, name) {
			t.Errorf("%s names a key and is not in the table of states", m.FullName())
		}
	}
	if seen < 60 {
		t.Errorf("only %d calls are in the descriptors", seen)
	}
}

// qualified is a call's name with its service's.
func qualified(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("%s.%s", m.Parent().Name(), m.Name())
}

// TestMutationsAreIdempotent: every call is either without effect, or has a request id
// and can be tried without effect.
func TestMutationsAreIdempotent(t *testing.T) {
	reading := func(name string) bool {
		for _, prefix := range []string{"List", "Describe", "Get", "Validate", "Explain", "Status", "RecoveryPlan", "GenerateRandom", "Read", "Search", "Watch"} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	for _, m := range methods() {
		in, name := m.Input().Fields(), string(m.Name())
		id, dry := in.ByName("request_id") != nil, in.ByName("dry_run") != nil
		using := m.Parent().Name() == "CryptoService"
		switch {
		case reading(name), slices.Contains([]string{"BackupService.Create", "BackupService.Verify"}, qualified(m)):
			if id || dry {
				t.Errorf("%s is taken for a reading call and has request_id or dry_run", m.FullName())
			}
		case using:
			if id || !dry {
				t.Errorf("%s: request_id %v, dry_run %v; a call that uses keys has dry_run only", m.FullName(), id, dry)
			}
		case !id || !dry:
			t.Errorf("%s changes something: request_id %v, dry_run %v", m.FullName(), id, dry)
		}
	}
}
