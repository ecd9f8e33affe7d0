package kms

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

// TestStandard: what Go says in the place of the default policy is what its text says.
func TestStandard(t *testing.T) {
	e := newEnv(t)
	k := e.stored(e.key("default"))
	st := e.log.State()
	sets := []policy.Named{{Name: "default policy", Set: e.policies.standard}}
	for _, short := range []string{ada, uma, tom, abel, una, "acme/auditor/amy", olga, cleo, obs} {
		c := caller(short)
		for _, a := range policy.Actions() {
			for _, key := range []*fsm.Key{nil, k} {
				if key == nil && a.On&policy.OnTenant == 0 || key != nil && a.On&policy.OnKey == 0 {
					continue
				}
				q := question{caller: c, tenant: "default", needs: needed(c, a), operation: a.Name}
				want, by := ask(st, sets, key, q, e.now())
				got, _ := standard(q)
				if got != want {
					t.Errorf("%s, %s (%s), key %v: Go says %s, the text %s by %s", short, a.Name, q.needs, key != nil, got, want, by)
				}
			}
		}
	}
}

// TestNeeded: the explanation asks for the permission that the call asks for. What no call
// asks for is the user's to find out.
func TestNeeded(t *testing.T) {
	for _, c := range []struct {
		who, action string
		want        permission
	}{
		{uma, "Encrypt", mayUse},
		{obs, "Decrypt", mayUse},
		{uma, "GenerateRandom", mayUse},
		{uma, "BindResource", mayUse},
		{ada, "BindResource", mayAdminister},
		{uma, "ReleaseResource", mayUse},
		{ada, "ForceReleaseResource", mayAdminister},
		{ada, "CreateGrant", mayDelegate},
		{uma, "RetireGrant", mayDelegate},
		{ada, "RevokeGrant", mayAdminister},
		{ada, "CreateKey", mayAdminister},
		{ada, "PutTenantPolicy", mayAdminister},
		{ada, "FreezeTenant", mayGovern},
		{ada, "EnablePrincipal", mayGovern},
		{tom, "DescribeKey", mayRead},
		{uma, "ListGrants", mayRead},
		{tom, "DescribeTenant", mayRead},
		{olga, "DescribeTenant", mayOperate},
		{olga, "DescribeKey", mayRead},
	} {
		a, err := policy.Find(c.action)
		if err != nil {
			t.Fatal(err)
		}
		if got := needed(caller(c.who), a); got != c.want {
			t.Errorf("%s, %s: may %s, want %s", c.who, c.action, got, c.want)
		}
	}
}

const everybody = "permit (principal, action, resource);\n"

func TestDecisionChangesAtOnce(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	call := as(uma)
	allowed := func(want bool, when string) {
		t.Helper()
		for range 2 { // the second time as it is remembered
			if err := e.encrypts(call, key); (err == nil) != want {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	allowed(true, "default policy")
	const secret = "forbid (principal, action, resource is KMS::Key) when { resource.hasTag(\"class\") && resource.getTag(\"class\") == \"secret\" };\n"
	const named = "forbid (principal, action in KMS::Action::\"use\", resource is KMS::Key) when { resource.aliases.contains(\"alias/closed\") };\n"
	e.put("", everybody+secret+named)
	allowed(true, "no tag yet")
	remembered := len(e.policies.decided)
	if remembered == 0 {
		t.Error("the decision is not remembered")
	}
	_, _, err := e.CreateAlias(t.Context(), as(ada), "alias/closed", key, 0)
	e.ok(err)
	allowed(false, "a forbidding alias")
	_, _, err = e.DeleteAlias(t.Context(), as(ada), "alias/closed", 0)
	e.ok(err)
	allowed(true, "the alias is gone")
	other := e.key("default")
	_, _, err = e.CreateAlias(t.Context(), as(ada), "alias/closed", other, 0)
	e.ok(err)
	allowed(true, "the alias is another key's")
	_, _, err = e.UpdateAlias(t.Context(), as(ada), "alias/closed", key, 0)
	e.ok(err)
	allowed(false, "the alias has moved here")
	if err := e.encrypts(call, other); err != nil {
		t.Errorf("the alias has moved away: %v", err)
	}
	_, _, err = e.DeleteAlias(t.Context(), as(ada), "alias/closed", 0)
	e.ok(err)
	e.put(key, "forbid (principal == KMS::User::\""+who(uma)+"\", action, resource);")
	allowed(false, "the key's policy forbids")
	e.put(key, "")
	allowed(true, "the key's policy is gone")
	_, _, err = e.TagResource(t.Context(), as(ada), key, []fsm.Tag{{Key: "class", Value: "secret"}}, 0)
	e.ok(err)
	allowed(false, "a forbidding tag")
	e.do(&fsm.UntagKey{KeyRef: fsm.KeyRef{ID: uuid.MustParse(key), Tenant: "default"}, TagKeys: []string{"class"}})
	allowed(true, "the tag is gone")
	e.put("", "permit (principal is KMS::Admin, action, resource);")
	allowed(false, "nothing permits")
	e.put("", "")
	allowed(true, "default policy again")
}

func TestDecisionsAreRemembered(t *testing.T) {
	e := newEnv(t)
	for name, c := range map[string]struct {
		text string
		want int // decisions that are remembered
	}{
		"default":            {"", 0},
		"no context":         {everybody, 1},
		"encryption context": {everybody + `forbid (principal, action, resource) when { context.encryption_context.hasTag("x") };`, 0},
		"time":               {everybody + `forbid (principal is KMS::User, action, resource) when { context.time < datetime("2020-01-01") };`, 0},
		"source service":     {everybody + `forbid (principal, action, resource) when { context has source_service };`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "default" {
				e.force("default", "", "")
			} else {
				e.put("", c.text)
			}
			key := e.key("default")
			clear(e.policies.decided)
			for range 3 {
				e.ok(e.encrypts(as(uma), key))
			}
			if n := len(e.policies.decided); n != c.want {
				t.Errorf("%d decisions are remembered, want %d", n, c.want)
			}
		})
	}
	t.Run("context decides each time", func(t *testing.T) {
		e.put("", everybody+`forbid (principal, action, resource) when { context.encryption_context.hasTag("x") };`)
		key := e.key("default")
		e.ok(e.encrypts(as(uma), key))
		e.refused(e.encrypts(as(uma), key, Pair{"x", "1"}), ErrDenied, "tenant policy", "line 2")
		e.ok(e.encrypts(as(uma), key))
	})
}

func TestParsedOnce(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.put("", everybody)
	e.put(key, everybody)
	clear(e.policies.loaded)
	st := e.log.State()
	own, _ := st.Policy("default", fsm.ID{}, 1)
	first := e.policies.load(own)
	for range 3 {
		e.ok(e.encrypts(as(uma), key))
	}
	if again := e.policies.load(own); again != first || len(e.policies.loaded) != 2 {
		t.Errorf("%d loaded, the same: %v", len(e.policies.loaded), again == first)
	}
	e.put("", everybody+" ")
	e.ok(e.encrypts(as(uma), key))
	if len(e.policies.loaded) != 3 {
		t.Errorf("%d loaded after a new revision", len(e.policies.loaded))
	}
}

// TestLoadedByOne: many that ask for a revision at once wait for one that loads it.
func TestLoadedByOne(t *testing.T) {
	p := newPolicies()
	r := &fsm.Policy{Number: 1, Text: strings.Repeat(everybody, 50)}
	var all [8]*policy.Set
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i] = p.load(r) })
	}
	wg.Wait()
	for _, s := range all {
		if s == nil || s != all[0] {
			t.Fatal("loaded more than once")
		}
	}
}

func TestUnreadablePolicyForbids(t *testing.T) {
	for _, of := range []string{"tenant", "key"} {
		t.Run(of, func(t *testing.T) {
			e := newEnv(t)
			key := e.key("default")
			e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})
			at := ""
			if of == "key" {
				at = key
			}
			e.force("default", at, `permit (principal, action == KMS::Action::"OfTheFuture", resource);`)
			for range 2 {
				e.refused(e.encrypts(as(uma), key), ErrDenied, "cannot read")
			}
			_, _, err := e.DescribeKey(t.Context(), as(ada), key)
			e.refused(err, ErrDenied, "cannot read")
		})
		t.Run(of+", a condition", func(t *testing.T) { // it neither permits nor can be passed by
			e := newEnv(t)
			key := e.key("default")
			at := ""
			if of == "key" {
				at = key
			}
			e.force("default", at, everybody+"forbid (principal, action, resource) when { context.of_the_future };")
			e.refused(e.encrypts(as(uma), key), ErrDenied, "cannot be evaluated")
			e.force("default", "", "permit (principal, action, resource) when { context.of_the_future };")
			e.force("default", key, "")
			e.refused(e.encrypts(as(uma), key), ErrDenied, "no policy and no grant")
		})
	}
}

func TestCachesAreBounded(t *testing.T) {
	p := newPolicies()
	for i := range maxLoaded + 10 {
		p.load(&fsm.Policy{Number: uint32(i + 1), Text: everybody})
		if n := len(p.loaded); n > maxLoaded || i > maxLoaded && n != maxLoaded { // one goes, not all
			t.Fatalf("%d loaded", n)
		}
		if i > 20 && i < maxLoaded-10 { // parsing takes time
			p.loaded[&fsm.Policy{Number: uint32(i)}] = nil
		}
	}
	e := newEnv(t)
	e.put("", everybody)
	k := e.stored(e.key("default"))
	st := e.log.State()
	n, _ := st.Tenant("default")
	for i := range maxDecided + 10 {
		c := caller(fmt.Sprintf("default/user/u%d", i))
		effect, _ := e.policies.decide(st, n, k, question{caller: c, tenant: "default", needs: mayUse, operation: "Encrypt"}, e.now())
		if effect != policy.Permitted || len(e.policies.decided) > maxDecided {
			t.Fatalf("%s, %d remembered", effect, len(e.policies.decided))
		}
	}
}

// TestForbidNamesStatement: what forbids is named with its line.
func TestForbidNamesStatement(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.put("", everybody+"@id(\"no-uma\")\nforbid (principal == KMS::User::\""+who(uma)+"\", action, resource);")
	err := e.encrypts(as(uma), key)
	e.refused(err, ErrDenied, "tenant policy: no-uma (line 2)", "Encrypt")
	if by := e.audit.last().DecidedBy; by != "tenant policy: no-uma (line 2)" {
		t.Errorf("the record says %q", by)
	}
	e.ok(e.encrypts(as(uri), key))
	if by := e.audit.last().DecidedBy; !strings.HasPrefix(by, "tenant policy: statement 1 (line 1)") {
		t.Errorf("the record says %q", by)
	}
	// A forbid that cannot be evaluated forbids.
	e.put("", everybody+`forbid (principal is KMS::User, action, resource) when { context.time.toTime().toMilliseconds() * 9223372036854775807 > 0 };`)
	if err := e.encrypts(as(uri), key); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "cannot be evaluated") {
		t.Errorf("%v", err)
	}
}
