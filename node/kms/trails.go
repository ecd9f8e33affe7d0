package kms

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// The calls that read the audit trail. No policy decides about them: a tenant's
// administrators do not hide from its auditors.
const (
	DescribeTrails = "DescribeTrails"
	ReadTrail      = "ReadTrail"
	SearchRecords  = "SearchRecords"
)

// trailNeeds says which permission each of them needs.
var trailNeeds = map[string]permission{DescribeTrails: maySeeTrails, ReadTrail: mayAudit, SearchRecords: mayAudit}

// AuditTrail lets a caller read the audit trail by one of the calls, and records that; target
// is what it looks for. tenant is the one whose records it may see; empty: all. Auditors of a
// tenant see records of that tenant alone, and no files.
func (s *Service) AuditTrail(ctx context.Context, name string, c Call, target string) (tenant string, st *fsm.State, err error) {
	e := begin(name, c)
	e.Tenant, e.Target, e.DecidedBy = cmp.Or(c.Caller.Tenant, c.Tenant), target, "role"
	err = s.admit(ctx, c, trailNeeds[name], limit.Control, &e)
	if err == nil {
		tenant, err = c.trailTenant(name)
	}
	if err == nil {
		st, err = s.fresher(ctx, c)
	}
	if err != nil {
		return "", nil, s.refuse(e, err)
	}
	return tenant, st, s.succeed(e, st)
}

// fresher is the present state, as new as the call wants it, in which its principal is enabled.
func (s *Service) fresher(ctx context.Context, c Call) (*fsm.State, error) {
	if err := s.confirm(ctx, c); err != nil {
		return nil, err
	}
	if _, err := s.await(ctx, c.IndexToken); err != nil {
		return nil, err
	}
	st, err := s.present()
	if err != nil {
		return nil, err
	}
	return st, enabled(st, c.Caller)
}

// trailTenant is the tenant whose records a call reads.
func (c Call) trailTenant(name string) (string, error) {
	own := c.Caller.Tenant
	switch {
	case own == "":
		return c.Tenant, nil
	case name == ReadTrail:
		return "", fmt.Errorf("%w: the files have records of all tenants, which auditors of all tenants may read; %s may search those of tenant %s", ErrDenied, c.Caller.Principal, own)
	case c.Tenant != "" && c.Tenant != own:
		return "", fmt.Errorf("%w: %s may not read records of tenant %s", ErrDenied, c.Caller.Principal, c.Tenant)
	}
	return own, nil
}

// StillAudits is nil while who reads on may go on.
func (s *Service) StillAudits(c Caller) error {
	st, err := s.present()
	if err != nil {
		return err
	}
	return enabled(st, c)
}

// KeyID is how records name a key that is named by its id or ARN, or by an alias or its ARN.
func KeyID(name string) string {
	rest, ok := strings.CutPrefix(name, arnPrefix)
	if parts := strings.SplitN(rest, ":", 3); ok && len(parts) == 3 { // cluster, tenant; an alias may have colons
		return strings.TrimPrefix(parts[2], "key/")
	}
	return name
}

// nameKey tells a record which key a call names, before anybody has looked whether there is one:
// what was wanted is recorded also of a call that is refused.
func nameKey(e *audit.Event, key string) {
	if id, alias := keyNames(key); id != "" || alias != "" {
		e.KeyID, e.Alias = id, alias
	}
}

// nameDestination is nameKey for the key that a ciphertext is to be moved to.
func nameDestination(e *audit.Event, key string) {
	e.DestinationKeyID, e.DestinationAlias = keyNames(key)
}

// keyNames is a key's id, or its alias, if the name is one.
func keyNames(name string) (id, alias string) {
	if len(name) > maxReference {
		return "", ""
	}
	name = KeyID(name)
	if _, ok := parseID(name); ok {
		return name, ""
	}
	if strings.HasPrefix(name, fsm.AliasPrefix) && fsm.ValidAlias(name) == nil {
		return "", name
	}
	return "", ""
}
