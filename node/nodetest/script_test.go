package nodetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
	"github.com/quorumkms/quorumkms/node/rules"
)

// script is one schedule, written out, that a cluster without its rule does not
// survive.
type script struct {
	name   string
	rule   rules.Rule
	adjust func(*Options)
	// confirmed says that every restriction is confirmed by every node: then nothing
	// may be handed over behind it, not even for a moment.
	confirmed bool
	breaks    string // the rule of histories that is broken without it; empty: any
	run       func(s *stage) error
}

// stage is a healthy cluster with one enabled key, and who plays.
type stage struct {
	*Cluster
	client *Client
	key    fsm.ID
	leader *Node
	victim *Node // the follower that must not serve what it should not
	other  *Node

	done chan struct{}
	uses sync.WaitGroup
}

// perform runs a script and judges it.
func perform(t *testing.T, sc script) []history.Violation {
	t.Helper()
	dir := t.TempDir()
	var h history.History
	synctest.Test(t, func(t *testing.T) {
		o := Defaults(11, 3)
		if sc.adjust != nil {
			sc.adjust(&o)
		}
		c, err := New(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		s := &stage{
			Cluster: c, client: c.NewClient(), key: uuid.New(), done: make(chan struct{}),
			leader: c.Leader(), victim: c.Follower(0), other: c.Follower(1),
		}
		if err = s.client.Write(history.Create, s.key, s.through(s.leader)); err == nil {
			time.Sleep(3 * time.Second)
			err = sc.run(s)
			time.Sleep(settleTime)
		}
		close(s.done)
		s.uses.Wait()
		c.Close()
		if err = errors.Join(err, c.Broken()); err != nil {
			t.Fatalf("the script %q could not be played: %v", sc.name, err)
		}
		h = c.History.History()
	})
	r := history.Rules{Slack: driftSlack}
	if sc.confirmed {
		r.Slack = -history.HandOver
	}
	if history.Summarize(h).Released == 0 {
		t.Fatalf("the script %q proves nothing: no use was released", sc.name)
	}
	return history.Check(h, r)
}

func (s *stage) through(n *Node) func() *Node { return func() *Node { return n } }

// disable restricts the key through a node.
func (s *stage) disable(n *Node) error { return s.client.Write(history.Disable, s.key, s.through(n)) }

// grant makes a grant that nobody has used yet.
func (s *stage) grant() (Grant, error) {
	g := NewGrant(s.key, fsm.DefaultTenant, newGrantee())
	return g, s.client.Give(g, s.through(s.leader))
}

// probe uses the key on a node all the time.
func (s *stage) probe(n *Node, by ...Right) {
	client := s.NewClient()
	s.uses.Go(func() {
		for {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-s.done:
				return
			}
			_ = client.Use(n, s.key, Pauses{}, by...) // recorded
		}
	})
	time.Sleep(100 * time.Millisecond)
}

// use uses the key once, with pauses.
func (s *stage) use(n *Node, p Pauses, by ...Right) {
	client := s.NewClient()
	s.uses.Go(func() { _ = client.Use(n, s.key, p, by...) }) // recorded
}

// hasEntries tells whether a message brings a node's log forward.
func hasEntries(m any) bool {
	a, ok := m.(*raft.AppendEntriesRequest)
	return ok && len(a.Entries) > 0 || isType[*raft.InstallSnapshotRequest](m)
}

// cutOff parts a node from all others.
func (s *stage) cutOff(n *Node) (heal func()) {
	return s.rule(Link{Cut: true}, func(from, to *Node) bool { return from == n || to == n })
}

func (s *stage) rule(l Link, match func(from, to *Node) bool) (undo func()) {
	return (&nemesis{cluster: s.Cluster}).links(l, match)
}

// link puts a rule on one direction.
func (s *stage) link(from, to *Node, l Link) (undo func()) {
	return s.Network.Set(from.Name, to.Name, l)
}

// neverLeads loses a node's requests for votes.
func (s *stage) neverLeads(n *Node) {
	s.rule(Link{Cut: true, Match: func(m any) bool {
		switch m.(type) {
		case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
			return true
		}
		return false
	}}, func(from, _ *Node) bool { return from == n })
}

// commitsUpTo keeps a node from learning of commits behind an index.
func (s *stage) commitsUpTo(n *Node, index uint64) {
	s.rule(Link{Alter: func(m any) any {
		r, ok := m.(*raft.AppendEntriesRequest)
		if !ok || r.LeaderCommitIndex <= index {
			return m
		}
		altered := *r
		altered.LeaderCommitIndex = index
		return &altered
	}}, func(_, to *Node) bool { return to == n })
}

// awaitLeader waits until a node leads.
func (s *stage) awaitLeader(n *Node) error {
	return s.Await(30*time.Second, func() error {
		if s.Leader() != n {
			return fmt.Errorf("%s does not lead", n.Name)
		}
		return nil
	})
}

func isType[T any](m any) bool {
	_, ok := m.(T)
	return ok
}

// scripts are at least one for every rule.
func scripts() []script {
	return slices.Concat(grantorScripts(), lesseeScripts(), rightScripts())
}

// rightScripts are about rights that are given and taken.
func rightScripts() []script {
	// taken takes a right while its user's node is cut off.
	taken := func(s *stage, r Right) error {
		s.probe(s.victim, r)
		s.cutOff(s.victim)
		return s.client.Take(r, s.through(s.leader))
	}
	return []script{
		{name: "a grant is revoked that a cut-off follower knows", rule: rules.Wait, breaks: "restriction", run: func(s *stage) error {
			g, err := s.grant()
			return errors.Join(err, taken(s, g))
		}},
		{name: "a principal is disabled that uses a cut-off follower", rule: rules.Wait, breaks: "restriction", run: func(s *stage) error {
			return taken(s, newGrantee())
		}},
		{name: "a tenant is frozen whose key a cut-off follower uses", rule: rules.Wait, breaks: "restriction", run: func(s *stage) error {
			return taken(s, Tenant(fsm.DefaultTenant))
		}},
		{name: "a result under a grant is on its way", rule: rules.HandedOver, confirmed: true, breaks: "restriction", run: func(s *stage) error {
			g, err := s.grant()
			s.use(s.victim, Pauses{HandOver: 90 * time.Millisecond}, g)
			time.Sleep(5 * time.Millisecond)
			return errors.Join(err, s.client.Take(g, s.through(s.leader)))
		}},
		{name: "a grant is made while a follower is cut off", rule: rules.Wait, breaks: "right", run: func(s *stage) error {
			s.probe(s.victim)
			s.cutOff(s.victim)
			g, err := s.grant()
			s.use(s.victim, Pauses{}, g)
			return err
		}},
		{name: "a grant is made that a follower learns late of", rule: rules.AckApplied, breaks: "right", run: func(s *stage) error {
			s.probe(s.victim)
			s.commitsUpTo(s.victim, s.victim.Member().State().Index())
			g, err := s.grant()
			s.use(s.victim, Pauses{}, g)
			return err
		}},
	}
}

// grantorScripts are about what the leader must do.
func grantorScripts() []script {
	return []script{
		{name: "a cut-off follower holds a lease", rule: rules.Wait, run: func(s *stage) error {
			s.probe(s.victim)
			s.cutOff(s.victim)
			return s.disable(s.leader)
		}},
		{name: "the caller loses patience and asks again", rule: rules.RepeatWaits, run: repeatInDoubt},
		{name: "a leader whose disk hangs believes that it leads", rule: rules.Tick, run: func(s *stage) error {
			s.probe(s.leader)
			s.leader.Disk().Stall()
			s.background(func() { _ = s.NewClient().Write(history.Touch, s.key, s.through(s.leader)) }) // it hangs
			time.Sleep(50 * time.Millisecond)
			s.cutOff(s.leader)
			s.neverLeads(s.other)
			if err := s.awaitLeader(s.victim); err != nil {
				return err
			}
			return s.disable(s.victim)
		}},
		{name: "a restriction right behind a grant", rule: rules.BoundFirst, run: restrictBehindGrant},
		{name: "a leader that is cut off holds a lease", rule: rules.Floor, run: func(s *stage) error {
			s.neverLeads(s.other)
			s.probe(s.leader)
			s.cutOff(s.leader)
			if err := s.awaitLeader(s.victim); err != nil {
				return err
			}
			return s.disable(s.victim)
		}},
		{name: "a leader is elected again", rule: rules.FloorPerTerm, run: func(s *stage) error {
			s.neverLeads(s.other)
			if _, err := s.leader.Member().TransferLeadership(s.ctx, s.victim.ID()); err != nil {
				return err
			}
			time.Sleep(12 * time.Second)
			s.probe(s.victim)
			s.cutOff(s.victim)
			if err := s.awaitLeader(s.leader); err != nil {
				return err
			}
			return s.disable(s.leader)
		}},
		{name: "the leader's clock is fast, the follower's slow", rule: rules.Margin, adjust: func(o *Options) {
			o.Drift = func(n int) Drift { return Drift{Rate: 1.1 - 0.2*float64(min(n, 1))} }
		}, run: func(s *stage) error {
			if s.leader != s.Nodes[0] {
				return errors.New("another node leads than the one that founded the cluster")
			}
			s.probe(s.victim)
			s.cutOff(s.victim)
			return s.disable(s.leader)
		}},
		{name: "a follower is removed while it is cut off", rule: rules.LeavingWaits, run: restrictDuringRemoval},
		{name: "a removed follower goes before its lease", rule: rules.RetireWaits, run: restrictDuringRemoval},
	}
}

// repeatInDoubt asks for a restriction, gives up, and asks again under its request id.
func repeatInDoubt(s *stage) error {
	s.probe(s.victim)
	s.cutOff(s.victim)
	p := request(command(history.Disable, s.key))
	for _, patience := range []time.Duration{500 * time.Millisecond, 20 * time.Second} {
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		call := s.client.begin(s.leader.running(), s.leader, history.Disable, s.key.String())
		result, err := s.leader.Member().Propose(ctx, p)
		cancel()
		call.End(outcomeOf(err), history.Answer{Index: result.Index, Note: text(err)})
		if patience > time.Second && err != nil {
			return err
		}
	}
	return nil
}

// restrictBehindGrant lets one lease request of a follower through after a while and
// restricts when its grant is sent; the follower does not learn of the restriction.
func restrictBehindGrant(s *stage) error {
	s.probe(s.victim)
	granted := make(chan uint64, 1)
	allow := s.link(s.victim, s.leader, Link{Cut: true, Match: isType[cluster.LeaseRequest]})
	time.Sleep(4 * time.Second)
	s.link(s.leader, s.victim, Link{Match: func(m any) bool {
		if g, ok := m.(cluster.LeaseGrant); ok && g.MinIndex != 0 {
			select {
			case granted <- g.MinIndex:
			default:
			}
		}
		return false
	}})
	allow()
	index := <-granted
	s.commitsUpTo(s.victim, index)
	s.link(s.victim, s.leader, Link{Cut: true, Match: isType[cluster.LeaseRequest]})
	return s.disable(s.leader)
}

// restrictDuringRemoval removes a follower that is cut off and restricts a key
// meanwhile.
func restrictDuringRemoval(s *stage) error {
	s.probe(s.victim)
	s.cutOff(s.victim)
	s.background(func() { _ = s.Remove(s.ctx, s.victim) }) // recorded
	time.Sleep(2 * time.Second)
	return s.disable(s.leader)
}

// lesseeScripts are about what every node must do.
func lesseeScripts() []script {
	return []script{
		{name: "grants are long on their way", rule: rules.SendTime, run: func(s *stage) error {
			s.probe(s.victim)
			s.link(s.leader, s.victim, Link{Least: 4500 * time.Millisecond, Match: isType[cluster.LeaseGrant]})
			time.Sleep(8 * time.Second)
			s.link(s.victim, s.leader, Link{Cut: true, Match: isType[cluster.LeaseRequest]}) // what is on its way arrives
			s.link(s.leader, s.victim, Link{Cut: true, Match: hasEntries})
			return s.disable(s.leader)
		}},
		{name: "a follower gets leases and no entries", rule: rules.MinIndex, run: func(s *stage) error {
			s.probe(s.victim)
			s.link(s.leader, s.victim, Link{Cut: true, Match: hasEntries})
			return s.disable(s.leader)
		}},
		{name: "a follower crashes right behind a restriction", rule: rules.InMemory, adjust: func(o *Options) {
			o.Raft.SnapshotInterval, o.Raft.SnapshotThreshold, o.Raft.TrailingLogs = 300*time.Millisecond, 1, 1
		}, run: func(s *stage) error {
			s.probe(s.victim)
			for index := s.victim.Disk().snapshotIndex(); s.victim.Disk().snapshotIndex() == index; {
				time.Sleep(time.Millisecond)
			}
			if err := s.disable(s.leader); err != nil {
				return err
			}
			s.victim.Crash()
			s.cutOff(s.victim)
			return s.victim.Start()
		}},
		{name: "a follower learns late what is committed", rule: rules.AckApplied, run: func(s *stage) error {
			s.probe(s.victim)
			s.commitsUpTo(s.victim, s.victim.Member().State().Index())
			return s.disable(s.leader)
		}},
		{name: "a result is on its way", rule: rules.HandedOver, confirmed: true, run: func(s *stage) error {
			s.use(s.victim, Pauses{HandOver: 90 * time.Millisecond})
			time.Sleep(5 * time.Millisecond)
			return s.disable(s.leader)
		}},
		{name: "a healthy follower is removed", rule: rules.Membership, run: func(s *stage) error {
			s.probe(s.victim)
			return s.Remove(s.ctx, s.victim)
		}},
		{name: "an operation is slow", rule: rules.FinalCheck, run: func(s *stage) error {
			s.probe(s.victim)
			s.use(s.victim, Pauses{Work: 2 * time.Second})
			time.Sleep(100 * time.Millisecond)
			return s.disable(s.leader)
		}},
		{name: "a follower comes back between the two checks", rule: rules.LeaseFirst, run: returnBetweenChecks},
		{name: "a virtual machine was paused", rule: rules.Leap, run: func(s *stage) error {
			s.use(s.victim, Pauses{})
			s.cutOff(s.victim)
			s.victim.Clock.Stop()
			if err := s.disable(s.leader); err != nil {
				return err
			}
			s.victim.Clock.Resume()
			s.probe(s.victim)
			return nil
		}},
		{name: "a pause between the two checks", rule: rules.Recheck, run: func(s *stage) error {
			s.use(s.victim, Pauses{})
			s.cutOff(s.victim)
			s.use(s.victim, Pauses{Lease: 9 * time.Second})
			return s.disable(s.leader)
		}},
		{name: "a pause behind the checks", rule: rules.Recheck, run: func(s *stage) error {
			s.use(s.victim, Pauses{})
			s.cutOff(s.victim)
			s.use(s.victim, Pauses{HandOver: 9 * time.Second})
			return s.disable(s.leader)
		}},
	}
}

// returnBetweenChecks has operations at their checks all the time while a follower
// that was cut off catches up.
func returnBetweenChecks(s *stage) error {
	s.probe(s.victim)
	heal := s.cutOff(s.victim)
	for at := 8 * time.Second; at < 14*time.Second; at += 10 * time.Millisecond {
		s.use(s.victim, Pauses{Work: at, State: 90 * time.Millisecond})
	}
	began := time.Now()
	if err := s.disable(s.leader); err != nil {
		return err
	}
	time.Sleep(8100*time.Millisecond - time.Since(began))
	heal()
	return nil
}

// settleTime is how long the players go on behind a script.
const settleTime = 12 * time.Second

// TestScripts: with all rules in place, every script is survived.
func TestScripts(t *testing.T) {
	covered := map[rules.Rule]bool{}
	for _, sc := range scripts() {
		covered[sc.rule] = true
		t.Run(sc.name, func(t *testing.T) {
			for _, v := range perform(t, sc) {
				t.Error(v)
			}
		})
	}
	for _, r := range rules.All() {
		if !covered[r] {
			t.Errorf("no script needs the rule %s", r)
		}
	}
}
