package main

import (
	"bytes"
	"errors"
	"io"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// goldenBackup is the backup that the fake makes. The tenant of a request says what
// goes wrong with it.
const goldenBackup = "../../rpc/client/backup/testdata/v1.qkb"

type fakeBackups struct {
	quorumkmsv1.UnimplementedBackupServiceServer
	name   string
	golden []byte
}

func readGolden() []byte {
	b, err := os.ReadFile(goldenBackup)
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fakeBackups) Create(r *quorumkmsv1.CreateBackupRequest, stream quorumkmsv1.BackupService_CreateServer) error {
	b := bytes.Clone(f.golden)
	switch {
	case r.GetTenant() == "damaged":
		b[len(b)/2] ^= 1
	case r.GetTenant() == "cut":
		b = b[:len(b)/2]
	case r.GetTenant() == "longer":
		b = append(b, 0)
	case r.GetTenant() == "n1-away" && f.name == "n1", r.GetTenant() == "away":
		return fakeError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, "no tick was committed in time")
	}
	for len(b) > 0 {
		n := min(len(b), 1000)
		if err := stream.Send(&quorumkmsv1.CreateBackupResponse{Data: b[:n]}); err != nil {
			return err
		}
		if b = b[n:]; r.GetTenant() == "broken" {
			return fakeError(codes.Unavailable, quorumkmsv1.Reason_REASON_SHUTTING_DOWN, "this node is stopping")
		}
	}
	return nil
}

func (f *fakeBackups) Verify(stream quorumkmsv1.BackupService_VerifyServer) error {
	var b []byte
	tenant := ""
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		b, tenant = append(b, m.GetData()...), m.GetTenant()
	}
	switch {
	case tenant == "n1-away" && f.name == "n1":
		return fakeError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, "away")
	case tenant == "forged" || !bytes.Equal(b, f.golden):
		return fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, "snapshot refused: its MAC does not verify")
	}
	s, err := backup.Check(bytes.NewReader(b), nil)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&quorumkmsv1.VerifyBackupResponse{
		ClusterId: s.Cluster, Index: s.Index, KeyCount: s.Keys, Created: timestamppb.New(fakeEpoch), SignerName: s.Name,
		SignerState: quorumkmsv1.MemberState_MEMBER_STATE_GONE, AppliedIndex: 120,
	})
}
