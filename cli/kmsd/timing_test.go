//go:build measure

package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The measurements behind Raft's timing and the lease (make timing). They need Linux
// and root: each node's data directory is an ext4 file system of its own on a loop
// device, which fsfreeze makes hang.
var (
	timingTrials = flag.Int("timing-trials", 20, "trials of each measurement and setting")
	timingStall  = flag.Duration("timing-stall", 700*time.Millisecond, "how long the followers' disks hang")
	timingOnly   = flag.String("timing-settings", "1s/1s,1500ms/1500ms,2s/2s", "heartbeat/election, ...; Raft wants election to be at least heartbeat")
)

// measuredLease is so long that nothing ends it: what is measured is how much of it
// is used up.
const measuredLease = 40 * time.Second

// timed starts three nodes with disks of their own under a timing.
func timed(t *testing.T, setting string) *testCluster {
	t.Helper()
	heartbeat, election, ok := strings.Cut(setting, "/")
	if !ok {
		t.Fatalf("setting %q: want heartbeat/election", setting)
	}
	c := newCluster(t, 3)
	c.lease = measuredLease
	for _, p := range c.nodes {
		p.timing, p.renew = fmt.Sprintf("heartbeat: %s, election: %s", heartbeat, election), "1s"
		p.disk("data")
	}
	c.begin()
	return c
}

// disk mounts an ext4 file system of its own at a directory of the node.
func (p *process) disk(name string) {
	p.c.t.Helper()
	image := p.path("disk.img")
	must(p.c.t, os.MkdirAll(p.path(name), 0o700))
	f, err := os.Create(image)
	must(p.c.t, err)
	must(p.c.t, f.Truncate(128<<20))
	must(p.c.t, f.Close())
	for _, command := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, p.path(name)}, {"chmod", "0700", p.path(name)}} {
		if out, err := asRoot(command...); err != nil {
			p.c.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
		}
	}
	p.c.t.Cleanup(func() { p.unmount(name) })
}

// stall makes the disks of nodes hang all at once and returns how long they did.
func stall(t *testing.T, for_ time.Duration, nodes []*process) time.Duration {
	t.Helper()
	each := func(flag string) {
		var all sync.WaitGroup
		for _, p := range nodes {
			all.Go(func() {
				if out, err := asRoot("fsfreeze", flag, p.path("data")); err != nil {
					t.Errorf("fsfreeze %s: %v: %s", flag, err, out)
				}
			})
		}
		all.Wait()
	}
	each("--freeze")
	began := time.Now()
	time.Sleep(for_)
	each("--unfreeze")
	return time.Since(began)
}

// settled waits until all nodes serve under one leader whom they all know in one
// term, and has been so for a while.
func (c *testCluster) settled() (leader *process, followers []*process, term uint64) {
	c.t.Helper()
	since := time.Time{}
	c.eventually("the cluster is at rest", func() bool {
		var terms, leaders []string
		for _, p := range c.nodes {
			s, err := c.status(p)
			if err != nil || !s.GetServing() {
				since = time.Time{}
				return false
			}
			term = s.GetTerm()
			terms, leaders = append(terms, fmt.Sprint(term)), append(leaders, s.GetLeaderId())
		}
		if len(slices.Compact(terms)) > 1 || len(slices.Compact(leaders)) > 1 || leaders[0] == "" {
			since = time.Time{}
			return false
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > 1500*time.Millisecond
	}, c.nodes...)
	leader, followers = c.split()
	return leader, followers, term
}

// writes uses the machine as a busy cluster would: writes through all nodes.
func (c *testCluster) writes(ctx context.Context) (wait func()) {
	var work sync.WaitGroup
	for _, p := range c.nodes {
		keys := c.dial(adminID, p).Keys()
		work.Go(func() {
			for ctx.Err() == nil {
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				_, _ = keys.CreateKey(call, &pb.CreateKeyRequest{})
				cancel()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return work.Wait
}

// TestTimingStall counts the leaders that lose their office when the disks of both
// followers hang.
func TestTimingStall(t *testing.T) {
	for setting := range strings.SplitSeq(*timingOnly, ",") {
		t.Run(setting, func(t *testing.T) {
			c := timed(t, setting)
			deposed, longest := 0, time.Duration(0)
			for range *timingTrials {
				leader, followers, term := c.settled()
				ctx, stop := context.WithCancel(t.Context())
				wait := c.writes(ctx)
				time.Sleep(time.Second + rand.N(time.Second))
				longest = max(longest, stall(t, *timingStall, followers))
				time.Sleep(2 * time.Second)
				stop()
				wait()
				s, err := c.status(leader)
				must(t, err)
				if s.GetTerm() != term {
					deposed++
				}
			}
			t.Logf("RESULT stall %s heartbeat/election %s: %d of %d leaders deposed (longest stall %s)",
				*timingStall, setting, deposed, *timingTrials, longest.Round(time.Millisecond))
		})
	}
}

// TestTimingLeaderKill kills the leader under a load on the followers.
func TestTimingLeaderKill(t *testing.T) { timeLeaderLoss(t, "kill", (*process).kill) }

// TestTimingLeaderStop stops it as an operator does.
func TestTimingLeaderStop(t *testing.T) { timeLeaderLoss(t, "stop", (*process).terminate) }

// gaps are what the clients of the followers saw.
type gaps struct {
	crypto, writes time.Duration // longest time between two successes
	failed         int           // calls of cryptography
	leaseUsed      time.Duration // of the lease that is left least
}

func timeLeaderLoss(t *testing.T, what string, end func(*process)) {
	for setting := range strings.SplitSeq(*timingOnly, ",") {
		t.Run(setting, func(t *testing.T) {
			c := timed(t, setting)
			o := c.object(t.Context(), "alias/timing")
			var crypto, writes, used []time.Duration
			failed := 0
			for range *timingTrials {
				leader, followers, _ := c.settled()
				g := c.loseLeader(t, leader, followers, o, end)
				if g.writes > 2*time.Second && what == "stop" {
					t.Logf("writes stood still for %s; %s:\n%s", g.writes, leader.name, leader.output())
					for _, p := range followers {
						t.Logf("%s:\n%s", p.name, p.output())
					}
				}
				crypto, writes, used, failed = append(crypto, g.crypto), append(writes, g.writes), append(used, g.leaseUsed), failed+g.failed
				leader.start()
			}
			t.Logf("RESULT leader's %s, heartbeat/election %s, %d trials: cryptography's longest gap at a follower %s, failed calls %d; writes' longest gap %s; lease used up %s",
				what, setting, *timingTrials, spread(crypto), failed, spread(writes), spread(used))
		})
	}
}

func spread(all []time.Duration) string {
	slices.Sort(all)
	r := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	return fmt.Sprintf("median %s max %s", r(all[len(all)/2]), r(all[len(all)-1]))
}

// loseLeader ends the leader under load and watches until keys are made again, and a
// while longer.
func (c *testCluster) loseLeader(t *testing.T, leader *process, followers []*process, o object, end func(*process)) gaps {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	var g gaps
	var work sync.WaitGroup
	repeat := func(pause time.Duration, f func() error, longest *time.Duration) {
		work.Go(func() {
			for last := time.Now(); ctx.Err() == nil; time.Sleep(pause) {
				err := f()
				mu.Lock()
				if err == nil {
					*longest, last = max(*longest, time.Since(last)), time.Now()
				} else if longest == &g.crypto {
					g.failed++
				}
				mu.Unlock()
			}
		})
	}
	for _, p := range followers {
		crypto, operator := c.crypto(p), c.dial(operatorID, p).Cluster()
		repeat(2*time.Millisecond, func() error {
			return second(crypto.Decrypt(t.Context(), &pb.DecryptRequest{Ciphertext: o.blob}))
		}, &g.crypto)
		repeat(20*time.Millisecond, func() error {
			s, err := operator.Status(t.Context(), &pb.StatusRequest{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				g.leaseUsed = max(g.leaseUsed, measuredLease-s.GetLeaseLeft().AsDuration())
			}
			return err
		}, new(time.Duration))
	}
	admin := c.dial(adminID, followers...).Keys()
	made := make(chan struct{}, 1)
	repeat(10*time.Millisecond, func() error {
		_, err := admin.CreateKey(t.Context(), &pb.CreateKeyRequest{})
		select {
		case made <- struct{}{}:
		default:
		}
		return err
	}, &g.writes)
	time.Sleep(time.Second + rand.N(time.Second))
	end(leader)
	for range 3 { // the first may be of before
		<-made
	}
	time.Sleep(2 * time.Second)
	stop()
	work.Wait()
	return g
}
