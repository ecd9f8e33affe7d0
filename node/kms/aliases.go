package kms

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// CreateAlias gives a key another name.
func (s *Service) CreateAlias(ctx context.Context, c Call, name, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	x := s.aliasChange("CreateAlias", c, name, key, expect, &fsm.CreateAlias{AliasTarget: fsm.AliasTarget{Name: name}})
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		t, err := s.aliasTarget(st, x, key, e)
		return &fsm.CreateAlias{AliasTarget: t}, err
	}
	return s.apply(ctx, x)
}

// UpdateAlias makes an alias name another key. It is asked of both: who may not touch the
// key that an alias names does not take it away.
func (s *Service) UpdateAlias(ctx context.Context, c Call, name, key string, expect uint64) (fsm.Result, *fsm.State, error) {
	x := s.aliasChange("UpdateAlias", c, name, key, expect, &fsm.UpdateAlias{AliasTarget: fsm.AliasTarget{Name: name}})
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		t, err := s.aliasTarget(st, x, key, e)
		if err != nil {
			return nil, err
		}
		command := &fsm.MoveAlias{AliasTarget: t}
		old, ok := st.Alias(t.Tenant, name)
		if known := st.Permits(command) == nil; !ok || !known { // the log refuses it; or the cluster's release knows no policies
			return &fsm.UpdateAlias{AliasTarget: t}, nil
		}
		from, rule, err := s.lookUp(st, reference{tenant: t.Tenant, id: old.Key}, x.question())
		if err != nil {
			e.KeyID, e.DecidedBy = old.Key.String(), rule
			return nil, fmt.Errorf("key %s, which %s names: %w", old.Key, name, err)
		}
		command.From = fsm.KeyRef{ID: from.ID, Tenant: from.Tenant, Expect: from.Revision}
		return command, nil
	}
	return s.apply(ctx, x)
}

// aliasChange is what both have in common.
func (s *Service) aliasChange(op string, c Call, name, key string, expect uint64, shown fsm.Command) change {
	x := s.changeOf(op, c, key, expect, name)
	x.target, x.shown = name, shown
	if strings.Contains(key, fsm.AliasPrefix) {
		x.wrong = invalid("%q is an alias: an alias names a key by its id or ARN", key)
	}
	return x
}

// aliasTarget finds the key that an alias is to name, and asks whether the caller may.
func (s *Service) aliasTarget(st *fsm.State, x change, key string, e *audit.Event) (fsm.AliasTarget, error) {
	k, err := s.named(st, x.call, key, x.question(), e)
	if err != nil {
		return fsm.AliasTarget{}, err
	}
	return fsm.AliasTarget{Tenant: k.Tenant, Name: x.target, Key: k.ID, Expect: cmp.Or(x.expect, k.Revision)}, nil
}

// DeleteAlias removes an alias; the key stays.
func (s *Service) DeleteAlias(ctx context.Context, c Call, name string, expect uint64) (fsm.Result, *fsm.State, error) {
	x := change{
		name: "DeleteAlias", call: c, needs: mayAdminister, params: []any{name, expect}, expect: expect, target: name,
		shown: &fsm.DeleteAlias{Name: name},
	}
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		k, err := s.named(st, c, name, x.question(), e)
		if err != nil {
			return nil, err
		}
		return &fsm.DeleteAlias{Tenant: k.Tenant, Name: name, Expect: cmp.Or(expect, k.Revision)}, nil
	}
	return s.apply(ctx, x)
}
