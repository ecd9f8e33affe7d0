package cluster

import (
	"cmp"
	"slices"
	"time"
)

// Leads tells whether this node leads, as far as it knows.
func (m *Member) Leads() bool {
	e, err := m.engine()
	return err == nil && e.leads()
}

// MajorityTime is the latest time that the wall clocks of a majority of voters have
// reached, as a leader heard of them while it granted leases: what cannot be undone is not
// done on one clock's word. ok is false if this node does not lead or has not heard of a
// majority within a lease.
func (m *Member) MajorityTime() (at time.Time, ok bool) {
	e, err := m.engine()
	if err != nil || !e.leads() {
		return time.Time{}, false
	}
	var voters []string
	for _, x := range e.machine.State().Members() {
		if x.Serves() && x.Voter {
			voters = append(voters, x.ID)
		}
	}
	ahead, ok := e.grantor.majorityAhead(e.id, voters)
	return e.config.Now().Add(ahead), ok
}

// majorityAhead is by how much the clocks of a majority are ahead of the leader's at
// least; it is negative if they are behind.
func (g *grantor) majorityAhead(self string, voters []string) (ahead time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var known []time.Duration
	for _, node := range voters {
		heard, found := g.heard[node]
		v, viewed := g.views[node]
		switch {
		case node == self:
			known = append(known, 0)
		case found && viewed && g.clock.Now()-heard < g.duration():
			known = append(known, v.ahead)
		}
	}
	majority := len(voters)/2 + 1
	if len(known) < majority {
		return 0, false
	}
	slices.SortFunc(known, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	return known[majority-1], true
}
