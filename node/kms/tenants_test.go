package kms

import (
	"slices"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
)

func TestTenantRoles(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	create := func(c Call, name, admin string) error {
		_, err := e.CreateTenant(ctx, c, name, admin, 0)
		return err
	}
	quota := func(c Call, n int) error { _, err := e.SetTenantQuota(ctx, c, "acme", n); return err }
	for _, short := range []string{ada, abel, uma, tom, cleo, obs, node} {
		e.refused(create(as(short), "new", who("new/admin/nell")), ErrDenied, "operate the cluster")
		e.refused(quota(as(short), 1), ErrDenied, "operate the cluster")
	}
	for name, c := range map[string]struct {
		tenant, admin string
		want          error
	}{
		"a user as administrator":         {"new", who("new/user/nell"), fsm.ErrInvalid},
		"another tenant's administrator":  {"new", who(ada), fsm.ErrInvalid},
		"no principal":                    {"new", "nell", fsm.ErrInvalid},
		"of another trust domain":         {"new", "spiffe://x/tenant/new/admin/nell", fsm.ErrInvalid},
		"a name that is none":             {"New!", who("New!/admin/nell"), fsm.ErrInvalid},
		"one that is there":               {"acme", who("acme/admin/nell"), fsm.ErrExists},
		"a good one":                      {"new", who("new/admin/nell"), nil},
		"the same again, which is there":  {"default", who("default/admin/x"), fsm.ErrExists},
		"an operator is no administrator": {"new", who(olga), fsm.ErrInvalid},
	} {
		if err := create(as(olga), c.tenant, c.admin); c.want == nil {
			e.ok(err)
		} else {
			t.Log(name)
			e.refused(err, c.want)
		}
	}
	e.ok(quota(as(olga), 1))
	e.key("acme")
	_, _, err := e.CreateKey(ctx, as(abel), KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
	e.refused(err, fsm.ErrLimit, "quota is 1")
	made := e.hsm.made
	_, _, err = e.CreateKey(ctx, as(abel), KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
	e.refused(err, fsm.ErrLimit)
	if e.hsm.made != made {
		t.Error("what the state refuses costs the HSM a key")
	}
	e.ok(quota(as(olga), 0))
	e.key("acme")
	e.refused(quota(as(olga), -1), fsm.ErrInvalid)
	e.do(&fsm.DisablePrincipal{Principal: who("operator/otto")})
	e.refused(quota(as("operator/otto"), 1), fsm.ErrPrincipalDisabled)
}

func TestFreeze(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, theirs := e.key("default"), e.key("acme")
	blob := e.sealed(as(uma), key)
	pairs := acting("default", "b")
	e.ok(e.encrypts(in(obs, "default"), "", pairs...))
	freeze := func(c Call, name string) error { _, err := e.FreezeTenant(ctx, c, name); return err }
	thaw := func(c Call, name string) error { _, err := e.ThawTenant(ctx, c, name); return err }
	check := func(frozen bool, says string) {
		t.Helper()
		for _, err := range []error{e.encrypts(as(uma), key), e.opens(as(uma), blob), e.encrypts(in(obs, "default"), "", pairs...)} {
			if !frozen {
				e.ok(err)
			} else {
				e.refused(err, fsm.ErrFrozen, says)
			}
		}
		e.ok(e.encrypts(as(una), theirs))
		m, _, err := e.DescribeKey(ctx, as(tom), key)
		e.ok(err)
		if (m.Frozen != "") != frozen {
			t.Errorf("shown as %q", m.Frozen)
		}
	}
	check(false, "")
	e.ok(freeze(as(ada), ""))
	check(true, "by its administrator")
	e.ok(thaw(as(olga), "default")) // ends the operators' freeze, which there is none of
	check(true, "by its administrator")
	e.ok(freeze(as(olga), "default"))
	check(true, "by a cluster operator")
	e.ok(thaw(as(ada), "default"))
	check(true, "by a cluster operator")
	e.refused(e.encrypts(in(vol, "default"), "", pairs...), fsm.ErrFrozen) // no key is made meanwhile
	if _, ok := e.log.State().ServiceKey("default", "vol"); ok {
		t.Error("a frozen tenant got a key")
	}
	e.ok(thaw(as(olga), "default"))
	check(false, "")

	for name, err := range map[string]error{
		"another tenant's administrator":         freeze(as(abel), "default"),
		"acting there":                           freeze(in(abel, "default"), "default"),
		"a user":                                 freeze(as(uma), ""),
		"an auditor":                             freeze(as(cleo), "default"),
		"a service":                              freeze(in(obs, "default"), "default"),
		"a tenant that is not there, from afar":  freeze(as(abel), "nobody"),
		"thaw by another tenant's administrator": thaw(as(abel), "default"),
	} {
		t.Log(name)
		e.refused(err, ErrDenied)
	}
	e.refused(freeze(as(olga), ""), fsm.ErrInvalid)
	e.refused(freeze(as(olga), "nobody"), fsm.ErrNotFound)
	e.put("", everybody+`forbid (principal, action == KMS::Action::"FreezeTenant", resource);`)
	e.refused(freeze(as(ada), ""), ErrDenied, "forbids FreezeTenant")
	e.ok(freeze(as(olga), "default"))
	e.ok(thaw(as(olga), "default"))
	check(false, "")
}

func TestDisablePrincipals(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	disable := func(c Call, short string) error { _, err := e.DisablePrincipal(ctx, c, who(short)); return err }
	enable := func(c Call, short string) error { _, err := e.EnablePrincipal(ctx, c, who(short)); return err }
	for _, c := range []struct {
		name string
		by   Call
		whom string
		want error
		says string
	}{
		{"a user of its own", as(ada), uma, nil, ""},
		{"an administrator of its own", as(ada), bea, nil, ""},
		{"an auditor of its own", as(ada), tom, nil, ""},
		{"itself", as(ada), ada, fsm.ErrInvalid, "nobody disables itself"},
		{"another tenant's user", as(ada), una, ErrDenied, "does not belong to tenant default"},
		{"a service", as(ada), obs, ErrDenied, "does not belong"},
		{"an operator", as(ada), olga, ErrDenied, "does not belong"},
		{"acting for another tenant", in(ada, "acme"), una, ErrDenied, "may not DisablePrincipal for tenant acme"},
		{"a node", as(olga), node, fsm.ErrInvalid, "removed from the cluster"},
		{"a service, by an operator", as(olga), obs, nil, ""},
		{"a tenant's first administrator, by an operator", as(olga), abel, nil, ""},
		{"an operator, by another", as(olga), "operator/otto", nil, ""},
		{"an operator, itself", as(olga), olga, fsm.ErrInvalid, "nobody disables itself"},
		{"by a user", as(uri), uma, ErrDenied, "class user"},
		{"by an auditor", as(cleo), uma, ErrDenied, "class auditor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := disable(c.by, c.whom)
			if c.want != nil {
				e.refused(err, c.want, c.says)
				return
			}
			e.ok(err)
			if _, off := e.log.State().Disabled(who(c.whom)); !off {
				t.Error("it is not")
			}
			e.ok(disable(c.by, c.whom)) // again
			e.ok(enable(c.by, c.whom))
			if _, off := e.log.State().Disabled(who(c.whom)); off {
				t.Error("it still is")
			}
			e.refused(enable(c.by, c.whom), fsm.ErrNotFound)
		})
	}
	t.Run("each side gives back what it took", func(t *testing.T) {
		e.ok(disable(as(ada), uma))
		e.ok(disable(as(olga), uma))
		e.ok(enable(as(ada), uma))
		e.refused(e.encrypts(as(uma), key), fsm.ErrPrincipalDisabled, "by a cluster operator")
		e.refused(enable(as(ada), uma), fsm.ErrNotFound)
		e.ok(disable(as(ada), uma))
		e.ok(enable(as(olga), uma))
		e.refused(e.encrypts(as(uma), key), fsm.ErrPrincipalDisabled, "administrator of tenant default")
		e.ok(enable(as(ada), uma))
		e.ok(e.encrypts(as(uma), key))
	})
	t.Run("a disabled administrator does nothing", func(t *testing.T) {
		e.ok(disable(as(ada), bea))
		_, _, err := e.DisableKey(ctx, as(bea), key, 0)
		e.refused(err, fsm.ErrPrincipalDisabled)
		_, _, err = e.ListKeys(ctx, as(bea), 0, "")
		e.refused(err, fsm.ErrPrincipalDisabled)
		_, _, err = e.ListRetirableGrants(ctx, as(bea), "", 0, "")
		e.refused(err, fsm.ErrPrincipalDisabled)
		e.ok(enable(as(ada), bea))
	})
}

func TestListDisabled(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	for _, p := range []string{uma, uri, bea} {
		_, err := e.DisablePrincipal(ctx, as(ada), who(p))
		e.ok(err)
		_, err = e.DisablePrincipal(ctx, as(olga), who(p)) // both
		e.ok(err)
	}
	_, err := e.DisablePrincipal(ctx, as(abel), who(una))
	e.ok(err)
	for name, c := range map[string]struct {
		call Call
		want int
	}{
		"an operator":                    {as(olga), 7},
		"the cluster's auditor":          {as(cleo), 7},
		"the cluster's auditor, acting":  {in(cleo, "acme"), 1},
		"an administrator":               {as(ada), 3},
		"an auditor":                     {as(tom), 3},
		"another tenant's administrator": {as(abel), 1},
	} {
		for _, limit := range []uint32{0, 1, 2, 3} {
			seen := map[string]bool{}
			for marker := ""; ; {
				p, _, err := e.ListDisabledPrincipals(ctx, c.call, limit, marker)
				e.ok(err)
				for _, d := range p.Items {
					if seen[d.Principal+" "+d.Tenant] {
						t.Fatalf("%s, limit %d: %s twice", name, limit, d.Principal)
					}
					seen[d.Principal+" "+d.Tenant] = true
				}
				if marker = p.Next; marker == "" {
					break
				}
			}
			if len(seen) != c.want {
				t.Errorf("%s, limit %d: %d, want %d", name, limit, len(seen), c.want)
			}
		}
	}
	_, _, err = e.ListDisabledPrincipals(ctx, in(abel, "default"), 0, "")
	e.refused(err, ErrDenied)
	_, _, err = e.ListDisabledPrincipals(ctx, as(obs), 0, "")
	e.refused(err, ErrDenied)
}

func TestTenantVisibility(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	e.key("acme")
	for _, c := range []struct {
		call       Call
		name, want string // empty: denied
	}{
		{as(ada), "", "default"},
		{as(uma), "default", "default"},
		{as(una), "", "acme"},
		{as(ada), "acme", ""},
		{in(ada, "acme"), "", ""},
		{as(olga), "acme", "acme"},
		{as(olga), "", "default"},
		{in(olga, "acme"), "", "acme"},
		{as(cleo), "acme", "acme"},
		{as(tom), "acme", ""},
		{as(obs), "acme", ""},
		{as(ada), "nobody", ""},
	} {
		v, _, err := e.DescribeTenant(ctx, c.call, c.name)
		switch {
		case c.want == "":
			e.refused(err, ErrDenied)
		case err != nil || v.Name != c.want:
			t.Errorf("%s, %q: %v, %v", c.call.Caller.Principal, c.name, v, err)
		case v.Name == "acme" && v.Keys != 1:
			t.Errorf("%d keys", v.Keys)
		}
	}
	_, _, err := e.DescribeTenant(ctx, as(olga), "nobody")
	e.refused(err, fsm.ErrNotFound)
	v, _, err := e.DescribeTenant(ctx, in(olga, "acme"), "default")
	if err != nil || v.Name != "default" {
		t.Errorf("the name says which: %v, %v", v, err)
	}
	for _, short := range []string{"b", "c", "d"} {
		_, err := e.CreateTenant(ctx, as(olga), short, who(short+"/admin/a"), 0)
		e.ok(err)
	}
	for _, short := range []string{olga, cleo} {
		for _, limit := range []uint32{0, 1, 2, 5} {
			var got []string
			for marker := ""; ; {
				p, _, err := e.ListTenants(ctx, as(short), limit, marker)
				e.ok(err)
				for _, v := range p.Items {
					got = append(got, v.Name)
				}
				if marker = p.Next; marker == "" {
					break
				}
			}
			if !slices.Equal(got, []string{"acme", "b", "c", "d", "default"}) {
				t.Errorf("%s, limit %d: %v", short, limit, got)
			}
		}
	}
	for _, short := range []string{ada, uma, tom, obs, node} {
		_, _, err := e.ListTenants(ctx, as(short), 0, "")
		e.refused(err, ErrDenied)
	}
}
