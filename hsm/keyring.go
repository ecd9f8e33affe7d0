package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Opener loads the key of a token. Every Partition is one.
type Opener interface {
	Open(ctx context.Context, token []byte, want TokenHeader) (BlockKey, error)
	OpenResident(ctx context.Context, token []byte, want TokenHeader) (ResidentKey, error)
	OpenSecret(ctx context.Context, ref Ref) (SecretKey, error)
}

// Ref says which key version to use.
type Ref struct {
	Token []byte // KWT1
	Want  TokenHeader
	Kind  Kind   // may be left out of AES keys that are not resident
	SPKI  []byte // of pairs: DER SubjectPublicKeyInfo
}

// The defaults of KeyringConfig.
const (
	DefaultMaxKeys    = 4096
	DefaultMaxWaiting = 8192
)

// KeyringConfig bounds a Keyring.
type KeyringConfig struct {
	// MaxKeys is the number of keys loaded at one time, those in use included.
	// Default DefaultMaxKeys.
	MaxKeys int
	// MaxWaiting is the number of messages under way at one time, over all keys.
	// Default DefaultMaxWaiting.
	MaxWaiting int
	// Doubt, optional, is called when the HSM has given a wrong answer (Partition.Doubt).
	Doubt func(context.Context) error
	// Tracer, optional, follows the calls that derive message keys.
	Tracer CallTracer
}

// Stats counts what a Keyring did since it was made.
type Stats struct {
	Loaded     int      // keys loaded now, or being loaded
	MaxKeys    int      // of Loaded
	Waiting    int      // messages under way now
	MaxWaiting int      // of Waiting
	Hits       uint64   // messages and uses that found their key loaded
	Wrong      uint64   // wrong answers of the HSM that were caught
	Calls      uint64   // HSM calls that derived message keys or applied a key
	Messages   uint64   // messages those calls carried
	Batches    []uint64 // those calls by messages: 1, 2, up to 4 and so on by two; the last: more
	Loads      uint64   // keys opened
	Evictions  uint64   // keys closed to make room for others
}

// Keyring uses customer master keys: it derives message keys under AES keys, has resident
// ones encrypt and decrypt, and applies the others. It keeps the keys used last loaded, and concurrent derivations under one
// key share HSM calls. All methods may be called from any goroutine.
type Keyring struct {
	opener     Opener
	maxKeys    int
	maxWaiting int
	doubt      func(context.Context) error
	shared     *shared
	wrong      atomic.Uint64
	active     sync.WaitGroup // calls that use a key

	mu      sync.Mutex
	closed  bool
	waiting int
	hits    uint64
	loaded  int // slots that are not closed, in slots or not
	slots   map[slotID]*slot
	idle    queue[*slot]  // slots of the map with no refs, least recently used first
	room    chan struct{} // closed when a slot becomes idle; nil if nobody waits for it
}

// NewKeyring returns an empty keyring over o.
func NewKeyring(o Opener, c KeyringConfig) *Keyring {
	if c.MaxKeys <= 0 {
		c.MaxKeys = DefaultMaxKeys
	}
	if c.MaxWaiting <= 0 {
		c.MaxWaiting = DefaultMaxWaiting
	}
	return &Keyring{
		opener: o, maxKeys: c.MaxKeys, maxWaiting: c.MaxWaiting, doubt: c.Doubt,
		shared: newShared(c.Tracer), slots: make(map[slotID]*slot),
	}
}

// Derive computes the keys of one message under the key of ref, which it loads if
// need be. A key lost with its session is opened again once.
//
// ErrBusy: MaxWaiting messages are under way. ErrCorrupt: the token is not what
// ref wants. ErrWrongAnswer: an answer of the HSM is wrong; the key is then loaded anew
// next time. ErrUnavailable: closed, or the HSM is. The error of a context that ends
// while waiting is the context's. Otherwise the error of the Opener or the key.
func (k *Keyring) Derive(ctx context.Context, ref Ref, in MessageInput, use Use) (MessageKeys, error) {
	if err := ref.derives(use); err != nil {
		return MessageKeys{}, err
	}
	return using(ctx, k, ref, func(s *slot) (MessageKeys, error) { return s.derive(ctx, &in, use) })
}

// DeriveAll computes the keys of many messages under one key, with as few HSM calls as they fit
// into: all of them or, with an error as of Derive, none.
func (k *Keyring) DeriveAll(ctx context.Context, ref Ref, in []MessageInput, use Use) ([]MessageKeys, error) {
	if err := ref.derives(use); err != nil || len(in) == 0 {
		return nil, err
	}
	return usingMany(ctx, k, ref, len(in), func(s *slot) ([]MessageKeys, error) {
		keys := make([]MessageKeys, len(in))
		return keys, s.deriveAll(ctx, in, use, keys)
	})
}

// derives is nil if message keys can be derived under the key for the use.
func (r Ref) derives(use Use) error {
	if use != Seal && use != Open {
		return fmt.Errorf("%w: unknown use %d", ErrRefused, use)
	}
	if !r.isBlockKey() {
		return fmt.Errorf("%w: message keys of a key of class %d", ErrRefused, r.Kind.Class)
	}
	return nil
}

// Apply uses the key of ref, of class HMAC, RSA or EC, with an algorithm (SecretKey).
// Signatures are verified before they are returned. Errors are as those of Derive, and
// ErrRefused, ErrUnsupported and ErrCiphertext.
func (k *Keyring) Apply(ctx context.Context, ref Ref, a Algorithm, input []byte) ([]byte, error) {
	if err := ref.Kind.Accepts(a, input); err != nil {
		return nil, err
	}
	return using(ctx, k, ref, func(s *slot) ([]byte, error) {
		k.shared.called(1)
		output, err := s.secret.Apply(ctx, a, input)
		if err == nil && a.Signs() && s.public.Verify(a, input, output) != nil {
			return nil, fmt.Errorf("%w: a signature that does not verify", ErrWrongAnswer)
		}
		return output, err
	})
}

// using does something with the loaded key of ref. A key lost with its session is opened
// again once.
func using[T any](ctx context.Context, k *Keyring, ref Ref, f func(*slot) (T, error)) (result T, err error) {
	return usingMany(ctx, k, ref, 1, f)
}

// usingMany is using for what counts as so many messages.
func usingMany[T any](ctx context.Context, k *Keyring, ref Ref, messages int, f func(*slot) (T, error)) (result T, err error) {
	if err := k.enter(messages); err != nil {
		return result, err
	}
	defer k.exit(messages)
	for range 2 {
		if result, err = usingOnce(ctx, k, ref, f); !errors.Is(err, ErrStale) {
			return result, err
		}
	}
	return result, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func usingOnce[T any](ctx context.Context, k *Keyring, ref Ref, f func(*slot) (T, error)) (result T, err error) {
	if ctx.Err() != nil {
		return result, fmt.Errorf("using a key: %w", ctx.Err())
	}
	defer func() {
		if errors.Is(err, ErrWrongAnswer) {
			k.wrong.Add(1)
			k.suspect(ctx)
		}
	}()
	s, err := k.acquire(ctx, ref)
	if err != nil {
		return result, err
	}
	defer k.release(s)
	result, err = f(s)
	if errors.Is(err, ErrStale) || errors.Is(err, ErrCorrupt) {
		k.drop(s)
	}
	return result, err
}

// suspect has the partition prove that its token answers rightly; that it does not is
// the partition's to tell.
func (k *Keyring) suspect(ctx context.Context) {
	if k.doubt == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_ = k.doubt(ctx)
}

// Stats reports what the keyring has done.
func (k *Keyring) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Stats{
		Loaded: k.loaded, MaxKeys: k.maxKeys, Waiting: k.waiting, MaxWaiting: k.maxWaiting, Hits: k.hits, Wrong: k.wrong.Load(),
		Messages: k.shared.msgCount.Load(), Batches: make([]uint64, batchSizes),
		Loads: k.shared.loadCount.Load(), Evictions: k.shared.evictions.Load(),
	}
	for i := range s.Batches {
		s.Batches[i] = k.shared.batches[i].Load()
		s.Calls += s.Batches[i]
	}
	return s
}

// Close refuses further work, waits for the derivations under way and closes
// every key. Closing twice is harmless.
func (k *Keyring) Close() {
	k.mu.Lock()
	k.closed = true
	k.wakeRoom()
	k.mu.Unlock()
	k.dropAll()
	k.active.Wait()
}

func (k *Keyring) enter(messages int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return fmt.Errorf("%w: keyring closed", ErrUnavailable)
	}
	if k.waiting > 0 && k.waiting+messages > k.maxWaiting { // one that is more than all may have it all
		return fmt.Errorf("%w: %d messages under way", ErrBusy, k.waiting)
	}
	k.waiting += messages
	k.active.Add(1)
	return nil
}

func (k *Keyring) exit(messages int) {
	k.mu.Lock()
	k.waiting -= messages
	k.mu.Unlock()
	k.active.Done()
}

// acquire returns the loaded slot of ref with one reference taken. One caller
// loads a key, the others wait for it.
func (k *Keyring) acquire(ctx context.Context, ref Ref) (*slot, error) {
	for {
		s, loads, room, err := k.find(ref)
		switch {
		case err != nil:
			return nil, err
		case room != nil:
			select {
			case <-room:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("waiting for room for a key: %w", ctx.Err())
			}
		case loads:
			k.load(ctx, s)
		}
		select {
		case <-s.ready: // almost always
		default:
			select {
			case <-s.ready:
			case <-ctx.Done():
				k.release(s)
				return nil, fmt.Errorf("waiting for a key: %w", ctx.Err())
			}
		}
		if s.err != nil {
			k.release(s)
			return nil, s.err
		}
		return s, nil
	}
}

// find returns the slot of ref, with one reference taken, and whether the caller
// must load it. If there is no room for it, it returns the channel that tells of
// room instead.
func (k *Keyring) find(ref Ref) (s *slot, loads bool, room <-chan struct{}, err error) {
	k.mu.Lock()
	var unused [2]closer
	defer func() {
		k.mu.Unlock()
		closeKeys(unused[:]...)
	}()
	if k.closed {
		return nil, false, nil, fmt.Errorf("%w: keyring closed", ErrUnavailable)
	}
	id := slotID{ref.Want.Key, ref.Want.Version}
	if s := k.slots[id]; s != nil {
		if s.serves(ref) {
			if s.refs == 0 {
				k.idle.remove(&s.link)
			}
			s.refs++
			k.hits++
			return s, false, nil, nil
		}
		unused[0] = k.detach(s)
	}
	if k.loaded >= k.maxKeys {
		victim, ok := k.idle.front()
		if !ok {
			if k.room == nil {
				k.room = make(chan struct{})
			}
			return nil, false, k.room, nil
		}
		unused[1] = k.detach(victim)
		k.shared.evictions.Add(1)
	}
	s = &slot{
		coalescer: coalescer{shared: k.shared},
		ref:       Ref{Token: bytes.Clone(ref.Token), Want: ref.Want, Kind: ref.Kind, SPKI: bytes.Clone(ref.SPKI)},
		ready:     make(chan struct{}),
		refs:      1,
	}
	s.link.item = s
	k.slots[id] = s
	k.loaded++
	return s, true, nil, nil
}

// load opens the key of a slot that find has made. A failure is for those who
// wait for it now; the next caller tries again.
func (k *Keyring) load(ctx context.Context, s *slot) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	k.shared.loadCount.Add(1)
	if s.err = s.open(ctx, k.opener); s.err != nil {
		k.drop(s)
	}
	close(s.ready)
}

// release gives back one reference.
func (k *Keyring) release(s *slot) {
	k.mu.Lock()
	var unused closer
	s.refs--
	if s.refs == 0 {
		if k.slots[s.id()] == s {
			k.idle.push(&s.link)
		} else {
			k.loaded--
			unused = s.loaded()
		}
		k.wakeRoom()
	}
	k.mu.Unlock()
	closeKeys(unused)
}

// drop takes s out of the map, so that the next caller opens the key anew.
func (k *Keyring) drop(s *slot) {
	k.mu.Lock()
	var unused closer
	if k.slots[s.id()] == s {
		unused = k.detach(s)
	}
	k.mu.Unlock()
	closeKeys(unused)
}

// dropAll takes every slot out of the map.
func (k *Keyring) dropAll() {
	var unused []closer
	k.mu.Lock()
	for _, s := range k.slots {
		unused = append(unused, k.detach(s))
	}
	k.mu.Unlock()
	closeKeys(unused...)
}

// detach takes a slot out of the map. If it is idle the caller must close the key
// that detach returns, after unlocking; otherwise the last release does.
func (k *Keyring) detach(s *slot) closer {
	delete(k.slots, s.id())
	if s.refs > 0 {
		return nil
	}
	k.idle.remove(&s.link)
	k.loaded--
	return s.loaded()
}

func (k *Keyring) wakeRoom() {
	if k.room != nil {
		close(k.room)
		k.room = nil
	}
}
