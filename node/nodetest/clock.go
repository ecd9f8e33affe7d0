package nodetest

import (
	"math"
	"time"
)

// Clock is a node's monotonic clock. Its rate may differ from true time's, as a time
// daemon that slews makes it.
type Clock struct {
	start time.Time // of the bubble
	zero  time.Duration
	// Rate is how fast the clock runs: 0.9 to 1.1.
	Rate float64
	// Period, if not zero, is how long the clock takes to be fast by Rate for one half
	// and slow by as much for the other, so that it does not run away.
	Period time.Duration
}

// Now implements cluster.Clock.
func (c *Clock) Now() time.Duration { return c.zero + c.elapsed() }

// elapsed is what the clock has counted since the start.
func (c *Clock) elapsed() time.Duration {
	t := time.Since(c.start)
	drift := c.Rate - 1
	if c.Period == 0 {
		return time.Duration(math.Round(float64(t) * c.Rate))
	}
	in, half := t%c.Period, c.Period/2
	if in > half {
		in = c.Period - in // what was won is lost again
	}
	return t + time.Duration(math.Round(float64(in)*drift))
}

// wall is the wall clock that the same daemon disciplines.
func (c *Clock) wall() time.Time { return c.start.Add(c.elapsed()) }
