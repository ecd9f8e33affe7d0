package client

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The bounds of CacheLimits.
const (
	// MaxCacheEntries is the largest cache: an entry may have 4 KiB of plaintext.
	MaxCacheEntries = 1 << 20
	// MaxCacheAge is the longest that a data key may be kept.
	MaxCacheAge = 24 * time.Hour
	// MaxCacheUses is how many messages may be sealed with one key, AES-GCM having random
	// nonces of 96 bits (NIST SP 800-38D).
	MaxCacheUses = 1 << 32
)

// CacheLimits say how long a KeyCache keeps a data key; they mean what they mean in the AWS
// Encryption SDK's caching materials manager. MaxEntries and MaxAge are required.
type CacheLimits struct {
	// MaxEntries is how many data keys are kept; the one that was used longest ago goes first.
	// At most MaxCacheEntries.
	MaxEntries int
	// MaxAge is how long a data key is kept since the cluster gave it, at most MaxCacheAge.
	// What time alone ends holds in the cache after it: policies that ask for the time.
	MaxAge time.Duration
	// MaxUses is how many messages are sealed with one key that DataKey gives out. Zero means
	// MaxCacheUses, which is the most.
	MaxUses int64
	// MaxBytes is how many bytes are sealed with one key that DataKey gives out, as its
	// callers say. Zero means no limit.
	MaxBytes int64
}

func (l CacheLimits) check() error {
	switch {
	case l.MaxEntries < 1 || l.MaxEntries > MaxCacheEntries:
		return fmt.Errorf("client: a cache of %d entries: want 1 to %d", l.MaxEntries, MaxCacheEntries)
	case l.MaxAge <= 0 || l.MaxAge > MaxCacheAge:
		return fmt.Errorf("client: a cache that keeps keys for %s: want more than 0, at most %s", l.MaxAge, MaxCacheAge)
	case l.MaxUses < 0 || l.MaxUses > MaxCacheUses:
		return fmt.Errorf("client: %d uses of a key: want 1 to %d, or 0 for that", l.MaxUses, int64(MaxCacheUses))
	case l.MaxBytes < 0:
		return fmt.Errorf("client: %d bytes under a key: want at least 1, or 0 for no limit", l.MaxBytes)
	}
	return nil
}

// CacheStats are what a KeyCache has done, and what it holds.
type CacheStats struct {
	Hits, Misses  uint64
	Evictions     uint64 // of keys: of age, used up, or for want of room
	Invalidations uint64 // of keys that the cluster told the cache to forget, or that the watch ended for
	Entries       int
	// Unwatched is why nothing is kept now; nil while the cache works.
	Unwatched error
}

// KeyCache keeps data keys in this process's memory, so that they can be used without asking
// the cluster each time. It is safe for concurrent use; Close it after use.
//
// What it weakens: without it, whatever was taken away is gone when the restriction's call
// returns. With it, a data key that was decrypted before opens here a moment longer: until the
// node that the cache watches has told it, which takes one message on the network; and where
// that does not come through, StaleAfter at most. A cache that hears of no node for that long
// is empty, and every call goes to the cluster. What the passing of time ends (grants, imported
// material) is told as the cluster notes it, within seconds; what policies say of the time holds
// after MaxAge. Whoever can read this process's memory gets the keys in it: keep few, not long.
//
// The cache is told of all of: keys and versions that are disabled, decrypt-only, scheduled for
// deletion, destroyed or whose material goes; policies; grants that end; aliases and tags;
// tenants that are frozen; its own principal when it is disabled. Rotation is no restriction:
// DataKey goes on with the earlier version up to MaxAge.
//
// Data keys of CMKs of another tenant than the acting one, which DataKey can name by an ARN, are
// not kept: set Config.Tenant.
//
// Concurrent calls for the same data key share one call to the cluster, while the cache works.
// The first decides its consistency; no caller's context ends it for the others.
type KeyCache struct {
	c      *Client
	w      *watcher
	limits CacheLimits
	ctx    context.Context //nolint:containedctx // the cache's own life
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	entries map[cacheID]*list.Element // of *cacheEntry
	order   *list.List                // used last: in front
	fetches map[cacheID]*fetching
	epoch   uint64 // of what was told to be forgotten
	stats   CacheStats
	closed  bool
}

// cacheID is a hash of what is asked for.
type cacheID [sha256.Size]byte

type cacheEntry struct {
	id    cacheID
	key   DataKey
	uses  int64
	bytes int64
	open  bool        // it was decrypted: its uses seal nothing
	timer *time.Timer // that ends it
}

// fetching is a call under way for all who ask for the same.
type fetching struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int  // with the first
	left    bool // the first, whose key is
	key     DataKey
	err     error
}

// NewKeyCache makes a cache of a client. It begins to watch a node at once, and keeps nothing
// before that has answered: as long as no node does, or those there are of a release that
// knows no watches, every call goes to the cluster.
func NewKeyCache(c *Client, limits CacheLimits) (*KeyCache, error) {
	if err := limits.check(); err != nil {
		return nil, err
	}
	if limits.MaxUses == 0 {
		limits.MaxUses = MaxCacheUses
	}
	k := &KeyCache{c: c, limits: limits, entries: map[cacheID]*list.Element{}, order: list.New(), fetches: map[cacheID]*fetching{}}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	w, err := c.join(k)
	if err != nil {
		k.cancel()
		return nil, err
	}
	k.w = w
	return k, nil
}

// Close wipes what is kept and ends the watch. Closing again does nothing.
func (k *KeyCache) Close() error {
	k.mu.Lock()
	already := k.closed
	k.closed = true
	k.drop(true, nil)
	k.mu.Unlock()
	k.cancel()
	k.wait.Wait()
	if !already {
		k.w.leave(k)
	}
	return nil
}

// Stats tells what the cache has done.
func (k *KeyCache) Stats() CacheStats {
	unwatched := k.w.state()
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stats
	s.Entries, s.Unwatched = len(k.entries), unwatched
	if k.closed {
		s.Unwatched = ErrClosed
	}
	return s
}

// DecryptDataKey is Client.DecryptDataKey out of the cache. The plaintext is a copy, the
// caller's to overwrite after use.
func (k *KeyCache) DecryptDataKey(ctx context.Context, blob []byte, ec map[string]string) (plaintext []byte, err error) {
	key, err := k.get(ctx, question{open: true, blob: blob, ec: ec}, 0)
	return key.Plaintext, err
}

// DataKey returns a data key under a CMK to seal one message of n bytes with: the one that it
// returned before, until the limits are reached, then a new one. Both forms are copies, the
// caller's. Messages under one key need each a nonce of its own, as those of AES-GCM do.
func (k *KeyCache) DataKey(ctx context.Context, key string, ec map[string]string, n int64) (DataKey, error) {
	if n < 0 {
		return DataKey{}, fmt.Errorf("client: a message of %d bytes", n)
	}
	q := question{key: key, ec: ec}
	if k.limits.MaxBytes > 0 && n > k.limits.MaxBytes { // a key of its own
		return q.ask(ctx, k.c)
	}
	return k.get(ctx, q, n)
}

// GenerateDataKey is Client.GenerateDataKey: a key that nobody else has, which is not kept. So a
// KeyCache is what package envelope needs: objects are sealed each with a key of its own, and
// opened out of the cache.
func (k *KeyCache) GenerateDataKey(ctx context.Context, key string, ec map[string]string) (plaintext, blob []byte, err error) {
	return k.c.GenerateDataKey(ctx, key, ec)
}

// question is what is asked for: to open a blob, or a data key under a CMK.
type question struct {
	open bool
	blob []byte
	key  string
	ec   map[string]string
}

func (q question) ask(ctx context.Context, c *Client) (DataKey, error) {
	if q.open {
		return c.openDataKey(ctx, q.blob, q.ec)
	}
	return c.generateDataKey(ctx, q.key, q.ec)
}

// own is the question for whoever asks it when its caller may have gone.
func (q question) own() question {
	q.blob, q.ec = bytes.Clone(q.blob), maps.Clone(q.ec)
	return q
}

// id is what questions have in common that may share an answer.
func (q question) id(ctx context.Context) cacheID {
	h := sha256.New()
	add := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	consistency, _ := ctx.Value(consistencyKey{}).(Consistency)
	add([]byte(consistency))
	add([]byte(strconv.FormatBool(q.open)))
	add(q.blob)
	add([]byte(q.key))
	for _, name := range slices.Sorted(maps.Keys(q.ec)) {
		add([]byte(name))
		add([]byte(q.ec[name]))
	}
	return cacheID(h.Sum(nil))
}

// get answers out of the cache, or by a call that others may share.
func (k *KeyCache) get(ctx context.Context, q question, n int64) (DataKey, error) {
	id := q.id(ctx)
	for missed := false; ; missed = true {
		key, f, first, err := k.look(ctx, id, q, n, missed)
		switch {
		case f == nil && err == errUnwatched: //nolint:errorlint // as it is
			return q.ask(ctx, k.c)
		case f == nil:
			return key, err
		}
		if key, ended, err := k.await(ctx, id, f, first); ended {
			return key, err
		}
	}
}

// errUnwatched: nothing is kept, and nothing is shared that may have been taken away meanwhile.
var errUnwatched = errors.New("client: unwatched")

// look answers out of the cache, or with a call to wait for.
func (k *KeyCache) look(ctx context.Context, id cacheID, q question, n int64, missed bool) (key DataKey, f *fetching, first bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	live := k.w.live()
	switch key, ok := k.use(id, n, live); {
	case k.closed:
		return DataKey{}, nil, false, ErrClosed
	case ok:
		k.stats.Hits++
		return key, nil, false, nil
	case !missed:
		k.stats.Misses++
	}
	if !live || missed { // of a call that was shared nothing was kept: each asks for itself
		return DataKey{}, nil, false, errUnwatched
	}
	if f = k.fetches[id]; f == nil {
		f, first = k.begin(ctx, id, q.own(), n), true
	}
	f.waiters++
	return DataKey{}, f, first, nil
}

// use hands out what is kept, if its limits allow.
func (k *KeyCache) use(id cacheID, n int64, live bool) (DataKey, bool) {
	e, ok := k.entries[id]
	if !ok || !live {
		return DataKey{}, false
	}
	x := e.Value.(*cacheEntry) //nolint:forcetypeassert // there are no others
	if !x.open && (x.uses >= k.limits.MaxUses || k.limits.MaxBytes > 0 && x.bytes > k.limits.MaxBytes-n) {
		k.remove(e)
		k.stats.Evictions++
		return DataKey{}, false
	}
	x.uses++
	x.bytes += n
	k.order.MoveToFront(e)
	return x.key.clone(), true
}

// begin makes the call that all share who ask the same. It ends when nobody waits for it any
// more.
func (k *KeyCache) begin(ctx context.Context, id cacheID, q question, n int64) *fetching {
	f := &fetching{done: make(chan struct{})}
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	end := context.AfterFunc(k.ctx, f.cancel)
	k.fetches[id] = f
	epoch := k.epoch
	k.wait.Go(func() {
		defer f.cancel()
		defer end()
		key, err := q.ask(ctx, k.c)
		k.mu.Lock()
		defer k.mu.Unlock()
		switch {
		case k.closed:
			key.Wipe()
			key, err = DataKey{}, ErrClosed
		case err == nil && k.fetches[id] == f && epoch == k.epoch && k.w.live() && k.w.cmk(key) != "":
			k.keep(id, key.clone(), n, q.open)
		}
		if f.left {
			key.Wipe()
		}
		f.key, f.err = key, err
		k.over(id, f)
		close(f.done)
	})
	return f
}

// over lets nobody join a call any more.
func (k *KeyCache) over(id cacheID, f *fetching) {
	if k.fetches[id] == f {
		delete(k.fetches, id)
	}
}

// await waits for a shared call. The first who asked has its answer; the others look into the
// cache again, where it stands unless it was taken away meanwhile.
func (k *KeyCache) await(ctx context.Context, id cacheID, f *fetching, first bool) (key DataKey, ended bool, err error) {
	select {
	case <-f.done:
		if first {
			return f.key, true, f.err
		}
		return DataKey{}, f.err != nil, f.err
	case <-ctx.Done():
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.left = f.left || first; first {
		f.key.Wipe() // if it has come at the same time
	}
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		k.over(id, f)
	}
	return DataKey{}, true, outOfTime(ctx, nil)
}

// keep takes a data key in, whose first use is under way.
func (k *KeyCache) keep(id cacheID, key DataKey, n int64, open bool) {
	for len(k.entries) >= k.limits.MaxEntries {
		k.remove(k.order.Back())
		k.stats.Evictions++
	}
	x := &cacheEntry{id: id, key: key, uses: 1, bytes: n, open: open}
	e := k.order.PushFront(x)
	k.entries[id] = e
	x.timer = time.AfterFunc(k.limits.MaxAge, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.entries[id] == e {
			k.remove(e)
			k.stats.Evictions++
		}
	})
}

func (k *KeyCache) remove(e *list.Element) {
	x := k.order.Remove(e).(*cacheEntry) //nolint:forcetypeassert // there are no others
	x.timer.Stop()
	x.key.Wipe()
	delete(k.entries, x.id)
}

// forget implements keeper.
func (k *KeyCache) forget(everything bool, cmks []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stats.Invalidations += uint64(k.drop(everything, cmks)) //nolint:gosec // not negative
}

// drop removes everything, or what is of some CMKs, and lets nobody join what is being fetched
// or keep it.
func (k *KeyCache) drop(everything bool, cmks []string) (n int) {
	k.epoch++
	clear(k.fetches)
	for e := k.order.Front(); e != nil; {
		next := e.Next()
		if everything || slices.Contains(cmks, k.w.cmk(e.Value.(*cacheEntry).key)) { //nolint:forcetypeassert // there are no others
			k.remove(e)
			n++
		}
		e = next
	}
	return n
}
