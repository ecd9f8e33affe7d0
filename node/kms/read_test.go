package kms

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// TestListsHide: of a key that the caller may not describe, a list tells no more than that
// there is one.
func TestListsHide(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	open, closed := e.key("default"), e.key("default")
	for _, key := range []string{open, closed} {
		_, _, err := e.UpdateKeyDescription(ctx, as(ada), key, "payroll", 0)
		e.ok(err)
		_, _, err = e.CreateAlias(ctx, as(ada), "alias/"+key, key, 0)
		e.ok(err)
	}
	e.put(closed, "forbid (principal is KMS::User, action, resource);")
	for short, sees := range map[string]bool{uma: false, ada: true, tom: true, cleo: true} {
		keys, _, err := e.ListKeys(ctx, in(short, "default"), 0, "")
		e.ok(err)
		if len(keys.Items) != 2 {
			t.Fatalf("%d keys", len(keys.Items))
		}
		for _, m := range keys.Items {
			shown := sees || m.Key.ID.String() == open
			if m.Hidden == shown || (m.Key.Description != "") != shown || (len(m.Aliases) != 0) != shown || (m.Key.State != "") != shown {
				t.Errorf("%s sees %+v", short, m)
			}
			if id := m.Key.ID.String(); m.ARN != e.arn("default", id) || m.Key.Tenant != "default" {
				t.Errorf("%s sees %+v", short, m)
			}
		}
		aliases, _, err := e.ListAliases(ctx, in(short, "default"), "", 0, "")
		e.ok(err)
		for _, a := range aliases.Items {
			if shown := sees || a.Name == "alias/"+open; (a.Key != fsm.ID{}) != shown || (a.Created != 0) != shown {
				t.Errorf("%s sees %+v", short, a)
			}
		}
		if len(aliases.Items) != 2 {
			t.Errorf("%d aliases", len(aliases.Items))
		}
	}
	_, _, err := e.ListAliases(ctx, as(uma), closed, 0, "")
	e.refused(err, ErrDenied)
}

// BenchmarkListKeys: a page of a thousand, without a policy and with one.
func BenchmarkListKeys(b *testing.B) {
	e := newEnv(b)
	for range MaxPage {
		e.do(&fsm.CreateKey{
			ID: uuid.New(), Tenant: "default", Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: 1, Token: []byte{1},
		})
	}
	for _, text := range []string{"", everybody, everybody + `forbid (principal, action, resource) when { context.time < datetime("2020-01-01") };`} {
		e.put("", text)
		b.Run(fmt.Sprintf("policy of %d bytes", len(text)), func(b *testing.B) {
			for b.Loop() {
				if p, _, err := e.ListKeys(b.Context(), as(uma), MaxPage, ""); err != nil || len(p.Items) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGrants: a call by a service that holds ten thousand grants of a key, one a
// resource.
func BenchmarkGrants(b *testing.B) {
	e := newEnv(b)
	key := e.key("default")
	const grants = 10_000
	for i := range grants {
		e.do(&fsm.CreateGrant{
			Grant: uuid.New(), Key: uuid.MustParse(key), Tenant: "default", Grantee: who(obs), Operations: ops(fsm.GrantEncrypt, fsm.GrantDecrypt),
			Constraints: fsm.Constraints{Subset: tagsOf(acting("default", fmt.Sprintf("volume/%d", i)))},
		})
	}
	st, k := e.log.State(), e.stored(key)
	q := question{caller: caller(obs), tenant: "default", needs: mayUse, operation: "Decrypt"}
	i := 0
	for b.Loop() {
		q.context = acting("default", fmt.Sprintf("volume/%d", i%grants))
		if _, err := e.decide(st, q, k); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
