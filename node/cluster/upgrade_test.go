package cluster

import (
	"testing"
	"time"
)

// TestKnowing: what a node's software knows is what the node said last, and lately.
func TestKnowing(t *testing.T) {
	clock := &handClock{now: time.Hour}
	g := newGrantor(lasting(testLease), clock)
	expect := func(what string, want bool) {
		t.Helper()
		if got := g.knowing("n1", 2); got != want {
			t.Errorf("%s: knows release 2: %v", what, got)
		}
	}
	expect("never heard of", false)
	g.reported("n1", 1)
	expect("of release 1", false)
	g.reported("n1", 2)
	expect("of release 2", true)
	g.reported("n1", 3)
	expect("of release 3", true)
	clock.advance(reportRecent - 1)
	expect("just about recent", true)
	clock.advance(1)
	expect("heard of long ago", false)
	g.reported("n1", 2)
	g.reported("n1", 0)
	expect("downgraded", false)
}
