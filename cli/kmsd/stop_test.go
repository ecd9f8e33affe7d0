package main

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestStop stops nodes that are in the middle of something.
func TestStop(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"CallUnderWay", testStopUnderCall}, {"HealthWatched", testStopWatched}, {"CallThatCannotEnd", testStopStuck}, {"SameState", testSameState},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

// testStopUnderCall stops the leader while a restriction waits there for a node that
// is frozen: the caller, who knows no other node, gets its answer.
func testStopUnderCall(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	frozen, other := followers[0], followers[1]
	key := c.createKey(ctx, leader)
	frozen.pause()
	defer frozen.resume()
	answer := make(chan error, 1)
	alone := c.connectSDK(adminID, []*process{leader}, func(config *client.Config) {
		config.Fixed, config.MutationTimeout = true, patience
		config.Retrying = func(_ string, err error) { c.t.Errorf("the call had to be repeated: %v", err) }
	}).Keys()
	go func() { answer <- second(alone.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})) }()
	c.eventually("the key is disabled at "+other.name, func() bool {
		k, err := c.dial(adminID, other).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
		return err == nil && k.GetKey().GetState() == pb.KeyState_KEY_STATE_DISABLED
	}, leader, other)
	select {
	case err := <-answer:
		c.t.Fatalf("the call did not wait for the frozen node: %v", err)
	default:
	}
	must(c.t, leader.cmd.Process.Signal(syscall.SIGTERM))
	if err := <-answer; err != nil {
		c.t.Errorf("the call under way: %v\n%s", err, leader.output())
	}
	if code := leader.waitExit(); code != exitOK || !strings.Contains(leader.output(), "handing the leadership over") {
		c.t.Errorf("the leader ended with %d:\n%s", code, leader.output())
	}
	frozen.resume()
	leader.start()
	c.waitVoters(3)
}

// testStopWatched stops a node whose health somebody watches, as load balancers do.
func testStopWatched(ctx context.Context, c *testCluster) {
	p := c.nodes[0]
	watch, err := healthpb.NewHealthClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), "alice")))).
		Watch(ctx, &healthpb.HealthCheckRequest{Service: "crypto"})
	must(c.t, err)
	must(c.t, second(watch.Recv()))
	began := time.Now()
	p.terminate()
	const drainTimeout = 8 * time.Second // node's
	if took := time.Since(began); took >= drainTimeout {
		c.t.Errorf("with a watcher the node took %s to stop", took)
	}
	p.start()
	c.waitVoters(3)
}

// testStopStuck stops a node while a call waits there that cannot come to an end: the
// node ends all the same, in time; at a second signal at once.
func testStopStuck(ctx context.Context, c *testCluster) {
	for _, signals := range []int{1, 2} {
		leader, followers := c.split()
		key := c.createKey(ctx, leader)
		for _, p := range followers {
			p.pause()
			defer p.resume()
		}
		answer := make(chan error, 1)
		keys := pb.NewKeyServiceClient(c.connect(leader.client, c.clientTLS(filepath.Join(c.certs(), "alice"))))
		before, err := c.status(leader)
		must(c.t, err)
		go func() {
			answer <- second(keys.UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: key, Description: "x"}))
		}()
		c.eventually("the call is under way", func() bool {
			s, err := c.status(leader)
			return err == nil && s.GetLastLogIndex() > before.GetLastLogIndex()
		}, leader)
		began := time.Now()
		must(c.t, leader.cmd.Process.Signal(syscall.SIGTERM))
		c.eventually("the node stops", func() bool { return strings.Contains(leader.output(), "msg=stopping") }, leader)
		for again := signals == 2; again; { // one that comes with the first counts as the first
			_ = leader.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			select {
			case <-leader.exited:
				again = false
			case <-time.After(100 * time.Millisecond):
			}
		}
		code := leader.waitExit()
		status, ok := leader.cmd.ProcessState.Sys().(syscall.WaitStatus)
		switch {
		case signals == 1 && code != exitOK:
			c.t.Errorf("ended with %d:\n%s", code, leader.output())
		case signals == 2 && (!ok || !status.Signaled() || status.Signal() != syscall.SIGTERM):
			c.t.Errorf("at the second signal it went on and ended with %d:\n%s", code, leader.output())
		}
		c.t.Logf("%d signals: ended within %s", signals, time.Since(began).Round(time.Millisecond))
		if err := <-answer; err == nil {
			c.t.Error("a key was changed in a minority")
		}
		for _, p := range followers {
			p.resume()
		}
		leader.start()
		c.waitVoters(3)
	}
}
