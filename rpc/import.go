package rpc

import (
	"cmp"
	"context"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const wrappingPrefix = "WRAPPING_ALGORITHM_"

// wrappingBits are the sizes of the keys that wrap material; one that the protocol does
// not know has none, which is refused.
var wrappingBits = map[pb.WrappingKeySpec]uint16{
	pb.WrappingKeySpec_WRAPPING_KEY_SPEC_UNSPECIFIED: 3072,
	pb.WrappingKeySpec_WRAPPING_KEY_SPEC_RSA_2048:    2048,
	pb.WrappingKeySpec_WRAPPING_KEY_SPEC_RSA_3072:    3072,
	pb.WrappingKeySpec_WRAPPING_KEY_SPEC_RSA_4096:    4096,
}

func (s *keyServer) GetParametersForImport(ctx context.Context, r *pb.GetParametersForImportRequest) (*pb.GetParametersForImportResponse, error) {
	p, st, err := s.kms.GetParametersForImport(ctx, call(ctx, r), r.GetKeyId(), wrappingBits[r.GetWrappingKeySpec()],
		plainName[hsm.ImportAlgorithm](r.GetWrappingAlgorithm(), wrappingPrefix))
	if err != nil {
		return nil, err
	}
	return &pb.GetParametersForImportResponse{
		KeyId: p.Key.String(), PublicKey: p.Public, ImportToken: p.Token, ParametersValidTo: timestamppb.New(p.Until),
		WrappingAlgorithm: pb.WrappingAlgorithm(pb.WrappingAlgorithm_value[wrappingPrefix+string(p.Algorithm)]),
		UnwrappedInside:   p.Inside, MaterialSize: uint32(p.Size), IndexToken: kms.IndexToken(st), //nolint:gosec // at most 64
	}, nil
}

var importTypes = map[pb.ImportType]kms.ImportType{
	pb.ImportType_IMPORT_TYPE_UNSPECIFIED:           kms.ImportAny,
	pb.ImportType_IMPORT_TYPE_NEW_KEY_MATERIAL:      kms.ImportNew,
	pb.ImportType_IMPORT_TYPE_EXISTING_KEY_MATERIAL: kms.ImportExisting,
}

// materialOf reads what is imported, and refuses what contradicts itself.
func materialOf(r *pb.ImportKeyMaterialRequest) (kms.Material, error) {
	t, known := importTypes[r.GetImportType()]
	m := kms.Material{
		Token: r.GetImportToken(), Wrapped: r.GetEncryptedKeyMaterial(), Type: t,
		Version: r.GetVersion(), Description: r.GetMaterialDescription(),
	}
	if !known {
		return m, fmt.Errorf("%w: unknown import type %d", fsm.ErrInvalid, r.GetImportType())
	}
	to := r.GetValidTo()
	if to != nil {
		if to.CheckValid() != nil || to.GetNanos() != 0 || to.GetSeconds() <= 0 {
			return m, fmt.Errorf("%w: valid_to must be a time in whole seconds", fsm.ErrInvalid)
		}
		m.Expires = to.GetSeconds()
	}
	switch model := r.GetExpirationModel(); model {
	case pb.ExpirationModel_EXPIRATION_MODEL_UNSPECIFIED:
	case pb.ExpirationModel_EXPIRATION_MODEL_KEY_MATERIAL_EXPIRES:
		if to == nil {
			return m, fmt.Errorf("%w: the material expires, and valid_to is missing", fsm.ErrInvalid)
		}
	case pb.ExpirationModel_EXPIRATION_MODEL_KEY_MATERIAL_DOES_NOT_EXPIRE:
		if to != nil {
			return m, fmt.Errorf("%w: the material does not expire, and valid_to is given", fsm.ErrInvalid)
		}
	default:
		return m, fmt.Errorf("%w: unknown expiration model %d", fsm.ErrInvalid, model)
	}
	return m, nil
}

func (s *keyServer) ImportKeyMaterial(ctx context.Context, r *pb.ImportKeyMaterialRequest) (*pb.ImportKeyMaterialResponse, error) {
	m, err := materialOf(r)
	if err != nil {
		return nil, s.kms.Refuse("ImportKeyMaterial", call(ctx, r), err)
	}
	result, st, err := s.kms.ImportKeyMaterial(ctx, call(ctx, r), r.GetKeyId(), m, r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	out := &pb.ImportKeyMaterialResponse{KeyId: result.ID, Version: result.Version, IndexToken: kms.IndexToken(st)}
	if id, err := uuid.Parse(result.ID); err == nil {
		k, ok := st.Key(id)
		out.PendingRotation = ok && k.Waiting() != nil && k.Waiting().Version == result.Version
	}
	return out, nil
}

func (s *keyServer) DeleteImportedKeyMaterial(ctx context.Context, r *pb.DeleteImportedKeyMaterialRequest) (*pb.DeleteImportedKeyMaterialResponse, error) {
	result, st, err := s.kms.DeleteImportedKeyMaterial(ctx, call(ctx, r), r.GetKeyId(), r.GetVersion(), r.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteImportedKeyMaterialResponse{KeyId: result.ID, Version: result.Version, IndexToken: kms.IndexToken(st)}, nil
}

// describeImport adds what is known of a key's material.
func describeImport(out *pb.KeyMetadata, k *fsm.Key) {
	var first int64
	held := false
	for _, v := range k.Versions {
		if v.Token == nil {
			continue
		}
		held = true
		if at := v.Import.Expires; at != 0 {
			first = min(cmp.Or(first, at), at)
		}
	}
	if held {
		out.ExpirationModel = pb.ExpirationModel_EXPIRATION_MODEL_KEY_MATERIAL_DOES_NOT_EXPIRE
	}
	if first != 0 {
		out.ExpirationModel, out.ValidTo = pb.ExpirationModel_EXPIRATION_MODEL_KEY_MATERIAL_EXPIRES, date(first)
	}
	out.MaterialWaits = k.Waiting() != nil
}

// describeMaterial adds what is known of a version's material.
func describeMaterial(out *pb.KeyVersion, v kms.VersionView) {
	out.ImportDate, out.ValidTo = date(v.Import.At), date(v.Import.Expires)
	out.MaterialDescription, out.MaterialCheck = v.Import.Description, v.Import.Check
	if v.Missing {
		out.State = pb.KeyVersionState_KEY_VERSION_STATE_PENDING_IMPORT
	}
}
