package fsm

import (
	"fmt"

	"github.com/google/uuid"
)

// ServiceAlias is the alias of a service's key of a tenant.
func ServiceAlias(service string) string { return ReservedAliasPrefix + service }

// ServiceKey returns the key of a tenant that a service manages.
func (s *State) ServiceKey(tenant, service string) (*Key, bool) {
	a, ok := s.Alias(tenant, ServiceAlias(service))
	if !ok {
		return nil, false
	}
	return s.Key(a.Key)
}

// CreateServiceKey makes the one key that a service manages for a tenant. ErrExists if
// it is there already.
type CreateServiceKey struct {
	ID         ID     `json:"id"`
	Tenant     string `json:"tenant"`
	Service    string `json:"service"`
	Generation uint32 `json:"generation"`
	Token      []byte `json:"token"` // of version 1
}

func (c *CreateServiceKey) validate() error {
	switch {
	case c.ID == uuid.Nil:
		return invalid("key id is missing")
	case !ValidName(c.Service):
		return invalid("service %.80q is no service's name", c.Service)
	}
	if err := ValidAlias(ServiceAlias(c.Service)); err != nil {
		return err
	}
	return validToken(c.Token)
}

func (c *CreateServiceKey) apply(t *tx) (Result, error) {
	if old, ok := t.s.ServiceKey(c.Tenant, c.Service); ok { // before the quota: whoever asks takes it then
		return Result{}, fmt.Errorf("%w: key %s of service %s", ErrExists, old.ID, c.Service)
	}
	if err := t.s.roomForKey(c.Tenant); err != nil {
		return Result{}, err
	}
	if _, ok := t.s.Key(c.ID); ok {
		return Result{}, fmt.Errorf("%w: key %s", ErrExists, c.ID)
	}
	if err := t.s.generationActive(c.Generation); err != nil {
		return Result{}, err
	}
	now := t.seconds()
	t.putAlias(&Alias{Tenant: c.Tenant, Name: ServiceAlias(c.Service), Key: c.ID, Created: now, Updated: now})
	t.putKey(&Key{
		ID: c.ID, Tenant: c.Tenant, Description: "default key of service " + c.Service,
		State: KeyEnabled, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, Origin: OriginKMS, Manager: ManagerService, Service: c.Service,
		Created:  now,
		Versions: []KeyVersion{{Version: 1, Generation: c.Generation, Created: now, Cause: CauseCreated, Token: c.Token}},
	})
	return Result{ID: c.ID.String(), Version: 1}, nil
}
