package kms

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// TestRestrictionsAreNotBlocked: what a principal is refused in any case costs its tenant
// nothing, and what it may do less than the tenant has.
func TestRestrictionsAreNotBlocked(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	off := "default/user/off"
	_, err := e.DisablePrincipal(ctx, as(ada), who(off))
	e.ok(err)
	e.limited(limit.Config{RestrictPerTenant: 50, RestrictPerPrincipal: 20})
	for range 100 {
		_, _, err := e.DisableKey(ctx, as(uma), key, 0)
		e.refused(err, ErrDenied)
		_, err = e.RetireGrant(ctx, as(off), key, uuid.NewString())
		e.refused(err, fsm.ErrPrincipalDisabled)
		_, _, err = e.ScheduleKeyDeletion(ctx, as(bea), key, 1, 0)
		e.refused(err, fsm.ErrInvalid)
	}
	admitted := 0
	for range 100 { // it is in its class
		if _, err := e.RetireGrant(ctx, as(uma), key, uuid.NewString()); strings.Contains(err.Error(), "restrict_per_principal") {
			e.refused(err, limit.ErrExceeded)
		} else {
			admitted++
		}
	}
	if admitted != 20 {
		t.Errorf("%d of a principal's were admitted, want 20", admitted)
	}
	_, _, err = e.DisableKey(ctx, as(ada), key, 0)
	e.ok(err)
	_, err = e.DisablePrincipal(ctx, as(ada), who(uma))
	e.ok(err)
}

// TestEnabledAgain: who was enabled again is not refused by a node that has not heard of it.
func TestEnabledAgain(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	_, err := e.DisablePrincipal(t.Context(), as(ada), who(uma))
	e.ok(err)
	old := e.log.State()
	st, err := e.EnablePrincipal(t.Context(), as(ada), who(uma))
	e.ok(err)
	e.log.behind = old
	call := as(uma)
	call.IndexToken = IndexToken(st)
	e.ok(e.encrypts(call, key))
}

// TestRecordsAreBounded: no principal fills the record with what costs it nothing, and none
// takes another's room.
func TestRecordsAreBounded(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	const most = 5
	e.limited(limit.Config{RefusedPerPrincipal: most})
	for name, refused := range map[string]func(c Call) error{
		"a bad administrator": func(c Call) error { _, err := e.CreateTenant(ctx, c, "new", "nobody", 0); return err },
		"no plaintext":        func(c Call) error { _, err := e.Encrypt(ctx, c, key, nil, nil, ""); return err },
		"a bad context":       func(c Call) error { return e.encrypts(c, key, Pair{"a", "1"}, Pair{"a", "2"}) },
		"a bad size":          func(c Call) error { _, err := e.GenerateDataKey(ctx, c, key, 0, nil); return err },
		"bad random":          func(c Call) error { _, err := e.GenerateRandom(ctx, c, 0); return err },
		"a malformed blob":    func(c Call) error { return e.opens(c, []byte("x")) },
		"the same, moved":     func(c Call) error { _, err := e.ReEncrypt(ctx, c, ReEncryption{Ciphertext: []byte("x")}); return err },
		"another class":       func(c Call) error { _, _, err := e.DisableKey(ctx, c, key, 0); return err },
		"an operator's call":  func(c Call) error { _, err := e.SetTenantQuota(ctx, c, "acme", 1); return err },
		"refused outside":     func(c Call) error { return e.Refuse("PutPolicy", c, invalid("no text")) },
		"a tenant's name":     func(c Call) error { c.Tenant = "A!"; return e.Observe(ctx, "Status", c) },
	} {
		t.Run(name, func(t *testing.T) {
			e.t = t
			e.clock.advance(10 * time.Second)
			before := len(e.audit.events)
			for i := range 4 * most {
				err := refused(as(uma))
				if over := strings.Contains(err.Error(), "refused_per_principal"); over != (i >= most) {
					t.Fatalf("call %d: %v", i, err)
				}
			}
			if n := len(e.audit.events) - before; n != most {
				t.Errorf("%d records, want %d", n, most)
			}
			other := as(fmt.Sprintf("default/user/%d", before))
			if err := refused(other); strings.Contains(err.Error(), "refused_per_principal") {
				t.Error("another principal has no room")
			}
			if r := e.audit.last(); r.Unrecorded != 3*most || r.Principal != other.Caller.Principal {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
}

// TestQuotaRefusalsAreBounded: also what a quota refuses.
func TestQuotaRefusalsAreBounded(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.limited(limit.Config{UsePerPrincipal: 3, RefusedPerPrincipal: 4})
	before := len(e.audit.events)
	for range 100 {
		if err := e.encrypts(as(uma), key); err != nil {
			e.refused(err, limit.ErrExceeded, "use_per_principal")
		}
	}
	if n := len(e.audit.events) - before; n != 7 {
		t.Errorf("%d records, want 3 and 4", n)
	}
	if r := e.audit.last(); r.Result != audit.Failed {
		t.Errorf("recorded as %+v", r)
	}
}

// TestLanes: what the table of commands says restricts goes in the lane of restrictions, but
// for grants, which permit.
func TestLanes(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, id := e.key("default"), uuid.NewString()
	drop := func(_, _ any, err error) error { return err }
	e.limited(limit.Config{ControlPerTenant: 1e-6})
	call := as(ada)
	_, _, err := e.DescribeKey(ctx, call, key) // takes what there is of the control lane
	e.ok(err)
	for name, err := range map[string]error{
		"EnableKey":         drop(e.EnableKey(ctx, call, key, 0)),
		"EnableKeyVersion":  drop(e.EnableKeyVersion(ctx, call, key, 1, 0)),
		"RotateKeyOnDemand": drop(e.RotateKeyOnDemand(ctx, call, key, 0)),
		"EnableKeyRotation": drop(e.EnableKeyRotation(ctx, call, key, time.Hour, 0)),
		"CreateGrant":       drop(e.CreateGrant(ctx, call, key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt)})),
		"CreateKey":         drop(e.CreateKey(ctx, call, KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})),
		"BindResource":      drop(e.BindResource(ctx, call, key, "r", 0)),
	} {
		t.Log(name)
		e.refused(err, limit.ErrExceeded, "control calls")
	}
	revoke := func(_ *fsm.State, err error) error { return err }
	for name, err := range map[string]error{
		"SetRequiredContext": drop(e.SetRequiredContext(ctx, call, key, nil, 0)),
		"TagResource":        drop(e.TagResource(ctx, call, key, []fsm.Tag{{Key: "a"}}, 0)),
		"UntagResource":      drop(e.UntagResource(ctx, call, key, []string{"a"}, 0)),
		"CreateAlias":        drop(e.CreateAlias(ctx, call, "alias/a", key, 0)),
		"UpdateAlias":        drop(e.UpdateAlias(ctx, call, "alias/a", key, 0)),
		"DeleteAlias":        drop(e.DeleteAlias(ctx, call, "alias/a", 0)),
		"DisableKeyVersion":  drop(e.DisableKeyVersion(ctx, call, key, 1, 0)),
		"PutPolicy":          drop(e.PutPolicy(ctx, call, key, everybody, nil)),
		"DisableKey":         drop(e.DisableKey(ctx, call, key, 0)),
		"FreezeTenant":       revoke(e.FreezeTenant(ctx, call, "")),
	} {
		t.Log(name)
		e.ok(err)
	}
	e.refused(revoke(e.RevokeGrant(ctx, call, key, id)), fsm.ErrNotFound)
}

// TestRoleBeforePolicyText: a text is not judged for who may put none.
func TestRoleBeforePolicyText(t *testing.T) {
	e := newEnv(t)
	_, _, err := e.PutPolicy(t.Context(), as(uma), "", "nonsense", nil)
	e.refused(err, ErrDenied, "administer keys")
	_, _, err = e.PutPolicy(t.Context(), as(ada), uuid.NewString(), "nonsense", nil)
	e.refused(err, ErrPolicy)
	e.limited(limit.Config{RestrictPerPrincipal: 1e-6})
	_, _, err = e.PutPolicy(t.Context(), as(ada), "", "nonsense", nil)
	e.refused(err, ErrPolicy)
	_, _, err = e.PutPolicy(t.Context(), as(ada), "", "nonsense", nil)
	e.refused(err, limit.ErrExceeded)
}
