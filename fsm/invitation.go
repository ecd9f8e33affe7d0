package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

const (
	// ApprovedSeconds is how long, at least, an approved node may take to join: its
	// ticket lives on for that.
	ApprovedSeconds = 15 * 60

	identityHashSize = sha256.Size
)

// JoinRequest is the node that waits for an operator's approval.
type JoinRequest struct {
	ID            string `json:"id"` // raft id
	PeerAddress   string `json:"peer_address"`
	ClientAddress string `json:"client_address"`
	Identity      []byte `json:"identity"` // SHA-256 of its node identity key's SPKI
	Since         int64  `json:"since"`    // unix seconds
}

// IdentityHash is by what a node identity key (SPKI) is pinned and approved.
func IdentityHash(spki []byte) []byte {
	sum := sha256.Sum256(spki)
	return sum[:]
}

// Waits tells whether a node has asked to join with the ticket and no operator has
// approved it.
func (k *Ticket) Waits() bool { return k.Request != nil && len(k.Identity) == 0 }

// mayBear is nil if a ticket lets a node with that identity key in.
func (k *Ticket) mayBear(spki []byte) error {
	switch {
	case !k.Guarded || bytes.Equal(k.Identity, IdentityHash(spki)):
		return nil
	case len(k.Identity) == 0:
		return fmt.Errorf("%w: an operator has not approved node %s", ErrIdentity, k.Name)
	}
	return fmt.Errorf("%w: the HSM partition has another node identity key than the one that node %s was invited or approved with", ErrIdentity, k.Name)
}

// InviteNode invites one node as CreateTicket does, and lets none in but the one whose
// node identity key is pinned here or approved later.
type InviteNode struct {
	ID        string `json:"id"`
	PublicKey []byte `json:"public_key"`
	Name      string `json:"name"`
	Seconds   int64  `json:"seconds"`
	Voter     bool   `json:"voter"`
	Identity  []byte `json:"identity"` // SHA-256 of the node identity key's SPKI; empty: an operator approves it
}

func (c *InviteNode) ticket() *CreateTicket {
	return &CreateTicket{ID: c.ID, PublicKey: c.PublicKey, Name: c.Name, Seconds: c.Seconds, Voter: c.Voter}
}

func (c *InviteNode) validate() error {
	if n := len(c.Identity); n != 0 && n != identityHashSize {
		return invalid("node identity of %d bytes, must be %d", n, identityHashSize)
	}
	return c.ticket().validate()
}

func (c *InviteNode) apply(t *tx) (Result, error) {
	if m := t.s.memberWith(c.Identity); m != nil {
		return Result{}, fmt.Errorf("%w: node %s has that identity key", ErrIdentity, m.ID)
	}
	return t.createTicket(c.ticket(), true, c.Identity)
}

// RequestJoin records that a node that bears a ticket waits for approval. It may be
// repeated by the same node; another one is refused: two nodes with one ticket mean that
// it was stolen.
type RequestJoin struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PeerAddress   string `json:"peer_address"`
	ClientAddress string `json:"client_address"`
	Identity      []byte `json:"identity"` // SPKI
	Ticket        string `json:"ticket"`
	TicketKey     []byte `json:"ticket_key"`
}

func (c *RequestJoin) admission() *AdmitNode {
	return &AdmitNode{
		ID: c.ID, Name: c.Name, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress,
		Identity: c.Identity, Ticket: c.Ticket, TicketKey: c.TicketKey,
	}
}

func (c *RequestJoin) validate() error { return c.admission().validate() }

// StandsIn tells whether the request is recorded with a ticket as it is.
func (c *RequestJoin) StandsIn(k *Ticket) bool {
	r := k.Request
	return r != nil && r.ID == c.ID && r.PeerAddress == c.PeerAddress && r.ClientAddress == c.ClientAddress && bytes.Equal(r.Identity, IdentityHash(c.Identity))
}

func (c *RequestJoin) apply(t *tx) (Result, error) {
	if m, ok := t.s.Member(c.ID); ok {
		return Result{}, fmt.Errorf("%w: node %s is a member already (%s)", ErrMember, c.ID, m.State)
	}
	ticket, err := c.admission().ticket(t)
	if err != nil {
		return Result{}, err
	}
	next := JoinRequest{ID: c.ID, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress, Identity: IdentityHash(c.Identity), Since: t.seconds()}
	old := ticket.Request
	switch {
	case !ticket.Guarded || len(ticket.Identity) != 0:
		return Result{ID: c.ID}, ticket.mayBear(c.Identity)
	case old == nil:
	case !bytes.Equal(old.Identity, next.Identity):
		return Result{}, fmt.Errorf("%w: another node, with another identity key, has asked to join with this ticket before: one of the two has stolen it; reject both with kmsctl cluster reject %s, and invite anew", ErrIdentity, c.Name)
	default:
		next.Since = old.Since
	}
	k := *ticket
	k.Request = &next
	t.putTicket(&k)
	return Result{ID: c.ID}, nil
}

// ApproveJoin lets the node in that waits under a name with that node identity key.
type ApproveJoin struct {
	Name     string `json:"name"`
	Identity []byte `json:"identity"` // SHA-256 of the SPKI
}

func (c *ApproveJoin) validate() error {
	if !ValidName(c.Name) {
		return invalid("node name %q: %s", c.Name, nameRule)
	}
	if n := len(c.Identity); n != identityHashSize {
		return invalid("node identity of %d bytes, must be %d", n, identityHashSize)
	}
	return nil
}

func (c *ApproveJoin) apply(t *tx) (Result, error) {
	waiting := 0
	for _, ticket := range t.s.Tickets() {
		if ticket.Name != c.Name || ticket.Request == nil || ticket.Expires <= t.seconds() {
			continue
		}
		waiting++
		if !bytes.Equal(ticket.Request.Identity, c.Identity) {
			continue
		}
		k := *ticket
		k.Identity, k.Expires = c.Identity, max(k.Expires, t.seconds()+ApprovedSeconds)
		t.putTicket(&k)
		return Result{ID: k.Request.ID}, nil
	}
	if waiting == 0 {
		return Result{}, fmt.Errorf("%w: no node named %s waits for approval", ErrNotFound, c.Name)
	}
	// Which identity waits is not said: whoever approves reads it off the node's console.
	return Result{}, fmt.Errorf("%w: the node that waits as %s has another identity key: if the fingerprint is that of the node's own console, to the last character, another one uses its ticket: kmsctl cluster reject %s", ErrIdentity, c.Name, c.Name)
}

// RejectJoin takes the open invitations of a name back, and refuses who waits with them.
type RejectJoin struct {
	Name string `json:"name"`
}

func (c *RejectJoin) validate() error {
	if !ValidName(c.Name) {
		return invalid("node name %q: %s", c.Name, nameRule)
	}
	return nil
}

func (c *RejectJoin) apply(t *tx) (Result, error) {
	found := false
	for _, ticket := range t.s.Tickets() {
		if ticket.Name == c.Name {
			t.dropTicket(ticket)
			found = true
		}
	}
	if !found {
		return Result{}, fmt.Errorf("%w: there is no open invitation for a node named %s", ErrNotFound, c.Name)
	}
	return Result{ID: c.Name}, nil
}

// memberWith is the living member whose identity key has that hash; nil if there is none.
func (s *State) memberWith(identity []byte) *Member {
	for _, m := range s.Members() {
		if m.Alive() && bytes.Equal(IdentityHash(m.Identity), identity) {
			return m
		}
	}
	return nil
}
