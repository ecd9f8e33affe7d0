package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func ticketFor(name string) *CreateTicket {
	return &CreateTicket{ID: "ticket-" + name, PublicKey: bytes.Repeat([]byte{0xed}, 32), Name: name, Seconds: 3600}
}

func admit(name string) *AdmitNode {
	return &AdmitNode{
		ID: name + "-00000001", Name: name, PeerAddress: name + ":7000", ClientAddress: name + ":7001",
		Identity: []byte("identity of " + name), Ticket: "ticket-" + name, TicketKey: ticketFor(name).PublicKey,
	}
}

func nodeID(name string) string { return name + "-00000001" }

// join takes a node, as a voter or not, to a state of a member.
func (w *world) join(name string, voter bool, to MemberState) {
	w.t.Helper()
	w.do(edited(ticketFor(name), func(c *CreateTicket) { c.Voter = voter }))
	w.do(admit(name))
	steps := []struct {
		state   MemberState
		command Command
	}{
		{MemberActive, &ActivateNode{nodeID(name)}},
		{MemberLeaving, &RemoveNode{nodeID(name)}},
		{MemberGone, &RetireNode{nodeID(name)}},
	}
	for _, step := range steps {
		if m, _ := w.s.Member(nodeID(name)); m.State == to {
			return
		}
		w.do(step.command)
	}
}

func invited(t failer) *world {
	w := initialized(t)
	w.do(ticketFor("n2"))
	return w
}

func TestJoinAndLeave(t *testing.T) {
	w := initialized(t)
	ticket := Ticket{ID: "ticket-n2", PublicKey: bytes.Repeat([]byte{0xed}, 32), Name: "n2", Expires: startTime/second + 3600, Voter: true, Revision: 2}
	if got := w.do(edited(ticketFor("n2"), func(c *CreateTicket) { c.Voter = true })); got != (Result{Index: 2, ID: "ticket-n2"}) {
		t.Errorf("result %+v", got)
	}
	if got := w.s.Tickets(); len(got) != 1 || !reflect.DeepEqual(*got[0], ticket) {
		t.Fatalf("tickets %+v, want %+v", got, ticket)
	}

	want := Member{
		ID: nodeID("n2"), Name: "n2", PeerAddress: "n2:7000", ClientAddress: "n2:7001", Identity: []byte("identity of n2"),
		Ticket: "ticket-n2", TicketKey: ticket.PublicKey, State: "ADMITTED", Voter: true,
	}
	for i, step := range []struct {
		command Command
		state   MemberState
	}{
		{admit("n2"), "ADMITTED"},
		{&ActivateNode{nodeID("n2")}, "ACTIVE"},
		{&RemoveNode{nodeID("n2")}, "LEAVING"},
		{&RetireNode{nodeID("n2")}, "GONE"},
	} {
		w.clock += 10 * second
		if got := w.do(step.command); got != (Result{Index: w.s.Index(), ID: nodeID("n2")}) {
			t.Errorf("%+v: result %+v", step.command, got)
		}
		want.State, want.Since, want.Revision = step.state, startTime/second+10*int64(i+1), w.s.Index()
		if got, _ := w.s.Member(nodeID("n2")); !reflect.DeepEqual(*got, want) {
			t.Fatalf("member is\n%+v\nwant\n%+v", *got, want)
		}
	}
	if _, open := w.s.Ticket("ticket-n2"); open {
		t.Error("the ticket is still open")
	}
	if got := w.s.MemberByName("n2"); got != nil {
		t.Errorf("the tombstone is found by name: %+v", got)
	}
}

func TestTicketLimits(t *testing.T) {
	ticket := func(f func(*CreateTicket)) *CreateTicket { return edited(ticketFor("n2"), f) }
	testAccepted(t, initialized, []accepted{
		{"life of 1 s", ticket(func(c *CreateTicket) { c.Seconds = 1 })},
		{"id of 64 bytes", ticket(func(c *CreateTicket) { c.ID = strings.Repeat("t", 64) })},
		{"name of 64 bytes", ticket(func(c *CreateTicket) { c.Name = strings.Repeat("n", 64) })},
		{"a second ticket for a name", ticket(func(c *CreateTicket) { c.ID = "other" })},
	})
	testRefusals(t, invited, []refusal{
		{"life of 0 s", ticket(func(c *CreateTicket) { c.Seconds = 0 }), ErrInvalid, "life of 0 s: must be 1 to 3600"},
		{"life of -1 s", ticket(func(c *CreateTicket) { c.Seconds = -1 }), ErrInvalid, "life of -1 s"},
		{"life of 3601 s", ticket(func(c *CreateTicket) { c.Seconds = 3601 }), ErrInvalid, "life of 3601 s: must be 1 to 3600"},
		{"no id", ticket(func(c *CreateTicket) { c.ID = "" }), ErrInvalid, "ticket id"},
		{"id of 65 bytes", ticket(func(c *CreateTicket) { c.ID = strings.Repeat("t", 65) }), ErrInvalid, "ticket id"},
		{"key of 31 bytes", ticket(func(c *CreateTicket) { c.PublicKey = make([]byte, 31) }), ErrInvalid, "31 bytes, must be 32"},
		{"key of 33 bytes", ticket(func(c *CreateTicket) { c.PublicKey = make([]byte, 33) }), ErrInvalid, "33 bytes, must be 32"},
		{"bad name", ticket(func(c *CreateTicket) { c.Name = "N2" }), ErrInvalid, `node name "N2"`},
		{"id taken", ticketFor("n2"), ErrExists, "ticket-n2"},
		{"name of a member", ticketFor("n1"), ErrExists, firstNode},
	})
}

// TestOpenTickets: at most 64, where expired ones do not count and go.
func TestOpenTickets(t *testing.T) {
	w := initialized(t)
	for n := range 64 {
		w.do(edited(ticketFor(fmt.Sprintf("m%d", n)), func(c *CreateTicket) { c.Seconds = int64(100 + n) }))
	}
	w.refuse(ticketFor("n2"), ErrLimit, "64 join tickets are open")
	w.clock = startTime + 100*second - 1
	w.refuse(ticketFor("n2"), ErrLimit, "64 join tickets are open")
	w.clock++
	w.do(ticketFor("n2"))
	if _, open := w.s.Ticket("ticket-m0"); open || len(w.s.Tickets()) != 64 {
		t.Errorf("the expired ticket is open: %v, in all %d", open, len(w.s.Tickets()))
	}
	w.refuse(ticketFor("n3"), ErrLimit, "64 join tickets are open")
}

func TestTicketExpiry(t *testing.T) {
	for _, row := range []struct {
		after int64 // nanoseconds
		want  error
	}{
		{0, nil},
		{3600*second - 1, nil},
		{3600 * second, ErrTicket},
		{3600*second + 1, ErrTicket},
	} {
		w := invited(t)
		w.clock += row.after
		if row.want == nil {
			w.do(admit("n2"))
		} else {
			w.refuse(admit("n2"), row.want, "expired")
		}
	}
}

func TestAdmitLimits(t *testing.T) {
	node := func(f func(*AdmitNode)) *AdmitNode { return edited(admit("n2"), f) }
	testAccepted(t, invited, []accepted{
		{"raft id of 128 bytes", node(func(c *AdmitNode) { c.ID = strings.Repeat("i", 128) })},
		{"identity of 1024 bytes", node(func(c *AdmitNode) { c.Identity = make([]byte, 1024) })},
		{"addresses of 256 bytes", node(func(c *AdmitNode) {
			c.PeerAddress, c.ClientAddress = strings.Repeat("p", 256), strings.Repeat("c", 256)
		})},
		{"client address of another", node(func(c *AdmitNode) { c.ClientAddress = "n1:7001" })},
	})
	testRefusals(t, invited, []refusal{
		{"no raft id", node(func(c *AdmitNode) { c.ID = "" }), ErrInvalid, "raft id"},
		{"raft id of 129 bytes", node(func(c *AdmitNode) { c.ID = strings.Repeat("i", 129) }), ErrInvalid, "must have 1 to 128 bytes"},
		{"bad name", node(func(c *AdmitNode) { c.Name = "-n2" }), ErrInvalid, `node name "-n2"`},
		{"no identity", node(func(c *AdmitNode) { c.Identity = nil }), ErrInvalid, "identity key of 0 bytes"},
		{"identity of 1025 bytes", node(func(c *AdmitNode) { c.Identity = make([]byte, 1025) }), ErrInvalid, "identity key of 1025 bytes"},
		{"no peer address", node(func(c *AdmitNode) { c.PeerAddress = "" }), ErrInvalid, "must have 1 to 256 bytes"},
		{"peer address of 257 bytes", node(func(c *AdmitNode) { c.PeerAddress = strings.Repeat("p", 257) }), ErrInvalid, "must have 1 to 256 bytes"},
		{"no client address", node(func(c *AdmitNode) { c.ClientAddress = "" }), ErrInvalid, "must have 1 to 256 bytes"},
		{"client address of 257 bytes", node(func(c *AdmitNode) { c.ClientAddress = strings.Repeat("p", 257) }), ErrInvalid, "must have 1 to 256 bytes"},
		{"unknown ticket", node(func(c *AdmitNode) { c.Ticket = "ticket-n3" }), ErrTicket, "unknown or used"},
		{"no ticket", node(func(c *AdmitNode) { c.Ticket = "" }), ErrInvalid, "ticket is missing"},
		{"another ticket's key", node(func(c *AdmitNode) { c.TicketKey = make([]byte, 32) }), ErrTicket, "its key is another"},
		{"no ticket key", node(func(c *AdmitNode) { c.TicketKey = nil }), ErrInvalid, "its key has 0 bytes instead of 32"},
		{"ticket key of 31 bytes", node(func(c *AdmitNode) { c.TicketKey = c.TicketKey[:31] }), ErrInvalid, "its key has 31 bytes instead of 32"},
		{"ticket key of 33 bytes", node(func(c *AdmitNode) { c.TicketKey = append(c.TicketKey, 0) }), ErrInvalid, "its key has 33 bytes instead of 32"},
		{"ticket of another name", node(func(c *AdmitNode) { c.Name = "n3" }), ErrTicket, "made out to node n2, not n3"},
		{"peer address taken", node(func(c *AdmitNode) { c.PeerAddress = "n1:7000" }), ErrMember, "n1:7000 belongs to node " + firstNode},
		{"the first member", edited(admit("n1"), func(c *AdmitNode) { c.ID = firstNode }), ErrMember, "is a member already (ACTIVE)"},
		{"raft id of a member", node(func(c *AdmitNode) { c.ID = firstNode }), ErrMember, "is a member already (ACTIVE)"},
	})
}

func TestTicketIsUsedOnce(t *testing.T) {
	w := invited(t)
	w.do(admit("n2"))
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.ID = "n2-00000002" }), ErrTicket, "unknown or used")
}

// TestNameTaken: a second ticket for a name is worth nothing while its node lives.
func TestNameTaken(t *testing.T) {
	w := invited(t)
	w.do(edited(ticketFor("n2"), func(c *CreateTicket) { c.ID = "second" }))
	w.do(admit("n2"))
	again := edited(admit("n2"), func(c *AdmitNode) { c.ID, c.Ticket, c.PeerAddress = "n2-00000002", "second", "n2b:7000" })
	w.refuse(again, ErrMember, "a node named n2 is a member")
	w.do(&RemoveNode{nodeID("n2")})
	w.refuse(again, ErrMember, "a node named n2 is a member")
	w.do(&RetireNode{nodeID("n2")})
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.Ticket = "second" }), ErrMember, "was removed; it rejoins with an empty data directory")
	w.do(again)
}

// TestAdmitAgain: while it joins and while it serves, the node may repeat it, as
// itself only; nothing but its addresses changes.
func TestAdmitAgain(t *testing.T) {
	for _, state := range []MemberState{MemberAdmitted, MemberActive} {
		t.Run(string(state), func(t *testing.T) {
			w := initialized(t)
			w.join("n2", true, state)
			old, _ := w.s.Member(nodeID("n2"))
			want := *old
			wantMember := func() {
				t.Helper()
				want.Revision = w.s.Index()
				if got, _ := w.s.Member(nodeID("n2")); !reflect.DeepEqual(*got, want) {
					t.Errorf("member is\n%+v\nwant\n%+v", *got, want)
				}
			}
			w.clock += 7200 * second // its ticket would have expired
			if got := w.do(admit("n2")); got != (Result{Index: w.s.Index(), ID: nodeID("n2")}) {
				t.Errorf("result %+v", got)
			}
			wantMember()
			w.do(edited(admit("n2"), func(c *AdmitNode) { c.PeerAddress, c.ClientAddress = "n2b:7000", "n2b:7001" }))
			want.PeerAddress, want.ClientAddress = "n2b:7000", "n2b:7001"
			wantMember()
			w.do(ticketFor("n3"))
			again := fmt.Sprintf("is a member already (%s)", state)
			for _, row := range []struct {
				f    func(*AdmitNode)
				text string
			}{
				{func(c *AdmitNode) { c.Identity = []byte("identity of n3") }, again},
				{func(c *AdmitNode) { c.Ticket = "ticket-n3" }, again},
				{func(c *AdmitNode) { c.TicketKey = make([]byte, 32) }, again},
				{func(c *AdmitNode) { c.Name = "n3" }, again},
				{func(c *AdmitNode) { c.Name, c.Ticket = "n3", "ticket-n3" }, again},
				{func(c *AdmitNode) { c.PeerAddress = "n1:7000" }, "belongs to node " + firstNode},
			} {
				w.refuse(edited(admit("n2"), row.f), ErrMember, row.text)
			}
		})
	}
}

func TestMemberCount(t *testing.T) {
	w := initialized(t)
	for n := 2; n <= 32; n++ {
		w.join(fmt.Sprintf("n%d", n), false, MemberAdmitted)
	}
	w.do(ticketFor("n33"))
	w.refuse(admit("n33"), ErrLimit, "the cluster has 32 nodes")
	w.do(&RemoveNode{nodeID("n2")})
	w.refuse(admit("n33"), ErrLimit, "the cluster has 32 nodes")
	w.do(&RetireNode{nodeID("n2")})
	w.do(admit("n33"))
	if n := len(w.s.Members()); n != 33 {
		t.Errorf("%d members and tombstones, want 33", n)
	}
}

// TestMemberStates is the whole table of command and state of the member named.
func TestMemberStates(t *testing.T) {
	type answer struct {
		err   error
		after MemberState
	}
	const admitted, active, leaving, gone = MemberAdmitted, MemberActive, MemberLeaving, MemberGone
	update := &UpdateMember{ID: nodeID("n2"), PeerAddress: "new:7000", ClientAddress: "new:7001"}
	for _, row := range []struct {
		command Command
		want    map[MemberState]answer
	}{
		{admit("n2"), map[MemberState]answer{admitted: {nil, admitted}, active: {nil, active}, leaving: {ErrMember, leaving}, gone: {ErrMember, gone}}},
		{&ActivateNode{nodeID("n2")}, map[MemberState]answer{admitted: {nil, active}, active: {nil, active}, leaving: {ErrMember, leaving}, gone: {ErrMember, gone}}},
		{&RemoveNode{nodeID("n2")}, map[MemberState]answer{admitted: {nil, leaving}, active: {nil, leaving}, leaving: {nil, leaving}, gone: {ErrMember, gone}}},
		{&RetireNode{nodeID("n2")}, map[MemberState]answer{admitted: {ErrMember, admitted}, active: {ErrMember, active}, leaving: {nil, gone}, gone: {nil, gone}}},
		{update, map[MemberState]answer{admitted: {nil, admitted}, active: {nil, active}, leaving: {nil, leaving}, gone: {ErrNotFound, gone}}},
		{ticketFor("n2"), map[MemberState]answer{admitted: {ErrExists, admitted}, active: {ErrExists, active}, leaving: {ErrExists, leaving}, gone: {nil, gone}}},
	} {
		for state, want := range row.want {
			t.Run(NameOf(row.command)+" "+string(state), func(t *testing.T) {
				w := initialized(t)
				w.join("n2", true, state)
				since := startTime / second
				w.clock, w.proposer = w.clock+second, nodeID("n2")
				if want.err != nil {
					w.refuse(row.command, want.err, nodeID("n2"))
				} else {
					w.do(row.command)
				}
				if state != want.after {
					since++
				}
				if m, _ := w.s.Member(nodeID("n2")); m.State != want.after || m.Since != since {
					t.Errorf("member is %s since %d, want %s since %d", m.State, m.Since, want.after, since)
				}
			})
		}
	}
}

func TestUnknownMember(t *testing.T) {
	long := strings.Repeat("i", 129)
	update := func(id string) Command { return &UpdateMember{ID: id, PeerAddress: "a", ClientAddress: "b"} }
	for _, f := range []func(id string) Command{
		func(id string) Command { return &ActivateNode{id} },
		func(id string) Command { return &RemoveNode{id} },
		func(id string) Command { return &RetireNode{id} },
		update,
	} {
		w := initialized(t)
		w.refuse(f("n9"), ErrNotFound, "node n9")
		w.refuse(f(""), ErrInvalid, "raft id")
		w.refuse(f(long), ErrInvalid, "must have 1 to 128 bytes")
	}
}

func TestUpdateMember(t *testing.T) {
	w := initialized(t)
	w.join("n2", true, MemberActive)
	w.proposer = nodeID("n2")
	update := func(peer, client string) Command {
		return &UpdateMember{ID: nodeID("n2"), PeerAddress: peer, ClientAddress: client}
	}
	want, _ := w.s.Member(nodeID("n2"))
	changed := *want
	changed.PeerAddress, changed.ClientAddress, changed.Revision = "10.0.0.2:7000", "10.0.0.2:7001", w.s.Index()+1
	w.clock += second
	w.do(update("10.0.0.2:7000", "10.0.0.2:7001"))
	if got, _ := w.s.Member(nodeID("n2")); !reflect.DeepEqual(*got, changed) {
		t.Errorf("member is\n%+v\nwant\n%+v", *got, changed)
	}
	w.do(update("10.0.0.2:7000", strings.Repeat("c", 256)))
	w.refuse(update("n1:7000", "x"), ErrMember, "n1:7000 belongs to node "+firstNode)
	w.refuse(update("", "x"), ErrInvalid, "must have 1 to 256 bytes")
	w.refuse(update("x", strings.Repeat("c", 257)), ErrInvalid, "must have 1 to 256 bytes")
	w.do(update("n1:7001", "n1:7000"))
}

// TestUpdateMemberOfAnother: only the node itself says where it is.
func TestUpdateMemberOfAnother(t *testing.T) {
	w := initialized(t)
	w.join("n2", true, MemberActive)
	w.join("n3", true, MemberLeaving)
	for _, proposer := range []string{firstNode, nodeID("n3"), "n9", "n2", nodeID("n2") + "1"} {
		w.proposer = proposer
		w.refuse(&UpdateMember{ID: nodeID("n2"), PeerAddress: "new:7000", ClientAddress: "new:7001"}, ErrMember,
			fmt.Sprintf("node %s cannot change the addresses of %s", proposer, nodeID("n2")))
	}
}

// TestAddressOfATombstone is free again.
func TestAddressOfATombstone(t *testing.T) {
	w := initialized(t)
	w.join("n2", true, MemberGone)
	w.do(&UpdateMember{ID: firstNode, PeerAddress: "n2:7000", ClientAddress: "n1:7001"})
}

func TestLastVoter(t *testing.T) {
	for _, row := range []struct {
		name  string
		voter bool
		state MemberState
		want  error
	}{
		{"beside a voter", true, MemberActive, nil},
		{"beside a voter that is joining", true, MemberAdmitted, ErrMember},
		{"beside a voter that leaves", true, MemberLeaving, ErrMember},
		{"beside a voter that is gone", true, MemberGone, ErrMember},
		{"beside a non-voter", false, MemberActive, ErrMember},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := initialized(t)
			w.join("n2", row.voter, row.state)
			if row.want != nil {
				w.refuse(&RemoveNode{firstNode}, row.want, firstNode+" is the last voter")
				return
			}
			w.do(&RemoveNode{firstNode})
			w.refuse(&RemoveNode{nodeID("n2")}, ErrMember, nodeID("n2")+" is the last voter")
			w.do(&RemoveNode{firstNode})
		})
	}
	w := initialized(t)
	w.join("n2", false, MemberActive)
	w.do(&RemoveNode{nodeID("n2")})
	w.refuse(&RemoveNode{firstNode}, ErrMember, "is the last voter")
}

func TestMemberPredicates(t *testing.T) {
	for state, want := range map[MemberState][3]bool{
		MemberAdmitted: {false, false, true},
		MemberActive:   {true, true, true},
		MemberLeaving:  {true, false, true},
		MemberGone:     {false, false, false},
	} {
		m := &Member{State: state}
		if got := [3]bool{m.LeaseHolder(), m.Serves(), m.Alive()}; got != want {
			t.Errorf("%s: lease holder, serves, alive: %v, want %v", state, got, want)
		}
	}
}

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "0", "n1", "a.b_c-d", "0-", strings.Repeat("x", 64)} {
		if !ValidName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", "-a", ".a", "_a", "A", "a/b", "a b", "ä", "a\x00", strings.Repeat("x", 65)} {
		if ValidName(name) {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestNotInitializedHasNoGeneration(t *testing.T) {
	if g, err := NewState().ActiveGeneration(); !errors.Is(err, ErrNotInitialized) {
		t.Errorf("generation %+v, %v", g, err)
	}
}

// TestVotes: a vote is given to active members and taken from them, but for the last.
func TestVotes(t *testing.T) {
	w := initialized(t)
	w.join("n2", false, MemberActive)
	before, _ := w.s.Member(nodeID("n2"))
	w.clock += second
	for _, voter := range []bool{true, true, false} {
		if got := w.do(&SetVoter{nodeID("n2"), voter}); got != (Result{Index: w.s.Index(), ID: nodeID("n2")}) {
			t.Errorf("result %+v", got)
		}
		m, _ := w.s.Member(nodeID("n2"))
		if m.Voter != voter || m.State != MemberActive || m.Since != before.Since || !m.LeaseHolder() || !m.Serves() {
			t.Errorf("with a vote %t the member is %+v", voter, m)
		}
	}
	w.refuse(&SetVoter{firstNode, false}, ErrMember, "is the last voter")
	w.do(&SetVoter{nodeID("n2"), true})
	w.do(&SetVoter{firstNode, false})
	w.refuse(&SetVoter{nodeID("n2"), false}, ErrMember, "is the last voter")
	w.refuse(&RemoveNode{nodeID("n2")}, ErrMember, "is the last voter")
	w.do(&RemoveNode{firstNode}) // it has none
	w.refuse(&SetVoter{firstNode, true}, ErrMember, "is LEAVING, not an active member")
	w.refuse(&SetVoter{nodeID("n9"), true}, ErrNotFound, nodeID("n9"))
	w.refuse(&SetVoter{strings.Repeat("x", 129), true}, ErrInvalid, "raft id")
}
