package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// TokenHeader is the authenticated header of a wrapped key token KWT1.
type TokenHeader struct {
	Class      Class
	Attributes Attributes
	Generation uint32
	Cluster    ID
	Key        ID
	Version    uint32
	Created    time.Time // whole seconds, UTC
}

// Token is a parsed KWT1 token. Parsing proves nothing: compare MAC with the
// HMAC of MACMessage, then call Matches.
//
//	 0 "KWT1" | 4 suite u8 | 5 class u8 | 6 attributes u16 | 8 generation u32
//	12 cluster 16 | 28 key 16 | 44 version u32 | 48 created, unix seconds u64
//	56 check value 16 | 72 n u16 | 74 wrapped key n | 74+n HMAC-SHA256 32
//
// Integers are big endian.
type Token struct {
	Header  TokenHeader
	Check   [16]byte // identifies the key inside, see CheckValueAES and Ref.Prove
	Wrapped []byte   // the key (private keys as PKCS #8) under the domain key of its class, RFC 5649

	raw []byte
}

const (
	tokenMagic = "KWT1"
	tokenLabel = "quorumkms/kwt/v1"

	// tokenSuite is RFC 5649 under the domain key of the class, HMAC-SHA256 under
	// the domain MAC key.
	tokenSuite = 1

	tokenFixed  = 74 // bytes before the wrapped key
	tokenMAC    = 32 // bytes after it
	checkOffset = 56

	// MinWrapped is the least size of a wrapped key, in bytes: RFC 5649 of one octet.
	MinWrapped = 16
	// MaxWrapped is the greatest: more than a PKCS#8 RSA-4096 key needs.
	MaxWrapped = 4096

	// LabelCheckValue begins the message of every check value. GenerateMac must
	// refuse messages that begin with it.
	LabelCheckValue = "quorumkms/kcv/v1"

	attrKnown = AttrImported | AttrResident

	// maxCreated is the last second of the year 9999.
	maxCreated = 253402300799
)

// Header is the token header of the key that s asks for, with the creation time
// cut to the second. ErrRefused for a kind of which there are no keys and for any
// attribute: a key that is made here is not imported, and its class says whether it is
// resident.
func (s KeySpec) Header() (TokenHeader, error) {
	if err := s.Kind().Valid(); err != nil {
		return TokenHeader{}, err
	}
	if s.Attributes != 0 {
		return TokenHeader{}, fmt.Errorf("%w: cannot generate a key with attributes %#04x", ErrRefused, uint16(s.Attributes))
	}
	h := TokenHeader{
		Class: s.Class, Attributes: s.Class.Attributes(), Generation: s.Generation,
		Cluster: s.Cluster, Key: s.Key, Version: s.Version, Created: s.Created.UTC().Truncate(time.Second),
	}
	if err := h.valid(); err != nil {
		return TokenHeader{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return h, nil
}

// valid tells whether KWT1 can carry the header.
func (h TokenHeader) valid() error {
	switch {
	case h.Class < ClassAES || h.Class > ClassResident:
		return fmt.Errorf("unknown class %d", h.Class)
	case h.Attributes&^attrKnown != 0:
		return fmt.Errorf("unknown attributes %#04x", uint16(h.Attributes))
	case h.Attributes&AttrResident != h.Class.Attributes():
		return fmt.Errorf("attributes %#04x of a key of class %d", uint16(h.Attributes), h.Class)
	case h.Created.Unix() < 0 || h.Created.Unix() > maxCreated:
		return errors.New("creation time out of range")
	}
	return nil
}

func validWrapped(n int) error {
	if n < MinWrapped || n > MaxWrapped || n%8 != 0 {
		return fmt.Errorf("wrapped key of %d bytes", n)
	}
	return nil
}

// BuildToken makes a token of suite 1. mac computes HMAC-SHA256 of its argument
// (which includes the label) under the domain MAC key of the header's generation.
// ErrRefused if KWT1 cannot carry the header or the wrapped key.
func BuildToken(h TokenHeader, check [16]byte, wrapped []byte, mac func(msg []byte) ([]byte, error)) ([]byte, error) {
	if err := h.valid(); err != nil {
		return nil, fmt.Errorf("%w: token: %w", ErrRefused, err)
	}
	if err := validWrapped(len(wrapped)); err != nil {
		return nil, fmt.Errorf("%w: token: %w", ErrRefused, err)
	}
	m := make([]byte, 0, len(tokenLabel)+tokenFixed+len(wrapped)+tokenMAC)
	m = append(m, tokenLabel...)
	m = append(m, tokenMagic...)
	m = append(m, tokenSuite, byte(h.Class))
	m = binary.BigEndian.AppendUint16(m, uint16(h.Attributes))
	m = binary.BigEndian.AppendUint32(m, h.Generation)
	m = append(m, h.Cluster[:]...)
	m = append(m, h.Key[:]...)
	m = binary.BigEndian.AppendUint32(m, h.Version)
	m = binary.BigEndian.AppendUint64(m, uint64(h.Created.Unix())) //nolint:gosec // valid: not negative
	m = append(m, check[:]...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(wrapped))) //nolint:gosec // at most MaxWrapped
	m = append(m, wrapped...)
	tag, err := mac(m)
	if err != nil {
		return nil, fmt.Errorf("token mac: %w", err)
	}
	if len(tag) != tokenMAC {
		return nil, fmt.Errorf("%w: token mac of %d bytes", ErrCorrupt, len(tag))
	}
	return append(m[len(tokenLabel):], tag...), nil
}

// ParseToken reads a token: ErrCorrupt unless every byte has its place and a
// known value. The result keeps its own copy of b.
func ParseToken(b []byte) (Token, error) {
	if len(b) < tokenFixed+MinWrapped+tokenMAC || len(b) > tokenFixed+MaxWrapped+tokenMAC {
		return Token{}, fmt.Errorf("%w: token of %d bytes", ErrCorrupt, len(b))
	}
	if string(b[:4]) != tokenMagic {
		return Token{}, fmt.Errorf("%w: not a KWT1 token", ErrCorrupt)
	}
	if b[4] != tokenSuite {
		return Token{}, fmt.Errorf("%w: token of unknown suite %d", ErrCorrupt, b[4])
	}
	created := binary.BigEndian.Uint64(b[48:])
	if created > maxCreated {
		return Token{}, fmt.Errorf("%w: token: creation time out of range", ErrCorrupt)
	}
	n := int(binary.BigEndian.Uint16(b[72:]))
	if len(b) != tokenFixed+n+tokenMAC {
		return Token{}, fmt.Errorf("%w: token of %d bytes with a wrapped key of %d", ErrCorrupt, len(b), n)
	}
	if err := validWrapped(n); err != nil {
		return Token{}, fmt.Errorf("%w: token: %w", ErrCorrupt, err)
	}
	raw := bytes.Clone(b)
	t := Token{
		Header: TokenHeader{
			Class:      Class(raw[5]),
			Attributes: Attributes(binary.BigEndian.Uint16(raw[6:])),
			Generation: binary.BigEndian.Uint32(raw[8:]),
			Cluster:    ID(raw[12:28]),
			Key:        ID(raw[28:44]),
			Version:    binary.BigEndian.Uint32(raw[44:]),
			Created:    time.Unix(int64(created), 0).UTC(),
		},
		Check:   [16]byte(raw[checkOffset:]),
		Wrapped: raw[tokenFixed : tokenFixed+n : tokenFixed+n],
		raw:     raw,
	}
	if err := t.Header.valid(); err != nil {
		return Token{}, fmt.Errorf("%w: token: %w", ErrCorrupt, err)
	}
	return t, nil
}

// MACMessage is what MAC authenticates: the label and all bytes before the MAC.
func (t Token) MACMessage() []byte {
	return append([]byte(tokenLabel), t.raw[:len(t.raw)-tokenMAC]...)
}

// MAC is the token's HMAC-SHA256, 32 bytes. Compare it with hmac.Equal.
func (t Token) MAC() []byte {
	return t.raw[len(t.raw)-tokenMAC:]
}

// Matches compares the header with what the caller's records say. The creation
// time is for people and is not compared. ErrCorrupt names the first field that
// differs.
func (t Token) Matches(want TokenHeader) error {
	var field string
	switch h := t.Header; {
	case h.Key != want.Key:
		field = "key id"
	case h.Version != want.Version:
		field = "version"
	case h.Cluster != want.Cluster:
		field = "cluster"
	case h.Class != want.Class:
		field = "class"
	case h.Attributes != want.Attributes:
		field = "attributes"
	case h.Generation != want.Generation:
		field = "generation"
	default:
		return nil
	}
	return fmt.Errorf("%w: token and record differ in the %s", ErrCorrupt, field)
}

// CheckValueAES computes the check value of an AES-256 key E:
//
//	L = E(0), K1 = dbl(L)
//	the first 16 bytes of HMAC-SHA256(
//	    E((00 01 'V' 00 0^12) ^ K1) || E((00 02 'V' 00 0^12) ^ K1),
//	    "quorumkms/kcv/v1" || id || version u32)
//
// It makes two calls of encrypt (ECB): one block, then two.
func CheckValueAES(encrypt func(dst, src []byte) error, key ID, version uint32) (check [16]byte, err error) {
	var src, dst [2 * BlockSize]byte
	defer clear(dst[:])
	if err := encrypt(dst[:BlockSize], src[:BlockSize]); err != nil {
		return check, fmt.Errorf("check value: %w", err)
	}
	k1 := Double([16]byte(dst[:BlockSize]))
	putBlock(src[:BlockSize], 1, 'V', nil, &k1)
	putBlock(src[BlockSize:], 2, 'V', nil, &k1)
	if err := encrypt(dst[:], src[:]); err != nil {
		return check, fmt.Errorf("check value: %w", err)
	}
	return checkValue(&dst, key, version), nil
}

// CheckValueCMAC is CheckValueAES of a key that makes CMACs (RFC 4493) instead: of one whole
// block m, that is E(m ^ K1). It makes one call, with two blocks.
func CheckValueCMAC(cmac func(dst, blocks *[2 * BlockSize]byte) error, key ID, version uint32) (check [16]byte, err error) {
	var src, dst [2 * BlockSize]byte
	defer clear(dst[:])
	var none [16]byte
	putBlock(src[:BlockSize], 1, 'V', nil, &none)
	putBlock(src[BlockSize:], 2, 'V', nil, &none)
	if err := cmac(&dst, &src); err != nil {
		return check, fmt.Errorf("check value: %w", err)
	}
	return checkValue(&dst, key, version), nil
}

func checkValue(v *[2 * BlockSize]byte, key ID, version uint32) (check [16]byte) {
	mac := hmac.New(sha256.New, v[:])
	mac.Write([]byte(LabelCheckValue))
	mac.Write(key[:])
	mac.Write(binary.BigEndian.AppendUint32(nil, version))
	copy(check[:], mac.Sum(nil))
	return check
}

// Double multiplies by x in GF(2^128) with the polynomial of CMAC (NIST SP
// 800-38B): dbl. Constant time.
func Double(block [16]byte) [16]byte {
	hi, lo := binary.BigEndian.Uint64(block[:8]), binary.BigEndian.Uint64(block[8:])
	carry := hi >> 63
	hi = hi<<1 | lo>>63
	lo = lo<<1 ^ (-carry & 0x87)
	binary.BigEndian.PutUint64(block[:8], hi)
	binary.BigEndian.PutUint64(block[8:], lo)
	return block
}

// putBlock writes (00 counter label 00 || data, zero padded to 12 bytes) ^ k1, the
// block of the key schedule of XAES-256-GCM, to dst.
func putBlock(dst []byte, counter, label byte, data []byte, k1 *[16]byte) {
	block := [BlockSize]byte{0, counter, label, 0}
	copy(block[4:], data)
	for i := range block {
		dst[i] = block[i] ^ k1[i]
	}
}
