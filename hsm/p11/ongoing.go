//go:build cgo

package p11

import (
	"bytes"
	"crypto/aes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// Most of what C_EncryptInit and C_Encrypt do is setting up the key: of 10 us, SoftHSM takes
// 1.5 for the C_EncryptUpdate of an encryption that has begun. In mode ECB no part depends on
// those before, and none need be the last. So an AES key that is used again and again has an encryption
// that goes on, on a session of its own, until the key is closed or another key needs its place.
// That it is of the right key is known of each call: one of its blocks has a known answer (hsm/message.go).

// ongoing are a link's encryptions that go on.
type ongoing struct {
	places   []encryption
	open     atomic.Int32 // sessions of theirs
	failures atomic.Int32 // calls of theirs that failed
	over     atomic.Bool  // those there are end, and no more begin

	mu   sync.Mutex
	hand int // which place is looked at next for another key
}

// encryption is a place for one that goes on. Who locks it has a session of the link, or has all.
type encryption struct {
	mu  sync.Mutex
	h   pkcs11.SessionHandle // noSession: none goes on
	key *loadedKey           // whose
	// used says that it was, since it was looked at for another key.
	used bool
}

const (
	// defaultKeySessions is Config.KeySessions for a token with sessions without end.
	defaultKeySessions = hsm.DefaultMaxKeys
	// beginsAfter is how many calls of a key, each begun by itself, cost more than beginning an
	// encryption that goes on; takesAfter, more than taking another key's place. Closing
	// a session takes SoftHSM the longer the more objects there are.
	beginsAfter = 8
	takesAfter  = 64
	// maxLooks bounds the search of a place for another key.
	maxLooks = 4
	// maxFailures is with how many failed calls those of a link are over.
	maxFailures = 3
)

// keySessions is how many encryptions may go on with a token.
func (p *Partition) keySessions(token pkcs11.TokenInfo) int {
	switch {
	case !p.traits.inParts:
		return 0
	case p.cfg.KeySessions != nil:
		return *p.cfg.KeySessions
	case token.MaxSessionCount == pkcs11.CK_EFFECTIVELY_INFINITE && token.MaxRwSessionCount == pkcs11.CK_EFFECTIVELY_INFINITE:
		return defaultKeySessions
	default:
		return 0
	}
}

// encrypt encrypts blocks under an AES key, with its encryption that goes on, if there is one
// and nobody else uses it just now, or else with a call of its own on s. What that call returns counts.
func (k *loadedKey) encrypt(s *session, dst, src []byte) error {
	if k.continued(s, dst, src) {
		return nil
	}
	if err := s.encryptBlocks(k.handle, dst, src); err != nil {
		return err
	}
	if n := k.alone.Add(1); n%beginsAfter == 0 {
		k.begin(s, n%takesAfter == 0)
	}
	return nil
}

func (k *loadedKey) continued(s *session, dst, src []byte) bool {
	e := k.ongoing.Load()
	if e == nil || !e.mu.TryLock() {
		return false
	}
	defer e.mu.Unlock()
	if e.key != k {
		return false
	}
	if s.link.ongoing.over.Load() {
		k.partition.breakOff(s, e)
		return false
	}
	began := time.Now()
	err := s.link.lib.native.encryptPart(e.h, dst, src)
	s.ctx().done(hsm.CallEncrypt, began, err)
	if err != nil {
		k.partition.fails(s, e, err)
		return false
	}
	e.used = true
	return true
}

// begin begins an encryption that goes on, if there is a place for it: with take, another key's.
func (k *loadedKey) begin(s *session, take bool) {
	g := &s.link.ongoing
	if g.over.Load() || k.ongoing.Load() != nil {
		return
	}
	e := g.place(take)
	if e == nil {
		return
	}
	defer e.mu.Unlock()
	k.partition.breakOff(s, e)
	if e.h != noSession || !k.ongoing.CompareAndSwap(nil, e) { // others have begun one, or do
		return
	}
	e.key = k
	h, err := s.link.open()
	s.returned()
	if err == nil {
		g.open.Add(1)
		e.h = h
		err = s.link.lib.ctx.EncryptInit(h, mechanism(pkcs11.CKM_AES_ECB), k.handle)
		s.returned()
	}
	if code(err) == pkcs11.CKR_SESSION_COUNT { // other uses need what is left
		k.partition.endAll(s.link, err)
	}
	if err != nil {
		k.partition.fails(s, e, err)
		return
	}
	e.used = true
}

// place locks a place that is free or, with take, whose key was not used since somebody last
// looked at it for that. nil: none was found.
func (g *ongoing) place(take bool) *encryption {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range min(len(g.places), maxLooks) {
		e := &g.places[g.hand]
		g.hand = (g.hand + 1) % len(g.places)
		if !e.mu.TryLock() {
			continue
		}
		if e.key == nil || take && !e.used {
			return e
		}
		if take {
			e.used = false
		}
		e.mu.Unlock()
	}
	return nil
}

// breakOff ends an encryption that goes on, whosever it is, by closing its session, which is sure to.
// It is locked. A session that cannot be closed takes the link with it, which then closes all.
func (p *Partition) breakOff(s *session, e *encryption) {
	if e.h != noSession {
		began := time.Now()
		err := s.link.lib.ctx.CloseSession(e.h)
		s.ctx().done(hsm.CallSession, began, err)
		switch code(err) {
		case pkcs11.CKR_OK, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED:
			s.link.ongoing.open.Add(-1)
			e.h = noSession
		default:
			p.lose(s.link, fmt.Errorf("%w: close a session: %w", hsm.ErrUnavailable, err))
		}
	}
	if e.key != nil { // last: who closes the key waits for this
		e.key.ongoing.CompareAndSwap(e, nil)
	}
	e.key, e.used = nil, false
}

// yields ends an encryption that goes on because the token has no session left for another
// use, as err says: those that go on are over. false: none did.
func (g *ongoing) yields(s *session, err error) bool {
	for i := range g.places {
		e := &g.places[i]
		if !e.mu.TryLock() {
			continue
		}
		key := e.key
		if key != nil {
			key.partition.endAll(s.link, err)
			key.partition.breakOff(s, e)
		}
		e.mu.Unlock()
		if key != nil {
			return true
		}
	}
	return false
}

// fails ends an encryption of which a call failed. That call is made anew in another way: what
// its error means is judged there.
func (p *Partition) fails(s *session, e *encryption, err error) {
	p.breakOff(s, e)
	if s.link.ongoing.failures.Add(1) >= maxFailures {
		p.endAll(s.link, err)
	}
}

// endAll has the encryptions of a link that go on end, each when its key is used next, and no
// more begin.
func (p *Partition) endAll(l *link, why error) {
	if !l.ongoing.over.Swap(true) && l.ongoing.open.Load() > 0 {
		p.cfg.Logger.Warn("hsm encryptions are begun anew for each call", "token", p.cfg.Token, "error", why)
	}
}

// endOngoing ends the encryption of a key that goes on, if there is one.
func (k *loadedKey) endOngoing(s *session) {
	e := k.ongoing.Load()
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.key == k {
		k.partition.breakOff(s, e)
	}
}

// drainOngoing closes the sessions of all encryptions that go on: in one call, since the token
// may be one that is gone, with thousands of them. No other session is open.
func (l *link) drainOngoing() {
	if l.ongoing.open.Load() > 0 {
		_ = l.lib.ctx.CloseAllSessions(l.token.id) // of a lost token: they may be closed already
	}
	for i := range l.ongoing.places {
		e := &l.ongoing.places[i]
		e.mu.Lock()
		e.key, e.h = nil, noSession
		e.mu.Unlock()
	}
}

// encryptsInParts has a known key encrypt in several parts on a session of its own, and another
// between them: nil if all answers are right.
func (b *bench) encryptsInParts() (err error) {
	keys := [][]byte{ordinaryValue(), wrappedValue()}
	var handles [2]pkcs11.ObjectHandle
	for i, k := range keys {
		if handles[i], err = b.create(known(pkcs11.CKK_AES, k, pkcs11.CKA_ENCRYPT)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.destroy(handles[i])) }()
	}
	h, err := b.link.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.link.lib.ctx.CloseSession(h)) }()
	if err := b.link.lib.ctx.EncryptInit(h, mechanism(pkcs11.CKM_AES_ECB), handles[0]); err != nil {
		return fmt.Errorf("begin to encrypt: %w", err)
	}
	for _, blocks := range []int{1, hsm.MaxBlocks, 5} {
		src, dst := counting(blocks*hsm.BlockSize), make([]byte, blocks*hsm.BlockSize)
		if err := b.link.lib.native.encryptPart(h, dst, src); err != nil {
			return err
		}
		if !encryptsTo(keys[0], dst, src) {
			return errAnswer
		}
		if err := b.encryptBlocks(handles[1], dst, src); err != nil {
			return err
		}
		if !encryptsTo(keys[1], dst, src) {
			return errAnswer
		}
	}
	return nil
}

// encryptsTo tells whether blocks encrypt to others, under a known key.
func encryptsTo(key, dst, src []byte) bool {
	cipher, err := aes.NewCipher(key)
	if err != nil {
		return false
	}
	var block [hsm.BlockSize]byte
	for i := 0; i < len(src); i += len(block) {
		cipher.Encrypt(block[:], src[i:])
		if !bytes.Equal(block[:], dst[i:i+len(block)]) {
			return false
		}
	}
	return true
}
