package fsm

import (
	"testing"
)

// TestRestrictionOfEveryCommand: what may take something from callers says from whom, and
// what does not know it says everybody.
func TestRestrictionOfEveryCommand(t *testing.T) {
	key := keyID(1)
	filled := keyChanges(KeyRef{key, DefaultTenant, 7})
	filled["RevokeGrant"], filled["RetireGrant"], filled["ExpireGrant"] = &RevokeGrant{grantRef(1, 1)}, &RetireGrant{grantRef(1, 1)}, &ExpireGrant{grantRef(1, 1), 5}
	r := KeyRef{key, DefaultTenant, 7}
	filled["DeleteKeyMaterial"], filled["ExpireKeyMaterial"], filled["DisableAwaitedKey"] = &DeleteKeyMaterial{VersionRef{r, 1}}, &ExpireKeyMaterial{r, 5}, &DisableAwaitedKey{r}
	target := AliasTarget{DefaultTenant, "alias/a", key, 7}
	filled["DeleteAlias"], filled["MoveAlias"] = &DeleteAlias{Tenant: DefaultTenant, Name: "alias/a"}, &MoveAlias{target, r}
	filled["PutPolicy"] = putPolicy(1, "x")
	filled["FreezeTenant"] = &FreezeTenant{Name: DefaultTenant}
	ofTenant := Restriction{Tenant: DefaultTenant}
	want := map[string]Restriction{
		"FreezeTenant": ofTenant,
		"CreateAlias":  ofTenant, "UpdateAlias": ofTenant, "DeleteAlias": ofTenant, "MoveAlias": ofTenant,
		"RemoveNode": {}, "RecoverCluster": {}, "RestoreCluster": {},
	}
	// What takes nothing, or is no key's affair: watches of a disabled principal end.
	nothing := map[string]bool{"Repeat": true, "CreateGrant": true, "DisablePrincipal": true}
	for _, s := range commands {
		c, ok := filled[s.name]
		if !ok {
			c = s.make()
		}
		got, some := restrictionOf(c)
		if want := s.effect == Restricts && !nothing[s.name]; some != want {
			t.Errorf("%s restricts: %v, want %v", s.name, some, want)
		}
		if !some {
			continue
		}
		expected, special := want[s.name]
		if !special {
			if !ok {
				t.Errorf("%s stands in no table here", s.name)
			}
			expected = Restriction{Tenant: DefaultTenant, Key: key}
		}
		if got != expected {
			t.Errorf("%s restricts %+v, want %+v", s.name, got, expected)
		}
	}
	if got, _ := restrictionOf(putPolicy(0, "x")); got != ofTenant {
		t.Errorf("a tenant's policy restricts %+v", got)
	}
	if got, some := restrictionOf(&strange{Tick{}}); !some || got != (Restriction{}) {
		t.Errorf("an unknown command restricts %+v, %v", got, some)
	}
}

func TestRestrictedSince(t *testing.T) {
	w := initialized(t)
	w.do(createKey(1))
	w.do(createKey(2))
	before := w.s
	w.do(&DisableKey{ref(1)})
	first := w.s.Index()
	w.do(&EnableKey{ref(1)}) // takes nothing
	w.refuse(&DisableKey{ref(9)}, ErrNotFound, "")
	w.do(&FreezeTenant{Name: DefaultTenant})
	list, known := w.s.RestrictedSince(before.Index())
	want := []Restriction{{first, DefaultTenant, keyID(1)}, {w.s.Index(), DefaultTenant, ID{}}}
	if !known || len(list) != 2 || list[0] != want[0] || list[1] != want[1] {
		t.Fatalf("restricted: %+v, %v, want %+v", list, known, want)
	}
	if list, known := w.s.RestrictedSince(first); !known || len(list) != 1 {
		t.Errorf("behind the first: %+v, %v", list, known)
	}
	if list, known := w.s.RestrictedSince(w.s.Index()); !known || len(list) != 0 {
		t.Errorf("behind the last: %+v, %v", list, known)
	}
	if _, known := w.s.RestrictedSince(w.s.Index() + 1); known {
		t.Error("what is to come is known")
	}
	if list, known := before.RestrictedSince(0); !known || len(list) != 0 {
		t.Errorf("the earlier state: %+v, %v", list, known)
	}
}

// TestManyRestrictions: what a state has forgotten it does not claim to know, and earlier
// states keep what they had.
func TestManyRestrictions(t *testing.T) {
	w := initialized(t)
	w.do(createKey(1))
	began := w.s
	var last *State
	for range MaxRestrictions {
		last = w.s
		w.do(&TagKey{KeyRef: ref(1), Tags: tags(0, 1)})
	}
	full := w.s
	if list, known := full.RestrictedSince(began.Index()); !known || len(list) != MaxRestrictions {
		t.Fatalf("%d restrictions, %v", len(list), known)
	}
	w.do(&TagKey{KeyRef: ref(1), Tags: tags(0, 1)})
	if _, known := w.s.RestrictedSince(began.Index()); known {
		t.Error("a forgotten restriction is taken for known")
	}
	if list, known := w.s.RestrictedSince(began.Index() + 1); !known || len(list) != MaxRestrictions {
		t.Errorf("behind what is forgotten: %d, %v", len(list), known)
	}
	if list, _ := full.RestrictedSince(last.Index()); len(list) != 1 || list[0].Index != full.Index() {
		t.Errorf("the earlier state: %+v", list)
	}
	restored := reread(t, w.s)
	if _, known := restored.RestrictedSince(last.Index()); known {
		t.Error("what a snapshot leaves out is taken for known")
	}
	if list, known := restored.RestrictedSince(restored.Index()); !known || len(list) != 0 {
		t.Errorf("behind a snapshot: %+v, %v", list, known)
	}
}
