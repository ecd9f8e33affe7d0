package kms

import (
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

const noAliases = `forbid (principal, action in [KMS::Action::"UpdateAlias", KMS::Action::"DeleteAlias"], resource);`

// TestUpdateAliasAsksBoth: who may not touch the key that an alias names does not take it
// away.
func TestUpdateAliasAsksBoth(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	held, mine := e.key("default"), e.key("default")
	_, _, err := e.CreateAlias(ctx, as(ada), "alias/db", held, 0)
	e.ok(err)
	e.force("default", held, everybody+noAliases)
	_, _, err = e.UpdateAlias(ctx, as(ada), "alias/db", mine, 0)
	e.refused(err, ErrDenied, "key "+held+", which alias/db names", "forbids UpdateAlias")
	if r := e.audit.last(); r.KeyID != held || r.Target != "alias/db" {
		t.Errorf("recorded as %+v", r)
	}
	e.force("default", held, "")
	_, _, err = e.UpdateAlias(ctx, as(ada), "alias/db", mine, 0)
	e.ok(err)
	if e.log.count(&fsm.MoveAlias{}) != 1 {
		t.Error("the command does not name the key that loses the alias")
	}
	_, _, err = e.UpdateAlias(ctx, as(ada), "alias/db", mine, e.stored(mine).Revision)
	e.ok(err)
	_, _, err = e.UpdateAlias(ctx, as(ada), "alias/none", mine, 0)
	e.refused(err, fsm.ErrNotFound, "alias/none")
	if e.log.count(&fsm.UpdateAlias{}) != 1 {
		t.Error("it was not the log that refused")
	}
}

// TestAliasDecidedAnew: what a key's policy forbids meanwhile is not done on a decision from
// before.
func TestAliasDecidedAnew(t *testing.T) {
	for name, change := range map[string]func(e *env, other string) error{
		"UpdateAlias": func(e *env, other string) error {
			_, _, err := e.UpdateAlias(t.Context(), as(ada), "alias/db", other, 0)
			return err
		},
		"DeleteAlias": func(e *env, _ string) error {
			_, _, err := e.DeleteAlias(t.Context(), as(ada), "alias/db", 0)
			return err
		},
	} {
		e := newEnv(t)
		held, other := e.key("default"), e.key("default")
		_, _, err := e.CreateAlias(t.Context(), as(ada), "alias/db", held, 0)
		e.ok(err)
		e.log.lose(func(fsm.Proposal) error {
			e.log.lose(nil)
			e.force("default", held, everybody+noAliases)
			return nil
		})
		e.refused(change(e, other), ErrDenied, "forbids "+name)
		if a, ok := e.log.State().Alias("default", "alias/db"); !ok || a.Key != uuid.MustParse(held) {
			t.Errorf("%s: the alias is gone", name)
		}
	}
}

// TestKeyPolicyDecidedAnew: a key's policy is put on the key that it was decided on.
func TestKeyPolicyDecidedAnew(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.put("", everybody+`forbid (principal, action == KMS::Action::"PutKeyPolicy", resource is KMS::Key) when { resource.hasTag("locked") };`)
	e.log.lose(func(fsm.Proposal) error {
		e.log.lose(nil)
		e.do(&fsm.TagKey{KeyRef: fsm.KeyRef{ID: uuid.MustParse(key), Tenant: "default"}, Tags: []fsm.Tag{{Key: "locked"}}})
		return nil
	})
	_, _, err := e.PutPolicy(t.Context(), as(ada), key, everybody, nil)
	e.refused(err, ErrDenied, "forbids PutKeyPolicy")
}
