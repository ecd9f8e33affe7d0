package nodetest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// nemesis does to a cluster what a schedule says.
type nemesis struct {
	cluster *Cluster

	mu     sync.Mutex
	paused []fault // pauses under way

	membership sync.Mutex // never waited for: one change at a time
}

// run does all of a schedule and undoes it.
func (n *nemesis) run(faults []fault) {
	start := time.Now()
	var under sync.WaitGroup
	for _, f := range faults {
		time.Sleep(f.at - time.Since(start))
		under.Go(func() {
			undo := n.begin(f)
			time.Sleep(f.lasts)
			undo()
		})
	}
	under.Wait()
}

// counted is the node with that number from the leader, or any if none leads.
func (n *nemesis) counted(number int) *Node {
	c := n.cluster
	leader := c.Leader()
	if leader == nil {
		leader = c.Nodes[0]
	}
	if number == 0 {
		return leader
	}
	for _, x := range c.Nodes {
		if x == leader {
			continue
		}
		if number--; number == 0 {
			return x
		}
	}
	return leader
}

// begin starts a fault and returns what ends it.
func (n *nemesis) begin(f fault) (undo func()) {
	c := n.cluster
	a, b := c.Nodes[f.a], c.Nodes[f.b]
	c.Trace.Event(string(f.kind), "%s", f)
	switch f.kind { //nolint:exhaustive // the others are below
	case isolate:
		return n.cut(func(from, to *Node) bool { return from == a || to == a })
	case deaf:
		return n.cut(func(_, to *Node) bool { return to == a })
	case mute:
		return n.cut(func(from, _ *Node) bool { return from == a })
	case oneWay:
		return n.cut(func(from, to *Node) bool { return from == a && to == b })
	case bridge:
		return n.cut(func(from, to *Node) bool { return from == a && to == b || from == b && to == a })
	case alone:
		leader := n.counted(0)
		return n.cut(func(from, to *Node) bool { return from == leader || to == leader })
	case aloneHung:
		leader := n.counted(0)
		return all([]func(){hang(leader), n.cut(func(from, to *Node) bool { return from == leader || to == leader })})
	case withHung:
		return n.withHung(n.counted(0), n.counted(1+f.a%(len(c.Nodes)-1)))
	case split:
		side := func(x *Node) bool {
			for _, y := range c.Nodes[:f.a+1] {
				if x == y {
					return true
				}
			}
			return false
		}
		return n.cut(func(from, to *Node) bool { return side(from) != side(to) })
	case late:
		return n.links(Link{Late: f.part, Delay: f.delay}, func(_, _ *Node) bool { return true })
	case lateLink:
		return n.links(Link{Late: 0.9, Delay: f.delay}, func(from, to *Node) bool { return from == a && to == b })
	case loss:
		return n.links(Link{Loss: f.part}, func(_, _ *Node) bool { return true })
	default:
		return n.beginLocal(f, a)
	}
}

// beginLocal starts a fault of machines or processes.
func (n *nemesis) beginLocal(f fault, a *Node) (undo func()) {
	c := n.cluster
	switch f.kind {
	case hungDisk:
		return hang(a)
	case hungOthers:
		leader := n.counted(0)
		var undos []func()
		for _, x := range c.Nodes {
			if x != leader {
				undos = append(undos, hang(x))
			}
		}
		return all(undos)
	case pauses:
		return n.pause(f)
	case transfer:
		n.transfer(n.counted(1 + f.a%(len(c.Nodes)-1)))
	case crash:
		a.Crash()
		return func() { c.start(a) }
	case crashLead:
		leader := n.counted(0)
		leader.Crash()
		return func() { c.start(leader) }
	case crashAll:
		for _, x := range c.Nodes {
			x.Crash()
		}
		return func() {
			for _, x := range c.Nodes {
				c.start(x)
			}
		}
	case restart:
		a.Stop()
		return func() { c.start(a) }
	case rejoin:
		n.change(func(ctx context.Context) error { return n.rejoin(ctx, a, f.lasts) })
	case revote:
		n.change(func(ctx context.Context) error { return n.revote(ctx, a, f.lasts) })
	default: // of the network
	}
	return func() {}
}

func all(undos []func()) func() {
	return func() {
		for _, undo := range undos {
			undo()
		}
	}
}

// links puts a rule on every link that matches.
func (n *nemesis) links(l Link, match func(from, to *Node) bool) (undo func()) {
	var undos []func()
	for _, from := range n.cluster.Nodes {
		for _, to := range n.cluster.Nodes {
			if from != to && match(from, to) {
				undos = append(undos, n.cluster.Network.Set(from.Name, to.Name, l))
			}
		}
	}
	return all(undos)
}

func (n *nemesis) cut(match func(from, to *Node) bool) (undo func()) {
	return n.links(Link{Cut: true}, match)
}

func hang(x *Node) (undo func()) {
	disk := x.Disk()
	disk.Stall()
	return disk.Resume
}

// withHung leaves the leader one follower, whose disk hangs: it answers heartbeats
// until it has something to write, and the leader can commit nothing.
func (n *nemesis) withHung(leader, follower *Node) (undo func()) {
	inside := func(x *Node) bool { return x == leader || x == follower }
	return all([]func(){hang(follower), n.cut(func(from, to *Node) bool { return inside(from) != inside(to) })})
}

func (n *nemesis) pause(f fault) (undo func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused = append(n.paused, f)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.paused = slices.Delete(n.paused, slices.Index(n.paused, f), slices.Index(n.paused, f)+1)
	}
}

func (n *nemesis) transfer(target *Node) {
	leader := n.counted(0)
	m, to := leader.Member(), target.ID()
	if m == nil {
		return
	}
	n.cluster.background(func() {
		ctx, cancel := context.WithTimeout(n.cluster.ctx, 5*time.Second)
		defer cancel()
		_, err := m.TransferLeadership(ctx, to)
		n.cluster.Trace.Event("transferred", "to %s: %v", to, err)
	})
}

// changing bounds one change of the members: it may have to wait a lease out.
const changing = 40 * time.Second

// change changes the members, unless another change is under way.
func (n *nemesis) change(f func(context.Context) error) {
	c := n.cluster
	c.background(func() {
		if !n.membership.TryLock() {
			return
		}
		defer n.membership.Unlock()
		ctx, cancel := context.WithTimeout(c.ctx, changing)
		defer cancel()
		c.Trace.Event("changed", "%v", f(ctx)) // what is left undone is mended at the end
	})
}

// rejoin takes a node out and brings it back as a new one. The leader is left alone.
func (n *nemesis) rejoin(ctx context.Context, a *Node, away time.Duration) error {
	if err := n.cluster.Remove(ctx, a); err != nil {
		return err
	}
	if err := sleepFor(n.cluster.ctx, away); err != nil {
		return err
	}
	return n.cluster.Rejoin(a)
}

// revote takes a node's vote, if it has one, and gives it back.
func (n *nemesis) revote(ctx context.Context, a *Node, without time.Duration) error {
	if !a.voter {
		return nil
	}
	if err := n.setVoter(ctx, a, false); err != nil {
		return err
	}
	if err := sleepFor(n.cluster.ctx, without); err != nil {
		return err
	}
	return n.setVoter(ctx, a, true)
}

func (n *nemesis) setVoter(ctx context.Context, a *Node, voter bool) error {
	leader := n.cluster.Leader()
	if leader == nil || leader.Member() == nil {
		return cluster.ErrNoLeader
	}
	m := leader.Member()
	return m.SetVoter(ctx, a.ID(), voter, func(ctx context.Context, command fsm.Command) (fsm.Result, error) {
		return m.Propose(ctx, request(command))
	})
}

// mend brings every machine back that the faults have left outside.
func (n *nemesis) mend() {
	c := n.cluster
	for _, x := range c.Nodes {
		c.start(x)
	}
	_ = c.Await(2*time.Minute, func() error { // what is left is found by Healthy
		if !n.membership.TryLock() {
			return errDown
		}
		defer n.membership.Unlock()
		err := c.Healthy()
		leader := c.Leader()
		if err == nil || leader == nil || leader.Member() == nil {
			return err
		}
		for _, x := range c.Nodes {
			m, ok := leader.Member().State().Member(x.ID())
			if ok && m.Serves() {
				c.start(x)
				if m.Voter != x.voter {
					ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
					_ = n.setVoter(ctx, x, x.voter) // tried again
					cancel()
				}
				continue
			}
			if ok && m.Alive() {
				continue // it is on its way out
			}
			_ = c.Rejoin(x) // tried again
		}
		return err
	})
}
