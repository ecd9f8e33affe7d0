package client

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// probes is how many round trips are measured at a look; the shortest counts.
	probes = 3
	// smoothing is the inverse of a look's weight in a node's round trip.
	smoothing = 4
	// The client changes to another node if that is nearer than the one in use by
	// 1/nearerBy of that one's round trip, and by nearerAtLeast: noise moves nobody.
	nearerBy      = 4
	nearerAtLeast = 100 * time.Microsecond
)

// nearer orders nodes by their round trips, those last that were not measured; as they
// stand unless that is asked for.
func (c *Client) nearer(a, b *endpoint) int {
	if !c.config.Nearest {
		return 0
	}
	const far = time.Duration(1<<63 - 1)
	return cmp.Compare(cmp.Or(a.roundTrip, far), cmp.Or(b.roundTrip, far))
}

// findNearest measures how far the nodes are and makes the nearest the node in use.
func (c *Client) findNearest(ctx context.Context) {
	c.mu.Lock()
	nodes := slices.Clone(c.endpoints)
	c.mu.Unlock()
	measured := make([]time.Duration, len(nodes)) // zero: not healthy
	var all sync.WaitGroup
	for i, e := range nodes {
		all.Go(func() { measured[i] = e.measure(ctx) })
	}
	all.Wait()
	if e := c.nearest(nodes, measured); e != nil {
		c.use(e)
	}
}

// measure is a node's shortest round trip; zero if it is not healthy.
func (e *endpoint) measure(ctx context.Context) (shortest time.Duration) {
	for range probes {
		d, healthy := e.probe(ctx)
		if !healthy {
			return 0
		}
		shortest = min(cmp.Or(shortest, d), d)
	}
	return max(shortest, 1)
}

// nearest smooths what was measured and returns the node to change to, or nil.
func (c *Client) nearest(nodes []*endpoint, measured []time.Duration) (best *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	inUse := false // and healthy
	for i, e := range nodes {
		d := measured[i]
		if d == 0 {
			continue
		}
		if e.roundTrip > 0 {
			d = e.roundTrip + (d-e.roundTrip)/smoothing
		}
		e.roundTrip = max(d, 1)
		inUse = inUse || e == c.inUse
		if best == nil || e.roundTrip < best.roundTrip {
			best = e
		}
	}
	switch {
	case best == nil || best == c.inUse:
		return nil
	case inUse && c.inUse.roundTrip-best.roundTrip < max(c.inUse.roundTrip/nearerBy, nearerAtLeast):
		return nil
	}
	return best
}
