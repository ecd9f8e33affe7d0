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
	quietFor   = 20 * time.Second // at the end, of the time given: to converge
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
	seed := setting(t, "SEED", rand.Uint64N(1_000_000), func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) })
	ctx := interruptible(t)
	r := newRig(t, setting(t, "NODES", 3, strconv.Atoi), "data")
	l := newLoad(r)
	say(r.began, "seed %d: %d nodes", seed, len(r.nodes))
	r.begin()
	background, stop := context.WithCancel(ctx)
	defer r.wait.Wait()
	defer stop()
	r.supervise(background)
	l.watch(background)
	began := time.Now()
	l.begin(ctx)
	defer l.keep(seed)
	r.wait.Go(func() { l.progress(background) })

	windows := []window{r.quietly(ctx, "nothing", healthyFor, func() func() { return func() {} })}
	windows = append(windows, r.quietly(ctx, "one node gone", oneGoneFor, r.follower().keepOff))
	windows = append(windows, r.torment(ctx, plan(seed, len(r.nodes), length-time.Since(began)-quietFor))...)
	if ctx.Err() != nil {
		t.Error("interrupted")
		l.end()
		return
	}
	say(r.began, "the cluster comes to rest (%s)", r.conditions())
	l.converge(ctx)
	l.end()
	l.final(ctx)
	stop()
	r.wait.Wait()
	l.judge()
	l.report(windows)
	l.vacuous(windows)
}

// quietly lets the clients work with at most one thing wrong.
func (r *rig) quietly(ctx context.Context, name string, d time.Duration, apply func() (heal func())) window {
	say(r.began, "%s is wrong for %s", name, d)
	w := window{name: name, begin: time.Since(r.began)}
	heal := apply()
	sleep(ctx, d)
	heal()
	w.healed = time.Since(r.began)
	sleep(ctx, pauseMax)
	w.end = time.Since(r.began)
	return w
}

// follower is a machine whose node does not lead.
func (r *rig) follower() *machine {
	r.eventually("a leader is known", func() bool { return r.leads() != nil })
	return r.others(r.leads())[0]
}

// progress says now and then how things are.
func (l *load) progress(ctx context.Context) {
	before, at := 0, time.Now()
	for sleep(ctx, sayEvery); ctx.Err() == nil; sleep(ctx, sayEvery) {
		ok := l.counted("", "ok")
		say(l.began, "%d calls answered, %.0f/s (%s)", ok, float64(ok-before)/time.Since(at).Seconds(), l.conditions())
		before, at = ok, time.Now()
	}
}
