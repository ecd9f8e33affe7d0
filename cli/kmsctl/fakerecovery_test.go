package main

import (
	"cmp"
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fakeRecovery is who can recover the domain key. Two operators approve a change; the second
// is whoever asks.
type fakeRecovery struct {
	quorumkmsv1.UnimplementedRecoveryServiceServer
	recipients []*quorumkmsv1.RecoveryRecipient
	change     *quorumkmsv1.RecipientChange
	settings   quorumkmsv1.RecoverySettings // what was changed
}

const fakeChange = 1234

func (f *fakeRecovery) DescribeRecovery(context.Context, *quorumkmsv1.DescribeRecoveryRequest) (*quorumkmsv1.DescribeRecoveryResponse, error) {
	out := &quorumkmsv1.DescribeRecoveryResponse{
		Recipients: f.recipients, Required: cmp.Or(f.settings.GetRequired(), 1), Approvals: cmp.Or(f.settings.GetApprovals(), 2), DrillDays: cmp.Or(f.settings.GetDrillDays(), 90),
		Change: f.change,
	}
	if len(f.recipients) == 0 {
		out.Alarms = []string{"nothing recovers\x1b the domain key"}
	}
	return out, nil
}

func (f *fakeRecovery) AddRecoveryRecipient(_ context.Context, r *quorumkmsv1.AddRecoveryRecipientRequest) (*quorumkmsv1.AddRecoveryRecipientResponse, error) {
	k, err := recovery.ParsePublicKey(r.GetRecoveryKey())
	if err != nil {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, err.Error())
	}
	f.change = &quorumkmsv1.RecipientChange{
		Id: fakeChange, Expires: timestamppb.New(fakeEpoch), ApprovedBy: []string{"spiffe://kms.test/operator/olga"},
		Add: &quorumkmsv1.RecoveryRecipient{Name: k.Name, Kind: k.Kind, Fingerprint: k.Fingerprint(), Threshold: uint32(k.Threshold), Shares: uint32(k.Shares), TokenIdentity: tokenIdentity(k), Added: timestamppb.New(fakeEpoch)},
	}
	return &quorumkmsv1.AddRecoveryRecipientResponse{Change: fakeChange}, nil
}

func (f *fakeRecovery) RemoveRecoveryRecipient(_ context.Context, r *quorumkmsv1.RemoveRecoveryRecipientRequest) (*quorumkmsv1.RemoveRecoveryRecipientResponse, error) {
	f.change = &quorumkmsv1.RecipientChange{Id: fakeChange, Remove: r.GetName(), Expires: timestamppb.New(fakeEpoch)}
	return &quorumkmsv1.RemoveRecoveryRecipientResponse{Change: fakeChange}, nil
}

func (f *fakeRecovery) ChangeRecoverySettings(_ context.Context, r *quorumkmsv1.ChangeRecoverySettingsRequest) (*quorumkmsv1.ChangeRecoverySettingsResponse, error) {
	if n := r.GetSettings().GetRequired(); int(n) > len(f.recipients) {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_GENERATION_REFUSED, "add another first")
	}
	f.change = &quorumkmsv1.RecipientChange{
		Id: fakeChange, Settings: r.GetSettings(), Expires: timestamppb.New(fakeEpoch), ApprovedBy: []string{"spiffe://kms.test/operator/olga\x1b"},
	}
	return &quorumkmsv1.ChangeRecoverySettingsResponse{Change: fakeChange}, nil
}

func (f *fakeRecovery) waits(id uint64) error {
	if f.change == nil || f.change.GetId() != id {
		return fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, "no such change waits")
	}
	return nil
}

func (f *fakeRecovery) ApproveRecipientChange(_ context.Context, r *quorumkmsv1.ApproveRecipientChangeRequest) (*quorumkmsv1.ApproveRecipientChangeResponse, error) {
	if err := f.waits(r.GetChange()); err != nil {
		return nil, err
	}
	switch {
	case f.change.GetSettings() != nil:
		proto.Merge(&f.settings, f.change.GetSettings())
	case f.change.GetAdd() != nil:
		f.recipients = []*quorumkmsv1.RecoveryRecipient{f.change.GetAdd()}
	default:
		f.recipients = nil
	}
	f.change = nil
	return &quorumkmsv1.ApproveRecipientChangeResponse{Change: r.GetChange(), Done: true}, nil
}

func (f *fakeRecovery) CancelRecipientChange(_ context.Context, r *quorumkmsv1.CancelRecipientChangeRequest) (*quorumkmsv1.CancelRecipientChangeResponse, error) {
	if err := f.waits(r.GetChange()); err != nil {
		return nil, err
	}
	f.change = nil
	return &quorumkmsv1.CancelRecipientChangeResponse{Change: r.GetChange()}, nil
}
