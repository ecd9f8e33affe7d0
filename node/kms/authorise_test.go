package kms

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

const denyAll = "@id(\"none\") forbid (principal, action, resource);"

// TestDecideOrder: what is asked first decides, whatever else would.
func TestDecideOrder(t *testing.T) {
	everything := func(e *env, key string) { // all that can refuse, or allow, at once
		e.force("default", "", everybody+denyAll)
		e.do(&fsm.DisablePrincipal{Principal: who(uma)})
	}
	for _, c := range []struct {
		name string
		who  string
		q    question
		set  func(e *env, key string)
		rule string // begins with
		says string // empty: allowed
	}{
		{"a disabled principal first", uma, question{needs: mayAdminister, operation: "DisableKey"}, everything, "principal", "by a cluster operator"},
		{"the role before a forbid", uri, question{needs: mayAdminister, operation: "DisableKey"}, everything, "role", "class user may not administer keys"},
		{"a forbid before a permit", uri, question{needs: mayUse, operation: "Encrypt"}, everything, "tenant policy: none", "forbids Encrypt"},
		{"a forbid before a grant", uri, question{needs: mayUse, operation: "Encrypt"}, func(e *env, key string) {
			e.give(key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt)})
			e.force("default", "", denyAll)
		}, "tenant policy: none", "forbids Encrypt"},
		{"a key's forbid before the tenant's permit", uri, question{needs: mayUse, operation: "Encrypt"}, func(e *env, key string) {
			e.force("default", key, denyAll)
		}, "key policy: none", "forbids Encrypt"},
		{"the service's context before a forbid", obs, question{needs: mayUse, operation: "Encrypt"}, everything, "service", "tenant=default"},
		{"a resource, too", obs, question{needs: mayUse, operation: "Encrypt", context: []Pair{{"tenant", "default"}}}, everything, "service", "resource=…"},
		{"an empty resource is none", obs, question{needs: mayUse, operation: "Encrypt", context: acting("default", "")}, everything, "service", "resource=…"},
		{"another tenant's context", obs, question{needs: mayUse, operation: "Encrypt", context: acting("acme", "b")}, everything, "service", "tenant=default"},
		{"a forbid before the grant of a service", obs, question{needs: mayUse, operation: "Encrypt", context: acting("default", "b")}, func(e *env, key string) {
			e.give(key, GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: fsm.Constraints{Subset: tagsOf(acting("default", "b"))}})
			e.force("default", "", denyAll)
		}, "tenant policy: none", "no grant of yours"},
		{"a permit before a grant", uri, question{needs: mayUse, operation: "Encrypt"}, func(e *env, key string) {
			e.give(key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt)})
		}, "default policy", ""},
		{"a grant where nothing permits", uri, question{needs: mayUse, operation: "Encrypt"}, func(e *env, key string) {
			e.give(key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt)})
			e.force("default", "", "permit (principal is KMS::Admin, action, resource);")
		}, "grant ", ""},
		{"nothing at all", uri, question{needs: mayUse, operation: "Encrypt"}, func(e *env, _ string) {
			e.force("default", "", "permit (principal is KMS::Admin, action, resource);")
		}, "no rule", "no policy and no grant permits Encrypt to " + who(uri)},
		{"a permit does nothing for another tenant's", una, question{needs: mayUse, operation: "Encrypt"}, func(e *env, _ string) {
			e.force("default", "", everybody)
		}, "tenant", "no grant of yours"},
		{"nor for a service", obs, question{needs: mayUse, operation: "Encrypt", context: acting("default", "b")}, func(e *env, _ string) {
			e.force("default", "", everybody)
		}, "tenant", "no grant of yours"},
		{"an operator uses no keys", olga, question{needs: mayUse, operation: "Encrypt"}, nil, "role", "class operator"},
		{"an administrator uses no keys", ada, question{needs: mayUse, operation: "Encrypt"}, nil, "role", "class admin"},
		{"a node does nothing", node, question{needs: mayRead, operation: "DescribeKey"}, nil, "role", "class node"},
		{"the cluster's auditor reads", cleo, question{needs: mayRead, operation: "DescribeKey"}, nil, "auditor of all tenants", ""},
		{"whatever a tenant's policy does not say, or says", cleo, question{needs: mayRead, operation: "DescribeKey"}, func(e *env, key string) {
			e.force("default", "", denyAll)
			e.force("default", key, denyAll)
		}, "auditor of all tenants", ""},
		{"a tenant's auditor is held to it", tom, question{needs: mayRead, operation: "DescribeKey"}, func(e *env, _ string) {
			e.force("default", "", "permit (principal is KMS::Admin, action, resource);")
		}, "no rule", "no policy and no grant permits DescribeKey"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t)
			key := e.key("default")
			if c.set != nil {
				c.set(e, key)
			}
			c.q.caller, c.q.tenant = caller(c.who), "default"
			rule, err := e.decide(e.log.State(), c.q, e.stored(key))
			if !strings.HasPrefix(rule, c.rule) {
				t.Errorf("decided by %q, want %q", rule, c.rule)
			}
			switch {
			case c.says == "" && err != nil:
				t.Error(err)
			case c.says != "" && !errors.Is(err, ErrDenied) && !errors.Is(err, fsm.ErrPrincipalDisabled):
				t.Errorf("allowed, or for no good reason: %v", err)
			case c.says != "" && !strings.Contains(err.Error(), c.says):
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

// TestServiceKeyRule: a service's key is for that service, whatever policies permit.
func TestServiceKeyRule(t *testing.T) {
	e := newEnv(t)
	pairs := acting("default", "bucket")
	e.ok(e.encrypts(in(obs, "default"), "", pairs...))
	k, ok := e.log.State().ServiceKey("default", "obs")
	if !ok {
		t.Fatal("there is no key")
	}
	id := k.ID.String()
	e.force("default", "", everybody)
	e.refused(e.encrypts(as(uma), id), ErrDenied, "for service obs alone")
	if by := e.audit.last().DecidedBy; by != "service key" {
		t.Errorf("decided by %q", by)
	}
	e.refused(e.encrypts(in(vol, "default"), id, pairs...), ErrDenied, "no grant of yours")
	e.ok(e.encrypts(in(obs, "default"), id, pairs...))
	e.force("default", "", everybody+denyAll)
	e.refused(e.encrypts(in(obs, "default"), id, pairs...), ErrDenied, "no grant of yours")
}

// TestTextsLeakNothing: a caller of another tenant hears the same, and nothing of ids,
// whether a key is there, is a service's, is forbidden, or would need a grant.
func TestTextsLeakNothing(t *testing.T) {
	e := newEnv(t)
	present, forbidden, doomed := e.key("default"), e.key("default"), e.key("default")
	e.force("default", forbidden, denyAll)
	_, _, err := e.CreateAlias(t.Context(), as(ada), "alias/there", present, 0)
	e.ok(err)
	_, _, err = e.ScheduleKeyDeletion(t.Context(), as(ada), doomed, 7, 0)
	e.ok(err)
	e.ok(e.encrypts(in(obs, "default"), "", acting("default", "b")...))
	service, _ := e.log.State().ServiceKey("default", "obs")
	absent := uuid.NewString()
	granted := e.key("default") // to somebody else
	e.give(granted, GrantParams{Grantee: who("acme/user/other"), Operations: ops(fsm.GrantEncrypt, fsm.GrantCreateGrant, fsm.GrantRetireGrant)})
	names := []string{
		absent, present, forbidden, doomed, granted, service.ID.String(), fsm.ServiceAlias("obs"), "alias/there", "alias/not-there",
	}
	blob := e.sealed(as(uma), present)
	calls := map[string]func(c Call, key string) error{
		"Encrypt": func(c Call, key string) error {
			pairs := []Pair(nil)
			if c.Caller.Class == ClassService {
				pairs = acting("default", "b")
			}
			return e.encrypts(c, key, pairs...)
		},
		"Encrypt without the context": func(c Call, key string) error { return e.encrypts(c, key) },
		"Decrypt": func(c Call, key string) error {
			id, err := uuid.Parse(key)
			if err != nil {
				return ErrDenied // not named by a ciphertext
			}
			copy(blob[6:22], id[:])
			return e.opens(c, blob, acting("default", "b")...)
		},
		"DescribeKey": func(c Call, key string) error { _, _, err := e.DescribeKey(t.Context(), c, key); return err },
		"BindResource": func(c Call, key string) error {
			_, _, err := e.BindResource(t.Context(), c, key, "b", 0)
			return err
		},
		"CreateGrant": func(c Call, key string) error {
			_, _, err := e.CreateGrant(t.Context(), c, key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})
			return err
		},
		"RetireGrant": func(c Call, key string) error {
			_, err := e.RetireGrant(t.Context(), c, key, absent)
			return err
		},
		"DisableKey": func(c Call, key string) error { _, _, err := e.DisableKey(t.Context(), c, key, 0); return err },
		"PutPolicy":  func(c Call, key string) error { _, _, err := e.PutPolicy(t.Context(), c, key, "", nil); return err },
		"GetPolicy":  func(c Call, key string) error { _, _, err := e.GetPolicy(t.Context(), c, key, 0); return err },
		"ListGrants": func(c Call, key string) error {
			_, _, err := e.ListGrants(t.Context(), c, key, "", "", 0, "")
			return err
		},
		"RevokeGrant": func(c Call, key string) error { _, err := e.RevokeGrant(t.Context(), c, key, absent); return err },
		"Explain": func(c Call, key string) error {
			_, _, err := e.ExplainPolicy(t.Context(), c, key, who(uma), "Encrypt", nil)
			return err
		},
	}
	for name, call := range calls {
		for _, short := range []string{una, abel, vol, "acme/auditor/amy"} {
			t.Run(name+" by "+short, func(t *testing.T) {
				texts := map[string]string{}
				for _, key := range names {
					if name == "Decrypt" && strings.HasPrefix(key, "alias/") {
						continue
					}
					err := call(in(short, "default"), key)
					if !errors.Is(err, ErrDenied) {
						t.Fatalf("%s: %v", key, err)
					}
					texts[err.Error()] = key
					if strings.Contains(err.Error(), key) || strings.Contains(err.Error(), service.ID.String()) {
						t.Errorf("%q names the key", err)
					}
				}
				if len(texts) != 1 {
					t.Errorf("told apart by: %v", texts)
				}
				if e.audit.last().Result != audit.Denied {
					t.Errorf("recorded as %s", e.audit.last().Result)
				}
			})
		}
	}
	// Neither is another tenant told from one that is not there.
	for _, name := range []string{"CreateKey", "ListKeys"} {
		texts := map[string]bool{}
		for _, tenant := range []string{"default", "nobody"} {
			var err error
			if name == "CreateKey" {
				_, _, err = e.CreateKey(t.Context(), in(abel, tenant), KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
			} else {
				_, _, err = e.ListKeys(t.Context(), in(una, tenant), 0, "")
			}
			e.refused(err, ErrDenied)
			texts[strings.ReplaceAll(err.Error(), tenant, "T")] = true
		}
		if len(texts) != 1 {
			t.Errorf("%s: tenants are told apart by %v", name, texts)
		}
	}
}

// TestOwnAreToldWhy: a tenant's own callers hear what it was.
func TestOwnAreToldWhy(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.refused(e.encrypts(as(uma), uuid.NewString()), fsm.ErrNotFound)
	e.refused(e.encrypts(as(uma), "alias/none"), fsm.ErrNotFound, "alias/none")
	e.refused(e.encrypts(as(uma), "arn:quorumkms:kms:"+uuid.NewString()+":default:key/"+key), fsm.ErrNotFound, "another cluster")
	e.refused(e.encrypts(in(uma, "acme"), e.arn("default", key)), fsm.ErrInvalid, "of tenant default")
	e.ok(e.encrypts(as(uma), e.arn("default", key)))
	_, _, err := e.DisableKey(t.Context(), as(uma), key, 0)
	e.refused(err, ErrDenied, "class user may not administer keys")
	e.do(&fsm.DisablePrincipal{Principal: who(uma), Tenant: "default"})
	e.refused(e.encrypts(as(uma), key), fsm.ErrPrincipalDisabled, "administrator of tenant default")
	if e.audit.last().Result != audit.Denied {
		t.Errorf("recorded as %s", e.audit.last().Result)
	}
}

// TestRandom: who may have random bytes.
func TestRandom(t *testing.T) {
	e := newEnv(t)
	random := func(c Call) error {
		b, err := e.GenerateRandom(t.Context(), c, 16)
		if err == nil && len(b) != 16 {
			t.Errorf("%d bytes", len(b))
		}
		return err
	}
	for _, c := range []Call{as(uma), as(una), as(obs), in(obs, "default"), in(obs, "nobody")} {
		e.ok(random(c))
	}
	for _, c := range []Call{as(ada), as(tom), as(cleo), as(olga), as(node), in(una, "default")} {
		e.refused(random(c), ErrDenied)
	}
	e.put("", everybody+"forbid (principal, action == KMS::Action::\"GenerateRandom\", resource);")
	e.refused(random(as(uma)), ErrDenied, "forbids GenerateRandom")
	e.do(&fsm.DisablePrincipal{Principal: who(obs)})
	e.refused(random(as(obs)), fsm.ErrPrincipalDisabled)
}
