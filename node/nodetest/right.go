package nodetest

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// Right is something that a use may need besides the key: a grant, or that its principal
// or its tenant may do anything at all.
type Right interface {
	name() string
	// held is nil if a state gives the right, with a key, at a time.
	held(s *fsm.State, key fsm.ID, now time.Time) error
	// give and take are what changes it; give is of a kind of history.
	give() (history.Kind, fsm.Command)
	take() fsm.Command
}

// errLacking is the refusal of a use for want of a right.
type errLacking struct {
	right string
	cause error
}

func (e errLacking) Error() string { return e.right + ": " + e.cause.Error() }

func (e errLacking) Unwrap() error { return e.cause }

// Give gives a right through the nodes that next names.
func (c *Client) Give(r Right, next func() *Node) error {
	kind, command := r.give()
	return c.write(kind, r.name(), command, next)
}

// Take takes a right.
func (c *Client) Take(r Right, next func() *Node) error {
	return c.write(history.Forbid, r.name(), r.take(), next)
}

// Grant is one grant: its grantee uses the key with an encryption context that no other
// grant fits.
type Grant struct {
	ID, Key fsm.ID
	Tenant  string // the key's
	Grantee Principal
}

// NewGrant names a grant that nobody has made.
func NewGrant(key fsm.ID, tenant string, grantee Principal) Grant {
	return Grant{uuid.New(), key, tenant, grantee}
}

func (g Grant) name() string { return "grant " + g.ID.String() }

func (g Grant) context() []fsm.Tag { return []fsm.Tag{{Key: "grant", Value: g.ID.String()}} }

func (g Grant) held(s *fsm.State, key fsm.ID, now time.Time) error {
	found := false
	s.GrantsFor(string(g.Grantee), key, func(x *fsm.Grant) bool {
		found = x.Allows(fsm.GrantDecrypt, g.context(), now.Unix())
		return !found
	})
	if !found {
		return fmt.Errorf("no grant permits that to %s", g.Grantee)
	}
	return nil
}

func (g Grant) give() (history.Kind, fsm.Command) {
	return history.Grant, &fsm.CreateGrant{
		Grant: g.ID, Key: g.Key, Tenant: g.Tenant, Grantee: string(g.Grantee),
		Operations: []fsm.GrantOperation{fsm.GrantDecrypt}, Constraints: fsm.Constraints{Subset: g.context()},
	}
}

func (g Grant) take() fsm.Command {
	return &fsm.RevokeGrant{GrantRef: fsm.GrantRef{Grant: g.ID, Key: g.Key, Tenant: g.Tenant}}
}

// Principal may do what it may unless it was disabled.
type Principal string

func (p Principal) name() string { return "principal " + string(p) }

func (p Principal) held(s *fsm.State, _ fsm.ID, _ time.Time) error {
	if _, off := s.Disabled(string(p)); off {
		return fsm.ErrPrincipalDisabled
	}
	return nil
}

func (p Principal) give() (history.Kind, fsm.Command) {
	return history.Permit, &fsm.EnablePrincipal{Principal: string(p)}
}

func (p Principal) take() fsm.Command { return &fsm.DisablePrincipal{Principal: string(p)} }

// Tenant lets its keys be used unless it is frozen.
type Tenant string

func (t Tenant) name() string { return "tenant " + string(t) }

func (t Tenant) held(s *fsm.State, _ fsm.ID, _ time.Time) error {
	tenant, ok := s.Tenant(string(t))
	if !ok {
		return fsm.ErrNotFound
	}
	return tenant.Thawed()
}

func (t Tenant) give() (history.Kind, fsm.Command) {
	return history.Permit, &fsm.ThawTenant{Name: string(t), ByOperator: true}
}

func (t Tenant) take() fsm.Command { return &fsm.FreezeTenant{Name: string(t), ByOperator: true} }
