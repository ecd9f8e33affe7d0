package fsm

import (
	"errors"
	"fmt"
	"testing"
)

// version names a version of the n-th key.
func version(n uint64, v uint32) VersionRef { return VersionRef{ref(n), v} }

// versions is a world whose key 1 has the versions 1 to 4; 1 is enabled, 2 disabled, 3 to
// be destroyed after seven days, and 4 the current one.
func versions(t failer) *world {
	w := oneKey(t)
	for v := uint32(2); v <= 4; v++ {
		w.do(rotateKey(1, v))
	}
	w.do(&DisableKeyVersion{version(1, 2)})
	w.do(&ScheduleKeyVersionDestruction{version(1, 3), 7})
	return w
}

// destroyed is versions behind the destruction of version 3.
func destroyed(t failer) *world {
	w := versions(t)
	w.do(&DestroyKeyVersions{ref(1), start + 7*day})
	return w
}

func TestVersionUsable(t *testing.T) {
	for state, want := range map[VersionState]error{
		VersionEnabled: nil, VersionDisabled: ErrVersionDisabled, VersionDestroyScheduled: ErrVersionDisabled,
		VersionDestroyed: ErrVersionDestroyed, "FROM_LATER": ErrUnsupported,
	} {
		if err := (&KeyVersion{Version: 7, State: state}).Usable(); !errors.Is(err, want) || err != nil && Code(err) == "" {
			t.Errorf("state %q: %v, want %v", state, err, want)
		}
	}
}

// TestVersionStates is the table of what a command does to a version in a state; the
// others stay as they are.
func TestVersionStates(t *testing.T) {
	type answer struct {
		err   error
		after VersionState
	}
	const on, off, going, gone = VersionEnabled, VersionDisabled, VersionDestroyScheduled, VersionDestroyed
	was := map[VersionState]uint32{on: 1, off: 2, going: 3}
	for name, row := range map[string]struct {
		command func(r VersionRef) Command
		answers map[VersionState]answer
	}{
		"disable": {
			func(r VersionRef) Command { return &DisableKeyVersion{r} },
			map[VersionState]answer{on: {nil, off}, off: {nil, off}, going: {nil, going}, gone: {ErrVersionDestroyed, gone}},
		},
		"enable": {
			func(r VersionRef) Command { return &EnableKeyVersion{r} },
			map[VersionState]answer{on: {nil, on}, off: {nil, on}, going: {ErrVersionDisabled, going}, gone: {ErrVersionDestroyed, gone}},
		},
		"schedule": {
			func(r VersionRef) Command { return &ScheduleKeyVersionDestruction{r, 30} },
			map[VersionState]answer{on: {nil, going}, off: {nil, going}, going: {ErrVersionDisabled, going}, gone: {ErrVersionDestroyed, gone}},
		},
		"cancel": {
			func(r VersionRef) Command { return &CancelKeyVersionDestruction{r} },
			map[VersionState]answer{on: {ErrNotPendingDeletion, on}, off: {ErrNotPendingDeletion, off}, going: {nil, off}, gone: {ErrNotPendingDeletion, gone}},
		},
	} {
		for from, want := range row.answers {
			t.Run(name+" "+string(from), func(t *testing.T) {
				w, v := versions(t), was[from]
				if from == gone {
					w, v = destroyed(t), 3
				}
				before := w.key(1)
				w.clock += second
				if want.err != nil {
					w.refuse(row.command(version(1, v)), want.err, "version 3"[:7])
				} else {
					w.do(row.command(version(1, v)))
				}
				for i, got := range w.key(1).Versions {
					state, destroy := before.Versions[i].State, before.Versions[i].Destroy
					if got.Version == v {
						state = want.after
						if name == "schedule" && want.err == nil {
							destroy = start + 1 + 30*day
						} else if want.after != going && want.after != gone {
							destroy = 0
						}
					}
					if got.State != state || got.Destroy != destroy {
						t.Errorf("version %d is %q until %d, want %q until %d", got.Version, got.State, got.Destroy, state, destroy)
					}
				}
			})
		}
	}
}

func TestVersionRefused(t *testing.T) {
	testRefusals(t, versions, []refusal{
		{"version 0", &DisableKeyVersion{version(1, 0)}, ErrInvalid, "versions count from 1"},
		{"no such version", &DisableKeyVersion{version(1, 5)}, ErrNotFound, "has no version 5"},
		{"enabled, no such version", &EnableKeyVersion{version(1, 1<<32-1)}, ErrNotFound, "has no version 4294967295"},
		{"scheduled, no such version", &ScheduleKeyVersionDestruction{version(1, 9), 7}, ErrNotFound, "has no version 9"},
		{"the current one", &ScheduleKeyVersionDestruction{version(1, 4), 7}, ErrVersionCurrent, "rotate the key first"},
		{"6 days", &ScheduleKeyVersionDestruction{version(1, 1), 6}, ErrInvalid, "waiting period of 6 days: must be 7 to 30"},
		{"31 days", &ScheduleKeyVersionDestruction{version(1, 1), 31}, ErrInvalid, "waiting period of 31 days"},
		{"destroyed a second early", &DestroyKeyVersions{ref(1), start + 7*day - 1}, ErrConflict, "no version of key"},
		{"destroyed where none is to be", &DestroyKeyVersions{ref(2), start + 7*day}, ErrNotFound, keyID(2).String()},
	})
}

// TestWhatProtectsVersions: what stands against a key's deletion stands against that of its
// versions, and protection does not come too late unnoticed.
func TestWhatProtectsVersions(t *testing.T) {
	w := versions(t)
	w.refuse(&SetDeletionProtection{ref(1), true}, ErrVersionDisabled, "version 3 of key "+keyID(1).String()+" is to be destroyed: cancel that first")
	w.do(&SetDeletionProtection{ref(1), false})
	w.do(&CancelKeyVersionDestruction{version(1, 3)})
	w.do(&SetDeletionProtection{ref(1), true})
	w.refuse(&ScheduleKeyVersionDestruction{version(1, 1), 7}, ErrProtected, keyID(1).String())
	w.do(&SetDeletionProtection{ref(1), false})
	w.do(bind(1, "volume/1"))
	w.refuse(&ScheduleKeyVersionDestruction{version(1, 1), 7}, ErrInUse, "protects volume/1")
	w.do(release(1, "volume/1"))
	w.do(&ScheduleKeyVersionDestruction{version(1, 1), 7})
	w.do(&DestroyKeyVersions{ref(1), start + 7*day})
	w.do(&SetDeletionProtection{ref(1), true}) // what is gone is gone
}

// TestCurrentVersionDisabled: then nothing is sealed, and a rotation ends that.
func TestCurrentVersionDisabled(t *testing.T) {
	w := versions(t)
	w.do(&DisableKeyVersion{version(1, 4)})
	if err := w.key(1).Current().Usable(); !errors.Is(err, ErrVersionDisabled) {
		t.Errorf("the current version: %v", err)
	}
	w.do(rotateKey(1, 5))
	if k := w.key(1); k.Current().Usable() != nil || k.Version(4).Usable() == nil {
		t.Errorf("versions are %+v", k.Versions)
	}
}

// TestDestroyKeyVersions: whatever is due goes at once, and nothing else; the states
// before keep what they had.
func TestDestroyKeyVersions(t *testing.T) {
	w := versions(t)
	w.clock += day * second
	w.do(&ScheduleKeyVersionDestruction{version(1, 1), 7})
	w.do(&ScheduleKeyVersionDestruction{version(1, 2), 9})
	before := w.s
	at := start + 8*day + 1
	if got := w.do(&DestroyKeyVersions{ref(1), at}); got != (Result{Index: w.s.Index(), ID: keyID(1).String(), Version: 4}) {
		t.Errorf("result %+v", got)
	}
	for n, gone := range map[uint32]bool{1: true, 2: false, 3: true, 4: false} {
		v := w.key(1).Version(n)
		if (v.State == VersionDestroyed) != gone || (v.Token == nil) != gone || gone && v.Destroy != at {
			t.Errorf("version %d is %+v", n, v)
		}
		k, _ := before.Key(keyID(1))
		if k.Version(n).Token == nil || k.Version(n).State == VersionDestroyed {
			t.Errorf("the state before lost version %d", n)
		}
	}
	w.refuse(&DestroyKeyVersions{ref(1), at}, ErrConflict, fmt.Sprintf("due to be destroyed at %d", at))
	if k := reread(t, w.s).Keys(DefaultTenant, ID{}, 1)[0]; k.Version(3).Token != nil {
		t.Error("a destroyed version came back with a token")
	}
}
