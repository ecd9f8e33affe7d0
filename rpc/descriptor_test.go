package rpc

import (
	"flag"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// updateProtocol writes the protocol of the present release. Never use it to make a
// test pass that found a change: what is spoken is frozen.
var updateProtocol = flag.Bool("update-protocol", false, "write the golden descriptors of the protocol")

const protocolFile = "testdata/protocol.v1.binpb"

func protocolFiles() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		pb.File_quorumkms_v1_error_proto, pb.File_quorumkms_v1_key_proto, pb.File_quorumkms_v1_crypto_proto,
		pb.File_quorumkms_v1_cluster_proto, pb.File_quorumkms_v1_backup_proto, pb.File_quorumkms_v1_audit_proto, pb.File_quorumkms_v1_grant_proto,
		pb.File_quorumkms_v1_policy_proto, pb.File_quorumkms_v1_tenant_proto, pb.File_quorumkms_v1_recovery_proto, pb.File_quorumkms_v1_hsm_proto, peerpb.File_quorumkms_peer_v1_peer_proto,
	}
}

// TestProtocolIsFrozen: every method, field and enum value of the last release is
// still there with the same number and type. New ones may come.
func TestProtocolIsFrozen(t *testing.T) {
	if *updateProtocol {
		writeProtocol(t)
	}
	b, err := os.ReadFile(protocolFile)
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		t.Fatal(err)
	}
	resolver := protoregistry.GlobalFiles
	for _, f := range set.GetFile() {
		old, err := protodesc.NewFile(f, resolver)
		if err != nil {
			t.Fatal(err)
		}
		compareMessages(t, old.Messages())
		compareEnums(t, old.Enums())
		compareServices(t, old.Services())
	}
}

func find[T protoreflect.Descriptor](t *testing.T, name protoreflect.FullName) (T, bool) {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	found, ok := d.(T)
	if err != nil || !ok {
		t.Errorf("%s is gone", name)
		return found, false
	}
	return found, true
}

func compareMessages(t *testing.T, old protoreflect.MessageDescriptors) {
	t.Helper()
	for i := range old.Len() {
		m := old.Get(i)
		now, ok := find[protoreflect.MessageDescriptor](t, m.FullName())
		if !ok {
			continue
		}
		for j := range m.Fields().Len() {
			was := m.Fields().Get(j)
			is := now.Fields().ByNumber(was.Number())
			if is == nil || is.Name() != was.Name() || is.Kind() != was.Kind() || is.Cardinality() != was.Cardinality() {
				t.Errorf("field %s (%d, %s) has changed", was.FullName(), was.Number(), was.Kind())
			}
		}
		compareMessages(t, m.Messages())
	}
}

func compareEnums(t *testing.T, old protoreflect.EnumDescriptors) {
	t.Helper()
	for i := range old.Len() {
		e := old.Get(i)
		now, ok := find[protoreflect.EnumDescriptor](t, e.FullName())
		if !ok {
			continue
		}
		for j := range e.Values().Len() {
			was := e.Values().Get(j)
			if is := now.Values().ByNumber(was.Number()); is == nil || is.Name() != was.Name() {
				t.Errorf("%s = %d has changed", was.FullName(), was.Number())
			}
		}
	}
}

func compareServices(t *testing.T, old protoreflect.ServiceDescriptors) {
	t.Helper()
	for i := range old.Len() {
		for j := range old.Get(i).Methods().Len() {
			was := old.Get(i).Methods().Get(j)
			is, ok := find[protoreflect.MethodDescriptor](t, was.FullName())
			if ok && (is.Input().FullName() != was.Input().FullName() || is.Output().FullName() != was.Output().FullName() ||
				is.IsStreamingClient() != was.IsStreamingClient() || is.IsStreamingServer() != was.IsStreamingServer()) {
				t.Errorf("%s has changed", was.FullName())
			}
		}
	}
}

// TestReservedFields: what every call needs in time is there from the first release
// on.
func TestReservedFields(t *testing.T) {
	files := protocolFiles()
	for _, f := range files[1 : len(files)-1] {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				in, out := m.Input().Fields(), m.Output().Fields()
				if in.ByName("index_token") == nil || in.ByName("tenant") == nil || out.ByName("index_token") == nil {
					t.Errorf("%s lacks index_token or tenant", m.FullName())
				}
				if (in.ByName("request_id") != nil) && in.ByName("dry_run") == nil {
					t.Errorf("%s has a request_id and no dry_run", m.FullName())
				}
			}
		}
	}
}

func writeProtocol(t *testing.T) {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	for _, f := range protocolFiles() {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&set)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(protocolFile, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
