package kms

import (
	"context"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
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
	x := change{name: name, call: c, needs: mayAdminister, lane: limit.Restrict, other: true, params: []any{key, text, expect}, expect: 1}
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
			command.Key, command.Tenant = k.ID, k.Tenant
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
// administrator could put another in its place.
func (s *Service) lockedOut(st *fsm.State, q question, k *fsm.Key, command *fsm.PutPolicy) error {
	tenant, ok := st.Tenant(command.Tenant)
	if !ok {
		return fmt.Errorf("%w: tenant %q", fsm.ErrNotFound, command.Tenant)
	}
	after, err := st.After(command)
	if err != nil {
		return err
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
	if slices.ContainsFunc(who, func(c Caller) bool {
		q.caller = c
		_, err := trial.decide(after, q, k)
		return err == nil
	}) {
		return nil
	}
	return fmt.Errorf("%w: neither you nor the tenant's first administrator (%s) could call %s any more", ErrLockout, tenant.Administrator, q.operation)
}

// GetPolicy returns the tenant's policy, or a key's: the present one, or a revision by its
// number. A tenant without one has the default policy, whose number is 0.
func (s *Service) GetPolicy(ctx context.Context, c Call, key string, number uint32) (PolicyView, *fsm.State, error) {
	return read(ctx, s, ofPolicy("Get%sPolicy", c, key), func(st *fsm.State, tenant string, k *fsm.Key) (PolicyView, error) {
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
	r := reading{name: fmt.Sprintf(name, "Tenant"), call: c, as: mayRead}
	if key != "" {
		r.name, r.key = fmt.Sprintf(name, "Key"), &key
	}
	return r
}

// ValidatePolicy says what is wrong with a text, if anything.
func (s *Service) ValidatePolicy(ctx context.Context, c Call, text string) (error, *fsm.State, error) {
	return read(ctx, s, reading{name: "ValidatePolicy", call: c, as: mayRead}, func(*fsm.State, string, *fsm.Key) (error, error) {
		_, err := policy.Parse(text)
		return err, nil
	})
}

// Explanation is how a call would be decided, and by what.
type Explanation struct {
	Allowed   bool
	DecidedBy string
	Reason    string // why not
	Steps     []string
}

// ExplainPolicy tells how a call of a principal would be decided, and by what.
func (s *Service) ExplainPolicy(ctx context.Context, c Call, key, principal, operation string, pairs []Pair) (Explanation, *fsm.State, error) {
	r := reading{name: "ExplainPolicy", call: c, as: mayRead}
	if key != "" {
		r.key = &key
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, k *fsm.Key) (Explanation, error) {
		who, err := s.principal(principal)
		if err != nil {
			return Explanation{}, invalid("principal: %v", err)
		}
		if _, err := contextHash(pairs); err != nil {
			return Explanation{}, err
		}
		action, ok := findAction(operation)
		if !ok {
			return Explanation{}, invalid("operation %.80q is unknown; known are %s", operation, actionNames())
		}
		if on := policy.OnTenant; k != nil {
			on = policy.OnKey
			if action.On&on == 0 {
				return Explanation{}, invalid("%s is about the tenant: name no key", operation)
			}
		} else if action.On&on == 0 {
			return Explanation{}, invalid("%s is about a key: name one", operation)
		}
		return s.explain(st, question{caller: who, tenant: tenant, needs: needed(who, action), operation: operation, context: pairs, algorithm: anyAlgorithm}, k), nil
	})
}

func (s *Service) explain(st *fsm.State, q question, k *fsm.Key) Explanation {
	rule, err := s.decide(st, q, k)
	x := Explanation{Allowed: err == nil, DecidedBy: rule}
	step := func(what string, err error) {
		if err != nil {
			what += ": " + err.Error()
		} else {
			what += ": nothing against it"
		}
		x.Steps = append(x.Steps, what)
	}
	step("principal", enabled(st, q.caller))
	step("role "+string(q.caller.Class), q.caller.Class.may(q.needs))
	if t, ok := st.Tenant(q.tenant); ok {
		effect, by := s.policies.decide(st, t, k, q, s.now())
		x.Steps = append(x.Steps, fmt.Sprintf("policies: %s, %s", effect, by))
	}
	if k != nil {
		if g := s.grant(st, q, k); g != nil {
			x.Steps = append(x.Steps, "grants: "+grantRule(g)+" allows it")
			if q.operation == "ReEncryptFrom" {
				x.Steps = append(x.Steps, "ReEncryptFrom lets its holder move the plaintext under a key and context of its own: it amounts to Decrypt")
			}
		} else {
			x.Steps = append(x.Steps, "grants: none allows it")
		}
	}
	if err != nil {
		x.Reason = err.Error()
		return x
	}
	if k != nil && q.needs == mayUse && q.operation != "BindResource" && q.operation != "ReleaseResource" {
		t := target{service: s, q: q, op: fsm.OpOpen, version: k.Current().Version}
		if seals(q.operation) {
			t.op = fsm.OpSeal
		}
		if err := t.usable(st, k); err != nil {
			x.Allowed, x.DecidedBy, x.Reason = false, "state", err.Error()
		}
		step("state of tenant, key, version and context", t.usable(st, k))
	}
	return x
}

// seals tells whether an operation makes something new under a key.
func seals(operation string) bool {
	switch operation {
	case "Decrypt", "ReEncryptFrom", "Verify", "VerifyMac", "GetPublicKey":
		return false
	}
	return true
}

func findAction(name string) (policy.Action, bool) {
	all := policy.Actions()
	i := slices.IndexFunc(all, func(a policy.Action) bool { return a.Name == name })
	if i < 0 {
		return policy.Action{}, false
	}
	return all[i], true
}

func actionNames() []string {
	var out []string
	for _, a := range policy.Actions() {
		out = append(out, a.Name)
	}
	return out
}

// needed is the permission that an action needs of a caller.
func needed(c Caller, a policy.Action) permission {
	switch {
	case a.Name == string(fsm.GrantCreateGrant) || a.Name == string(fsm.GrantRetireGrant):
		return mayDelegate
	case slices.Contains([]string{"FreezeTenant", "ThawTenant", "DisablePrincipal", "EnablePrincipal"}, a.Name):
		return mayGovern
	case a.Group == policy.Read:
		return mayRead
	case a.Group == policy.Use && (c.Class != ClassAdmin || a.Name != "BindResource"):
		return mayUse
	}
	return mayAdminister
}
