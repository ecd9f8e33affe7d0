//go:build linux && chaos

package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

const (
	healthyFor = 15 * time.Second // nothing is wrong at first
	oneGoneFor = 15 * time.Second // then one follower is away
	quietFor   = 10 * time.Second // of the time given, at the end: to converge
	sayEvery   = 5 * time.Second
)

// TestChaos lets clients work on real nodes whose processes, network, disks and
// tokens fail, and judges what the clients saw. CHAOS is for how long (3m), NODES
// the number of nodes (3); SEED draws the faults (at random without one).
func TestChaos(t *testing.T) {
	if !sandboxed(t) {
		return
	}
	length := setting(t, "CHAOS", 3*time.Minute, time.ParseDuration)
	seed := setting(t, "SEED", rand.Uint64N(1_000_000), parseSeed)
	var windows []window
	l := underLoad(t, seed, "data", (*trial).manyGrants, func(ctx context.Context, l *trial) {
		began := time.Now()
		healthy := stroke{fault: fault{"nothing", (*rig).nothing}, victim: l.hosts[0], lasts: healthyFor}
		gone := stroke{fault: fault{"one node gone", (*rig).killOne}, victim: l.follower(), lasts: oneGoneFor, pause: pauseMax}
		windows = append(windows, l.strike(ctx, "at first", healthy), l.strike(ctx, "then", gone))
		windows = append(windows, l.torment(ctx, plan(seed, len(l.nodes), length-time.Since(began)-quietFor))...)
	})
	l.report(windows)
	l.substantial(windows)
}

func parseSeed(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

// underLoad starts a cluster and, once first is done, its clients, lets f break it, and
// judges what the clients saw then and when all is well again. on is the directory of a
// node that is a disk of its own.
func underLoad(t *testing.T, seed uint64, on string, first func(*trial, context.Context), f func(context.Context, *trial)) *trial {
	t.Helper()
	ctx := interruptible(t)
	r := newRig(t, setting(t, "NODES", 3, strconv.Atoi), on)
	l := newLoad(r)
	say(r.began, "seed %d: %d nodes start", seed, len(r.nodes))
	r.begin()
	r.settle()
	background, stop := context.WithCancel(ctx)
	defer r.wait.Wait()
	defer stop()
	r.supervise(background)
	l.watch(background)
	interrupted := false
	t.Cleanup(func() { l.keep(seed, interrupted) })
	first(l, ctx)
	l.begin(ctx)
	defer l.end()
	r.wait.Go(func() { l.progress(background) })
	f(ctx, l)
	if interrupted = ctx.Err() != nil; interrupted {
		t.Fatal("interrupted")
	}
	say(r.began, "nothing is wrong any more (%s)", r.conditions())
	l.converge(ctx)
	l.end()
	l.final(ctx)
	l.judge()
	return l
}

// progress says now and then how things are.
func (l *trial) progress(ctx context.Context) {
	before, at := 0, time.Now()
	for sleep(ctx, sayEvery); ctx.Err() == nil; sleep(ctx, sayEvery) {
		ok := l.counted("", "ok")
		say(l.began, "%d calls answered, %.0f/s (%s)", ok, float64(ok-before)/time.Since(at).Seconds(), l.conditions())
		before, at = ok, time.Now()
	}
}
