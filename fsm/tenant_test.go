package fsm

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

const acmeAdmin = "spiffe://kms.example/tenant/acme/admin/ann"

func createTenant(name string) *CreateTenant {
	return &CreateTenant{Name: name, Administrator: acmeAdmin}
}

func wantTenant(t *testing.T, w *world, want Tenant) {
	t.Helper()
	got, ok := w.s.Tenant(want.Name)
	if !ok || *got != want {
		t.Errorf("tenant is %+v, want %+v", got, want)
	}
}

func TestTenantLife(t *testing.T) {
	w := initialized(t)
	if got := w.do(edited(createTenant("acme"), func(c *CreateTenant) { c.MaxKeys = 3 })); got != (Result{Index: 2, ID: "acme"}) {
		t.Errorf("result %+v", got)
	}
	want := Tenant{Name: "acme", Created: start, Administrator: acmeAdmin, MaxKeys: 3, Revision: 2}
	wantTenant(t, w, want)
	for i, step := range []struct {
		command  Command
		operator bool
		tenant   bool
		says     string
	}{
		{&FreezeTenant{"acme", true}, true, false, "tenant is frozen: acme, by a cluster operator"},
		{&FreezeTenant{"acme", true}, true, false, "tenant is frozen: acme, by a cluster operator"},
		{&ThawTenant{"acme", false}, true, false, "tenant is frozen: acme, by a cluster operator"},
		{&FreezeTenant{"acme", false}, true, true, "tenant is frozen: acme, by a cluster operator"},
		{&ThawTenant{"acme", true}, false, true, "tenant is frozen: acme, by its administrator"},
		{&FreezeTenant{"acme", true}, true, true, "tenant is frozen: acme, by a cluster operator"},
		{&ThawTenant{"acme", false}, true, false, "tenant is frozen: acme, by a cluster operator"},
		{&ThawTenant{"acme", true}, false, false, ""},
		{&SetTenantQuota{"acme", 0}, false, false, ""},
	} {
		if got := w.do(step.command); got != (Result{Index: uint64(3 + i), ID: "acme"}) {
			t.Errorf("result %+v", got)
		}
		want.FrozenByOperator, want.FrozenByTenant, want.Revision = step.operator, step.tenant, uint64(3+i)
		if q, ok := step.command.(*SetTenantQuota); ok {
			want.MaxKeys = q.MaxKeys
		}
		wantTenant(t, w, want)
		n, _ := w.s.Tenant("acme")
		if err := n.Thawed(); step.says == "" != (err == nil) || err != nil && (!errors.Is(err, ErrFrozen) || err.Error() != step.says) {
			t.Errorf("after %s: %v, want %q", NameOf(step.command), err, step.says)
		}
	}
	wantTenant(t, w, Tenant{Name: DefaultTenant, Created: start, Administrator: admin, Revision: 1})
}

func TestTenantRefused(t *testing.T) {
	tenant := func(f func(*CreateTenant)) *CreateTenant { return edited(createTenant("acme"), f) }
	testAccepted(t, initialized, []accepted{
		{"the longest name", createTenant(strings.Repeat("a", 64))},
		{"the longest administrator", tenant(func(c *CreateTenant) { c.Administrator = "spiffe://" + strings.Repeat("x", MaxPrincipal-9) })},
		{"the largest quota", tenant(func(c *CreateTenant) { c.MaxKeys = MaxKeys })},
		{"no quota", &SetTenantQuota{DefaultTenant, 0}},
	})
	testRefusals(t, initialized, []refusal{
		{"there already", createTenant(DefaultTenant), ErrExists, "tenant default"},
		{"no name", createTenant(""), ErrInvalid, `tenant ""`},
		{"a capital letter", createTenant("Acme"), ErrInvalid, `tenant "Acme"`},
		{"a slash", createTenant("a/b"), ErrInvalid, `tenant "a/b"`},
		{"65 characters", createTenant(strings.Repeat("a", 65)), ErrInvalid, "1 to 64"},
		{"no administrator", tenant(func(c *CreateTenant) { c.Administrator = "" }), ErrInvalid, "administrator"},
		{"no SPIFFE URI", tenant(func(c *CreateTenant) { c.Administrator = "ann" }), ErrInvalid, `administrator "ann": must be a SPIFFE URI`},
		{"a long administrator", tenant(func(c *CreateTenant) { c.Administrator = "spiffe://" + strings.Repeat("x", MaxPrincipal-8) }), ErrInvalid, "at most 512 bytes"},
		{"a negative quota", tenant(func(c *CreateTenant) { c.MaxKeys = -1 }), ErrInvalid, "quota of -1 keys"},
		{"a quota beyond the cluster", tenant(func(c *CreateTenant) { c.MaxKeys = MaxKeys + 1 }), ErrInvalid, "quota of 1100001 keys: must be 0 (none) to 1100000"},
		{"quota beyond the cluster", &SetTenantQuota{DefaultTenant, MaxKeys + 1}, ErrInvalid, "quota of 1100001 keys"},
		{"quota of no tenant", &SetTenantQuota{"acme", 1}, ErrNotFound, `tenant "acme"`},
		{"freeze no tenant", &FreezeTenant{"acme", true}, ErrNotFound, `tenant "acme"`},
		{"thaw no tenant", &ThawTenant{"", true}, ErrNotFound, `tenant ""`},
	})
}

// TestTenantQuota counts the tenant's keys alone; what it has stays.
func TestTenantQuota(t *testing.T) {
	w := twoKeys(t)
	acme := func(n uint64) *CreateKey { return edited(createKey(n), func(c *CreateKey) { c.Tenant = "acme" }) }
	w.do(edited(createTenant("acme"), func(c *CreateTenant) { c.MaxKeys = 1 }))
	w.do(acme(11))
	w.refuse(acme(12), ErrLimit, "tenant acme has 1 keys, its quota is 1")
	w.do(&SetTenantQuota{"acme", 3})
	w.do(acme(12))
	w.do(&CreateServiceKey{ID: keyID(13), Tenant: "acme", Service: "obs", Generation: 1, Token: []byte("t")}) // it counts too
	w.do(&SetTenantQuota{"acme", 2})
	w.refuse(acme(14), ErrLimit, "tenant acme has 3 keys, its quota is 2")
	w.do(createKey(3))
	w.do(&ScheduleKeyDeletion{KeyRef{ID: keyID(11), Tenant: "acme"}, 7})
	w.do(&DeleteKey{KeyRef{ID: keyID(11), Tenant: "acme"}, start + 7*day})
	w.refuse(acme(14), ErrLimit, "tenant acme has 2 keys")
	w.do(&SetTenantQuota{"acme", 0})
	w.do(acme(14))
	for _, s := range []*State{w.s, reread(t, w.s)} {
		if a, b, c := s.TenantKeys("acme"), s.TenantKeys(DefaultTenant), s.TenantKeys("nobody"); a != 3 || b != 3 || c != 0 {
			t.Errorf("%d, %d and %d keys", a, b, c)
		}
	}
}

func TestTenantLimit(t *testing.T) {
	w := initialized(t)
	one, _ := w.s.Tenant(DefaultTenant)
	w.edit(func(t *tx) {
		for n := uint64(1); n < MaxTenants; n++ {
			tenant := *one
			tenant.Name = "t" + keyID(n).String()
			t.s.tenants.edit(t).Set(&tenant)
		}
	})
	_, err := w.s.Try(createTenant("acme"))
	wantError(t, err, ErrLimit, "the cluster has 100000 tenants")
}

func TestTenantPages(t *testing.T) {
	w := initialized(t)
	for _, name := range []string{"zeta", "acme", "mid"} {
		w.do(createTenant(name))
	}
	for _, row := range []struct {
		after string
		limit int
		want  []string
	}{
		{"", 10, []string{"acme", "default", "mid", "zeta"}},
		{"", 2, []string{"acme", "default"}},
		{"default", 1, []string{"mid"}},
		{"e", 9, []string{"mid", "zeta"}},
		{"zeta", 9, nil},
		{"", 0, nil},
	} {
		var got []string
		for _, n := range w.s.Tenants(row.after, row.limit) {
			got = append(got, n.Name)
		}
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("after %q, at most %d: %v, want %v", row.after, row.limit, got, row.want)
		}
	}
}
