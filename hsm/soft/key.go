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

	"github.com/quorumkms/quorumkms/hsm"
)

// keySize is the size of an AES-256 key, in bytes.
const keySize = 32

// GenerateKey implements hsm.Partition.
func (p *Partition) GenerateKey(ctx context.Context, s hsm.KeySpec) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	h, err := s.Header()
	if err != nil {
		return nil, err
	}
	d, err := p.held(h.Cluster, h.Generation)
	if err != nil {
		return nil, err
	}
	kek, err := aes.NewCipher(d.key(h.Generation, hsm.KeyKind(h.Class)))
	if err != nil {
		return nil, fmt.Errorf("%w: domain key: %w", hsm.ErrCorrupt, err)
	}
	var raw [keySize]byte
	defer clear(raw[:])
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	key, err := p.blockKey(raw[:])
	if err != nil {
		return nil, err
	}
	check, err := key.check(h)
	if err != nil {
		return nil, err
	}
	token, err := hsm.BuildToken(h, check, wrapKWP(kek, raw[:]), func(message []byte) ([]byte, error) {
		return mac(d.key(h.Generation, hsm.KindMAC), message), nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := p.open(token, h); err != nil {
		return nil, fmt.Errorf("new key does not open: %w", err)
	}
	return token, nil
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
	t, err := hsm.ParseToken(token)
	if err != nil {
		return nil, err
	}
	d, missing := p.held(t.Header.Cluster, t.Header.Generation)
	if missing == nil && !hmac.Equal(t.MAC(), mac(d.key(t.Header.Generation, hsm.KindMAC), t.MACMessage())) {
		return nil, fmt.Errorf("%w: token mac", hsm.ErrCorrupt)
	}
	if err := t.Matches(want); err != nil {
		return nil, err
	}
	if missing != nil {
		return nil, missing
	}
	if t.Header.Class != hsm.ClassAES || t.Header.Attributes&hsm.AttrResident != 0 {
		return nil, fmt.Errorf("%w: not a key of suite 1", hsm.ErrRefused)
	}
	kek, err := aes.NewCipher(d.key(t.Header.Generation, hsm.KeyKind(t.Header.Class)))
	if err != nil {
		return nil, fmt.Errorf("%w: domain key: %w", hsm.ErrCorrupt, err)
	}
	raw, err := unwrapKWP(kek, t.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	defer clear(raw)
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
	k.encrypt(dst, src)
	return nil
}

func (k *blockKey) encrypt(dst, src []byte) {
	for i := 0; i < len(src); i += hsm.BlockSize {
		k.block.Encrypt(dst[i:], src[i:])
	}
}

// Close implements hsm.BlockKey.
func (k *blockKey) Close() { k.closed.Store(true) }
