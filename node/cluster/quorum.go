package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// confirmations shares ticks among callers who want to be sure of this node's
// freshness without believing its clock. A caller takes the flight that has not
// begun yet, since only a tick asked for after its call proves anything to it.
type confirmations struct {
	mu     sync.Mutex
	next   *flight
	wanted chan struct{} // holds one when next is set
}

type flight struct {
	done chan struct{}
	err  error // set before done is closed
}

func newConfirmations() *confirmations {
	return &confirmations{wanted: make(chan struct{}, 1)}
}

func (c *confirmations) board() *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &flight{done: make(chan struct{})}
		c.wanted <- struct{}{}
	}
	return c.next
}

func (c *confirmations) depart() *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.next
	c.next = nil
	return f
}

// Confirm returns nil when the cluster has committed a tick that was asked for after
// the call, and this node has applied everything before it: what State returns then
// is as fresh as any node's. One tick serves all who wait.
func (m *Member) Confirm(ctx context.Context) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	f := e.confirmations.board()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("%w: no tick was committed in time: %w", ErrNoLease, ctx.Err())
	case <-e.ctx.Done():
		return ErrShutdown
	}
}

// confirmTimeout bounds one round; a leader's change lies within it.
const confirmTimeout = 3 * time.Second

func (e *engine) confirmLoop() {
	for {
		select {
		case <-e.confirmations.wanted:
		case <-e.ctx.Done():
			return
		}
		f := e.confirmations.depart()
		f.err = e.confirm()
		close(f.done)
	}
}

func (e *engine) confirm() error {
	ctx, cancel := context.WithTimeout(e.ctx, confirmTimeout)
	defer cancel()
	for {
		err := e.obtain(ctx)
		if err == nil || errors.Is(err, ErrNoLease) {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: no tick was committed in time: %w", ErrNoLease, err)
		}
	}
}
