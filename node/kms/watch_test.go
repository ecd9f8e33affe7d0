package kms

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

func (e *env) watches(c Call) *Watch {
	e.t.Helper()
	w, told, err := e.WatchRestrictions(e.t.Context(), c)
	if err != nil {
		e.t.Fatal(err)
	}
	if told.Everything || len(told.KeyIDs) > 0 || len(told.IndexToken) == 0 {
		e.t.Errorf("at first %+v", told)
	}
	return w
}

// tells checks what a watch says next: a key, everything, or, with neither, nothing.
func (e *env) tells(what string, w *Watch, everything bool, keys ...string) {
	e.t.Helper()
	got, err := w.Next()
	if err != nil || got.Everything != everything || !slices.Equal(got.KeyIDs, keys) {
		e.t.Errorf("%s: told %+v, %v; want everything: %v, keys %v", what, got, err, everything, keys)
	}
	if !bytes.Equal(got.IndexToken, IndexToken(e.log.State())) {
		e.t.Errorf("%s: the token is not the state's", what)
	}
}

// TestWatchRestrictions: who uses keys of a tenant is told what is restricted there.
func TestWatchRestrictions(t *testing.T) {
	e := newEnv(t)
	key, acme := e.key("default"), e.key("acme")
	id := uuid.MustParse
	ref := func(key, tenant string) fsm.KeyRef { return fsm.KeyRef{ID: id(key), Tenant: tenant} }
	own := e.watches(as(uma))
	foreign, service := e.watches(in(una, "default")), e.watches(in(obs, "default"))
	nothing := e.watches(in(una, "nowhere")) // what is not there looks as what is
	for _, row := range []struct {
		what       string
		c          fsm.Command
		everything bool
		keys       []string
		foreign    bool
		nowhere    bool
	}{
		{"nothing", &fsm.UpdateKeyDescription{KeyRef: ref(key, "default"), Description: "new"}, false, nil, false, false},
		{"disabled", &fsm.DisableKey{KeyRef: ref(key, "default")}, false, []string{key}, true, false},
		{"enabled", &fsm.EnableKey{KeyRef: ref(key, "default")}, false, nil, false, false},
		{"another tenant's", &fsm.DisableKey{KeyRef: ref(acme, "acme")}, false, nil, false, false},
		{"an alias", &fsm.CreateAlias{AliasTarget: fsm.AliasTarget{Tenant: "default", Name: "alias/a", Key: id(key)}}, true, nil, true, false},
		{"a policy", &fsm.PutPolicy{Tenant: "default", Text: everybody}, true, nil, true, false},
		{"frozen", &fsm.FreezeTenant{Name: "default"}, true, nil, true, false},
		{"another is frozen", &fsm.FreezeTenant{Name: "acme"}, false, nil, false, false},
		{"somebody is disabled", &fsm.DisablePrincipal{Principal: who(uri)}, false, nil, false, false},
	} {
		e.do(row.c)
		e.tells(row.what, own, row.everything, row.keys...)
		e.tells(row.what+", foreign", foreign, row.foreign)
		e.tells(row.what+", a service", service, row.foreign)
		e.tells(row.what+", nowhere", nothing, row.nowhere)
	}
	for range fsm.MaxRestrictions + 1 {
		e.do(&fsm.UntagKey{KeyRef: ref(acme, "acme"), TagKeys: []string{"x"}})
	}
	e.tells("too many", own, true)
	e.do(&fsm.DisablePrincipal{Principal: who(uma)})
	_, err := own.Next()
	e.refused(err, fsm.ErrPrincipalDisabled)
}

// TestWhoWatches: who uses keys, and each watch is on record.
func TestWhoWatches(t *testing.T) {
	e := newEnv(t)
	watch := func(c Call) error {
		_, _, err := e.WatchRestrictions(t.Context(), c)
		return err
	}
	for _, who := range []string{ada, tom, olga, cleo, node} {
		e.refused(watch(as(who)), ErrDenied, "use keys")
		if r := e.audit.last(); r.Name != WatchRestrictions || r.Result != audit.Denied || r.DecidedBy != "role" {
			t.Errorf("%s: %+v", who, r)
		}
	}
	e.ok(watch(in(obs, "acme")))
	if r := e.audit.last(); r.Name != WatchRestrictions || r.Result != audit.Success || r.Tenant != "acme" || r.DecidedBy != "role" {
		t.Errorf("recorded %+v", r)
	}
	e.refused(watch(in(uma, "No tenant")), fsm.ErrInvalid)
	e.do(&fsm.DisablePrincipal{Principal: who(uma)})
	e.refused(watch(as(uma)), fsm.ErrPrincipalDisabled)
	e.limited(limit.Config{ControlPerTenant: 1})
	e.ok(watch(as(uri)))
	for range 5 { // the burst
		_ = watch(as(uri))
	}
	e.refused(watch(as(uri)), limit.ErrExceeded)
	e.limited(limit.Config{})
	e.audit.broken = audit.ErrUnavailable
	e.refused(watch(as(uri)), audit.ErrUnavailable)
}
