package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// Opener loads the key of a token. Every Partition is one.
type Opener interface {
	Open(ctx context.Context, token []byte, want TokenHeader) (BlockKey, error)
}

// Ref says which key version to use.
type Ref struct {
	Token []byte // KWT1
	Want  TokenHeader
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
}

// Stats counts what a Keyring did since it was made.
type Stats struct {
	Loaded    int    // keys loaded now, or being loaded
	Waiting   int    // messages under way now
	Calls     uint64 // HSM calls that derived message keys
	Messages  uint64 // messages those calls carried
	Loads     uint64 // keys opened
	Evictions uint64 // keys closed to make room for others
}

// Keyring derives message keys under customer master keys. It keeps the keys used
// last loaded, and concurrent derivations under one key share HSM calls. All
// methods may be called from any goroutine.
type Keyring struct {
	opener     Opener
	maxKeys    int
	maxWaiting int
	shared     *shared
	active     sync.WaitGroup // calls of Derive

	mu      sync.Mutex
	closed  bool
	waiting int
	loaded  int // slots that are not closed, in slots or not
	slots   map[slotID]*slot
	idle    queue[*slot]  // slots of the map with no refs, least recently used first
	room    chan struct{} // closed when a slot becomes idle; nil if nobody waits for it
}

type slotID struct {
	key     ID
	version uint32
}

// slot is one loaded key version, or one being loaded.
type slot struct {
	coalescer
	ref   Ref           // what it was opened with
	ready chan struct{} // closed when loading has ended
	err   error         // set before ready is closed: loading failed

	link link[*slot] // guarded by Keyring.mu, as is refs
	refs int         // callers that use the slot
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
		opener: o, maxKeys: c.MaxKeys, maxWaiting: c.MaxWaiting,
		shared: newShared(), slots: make(map[slotID]*slot),
	}
}

// Derive computes the keys of one message under the key of ref, which it loads if
// need be. A key lost with its session is opened again once.
//
// ErrBusy: MaxWaiting messages are under way. ErrCorrupt: the token is not what
// ref wants, or an answer of the HSM is wrong; the key is then loaded anew next
// time. ErrUnavailable: closed, or the HSM is. The error of a context that ends
// while waiting is the context's. Otherwise the error of the Opener or the key.
func (k *Keyring) Derive(ctx context.Context, ref Ref, in MessageInput, use Use) (MessageKeys, error) {
	if use != Seal && use != Open {
		return MessageKeys{}, fmt.Errorf("%w: unknown use %d", ErrRefused, use)
	}
	if err := k.enter(); err != nil {
		return MessageKeys{}, err
	}
	defer k.exit()
	keys, err := k.derive(ctx, ref, &in, use)
	if errors.Is(err, ErrStale) {
		keys, err = k.derive(ctx, ref, &in, use)
	}
	if errors.Is(err, ErrStale) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return keys, err
}

func (k *Keyring) derive(ctx context.Context, ref Ref, in *MessageInput, use Use) (MessageKeys, error) {
	if ctx.Err() != nil {
		return MessageKeys{}, fmt.Errorf("message keys: %w", ctx.Err())
	}
	s, err := k.acquire(ctx, ref)
	if err != nil {
		return MessageKeys{}, err
	}
	defer k.release(s)
	keys, err := s.derive(ctx, in, use)
	if errors.Is(err, ErrStale) || errors.Is(err, ErrCorrupt) {
		k.drop(s)
	}
	return keys, err
}

// Forget drops every loaded version of a key. Derivations under way end normally.
func (k *Keyring) Forget(key ID) {
	k.dropIf(func(id slotID) bool { return id.key == key })
}

// Stats reports what the keyring has done.
func (k *Keyring) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Stats{
		Loaded: k.loaded, Waiting: k.waiting,
		Calls: k.shared.callCount.Load(), Messages: k.shared.msgCount.Load(),
		Loads: k.shared.loadCount.Load(), Evictions: k.shared.evictions.Load(),
	}
}

// Close refuses further work, waits for the derivations under way and closes
// every key. Closing twice is harmless.
func (k *Keyring) Close() {
	k.mu.Lock()
	k.closed = true
	k.wakeRoom()
	k.mu.Unlock()
	k.dropIf(func(slotID) bool { return true })
	k.active.Wait()
}

func (k *Keyring) enter() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return fmt.Errorf("%w: keyring closed", ErrUnavailable)
	}
	if k.waiting >= k.maxWaiting {
		return fmt.Errorf("%w: %d messages under way", ErrBusy, k.waiting)
	}
	k.waiting++
	k.active.Add(1)
	return nil
}

func (k *Keyring) exit() {
	k.mu.Lock()
	k.waiting--
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
	var unused [2]BlockKey
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
		ref:       Ref{Token: bytes.Clone(ref.Token), Want: ref.Want},
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
	s.key, s.err = k.opener.Open(ctx, s.ref.Token, s.ref.Want)
	if s.err == nil {
		s.err = s.load(ctx)
	}
	if s.err != nil {
		k.drop(s)
	}
	close(s.ready)
}

// release gives back one reference.
func (k *Keyring) release(s *slot) {
	k.mu.Lock()
	var unused BlockKey
	s.refs--
	if s.refs == 0 {
		if k.slots[s.id()] == s {
			k.idle.push(&s.link)
		} else {
			k.loaded--
			unused = s.key
		}
		k.wakeRoom()
	}
	k.mu.Unlock()
	closeKeys(unused)
}

// drop takes s out of the map, so that the next caller opens the key anew.
func (k *Keyring) drop(s *slot) {
	k.mu.Lock()
	var unused BlockKey
	if k.slots[s.id()] == s {
		unused = k.detach(s)
	}
	k.mu.Unlock()
	closeKeys(unused)
}

// dropIf takes every slot that matches out of the map.
func (k *Keyring) dropIf(match func(slotID) bool) {
	var unused []BlockKey
	k.mu.Lock()
	for id, s := range k.slots {
		if match(id) {
			unused = append(unused, k.detach(s))
		}
	}
	k.mu.Unlock()
	closeKeys(unused...)
}

// detach takes a slot out of the map. If it is idle the caller must close the key
// that detach returns, after unlocking; otherwise the last release does.
func (k *Keyring) detach(s *slot) BlockKey {
	delete(k.slots, s.id())
	if s.refs > 0 {
		return nil
	}
	k.idle.remove(&s.link)
	k.loaded--
	return s.key
}

func (k *Keyring) wakeRoom() {
	if k.room != nil {
		close(k.room)
		k.room = nil
	}
}

func closeKeys(keys ...BlockKey) {
	for _, key := range keys {
		if key != nil {
			key.Close()
		}
	}
}

func (s *slot) id() slotID { return slotID{s.ref.Want.Key, s.ref.Want.Version} }

// serves tells whether the slot was opened with this token for this expectation.
func (s *slot) serves(ref Ref) bool {
	want := s.ref.Want
	want.Created = ref.Want.Created // not compared when a token is opened either
	return want == ref.Want && bytes.Equal(s.ref.Token, ref.Token)
}
