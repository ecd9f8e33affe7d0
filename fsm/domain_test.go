package fsm

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func proposeGeneration(number uint32) *ProposeGeneration {
	c := &ProposeGeneration{Number: number, Node: firstNode, NoRecovery: true}
	for _, k := range initCluster().Checks {
		c.Checks = append(c.Checks, DomainCheck{Kind: k.Kind, Value: bytes.Repeat([]byte{byte(number)}, 16)})
	}
	return c
}

// goldenGenerations adds domain key generations to the end of a golden log.
func goldenGenerations(w *world) {
	node := "n9-4" // of the last restore
	nth := func(n uint32) uint32 { return w.s.Cluster().RecoveryEpoch<<generationBits + n }
	propose := func(number uint32) *ProposeGeneration {
		return edited(proposeGeneration(number), func(c *ProposeGeneration) { c.Node = node })
	}
	w.join("n11", true, MemberActive)
	w.join("n12", false, MemberGone)
	w.refuse(proposeGeneration(nth(2)), ErrMember, "")
	w.refuse(propose(1), ErrInvalid, "")
	w.ask("rotate domain", fmt.Sprint(nth(2)), propose(nth(2)))
	w.ask("rotate domain", fmt.Sprint(nth(2)), propose(nth(3)))
	w.refuse(propose(nth(3)), ErrGeneration, "")
	w.refuse(&InstallGeneration{nth(2), nodeID("n12")}, ErrMember, "")
	w.refuse(&InstallGeneration{nth(3), node}, ErrNotFound, "")
	w.do(&InstallGeneration{nth(2), node})
	w.refuse(&ActivateGeneration{nth(2)}, ErrGeneration, "n11")
	w.do(&RetireGeneration{nth(2)})
	w.do(&RetireGeneration{nth(2)})
	w.refuse(&InstallGeneration{nth(2), node}, ErrGeneration, "")
	w.do(edited(propose(nth(3)), func(c *ProposeGeneration) { c.NoRecovery = false }))
	w.do(&InstallGeneration{nth(3), nodeID("n11")})
	w.refuse(&ActivateGeneration{nth(3)}, ErrGeneration, "recovery recipients")
	w.do(&RetireGeneration{nth(3)})
	w.refuse(propose(nth(3)), ErrConflict, "")
	w.do(propose(nth(4)))
	w.do(&InstallGeneration{nth(4), nodeID("n11")})
	w.do(&ActivateGeneration{nth(4)})
	w.do(&ActivateGeneration{nth(4)})
	w.do(&InstallGeneration{1, node})
	w.refuse(&RetireGeneration{1}, ErrGeneration, "")
	w.refuse(&RetireGeneration{nth(4)}, ErrGeneration, "")
	w.refuse(&ActivateGeneration{1}, ErrGeneration, "")
	w.refuse(createKey(50), ErrConflict, "")
	w.do(edited(createKey(50), func(c *CreateKey) { c.Generation = nth(4) }))
	w.refuse(&BeginRewrap{nth(4), node}, ErrGeneration, "")
	w.do(&BeginRewrap{1, node})
	w.do(&BeginRewrap{1, node})
	w.refuse(&BeginRewrap{1, nodeID("n11")}, ErrGeneration, "")
	w.refuse(&RetireGeneration{1}, ErrGeneration, "")
	w.do(&RewrapKeyVersions{nth(4), []RewrapItem{rewrapped(w, 1, 1), {keyID(1), 2, make([]byte, 32), []byte("stale")}, rewrapped(w, 2, 1)}})
	w.refuse(&RewrapKeyVersions{1, []RewrapItem{rewrapped(w, 5, 1)}}, ErrConflict, "")
	w.do(&EndRewrap{1})
	w.refuse(&EndRewrap{1}, ErrNotFound, "")
}

// generations are the states of all generations, in order.
func generations(s *State) (states []GenerationState) {
	for _, g := range s.Cluster().Generations {
		states = append(states, g.State)
	}
	return states
}

// TestGenerationLife: from proposed to retired, and what each state means for new keys.
func TestGenerationLife(t *testing.T) {
	w := initialized(t)
	w.join("n2", true, MemberActive)
	w.join("n3", false, MemberActive) // no vote, but it may serve
	w.join("n4", true, MemberAdmitted)
	w.do(createKey(1))
	want := func(what string, states ...GenerationState) {
		t.Helper()
		if got := generations(w.s); !slices.Equal(got, states) {
			t.Fatalf("%s: %v, want %v", what, got, states)
		}
	}
	w.do(proposeGeneration(2))
	want("proposed", GenerationActive, GenerationProposed)
	w.do(createKey(2)) // under the old one still
	w.refuse(edited(createKey(3), func(c *CreateKey) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2")
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "have not installed generation 2: n2, n3")
	w.do(&InstallGeneration{2, nodeID("n3")})
	w.do(&InstallGeneration{2, nodeID("n3")})
	w.refuse(&InstallGeneration{2, nodeID("n4")}, ErrMember, "no active member")
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "generation 2: n2")
	w.do(&RemoveNode{nodeID("n2")}) // it may hold a lease until it is gone
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "generation 2: n2")
	w.do(&RetireNode{nodeID("n2")})
	w.do(&ActivateGeneration{2})
	want("active", GenerationDecryptOnly, GenerationActive)
	w.refuse(createKey(3), ErrConflict, "generation 2 is active, not 1")
	w.do(edited(createKey(3), func(c *CreateKey) { c.Generation = 2 }))
	w.refuse(rotateKey(1, 2), ErrConflict, "")
	w.do(edited(rotateKey(1, 2), func(c *RotateKey) { c.Generation = 2 }))
	if got, want := w.s.CountTokens(), map[uint32]int{1: 2, 2: 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("tokens %v, want %v", got, want)
	}
	w.refuse(&RetireGeneration{1}, ErrGeneration, "generation 1 wraps 2 key versions")
	for n := uint64(1); n <= 2; n++ {
		w.do(&ScheduleKeyDeletion{ref(n), 7})
		w.do(&DeleteKey{ref(n), w.key(n).Deletion})
	}
	w.do(&RetireGeneration{1})
	want("retired", GenerationRetired, GenerationActive)
	if g, _ := w.s.Generation(1); g.Checks != nil || !g.Retired() {
		t.Errorf("left of a retired generation: %+v", g)
	}
	w.refuse(&RetireGeneration{9}, ErrNotFound, "")
}

// TestGenerationNeedsRecovery: without a recovery copy it becomes active only by name.
func TestGenerationNeedsRecovery(t *testing.T) {
	w := newWorld(t)
	w.do(edited(recoverable("safe", "vault"), func(c *InitCluster) { c.Recovery.Required = 2 }))
	w.do(edited(proposeGeneration(2), func(c *ProposeGeneration) { c.NoRecovery = false }))
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "0 recovery recipients hold generation 2, 2 must")
	w.do(copyFor(2, "safe"))
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "1 recovery recipients hold generation 2, 2 must")
	w.do(copyFor(2, "vault"))
	w.do(&ActivateGeneration{2})
}

func TestGenerationsAreRefused(t *testing.T) {
	w := initialized(t)
	for _, row := range []struct {
		edit func(c *ProposeGeneration)
		want error
		text string
	}{
		{func(c *ProposeGeneration) { c.Number = 1 }, ErrInvalid, "must be 2 or more"},
		{func(c *ProposeGeneration) { c.Node = nodeID("n2") }, ErrMember, "no active member"},
		{func(c *ProposeGeneration) { c.Checks = nil }, ErrInvalid, "no check values"},
		{func(c *ProposeGeneration) { c.Checks[1].Value = []byte{1} }, ErrInvalid, "has 1 bytes"},
		{func(c *ProposeGeneration) { c.Node = "" }, ErrInvalid, "raft id"},
		{func(c *ProposeGeneration) { c.Node = "n9" }, ErrMember, "no active member"},
	} {
		w.refuse(edited(proposeGeneration(2), row.edit), row.want, row.text)
	}
	w.refuseLate(edited(proposeGeneration(2), func(c *ProposeGeneration) { c.Checks = c.Checks[1:] }), ErrInvalid, "lacks kinds of keys")
	for name, edit := range map[string]func(c *ProposeGeneration){
		"another kind": func(c *ProposeGeneration) { c.Checks[1].Kind = 9 },
		"a kind twice": func(c *ProposeGeneration) { c.Checks = append(c.Checks, c.Checks[1]) },
		"a new twice":  func(c *ProposeGeneration) { c.Checks = append(residentChecks(2), residentChecks(2)[2]) },
		"out of order": func(c *ProposeGeneration) { slices.Reverse(c.Checks) },
	} {
		t.Log(name)
		w.refuseLate(edited(proposeGeneration(2), edit), ErrInvalid, "lacks kinds of keys")
	}
	for n := uint32(2); n <= MaxGenerationsInUse; n++ {
		w.do(proposeGeneration(n))
		w.do(&ActivateGeneration{n})
	}
	w.refuse(proposeGeneration(MaxGenerationsInUse+1), ErrLimit, "retire some")
	w.do(&RetireGeneration{3})
	w.do(proposeGeneration(MaxGenerationsInUse + 1))
	for n := uint32(MaxGenerationsInUse + 1); n < MaxGenerations; n++ {
		w.do(&RetireGeneration{n})
		w.do(proposeGeneration(n + 1))
	}
	w.do(&RetireGeneration{MaxGenerations})
	w.refuse(proposeGeneration(MaxGenerations+1), ErrLimit, "has had 1000")
}

// TestExposedGeneration: the partition of a removed node is a reason for another
// generation, until there is one that was made after it was gone.
func TestExposedGeneration(t *testing.T) {
	w := initialized(t)
	want := func(what string, names ...string) {
		t.Helper()
		if got := w.s.Exposed(); !slices.Equal(got, names) {
			t.Errorf("%s: %v, want %v", what, got, names)
		}
	}
	w.join("n2", true, MemberActive)
	want("nobody was removed")
	w.do(&RemoveNode{nodeID("n2")})
	want("on its way out", "n2")
	w.do(&RetireNode{nodeID("n2")})
	want("removed", "n2")
	w.do(proposeGeneration(2))
	want("made afterwards")
	w.join("n3", true, MemberGone)
	want("another, while it is proposed", "n3")
	w.do(&RetireGeneration{2})
	want("given up", "n2", "n3")
	w.do(proposeGeneration(3))
	w.do(&ActivateGeneration{3})
	want("made after both")
}

// TestGenerationsAfterRecovery: a proposal whose holders are all out is given up, and who
// is out is a reason for another.
func TestGenerationsAfterRecovery(t *testing.T) {
	w := initialized(t)
	w.join("n2", true, MemberActive)
	w.do(edited(proposeGeneration(2), func(c *ProposeGeneration) { c.Node = nodeID("n2") }))
	w.do(recoverCluster(1))
	w.do(&RetireNode{nodeID("n2")})
	w.refuse(&ActivateGeneration{2}, ErrGeneration, "generation 2: n1")
	w.refuse(proposeGeneration(3), ErrGeneration, "generation 2 is proposed already")
	w.do(&RetireGeneration{2})
	if got := w.s.Exposed(); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("exposed to %v, want n2", got)
	}
	w.refuse(proposeGeneration(3), ErrConflict, "the next at least 1025") // a lost history may have had it
	w.do(proposeGeneration(w.s.NextGeneration()))
	w.do(&ActivateGeneration{1025})
	if got := w.s.Exposed(); len(got) != 0 {
		t.Errorf("exposed to %v after the rotation", got)
	}
}

// TestGenerationFaultsAreFound: every invariant of generations, broken behind the
// commands' back.
func TestGenerationFaultsAreFound(t *testing.T) {
	for text, edit := range map[string]func(all []Generation) []Generation{
		"0 domain key generations are active":       func(all []Generation) []Generation { all[1].State = GenerationDecryptOnly; return all },
		"2 domain key generations are active":       func(all []Generation) []Generation { all[0].State = GenerationActive; return all },
		"generation 1 follows 2":                    func(all []Generation) []Generation { slices.Reverse(all); return all },
		"generation 2 follows 1, which is PROPOSED": func(all []Generation) []Generation { all[0].State = GenerationProposed; return all },
		`unknown state "LATER"`:                     func(all []Generation) []Generation { all[0].State = "LATER"; return all },
		"which was never a member":                  func(all []Generation) []Generation { all[1].Installed = []string{"n9"}; return all },
		"installed on":                              func(all []Generation) []Generation { all[1].Installed = []string{firstNode, firstNode}; return all },
		"retired, with 2 check values":              func(all []Generation) []Generation { all[0].State = GenerationRetired; return all },
		"no check values":                           func(all []Generation) []Generation { all[1].Checks = nil; return all },
		`under generation 1, which is "RETIRED"`:    func(all []Generation) []Generation { all[0].State, all[0].Checks = GenerationRetired, nil; return all },
		`under generation 1, which is ""`:           func(all []Generation) []Generation { return all[1:] },
	} {
		w := initialized(t)
		w.do(createKey(1))
		w.do(proposeGeneration(2))
		w.do(&ActivateGeneration{2})
		s, err := w.s.After(&CreateAlias{alias("alias/x", 1)})
		if err != nil {
			t.Fatal(err)
		}
		s.cluster.Generations = edit(slices.Clone(s.cluster.Generations))
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}
