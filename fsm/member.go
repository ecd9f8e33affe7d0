package fsm

import (
	"bytes"
	"fmt"
	"slices"
)

// Limits of membership.
const (
	MaxMembers       = 32      // living members, non-voters included
	MaxTickets       = 64      // open join tickets
	MaxTicketSeconds = 60 * 60 // longest life of a join ticket
	MaxAddress       = 256     // bytes of one address
	MaxRaftID        = 128     // bytes
	MaxIdentity      = 1024    // bytes of a public key

	ticketKeySize = 32 // bytes of an Ed25519 public key
)

// MemberState is how far a node is in its life as a member.
type MemberState string

// The states of a member. A node is committed as ADMITTED before any key is made
// out to it, becomes ACTIVE when it has proved possession of the domain key, and
// stays as a tombstone when it is GONE: its raft id is never used again.
const (
	MemberAdmitted MemberState = "ADMITTED"
	MemberActive   MemberState = "ACTIVE"
	MemberLeaving  MemberState = "LEAVING" // removed by an operator, its lease may still run
	MemberGone     MemberState = "GONE"
)

// Member is one node of the cluster, or the tombstone of one.
type Member struct {
	ID            string      `json:"id"` // raft id: name and the data directory's incarnation
	Name          string      `json:"name"`
	PeerAddress   string      `json:"peer_address"`   // raft, gossip and peer calls
	ClientAddress string      `json:"client_address"` // where clients call
	Identity      []byte      `json:"identity"`       // SPKI of the node identity key in its HSM
	Ticket        string      `json:"ticket,omitempty"`
	TicketKey     []byte      `json:"ticket_key,omitempty"` // public key of that ticket
	State         MemberState `json:"state"`
	Voter         bool        `json:"voter"` // the role it is to have
	Since         int64       `json:"since"` // unix seconds of the last change of state
	Revision      uint64      `json:"revision"`
}

// LeaseHolder tells whether a restriction must wait for this member.
func (m *Member) LeaseHolder() bool { return m.State == MemberActive || m.State == MemberLeaving }

// Serves tells whether the member itself may release results.
func (m *Member) Serves() bool { return m.State == MemberActive }

// Alive tells whether the member is not a tombstone.
func (m *Member) Alive() bool { return m.State != MemberGone }

// Ticket lets one node join once. The state holds its public key only.
type Ticket struct {
	ID        string `json:"id"`
	PublicKey []byte `json:"public_key"` // Ed25519, 32 bytes
	Name      string `json:"name"`       // of the node it is for
	Expires   int64  `json:"expires"`    // unix seconds
	Voter     bool   `json:"voter"`
	Revision  uint64 `json:"revision"`

	Guarded  bool         `json:"guarded,omitempty"`  // it lets in nobody but Identity
	Identity []byte       `json:"identity,omitempty"` // SHA-256 of the node identity key pinned or approved; empty: none yet
	Request  *JoinRequest `json:"request,omitempty"`  // who has asked to be approved
}

// CreateTicket invites one node, by name, for at most an hour.
type CreateTicket struct {
	ID        string `json:"id"`
	PublicKey []byte `json:"public_key"`
	Name      string `json:"name"`
	Seconds   int64  `json:"seconds"` // how long it is valid
	Voter     bool   `json:"voter"`
}

func (c *CreateTicket) validate() error {
	switch {
	case c.ID == "" || len(c.ID) > 64:
		return invalid("ticket id is missing or too long")
	case len(c.PublicKey) != ticketKeySize:
		return invalid("ticket key has %d bytes, must be %d", len(c.PublicKey), ticketKeySize)
	case !ValidName(c.Name):
		return invalid("node name %q: %s", c.Name, nameRule)
	case c.Seconds < 1 || c.Seconds > MaxTicketSeconds:
		return invalid("ticket life of %d s: must be 1 to %d", c.Seconds, MaxTicketSeconds)
	}
	return nil
}

func (c *CreateTicket) apply(t *tx) (Result, error) { return t.createTicket(c, false, nil) }

func (t *tx) createTicket(c *CreateTicket, guarded bool, identity []byte) (Result, error) {
	if _, ok := t.s.Ticket(c.ID); ok {
		return Result{}, fmt.Errorf("%w: ticket %s", ErrExists, c.ID)
	}
	if m := t.s.MemberByName(c.Name); m != nil {
		return Result{}, fmt.Errorf("%w: a node named %s is a member (%s); remove it first", ErrExists, c.Name, m.ID)
	}
	for _, old := range t.s.Tickets() {
		if old.Expires <= t.seconds() {
			t.dropTicket(old)
		}
	}
	if t.s.tickets.len() >= MaxTickets {
		return Result{}, fmt.Errorf("%w: %d join tickets are open", ErrLimit, MaxTickets)
	}
	t.putTicket(&Ticket{ID: c.ID, PublicKey: c.PublicKey, Name: c.Name, Expires: t.seconds() + c.Seconds, Voter: c.Voter, Guarded: guarded, Identity: identity})
	return Result{ID: c.ID}, nil
}

// AdmitNode uses a ticket up and makes its bearer a member to be. It is committed
// before any key leaves for the node. The same bearer may repeat it, since an answer
// may have been lost; it does so only while Raft has never run under its id.
type AdmitNode struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PeerAddress   string `json:"peer_address"`
	ClientAddress string `json:"client_address"`
	Identity      []byte `json:"identity"`
	Ticket        string `json:"ticket"`
	TicketKey     []byte `json:"ticket_key"` // its public key, under which the node's proof was checked
}

func (c *AdmitNode) validate() error {
	if c.Ticket == "" || len(c.TicketKey) != ticketKeySize {
		return invalid("ticket is missing, or its key has %d bytes instead of %d", len(c.TicketKey), ticketKeySize)
	}
	return validMember(c.ID, c.Name, c.PeerAddress, c.ClientAddress, c.Identity)
}

func (c *AdmitNode) apply(t *tx) (Result, error) {
	if old, ok := t.s.Member(c.ID); ok {
		if (old.State == MemberAdmitted || old.Serves()) && c.bears(old) {
			if err := t.s.peerAddressFree(c.ID, c.PeerAddress); err != nil {
				return Result{}, err
			}
			m := *old
			m.PeerAddress, m.ClientAddress = c.PeerAddress, c.ClientAddress
			t.putMember(&m)
			return Result{ID: c.ID}, nil
		}
		if old.Serves() || old.State == MemberAdmitted {
			return Result{}, fmt.Errorf("%w: node %s is a member already (%s)", ErrMember, c.ID, old.State)
		}
		return Result{}, fmt.Errorf("%w: node %s was removed; it rejoins with an empty data directory, under a new id", ErrMember, c.ID)
	}
	ticket, err := c.ticket(t)
	if err != nil {
		return Result{}, err
	}
	if err := ticket.mayBear(c.Identity); err != nil {
		return Result{}, err
	}
	t.dropTicket(ticket)
	t.putMember(&Member{
		ID: c.ID, Name: c.Name, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress, Identity: c.Identity,
		Ticket: c.Ticket, TicketKey: c.TicketKey, State: MemberAdmitted, Voter: ticket.Voter, Since: t.seconds(),
	})
	return Result{ID: c.ID}, nil
}

// ticket is the open ticket that the node bears, if it could become a member with it.
func (c *AdmitNode) ticket(t *tx) (*Ticket, error) {
	ticket, ok := t.s.Ticket(c.Ticket)
	if !ok {
		return nil, fmt.Errorf("%w: unknown or used", ErrTicket)
	}
	switch {
	case ticket.Expires <= t.seconds():
		return nil, fmt.Errorf("%w: expired", ErrTicket)
	case !bytes.Equal(ticket.PublicKey, c.TicketKey):
		return nil, fmt.Errorf("%w: its key is another", ErrTicket)
	case ticket.Name != c.Name:
		return nil, fmt.Errorf("%w: it was made out to node %s, not %s", ErrTicket, ticket.Name, c.Name)
	case t.s.MemberByName(c.Name) != nil:
		return nil, fmt.Errorf("%w: a node named %s is a member", ErrMember, c.Name)
	case t.s.aliveMembers() >= MaxMembers:
		return nil, fmt.Errorf("%w: the cluster has %d nodes", ErrLimit, MaxMembers)
	}
	if other := t.s.memberWith(IdentityHash(c.Identity)); other != nil && t.s.cluster.Release > FirstRelease { // the first did not ask
		return nil, fmt.Errorf("%w: node %s has the same node identity key: a partition that was cloned needs one of its own, see kmsd hsm adopt", ErrIdentity, other.ID)
	}
	for _, x := range t.s.Recovery().Recipients {
		if err := x.Apart(c.ID, c.Identity); err != nil {
			return nil, err
		}
	}
	return ticket, t.s.peerAddressFree(c.ID, c.PeerAddress)
}

// bears tells whether the node that asks is the one that was admitted.
func (c *AdmitNode) bears(m *Member) bool {
	return c.Name == m.Name && c.Ticket == m.Ticket && bytes.Equal(c.TicketKey, m.TicketKey) && bytes.Equal(c.Identity, m.Identity)
}

// ActivateNode records that a node has proved possession of the domain key: it
// may hold leases from here on.
type ActivateNode struct {
	ID string `json:"id"`
}

func (c *ActivateNode) validate() error { return validRaftID(c.ID) }

func (c *ActivateNode) apply(t *tx) (Result, error) {
	return t.memberTo(c.ID, MemberActive, MemberAdmitted, MemberActive)
}

// RemoveNode takes a node out: it serves nothing once it has applied this. It
// stays a lease holder until RetireNode.
type RemoveNode struct {
	ID string `json:"id"`
}

func (c *RemoveNode) validate() error { return validRaftID(c.ID) }

func (c *RemoveNode) apply(t *tx) (Result, error) {
	if m, ok := t.s.Member(c.ID); ok && m.Alive() && m.Voter && m.State == MemberActive && t.s.activeVoters() == 1 {
		return Result{}, fmt.Errorf("%w: %s is the last voter", ErrMember, c.ID)
	}
	return t.memberTo(c.ID, MemberLeaving, MemberAdmitted, MemberActive, MemberLeaving)
}

// RetireNode turns a removed node into a tombstone when no lease of it can be
// alive any more.
type RetireNode struct {
	ID string `json:"id"`
}

func (c *RetireNode) validate() error { return validRaftID(c.ID) }

func (c *RetireNode) apply(t *tx) (Result, error) {
	return t.memberTo(c.ID, MemberGone, MemberLeaving, MemberGone)
}

// SetVoter gives a node a vote, or takes it. Either way the node goes on serving and
// holding leases.
type SetVoter struct {
	ID    string `json:"id"`
	Voter bool   `json:"voter"`
}

func (c *SetVoter) validate() error { return validRaftID(c.ID) }

func (c *SetVoter) apply(t *tx) (Result, error) {
	old, ok := t.s.Member(c.ID)
	switch {
	case !ok:
		return Result{}, fmt.Errorf("%w: node %s", ErrNotFound, c.ID)
	case !old.Serves():
		return Result{}, fmt.Errorf("%w: node %s is %s, not an active member", ErrMember, c.ID, old.State)
	case old.Voter == c.Voter:
		return Result{ID: c.ID}, nil
	case !c.Voter && t.s.activeVoters() == 1:
		return Result{}, fmt.Errorf("%w: %s is the last voter", ErrMember, c.ID)
	}
	m := *old
	m.Voter = c.Voter
	t.putMember(&m)
	return Result{ID: c.ID}, nil
}

// UpdateMember records a node's present addresses; only the node itself asks.
type UpdateMember struct {
	ID            string `json:"id"`
	PeerAddress   string `json:"peer_address"`
	ClientAddress string `json:"client_address"`
}

func (c *UpdateMember) validate() error {
	if err := validRaftID(c.ID); err != nil {
		return err
	}
	return validAddresses(c.PeerAddress, c.ClientAddress)
}

func (c *UpdateMember) apply(t *tx) (Result, error) {
	old, ok := t.s.Member(c.ID)
	if !ok || !old.Alive() {
		return Result{}, fmt.Errorf("%w: node %s", ErrNotFound, c.ID)
	}
	if t.entry.Proposer != c.ID {
		return Result{}, fmt.Errorf("%w: node %s cannot change the addresses of %s", ErrMember, t.entry.Proposer, c.ID)
	}
	if err := t.s.peerAddressFree(c.ID, c.PeerAddress); err != nil {
		return Result{}, err
	}
	m := *old
	m.PeerAddress, m.ClientAddress = c.PeerAddress, c.ClientAddress
	t.putMember(&m)
	return Result{ID: c.ID}, nil
}

func (s *State) peerAddressFree(id, address string) error {
	for _, m := range s.Members() {
		if m.Alive() && m.ID != id && m.PeerAddress == address {
			return fmt.Errorf("%w: peer address %s belongs to node %s", ErrMember, address, m.ID)
		}
	}
	return nil
}

// memberTo moves a member to a state from one of the states given.
func (t *tx) memberTo(id string, to MemberState, from ...MemberState) (Result, error) {
	old, ok := t.s.Member(id)
	if !ok {
		return Result{}, fmt.Errorf("%w: node %s", ErrNotFound, id)
	}
	if !slices.Contains(from, old.State) {
		return Result{}, fmt.Errorf("%w: node %s is %s, it cannot become %s", ErrMember, id, old.State, to)
	}
	if old.State != to {
		t.memberIs(old, to)
	}
	return Result{ID: id}, nil
}

func (t *tx) memberIs(old *Member, to MemberState) {
	m := *old
	m.State, m.Since = to, t.seconds()
	t.putMember(&m)
	if now, ok := t.s.Rewrapping(); ok && now.Node == m.ID {
		t.endRewrap() // with the node's partition the twin is gone
	}
}

const nameRule = "must be 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit"

func validMember(id, name, peer, client string, identity []byte) error {
	if err := validRaftID(id); err != nil {
		return err
	}
	if !ValidName(name) {
		return invalid("node name %q: %s", name, nameRule)
	}
	if len(identity) == 0 || len(identity) > MaxIdentity {
		return invalid("node identity key of %d bytes: must be 1 to %d", len(identity), MaxIdentity)
	}
	return validAddresses(peer, client)
}

func validAddresses(addresses ...string) error {
	for _, a := range addresses {
		if a == "" || len(a) > MaxAddress {
			return invalid("address %q: must have 1 to %d bytes", a, MaxAddress)
		}
	}
	return nil
}

func validRaftID(id string) error {
	if id == "" || len(id) > MaxRaftID {
		return invalid("raft id %q: must have 1 to %d bytes", id, MaxRaftID)
	}
	return nil
}
