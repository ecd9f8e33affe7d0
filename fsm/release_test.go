package fsm

import (
	"slices"
	"strings"
	"testing"
)

// first is a cluster of release 1 with three living members and a tombstone.
func first(t failer) *world {
	w := newWorld(t)
	w.do(firstInit())
	w.join("n2", true, MemberActive)
	w.join("n3", false, MemberAdmitted)
	w.join("n4", true, MemberGone)
	return w
}

func living() []string { return []string{nodeID("n3"), firstNode, nodeID("n2")} }

func TestRaiseRelease(t *testing.T) {
	testRefusals(t, first, []refusal{
		{"no release", &RaiseRelease{0, living()}, ErrInvalid, "release 0: must be 2 to 2"},
		{"the first release", &RaiseRelease{FirstRelease, living()}, ErrInvalid, "release 1"},
		{"nobody vouched for", &RaiseRelease{2, nil}, ErrRelease, "knows release 2: n1, n2, n3; upgrade"},
		{"one member behind", &RaiseRelease{2, []string{firstNode, nodeID("n2")}}, ErrRelease, ": n3; upgrade"},
		{"a tombstone instead", &RaiseRelease{2, []string{firstNode, nodeID("n2"), nodeID("n4")}}, ErrRelease, ": n3; upgrade"},
		{"too many members", &RaiseRelease{2, make([]string, MaxMembers+1)}, ErrInvalid, "33 members named"},
	})
	w := first(t)
	if got := w.s.Cluster().Release; got != FirstRelease {
		t.Fatalf("founded without a release, the cluster is at %d", got)
	}
	before := w.s.Cluster()
	w.do(&RaiseRelease{2, living()})
	before.Release, before.Revision = 2, w.s.Index()
	if got := w.s.Cluster(); got.Release != 2 || got.Revision != before.Revision || got.ID != before.ID {
		t.Errorf("cluster is %+v, want %+v", got, before)
	}
	w.do(&RaiseRelease{2, nil}) // again: it is there already
	if got := w.s.Cluster(); got.Revision != before.Revision {
		t.Errorf("raising to the present release wrote the cluster")
	}
	if got := reread(t, w.s).Cluster().Release; got != 2 {
		t.Errorf("read back from a snapshot, the cluster is at release %d", got)
	}
	w.edit(func(t *tx) { c := t.s.cluster; c.Release = 3; t.putCluster(c) })
	w.refuse(&RaiseRelease{2, living()}, ErrRelease, "is at release 3 and never goes back")
}

func TestNewClusterIsAtNewestRelease(t *testing.T) {
	if got := initialized(t).s.Cluster().Release; got != NewestRelease {
		t.Errorf("release %d, want %d", got, NewestRelease)
	}
	testRefusals(t, func(t failer) *world { return newWorld(t) }, []refusal{
		{"the first release by name", edited(initCluster(), func(c *InitCluster) { c.Release = FirstRelease }), ErrInvalid, "release 1: must be"},
		{"a negative release", edited(initCluster(), func(c *InitCluster) { c.Release = -1 }), ErrInvalid, "release -1"},
	})
}

// Later is a command of a release that is not open yet.
type Later struct{ Tick }

// TestGate: a command of a later release changes nothing before the gate is raised,
// and goes through afterwards.
func TestGate(t *testing.T) {
	before := commands
	t.Cleanup(func() { commands = before })
	commands = append(slices.Clip(commands), spec{"Later", 2, Loosens, func() Command { return new(Later) }})
	later := &Later{Tick{Hash: make([]byte, 32)}}
	w := first(t)
	w.refuse(later, ErrRelease, "Later is of release 2, the cluster is at release 1: run `kmsctl cluster upgrade`")
	if _, err := w.s.Try(later); err == nil {
		t.Error("a trial finds nothing wrong with it")
	}
	wantError(t, w.s.Permits(later), ErrRelease, "Later")
	if err := w.s.Permits(&Tick{}); err != nil {
		t.Errorf("a command of the first release: %v", err)
	}
	_, err := w.apply(w.request("late", ""), later)
	wantError(t, err, ErrRelease, "Later")
	w.do(&RaiseRelease{2, living()})
	w.do(later)
	w.ask("late", "", later) // the refusal was not remembered
	if err := w.s.Permits(later); err != nil {
		t.Errorf("after the upgrade: %v", err)
	}
}

// TestNewCommandsWaitForTheUpgrade: none of release 2 gets into a cluster of release 1.
func TestNewCommandsWaitForTheUpgrade(t *testing.T) {
	for _, s := range commands {
		w := first(t)
		if err := w.s.Permits(s.make()); (err != nil) != (s.since > FirstRelease) {
			t.Errorf("%s of release %d: %v", s.name, s.since, err)
		}
		if s.since > FirstRelease {
			_, err := w.apply(w.entry(), s.make())
			wantError(t, err, ErrRelease, s.name+" is of release 2, the cluster is at release 1")
		}
	}
}

// TestReleaseOfTheFutureHalts: software that a cluster has left behind stops, be it at
// the entry or at a snapshot.
func TestReleaseOfTheFutureHalts(t *testing.T) {
	for _, c := range []Command{&RaiseRelease{3, living()}, edited(initCluster(), func(c *InitCluster) { c.Release = 3 })} {
		w := first(t)
		next, _, err := w.s.Apply(w.s.Index()+1, 1, seal(t, w.entry(), c))
		if next != nil {
			t.Errorf("%s to release 3 was applied", NameOf(c))
		}
		wantError(t, err, ErrHalted, "to release 3, this software knows 2: upgrade this node")
		_, err = EncodeEntry(w.entry(), c, logKey())
		wantError(t, err, ErrInvalid, "release 3: must be 2 to 2")
	}
	w := first(t)
	w.edit(func(t *tx) { c := t.s.cluster; c.Release = 3; t.putCluster(c) })
	_, err := ReadSnapshot(strings.NewReader(string(snapshotOf(t, w.s))), logKey())
	wantError(t, err, ErrSnapshot, "the cluster is at release 3, this software knows 2: upgrade this node")
}
