package kms

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

func TestServiceKeyMadeOnce(t *testing.T) {
	e := newEnv(t)
	pairs := acting("default", "bucket")
	const callers = 100
	arns := make([]string, callers)
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range callers {
		all.Go(func() {
			<-begin
			s, err := e.GenerateDataKey(t.Context(), in(obs, "default"), "", 32, pairs)
			if err != nil {
				t.Error(err)
			}
			arns[i] = s.KeyARN
		})
	}
	close(begin)
	all.Wait()
	k, ok := e.log.State().ServiceKey("default", "obs")
	if !ok || e.log.State().TenantKeys("default") != 1 {
		t.Fatalf("there: %v, keys: %d", ok, e.log.State().TenantKeys("default"))
	}
	for _, arn := range arns {
		if arn != e.arn("default", k.ID.String()) {
			t.Errorf("sealed under %s", arn)
		}
	}
	if n := len(e.audit.of("CreateServiceKey")); n != 1 {
		t.Errorf("%d records of its making", n)
	}
	if k.Manager != fsm.ManagerService || k.Service != "obs" {
		t.Errorf("%+v", k)
	}
	// Another service and another tenant have their own.
	e.ok(e.encrypts(in(vol, "default"), "", pairs...))
	e.ok(e.encrypts(in(obs, "acme"), "", acting("acme", "b")...))
	if a, b := e.log.State().TenantKeys("default"), e.log.State().TenantKeys("acme"); a != 2 || b != 1 {
		t.Errorf("%d and %d keys", a, b)
	}
}

func TestServiceKeyNeeds(t *testing.T) {
	e := newEnv(t)
	for _, c := range []struct {
		name  string
		call  Call
		pairs []Pair
		want  error
		says  string
	}{
		{"no tenant", as(obs), acting("default", "b"), fsm.ErrInvalid, "must name the tenant"},
		{"no context", in(obs, "default"), nil, ErrDenied, "tenant=default"},
		{"no resource", in(obs, "default"), []Pair{{"tenant", "default"}}, ErrDenied, "resource=…"},
		{"another tenant's context", in(obs, "default"), acting("acme", "b"), ErrDenied, "tenant=default"},
		{"a tenant that is not there", in(obs, "nobody"), acting("nobody", "b"), ErrDenied, "no grant of yours"},
		{"a user names no key", as(uma), nil, fsm.ErrInvalid, "key id is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.refused(e.encrypts(c.call, "", c.pairs...), c.want, c.says)
		})
	}
	if n := e.log.count(&fsm.CreateServiceKey{}); n != 0 || e.hsm.made != 0 {
		t.Errorf("%d keys were made, %d in the HSM", n, e.hsm.made)
	}
	t.Run("a dry run makes none", func(t *testing.T) {
		c := in(obs, "default")
		c.DryRun = true
		e.refused(e.encrypts(c, "", acting("default", "b")...), ErrDryRun)
		if n := e.log.count(&fsm.CreateServiceKey{}); n != 0 || e.hsm.made != 0 {
			t.Errorf("%d keys were made, %d in the HSM", n, e.hsm.made)
		}
	})
	t.Run("a disabled service", func(t *testing.T) {
		e.do(&fsm.DisablePrincipal{Principal: who(obs)})
		e.refused(e.encrypts(in(obs, "default"), "", acting("default", "b")...), fsm.ErrPrincipalDisabled)
		e.do(&fsm.EnablePrincipal{Principal: who(obs)})
	})
	t.Run("an HSM that fails", func(t *testing.T) {
		e.hsm.fail = func() error { return fmt.Errorf("%w: gone", hsm.ErrUnavailable) }
		e.refused(e.encrypts(in(obs, "default"), "", acting("default", "b")...), hsm.ErrUnavailable)
		e.hsm.fail = nil
	})
	t.Run("what cannot be recorded is not made", func(t *testing.T) {
		e.audit.broken = errors.New("full")
		if err := e.encrypts(in(obs, "default"), "", acting("default", "b")...); !errors.Is(err, e.audit.broken) {
			t.Error(err)
		}
		e.audit.broken = nil
		if n := e.log.count(&fsm.CreateServiceKey{}); n != 0 {
			t.Errorf("%d keys were made", n)
		}
	})
	t.Run("a quota", func(t *testing.T) {
		_, err := e.SetTenantQuota(t.Context(), as(olga), "acme", 1)
		e.ok(err)
		e.key("acme")
		e.refused(e.encrypts(in(obs, "acme"), "", acting("acme", "b")...), fsm.ErrLimit)
	})
}

// TestServiceKeyTenant: what the tenant may do with a service's key.
func TestServiceKeyTenant(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	pairs := acting("default", "b")
	blob := e.sealed(in(obs, "default"), "", pairs...)
	k, _ := e.log.State().ServiceKey("default", "obs")
	id := k.ID.String()
	for name, err := range map[string]error{
		"another service":         e.encrypts(in(vol, "default"), id, pairs...),
		"another service, opened": e.opens(in(vol, "default"), blob, pairs...),
		"a user":                  e.encrypts(as(uma), id, pairs...),
		"a user, opened":          e.opens(as(uma), blob, pairs...),
		"itself, another context": e.opens(in(obs, "default"), blob, acting("acme", "b")...),
		"itself, for another":     e.encrypts(in(obs, "acme"), id, acting("acme", "b")...),
	} {
		t.Log(name)
		e.refused(err, ErrDenied)
	}
	e.ok(e.opens(in(obs, "default"), blob, pairs...))
	_, _, err := e.DescribeKey(ctx, as(ada), fsm.ServiceAlias("obs"))
	e.ok(err)
	for name, f := range map[string]func() error{
		"disable":         func() error { _, _, err := e.DisableKey(ctx, as(ada), id, 0); return err },
		"decrypt only":    func() error { _, _, err := e.SetKeyDecryptOnly(ctx, as(ada), id, 0); return err },
		"delete":          func() error { _, _, err := e.ScheduleKeyDeletion(ctx, as(ada), id, 7, 0); return err },
		"describe anew":   func() error { _, _, err := e.UpdateKeyDescription(ctx, as(ada), id, "mine", 0); return err },
		"tag":             func() error { _, _, err := e.TagResource(ctx, as(ada), id, []fsm.Tag{{Key: "a"}}, 0); return err },
		"alias":           func() error { _, _, err := e.CreateAlias(ctx, as(ada), "alias/mine", id, 0); return err },
		"policy":          func() error { _, _, err := e.PutPolicy(ctx, as(ada), id, everybody, nil); return err },
		"disable version": func() error { _, _, err := e.DisableKeyVersion(ctx, as(ada), id, 1, 0); return err },
		"grant": func() error {
			_, _, err := e.CreateGrant(ctx, as(ada), id, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantDecrypt)})
			return err
		},
	} {
		t.Log(name)
		e.refused(f(), fsm.ErrServiceManaged, "service obs")
	}
	result, _, err := e.RotateKeyOnDemand(ctx, as(ada), id, 0)
	e.ok(err)
	if result.Version != 2 {
		t.Errorf("version %d", result.Version)
	}
	_, _, err = e.EnableKeyRotation(ctx, as(ada), id, 0, 0)
	e.ok(err)
	e.ok(e.opens(in(obs, "default"), blob, pairs...))
	e.ok(e.encrypts(in(obs, "default"), "", pairs...))
	if by := e.audit.last(); by.KeyVersion != 2 || by.DecidedBy != "service key" {
		t.Errorf("%+v", by)
	}
	_, _, err = e.DeleteAlias(ctx, as(ada), fsm.ServiceAlias("obs"), 0)
	e.refused(err, fsm.ErrInvalid, "reserved")
}
