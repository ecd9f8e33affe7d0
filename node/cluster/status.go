package cluster

import (
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
}

// MemberStatus is one living member.
type MemberStatus struct {
	*fsm.Member
	Votes   bool   // its present role in Raft
	Leader  bool   // as this node knows
	Heard   bool   // this node has heard of it lately, other than by gossip
	Applied uint64 // as the leader last heard; 0 where this node does not lead
}

// Status reports without asking any other node.
func (m *Member) Status() Status {
	out := Status{ID: m.ID(), State: m.State()}
	e, err := m.engine()
	if err != nil {
		return out
	}
	out.Joined, out.Cluster = true, e.cluster
	_, out.LeaderID = e.leader()
	out.Term, out.LastLog = e.raft.CurrentTerm(), e.raft.LastIndex()
	out.Applied, out.LeaseLeft = out.State.Index(), max(0, m.LeaseLeft())
	servers, leads := e.servers(), e.leads()
	for _, x := range out.State.Members() {
		if !x.Alive() {
			continue
		}
		s := MemberStatus{Member: x, Votes: servers[x.ID].Suffrage == raft.Voter && servers[x.ID].ID != "", Leader: x.ID == out.LeaderID}
		s.Heard = s.Leader
		if leads {
			applied, ago, ok := e.grantor.progress(x.ID)
			s.Applied, s.Heard = applied, ok && ago < transferRecent
		}
		out.Members = append(out.Members, s)
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
