package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// reference writes KEO1 from its description, with the standard library
// alone, and also what no honest writer would.
type reference struct {
	dataKey, salt, nonce, blob []byte

	unknown  bool
	declared uint64 // length in the header
	packages []refPackage
}

type refPackage struct {
	payload []byte
	final   bool
}

const (
	refPayload = 64 << 10
	refPackLen = refPayload + 32
	refFixed   = 80
)

// honest returns a reference that writes plaintext as it should be.
func honest(plaintext []byte, unknown bool) reference {
	r := reference{
		dataKey: testKeys.dataKey,
		blob:    testKeys.blob,
		salt:    pattern(32),
		nonce:   pattern(12),
		unknown: unknown,
	}
	if !unknown {
		r.declared = uint64(len(plaintext))
	}
	for len(plaintext) > refPayload {
		r.packages = append(r.packages, refPackage{payload: plaintext[:refPayload]})
		plaintext = plaintext[refPayload:]
	}
	if len(plaintext) > 0 {
		r.packages = append(r.packages, refPackage{payload: plaintext, final: true})
	}
	return r
}

func (r reference) params() []byte {
	b := make([]byte, 10)
	b[0] = 1
	if r.unknown {
		b[1] = 1
	}
	binary.BigEndian.PutUint64(b[2:], r.declared)
	return b
}

// derive is HKDF-SHA256 (RFC 5869) for 32 bytes.
func (r reference) derive(label string) []byte {
	prk := mac(r.salt, r.dataKey)
	return mac(prk, []byte(label), r.params(), []byte{1})
}

func (r reference) header() []byte {
	b := append([]byte("KEO1"), r.params()...)
	b = append(b, r.salt...)
	b = append(b, r.derive("keo/commit/v1")...)
	b = append(b, byte(len(r.blob)>>8), byte(len(r.blob)))
	return append(b, r.blob...)
}

func (r reference) object() []byte {
	block, err := aes.NewCipher(r.derive("keo/data/v1"))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	b := r.header()
	for i, p := range r.packages {
		header := append([]byte{0x20, 0, byte(len(p.payload) - 1), byte((len(p.payload) - 1) >> 8)}, r.nonce...)
		header[4] &= 0x7f
		if p.final {
			header[4] |= 0x80
		}
		nonce := append([]byte(nil), header[4:]...)
		binary.LittleEndian.PutUint32(nonce[8:], binary.LittleEndian.Uint32(nonce[8:])^uint32(i))
		b = append(b, header...)
		b = aead.Seal(b, nonce, p.payload, header[:4])
	}
	return b
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
