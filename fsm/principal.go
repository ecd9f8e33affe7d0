package fsm

import (
	"fmt"
	"strings"
)

// MaxDisabled bounds the principals that the operators, or one tenant, have disabled at a
// time: they are meant to be few, until their certificates have ended. No side can use up
// what another has.
const MaxDisabled = 10_000

// DisabledPrincipal is a principal that may do nothing.
type DisabledPrincipal struct {
	Principal string `json:"principal"`        // SPIFFE URI
	Tenant    string `json:"tenant,omitempty"` // whose administrator disabled it; empty: an operator
	By        string `json:"by"`               // SPIFFE URI
	Since     int64  `json:"since"`            // unix seconds
	Revision  uint64 `json:"revision"`
}

// Disabled returns how a principal was disabled, by an operator or by its tenant.
func (s *State) Disabled(principal string) (*DisabledPrincipal, bool) {
	var found *DisabledPrincipal
	if s.disabled.len() == 0 {
		return nil, false
	}
	s.disabled.tree.Ascend(&DisabledPrincipal{Principal: principal}, func(d *DisabledPrincipal) bool {
		if d.Principal == principal {
			found = d
		}
		return false
	})
	return found, found != nil
}

// DisabledPrincipals returns up to limit of them by principal and tenant, beginning
// behind after, those that a tenant disabled; of all if tenant is empty.
func (s *State) DisabledPrincipals(tenant string, after *DisabledPrincipal, limit int) []*DisabledPrincipal {
	var out []*DisabledPrincipal
	s.disabled.tree.Ascend(after, func(d *DisabledPrincipal) bool {
		if len(out) >= limit {
			return false
		}
		if behind := d.Principal != after.Principal || d.Tenant != after.Tenant; behind && (tenant == "" || d.Tenant == tenant) {
			out = append(out, d)
		}
		return true
	})
	return out
}

// DisablePrincipal takes every right from a principal, until it is enabled again.
type DisablePrincipal struct {
	Principal string `json:"principal"`
	Tenant    string `json:"tenant,omitempty"` // whose administrator asks; empty: an operator
}

func (c *DisablePrincipal) validate() error { return validDisabled(c.Principal, c.Tenant) }

func validDisabled(principal, tenant string) error {
	if tenant != "" {
		if err := validTenant(tenant); err != nil {
			return err
		}
	}
	return validPrincipal("principal", principal)
}

func (c *DisablePrincipal) apply(t *tx) (Result, error) {
	if _, ok := t.s.disabled.tree.Get(&DisabledPrincipal{Principal: c.Principal, Tenant: c.Tenant}); ok {
		return Result{ID: c.Principal}, nil
	}
	if t.s.count(countDisabled+c.Tenant, ID{}) >= MaxDisabled {
		return Result{}, fmt.Errorf("%w: %d principals are disabled", ErrLimit, MaxDisabled)
	}
	t.putDisabled(&DisabledPrincipal{Principal: c.Principal, Tenant: c.Tenant, By: t.entry.Principal, Since: t.seconds()})
	return Result{ID: c.Principal}, nil
}

// EnablePrincipal gives a principal back what the same side took.
type EnablePrincipal struct {
	Principal string `json:"principal"`
	Tenant    string `json:"tenant,omitempty"`
}

func (c *EnablePrincipal) validate() error { return validDisabled(c.Principal, c.Tenant) }

func (c *EnablePrincipal) apply(t *tx) (Result, error) {
	d, ok := t.s.disabled.tree.Get(&DisabledPrincipal{Principal: c.Principal, Tenant: c.Tenant})
	if !ok {
		side := ""
		if _, off := t.s.Disabled(c.Principal); off {
			side = " by your side"
		}
		return Result{}, fmt.Errorf("%w: principal %s is not disabled%s", ErrNotFound, c.Principal, side)
	}
	t.dropDisabled(d)
	return Result{ID: c.Principal}, nil
}

func validPrincipal(what, uri string) error {
	const scheme = "spiffe://"
	if !strings.HasPrefix(uri, scheme) || len(uri) > MaxPrincipal {
		return invalid("%s %.80q: must be a SPIFFE URI (%s<trust domain>/…) of at most %d bytes", what, uri, scheme, MaxPrincipal)
	}
	return nil
}
