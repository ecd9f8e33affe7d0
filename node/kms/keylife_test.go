package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

func TestResources(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	id := uuid.MustParse(key)
	bind := func(c Call, key, resource string) error {
		_, _, err := e.BindResource(ctx, c, key, resource, 0)
		return err
	}
	release := func(c Call, key, resource string) error {
		_, _, err := e.ReleaseResource(ctx, c, key, resource, 0)
		return err
	}
	e.give(key, GrantParams{Grantee: who(obs), Operations: ops(fsm.GrantGenerateDataKey), Constraints: fsm.Constraints{Subset: tagsOf(acting("default", "bucket/1"))}})
	e.give(key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantEncrypt)})
	e.give(key, GrantParams{Grantee: who("acme/user/reader"), Operations: ops(fsm.GrantDescribeKey, fsm.GrantRetireGrant)})
	e.ok(e.encrypts(in(obs, "default"), "", acting("default", "own")...))
	own, _ := e.log.State().ServiceKey("default", "obs")
	for _, c := range []struct {
		name     string
		call     Call
		key      string
		resource string
		want     error
		says     string
		rule     string
	}{
		{"a user", as(uma), key, "volume/1", nil, "", "default policy"},
		{"an administrator", as(ada), key, "volume/2", nil, "", "default policy"},
		{"a service, by its grant", in(obs, "default"), key, "bucket/1", nil, "", "grant"},
		{"a service, another resource than granted", in(obs, "default"), key, "bucket/2", ErrDenied, "no grant of yours", "tenant"},
		{"a service without a grant", in(vol, "default"), key, "bucket/1", ErrDenied, "no grant of yours", "tenant"},
		{"a service, its own key", in(obs, "default"), own.ID.String(), "bucket/9", nil, "", "service key"},
		{"another service's key", in(vol, "default"), own.ID.String(), "bucket/9", ErrDenied, "no grant of yours", "service key"},
		{"another tenant's user, by its grant", in(una, "default"), key, "volume/3", nil, "", "grant"},
		{"one who may only look", in("acme/user/reader", "default"), key, "volume/4", ErrDenied, "no grant of yours", "tenant"},
		{"an auditor", as(tom), key, "volume/4", ErrDenied, "class auditor", "role"},
		{"an operator", as(olga), key, "volume/4", ErrDenied, "class operator", "role"},
		{"no name", as(uma), key, "", fsm.ErrInvalid, "1 to 512", ""},
		{"a long name", as(uma), key, strings.Repeat("x", 513), fsm.ErrInvalid, "1 to 512", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := bind(c.call, c.key, c.resource)
			r := e.audit.last()
			if c.want != nil {
				e.refused(err, c.want, c.says)
			} else {
				e.ok(err)
				b, ok := e.log.State().Binding(uuid.MustParse(c.key), c.resource)
				if !ok || b.By != c.call.Caller.Principal {
					t.Errorf("%+v", b)
				}
				e.ok(bind(c.call, c.key, c.resource)) // again
			}
			if !strings.HasPrefix(r.DecidedBy, c.rule) || c.rule != "role" && c.rule != "" && r.KeyID != c.key || r.KeyVersion != 0 || r.Target != c.resource {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
	for _, c := range []struct {
		name     string
		call     Call
		resource string
		want     error
		op       string
	}{
		{"another user", as(uri), "volume/1", fsm.ErrNotFound, "ReleaseResource"},
		{"another tenant's administrator", in(abel, "default"), "volume/1", ErrDenied, ""},
		{"an auditor", as(tom), "volume/1", ErrDenied, ""},
		{"who registered it", as(uma), "volume/1", nil, ""},
		{"what is not there", as(uma), "volume/1", fsm.ErrNotFound, ""},
		{"the service", in(obs, "default"), "bucket/1", nil, ""},
		{"an administrator, for another", as(ada), "volume/3", nil, ""},
	} {
		t.Run("release by "+c.name, func(t *testing.T) {
			if err := release(c.call, key, c.resource); c.want != nil {
				e.refused(err, c.want)
			} else {
				e.ok(err)
			}
		})
	}
	t.Run("a policy may keep users from it", func(t *testing.T) {
		e.put("", everybody+`forbid (principal, action in [KMS::Action::"BindResource", KMS::Action::"ForceReleaseResource"], resource);`)
		e.refused(bind(as(uma), key, "x"), ErrDenied, "forbids BindResource")
		e.refused(bind(as(ada), key, "x"), ErrDenied, "forbids BindResource")
		e.refused(release(as(ada), key, "volume/2"), ErrDenied, "forbids ForceReleaseResource")
		e.put("", "")
	})
	t.Run("deletion names them", func(t *testing.T) {
		for i := range 7 {
			e.ok(bind(as(uma), key, fmt.Sprintf("disk/%d", i)))
		}
		_, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
		e.refused(err, fsm.ErrInUse, "disk/0, disk/1, disk/2, disk/3, disk/4 and 3 more") // and volume/2
		e.ok(release(as(ada), key, "volume/2"))
		for i := range 7 {
			e.ok(release(as(uma), key, fmt.Sprintf("disk/%d", i)))
		}
		if n := e.log.State().CountBindings(id); n != 0 {
			t.Fatalf("%d bindings are left", n)
		}
		_, _, err = e.SetDeletionProtection(ctx, as(ada), key, true, 0)
		e.ok(err)
		_, _, err = e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
		e.refused(err, fsm.ErrProtected)
		_, _, err = e.SetDeletionProtection(ctx, as(ada), key, false, 0)
		e.ok(err)
		k, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
		e.ok(err)
		if k.Deletion != start.Add(7*24*time.Hour).Unix() {
			t.Errorf("at %d", k.Deletion)
		}
		e.refused(bind(as(uma), key, "disk/0"), fsm.ErrPendingDeletion)
	})
}

func TestListResources(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	for i := range 5 {
		_, _, err := e.BindResource(t.Context(), as(uma), key, fmt.Sprint(i), 0)
		e.ok(err)
	}
	var got []string
	for marker := ""; ; {
		p, _, err := e.ListResources(t.Context(), as(tom), key, 2, marker)
		e.ok(err)
		for _, b := range p.Items {
			got = append(got, b.Resource)
		}
		if marker = p.Next; marker == "" {
			break
		}
	}
	if strings.Join(got, "") != "01234" {
		t.Errorf("%v", got)
	}
	if m, _, err := e.DescribeKey(t.Context(), as(tom), key); err != nil || m.Resources != 5 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestRequiredContext(t *testing.T) {
	e := newEnv(t)
	key, other := e.key("default"), e.key("default")
	before := e.sealed(as(uma), key)
	_, _, err := e.SetRequiredContext(t.Context(), as(ada), key, []string{"bucket", "app"}, 0)
	e.ok(err)
	both := []Pair{{"app", "a"}, {"bucket", "b"}}
	for _, c := range []struct {
		name  string
		pairs []Pair
		says  string // empty: allowed
	}{
		{"none", nil, "app"},
		{"one", []Pair{{"app", "a"}}, "bucket"},
		{"another case", []Pair{{"App", "a"}, {"bucket", "b"}}, "app"},
		{"both", both, ""},
		{"more", append(both, Pair{"x", "y"}), ""},
		{"an empty value", []Pair{{"app", ""}, {"bucket", ""}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := e.encrypts(as(uma), key, c.pairs...)
			if c.says == "" {
				e.ok(err)
				e.ok(e.opens(as(uma), e.sealed(as(uma), key, c.pairs...), c.pairs...))
				return
			}
			e.refused(err, fsm.ErrInvalid, c.says)
		})
	}
	e.refused(e.opens(as(uma), before), fsm.ErrInvalid, "app") // what was sealed without it does not open
	move := func(r ReEncryption) error { _, err := e.ReEncrypt(t.Context(), as(uma), r); return err }
	e.refused(move(ReEncryption{Ciphertext: e.sealed(as(uma), other), DestinationKey: key}), fsm.ErrInvalid, "app")
	e.ok(move(ReEncryption{Ciphertext: e.sealed(as(uma), other), DestinationKey: key, DestinationContext: both}))
	_, _, err = e.SetRequiredContext(t.Context(), as(ada), key, nil, 0)
	e.ok(err)
	e.ok(e.opens(as(uma), before))
	for _, keys := range [][]string{{""}, {"kms:x"}, {"a", "a"}} {
		_, _, err = e.SetRequiredContext(t.Context(), as(ada), key, keys, 0)
		e.refused(err, fsm.ErrInvalid)
	}
}

// TestKeyStates: what each state lets callers do.
func TestKeyStates(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	other := e.key("default")
	for _, c := range []struct {
		state      string
		enter      func(key string) error
		seal, open error
	}{
		{"enabled", func(string) error { return nil }, nil, nil},
		{"disabled", func(key string) error { _, _, err := e.DisableKey(ctx, as(ada), key, 0); return err }, fsm.ErrDisabled, fsm.ErrDisabled},
		{"decrypt only", func(key string) error { _, _, err := e.SetKeyDecryptOnly(ctx, as(ada), key, 0); return err }, fsm.ErrDecryptOnly, nil},
		{"pending deletion", func(key string) error { _, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0); return err }, fsm.ErrPendingDeletion, fsm.ErrPendingDeletion},
	} {
		t.Run(c.state, func(t *testing.T) {
			key := e.key("default")
			blob, foreign := e.sealed(as(uma), key), e.sealed(as(uma), other)
			e.ok(c.enter(key))
			move := func(blob []byte, to string) error {
				_, err := e.ReEncrypt(ctx, as(uma), ReEncryption{Ciphertext: blob, DestinationKey: to})
				return err
			}
			for name, x := range map[string]struct{ got, want error }{
				"Encrypt":                  {e.encrypts(as(uma), key), c.seal},
				"Decrypt":                  {e.opens(as(uma), blob), c.open},
				"ReEncrypt from":           {move(blob, other), c.open},
				"ReEncrypt to":             {move(foreign, key), c.seal},
				"ReEncrypt under the same": {move(blob, ""), errors.Join(c.open, c.seal)},
			} {
				if x.want == nil {
					if x.got != nil {
						t.Errorf("%s: %v", name, x.got)
					}
				} else if x.got == nil || !errors.Is(x.got, c.open) && !errors.Is(x.got, c.seal) {
					t.Errorf("%s: %v, want %v", name, x.got, x.want)
				}
			}
			_, err := e.GenerateDataKeyWithoutPlaintext(ctx, as(uma), key, 32, nil)
			if !errors.Is(err, c.seal) {
				t.Errorf("data key: %v", err)
			}
		})
	}
}

// TestVersionStates: a version's state decides on what it has sealed, and on what is
// sealed if it is the current one.
func TestVersionStates(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, other := e.key("default"), e.key("default")
	first := e.sealed(as(uma), key)
	_, _, err := e.RotateKeyOnDemand(ctx, as(ada), key, 0)
	e.ok(err)
	second := e.sealed(as(uma), key)
	move := func(blob []byte, to string) (Moved, error) {
		return e.ReEncrypt(ctx, as(uma), ReEncryption{Ciphertext: blob, DestinationKey: to})
	}
	m, err := move(first, "")
	e.ok(err)
	if m.Unchanged || m.SourceVersion != 1 || m.Version != 2 {
		t.Errorf("%+v", m)
	}
	if m, err = move(second, ""); err != nil || !m.Unchanged || string(m.Ciphertext) != string(second) {
		t.Errorf("%+v, %v", m, err)
	}
	version := func(f func() error, want error) {
		t.Helper()
		e.ok(f())
		if want == nil {
			e.ok(e.opens(as(uma), first))
			_, err := move(first, other)
			e.ok(err)
		} else {
			e.refused(e.opens(as(uma), first), want, "version 1 of key "+key)
			_, err := move(first, other)
			e.refused(err, want)
		}
		e.ok(e.opens(as(uma), second))
		e.ok(e.encrypts(as(uma), key))
	}
	version(func() error { return nil }, nil)
	version(func() error { _, _, err := e.DisableKeyVersion(ctx, as(ada), key, 1, 0); return err }, fsm.ErrVersionDisabled)
	version(func() error { _, _, err := e.EnableKeyVersion(ctx, as(ada), key, 1, 0); return err }, nil)
	version(func() error {
		v, _, err := e.ScheduleKeyVersionDestruction(ctx, as(ada), key, 1, 0, 0)
		if err == nil && v.Destroy != start.Add(30*24*time.Hour).Unix() {
			t.Errorf("%+v", v)
		}
		return err
	}, fsm.ErrVersionDisabled)
	_, _, err = e.EnableKeyVersion(ctx, as(ada), key, 1, 0)
	e.refused(err, fsm.ErrVersionDisabled, "cancel that first")
	version(func() error { _, _, err := e.CancelKeyVersionDestruction(ctx, as(ada), key, 1, 0); return err }, fsm.ErrVersionDisabled)
	version(func() error { _, _, err := e.EnableKeyVersion(ctx, as(ada), key, 1, 0); return err }, nil)
	_, _, err = e.ScheduleKeyVersionDestruction(ctx, as(ada), key, 2, 7, 0)
	e.refused(err, fsm.ErrVersionCurrent, "current one")
	_, _, err = e.DisableKeyVersion(ctx, as(ada), key, 3, 0)
	e.refused(err, fsm.ErrNotFound, "no version 3")
	_, _, err = e.DisableKeyVersion(ctx, as(ada), key, 0, 0)
	e.refused(err, fsm.ErrInvalid)
	_, _, err = e.DisableKeyVersion(ctx, as(uma), key, 1, 0)
	e.refused(err, ErrDenied)

	_, _, err = e.DisableKeyVersion(ctx, as(ada), key, 2, 0) // the current one
	e.ok(err)
	e.refused(e.encrypts(as(uma), key), fsm.ErrVersionDisabled, "version 2")
	e.refused(e.opens(as(uma), second), fsm.ErrVersionDisabled)
	e.ok(e.opens(as(uma), first))
	_, _, err = e.RotateKeyOnDemand(ctx, as(ada), key, 0)
	e.ok(err)
	e.ok(e.encrypts(as(uma), key))

	_, _, err = e.ScheduleKeyVersionDestruction(ctx, as(ada), key, 1, 7, 0)
	e.ok(err)
	e.clock.advance(7 * 24 * time.Hour)
	for e.doDue(ctx, map[fsm.Due]time.Time{}) {
	}
	e.refused(e.opens(as(uma), first), fsm.ErrVersionDestroyed, "version 1")
	if v := e.stored(key).Version(1); v.Token != nil || v.State != fsm.VersionDestroyed {
		t.Errorf("%+v", v)
	}
	views, _, err := e.ListKeyVersions(ctx, as(tom), key, 0, "")
	e.ok(err)
	if len(views.Items) != 3 || !views.Items[2].Current || views.Items[0].State != fsm.VersionDestroyed || views.Items[1].State != fsm.VersionDisabled {
		t.Errorf("%+v", views.Items)
	}
}

func TestRotationSchedule(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	for _, period := range []time.Duration{time.Second, 59 * time.Second, 1500 * time.Millisecond, -time.Hour, 2561 * 24 * time.Hour} {
		_, _, err := e.EnableKeyRotation(ctx, as(ada), key, period, 0)
		e.refused(err, fsm.ErrInvalid, "rotation period")
	}
	k, _, err := e.EnableKeyRotation(ctx, as(ada), key, 0, 0)
	e.ok(err)
	if k.Rotation.Next != start.Add(365*24*time.Hour).Unix() {
		t.Errorf("%+v", k.Rotation)
	}
	e.clock.advance(time.Hour)
	if k, _, err = e.EnableKeyRotation(ctx, as(ada), key, 365*24*time.Hour, 0); err != nil || k.Rotation.Next != start.Add(365*24*time.Hour).Unix() {
		t.Errorf("the same period moved it: %+v, %v", k, err)
	}
	if k, _, err = e.EnableKeyRotation(ctx, as(ada), key, time.Hour, 0); err != nil || k.Rotation.Next != start.Add(2*time.Hour).Unix() {
		t.Errorf("%+v, %v", k, err)
	}
	_, _, err = e.RotateKeyOnDemand(ctx, as(ada), key, 0)
	e.ok(err)
	if next := e.stored(key).Rotation.Next; next != start.Add(2*time.Hour).Unix() {
		t.Errorf("rotation on demand moved it to %d", next)
	}
	_, _, err = e.DisableKeyRotation(ctx, as(ada), key, 0)
	e.ok(err)
	if k, _, err := e.GetKeyRotationStatus(ctx, as(tom), key); err != nil || k.Rotation != nil {
		t.Errorf("%+v, %v", k, err)
	}
	// Rotated on demand while the revision that was expected has passed.
	_, _, err = e.RotateKeyOnDemand(ctx, as(ada), key, 1)
	e.refused(err, fsm.ErrConflict)
	if n := e.hsm.made; n != 2 {
		t.Errorf("%d keys were made: what the state refuses costs the HSM nothing", n)
	}
}

// TestRecordsOfChanges: a change's record names key, version, rule and how it ended.
func TestRecordsOfChanges(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	_, _, err := e.RotateKeyOnDemand(t.Context(), as(ada), key, 0)
	e.ok(err)
	r := e.audit.last()
	if r.Name != "RotateKeyOnDemand" || r.KeyID != key || r.KeyVersion != 2 || r.DecidedBy != "default policy" || r.Result != audit.Success || r.Tenant != "default" || r.StateIndex != e.log.State().Index() {
		t.Errorf("%+v", r)
	}
	e.put(key, permitTo("User", uma, "Encrypt"))
	if r := e.audit.last(); r.KeyID != key || r.KeyVersion != 0 || !strings.HasPrefix(r.DecidedBy, "default policy") {
		t.Errorf("%+v", r)
	}
}

// TestResourceByARN: a service that names a key by its ARN acts for that key's tenant.
func TestResourceByARN(t *testing.T) {
	e := newEnv(t)
	key := e.key("acme")
	_, _, err := e.CreateGrant(t.Context(), as(abel), key, GrantParams{
		Grantee: who(obs), Operations: ops(fsm.GrantEncrypt), Constraints: fsm.Constraints{Subset: tagsOf(acting("acme", "bucket/1"))},
	})
	e.ok(err)
	arn := e.arn("acme", key)
	_, _, err = e.BindResource(t.Context(), as(obs), arn, "bucket/1", 0)
	e.ok(err)
	_, _, err = e.BindResource(t.Context(), as(obs), arn, "bucket/2", 0)
	e.refused(err, ErrDenied)
	_, _, err = e.ReleaseResource(t.Context(), as(obs), arn, "bucket/1", 0)
	e.ok(err)
}

// TestRestrictionsOutlastChanges: whoever changes a key again and again does not keep its
// restrictions from being made; what restricts nothing gives up.
func TestRestrictionsOutlastChanges(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	left := 0
	e.log.lose(func(p fsm.Proposal) error { // before each proposal a co-administrator is faster
		if _, own := p.Command.(*fsm.UpdateKeyDescription); left > 0 && !own {
			left--
			e.do(&fsm.UpdateKeyDescription{KeyRef: fsm.KeyRef{ID: uuid.MustParse(key), Tenant: "default"}, Description: fmt.Sprint(left)})
		}
		return nil
	})
	left = 50
	_, _, err := e.DisableKey(t.Context(), as(ada), key, 0)
	e.ok(err)
	if left != 0 || e.stored(key).State != fsm.KeyDisabled {
		t.Errorf("%d changes were left, the key is %s", left, e.stored(key).State)
	}
	left = 50
	_, _, err = e.EnableKey(t.Context(), as(ada), key, 0)
	e.refused(err, fsm.ErrConflict)
	left = 50
	_, _, err = e.PutPolicy(t.Context(), as(ada), key, everybody, nil)
	e.ok(err)
	left = 1
	_, _, err = e.DisableKey(t.Context(), as(ada), key, e.stored(key).Revision)
	e.refused(err, fsm.ErrConflict)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	left = 1
	_, _, err = e.DisableKey(ctx, as(ada), key, 0)
	e.refused(err, fsm.ErrConflict)
}
