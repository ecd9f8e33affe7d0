package kms

import (
	"context"
	"fmt"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// TenantView is a tenant as callers see it.
type TenantView struct {
	*fsm.Tenant
	Keys int
}

func tenantView(st *fsm.State, t *fsm.Tenant) TenantView { return TenantView{t, st.TenantKeys(t.Name)} }

// govern is a change of a tenant, or of a principal: what operators do to any, and its
// administrators to their own. byOperator tells which.
func (s *Service) govern(ctx context.Context, name string, c Call, shown fsm.Command, target string,
	command func(st *fsm.State, tenant string, byOperator bool) (fsm.Command, error),
) (fsm.Result, *fsm.State, error) {
	return s.apply(ctx, change{
		name: name, call: c, needs: mayGovern, shown: shown, params: target, target: target,
		build: func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
			if c.Caller.Class == ClassOperator {
				e.DecidedBy = "role"
				if err := enabled(st, c.Caller); err != nil {
					return nil, err
				}
				return command(st, "", true)
			}
			tenant, err := s.ofTenant(st, c, question{caller: c.Caller, needs: mayGovern, operation: name}, e)
			if err != nil {
				return nil, err
			}
			return command(st, tenant, false)
		},
	})
}

// operated is a change of a tenant that only operators make.
func (s *Service) operated(ctx context.Context, name string, c Call, target string, params any, command fsm.Command, wrong error) (*fsm.State, error) {
	x := change{name: name, call: c, needs: mayOperate, shown: command, wrong: wrong, params: params, target: target}
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		e.DecidedBy = "role"
		return command, enabled(st, c.Caller)
	}
	_, st, err := s.apply(ctx, x)
	return st, err
}

// CreateTenant makes a tenant; administrator is the SPIFFE URI of its first key
// administrator.
func (s *Service) CreateTenant(ctx context.Context, c Call, name, administrator string, maxKeys int) (*fsm.State, error) {
	p, wrong := s.principal(administrator)
	switch {
	case wrong != nil:
		wrong = invalid("administrator: %v", wrong)
	case p.Class != ClassAdmin || p.Tenant != name:
		wrong = invalid("administrator %s must be /tenant/%s/admin/<name>", administrator, name)
	}
	return s.operated(ctx, "CreateTenant", c, name, []any{name, administrator, maxKeys},
		&fsm.CreateTenant{Name: name, Administrator: administrator, MaxKeys: maxKeys}, wrong)
}

// SetTenantQuota bounds how many keys a tenant may have; 0: as many as the cluster holds.
func (s *Service) SetTenantQuota(ctx context.Context, c Call, name string, maxKeys int) (*fsm.State, error) {
	return s.operated(ctx, "SetTenantQuota", c, name, []any{name, maxKeys}, &fsm.SetTenantQuota{Name: name, MaxKeys: maxKeys}, nil)
}

// FreezeTenant makes every key of a tenant unusable: on every node by the time it returns.
func (s *Service) FreezeTenant(ctx context.Context, c Call, name string) (*fsm.State, error) {
	_, st, err := s.govern(ctx, "FreezeTenant", c, &fsm.FreezeTenant{}, name, func(_ *fsm.State, own string, byOperator bool) (fsm.Command, error) {
		name, err := ownTenant(name, own, byOperator)
		return &fsm.FreezeTenant{Name: name, ByOperator: byOperator}, err
	})
	return st, err
}

// ThawTenant ends a freeze of the same side's.
func (s *Service) ThawTenant(ctx context.Context, c Call, name string) (*fsm.State, error) {
	_, st, err := s.govern(ctx, "ThawTenant", c, &fsm.ThawTenant{}, name, func(_ *fsm.State, own string, byOperator bool) (fsm.Command, error) {
		name, err := ownTenant(name, own, byOperator)
		return &fsm.ThawTenant{Name: name, ByOperator: byOperator}, err
	})
	return st, err
}

func ownTenant(name, own string, byOperator bool) (string, error) {
	switch {
	case byOperator && name == "":
		return "", invalid("tenant's name is missing")
	case byOperator || name == own:
		return name, nil
	case name == "":
		return own, nil
	}
	return "", fmt.Errorf("%w: that is another tenant", ErrDenied)
}

// DisablePrincipal takes every right from a principal: on every node by the time it
// returns.
func (s *Service) DisablePrincipal(ctx context.Context, c Call, principal string) (*fsm.State, error) {
	_, st, err := s.govern(ctx, "DisablePrincipal", c, &fsm.DisablePrincipal{Principal: principal}, principal, func(_ *fsm.State, tenant string, byOperator bool) (fsm.Command, error) {
		if err := s.ownPrincipal(c, principal, tenant, byOperator); err != nil {
			return nil, err
		}
		return &fsm.DisablePrincipal{Principal: principal, Tenant: tenant}, nil
	})
	return st, err
}

// EnablePrincipal gives a principal back what the same side took.
func (s *Service) EnablePrincipal(ctx context.Context, c Call, principal string) (*fsm.State, error) {
	_, st, err := s.govern(ctx, "EnablePrincipal", c, &fsm.EnablePrincipal{Principal: principal}, principal, func(_ *fsm.State, tenant string, byOperator bool) (fsm.Command, error) {
		if err := s.ownPrincipal(c, principal, tenant, byOperator); err != nil {
			return nil, err
		}
		return &fsm.EnablePrincipal{Principal: principal, Tenant: tenant}, nil
	})
	return st, err
}

// ownPrincipal refuses principals that are not the caller's to disable: nodes, who are
// removed, itself, and, for an administrator, those of other tenants.
func (s *Service) ownPrincipal(c Call, principal, tenant string, byOperator bool) error {
	p, err := s.principal(principal)
	switch {
	case err != nil:
		return invalid("principal: %v", err)
	case p.Class == ClassNode:
		return invalid("%s is a node: it is removed from the cluster, not disabled", principal)
	case principal == c.Caller.Principal:
		return invalid("%s is the caller: nobody disables itself", principal)
	case !byOperator && p.Tenant != tenant:
		return fmt.Errorf("%w: %s does not belong to tenant %s", ErrDenied, principal, tenant)
	}
	return nil
}

// DescribeTenant returns a tenant: its members see their own, operators and the auditors
// of all tenants any.
func (s *Service) DescribeTenant(ctx context.Context, c Call, name string) (TenantView, *fsm.State, error) {
	if name != "" { // also if the client acts for another one
		c.Tenant = name
	}
	find := func(st *fsm.State, name string) (TenantView, error) {
		t, ok := st.Tenant(name)
		if !ok {
			return TenantView{}, fmt.Errorf("%w: tenant %q", fsm.ErrNotFound, name)
		}
		return tenantView(st, t), nil
	}
	r := reading{name: "DescribeTenant", call: c, needs: mayRead}
	if c.Caller.Class == ClassOperator {
		r.needs = mayOperate
		return readOwn(ctx, s, r, func(st *fsm.State) (TenantView, error) { return find(st, c.acting()) })
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, _ *fsm.Key) (TenantView, error) { return find(st, tenant) })
}

// ListTenants returns all tenants by name: for operators and auditors of all tenants.
func (s *Service) ListTenants(ctx context.Context, c Call, limit uint32, marker string) (Page[TenantView], *fsm.State, error) {
	r := reading{name: "ListTenants", call: c, needs: mayOperate}
	if c.Caller.allReading() {
		r.needs = mayRead
	}
	return readOwn(ctx, s, r, func(st *fsm.State) (Page[TenantView], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[TenantView]{}, err
		}
		var items []TenantView
		for _, t := range st.Tenants(after, n+1) {
			items = append(items, tenantView(st, t))
		}
		return page(items, n, func(t TenantView) string { return t.Name }, func(TenantView) int { return recordSize }), nil
	})
}

// ListDisabledPrincipals returns who is disabled: a tenant's members see those that their
// administrators disabled, operators and the auditors of all tenants all.
func (s *Service) ListDisabledPrincipals(ctx context.Context, c Call, limit uint32, marker string) (Page[*fsm.DisabledPrincipal], *fsm.State, error) {
	list := func(st *fsm.State, tenant string) (Page[*fsm.DisabledPrincipal], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[*fsm.DisabledPrincipal]{}, err
		}
		principal, by, _ := strings.Cut(after, " ") // no URI has one
		from := &fsm.DisabledPrincipal{Principal: principal, Tenant: by}
		return page(st.DisabledPrincipals(tenant, from, n+1), n, func(d *fsm.DisabledPrincipal) string { return d.Principal + " " + d.Tenant },
			func(d *fsm.DisabledPrincipal) int { return recordSize + len(d.Principal) + len(d.By) }), nil
	}
	r := reading{name: "ListDisabledPrincipals", operation: "ListPrincipals", call: c, needs: mayRead}
	if c.Caller.Class == ClassOperator || c.Caller.allReading() && c.Tenant == "" {
		if c.Caller.Class == ClassOperator {
			r.needs = mayOperate
		}
		return readOwn(ctx, s, r, func(st *fsm.State) (Page[*fsm.DisabledPrincipal], error) { return list(st, "") })
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, _ *fsm.Key) (Page[*fsm.DisabledPrincipal], error) {
		return list(st, tenant)
	})
}
