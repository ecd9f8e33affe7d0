package fsm

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func residentKey(n uint64) *CreateResidentKey {
	return &CreateResidentKey{ID: keyID(n), Tenant: DefaultTenant, Generation: 1, Token: []byte("token 1")}
}

// residentChecks are the check values of a generation that can wrap resident keys.
func residentChecks(value byte) (checks []DomainCheck) {
	for _, kind := range []uint8{1, 2, residentKind} {
		checks = append(checks, DomainCheck{Kind: kind, Value: bytes.Repeat([]byte{value}, 16)})
	}
	return checks
}

func reserve(n uint64, version uint32, count uint64) *ReserveMessages {
	return &ReserveMessages{VersionRef{ref(n), version}, count}
}

func atLimit(n uint64, version uint32) *RotateKeyAtLimit {
	return &RotateKeyAtLimit{KeyRef: ref(n), Version: version, Generation: 2, Token: []byte("token of the limit")}
}

// withResident is a world with the resident key 1, under generation 2, beside the rooted
// key 2.
func withResident(t failer) *world {
	w := initialized(t)
	w.do(createKey(2))
	w.do(edited(proposeGeneration(2), func(c *ProposeGeneration) { c.Checks = residentChecks(2) }))
	w.do(&ActivateGeneration{2})
	w.do(edited(residentKey(1), func(c *CreateResidentKey) { c.Generation = 2 }))
	return w
}

// fill reserves messages in the largest steps until so many are.
func (w *world) fill(n uint64, version uint32, upTo uint64) {
	for has := w.key(n).Version(version).Messages; has < upTo; has = w.key(n).Version(version).Messages {
		w.do(reserve(n, version, min(MaxReservation, upTo-has)))
	}
}

// goldenResident adds resident keys to the end of a golden log.
func goldenResident(w *world) {
	active := func() uint32 { g, _ := w.s.ActiveGeneration(); return g.Number }
	node := "n9-4"
	key := func(n uint64) *CreateResidentKey {
		return edited(residentKey(n), func(c *CreateResidentKey) { c.Generation = active() })
	}
	w.refuse(key(60), ErrGeneration, "")
	next := active() + 1
	w.do(edited(proposeGeneration(next), func(c *ProposeGeneration) { c.Node, c.Checks = node, residentChecks(6) }))
	w.do(&InstallGeneration{next, nodeID("n11")})
	w.do(&ActivateGeneration{next})
	w.ask("resident", "60", edited(key(60), func(c *CreateResidentKey) { c.Description, c.Tags = "<&>", []Tag{{"b", "2"}, {"a", "<"}} }))
	w.ask("resident", "60", &Repeat{})
	w.refuse(key(60), ErrExists, "")
	w.refuse(edited(key(61), func(c *CreateResidentKey) { c.Token = nil }), ErrInvalid, "")
	w.do(key(61))
	w.do(reserve(60, 1, MaxReservation))
	w.do(reserve(60, 1, 1))
	w.refuse(reserve(60, 1, 0), ErrInvalid, "")
	w.refuse(reserve(60, 2, 1), ErrNotFound, "")
	w.refuse(reserve(50, 1, 1), ErrUnsupported, "")
	first := w.key(60).Current().Version
	w.refuse(edited(atLimit(60, first+1), func(c *RotateKeyAtLimit) { c.Generation = next }), ErrConflict, "")
	epoch := w.s.Cluster().RecoveryEpoch + 1 // which makes the count reach the limit
	w.do(edited(recoverCluster(epoch), func(c *RecoverCluster) { c.Node = node }))
	w.do(edited(atLimit(60, epoch<<versionBits+1), func(c *RotateKeyAtLimit) { c.Generation = next }))
	w.refuse(edited(atLimit(60, epoch<<versionBits+2), func(c *RotateKeyAtLimit) { c.Generation = next }), ErrConflict, "")
	w.do(reserve(60, epoch<<versionBits+1, 5))
	w.do(&DisableKey{ref(61)})
	w.refuse(reserve(61, 1, 1), ErrDisabled, "")
}

func TestResidentKey(t *testing.T) {
	w := initialized(t)
	w.refuseLate(residentKey(1), ErrGeneration, "rotate the domain key first, with kmsctl domain rotate")
	w = withResident(t)
	want := &Key{
		ID: keyID(1), Tenant: DefaultTenant, State: "ENABLED", Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, Origin: "KMS", Manager: "CUSTOMER",
		Created: w.key(1).Created, Revision: w.s.Index(), Protection: "HSM_RESIDENT",
		Versions: []KeyVersion{{Version: 1, Generation: 2, Created: w.key(1).Created, Cause: "CREATED", Token: []byte("token 1")}},
	}
	if got := w.key(1); !reflect.DeepEqual(got, want) {
		t.Errorf("key is %+v, want %+v", got, want)
	}
	if w.key(2).Resident() || !w.key(1).Resident() {
		t.Error("the wrong key is resident")
	}
	w.do(&EnableKeyRotation{ref(1), period})
	w.do(&SetRequiredContext{ref(1), []string{"a"}})
	w.do(edited(rotateKey(1, 2), func(c *RotateKey) { c.Generation = 2 }))
	if w.key(1).Protection != ProtectionResident {
		t.Error("the level changes with a rotation")
	}
	w.refuseLate(edited(proposeGeneration(3), func(c *ProposeGeneration) {}), ErrInvalid, "lacks kinds of keys")
	testRefusals(t, func(t failer) *world { return withResident(t) }, []refusal{
		{"no id", edited(residentKey(3), func(c *CreateResidentKey) { c.ID = ID{} }), ErrInvalid, "key id is missing"},
		{"id taken", edited(residentKey(2), func(c *CreateResidentKey) { c.Generation = 2 }), ErrExists, keyID(2).String()},
		{"no token", edited(residentKey(3), func(c *CreateResidentKey) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"a long description", edited(residentKey(3), func(c *CreateResidentKey) { c.Description = strings.Repeat("x", MaxDescription+1) }), ErrInvalid, "8193 characters"},
		{"too many tags", edited(residentKey(3), func(c *CreateResidentKey) { c.Tags = tags(0, 51) }), ErrInvalid, "51 tags given"},
		{"no tenant", edited(residentKey(3), func(c *CreateResidentKey) { c.Tenant, c.Generation = "acme", 2 }), ErrNotFound, `tenant "acme"`},
		{"other generation", residentKey(3), ErrConflict, "generation 2 is active, not 1"},
		{"nothing reserved", reserve(1, 1, 0), ErrInvalid, "0 messages reserved: must be 1 to 1048576"},
		{"too many at once", reserve(1, 1, MaxReservation+1), ErrInvalid, "1048577 messages"},
		{"no version", reserve(1, 0, 1), ErrInvalid, "key version is missing"},
		{"unknown version", reserve(1, 2, 1), ErrNotFound, "no version 2"},
		{"of a rooted key", reserve(2, 1, 1), ErrUnsupported, "not counted"},
		{"of no key", reserve(9, 1, 1), ErrNotFound, keyID(9).String()},
		{"of another tenant", edited(reserve(1, 1, 1), func(c *ReserveMessages) { c.Tenant = "acme" }), ErrNotFound, keyID(1).String()},
		{"expecting another revision", edited(reserve(1, 1, 1), func(c *ReserveMessages) { c.Expect = 1 }), ErrConflict, "expected 1"},
		{"a rotation too early", atLimit(1, 2), ErrConflict, "near its limit"},
		{"a rotation of a rooted key", atLimit(2, 2), ErrConflict, "near its limit"},
		{"a rotation without a token", edited(atLimit(1, 2), func(c *RotateKeyAtLimit) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
	})
}

// TestMessages: the real limits. The count is no change of the key, the rotation is due at
// once when the count is near the limit, and nothing is reserved beyond it.
func TestMessages(t *testing.T) {
	w := withResident(t)
	revision := w.key(1).Revision
	w.do(reserve(1, 1, 5))
	w.do(reserve(1, 1, MaxReservation))
	if k := w.key(1); k.Current().Messages != MaxReservation+5 || k.Revision != revision {
		t.Errorf("%d messages at revision %d, was %d", k.Current().Messages, k.Revision, revision)
	}
	due := func() bool {
		return slices.Contains(w.s.Due(1, 10), Due{At: 1, ID: keyID(1)})
	}
	w.fill(1, 1, RotateMessages-1)
	if due() {
		t.Error("due before the limit")
	}
	w.refuse(atLimit(1, 2), ErrConflict, "near its limit")
	w.do(reserve(1, 1, 1))
	if !due() || !w.key(1).LimitDue() {
		t.Error("not due at the limit")
	}
	// What nothing is encrypted under waits.
	w.do(&DisableKeyVersion{version(1, 1)})
	w.refuse(reserve(1, 1, 1), ErrVersionDisabled, "")
	if due() {
		t.Error("due with the version disabled")
	}
	w.refuse(atLimit(1, 2), ErrConflict, "near its limit")
	w.do(&EnableKeyVersion{version(1, 1)})
	for _, c := range []Command{&DisableKey{ref(1)}, &SetKeyDecryptOnly{ref(1)}, &ScheduleKeyDeletion{ref(1), 7}} {
		w.do(c)
		if due() {
			t.Errorf("due after %s", NameOf(c))
		}
		if _, err := w.s.Try(reserve(1, 1, 1)); err == nil {
			t.Errorf("reserved after %s", NameOf(c))
		}
		if _, gone := c.(*ScheduleKeyDeletion); gone {
			w.do(&CancelKeyDeletion{ref(1)})
		}
		w.do(&EnableKey{ref(1)})
	}
	// A leader that cannot rotate: nodes go on to the limit, and no further.
	w.fill(1, 1, MaxMessages)
	w.refuse(reserve(1, 1, 1), ErrMessages, "at most 2147483648 are encrypted under one version")
	w.do(atLimit(1, 2))
	if k := w.key(1); k.Current().Version != 2 || k.Current().Cause != CauseLimit || k.Current().Messages != 0 || k.Version(1).Messages != MaxMessages || due() {
		t.Errorf("after the rotation: %+v", k.Versions)
	}
	w.refuse(atLimit(1, 3), ErrConflict, "near its limit")
	w.do(reserve(1, 2, 1))
	w.refuse(reserve(1, 1, 1), ErrMessages, "")
	again := reread(t, w.s)
	if k, _ := again.Key(keyID(1)); k.Version(1).Messages != MaxMessages || k.Version(2).Messages != 1 || !k.Resident() {
		t.Errorf("read from a snapshot: %+v", k)
	}
}

// TestMessagesOfALostHistory: what a lost history may have reserved is unknown, so that
// the key is rotated before more than a little is encrypted.
func TestMessagesOfALostHistory(t *testing.T) {
	for _, c := range []Command{recoverCluster(1), restoreCluster(1)} {
		w := withResident(t)
		w.do(edited(residentKey(3), func(c *CreateResidentKey) { c.Generation = 2 }))
		w.do(reserve(1, 1, 7))
		w.fill(3, 1, RotateMessages+3)
		w.do(c)
		for n, want := range map[uint64]uint64{1: RotateMessages, 3: RotateMessages + 3, 2: 0} {
			k := w.key(n)
			if k.Current().Messages != want || k.LimitDue() != (n != 2) {
				t.Errorf("%s: key %d has %d messages", NameOf(c), n, k.Current().Messages)
			}
		}
		w.do(atLimit(1, 1<<versionBits+1))
	}
}

func TestCheckMessages(t *testing.T) {
	for text, edit := range map[string]func(*Key){
		`unknown protection level "SOFT"`: func(k *Key) { k.Protection = "SOFT" },
		"of a key of spec HMAC_256":       func(k *Key) { k.Spec, k.Usage = SpecHMAC256, UsageMac },
		`service "obs"`:                   func(k *Key) { k.Service, k.Manager = "obs", ManagerService },
		"version 1 with 2147483649":       func(k *Key) { k.Versions[0].Messages = MaxMessages + 1 },
		"version 1 with 5 messages":       func(k *Key) { k.Protection, k.Versions[0].Messages = ProtectionRooted, 5 },
	} {
		k := *withResident(t).key(1)
		k.Versions = slices.Clone(k.Versions)
		edit(&k)
		if err := k.check(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v does not say %q", err, text)
		}
	}
}
