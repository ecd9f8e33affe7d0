package fsm

import (
	"reflect"
	"testing"
)

func wantUse(t *testing.T, w *world, n uint64, want *LastUse) {
	t.Helper()
	got, ok := w.s.LastUse(keyID(n))
	if ok != (want != nil) || ok && !reflect.DeepEqual(got, want) {
		t.Errorf("last use of key %d is %+v, want %+v", n, got, want)
	}
}

// TestRecordUse: only what is newer counts, in whatever order it is told.
func TestRecordUse(t *testing.T) {
	w := twoKeys(t)
	w.do(rotateKey(1, 2))
	w.clock += 1000 * second
	key := keyID(1)
	for _, step := range []struct {
		uses []Use
		want *LastUse
	}{
		{[]Use{{keyID(9), 1, start}, {key, 3, start}, {key, 1, 0}, {key, 2, -1}, {key, 0, 0}}, nil},
		{[]Use{{key, 2, start + 5}}, &LastUse{Key: key, Versions: []VersionUse{{2, start + 5}}}},
		{[]Use{{key, 1, start + 3}, {keyID(2), 1, start}, {key, 2, start + 4}, {key, 1, start + 2}}, &LastUse{Key: key, Versions: []VersionUse{{1, start + 3}, {2, start + 5}}}},
		{[]Use{{key, 0, start + 7}}, &LastUse{Key: key, Refused: start + 7, Versions: []VersionUse{{1, start + 3}, {2, start + 5}}}},
		{[]Use{{key, 0, start + 6}, {key, 1, start + 3}, {key, 2, start + 4}}, &LastUse{Key: key, Refused: start + 7, Versions: []VersionUse{{1, start + 3}, {2, start + 5}}}},
		{[]Use{{key, 2, start + 1001}}, &LastUse{Key: key, Refused: start + 7, Versions: []VersionUse{{1, start + 3}, {2, start + 1000}}}}, // a clock that is ahead
	} {
		before, old := w.s, records(t, w.s)
		w.do(&RecordUse{step.uses})
		wantUse(t, w, 1, step.want)
		if records(t, before) != old {
			t.Fatalf("%v changed the state before", step.uses)
		}
	}
	u, _ := w.s.LastUse(key)
	if u.Used() != start+1000 || u.Version(1) != start+3 || u.Version(2) != start+1000 || u.Version(3) != 0 {
		t.Errorf("last use %d; of the versions %d, %d, %d", u.Used(), u.Version(1), u.Version(2), u.Version(3))
	}
	wantUse(t, w, 2, &LastUse{Key: keyID(2), Versions: []VersionUse{{1, start}}})
	if (&LastUse{}).Used() != 0 {
		t.Error("what was never used was used")
	}
}

// TestRecordUseOfNothingNew writes no record: the hash takes in the entry alone.
func TestRecordUseOfNothingNew(t *testing.T) {
	w := oneKey(t)
	w.do(&RecordUse{[]Use{{keyID(1), 1, start}}})
	old, _ := w.s.LastUse(keyID(1))
	w.do(&RecordUse{[]Use{{keyID(1), 1, start}, {keyID(1), 1, start - 9}}})
	if same, _ := w.s.LastUse(keyID(1)); same != old {
		t.Error("the record was written again")
	}
}

func TestRecordUseLimits(t *testing.T) {
	many := make([]Use, MaxUses+1)
	for i := range many {
		many[i] = Use{Key: ID{0xff, byte(i), byte(i >> 8)}, Version: 1<<32 - 1, At: 1<<63 - 1}
	}
	testAccepted(t, oneKey, []accepted{{"8000 of the longest", &RecordUse{many[1:]}}})
	testRefusals(t, oneKey, []refusal{
		{"none", &RecordUse{}, ErrInvalid, "0 uses told: must be 1 to 8000"},
		{"8001", &RecordUse{many}, ErrInvalid, "8001 uses told"},
	})
}
