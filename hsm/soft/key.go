package soft

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// keySize is the size of an AES-256 key, in bytes.
const keySize = 32

// GenerateKey implements hsm.Partition.
func (p *Partition) GenerateKey(ctx context.Context, s hsm.KeySpec) (hsm.NewKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return hsm.NewKey{}, err
	}
	h, err := s.Header()
	if err != nil {
		return hsm.NewKey{}, err
	}
	d, err := p.held(h.Cluster, h.Generation)
	if err != nil {
		return hsm.NewKey{}, err
	}
	kek, err := d.wrapping(h)
	if err != nil {
		return hsm.NewKey{}, err
	}
	began := time.Now()
	made, err := p.generate(s.Kind(), h)
	p.meter.Done(hsm.CallGenerate, began, err)
	if err != nil {
		return hsm.NewKey{}, err
	}
	defer clear(made.raw)
	token, err := hsm.BuildToken(h, made.check, wrapKWP(kek, made.raw), func(message []byte) ([]byte, error) {
		return mac(d.key(h.Generation, hsm.KindMAC), message), nil
	})
	if err != nil {
		return hsm.NewKey{}, err
	}
	switch h.Class {
	case hsm.ClassAES:
		_, err = p.open(token, h)
	case hsm.ClassResident:
		_, err = p.openResident(token, h)
	default:
		_, err = p.openSecret(hsm.Ref{Token: token, Want: h, Kind: s.Kind(), SPKI: made.spki})
	}
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("new key does not open: %w", err)
	}
	return hsm.NewKey{Token: token, SPKI: made.spki}, nil
}

// material is a key that was made: what is wrapped, its check value and, of a pair, the
// public half.
type material struct {
	raw   []byte
	check [16]byte
	spki  []byte
}

func (p *Partition) generate(k hsm.Kind, h hsm.TokenHeader) (material, error) {
	if k.Class != hsm.ClassAES && k.Class != hsm.ClassResident {
		return generateSecret(k, h)
	}
	m := material{raw: make([]byte, keySize)}
	if _, err := rand.Read(m.raw); err != nil {
		return m, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	key, err := p.blockKey(m.raw)
	if err != nil {
		return m, err
	}
	m.check, err = key.check(h) // of resident keys too: both ways give the same value
	return m, err
}

// wrapping is the domain key that wraps a key. ErrNotFound if the generation was made by a
// release that knew no keys of that class.
func (d *domain) wrapping(h hsm.TokenHeader) (cipher.Block, error) {
	kind := hsm.KeyKind(h.Class)
	raw := d.key(h.Generation, kind)
	if raw == nil && kind.Later() {
		return nil, fmt.Errorf("generation %d has no key of kind %d: %w", h.Generation, kind, hsm.ErrNotFound)
	}
	kek, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: domain key: %w", hsm.ErrCorrupt, err)
	}
	return kek, nil
}

// Open implements hsm.Partition.
func (p *Partition) Open(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.BlockKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	key, err := p.open(token, want)
	if err != nil {
		return nil, err // not a nil *blockKey in an interface
	}
	return key, nil
}

func (p *Partition) open(token []byte, want hsm.TokenHeader) (*blockKey, error) {
	t, raw, err := p.unwrap(token, want)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	if t.Header.Class != hsm.ClassAES {
		return nil, fmt.Errorf("%w: not a block key", hsm.ErrRefused)
	}
	key, err := p.blockKey(raw)
	if err != nil {
		return nil, err
	}
	check, err := key.check(t.Header)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(check[:], t.Check[:]) != 1 {
		return nil, fmt.Errorf("%w: check value", hsm.ErrCorrupt)
	}
	return key, nil
}

// unwrap checks everything of a token but the check value, and unwraps the key in it.
func (p *Partition) unwrap(token []byte, want hsm.TokenHeader) (hsm.Token, []byte, error) {
	t, err := hsm.ParseToken(token)
	if err != nil {
		return t, nil, err
	}
	d, missing := p.held(t.Header.Cluster, t.Header.Generation)
	if missing == nil && !hmac.Equal(t.MAC(), mac(d.key(t.Header.Generation, hsm.KindMAC), t.MACMessage())) {
		return t, nil, fmt.Errorf("%w: token mac", hsm.ErrCorrupt)
	}
	if err := t.Matches(want); err != nil {
		return t, nil, err
	}
	if missing != nil {
		return t, nil, missing
	}
	kek, err := d.wrapping(t.Header)
	if err != nil {
		return t, nil, err
	}
	began := time.Now()
	raw, err := unwrapKWP(kek, t.Wrapped)
	p.meter.Done(hsm.CallUnwrap, began, err)
	if err != nil {
		return t, nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	return t, raw, nil
}

// blockKey is a loaded key. It implements hsm.BlockKey.
type blockKey struct {
	partition *Partition
	block     cipher.Block
	closed    atomic.Bool
}

func (p *Partition) blockKey(raw []byte) (*blockKey, error) {
	if len(raw) != keySize {
		return nil, fmt.Errorf("%w: key of %d bytes", hsm.ErrCorrupt, len(raw))
	}
	b, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	return &blockKey{partition: p, block: b}, nil
}

func (k *blockKey) check(h hsm.TokenHeader) ([16]byte, error) {
	encrypt := func(dst, src []byte) error {
		k.encrypt(dst, src)
		return nil
	}
	return hsm.CheckValueAES(encrypt, h.Key, h.Version)
}

// EncryptBlocks implements hsm.BlockKey.
func (k *blockKey) EncryptBlocks(ctx context.Context, dst, src []byte) error {
	k.partition.mu.RLock()
	defer k.partition.mu.RUnlock()
	if err := k.partition.usable(ctx); err != nil {
		return err
	}
	if k.closed.Load() {
		return fmt.Errorf("%w: key closed", hsm.ErrStale)
	}
	n := len(src)
	if n == 0 || n%hsm.BlockSize != 0 || n > hsm.MaxBlocks*hsm.BlockSize || len(dst) != n {
		return fmt.Errorf("%w: blocks of %d bytes into %d", hsm.ErrRefused, n, len(dst))
	}
	began := time.Now()
	k.encrypt(dst, src)
	k.partition.meter.Done(hsm.CallEncrypt, began, nil)
	return nil
}

func (k *blockKey) encrypt(dst, src []byte) {
	for i := 0; i < len(src); i += hsm.BlockSize {
		k.block.Encrypt(dst[i:], src[i:])
	}
}

// Close implements hsm.BlockKey.
func (k *blockKey) Close() { k.closed.Store(true) }
