package kms

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// told are the uses that the log was told of since the last call.
func (e *env) told() (out []fsm.Use) {
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	for _, p := range e.log.told {
		if c, ok := p.Command.(*fsm.RecordUse); ok {
			out = append(out, c.Uses...)
		}
	}
	e.log.told = nil
	return out
}

func (e *env) used(key string) *fsm.LastUse {
	if u, ok := e.log.State().LastUse(uuid.MustParse(key)); ok {
		return u
	}
	return &fsm.LastUse{}
}

func TestUsesAreToldHourly(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	first := e.sealed(as(uma), key)
	e.tellUses(ctx)
	if got := e.told(); len(got) != 1 || got[0] != (fsm.Use{Key: uuid.MustParse(key), Version: 1, At: start.Unix()}) {
		t.Fatalf("%+v", got)
	}
	for range 59 {
		e.clock.advance(time.Minute)
		e.ok(e.opens(as(uma), first))
		e.tellUses(ctx)
	}
	if got := e.told(); len(got) != 0 {
		t.Errorf("within the hour: %+v", got)
	}
	_, _, err := e.RotateKeyOnDemand(ctx, as(ada), key, 0)
	e.ok(err)
	e.ok(e.encrypts(as(uma), key))
	e.tellUses(ctx)
	if got := e.told(); len(got) != 1 || got[0].Version != 2 {
		t.Errorf("another version: %+v", got)
	}
	e.clock.advance(time.Minute)
	e.ok(e.opens(as(uma), first))
	e.ok(e.encrypts(as(uma), key))
	e.tellUses(ctx)
	if got := e.told(); len(got) != 1 || got[0].Version != 1 || got[0].At != start.Add(time.Hour).Unix() {
		t.Errorf("an hour later: %+v", got)
	}
	if u := e.used(key); u.Version(1) != start.Add(time.Hour).Unix() || u.Version(2) != start.Add(59*time.Minute).Unix() {
		t.Errorf("%+v", u)
	}
	views, _, err := e.ListKeyVersions(ctx, as(tom), key, 0, "")
	e.ok(err)
	if views.Items[0].Used != start.Add(time.Hour).Unix() {
		t.Errorf("%+v", views.Items[0])
	}
}

// TestUsesOfOthers: what another node has told within the hour is not told again.
func TestUsesOfOthers(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.do(&fsm.RecordUse{Uses: []fsm.Use{{Key: uuid.MustParse(key), Version: 1, At: start.Add(-time.Minute).Unix()}}})
	e.told()
	e.ok(e.encrypts(as(uma), key))
	e.tellUses(t.Context())
	e.clock.advance(58 * time.Minute)
	e.ok(e.encrypts(as(uma), key))
	e.tellUses(t.Context())
	if got := e.told(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	e.clock.advance(time.Minute)
	e.ok(e.encrypts(as(uma), key))
	e.tellUses(t.Context())
	if got := e.told(); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// TestUsesThatAreNone: only what was handed over is a use.
func TestUsesThatAreNone(t *testing.T) {
	e := newEnv(t)
	key, other := e.key("default"), e.key("default")
	e.put(other, "forbid (principal is KMS::User, action, resource);")
	e.refused(e.encrypts(as(uma), other), ErrDenied)
	dry := as(uma)
	dry.DryRun = true
	e.refused(e.encrypts(dry, key), ErrDryRun)
	blob := e.sealedAs(key)
	e.uses = newUses()
	blob[len(blob)-1] ^= 1
	e.refused(e.opens(as(uma), blob), ErrCiphertext)
	e.tellUses(t.Context())
	if got := e.told(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	third := e.key("default")
	_, err := e.ReEncrypt(t.Context(), as(uma), ReEncryption{Ciphertext: e.sealed(as(uma), key), DestinationKey: third})
	e.ok(err)
	e.tellUses(t.Context())
	if e.used(key).Version(1) == 0 || e.used(third).Version(1) == 0 {
		t.Error("ReEncrypt uses both keys")
	}
}

func TestUsesGivenBack(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.ok(e.encrypts(as(uma), key))
	e.log.refuse = func(c fsm.Command) error {
		if _, ok := c.(*fsm.RecordUse); ok {
			return errors.New("no leader")
		}
		return nil
	}
	for range 3 {
		e.tellUses(t.Context())
	}
	e.log.refuse = nil
	e.tellUses(t.Context())
	if u := e.used(key); u.Version(1) != start.Unix() {
		t.Errorf("lost: %+v", u)
	}
	e.told()
	e.tellUses(t.Context())
	if got := e.told(); len(got) != 0 {
		t.Errorf("told twice: %+v", got)
	}
	// What was seen meanwhile is newer than what comes back.
	u := newUses()
	id := uuid.New()
	st := e.log.State()
	u.note(st, id, 1, start)
	some := u.take()
	u.note(st, id, 1, start.Add(2*time.Hour))
	u.back(some)
	if got := u.take(); len(got) != 1 || got[0].At != start.Add(2*time.Hour).Unix() {
		t.Errorf("%+v", got)
	}
}

func TestUsesAreBounded(t *testing.T) {
	st := fsm.NewState()
	u := newUses()
	for range fsm.MaxUses + 100 {
		u.note(st, uuid.New(), 1, start)
	}
	first, second := u.take(), u.take()
	if len(first) != fsm.MaxUses || len(second) != 100 || len(u.take()) != 0 {
		t.Errorf("%d, then %d", len(first), len(second))
	}
	// As many as an entry takes fit into one.
	e := newEnv(t)
	for i := range first {
		first[i].Version, first[i].At = 1<<32-1, 1<<34
	}
	e.do(&fsm.RecordUse{Uses: first})
	u = newUses()
	last := map[fsm.ID]bool{} // untold behind more that was told than there is room for
	for i := range maxUses + 10_000 {
		if i%fsm.MaxUses == 0 && i < maxUses {
			u.take()
		}
		id := uuid.New()
		if i >= maxUses {
			last[id] = true
		}
		u.note(st, id, 1, start)
		if n := len(u.told) + len(u.untold); n > maxUses {
			t.Fatalf("%d are remembered", n)
		}
	}
	for some := u.take(); len(some) > 0; some = u.take() {
		for _, use := range some {
			delete(last, use.Key)
		}
	}
	if len(last) != 0 {
		t.Errorf("%d uses were forgotten before they were told", len(last))
	}
	for range maxUses + 10 {
		u.note(st, uuid.New(), 1, start)
	}
	if n := len(u.told) + len(u.untold); n != maxUses {
		t.Errorf("%d are remembered", n)
	}
}

// TestManyUsesAreTold: all that was seen is told at once, in several entries if need be.
func TestManyUsesAreTold(t *testing.T) {
	e := newEnv(t)
	for range 2*fsm.MaxUses + 5 {
		e.uses.note(e.log.State(), uuid.New(), 1, start)
	}
	e.log.told = nil
	e.tellUses(t.Context())
	if n := e.log.count(&fsm.RecordUse{}); n != 3 {
		t.Errorf("told in %d entries, want 3", n)
	}
}

// TestUseWhilePendingDeletion: it is an alarm, and remembered with the key.
func TestUseWhilePendingDeletion(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, other := e.key("default"), e.key("default")
	blob, foreign := e.sealed(as(uma), key), e.sealed(as(uma), other)
	_, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
	e.ok(err)
	for name, use := range map[string]func() error{
		"Encrypt":         func() error { return e.encrypts(as(uma), key) },
		"Decrypt":         func() error { return e.opens(as(uma), blob) },
		"GenerateDataKey": func() error { _, err := e.GenerateDataKey(ctx, as(uma), key, 32, nil); return err },
		"ReEncrypt from it": func() error {
			_, err := e.ReEncrypt(ctx, as(uma), ReEncryption{Ciphertext: blob, DestinationKey: other})
			return err
		},
		"ReEncrypt to it": func() error {
			_, err := e.ReEncrypt(ctx, as(uma), ReEncryption{Ciphertext: foreign, DestinationKey: key})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e.uses = newUses()
			e.clock.advance(2 * time.Hour)
			e.refused(use(), fsm.ErrPendingDeletion)
			r := e.audit.last()
			if r.Alarm != audit.UseOfDoomedKey || r.Result != audit.Failed {
				t.Errorf("recorded as %+v", r)
			}
			if name == "ReEncrypt to it" && (r.Target != e.arn("default", key) || r.KeyID != other) {
				t.Errorf("recorded as %+v", r)
			}
			e.tellUses(ctx)
			if u := e.used(key); u.Refused != e.clock.Now().Unix() {
				t.Errorf("%+v", u)
			}
			if u := e.used(other); u.Refused != 0 {
				t.Errorf("the other key: %+v", u)
			}
		})
	}
	m, _, err := e.DescribeKey(ctx, as(tom), key)
	e.ok(err)
	if m.Use.Refused == 0 {
		t.Errorf("%+v", m.Use)
	}
	t.Run("who may not is no alarm", func(t *testing.T) {
		e.refused(e.encrypts(in(una, "default"), key), ErrDenied)
		if r := e.audit.last(); r.Alarm != "" || r.Result != audit.Denied {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a trial is no use", func(t *testing.T) {
		e.uses = newUses()
		dry := as(uma)
		dry.DryRun = true
		e.refused(e.encrypts(dry, key), fsm.ErrPendingDeletion)
		if r := e.audit.last(); r.Alarm != "" || len(e.uses.untold) != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("in a frozen tenant", func(t *testing.T) {
		_, err := e.FreezeTenant(ctx, as(ada), "")
		e.ok(err)
		e.clock.advance(2 * time.Hour)
		e.refused(e.encrypts(as(uma), key), fsm.ErrFrozen)
		if r := e.audit.last(); r.Alarm != audit.UseOfDoomedKey || len(e.uses.untold) != 1 {
			t.Errorf("%+v", r)
		}
		e.refused(e.encrypts(as(uma), other), fsm.ErrFrozen)
		if r := e.audit.last(); r.Alarm != "" {
			t.Errorf("%+v", r)
		}
		_, err = e.ThawTenant(ctx, as(ada), "")
		e.ok(err)
	})
	t.Run("to look is no use", func(t *testing.T) {
		_, _, err := e.ListKeyVersions(ctx, as(uma), key, 0, "")
		e.ok(err)
		if r := e.audit.last(); r.Alarm != "" {
			t.Errorf("%+v", r)
		}
	})
}

// TestPendingMeanwhile: a result that the gate withholds because its key has become pending
// is an attempt too.
func TestPendingMeanwhile(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.hsm.random = func() { // while the HSM works
		e.hsm.random = nil
		e.do(&fsm.ScheduleKeyDeletion{KeyRef: fsm.KeyRef{ID: uuid.MustParse(key), Tenant: "default"}, Days: 7})
	}
	e.refused(e.encrypts(as(uma), key), fsm.ErrPendingDeletion, "no longer allowed")
	if r := e.audit.last(); r.Result != audit.Withheld || r.Alarm != audit.UseOfDoomedKey {
		t.Errorf("recorded as %+v", r)
	}
	e.tellUses(t.Context())
	if u := e.used(key); u.Refused != start.Unix() || u.Version(1) != 0 {
		t.Errorf("%+v", u)
	}
}
