package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
)

// rsaExponent is the public exponent of every RSA key that is made here.
const rsaExponent = 65537

// PublicKey is the public half of an RSA or EC key. What is done with it needs no HSM.
type PublicKey struct {
	kind Kind
	rsa  *rsa.PublicKey   // of class RSA
	ec   *ecdsa.PublicKey // of class EC
}

// ParsePublicKey reads the DER SubjectPublicKeyInfo of a key of a kind. ErrCorrupt unless
// it is the canonical DER of a key of that size or curve; RSA keys have the exponent
// 65537.
func ParsePublicKey(spki []byte, k Kind) (*PublicKey, error) {
	wrong := func(why string) (*PublicKey, error) { return nil, fmt.Errorf("%w: public key: %s", ErrCorrupt, why) }
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return wrong(err.Error())
	}
	p := &PublicKey{kind: k}
	switch key := parsed.(type) {
	case *rsa.PublicKey:
		p.rsa = key
		if k.Class != ClassRSA || key.N.BitLen() != int(k.Bits) || key.E != rsaExponent {
			return wrong(fmt.Sprintf("RSA of %d bits with exponent %d", key.N.BitLen(), key.E))
		}
	case *ecdsa.PublicKey:
		p.ec = key
		if k.Class != ClassEC || key.Params().BitSize != int(k.Bits) {
			return wrong("EC of " + key.Params().Name)
		}
	default:
		return wrong(fmt.Sprintf("%T", parsed))
	}
	if again, err := x509.MarshalPKIXPublicKey(parsed); err != nil || !bytes.Equal(again, spki) {
		return wrong("not in canonical DER")
	}
	return p, nil
}

// Verify is nil if the signature is the key's of the digest; otherwise it wraps
// ErrRefused, also if the algorithm is none of the key's.
func (p *PublicKey) Verify(a Algorithm, digest, signature []byte) error {
	if err := p.kind.Accepts(a, digest); err != nil {
		return err
	}
	ok := false
	switch a.Scheme() {
	case SchemePSS:
		ok = rsa.VerifyPSS(p.rsa, a.Hash(), digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case SchemePKCS1:
		ok = rsa.VerifyPKCS1v15(p.rsa, a.Hash(), digest, signature) == nil
	case SchemeECDSA:
		ok = ecdsa.VerifyASN1(p.ec, digest, signature)
	case SchemeMAC, SchemeOAEP:
	}
	if !ok {
		return fmt.Errorf("%w: the signature does not verify", ErrRefused)
	}
	return nil
}

// MaxPlaintext is how many bytes an algorithm of the key encrypts at most; 0 if it
// encrypts nothing.
func (p *PublicKey) MaxPlaintext(a Algorithm) int {
	if p.rsa == nil || a.Scheme() != SchemeOAEP {
		return 0
	}
	return p.rsa.Size() - 2*a.Hash().Size() - 2
}

// Encrypt encrypts 0..MaxPlaintext bytes. ErrRefused: more, or the algorithm encrypts
// nothing.
func (p *PublicKey) Encrypt(a Algorithm, plaintext []byte) ([]byte, error) {
	if !p.kind.has(a) || len(plaintext) > p.MaxPlaintext(a) {
		return nil, fmt.Errorf("%w: %.80q encrypts at most %d bytes with this key", ErrRefused, a, p.MaxPlaintext(a))
	}
	ciphertext, err := rsa.EncryptOAEP(a.Hash().New(), rand.Reader, p.rsa, plaintext, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return ciphertext, nil
}

// CheckValuePublic is the check value of an RSA or EC key: the first 16 bytes of
//
//	SHA-256("quorumkms/kcv/v1" || class u8 || id || version u32 || SubjectPublicKeyInfo)
//
// It binds the public half, which lies beside the token, to the token.
func CheckValuePublic(class Class, key ID, version uint32, spki []byte) (check [16]byte) {
	h := sha256.New()
	h.Write([]byte(LabelCheckValue))
	h.Write([]byte{byte(class)})
	h.Write(key[:])
	h.Write(binary.BigEndian.AppendUint32(nil, version))
	h.Write(spki)
	copy(check[:], h.Sum(nil))
	return check
}

// CheckMessageHMAC is the message whose MAC under an HMAC key begins with the key's check
// value: "quorumkms/kcv/v1" || id || version u32.
func CheckMessageHMAC(key ID, version uint32) []byte {
	m := append([]byte(LabelCheckValue), key[:]...)
	return binary.BigEndian.AppendUint32(m, version)
}

// Valid is nil if there can be a key like that; otherwise it wraps ErrRefused.
func (r Ref) Valid() error {
	if r.Kind.Class != r.Want.Class {
		return fmt.Errorf("%w: a key of class %d as one of class %d", ErrRefused, r.Want.Class, r.Kind.Class)
	}
	return r.Kind.Valid()
}

// Public is the public half of the key of a reference. ErrCorrupt unless it is the one
// that the token's check value names. It needs no HSM: the token is authentic as far as
// the caller's records are.
func (r Ref) Public() (*PublicKey, error) {
	t, err := ParseToken(r.Token)
	if err != nil {
		return nil, err
	}
	if err := t.Matches(r.Want); err != nil {
		return nil, err
	}
	return r.public(t.Check)
}

func (r Ref) public(check [16]byte) (*PublicKey, error) {
	want := CheckValuePublic(r.Want.Class, r.Want.Key, r.Want.Version, r.SPKI)
	if subtle.ConstantTimeCompare(want[:], check[:]) != 1 {
		return nil, fmt.Errorf("%w: public key: check value", ErrCorrupt)
	}
	return ParsePublicKey(r.SPKI, r.Kind)
}

// Prove shows that a key that a provider has opened is the one of its token: HMAC keys by
// their check value, pairs by a signature or a ciphertext of the public half that the
// check value names. a is an algorithm of the kind that the provider has; apply uses the
// key and checks no input. ErrCorrupt if it is another key.
func (r Ref) Prove(ctx context.Context, check [16]byte, a Algorithm, apply func(context.Context, Algorithm, []byte) ([]byte, error)) error {
	message := CheckMessageHMAC(r.Want.Key, r.Want.Version)
	if !r.Kind.pair() {
		mac, err := apply(ctx, a, message)
		if err != nil {
			return err
		}
		if len(mac) != a.Hash().Size() || !hmac.Equal(mac[:len(check)], check[:]) {
			return fmt.Errorf("%w: check value", ErrCorrupt)
		}
		return nil
	}
	public, err := r.public(check)
	if err != nil {
		return err
	}
	input := Digest(a.Hash(), message)
	if r.Kind.Decrypts {
		if input, err = public.Encrypt(a, message); err != nil {
			return err
		}
	}
	output, err := apply(ctx, a, input)
	if err != nil && !errors.Is(err, ErrCiphertext) {
		return err
	}
	if r.Kind.Decrypts && !bytes.Equal(output, message) || !r.Kind.Decrypts && public.Verify(a, input, output) != nil {
		return fmt.Errorf("%w: private and public key are no pair", ErrCorrupt)
	}
	return nil
}

// Digest is the hash of a message.
func Digest(h crypto.Hash, message []byte) []byte {
	d := h.New()
	d.Write(message)
	return d.Sum(nil)
}
