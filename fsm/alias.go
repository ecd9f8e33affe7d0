package fsm

import (
	"fmt"
	"strings"
)

// Limits and prefixes of aliases.
const (
	MaxAliases     = 50  // a key
	MaxAliasSuffix = 256 // characters after the prefix, at least 1

	AliasPrefix         = "alias/"
	ReservedAliasPrefix = "alias/service/" // names service-managed keys
)

// Alias is a second name of a key, unique in its tenant.
type Alias struct {
	Tenant   string `json:"tenant"`
	Name     string `json:"name"` // with the prefix alias/
	Key      ID     `json:"key"`
	Created  int64  `json:"created"` // unix seconds
	Updated  int64  `json:"updated"` // unix seconds
	Revision uint64 `json:"revision"`
}

// ValidAlias says what is wrong with an alias name, if anything.
func ValidAlias(name string) error {
	suffix, ok := strings.CutPrefix(name, AliasPrefix)
	if !ok {
		return invalid("alias %q: must begin with %s", name, AliasPrefix)
	}
	if suffix == "" || len(suffix) > MaxAliasSuffix {
		return invalid("alias has %d characters after %s: must be 1 to %d", len(suffix), AliasPrefix, MaxAliasSuffix)
	}
	for _, c := range []byte(suffix) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte(":/_-", c) < 0 {
			return invalid("alias %q: only a-z A-Z 0-9 : / _ - may follow %s", name, AliasPrefix)
		}
	}
	return nil
}

func validCustomerAlias(name string) error {
	if strings.HasPrefix(name, ReservedAliasPrefix) {
		return invalid("alias %q: the prefix %s is reserved", name, ReservedAliasPrefix)
	}
	return ValidAlias(name)
}

// AliasTarget is what CreateAlias and UpdateAlias have in common.
type AliasTarget struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	Key    ID     `json:"key"`
	Expect uint64 `json:"expect,omitempty"` // revision of the key; 0 expects none
}

func (c AliasTarget) validate() error { return validCustomerAlias(c.Name) }

// point checks the target key and makes the alias name it. The revision of a key
// that gets or loses an alias is raised: its names are part of what a decision
// about it may see.
func (c AliasTarget) point(t *tx, created int64) (Result, error) {
	n := t.s.countAliases(c.Key)
	ref := KeyRef{ID: c.Key, Tenant: c.Tenant, Expect: c.Expect}
	return ref.change(t, OpEdit, func(k *Key) error {
		if n >= MaxAliases {
			return fmt.Errorf("%w: key %s has %d aliases", ErrLimit, k.ID, n)
		}
		t.putAlias(&Alias{Tenant: k.Tenant, Name: c.Name, Key: c.Key, Created: created, Updated: t.seconds()})
		return nil
	})
}

// CreateAlias gives a key another name.
type CreateAlias struct{ AliasTarget }

func (c *CreateAlias) apply(t *tx) (Result, error) {
	if _, ok := t.s.Alias(c.Tenant, c.Name); ok {
		return Result{}, fmt.Errorf("%w: %s", ErrExists, c.Name)
	}
	return c.point(t, t.seconds())
}

// UpdateAlias makes an alias name another key, whichever it names.
type UpdateAlias struct{ AliasTarget }

func (c *UpdateAlias) apply(t *tx) (Result, error) {
	old, ok := t.s.Alias(c.Tenant, c.Name)
	if !ok {
		return Result{}, fmt.Errorf("%w: %s", ErrNotFound, c.Name)
	}
	return c.move(t, old)
}

// move makes an alias that is there name the target.
func (c AliasTarget) move(t *tx, old *Alias) (Result, error) {
	if old.Key == c.Key {
		return KeyRef{ID: c.Key, Tenant: c.Tenant, Expect: c.Expect}.change(t, OpEdit, func(*Key) error { return nil })
	}
	result, err := c.point(t, old.Created)
	if err == nil {
		t.touchKey(old.Key)
	}
	return result, err
}

// MoveAlias makes an alias name another key than the one that it was decided to take it from.
type MoveAlias struct {
	AliasTarget
	From KeyRef `json:"from"` // the key that loses it; in the same tenant
}

func (c *MoveAlias) validate() error {
	if err := c.From.validate(); err != nil {
		return err
	}
	return c.AliasTarget.validate()
}

func (c *MoveAlias) apply(t *tx) (Result, error) {
	old, ok := t.s.Alias(c.Tenant, c.Name)
	if !ok {
		return Result{}, fmt.Errorf("%w: %s", ErrNotFound, c.Name)
	}
	if old.Key != c.From.ID {
		return Result{}, fmt.Errorf("%w: %s names key %s, expected %s", ErrConflict, c.Name, old.Key, c.From.ID)
	}
	if _, err := c.From.find(t); err != nil {
		return Result{}, err
	}
	return c.move(t, old)
}

// DeleteAlias removes an alias; the key stays.
type DeleteAlias struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	Expect uint64 `json:"expect,omitempty"` // revision of the key; 0 expects none
}

func (c *DeleteAlias) validate() error { return validCustomerAlias(c.Name) }

func (c *DeleteAlias) apply(t *tx) (Result, error) {
	old, ok := t.s.Alias(c.Tenant, c.Name)
	if !ok {
		return Result{}, fmt.Errorf("%w: %s", ErrNotFound, c.Name)
	}
	if k, ok := t.s.Key(old.Key); ok && c.Expect != 0 && c.Expect != k.Revision {
		return Result{}, fmt.Errorf("%w: key %s is at revision %d, expected %d", ErrConflict, k.ID, k.Revision, c.Expect)
	}
	t.dropAlias(old)
	t.touchKey(old.Key)
	return Result{ID: old.Key.String()}, nil
}
