package soft

import (
	"bytes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// errUnwrap: the wrapped key was not made under this key, or was changed.
var errUnwrap = errors.New("key unwrap failed")

// kwpIV is the constant half of the alternative initial value, RFC 5649 section 3.
const kwpIV = 0xA65959A6

// semiblock is the unit of RFC 3394 and RFC 5649, in bytes.
const semiblock = 8

// wrapKWP wraps a key of 1..2^32-1 bytes with AES key wrap with padding, RFC 5649.
func wrapKWP(kek cipher.Block, key []byte) []byte {
	n := (len(key) + semiblock - 1) / semiblock
	out := make([]byte, semiblock*(n+1))
	binary.BigEndian.PutUint32(out, kwpIV)
	binary.BigEndian.PutUint32(out[4:], uint32(len(key))) //nolint:gosec // documented bound
	copy(out[semiblock:], key)
	wrapRaw(kek, out)
	return out
}

// unwrapKWP reverses wrapKWP. Its error says nothing about what was wrong.
func unwrapKWP(kek cipher.Block, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 2*semiblock || len(wrapped)%semiblock != 0 {
		return nil, errUnwrap
	}
	out := bytes.Clone(wrapped)
	unwrapRaw(kek, out)
	key, size := out[semiblock:], int(binary.BigEndian.Uint32(out[4:]))
	pad := len(key) - size
	var zeros [semiblock]byte
	if binary.BigEndian.Uint32(out) != kwpIV || pad < 0 || pad >= semiblock ||
		subtle.ConstantTimeCompare(key[size:], zeros[:pad]) != 1 {
		clear(out)
		return nil, errUnwrap
	}
	return key[:size:size], nil
}

// wrapRaw is the wrapping process of RFC 5649 in place: one block is encrypted,
// more are wrapped as in RFC 3394 with the first semiblock as initial value.
func wrapRaw(kek cipher.Block, s []byte) {
	n := len(s)/semiblock - 1
	if n == 1 {
		kek.Encrypt(s, s)
		return
	}
	var b [2 * semiblock]byte // A || R[i]
	copy(b[:], s[:semiblock])
	for step := range 6 * n {
		r := s[semiblock*(1+step%n):][:semiblock]
		copy(b[semiblock:], r)
		kek.Encrypt(b[:], b[:])
		addCounter(&b, step+1)
		copy(r, b[semiblock:])
	}
	copy(s, b[:semiblock])
}

// unwrapRaw reverses wrapRaw.
func unwrapRaw(kek cipher.Block, s []byte) {
	n := len(s)/semiblock - 1
	if n == 1 {
		kek.Decrypt(s, s)
		return
	}
	var b [2 * semiblock]byte
	copy(b[:], s[:semiblock])
	for step := 6*n - 1; step >= 0; step-- {
		r := s[semiblock*(1+step%n):][:semiblock]
		addCounter(&b, step+1)
		copy(b[semiblock:], r)
		kek.Decrypt(b[:], b[:])
		copy(r, b[semiblock:])
	}
	copy(s, b[:semiblock])
}

// addCounter is the step A ^= t of RFC 3394.
func addCounter(b *[2 * semiblock]byte, t int) {
	a := binary.BigEndian.Uint64(b[:semiblock])
	binary.BigEndian.PutUint64(b[:semiblock], a^uint64(t)) //nolint:gosec // t > 0
}
