package nodetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

const (
	trustDomain = "sim.test"
	operator    = "spiffe://sim.test/operator/sim"
)

// Options say what to run.
type Options struct {
	// Seed decides delays and losses of single messages and writes; schedules have a
	// source of their own.
	Seed      uint64
	Voters    int
	NonVoters int
	Lease     time.Duration
	Renewal   cluster.LeaseTiming
	Raft      cluster.RaftTiming
	// Latency is how long a message takes, DiskLatency a write, at most.
	Latency     time.Duration
	DiskLatency time.Duration
	// Making is how long a node's HSM takes to make a key, at most.
	Making time.Duration
	// Drift is that of the clock of the node with that number, from 0. Nil: none.
	Drift func(number int) Drift
}

// Defaults are the production timing, with snapshots so small that lagging nodes need
// them.
func Defaults(seed uint64, voters int) Options {
	return Options{
		Seed: seed, Voters: voters, Lease: cluster.DefaultLease,
		Renewal: cluster.LeaseTiming{Renew: time.Second, Batch: 20 * time.Millisecond},
		Raft: cluster.RaftTiming{
			Heartbeat: time.Second, Election: time.Second, SnapshotInterval: 4 * time.Second, SnapshotThreshold: 60, TrailingLogs: 20,
		},
		Latency: time.Millisecond, DiskLatency: 2 * time.Millisecond,
	}
}

// Cluster is all nodes in one bubble. It must be made and closed inside it.
type Cluster struct {
	Network *Network
	Trace   *Trace
	History *history.Recorder
	Duties  *Duties
	Nodes   []*Node

	options Options
	dir     string
	id      fsm.ID
	logKey  []byte
	clients int

	mu      sync.Mutex
	broken  []error // what no fault explains
	ending  bool
	workers sync.WaitGroup
	ctx     context.Context //nolint:containedctx // the cluster's life
	cancel  context.CancelFunc
}

// New founds a cluster and returns when every node is a member that may serve. dir is
// an empty directory.
func New(dir string, o Options) (*Cluster, error) {
	key := sha256.Sum256([]byte("log key"))
	c := &Cluster{
		Network: newNetwork(o.Latency, o.Seed), Trace: newTrace(), options: o, dir: dir, logKey: key[:],
		History: history.NewRecorder(history.Since(time.Now())), Duties: newDuties(o.Making, o.Seed),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	start := time.Now()
	for i := range o.Voters + o.NonVoters {
		drift := Drift{Rate: 1}
		if o.Drift != nil {
			drift = o.Drift(i)
		}
		clock := &Clock{start: start, zero: time.Duration(i+1) * time.Hour, drift: drift}
		n := &Node{cluster: c, Name: fmt.Sprintf("n%d", i), Clock: clock, voter: i < o.Voters}
		c.Nodes = append(c.Nodes, n)
	}
	if err := c.up(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// up makes every node a member and waits until all may serve.
func (c *Cluster) up() error {
	for _, n := range c.Nodes {
		if err := n.wipe(); err != nil {
			return err
		}
	}
	if err := c.found(); err != nil {
		return err
	}
	for _, n := range c.Nodes[1:] {
		if err := c.admit(n); err != nil {
			return err
		}
	}
	return c.Await(time.Minute, c.Healthy)
}

func (c *Cluster) found() error {
	first := c.Nodes[0]
	if err := first.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	var err error
	c.id, err = first.Member().Found(ctx, cluster.Founding{Operator: operator, Administrator: operator, Lease: c.options.Lease, NoRecovery: true})
	return err
}

// admit makes a machine with an empty directory a member and starts it.
func (c *Cluster) admit(n *Node) error {
	if err := n.enter(c.id); err != nil {
		return err
	}
	id := n.ID()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	ticket := bytes.Repeat([]byte{1}, 32)
	for _, command := range []fsm.Command{
		&fsm.CreateTicket{ID: id, PublicKey: ticket, Name: n.Name, Seconds: 600, Voter: n.voter},
		&fsm.AdmitNode{
			ID: id, Name: n.Name, PeerAddress: n.address(), ClientAddress: n.Name + ":2",
			Identity: domain{name: n.Name}.Identity(), Ticket: id, TicketKey: ticket,
		},
		&fsm.ActivateNode{ID: id},
	} {
		if err := c.Propose(ctx, command); err != nil {
			return fmt.Errorf("admitting %s: %w", n.Name, err)
		}
	}
	c.Trace.Event("join", "%s, voter %v", id, n.voter)
	return n.Start()
}

// Propose commits a command through any node that can, in the operator's name.
func (c *Cluster) Propose(ctx context.Context, command fsm.Command) error {
	p := request(command)
	for {
		err := cluster.ErrNoLeader
		if n := c.Leader(); n != nil {
			if m := n.Member(); m != nil {
				once, cancel := context.WithTimeout(ctx, peerTimeout)
				_, err = m.Propose(once, p)
				cancel()
			}
		}
		if err == nil || fsm.Code(err) != "" {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// statusOf is what a member knows without asking the leader.
func statusOf(m *cluster.Member) cluster.Status {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return m.Status(ctx)
}

// leads tells whether a member believes that it leads.
func leads(m *cluster.Member) bool {
	_, err := m.HandleProgress()
	return err == nil
}

// Leader is a node that leads, of several the one with the latest term; nil if none
// does.
func (c *Cluster) Leader() *Node {
	var leader *Node
	term := uint64(0)
	for _, n := range c.Nodes {
		m := n.Member()
		if m == nil {
			continue
		}
		if !leads(m) {
			continue
		}
		if s := statusOf(m); s.Term >= term {
			leader, term = n, s.Term
		}
	}
	return leader
}

// Follower is the i-th node, in the order of their names, that runs and does not lead;
// nil if there are fewer.
func (c *Cluster) Follower(i int) *Node {
	leader := c.Leader()
	for _, n := range c.Nodes {
		if n == leader || n.Member() == nil {
			continue
		}
		if i == 0 {
			return n
		}
		i--
	}
	return nil
}

// Healthy is nil when every node runs, has the role it should have, has applied what
// all have applied, and holds a lease.
func (c *Cluster) Healthy() error {
	leader := c.Leader()
	if leader == nil {
		return errors.New("there is no leader")
	}
	lead := leader.Member()
	if lead == nil {
		return errors.New("the leader has ended")
	}
	votes := map[string]bool{}
	status := statusOf(lead)
	for _, m := range status.Members {
		votes[m.ID] = m.Votes
	}
	for _, n := range c.Nodes {
		m := n.Member()
		if m == nil {
			return fmt.Errorf("%s is down", n.Name)
		}
		self, ok := status.State.Member(n.ID())
		switch {
		case !ok || !self.Serves():
			return fmt.Errorf("%s is no member", n.ID())
		case self.Voter != votes[n.ID()]:
			return fmt.Errorf("%s votes: %v, should: %v", n.ID(), votes[n.ID()], self.Voter)
		case m.Usable() != nil:
			return fmt.Errorf("%s: %w", n.Name, m.Usable())
		case m.State().Index()+1 < status.State.Index():
			return fmt.Errorf("%s has applied %d of %d", n.Name, m.State().Index(), status.State.Index())
		}
	}
	return nil
}

// Await waits until a condition gives nil.
func (c *Cluster) Await(atMost time.Duration, condition func() error) error {
	deadline := time.Now().Add(atMost)
	for {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Remove takes a node out of the cluster, through the leader, and ends its process.
func (c *Cluster) Remove(ctx context.Context, n *Node) error {
	id := n.ID()
	leader := c.Leader()
	if leader == nil || leader == n {
		return cluster.ErrNoLeader
	}
	m := leader.Member()
	if m == nil {
		return cluster.ErrNoLeader
	}
	call := c.History.Begin(history.Operation{Node: leader.ID(), Kind: history.Remove, Key: id})
	err := m.Remove(ctx, id, func(ctx context.Context, command fsm.Command) (fsm.Result, error) {
		return m.Propose(ctx, request(command))
	})
	call.End(outcomeOf(err), history.Answer{Note: text(err)})
	c.Trace.Event("remove", "%s: %v", id, err)
	return err
}

// Rejoin brings a machine that was removed back with an empty directory.
func (c *Cluster) Rejoin(n *Node) error {
	n.Crash()
	if err := n.wipe(); err != nil {
		return err
	}
	return c.admit(n)
}

// start runs a process again; that it cannot start is a failure.
func (c *Cluster) start(n *Node) {
	c.mu.Lock()
	ending := c.ending
	c.mu.Unlock()
	if ending {
		return
	}
	if err := n.Start(); err != nil {
		c.fail(err)
	}
}

// halts judges why a process ended by itself.
func (c *Cluster) halts(n *Node, err error) {
	if errors.Is(err, fsm.ErrHalted) || errors.Is(err, fsm.ErrSnapshot) ||
		errors.Is(err, cluster.ErrStorage) || errors.Is(err, cluster.ErrDiverged) {
		c.fail(fmt.Errorf("%s halted: %w", n.Name, err))
	}
}

func (c *Cluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, err)
}

// Broken is what went wrong that no fault explains.
func (c *Cluster) Broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.broken...)
}

// background runs f; Close waits for it.
func (c *Cluster) background(f func()) { c.workers.Go(f) }

// watch records the running hash of every state of a process and the changes of
// leader that it sees.
func (c *Cluster) watch(l *life) {
	m := l.opened.Load()
	c.background(func() {
		for index := uint64(1); ; {
			s, err := m.Wait(l.end.ctx, index)
			if err != nil {
				if l.end.ctx.Err() != nil || sleepFor(l.end.ctx, 50*time.Millisecond) != nil { // not yet a member
					return
				}
				continue
			}
			c.History.Observe(l.name(), s.Index(), fmt.Sprintf("%x", s.Hash()))
			index = s.Index() + 1
		}
	})
	c.background(func() {
		for last := uint64(0); ; {
			if leads(m) {
				if term := statusOf(m).Term; term != last {
					last = term
					c.Trace.Event("leader", "%s in term %d", l.node.Name, term)
				}
			}
			if sleepFor(l.end.ctx, 100*time.Millisecond) != nil {
				return
			}
		}
	})
}

func sleepFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends every process and waits for all that was begun.
func (c *Cluster) Close() {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.cancel()
	for _, n := range c.Nodes {
		if l := n.running(); l != nil {
			n.kill(l)
		}
		if d := n.Disk(); d != nil {
			d.Resume()
		}
	}
	c.workers.Wait()
}
