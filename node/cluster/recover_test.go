package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
)

// survivors is a plan of five voters and a non-voter; n1 is self and ends with entry
// 100 of term 3, n2 with entry 90 of term 3, the others are dead.
func survivors() RecoveryPlan {
	var p RecoveryPlan
	for _, name := range []string{"n1", "n2", "n3", "n4", "n5", "n6"} {
		p.Members = append(p.Members, Survivor{
			Member: &fsm.Member{ID: name + ".00", Name: name, State: fsm.MemberActive, Voter: name != "n6"}, Votes: name != "n6",
		})
	}
	p.Members[0].Answers, p.Members[0].Found = true, Survey{LastTerm: 3, LastIndex: 100}
	p.Members[1].Answers, p.Members[1].Found = true, Survey{LastTerm: 3, LastIndex: 90}
	return p
}

func TestRecoveryRefusal(t *testing.T) {
	for name, x := range map[string]struct {
		change func(m []Survivor)
		want   string // empty: not refused
	}{
		"the most advanced of two":    {func([]Survivor) {}, ""},
		"alone":                       {func(m []Survivor) { m[1] = Survivor{Member: m[1].Member, Votes: true} }, ""},
		"equally advanced":            {func(m []Survivor) { m[1].Found.LastIndex = 100 }, ""},
		"a longer log, an older term": {func(m []Survivor) { m[1].Found = Survey{LastTerm: 2, LastIndex: 200} }, ""},
		"a longer log":                {func(m []Survivor) { m[1].Found.LastIndex = 101 }, "node n2 has more (entry 101 of term 3; this node ends with entry 100 of term 3): recover from n2"},
		"a later term":                {func(m []Survivor) { m[1].Found = Survey{LastTerm: 4, LastIndex: 1} }, "recover from n2"},
		"a non-voter with more":       {func(m []Survivor) { m[5].Answers, m[5].Found = true, Survey{LastTerm: 3, LastIndex: 101} }, "recover from n6"},
		"a leader here":               {func(m []Survivor) { m[0].Found.Leader = "n4.00" }, "node n1 knows a leader (n4.00)"},
		"a leader there":              {func(m []Survivor) { m[1].Found.Leader = "n4.00" }, "node n2 knows a leader"},
		"a majority":                  {func(m []Survivor) { m[2].Answers, m[2].Found = true, Survey{LastTerm: 1} }, "3 of 5 voters answer"},
		"self leaves":                 {func(m []Survivor) { m[0].State = fsm.MemberLeaving }, "no active member"},
		"self is no member":           {func(m []Survivor) { m[0].ID = "n1.01" }, "no active member"},
		"self has no vote":            {func(m []Survivor) { m[0].Votes, m[0].Voter = false, false }, ""},
	} {
		p := survivors()
		x.change(p.Members)
		err := p.refusal("n1.00")
		if x.want == "" && err != nil || x.want != "" && (!errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	p := survivors()
	if dead, rejoin := strings.Join(p.Dead(), " "), strings.Join(p.Rejoin("n1.00"), " "); dead != "n3 n4 n5 n6" || rejoin != "n2" {
		t.Errorf("dead %s, rejoin %s", dead, rejoin)
	}
}

// TestProofOfHistory: nodes of two histories have no proof in common.
func TestProofOfHistory(t *testing.T) {
	channel := make([]byte, 32)
	seen := map[string]bool{}
	for _, h := range []fsm.History{{}, {Epoch: 1, ID: fsm.ID{1}}, {Epoch: 1, ID: fsm.ID{2}}, {Epoch: 2, ID: fsm.ID{1}}} {
		e := &engine{logKey: make([]byte, 32), history: h}
		for _, role := range []string{"dialer", "acceptor"} {
			proof := string(e.proof(role, channel))
			if seen[proof] {
				t.Errorf("history %+v shares a proof with another", h)
			}
			seen[proof] = true
		}
	}
	if got := fsm.LogKey(make([]byte, 32)).Prove("quorumkms/raft/v1/dialer", channel); !seen[string(got)] {
		t.Error("the founding history's proof is not that of the first release")
	}
}

func TestNameOf(t *testing.T) {
	for id, want := range map[string]string{"kms-1.0011223344556677": "kms-1", "a.b.0011": "a.b", "none": "", "": ""} {
		if got := nameOf(id); got != want {
			t.Errorf("%q: name %q, want %q", id, got, want)
		}
	}
}
