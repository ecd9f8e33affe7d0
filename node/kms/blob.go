package kms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// The ciphertext blob QKM1, big-endian:
//
//	0 "QKM1" | 4 suite u8 | 5 flags u8 = 0 | 6 key id 16 | 22 version u32
//	26 nonce N 24 | 50 commitment C 32 | 82 ciphertext n | 82+n tag 16
//
// Suite 1 is XAES-256-GCM (C2SP) with its key schedule in the HSM and a key
// commitment. H is SHA-256 of the canonical encryption context.
//
//	t     = SHA-256("quorumkms/c/v1" || blob[0:50] || H)
//	K_msg from N[0:12] and K_com from t, derived in the HSM (package hsm)
//	C     = HMAC-SHA256(K_com, "quorumkms/commit/v1" || blob[0:50] || H)
//	sealed with AES-256-GCM under K_msg, nonce N[12:24], AAD blob[0:82] || H
//
// Suite 2 has the HSM do all of it: N is the IV that the HSM's generator made, 12 bytes, and
// 12 zero bytes; K_com is the same, as two CMACs; sealed with AES-256-GCM under the key
// itself, nonce N[0:12], with the same additional data. A key has one suite for life.
const (
	blobMagic     = "QKM1"
	suite1        = 1
	suite2        = 2
	blobNonce     = 26
	blobNonceSize = blobCommit - blobNonce
	blobCommit    = 50
	blobBody      = 82
	gcmTag        = 16
	gcmNonce      = 12

	deriveLabel = "quorumkms/c/v1"
	commitLabel = "quorumkms/commit/v1"

	// BlobOverhead is what a blob adds to its plaintext, in bytes.
	BlobOverhead = blobBody + gcmTag
	// MaxPlaintext is the largest plaintext of Encrypt, in bytes.
	MaxPlaintext = 4096
)

// blobHeader is what a blob says of itself in clear.
type blobHeader struct {
	suite   uint8
	key     fsm.ID
	version uint32
	nonce   [blobNonceSize]byte
}

// parseBlob reads a blob's header. ErrMalformed if it can be no blob at all.
func parseBlob(b []byte) (blobHeader, error) {
	var h blobHeader
	switch {
	case len(b) <= BlobOverhead:
		return h, fmt.Errorf("%w: %d bytes, a ciphertext has at least %d", ErrMalformed, len(b), BlobOverhead+1)
	case len(b) > BlobOverhead+MaxPlaintext:
		return h, fmt.Errorf("%w: %d bytes, a ciphertext has at most %d", ErrMalformed, len(b), BlobOverhead+MaxPlaintext)
	case string(b[:4]) != blobMagic:
		return h, fmt.Errorf("%w: it does not begin with %s", ErrMalformed, blobMagic)
	case b[4] != suite1 && b[4] != suite2:
		return h, fmt.Errorf("%w: unknown suite %d", ErrMalformed, b[4])
	case b[5] != 0:
		return h, fmt.Errorf("%w: unknown flags %#02x", ErrMalformed, b[5])
	case b[4] == suite2 && [12]byte(b[blobNonce+hsm.IVSize:]) != [12]byte{}:
		return h, fmt.Errorf("%w: the nonce of suite 2 is longer than %d bytes", ErrMalformed, hsm.IVSize)
	}
	h.suite = b[4]
	copy(h.key[:], b[6:22])
	h.version = binary.BigEndian.Uint32(b[22:26])
	copy(h.nonce[:], b[blobNonce:blobCommit])
	return h, nil
}

// newBlob makes the first 50 bytes of a blob, with room for the rest.
func newBlob(h blobHeader, plaintext int) []byte {
	b := make([]byte, 0, BlobOverhead+plaintext)
	b = append(b, blobMagic...)
	b = append(b, h.suite, 0)
	b = append(b, h.key[:]...)
	b = binary.BigEndian.AppendUint32(b, h.version)
	return append(b, h.nonce[:]...)
}

// messageInput is what the HSM derives a message's two keys from.
func messageInput(blob []byte, context [32]byte) hsm.MessageInput {
	var in hsm.MessageInput
	copy(in.Nonce[:], blob[blobNonce:blobCommit])
	var room [len(deriveLabel) + blobCommit + len(context)]byte
	in.T = sha256.Sum256(append(append(append(room[:0], deriveLabel...), blob[:blobCommit]...), context[:]...))
	return in
}

// commitment is HMAC-SHA256 (RFC 2104) of a message of known length, which fits on the stack:
// crypto/hmac allocates five times.
func commitment(com *[32]byte, blob []byte, context [32]byte) [32]byte {
	var inner [sha256.BlockSize + len(commitLabel) + blobCommit + len(context)]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	for i := range sha256.BlockSize {
		inner[i], outer[i] = 0x36, 0x5c
	}
	subtle.XORBytes(inner[:], inner[:len(com)], com[:])
	subtle.XORBytes(outer[:], outer[:len(com)], com[:])
	sum := sha256.Sum256(append(append(append(inner[:sha256.BlockSize], commitLabel...), blob[:blobCommit]...), context[:]...))
	copy(outer[sha256.BlockSize:], sum[:])
	sum = sha256.Sum256(outer[:])
	clear(inner[:])
	clear(outer[:])
	return sum
}

// commits tells whether a blob's commitment is of a key and context, in constant time.
func commits(com *[32]byte, blob []byte, context [32]byte) bool {
	c := commitment(com, blob, context)
	return subtle.ConstantTimeCompare(blob[blobCommit:blobBody], c[:]) == 1
}

func messageAEAD(keys *hsm.MessageKeys) (cipher.AEAD, error) {
	block, err := aes.NewCipher(keys.Msg[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func associatedData(blob []byte, context [32]byte) []byte {
	aad := make([]byte, 0, blobBody+len(context))
	return append(append(aad, blob[:blobBody]...), context[:]...)
}

// sealBlob finishes a blob that newBlob began.
func sealBlob(keys *hsm.MessageKeys, blob []byte, context [32]byte, plaintext []byte) ([]byte, error) {
	aead, err := messageAEAD(keys)
	if err != nil {
		return nil, err
	}
	c := commitment(&keys.Com, blob, context)
	blob = append(blob, c[:]...)
	return aead.Seal(blob, blob[blobCommit-gcmNonce:blobCommit], plaintext, associatedData(blob, context)), nil
}

// openBlob opens a blob. Whatever does not fit is the one ErrCiphertext.
func openBlob(keys *hsm.MessageKeys, blob []byte, context [32]byte) ([]byte, error) {
	if !commits(&keys.Com, blob, context) {
		return nil, ErrCiphertext
	}
	aead, err := messageAEAD(keys)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, blob[blobCommit-gcmNonce:blobCommit], blob[blobBody:], associatedData(blob, context))
	if err != nil {
		return nil, ErrCiphertext
	}
	return plaintext, nil
}
