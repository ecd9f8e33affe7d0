package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// The bounds of PoolOptions.
const (
	MaxPoolSize = 4096
	MaxPoolAge  = time.Hour
)

// PoolOptions say how a DataKeyPool keeps ahead. Size and MaxAge are required.
type PoolOptions struct {
	// Size is how many data keys there are at most, 1 to MaxPoolSize.
	Size int
	// LowWater is how many may be left when more are fetched, less than Size. Zero means half
	// of Size.
	LowWater int
	// MaxAge is how long a data key may wait to be handed out, at most MaxPoolAge.
	MaxAge time.Duration
	// Watched has the cluster tell when the use of the CMK may have been restricted: the pool
	// is emptied then, and while no node answers the watch each call is one to the cluster.
	// What holds of StaleAfter for KeyCache does so here.
	Watched bool
}

func (o *PoolOptions) check() error {
	switch {
	case o.Size < 1 || o.Size > MaxPoolSize:
		return fmt.Errorf("client: a pool of %d data keys: want 1 to %d", o.Size, MaxPoolSize)
	case o.LowWater < 0 || o.LowWater >= o.Size:
		return fmt.Errorf("client: a low-water mark of %d: want less than the size, %d, or 0 for half of it", o.LowWater, o.Size)
	case o.MaxAge <= 0 || o.MaxAge > MaxPoolAge:
		return fmt.Errorf("client: a pool that keeps data keys for %s: want more than 0, at most %s", o.MaxAge, MaxPoolAge)
	}
	if o.LowWater == 0 {
		o.LowWater = o.Size / 2
	}
	return nil
}

// PoolStats are what a DataKeyPool has done, and what it holds.
type PoolStats struct {
	Hits    uint64 // data keys that were there
	Misses  uint64 // calls that had to wait for the cluster
	Wiped   uint64 // data keys that nobody got: too old, or restricted
	Refills uint64
	Size    int   // data keys that are there
	Failed  error // why the last refill failed; nil if it did not
}

// DataKeyPool hands out data keys that were fetched ahead, all under one CMK with one
// encryption context: for where a new object is not to wait for the cluster. Each is handed
// out once. It is safe for concurrent use; Close it after use.
//
// What it weakens: a data key was allowed when it was fetched, up to MaxAge before it is handed
// out. Without PoolOptions.Watched, one whose CMK has been disabled meanwhile is handed out
// nevertheless, and what is sealed with it cannot be opened while that lasts. With it, the pool
// is emptied as a KeyCache is. Whoever can read this process's memory gets the keys in it.
type DataKeyPool struct {
	c       *Client
	w       *watcher // nil unless watched
	key     string
	ec      map[string]string
	options PoolOptions
	ctx     context.Context //nolint:containedctx // the pool's own life
	cancel  context.CancelFunc
	wait    sync.WaitGroup

	mu     sync.Mutex
	keys   []pooledKey // oldest first
	refill *refilling  // under way, or nil
	epoch  uint64      // of what was told to be forgotten
	cmk    string      // of its keys, if it is watched and known
	stats  PoolStats
	timer  *time.Timer // wipes what is too old
	closed bool
}

type pooledKey struct {
	DataKey
	until time.Time
}

// refilling is some data keys being fetched.
type refilling struct {
	done chan struct{}
	err  error // why none came
}

// NewDataKeyPool makes a pool for a CMK and a context. It begins to fetch at once; a watched one
// when it is first asked after a node has answered the watch.
func NewDataKeyPool(c *Client, key string, ec map[string]string, options PoolOptions) (*DataKeyPool, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	p := &DataKeyPool{c: c, key: key, ec: maps.Clone(ec), options: options}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if options.Watched {
		w, err := c.join(p)
		if err != nil {
			p.cancel()
			return nil, err
		}
		p.w = w
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(options.MaxAge, p.age)
	p.refillNow()
	return p, nil
}

// Close wipes what nobody got. Closing again does nothing.
func (p *DataKeyPool) Close() error {
	p.mu.Lock()
	already := p.closed
	p.closed = true
	p.timer.Stop()
	p.wipe(len(p.keys))
	p.mu.Unlock()
	p.cancel()
	p.wait.Wait()
	if p.w != nil && !already {
		p.w.leave(p)
	}
	return nil
}

// Stats tells what the pool has done.
func (p *DataKeyPool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Size = len(p.keys)
	return s
}

// Get returns a data key that nobody else has, the caller's to wipe after use. It waits for
// the cluster if there is none, and fails as that does.
func (p *DataKeyPool) Get(ctx context.Context) (DataKey, error) {
	for waited := false; ; waited = true {
		key, more, err := p.take(waited)
		switch {
		case errors.Is(err, errUnwatched):
			return p.c.generateDataKey(ctx, p.key, p.ec)
		case more == nil:
			return key, err
		}
		select {
		case <-more.done:
			if more.err != nil {
				return DataKey{}, more.err
			}
		case <-ctx.Done():
			return DataKey{}, outOfTime(ctx, nil)
		}
	}
}

// GenerateDataKey is Get for package envelope. key and ec must be the pool's.
func (p *DataKeyPool) GenerateDataKey(ctx context.Context, key string, ec map[string]string) (plaintext, blob []byte, err error) {
	if key != p.key || !maps.Equal(ec, p.ec) {
		return nil, nil, fmt.Errorf("client: the pool is of %s with the context %v, not of %s with %v", p.key, p.ec, key, ec)
	}
	k, err := p.Get(ctx)
	return k.Plaintext, k.Ciphertext, err
}

// DecryptDataKey is Client.DecryptDataKey.
func (p *DataKeyPool) DecryptDataKey(ctx context.Context, blob []byte, ec map[string]string) (plaintext []byte, err error) {
	return p.c.DecryptDataKey(ctx, blob, ec)
}

// take hands out a data key, or what to wait for.
func (p *DataKeyPool) take(waited bool) (key DataKey, more *refilling, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return key, nil, ErrClosed
	}
	p.wipe(p.old())
	live := p.live()
	there := len(p.keys) > 0 && live
	switch {
	case waited:
	case there:
		p.stats.Hits++
	default:
		p.stats.Misses++
	}
	if !live {
		return key, nil, errUnwatched
	}
	if !there {
		if p.refillNow(); p.refill == nil { // not live any more
			return key, nil, errUnwatched
		}
		return key, p.refill, nil
	}
	key, p.keys[0].DataKey = p.keys[0].DataKey, DataKey{}
	p.keys = p.keys[1:]
	if len(p.keys) <= p.options.LowWater {
		p.refillNow()
	}
	return key, nil, nil
}

// live tells whether what was fetched ahead may be handed out.
func (p *DataKeyPool) live() bool { return p.w == nil || p.w.live() }

// refillNow begins to fill the pool, unless that is under way.
func (p *DataKeyPool) refillNow() {
	if p.refill != nil || p.closed || !p.live() {
		return
	}
	p.refill = &refilling{done: make(chan struct{})}
	p.stats.Refills++
	p.wait.Go(func() {
		for p.round() {
		}
	})
}

// round fetches what is lacking, as many as one call gives: who waits does not wait for more. It
// tells whether to go on.
func (p *DataKeyPool) round() (more bool) {
	p.mu.Lock()
	n, epoch, r := min(p.options.Size-len(p.keys), maxBatch), p.epoch, p.refill
	p.mu.Unlock()
	keys, err := p.c.BatchGenerateDataKey(p.ctx, p.key, n, p.ec)
	if p.w != nil && slices.ContainsFunc(keys, func(k DataKey) bool { return p.w.cmk(k) == "" }) {
		for _, k := range keys {
			k.Wipe()
		}
		keys, err = nil, fmt.Errorf("client: a watched pool of %s, which is no CMK of the acting tenant: set Config.Tenant", p.key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	until := time.Now().Add(p.options.MaxAge)
	before := p.keys
	for _, k := range keys {
		p.keys = append(p.keys, pooledKey{k, until})
	}
	switch {
	case p.closed || !p.live():
		p.wipe(len(p.keys))
	case epoch != p.epoch: // what came behind them may forbid them
		for _, k := range keys {
			k.Wipe()
		}
		p.keys = before
		p.stats.Wiped += uint64(len(keys))
	}
	if p.w != nil && len(keys) > 0 {
		p.cmk = p.w.cmk(keys[0]) // other keys' restrictions take nothing from now on
	}
	p.stats.Failed = err
	switch {
	case p.closed:
		r.err = ErrClosed
	case len(keys) == 0:
		r.err = err
	}
	close(r.done)
	p.refill = nil
	if more = err == nil && !p.closed && p.live() && len(p.keys) < p.options.Size; more {
		p.refill = &refilling{done: make(chan struct{})}
	}
	return more
}

// old is how many keys have waited too long.
func (p *DataKeyPool) old() int {
	now := time.Now()
	n := slices.IndexFunc(p.keys, func(k pooledKey) bool { return now.Before(k.until) })
	if n < 0 {
		return len(p.keys)
	}
	return n
}

// wipe drops the first n keys, which nobody got.
func (p *DataKeyPool) wipe(n int) {
	for _, k := range p.keys[:n] {
		k.Wipe()
	}
	p.keys = p.keys[n:]
	p.stats.Wiped += uint64(n) //nolint:gosec // not negative
}

// age wipes what is too old where nobody asks.
func (p *DataKeyPool) age() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.wipe(p.old())
	next := p.options.MaxAge
	if len(p.keys) > 0 {
		next = time.Until(p.keys[0].until)
	}
	p.timer.Reset(next)
}

// forget implements keeper.
func (p *DataKeyPool) forget(everything bool, cmks []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if everything || p.cmk == "" || slices.Contains(cmks, p.cmk) {
		p.epoch++
		p.cmk = ""
		p.wipe(len(p.keys))
	}
}
