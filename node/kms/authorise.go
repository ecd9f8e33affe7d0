package kms

import (
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

// question is what decides whether a call is allowed: who asks for what.
type question struct {
	caller    Caller
	tenant    string // whose key it is, or the tenant that is asked for
	needs     permission
	operation string // as policies and grants name it
	context   []Pair // encryption context
	algorithm hsm.Algorithm
	ofKey     bool   // it is about a key, whether or not there is one
	ends      fsm.ID // the grant that it would end: no other grant allows that
	explained bool   // the tenant itself asks how it is decided, and is told why
}

// decide answers a question about a key, or about the tenant itself if k is nil, from
// one state: the rule that allows, or an error that wraps ErrDenied and names what
// forbids. In this order: the principal, its role, what a service is held to (before
// anything that depends on the key, so that the answer tells nothing of it), what policies
// forbid, what policies permit, grants. Policies are tenants': who audits them all for the
// cluster is held to none.
func (s *Service) decide(st *fsm.State, q question, k *fsm.Key) (rule string, err error) {
	q.ofKey = q.ofKey || k != nil
	if rule, err := q.atAll(st); err != nil {
		return rule, err
	}
	tenant, ok := st.Tenant(q.tenant)
	if !ok {
		return "tenant", s.absent(q, fmt.Errorf("%w: tenant %q", fsm.ErrNotFound, q.tenant))
	}
	if q.caller.allReading() && q.needs == mayRead {
		return "auditor of all tenants", nil
	}
	effect, by := s.policies.decide(st, tenant, k, q, s.now())
	if effect == policy.Forbidden {
		return by, s.absent(q, fmt.Errorf("%w: %s forbids %s", ErrDenied, by, q.operation))
	}
	if k != nil && k.Manager == fsm.ManagerService {
		switch own := q.caller.Class == ClassService && q.caller.Name == k.Service; {
		case own && (q.needs == mayUse || q.operation == string(fsm.GrantDescribeKey)):
			return "service key", nil
		case q.needs == mayUse:
			return "service key", s.absent(q, fmt.Errorf("%w: the key is for service %s alone", ErrDenied, k.Service))
		}
	}
	if effect == policy.Permitted && !q.caller.foreign(q.tenant) {
		return by, nil
	}
	if k != nil {
		if g := s.grant(st, q, k); g != nil {
			return grantRule(g), nil
		}
	}
	if q.caller.foreign(q.tenant) {
		return "tenant", s.absent(q, fmt.Errorf("%w: no grant allows %s to %s with this encryption context", ErrDenied, q.operation, q.caller.Principal))
	}
	return "no rule", fmt.Errorf("%w: no policy and no grant permits %s to %s", ErrDenied, q.operation, q.caller.Principal)
}

// atAll is what holds whatever there is: who may nothing is told so, whether or not there
// is such a key.
func (q question) atAll(st *fsm.State) (rule string, err error) {
	if err := enabled(st, q.caller); err != nil {
		return "principal", err
	}
	if err := q.caller.may(q.needs); err != nil {
		return "role", err
	}
	if q.caller.itself && !slices.Contains(trailOperations, fsm.GrantOperation(q.operation)) {
		return "role", fmt.Errorf("%w: a node uses keys for its audit trail alone, which needs no %s", ErrDenied, q.operation)
	}
	if q.ofKey {
		return "service", q.heldToContext()
	}
	return "", nil
}

// absent is how a caller of another tenant is refused, whether there is something or not;
// its own tenant's callers are told why, and so is this node itself.
func (s *Service) absent(q question, own error) error {
	if own != nil && (q.explained || q.caller.itself || !q.caller.foreign(q.tenant)) {
		return own
	}
	if q.ofKey {
		return fmt.Errorf("%w: %s may not %s with that key of tenant %s: no grant of yours allows it with this encryption context", ErrDenied, q.caller.Principal, q.operation, q.tenant)
	}
	return fmt.Errorf("%w: %s may not %s for tenant %s", ErrDenied, q.caller.Principal, q.operation, q.tenant)
}

// enabled is nil unless the principal was disabled.
func enabled(st *fsm.State, c Caller) error {
	d, off := st.Disabled(c.Principal)
	switch {
	case !off:
		return nil
	case d.Tenant != "":
		return fmt.Errorf("%w: by an administrator of tenant %s", fsm.ErrPrincipalDisabled, d.Tenant)
	}
	return fmt.Errorf("%w: by a cluster operator", fsm.ErrPrincipalDisabled)
}

// heldToContext: a service uses keys with an encryption context that says for which
// tenant, and for what.
func (q question) heldToContext() error {
	if q.caller.Class != ClassService || q.needs != mayUse {
		return nil
	}
	lacks := ""
	switch {
	case q.algorithm.Scheme() == hsm.SchemeOAEP:
		lacks = string(q.algorithm)
	case !hasContext(q.operation):
		lacks = q.operation
	}
	if lacks != "" {
		return fmt.Errorf("%w: a service is held to an encryption context, which %s has not", ErrDenied, lacks)
	}
	if !slices.Contains(q.context, Pair{fsm.ContextTenant, q.tenant}) {
		return fmt.Errorf("%w: a service must call with the encryption context %s=%s", ErrDenied, fsm.ContextTenant, q.tenant)
	}
	if !slices.ContainsFunc(q.context, func(p Pair) bool { return p.Key == fsm.ContextResource && p.Value != "" }) {
		return fmt.Errorf("%w: a service must call with an encryption context that has %s=…", ErrDenied, fsm.ContextResource)
	}
	return nil
}

// grant finds a grant that allows; nil if there is none. Constraints are for what has an
// encryption context.
func (s *Service) grant(st *fsm.State, q question, k *fsm.Key) *fsm.Grant {
	context, at := tagsOf(q.context), s.wall(st)
	var found *fsm.Grant
	fits := func(g *fsm.Grant) bool {
		if q.within(g, context, at) {
			found = g
		}
		return found == nil
	}
	if q.needs == mayUse {
		st.GrantsFitting(q.caller.Principal, k.ID, context, fits)
	} else {
		st.GrantsFor(q.caller.Principal, k.ID, fits)
	}
	return found
}

// within tells whether a grant of the caller's allows what is asked. Constraints are about
// the encryption context: what has none is not held to them. Whoever may use the key for
// a resource may register that.
func (q question) within(g *fsm.Grant, context []fsm.Tag, at int64) bool {
	op := fsm.GrantOperation(q.operation)
	switch {
	case op == "BindResource", op == "ReleaseResource":
		return slices.ContainsFunc(g.Operations, func(op fsm.GrantOperation) bool {
			return usesKey(op) && g.Allows(op, context, at)
		})
	case op == fsm.GrantRetireGrant && q.ends != (fsm.ID{}) && q.ends != g.ID:
		return false
	case q.needs != mayUse:
		return g.Holds(op, at)
	}
	return g.Allows(op, context, at)
}

// usesKey tells whether an operation of grants is cryptography.
func usesKey(op fsm.GrantOperation) bool {
	return op != fsm.GrantCreateGrant && op != fsm.GrantRetireGrant && op != fsm.GrantDescribeKey
}

// tagsOf is an encryption context as the state knows pairs.
func tagsOf(pairs []Pair) []fsm.Tag {
	out := make([]fsm.Tag, len(pairs))
	for i, p := range pairs {
		out[i] = fsm.Tag(p)
	}
	return out
}

// lookUp finds a key that a call names and asks whether the caller may: existence, then
// authorisation. State is for whoever does something with it.
func (s *Service) lookUp(st *fsm.State, ref reference, q question) (k *fsm.Key, rule string, err error) {
	q.tenant, q.ofKey = ref.tenant, true
	if k, err = ref.resolve(st); err == nil {
		rule, err = s.decide(st, q, k)
		return k, rule, err
	}
	if rule, denied := q.atAll(st); denied != nil {
		return nil, rule, denied
	}
	return nil, "tenant", s.absent(q, err)
}
