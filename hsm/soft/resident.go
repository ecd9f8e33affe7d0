package soft

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"sync/atomic"

	"github.com/quorumkms/quorumkms/hsm"
)

// residentKey is a loaded key of suite 2. It implements hsm.ResidentKey.
type residentKey struct {
	partition *Partition
	block     cipher.Block
	aead      cipher.AEAD
	closed    atomic.Bool
}

// OpenResident implements hsm.Partition.
func (p *Partition) OpenResident(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.ResidentKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	key, err := p.openResident(token, want)
	if err != nil {
		return nil, err // not a nil *residentKey in an interface
	}
	return key, nil
}

func (p *Partition) openResident(token []byte, want hsm.TokenHeader) (*residentKey, error) {
	t, raw, err := p.unwrap(token, want)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	if t.Header.Class != hsm.ClassResident {
		return nil, fmt.Errorf("%w: not a resident key", hsm.ErrRefused)
	}
	if len(raw) != keySize {
		return nil, fmt.Errorf("%w: key of %d bytes", hsm.ErrCorrupt, len(raw))
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	key := &residentKey{partition: p, block: block, aead: aead}
	check, err := hsm.CheckValueCMAC(key.cmac, t.Header.Key, t.Header.Version)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(check[:], t.Check[:]) != 1 {
		return nil, fmt.Errorf("%w: check value", hsm.ErrCorrupt)
	}
	return key, nil
}

// cmac makes the CMACs of two blocks.
func (k *residentKey) cmac(dst, blocks *[2 * hsm.BlockSize]byte) error {
	for at := 0; at < len(blocks); at += hsm.BlockSize {
		mac := hsm.BlockCMAC(k.block, [hsm.BlockSize]byte(blocks[at:]))
		copy(dst[at:], mac[:])
	}
	return nil
}

// use holds the partition open; the caller gives it back where err is nil.
func (k *residentKey) use(ctx context.Context) error {
	k.partition.mu.RLock()
	err := k.partition.usable(ctx)
	if err == nil && k.closed.Load() {
		err = fmt.Errorf("%w: key closed", hsm.ErrStale)
	}
	if err != nil {
		k.partition.mu.RUnlock()
	}
	return err
}

// Commit implements hsm.ResidentKey.
func (k *residentKey) Commit(ctx context.Context, t [32]byte) (com [32]byte, err error) {
	if err := k.use(ctx); err != nil {
		return com, err
	}
	defer k.partition.mu.RUnlock()
	blocks := hsm.CommitBlocks(t)
	err = k.cmac(&com, &blocks)
	return com, err
}

// Seal implements hsm.ResidentKey.
func (k *residentKey) Seal(ctx context.Context, plaintext []byte, bind hsm.Binding) ([]byte, error) {
	if n := len(plaintext); n == 0 || n > hsm.MaxResident {
		return nil, fmt.Errorf("%w: a message of %d bytes", hsm.ErrRefused, n)
	}
	if err := k.use(ctx); err != nil {
		return nil, err
	}
	defer k.partition.mu.RUnlock()
	var iv [hsm.IVSize]byte
	if _, err := rand.Read(iv[:]); err != nil {
		return nil, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	t, aad := bind(iv)
	var com [32]byte
	defer clear(com[:])
	blocks := hsm.CommitBlocks(t)
	if err := k.cmac(&com, &blocks); err != nil {
		return nil, err
	}
	return k.aead.Seal(nil, iv[:], plaintext, aad(&com)), nil
}

// Open implements hsm.ResidentKey.
func (k *residentKey) Open(ctx context.Context, iv [hsm.IVSize]byte, ciphertext, aad []byte) ([]byte, error) {
	if n := len(ciphertext) - hsm.TagSize; n <= 0 || n > hsm.MaxResident {
		return nil, fmt.Errorf("%w: a ciphertext of %d bytes", hsm.ErrRefused, len(ciphertext))
	}
	if err := k.use(ctx); err != nil {
		return nil, err
	}
	defer k.partition.mu.RUnlock()
	plaintext, err := k.aead.Open(nil, iv[:], ciphertext, aad)
	if err != nil {
		return nil, hsm.ErrCiphertext
	}
	return plaintext, nil
}

// Close implements hsm.ResidentKey.
func (k *residentKey) Close() { k.closed.Store(true) }
