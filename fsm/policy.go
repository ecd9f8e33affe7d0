package fsm

import (
	"fmt"
	"unicode/utf8"
)

// Limits of policies.
const (
	MaxPolicyText    = 32 << 10 // bytes
	MaxPolicyHistory = 20       // revisions kept of one policy, the present one included
	// MaxTenantPolicyText is how many bytes the policies of a tenant and of its keys may
	// have together, with the revisions that are kept.
	MaxTenantPolicyText = 64 << 20
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
	// ExpectKey is the revision of the key that was decided on; 0 expects none.
	ExpectKey uint64 `json:"expect_key,omitempty"`
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
	was, ofKey := tenant.Policy, (*Key)(nil)
	if c.Key != (ID{}) {
		k, err := KeyRef{ID: c.Key, Tenant: c.Tenant, Expect: c.ExpectKey}.find(t)
		if err != nil {
			return Result{}, err
		}
		if err := k.manageable(OpEdit); err != nil { // no state forbids it
			return Result{}, err
		}
		was, ofKey = k.Policy, k
	}
	if c.Expect != nil && *c.Expect != was {
		return Result{}, fmt.Errorf("%w: the policy is at revision %d, expected %d (0 is none)", ErrConflict, was, *c.Expect)
	}
	history := t.s.Policies(c.Tenant, c.Key)
	number := uint32(1)
	if n := len(history); n > 0 {
		number = history[n-1].Number + 1
	}
	present := number
	if c.Text == "" {
		present = 0
	}
	if ofKey == nil {
		n := *tenant
		n.Policy = present
		t.putTenant(&n)
	} else {
		k := *ofKey
		k.Policy = present
		t.putKey(&k)
	}
	if err := t.roomForPolicy(c, history); err != nil {
		return Result{}, err
	}
	t.putPolicy(&Policy{Tenant: c.Tenant, Key: c.Key, Number: number, Text: c.Text, By: t.entry.Principal, Created: t.seconds()})
	return Result{ID: c.Tenant, Version: number}, nil
}

// roomForPolicy drops the oldest revisions of a policy until there is room for the next: for
// their number, and for what its tenant's policies may take together. So a policy can be
// replaced by one of its size at any time.
func (t *tx) roomForPolicy(c *PutPolicy, history []*Policy) error {
	over := func() bool {
		return c.Text != "" && t.s.count(countPolicyText+c.Tenant, ID{})+len(c.Text) > MaxTenantPolicyText
	}
	for ; len(history) >= MaxPolicyHistory || len(history) > 0 && over(); history = history[1:] {
		t.dropPolicy(history[0])
	}
	if over() {
		return fmt.Errorf("%w: the policies of tenant %s and its keys, with the revisions that are kept, take %d bytes together, at most %d",
			ErrLimit, c.Tenant, t.s.count(countPolicyText+c.Tenant, ID{})+len(c.Text), MaxTenantPolicyText)
	}
	return nil
}
