package fsm

import (
	"bytes"
	"strings"
	"testing"
)

func invite(name string, identity []byte) *InviteNode {
	t := ticketFor(name)
	return &InviteNode{ID: t.ID, PublicKey: t.PublicKey, Name: name, Seconds: t.Seconds, Voter: true, Identity: identity}
}

func identityOf(name string) []byte { return IdentityHash([]byte("identity of " + name)) }

func requestOf(name string) *RequestJoin {
	a := admit(name)
	return &RequestJoin{
		ID: a.ID, Name: a.Name, PeerAddress: a.PeerAddress, ClientAddress: a.ClientAddress,
		Identity: a.Identity, Ticket: a.Ticket, TicketKey: a.TicketKey,
	}
}

// guarded has a guarded invitation for n2 without an identity.
func guarded(t failer) *world {
	w := initialized(t)
	w.do(invite("n2", nil))
	return w
}

// TestPinnedIdentity: an invitation that names an identity lets no other in.
func TestPinnedIdentity(t *testing.T) {
	w := initialized(t)
	w.do(invite("n2", identityOf("n2")))
	if k, _ := w.s.Ticket("ticket-n2"); !k.Guarded || !k.Voter || k.Waits() {
		t.Errorf("the ticket is %+v", k)
	}
	thief := edited(admit("n2"), func(c *AdmitNode) { c.Identity = []byte("identity of a thief") })
	w.refuse(thief, ErrIdentity, "another node identity key than the one that node n2 was invited or approved with")
	w.refuse(edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = thief.Identity }), ErrIdentity, "another node identity key")
	before := records(t, w.s)
	w.do(requestOf("n2")) // nobody need approve it
	if records(t, w.s) != before {
		t.Error("a request with a pinned identity was recorded")
	}
	w.refuse(&ApproveJoin{"n2", identityOf("n2")}, ErrNotFound, "no node named n2 waits")
	w.do(admit("n2"))
	if m, _ := w.s.Member(nodeID("n2")); m.State != MemberAdmitted || !m.Voter {
		t.Errorf("the member is %+v", m)
	}
	w.refuse(admit("n2").from("n3"), ErrTicket, "unknown or used")
}

// from is the same admission of a node of another id.
func (c *AdmitNode) from(name string) *AdmitNode {
	return edited(c, func(c *AdmitNode) {
		c.ID, c.PeerAddress, c.Identity = nodeID(name), name+":7000", []byte("identity of "+name)
	})
}

// TestApproval: without a pin nobody is admitted before an operator has named the
// identity that waits.
func TestApproval(t *testing.T) {
	w := guarded(t)
	w.refuse(admit("n2"), ErrIdentity, "an operator has not approved node n2")
	w.refuse(&ApproveJoin{"n2", identityOf("n2")}, ErrNotFound, "no node named n2 waits for approval")
	w.clock += 100 * second
	w.do(requestOf("n2"))
	asked := startTime/second + 100
	k, _ := w.s.Ticket("ticket-n2")
	want := JoinRequest{ID: nodeID("n2"), PeerAddress: "n2:7000", ClientAddress: "n2:7001", Identity: identityOf("n2"), Since: asked}
	if got := *k.Request; got.ID != want.ID || got.PeerAddress != want.PeerAddress || got.ClientAddress != want.ClientAddress ||
		!bytes.Equal(got.Identity, want.Identity) || got.Since != want.Since || !k.Waits() || !requestOf("n2").StandsIn(k) {
		t.Errorf("the request is %+v, want %+v", got, want)
	}
	w.refuse(admit("n2"), ErrIdentity, "an operator has not approved node n2")
	thief := edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = []byte("identity of a thief") })
	if thief.StandsIn(k) {
		t.Error("a thief's request stands as the node's")
	}
	w.refuse(thief, ErrIdentity, "one of the two has stolen it; reject both with kmsctl cluster reject n2")
	w.clock += 100 * second
	w.do(edited(requestOf("n2"), func(c *RequestJoin) { c.ID, c.PeerAddress = "n2-00000002", "n2b:7000" })) // its directory was wiped
	if k, _ = w.s.Ticket("ticket-n2"); k.Request.ID != "n2-00000002" || k.Request.PeerAddress != "n2b:7000" || k.Request.Since != asked {
		t.Errorf("after it was asked again the request is %+v", k.Request)
	}
	w.refuse(&ApproveJoin{"n2", IdentityHash(thief.Identity)}, ErrIdentity, "has another identity key")
	w.refuse(&ApproveJoin{"n3", identityOf("n2")}, ErrNotFound, "n3")

	w.clock += 3350 * second // it is about to expire
	late := w.clock / second
	if got := w.do(&ApproveJoin{"n2", identityOf("n2")}); got.ID != "n2-00000002" {
		t.Errorf("approved %+v", got)
	}
	if k, _ = w.s.Ticket("ticket-n2"); k.Expires < late+ApprovedSeconds || k.Waits() || !bytes.Equal(k.Identity, identityOf("n2")) {
		t.Errorf("the approved ticket is %+v, at %d", k, late)
	}
	w.clock += 600 * second
	before := records(t, w.s)
	w.do(requestOf("n2")) // whatever it says of itself: the identity counts
	if records(t, w.s) != before {
		t.Error("a request that was approved was recorded")
	}
	w.refuse(thief, ErrIdentity, "another node identity key")
	w.refuse(thief.admission(), ErrIdentity, "another node identity key")
	w.do(&ApproveJoin{"n2", identityOf("n2")}) // again
	w.do(admit("n2"))
	w.refuse(&ApproveJoin{"n2", identityOf("n2")}, ErrNotFound, "")
}

// TestApprovalDoesNotShorten: an approval leaves the time that is left.
func TestApprovalDoesNotShorten(t *testing.T) {
	w := guarded(t)
	w.do(requestOf("n2"))
	w.do(&ApproveJoin{"n2", identityOf("n2")})
	if k, _ := w.s.Ticket("ticket-n2"); k.Expires != startTime/second+3600 {
		t.Errorf("the ticket expires at %d", k.Expires)
	}
}

// TestApprovalComesTooLate: an expired request is not approved.
func TestApprovalComesTooLate(t *testing.T) {
	w := guarded(t)
	w.do(requestOf("n2"))
	w.clock += 3600 * second
	w.refuse(&ApproveJoin{"n2", identityOf("n2")}, ErrNotFound, "no node named n2 waits")
	w.refuse(requestOf("n2"), ErrTicket, "expired")
}

// TestApprovalAmongSeveral: of several invitations of a name, the one that waits with the
// identity is approved.
func TestApprovalAmongSeveral(t *testing.T) {
	w := guarded(t)
	w.do(edited(invite("n2", nil), func(c *InviteNode) { c.ID = "second" }))
	w.do(edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = []byte("identity of a thief") }))
	w.do(edited(requestOf("n2"), func(c *RequestJoin) { c.Ticket, c.ID, c.PeerAddress = "second", "n2-00000002", "n2b:7000" }))
	w.do(&ApproveJoin{"n2", identityOf("n2")})
	if first, _ := w.s.Ticket("ticket-n2"); !first.Waits() {
		t.Errorf("the other one is approved: %+v", first)
	}
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.Identity = []byte("identity of a thief") }), ErrIdentity, "has not approved")
	w.do(edited(admit("n2"), func(c *AdmitNode) { c.Ticket = "second" }))
	w.do(&RejectJoin{"n2"}) // what is left
	if n := len(w.s.Tickets()); n != 0 {
		t.Errorf("%d tickets are left", n)
	}
}

func TestRejectJoin(t *testing.T) {
	w := guarded(t)
	w.do(edited(invite("n2", nil), func(c *InviteNode) { c.ID = "second" }))
	w.do(invite("n3", nil))
	w.do(requestOf("n2"))
	w.do(&RejectJoin{"n2"})
	if k := w.s.Tickets(); len(k) != 1 || k[0].Name != "n3" {
		t.Errorf("left are %+v", k)
	}
	w.refuse(requestOf("n2"), ErrTicket, "unknown or used")
	w.refuse(admit("n2"), ErrTicket, "unknown or used")
	w.refuse(&RejectJoin{"n2"}, ErrNotFound, "no open invitation for a node named n2")
	w.do(ticketFor("n4")) // of the first release: it is taken back all the same
	w.do(&RejectJoin{"n4"})
}

// TestOneIdentityOneMember: two living members never have the same identity key, as two
// clones of a partition would.
func TestOneIdentityOneMember(t *testing.T) {
	w := guarded(t)
	clone := func(c *AdmitNode) { c.Identity = []byte("identity of n1") }
	w.refuse(edited(admit("n2"), clone), ErrIdentity, "node "+firstNode+" has the same node identity key")
	w.refuse(edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = []byte("identity of n1") }), ErrIdentity, "kmsd hsm adopt")
	w.refuse(edited(invite("n3", identityOf("n1")), func(*InviteNode) {}), ErrIdentity, "node "+firstNode+" has that identity key")
	w.do(ticketFor("n4"))
	w.refuse(edited(admit("n4"), clone), ErrIdentity, "has the same node identity key")
	w.join("n5", true, MemberGone)
	w.do(invite("n5", identityOf("n5"))) // it comes back with the partition that it had
	w.do(edited(admit("n5"), func(c *AdmitNode) { c.ID = "n5-00000002" }))
}

// TestReleaseOneAdmitsAnyIdentity: what the first release decided stays as it was.
func TestReleaseOneAdmitsAnyIdentity(t *testing.T) {
	w := newWorld(t)
	w.do(edited(initCluster(), func(c *InitCluster) { c.Release, c.NoRecovery = 0, false }))
	w.refuse(invite("n2", nil), ErrRelease, "InviteNode is of release 2")
	w.do(ticketFor("n2"))
	w.do(edited(admit("n2"), func(c *AdmitNode) { c.Identity = []byte("identity of n1") }))
}

func TestInvitationLimits(t *testing.T) {
	testAccepted(t, initialized, []accepted{
		{"no identity", invite("n2", nil)},
		{"an identity", invite("n2", bytes.Repeat([]byte{1}, 32))},
	})
	testRefusals(t, guarded, []refusal{
		{"identity of 31 bytes", invite("n3", make([]byte, 31)), ErrInvalid, "node identity of 31 bytes, must be 32"},
		{"identity of 33 bytes", invite("n3", make([]byte, 33)), ErrInvalid, "node identity of 33 bytes"},
		{"an invitation that lasts too long", edited(invite("n3", nil), func(c *InviteNode) { c.Seconds = 3601 }), ErrInvalid, "life of 3601 s"},
		{"an invitation of a bad name", edited(invite("n3", nil), func(c *InviteNode) { c.Name = "N3" }), ErrInvalid, "node name"},
		{"an invitation of a member", invite("n1", nil), ErrExists, "remove it first"},
		{"a known ticket", invite("n2", nil), ErrExists, "ticket"},
		{"a request without a ticket", edited(requestOf("n2"), func(c *RequestJoin) { c.Ticket = "" }), ErrInvalid, "ticket is missing"},
		{"a request with a short key", edited(requestOf("n2"), func(c *RequestJoin) { c.TicketKey = nil }), ErrInvalid, "0 bytes instead of 32"},
		{"a request without an identity", edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = nil }), ErrInvalid, "identity key of 0 bytes"},
		{"a request of too long an identity", edited(requestOf("n2"), func(c *RequestJoin) { c.Identity = make([]byte, 1025) }), ErrInvalid, "identity key of 1025 bytes"},
		{"a request of another name", edited(requestOf("n2"), func(c *RequestJoin) { c.Name = "n3" }), ErrTicket, "made out to node n2, not n3"},
		{"a request of another key", edited(requestOf("n2"), func(c *RequestJoin) { c.TicketKey = make([]byte, 32) }), ErrTicket, "its key is another"},
		{"a request of a member's id", edited(requestOf("n2"), func(c *RequestJoin) { c.ID = firstNode }), ErrMember, "is a member already"},
		{"a request of a member's address", edited(requestOf("n2"), func(c *RequestJoin) { c.PeerAddress = "n1:7000" }), ErrMember, "belongs to node"},
		{"an approval of no identity", &ApproveJoin{"n2", nil}, ErrInvalid, "node identity of 0 bytes, must be 32"},
		{"an approval of a long identity", &ApproveJoin{"n2", make([]byte, 33)}, ErrInvalid, "node identity of 33 bytes"},
		{"an approval of a bad name", &ApproveJoin{"", make([]byte, 32)}, ErrInvalid, "node name"},
		{"a rejection of a bad name", &RejectJoin{strings.Repeat("n", 65)}, ErrInvalid, "node name"},
	})
}

// TestTransferProfile: a cluster has the profile of its founding.
func TestTransferProfile(t *testing.T) {
	w := newWorld(t)
	w.do(edited(initCluster(), func(c *InitCluster) { c.Profile = ProfileCloned }))
	if got := w.s.Cluster().TransferProfile(); got != ProfileCloned {
		t.Errorf("the profile is %q", got)
	}
	if got := initialized(t).s.Cluster().TransferProfile(); got != ProfileGeneric {
		t.Errorf("the profile of a cluster that names none is %q", got)
	}
	uninitialized := func(t failer) *world { return newWorld(t) }
	testRefusals(t, uninitialized, []refusal{
		{"an unknown profile", edited(initCluster(), func(c *InitCluster) { c.Profile = "copied" }), ErrInvalid, `transfer profile "copied"`},
		{"generic by name", edited(initCluster(), func(c *InitCluster) { c.Profile = ProfileGeneric }), ErrInvalid, "or nothing"},
		{"cloned in the first release", edited(initCluster(), func(c *InitCluster) { c.Profile, c.Release = ProfileCloned, 0 }), ErrInvalid, "from release 2 on"},
	})
}
