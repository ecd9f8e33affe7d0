package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Operators who approve changes of the recovery recipients.
const (
	olga = "spiffe://kms.example/operator/olga"
	omar = "spiffe://kms.example/operator/omar"
	oda  = "spiffe://kms.example/operator/oda"
)

func recoveryKey(name string) RecoveryKey {
	return RecoveryKey{Name: name, Kind: "SHARES", SPKI: []byte("key of " + name), Threshold: 2, Shares: 3}
}

// tokenKey is a recovery key that is in a token.
func tokenKey(name string) RecoveryKey {
	return RecoveryKey{Name: name, Kind: "TOKEN", SPKI: []byte("key of " + name), OAEPHash: 1, Identity: []byte("identity of the token of " + name)}
}

func addingToken(name string) *ProposeRecipientChange {
	k := tokenKey(name)
	return &ProposeRecipientChange{Add: &k}
}

func keyHash(name string) []byte {
	sum := sha256.Sum256(recoveryKey(name).SPKI)
	return sum[:]
}

// recoverable is a first entry with recipients, who have copies.
func recoverable(names ...string) *InitCluster {
	return edited(initCluster(), func(c *InitCluster) {
		c.NoRecovery = false
		c.Recovery = &FirstRecovery{Required: 1, Approvals: 2, DrillDays: 90}
		for _, n := range names {
			c.Recovery.Recipients = append(c.Recovery.Recipients, FirstRecipient{recoveryKey(n), []byte("first copy for " + n)})
		}
	})
}

func adding(name string) *ProposeRecipientChange {
	k := recoveryKey(name)
	return &ProposeRecipientChange{Add: &k}
}

func copyFor(generation uint32, name string) *AddRecoveryCopy {
	return &AddRecoveryCopy{Generation: generation, Recipient: name, Key: keyHash(name), Node: firstNode, Message: []byte("copy for " + name)}
}

func drillOf(w *world, name string, generation uint32) *RecordDrill {
	return &RecordDrill{Recipient: name, Key: keyHash(name), Drill: Drill{
		At: w.s.Now() / second, Generation: generation, Index: 5, Backup: bytes.Repeat([]byte{7}, 32), Tokens: 9, Opened: 8,
	}}
}

func names(s *State) (out []string) {
	for _, r := range s.Recovery().Recipients {
		out = append(out, r.Name)
	}
	return out
}

// goldenRecipients adds recovery recipients to the end of a golden log.
func goldenRecipients(w *world) {
	node := "n9-4" // of the last restore
	active, _ := w.s.ActiveGeneration()
	was := w.proposer
	w.proposer = node
	defer func() { w.proposer = was }()
	w.as(olga, func() {
		w.ask("recipient", "safe", adding("safe"))
		w.refuse(adding("vault"), ErrExists, "")
		w.refuse(&ApproveRecipientChange{w.s.Index()}, ErrNotFound, "")
	})
	approve := func() {
		w.as(omar, func() { w.do(&ApproveRecipientChange{w.s.Recovery().Change.ID}) })
	}
	approve()
	w.refuse(&ProposeRecipientChange{}, ErrInvalid, "")
	w.as(olga, func() { w.do(adding("vault")) })
	approve()
	copied := func(name string) *AddRecoveryCopy {
		return edited(copyFor(active.Number, name), func(c *AddRecoveryCopy) { c.Node = node })
	}
	w.do(copied("safe"))
	w.do(copied("safe"))
	w.do(copied("vault"))
	w.refuse(copied("nobody"), ErrNotFound, "")
	w.refuse(copyFor(active.Number, "vault"), ErrMember, "")
	w.do(edited(copied("vault"), func(c *AddRecoveryCopy) { c.Generation, c.Message = 1, bytes.Repeat([]byte{0xfb}, MaxRecoveryCopy) }))
	w.do(drillOf(w, "vault", active.Number))
	w.refuse(drillOf(w, "vault", active.Number), ErrExists, "")
	w.as(olga, func() { w.do(&ProposeRecipientChange{Remove: "safe"}) })
	w.do(&CancelRecipientChange{w.s.Recovery().Change.ID})
	w.as(olga, func() { w.do(&ProposeRecipientChange{Remove: "safe"}) })
	approve()
	w.as(olga, func() { w.do(addingToken("token")) })
	approve()
	w.do(copied("token"))
	w.do(drillOf(w, "token", active.Number))
	w.refuse(&ProposeRecoverySettings{}, ErrInvalid, "")
	w.refuse(&ProposeRecoverySettings{RecoverySettings{Required: 3}}, ErrGeneration, "")
	w.as(olga, func() {
		w.ask("settings", "3", &ProposeRecoverySettings{RecoverySettings{Required: 1, Approvals: 3, DrillDays: 30}})
	})
	approve()
	w.as(olga, func() { w.do(&ProposeRecoverySettings{RecoverySettings{Approvals: 1}}) })
	approve()
	w.refuse(&CancelRecipientChange{1}, ErrNotFound, "")
	w.do(&CancelRecipientChange{w.s.Recovery().Change.ID})
	w.as(oda, func() { w.do(adding("later")) })
}

func TestFoundedWithRecipients(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("vault", "safe"))
	if got := names(w.s); !slices.Equal(got, []string{"safe", "vault"}) {
		t.Errorf("recipients %v", got)
	}
	g, _ := w.s.ActiveGeneration()
	if !slices.Equal(g.Recipients, []string{"safe", "vault"}) || g.NoRecovery {
		t.Errorf("generation %+v", g)
	}
	c, ok := w.s.RecoveryCopy(1, "vault")
	if !ok || string(c.Message) != "first copy for vault" || string(c.Identity) != "identity of n1" || c.Donor != firstNode {
		t.Errorf("copy %+v", c)
	}
	w.do(proposeGenerationWith(2))
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "0 recovery recipients hold generation 2, 1 must")
	w.do(copyFor(2, "safe"))
	w.do(&ActivateGeneration{2})
	if got := w.s.RecoveryAlarms(w.s.Now() / second); len(got) != 1 || !strings.Contains(got[0], "generation 2 of the domain key is not wrapped for vault") {
		t.Errorf("alarms %q", got)
	}
	w.do(copyFor(2, "vault"))
	w.do(copyFor(2, "vault"))
	w.do(&RetireGeneration{1})
	if n := len(w.s.RecoveryCopies()); n != 2 {
		t.Errorf("%d copies after the retirement of one generation", n)
	}
	w.refuse(copyFor(1, "vault"), ErrGeneration, "retired")
}

func proposeGenerationWith(number uint32) *ProposeGeneration {
	return edited(proposeGeneration(number), func(c *ProposeGeneration) { c.NoRecovery = false })
}

func TestFoundingNeedsRecovery(t *testing.T) {
	for _, row := range []struct {
		what string
		edit func(c *InitCluster)
		text string
	}{
		{"neither", func(c *InitCluster) { c.Recovery = nil }, "with recovery recipients, or without any by name"},
		{"both", func(c *InitCluster) { c.NoRecovery = true }, "with recovery recipients, or without any by name"},
		{"no recipient", func(c *InitCluster) { c.Recovery.Recipients = nil }, "with recovery recipients"},
		{"release 1", func(c *InitCluster) { c.Release = 0 }, "release 1 knows no recovery"},
		{"more than there are", func(c *InitCluster) { c.Recovery.Required = 3 }, "3 recovery recipients are to hold"},
		{"none required", func(c *InitCluster) { c.Recovery.Required = 0 }, "0 recovery recipients are to hold"},
		{"no approval", func(c *InitCluster) { c.Recovery.Approvals = 0 }, "0 operators"},
		{"no drills", func(c *InitCluster) { c.Recovery.DrillDays = 0 }, "each 0 days"},
		{"no copy", func(c *InitCluster) { c.Recovery.Recipients[1].Message = nil }, "recovery copy has 0 bytes"},
		{"a long copy", func(c *InitCluster) { c.Recovery.Recipients[1].Message = make([]byte, MaxRecoveryCopy+1) }, "recovery copy has"},
		{"one name twice", func(c *InitCluster) { c.Recovery.Recipients[1].Name = "safe" }, "given twice"},
		{"one key twice", func(c *InitCluster) { c.Recovery.Recipients[1].SPKI = c.Recovery.Recipients[0].SPKI }, "or its key is"},
		{"a bad name", func(c *InitCluster) { c.Recovery.Recipients[1].Name = "A" }, "no name"},
		{"an unknown kind", func(c *InitCluster) { c.Recovery.Recipients[1].Kind = "PASSPHRASE" }, "this release knows SHARES and TOKEN"},
		{"a token's with shares", func(c *InitCluster) { c.Recovery.Recipients[1].Kind = "TOKEN" }, "2 of 3 shares"},
		{"a token's without hash", func(c *InitCluster) {
			c.Recovery.Recipients[1].RecoveryKey = tokenKey("vault")
			c.Recovery.Recipients[1].OAEPHash = 0
		}, "oaep hash 0"},
		{"a token's without identity", func(c *InitCluster) {
			c.Recovery.Recipients[1].RecoveryKey = tokenKey("vault")
			c.Recovery.Recipients[1].Identity = nil
		}, "node identity key of 0 bytes"},
		{"shares with an identity", func(c *InitCluster) { c.Recovery.Recipients[1].Identity = []byte("x") }, "a token's identity"},
		{"no kind", func(c *InitCluster) { c.Recovery.Recipients[1].Kind = "" }, "kind"},
		{"no key", func(c *InitCluster) { c.Recovery.Recipients[1].SPKI = nil }, "public key"},
		{"no shares", func(c *InitCluster) { c.Recovery.Recipients[1].Shares = 0 }, "2 of 0 shares"},
		{"many", func(c *InitCluster) {
			for n := range MaxRecipients {
				c.Recovery.Recipients = append(c.Recovery.Recipients, FirstRecipient{recoveryKey(fmt.Sprint("n", n)), []byte("m")})
			}
		}, "at most 8"},
	} {
		newWorld(t).refuse(edited(recoverable("safe", "vault"), row.edit), ErrInvalid, row.text)
	}
	newWorld(t).do(edited(recoverable(), func(c *InitCluster) { c.NoRecovery = true }))
}

// TestRecipientInToken: a recovery key may be in a token, but in none of a node's.
func TestRecipientInToken(t *testing.T) {
	own := func(k *RecoveryKey) { k.Identity = []byte("identity of n1") }
	newWorld(t).refuse(edited(recoverable("vault"), func(c *InitCluster) {
		c.Recovery.Recipients[0].RecoveryKey = tokenKey("vault")
		own(&c.Recovery.Recipients[0].RecoveryKey)
	}), ErrIdentity, "in the HSM partition of node "+firstNode)
	w := newWorld(t)
	w.do(edited(recoverable("safe", "vault"), func(c *InitCluster) {
		c.Recovery.Approvals = 1
		c.Recovery.Recipients[1].RecoveryKey = tokenKey("vault")
	}))
	w.refuse(edited(addingToken("own"), func(c *ProposeRecipientChange) { own(c.Add) }), ErrIdentity, "must be in another token")
	twice := func(k *RecoveryKey) { k.Identity = tokenKey("vault").Identity }
	w.refuse(edited(addingToken("again"), func(c *ProposeRecipientChange) { twice(c.Add) }), ErrExists, "in the same token")
	newWorld(t).refuse(edited(recoverable("safe", "vault"), func(c *InitCluster) {
		for i := range c.Recovery.Recipients {
			c.Recovery.Recipients[i].RecoveryKey = tokenKey(c.Recovery.Recipients[i].Name)
			twice(&c.Recovery.Recipients[i].RecoveryKey)
		}
	}), ErrInvalid, "in the same token")
	w.do(ticketFor("n2"))
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.Identity = tokenKey("vault").Identity }), ErrIdentity, "must be in another token")
	w.do(addingToken("other"))
	w.do(copyFor(1, "other"))
	w.do(drillOf(w, "vault", 1))
	r := w.s.Recovery()
	if !slices.Equal(names(w.s), []string{"other", "safe", "vault"}) || r.Recipients[2].Kind != KindToken || r.Recipients[2].Drill == nil {
		t.Errorf("recipients %+v", r.Recipients)
	}
	if got := w.s.RecoveryAlarms(w.s.Now() / second); got != nil {
		t.Errorf("alarms %q", got)
	}
	w.do(&ProposeRecipientChange{Remove: "vault"})
	if err := w.s.Check(); err != nil {
		t.Error(err)
	}
}

func TestChangesNeedApprovals(t *testing.T) {
	w := newWorld(t)
	w.do(edited(recoverable("safe"), func(c *InitCluster) { c.Recovery.Approvals = 3 }))
	w.caller = olga
	id := w.do(adding("vault")).Index
	w.refuse(&ApproveRecipientChange{id}, ErrExists, "has approved change")
	w.refuse(&ApproveRecipientChange{id + 1}, ErrNotFound, "no change")
	w.as(omar, func() { w.do(&ApproveRecipientChange{id}) })
	w.do(&DisablePrincipal{omar, ""}) // who is disabled approves nothing
	w.as(oda, func() { w.do(&ApproveRecipientChange{id}) })
	if got := names(w.s); len(got) != 1 {
		t.Errorf("with two approvals that count: %v", got)
	}
	w.as("spiffe://kms.example/operator/ole", func() { w.do(&ApproveRecipientChange{id}) })
	if got := names(w.s); !slices.Equal(got, []string{"safe", "vault"}) || w.s.Recovery().Change != nil {
		t.Errorf("recipients %v, change %+v", got, w.s.Recovery().Change)
	}
	w.refuse(&ApproveRecipientChange{id}, ErrNotFound, "")

	w.refuse(adding("vault"), ErrExists, "")
	w.refuse(edited(adding("other"), func(c *ProposeRecipientChange) { c.Add.SPKI = recoveryKey("safe").SPKI }), ErrExists, "")
	w.refuse(&ProposeRecipientChange{Remove: "nobody"}, ErrNotFound, "")
	w.refuse(&ProposeRecipientChange{Add: &RecoveryKey{Name: "x"}}, ErrInvalid, "kind")
	w.refuse(edited(adding("a"), func(c *ProposeRecipientChange) { c.Remove = "safe" }), ErrInvalid, "adds one recovery recipient, or removes one")

	w.do(copyFor(1, "vault"))
	id = w.do(&ProposeRecipientChange{Remove: "safe"}).Index
	w.clock += ChangeSeconds * second
	w.do(&Tick{Hash: make([]byte, 32)})
	w.as(oda, func() { w.refuse(&ApproveRecipientChange{id}, ErrNotFound, "expired") })
	w.refuse(&CancelRecipientChange{id}, ErrNotFound, "expired")
	id = w.do(&ProposeRecipientChange{Remove: "safe"}).Index
	w.do(&CancelRecipientChange{id})
	w.as(oda, func() { w.refuse(&ApproveRecipientChange{id}, ErrNotFound, "cancelled") })
}

func TestRemovedRecipient(t *testing.T) {
	w := newWorld(t)
	w.do(edited(recoverable("safe", "vault"), func(c *InitCluster) { c.Recovery.Approvals = 1 }))
	w.do(&ProposeRecipientChange{Remove: "vault"})
	if _, there := w.s.RecoveryCopy(1, "vault"); there || !slices.Equal(names(w.s), []string{"safe"}) {
		t.Errorf("recipients %v, and the removed one has a copy: %v", names(w.s), there)
	}
	w.refuse(&ProposeRecipientChange{Remove: "safe"}, ErrGeneration, "add another first")
	w.do(adding("vault"))
	w.refuse(&ProposeRecipientChange{Remove: "safe"}, ErrGeneration, "0 recovery recipients would hold generation 1, 1 must")
	w.do(copyFor(1, "vault"))
	id := w.do(&ProposeRecipientChange{Remove: "safe"}).Index
	if got := names(w.s); id == 0 || !slices.Equal(got, []string{"vault"}) {
		t.Errorf("recipients %v, where another holds the generation", got)
	}
	w.do(adding("safe"))
	for n := range MaxRecipients - 2 {
		w.do(adding(fmt.Sprint("n", n)))
	}
	w.refuse(adding("one-too-many"), ErrLimit, "")
}

// TestSettings: other settings are made by as many operators as approved changes before, and
// hold from then on.
func TestSettings(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe", "vault"))
	w.caller = olga
	set := func(required, approvals, days int) *ProposeRecoverySettings {
		return &ProposeRecoverySettings{RecoverySettings{required, approvals, days}}
	}
	want := func(what string, required, approvals, days int, waits bool) {
		t.Helper()
		if r := w.s.Recovery(); r.Required != required || r.Approvals != approvals || r.DrillDays != days || (r.Change != nil) != waits {
			t.Errorf("%s: %+v", what, r)
		}
	}
	for _, row := range []struct {
		c    *ProposeRecoverySettings
		want error
		text string
	}{
		{set(0, 0, 0), ErrInvalid, "no setting"},
		{set(-1, 0, 0), ErrInvalid, "-1 recovery recipients"},
		{set(MaxRecipients+1, 0, 0), ErrInvalid, "9 recovery recipients"},
		{set(0, -1, 0), ErrInvalid, "-1 operators"},
		{set(0, MaxApprovals+1, 0), ErrInvalid, "17 operators"},
		{set(0, 0, -1), ErrInvalid, "each -1 days"},
		{set(0, 0, MaxDrillDays+1), ErrInvalid, "each 3651 days"},
		{set(3, 0, 0), ErrGeneration, "3 recovery recipients would have to hold each generation, there are 2"},
		{set(1, 2, 90), ErrExists, "these already"},
		{set(0, 2, 0), ErrExists, "these already"},
	} {
		w.refuse(row.c, row.want, row.text)
	}
	id := w.do(set(2, 3, 0)).Index
	want("one approval", 1, 2, 90, true)
	if got := w.s.Recovery().Change; got.Settings == nil || *got.Settings != (RecoverySettings{2, 3, 0}) || got.ID != id {
		t.Errorf("what waits is %+v", got)
	}
	w.refuse(adding("third"), ErrExists, "approve it or cancel it first")
	w.refuse(&ApproveRecipientChange{id}, ErrExists, "has approved")
	w.as(omar, func() { w.do(&ApproveRecipientChange{id}) })
	want("two approvals", 2, 3, 90, false)
	w.refuse(&ProposeRecipientChange{Remove: "safe"}, ErrGeneration, "2 must hold")

	id = w.do(set(0, 1, 30)).Index // the old number approves that fewer do
	w.as(omar, func() { w.do(&ApproveRecipientChange{id}) })
	want("two of three approvals", 2, 3, 90, true)
	w.as(oda, func() { w.do(&ApproveRecipientChange{id}) })
	want("three approvals", 2, 1, 30, false)
	w.do(set(1, 0, 0))
	want("one is enough", 1, 1, 30, false)
	w.do(proposeGenerationWith(2))
	w.do(copyFor(2, "safe"))
	w.do(&ActivateGeneration{2})

	w = newWorld(t) // founded by the first release
	w.do(firstInit())
	w.do(&RaiseRelease{2, []string{firstNode}})
	w.refuse(set(1, 0, 30), ErrGeneration, "there are 0")
	w.as(olga, func() { id = w.do(adding("vault")).Index })
	w.as(omar, func() { w.do(&ApproveRecipientChange{id}) })
	if got := names(w.s); !slices.Equal(got, []string{"vault"}) {
		t.Errorf("recipients %v of a cluster of the first release", got)
	}
	w.as(olga, func() { id = w.do(set(0, 0, 30)).Index })
	w.as(omar, func() { w.do(&ApproveRecipientChange{id}) })
	want("of the first release", 1, 2, 30, false)
}

// TestSettingsAreLookedAtAgain: what was possible when it was proposed may not be later.
func TestSettingsAreLookedAtAgain(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe", "vault"))
	id := w.do(&ProposeRecoverySettings{RecoverySettings{Required: 2}}).Index
	w.edit(func(t *tx) {
		c := t.s.cluster
		r := t.without(&c, *c.Recovery, "vault")
		c.Recovery = &r
		t.putCluster(c)
	})
	w.as(oda, func() { w.refuse(&ApproveRecipientChange{id}, ErrGeneration, "there are 1") })
}

func TestNoRecipientsWhereNothingIsWrapped(t *testing.T) {
	w := newWorld(t)
	w.do(edited(initCluster(), func(c *InitCluster) { c.Profile = ProfileCloned }))
	w.refuse(adding("vault"), ErrGeneration, "vendor's backup")
}

// TestChangeEndsWithItsHistory: what waits for approvals in a lost history waits no more.
func TestChangeEndsWithItsHistory(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe"))
	id := w.do(adding("vault")).Index
	w.do(&RecoverCluster{Epoch: 1, ID: keyID(77), Node: firstNode})
	if w.s.Recovery().Change != nil || !slices.Equal(names(w.s), []string{"safe"}) {
		t.Errorf("after a recovery waits %+v, recipients %v", w.s.Recovery().Change, names(w.s))
	}
	w.as(oda, func() { w.refuse(&ApproveRecipientChange{id}, ErrNotFound, "") })
}

func TestCopiesAreRefused(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe"))
	for _, row := range []struct {
		edit func(c *AddRecoveryCopy)
		want error
		text string
	}{
		{func(c *AddRecoveryCopy) { c.Message = nil }, ErrInvalid, "0 bytes"},
		{func(c *AddRecoveryCopy) { c.Message = make([]byte, MaxRecoveryCopy+1) }, ErrInvalid, "bytes"},
		{func(c *AddRecoveryCopy) { c.Node = "" }, ErrInvalid, "raft id"},
		{func(c *AddRecoveryCopy) { c.Node = "n9" }, ErrMember, "no active member"},
		{func(c *AddRecoveryCopy) { c.Recipient = "vault" }, ErrNotFound, "vault"},
		{func(c *AddRecoveryCopy) { c.Key = keyHash("vault") }, ErrConflict, "another key"},
		{func(c *AddRecoveryCopy) { c.Generation = 7 }, ErrNotFound, "generation 7"},
	} {
		w.refuse(edited(copyFor(1, "safe"), row.edit), row.want, row.text)
	}
	w.do(adding("vault"))
	w.as(oda, func() { w.do(&ApproveRecipientChange{w.s.Recovery().Change.ID}) })
	w.join("n2", true, MemberActive)
	w.proposer = nodeID("n2")
	w.refuse(copyFor(1, "vault"), ErrMember, "cannot bring a recovery copy that "+firstNode+" has made")
	w.proposer = firstNode
	w.do(copyFor(1, "vault"))
}

func TestDrills(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe"))
	for _, row := range []struct {
		edit func(c *RecordDrill)
		want error
		text string
	}{
		{func(c *RecordDrill) { c.Drill.Backup = nil }, ErrInvalid, "hash of 0 bytes"},
		{func(c *RecordDrill) { c.Drill.At = 0 }, ErrInvalid, "at 0"},
		{func(c *RecordDrill) { c.Drill.Opened = 10 }, ErrInvalid, "10 of 9"},
		{func(c *RecordDrill) { c.Drill.Generation = 9 }, ErrNotFound, "generation 9"},
		{func(c *RecordDrill) { c.Recipient = "vault" }, ErrNotFound, "vault"},
		{func(c *RecordDrill) { c.Key = keyHash("vault") }, ErrConflict, "another key"},
	} {
		w.refuse(edited(drillOf(w, "safe", 1), row.edit), row.want, row.text)
	}
	w.refuseLate(edited(drillOf(w, "safe", 1), func(c *RecordDrill) { c.Drill.At += drillSkew + 1 }), ErrInvalid, "in the future")
	now := w.s.Now() / second
	days := func(n int64) int64 { return now + n*secondsPerDay }
	alarm := func(at int64, text string) {
		t.Helper()
		got := w.s.RecoveryAlarms(at)
		if text == "" && len(got) > 0 || text != "" && (len(got) != 1 || !strings.Contains(got[0], text)) {
			t.Errorf("alarms %q, want %q", got, text)
		}
	}
	alarm(days(90), "")
	alarm(days(91), "nobody has tried to recover with safe")
	w.do(drillOf(w, "safe", 1))
	alarm(days(90), "")
	alarm(days(91), "tried 91 days ago")
	w.clock += 50 * secondsPerDay * second
	w.do(proposeGeneration(2))
	w.do(&ActivateGeneration{2})
	w.do(copyFor(2, "safe"))
	w.clock += 10 * secondsPerDay * second
	w.do(&Tick{Hash: make([]byte, 32)})
	w.do(drillOf(w, "safe", 1)) // of an older backup
	alarm(days(140), "")
	alarm(days(141), "no recovery with safe was tried since generation 2")
	w = initialized(t)
	alarm(0, "no recovery recipient")
	if got := NewState().RecoveryAlarms(0); got != nil {
		t.Errorf("before the founding: %q", got)
	}
}

func TestCheckRecoveryFindsFaults(t *testing.T) {
	for _, row := range []struct {
		text string
		edit func(t *tx, c *Cluster, r *Recovery)
	}{
		{"follows", func(_ *tx, _ *Cluster, r *Recovery) { slices.Reverse(r.Recipients) }},
		{"kind", func(_ *tx, _ *Cluster, r *Recovery) { r.Recipients[0].Kind = "" }},
		{"2 recovery copies, 1 are named", func(_ *tx, c *Cluster, _ *Recovery) { c.Generations[0].Recipients = []string{"safe"} }},
		{"has no copy", func(t *tx, _ *Cluster, _ *Recovery) { x, _ := t.s.RecoveryCopy(1, "safe"); t.dropCopy(x) }},
		{"which is none", func(_ *tx, _ *Cluster, r *Recovery) { r.Recipients = r.Recipients[1:] }},
	} {
		w := newWorld(t)
		w.do(recoverable("safe", "vault"))
		w.edit(func(t *tx) {
			c := t.s.cluster
			r := *c.Recovery
			r.Recipients, c.Generations, c.Recovery = slices.Clone(r.Recipients), slices.Clone(c.Generations), &r
			row.edit(t, &c, &r)
			t.putCluster(c)
		})
		if err := w.s.Check(); err == nil || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%v, want %q", err, row.text)
		}
	}
}

func TestPeekRecovery(t *testing.T) {
	w := newWorld(t)
	w.do(recoverable("safe"))
	w.do(createKey(1))
	snapshot := snapshotOf(t, w.s)
	s, err := PeekRecovery(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := s.RecoveryCopy(1, "safe")
	if !ok || string(c.Message) != "first copy for safe" || s.Cluster().ID != w.s.Cluster().ID || s.KeyCount() != 0 {
		t.Errorf("peeked copy %+v of %+v, %d keys", c, s.Cluster(), s.KeyCount())
	}
	if _, err := PeekRecovery(bytes.NewReader(snapshot[:len(snapshot)-1])); err == nil {
		t.Error("a snapshot that is cut off was read")
	}
	if _, err := ReadSnapshot(bytes.NewReader(snapshot), nil); err == nil {
		t.Error("a snapshot was read without a key")
	}
}
