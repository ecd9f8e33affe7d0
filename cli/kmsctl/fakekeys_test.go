package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fakePage is the largest page of the fake, small so that lists have several.
const fakePage = 2

// paged is the page of items that a marker, the number of items before it, names.
func paged[T any](items []T, limit uint32, marker string) ([]T, string) {
	from, _ := strconv.Atoi(marker) // "" is 0
	to := min(from+int(min(limit, fakePage)), len(items))
	if to == len(items) {
		return items[from:], ""
	}
	return items[from:to], strconv.Itoa(to)
}

func (f *fake) CreateKey(ctx context.Context, r *quorumkmsv1.CreateKeyRequest) (*quorumkmsv1.CreateKeyResponse, error) {
	tenant := tenantOf(ctx, r)
	id := uuid.NewString()
	k := &fakeKey{tags: map[string]string{}, meta: &quorumkmsv1.KeyMetadata{
		KeyId: id, Arn: fmt.Sprintf("arn:quorumkms:kms:c1:%s:key/%s", tenant, id), Tenant: tenant, Description: r.GetDescription(),
		State: quorumkmsv1.KeyState_KEY_STATE_ENABLED, Usage: cmp.Or(r.GetUsage(), quorumkmsv1.KeyUsage_KEY_USAGE_ENCRYPT_DECRYPT),
		Spec: cmp.Or(r.GetSpec(), quorumkmsv1.KeySpec_KEY_SPEC_SYMMETRIC), Origin: quorumkmsv1.KeyOrigin_KEY_ORIGIN_KMS,
		Manager: quorumkmsv1.KeyManager_KEY_MANAGER_CUSTOMER, ProtectionLevel: quorumkmsv1.ProtectionLevel_PROTECTION_LEVEL_HSM_ROOTED,
		CreationDate: timestamppb.New(fakeEpoch), Revision: 1,
	}}
	for _, tag := range r.GetTags() {
		k.tags[tag.GetKey()] = tag.GetValue()
	}
	f.keys = append(f.keys, k)
	return &quorumkmsv1.CreateKeyResponse{Key: k.meta}, k.newVersion()
}

func (f *fake) DescribeKey(_ context.Context, r *quorumkmsv1.DescribeKeyRequest) (*quorumkmsv1.DescribeKeyResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.DescribeKeyResponse{Key: f.described(k), IndexToken: []byte("seen")}, nil
}

func (f *fake) ListKeys(_ context.Context, r *quorumkmsv1.ListKeysRequest) (*quorumkmsv1.ListKeysResponse, error) {
	items, next := paged(f.keys, r.GetLimit(), r.GetMarker())
	response := &quorumkmsv1.ListKeysResponse{NextMarker: next}
	for _, k := range items {
		response.Keys = append(response.Keys, f.described(k))
	}
	return response, nil
}

func (f *fake) UpdateKeyDescription(_ context.Context, r *quorumkmsv1.UpdateKeyDescriptionRequest) (*quorumkmsv1.UpdateKeyDescriptionResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		k.meta.Description = r.GetDescription()
		return nil
	})
	return &quorumkmsv1.UpdateKeyDescriptionResponse{}, err
}

// setState lets a key change between enabled and disabled.
func setState(s quorumkmsv1.KeyState) func(*fakeKey) error {
	return func(k *fakeKey) error {
		if k.meta.GetState() == quorumkmsv1.KeyState_KEY_STATE_PENDING_DELETION {
			return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_PENDING_DELETION, "key is pending deletion")
		}
		k.meta.State = s
		return nil
	}
}

func (f *fake) EnableKey(_ context.Context, r *quorumkmsv1.EnableKeyRequest) (*quorumkmsv1.EnableKeyResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), setState(quorumkmsv1.KeyState_KEY_STATE_ENABLED))
	return &quorumkmsv1.EnableKeyResponse{}, err
}

func (f *fake) DisableKey(_ context.Context, r *quorumkmsv1.DisableKeyRequest) (*quorumkmsv1.DisableKeyResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), setState(quorumkmsv1.KeyState_KEY_STATE_DISABLED))
	return &quorumkmsv1.DisableKeyResponse{}, err
}

func (f *fake) ScheduleKeyDeletion(_ context.Context, r *quorumkmsv1.ScheduleKeyDeletionRequest) (*quorumkmsv1.ScheduleKeyDeletionResponse, error) {
	days := r.GetPendingWindowDays()
	if days < 7 || days > 30 {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, "pending window must be 7 to 30 days")
	}
	k, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		switch {
		case k.meta.GetDeletionProtection():
			return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_PROTECTED, "key is protected against deletion")
		case len(k.bound) > 0:
			return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_IN_USE, "key is in use")
		}
		k.meta.State = quorumkmsv1.KeyState_KEY_STATE_PENDING_DELETION
		k.meta.DeletionDate = timestamppb.New(fakeEpoch.Add(time.Duration(days) * 24 * time.Hour))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.ScheduleKeyDeletionResponse{KeyId: k.meta.GetKeyId(), DeletionDate: k.meta.GetDeletionDate()}, nil
}

func (f *fake) CancelKeyDeletion(_ context.Context, r *quorumkmsv1.CancelKeyDeletionRequest) (*quorumkmsv1.CancelKeyDeletionResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		if k.meta.GetState() != quorumkmsv1.KeyState_KEY_STATE_PENDING_DELETION {
			return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_NOT_PENDING_DELETION, "key is not pending deletion")
		}
		k.meta.State, k.meta.DeletionDate = quorumkmsv1.KeyState_KEY_STATE_DISABLED, nil
		return nil
	})
	return &quorumkmsv1.CancelKeyDeletionResponse{}, err
}

func (f *fake) CreateAlias(_ context.Context, r *quorumkmsv1.CreateAliasRequest) (*quorumkmsv1.CreateAliasResponse, error) {
	if _, ok := f.aliases[r.GetAliasName()]; ok {
		return nil, fakeError(codes.AlreadyExists, quorumkmsv1.Reason_REASON_EXISTS, "alias exists")
	}
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	f.aliases[r.GetAliasName()] = k.meta.GetKeyId()
	return &quorumkmsv1.CreateAliasResponse{}, nil
}

func (f *fake) UpdateAlias(_ context.Context, r *quorumkmsv1.UpdateAliasRequest) (*quorumkmsv1.UpdateAliasResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	if _, ok := f.aliases[r.GetAliasName()]; !ok {
		return nil, notFound(r.GetAliasName())
	}
	f.aliases[r.GetAliasName()] = k.meta.GetKeyId()
	return &quorumkmsv1.UpdateAliasResponse{}, nil
}

func (f *fake) DeleteAlias(_ context.Context, r *quorumkmsv1.DeleteAliasRequest) (*quorumkmsv1.DeleteAliasResponse, error) {
	if _, ok := f.aliases[r.GetAliasName()]; !ok {
		return nil, notFound(r.GetAliasName())
	}
	delete(f.aliases, r.GetAliasName())
	return &quorumkmsv1.DeleteAliasResponse{}, nil
}

func (f *fake) ListAliases(_ context.Context, r *quorumkmsv1.ListAliasesRequest) (*quorumkmsv1.ListAliasesResponse, error) {
	var all []*quorumkmsv1.Alias
	for _, name := range slices.Sorted(maps.Keys(f.aliases)) {
		if r.GetKeyId() == "" || r.GetKeyId() == f.aliases[name] {
			all = append(all, &quorumkmsv1.Alias{Name: name, KeyId: f.aliases[name], LastUpdatedDate: timestamppb.New(fakeEpoch)})
		}
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListAliasesResponse{Aliases: items, NextMarker: next}, nil
}

func (f *fake) TagResource(_ context.Context, r *quorumkmsv1.TagResourceRequest) (*quorumkmsv1.TagResourceResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		for _, tag := range r.GetTags() {
			k.tags[tag.GetKey()] = tag.GetValue()
		}
		return nil
	})
	return &quorumkmsv1.TagResourceResponse{}, err
}

func (f *fake) UntagResource(_ context.Context, r *quorumkmsv1.UntagResourceRequest) (*quorumkmsv1.UntagResourceResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		for _, tag := range r.GetTagKeys() {
			delete(k.tags, tag)
		}
		return nil
	})
	return &quorumkmsv1.UntagResourceResponse{}, err
}

func (f *fake) ListResourceTags(_ context.Context, r *quorumkmsv1.ListResourceTagsRequest) (*quorumkmsv1.ListResourceTagsResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	var all []*quorumkmsv1.Tag
	for _, name := range slices.Sorted(maps.Keys(k.tags)) {
		all = append(all, &quorumkmsv1.Tag{Key: name, Value: k.tags[name]})
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListResourceTagsResponse{Tags: items, NextMarker: next}, nil
}

func (f *fake) RotateKeyOnDemand(_ context.Context, r *quorumkmsv1.RotateKeyOnDemandRequest) (*quorumkmsv1.RotateKeyOnDemandResponse, error) {
	k, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), (*fakeKey).newVersion)
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.RotateKeyOnDemandResponse{KeyId: k.meta.GetKeyId(), CurrentVersion: k.meta.GetCurrentVersion()}, nil
}

func (f *fake) ListKeyRotations(_ context.Context, r *quorumkmsv1.ListKeyRotationsRequest) (*quorumkmsv1.ListKeyRotationsResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	var all []*quorumkmsv1.KeyRotation
	for i := range k.versions {
		cause := quorumkmsv1.RotationCause_ROTATION_CAUSE_ON_DEMAND
		if i == 0 {
			cause = quorumkmsv1.RotationCause_ROTATION_CAUSE_CREATED
		}
		all = append(all, &quorumkmsv1.KeyRotation{Version: uint32(i) + 1, Cause: cause, RotationDate: timestamppb.New(fakeEpoch)}) //nolint:gosec // small
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListKeyRotationsResponse{Rotations: items, NextMarker: next}, nil
}

func (f *fake) Encrypt(_ context.Context, r *quorumkmsv1.EncryptRequest) (*quorumkmsv1.EncryptResponse, error) {
	if r.GetEncryptionAlgorithm() != 0 {
		return f.encryptRSA(r)
	}
	blob, k, err := f.seal(r.GetKeyId(), r.GetPlaintext(), r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.EncryptResponse{Ciphertext: blob, KeyId: k.meta.GetArn(), KeyVersion: k.meta.GetCurrentVersion()}, nil
}

func (f *fake) Decrypt(_ context.Context, r *quorumkmsv1.DecryptRequest) (*quorumkmsv1.DecryptResponse, error) {
	if r.GetEncryptionAlgorithm() != 0 {
		return f.decryptRSA(r)
	}
	plaintext, k, version, err := f.open(r.GetCiphertext(), r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	if expected, err := f.find(r.GetKeyId()); r.GetKeyId() != "" && (err != nil || expected != k) {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT, "ciphertext does not verify")
	}
	return &quorumkmsv1.DecryptResponse{Plaintext: plaintext, KeyId: k.meta.GetArn(), KeyVersion: version}, nil
}

func (f *fake) ReEncrypt(_ context.Context, r *quorumkmsv1.ReEncryptRequest) (*quorumkmsv1.ReEncryptResponse, error) {
	plaintext, k, version, err := f.open(r.GetCiphertext(), r.GetSourceEncryptionContext())
	if err != nil {
		return nil, err
	}
	ec, to := r.GetDestinationEncryptionContext(), k
	if r.GetSameContext() {
		ec = r.GetSourceEncryptionContext()
	}
	if r.GetDestinationKeyId() != "" {
		if to, err = f.find(r.GetDestinationKeyId()); err != nil {
			return nil, err
		}
	}
	response := &quorumkmsv1.ReEncryptResponse{
		Ciphertext: r.GetCiphertext(), SourceKeyId: k.meta.GetArn(), KeyId: to.meta.GetArn(),
		SourceKeyVersion: version, KeyVersion: to.meta.GetCurrentVersion(),
		Unchanged: to == k && version == k.meta.GetCurrentVersion() && r.GetSameContext(),
	}
	if !response.GetUnchanged() {
		response.Ciphertext, _, err = f.seal(to.meta.GetKeyId(), plaintext, ec)
	}
	return response, err
}

func (f *fake) GenerateDataKey(_ context.Context, r *quorumkmsv1.GenerateDataKeyRequest) (*quorumkmsv1.GenerateDataKeyResponse, error) {
	n := map[quorumkmsv1.DataKeySpec]uint32{
		quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_128: 16, quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256: 32,
	}[r.GetSpec()]
	plaintext := make([]byte, n+r.GetNumberOfBytes())
	if _, err := rand.Read(plaintext); err != nil {
		return nil, err
	}
	blob, k, err := f.seal(r.GetKeyId(), plaintext, r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.GenerateDataKeyResponse{
		Plaintext: plaintext, Ciphertext: blob, KeyId: k.meta.GetArn(), KeyVersion: k.meta.GetCurrentVersion(),
	}, nil
}

func (f *fake) GenerateDataKeyWithoutPlaintext(ctx context.Context, r *quorumkmsv1.GenerateDataKeyWithoutPlaintextRequest) (*quorumkmsv1.GenerateDataKeyWithoutPlaintextResponse, error) {
	full, err := f.GenerateDataKey(ctx, &quorumkmsv1.GenerateDataKeyRequest{
		KeyId: r.GetKeyId(), Spec: r.GetSpec(), NumberOfBytes: r.GetNumberOfBytes(), EncryptionContext: r.GetEncryptionContext(),
	})
	return &quorumkmsv1.GenerateDataKeyWithoutPlaintextResponse{
		Ciphertext: full.GetCiphertext(), KeyId: full.GetKeyId(), KeyVersion: full.GetKeyVersion(),
	}, err
}

func (f *fake) GenerateRandom(_ context.Context, r *quorumkmsv1.GenerateRandomRequest) (*quorumkmsv1.GenerateRandomResponse, error) {
	b := make([]byte, r.GetNumberOfBytes())
	_, err := rand.Read(b)
	return &quorumkmsv1.GenerateRandomResponse{Plaintext: b}, err
}

const (
	adminURI    = "spiffe://" + clienttest.TrustDomain + "/tenant/default/admin/alice"
	serviceURI  = "spiffe://" + clienttest.TrustDomain + "/service/volumes"
	operatorURI = "spiffe://" + clienttest.TrustDomain + "/operator/olga"
)
