package fsm

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of grants.
const (
	MaxGrants          = 50_000    // a key
	MaxTenantGrants    = 1_000_000 // all keys of a tenant
	MaxGrantName       = 256       // bytes
	MaxConstraintPairs = 8
	MaxConstraintText  = 512 // bytes of a key or a value
	MaxGrantDepth      = 8   // grants that follow from one another
)

// What the encryption context of a service that acts for a tenant must have.
const (
	ContextTenant   = "tenant" // the key's tenant
	ContextResource = "resource"
)

// Constraints narrow a grant to calls with a certain encryption context: the same
// pairs, or at least these pairs. At most one of both is set.
type Constraints struct {
	Equals []Tag `json:"equals,omitempty"` // sorted by key
	Subset []Tag `json:"subset,omitempty"` // sorted by key
}

// Allow tells whether a call's encryption context fits. The context has no key twice.
func (c Constraints) Allow(context []Tag) bool {
	if len(c.Equals) > 0 {
		return len(context) == len(c.Equals) && holds(context, c.Equals)
	}
	return holds(context, c.Subset)
}

func holds(all, wanted []Tag) bool {
	for _, w := range wanted {
		if !slices.Contains(all, w) {
			return false
		}
	}
	return true
}

// within tells whether whatever these allow, the others allow too.
func (c Constraints) within(outer Constraints) bool {
	if len(outer.Equals) > 0 {
		return slices.Equal(c.Equals, outer.Equals)
	}
	return holds(slices.Concat(c.Equals, c.Subset), outer.Subset)
}

// names tells whether the constraints fix the value of a context key, and to what.
func (c Constraints) names(key string) (value string, ok bool) {
	for _, t := range slices.Concat(c.Equals, c.Subset) {
		if t.Key == key {
			return t.Value, true
		}
	}
	return "", false
}

func (c Constraints) normal() (Constraints, error) {
	if len(c.Equals) > 0 && len(c.Subset) > 0 {
		return c, invalid("constraints: give pairs that the encryption context equals, or pairs that it contains, not both")
	}
	for _, list := range []*[]Tag{&c.Equals, &c.Subset} {
		if len(*list) > MaxConstraintPairs {
			return c, invalid("constraint of %d pairs, at most %d", len(*list), MaxConstraintPairs)
		}
		*list = sortTags(slices.Clone(*list))
		for i, t := range *list {
			switch {
			case t.Key == "" || !utf8.ValidString(t.Key) || !utf8.ValidString(t.Value):
				return c, invalid("constraint with an empty key or with what is not valid UTF-8")
			case len(t.Key) > MaxConstraintText || len(t.Value) > MaxConstraintText:
				return c, invalid("constraint pair of more than %d bytes", MaxConstraintText)
			case i > 0 && t.Key == (*list)[i-1].Key:
				return c, invalid("constraint names the key %q twice", t.Key)
			}
		}
		if len(*list) == 0 {
			*list = nil
		}
	}
	return c, nil
}

// Grant lets one principal use one key for some operations.
type Grant struct {
	ID          ID               `json:"id"`
	Key         ID               `json:"key"`
	Tenant      string           `json:"tenant"` // of the key
	Name        string           `json:"name,omitempty"`
	Grantee     string           `json:"grantee"`            // SPIFFE URI
	Retiring    string           `json:"retiring,omitempty"` // SPIFFE URI
	Operations  []GrantOperation `json:"operations"`         // sorted
	Constraints Constraints      `json:"constraints"`
	Parent      ID               `json:"parent,omitzero"` // the grant that its issuer held
	Depth       int              `json:"depth,omitempty"` // grants above it
	Issuer      string           `json:"issuer"`          // SPIFFE URI
	Created     int64            `json:"created"`         // unix seconds
	Expires     int64            `json:"expires,omitempty"`
	Revision    uint64           `json:"revision"`
}

// Allows tells whether the grant allows an operation with an encryption context at a
// time (unix seconds). Whether its grantee asks is not looked at.
func (g *Grant) Allows(op GrantOperation, context []Tag, at int64) bool {
	return g.Holds(op, at) && g.Constraints.Allow(context)
}

// Grant returns a grant by its id.
func (s *State) Grant(id ID) (*Grant, bool) { return s.grants.tree.Get(&Grant{ID: id}) }

// GrantsFor calls f with the grants of a key that a principal holds, until f is false.
func (s *State) GrantsFor(grantee string, key ID, f func(*Grant) bool) {
	s.grantsByGrantee.tree.Ascend(&Grant{Grantee: grantee, Key: key}, func(g *Grant) bool {
		return g.Grantee == grantee && g.Key == key && f(g)
	})
}

// GrantsHeld returns up to limit grants of a tenant's keys that a principal holds, by key
// and id, beginning behind after.
func (s *State) GrantsHeld(grantee, tenant string, after *Grant, limit int) []*Grant {
	var out []*Grant
	s.grantsByGrantee.tree.Ascend(&Grant{Grantee: grantee, Key: after.Key, ID: after.ID}, func(g *Grant) bool {
		if g.Grantee != grantee || len(out) >= limit {
			return false
		}
		if g.Tenant == tenant && (g.Key != after.Key || g.ID != after.ID) {
			out = append(out, g)
		}
		return true
	})
	return out
}

// GrantsFitting calls f with those of a principal's grants of a key whose constraints may fit
// an encryption context, until f is false: those of its resource, and those of none. A
// service holds a grant for each resource, and a call is about one.
func (s *State) GrantsFitting(grantee string, key ID, context []Tag, f func(*Grant) bool) {
	more := true
	of := func(resource string) {
		s.grantsByResource.tree.Ascend(resourceGrant{resource, &Grant{Grantee: grantee, Key: key}}, func(r resourceGrant) bool {
			belongs := r.grant.Grantee == grantee && r.grant.Key == key && r.resource == resource
			more = more && (!belongs || f(r.grant))
			return belongs && more
		})
	}
	if i := slices.IndexFunc(context, func(t Tag) bool { return t.Key == ContextResource }); i >= 0 && context[i].Value != "" {
		of(context[i].Value)
	}
	of("")
}

// GrantsOf returns up to limit grants of a key by id, beginning behind after.
func (s *State) GrantsOf(key, after ID, limit int) []*Grant {
	return listGrants(s.grantsByKey, &Grant{Key: key, ID: after}, limit, func(g *Grant) bool { return g.Key == key })
}

// RetirableGrants returns up to limit grants that a principal may retire, by id.
func (s *State) RetirableGrants(retiring string, after ID, limit int) []*Grant {
	return listGrants(s.grantsByRetiring, &Grant{Retiring: retiring, ID: after}, limit, func(g *Grant) bool { return g.Retiring == retiring })
}

func listGrants(in table[*Grant], from *Grant, limit int, belongs func(*Grant) bool) []*Grant {
	var out []*Grant
	in.tree.Ascend(from, func(g *Grant) bool {
		if !belongs(g) || len(out) >= limit {
			return false
		}
		if g.ID != from.ID {
			out = append(out, g)
		}
		return true
	})
	return out
}

// CountGrants is how many grants a key has.
func (s *State) CountGrants(key ID) int { return s.count(countGrants, key) }

// CreateGrant makes a grant. With a name it is idempotent: the same grant again is the
// one that is there.
type CreateGrant struct {
	Grant       ID               `json:"grant"`
	Key         ID               `json:"key"`
	Tenant      string           `json:"tenant"`
	Name        string           `json:"name,omitempty"`
	Grantee     string           `json:"grantee"`
	Retiring    string           `json:"retiring,omitempty"`
	Operations  []GrantOperation `json:"operations"`
	Constraints Constraints      `json:"constraints"`
	Parent      ID               `json:"parent,omitzero"`
	Expires     int64            `json:"expires,omitempty"` // unix seconds; 0: never
	Service     bool             `json:"service,omitempty"` // the grantee is a storage service
	Expect      uint64           `json:"expect,omitempty"`  // revision of the key; 0 expects none
}

func (c *CreateGrant) validate() error {
	if c.Grant == uuid.Nil || c.Key == uuid.Nil {
		return invalid("grant id or key id is missing")
	}
	if err := validPrincipal("grantee", c.Grantee); err != nil {
		return err
	}
	if c.Retiring != "" {
		if err := validPrincipal("retiring principal", c.Retiring); err != nil {
			return err
		}
	}
	if len(c.Name) > MaxGrantName || !utf8.ValidString(c.Name) {
		return invalid("grant name has %d bytes: must be at most %d of valid UTF-8", len(c.Name), MaxGrantName)
	}
	if _, err := normalOperations(c.Operations); err != nil {
		return err
	}
	if c.Expires < 0 {
		return invalid("the grant would have ended at %d", c.Expires)
	}
	if _, err := c.Constraints.normal(); err != nil || !c.Service {
		return err
	}
	if tenant, ok := c.Constraints.names(ContextTenant); !ok || tenant != c.Tenant {
		return invalid("a grant to a service must be constrained to the encryption context %s=%s", ContextTenant, c.Tenant)
	}
	if _, ok := c.Constraints.names(ContextResource); !ok {
		return invalid("a grant to a service must be constrained to an encryption context with %s=…", ContextResource)
	}
	return nil
}

func normalOperations(ops []GrantOperation) ([]GrantOperation, error) {
	if len(ops) == 0 {
		return nil, invalid("a grant needs an operation at least")
	}
	if len(ops) > len(grantOperations) {
		return nil, invalid("%d operations given, there are %d", len(ops), len(grantOperations))
	}
	sorted := slices.Clone(ops)
	slices.Sort(sorted)
	for i, op := range sorted {
		if _, known := grantOperations[op]; !known {
			return nil, invalid("grants know no operation %.80q", op)
		}
		if i > 0 && op == sorted[i-1] {
			return nil, invalid("operation %s is given twice", op)
		}
	}
	return sorted, nil
}

func (c *CreateGrant) apply(t *tx) (Result, error) {
	k, err := KeyRef{ID: c.Key, Tenant: c.Tenant, Expect: c.Expect}.find(t)
	if err != nil {
		return Result{}, err
	}
	g := &Grant{
		ID: c.Grant, Key: c.Key, Tenant: c.Tenant, Name: c.Name, Grantee: c.Grantee, Retiring: c.Retiring, Parent: c.Parent,
		Issuer: t.entry.Principal, Created: t.seconds(), Expires: c.Expires,
	}
	if g.Operations, err = normalOperations(c.Operations); err != nil {
		return Result{}, err
	}
	if g.Constraints, err = c.Constraints.normal(); err != nil {
		return Result{}, err
	}
	if err := g.permitted(t, k); err != nil {
		return Result{}, err
	}
	if g.Name != "" {
		if old, ok := t.s.grantNames.tree.Get(g); ok {
			if !old.same(g) {
				return Result{}, fmt.Errorf("%w: grant %q of key %s is another one (%s)", ErrExists, g.Name, k.ID, old.ID)
			}
			return Result{ID: old.ID.String()}, nil
		}
	}
	if _, ok := t.s.Grant(g.ID); ok {
		return Result{}, fmt.Errorf("%w: grant %s", ErrExists, g.ID)
	}
	if t.s.CountGrants(k.ID) >= MaxGrants {
		return Result{}, fmt.Errorf("%w: key %s has %d grants", ErrLimit, k.ID, MaxGrants)
	}
	if t.s.count(countTenantGrants+k.Tenant, ID{}) >= MaxTenantGrants {
		return Result{}, fmt.Errorf("%w: the keys of tenant %s have %d grants", ErrLimit, k.Tenant, MaxTenantGrants)
	}
	t.putGrant(g)
	return Result{ID: g.ID.String()}, nil
}

// permitted checks a grant against the key's state, the time and its parent.
func (g *Grant) permitted(t *tx, k *Key) error {
	if err := k.AllowsAt(OpGrant, t.seconds()); err != nil {
		return err
	}
	if err := k.manageable(OpGrant); err != nil {
		return err
	}
	if len(g.Constraints.Equals)+len(g.Constraints.Subset) > 0 {
		if err := k.symmetric("a constraint to an encryption context"); err != nil {
			return err
		}
	}
	if g.Expires != 0 && g.Expires <= t.seconds() {
		return invalid("the grant would have ended at %d, it is %d", g.Expires, t.seconds())
	}
	for _, op := range g.Operations {
		if op.Seals() && k.State == KeyDecryptOnly {
			return fmt.Errorf("%w: %s, so no grant of %s", ErrDecryptOnly, k.ID, op)
		}
		if err := k.Serves(op); err != nil {
			return err
		}
	}
	if g.Parent == (ID{}) {
		return nil
	}
	return g.follows(t)
}

// follows checks a grant against the one that its issuer holds.
func (g *Grant) follows(t *tx) error {
	parent, ok := t.s.Grant(g.Parent)
	if !ok || parent.Key != g.Key || parent.Grantee != t.entry.Principal && t.entry.Principal != "" {
		return fmt.Errorf("%w: grant %s", ErrNotFound, g.Parent)
	}
	if !slices.Contains(parent.Operations, GrantCreateGrant) || parent.Expires != 0 && parent.Expires <= t.seconds() {
		return fmt.Errorf("%w: grant %s does not allow CreateGrant (any more)", ErrNotFound, parent.ID)
	}
	if g.Depth = parent.Depth + 1; g.Depth > MaxGrantDepth {
		return fmt.Errorf("%w: %d grants follow from one another", ErrLimit, MaxGrantDepth)
	}
	return g.narrower(parent)
}

// narrower is nil if a grant allows nothing that its parent does not allow.
func (g *Grant) narrower(parent *Grant) error {
	for _, op := range g.Operations {
		if !slices.Contains(parent.Operations, op) {
			return invalid("grant %s, which this one follows from, does not allow %s", parent.ID, op)
		}
	}
	if !g.Constraints.within(parent.Constraints) {
		return invalid("the constraints must be at least as strict as those of grant %s, which this one follows from", parent.ID)
	}
	if parent.Expires != 0 && (g.Expires == 0 || g.Expires > parent.Expires) {
		return invalid("grant %s, which this one follows from, ends at %d: this one must not end later", parent.ID, parent.Expires)
	}
	return nil
}

// same tells whether a grant that is asked for under the same name gives the same. A try
// has no issuer.
func (g *Grant) same(o *Grant) bool {
	return g.Grantee == o.Grantee && g.Retiring == o.Retiring && slices.Equal(g.Operations, o.Operations) && g.Expires == o.Expires &&
		slices.Equal(g.Constraints.Equals, o.Constraints.Equals) && slices.Equal(g.Constraints.Subset, o.Constraints.Subset) &&
		(g.Issuer == o.Issuer || o.Issuer == "") && g.Parent == o.Parent
}

// GrantRef names a grant of a key.
type GrantRef struct {
	Grant  ID     `json:"grant"`
	Key    ID     `json:"key"`
	Tenant string `json:"tenant"` // of the key
}

func (r GrantRef) validate() error {
	if r.Grant == uuid.Nil || r.Key == uuid.Nil {
		return invalid("grant id or key id is missing")
	}
	return nil
}

// end drops a grant and all that follow from it.
func (r GrantRef) end(t *tx) (Result, error) {
	g, ok := t.s.Grant(r.Grant)
	if !ok || g.Key != r.Key || g.Tenant != r.Tenant {
		return Result{}, fmt.Errorf("%w: grant %s", ErrNotFound, r.Grant)
	}
	t.endGrant(g)
	return Result{ID: g.ID.String()}, nil
}

func (t *tx) endGrant(g *Grant) {
	for _, child := range t.s.children(g.ID) {
		t.endGrant(child)
	}
	t.dropGrant(g)
}

func (s *State) children(parent ID) []*Grant {
	return listGrants(s.grantsByParent, &Grant{Parent: parent}, MaxGrants, func(g *Grant) bool { return g.Parent == parent })
}

// RevokeGrant ends a grant and all that follow from it: what an administrator does.
type RevokeGrant struct{ GrantRef }

func (c *RevokeGrant) apply(t *tx) (Result, error) { return c.end(t) }

// RetireGrant ends a grant and all that follow from it: what who is done with it does.
type RetireGrant struct{ GrantRef }

func (c *RetireGrant) apply(t *tx) (Result, error) { return c.end(t) }

// ExpireGrant ends a grant whose time is over, and all that follow from it.
type ExpireGrant struct {
	GrantRef
	At int64 `json:"at"` // unix seconds: what the clocks of a majority have reached
}

func (c *ExpireGrant) apply(t *tx) (Result, error) {
	if g, ok := t.s.Grant(c.Grant); ok && (g.Expires == 0 || c.At < g.Expires) {
		return Result{}, fmt.Errorf("%w: grant %s does not end at %d", ErrConflict, g.ID, c.At)
	}
	return c.end(t)
}

// Holds tells whether the grant has an operation at a time (unix seconds), whatever its
// constraints: for operations that have no encryption context.
func (g *Grant) Holds(op GrantOperation, at int64) bool {
	return (g.Expires == 0 || at < g.Expires) && slices.Contains(g.Operations, op)
}
