package fsm

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// grantID gives the n-th grant's id.
func grantID(n uint64) ID { return keyID(1<<20 + n) }

// createGrant lets user decrypt with the key.
func createGrant(n, key uint64) *CreateGrant {
	return &CreateGrant{Grant: grantID(n), Key: keyID(key), Tenant: DefaultTenant, Grantee: user, Operations: []GrantOperation{GrantDecrypt}}
}

func grant(f func(*CreateGrant)) *CreateGrant { return edited(createGrant(1, 1), f) }

func grantRef(n, key uint64) GrantRef {
	return GrantRef{Grant: grantID(n), Key: keyID(key), Tenant: DefaultTenant}
}

func pairs(keys ...string) []Tag {
	var out []Tag
	for _, k := range keys {
		out = append(out, Tag{k, "v"})
	}
	return out
}

// numbers gives the numbers of grants, as in grantID.
func numbers(all []*Grant) []uint64 {
	var out []uint64
	for _, g := range all {
		for n := uint64(1); n < 100; n++ {
			if g.ID == grantID(n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func wantGrants(t *testing.T, w *world, key uint64, want ...uint64) {
	t.Helper()
	if got := numbers(w.s.GrantsOf(keyID(key), ID{}, 1000)); !slices.Equal(got, want) || w.s.CountGrants(keyID(key)) != len(want) {
		t.Errorf("key %d has the grants %v, counted %d; want %v", key, got, w.s.CountGrants(keyID(key)), want)
	}
}

func TestCreateGrant(t *testing.T) {
	w := oneKey(t)
	revision := w.key(1).Revision
	c := grant(func(c *CreateGrant) {
		c.Name, c.Retiring, c.Expires = "nightly", other, start+60
		c.Operations = []GrantOperation{GrantReEncryptTo, GrantDecrypt, GrantEncrypt}
		c.Constraints.Subset = []Tag{{"tenant", "default"}, {"Resource", "<r>"}}
	})
	if got := w.do(c); got != (Result{Index: 3, ID: grantID(1).String()}) {
		t.Errorf("result %+v", got)
	}
	want := &Grant{
		ID: grantID(1), Key: keyID(1), Tenant: DefaultTenant, Name: "nightly", Grantee: user, Retiring: other,
		Operations:  []GrantOperation{"Decrypt", "Encrypt", "ReEncryptTo"},
		Constraints: Constraints{Subset: []Tag{{"Resource", "<r>"}, {"tenant", "default"}}},
		Issuer:      admin, Created: start, Expires: start + 60, Revision: 3,
	}
	for _, s := range []*State{w.s, reread(t, w.s)} {
		if got, ok := s.Grant(grantID(1)); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("grant is\n%+v, want\n%+v", got, want)
		}
	}
	if w.key(1).Revision != revision {
		t.Error("a grant changed its key")
	}
	if c.Operations[0] != GrantReEncryptTo || c.Constraints.Subset[0].Key != "tenant" {
		t.Errorf("the command was sorted: %+v", c)
	}
}

func TestCreateGrantLimits(t *testing.T) {
	all := slices.Sorted(func(yield func(GrantOperation) bool) {
		for op := range grantOperations {
			if !yield(op) {
				return
			}
		}
	})
	if len(all) != 16 {
		t.Errorf("%d operations, want 16", len(all))
	}
	own := slices.DeleteFunc(slices.Clone(all), func(op GrantOperation) bool { return oneKey(t).key(1).Serves(op) != nil })
	if len(own) != 11 {
		t.Errorf("%d operations of a symmetric key, want 11", len(own))
	}
	eight := pairs("a", "b", "c", "d", "e", "f", "g", strings.Repeat("h", 512))
	eight[0].Value = strings.Repeat("v", 512)
	testAccepted(t, oneKey, []accepted{
		{"every operation", grant(func(c *CreateGrant) { c.Operations = own })},
		{"a name of 256 bytes", grant(func(c *CreateGrant) { c.Name = strings.Repeat("n", 256) })},
		{"eight pairs", grant(func(c *CreateGrant) { c.Constraints.Equals = eight })},
		{"eight pairs at least", grant(func(c *CreateGrant) { c.Constraints.Subset = eight })},
		{"an empty value", grant(func(c *CreateGrant) { c.Constraints.Subset = []Tag{{"a", ""}} })},
		{"empty constraints", grant(func(c *CreateGrant) { c.Constraints = Constraints{[]Tag{}, []Tag{}} })},
		{"a second to live", grant(func(c *CreateGrant) { c.Expires = start + 1 })},
		{"for ever", grant(func(c *CreateGrant) { c.Expires = 1<<63 - 1 })},
	})
	testRefusals(t, oneKey, []refusal{
		{"no id", grant(func(c *CreateGrant) { c.Grant = ID{} }), ErrInvalid, "grant id or key id is missing"},
		{"no key", grant(func(c *CreateGrant) { c.Key = ID{} }), ErrInvalid, "grant id or key id is missing"},
		{"unknown key", createGrant(1, 9), ErrNotFound, keyID(9).String()},
		{"another tenant", grant(func(c *CreateGrant) { c.Tenant = "acme" }), ErrNotFound, keyID(1).String()},
		{"another revision", grant(func(c *CreateGrant) { c.Expect = 1 }), ErrConflict, "is at revision 2, expected 1"},
		{"no grantee", grant(func(c *CreateGrant) { c.Grantee = "" }), ErrInvalid, "grantee"},
		{"a grantee without URI", grant(func(c *CreateGrant) { c.Grantee = "uma" }), ErrInvalid, `grantee "uma": must be a SPIFFE URI`},
		{"a retiring principal without URI", grant(func(c *CreateGrant) { c.Retiring = "uma" }), ErrInvalid, `retiring principal "uma"`},
		{"a name of 257 bytes", grant(func(c *CreateGrant) { c.Name = strings.Repeat("n", 257) }), ErrInvalid, "grant name has 257 bytes: must be at most 256"},
		{"no operation", grant(func(c *CreateGrant) { c.Operations = nil }), ErrInvalid, "needs an operation"},
		{"unknown operation", grant(func(c *CreateGrant) { c.Operations = []GrantOperation{"decrypt"} }), ErrInvalid, `grants know no operation "decrypt"`},
		{"an operation twice", grant(func(c *CreateGrant) { c.Operations = []GrantOperation{GrantSign, GrantDecrypt, GrantSign} }), ErrInvalid, "Sign is given twice"},
		{"17 operations", grant(func(c *CreateGrant) { c.Operations = append(all[:16:16], "x") }), ErrInvalid, "17 operations given, there are 16"},
		{"both constraints", grant(func(c *CreateGrant) { c.Constraints = Constraints{pairs("a"), pairs("a")} }), ErrInvalid, "not both"},
		{"nine pairs", grant(func(c *CreateGrant) { c.Constraints.Equals = append(eight[:8:8], Tag{"z", ""}) }), ErrInvalid, "constraint of 9 pairs, at most 8"},
		{"an empty context key", grant(func(c *CreateGrant) { c.Constraints.Equals = pairs("") }), ErrInvalid, "constraint with an empty key"},
		{"a context key of 513 bytes", grant(func(c *CreateGrant) { c.Constraints.Subset = pairs(strings.Repeat("k", 513)) }), ErrInvalid, "more than 512 bytes"},
		{"a value of 513 bytes", grant(func(c *CreateGrant) { c.Constraints.Subset = []Tag{{"a", strings.Repeat("v", 513)}} }), ErrInvalid, "more than 512 bytes"},
		{"a context key twice", grant(func(c *CreateGrant) { c.Constraints.Equals = []Tag{{"a", "1"}, {"b", ""}, {"a", "2"}} }), ErrInvalid, `names the key "a" twice`},
		{"over long ago", grant(func(c *CreateGrant) { c.Expires = -1 }), ErrInvalid, "would have ended at -1"},
		{"an unknown parent", grant(func(c *CreateGrant) { c.Parent = grantID(9) }), ErrNotFound, grantID(9).String()},
	})
	w := oneKey(t)
	w.refuseLate(grant(func(c *CreateGrant) { c.Expires = start }), ErrInvalid, fmt.Sprintf("would have ended at %d, it is %d", start, start))
	w.do(createGrant(1, 1))
	w.refuse(createGrant(1, 1), ErrExists, grantID(1).String())
	w.edit(func(t *tx) { t.addTo(countGrants, keyID(1), MaxGrants-1) })
	_, err := w.s.Try(createGrant(2, 1))
	wantError(t, err, ErrLimit, "has 50000 grants")
	w = twoKeys(t)
	w.do(createGrant(1, 1))
	w.edit(func(t *tx) { t.addTo(countTenantGrants+DefaultTenant, ID{}, MaxTenantGrants-1) })
	_, err = w.s.Try(createGrant(2, 2))
	wantError(t, err, ErrLimit, "the keys of tenant default have 1000000 grants")
}

// TestConstraints: what a grant allows by the context of the call.
func TestConstraints(t *testing.T) {
	for _, row := range []struct {
		constraints Constraints
		context     []Tag
		allows      bool
	}{
		{Constraints{}, nil, true},
		{Constraints{}, pairs("a"), true},
		{Constraints{Equals: pairs("a", "b")}, pairs("b", "a"), true},
		{Constraints{Equals: pairs("a", "b")}, pairs("a"), false},
		{Constraints{Equals: pairs("a", "b")}, pairs("a", "b", "c"), false},
		{Constraints{Equals: pairs("a")}, nil, false},
		{Constraints{Equals: pairs("a")}, pairs("A"), false},
		{Constraints{Equals: pairs("a")}, []Tag{{"a", "V"}}, false},
		{Constraints{Subset: pairs("a", "b")}, pairs("b", "c", "a"), true},
		{Constraints{Subset: pairs("a", "b")}, pairs("a", "b"), true},
		{Constraints{Subset: pairs("a", "b")}, pairs("a", "c"), false},
		{Constraints{Subset: pairs("a")}, nil, false},
		{Constraints{Subset: pairs("a")}, []Tag{{"a", ""}, {"v", "a"}}, false},
	} {
		if got := row.constraints.Allow(row.context); got != row.allows {
			t.Errorf("%+v with %v: %v", row.constraints, row.context, got)
		}
	}
}

func TestGrantAllows(t *testing.T) {
	g := &Grant{Operations: []GrantOperation{GrantDecrypt, GrantSign}, Constraints: Constraints{Subset: pairs("a")}, Expires: 100}
	for _, row := range []struct {
		op      GrantOperation
		context []Tag
		at      int64
		allows  bool
	}{
		{GrantDecrypt, pairs("a"), 99, true},
		{GrantSign, pairs("a", "b"), 0, true},
		{GrantDecrypt, pairs("a"), 100, false},
		{GrantDecrypt, pairs("a"), 101, false},
		{GrantEncrypt, pairs("a"), 99, false},
		{GrantDecrypt, pairs("b"), 99, false},
		{"", pairs("a"), 99, false},
	} {
		if got := g.Allows(row.op, row.context, row.at); got != row.allows {
			t.Errorf("%s with %v at %d: %v", row.op, row.context, row.at, got)
		}
	}
	if g.Expires = 0; !g.Allows(GrantSign, pairs("a"), 1<<62) {
		t.Error("a grant without an end has ended")
	}
}

// TestConstraintsWithin: stricter or equal, by what could be allowed.
func TestConstraintsWithin(t *testing.T) {
	equals := func(keys ...string) Constraints { return Constraints{Equals: pairs(keys...)} }
	subset := func(keys ...string) Constraints { return Constraints{Subset: pairs(keys...)} }
	for _, row := range []struct {
		inner, outer Constraints
		within       bool
	}{
		{Constraints{}, Constraints{}, true},
		{equals("a"), Constraints{}, true},
		{subset("a"), Constraints{}, true},
		{Constraints{}, equals("a"), false},
		{Constraints{}, subset("a"), false},
		{equals("a"), equals("a"), true},
		{equals("a", "b"), equals("a"), false},
		{equals("a"), equals("a", "b"), false},
		{subset("a"), equals("a"), false},
		{equals("a", "b"), subset("a"), true},
		{equals("b"), subset("a"), false},
		{subset("a", "b"), subset("a"), true},
		{subset("a"), subset("a", "b"), false},
		{Constraints{Subset: []Tag{{"a", "w"}}}, subset("a"), false},
	} {
		if got := row.inner.within(row.outer); got != row.within {
			t.Errorf("%+v within %+v: %v", row.inner, row.outer, got)
		}
		if row.within { // what the inner ones allow, the outer allow too
			for _, context := range [][]Tag{nil, pairs("a"), pairs("b"), pairs("a", "b"), pairs("a", "b", "c")} {
				if row.inner.Allow(context) && !row.outer.Allow(context) {
					t.Errorf("%+v allow %v, %+v do not", row.inner, context, row.outer)
				}
			}
		}
	}
}

// TestGrantNames: the same again is the one that is there, anything else is refused.
func TestGrantNames(t *testing.T) {
	base := func(t failer) *world {
		w := twoKeys(t)
		w.do(edited(delegable(), func(c *CreateGrant) { c.Name = "other" }))
		w.do(named(1))
		return w
	}
	w := base(t)
	before := records(t, w.s)
	for n := uint64(1); n <= 2; n++ {
		if got := w.do(named(n)); got != (Result{Index: w.s.Index(), ID: grantID(1).String()}) || records(t, w.s) != before {
			t.Errorf("again it answers %+v", got)
		}
		if got, err := w.s.Try(named(n)); err != nil || got.ID != grantID(1).String() {
			t.Errorf("tried again it answers %+v, %v", got, err)
		}
	}
	for name, c := range map[string]*CreateGrant{
		"grantee":    edited(named(2), func(c *CreateGrant) { c.Grantee = other }),
		"retiring":   edited(named(2), func(c *CreateGrant) { c.Retiring = user }),
		"operations": edited(named(2), func(c *CreateGrant) { c.Operations = []GrantOperation{GrantDecrypt} }),
		"equals":     edited(named(2), func(c *CreateGrant) { c.Constraints = Constraints{Equals: pairs("a")} }),
		"subset":     edited(named(2), func(c *CreateGrant) { c.Constraints.Subset = pairs("b") }),
		"expiry":     edited(named(2), func(c *CreateGrant) { c.Expires = start + 1 }),
	} {
		t.Run(name, func(t *testing.T) {
			base(t).refuse(c, ErrExists, `grant "n" of key `+keyID(1).String()+" is another one ("+grantID(1).String()+")")
		})
	}
	w.as(user, func() {
		w.refuse(named(2), ErrExists, "is another one")
		w.refuse(edited(named(2), func(c *CreateGrant) { c.Parent = grantID(50) }), ErrExists, "is another one")
	})
	w.do(edited(named(3), func(c *CreateGrant) { c.Key = keyID(2) })) // names are a key's
	w.do(&RevokeGrant{grantRef(1, 1)})
	w.do(named(2)) // the name is free again
	wantGrants(t, w, 1, 2, 50)
}

func named(n uint64) *CreateGrant {
	return edited(createGrant(n, 1), func(c *CreateGrant) {
		c.Name, c.Constraints.Subset, c.Operations = "n", pairs("a"), []GrantOperation{GrantDecrypt, GrantEncrypt}
		if n == 2 {
			slices.Reverse(c.Operations)
		}
	})
}

// delegable is grant 50 of key 1: user may grant it on.
func delegable() *CreateGrant {
	return edited(createGrant(50, 1), func(c *CreateGrant) {
		c.Operations = []GrantOperation{GrantDecrypt, GrantEncrypt, GrantCreateGrant}
	})
}

// child is grant n of key 1, which follows from the parent.
func child(n, parent uint64, f func(c *CreateGrant)) *CreateGrant {
	return edited(createGrant(n, 1), func(c *CreateGrant) {
		c.Parent, c.Constraints.Subset, c.Expires = grantID(parent), pairs("a"), start+50
		f(c)
	})
}

func TestDelegation(t *testing.T) {
	base := func(t failer) *world {
		w := twoKeys(t)
		w.do(edited(delegable(), func(c *CreateGrant) { c.Constraints.Subset, c.Expires = pairs("a"), start+50 }))
		w.do(edited(createGrant(51, 1), func(c *CreateGrant) { c.Grantee = other }))
		w.caller = user
		return w
	}
	sub := func(f func(c *CreateGrant)) *CreateGrant { return child(1, 50, f) }
	testAccepted(t, base, []accepted{
		{"the same", sub(func(c *CreateGrant) { c.Operations = []GrantOperation{GrantCreateGrant, GrantEncrypt, GrantDecrypt} })},
		{"less", sub(func(c *CreateGrant) { c.Expires, c.Constraints.Subset = start+1, pairs("b", "a") })},
		{"exact", sub(func(c *CreateGrant) { c.Constraints = Constraints{Equals: pairs("a", "c")} })},
	})
	testRefusals(t, base, []refusal{
		{"another's grant", child(1, 51, func(*CreateGrant) {}), ErrNotFound, grantID(51).String()},
		{"another key's grant", sub(func(c *CreateGrant) { c.Key = keyID(2) }), ErrNotFound, grantID(50).String()},
		{"itself", sub(func(c *CreateGrant) { c.Parent = c.Grant }), ErrNotFound, grantID(1).String()},
	})
	for _, row := range []struct {
		name    string
		command *CreateGrant
		text    string
	}{
		{"an operation more", sub(func(c *CreateGrant) { c.Operations = []GrantOperation{GrantReEncryptTo} }), "does not allow ReEncryptTo"},
		{"no constraint", sub(func(c *CreateGrant) { c.Constraints.Subset = nil }), "at least as strict"},
		{"another constraint", sub(func(c *CreateGrant) { c.Constraints.Subset = pairs("b") }), "at least as strict"},
		{"a second longer", sub(func(c *CreateGrant) { c.Expires = start + 51 }), "must not end later"},
		{"for ever", sub(func(c *CreateGrant) { c.Expires = 0 }), "must not end later"},
	} {
		t.Run(row.name, func(t *testing.T) { base(t).refuseLate(row.command, ErrInvalid, row.text) })
	}
	w := base(t)
	w.do(sub(func(*CreateGrant) {}))
	if g, _ := w.s.Grant(grantID(1)); g.Parent != grantID(50) || g.Depth != 1 || g.Issuer != user {
		t.Errorf("the child is %+v", g)
	}
	w.refuse(child(2, 1, func(*CreateGrant) {}), ErrNotFound, "does not allow CreateGrant")
	w.clock += 50 * second
	w.caller = user
	w.refuse(child(2, 50, func(c *CreateGrant) { c.Expires = start + 60 }), ErrNotFound, "does not allow CreateGrant (any more)")
	if err := w.s.Check(); err != nil {
		t.Error(err)
	}
}

// chain is a world with grants of key 1 that follow from one another: 50, 1, … n; each
// but the first has a sibling, 10 more, that nobody follows from.
func chain(t failer, n uint64) *world {
	w := twoKeys(t)
	w.do(delegable())
	w.do(createGrant(60, 1))
	parent := uint64(50)
	for i := uint64(1); i <= n; i++ {
		w.as(user, func() {
			w.do(child(i, parent, func(c *CreateGrant) { c.Operations = delegable().Operations }))
			w.do(child(i+10, parent, func(*CreateGrant) {}))
		})
		parent = i
	}
	return w
}

func TestDelegationDepth(t *testing.T) {
	w := chain(t, MaxGrantDepth)
	w.caller = user
	w.refuse(child(30, MaxGrantDepth, func(*CreateGrant) {}), ErrLimit, "8 grants follow from one another")
}

// TestCascade: with a grant goes what follows from it, and nothing else.
func TestCascade(t *testing.T) {
	end := map[string]func(w *world, n uint64) Command{
		"revoke": func(_ *world, n uint64) Command { return &RevokeGrant{grantRef(n, 1)} },
		"retire": func(_ *world, n uint64) Command { return &RetireGrant{grantRef(n, 1)} },
		"expire": func(_ *world, n uint64) Command { return &ExpireGrant{grantRef(n, 1), start + 50} },
	}
	for name, command := range end {
		for n, left := range map[uint64][]uint64{
			50: {60},
			1:  {11, 50, 60},
			2:  {1, 11, 12, 50, 60},
			3:  {1, 2, 11, 12, 13, 50, 60},
			11: {1, 2, 3, 12, 13, 50, 60},
		} {
			if name == "expire" && n == 50 {
				continue // it never ends
			}
			w := chain(t, 3)
			old, before := w.s, snapshotOf(t, w.s)
			if got := w.do(command(w, n)); got != (Result{Index: w.s.Index(), ID: grantID(n).String()}) {
				t.Errorf("result %+v", got)
			}
			wantGrants(t, w, 1, left...)
			var due []uint64
			for _, d := range w.s.Due(1<<62, 100) {
				g, _ := w.s.Grant(d.ID)
				due = append(due, numbers([]*Grant{g})...)
			}
			want := slices.DeleteFunc(slices.Clone(left), func(n uint64) bool { return n >= 50 })
			if slices.Sort(due); !slices.Equal(due, want) {
				t.Errorf("%s %d: %v are due, want %v", name, n, due, want)
			}
			w.refuse(command(w, n), ErrNotFound, grantID(n).String())
			wantSame(t, "the state before", snapshotOf(t, old), before)
		}
	}
}

func TestEndGrantRefused(t *testing.T) {
	base := func(t failer) *world {
		w := twoKeys(t)
		w.do(createTenant("acme"))
		w.do(createGrant(1, 1))
		w.do(edited(createGrant(2, 1), func(c *CreateGrant) { c.Expires = start + 9 }))
		return w
	}
	testRefusals(t, base, []refusal{
		{"no grant", &RevokeGrant{GrantRef{Key: keyID(1), Tenant: DefaultTenant}}, ErrInvalid, "grant id or key id is missing"},
		{"no key", &RetireGrant{GrantRef{Grant: grantID(1), Tenant: DefaultTenant}}, ErrInvalid, "grant id or key id is missing"},
		{"unknown", &RevokeGrant{grantRef(9, 1)}, ErrNotFound, grantID(9).String()},
		{"of another key", &RevokeGrant{grantRef(1, 2)}, ErrNotFound, grantID(1).String()},
		{"of another tenant", &RetireGrant{GrantRef{grantID(1), keyID(1), "acme"}}, ErrNotFound, grantID(1).String()},
		{"a second early", &ExpireGrant{grantRef(2, 1), start + 8}, ErrConflict, fmt.Sprintf("does not end at %d", start+8)},
		{"one without an end", &ExpireGrant{grantRef(1, 1), 1<<63 - 1}, ErrConflict, "does not end at"},
		{"expired, unknown", &ExpireGrant{grantRef(9, 1), start}, ErrNotFound, grantID(9).String()},
		{"expired, of another key", &ExpireGrant{grantRef(2, 2), start + 9}, ErrNotFound, grantID(2).String()},
	})
	w := base(t)
	w.do(&ScheduleKeyDeletion{ref(1), 7})
	w.do(&ExpireGrant{grantRef(2, 1), start + 9}) // whatever state its key is in
	w.do(&RetireGrant{grantRef(1, 1)})
}

// TestGrantsOfServices are held to the key's tenant and to a resource.
func TestGrantsOfServices(t *testing.T) {
	service := func(f func(c *CreateGrant)) *CreateGrant {
		return grant(func(c *CreateGrant) {
			c.Grantee, c.Service, c.Constraints.Subset = storage, true, []Tag{{"tenant", DefaultTenant}, {"resource", "bucket/a"}}
			f(c)
		})
	}
	testAccepted(t, oneKey, []accepted{
		{"at least", service(func(*CreateGrant) {})},
		{"exactly", service(func(c *CreateGrant) { c.Constraints = Constraints{Equals: c.Constraints.Subset} })},
		{"not for a service", grant(func(*CreateGrant) {})},
	})
	testRefusals(t, oneKey, []refusal{
		{"no constraint", service(func(c *CreateGrant) { c.Constraints.Subset = nil }), ErrInvalid, "tenant=default"},
		{"another tenant", service(func(c *CreateGrant) { c.Constraints.Subset[0].Value = "acme" }), ErrInvalid, "tenant=default"},
		{"no tenant", service(func(c *CreateGrant) { c.Constraints.Subset = c.Constraints.Subset[1:] }), ErrInvalid, "tenant=default"},
		{"no resource", service(func(c *CreateGrant) { c.Constraints.Subset = c.Constraints.Subset[:1] }), ErrInvalid, "resource="},
	})
}

// TestGrantsOfDecryptOnly: no grant of what such a key does not do.
func TestGrantsOfDecryptOnly(t *testing.T) {
	seals := map[GrantOperation]bool{
		"Decrypt": false, "Encrypt": true, "GenerateDataKey": true, "GenerateDataKeyWithoutPlaintext": true, "ReEncryptFrom": false, "ReEncryptTo": true,
		"Sign": true, "Verify": false, "GetPublicKey": false, "CreateGrant": false, "RetireGrant": false, "DescribeKey": false,
		"GenerateDataKeyPair": true, "GenerateDataKeyPairWithoutPlaintext": true, "GenerateMac": true, "VerifyMac": false,
	}
	if len(seals) != len(grantOperations) {
		t.Errorf("%d operations, want %d", len(grantOperations), len(seals))
	}
	for op, seals := range seals {
		w := oneKey(t)
		w.do(keyOfSpec(2, SpecHMAC256, UsageMac))
		w.do(keyOfSpec(3, SpecP256, UsageSignVerify))
		key := uint64(1)
		for w.key(key).Serves(op) != nil {
			key++
		}
		w.do(&SetKeyDecryptOnly{ref(key)})
		c := edited(createGrant(1, key), func(c *CreateGrant) { c.Operations = []GrantOperation{op} })
		if seals {
			w.refuse(c, ErrDecryptOnly, "so no grant of "+string(op))
		} else {
			w.do(c)
		}
		w.do(&EnableKey{ref(key)})
		w.do(edited(c, func(c *CreateGrant) { c.Grant = grantID(2) }))
	}
}

// TestGrantsOfKinds: no grant of what a key is not for.
func TestGrantsOfKinds(t *testing.T) {
	always := []GrantOperation{GrantCreateGrant, GrantRetireGrant, GrantDescribeKey}
	for kind, own := range map[[2]string][]GrantOperation{
		{"SYMMETRIC", "ENCRYPT_DECRYPT"}: {
			GrantEncrypt, GrantDecrypt, GrantReEncryptFrom, GrantReEncryptTo, GrantGenerateDataKey, GrantDataKeyBlind, GrantDataKeyPair, GrantDataKeyPairBlind,
		},
		{"HMAC_512", "GENERATE_VERIFY_MAC"}: {GrantGenerateMac, GrantVerifyMac},
		{"RSA_3072", "SIGN_VERIFY"}:         {GrantSign, GrantVerify, GrantGetPublicKey},
		{"RSA_3072", "ENCRYPT_DECRYPT"}:     {GrantEncrypt, GrantDecrypt, GrantGetPublicKey},
		{"ECC_NIST_P384", "SIGN_VERIFY"}:    {GrantSign, GrantVerify, GrantGetPublicKey},
	} {
		w := oneKey(t)
		key := uint64(1)
		if kind[0] != "SYMMETRIC" {
			key = 2
			w.do(keyOfSpec(2, KeySpec(kind[0]), KeyUsage(kind[1])))
		}
		for op := range grantOperations {
			c := edited(createGrant(1, key), func(c *CreateGrant) { c.Operations = []GrantOperation{op} })
			if slices.Contains(own, op) || slices.Contains(always, op) {
				w.do(c)
				w.do(&RevokeGrant{grantRef(1, key)})
			} else {
				w.refuse(c, ErrUnsupported, kind[0]+" for "+kind[1]+", not for "+string(op))
			}
		}
	}
}

func TestGrantPages(t *testing.T) {
	w := twoKeys(t)
	for n := uint64(1); n <= 8; n++ {
		w.do(edited(createGrant(n, 1+n%2), func(c *CreateGrant) {
			c.Grantee, c.Retiring = []string{user, other}[n/4%2], []string{"", user, other}[n%3]
		}))
	}
	for _, row := range []struct {
		after uint64
		limit int
		key   []uint64 // of key 2
		user  []uint64 // that user may retire
	}{
		{0, 10, []uint64{1, 3, 5, 7}, []uint64{1, 4, 7}},
		{0, 2, []uint64{1, 3}, []uint64{1, 4}},
		{3, 2, []uint64{5, 7}, []uint64{4, 7}},
		{4, 9, []uint64{5, 7}, []uint64{7}},
		{7, 9, nil, nil},
		{0, 0, nil, nil},
	} {
		after := grantID(row.after)
		if got := numbers(w.s.GrantsOf(keyID(2), after, row.limit)); !slices.Equal(got, row.key) {
			t.Errorf("of a key after %d, at most %d: %v, want %v", row.after, row.limit, got, row.key)
		}
		if got := numbers(w.s.RetirableGrants(user, after, row.limit)); !slices.Equal(got, row.user) {
			t.Errorf("to retire after %d, at most %d: %v, want %v", row.after, row.limit, got, row.user)
		}
	}
	for _, none := range []string{"", user + "x", user[:len(user)-1]} {
		if got := w.s.RetirableGrants(none, ID{}, 10); got != nil {
			t.Errorf("%q may retire %v", none, numbers(got))
		}
	}
	held := func(grantee string, key uint64, most int) []uint64 {
		var got []*Grant
		w.s.GrantsFor(grantee, keyID(key), func(g *Grant) bool { got = append(got, g); return len(got) < most })
		return numbers(got)
	}
	for _, row := range []struct {
		grantee string
		key     uint64
		most    int
		want    []uint64
	}{
		{user, 1, 9, []uint64{2, 8}},
		{user, 2, 9, []uint64{1, 3}},
		{user, 2, 1, []uint64{1}},
		{other, 1, 9, []uint64{4, 6}},
		{other, 3, 9, nil},
		{user + "x", 1, 9, nil},
		{"", 1, 9, nil},
	} {
		if got := held(row.grantee, row.key, row.most); !slices.Equal(got, row.want) {
			t.Errorf("%s holds of key %d: %v, want %v", row.grantee, row.key, got, row.want)
		}
	}
}

// TestGrantsFitting: of a service's grants, one a resource, a call looks at those of its own.
func TestGrantsFitting(t *testing.T) {
	w := twoKeys(t)
	for i, c := range []struct {
		key      uint64
		grantee  string
		resource string
	}{{1, storage, "a"}, {1, storage, "b"}, {1, storage, ""}, {1, storage, "b"}, {2, storage, "b"}, {1, user, "b"}, {1, user, ""}} {
		w.do(edited(createGrant(uint64(i+1), c.key), func(x *CreateGrant) {
			x.Grantee = c.grantee
			if c.resource != "" {
				x.Constraints.Subset = []Tag{{ContextResource, c.resource}}
			}
		}))
	}
	for _, row := range []struct {
		grantee string
		key     uint64
		context []Tag
		want    []uint64
	}{
		{storage, 1, []Tag{{"tenant", "x"}, {ContextResource, "b"}}, []uint64{2, 4, 3}},
		{storage, 1, []Tag{{ContextResource, "a"}}, []uint64{1, 3}},
		{storage, 1, []Tag{{ContextResource, "c"}}, []uint64{3}},
		{storage, 1, []Tag{{ContextResource, ""}}, []uint64{3}},
		{storage, 1, nil, []uint64{3}},
		{storage, 2, []Tag{{ContextResource, "b"}}, []uint64{5}},
		{user, 1, []Tag{{ContextResource, "b"}}, []uint64{6, 7}},
		{other, 1, []Tag{{ContextResource, "b"}}, nil},
	} {
		for _, s := range []*State{w.s, reread(t, w.s)} {
			var got []uint64
			s.GrantsFitting(row.grantee, keyID(row.key), row.context, func(g *Grant) bool {
				for n := uint64(1); n <= 7; n++ {
					if g.ID == grantID(n) {
						got = append(got, n)
					}
				}
				return true
			})
			if !slices.Equal(got, row.want) {
				t.Errorf("%s, key %d, %v: grants %v, want %v", row.grantee, row.key, row.context, got, row.want)
			}
			n := 0
			s.GrantsFitting(row.grantee, keyID(row.key), row.context, func(*Grant) bool { n++; return false })
			if n != min(1, len(row.want)) {
				t.Errorf("%d grants are shown when one is enough", n)
			}
		}
	}
}
