package fsm

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// scanDue is Due without an index.
func scanDue(s *State, at int64, limit int) []Due {
	var all []Due
	for _, item := range s.keys.all() {
		if d, has := item.key.due(); has && d.At <= at {
			all = append(all, d)
		}
	}
	for _, g := range s.grants.all() {
		if g.Expires != 0 && g.Expires <= at {
			all = append(all, Due{g.Expires, true, g.ID})
		}
	}
	slices.SortFunc(all, func(a, b Due) int {
		if dueBefore(a, b) {
			return -1
		}
		return 1
	})
	return all[:min(limit, len(all))]
}

// TestDue: the oldest first; keys before grants; by id.
func TestDue(t *testing.T) {
	w := initialized(t)
	for n := uint64(1); n <= 4; n++ {
		w.do(createKey(n))
	}
	expiring := func(n, key uint64, at int64) *CreateGrant {
		return edited(createGrant(n, key), func(c *CreateGrant) { c.Expires = at })
	}
	w.do(expiring(2, 1, start+7*day))
	w.do(expiring(1, 1, start+7*day))
	w.do(expiring(3, 1, start+1))
	w.do(createGrant(4, 1)) // never
	w.do(&ScheduleKeyDeletion{ref(3), 7})
	w.do(&ScheduleKeyDeletion{ref(2), 7})
	w.do(&EnableKeyRotation{ref(4), 60})
	want := []Due{
		{start + 1, true, grantID(3)},
		{start + 60, false, keyID(4)},
		{start + 7*day, false, keyID(2)},
		{start + 7*day, false, keyID(3)},
		{start + 7*day, true, grantID(1)},
		{start + 7*day, true, grantID(2)},
	}
	for _, s := range []*State{w.s, reread(t, w.s)} {
		for at, n := range map[int64]int{0: 0, start: 0, start + 1: 1, start + 59: 1, start + 60: 2, start + 7*day - 1: 2, start + 7*day: 6, 1<<63 - 1: 6} {
			for limit := range 8 {
				if got := s.Due(at, limit); !slices.Equal(got, want[:min(n, limit)]) {
					t.Errorf("at %d, at most %d: %v, want %v", at, limit, got, want[:min(n, limit)])
				}
			}
		}
	}
}

// TestKeyDue: of all that a key has coming the first counts.
func TestKeyDue(t *testing.T) {
	w := oneKey(t)
	step := func(c Command, want int64) {
		t.Helper()
		w.do(c)
		got, has := w.key(1).due()
		if has != (want != 0) || got.At != want {
			t.Fatalf("after %s: due at %d, want %d", NameOf(c), got.At, want)
		}
	}
	step(rotateKey(1, 2), 0)
	step(rotateKey(1, 3), 0)
	step(&EnableKeyRotation{ref(1), 20 * day}, start+20*day)
	step(&ScheduleKeyVersionDestruction{version(1, 1), 30}, start+20*day)
	step(&ScheduleKeyVersionDestruction{version(1, 2), 10}, start+10*day)
	step(&CancelKeyVersionDestruction{version(1, 2)}, start+20*day)
	step(&SetKeyDecryptOnly{ref(1)}, start+30*day)
	step(&EnableKey{ref(1)}, start+20*day)
	step(&ScheduleKeyDeletion{ref(1), 25}, start+25*day)
	step(&CancelKeyDeletion{ref(1)}, start+30*day)
	step(&DestroyKeyVersions{ref(1), start + 30*day}, 0)
	step(&EnableKey{ref(1)}, start+20*day)
	step(onSchedule(1, 4, start+20*day, start+20*day), start+40*day)
	step(&DisableKeyRotation{ref(1)}, 0)
}

// TestPropertyDue: Due is what a scan over all records finds, in every state of any log.
func TestPropertyDue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, s := range drawHistory(t).states {
			now := s.Now() / second
			for _, at := range []int64{0, now, now + 500, now + 7*day, now + 40*day, 1<<63 - 1} {
				for _, limit := range []int{1, 1000} {
					if got, want := s.Due(at, limit), scanDue(s, at, limit); !slices.Equal(got, want) {
						t.Fatalf("at %d, at most %d: %v, want %v", at, limit, got, want)
					}
				}
			}
		}
	})
}

// TestEndingMaterial: what ends soon is found, the soonest first, whatever else of the key is
// due before; not what is to be gone anyway, and what is gone.
func TestEndingMaterial(t *testing.T) {
	w := initialized(t)
	for n := uint64(1); n <= 6; n++ {
		w.do(externalKey(n, SpecSymmetric))
		ends := start + int64(8-n)*day
		if n == 6 {
			ends = 0 // never
		}
		w.do(edited(material(n, 1), func(c *ImportKeyMaterial) { c.Expires = ends }))
	}
	w.do(edited(createGrant(1, 1), func(c *CreateGrant) { c.Expires = start + day }))
	w.do(edited(material(5, 2), func(c *ImportKeyMaterial) { c.Expires = start + 2*day })) // before the first, which ends at 3
	w.do(&ScheduleKeyDeletion{ref(4), 7})
	w.do(&DeleteKeyMaterial{version(3, 1)})
	type end struct {
		key     ID
		version uint32
		at      int64
	}
	want := []end{{keyID(5), 2, start + 2*day}, {keyID(5), 1, start + 3*day}, {keyID(2), 1, start + 6*day}, {keyID(1), 1, start + 7*day}}
	for _, s := range []*State{w.s, reread(t, w.s)} {
		for by, n := range map[int64]int{start: 0, start + 2*day - 1: 0, start + 2*day: 1, start + 3*day: 2, start + 6*day: 3, start + 7*day: 4} {
			for limit := range 6 {
				got := map[end]bool{}
				for _, m := range s.EndingMaterial(by, limit) {
					got[end{m.Key.ID, m.Version, m.At}] = true
				}
				if len(got) != min(n, limit) {
					t.Fatalf("by %d, at most %d: %v", by, limit, got)
				}
				for _, x := range want[:n] {
					if limit >= n && !got[x] {
						t.Errorf("by %d: %v is missing of %v", by, x, got)
					}
				}
			}
		}
	}
}
