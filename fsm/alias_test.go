package fsm

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// twoKeys is a world with the keys 1 and 2, at revisions 2 and 3.
func twoKeys(t failer) *world {
	w := oneKey(t)
	w.do(createKey(2))
	return w
}

func wantAlias(t *testing.T, w *world, want Alias) {
	t.Helper()
	got, ok := w.s.Alias(want.Tenant, want.Name)
	if !ok || *got != want {
		t.Fatalf("alias is %+v, want %+v", got, want)
	}
	if !slices.Contains(w.s.AliasesOf(want.Key), got) {
		t.Fatalf("alias %s is not among those of its key", want.Name)
	}
}

func TestAliasLife(t *testing.T) {
	w := twoKeys(t)
	if got := w.do(&CreateAlias{alias("alias/db", 1)}); got != (Result{Index: 4, ID: keyID(1).String(), Version: 1}) {
		t.Errorf("result %+v", got)
	}
	want := Alias{Tenant: DefaultTenant, Name: "alias/db", Key: keyID(1), Created: startTime / second, Updated: startTime / second, Revision: 4}
	wantAlias(t, w, want)
	if w.key(1).Revision != 4 {
		t.Errorf("revision of the key %d, want 4: an alias is part of what a decision sees", w.key(1).Revision)
	}

	w.clock += 60 * second
	w.do(&UpdateAlias{alias("alias/db", 2)})
	want.Key, want.Updated, want.Revision = keyID(2), startTime/second+60, 5
	wantAlias(t, w, want)
	if lost, got := w.key(1).Revision, w.key(2).Revision; lost != 5 || got != 5 {
		t.Errorf("an alias moved at 5: the key that lost it is at revision %d, the other at %d", lost, got)
	}
	if n := len(w.s.AliasesOf(keyID(1))); n != 0 {
		t.Errorf("the key it named before still has %d aliases", n)
	}

	w.clock += 60 * second
	w.do(&UpdateAlias{alias("alias/db", 2)})
	wantAlias(t, w, want)
	if other, got := w.key(1).Revision, w.key(2).Revision; other != 5 || got != 6 {
		t.Errorf("an alias stayed at 6: its key is at revision %d, the one before at %d", got, other)
	}

	if got := w.do(deleteAlias("alias/db")); got != (Result{Index: 7, ID: keyID(2).String()}) {
		t.Errorf("result %+v", got)
	}
	if _, ok := w.s.Alias(DefaultTenant, "alias/db"); ok || len(w.s.AliasesOf(keyID(2))) != 0 {
		t.Error("the alias is still there")
	}
	if other, got := w.key(1).Revision, w.key(2).Revision; other != 5 || got != 7 {
		t.Errorf("an alias went at 7: its key is at revision %d, the other at %d", got, other)
	}
	w.do(&CreateAlias{alias("alias/db", 1)})
}

func TestAliasRefused(t *testing.T) {
	base := func(t failer) *world {
		w := twoKeys(t)
		w.do(&CreateAlias{alias("alias/db", 1)})
		w.edit(func(t *tx) { t.putTenant(&Tenant{Name: "acme"}) })
		return w
	}
	acme := AliasTarget{Tenant: "acme", Name: "alias/db", Key: keyID(1)}
	testRefusals(t, base, []refusal{
		{"taken", &CreateAlias{alias("alias/db", 1)}, ErrExists, "alias/db"},
		{"taken for another key", &CreateAlias{alias("alias/db", 2)}, ErrExists, "alias/db"},
		{"of another tenant's key", &CreateAlias{acme}, ErrNotFound, keyID(1).String()},
		{"moved, not there", &UpdateAlias{alias("alias/none", 1)}, ErrNotFound, "alias/none"},
		{"moved, in another tenant", &UpdateAlias{acme}, ErrNotFound, "alias/db"},
		{"moved to no key", &UpdateAlias{alias("alias/db", 7)}, ErrNotFound, keyID(7).String()},
		{"deleted, not there", deleteAlias("alias/none"), ErrNotFound, "alias/none"},
		{"deleted in another tenant", &DeleteAlias{Tenant: "acme", Name: "alias/db"}, ErrNotFound, "alias/db"},
		{"deleted, other case", deleteAlias("alias/DB"), ErrNotFound, "alias/DB"},
	})
}

// TestDeleteAliasInEveryState: an alias may go whatever state its key is in, and
// nothing of the key but its revision changes.
func TestDeleteAliasInEveryState(t *testing.T) {
	for _, state := range []KeyState{KeyEnabled, KeyDisabled, KeyPendingDeletion} {
		w := inState(t, state)
		w.edit(func(t *tx) { t.putAlias(&Alias{Tenant: DefaultTenant, Name: "alias/mine", Key: keyID(1)}) })
		want := *w.key(1)
		w.do(deleteAlias("alias/mine"))
		want.Revision = w.s.Index()
		wantKey(t, w, &want)
	}
}

// TestDeleteAliasExpects: what is expected is the revision of the key, not of the alias.
func TestDeleteAliasExpects(t *testing.T) {
	w := twoKeys(t)
	w.do(&CreateAlias{alias("alias/db", 1)})
	w.do(&DisableKey{ref(1)})
	const revision = 5
	remove := func(expect uint64) Command {
		return edited(deleteAlias("alias/db"), func(c *DeleteAlias) { c.Expect = expect })
	}
	for _, wrong := range []uint64{1, 3, revision - 1, revision + 1, 1<<64 - 1} {
		w.refuse(remove(wrong), ErrConflict, fmt.Sprintf("key %s is at revision %d, expected %d", keyID(1), revision, wrong))
	}
	w.refuse(&DeleteAlias{Tenant: DefaultTenant, Name: "alias/none", Expect: revision}, ErrNotFound, "alias/none")
	w.do(remove(revision))
	w.refuse(remove(revision), ErrNotFound, "alias/db")
	w.do(&CreateAlias{alias("alias/db", 1)})
	w.refuse(remove(revision), ErrConflict, "expected 5")
	w.do(remove(0))
}

// TestUpdateAliasAwayFromAPendingKey: only the key it is to name counts.
func TestUpdateAliasAwayFromAPendingKey(t *testing.T) {
	w := twoKeys(t)
	w.do(&CreateAlias{alias("alias/db", 1)})
	w.do(&ScheduleKeyDeletion{KeyRef: ref(1), Days: 7})
	w.refuse(&UpdateAlias{alias("alias/db", 1)}, ErrPendingDeletion, keyID(1).String())
	want := *w.key(1)
	w.do(&UpdateAlias{alias("alias/db", 2)})
	want.Revision = w.s.Index()
	wantKey(t, w, &want)
}

func TestAliasNames(t *testing.T) {
	long := func(n int) string { return "alias/" + strings.Repeat("x", n) }
	right := []string{
		"alias/x", long(256), "alias/a-z_A-Z/0:9", "alias//", "alias/service", "alias/services/obs", "alias/Service/obs",
	}
	wrong := map[string]string{
		"": "must begin with alias/", "alias": "must begin with alias/", "Alias/x": "must begin with alias/", "x/alias/x": "must begin with alias/",
		"alias/": "0 characters", long(257): "257 characters after alias/: must be 1 to 256",
		"alias/a b": "may follow", "alias/a.b": "may follow", "alias/ä": "may follow", "alias/a\x00": "may follow", "alias/a*": "may follow",
		"alias/service/": "reserved", "alias/service/obs": "reserved",
	}
	for _, name := range right {
		w := twoKeys(t)
		w.do(&CreateAlias{alias(name, 1)})
		w.do(&UpdateAlias{alias(name, 2)})
		w.do(deleteAlias(name))
	}
	for name, text := range wrong {
		w := twoKeys(t)
		w.refuse(&CreateAlias{alias(name, 1)}, ErrInvalid, text)
		w.refuse(&UpdateAlias{alias(name, 1)}, ErrInvalid, text)
		w.refuse(deleteAlias(name), ErrInvalid, text)
	}
	if err := ValidAlias("alias/service/obs"); err != nil {
		t.Errorf("a service's alias is no valid name: %v", err)
	}
}

func TestAliasCount(t *testing.T) {
	w := twoKeys(t)
	for n := range 50 {
		w.do(&CreateAlias{alias(fmt.Sprintf("alias/%02d", n), 1)})
	}
	w.do(&CreateAlias{alias("alias/elsewhere", 2)})
	w.refuse(&CreateAlias{alias("alias/50", 1)}, ErrLimit, "has 50 aliases")
	w.refuse(&UpdateAlias{alias("alias/elsewhere", 1)}, ErrLimit, "has 50 aliases")
	w.do(&UpdateAlias{alias("alias/00", 1)})
	w.do(&UpdateAlias{alias("alias/00", 2)})
	w.do(&UpdateAlias{alias("alias/elsewhere", 1)})
	if n := len(w.s.AliasesOf(keyID(1))); n != 50 {
		t.Errorf("%d aliases, want 50", n)
	}
}

func TestAliasPages(t *testing.T) {
	w := twoKeys(t)
	w.edit(func(t *tx) {
		t.putTenant(&Tenant{Name: "acme"})
		t.putKey(&Key{ID: keyID(3), Tenant: "acme", Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, State: KeyEnabled, Versions: w.key(1).Versions})
	})
	for _, name := range []string{"alias/c", "alias/a", "alias/b"} {
		w.do(&CreateAlias{alias(name, 1)})
		w.do(&CreateAlias{AliasTarget{Tenant: "acme", Name: name, Key: keyID(3)}})
	}
	for _, row := range []struct {
		tenant, after string
		limit         int
		want          []string
	}{
		{DefaultTenant, "", 10, []string{"alias/a", "alias/b", "alias/c"}},
		{DefaultTenant, "", 2, []string{"alias/a", "alias/b"}},
		{DefaultTenant, "alias/b", 2, []string{"alias/c"}},
		{DefaultTenant, "alias/aa", 1, []string{"alias/b"}},
		{DefaultTenant, "alias/c", 10, nil},
		{"acme", "alias/a", 10, []string{"alias/b", "alias/c"}},
		{"nobody", "", 10, nil},
	} {
		var got []string
		for _, a := range w.s.Aliases(row.tenant, row.after, row.limit) {
			got = append(got, a.Name)
		}
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("aliases of %q after %q, at most %d: %v, want %v", row.tenant, row.after, row.limit, got, row.want)
		}
	}
}

// TestMoveAlias: it is taken from the key that it was decided to take it from, as that was.
func TestMoveAlias(t *testing.T) {
	w := twoKeys(t)
	w.do(createKey(3))
	w.do(&CreateAlias{alias("alias/db", 1)})
	from := func(n uint64) KeyRef { return KeyRef{keyID(n), DefaultTenant, w.key(n).Revision} }
	w.refuse(&MoveAlias{alias("alias/none", 2), from(1)}, ErrNotFound, "alias/none")
	w.refuse(&MoveAlias{alias("alias/db", 3), from(2)}, ErrConflict, "names key "+keyID(1).String())
	w.refuse(&MoveAlias{alias("alias/db", 2), KeyRef{}}, ErrInvalid, "missing")
	decided := &MoveAlias{alias("alias/db", 2), from(1)}
	w.do(&TagKey{ref(1), tags(0, 1)})
	w.refuse(decided, ErrConflict, "expected")
	w.do(&MoveAlias{alias("alias/db", 2), from(1)})
	if lost, got := w.key(1).Revision, w.key(2).Revision; lost != w.s.Index() || got != w.s.Index() {
		t.Errorf("the keys are at revisions %d and %d", lost, got)
	}
	w.do(&MoveAlias{alias("alias/db", 2), from(2)})
	w.refuse(&MoveAlias{AliasTarget{DefaultTenant, "alias/db", keyID(1), 1}, from(2)}, ErrConflict, "expected 1")
	w.do(&MoveAlias{alias("alias/db", 1), from(2)})
}
