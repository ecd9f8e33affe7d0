package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (s *keyServer) EnableKeyRotation(ctx context.Context, r *pb.EnableKeyRotationRequest) (*pb.EnableKeyRotationResponse, error) {
	k, st, err := s.kms.EnableKeyRotation(ctx, call(ctx, r), r.GetKeyId(), r.GetPeriod().AsDuration(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	out := &pb.EnableKeyRotationResponse{IndexToken: kms.IndexToken(st)}
	if k.Rotation != nil { // a repeated request finds what has become of it
		out.NextRotation = date(k.Rotation.Next)
	}
	return out, nil
}

func (s *keyServer) DisableKeyRotation(ctx context.Context, r *pb.DisableKeyRotationRequest) (*pb.DisableKeyRotationResponse, error) {
	_, st, err := s.kms.DisableKeyRotation(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.DisableKeyRotationResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) GetKeyRotationStatus(ctx context.Context, r *pb.GetKeyRotationStatusRequest) (*pb.GetKeyRotationStatusResponse, error) {
	k, st, err := s.kms.GetKeyRotationStatus(ctx, call(ctx, r), r.GetKeyId())
	if err != nil {
		return nil, err
	}
	out := &pb.GetKeyRotationStatusResponse{KeyId: k.ID.String(), IndexToken: kms.IndexToken(st)}
	if k.Rotation != nil && k.State != fsm.KeyPendingDeletion {
		out.Enabled, out.NextRotation = true, date(k.Rotation.Next)
		out.Period = durationpb.New(time.Duration(k.Rotation.Period) * time.Second)
	}
	if last := k.Current(); last.Cause != fsm.CauseCreated {
		out.LastRotation = date(last.Created)
	}
	return out, nil
}

func (s *keyServer) SetKeyDecryptOnly(ctx context.Context, r *pb.SetKeyDecryptOnlyRequest) (*pb.SetKeyDecryptOnlyResponse, error) {
	_, st, err := s.kms.SetKeyDecryptOnly(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.SetKeyDecryptOnlyResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) SetRequiredContext(ctx context.Context, r *pb.SetRequiredContextRequest) (*pb.SetRequiredContextResponse, error) {
	_, st, err := s.kms.SetRequiredContext(ctx, call(ctx, r), r.GetKeyId(), r.GetContextKeys(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.SetRequiredContextResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) SetDeletionProtection(ctx context.Context, r *pb.SetDeletionProtectionRequest) (*pb.SetDeletionProtectionResponse, error) {
	_, st, err := s.kms.SetDeletionProtection(ctx, call(ctx, r), r.GetKeyId(), r.GetEnabled(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.SetDeletionProtectionResponse{IndexToken: kms.IndexToken(st)}, nil
}

var versionStates = map[fsm.VersionState]pb.KeyVersionState{
	fsm.VersionEnabled:          pb.KeyVersionState_KEY_VERSION_STATE_ENABLED,
	fsm.VersionDisabled:         pb.KeyVersionState_KEY_VERSION_STATE_DISABLED,
	fsm.VersionDestroyScheduled: pb.KeyVersionState_KEY_VERSION_STATE_DESTROY_SCHEDULED,
	fsm.VersionDestroyed:        pb.KeyVersionState_KEY_VERSION_STATE_DESTROYED,
	fsm.VersionPendingRotation:  pb.KeyVersionState_KEY_VERSION_STATE_PENDING_ROTATION,
}

func (s *keyServer) ListKeyVersions(ctx context.Context, r *pb.ListKeyVersionsRequest) (*pb.ListKeyVersionsResponse, error) {
	p, st, err := s.kms.ListKeyVersions(ctx, call(ctx, r), r.GetKeyId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListKeyVersionsResponse{
		Versions: each(p.Items, func(v kms.VersionView) *pb.KeyVersion {
			out := &pb.KeyVersion{
				Version: v.Version, State: versionStates[v.State], Current: v.Current, Cause: causes[v.Cause], CreationDate: date(v.Created),
				DestructionDate: date(v.Destroy), LastUsed: date(v.Used), DomainGeneration: v.Generation, ReservedMessages: v.Messages,
			}
			if v.Import != nil {
				describeMaterial(out, v)
			}
			return out
		}),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}

func (s *keyServer) EnableKeyVersion(ctx context.Context, r *pb.EnableKeyVersionRequest) (*pb.EnableKeyVersionResponse, error) {
	_, st, err := s.kms.EnableKeyVersion(ctx, call(ctx, r), r.GetKeyId(), r.GetVersion(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.EnableKeyVersionResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) DisableKeyVersion(ctx context.Context, r *pb.DisableKeyVersionRequest) (*pb.DisableKeyVersionResponse, error) {
	_, st, err := s.kms.DisableKeyVersion(ctx, call(ctx, r), r.GetKeyId(), r.GetVersion(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.DisableKeyVersionResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ScheduleKeyVersionDestruction(ctx context.Context, r *pb.ScheduleKeyVersionDestructionRequest) (*pb.ScheduleKeyVersionDestructionResponse, error) {
	v, st, err := s.kms.ScheduleKeyVersionDestruction(ctx, call(ctx, r), r.GetKeyId(), r.GetVersion(), r.GetPendingWindowDays(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.ScheduleKeyVersionDestructionResponse{DestructionDate: date(v.Destroy), IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) CancelKeyVersionDestruction(ctx context.Context, r *pb.CancelKeyVersionDestructionRequest) (*pb.CancelKeyVersionDestructionResponse, error) {
	_, st, err := s.kms.CancelKeyVersionDestruction(ctx, call(ctx, r), r.GetKeyId(), r.GetVersion(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.CancelKeyVersionDestructionResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) BindResource(ctx context.Context, r *pb.BindResourceRequest) (*pb.BindResourceResponse, error) {
	_, st, err := s.kms.BindResource(ctx, call(ctx, r), r.GetKeyId(), r.GetResource(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.BindResourceResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ReleaseResource(ctx context.Context, r *pb.ReleaseResourceRequest) (*pb.ReleaseResourceResponse, error) {
	_, st, err := s.kms.ReleaseResource(ctx, call(ctx, r), r.GetKeyId(), r.GetResource(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseResourceResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ListResources(ctx context.Context, r *pb.ListResourcesRequest) (*pb.ListResourcesResponse, error) {
	p, st, err := s.kms.ListResources(ctx, call(ctx, r), r.GetKeyId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListResourcesResponse{
		Resources: each(p.Items, func(b *fsm.Binding) *pb.Resource {
			return &pb.Resource{Name: b.Resource, RegisteredBy: b.By, RegistrationDate: date(b.Created)}
		}),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}
