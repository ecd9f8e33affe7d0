package nodetest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

var (
	timingFile    = flag.String("sim.timing", "", "measure heartbeat and election timeouts and write the table to this file")
	timingStalls  = flag.Int("sim.timing.stalls", 50, "stalls a row")
	timingCrashes = flag.Int("sim.timing.crashes", 200, "crashes a row")
)

// longLease keeps leases alive through whatever is measured.
const longLease = 60 * time.Second

// TestTiming measures what heartbeat and election timeouts cost: whether a stall of
// both followers' disks deposes the leader, and how old a follower's lease gets before
// the leader's successor has granted a new one. It runs only with -sim.timing.
func TestTiming(t *testing.T) {
	if *timingFile == "" {
		return
	}
	timeouts := []time.Duration{500 * time.Millisecond, time.Second, 1500 * time.Millisecond, 2 * time.Second, 3 * time.Second}
	var b strings.Builder
	fmt.Fprintf(&b, "| heartbeat | election | deposed by a stall of 700 ms | of 1.2 s | age of the lease at the next grant, after a leader's crash: p50 | p95 | p99 | max |\n|---|---|---|---|---|---|---|---|\n")
	for more := range timeouts {
		for i, heartbeat := range timeouts[:len(timeouts)-more] { // Raft wants election >= heartbeat
			election := timeouts[i+more]
			o := Defaults(7, 3)
			o.Lease, o.Raft.Heartbeat, o.Raft.Election = longLease, heartbeat, election
			o.Raft.SnapshotInterval, o.Raft.SnapshotThreshold = 20*time.Second, 500
			fmt.Fprintf(&b, "| %s | %s |", heartbeat, election)
			for _, stall := range []time.Duration{700 * time.Millisecond, 1200 * time.Millisecond} {
				fmt.Fprintf(&b, " %d/%d |", measureStalls(t, o, stall), *timingStalls)
			}
			ages := measureCrashes(t, o)
			for _, q := range []float64{0.5, 0.95, 0.99, 1} {
				fmt.Fprintf(&b, " %.2f s |", history.Quantile(ages, q).Seconds())
			}
			b.WriteString("\n")
			if err := os.WriteFile(*timingFile, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// busy proposes commands one after the other until the cluster closes.
func busy(c *Cluster) {
	c.background(func() {
		for c.ctx.Err() == nil {
			ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
			_ = c.Propose(ctx, &fsm.Tick{Hash: make([]byte, 32)}) // load only
			cancel()
			_ = sleepFor(c.ctx, 100*time.Millisecond) // as above
		}
	})
}

// measureStalls counts the stalls of both followers' disks that cost the leader its
// place.
func measureStalls(t *testing.T, o Options, stall time.Duration) (deposed int) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, err := New(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		busy(c)
		random := rand.New(rand.NewPCG(1, 2))
		for range *timingStalls {
			time.Sleep(time.Second + time.Duration(random.Int64N(int64(time.Second))))
			leader := c.Leader()
			term := statusOf(leader.Member()).Term
			followers := []*Node{c.Follower(0), c.Follower(1)}
			for _, f := range followers {
				f.Disk().Stall()
			}
			time.Sleep(stall)
			for _, f := range followers {
				f.Disk().Resume()
			}
			time.Sleep(2*o.Raft.Heartbeat + 2*o.Raft.Election)
			if err := c.Await(time.Minute, c.Healthy); err != nil {
				t.Fatal(err)
			}
			if statusOf(c.Leader().Member()).Term != term {
				deposed++
			}
		}
	})
	return deposed
}

// measureCrashes crashes leaders and returns, for each follower and crash, how old the
// request of its best lease was when a lease of the next leader became usable: the
// lease that would have lasted.
func measureCrashes(t *testing.T, o Options) []time.Duration {
	dir := t.TempDir()
	var ages []time.Duration
	synctest.Test(t, func(t *testing.T) {
		c, err := New(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		busy(c)
		random := rand.New(rand.NewPCG(3, 4))
		for range *timingCrashes {
			time.Sleep(2*time.Second + time.Duration(random.Int64N(int64(time.Second))))
			leader := c.Leader()
			followers := []*Node{c.Follower(0), c.Follower(1)}
			crashed := time.Now()
			leader.Crash()
			found := make(chan time.Duration)
			for _, f := range followers {
				go func() { found <- nextGrant(f, crashed) }()
			}
			ages = append(ages, <-found, <-found)
			time.Sleep(time.Second)
			c.start(leader)
			if err := c.Await(2*time.Minute, c.Healthy); err != nil {
				t.Fatal(err)
			}
		}
	})
	slices.Sort(ages)
	return ages
}

// nextGrant waits until a node's best lease was asked for after the crash and tells
// how old the one before was by then.
func nextGrant(n *Node, crashed time.Time) time.Duration {
	oldest := time.Duration(0)
	asked := func() time.Time { return time.Now().Add(n.Member().LeaseLeft() - longLease) }
	for last := asked(); ; time.Sleep(5 * time.Millisecond) {
		at := asked()
		if at.Sub(last) > 0 {
			oldest = max(oldest, time.Since(last))
			last = at
		}
		if at.After(crashed) {
			return oldest
		}
	}
}
