package fsm

import "fmt"

// DefaultTenant exists from the first entry on.
const DefaultTenant = "default"

// MaxTenants bounds the tenants of a cluster.
const MaxTenants = 100_000

// Tenant owns keys. Everything that belongs to somebody names its tenant.
type Tenant struct {
	Name          string `json:"name"`
	Created       int64  `json:"created"`       // unix seconds
	Administrator string `json:"administrator"` // SPIFFE URI of its first key administrator
	Revision      uint64 `json:"revision"`
	// A frozen tenant's keys are unusable. The operators' freeze and the tenant's own are
	// two: nobody thaws the other's.
	FrozenByOperator bool   `json:"frozen_by_operator,omitempty"`
	FrozenByTenant   bool   `json:"frozen_by_tenant,omitempty"`
	MaxKeys          int    `json:"max_keys,omitempty"` // 0: as many as the cluster holds
	Policy           uint32 `json:"policy,omitempty"`   // number of its present policy; 0: none
}

// Thawed is nil unless the tenant is frozen.
func (n *Tenant) Thawed() error {
	switch {
	case n.FrozenByOperator:
		return fmt.Errorf("%w: %s, by a cluster operator", ErrFrozen, n.Name)
	case n.FrozenByTenant:
		return fmt.Errorf("%w: %s, by its administrator", ErrFrozen, n.Name)
	}
	return nil
}

// Tenant returns a tenant by name.
func (s *State) Tenant(name string) (*Tenant, bool) { return s.tenants.tree.Get(&Tenant{Name: name}) }

// Tenants returns up to limit tenants by name, beginning behind after.
func (s *State) Tenants(after string, limit int) []*Tenant {
	var out []*Tenant
	s.tenants.tree.Ascend(&Tenant{Name: after}, func(n *Tenant) bool {
		if len(out) >= limit {
			return false
		}
		if n.Name != after {
			out = append(out, n)
		}
		return true
	})
	return out
}

// TenantKeys is how many keys a tenant has.
func (s *State) TenantKeys(name string) int { return s.count(countKeys+name, ID{}) }

// roomForKey tells whether a tenant may have one more key.
func (s *State) roomForKey(tenant string) error {
	if s.KeyCount() >= MaxKeys {
		return fmt.Errorf("%w: the cluster has %d keys", ErrLimit, MaxKeys)
	}
	n, ok := s.Tenant(tenant)
	if !ok {
		return fmt.Errorf("%w: tenant %q", ErrNotFound, tenant)
	}
	if have := s.TenantKeys(tenant); n.MaxKeys != 0 && have >= n.MaxKeys {
		return fmt.Errorf("%w: tenant %s has %d keys, its quota is %d", ErrLimit, tenant, have, n.MaxKeys)
	}
	return nil
}

// CreateTenant makes a tenant.
type CreateTenant struct {
	Name          string `json:"name"`
	Administrator string `json:"administrator"` // SPIFFE URI
	MaxKeys       int    `json:"max_keys,omitempty"`
}

func (c *CreateTenant) validate() error {
	if err := validTenant(c.Name); err != nil {
		return err
	}
	if err := validPrincipal("administrator", c.Administrator); err != nil {
		return err
	}
	return validQuota(c.MaxKeys)
}

func validTenant(name string) error {
	if !ValidName(name) {
		return invalid("tenant %.80q: a name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit", name)
	}
	return nil
}

func validQuota(keys int) error {
	if keys < 0 || keys > MaxKeys {
		return invalid("quota of %d keys: must be 0 (none) to %d", keys, MaxKeys)
	}
	return nil
}

func (c *CreateTenant) apply(t *tx) (Result, error) {
	if _, ok := t.s.Tenant(c.Name); ok {
		return Result{}, fmt.Errorf("%w: tenant %s", ErrExists, c.Name)
	}
	if t.s.tenants.len() >= MaxTenants {
		return Result{}, fmt.Errorf("%w: the cluster has %d tenants", ErrLimit, MaxTenants)
	}
	t.putTenant(&Tenant{Name: c.Name, Created: t.seconds(), Administrator: c.Administrator, MaxKeys: c.MaxKeys})
	return Result{ID: c.Name}, nil
}

// changeTenant lets f edit a copy of a tenant and stores it.
func (t *tx) changeTenant(name string, f func(n *Tenant)) (Result, error) {
	old, ok := t.s.Tenant(name)
	if !ok {
		return Result{}, fmt.Errorf("%w: tenant %q", ErrNotFound, name)
	}
	n := *old
	f(&n)
	t.putTenant(&n)
	return Result{ID: name}, nil
}

// SetTenantQuota bounds how many keys a tenant may have. What it has stays.
type SetTenantQuota struct {
	Name    string `json:"name"`
	MaxKeys int    `json:"max_keys"` // 0: as many as the cluster holds
}

func (c *SetTenantQuota) validate() error { return validQuota(c.MaxKeys) }

func (c *SetTenantQuota) apply(t *tx) (Result, error) {
	return t.changeTenant(c.Name, func(n *Tenant) { n.MaxKeys = c.MaxKeys })
}

// FreezeTenant makes every key of a tenant unusable, those that services manage too.
type FreezeTenant struct {
	Name       string `json:"name"`
	ByOperator bool   `json:"by_operator"`
}

func (c *FreezeTenant) validate() error { return nil }

func (c *FreezeTenant) apply(t *tx) (Result, error) { return t.freeze(c.Name, c.ByOperator, true) }

// ThawTenant ends a freeze of the same kind.
type ThawTenant struct {
	Name       string `json:"name"`
	ByOperator bool   `json:"by_operator"`
}

func (c *ThawTenant) validate() error { return nil }

func (c *ThawTenant) apply(t *tx) (Result, error) { return t.freeze(c.Name, c.ByOperator, false) }

func (t *tx) freeze(name string, byOperator, on bool) (Result, error) {
	return t.changeTenant(name, func(n *Tenant) {
		if byOperator {
			n.FrozenByOperator = on
		} else {
			n.FrozenByTenant = on
		}
	})
}
