package fsm

import (
	"fmt"
	"unicode/utf8"
)

// Limits of resource bindings.
const (
	MaxBindings       = 100_000   // a key
	MaxTenantBindings = 1_000_000 // all keys of a tenant
	MaxResource       = 512       // bytes of a resource's name
)

// Binding says that a key protects a resource: a volume, a bucket, a database.
type Binding struct {
	Key      ID     `json:"key"`
	Resource string `json:"resource"`
	By       string `json:"by"`      // SPIFFE URI of who registered it
	Created  int64  `json:"created"` // unix seconds
	Revision uint64 `json:"revision"`
}

// Binding returns a key's binding to a resource.
func (s *State) Binding(key ID, resource string) (*Binding, bool) {
	return s.bindings.tree.Get(&Binding{Key: key, Resource: resource})
}

// Bindings returns up to limit bindings of a key by resource, beginning behind after.
func (s *State) Bindings(key ID, after string, limit int) []*Binding {
	var out []*Binding
	s.bindings.tree.Ascend(&Binding{Key: key, Resource: after}, func(b *Binding) bool {
		if b.Key != key || len(out) >= limit {
			return false
		}
		if b.Resource != after {
			out = append(out, b)
		}
		return true
	})
	return out
}

// CountBindings is how many resources a key protects.
func (s *State) CountBindings(key ID) int { return s.count(countBindings, key) }

// BindResource registers a resource that a key protects. Registered twice it is
// registered.
type BindResource struct {
	KeyRef
	Resource string `json:"resource"`
}

func (c *BindResource) validate() error {
	if err := validResource(c.Resource); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *BindResource) apply(t *tx) (Result, error) {
	k, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	if err := k.Allows(OpEdit); err != nil { // manageable is not asked: services bind their own keys too
		return Result{}, err
	}
	if _, ok := t.s.Binding(k.ID, c.Resource); ok {
		return Result{ID: k.ID.String()}, nil
	}
	if t.s.CountBindings(k.ID) >= MaxBindings {
		return Result{}, fmt.Errorf("%w: key %s protects %d resources", ErrLimit, k.ID, MaxBindings)
	}
	if t.s.count(countTenantBindings+k.Tenant, ID{}) >= MaxTenantBindings {
		return Result{}, fmt.Errorf("%w: the keys of tenant %s protect %d resources", ErrLimit, k.Tenant, MaxTenantBindings)
	}
	t.putBinding(&Binding{Key: k.ID, Resource: c.Resource, By: t.entry.Principal, Created: t.seconds()})
	return Result{ID: k.ID.String()}, nil
}

// ReleaseResource ends a binding: the resource is gone, or another key protects it.
type ReleaseResource struct {
	KeyRef
	Resource string `json:"resource"`
	By       string `json:"by,omitempty"` // only if this principal registered it; empty: whoever did
}

func (c *ReleaseResource) validate() error {
	if err := validResource(c.Resource); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *ReleaseResource) apply(t *tx) (Result, error) {
	k, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	b, ok := t.s.Binding(k.ID, c.Resource)
	if !ok || c.By != "" && c.By != b.By {
		return Result{}, fmt.Errorf("%w: key %s has no binding to %q", ErrNotFound, k.ID, c.Resource)
	}
	t.dropBinding(b)
	return Result{ID: k.ID.String()}, nil
}

func validResource(name string) error {
	if name == "" || len(name) > MaxResource || !utf8.ValidString(name) {
		return invalid("resource has %d bytes: must be 1 to %d of valid UTF-8", len(name), MaxResource)
	}
	return nil
}
