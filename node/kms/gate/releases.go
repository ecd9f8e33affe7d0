package gate

import (
	"context"
	"sync"
)

// Releases counts the results that have passed the gate's checks, or are passing
// them, and are not yet handed to the transport. A node tells the cluster that it
// has applied a restriction only when those checked on an older state are out.
type Releases struct {
	mu     sync.Mutex
	epoch  uint64
	under  int            // results under way that began in it
	before map[uint64]int // earlier epoch -> results under way that began in that: more than none
	idle   chan struct{}  // closed when an earlier epoch has run empty; nil if nobody waits for that
}

// NewReleases starts with none.
func NewReleases() *Releases { return &Releases{before: map[uint64]int{}} }

// begin counts a result before its checks.
func (r *Releases) begin() (epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.under++
	return r.epoch
}

func (r *Releases) end(epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch == r.epoch {
		r.under--
		return
	}
	if r.before[epoch]--; r.before[epoch] == 0 {
		delete(r.before, epoch)
		if r.idle != nil {
			close(r.idle)
			r.idle = nil
		}
	}
}

// HandedOver returns when every result whose checks began before the call has been
// handed over or wiped, or with ctx's error.
func (r *Releases) HandedOver(ctx context.Context) error {
	r.mu.Lock()
	last := r.epoch
	if r.under > 0 {
		r.before[last] = r.under
	}
	r.epoch, r.under = last+1, 0
	r.mu.Unlock()
	for {
		r.mu.Lock()
		waiting := false
		for epoch := range r.before {
			waiting = waiting || epoch <= last
		}
		if waiting && r.idle == nil {
			r.idle = make(chan struct{})
		}
		idle := r.idle
		r.mu.Unlock()
		if !waiting {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// carrier collects the results that one call has been given.
type carrier struct {
	mu      sync.Mutex
	results []passage
	first   [1]passage // nearly always all of them
	done    bool
}

// passage is one result on its way from the gate to the transport.
type passage struct {
	releases *Releases
	epoch    uint64
	again    func() error // checks once more if the last time is too long ago; wipes the result on an error
}

type carrierKey struct{}

// Carry prepares a call's context so that its results count as under way until Finish is
// called with it, when the answer has been handed to the transport. Without it a result
// counts as handed over when Release returns.
func Carry(ctx context.Context) context.Context {
	return context.WithValue(ctx, carrierKey{}, &carrier{})
}

// Finish ends what Carry has begun.
func Finish(ctx context.Context) {
	if c, ok := ctx.Value(carrierKey{}).(*carrier); ok {
		c.finish()
	}
}

// Recheck is called right before a call's answer is handed to the transport: results
// whose checks are older than 100 ms are checked once more, and if that fails they
// are wiped and the error is what the call must answer instead.
func Recheck(ctx context.Context) error {
	c, ok := ctx.Value(carrierKey{}).(*carrier)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.results {
		if err := p.again(); err != nil {
			return err
		}
	}
	return nil
}

func (c *carrier) add(p passage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		p.releases.end(p.epoch)
		return
	}
	if c.results == nil {
		c.results = c.first[:0]
	}
	c.results = append(c.results, p)
}

func (c *carrier) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for _, p := range c.results {
		p.releases.end(p.epoch)
	}
	c.results, c.first = nil, [1]passage{}
}
