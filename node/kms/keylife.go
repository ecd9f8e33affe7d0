package kms

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// plain is a keyCommand that needs nothing but the key's reference.
func plain(command func(ref fsm.KeyRef) fsm.Command) keyCommand {
	return func(_ context.Context, _ *fsm.State, _ *fsm.Key, ref fsm.KeyRef) (fsm.Command, error) {
		return command(ref), nil
	}
}

// RotateKeyOnDemand adds a version to a key, or makes imported material current that waits
// for it.
func (s *Service) RotateKeyOnDemand(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "RotateKeyOnDemand", c, key, expect, nil,
		func(ctx context.Context, st *fsm.State, k *fsm.Key, ref fsm.KeyRef) (fsm.Command, error) {
			if k == nil {
				return &fsm.RotateKey{KeyRef: ref, Version: 1, Cause: fsm.CauseOnDemand, Token: []byte{0}}, nil
			}
			if k.Origin == fsm.OriginExternal {
				return rotateToImported(st, k, ref), nil
			}
			command := &fsm.RotateKey{KeyRef: ref, Version: st.NextVersion(k), Cause: fsm.CauseOnDemand}
			return command, s.makeToken(ctx, st, c, command, k.ID, command.Version)
		})
}

// EnableKeyRotation has a key rotated each period; zero means a year.
func (s *Service) EnableKeyRotation(ctx context.Context, c Call, key string, period time.Duration, expect uint64) (*fsm.Key, *fsm.State, error) {
	if period == 0 {
		period = fsm.DefaultRotationPeriod * time.Second
	}
	result, st, err := s.onKey(ctx, "EnableKeyRotation", c, key, expect, period,
		func(_ context.Context, _ *fsm.State, _ *fsm.Key, ref fsm.KeyRef) (fsm.Command, error) {
			command := &fsm.EnableKeyRotation{KeyRef: ref, Period: int64(period / time.Second)}
			if period%time.Second != 0 || period < s.minRotation {
				return command, invalid("rotation period of %s: must be whole seconds, at least %s (rotation.min_period of the nodes) and at most %d days",
					period, s.minRotation, fsm.MaxRotationPeriod/int64((24*time.Hour).Seconds()))
			}
			return command, nil
		})
	if err != nil {
		return nil, nil, err
	}
	k, err := s.resultKey(st, result)
	return k, st, err
}

// DisableKeyRotation ends a key's schedule.
func (s *Service) DisableKeyRotation(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "DisableKeyRotation", c, key, expect, nil, plain(func(r fsm.KeyRef) fsm.Command { return &fsm.DisableKeyRotation{KeyRef: r} }))
}

// UpdateKeyDescription replaces a key's description.
func (s *Service) UpdateKeyDescription(ctx context.Context, c Call, key, description string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "UpdateKeyDescription", c, key, expect, description,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.UpdateKeyDescription{KeyRef: r, Description: description} }))
}

// EnableKey makes a disabled key usable.
func (s *Service) EnableKey(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "EnableKey", c, key, expect, nil, plain(func(r fsm.KeyRef) fsm.Command { return &fsm.EnableKey{KeyRef: r} }))
}

// DisableKey makes a key unusable: on every node by the time it returns.
func (s *Service) DisableKey(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "DisableKey", c, key, expect, nil, plain(func(r fsm.KeyRef) fsm.Command { return &fsm.DisableKey{KeyRef: r} }))
}

// SetKeyDecryptOnly lets an enabled key open what it has sealed and nothing more: on
// every node by the time it returns.
func (s *Service) SetKeyDecryptOnly(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "SetKeyDecryptOnly", c, key, expect, nil,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.SetKeyDecryptOnly{KeyRef: r} }))
}

// ScheduleKeyDeletion makes a key unusable and sets its date; 0 days mean 30.
func (s *Service) ScheduleKeyDeletion(ctx context.Context, c Call, key string, days uint32, expect uint64) (*fsm.Key, *fsm.State, error) {
	if days == 0 {
		days = fsm.DefaultDeletion
	}
	result, st, err := s.onKey(ctx, "ScheduleKeyDeletion", c, key, expect, days,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.ScheduleKeyDeletion{KeyRef: r, Days: days} }))
	if err != nil {
		return nil, nil, err
	}
	k, err := s.resultKey(st, result)
	return k, st, err
}

// CancelKeyDeletion takes a key back; it is disabled afterwards.
func (s *Service) CancelKeyDeletion(ctx context.Context, c Call, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "CancelKeyDeletion", c, key, expect, nil, plain(func(r fsm.KeyRef) fsm.Command { return &fsm.CancelKeyDeletion{KeyRef: r} }))
}

// SetDeletionProtection makes a key refuse its deletion, or ends that.
func (s *Service) SetDeletionProtection(ctx context.Context, c Call, key string, on bool, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "SetDeletionProtection", c, key, expect, on,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.SetDeletionProtection{KeyRef: r, On: on} }))
}

// SetRequiredContext says which keys every encryption context must have.
func (s *Service) SetRequiredContext(ctx context.Context, c Call, key string, keys []string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "SetRequiredContext", c, key, expect, keys,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.SetRequiredContext{KeyRef: r, Keys: keys} }))
}

// TagResource sets tags.
func (s *Service) TagResource(ctx context.Context, c Call, key string, tags []fsm.Tag, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "TagResource", c, key, expect, tags, plain(func(r fsm.KeyRef) fsm.Command { return &fsm.TagKey{KeyRef: r, Tags: tags} }))
}

// UntagResource removes tags by their keys.
func (s *Service) UntagResource(ctx context.Context, c Call, key string, tagKeys []string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKey(ctx, "UntagResource", c, key, expect, tagKeys,
		plain(func(r fsm.KeyRef) fsm.Command { return &fsm.UntagKey{KeyRef: r, TagKeys: tagKeys} }))
}

// onVersion changes one version of a key.
func (s *Service) onVersion(ctx context.Context, name string, c Call, key string, version uint32, expect uint64, command func(fsm.VersionRef) fsm.Command) (fsm.Result, *fsm.State, error) {
	return s.onKeyVersion(ctx, name, c, key, version, expect, version, plain(func(r fsm.KeyRef) fsm.Command {
		return command(fsm.VersionRef{KeyRef: r, Version: version})
	}))
}

// EnableKeyVersion makes a disabled version usable again.
func (s *Service) EnableKeyVersion(ctx context.Context, c Call, key string, version uint32, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onVersion(ctx, "EnableKeyVersion", c, key, version, expect,
		func(r fsm.VersionRef) fsm.Command { return &fsm.EnableKeyVersion{VersionRef: r} })
}

// DisableKeyVersion makes one version unusable: on every node by the time it returns.
func (s *Service) DisableKeyVersion(ctx context.Context, c Call, key string, version uint32, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onVersion(ctx, "DisableKeyVersion", c, key, version, expect,
		func(r fsm.VersionRef) fsm.Command { return &fsm.DisableKeyVersion{VersionRef: r} })
}

// ScheduleKeyVersionDestruction makes one version unusable and sets the date at which its
// material goes; 0 days mean 30.
func (s *Service) ScheduleKeyVersionDestruction(ctx context.Context, c Call, key string, version, days uint32, expect uint64) (*fsm.KeyVersion, *fsm.State, error) {
	if days == 0 {
		days = fsm.DefaultDeletion
	}
	result, st, err := s.onVersion(ctx, "ScheduleKeyVersionDestruction", c, key, version, expect,
		func(r fsm.VersionRef) fsm.Command {
			return &fsm.ScheduleKeyVersionDestruction{VersionRef: r, Days: days}
		})
	if err != nil {
		return nil, nil, err
	}
	k, err := s.resultKey(st, result)
	if err != nil {
		return nil, nil, err
	}
	return k.Version(version), st, nil
}

// CancelKeyVersionDestruction takes a version back; it is disabled afterwards.
func (s *Service) CancelKeyVersionDestruction(ctx context.Context, c Call, key string, version uint32, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onVersion(ctx, "CancelKeyVersionDestruction", c, key, version, expect,
		func(r fsm.VersionRef) fsm.Command { return &fsm.CancelKeyVersionDestruction{VersionRef: r} })
}

// BindResource registers a resource that a key protects. Key users and services may, and
// key administrators.
func (s *Service) BindResource(ctx context.Context, c Call, key, resource string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onResource(ctx, "BindResource", c, key, resource, expect, func(r fsm.KeyRef, _ string) fsm.Command {
		return &fsm.BindResource{KeyRef: r, Resource: resource}
	})
}

// ReleaseResource ends a binding. Who registered it may, and key administrators.
func (s *Service) ReleaseResource(ctx context.Context, c Call, key, resource string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onResource(ctx, "ReleaseResource", c, key, resource, expect, func(r fsm.KeyRef, by string) fsm.Command {
		return &fsm.ReleaseResource{KeyRef: r, Resource: resource, By: by}
	})
}

// onResource is what both have in common: an administrator acts for whoever registered
// the resource, everybody else for itself, as one who may use the key.
func (s *Service) onResource(ctx context.Context, name string, c Call, key, resource string, expect uint64, command func(ref fsm.KeyRef, by string) fsm.Command) (fsm.Result, *fsm.State, error) {
	x := s.changeOf(name, c, key, expect, resource)
	q := question{caller: c.Caller, needs: mayUse, operation: name}
	by := c.Caller.Principal
	if c.Caller.Class == ClassAdmin {
		q.needs, by = mayAdminister, ""
		if name == "ReleaseResource" {
			q.operation = "ForceReleaseResource"
		}
	}
	x.needs, x.target = q.needs, resource
	x.shown = command(fsm.KeyRef{ID: uuid.Max}, by)
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		q := q
		if c.Caller.Class == ClassService { // the resource is what it acts for, and the key says for whom
			ref, err := parseReference(st, c, key)
			if err != nil {
				return nil, err
			}
			q.context = []Pair{{fsm.ContextTenant, ref.tenant}, {fsm.ContextResource, resource}}
		}
		k, err := s.named(st, c, key, q, e)
		if err != nil {
			return nil, err
		}
		return command(fsm.KeyRef{ID: k.ID, Tenant: k.Tenant, Expect: expect}, by), nil
	}
	return s.apply(ctx, x)
}
