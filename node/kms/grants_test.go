package kms

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// onlyAdmins is a policy under which users have what grants give them.
const onlyAdmins = "permit (principal is KMS::Admin, action, resource);"

func TestGrantConstraints(t *testing.T) {
	e := newEnv(t)
	e.put("", onlyAdmins)
	one, two := Pair{"bucket", "b1"}, Pair{"part", "7"}
	for _, c := range []struct {
		name        string
		constraints fsm.Constraints
		context     []Pair
		want        bool
	}{
		{"none", fsm.Constraints{}, nil, true},
		{"none, and a context", fsm.Constraints{}, []Pair{one}, true},
		{"equals", fsm.Constraints{Equals: tagsOf([]Pair{one})}, []Pair{one}, true},
		{"equals, in any order", fsm.Constraints{Equals: tagsOf([]Pair{one, two})}, []Pair{two, one}, true},
		{"equals, no context", fsm.Constraints{Equals: tagsOf([]Pair{one})}, nil, false},
		{"equals, more", fsm.Constraints{Equals: tagsOf([]Pair{one})}, []Pair{one, two}, false},
		{"equals, another value", fsm.Constraints{Equals: tagsOf([]Pair{one})}, []Pair{{"bucket", "B1"}}, false},
		{"equals, another case of the key", fsm.Constraints{Equals: tagsOf([]Pair{one})}, []Pair{{"Bucket", "b1"}}, false},
		{"subset", fsm.Constraints{Subset: tagsOf([]Pair{one})}, []Pair{one, two}, true},
		{"subset, just that", fsm.Constraints{Subset: tagsOf([]Pair{one})}, []Pair{one}, true},
		{"subset, less", fsm.Constraints{Subset: tagsOf([]Pair{one, two})}, []Pair{one}, false},
		{"subset, no context", fsm.Constraints{Subset: tagsOf([]Pair{one})}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := e.key("default")
			e.give(key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt, fsm.GrantDescribeKey), Constraints: c.constraints})
			arn := e.arn("default", key)
			if err := e.encrypts(as(una), arn, c.context...); (err == nil) != c.want {
				t.Errorf("%v", err)
			}
			if _, _, err := e.DescribeKey(t.Context(), as(una), arn); err != nil {
				t.Errorf("DescribeKey has no context to be held to: %v", err)
			}
			if err := e.opens(as(una), e.sealedAs(key)); err == nil {
				t.Error("Decrypt was not granted")
			}
		})
	}
}

// sealedAs is a ciphertext under a key that a passing user has made.
func (e *env) sealedAs(key string) []byte {
	e.t.Helper()
	g := e.give(key, GrantParams{Grantee: who("default/user/passing"), Operations: ops(fsm.GrantEncrypt)})
	blob := e.sealed(as("default/user/passing"), key)
	_, err := e.RevokeGrant(e.t.Context(), as(ada), key, g)
	e.ok(err)
	return blob
}

func TestGrantExpiry(t *testing.T) {
	for name, ahead := range map[string]bool{"by the local clock": false, "by the state's": true} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.put("", onlyAdmins)
			key := e.key("default")
			e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: start.Add(time.Minute)})
			e.ok(e.encrypts(as(uma), key))
			if ahead { // an entry of a leader whose clock is ahead of this node's
				e.log.now = func() time.Time { return start.Add(time.Minute) }
				e.do(&fsm.Tick{Hash: make([]byte, 32)})
			} else {
				e.clock.advance(time.Minute - time.Second)
				e.ok(e.encrypts(as(uma), key))
				e.clock.advance(time.Second)
			}
			e.refused(e.encrypts(as(uma), key), ErrDenied, "no policy and no grant")
			if _, ok := e.log.State().Key(uuid.MustParse(key)); !ok || e.log.State().CountGrants(uuid.MustParse(key)) != 1 {
				t.Error("a grant that has ended goes by the leader's duty alone")
			}
		})
	}
	e := newEnv(t)
	_, _, err := e.CreateGrant(t.Context(), as(ada), e.key("default"), GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: start})
	e.refused(err, fsm.ErrInvalid, "would have ended")
}

func TestGrantees(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	constrained := fsm.Constraints{Subset: tagsOf(acting("default", "b"))}
	for _, c := range []struct {
		name string
		call Call
		p    GrantParams
		want error
		says string
	}{
		{"a user", as(ada), GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)}, nil, ""},
		{"another tenant's user", as(ada), GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt)}, nil, ""},
		{"a service", as(ada), GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: constrained}, nil, ""},
		{"a service, unconstrained", as(ada), GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt)}, fsm.ErrInvalid, "tenant=default"},
		{"a service, another tenant's", as(ada), GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: fsm.Constraints{Subset: tagsOf(acting("acme", "b"))}}, fsm.ErrInvalid, "tenant=default"},
		{"a service, no resource", as(ada), GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: fsm.Constraints{Subset: []fsm.Tag{{Key: "tenant", Value: "default"}}}}, fsm.ErrInvalid, "resource=…"},
		{"an administrator", as(ada), GrantParams{Grantee: who(bea), Operations: ops(fsm.GrantEncrypt)}, fsm.ErrInvalid, "class admin"},
		{"an auditor", as(ada), GrantParams{Grantee: who(tom), Operations: ops(fsm.GrantDescribeKey)}, fsm.ErrInvalid, "class auditor"},
		{"a node", as(ada), GrantParams{Grantee: who(node), Operations: ops(fsm.GrantEncrypt)}, fsm.ErrInvalid, "class node"},
		{"another trust domain", as(ada), GrantParams{Grantee: "spiffe://other/tenant/default/user/x", Operations: ops(fsm.GrantEncrypt)}, fsm.ErrInvalid, "grantee"},
		{"a bad retiring principal", as(ada), GrantParams{Grantee: who(uma), Retiring: "x", Operations: ops(fsm.GrantEncrypt)}, fsm.ErrInvalid, "retiring"},
		{"no operation", as(ada), GrantParams{Grantee: who(uma)}, fsm.ErrInvalid, "operation"},
		{"an unknown operation", as(ada), GrantParams{Grantee: who(uma), Operations: ops("DisableKey")}, fsm.ErrInvalid, "DisableKey"},
		{"by a user", as(uma), GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt)}, ErrDenied, "no policy and no grant permits CreateGrant"},
		{"by an auditor", as(tom), GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)}, ErrDenied, "class auditor"},
		{"by an operator", as(olga), GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)}, ErrDenied, "class operator"},
		{"by an administrator under a grant that it does not hold", as(ada), GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Parent: uuid.NewString()}, fsm.ErrNotFound, "held by the caller"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, _, err := e.CreateGrant(t.Context(), c.call, key, c.p)
			if c.want == nil {
				e.ok(err)
				if r := e.audit.last(); r.Grant != id || r.KeyID != key || r.Target != c.p.Grantee {
					t.Errorf("recorded as %+v", r)
				}
				return
			}
			e.refused(err, c.want, c.says)
		})
	}
	t.Run("a dry run makes none", func(t *testing.T) {
		n := e.log.State().CountGrants(uuid.MustParse(key))
		c := as(ada)
		c.DryRun = true
		_, _, err := e.CreateGrant(t.Context(), c, key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})
		e.refused(err, ErrDryRun)
		if got := e.log.State().CountGrants(uuid.MustParse(key)); got != n {
			t.Errorf("%d grants, before %d", got, n)
		}
	})
	t.Run("a name makes it idempotent", func(t *testing.T) {
		p := GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Name: "once"}
		first := e.give(key, p)
		if again := e.give(key, p); again != first || e.audit.last().Grant != first {
			t.Errorf("%s, then %s; recorded as %s", first, again, e.audit.last().Grant)
		}
		p.Operations = ops(fsm.GrantDecrypt)
		_, _, err := e.CreateGrant(t.Context(), as(ada), key, p)
		e.refused(err, fsm.ErrExists, "once")
	})
}

func TestDelegation(t *testing.T) {
	e := newEnv(t)
	e.put("", onlyAdmins)
	key := e.key("default")
	arn := e.arn("default", key)
	outer := fsm.Constraints{Subset: []fsm.Tag{{Key: "bucket", Value: "b1"}}}
	parent := e.give(key, GrantParams{
		Grantee: who(una), Operations: ops(fsm.GrantEncrypt, fsm.GrantDecrypt, fsm.GrantCreateGrant), Constraints: outer, Expires: start.Add(time.Hour),
	})
	other := e.give(key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt)})
	stricter := fsm.Constraints{Subset: []fsm.Tag{{Key: "bucket", Value: "b1"}, {Key: "part", Value: "7"}}}
	base := GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt), Constraints: outer, Expires: start.Add(time.Hour)}
	for _, c := range []struct {
		name   string
		change func(p *GrantParams)
		want   error
		says   string
	}{
		{"parent found by itself", func(*GrantParams) {}, nil, ""},
		{"parent named", func(p *GrantParams) { p.Parent = parent }, nil, ""},
		{"stricter", func(p *GrantParams) { p.Constraints = stricter }, nil, ""},
		{"equals instead of subset", func(p *GrantParams) { p.Constraints = fsm.Constraints{Equals: stricter.Subset} }, nil, ""},
		{"sooner", func(p *GrantParams) { p.Expires = start.Add(time.Minute) }, nil, ""},
		{"CreateGrant handed on", func(p *GrantParams) { p.Operations = ops(fsm.GrantCreateGrant, fsm.GrantEncrypt) }, nil, ""},
		{"unconstrained", func(p *GrantParams) { p.Constraints = fsm.Constraints{} }, fsm.ErrInvalid, "at least as strict"},
		{"another value", func(p *GrantParams) { p.Constraints = fsm.Constraints{Subset: []fsm.Tag{{Key: "bucket", Value: "b2"}}} }, fsm.ErrInvalid, "at least as strict"},
		{"one operation more", func(p *GrantParams) { p.Operations = ops(fsm.GrantEncrypt, fsm.GrantReEncryptFrom) }, fsm.ErrInvalid, "ReEncryptFrom"},
		{"later", func(p *GrantParams) { p.Expires = start.Add(2 * time.Hour) }, fsm.ErrInvalid, "must not end later"},
		{"never", func(p *GrantParams) { p.Expires = time.Time{} }, fsm.ErrInvalid, "must not end later"},
		{"a parent without CreateGrant", func(p *GrantParams) { p.Parent = other }, fsm.ErrNotFound, other},
		{"a parent that is none", func(p *GrantParams) { p.Parent = uuid.NewString() }, fsm.ErrNotFound, "held by the caller"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := base
			c.change(&p)
			id, _, err := e.CreateGrant(t.Context(), as(una), arn, p)
			if c.want != nil {
				e.refused(err, c.want, c.says)
				return
			}
			e.ok(err)
			g, _ := e.log.State().Grant(uuid.MustParse(id))
			if g.Parent.String() != parent || g.Issuer != who(una) || g.Depth != 1 {
				t.Errorf("%+v", g)
			}
			if by := e.audit.last().DecidedBy; by != "grant "+parent {
				t.Errorf("decided by %q", by)
			}
		})
	}
	t.Run("what policies permit needs no parent", func(t *testing.T) {
		e.put("", onlyAdmins+`permit (principal is KMS::User, action == KMS::Action::"CreateGrant", resource);`)
		e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantCreateGrant, fsm.GrantEncrypt)})
		id, _, err := e.CreateGrant(t.Context(), as(uma), key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantDecrypt)})
		e.ok(err)
		if g, _ := e.log.State().Grant(uuid.MustParse(id)); g.Parent != (fsm.ID{}) {
			t.Errorf("it follows from %s", g.Parent)
		}
		e.put("", onlyAdmins)
	})
	t.Run("a forbid beats the grant", func(t *testing.T) {
		e.put("", onlyAdmins+`forbid (principal is KMS::User, action == KMS::Action::"CreateGrant", resource);`)
		_, _, err := e.CreateGrant(t.Context(), as(una), arn, base)
		e.refused(err, ErrDenied, "no grant of yours")
		e.put("", onlyAdmins)
	})
	t.Run("not once it has ended", func(t *testing.T) {
		e.clock.advance(time.Hour)
		p := base
		p.Expires = e.clock.Now().Add(time.Minute)
		_, _, err := e.CreateGrant(t.Context(), as(una), arn, p)
		e.refused(err, ErrDenied)
	})
}

func TestRetire(t *testing.T) {
	e := newEnv(t)
	e.put("", onlyAdmins)
	key := e.key("default")
	arn := e.arn("default", key)
	withRetire := GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt, fsm.GrantRetireGrant), Constraints: fsm.Constraints{Subset: []fsm.Tag{{Key: "a", Value: "b"}}}}
	without := GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt)}
	named := GrantParams{Grantee: who(uma), Retiring: who(una), Operations: ops(fsm.GrantEncrypt)}
	for _, c := range []struct {
		name string
		p    GrantParams
		who  string
		rule string // empty: refused
	}{
		{"the grantee with RetireGrant", withRetire, una, "grant"},
		{"the grantee without", without, una, ""},
		{"who is named", named, una, "retiring principal"},
		{"another who is named in none", named, "acme/user/other", ""},
		{"the grantee where another is named", named, uma, ""},
		{"an administrator, by policy", without, ada, "tenant policy"},
		{"another tenant's administrator", without, abel, ""},
		{"an auditor", without, tom, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := e.give(key, c.p)
			_, err := e.RetireGrant(t.Context(), as(c.who), arn, id)
			_, still := e.log.State().Grant(uuid.MustParse(id))
			if c.rule == "" {
				e.refused(err, ErrDenied)
				if !still {
					t.Error("it is gone")
				}
				return
			}
			e.ok(err)
			r := e.audit.last()
			if still || len(r.DecidedBy) < len(c.rule) || r.DecidedBy[:len(c.rule)] != c.rule || r.Grant != id || r.KeyID != key {
				t.Errorf("there: %v; recorded as %+v", still, r)
			}
		})
	}
	t.Run("RetireGrant is for that grant", func(t *testing.T) {
		mine, others := e.give(key, withRetire), e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})
		_, err := e.RetireGrant(t.Context(), as(una), arn, others)
		e.refused(err, ErrDenied)
		_, err = e.RevokeGrant(t.Context(), as(una), arn, mine)
		e.refused(err, ErrDenied, "class user")
		_, err = e.RetireGrant(t.Context(), as(una), arn, mine)
		e.ok(err)
	})
	t.Run("a forbid beats both", func(t *testing.T) {
		mine, by := e.give(key, withRetire), e.give(key, named)
		e.put("", onlyAdmins+`forbid (principal is KMS::User, action == KMS::Action::"RetireGrant", resource);`)
		for _, id := range []string{mine, by} {
			_, err := e.RetireGrant(t.Context(), as(una), arn, id)
			e.refused(err, ErrDenied)
		}
		e.put("", onlyAdmins)
	})
	t.Run("another key's grant", func(t *testing.T) {
		id, second := e.give(key, named), e.key("default")
		_, err := e.RetireGrant(t.Context(), as(una), e.arn("default", second), id)
		e.refused(err, ErrDenied)
		_, err = e.RetireGrant(t.Context(), as(ada), second, id)
		e.refused(err, fsm.ErrNotFound)
		_, err = e.RetireGrant(t.Context(), as(ada), second, "x")
		e.refused(err, fsm.ErrInvalid, "no grant id")
	})
	t.Run("a disabled principal retires nothing", func(t *testing.T) {
		id := e.give(key, named)
		e.do(&fsm.DisablePrincipal{Principal: who(una)})
		_, err := e.RetireGrant(t.Context(), as(una), arn, id)
		e.refused(err, fsm.ErrPrincipalDisabled)
	})
}

func TestRevokeCascades(t *testing.T) {
	e := newEnv(t)
	e.put("", onlyAdmins)
	key := e.key("default")
	all := ops(fsm.GrantEncrypt, fsm.GrantCreateGrant)
	top := e.give(key, GrantParams{Grantee: who("default/user/u0"), Operations: all})
	other := e.give(key, GrantParams{Grantee: who(uma), Operations: all})
	for i := range 4 {
		_, _, err := e.CreateGrant(t.Context(), as(fmt.Sprintf("default/user/u%d", i)), key, GrantParams{Grantee: who(fmt.Sprintf("default/user/u%d", i+1)), Operations: all})
		e.ok(err)
	}
	last := as("default/user/u4")
	e.ok(e.encrypts(last, key))
	_, err := e.RevokeGrant(t.Context(), as(uma), key, top)
	e.refused(err, ErrDenied)
	_, err = e.RevokeGrant(t.Context(), as(ada), key, top)
	e.ok(err)
	e.refused(e.encrypts(last, key), ErrDenied)
	if n := e.log.State().CountGrants(uuid.MustParse(key)); n != 1 {
		t.Errorf("%d grants are left, want %s alone", n, other)
	}
	e.ok(e.encrypts(as(uma), key))
}

func TestListGrants(t *testing.T) {
	e := newEnv(t)
	key, second := e.key("default"), e.key("default")
	var all, umas []string
	for i := range 25 {
		p := GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt), Name: fmt.Sprint(i)}
		if i%3 == 0 {
			p.Grantee = who(uma)
		}
		id := e.give(key, p)
		all = append(all, id)
		if i%3 == 0 {
			umas = append(umas, id)
		}
	}
	elsewhere := e.give(second, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})
	slices.Sort(all)
	slices.Sort(umas)
	for _, c := range []struct {
		name           string
		grantee, grant string
		want           []string
	}{
		{"all", "", "", all},
		{"of a grantee", who(uma), "", umas},
		{"of nobody", who(una), "", nil},
		{"one", "", all[3], all[3:4]},
		{"one of another key", "", elsewhere, nil},
		{"what is no id", "", "x", nil},
	} {
		for _, limit := range []uint32{0, 1, 4, 9, 25, 1000} {
			var got []string
			marker := ""
			for pages := 0; ; pages++ {
				p, _, err := e.ListGrants(t.Context(), as(tom), key, c.grantee, c.grant, limit, marker)
				e.ok(err)
				if limit != 0 && len(p.Items) > int(limit) || pages > 30 {
					t.Fatalf("%s: %d on page %d", c.name, len(p.Items), pages)
				}
				for _, g := range p.Items {
					got = append(got, g.ID.String())
				}
				if marker = p.Next; marker == "" {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s, limit %d: %d of %d: %v", c.name, limit, len(got), len(c.want), got)
			}
		}
	}
	_, _, err := e.ListGrants(t.Context(), as(tom), key, "", "", 1001, "")
	e.refused(err, fsm.ErrInvalid, "limit")
	_, _, err = e.ListGrants(t.Context(), as(tom), key, "", "", 1, "?")
	e.refused(err, fsm.ErrInvalid, "marker")
	_, _, err = e.ListGrants(t.Context(), as(tom), key, "", "", 1, encodeMarker("x"))
	e.refused(err, fsm.ErrInvalid, "marker")
}

func TestListRetirable(t *testing.T) {
	e := newEnv(t)
	mine, theirs := e.key("default"), e.key("acme")
	var all, own []string
	for i := range 12 {
		id := e.give(mine, GrantParams{Grantee: who(uri), Retiring: who(una), Operations: ops(fsm.GrantEncrypt), Name: fmt.Sprint(i)})
		all, own = append(all, id), append(own, id)
		id, _, err := e.CreateGrant(t.Context(), as(abel), theirs, GrantParams{Grantee: who(uri), Retiring: who(una), Operations: ops(fsm.GrantEncrypt), Name: fmt.Sprint(i)})
		e.ok(err)
		all = append(all, id)
		e.give(mine, GrantParams{Grantee: who(una), Retiring: who(uma), Operations: ops(fsm.GrantDecrypt)})
	}
	slices.Sort(all)
	slices.Sort(own)
	list := func(c Call, retiring string, limit uint32) (got []string, err error) {
		for marker := ""; ; {
			p, _, err := e.ListRetirableGrants(t.Context(), c, retiring, limit, marker)
			if err != nil {
				return nil, err
			}
			for _, g := range p.Items {
				got = append(got, g.ID.String())
			}
			if marker = p.Next; marker == "" {
				return got, nil
			}
		}
	}
	for _, limit := range []uint32{0, 1, 5, 12, 24} {
		for name, c := range map[string]struct {
			call     Call
			retiring string
			want     []string
		}{
			"one's own, of all tenants":       {as(una), "", all},
			"one's own by name":               {as(una), who(una), all},
			"another's, of the own tenant":    {as(ada), who(una), own},
			"another's, for an auditor":       {as(tom), who(una), own},
			"nobody's":                        {as(ada), who(uri), nil},
			"the cluster's auditor, a tenant": {in(cleo, "default"), who(una), own},
		} {
			got, err := list(c.call, c.retiring, limit)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s, limit %d: %v, %d of %d", name, limit, err, len(got), len(c.want))
			}
		}
	}
	_, err := list(in(una, "default"), who(uma), 0)
	e.refused(err, ErrDenied)
	_, err = list(as(olga), "", 0)
	e.refused(err, ErrDenied)
}

// TestGrantsByKeyState: a key's state decides on new grants.
func TestGrantsByKeyState(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	seal, open := GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)}, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantDecrypt)}
	_, _, err := e.SetKeyDecryptOnly(t.Context(), as(ada), key, 0)
	e.ok(err)
	_, _, err = e.CreateGrant(t.Context(), as(ada), key, seal)
	e.refused(err, fsm.ErrDecryptOnly)
	e.give(key, open)
	_, _, err = e.DisableKey(t.Context(), as(ada), key, 0)
	e.ok(err)
	_, _, err = e.CreateGrant(t.Context(), as(ada), key, open)
	e.refused(err, fsm.ErrDisabled)
}

// TestGrantOfAnotherUsage: what a key can never do is not granted.
func TestGrantOfAnotherUsage(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	for _, op := range []fsm.GrantOperation{fsm.GrantSign, fsm.GrantVerify, fsm.GrantGetPublicKey, fsm.GrantGenerateMac, fsm.GrantVerifyMac} {
		_, _, err := e.CreateGrant(t.Context(), as(ada), key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantDecrypt, op)})
		e.refused(err, fsm.ErrUnsupported, string(op), "ENCRYPT_DECRYPT")
	}
	_, _, err := e.DisableKey(t.Context(), as(ada), key, 0)
	e.ok(err)
	_, _, err = e.CreateGrant(t.Context(), as(ada), key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantSign)})
	e.refused(err, fsm.ErrDisabled)
}

// TestListHeld: what a grantee holds of all keys of the tenant, for whom policy lets read.
func TestListHeld(t *testing.T) {
	e := newEnv(t)
	want := map[string]bool{}
	for range 3 {
		key := e.key("default")
		for range 2 {
			want[e.give(key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantDecrypt)})] = true
		}
		e.give(key, GrantParams{Grantee: who("acme/user/una-2"), Operations: ops(fsm.GrantDecrypt)})
	}
	_, _, err := e.CreateGrant(t.Context(), as(abel), e.key("acme"), GrantParams{Grantee: who(una), Operations: ops(fsm.GrantDecrypt)})
	e.ok(err)
	for _, short := range []string{ada, tom, cleo} {
		for _, limit := range []uint32{1, 2, 6, 0} {
			got, marker := map[string]bool{}, ""
			for {
				p, _, err := e.ListGrants(t.Context(), in(short, "default"), "", who(una), "", limit, marker)
				e.ok(err)
				for _, g := range p.Items {
					if !want[g.ID.String()] || got[g.ID.String()] {
						t.Errorf("%s, pages of %d: %+v", short, limit, g)
					}
					got[g.ID.String()] = true
				}
				if marker = p.Next; marker == "" {
					break
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s, pages of %d: %d grants, want %d", short, limit, len(got), len(want))
			}
		}
	}
	_, _, err = e.ListGrants(t.Context(), in(una, "default"), "", who(una), "", 0, "")
	e.refused(err, ErrDenied)
	_, _, err = e.ListGrants(t.Context(), as(ada), "", "", "", 0, "")
	e.refused(err, fsm.ErrInvalid, "key id is missing")
	_, _, err = e.ListGrants(t.Context(), as(ada), "", who(una), "", 0, encodeMarker("x y"))
	e.refused(err, fsm.ErrInvalid, "marker")
}
