package kms

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/policy"
)

// PolicyView is a revision of a policy as callers see it.
type PolicyView struct {
	fsm.Policy
	Present bool // it is the one that decides
}

// PutPolicy replaces the tenant's policy, or a key's if key is not empty; an empty text
// deletes it. expect is the number of the revision that must be there; nil: any. It
// decides on every node by the time it returns.
func (s *Service) PutPolicy(ctx context.Context, c Call, key, text string, expect *uint32) (revision uint32, st *fsm.State, err error) {
	name := "PutTenantPolicy"
	switch {
	case key != "" && text == "":
		name = "DeleteKeyPolicy"
	case key != "":
		name = "PutKeyPolicy"
	case text == "":
		name = "DeleteTenantPolicy"
	}
	x := change{name: name, call: c, needs: mayAdminister, key: key, shown: &fsm.PutPolicy{}, notKey: true, params: []any{key, text, expect}, pinned: expect != nil}
	x.syntax = func() error {
		if text == "" {
			return nil
		}
		_, err := policy.Parse(text)
		return err
	}
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		command := &fsm.PutPolicy{Tenant: c.acting(), Text: text, Expect: expect}
		q := question{caller: c.Caller, needs: mayAdminister, operation: name}
		var k *fsm.Key
		var err error
		if key == "" {
			_, err = s.ofTenant(st, c, q, e)
		} else if k, err = s.named(st, c, key, q, e); err == nil {
			command.Key, command.Tenant, command.ExpectKey = k.ID, k.Tenant, k.Revision
		}
		if err != nil {
			return nil, err
		}
		return command, s.lockedOut(st, q, k, command)
	}
	result, st, err := s.apply(ctx, x)
	return result.Version, st, err
}

// lockedOut refuses a policy with which neither the caller nor the tenant's first
// administrator could put another in its place, now or when something has changed that
// policies ask of.
func (s *Service) lockedOut(st *fsm.State, q question, k *fsm.Key, command *fsm.PutPolicy) error {
	after, err := st.After(command)
	if err != nil {
		return err
	}
	tenant, ok := after.Tenant(command.Tenant)
	if !ok {
		return fmt.Errorf("%w: tenant %q", fsm.ErrNotFound, command.Tenant)
	}
	q.tenant, q.operation = command.Tenant, "PutTenantPolicy"
	if k != nil {
		q.operation = "PutKeyPolicy"
		k, _ = after.Key(k.ID)
	}
	who := []Caller{q.caller}
	if first, err := s.principal(tenant.Administrator); err == nil {
		who = append(who, first)
	}
	trial := &Service{now: s.now, policies: newPolicies()} // what is tried is not remembered
	var why error
	for _, q.caller = range who {
		_, err := trial.decide(after, q, k)
		if err == nil {
			err = trial.policies.lasts(after, tenant, k, q, s.now())
		}
		if err == nil {
			return nil
		}
		why = cmp.Or(why, err)
	}
	return fmt.Errorf("%w: neither you nor the tenant's first administrator (%s) could call %s any more: %s", ErrLockout, tenant.Administrator, q.operation, why.Error())
}

// GetPolicy returns the tenant's policy, or a key's: the present one, or a revision by its
// number. A tenant without one has the default policy, whose number is 0.
func (s *Service) GetPolicy(ctx context.Context, c Call, key string, number uint32) (PolicyView, *fsm.State, error) {
	r := ofPolicy("Get%sPolicy", c, key)
	if number > 0 {
		r.target = fmt.Sprintf("revision %d", number)
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, k *fsm.Key) (PolicyView, error) {
		present, id := presentPolicy(st, tenant, k)
		if number == 0 && present == 0 {
			if k != nil {
				return PolicyView{}, fmt.Errorf("%w: key %s has no policy of its own; the tenant's holds for it", fsm.ErrNotFound, k.ID)
			}
			return PolicyView{fsm.Policy{Tenant: tenant, Text: policy.DefaultText}, true}, nil
		}
		if number == 0 {
			number = present
		}
		p, ok := st.Policy(tenant, id, number)
		if !ok {
			return PolicyView{}, fmt.Errorf("%w: revision %d of the policy (the last %d are kept)", fsm.ErrNotFound, number, fsm.MaxPolicyHistory)
		}
		return PolicyView{*p, number == present}, nil
	})
}

// ListPolicyRevisions returns the revisions that are kept, the newest first.
func (s *Service) ListPolicyRevisions(ctx context.Context, c Call, key string) ([]PolicyView, *fsm.State, error) {
	r := ofPolicy("ListPolicyRevisions%.0s", c, key)
	return read(ctx, s, r, func(st *fsm.State, tenant string, k *fsm.Key) ([]PolicyView, error) {
		present, id := presentPolicy(st, tenant, k)
		var out []PolicyView
		for _, p := range slices.Backward(st.Policies(tenant, id)) {
			out = append(out, PolicyView{*p, p.Number == present})
		}
		return out, nil
	})
}

func presentPolicy(st *fsm.State, tenant string, k *fsm.Key) (number uint32, key fsm.ID) {
	if k != nil {
		return k.Policy, k.ID
	}
	if t, ok := st.Tenant(tenant); ok {
		return t.Policy, key
	}
	return 0, key
}

func ofPolicy(name string, c Call, key string) reading {
	r := reading{name: fmt.Sprintf(name, "Tenant"), call: c, needs: mayRead}
	if key != "" {
		r.name, r.key = fmt.Sprintf(name, "Key"), &key
	}
	return r
}

// ValidatePolicy says what is wrong with a text, if anything.
func (s *Service) ValidatePolicy(ctx context.Context, c Call, text string) (error, *fsm.State, error) {
	return read(ctx, s, reading{name: "ValidatePolicy", call: c, needs: mayRead}, func(*fsm.State, string, *fsm.Key) (error, error) {
		_, err := policy.Parse(text)
		return err, nil
	})
}
