package main

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestRolling changes everything about a cluster's members while clients use it: not
// one of their calls fails.
func TestRolling(t *testing.T) {
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Restart", testRollingRestart}, {"KilledLeader", testKilledLeader},
		{"SameState", testSameState},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

// testRollingRestart restarts all nodes one after the other, twice, the leader among
// them: they end by themselves, in time, with the code of a stop that was asked for.
func testRollingRestart(ctx context.Context, c *testCluster) {
	l := c.startLoad(c.nodes...)
	l.goesOn()
	for round := range 2 {
		for _, p := range c.nodes {
			led := c.leader(p) == p
			l.during("while %s (leader: %t) stops in round %d", p.name, led, round)
			began := time.Now()
			must(c.t, p.cmd.Process.Signal(syscall.SIGTERM))
			if code := p.waitExit(); code != exitOK {
				c.t.Fatalf("%s ended with %d:\n%s", p.name, code, p.output())
			}
			took := time.Since(began)
			if took > 15*time.Second {
				c.t.Errorf("%s took %s to stop:\n%s", p.name, took, p.output())
			}
			if led && !strings.Contains(p.output(), "handing the leadership over") {
				c.t.Errorf("%s led and did not hand the leadership over:\n%s", p.name, p.output())
			}
			c.t.Logf("%s (leader: %t) stopped within %s", p.name, led, took.Round(time.Millisecond))
			l.during("while %s is down in round %d", p.name, round)
			l.goesOn()
			l.during("while %s starts in round %d", p.name, round)
			p.start()
			c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
		}
	}
	l.goesOn()
	l.end(ctx, c.nodes[0])
}

// testKilledLeader kills the leader, and then the next one.
func testKilledLeader(ctx context.Context, c *testCluster) {
	l := c.startLoad(c.nodes...)
	for range 2 {
		l.goesOn()
		leader := c.leader(c.nodes[0])
		l.during("after the death of the leader %s", leader.name)
		leader.kill()
		l.goesOn()
		leader.start()
		c.until(leader.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, leader)
	}
	l.end(ctx, c.nodes[0])
}
