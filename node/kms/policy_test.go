package kms

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

func permitTo(kind, short, action string) string {
	return fmt.Sprintf("permit (principal == KMS::%s::%q, action == KMS::Action::%q, resource);\n", kind, who(short), action)
}

const closedByTag = `forbid (principal, action, resource is KMS::Key) when { resource.hasTag("x") };`

// TestLockoutSays: what would be wrong later is named, and what would be right.
func TestLockoutSays(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	_, _, err := e.PutPolicy(t.Context(), as(bea), "", `@id("brief") permit (principal, action, resource) when { context.time < datetime("2027-01-01") };`, nil)
	e.refused(err, ErrLockout, "brief (line 1)", `permit (principal == KMS::Admin::"`+who(bea)+`", action == KMS::Action::"PutTenantPolicy", resource);`)
	_, _, err = e.PutPolicy(t.Context(), as(bea), key, closedByTag, nil)
	e.refused(err, ErrLockout, "statement 1 (line 1)", `unless { principal == KMS::Admin::"`+who(bea)+`" }`)
}

// TestUnreadablePolicyIsReplaced: whoever may by what can be read puts another in the place
// of a policy that cannot.
func TestUnreadablePolicyIsReplaced(t *testing.T) {
	for _, future := range []string{"permit (principal is KMS::Robot, action, resource);", "permit (principal, action, resource) when { context.of_the_future };"} {
		for _, text := range []string{everybody, ""} {
			e := newEnv(t)
			key := e.key("default")
			e.force("default", "", future)
			e.force("default", key, future)
			put := func(short, key string) error {
				_, _, err := e.PutPolicy(t.Context(), as(short), key, text, nil)
				return err
			}
			e.refused(put(ada, key), ErrDenied, "tenant policy", "cannot read")
			e.refused(put(uma, ""), ErrDenied)
			_, _, err := e.PutPolicy(t.Context(), in(abel, "default"), "", text, nil)
			e.refused(err, ErrDenied)
			_, _, err = e.ListKeys(t.Context(), as(ada), 0, "")
			e.refused(err, ErrDenied)
			e.ok(put(ada, ""))
			e.refused(put(uma, key), ErrDenied)
			e.ok(put(ada, key))
			e.ok(e.encrypts(as(uma), key))
		}
	}
}

func TestLockout(t *testing.T) {
	for _, c := range []struct {
		name  string
		by    string
		ofKey bool
		text  string
		set   func(e *env)
		want  error
	}{
		{"the default's own text", bea, false, policy.DefaultText, nil, nil},
		{"everybody out", bea, false, denyAll, nil, ErrLockout},
		{"administrators are not named", bea, false, "permit (principal is KMS::User, action, resource);", nil, ErrLockout},
		{"nobody may put it", bea, false, everybody + `forbid (principal, action == KMS::Action::"PutTenantPolicy", resource);`, nil, ErrLockout},
		{"all but putting it is forbidden", bea, false, everybody + `forbid (principal, action, resource) unless { action == KMS::Action::"PutTenantPolicy" };`, nil, nil},
		{"the caller alone", bea, false, permitTo("Admin", bea, "PutTenantPolicy"), nil, nil},
		{"the first administrator alone", bea, false, permitTo("Admin", ada, "PutTenantPolicy"), nil, nil},
		{"a third administrator alone", bea, false, permitTo("Admin", "default/admin/cat", "PutTenantPolicy"), nil, ErrLockout},
		{"the first administrator alone, who is disabled", bea, false, permitTo("Admin", ada, "PutTenantPolicy"), func(e *env) {
			e.do(&fsm.DisablePrincipal{Principal: who(ada)})
		}, ErrLockout},
		{"a right to delete it is no right to put it", bea, false, permitTo("Admin", bea, "DeleteTenantPolicy"), nil, ErrLockout},
		{"a key's: everybody out", bea, true, denyAll, nil, ErrLockout},
		{"a key's: the tenant's still permits", bea, true, permitTo("User", uma, "Encrypt"), nil, nil},
		{"a key's: putting it is forbidden to all but the first", bea, true, `forbid (principal, action == KMS::Action::"PutKeyPolicy", resource) unless { principal == KMS::Admin::"` + who(ada) + `" };`, nil, nil},
		{"a key's: putting it is forbidden", bea, true, `forbid (principal, action == KMS::Action::"PutKeyPolicy", resource);`, nil, ErrLockout},
		{"for a while", bea, false, "permit (principal is KMS::Admin, action, resource) when { context.time < datetime(\"2026-05-04T12:00:06Z\") };", nil, ErrLockout},
		{"for a while, and then others", bea, false, everybody + "forbid (principal is KMS::User, action, resource) when { context.time > datetime(\"2026-05-04T12:00:06Z\") };", nil, nil},
		{"from then on nobody", bea, false, everybody + "forbid (principal, action, resource) when { context.time > datetime(\"2026-05-04T12:00:06Z\") };", nil, ErrLockout},
		{"from then on nobody but the first administrator", bea, false, everybody + "forbid (principal, action, resource) when { context.time > datetime(\"2026-05-04T12:00:06Z\") } unless { principal == KMS::Admin::\"" + who(ada) + "\" };", nil, nil},
		{"from somewhere only", bea, false, "permit (principal, action, resource) when { context.encryption_context.hasTag(\"x\") };", nil, ErrLockout},
		{"keys that will be tagged: the tenant's can be replaced", bea, false, everybody + closedByTag, nil, nil},
		{"a key's: as soon as it is tagged", bea, true, closedByTag, nil, ErrLockout},
		{"a key's: as soon as it is tagged, but for the first administrator", bea, true, strings.TrimSuffix(closedByTag, ";") + " unless { principal == KMS::Admin::\"" + who(ada) + "\" };", nil, nil},
		{"a key's: its use as soon as it is tagged", bea, true, strings.Replace(closedByTag, "action", `action in KMS::Action::"use"`, 1), nil, nil},
		{"a key's: as soon as it has an alias", bea, true, "forbid (principal, action, resource is KMS::Key) when { resource.aliases.contains(\"alias/x\") };", nil, ErrLockout},
		{"a key's: where the tenant's depends on tags", bea, true, permitTo("User", uma, "Encrypt"), func(e *env) {
			e.put("", "permit (principal is KMS::Admin, action, resource) unless { resource is KMS::Key && resource.hasTag(\"x\") };"+permitTo("Admin", ada, "PutTenantPolicy"))
		}, nil},
		{"deleting", bea, false, "", func(e *env) { e.put("", onlyAdmins) }, nil},
		{"what does not parse", bea, false, "permit (all);", nil, ErrPolicy},
		{"what the schema does not know", bea, false, "permit (principal, action, resource) when { resource.color };", nil, ErrPolicy},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t)
			key := ""
			if c.ofKey {
				key = e.key("default")
			}
			if c.set != nil {
				c.set(e)
			}
			dry := as(c.by)
			dry.DryRun = true
			_, _, tried := e.PutPolicy(t.Context(), dry, key, c.text, nil)
			n := e.log.count(&fsm.PutPolicy{})
			revision, _, err := e.PutPolicy(t.Context(), as(c.by), key, c.text, nil)
			if c.want != nil {
				e.refused(err, c.want)
				e.refused(tried, c.want)
				if e.log.count(&fsm.PutPolicy{}) != n {
					t.Error("it was proposed")
				}
				return
			}
			e.ok(err)
			e.refused(tried, ErrDryRun)
			if revision == 0 {
				t.Error("no revision")
			}
			if r := e.audit.last(); r.KeyID != key || r.KeyVersion != 0 {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
}

func TestPolicyRevisions(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	v, _, err := e.GetPolicy(t.Context(), as(uma), "", 0)
	e.ok(err)
	if v.Text != policy.DefaultText || v.Number != 0 || !v.Present {
		t.Errorf("%+v", v)
	}
	_, _, err = e.GetPolicy(t.Context(), as(uma), key, 0)
	e.refused(err, fsm.ErrNotFound, "the tenant's holds for it")
	for _, at := range []string{"", key} {
		zero, one := uint32(0), uint32(1)
		n, _, err := e.PutPolicy(t.Context(), as(ada), at, everybody, &zero)
		e.ok(err)
		_, _, err = e.PutPolicy(t.Context(), as(ada), at, everybody, &zero)
		e.refused(err, fsm.ErrConflict, "revision 1, expected 0")
		n2, _, err := e.PutPolicy(t.Context(), as(bea), at, everybody+" ", &one)
		e.ok(err)
		n3, _, err := e.PutPolicy(t.Context(), as(ada), at, "", nil)
		e.ok(err)
		if n != 1 || n2 != 2 || n3 != 3 {
			t.Errorf("revisions %d, %d, %d", n, n2, n3)
		}
		all, _, err := e.ListPolicyRevisions(t.Context(), as(tom), at)
		e.ok(err)
		if len(all) != 3 || all[0].Number != 3 || all[0].Present || all[1].By != who(bea) {
			t.Errorf("%+v", all)
		}
		e.put(at, everybody)
		v, _, err := e.GetPolicy(t.Context(), as(tom), at, 2)
		e.ok(err)
		if v.Text != everybody+" " || v.Present {
			t.Errorf("%+v", v)
		}
		v, _, err = e.GetPolicy(t.Context(), as(tom), at, 0)
		e.ok(err)
		if v.Number != 4 || !v.Present {
			t.Errorf("%+v", v)
		}
		_, _, err = e.GetPolicy(t.Context(), as(tom), at, 9)
		e.refused(err, fsm.ErrNotFound, "revision 9")
	}
	_, _, err = e.PutPolicy(t.Context(), as(uma), "", everybody, nil)
	e.refused(err, ErrDenied)
	problem, _, err := e.ValidatePolicy(t.Context(), as(uma), "permit (all);")
	e.ok(err)
	e.refused(problem, ErrPolicy)
	problem, _, err = e.ValidatePolicy(t.Context(), as(uma), everybody)
	e.ok(err)
	e.ok(problem)
}

// TestExplain: what decides a call is what the explanation names.
func TestExplain(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	pairs := acting("default", "b")
	grant := e.give(key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantDecrypt, fsm.GrantReEncryptFrom, fsm.GrantCreateGrant, fsm.GrantDescribeKey)})
	served := e.give(key, GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: fsm.Constraints{Subset: tagsOf(pairs)}})
	e.ok(e.encrypts(in(obs, "default"), "", pairs...))
	own, _ := e.log.State().ServiceKey("default", "obs")
	service := own.ID.String()
	shut, disabled, demanding := e.key("default"), e.key("default"), e.key("default")
	e.put(shut, "@id(\"no-uma\") forbid (principal == KMS::User::\""+who(uma)+"\", action, resource);")
	_, _, err := e.DisableKey(t.Context(), as(ada), disabled, 0)
	e.ok(err)
	_, _, err = e.SetRequiredContext(t.Context(), as(ada), demanding, []string{"bucket"}, 0)
	e.ok(err)
	e.do(&fsm.DisablePrincipal{Principal: who("default/user/off")})
	for _, c := range []struct {
		name, who, key, op string
		pairs              []Pair
		allowed            bool
		by, says           string
	}{
		{"default policy", uma, key, "Encrypt", nil, true, "default policy", ""},
		{"default policy, an administrator", ada, key, "DisableKey", nil, true, "default policy", ""},
		{"default policy, the tenant", ada, "", "CreateKey", nil, true, "default policy", ""},
		{"an auditor of all tenants", cleo, key, "DescribeKey", nil, true, "auditor of all tenants", ""},
		{"role", ada, key, "Encrypt", nil, false, "role", "class admin"},
		{"role, administration", uma, key, "DisableKey", nil, false, "role", "class user"},
		{"principal", "default/user/off", key, "Encrypt", nil, false, "principal", "by a cluster operator"},
		{"forbid", uma, shut, "Encrypt", nil, false, "key policy: no-uma (line 1)", "forbids Encrypt"},
		{"forbid of another than it", uri, shut, "Encrypt", nil, true, "default policy: default-users", ""},
		{"no rule", uma, key, "CreateGrant", nil, false, "no rule", "no policy and no grant"},
		{"another tenant", "acme/user/eve", key, "Encrypt", nil, false, "tenant", "no grant allows"},
		{"grant", una, key, "Decrypt", nil, true, "grant " + grant, ""},
		{"grant, ReEncryptFrom", una, key, "ReEncryptFrom", nil, true, "grant " + grant, ""},
		{"grant, CreateGrant", una, key, "CreateGrant", nil, true, "grant " + grant, ""},
		{"grant, DescribeKey", una, key, "DescribeKey", nil, true, "grant " + grant, ""},
		{"grant, not that", una, key, "Encrypt", nil, false, "tenant", "no grant allows"},
		{"service", obs, key, "Encrypt", nil, false, "service", "tenant=default"},
		{"service with its grant", obs, key, "Encrypt", pairs, true, "grant " + served, ""},
		{"service, another resource", obs, key, "Encrypt", acting("default", "c"), false, "tenant", "no grant allows"},
		{"service key", obs, service, "Encrypt", pairs, true, "service key", ""},
		{"service key, a user", uma, service, "Encrypt", nil, false, "service key", "for service obs alone"},
		{"service key, rotation", ada, service, "RotateKeyOnDemand", nil, true, "default policy", ""},
		{"state", uma, disabled, "Encrypt", nil, false, "state", "disabled"},
		{"state, resources do not mind", uma, disabled, "BindResource", nil, true, "default policy", ""},
		{"required context", uma, demanding, "Encrypt", nil, false, "state", "bucket"},
		{"required context, given", uma, demanding, "Encrypt", []Pair{{"bucket", "b"}}, true, "default policy", ""},
		{"required context, opening too", uma, demanding, "Decrypt", nil, false, "state", "bucket"},
		{"force", ada, key, "ForceReleaseResource", nil, true, "default policy", ""},
		{"an administrator binds", ada, key, "BindResource", nil, true, "default policy", ""},
		{"an administrator binds where the key has a policy", ada, shut, "BindResource", nil, true, "default policy: default-admins", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, _, err := e.ExplainPolicy(t.Context(), as(ada), c.key, who(c.who), c.op, c.pairs)
			e.ok(err)
			if x.Allowed != c.allowed || !strings.HasPrefix(x.DecidedBy, c.by) || !strings.Contains(x.Reason, c.says) || x.Allowed != (x.Reason == "") {
				t.Errorf("%+v", x)
			}
			if c.op == "ReEncryptFrom" && !strings.Contains(strings.Join(x.Steps, "\n"), "amounts to Decrypt") {
				t.Errorf("it does not say what ReEncryptFrom is: %q", x.Steps)
			}
			if len(x.Steps) < 3 {
				t.Errorf("steps: %q", x.Steps)
			}
		})
	}
	t.Run("frozen", func(t *testing.T) {
		_, err := e.FreezeTenant(t.Context(), as(olga), "default")
		e.ok(err)
		x, _, err := e.ExplainPolicy(t.Context(), as(ada), key, who(uma), "Encrypt", nil)
		e.ok(err)
		if x.Allowed || x.DecidedBy != "state" || !strings.Contains(x.Reason, "frozen") {
			t.Errorf("%+v", x)
		}
		_, err = e.ThawTenant(t.Context(), as(olga), "default")
		e.ok(err)
	})
	for name, c := range map[string]struct{ key, who, op, says string }{
		"an unknown operation":      {key, uma, "Fly", "unknown operation"},
		"a tenant's, with a key":    {key, ada, "CreateKey", "name no key"},
		"a key's, without":          {"", uma, "Encrypt", "name one"},
		"a principal that is none":  {key, "default/x", "Encrypt", "principal"},
		"a context that is no good": {key, uma, "Encrypt", "empty key"},
	} {
		pairs := []Pair(nil)
		if strings.HasPrefix(name, "a context") {
			pairs = []Pair{{"", "x"}}
		}
		_, _, err := e.ExplainPolicy(t.Context(), as(ada), c.key, who(c.who), c.op, pairs)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err = e.ExplainPolicy(t.Context(), as(una), e.arn("default", key), who(uma), "Encrypt", nil)
	e.refused(err, ErrDenied)
	_, _, err = e.ExplainPolicy(t.Context(), as(ada), uuid.NewString(), who(uma), "Encrypt", nil)
	e.refused(err, fsm.ErrNotFound)
}

// TestPolicyByTime: a policy that looks at the time is asked each time, by the clock that
// is ahead.
func TestPolicyByTime(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	until := start.Add(time.Hour)
	e.put("", everybody+fmt.Sprintf(`forbid (principal is KMS::User, action, resource) when { context.time >= datetime(%q) };`, until.Format("2006-01-02T15:04:05Z")))
	e.ok(e.encrypts(as(uma), key))
	e.clock.advance(time.Hour)
	e.refused(e.encrypts(as(uma), key), ErrDenied, "tenant policy")
}
