package fsm

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
)

func recoverCluster(epoch uint32) *RecoverCluster {
	return &RecoverCluster{Epoch: epoch, ID: keyID(100 + uint64(epoch)), Node: firstNode}
}

func restoreCluster(epoch uint32) *RestoreCluster {
	return &RestoreCluster{
		Epoch: epoch, ID: keyID(200 + uint64(epoch)), Backup: bytes.Repeat([]byte{0xba}, 32), JournalEnd: 99,
		Node: fmt.Sprintf("n9-%d", epoch), Name: "n9", PeerAddress: "n9:7000", ClientAddress: "n9:7001", Identity: []byte("identity of n9"),
	}
}

// wide is a cluster with members in every state, keys in every state and an open ticket.
func wide(t failer) *world {
	w := initialized(t)
	for n := uint64(1); n <= 3; n++ {
		w.do(createKey(n))
	}
	w.do(rotateKey(1, 2))
	w.do(&DisableKey{ref(2)})
	w.do(&ScheduleKeyDeletion{ref(3), 7})
	w.do(&CreateAlias{alias("alias/db", 1)})
	w.join("n2", true, MemberActive)
	w.join("n3", false, MemberActive)
	w.join("n4", true, MemberGone)
	w.join("n5", true, MemberLeaving)
	w.join("n6", true, MemberAdmitted)
	w.do(ticketFor("n7"))
	w.clock += second
	return w
}

// goldenRecoveries adds recoveries and restores to a golden log.
func goldenRecoveries(w *world) {
	w.do(createKey(1))
	w.do(createKey(2))
	w.do(&DisableKey{ref(2)})
	w.do(ticketFor("n7"))
	w.refuse(recoverCluster(2), ErrConflict, "")
	w.ask("recover", "1", recoverCluster(1))
	w.ask("recover", "1", recoverCluster(1))
	w.do(rotateKey(1, 1<<20+1))
	w.refuse(restoreCluster(1), ErrConflict, "")
	w.do(restoreCluster(3))
	w.do(rotateKey(1, 3<<20+1))
	w.do(edited(restoreCluster(4), func(c *RestoreCluster) { c.DisableKeys = true }))
}

func states(s *State) map[string]MemberState {
	out := map[string]MemberState{}
	for _, m := range s.Members() {
		out[m.Name] = m.State
	}
	return out
}

func TestRecoverCluster(t *testing.T) {
	w := wide(t)
	if got := w.s.History(); got != (History{}) {
		t.Errorf("the founding history is %+v", got)
	}
	keys := w.s.Keys(DefaultTenant, ID{}, 10)
	before := w.s.Cluster()
	w.do(recoverCluster(1))
	if got, want := w.s.History(), (History{Epoch: 1, ID: keyID(101)}); got != want {
		t.Errorf("history %+v, want %+v", got, want)
	}
	want := map[string]MemberState{
		"n1": MemberActive, "n2": MemberLeaving, "n3": MemberLeaving, "n4": MemberGone, "n5": MemberLeaving, "n6": MemberLeaving,
	}
	if got := states(w.s); !reflect.DeepEqual(got, want) {
		t.Errorf("members are %v, want %v", got, want)
	}
	if open := w.s.Tickets(); len(open) != 0 {
		t.Errorf("%d tickets of the old history are open", len(open))
	}
	waits := *keys[2]
	waits.Deletion, waits.Revision = startTime/second+1+7*day, w.s.Index()
	if got := w.s.Keys(DefaultTenant, ID{}, 10); !reflect.DeepEqual(got[:2], keys[:2]) || !reflect.DeepEqual(got[2], &waits) {
		t.Error("keys have changed")
	}
	before.RecoveryEpoch, before.RecoveryID, before.Revision = 1, keyID(101), w.s.Index()
	if got := w.s.Cluster(); !reflect.DeepEqual(got, before) {
		t.Errorf("cluster is\n%+v\nwant\n%+v", got, before)
	}
	for _, name := range []string{"n2", "n3", "n5", "n6"} {
		w.do(&RetireNode{nodeID(name)})
	}
	w.do(ticketFor("n2")) // its name is free again, its raft id is not
	w.refuse(admit("n2"), ErrMember, "under a new id")
	w.do(edited(admit("n2"), func(c *AdmitNode) { c.ID += "0" }))
}

// TestRecoverFromNonVoter: the member that was furthest has the vote afterwards.
func TestRecoverFromNonVoter(t *testing.T) {
	w := wide(t)
	w.do(edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = nodeID("n3") }))
	if m := w.s.MemberByName("n3"); !m.Voter || !m.Serves() || w.s.MemberByName("n1").State != MemberLeaving {
		t.Errorf("n3 is %+v, n1 %+v", m, w.s.MemberByName("n1"))
	}
}

func TestRestoreCluster(t *testing.T) {
	for _, disable := range []bool{false, true} {
		w := wide(t)
		w.do(edited(restoreCluster(7), func(c *RestoreCluster) { c.DisableKeys = disable }))
		if got, want := w.s.History(), (History{Epoch: 7, ID: keyID(207)}); got != want {
			t.Errorf("history %+v, want %+v", got, want)
		}
		want := map[string]MemberState{
			"n1": MemberGone, "n2": MemberGone, "n3": MemberGone, "n4": MemberGone, "n5": MemberGone, "n6": MemberGone, "n9": MemberActive,
		}
		if got := states(w.s); !reflect.DeepEqual(got, want) {
			t.Errorf("members are %v, want %v", got, want)
		}
		if m := w.s.MemberByName("n9"); !m.Voter || m.PeerAddress != "n9:7000" || m.ClientAddress != "n9:7001" || string(m.Identity) != "identity of n9" {
			t.Errorf("the new node is %+v", m)
		}
		first := KeyEnabled
		if disable {
			first = KeyDisabled
		}
		for n, state := range map[uint64]KeyState{1: first, 2: KeyDisabled, 3: KeyPendingDeletion} {
			if got := w.key(n).State; got != state {
				t.Errorf("disable %v: key %d is %s, want %s", disable, n, got, state)
			}
		}
		if len(w.s.Tickets()) != 0 {
			t.Error("tickets of the old history are open")
		}
	}
}

// TestRecoveryRaisesRelease: a cluster of the first release can be recovered, and no
// node of that release is let in afterwards.
func TestRecoveryRaisesRelease(t *testing.T) {
	for _, c := range []Command{recoverCluster(1), restoreCluster(1)} {
		w := newWorld(t)
		w.do(firstInit())
		w.do(c)
		if got := w.s.Cluster().Release; got != 2 {
			t.Errorf("%s: release %d, want 2", NameOf(c), got)
		}
	}
}

// TestNextVersion: no history mints a number that an earlier one may have minted.
func TestNextVersion(t *testing.T) {
	w := wide(t)
	next := func(want uint32) {
		t.Helper()
		if got := w.s.NextVersion(w.key(1)); got != want {
			t.Fatalf("next version %d, want %d", got, want)
		}
		w.refuse(rotateKey(1, want+1), ErrConflict, "is next")
		w.do(rotateKey(1, want))
	}
	next(3)
	w.do(recoverCluster(1))
	w.refuse(rotateKey(1, 4), ErrConflict, "is next")
	next(1<<20 + 1)
	next(1<<20 + 2)
	w.do(restoreCluster(MaxRecoveryEpoch))
	next(MaxRecoveryEpoch<<20 + 1)
	next(MaxRecoveryEpoch<<20 + 2)
	if MaxRecoveryEpoch<<20+MaxKeyVersions > 1<<32-1 {
		t.Error("the last versions of the last epoch do not fit")
	}
}

func TestRecoveryRefusals(t *testing.T) {
	testRefusals(t, wide, []refusal{
		{"the present epoch", edited(recoverCluster(1), func(c *RecoverCluster) { c.Epoch = 2 }), ErrConflict, "epoch 2 was asked for, 1 is next"},
		{"epoch 0", edited(recoverCluster(1), func(c *RecoverCluster) { c.Epoch = 0 }), ErrInvalid, "recovery epoch 0: must be 1 to 4095"},
		{"epoch 4096", edited(recoverCluster(1), func(c *RecoverCluster) { c.Epoch = 4096 }), ErrInvalid, "recovery epoch 4096"},
		{"no id", edited(recoverCluster(1), func(c *RecoverCluster) { c.ID = ID{} }), ErrInvalid, "id of the new history"},
		{"no node", edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = "" }), ErrInvalid, "raft id"},
		{"nobody", edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = "n99" }), ErrMember, "n99 is no active member"},
		{"a node that is gone", edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = nodeID("n4") }), ErrMember, "no active member"},
		{"a node that leaves", edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = nodeID("n5") }), ErrMember, "no active member"},
		{"a node that joins", edited(recoverCluster(1), func(c *RecoverCluster) { c.Node = nodeID("n6") }), ErrMember, "no active member"},

		{"restore: no hash", edited(restoreCluster(1), func(c *RestoreCluster) { c.Backup = nil }), ErrInvalid, "hash has 0 bytes"},
		{"restore: epoch 0", edited(restoreCluster(1), func(c *RestoreCluster) { c.Epoch = 0 }), ErrInvalid, "recovery epoch 0"},
		{"restore: no id", edited(restoreCluster(1), func(c *RestoreCluster) { c.ID = ID{} }), ErrInvalid, "id of the new history"},
		{"restore: a member", edited(restoreCluster(1), func(c *RestoreCluster) { c.Node = firstNode }), ErrMember, "knows node"},
		{"restore: one that is gone", edited(restoreCluster(1), func(c *RestoreCluster) { c.Node = nodeID("n4") }), ErrMember, "knows node"},
		{"restore: bad name", edited(restoreCluster(1), func(c *RestoreCluster) { c.Name = "A" }), ErrInvalid, "node name"},
	})
	w := wide(t)
	w.do(restoreCluster(5))
	for _, epoch := range []uint32{1, 4, 5} {
		w.refuse(edited(restoreCluster(epoch), func(c *RestoreCluster) { c.Node = "other" }), ErrConflict, "the backup is of 5")
	}
}

// TestWaitAnew: what is to go waits seven days more at least, since it may have been
// taken back; what has longer is left alone.
func TestWaitAnew(t *testing.T) {
	for _, c := range []Command{recoverCluster(1), restoreCluster(1)} {
		w := versions(t) // version 3 of key 1 goes after 7 days
		w.do(&ScheduleKeyVersionDestruction{version(1, 2), 30})
		w.do(createKey(2))
		w.do(createKey(3))
		w.do(&ScheduleKeyDeletion{ref(2), 7})
		w.do(&ScheduleKeyDeletion{ref(3), 30})
		w.clock += 8 * day * second
		old, before := w.s, snapshotOf(t, w.s)
		w.do(c)
		anew := start + 15*day
		if v := w.key(1).Versions; v[2].Destroy != anew || v[1].Destroy != start+30*day || v[0].Destroy != 0 {
			t.Errorf("%s: versions are %+v", NameOf(c), v)
		}
		if a, b := w.key(2).Deletion, w.key(3).Deletion; a != anew || b != start+30*day {
			t.Errorf("%s: the keys go at %d and %d", NameOf(c), a, b)
		}
		if got := w.s.Due(anew-1, 10); len(got) != 0 {
			t.Errorf("%s: %v are due", NameOf(c), got)
		}
		w.refuse(&DeleteKey{ref(2), start + 8*day}, ErrConflict, "is to be deleted at")
		wantSame(t, "the state before", snapshotOf(t, old), before)
	}
}

// TestDisableKeys: decrypt only is a use too.
func TestDisableKeys(t *testing.T) {
	for state, want := range map[KeyState]KeyState{
		KeyEnabled: KeyDisabled, KeyDecryptOnly: KeyDisabled, KeyDisabled: KeyDisabled, KeyPendingDeletion: KeyPendingDeletion,
	} {
		w := inState(t, state)
		w.do(edited(restoreCluster(1), func(c *RestoreCluster) { c.DisableKeys = true }))
		if got := w.key(1).State; got != want {
			t.Errorf("%s became %s, want %s", state, got, want)
		}
	}
}

// replayed brings a lost history's restrictions into a backup, as a restore does.
func replayed(w *world, lost []Command) {
	for _, c := range lost {
		if EffectOf(c) != Restricts {
			continue
		}
		again := Replay(c)
		if again == nil {
			continue
		}
		for _, step := range Steps(w.s, again) {
			for step != nil {
				_, err := w.apply(w.entry(), step)
				if err == nil {
					break
				}
				step = Instead(step, err)
			}
		}
	}
}

// TestRestrictionsStay: what was revoked behind the backup is not usable after the
// restore, also where what made room for it was loosened behind the backup.
func TestRestrictionsStay(t *testing.T) {
	backup := func() *world {
		w := initialized(t)
		for n := uint64(1); n <= 9; n++ {
			w.do(createKey(n))
		}
		w.do(createKey(11))
		w.do(rotateKey(11, 2))
		w.do(&SetDeletionProtection{ref(1), true})
		w.do(bind(2, "volume/1"))
		w.do(&SetDeletionProtection{ref(3), true})
		w.do(rotateKey(3, 2))
		w.do(delegable2(5))
		w.as(user, func() { w.do(edited(createGrant(2, 5), func(c *CreateGrant) { c.Parent = grantID(1) })) })
		w.do(edited(createGrant(3, 5), func(c *CreateGrant) { c.Expires = start + 5 }))
		w.do(putPolicy(6, "old"))
		w.do(putPolicy(0, "old"))
		w.do(&CreateAlias{alias("alias/moved", 7)})
		w.do(&ScheduleKeyDeletion{ref(8), 7})
		return w
	}
	lost := []Command{
		&SetDeletionProtection{ref(1), false}, &ScheduleKeyDeletion{ref(1), 7}, &DeleteKey{ref(1), start + 7*day},
		release(2, "volume/1"), &ScheduleKeyDeletion{ref(2), 7},
		&SetDeletionProtection{ref(3), false}, &ScheduleKeyVersionDestruction{version(3, 1), 7}, &DestroyKeyVersions{ref(3), start + 7*day},
		rotateKey(4, 2), &ScheduleKeyVersionDestruction{version(4, 1), 7}, &SetKeyDecryptOnly{ref(4)},
		&RevokeGrant{grantRef(1, 5)}, &ExpireGrant{grantRef(3, 5), start + 5}, createGrant(4, 5),
		expecting(putPolicy(6, "new"), 1), putPolicy(0, ""),
		createKey(10), &UpdateAlias{alias("alias/moved", 10)}, &DisableKey{ref(10)},
		&CancelKeyDeletion{ref(8)},
		&ScheduleKeyDeletion{ref(11), 7}, &CancelKeyDeletion{ref(11)}, &EnableKey{ref(11)},
		&DisableKeyVersion{version(11, 1)}, &SetRequiredContext{ref(11), []string{"tenant"}},
		&DisableKeyVersion{VersionRef{KeyRef{keyID(9), DefaultTenant, 10}, 1}}, &SetRequiredContext{ref(9), []string{"tenant"}},
		&FreezeTenant{DefaultTenant, true}, &ThawTenant{DefaultTenant, true}, &DisablePrincipal{user, ""},
	}
	gone := backup()
	for _, c := range lost {
		gone.do(c)
	}
	w := backup()
	w.do(restoreCluster(1))
	replayed(w, lost)
	for n, want := range map[uint64]KeyState{1: KeyDisabled, 2: KeyDisabled, 4: KeyDecryptOnly, 8: KeyPendingDeletion, 11: KeyPendingDeletion} {
		if got := w.key(n).State; got != want {
			t.Errorf("key %d is %s, want %s", n, got, want)
		}
	}
	for n, v := range map[uint64]uint32{3: 1, 4: 1, 9: 1, 11: 1} {
		if err := w.key(n).Version(v).Usable(); err == nil {
			t.Errorf("version %d of key %d is usable", v, n)
		}
	}
	wantGrants(t, w, 5)
	wantPolicies(t, w, 6, 2, 1, 2)
	wantPolicies(t, w, 0, 0, 1, 2)
	if a, ok := w.s.Alias(DefaultTenant, "alias/moved"); ok {
		t.Errorf("the alias leads to key %s again", a.Key)
	}
	for _, n := range []uint64{9, 11} {
		if got := w.key(n).Required; !reflect.DeepEqual(got, []string{"tenant"}) {
			t.Errorf("key %d requires %v", n, got)
		}
	}
	tenant, _ := w.s.Tenant(DefaultTenant)
	if _, ok := w.s.Disabled(user); !ok || tenant.Thawed() == nil { // a thaw is in no journal
		t.Errorf("the principal is disabled: %v; the tenant is %+v", ok, tenant)
	}
}

// delegable2 is grant 1 of a key, which user may grant on.
func delegable2(key uint64) *CreateGrant {
	return edited(createGrant(1, key), func(c *CreateGrant) { c.Operations = append(c.Operations, GrantCreateGrant) })
}

// TestReplayOfEveryCommand: a restriction is made again, without what it expected; who
// has no key says so.
func TestReplayOfEveryCommand(t *testing.T) {
	not := map[string]bool{"Repeat": true, "RemoveNode": true, "RecoverCluster": true, "RestoreCluster": true, "CreateGrant": true, "CancelKeyVersionDestruction": true}
	of := keyChanges(KeyRef{keyID(1), DefaultTenant, 7})
	of["RevokeGrant"], of["RetireGrant"], of["ExpireGrant"] = &RevokeGrant{grantRef(1, 1)}, &RetireGrant{grantRef(1, 1)}, &ExpireGrant{grantRef(1, 1), 5}
	of["MoveAlias"] = &MoveAlias{AliasTarget{DefaultTenant, "alias/a", keyID(1), 7}, KeyRef{keyID(2), DefaultTenant, 7}}
	of["PutPolicy"] = edited(expecting(putPolicy(1, "x"), 7), func(c *PutPolicy) { c.ExpectKey = 7 })
	of["ReleaseResource"] = &ReleaseResource{KeyRef: KeyRef{keyID(1), DefaultTenant, 7}, Resource: "r"}
	of["CreateKey"], of["CreateServiceKey"], of["CreateKeyOfSpec"] = createKey(1), serviceKey(1), keyOfSpec(1, SpecP256, UsageSignVerify)
	for _, s := range commands {
		c, about := of[s.name]
		if !about {
			c = s.make()
		}
		if id, ok := KeyOf(c); ok != about || about && id != keyID(1) {
			t.Errorf("the key of %s is %v, %v", s.name, id, ok)
		}
		if s.effect != Restricts {
			continue
		}
		again := Replay(c)
		if (again == nil) != not[s.name] {
			t.Errorf("%s is made again as %+v", s.name, again)
		}
		if again == nil {
			continue
		}
		for _, name := range []string{"Expect", "ExpectKey", "From"} {
			if f := reflect.ValueOf(again).Elem().FieldByName(name); f.IsValid() && !f.IsZero() {
				t.Errorf("%s expects %v again", s.name, f)
			}
		}
		if f := reflect.ValueOf(c).Elem().FieldByName("Expect"); about && f.IsValid() && f.IsZero() {
			t.Errorf("%s lost what it expected", s.name)
		}
	}
	if id, ok := KeyOf(putPolicy(0, "x")); ok {
		t.Errorf("the key of a tenant's policy is %v", id)
	}
	for _, c := range []Command{recoverCluster(1), restoreCluster(1)} {
		if id, ok := KeyOf(c); ok {
			t.Errorf("the key of %s is %v", NameOf(c), id)
		}
	}
}

// TestReplay: what a lost history restricted is made again without what it expected.
func TestReplay(t *testing.T) {
	id := keyID(1)
	pinned := &DisableKey{KeyRef: KeyRef{ID: id, Tenant: "t", Expect: 7}}
	again := Replay(pinned).(*DisableKey)
	if again.ID != id || again.Tenant != "t" || again.Expect != 0 || pinned.Expect != 7 {
		t.Errorf("again %+v of %+v", again, pinned)
	}
	for _, c := range []Command{&Repeat{}, &RemoveNode{ID: "n"}, &RecoverCluster{}, &RestoreCluster{}, &CancelKeyVersionDestruction{}} {
		if got := Replay(c); got != nil {
			t.Errorf("%s is made again: %+v", NameOf(c), got)
		}
	}
	moved := Replay(&UpdateAlias{AliasTarget: AliasTarget{Tenant: "t", Name: "alias/a", Key: id, Expect: 3}})
	if got, ok := Instead(moved, ErrNotFound).(*DeleteAlias); !ok || *got != (DeleteAlias{Tenant: "t", Name: "alias/a"}) {
		t.Errorf("instead of %+v: %+v", moved, got)
	}
	if got := Instead(pinned, ErrNotFound); got != nil {
		t.Errorf("instead of %+v: %+v", pinned, got)
	}
	if got, ok := KeyOf(moved); !ok || got != id {
		t.Errorf("the key of %+v is %v", moved, got)
	}
	if got, ok := KeyOf(&RemoveNode{ID: "n"}); ok {
		t.Errorf("a removal is about key %v", got)
	}
}

// TestReplayOfADestruction: a destruction that was taken back too late in the lost history is
// not taken back in the present one.
func TestReplayOfADestruction(t *testing.T) {
	w := versions(t)
	replayed(w, []Command{
		&ScheduleKeyVersionDestruction{version(1, 1), 7}, &DestroyKeyVersions{ref(1), 1}, &CancelKeyVersionDestruction{version(1, 1)},
	})
	if v := w.key(1).Version(1); v.State != VersionDestroyScheduled || v.Destroy == 0 {
		t.Errorf("the version is %+v", v)
	}
}

// TestReplayOnAPendingKey: a restriction is made on a key that is pending deletion, which it
// stays, also where the restriction was refused in the lost history for that reason.
func TestReplayOnAPendingKey(t *testing.T) {
	for name, c := range keyChanges(ref(1)) {
		again := Replay(c)
		if EffectOf(c) != Restricts || again == nil || name == "DeleteKey" {
			continue
		}
		w := inState(t, KeyPendingDeletion)
		before := w.key(1)
		replayed(w, []Command{c})
		k := w.key(1)
		if k.State != KeyPendingDeletion || k.Deletion < before.Deletion {
			t.Errorf("%s: the key is %s until %d", name, k.State, k.Deletion)
		}
		switch name {
		case "DisableKeyVersion":
			if k.Version(2).Usable() == nil {
				t.Error("the version is usable")
			}
		case "SetRequiredContext":
			if len(k.Required) == 0 {
				t.Error("no context is required")
			}
		case "TagKey":
			if len(k.Tags) == 0 {
				t.Error("it has no tag")
			}
		}
	}
}
