package kms

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// GrantParams says which grant to make.
type GrantParams struct {
	Grantee     string
	Retiring    string               `json:",omitempty"`
	Operations  []fsm.GrantOperation `json:",omitempty"`
	Constraints fsm.Constraints
	Name        string    `json:",omitempty"`
	Expires     time.Time `json:",omitzero"`
	Parent      string    `json:",omitempty"` // id of the grant that the caller holds
	Expect      uint64    `json:",omitempty"` // revision of the key; 0: any
}

// CreateGrant lets a principal use a key. Administrators may by policy; others by a grant
// that they hold and that allows CreateGrant. It is usable on every node when it returns.
func (s *Service) CreateGrant(ctx context.Context, c Call, key string, p GrantParams) (id string, st *fsm.State, err error) {
	x := s.changeOf("CreateGrant", c, key, 0, p)
	x.needs, x.target, x.expect, x.notKey = mayDelegate, p.Grantee, p.Expect, true
	shown, wrong := s.grantCommand(p)
	x.shown, x.wrong = shown, wrong
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		k, parent, err := s.delegable(st, x, key, p.Parent, e)
		if err != nil {
			return nil, err
		}
		if err := grantable(k, p.Operations); err != nil {
			return nil, err
		}
		command := *shown
		command.Grant, command.Key, command.Tenant, command.Parent = uuid.New(), k.ID, k.Tenant, parent
		command.Service, command.Expect = s.isService(p.Grantee), cmp.Or(p.Expect, k.Revision)
		e.Grant = command.Grant.String()
		return &command, nil
	}
	result, st, err := s.apply(ctx, x)
	return result.ID, st, err
}

// isService tells whether a principal is a storage service: what a grant to one asks for is
// known with the key's tenant.
func (s *Service) isService(principal string) bool {
	p, err := s.principal(principal)
	return err == nil && p.Class == ClassService
}

// grantCommand is the command of a grant as far as the request says it, with ids that stand
// for those of the grant and the key.
func (s *Service) grantCommand(p GrantParams) (*fsm.CreateGrant, error) {
	command := &fsm.CreateGrant{
		Grant: uuid.Max, Key: uuid.Max, Name: p.Name, Grantee: p.Grantee, Retiring: p.Retiring,
		Operations: p.Operations, Constraints: p.Constraints,
	}
	grantee, err := s.principal(p.Grantee)
	if err != nil {
		return command, invalid("grantee: %v", err)
	}
	switch other := slices.IndexFunc(p.Operations, func(op fsm.GrantOperation) bool { return !slices.Contains(trailOperations, op) }); {
	case grantee.Class == ClassNode && other >= 0:
		return command, invalid("grantee %s is of the class node, which uses keys for its audit trail alone: it may be granted GenerateDataKey and Decrypt, not %s", p.Grantee, p.Operations[other])
	case grantee.Class != ClassUser && grantee.Class != ClassService && grantee.Class != ClassNode:
		return command, invalid("grantee %s is of the class %s, which uses no keys: grants are for key users, services, and nodes for their audit trails", p.Grantee, grantee.Class)
	}
	if p.Retiring != "" {
		if _, err := s.principal(p.Retiring); err != nil {
			return command, invalid("retiring principal: %v", err)
		}
	}
	if !p.Expires.IsZero() {
		if command.Expires = p.Expires.Unix(); command.Expires <= 0 { // 0 would be never
			return command, invalid("the grant would have ended at %s", p.Expires)
		}
	}
	return command, nil
}

// grantable refuses operations that a key is not used for: state before usage, as calls do.
func grantable(k *fsm.Key, operations []fsm.GrantOperation) error {
	if err := k.Allows(fsm.OpGrant); err != nil {
		return err
	}
	for _, op := range operations {
		if err := k.Serves(op); err != nil {
			return err
		}
	}
	return nil
}

// delegable finds the key and by what the caller may make grants of it: a policy, which
// needs no parent, or a grant that it holds, which is the parent.
func (s *Service) delegable(st *fsm.State, x change, key, parent string, e *audit.Event) (*fsm.Key, fsm.ID, error) {
	k, err := s.named(st, x.call, key, x.question(), e)
	if err != nil {
		return nil, fsm.ID{}, err
	}
	held := s.held(st, x.call.Caller, k, fsm.GrantCreateGrant, parent)
	switch {
	case held != nil && (parent != "" || e.DecidedBy == grantRule(held)):
		return k, held.ID, nil
	case parent != "":
		return nil, fsm.ID{}, fmt.Errorf("%w: grant %s, held by the caller and with CreateGrant", fsm.ErrNotFound, parent)
	}
	return k, fsm.ID{}, nil
}

func grantRule(g *fsm.Grant) string { return "grant " + g.ID.String() }

// held finds a grant that the caller holds for a key and that allows an operation,
// whatever its constraints; that one if id is not empty. Nil if there is none.
func (s *Service) held(st *fsm.State, c Caller, k *fsm.Key, op fsm.GrantOperation, id string) *fsm.Grant {
	var found *fsm.Grant
	st.GrantsFor(c.Principal, k.ID, func(g *fsm.Grant) bool {
		if (id == "" || g.ID.String() == id) && g.Holds(op, s.wall(st)) {
			found = g
		}
		return found == nil
	})
	return found
}

// wall is the time that grants end by: this node's clock, or the cluster's if that is
// ahead. Unix seconds.
func (s *Service) wall(st *fsm.State) int64 { return max(s.now().Unix(), st.Now()/int64(time.Second)) }

// RevokeGrant ends a grant and what follows from it: on every node by the time it returns.
func (s *Service) RevokeGrant(ctx context.Context, c Call, key, grant string) (*fsm.State, error) {
	return s.endGrant(ctx, "RevokeGrant", c, key, grant, mayAdminister, func(r fsm.GrantRef) fsm.Command { return &fsm.RevokeGrant{GrantRef: r} })
}

// RetireGrant ends a grant and what follows from it: for who is named in it as retiring,
// for the grantee if it allows RetireGrant, and for whom a policy permits.
func (s *Service) RetireGrant(ctx context.Context, c Call, key, grant string) (*fsm.State, error) {
	return s.endGrant(ctx, "RetireGrant", c, key, grant, mayDelegate, func(r fsm.GrantRef) fsm.Command { return &fsm.RetireGrant{GrantRef: r} })
}

func (s *Service) endGrant(ctx context.Context, name string, c Call, key, grant string, needs permission, command func(fsm.GrantRef) fsm.Command) (*fsm.State, error) {
	x := s.changeOf(name, c, key, 0, grant)
	x.needs, x.target, x.notKey, x.shown = needs, grant, true, command(fsm.GrantRef{Grant: uuid.Max, Key: uuid.Max})
	id, err := uuid.Parse(grant)
	if err != nil || id.String() != grant {
		x.wrong = invalid("%.80q is no grant id", grant)
	}
	x.build = func(_ context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		e.Grant = grant
		q := x.question()
		q.ends = id
		k, err := s.named(st, c, key, q, e)
		if err != nil && k != nil && retires(st, q, k, e.DecidedBy) {
			e.DecidedBy, err = "retiring principal", nil
		}
		if err != nil {
			return nil, err
		}
		return command(fsm.GrantRef{Grant: id, Key: k.ID, Tenant: k.Tenant}), nil
	}
	_, st, err := s.apply(ctx, x)
	return st, err
}

// retires tells whether who may not end a grant by any other rule is named in it as
// retiring. That is a right like the grant's own: what policies forbid goes before it.
func retires(st *fsm.State, q question, k *fsm.Key, rule string) bool {
	if q.operation != "RetireGrant" || rule != "no rule" && rule != "tenant" {
		return false
	}
	g, ok := st.Grant(q.ends)
	return ok && g.Key == k.ID && g.Retiring == q.caller.Principal
}

// ListGrants returns a key's grants by id: all, or those of one grantee, or one. Without a
// key it returns those of one grantee for all the tenant's keys.
func (s *Service) ListGrants(ctx context.Context, c Call, key, grantee, grant string, limit uint32, marker string) (Page[*fsm.Grant], *fsm.State, error) {
	if key == "" && grantee != "" && grant == "" {
		return s.listHeld(ctx, c, grantee, limit, marker)
	}
	return read(ctx, s, reading{name: "ListGrants", call: c, key: &key, needs: mayRead, target: grantee, grant: grant}, func(st *fsm.State, _ string, k *fsm.Key) (Page[*fsm.Grant], error) {
		return listGrants(limit, marker, func(after fsm.ID, n int) []*fsm.Grant {
			switch {
			case grant != "":
				id, _ := uuid.Parse(grant) // what is no id names no grant
				if g, ok := st.Grant(id); ok && g.Key == k.ID {
					return []*fsm.Grant{g}
				}
				return nil
			case grantee != "":
				var out []*fsm.Grant
				st.GrantsFor(grantee, k.ID, func(g *fsm.Grant) bool {
					if g.ID.String() > after.String() {
						out = append(out, g)
					}
					return len(out) < n
				})
				return out
			}
			return st.GrantsOf(k.ID, after, n)
		})
	})
}

// listHeld returns what a grantee holds of the tenant's keys, by key and id.
func (s *Service) listHeld(ctx context.Context, c Call, grantee string, limit uint32, marker string) (Page[*fsm.Grant], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListGrants", call: c, needs: mayRead, target: grantee}, func(st *fsm.State, tenant string, _ *fsm.Key) (Page[*fsm.Grant], error) {
		n, place, err := listFrom(limit, marker)
		if err != nil {
			return Page[*fsm.Grant]{}, err
		}
		after := &fsm.Grant{}
		if place != "" {
			key, id, _ := strings.Cut(place, " ")
			var wrong error
			after.Key, err = uuid.Parse(key)
			if after.ID, wrong = uuid.Parse(id); err != nil || wrong != nil {
				return Page[*fsm.Grant]{}, invalid("marker is none that a list of grants returned")
			}
		}
		return page(st.GrantsHeld(grantee, tenant, after, n+1), n, func(g *fsm.Grant) string { return g.Key.String() + " " + g.ID.String() }, grantSize), nil
	})
}

// ListRetirableGrants returns what a principal may retire, of all keys: the caller, or,
// for administrators and auditors, anyone, of their tenant's keys.
func (s *Service) ListRetirableGrants(ctx context.Context, c Call, retiring string, limit uint32, marker string) (Page[*fsm.Grant], *fsm.State, error) {
	r := reading{name: "ListRetirableGrants", call: c, needs: mayRead, target: retiring}
	if retiring == "" || retiring == c.Caller.Principal {
		return readOwn(ctx, s, r, func(st *fsm.State) (Page[*fsm.Grant], error) {
			return listGrants(limit, marker, func(after fsm.ID, n int) []*fsm.Grant { return st.RetirableGrants(c.Caller.Principal, after, n) })
		})
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, _ *fsm.Key) (Page[*fsm.Grant], error) {
		if c.Caller.Class != ClassAdmin && c.Caller.Class != ClassAuditor {
			return Page[*fsm.Grant]{}, fmt.Errorf("%w: the class %s may list what it may retire itself", ErrDenied, c.Caller.Class)
		}
		return listGrants(limit, marker, func(after fsm.ID, n int) []*fsm.Grant {
			var out []*fsm.Grant
			for len(out) < n {
				some := st.RetirableGrants(retiring, after, n)
				if len(some) == 0 {
					break
				}
				for _, g := range some {
					if g.Tenant == tenant {
						out = append(out, g)
					}
				}
				after = some[len(some)-1].ID
			}
			return out[:min(len(out), n)]
		})
	})
}

func listGrants(limit uint32, marker string, list func(after fsm.ID, n int) []*fsm.Grant) (Page[*fsm.Grant], error) {
	n, place, err := listFrom(limit, marker)
	if err != nil {
		return Page[*fsm.Grant]{}, err
	}
	var after fsm.ID
	if place != "" {
		if after, err = uuid.Parse(place); err != nil {
			return Page[*fsm.Grant]{}, invalid("marker is none that a list of grants returned")
		}
	}
	return page(list(after, n+1), n, func(g *fsm.Grant) string { return g.ID.String() }, grantSize), nil
}

// grantSize is about how large a listed grant is, in bytes.
func grantSize(g *fsm.Grant) int {
	size := recordSize + len(g.Name) + len(g.Grantee) + len(g.Retiring) + len(g.Issuer)
	for _, t := range slices.Concat(g.Constraints.Equals, g.Constraints.Subset) {
		size += len(t.Key) + len(t.Value)
	}
	return size
}
