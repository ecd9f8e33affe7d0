package fsm

import (
	"strings"
	"testing"
)

// TestDisablePrincipal: the operators' and each tenant's are records of their own.
func TestDisablePrincipal(t *testing.T) {
	w := initialized(t)
	if _, ok := w.s.Disabled(user); ok {
		t.Error("nobody was disabled, and somebody is")
	}
	if got := w.do(&DisablePrincipal{user, DefaultTenant}); got != (Result{Index: 2, ID: user}) {
		t.Errorf("result %+v", got)
	}
	want := DisabledPrincipal{Principal: user, Tenant: DefaultTenant, By: admin, Since: start, Revision: 2}
	w.clock += second
	w.do(&DisablePrincipal{user, DefaultTenant}) // again: the first stands
	if got, ok := w.s.Disabled(user); !ok || *got != want {
		t.Errorf("disabled is %+v, want %+v", got, want)
	}
	w.as(storage, func() { w.do(&DisablePrincipal{user, ""}) })
	want = DisabledPrincipal{Principal: user, By: storage, Since: start + 1, Revision: 4}
	if got, ok := w.s.Disabled(user); !ok || *got != want {
		t.Errorf("disabled is %+v, want %+v", got, want)
	}
	for _, near := range []string{user + "x", user[:len(user)-1], other, ""} {
		if got, ok := w.s.Disabled(near); ok {
			t.Errorf("%q is disabled as %+v", near, got)
		}
	}
	w.refuse(&EnablePrincipal{user, "acme"}, ErrNotFound, user+" is not disabled by your side")
	w.do(&EnablePrincipal{user, ""})
	w.refuse(&EnablePrincipal{user, ""}, ErrNotFound, user+" is not disabled by your side")
	if got, ok := w.s.Disabled(user); !ok || got.Tenant != DefaultTenant {
		t.Errorf("the operators' side alone was enabled, and it is %+v", got)
	}
	w.do(&EnablePrincipal{user, DefaultTenant})
	if _, ok := w.s.Disabled(user); ok {
		t.Error("it is still disabled")
	}
}

func TestPrincipalRefused(t *testing.T) {
	long := "spiffe://" + strings.Repeat("x", MaxPrincipal-9)
	testAccepted(t, initialized, []accepted{{"512 bytes", &DisablePrincipal{long, ""}}})
	testRefusals(t, initialized, []refusal{
		{"none", &DisablePrincipal{"", ""}, ErrInvalid, "must be a SPIFFE URI"},
		{"no URI", &DisablePrincipal{"uma", ""}, ErrInvalid, `principal "uma": must be a SPIFFE URI`},
		{"513 bytes", &DisablePrincipal{long + "x", ""}, ErrInvalid, "at most 512 bytes"},
		{"no tenant's name", &DisablePrincipal{user, "A"}, ErrInvalid, `tenant "A"`},
		{"enabled, no URI", &EnablePrincipal{"https://kms.example", ""}, ErrInvalid, "must be a SPIFFE URI"},
		{"enabled, no tenant's name", &EnablePrincipal{user, "a/b"}, ErrInvalid, `tenant "a/b"`},
		{"enabled, not disabled", &EnablePrincipal{user, ""}, ErrNotFound, "is not disabled"},
	})
}

// TestDisabledLimit: a tenant that disabled all it may leaves room for the operators.
func TestDisabledLimit(t *testing.T) {
	w := initialized(t)
	w.edit(func(t *tx) {
		for n := uint64(0); n < MaxDisabled; n++ {
			t.putDisabled(&DisabledPrincipal{Principal: "spiffe://" + keyID(n).String(), Tenant: "acme"})
		}
	})
	w.refuse(&DisablePrincipal{user, "acme"}, ErrLimit, "10000 principals are disabled")
	w.do(&DisablePrincipal{"spiffe://" + keyID(7).String(), "acme"}) // it is already
	w.do(&DisablePrincipal{user, ""})
	w.do(&DisablePrincipal{user, DefaultTenant})
	w.do(&EnablePrincipal{"spiffe://" + keyID(7).String(), "acme"})
	w.do(&DisablePrincipal{user, "acme"})
}

// TestDisabledPages: no principal is lost between two pages, though it has several records.
func TestDisabledPages(t *testing.T) {
	w := initialized(t)
	for _, d := range []DisablePrincipal{{"spiffe://b", ""}, {"spiffe://b", "acme"}, {"spiffe://b", "zeta"}, {"spiffe://a", "acme"}, {"spiffe://c", ""}, {"spiffe://d", "zeta"}} {
		w.do(&d)
	}
	for _, row := range []struct {
		tenant string
		after  DisabledPrincipal
		limit  int
		want   string
	}{
		{"", DisabledPrincipal{}, 10, "a/acme b/ b/acme b/zeta c/ d/zeta"},
		{"", DisabledPrincipal{}, 1, "a/acme"},
		{"", DisabledPrincipal{Principal: "spiffe://a", Tenant: "acme"}, 1, "b/"},
		{"", DisabledPrincipal{}, 3, "a/acme b/ b/acme"},
		{"", DisabledPrincipal{Principal: "spiffe://b", Tenant: "acme"}, 2, "b/zeta c/"},
		{"", DisabledPrincipal{Principal: "spiffe://d", Tenant: "zeta"}, 1, ""},
		{"", DisabledPrincipal{}, 0, ""},
		{"acme", DisabledPrincipal{}, 10, "a/acme b/acme"},
		{"acme", DisabledPrincipal{}, 1, "a/acme"},
		{"acme", DisabledPrincipal{Principal: "spiffe://a", Tenant: "acme"}, 1, "b/acme"},
		{"zeta", DisabledPrincipal{}, 1, "b/zeta"},
		{"none", DisabledPrincipal{}, 10, ""},
	} {
		var got []string
		for _, d := range w.s.DisabledPrincipals(row.tenant, &row.after, row.limit) {
			got = append(got, strings.TrimPrefix(d.Principal, "spiffe://")+"/"+d.Tenant)
		}
		if s := strings.Join(got, " "); s != row.want {
			t.Errorf("of %q after %q, at most %d: %s, want %s", row.tenant, row.after.Principal, row.limit, s, row.want)
		}
	}
}
