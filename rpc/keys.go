package rpc

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type keyServer struct {
	pb.UnimplementedKeyServiceServer
	kms *kms.Service
}

func (s *keyServer) CreateKey(ctx context.Context, r *pb.CreateKeyRequest) (*pb.CreateKeyResponse, error) {
	if err := onlyMade(r); err != nil {
		return nil, s.kms.Refuse("CreateKey", call(ctx, r), err)
	}
	m, st, err := s.kms.CreateKey(ctx, call(ctx, r), kms.KeyParams{
		Description: r.GetDescription(), Usage: plainName[fsm.KeyUsage](r.GetUsage(), usagePrefix),
		Spec: cmp.Or(plainName[fsm.KeySpec](r.GetSpec(), specPrefix), fsm.SpecSymmetric), Tags: tagsFrom(r.GetTags()),
		Protection: protectionFrom(r.GetProtectionLevel()),
		Origin:     originFrom[r.GetOrigin()],
	})
	if err != nil {
		return nil, err
	}
	return &pb.CreateKeyResponse{Key: metadata(m), IndexToken: kms.IndexToken(st)}, nil
}

// originFrom are the origins that a request names; KMS is not written down.
var originFrom = map[pb.KeyOrigin]fsm.Origin{pb.KeyOrigin_KEY_ORIGIN_EXTERNAL: fsm.OriginExternal}

var origins = map[fsm.Origin]pb.KeyOrigin{
	fsm.OriginKMS:      pb.KeyOrigin_KEY_ORIGIN_KMS,
	fsm.OriginExternal: pb.KeyOrigin_KEY_ORIGIN_EXTERNAL,
}

// onlyMade refuses what the protocol knows and this release does not make.
func onlyMade(r *pb.CreateKeyRequest) error {
	switch {
	case r.GetOrigin() > pb.KeyOrigin_KEY_ORIGIN_EXTERNAL || r.GetOrigin() < 0:
		return fmt.Errorf("%w: key origin %s: must be KMS or EXTERNAL", fsm.ErrInvalid, r.GetOrigin())
	}
	return nil
}

func (s *keyServer) DescribeKey(ctx context.Context, r *pb.DescribeKeyRequest) (*pb.DescribeKeyResponse, error) {
	m, st, err := s.kms.DescribeKey(ctx, call(ctx, r), r.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &pb.DescribeKeyResponse{Key: metadata(m), IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ListKeys(ctx context.Context, r *pb.ListKeysRequest) (*pb.ListKeysResponse, error) {
	p, st, err := s.kms.ListKeys(ctx, call(ctx, r), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListKeysResponse{Keys: each(p.Items, metadata), NextMarker: p.Next, IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) UpdateKeyDescription(ctx context.Context, r *pb.UpdateKeyDescriptionRequest) (*pb.UpdateKeyDescriptionResponse, error) {
	_, st, err := s.kms.UpdateKeyDescription(ctx, call(ctx, r), r.GetKeyId(), r.GetDescription(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.UpdateKeyDescriptionResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) EnableKey(ctx context.Context, r *pb.EnableKeyRequest) (*pb.EnableKeyResponse, error) {
	_, st, err := s.kms.EnableKey(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.EnableKeyResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) DisableKey(ctx context.Context, r *pb.DisableKeyRequest) (*pb.DisableKeyResponse, error) {
	_, st, err := s.kms.DisableKey(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.DisableKeyResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ScheduleKeyDeletion(ctx context.Context, r *pb.ScheduleKeyDeletionRequest) (*pb.ScheduleKeyDeletionResponse, error) {
	k, st, err := s.kms.ScheduleKeyDeletion(ctx, call(ctx, r), r.GetKeyId(), r.GetPendingWindowDays(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.ScheduleKeyDeletionResponse{KeyId: k.ID.String(), DeletionDate: date(k.Deletion), IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) CancelKeyDeletion(ctx context.Context, r *pb.CancelKeyDeletionRequest) (*pb.CancelKeyDeletionResponse, error) {
	result, st, err := s.kms.CancelKeyDeletion(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.CancelKeyDeletionResponse{KeyId: result.ID, IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) CreateAlias(ctx context.Context, r *pb.CreateAliasRequest) (*pb.CreateAliasResponse, error) {
	_, st, err := s.kms.CreateAlias(ctx, call(ctx, r), r.GetAliasName(), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.CreateAliasResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) UpdateAlias(ctx context.Context, r *pb.UpdateAliasRequest) (*pb.UpdateAliasResponse, error) {
	_, st, err := s.kms.UpdateAlias(ctx, call(ctx, r), r.GetAliasName(), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.UpdateAliasResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) DeleteAlias(ctx context.Context, r *pb.DeleteAliasRequest) (*pb.DeleteAliasResponse, error) {
	_, st, err := s.kms.DeleteAlias(ctx, call(ctx, r), r.GetAliasName(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteAliasResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ListAliases(ctx context.Context, r *pb.ListAliasesRequest) (*pb.ListAliasesResponse, error) {
	p, st, err := s.kms.ListAliases(ctx, call(ctx, r), r.GetKeyId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	cluster := st.Cluster().ID
	return &pb.ListAliasesResponse{
		Aliases: each(p.Items, func(a *fsm.Alias) *pb.Alias {
			out := &pb.Alias{Name: a.Name, Arn: kms.AliasARN(cluster, a.Tenant, a.Name), CreationDate: date(a.Created), LastUpdatedDate: date(a.Updated)}
			if a.Key != (fsm.ID{}) {
				out.KeyId = a.Key.String()
			}
			return out
		}),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}

func (s *keyServer) TagResource(ctx context.Context, r *pb.TagResourceRequest) (*pb.TagResourceResponse, error) {
	_, st, err := s.kms.TagResource(ctx, call(ctx, r), r.GetKeyId(), tagsFrom(r.GetTags()), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.TagResourceResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) UntagResource(ctx context.Context, r *pb.UntagResourceRequest) (*pb.UntagResourceResponse, error) {
	_, st, err := s.kms.UntagResource(ctx, call(ctx, r), r.GetKeyId(), r.GetTagKeys(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.UntagResourceResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ListResourceTags(ctx context.Context, r *pb.ListResourceTagsRequest) (*pb.ListResourceTagsResponse, error) {
	p, st, err := s.kms.ListResourceTags(ctx, call(ctx, r), r.GetKeyId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListResourceTagsResponse{
		Tags:       each(p.Items, func(t fsm.Tag) *pb.Tag { return &pb.Tag{Key: t.Key, Value: t.Value} }),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}

func (s *keyServer) RotateKeyOnDemand(ctx context.Context, r *pb.RotateKeyOnDemandRequest) (*pb.RotateKeyOnDemandResponse, error) {
	result, st, err := s.kms.RotateKeyOnDemand(ctx, call(ctx, r), r.GetKeyId(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.RotateKeyOnDemandResponse{KeyId: result.ID, CurrentVersion: result.Version, IndexToken: kms.IndexToken(st)}, nil
}

func (s *keyServer) ListKeyRotations(ctx context.Context, r *pb.ListKeyRotationsRequest) (*pb.ListKeyRotationsResponse, error) {
	p, st, err := s.kms.ListKeyRotations(ctx, call(ctx, r), r.GetKeyId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListKeyRotationsResponse{
		Rotations: each(p.Items, func(x kms.Rotation) *pb.KeyRotation {
			return &pb.KeyRotation{
				KeyId: x.Key.String(), Version: x.Version.Version, Cause: causes[x.Version.Cause], RotationDate: date(x.Version.Created),
			}
		}),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}

var causes = map[fsm.VersionCause]pb.RotationCause{
	fsm.CauseCreated:  pb.RotationCause_ROTATION_CAUSE_CREATED,
	fsm.CauseOnDemand: pb.RotationCause_ROTATION_CAUSE_ON_DEMAND,
	fsm.CauseSchedule: pb.RotationCause_ROTATION_CAUSE_AUTOMATIC,
	fsm.CauseLimit:    pb.RotationCause_ROTATION_CAUSE_LIMIT,
}

var states = map[fsm.KeyState]pb.KeyState{
	fsm.KeyEnabled:         pb.KeyState_KEY_STATE_ENABLED,
	fsm.KeyDisabled:        pb.KeyState_KEY_STATE_DISABLED,
	fsm.KeyPendingDeletion: pb.KeyState_KEY_STATE_PENDING_DELETION,
	fsm.KeyDecryptOnly:     pb.KeyState_KEY_STATE_DECRYPT_ONLY,
	fsm.KeyPendingImport:   pb.KeyState_KEY_STATE_PENDING_IMPORT,
}

var managers = map[fsm.Manager]pb.KeyManager{
	fsm.ManagerCustomer: pb.KeyManager_KEY_MANAGER_CUSTOMER,
	fsm.ManagerService:  pb.KeyManager_KEY_MANAGER_SERVICE,
}

func metadata(m kms.Metadata) *pb.KeyMetadata {
	k := m.Key
	if m.Hidden {
		return &pb.KeyMetadata{KeyId: k.ID.String(), Arn: m.ARN, Tenant: k.Tenant}
	}
	out := &pb.KeyMetadata{
		KeyId: k.ID.String(), Arn: m.ARN, Tenant: k.Tenant, Description: k.Description, State: states[m.State],
		Usage: usageOf(k), Spec: specOf(k),
		Origin: origins[k.Origin], Manager: managers[k.Manager],
		ProtectionLevel: protectionOf(k),
		CreationDate:    date(k.Created), DeletionDate: date(k.Deletion),
		CurrentVersion: k.Current().Version, Revision: k.Revision, Aliases: m.Aliases,
		Service: k.Service, DeletionProtection: k.Protected, RequiredContext: k.Required, LastUsed: date(m.Use.Used()), RefusedUse: date(m.Use.Refused),
		ResourceCount: uint64(m.Resources), PolicyRevision: k.Policy, TenantFrozen: m.Frozen, //nolint:gosec // not negative
	}
	if k.Rotation != nil && k.State != fsm.KeyPendingDeletion {
		out.NextRotation = date(k.Rotation.Next)
	}
	if k.Origin == fsm.OriginExternal {
		describeImport(out, k)
	}
	return out
}

// protectionFrom is the level that a request asks for; one that is unknown is refused with
// its name.
func protectionFrom(level pb.ProtectionLevel) fsm.Protection {
	switch level {
	case pb.ProtectionLevel_PROTECTION_LEVEL_UNSPECIFIED, pb.ProtectionLevel_PROTECTION_LEVEL_HSM_ROOTED:
		return fsm.ProtectionRooted
	default:
		return plainName[fsm.Protection](level, protectionPrefix)
	}
}

func protectionOf(k *fsm.Key) pb.ProtectionLevel {
	if k.Resident() {
		return pb.ProtectionLevel_PROTECTION_LEVEL_HSM_RESIDENT
	}
	return pb.ProtectionLevel_PROTECTION_LEVEL_HSM_ROOTED
}

func tagsFrom(list []*pb.Tag) []fsm.Tag {
	return each(list, func(t *pb.Tag) fsm.Tag { return fsm.Tag{Key: t.GetKey(), Value: t.GetValue()} })
}

func each[A, B any](list []A, f func(A) B) []B {
	var out []B
	for _, a := range list {
		out = append(out, f(a))
	}
	return out
}

// date is a time in unix seconds; 0 is none.
func date(seconds int64) *timestamppb.Timestamp {
	if seconds == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(seconds, 0))
}
