//go:build cgo

package p11

import (
	"context"
	"crypto/hmac"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// keySize is the size of a customer master key of class AES, in bytes.
const keySize = 32

// GenerateKey implements hsm.Partition.
func (p *Partition) GenerateKey(ctx context.Context, spec hsm.KeySpec) (hsm.NewKey, error) {
	h, err := spec.Header()
	if err != nil {
		return hsm.NewKey{}, err
	}
	if h.Class == hsm.ClassResident {
		if err := p.traits.makesResident(); err != nil {
			return hsm.NewKey{}, err
		}
	}
	made, err := p.makeToken(ctx, spec.Kind(), h)
	if err != nil {
		return hsm.NewKey{}, p.suspect(ctx, err)
	}
	err = hsm.TryOpen(ctx, p, hsm.Ref{Token: made.Token, Want: h, Kind: spec.Kind(), SPKI: made.SPKI})
	if errors.Is(err, hsm.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", hsm.ErrWrongAnswer, err)
	}
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("new key does not open: %w", err)
	}
	return made, nil
}

// makeToken makes a key and wraps it. The token was right about known answers afterwards.
func (p *Partition) makeToken(ctx context.Context, k hsm.Kind, h hsm.TokenHeader) (made hsm.NewKey, err error) {
	return made, p.making(ctx, h.Class == hsm.ClassResident, func(s *session) error {
		d, err := p.domain(s, domainID{h.Cluster, h.Generation})
		if err != nil {
			return err
		}
		domainKey, err := d.wrapping(h)
		if err != nil {
			return err
		}
		var check [16]byte
		var wrapped []byte
		if k.Class == hsm.ClassAES || k.Class == hsm.ClassResident {
			check, wrapped, err = s.makeKey(p.traits, h, domainKey)
		} else {
			check, wrapped, made.SPKI, err = s.makeSecret(p.traits, k, h, domainKey)
		}
		if err != nil {
			return fmt.Errorf("generate key: %w", err)
		}
		made.Token, err = hsm.BuildToken(h, check, wrapped, func(message []byte) ([]byte, error) {
			return s.mac(d[hsm.KindMAC], message)
		})
		return err
	})
}

// makeKey makes an AES key, wraps it and destroys it. A key that cannot be destroyed dies
// with the session, which its caller replaces after a failed call.
func (s *session) makeKey(t traits, h hsm.TokenHeader, domainKey pkcs11.ObjectHandle) (check [16]byte, wrapped []byte, err error) {
	key, err := s.generate(pkcs11.CKM_AES_KEY_GEN, templateOf(hsm.Kind{Class: h.Class}, true).with(number(pkcs11.CKA_VALUE_LEN, keySize)))
	if err != nil {
		return check, nil, err
	}
	defer func() { err = errors.Join(err, s.destroy(key)) }()
	if h.Class == hsm.ClassResident {
		check, err = hsm.CheckValueCMAC(s.cmac(key), h.Key, h.Version)
	} else {
		check, err = hsm.CheckValueAES(func(dst, src []byte) error { return s.encryptBlocks(key, dst, src) }, h.Key, h.Version)
	}
	if err != nil {
		return check, nil, err
	}
	wrapped, err = s.wrap(t.keyWrap(), domainKey, key)
	return check, wrapped, err
}

// Open implements hsm.Partition.
func (p *Partition) Open(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.BlockKey, error) {
	key, err := p.openBlocks(ctx, token, want)
	if err != nil {
		return nil, p.suspect(ctx, err)
	}
	return key, nil
}

func (p *Partition) openBlocks(ctx context.Context, token []byte, want hsm.TokenHeader) (*blockKey, error) {
	t, loaded, err := p.load(ctx, hsm.Ref{Token: token, Want: want, Kind: hsm.Kind{Class: hsm.ClassAES}})
	if err != nil {
		return nil, err
	}
	k := &blockKey{loaded}
	encrypt := func(dst, src []byte) error { return k.EncryptBlocks(ctx, dst, src) }
	check, err := hsm.CheckValueAES(encrypt, t.Header.Key, t.Header.Version)
	if err == nil && subtle.ConstantTimeCompare(check[:], t.Check[:]) != 1 {
		err = fmt.Errorf("%w: check value", hsm.ErrWrongAnswer) // the token is authentic
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// load checks everything of a token but the check value, and unwraps the key in it as one
// of a kind.
func (p *Partition) load(ctx context.Context, ref hsm.Ref) (hsm.Token, *loadedKey, error) {
	want, as := ref.Want, ref.Kind
	t, err := hsm.ParseToken(ref.Token)
	if err != nil {
		return t, nil, err
	}
	l, err := p.current()
	if err != nil {
		return t, nil, err
	}
	var domainKey pkcs11.ObjectHandle
	err = p.on(ctx, l, func(s *session) error {
		domainKey, err = p.authenticate(s, t, want)
		return err
	})
	if err != nil {
		return t, nil, err
	}
	if t.Header.Class != as.Class {
		return t, nil, fmt.Errorf("%w: a key of class %d as one of class %d", hsm.ErrRefused, t.Header.Class, as.Class)
	}
	opened, err := p.traits.opened(ref, false)
	if err != nil {
		return t, nil, err
	}
	k := &loadedKey{partition: p, link: l}
	err = p.held(ctx, l, func(s *session) error {
		k.handle, err = s.unwrap(p.traits.keyWrap(), domainKey, t.Wrapped, opened)
		return blame(err, hsm.ErrCorrupt, func() error { return s.opensKeys(p.traits, want.Class, domainKey) })
	})
	if err != nil {
		return t, nil, fmt.Errorf("open key: %w", err)
	}
	return t, k, nil
}

// authenticate checks everything of a token that comes before unwrapping it, and
// returns the domain key that wraps it.
func (p *Partition) authenticate(s *session, t hsm.Token, want hsm.TokenHeader) (pkcs11.ObjectHandle, error) {
	d, missing := p.domain(s, domainID{t.Header.Cluster, t.Header.Generation})
	if missing != nil && !errors.Is(missing, hsm.ErrNotFound) {
		return 0, missing
	}
	if missing == nil {
		mac, err := s.mac(d[hsm.KindMAC], t.MACMessage())
		if err != nil {
			return 0, err
		}
		if !hmac.Equal(mac, t.MAC()) {
			return 0, fmt.Errorf("%w: token mac", hsm.ErrCorrupt)
		}
	}
	if err := t.Matches(want); err != nil {
		return 0, err
	}
	if missing != nil {
		return 0, missing
	}
	return d.wrapping(t.Header)
}

// opensKeys wraps and opens a key of its class, to tell whether a domain key works at all.
func (s *session) opensKeys(t traits, c hsm.Class, domainKey pkcs11.ObjectHandle) error {
	for _, k := range secretKinds() {
		if k.Class == c {
			opened, err := s.openKnown(t, k, domainKey)
			if err != nil {
				return err
			}
			return s.destroy(opened)
		}
	}
	key, err := s.create(known(pkcs11.CKK_AES, make([]byte, keySize)))
	if err != nil {
		return err
	}
	w, err := s.wrap(t.keyWrap(), domainKey, key)
	if err = errors.Join(err, s.destroy(key)); err != nil {
		return err
	}
	opened, err := s.unwrap(t.keyWrap(), domainKey, w, templateOf(hsm.Kind{Class: c}, false))
	if err != nil {
		return err
	}
	return s.destroy(opened)
}

// loadedKey is the handle of a key that was unwrapped.
type loadedKey struct {
	partition *Partition
	link      *link

	mu     sync.RWMutex // held for reading while the handle is in use
	handle pkcs11.ObjectHandle
	closed bool

	ongoing atomic.Pointer[encryption] // of AES keys: its encryption that goes on
	alone   atomic.Uint32              // calls that were made without one
}

// use runs fn with a session while the handle is good; ErrStale if it is none any more.
func (k *loadedKey) use(ctx context.Context, fn func(*session) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if l, err := k.partition.current(); err != nil {
		return err
	} else if l != k.link {
		return fmt.Errorf("%w: the token was opened again since", hsm.ErrStale)
	}
	if k.closed {
		return fmt.Errorf("%w: key closed", hsm.ErrStale)
	}
	return k.partition.on(ctx, k.link, fn)
}

// Close implements hsm.BlockKey and hsm.SecretKey.
func (k *loadedKey) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	k.closed = true
	k.partition.discard(k)
}

// blockKey is a loaded AES key. It implements hsm.BlockKey.
type blockKey struct{ *loadedKey }

// EncryptBlocks implements hsm.BlockKey.
func (k *blockKey) EncryptBlocks(ctx context.Context, dst, src []byte) error {
	n := len(src)
	if n == 0 || n%hsm.BlockSize != 0 || n > hsm.MaxBlocks*hsm.BlockSize || len(dst) != n {
		return fmt.Errorf("%w: blocks of %d bytes into %d", hsm.ErrRefused, n, len(dst))
	}
	return k.use(ctx, func(s *session) error { return k.encrypt(s, dst, src) })
}

// discard destroys a loaded key. Unlike held it waits as long as the link lives: the
// key must not stay.
func (p *Partition) discard(k *loadedKey) {
	select {
	case <-k.link.gone: // and the key with it
	case s := <-k.link.hold:
		s.begins()
		k.endOngoing(s)
		if err := s.destroy(k.handle); err != nil && !p.lostBy(s, err) {
			p.cfg.Logger.Warn("hsm key not destroyed", "error", err)
		}
		p.giveBack(s, k.link.hold)
	}
}
