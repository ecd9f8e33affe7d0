package cluster

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// handClock is a clock that a test moves.
type handClock struct {
	mu  sync.Mutex
	now time.Duration
}

func (c *handClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
}

// wall is a wall clock that agrees with it.
func (c *handClock) wall() time.Time { return time.Unix(0, 0).Add(c.Now()) }

const testLease = 4 * time.Second

func lasting(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestLeaseCountsFromTheRequest: a grant that was long on its way is as old as its
// request.
func TestLeaseCountsFromTheRequest(t *testing.T) {
	clock := &handClock{now: time.Hour}
	l := newLessee(lasting(testLease), clock, clock.wall, 7)
	nonce := l.ask()
	clock.advance(3 * time.Second)
	l.granted(LeaseGrant{Incarnation: 7, Nonce: nonce, MinIndex: 10})
	if got := l.left(10); got != time.Second {
		t.Fatalf("%s are left, want 1s", got)
	}
	if got := l.left(9); got > 0 {
		t.Fatalf("%s are left before the tick is applied", got)
	}
	clock.advance(time.Second)
	if got := l.left(10); got > 0 {
		t.Fatalf("%s are left at its end", got)
	}
}

func TestGrantsThatDoNotCount(t *testing.T) {
	for name, f := range map[string]func(l *lessee, clock *handClock) LeaseGrant{
		"another incarnation": func(l *lessee, _ *handClock) LeaseGrant { return LeaseGrant{Incarnation: 6, Nonce: l.ask()} },
		"never asked":         func(*lessee, *handClock) LeaseGrant { return LeaseGrant{Incarnation: 7, Nonce: 99} },
		"asked too long ago": func(l *lessee, clock *handClock) LeaseGrant {
			n := l.ask()
			clock.advance(testLease)
			l.ask()
			return LeaseGrant{Incarnation: 7, Nonce: n}
		},
		"answered before": func(l *lessee, clock *handClock) LeaseGrant {
			g := LeaseGrant{Incarnation: 7, Nonce: l.ask()}
			l.granted(g)
			clock.advance(testLease)
			return g
		},
	} {
		clock := &handClock{now: time.Hour}
		l := newLessee(lasting(testLease), clock, clock.wall, 7)
		l.granted(f(l, clock))
		if got := l.left(1 << 60); got > 0 {
			t.Errorf("%s: %s are left", name, got)
		}
	}
}

// TestLeasesAreASet: an older lease carries on while the newest needs an index
// that is not applied yet.
func TestLeasesAreASet(t *testing.T) {
	clock := &handClock{now: time.Hour}
	l := newLessee(lasting(testLease), clock, clock.wall, 1)
	l.granted(LeaseGrant{Incarnation: 1, Nonce: l.ask(), MinIndex: 5})
	clock.advance(time.Second)
	l.granted(LeaseGrant{Incarnation: 1, Nonce: l.ask(), MinIndex: 9})
	if got := l.left(5); got != 3*time.Second {
		t.Errorf("at index 5 %s are left, want 3s", got)
	}
	if got := l.left(9); got != 4*time.Second {
		t.Errorf("at index 9 %s are left, want 4s", got)
	}
}

// settleWithin runs settle and reports whether it returned.
func settle(t *testing.T, g *grantor, holders []string, index uint64) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- g.settle(t.Context(), holders, index) }()
	return done
}

// request is a node's lease request in a state without restrictions.
func request(t *testing.T, g *grantor, node string) {
	t.Helper()
	if err := g.requested(node, 0); err != nil {
		t.Fatal(err)
	}
}

func TestSettleWaitsForAcks(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	request(t, g, "a")
	request(t, g, "b")
	done := settle(t, g, []string{"a", "b"}, 10)
	g.ack("a", 10)
	g.ack("b", 9)
	select {
	case err := <-done:
		t.Fatalf("returned before b had applied it: %v", err)
	case <-time.After(20 * time.Millisecond): // a wrong return would need far less
	}
	g.ack("b", 12)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSettleWaitsForExpiry(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(40*time.Millisecond), clock)
	request(t, g, "a")
	deadline := g.over("a")
	clock.advance(deadline - time.Hour - time.Nanosecond)
	done := settle(t, g, []string{"a"}, 10)
	select {
	case err := <-done:
		t.Fatalf("returned while the lease was alive: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	clock.advance(time.Nanosecond)
	g.ack("x", 1) // a wake-up
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestSettleDeadlinesAreTakenOnce: a lease granted after the commit needs the
// entry itself and is not waited for.
func TestSettleDeadlinesAreTakenOnce(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(40*time.Millisecond), clock)
	request(t, g, "a")
	first := g.over("a")
	done := settle(t, g, []string{"a"}, 10)
	select {
	case err := <-done:
		t.Fatalf("returned while the lease was alive: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	clock.advance(first - time.Hour - time.Millisecond)
	request(t, g, "a")
	clock.advance(time.Millisecond)
	g.ack("x", 1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestFloor: a new term waits out the leases that earlier leaders may have granted;
// a bound once recorded is never lowered or cleared.
func TestFloor(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	if g.over("a") != 0 {
		t.Fatal("something to wait for before any term")
	}
	g.ownTerm(3)
	w := withMargin(testLease)
	if got := g.over("a"); got != time.Hour+w {
		t.Fatalf("floor at %s, want %s", got, time.Hour+w)
	}
	clock.advance(time.Second)
	g.ownTerm(3)
	g.ownTerm(2)
	if got := g.over("a"); got != time.Hour+w {
		t.Fatalf("the floor moved to %s within its term", got)
	}
	request(t, g, "a")
	g.ownTerm(5)
	if got := g.over("b"); got != time.Hour+time.Second+w {
		t.Fatalf("floor of term 5 at %s", got)
	}
	if got := g.over("a"); got != time.Hour+time.Second+w {
		t.Fatalf("a's bound is %s", got)
	}
}

// TestOverSince: a leader that has committed nothing in its term does not know which
// leases its predecessors granted (and a removed node would be let go too early).
func TestOverSince(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	if g.overSince("a", 3) {
		t.Fatal("over before anything was committed")
	}
	g.ownTerm(3)
	clock.advance(withMargin(testLease) - 1)
	if g.overSince("a", 3) {
		t.Fatal("over before the floor")
	}
	clock.advance(1)
	if !g.overSince("a", 3) {
		t.Fatal("not over at the floor")
	}
	if g.overSince("a", 5) {
		t.Fatal("over by the floor of an earlier term")
	}
}

func TestSettleCancelled(t *testing.T) {
	g := newGrantor(lasting(testLease), &handClock{now: time.Hour})
	request(t, g, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.settle(ctx, []string{"a"}, 10); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatal(err)
	}
}

// TestWallClockLeaps: leases end when wall time outruns the monotonic clock, as it
// does when a paused machine goes on and its clock is put right. A clock that is set
// back, or drifts, ends nothing.
func TestWallClockLeaps(t *testing.T) {
	for name, c := range map[string]struct {
		wall time.Duration // what the wall clock gains in a second
		left time.Duration
	}{
		"drifts":   {maxLeap, testLease - time.Second},
		"leaps":    {maxLeap + 1, 0},
		"set back": {-time.Hour, testLease - time.Second},
	} {
		clock, gained := &handClock{now: time.Hour}, time.Duration(0)
		l := newLessee(lasting(testLease), clock, func() time.Time { return clock.wall().Add(gained) }, 7)
		l.granted(LeaseGrant{Incarnation: 7, Nonce: l.ask(), MinIndex: 1})
		clock.advance(time.Second)
		gained = c.wall
		if got := l.left(1); got != c.left {
			t.Errorf("%s: %s are left, want %s", name, got, c.left)
		}
		l.granted(LeaseGrant{Incarnation: 7, Nonce: l.ask(), MinIndex: 1})
		if got := l.left(1); got != testLease {
			t.Errorf("%s: %s are left of a lease from after it, want %s", name, got, testLease)
		}
	}
}

// TestLaggingNode: a node that renews its lease and confirms no restriction would
// hold every further one up; it gets no lease until it has caught up.
func TestLaggingNode(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	g.ack("a", 9)
	for range 5 { // with a newer restriction each time, the oldest one counts
		if err := g.requested("a", 10+uint64(clock.Now()/time.Second)); err != nil {
			t.Fatal(err)
		}
		clock.advance(time.Second)
	}
	bound := g.over("a")
	if err := g.requested("a", 10); !errors.Is(err, ErrNoLease) {
		t.Fatalf("after %s behind: %v", testLease+time.Second, err)
	}
	if g.over("a") != bound {
		t.Fatal("a refused request moved the bound")
	}
	g.ack("a", 10+uint64(time.Hour/time.Second))
	if err := g.requested("a", 1<<40); err != nil {
		t.Fatalf("behind another restriction only since now: %v", err)
	}
}
