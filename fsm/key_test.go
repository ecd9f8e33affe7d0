package fsm

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// oneKey is a world with key 1, enabled, at revision 2.
func oneKey(t failer) *world {
	w := initialized(t)
	w.do(createKey(1))
	return w
}

func (w *world) key(n uint64) *Key {
	w.t.Helper()
	k, ok := w.s.Key(keyID(n))
	if !ok {
		w.t.Fatalf("key %d is not there", n)
	}
	return k
}

func wantKey(t *testing.T, w *world, want *Key) {
	t.Helper()
	got, _ := w.s.Key(want.ID)
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("key is\n%+v\nwant\n%+v", got, want)
	}
	if listed := w.s.Keys(want.Tenant, ID{}, 100); !reflect.DeepEqual(listed[0], want) {
		t.Fatalf("key is listed as\n%+v\nwant\n%+v", listed[0], want)
	}
}

func TestCreateKey(t *testing.T) {
	w := initialized(t)
	c := createKey(1)
	c.Description = "volumes <of> & the “archive”\u2028"
	c.Tags = []Tag{{"zone", "b"}, {"app", ""}, {"Zone", "a"}}
	if got, want := w.do(c), (Result{Index: 2, ID: keyID(1).String(), Version: 1}); got != want {
		t.Errorf("result %+v, want %+v", got, want)
	}
	wantKey(t, w, &Key{
		ID: keyID(1), Tenant: "default", Description: c.Description,
		State: "ENABLED", Usage: "ENCRYPT_DECRYPT", Spec: "SYMMETRIC", Origin: "KMS", Manager: "CUSTOMER",
		Created: startTime / second, Revision: 2,
		Tags:     []Tag{{"Zone", "a"}, {"app", ""}, {"zone", "b"}},
		Versions: []KeyVersion{{Version: 1, Generation: 1, Created: startTime / second, Cause: "CREATED", Token: []byte("token 1")}},
	})
	if w.s.KeyCount() != 1 {
		t.Errorf("%d keys, want 1", w.s.KeyCount())
	}
}

// edited gives a command that is right but for what f changes.
func edited[T any](c *T, f func(*T)) *T {
	f(c)
	return c
}

func create(f func(*CreateKey)) *CreateKey { return edited(createKey(2), f) }

func TestCreateKeyLimits(t *testing.T) {
	testAccepted(t, oneKey, []accepted{
		{"description of 8192 characters", create(func(c *CreateKey) { c.Description = strings.Repeat("ü", 8192) })},
		{"50 tags", create(func(c *CreateKey) { c.Tags = tags(0, 50) })},
		{"token of 8192 bytes", create(func(c *CreateKey) { c.Token = make([]byte, 8192) })},
		{"token of 1 byte", create(func(c *CreateKey) { c.Token = []byte{1} })},
	})
}

func TestCreateKeyRefused(t *testing.T) {
	testRefusals(t, oneKey, []refusal{
		{"id missing", create(func(c *CreateKey) { c.ID = ID{} }), ErrInvalid, "key id is missing"},
		{"id taken", createKey(1), ErrExists, keyID(1).String()},
		{"unknown tenant", create(func(c *CreateKey) { c.Tenant = "acme" }), ErrNotFound, `tenant "acme"`},
		{"no tenant", create(func(c *CreateKey) { c.Tenant = "" }), ErrNotFound, `tenant ""`},
		{"description of 8193 characters", create(func(c *CreateKey) { c.Description = strings.Repeat("x", 8193) }), ErrInvalid, "8193 characters, at most 8192"},
		{"51 tags", create(func(c *CreateKey) { c.Tags = tags(0, 51) }), ErrInvalid, "51 tags given, at most 50"},
		{"unknown spec", create(func(c *CreateKey) { c.Spec = "RSA_2048" }), ErrInvalid, `"RSA_2048"`},
		{"spec in lower case", create(func(c *CreateKey) { c.Spec = "symmetric" }), ErrInvalid, `"symmetric"`},
		{"unknown usage", create(func(c *CreateKey) { c.Usage = "SIGN_VERIFY" }), ErrInvalid, `"SIGN_VERIFY"`},
		{"version 0", create(func(c *CreateKey) { c.Version = 0 }), ErrInvalid, "version is 0, must be 1"},
		{"version 2", create(func(c *CreateKey) { c.Version = 2 }), ErrInvalid, "version is 2, must be 1"},
		{"no token", create(func(c *CreateKey) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"token of 8193 bytes", create(func(c *CreateKey) { c.Token = make([]byte, 8193) }), ErrInvalid, "token of 8193 bytes"},
		{"other generation", create(func(c *CreateKey) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2"},
		{"no generation", create(func(c *CreateKey) { c.Generation = 0 }), ErrConflict, "generation 1 is active, not 0"},
	})
}

// TestKeyCount: the cluster's limit counts the keys of all tenants.
func TestKeyCount(t *testing.T) {
	const most = 1_100_000
	w := oneKey(t)
	one := w.key(1)
	w.edit(func(t *tx) {
		keys := t.s.keys.edit(t)
		for n := uint64(2); n < most; n++ {
			keys.Load(keyItem{keyID(n), one}) // one record for all of them
		}
	})
	s, _, err := w.s.Apply(w.s.Index()+1, 1, seal(t, w.entry(), createKey(most)))
	if err != nil || s.KeyCount() != most {
		t.Fatalf("the last key that fits: %v; %d keys", err, s.KeyCount())
	}
	full, result, err := s.Apply(s.Index()+1, 1, seal(t, w.entry(), createKey(most+1)))
	wantError(t, err, ErrLimit, "the cluster has 1100000 keys")
	if _, made := full.Key(keyID(most + 1)); made || full.KeyCount() != most || result != (Result{Index: full.Index()}) {
		t.Errorf("refused, yet there are %d keys, and the answer is %+v", full.KeyCount(), result)
	}
	_, err = full.Try(createKey(most))
	wantError(t, err, ErrExists, keyID(most).String())
	if _, err := full.Try(rotateKey(most, 2)); err != nil {
		t.Errorf("rotating a key of a full cluster: %v", err)
	}
}

func TestUpdateKeyDescription(t *testing.T) {
	w := oneKey(t)
	want := *w.key(1)
	for i, text := range []string{"first", strings.Repeat("日", 8192), ""} {
		got := w.do(&UpdateKeyDescription{KeyRef: ref(1), Description: text})
		want.Description, want.Revision = text, uint64(3+i)
		if got != (Result{Index: want.Revision, ID: keyID(1).String(), Version: 1}) {
			t.Errorf("result %+v", got)
		}
		wantKey(t, w, &want)
	}
	w.refuse(&UpdateKeyDescription{KeyRef: ref(1), Description: strings.Repeat("日", 8193)}, ErrInvalid, "8193 characters, at most 8192")
}

// keyChanges is every command that names a key by KeyRef or as the target of an
// alias, with the reference given.
func keyChanges(r KeyRef) map[string]Command {
	target := AliasTarget{Tenant: r.Tenant, Name: "alias/new", Key: r.ID, Expect: r.Expect}
	moved := target
	moved.Name = "alias/other"
	return map[string]Command{
		"UpdateKeyDescription": &UpdateKeyDescription{KeyRef: r, Description: "new"},
		"EnableKey":            &EnableKey{r},
		"DisableKey":           &DisableKey{r},
		"ScheduleKeyDeletion":  &ScheduleKeyDeletion{KeyRef: r, Days: 7},
		"CancelKeyDeletion":    &CancelKeyDeletion{r},
		"RotateKey":            &RotateKey{KeyRef: r, Version: 4, Generation: 1, Cause: CauseOnDemand, Token: []byte("token 4")},
		"TagKey":               &TagKey{KeyRef: r, Tags: tags(0, 1)},
		"UntagKey":             &UntagKey{KeyRef: r, TagKeys: []string{"k00"}},
		"CreateAlias":          &CreateAlias{target},
		"UpdateAlias":          &UpdateAlias{moved},

		"SetKeyDecryptOnly":             &SetKeyDecryptOnly{r},
		"SetRequiredContext":            &SetRequiredContext{KeyRef: r, Keys: []string{"resource"}},
		"SetDeletionProtection":         &SetDeletionProtection{KeyRef: r},
		"EnableKeyRotation":             &EnableKeyRotation{KeyRef: r, Period: 100 * day},
		"DisableKeyRotation":            &DisableKeyRotation{r},
		"RotateKeyOnSchedule":           &RotateKeyOnSchedule{KeyRef: r, Due: start + 90*day, At: start + 90*day, Version: 4, Generation: 1, Token: []byte("token 4")},
		"DisableKeyVersion":             &DisableKeyVersion{VersionRef{r, 2}},
		"EnableKeyVersion":              &EnableKeyVersion{VersionRef{r, 2}},
		"ScheduleKeyVersionDestruction": &ScheduleKeyVersionDestruction{VersionRef{r, 2}, 7},
		"CancelKeyVersionDestruction":   &CancelKeyVersionDestruction{VersionRef{r, 1}},
		"DestroyKeyVersions":            &DestroyKeyVersions{KeyRef: r, At: start + 7*day},
		"DeleteKey":                     &DeleteKey{KeyRef: r, At: start + 30*day},
		"BindResource":                  &BindResource{KeyRef: r, Resource: "volume/1"},
		"CreateGrant": &CreateGrant{
			Grant: grantID(1), Key: r.ID, Tenant: r.Tenant, Expect: r.Expect, Grantee: user, Operations: []GrantOperation{GrantDecrypt},
		},
	}
}

// inState is a world whose key 1 is in the state, beside key 2 with an alias. Key 1 has
// a schedule and three versions; the first is to be destroyed.
func inState(t failer, s KeyState) *world {
	w := oneKey(t)
	w.do(createKey(2))
	w.do(&CreateAlias{alias("alias/other", 2)})
	w.do(rotateKey(1, 2))
	w.do(rotateKey(1, 3))
	w.do(&ScheduleKeyVersionDestruction{version(1, 1), 7})
	w.do(&EnableKeyRotation{ref(1), 90 * day})
	switch s {
	case KeyEnabled, KeyPendingImport: // the latter is never stored
	case KeyDecryptOnly:
		w.do(&SetKeyDecryptOnly{ref(1)})
	case KeyDisabled:
		w.do(&DisableKey{ref(1)})
	case KeyPendingDeletion:
		w.do(&ScheduleKeyDeletion{KeyRef: ref(1), Days: 30})
	}
	return w
}

// TestStates is the whole table of operation and state, and the state afterwards; ""
// is none: the key is gone.
func TestStates(t *testing.T) {
	type answer struct {
		err   error
		after KeyState
	}
	const enabled, opens, disabled, pending = KeyEnabled, KeyDecryptOnly, KeyDisabled, KeyPendingDeletion
	edit := [4]answer{{nil, enabled}, {nil, opens}, {nil, disabled}, {ErrPendingDeletion, pending}}
	rotate := [4]answer{{nil, enabled}, {ErrDecryptOnly, opens}, {ErrDisabled, disabled}, {ErrPendingDeletion, pending}}
	table := map[string][4]answer{
		"UpdateKeyDescription":          edit,
		"TagKey":                        edit,
		"UntagKey":                      edit,
		"CreateAlias":                   edit,
		"UpdateAlias":                   edit,
		"SetRequiredContext":            edit,
		"SetDeletionProtection":         edit,
		"DisableKeyVersion":             edit,
		"EnableKeyVersion":              edit,
		"ScheduleKeyVersionDestruction": edit,
		"CancelKeyVersionDestruction":   edit,
		"BindResource":                  edit,
		"RotateKey":                     rotate,
		"RotateKeyOnSchedule":           rotate,
		"EnableKeyRotation":             rotate,
		"DisableKeyRotation":            rotate,
		"CreateGrant":                   {{nil, enabled}, {nil, opens}, {ErrDisabled, disabled}, {ErrPendingDeletion, pending}},
		"EnableKey":                     {{nil, enabled}, {nil, enabled}, {nil, enabled}, {ErrPendingDeletion, pending}},
		"DisableKey":                    {{nil, disabled}, {nil, disabled}, {nil, disabled}, {ErrPendingDeletion, pending}},
		"SetKeyDecryptOnly":             {{nil, opens}, {nil, opens}, {ErrDisabled, disabled}, {ErrPendingDeletion, pending}},
		"ScheduleKeyDeletion":           {{nil, pending}, {nil, pending}, {nil, pending}, {ErrPendingDeletion, pending}},
		"CancelKeyDeletion":             {{ErrNotPendingDeletion, enabled}, {ErrNotPendingDeletion, opens}, {ErrNotPendingDeletion, disabled}, {nil, disabled}},
		"DestroyKeyVersions":            {{nil, enabled}, {nil, opens}, {nil, disabled}, {nil, pending}},
		"DeleteKey":                     {{ErrNotPendingDeletion, enabled}, {ErrNotPendingDeletion, opens}, {ErrNotPendingDeletion, disabled}, {nil, ""}},
	}
	if len(table) != len(keyChanges(ref(1))) {
		t.Fatalf("%d rows for %d commands", len(table), len(keyChanges(ref(1))))
	}
	for name, row := range table {
		for i, state := range []KeyState{enabled, opens, disabled, pending} {
			want := row[i]
			t.Run(name+" "+string(state), func(t *testing.T) {
				w := inState(t, state)
				c := keyChanges(ref(1))[name]
				if want.err != nil {
					w.refuse(c, want.err, keyID(1).String())
				} else {
					w.do(c)
				}
				got, there := w.s.Key(keyID(1))
				if there != (want.after != "") {
					t.Fatalf("the key is there: %v", there)
				}
				if there && (got.State != want.after || (got.Deletion == 0) != (want.after != pending)) {
					t.Errorf("state is %s with deletion date %d, want %s", got.State, got.Deletion, want.after)
				}
			})
		}
	}
}

func TestAllows(t *testing.T) {
	ops := []KeyOperation{OpOpen, OpSeal, OpGrant, OpEdit, OpEnable, OpDisable, OpDecryptOnly, OpRotate, OpSchedule, OpCancelDeletion, OpRotation, OpImport}
	not, pending, unknown, missing := ErrNotPendingDeletion, ErrPendingDeletion, ErrUnsupported, ErrPendingImport
	table := map[KeyState][]error{
		KeyEnabled:         {nil, nil, nil, nil, nil, nil, nil, nil, nil, not, nil, nil},
		KeyDecryptOnly:     {nil, ErrDecryptOnly, nil, nil, nil, nil, nil, ErrDecryptOnly, nil, not, ErrDecryptOnly, nil},
		KeyDisabled:        {ErrDisabled, ErrDisabled, ErrDisabled, nil, nil, nil, ErrDisabled, ErrDisabled, nil, not, ErrDisabled, nil},
		KeyPendingDeletion: {pending, pending, pending, pending, pending, pending, pending, pending, pending, nil, pending, pending},
		KeyPendingImport:   {missing, missing, missing, nil, missing, missing, missing, missing, nil, not, ErrUnsupported, nil},
		"FROM_LATER":       {unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown},
		"":                 {unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown},
	}
	for state, row := range table {
		for i, op := range ops {
			k := &Key{ID: keyID(1), State: state}
			if err := k.Allows(op); !errors.Is(err, row[i]) {
				t.Errorf("state %q, operation %d: %v, want %v", state, op, err, row[i])
			}
		}
		for _, op := range []KeyOperation{-1, OpCancelDeletion + 1} {
			if err := (&Key{State: state}).Allows(op); !errors.Is(err, ErrUnsupported) {
				t.Errorf("state %q, unknown operation %d: %v, want %v", state, op, err, ErrUnsupported)
			}
		}
	}
}

// TestDecryptOnly: it is entered from enabled and left by enable and disable.
func TestDecryptOnly(t *testing.T) {
	w := oneKey(t)
	want := *w.key(1)
	for i, step := range []struct {
		command Command
		after   KeyState
	}{
		{&SetKeyDecryptOnly{ref(1)}, "DECRYPT_ONLY"},
		{&SetKeyDecryptOnly{ref(1)}, "DECRYPT_ONLY"},
		{&EnableKey{ref(1)}, "ENABLED"},
		{&SetKeyDecryptOnly{ref(1)}, "DECRYPT_ONLY"},
		{&DisableKey{ref(1)}, "DISABLED"},
	} {
		w.do(step.command)
		want.State, want.Revision = step.after, uint64(3+i)
		wantKey(t, w, &want)
	}
	if c := w.s.Census(); len(c) != len(KeyStates()) || c[KeyDisabled] != 1 || c[KeyEnabled] != w.s.CountKeys(KeyEnabled) {
		t.Errorf("a census tells %v", c)
	}
	if n := w.s.CountKeys(KeyDisabled); n != 1 {
		t.Errorf("%d keys are disabled", n)
	}
}

// TestKeyReferences: every command that names a key looks at id, tenant and revision.
func TestKeyReferences(t *testing.T) {
	for name := range keyChanges(ref(1)) {
		state := KeyEnabled
		if name == "CancelKeyDeletion" || name == "DeleteKey" {
			state = KeyPendingDeletion
		}
		t.Run(name, func(t *testing.T) {
			w := inState(t, state)
			w.edit(func(t *tx) {
				t.putTenant(&Tenant{Name: "acme"})
				t.putAlias(&Alias{Tenant: "acme", Name: "alias/other", Key: keyID(9)})
			})
			w.edit(func(t *tx) {
				t.putKey(&Key{ID: keyID(9), Tenant: "acme", Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, State: state, Versions: w.key(1).Versions})
			})
			if state == KeyPendingDeletion {
				w.edit(func(t *tx) { k := *w.key(9); k.Deletion = 1; t.putKey(&k) })
			}
			revision := w.key(1).Revision
			commandFor := func(r KeyRef) Command { return keyChanges(r)[name] }
			w.refuse(commandFor(ref(7)), ErrNotFound, keyID(7).String())
			w.refuse(commandFor(KeyRef{ID: keyID(1), Tenant: "acme"}), ErrNotFound, keyID(1).String())
			w.refuse(commandFor(ref(9)), ErrNotFound, keyID(9).String())
			w.refuse(commandFor(KeyRef{ID: keyID(1), Tenant: DefaultTenant, Expect: revision + 1}), ErrConflict, "expected")
			w.refuse(commandFor(KeyRef{ID: keyID(1), Tenant: DefaultTenant, Expect: revision - 1}), ErrConflict, "expected")
			w.do(commandFor(KeyRef{ID: keyID(1), Tenant: DefaultTenant, Expect: revision}))
			switch name {
			case "DeleteKey":
			case "BindResource", "CreateGrant": // they are records of their own
				revision = w.key(1).Revision
				w.refuse(commandFor(KeyRef{ID: keyID(1), Tenant: DefaultTenant, Expect: revision + 1}), ErrConflict, "expected")
			default:
				if got := w.key(1).Revision; got != w.s.Index() {
					t.Errorf("revision %d after a change at %d", got, w.s.Index())
				}
			}
		})
	}
}

func TestKeyIDMissing(t *testing.T) {
	for name, c := range keyChanges(KeyRef{Tenant: DefaultTenant}) {
		t.Run(name, func(t *testing.T) {
			if name == "CreateAlias" || name == "UpdateAlias" {
				inState(t, KeyEnabled).refuse(c, ErrNotFound, keyID(0).String())
			} else {
				inState(t, KeyEnabled).refuse(c, ErrInvalid, "key id is missing")
			}
		})
	}
}
