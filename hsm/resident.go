package hsm

import (
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
)

// resident is the loaded key of a slot whose messages the partition encrypts itself. Its
// calls are not shared: each message is its own.
type resident struct {
	key   ResidentKey
	known [sha256.Size]byte // SHA-256 of K_com of no message, made when the key was opened

	mu   sync.Mutex
	last [IVSize]byte // the IV of the message sealed last
}

// isResident tells whether the key is one of suite 2.
func (r Ref) isResident() bool { return r.Kind == Kind{Class: ClassResident} }

// load asks for the key's known answer.
func (r *resident) load(ctx context.Context) (err error) {
	r.known, err = r.answer(ctx)
	return err
}

func (r *resident) answer(ctx context.Context) (sum [sha256.Size]byte, err error) {
	com, err := r.key.Commit(ctx, [32]byte{})
	defer clear(com[:])
	return sha256.Sum256(com[:]), err
}

// proves asks for the known answer again: a partition that has come to use another key in
// this one's place agrees with itself in all else.
func (r *resident) proves(ctx context.Context) error {
	now, err := r.answer(ctx)
	if err == nil && now != r.known {
		err = fmt.Errorf("%w: the hsm uses another key than it opened", ErrWrongAnswer)
	}
	return err
}

// Encrypt seals a message under the key of ref, of class resident, in the partition. What
// was sealed has been opened there again, its commitment made anew, and the key's known
// answer asked for, before it is returned: a wrong answer of the HSM, or another key in the
// place of this one, seals no data key that never opens again.
//
// At most one message was encrypted, also where it fails. Errors are as those of Derive;
// ErrWrongAnswer as well if the partition gives one IV twice.
func (k *Keyring) Encrypt(ctx context.Context, ref Ref, plaintext []byte, bind Binding) ([]byte, error) {
	if !ref.isResident() {
		return nil, notResident(ref)
	}
	if n := len(plaintext); n == 0 || n > MaxResident {
		return nil, fmt.Errorf("%w: a message of %d bytes: must be 1 to %d", ErrRefused, n, MaxResident)
	}
	return using(ctx, k, ref, func(s *slot) ([]byte, error) {
		k.shared.called(1)
		return s.inside.encrypt(ctx, plaintext, bind)
	})
}

// Decrypt opens a message under the key of ref, of class resident, in the partition. verify
// is given K_com, compares the commitment and returns the additional data; what it refuses
// does not reach the partition. ErrCiphertext: the message was altered all the same.
func (k *Keyring) Decrypt(ctx context.Context, ref Ref, iv [IVSize]byte, t [32]byte, ciphertext []byte, verify func(com *[32]byte) (aad []byte, err error)) ([]byte, error) {
	if !ref.isResident() {
		return nil, notResident(ref)
	}
	if n := len(ciphertext) - TagSize; n <= 0 || n > MaxResident {
		return nil, fmt.Errorf("%w: a ciphertext of %d bytes", ErrRefused, len(ciphertext))
	}
	return using(ctx, k, ref, func(s *slot) ([]byte, error) {
		k.shared.called(1)
		com, err := s.inside.key.Commit(ctx, t)
		defer clear(com[:])
		if err != nil {
			return nil, err
		}
		aad, err := verify(&com)
		if err != nil { // that the HSM erred is not the ciphertext's fault: it is asked again
			if failed := s.inside.commitsAgain(ctx, t, &com); failed != nil {
				return nil, failed
			}
			return nil, err
		}
		return s.inside.key.Open(ctx, iv, ciphertext, aad)
	})
}

func notResident(ref Ref) error {
	return fmt.Errorf("%w: messages inside the hsm, of a key of class %d", ErrRefused, ref.Kind.Class)
}

func (r *resident) encrypt(ctx context.Context, plaintext []byte, bind Binding) ([]byte, error) {
	var made struct {
		iv     [IVSize]byte
		t, com [32]byte
		aad    []byte
	}
	defer clear(made.com[:])
	ciphertext, err := r.key.Seal(ctx, plaintext, func(iv [IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
		t, finish := bind(iv)
		made.iv, made.t = iv, t
		return t, func(com *[32]byte) []byte {
			made.com, made.aad = *com, finish(com)
			return made.aad
		}
	})
	if err != nil {
		return nil, err
	}
	if len(ciphertext) != len(plaintext)+TagSize || r.repeats(made.iv) {
		return nil, fmt.Errorf("%w: the hsm sealed %d bytes in %d, or under an IV that it gave before", ErrWrongAnswer, len(plaintext), len(ciphertext))
	}
	opened, err := r.key.Open(ctx, made.iv, ciphertext, made.aad)
	defer clear(opened)
	switch {
	case errors.Is(err, ErrCiphertext):
		return nil, fmt.Errorf("%w: the hsm does not open what it sealed", ErrWrongAnswer)
	case err != nil:
		return nil, sealedOnce(err)
	case subtle.ConstantTimeCompare(opened, plaintext) != 1:
		return nil, fmt.Errorf("%w: the hsm opens something else than it sealed", ErrWrongAnswer)
	}
	if err := r.commitsAgain(ctx, made.t, &made.com); err != nil {
		return nil, sealedOnce(err)
	}
	return ciphertext, nil
}

// commitsAgain has K_com made once more, and asks for the known answer.
func (r *resident) commitsAgain(ctx context.Context, t [32]byte, com *[32]byte) error {
	again, err := r.key.Commit(ctx, t)
	defer clear(again[:])
	if err == nil && subtle.ConstantTimeCompare(again[:], com[:]) != 1 {
		err = fmt.Errorf("%w: the hsm gave two answers for one commitment", ErrWrongAnswer)
	}
	if err != nil {
		return err
	}
	return r.proves(ctx)
}

// sealedOnce is an error behind an encryption: the message is not sealed again with the key
// opened anew, since it was counted once.
func sealedOnce(err error) error {
	if errors.Is(err, ErrStale) {
		return fmt.Errorf("%w: the key was lost before what it had sealed was checked", ErrUnavailable)
	}
	return err
}

// repeats tells whether the IV is the one before: two messages under one IV would give the
// key away. A generator that stands still is found by that; more cannot be told from
// outside.
func (r *resident) repeats(iv [IVSize]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	same := r.last == iv || iv == [IVSize]byte{}
	r.last = iv
	return same
}

// CommitBlocks are the blocks whose CMACs are K_com of suite 2:
//
//	00 01 'C' 00 || t[0:12]    00 02 'C' 00 || t[12:24]
//
// The CMAC of one whole block m is E(m ^ K1), so K_com is that of suite 1.
func CommitBlocks(t [32]byte) (blocks [2 * BlockSize]byte) {
	var none [16]byte
	putBlock(blocks[:BlockSize], 1, 'C', t[:12], &none)
	putBlock(blocks[BlockSize:], 2, 'C', t[12:24], &none)
	return blocks
}

// BlockCMAC is the AES-CMAC (RFC 4493, NIST SP 800-38B) of one whole block, all that
// suite 2 needs of it, for partitions without an HSM.
func BlockCMAC(key cipher.Block, m [BlockSize]byte) (mac [BlockSize]byte) {
	var l [BlockSize]byte
	key.Encrypt(l[:], l[:])
	k1 := Double(l)
	subtle.XORBytes(m[:], m[:], k1[:])
	key.Encrypt(mac[:], m[:])
	return mac
}
