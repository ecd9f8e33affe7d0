package cluster

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// Status is what a node knows of its cluster and of its own part in it.
type Status struct {
	ID        string
	Cluster   fsm.ID // zero while the node belongs to none
	LeaderID  string
	Term      uint64
	Applied   uint64
	LastLog   uint64
	LeaseLeft time.Duration
	State     *fsm.State
	Members   []MemberStatus
	Joined    bool
	Splits    []string // other histories of this cluster that were found alive

	RefusedJoins uint64 // requests to join that this node has refused since it started
}

// MemberStatus is one living member.
type MemberStatus struct {
	*fsm.Member
	Votes     bool          // its present role in Raft
	Leader    bool          // as this node knows
	Heard     bool          // the leader has heard of it lately
	Applied   uint64        // as the leader last heard; 0 if it does not say
	LeaseLeft time.Duration // at most, as the leader granted it
}

// Progress is what the leader knows of a member.
type Progress struct {
	Node      string // raft id
	Applied   uint64
	Ago       time.Duration // since it was last heard of
	LeaseLeft time.Duration // at most
}

// progressTimeout bounds the question to the leader: a status must come without it.
const progressTimeout = 500 * time.Millisecond

// Status reports what this node knows, and of the other members what the leader
// does, if it answers at once.
func (m *Member) Status(ctx context.Context) Status {
	out := Status{ID: m.ID(), State: m.State()}
	e, err := m.engine()
	if err != nil {
		return out
	}
	out.Joined, out.Cluster = true, e.cluster
	_, out.LeaderID = e.leader()
	out.Term, out.LastLog = e.raft.CurrentTerm(), e.raft.LastIndex()
	out.Applied, out.LeaseLeft = out.State.Index(), max(0, m.LeaseLeft())
	out.Splits, out.RefusedJoins = e.splitsSeen(), m.refusedJoins.Load()
	servers, known := e.servers(), e.progress(ctx)
	for _, x := range out.State.Members() {
		if !x.Alive() {
			continue
		}
		s := MemberStatus{Member: x, Votes: servers[x.ID].Suffrage == raft.Voter && servers[x.ID].ID != "", Leader: x.ID == out.LeaderID}
		p, ok := known[x.ID]
		s.Applied, s.LeaseLeft, s.Heard = p.Applied, p.LeaseLeft, s.Leader || ok && e.recent(p.Ago)
		out.Members = append(out.Members, s)
	}
	return out
}

// progress asks the leader, which may be this node, how far the members are.
func (e *engine) progress(ctx context.Context) map[string]Progress {
	address, id := e.leader()
	var all []Progress
	if id == e.id {
		all = e.grantor.all()
	} else if id != "" {
		ctx, cancel := context.WithTimeout(ctx, progressTimeout)
		defer cancel()
		var err error
		if all, err = e.config.Peers.Progress(ctx, address); err != nil {
			e.log.Debug("the leader does not say how far the members are", "error", err)
		}
	}
	out := make(map[string]Progress, len(all))
	for _, p := range all {
		out[p.Node] = p
	}
	return out
}

// HandleProgress is the leader's answer to how far the members are.
func (m *Member) HandleProgress() ([]Progress, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	if !e.leads() {
		return nil, e.noLeader()
	}
	return e.grantor.all(), nil
}

// Difference is a member whose state is not the leader's; which of both is wrong it does not say.
type Difference struct {
	*fsm.Member
	Index uint64 // at which it was first seen
}

// Differences are the members whose running hash is another one than the leader's. The leader
// knows it of those that asked for a lease, also of one that has stopped since, until it is
// removed; another node of itself.
func (m *Member) Differences() (out []Difference) {
	e, err := m.engine()
	if err != nil {
		return nil
	}
	differing := map[string]uint64{}
	if e.leads() {
		differing = e.grantor.differing()
	} else if d := e.machine.Differs(); d != nil {
		differing[e.id] = d.Index
	}
	for _, x := range m.State().Members() {
		if index, ok := differing[x.ID]; ok && x.Alive() {
			out = append(out, Difference{x, index})
		}
	}
	return out
}

// all is what this leader knows of every node that it has heard of.
func (g *grantor) all() []Progress {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, margin := g.clock.Now(), withMargin(g.duration())-g.duration()
	out := make([]Progress, 0, len(g.heard))
	for node, at := range g.heard {
		out = append(out, Progress{Node: node, Applied: g.acked[node], Ago: now - at, LeaseLeft: max(0, g.bound[node]-margin-now)})
	}
	return out
}

// OtherClients are the client addresses of the other members that may serve.
func (m *Member) OtherClients() []string {
	var out []string
	for _, x := range m.State().Members() {
		if x.Serves() && x.ID != m.ID() {
			out = append(out, x.ClientAddress)
		}
	}
	return out
}

// OtherPeers are the peer addresses of the other living members.
func (m *Member) OtherPeers() []string {
	var out []string
	for _, x := range m.State().Members() {
		if x.Alive() && x.ID != m.ID() {
			out = append(out, x.PeerAddress)
		}
	}
	return out
}

// PeerName is the name of the member that lives at a peer address.
func (m *Member) PeerName(address string) (string, bool) {
	for _, x := range m.State().Members() {
		if x.Alive() && x.PeerAddress == address {
			return x.Name, true
		}
	}
	return "", false
}

// Removed tells whether a node of that name was removed and none has its name now.
func (m *Member) Removed(name string) bool {
	s := m.State()
	return s.MemberByName(name) == nil &&
		slices.ContainsFunc(s.Members(), func(x *fsm.Member) bool { return x.Name == name })
}
