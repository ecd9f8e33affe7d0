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

const testLease = 4 * time.Second

func lasting(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestLeaseCountsFromTheRequest: a grant that was long on its way is as old as its
// request.
func TestLeaseCountsFromTheRequest(t *testing.T) {
	clock := &handClock{now: time.Hour}
	l := newLessee(lasting(testLease), clock, 7)
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
		l := newLessee(lasting(testLease), clock, 7)
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
	l := newLessee(lasting(testLease), clock, 1)
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

func TestSettleWaitsForAcks(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	g.requested("a")
	g.requested("b")
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
	g.requested("a")
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
	g.requested("a")
	first := g.over("a")
	done := settle(t, g, []string{"a"}, 10)
	select {
	case err := <-done:
		t.Fatalf("returned while the lease was alive: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	clock.advance(first - time.Hour - time.Millisecond)
	g.requested("a")
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
	g.requested("a")
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
	g.requested("a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.settle(ctx, []string{"a"}, 10); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatal(err)
	}
}
