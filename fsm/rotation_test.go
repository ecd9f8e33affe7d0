package fsm

import (
	"slices"
	"testing"
)

const period = 90 * day

// rotating is a world whose key 1 is rotated each 90 days, from startTime on.
func rotating(t failer) *world {
	w := oneKey(t)
	w.do(&EnableKeyRotation{ref(1), period})
	return w
}

func onSchedule(n uint64, version uint32, due, at int64) *RotateKeyOnSchedule {
	return &RotateKeyOnSchedule{KeyRef: ref(n), Due: due, At: at, Version: version, Generation: 1, Token: []byte("scheduled")}
}

func wantRotation(t *testing.T, w *world, want *Rotation) {
	t.Helper()
	got := w.key(1).Rotation
	if (got == nil) != (want == nil) || got != nil && *got != *want {
		t.Errorf("rotation is %+v, want %+v", got, want)
	}
}

func TestKeyRotation(t *testing.T) {
	w := rotating(t)
	wantRotation(t, w, &Rotation{period, start + period})
	w.clock += 5 * second
	w.do(&EnableKeyRotation{ref(1), period})
	wantRotation(t, w, &Rotation{period, start + period}) // the same period changes nothing
	w.do(rotateKey(1, 2))
	wantRotation(t, w, &Rotation{period, start + period}) // nor does a rotation on demand
	w.do(&EnableKeyRotation{ref(1), period + 1})
	wantRotation(t, w, &Rotation{period + 1, start + 5 + period + 1})
	for range 2 {
		w.do(&DisableKeyRotation{ref(1)})
		wantRotation(t, w, nil)
	}
	w.do(&EnableKeyRotation{ref(1), period})
	wantRotation(t, w, &Rotation{period, start + 5 + period})
}

func TestRotationPeriods(t *testing.T) {
	testAccepted(t, oneKey, []accepted{
		{"a minute", &EnableKeyRotation{ref(1), 60}},
		{"2560 days", &EnableKeyRotation{ref(1), 2560 * day}},
	})
	testRefusals(t, oneKey, []refusal{
		{"59 seconds", &EnableKeyRotation{ref(1), 59}, ErrInvalid, "rotation period of 59 s: must be 60 s to 2560 days"},
		{"none", &EnableKeyRotation{ref(1), 0}, ErrInvalid, "rotation period of 0 s"},
		{"negative", &EnableKeyRotation{ref(1), -period}, ErrInvalid, "rotation period of -"},
		{"a second too long", &EnableKeyRotation{ref(1), 2560*day + 1}, ErrInvalid, "rotation period of"},
	})
}

// TestRotateKeyOnSchedule: the next date follows the last one, unless that is over too.
func TestRotateKeyOnSchedule(t *testing.T) {
	const due = start + period
	for name, row := range map[string]struct{ at, next int64 }{
		"in time":                {due, due + period},
		"a day late":             {due + day, due + period},
		"a second to the next":   {due + period - 1, due + period},
		"late by a period":       {due + period, due + 2*period},
		"late by two and a half": {due + 5*period/2, due + 7*period/2},
	} {
		t.Run(name, func(t *testing.T) {
			w := rotating(t)
			w.clock = (row.at + 3) * second
			if got := w.do(onSchedule(1, 2, due, row.at)); got != (Result{Index: 4, ID: keyID(1).String(), Version: 2}) {
				t.Errorf("result %+v", got)
			}
			wantRotation(t, w, &Rotation{period, row.next})
			if v := w.key(1).Current(); v.Version != 2 || v.Cause != "SCHEDULE" || v.Created != row.at+3 || string(v.Token) != "scheduled" {
				t.Errorf("the new version is %+v", v)
			}
			w.refuse(onSchedule(1, 3, due, row.at), ErrConflict, "has no rotation due at")
			w.do(onSchedule(1, 3, row.next, row.next))
		})
	}
}

func TestRotateKeyOnScheduleRefused(t *testing.T) {
	const due = start + period
	right := func(f func(*RotateKeyOnSchedule)) *RotateKeyOnSchedule { return edited(onSchedule(1, 2, due, due), f) }
	testRefusals(t, rotating, []refusal{
		{"a second early", onSchedule(1, 2, due, due-1), ErrInvalid, "rotation due at"},
		{"at the end of time", onSchedule(1, 2, due, 1<<63-1), ErrInvalid, "rotation due at"},
		{"another date", onSchedule(1, 2, due-1, due), ErrConflict, "has no rotation due at"},
		{"the present version", onSchedule(1, 1, due, due), ErrConflict, "2 is next"},
		{"no token", right(func(c *RotateKeyOnSchedule) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"other generation", right(func(c *RotateKeyOnSchedule) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2"},
	})
	oneKey(t).refuse(onSchedule(1, 2, due, due), ErrConflict, "has no rotation due at")
}

// TestDisabledKeepsItsSchedule: what is overdue is rotated when the key is enabled.
func TestDisabledKeepsItsSchedule(t *testing.T) {
	const due = start + period
	for name, steps := range map[string][]Command{
		"disabled":         {&DisableKey{ref(1)}},
		"decrypt only":     {&SetKeyDecryptOnly{ref(1)}},
		"deletion planned": {&ScheduleKeyDeletion{ref(1), 7}, &CancelKeyDeletion{ref(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			w := rotating(t)
			for _, c := range steps {
				w.do(c)
			}
			if k := w.key(1); k.RotationDue() || len(w.s.Due(due+period, 10)) != 0 {
				t.Errorf("in state %s it is to be rotated: %v", k.State, w.s.Due(due+period, 10))
			}
			wantRotation(t, w, &Rotation{period, due})
			w.do(&EnableKey{ref(1)})
			if got := w.s.Due(due, 10); !slices.Equal(got, []Due{{At: due, ID: keyID(1)}}) {
				t.Errorf("enabled again, %v is due", got)
			}
			w.do(onSchedule(1, 2, due, due+10*period))
			wantRotation(t, w, &Rotation{period, due + 11*period})
		})
	}
}

// TestRotationEndsAtTheLimit: a key that is full is not due again and again.
func TestRotationEndsAtTheLimit(t *testing.T) {
	w := rotating(t)
	w.edit(func(t *tx) {
		k := *w.key(1)
		for n := uint32(2); n < MaxKeyVersions; n++ {
			k.Versions = append(k.Versions, KeyVersion{Version: n, Generation: 1, Cause: CauseSchedule, Token: []byte{1}})
		}
		t.putKey(&k)
	})
	due := w.key(1).Rotation.Next
	w.do(onSchedule(1, MaxKeyVersions, due, due))
	due += period
	if got := w.s.Due(due, 10); len(got) != 0 || w.key(1).RotationDue() {
		t.Errorf("a full key has %v due", got)
	}
	w.refuse(onSchedule(1, MaxKeyVersions+1, due, due), ErrLimit, "has 1000 versions")
}
