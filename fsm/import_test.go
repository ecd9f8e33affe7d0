package fsm

import (
	"bytes"
	"strings"
	"testing"
)

func externalKey(n uint64, spec KeySpec) *CreateExternalKey {
	return &CreateExternalKey{ID: keyID(n), Tenant: DefaultTenant, Usage: spec.Usages()[0], Spec: spec}
}

// material is an import into a version of a key: the same bytes for the same.
func material(n uint64, version uint32) *ImportKeyMaterial {
	return &ImportKeyMaterial{
		KeyRef: ref(n), Version: version, Generation: 1, Token: []byte("imported"), Check: bytes.Repeat([]byte{byte(version)}, 16),
	}
}

// awaiting is a world with key 1, which has no material, and key 2, which is the HSM's.
func awaiting(t failer) *world {
	w := initialized(t)
	w.do(externalKey(1, SpecSymmetric))
	w.do(createKey(2))
	return w
}

// withMaterial is awaiting, with material for version 1.
func withMaterial(t failer) *world {
	w := awaiting(t)
	w.do(material(1, 1))
	return w
}

func wantCondition(t *testing.T, w *world, at int64, want KeyState) {
	t.Helper()
	if got := w.key(1).Condition(at); got != want {
		t.Errorf("at %d the key is %s, want %s", at, got, want)
	}
	if err := w.s.Check(); err != nil {
		t.Error(err)
	}
	if again := reread(t, w.s); records(t, again) != records(t, w.s) {
		t.Error("another state after a snapshot")
	}
}

func TestImportedLife(t *testing.T) {
	w := awaiting(t)
	wantCondition(t, w, 0, KeyPendingImport)
	w.do(material(1, 1))
	wantCondition(t, w, 1<<40, KeyEnabled)
	if k := w.key(1); k.Origin != OriginExternal || k.Current().Version != 1 || string(k.Current().Token) != "imported" {
		t.Errorf("imported: %+v", k)
	}
	w.do(&DeleteKeyMaterial{version(1, 1)})
	wantCondition(t, w, 0, KeyPendingImport)
	if v := w.key(1).Current(); v.Token != nil || !bytes.Equal(v.Import.Check, material(1, 1).Check) {
		t.Errorf("deleted: %+v", v)
	}
	before := w.key(1).Revision
	if r := w.do(&DeleteKeyMaterial{version(1, 1)}); r.Version != 1 || w.key(1).Revision != before {
		t.Errorf("deleting nothing: %+v, revision %d after %d", r, w.key(1).Revision, before)
	}
	w.refuse(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Check[15]++ }), ErrMaterial, "the bytes back that it had")
	w.do(material(1, 1))
	wantCondition(t, w, 0, KeyEnabled)
}

// TestImportKeepsTheState: a key that lacks its material is what it was when that is back.
func TestImportKeepsTheState(t *testing.T) {
	for _, c := range []Command{&DisableKey{ref(1)}, &SetKeyDecryptOnly{ref(1)}} {
		w := withMaterial(t)
		w.do(c)
		want := w.key(1).State
		w.do(&DeleteKeyMaterial{version(1, 1)})
		wantCondition(t, w, 0, KeyPendingImport)
		w.do(material(1, 1))
		wantCondition(t, w, 0, want)
	}
	w := withMaterial(t)
	w.do(&ScheduleKeyDeletion{ref(1), 7})
	w.do(&DeleteKeyMaterial{version(1, 1)})
	wantCondition(t, w, 0, KeyPendingDeletion)
	w.refuse(material(1, 1), ErrPendingDeletion, "")
	w.do(&CancelKeyDeletion{ref(1)})
	wantCondition(t, w, 0, KeyPendingImport)
	w.do(material(1, 1))
	wantCondition(t, w, 0, KeyDisabled)
}

// TestPendingImport: what a key without material takes.
func TestPendingImport(t *testing.T) {
	refused := map[string]error{
		"EnableKey": ErrPendingImport, "DisableKey": ErrPendingImport, "SetKeyDecryptOnly": ErrPendingImport, "RotateKey": ErrPendingImport,
		"CreateGrant": ErrPendingImport, "EnableKeyRotation": ErrUnsupported, "DisableKeyRotation": ErrUnsupported,
		"CancelKeyDeletion": ErrNotPendingDeletion, "DeleteKey": ErrNotPendingDeletion, "RotateKeyOnSchedule": ErrPendingImport,
		"DestroyKeyVersions": ErrConflict, "CancelKeyVersionDestruction": ErrNotPendingDeletion, "ScheduleKeyVersionDestruction": ErrNotFound,
		"DisableKeyVersion": ErrNotFound, "EnableKeyVersion": ErrNotFound, // of version 2
	}
	for name, c := range keyChanges(ref(1)) {
		w := awaiting(t)
		w.do(&CreateAlias{alias("alias/other", 2)})
		if want := refused[name]; want != nil {
			w.refuse(c, want, "")
		} else {
			w.do(c)
		}
	}
}

func TestImportExpires(t *testing.T) {
	w := awaiting(t)
	end := w.s.Now()/second + 100
	w.do(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Expires = end }))
	wantCondition(t, w, end-1, KeyEnabled)
	wantCondition(t, w, end, KeyPendingImport)
	if due := w.s.Due(end, 10); len(due) != 1 || due[0].At != end || due[0].ID != keyID(1) {
		t.Errorf("due: %v", due)
	}
	w.refuse(&ExpireKeyMaterial{ref(1), end - 1}, ErrConflict, "no material of key")
	w.refuseLate(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Expires = end - 1 }), ErrInvalid, "end earlier")
	w.do(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Expires = end + 50 }))
	w.refuse(&ExpireKeyMaterial{ref(1), end}, ErrConflict, "no material of key")
	w.clock += 200 * second
	w.refuse(createGrant(1, 1), ErrPendingImport, "") // it is not taken away yet
	w.do(&ExpireKeyMaterial{ref(1), end + 50})
	wantCondition(t, w, 0, KeyPendingImport)
	if due := w.s.Due(1<<40, 10); len(due) != 0 {
		t.Errorf("still due: %v", due)
	}
	w.do(material(1, 1))
	w.refuseLate(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Expires = end + 1000 }), ErrInvalid, "end earlier")
	wantCondition(t, w, 1<<40, KeyEnabled)
}

func TestImportedRotation(t *testing.T) {
	w := withMaterial(t)
	w.refuse(&RotateToImported{ref(1), 2}, ErrUnsupported, "import new material first")
	w.do(material(1, 2))
	if k := w.key(1); k.Current().Version != 1 || k.Waiting() == nil || k.Version(2).Usable() == nil {
		t.Errorf("new material: %+v", k.Versions)
	}
	for _, c := range []Command{&DisableKeyVersion{version(1, 2)}, &EnableKeyVersion{version(1, 2)}, &ScheduleKeyVersionDestruction{version(1, 2), 7}, &CancelKeyVersionDestruction{version(1, 2)}} {
		w.refuse(c, ErrVersionDisabled, "rotate the key, or delete that material")
	}
	w.refuse(&ScheduleKeyVersionDestruction{version(1, 1), 7}, ErrVersionCurrent, "")
	w.do(&DeleteKeyMaterial{version(1, 2)}) // nothing was sealed with it: others may come
	wantCondition(t, w, 0, KeyEnabled)
	w.do(edited(material(1, 2), func(c *ImportKeyMaterial) { c.Check[0] = 77 }))
	w.clock += 50 * second
	w.do(&RotateToImported{ref(1), 2})
	if v := w.key(1).Current(); v.Version != 2 || v.Created != w.s.Now()/second || v.Cause != CauseOnDemand {
		t.Errorf("rotated: %+v", v)
	}
	w.do(&DeleteKeyMaterial{version(1, 1)})
	wantCondition(t, w, 0, KeyPendingImport) // as a whole
	w.refuse(material(1, 3), ErrPendingImport, "version 1")
	w.do(&ScheduleKeyVersionDestruction{version(1, 1), 7})
	wantCondition(t, w, 0, KeyEnabled) // what is to be destroyed is not missed
	w.refuse(material(1, 1), ErrVersionDisabled, "")
	w.do(&DestroyKeyVersions{ref(1), w.key(1).Version(1).Destroy})
	wantCondition(t, w, 0, KeyEnabled)
	w.refuse(material(1, 1), ErrVersionDestroyed, "")
	w.do(&DeleteKeyMaterial{version(1, 1)})
}

// TestDestroyImported: what is destroyed before its time ends no more, and whether it ends is
// no matter for the version that came after it.
func TestDestroyImported(t *testing.T) {
	w := awaiting(t)
	end := w.s.Now()/second + 90*secondsPerDay
	w.do(edited(material(1, 1), func(c *ImportKeyMaterial) { c.Expires = end }))
	w.do(material(1, 2))
	w.do(&RotateToImported{ref(1), 2})
	w.do(&ScheduleKeyVersionDestruction{version(1, 1), 7})
	wantCondition(t, w, 0, KeyEnabled)
	w.do(&DestroyKeyVersions{ref(1), w.key(1).Version(1).Destroy})
	wantCondition(t, w, end, KeyEnabled)
	if v := w.key(1).Version(1); v.State != VersionDestroyed || v.Token != nil || v.Import.Expires != 0 || len(v.Import.Check) == 0 {
		t.Errorf("destroyed: %+v", v)
	}
	if due := w.s.Due(1<<40, 10); len(due) != 0 {
		t.Errorf("still due: %v", due)
	}
}

func TestImportRefusals(t *testing.T) {
	of := func(edit func(*ImportKeyMaterial)) Command { return edited(material(1, 1), edit) }
	testRefusals(t, awaiting, []refusal{
		{"a pair", externalKey(9, SpecRSA2048), ErrUnsupported, "RSA_2048"},
		{"the wrong usage", edited(externalKey(9, SpecSymmetric), func(c *CreateExternalKey) { c.Usage = UsageMac }), ErrInvalid, ""},
		{"no id", externalKey(0, SpecSymmetric), ErrInvalid, "key id is missing"},
		{"the same id", externalKey(1, SpecSymmetric), ErrExists, ""},
		{"a long description", edited(externalKey(9, SpecSymmetric), func(c *CreateExternalKey) { c.Description = strings.Repeat("x", 8193) }), ErrInvalid, ""},
		{"tags twice", edited(externalKey(9, SpecSymmetric), func(c *CreateExternalKey) { c.Tags = []Tag{{"a", ""}, {"a", ""}} }), ErrInvalid, ""},
		{"no tenant", edited(externalKey(9, SpecSymmetric), func(c *CreateExternalKey) { c.Tenant = "acme" }), ErrNotFound, ""},
		{"no version", of(func(c *ImportKeyMaterial) { c.Version = 0 }), ErrInvalid, "version is missing"},
		{"no token", of(func(c *ImportKeyMaterial) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"a short check value", of(func(c *ImportKeyMaterial) { c.Check = c.Check[1:] }), ErrInvalid, "15 bytes"},
		{"a long description of material", of(func(c *ImportKeyMaterial) { c.Description = strings.Repeat("x", 257) }), ErrInvalid, "257"},
		{"a negative end", of(func(c *ImportKeyMaterial) { c.Expires = -1 }), ErrInvalid, ""},
		{"another generation", of(func(c *ImportKeyMaterial) { c.Generation = 2 }), ErrConflict, ""},
		{"a key of the HSM", material(2, 1), ErrUnsupported, "of origin KMS"},
		{"new material before the first", material(1, 2), ErrPendingImport, "import that first"},
		{"no key", material(9, 1), ErrNotFound, ""},
		{"material of the HSM", &DeleteKeyMaterial{version(2, 1)}, ErrUnsupported, ""},
		{"a version that is not there", &DeleteKeyMaterial{version(1, 7)}, ErrNotFound, ""},
		{"nothing to expire", &ExpireKeyMaterial{ref(1), 1 << 40}, ErrConflict, ""},
		{"nothing to rotate to", &RotateToImported{ref(2), 2}, ErrUnsupported, ""},
		{"nothing to disable", &DisableAwaitedKey{ref(2)}, ErrConflict, ""},
	})
	for at, text := range map[int64]string{1: "must be later", start + MaxImportSeconds + 10: "365 days"} {
		awaiting(t).refuseLate(of(func(c *ImportKeyMaterial) { c.Expires = at }), ErrInvalid, text)
	}
	testRefusals(t, withMaterial, []refusal{
		{"not the next version", material(1, 3), ErrConflict, "2 is next"},
		{"nothing is awaited", &DisableAwaitedKey{ref(1)}, ErrConflict, ""},
	})
}

// TestReplayOfImports: what was taken away stays away; what was disabled is disabled when
// its material comes.
func TestReplayOfImports(t *testing.T) {
	w := withMaterial(t)
	w.do(externalKey(3, SpecSymmetric))
	w.do(restoreCluster(1))
	replayed(w, []Command{&DeleteKeyMaterial{version(1, 1)}, &DisableKey{ref(3)}, &ExpireKeyMaterial{ref(2), 1}})
	wantCondition(t, w, 0, KeyPendingImport)
	w.do(material(3, 1))
	if got := w.key(3).Condition(0); got != KeyDisabled {
		t.Errorf("key 3 is %s", got)
	}
	if got := Instead(&SetKeyDecryptOnly{ref(1)}, ErrPendingImport); got == nil {
		t.Error("nothing takes the place of decrypt only")
	}
}
