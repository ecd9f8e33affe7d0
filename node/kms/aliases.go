package kms

import (
	"context"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// CreateAlias gives a key another name.
func (s *Service) CreateAlias(ctx context.Context, c Call, name, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.pointAlias(ctx, "CreateAlias", c, name, key, expect, func(t fsm.AliasTarget) fsm.Command {
		return &fsm.CreateAlias{AliasTarget: t}
	})
}

// UpdateAlias makes an alias name another key.
func (s *Service) UpdateAlias(ctx context.Context, c Call, name, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.pointAlias(ctx, "UpdateAlias", c, name, key, expect, func(t fsm.AliasTarget) fsm.Command {
		return &fsm.UpdateAlias{AliasTarget: t}
	})
}

func (s *Service) pointAlias(ctx context.Context, op string, c Call, name, key string, expect uint64, command func(fsm.AliasTarget) fsm.Command) (fsm.Result, *fsm.State, error) {
	x := s.changeOf(op, c, key, expect, name,
		func(_ context.Context, _ *fsm.State, _ *fsm.Key, ref fsm.KeyRef) (fsm.Command, error) {
			if strings.Contains(key, fsm.AliasPrefix) {
				return nil, invalid("%q is an alias: an alias names a key by its id or ARN", key)
			}
			return command(fsm.AliasTarget{Tenant: ref.Tenant, Name: name, Key: ref.ID, Expect: ref.Expect}), nil
		})
	x.target = name
	return s.apply(ctx, x)
}

// DeleteAlias removes an alias; the key stays.
func (s *Service) DeleteAlias(ctx context.Context, c Call, name string, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.apply(ctx, change{
		name: "DeleteAlias", call: c, needs: mayAdminister, lane: limit.Control, params: []any{name, expect}, expect: expect, target: name,
		syntax: func() error { return fsm.WellFormed(&fsm.DeleteAlias{Name: name}) },
		build: func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
			k, err := s.named(st, c, name, question{caller: c.Caller, needs: mayAdminister, operation: "DeleteAlias"}, e)
			if err != nil {
				return nil, err
			}
			return &fsm.DeleteAlias{Tenant: k.Tenant, Name: name, Expect: expect}, nil
		},
	})
}
