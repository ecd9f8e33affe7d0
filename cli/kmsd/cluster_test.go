package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestLeaderLoss kills the leader of three nodes: cryptography goes on at the
// others, writes come back, and the killed node catches up.
func TestLeaderLoss(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	leader := c.leader(c.nodes[0])
	var others []*process
	for _, p := range c.nodes {
		if p != leader {
			others = append(others, p)
		}
	}
	key := c.createKey(ctx, others[0]) // through a follower
	user := c.dial(userID, others...)
	blob, err := user.Encrypt(ctx, key, []byte("hello"), nil)
	must(t, err)
	for _, p := range others { // what was acknowledged is with a majority, which need not be these two
		c.eventually(p.name+" has the key", func() bool { return second(c.dial(userID, p).Decrypt(ctx, blob, nil)) == nil }, p)
	}

	// Every follower answers by itself while there is no leader.
	leader.kill()
	for _, p := range others {
		got, err := c.dial(userID, p).Decrypt(ctx, blob, nil)
		if err != nil || string(got) != "hello" {
			t.Fatalf("%s right after the leader's death: %q, %v\n%s", p.name, got, err, p.output())
		}
	}
	second := c.createKey(ctx, others[1])
	leader.start()
	c.until(leader.name+" has caught up", func(s *pb.StatusResponse) bool { return s.GetServing() }, leader)
	fresh, err := c.dial(userID, leader).Encrypt(ctx, second, []byte("again"), nil)
	must(t, err)
	got, err := c.dial(userID, others[0]).Decrypt(ctx, fresh, nil)
	must(t, err)
	if string(got) != "again" {
		t.Fatalf("decrypted %q", got)
	}
}

// createKey makes a key through one node and waits until all running nodes given
// have it.
func (c *testCluster) createKey(ctx context.Context, through ...*process) string {
	c.t.Helper()
	r, err := c.dial(adminID, through...).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)
	return r.GetKey().GetKeyId()
}

// TestCrashLosesNothing kills every node at once in the middle of work, several
// times: every acknowledged key is there afterwards and every acknowledged data
// key opens.
func TestCrashLosesNothing(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	type sealed struct {
		key       string
		ec        map[string]string
		dek, blob []byte
	}
	var (
		mu    sync.Mutex
		acked []sealed
	)
	const rounds, workers = 3, 4
	for round := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		target := len(acked) + 12
		enough := make(chan struct{})
		var once sync.Once
		for w := range workers {
			work.Go(func() {
				admin, user := c.dial(adminID), c.dial(userID)
				for ctx.Err() == nil {
					call, cancel := context.WithTimeout(ctx, 5*time.Second)
					r, err := admin.Keys().CreateKey(call, &pb.CreateKeyRequest{Description: fmt.Sprintf("round %d worker %d", round, w)})
					if err != nil {
						cancel()
						continue
					}
					s := sealed{key: r.GetKey().GetKeyId(), ec: map[string]string{"round": fmt.Sprint(round)}}
					s.dek, s.blob, err = user.GenerateDataKey(call, s.key, s.ec)
					cancel()
					mu.Lock()
					if err != nil {
						s.blob = nil // the key was acknowledged, the data key was not
					}
					acked = append(acked, s)
					if len(acked) >= target {
						once.Do(func() { close(enough) })
					}
					mu.Unlock()
				}
			})
		}
		select {
		case <-enough:
		case <-time.After(patience):
			t.Fatalf("too little was acknowledged:\n%s", c.nodes[0].output())
		}
		for _, p := range c.nodes {
			p.kill()
		}
		stop()
		work.Wait()
		for _, p := range c.nodes {
			p.start()
		}
		c.waitVoters(3)
		for i, s := range acked {
			user := c.dial(userID, c.nodes[i%3])
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if s.blob == nil {
				_, err := user.Encrypt(ctx, s.key, []byte("x"), nil)
				must(t, err)
			} else {
				dek, err := user.DecryptDataKey(ctx, s.blob, s.ec)
				must(t, err)
				if !bytes.Equal(dek, s.dek) {
					t.Fatalf("the data key under %s is another", s.key)
				}
			}
			cancel()
		}
		t.Logf("round %d: %d acknowledged keys are there", round, len(acked))
	}
}
