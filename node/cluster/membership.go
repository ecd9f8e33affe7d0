package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/rules"
)

const (
	// dutyEvery is how often the leader compares Raft's configuration with the
	// state, beside every change of the state.
	dutyEvery = 500 * time.Millisecond
	// dutyTimeout bounds one step of the leader's duty.
	dutyTimeout = 5 * time.Second
	// voterLag is how many entries a node may be behind when it gets a vote.
	voterLag = 64
	// addressPause is between two attempts to record this node's new addresses.
	addressPause = 2 * time.Second
	// offerTimeout bounds what one node that does not answer may cost.
	offerTimeout = 1500 * time.Millisecond
)

// dutyLoop is the leader's duty to make Raft's configuration follow the members in
// the state: one change at a time. The state is the truth; only an operator's
// command puts a node in or out of it.
func (e *engine) dutyLoop() {
	timer := time.NewTicker(dutyEvery)
	defer timer.Stop()
	for {
		changed := e.machine.Changed()
		s := e.machine.State()
		if e.leads() && s.Initialized() && s.History() == e.history {
			if err := e.duty(s); err != nil && e.ctx.Err() == nil {
				e.log.Warn("membership step failed, it is tried again", "error", err)
			}
		}
		e.noteAddress(s)
		select {
		case <-changed:
		case <-timer.C:
		case <-e.ctx.Done():
			return
		}
		select { // changes come in bursts; the duty need not see each
		case <-timer.C:
		case <-e.ctx.Done():
			return
		}
	}
}

// duty takes the first step that is due, if any.
func (e *engine) duty(s *fsm.State) error {
	if e.clockWrong.Load() {
		e.log.Error("the wall clock of this leader is not that of most other nodes: it hands the leadership over; set the clock right")
		return e.transfer(e.ctx, "")
	}
	if g, ok := s.ProposedGeneration(); ok && s.Activable(g) == nil {
		return e.activate(g)
	}
	servers := e.servers()
	members := s.Members()
	slices.SortStableFunc(members, func(a, b *fsm.Member) int { return rank(a) - rank(b) })
	var failed []error
	for _, m := range members {
		srv, there := servers[m.ID]
		done, err := e.step(m, srv, there)
		if done && err == nil {
			return nil
		}
		failed = append(failed, err) // one member's trouble must not hold up the others
	}
	return errors.Join(failed...)
}

// rank puts the gone first: they may still occupy an address in Raft's
// configuration that a new member has.
func rank(m *fsm.Member) int {
	if m.Alive() {
		return 1
	}
	return 0
}

// step brings one member nearer to what the state says of it; done tells that a
// change was made.
func (e *engine) step(m *fsm.Member, srv raft.Server, there bool) (done bool, err error) {
	id, address := raft.ServerID(m.ID), raft.ServerAddress(m.PeerAddress)
	voter := there && srv.Suffrage == raft.Voter
	switch m.State {
	case fsm.MemberActive:
		switch {
		case voter && !m.Voter && m.ID == e.id:
			return true, e.transfer(e.ctx, "")
		case voter && !m.Voter:
			if err := e.keepsQuorum(m.ID); err != nil {
				return false, err
			}
			return true, e.raft.DemoteVoter(id, 0, dutyTimeout).Error()
		case !there || srv.Address != address && !voter:
			return true, e.raft.AddNonvoter(id, address, 0, dutyTimeout).Error()
		case srv.Address != address, m.Voter && !voter && e.caughtUp(m) && e.holdsAll(m):
			return true, e.raft.AddVoter(id, address, 0, dutyTimeout).Error()
		}
	case fsm.MemberLeaving:
		if m.ID == e.id {
			return true, e.transfer(e.ctx, "")
		}
		applied, _, _ := e.grantor.progress(m.ID)
		if applied < m.Revision && !e.grantor.overSince(m.ID, e.raft.CurrentTerm()) && !rules.RetireWaits.Off() {
			return false, nil // its lease may still be alive, or this leader cannot tell yet
		}
		ctx, cancel := context.WithTimeout(e.ctx, dutyTimeout)
		defer cancel()
		_, err := e.commit(ctx, fsm.Proposal{Command: &fsm.RetireNode{ID: m.ID}, Principal: e.principal()}, e.id)
		return true, err
	case fsm.MemberGone:
		if there {
			if err := e.keepsQuorum(m.ID); err != nil {
				return false, err
			}
			return true, e.raft.RemoveServer(id, 0, dutyTimeout).Error()
		}
	case fsm.MemberAdmitted:
	}
	return false, nil
}

// caughtUp tells whether a non-voter has applied nearly everything, and lately.
func (e *engine) caughtUp(m *fsm.Member) bool {
	applied, _, _ := e.grantor.progress(m.ID)
	return e.inTouch(m.ID) && applied >= m.Revision && applied+voterLag >= e.machine.State().Index()
}

// noteAddress records this node's addresses in the state when they have changed.
func (e *engine) noteAddress(s *fsm.State) {
	c := e.config
	if e.addressKnown(s) {
		return
	}
	now := c.Clock.Now()
	if now < e.nextAddress {
		return
	}
	e.nextAddress = now + addressPause
	ctx, cancel := context.WithTimeout(e.ctx, dutyTimeout)
	defer cancel()
	p := fsm.Proposal{
		Command:   &fsm.UpdateMember{ID: e.id, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress},
		Principal: e.principal(),
	}
	_, err := e.proposeOnce(ctx, p)
	if errors.Is(err, ErrNoLeader) { // the leader may be calling the old address: ask everyone
		for _, address := range e.peers() {
			if err = e.offer(address, p); err == nil {
				break
			}
		}
	}
	if err != nil && e.ctx.Err() == nil {
		e.log.Warn("this node's new addresses are not recorded yet", "error", err)
	}
}

// offer asks one node, which may be the leader, to take a command.
func (e *engine) offer(address string, p fsm.Proposal) error {
	ctx, cancel := context.WithTimeout(e.ctx, offerTimeout)
	defer cancel()
	_, err := e.config.Peers.Propose(ctx, address, p, e.id)
	return err
}

// addressKnown tells whether this node's addresses are recorded, or need not be. A
// node that has just started knows Raft's configuration only.
func (e *engine) addressKnown(s *fsm.State) bool {
	c := e.config
	if s.Initialized() {
		self, ok := s.Member(e.id)
		return !ok || !self.Serves() || self.PeerAddress == c.PeerAddress && self.ClientAddress == c.ClientAddress
	}
	self, ok := e.servers()[e.id]
	return !ok || string(self.Address) == c.PeerAddress
}

// servers are the nodes in Raft's configuration, by raft id, as this node knows it.
func (e *engine) servers() map[string]raft.Server {
	out := map[string]raft.Server{}
	configuration := e.raft.GetConfiguration()
	if configuration.Error() == nil {
		for _, srv := range configuration.Configuration().Servers {
			out[string(srv.ID)] = srv
		}
	}
	return out
}

// peers are the addresses at which other nodes may live: those of the state and
// those of Raft's configuration, which is known before any state is.
func (e *engine) peers() []string {
	out := e.member.OtherPeers()
	for id, srv := range e.servers() {
		if address := string(srv.Address); id != e.id && !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	slices.Sort(out)
	return out
}

// inRaft tells whether a node is in Raft's configuration as this node knows it.
func (e *engine) inRaft(id string) bool {
	_, ok := e.servers()[id]
	return ok
}

// Invitation asks for a join token.
type Invitation struct {
	Name     string        // of the node
	ValidFor time.Duration // at most an hour
	Voter    bool
	Identity []byte // SHA-256 of its node identity key; nil: an operator approves it later
}

// command is the invitation as a command. A cluster that is not upgraded yet knows tickets
// that let any HSM partition in.
func (i Invitation) command(s *fsm.State, id string, public ed25519.PublicKey) fsm.Command {
	seconds := int64(i.ValidFor / time.Second)
	if s.Cluster().Release == fsm.FirstRelease && i.Identity == nil {
		return &fsm.CreateTicket{ID: id, PublicKey: public, Name: i.Name, Seconds: seconds, Voter: i.Voter}
	}
	return &fsm.InviteNode{ID: id, PublicKey: public, Name: i.Name, Seconds: seconds, Voter: i.Voter, Identity: i.Identity}
}

// Invite makes a one-time ticket and returns the token that carries its secret.
// propose commits a command in the caller's name.
func (m *Member) Invite(ctx context.Context, i Invitation, propose func(context.Context, fsm.Command) (fsm.Result, error)) (JoinToken, *fsm.Ticket, error) {
	s := m.State()
	public, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return JoinToken{}, nil, err
	}
	g, err := s.ActiveGeneration()
	if err != nil {
		return JoinToken{}, nil, err
	}
	token := JoinToken{Cluster: s.Cluster().ID, Ticket: secret, Pin: m.config.Pin()}
	for _, c := range hsmGeneration(g).Checks {
		if c.Kind == hsm.KindLog {
			token.LogKey = c.Value
		}
	}
	result, err := propose(ctx, i.command(s, token.ID(), public))
	if err != nil {
		return JoinToken{}, nil, err
	}
	t, ok := m.State().Ticket(result.ID)
	if !ok || result.ID != token.ID() {
		return JoinToken{}, nil, fmt.Errorf("%w: ticket %s is another or used already", fsm.ErrExists, result.ID)
	}
	return token, t, nil
}

// MayInvite says why the invitation cannot be made now, if so.
func (m *Member) MayInvite(i Invitation) error {
	s := m.State()
	_, err := s.Try(i.command(s, "trial", make([]byte, ed25519.PublicKeySize)))
	return err
}

// Find returns the living member of that name or raft id.
func (m *Member) Find(node string) (*fsm.Member, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	s := e.machine.State()
	if found := s.MemberByName(node); found != nil {
		return found, nil
	}
	if found, ok := s.Member(node); ok && found.Alive() {
		return found, nil
	}
	return nil, fmt.Errorf("%w: node %q is no member", fsm.ErrNotFound, node)
}

// Remove takes a node out and returns when it is gone from the state: it can serve
// nothing any more.
func (m *Member) Remove(ctx context.Context, id string, propose func(context.Context, fsm.Command) (fsm.Result, error)) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	if err := m.leadsNot(ctx, e, id); err != nil {
		return err
	}
	if _, err := propose(ctx, &fsm.RemoveNode{ID: id}); err != nil {
		return err
	}
	return m.WaitGone(ctx, id)
}

// leadsNot takes the leadership from a node that is about to lose its vote.
func (m *Member) leadsNot(ctx context.Context, e *engine, id string) error {
	if _, leader := e.leader(); leader == id {
		if _, err := m.TransferLeadership(ctx, ""); err != nil {
			return fmt.Errorf("the node leads the cluster, and the leadership could not be handed over: %w", err)
		}
	}
	return nil
}

// WaitGone returns when a removed node is gone from the state and from Raft.
func (m *Member) WaitGone(ctx context.Context, id string) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	for {
		if member, ok := e.machine.State().Member(id); (!ok || !member.Alive()) && !e.inRaft(id) {
			return nil
		}
		select {
		case <-time.After(retryPause): // Raft's configuration tells nobody when it changes
		case <-e.ctx.Done():
			return ErrShutdown
		case <-ctx.Done():
			return fmt.Errorf("%w: the removal is committed but not finished: %w", ErrOutcomeUnknown, ctx.Err())
		}
	}
}
