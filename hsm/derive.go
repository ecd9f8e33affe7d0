package hsm

import (
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// callTimeout bounds one HSM call that several callers wait for, and so outlives
// the context of the caller that happens to make it.
const callTimeout = 10 * time.Second

// coalescer is a loaded key whose concurrent derivations share HSM calls.
//
// Batching is natural: whoever finds no call running becomes the runner, yields
// so that others can queue, takes what is queued (itself first), makes one
// call, delivers, and gives the role to the caller at the front of the queue.
// There is no timed wait, no goroutine, and nobody makes more than one call for
// others; a caller with many messages has as many waiters.
type coalescer struct {
	key    BlockKey
	l, k1  [16]byte // L = E(0) and K1 = dbl(L)
	shared *shared

	mu      sync.Mutex
	running bool // somebody has the role of the runner
	waiters queue[*waiter]
	arrived uint64 // waiters so far
}

// shared is what all coalescers of a keyring have in common.
type shared struct {
	waiters, calls       sync.Pool                 // *waiter, *call
	batches              [batchSizes]atomic.Uint64 // calls, by how many messages they carried
	msgCount             atomic.Uint64
	loadCount, evictions atomic.Uint64
	tracer               CallTracer // nil: none
}

// batchSizes is how many sizes of calls are told apart: 1, 2, up to 4 and so on by two.
const batchSizes = 8

// called counts a call.
func (s *shared) called(messages int) {
	s.batches[min(bits.Len(uint(messages-1)), batchSizes-1)].Add(1)
	s.msgCount.Add(uint64(messages)) //nolint:gosec // at least one
}

// CallTracer follows the HSM calls that derive message keys.
type CallTracer interface {
	// Shared is told of a call before it is made, with the contexts of those whose messages
	// it carries, the one who makes it first. The call is made with the context that it returns, and done is
	// told how it ended.
	Shared(callers []context.Context) (ctx context.Context, done func(error))
}

// waiter is one message on its way through a coalescer.
type waiter struct {
	ctx  context.Context //nolint:containedctx // the caller's, if calls are traced
	in   MessageInput
	use  Use
	keys MessageKeys
	err  error

	link  link[*waiter]
	state waiterState   // guarded by the coalescer's mutex until wake
	wake  chan struct{} // takes one token when state becomes running or done
}

type waiterState uint8

const (
	queued  waiterState = iota // in the queue
	running                    // in the queue's front, has the role of the runner
	taken                      // in a call that runs
	left                       // in a call that runs, its caller has gone
	done                       // keys or err are set
)

func newShared(t CallTracer) *shared {
	s := &shared{tracer: t}
	s.calls.New = func() any { return &call{} }
	s.waiters.New = func() any {
		w := &waiter{wake: make(chan struct{}, 1)}
		w.link.item = w
		return w
	}
	return s
}

// recycle wipes a waiter nobody refers to any more.
func (s *shared) recycle(w *waiter) {
	w.ctx, w.in, w.use, w.err, w.state = nil, MessageInput{}, 0, nil, queued
	w.keys.Wipe()
	s.waiters.Put(w)
}

// load asks the key for L.
func (c *coalescer) load(ctx context.Context) error {
	var zero [BlockSize]byte
	if err := c.key.EncryptBlocks(ctx, c.l[:], zero[:]); err != nil {
		return err
	}
	c.k1 = Double(c.l)
	return nil
}

// derive computes the keys of one message. A caller whose context ends leaves at
// once, unless it is the runner at that moment.
func (c *coalescer) derive(ctx context.Context, in *MessageInput, use Use) (MessageKeys, error) {
	w := c.waiter(ctx, in, use)
	c.mu.Lock()
	idle := c.enqueue(w)
	c.mu.Unlock()
	return c.wait(ctx, w, idle)
}

// deriveAll is derive for many messages, one at least, which queue one behind the other.
// Either all of keys are set or none.
func (c *coalescer) deriveAll(ctx context.Context, in []MessageInput, use Use, keys []MessageKeys) (err error) {
	all := make([]*waiter, len(in))
	for i := range in {
		all[i] = c.waiter(ctx, &in[i], use)
	}
	c.mu.Lock()
	idle := c.enqueue(all[0])
	for _, w := range all[1:] {
		c.enqueue(w)
	}
	c.mu.Unlock()
	for i, w := range all { // in the order of the queue, in which they become the runner
		if err == nil {
			keys[i], err = c.wait(ctx, w, idle && i == 0)
		} else {
			c.abandon(w)
		}
	}
	if err != nil {
		clear(keys)
	}
	return err
}

func (c *coalescer) waiter(ctx context.Context, in *MessageInput, use Use) *waiter {
	w := c.shared.waiters.Get().(*waiter)
	w.in, w.use = *in, use
	if c.shared.tracer != nil {
		w.ctx = ctx
	}
	return w
}

// enqueue has w wait, and tells whether it has become the runner, because there was none. The
// coalescer is locked.
func (c *coalescer) enqueue(w *waiter) (idle bool) {
	c.waiters.push(&w.link)
	c.arrived++
	if c.running {
		return false
	}
	c.running, w.state = true, running
	return true
}

// wait returns the keys of a message that was queued, and makes calls when it is its turn to.
func (c *coalescer) wait(ctx context.Context, w *waiter, idle bool) (MessageKeys, error) {
	if !idle {
		select {
		case <-w.wake:
		case <-ctx.Done():
			c.abandon(w)
			return MessageKeys{}, fmt.Errorf("waiting for the hsm: %w", ctx.Err())
		}
	}
	if w.state == running {
		c.run(ctx, w)
	}
	keys, err := w.keys, w.err
	c.shared.recycle(w)
	return keys, err
}

// abandon takes w out, wherever it is by now.
func (c *coalescer) abandon(w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch w.state {
	case taken, left:
		w.state = left // the runner recycles it
		return
	case queued:
		c.waiters.remove(&w.link)
	case running:
		<-w.wake
		c.waiters.remove(&w.link)
		c.handOver()
	case done:
		<-w.wake
	}
	c.shared.recycle(w)
}

// run makes one call, for self and for those who queue behind it.
func (c *coalescer) run(ctx context.Context, self *waiter) {
	c.gather()
	b := c.shared.calls.Get().(*call)

	c.mu.Lock()
	for w, ok := c.waiters.front(); ok && b.add(w); w, ok = c.waiters.front() {
		c.waiters.remove(&w.link)
		w.state = taken
	}
	c.mu.Unlock()

	err := c.send(ctx, b)

	c.mu.Lock()
	for _, w := range b.batch {
		switch {
		case w.state == left:
			c.shared.recycle(w)
		case w == self:
			w.err, w.state = err, done
		default:
			w.err, w.state = err, done
			w.wake <- struct{}{}
		}
	}
	c.handOver()
	c.mu.Unlock()

	b.reset()
	c.shared.calls.Put(b)
}

// A runner lets others go first until nobody has come twice in a row, and maxYields times at most.
const maxYields = 8

// gather lets callers that are about to queue do so. One who is alone yields twice, to nobody.
func (c *coalescer) gather() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for yields, nobody := 0, 0; yields < maxYields && nobody < 2; yields++ {
		before := c.arrived
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		if nobody++; c.arrived != before {
			nobody = 0
		}
	}
}

// handOver gives the role of the runner to the caller at the front, if any.
func (c *coalescer) handOver() {
	w, ok := c.waiters.front()
	c.running = ok
	if ok {
		w.state = running
		w.wake <- struct{}{}
	}
}

// send makes the HSM call. It is not cancelled with the context of the caller
// that makes it: others wait for it too.
func (c *coalescer) send(ctx context.Context, b *call) (err error) {
	if t := c.shared.tracer; t != nil {
		callers := make([]context.Context, len(b.batch))
		for i, w := range b.batch {
			callers[i] = w.ctx
		}
		traced, done := t.Shared(callers)
		ctx = traced
		defer func() { done(err) }()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	dst, src := b.prepare(&c.k1)
	c.shared.called(len(b.batch))
	if err := c.key.EncryptBlocks(ctx, dst, src); err != nil {
		return err
	}
	return b.finish(&c.l)
}
