package fsm

import (
	"bytes"
	"errors"
	"sync"
	"testing"
)

// TestTry: a try answers as the entry would, and changes nothing.
func TestTry(t *testing.T) {
	base := twoKeys(t)
	base.ask("r1", "", &CreateAlias{alias("alias/db", 1)})
	before := snapshotOf(t, base.s)
	for _, c := range []Command{
		initCluster(), createKey(1), createKey(3), create(func(c *CreateKey) { c.Version = 2 }),
		&DisableKey{ref(1)}, &DisableKey{ref(9)}, &CancelKeyDeletion{ref(1)}, rotateKey(1, 2), rotateKey(1, 3),
		&ScheduleKeyDeletion{ref(1), 6}, &TagKey{ref(1), tags(0, 50)}, &UpdateAlias{alias("alias/db", 2)},
		deleteAlias("alias/db"), &DeleteAlias{DefaultTenant, "alias/db", 3}, &Repeat{}, ticketFor("n2"), admit("n2"), &RemoveNode{firstNode}, &Tick{},
		&SetKeyDecryptOnly{ref(1)}, &EnableKeyRotation{ref(1), 60}, onSchedule(1, 2, 5, 5), &DisableKeyVersion{version(1, 1)}, &DeleteKey{ref(1), 5}, serviceKey(3),
		createTenant("acme"), &FreezeTenant{DefaultTenant, true}, &DisablePrincipal{user, ""}, &EnablePrincipal{user, ""}, putPolicy(1, "x"), bind(1, "r"), release(1, "r"),
		createGrant(1, 1), child(1, 50, func(*CreateGrant) {}), &RevokeGrant{grantRef(1, 1)}, &RecordUse{[]Use{{keyID(1), 1, start}}},
	} {
		got, tried := base.s.Try(c)
		if !bytes.Equal(snapshotOf(t, base.s), before) {
			t.Fatalf("trying %s changed the state", NameOf(c))
		}
		w := &world{t: t, s: base.s, clock: base.clock}
		want, applied := w.apply(w.entry(), c)
		want.Index = 0
		if got != want || Code(tried) != Code(applied) || (tried != nil && tried.Error() != applied.Error()) {
			t.Errorf("trying %s: %+v, %v; applying: %+v, %v", NameOf(c), got, tried, want, applied)
		}
	}
	for _, c := range []Command{createKey(1), initCluster()} {
		if _, err := NewState().Try(c); !errors.Is(err, ErrNotInitialized) {
			t.Errorf("trying %s before the first entry: %v", NameOf(c), err)
		}
	}
}

// TestRestricted: the last entry whose command restricts counts, refused or not.
func TestRestricted(t *testing.T) {
	w := oneKey(t)
	for _, step := range []struct {
		act  func()
		want uint64
	}{
		{func() {}, 0},
		{func() { w.do(&EnableKey{ref(1)}) }, 0},
		{func() { w.do(&DisableKey{ref(1)}) }, 4},
		{func() { w.do(&EnableKey{ref(1)}) }, 4},
		{func() { w.refuse(&DisableKey{ref(9)}, ErrNotFound, "") }, 6},
		{func() { w.refuse(&CancelKeyDeletion{ref(1)}, ErrNotPendingDeletion, "") }, 6},
		{func() { w.ask("r1", "", &DisableKey{ref(1)}) }, 8},
		{func() { w.ask("r1", "", &DisableKey{ref(1)}) }, 9},
		{func() { w.ask("r1", "", &Repeat{}) }, 10},
		{func() { w.refuse(&Repeat{}, ErrNotFound, "") }, 11},
		{func() { w.do(&EnableKey{ref(1)}); w.s = reread(t, w.s) }, 12},
		{func() { w.do(&EnableKey{ref(1)}) }, 12},
	} {
		step.act()
		if got := w.s.Restricted(); got != step.want {
			t.Errorf("at %d the last restriction is %d, want %d", w.s.Index(), got, step.want)
		}
	}
}

// TestOneStateManySuccessors: entries and tries that start from the same state at
// the same time do not meet.
func TestOneStateManySuccessors(t *testing.T) {
	w := goldenScript(t)
	before := snapshotOf(t, w.s)
	enable := seal(t, w.entry(), &EnableKey{ref(2)})
	disable := seal(t, w.entry(), &DisableKey{ref(2)})
	for range 50 {
		start := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			for raw, want := range map[string]KeyState{string(enable): KeyEnabled, string(disable): KeyDisabled} {
				wg.Go(func() {
					<-start
					next, _, err := w.s.Apply(w.s.Index()+1, 1, []byte(raw))
					if err != nil {
						t.Error(err)
						return
					}
					if k, _ := next.Key(keyID(2)); k.State != want {
						t.Errorf("key is %s, want %s", k.State, want)
					}
					if _, err := w.s.Try(&UpdateAlias{alias("alias/db", 1)}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		close(start)
		wg.Wait()
		if !bytes.Equal(snapshotOf(t, w.s), before) {
			t.Fatal("the state they started from changed")
		}
	}
}

// TestOldStatesStay: no entry reaches into a record of a state before it.
func TestOldStatesStay(t *testing.T) {
	w := newWorld(t)
	var states []*State
	var before [][]byte
	for _, l := range goldenUpgrade(t).log {
		if _, err := w.append(l.Index, l.Term, l.Data); err != nil && Code(err) == "" {
			t.Fatal(err)
		}
		states, before = append(states, w.s), append(before, snapshotOf(t, w.s))
	}
	for i, s := range states {
		wantSame(t, "snapshot of an old state", snapshotOf(t, s), before[i])
	}
}

// TestSuccessorsShareNothing: two entries that follow the same state, and a try,
// do not reach into each other's records.
func TestSuccessorsShareNothing(t *testing.T) {
	base := oneKey(t)
	base.do(&TagKey{ref(1), tags(0, 5)})
	for version := uint32(2); version <= 12; version++ {
		base.do(rotateKey(1, version))
		base.do(&UntagKey{ref(1), []string{tags(0, 5)[version%5].Key}})
		base.do(&TagKey{ref(1), tags(int(version%5), 1)})
		base.do(&RecordUse{[]Use{{keyID(1), version - 1, start}}})
		var before [][]byte
		var branches []*State
		for n := range 3 {
			for _, c := range []Command{
				edited(rotateKey(1, version+1), func(c *RotateKey) { c.Token = []byte{byte(n)} }),
				&TagKey{ref(1), []Tag{{"k02", "branch"}, {"new", string(rune('a' + n))}}},
				&UntagKey{ref(1), []string{tags(n, 1)[0].Key}},
				&DisableKeyVersion{VersionRef{ref(1), version}},
				&ScheduleKeyVersionDestruction{VersionRef{ref(1), version - 1}, uint32(7 + n)},
				&RecordUse{[]Use{{keyID(1), version - 1, start}, {keyID(1), version, start + int64(n)}}},
			} {
				if _, err := base.s.Try(c); err != nil {
					t.Fatal(err)
				}
				w := &world{t: t, s: base.s, clock: base.clock}
				w.do(c)
				branches, before = append(branches, w.s), append(before, snapshotOf(t, w.s))
			}
		}
		for i, s := range branches {
			wantSame(t, "snapshot of a branch", snapshotOf(t, s), before[i])
		}
	}
}
