package nodetest

import (
	"math"
	"sync"
	"time"
)

// Drift is how a clock differs from true time.
type Drift struct {
	// Rate is how fast the clock runs: 0.9 to 1.1.
	Rate float64
	// Period, if not zero, is how long the clock takes to be fast by Rate for one half
	// and slow by as much for the other, so that it does not run away.
	Period time.Duration
}

// Clock is a node's monotonic clock. Its rate may differ from true time's, as a time
// daemon that slews makes it.
type Clock struct {
	start time.Time // of the bubble
	zero  time.Duration
	drift Drift

	mu      sync.Mutex
	stopped bool
	at      time.Duration // what had elapsed when it stopped
	missed  time.Duration // what the monotonic clock has not counted
}

// Now implements cluster.Clock.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return c.zero + c.at - c.missed
	}
	return c.zero + c.elapsed() - c.missed
}

// Stop makes time stand still, as for a virtual machine that is paused.
func (c *Clock) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.stopped, c.at = true, c.elapsed()
	}
}

// Resume lets time go on: the wall clock is put right, the monotonic clock has not
// counted the pause.
func (c *Clock) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		c.stopped = false
		c.missed += c.elapsed() - c.at
	}
}

// elapsed is what the clock has counted since the start.
func (c *Clock) elapsed() time.Duration {
	t := time.Since(c.start)
	if c.drift.Period == 0 {
		return time.Duration(math.Round(float64(t) * c.drift.Rate))
	}
	in := t % c.drift.Period
	if in > c.drift.Period/2 {
		in = c.drift.Period - in // what was won is lost again
	}
	return t + time.Duration(math.Round(float64(in)*(c.drift.Rate-1)))
}

// wall is the wall clock that the same daemon disciplines.
func (c *Clock) wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return c.start.Add(c.at)
	}
	return c.start.Add(c.elapsed())
}
