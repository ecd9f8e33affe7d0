package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const minPeriod = 90 * day // of the fake's rotations

func (f *fake) SetKeyDecryptOnly(_ context.Context, r *quorumkmsv1.SetKeyDecryptOnlyRequest) (*quorumkmsv1.SetKeyDecryptOnlyResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), setState(quorumkmsv1.KeyState_KEY_STATE_DECRYPT_ONLY))
	return &quorumkmsv1.SetKeyDecryptOnlyResponse{}, err
}

func (f *fake) SetRequiredContext(_ context.Context, r *quorumkmsv1.SetRequiredContextRequest) (*quorumkmsv1.SetRequiredContextResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		k.meta.RequiredContext = r.GetContextKeys()
		return nil
	})
	return &quorumkmsv1.SetRequiredContextResponse{}, err
}

func (f *fake) SetDeletionProtection(_ context.Context, r *quorumkmsv1.SetDeletionProtectionRequest) (*quorumkmsv1.SetDeletionProtectionResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		k.meta.DeletionProtection = r.GetEnabled()
		return nil
	})
	return &quorumkmsv1.SetDeletionProtectionResponse{}, err
}

// EnableKeyRotation of a key that is disabled is overdue.
func (f *fake) EnableKeyRotation(_ context.Context, r *quorumkmsv1.EnableKeyRotationRequest) (*quorumkmsv1.EnableKeyRotationResponse, error) {
	if r.GetPeriod().AsDuration() < minPeriod {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, "rotation period must be 90 to 2560 days")
	}
	k, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		from := fakeEpoch.AddDate(1000, 0, 0)
		if k.meta.GetState() == quorumkmsv1.KeyState_KEY_STATE_DISABLED {
			from = fakeEpoch.AddDate(-1000, 0, 0)
		}
		k.period, k.meta.NextRotation = r.GetPeriod(), timestamppb.New(from.Add(r.GetPeriod().AsDuration()))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.EnableKeyRotationResponse{NextRotation: k.meta.GetNextRotation()}, nil
}

func (f *fake) DisableKeyRotation(_ context.Context, r *quorumkmsv1.DisableKeyRotationRequest) (*quorumkmsv1.DisableKeyRotationResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		k.period, k.meta.NextRotation = nil, nil
		return nil
	})
	return &quorumkmsv1.DisableKeyRotationResponse{}, err
}

func (f *fake) GetKeyRotationStatus(_ context.Context, r *quorumkmsv1.GetKeyRotationStatusRequest) (*quorumkmsv1.GetKeyRotationStatusResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	out := &quorumkmsv1.GetKeyRotationStatusResponse{
		KeyId: k.meta.GetKeyId(), Enabled: k.period != nil, Period: k.period, NextRotation: k.meta.GetNextRotation(),
	}
	if len(k.versions) > 1 {
		out.LastRotation = timestamppb.New(fakeEpoch)
	}
	return out, nil
}

func (f *fake) ListKeyVersions(_ context.Context, r *quorumkmsv1.ListKeyVersionsRequest) (*quorumkmsv1.ListKeyVersionsResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	var all []*quorumkmsv1.KeyVersion
	for _, v := range k.states {
		v = proto.CloneOf(v)
		v.Current = v.GetVersion() == k.meta.GetCurrentVersion()
		all = append(all, v)
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListKeyVersionsResponse{Versions: items, NextMarker: next}, nil
}

// changeVersion finds a version in one of some states and lets edit change it.
func (f *fake) changeVersion(r interface {
	GetKeyId() string
	GetVersion() uint32
	GetExpectedRevision() uint64
}, state quorumkmsv1.KeyVersionState, from ...quorumkmsv1.KeyVersionState,
) (*quorumkmsv1.KeyVersion, error) {
	var found *quorumkmsv1.KeyVersion
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		i := int(r.GetVersion()) - 1
		if i >= len(k.states) {
			return fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("no version %d", i+1))
		}
		if found = k.states[i]; !slices.Contains(from, found.GetState()) {
			return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_VERSION_DISABLED, "key version is disabled")
		}
		if state == destroyScheduled && i == len(k.states)-1 {
			return currentVersion()
		}
		found.State, found.DestructionDate = state, nil
		return nil
	})
	return found, err
}

func (f *fake) isCurrent(r *quorumkmsv1.ScheduleKeyVersionDestructionRequest) bool {
	k, err := f.find(r.GetKeyId())
	return err == nil && r.GetVersion() == k.meta.GetCurrentVersion()
}

func currentVersion() error {
	return fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_VERSION_CURRENT, "key version is the current one: rotate the key first")
}

const (
	versionEnabled   = quorumkmsv1.KeyVersionState_KEY_VERSION_STATE_ENABLED
	versionDisabled  = quorumkmsv1.KeyVersionState_KEY_VERSION_STATE_DISABLED
	destroyScheduled = quorumkmsv1.KeyVersionState_KEY_VERSION_STATE_DESTROY_SCHEDULED
)

func (f *fake) EnableKeyVersion(_ context.Context, r *quorumkmsv1.EnableKeyVersionRequest) (*quorumkmsv1.EnableKeyVersionResponse, error) {
	_, err := f.changeVersion(r, versionEnabled, versionEnabled, versionDisabled)
	return &quorumkmsv1.EnableKeyVersionResponse{}, err
}

func (f *fake) DisableKeyVersion(_ context.Context, r *quorumkmsv1.DisableKeyVersionRequest) (*quorumkmsv1.DisableKeyVersionResponse, error) {
	_, err := f.changeVersion(r, versionDisabled, versionEnabled, versionDisabled)
	return &quorumkmsv1.DisableKeyVersionResponse{}, err
}

func (f *fake) ScheduleKeyVersionDestruction(_ context.Context, r *quorumkmsv1.ScheduleKeyVersionDestructionRequest) (*quorumkmsv1.ScheduleKeyVersionDestructionResponse, error) {
	v, err := f.changeVersion(r, destroyScheduled, versionEnabled, versionDisabled)
	if err != nil {
		return nil, err
	}
	v.DestructionDate = timestamppb.New(fakeEpoch.Add(time.Duration(r.GetPendingWindowDays()) * day))
	return &quorumkmsv1.ScheduleKeyVersionDestructionResponse{DestructionDate: v.GetDestructionDate()}, nil
}

func (f *fake) CancelKeyVersionDestruction(_ context.Context, r *quorumkmsv1.CancelKeyVersionDestructionRequest) (*quorumkmsv1.CancelKeyVersionDestructionResponse, error) {
	_, err := f.changeVersion(r, versionDisabled, destroyScheduled)
	return &quorumkmsv1.CancelKeyVersionDestructionResponse{}, err
}

func (f *fake) BindResource(_ context.Context, r *quorumkmsv1.BindResourceRequest) (*quorumkmsv1.BindResourceResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		k.bound = append(k.bound, &quorumkmsv1.Resource{Name: r.GetResource(), RegisteredBy: adminURI, RegistrationDate: timestamppb.New(fakeEpoch)})
		slices.SortFunc(k.bound, func(a, b *quorumkmsv1.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
		return nil
	})
	return &quorumkmsv1.BindResourceResponse{}, err
}

func (f *fake) ReleaseResource(_ context.Context, r *quorumkmsv1.ReleaseResourceRequest) (*quorumkmsv1.ReleaseResourceResponse, error) {
	_, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(k *fakeKey) error {
		before := len(k.bound)
		k.bound = slices.DeleteFunc(k.bound, func(b *quorumkmsv1.Resource) bool { return b.GetName() == r.GetResource() })
		if len(k.bound) == before {
			return fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("no binding to %q", r.GetResource()))
		}
		return nil
	})
	return &quorumkmsv1.ReleaseResourceResponse{}, err
}

func (f *fake) ListResources(_ context.Context, r *quorumkmsv1.ListResourcesRequest) (*quorumkmsv1.ListResourcesResponse, error) {
	k, err := f.find(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	items, next := paged(k.bound, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListResourcesResponse{Resources: items, NextMarker: next}, nil
}
