package main

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Restore restores anything: the plan counts the files and their bytes.
func (*fakeBackups) Restore(stream quorumkmsv1.BackupService_RestoreServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	files, bytes := 0, 0
	for ended := false; !ended; {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch x := m.GetStep().(type) {
		case *quorumkmsv1.RestoreRequest_File:
			files++
		case *quorumkmsv1.RestoreRequest_Data:
			bytes += len(x.Data)
		case *quorumkmsv1.RestoreRequest_End:
			ended = true
		}
	}
	if bytes == 0 {
		return fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, "backup refused: it does not begin with QKB1")
	}
	plan := &quorumkmsv1.RestorePlan{
		ClusterId: "c1", Index: 70, Created: timestamppb.New(fakeEpoch), SignerName: "n2", SignerFingerprint: "SHA256:ab", KeyCount: 12, EnabledKeys: 9,
		RecoveryEpoch: max(1, first.GetBegin().GetRecoveryEpoch()), NodeName: "n1", Wait: durationpb.New(7500 * time.Millisecond),
		DisableKeys: first.GetBegin().GetDisableKeys() || files == 1, Doubt: "there is no journal", UnknownKeys: 2,
	}
	if files > 1 {
		plan.Doubt, plan.JournalSegments, plan.JournalIndex, plan.JournalTime, plan.Restrictions = "", uint32(files-1), 90, timestamppb.New(fakeEpoch.Add(time.Hour)), 4
	}
	plan.RecoveryRecipients = []*quorumkmsv1.RecoveryRecipient{
		{Name: "vault", Kind: "SHARES", Fingerprint: "SHA256:01"}, {Name: "stranger\x1b", Kind: "SHARES", Fingerprint: "SHA256:02"},
	}
	if first.GetBegin().GetRecoveryEpoch() == 9 {
		plan.RecoveryRecipients = nil
	}
	send := func(r *quorumkmsv1.RestoreResponse) error { return stream.Send(r) }
	if err := send(&quorumkmsv1.RestoreResponse{Step: &quorumkmsv1.RestoreResponse_Plan{Plan: plan}}); err != nil {
		return err
	}
	if first.GetDryRun() {
		return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_DRY_RUN, "dry run")
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetConfirm().GetClusterId() != "c1" {
		return fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, fmt.Sprintf("confirmed: %v", m))
	}
	progress := &quorumkmsv1.RestoreProgress{Restrictions: 4, Of: 4}
	if err := send(&quorumkmsv1.RestoreResponse{Step: &quorumkmsv1.RestoreResponse_Progress{Progress: progress}}); err != nil {
		return err
	}
	done := &quorumkmsv1.RestoreDone{ClusterId: "c1", RaftId: "raft-n1", RecoveryEpoch: plan.GetRecoveryEpoch(), Refused: 1, RecoveryRecipients: plan.GetRecoveryRecipients()}
	return send(&quorumkmsv1.RestoreResponse{Step: &quorumkmsv1.RestoreResponse_Done{Done: done}})
}
