package fsm

import (
	"fmt"
	"unicode/utf8"
)

// Limits of policies.
const (
	MaxPolicyText    = 32 << 10 // bytes
	MaxPolicyHistory = 20       // revisions kept of one policy, the present one included
)

// Policy is one revision of a tenant's or a key's policy. Its text is Cedar, opaque
// here: it is validated where it is proposed and read where it is decided by.
type Policy struct {
	Tenant   string `json:"tenant"`
	Key      ID     `json:"key,omitzero"`   // zero: the tenant's
	Number   uint32 `json:"number"`         // counts the revisions of this policy from 1
	Text     string `json:"text,omitempty"` // empty: the policy was deleted
	By       string `json:"by"`             // SPIFFE URI
	Created  int64  `json:"created"`        // unix seconds
	Revision uint64 `json:"revision"`
}

// Policy returns a revision of a tenant's policy, or of a key's.
func (s *State) Policy(tenant string, key ID, number uint32) (*Policy, bool) {
	return s.policies.tree.Get(&Policy{Tenant: tenant, Key: key, Number: number})
}

// Policies returns the revisions that are kept of a tenant's policy, or of a key's, the
// oldest first: at most MaxPolicyHistory.
func (s *State) Policies(tenant string, key ID) []*Policy {
	var out []*Policy
	s.policies.tree.Ascend(&Policy{Tenant: tenant, Key: key}, func(p *Policy) bool {
		if p.Tenant != tenant || p.Key != key {
			return false
		}
		out = append(out, p)
		return true
	})
	return out
}

// PutPolicy replaces a tenant's policy, or a key's.
type PutPolicy struct {
	Tenant string  `json:"tenant"`
	Key    ID      `json:"key,omitzero"`     // zero: the tenant's
	Text   string  `json:"text,omitempty"`   // empty: none any more
	Expect *uint32 `json:"expect,omitempty"` // number of the present revision, 0 for none; nil expects nothing
}

func (c *PutPolicy) validate() error {
	switch {
	case len(c.Text) > MaxPolicyText:
		return invalid("policy of %d bytes, at most %d", len(c.Text), MaxPolicyText)
	case !utf8.ValidString(c.Text):
		return invalid("policy is not valid UTF-8")
	}
	return nil
}

func (c *PutPolicy) apply(t *tx) (Result, error) {
	tenant, ok := t.s.Tenant(c.Tenant)
	if !ok {
		return Result{}, fmt.Errorf("%w: tenant %q", ErrNotFound, c.Tenant)
	}
	history := t.s.Policies(c.Tenant, c.Key)
	number := uint32(1)
	if n := len(history); n > 0 {
		number = history[n-1].Number + 1
	}
	was := tenant.Policy
	if k, ok := t.s.Key(c.Key); ok {
		was = k.Policy
	}
	if c.Expect != nil && *c.Expect != was {
		return Result{}, fmt.Errorf("%w: the policy is at revision %d, expected %d (0 is none)", ErrConflict, was, *c.Expect)
	}
	present := number
	if c.Text == "" {
		present = 0
	}
	if c.Key == (ID{}) {
		n := *tenant
		n.Policy = present
		t.putTenant(&n)
	} else {
		old, err := KeyRef{ID: c.Key, Tenant: c.Tenant}.find(t)
		if err != nil {
			return Result{}, err
		}
		if err := old.manageable(OpEdit); err != nil { // no state forbids it
			return Result{}, err
		}
		k := *old
		k.Policy = present
		t.putKey(&k)
	}
	for i := 0; i <= len(history)-MaxPolicyHistory; i++ {
		t.dropPolicy(history[i])
	}
	t.putPolicy(&Policy{Tenant: c.Tenant, Key: c.Key, Number: number, Text: c.Text, By: t.entry.Principal, Created: t.seconds()})
	return Result{ID: c.Tenant, Version: number}, nil
}
