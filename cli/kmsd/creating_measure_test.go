//go:build measure

package main

import (
	"context"
	"flag"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// creatingProgram is the kmsd that TestCreating measures, to compare releases.
var creatingProgram = flag.String("creating-program", "", "kmsd to measure; empty: this one")

const (
	creatingCallers = 64
	creatingKeys    = 300 // by one caller
	creatingTime    = 10 * time.Second
)

// TestCreating measures CreateKey through each of three nodes in turn: by one caller, and
// by many at once.
func TestCreating(t *testing.T) {
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		p.program = *creatingProgram
	}
	c.begin()
	ctx := t.Context()
	create := func(i int) time.Duration {
		began := time.Now()
		_, err := c.dial(adminID, c.nodes[i%3]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
		must(t, err)
		return time.Since(began)
	}
	admins := make([]pb.KeyServiceClient, 3)
	for i := range admins {
		create(i) // connections between nodes
		admins[i] = c.dial(adminID, c.nodes[i]).Keys()
	}
	var took []time.Duration
	for i := range creatingKeys {
		began := time.Now()
		must(t, second(admins[i%3].CreateKey(ctx, &pb.CreateKeyRequest{})))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("RESULT one caller: median %s, p99 %s", took[len(took)/2].Round(10*time.Microsecond), took[len(took)*99/100].Round(10*time.Microsecond))
	limited, cancel := context.WithTimeout(ctx, creatingTime)
	defer cancel()
	var mu sync.Mutex
	var all []time.Duration
	var callers sync.WaitGroup
	for i := range creatingCallers {
		callers.Go(func() {
			for limited.Err() == nil {
				began := time.Now()
				if _, err := admins[i%3].CreateKey(ctx, &pb.CreateKeyRequest{}); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, time.Since(began))
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	slices.Sort(all)
	t.Logf("RESULT %d callers: %.0f keys/s, median %s, p99 %s", creatingCallers, float64(len(all))/creatingTime.Seconds(), all[len(all)/2].Round(100*time.Microsecond), all[len(all)*99/100].Round(100*time.Microsecond))
}
