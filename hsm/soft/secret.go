package soft

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// secretKey is a loaded key that is not AES. It implements hsm.SecretKey.
type secretKey struct {
	partition *Partition
	kind      hsm.Kind
	mac       []byte // of class HMAC
	rsa       *rsa.PrivateKey
	ec        *ecdsa.PrivateKey
	closed    atomic.Bool
}

// generateSecret makes a key of class HMAC, RSA or EC.
func generateSecret(k hsm.Kind, h hsm.TokenHeader) (m material, err error) {
	if k.Class == hsm.ClassHMAC {
		m.raw = make([]byte, k.Bits/8)
		if _, err := rand.Read(m.raw); err != nil {
			return m, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
		}
		key := &secretKey{kind: k, mac: m.raw}
		sum, err := key.apply(context.Background(), k.Algorithms()[0], hsm.CheckMessageHMAC(h.Key, h.Version))
		copy(m.check[:], sum)
		return m, err
	}
	var private, public any
	if k.Class == hsm.ClassRSA {
		var key *rsa.PrivateKey
		if key, err = rsa.GenerateKey(rand.Reader, int(k.Bits)); err == nil {
			private, public = key, &key.PublicKey
		}
	} else {
		curve := elliptic.P256()
		if int(k.Bits) != curve.Params().BitSize {
			curve = elliptic.P384()
		}
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.GenerateKey(curve, rand.Reader); err == nil {
			private, public = key, &key.PublicKey
		}
	}
	if err == nil {
		m.raw, err = x509.MarshalPKCS8PrivateKey(private)
	}
	if err == nil {
		m.spki, err = x509.MarshalPKIXPublicKey(public)
	}
	if err != nil {
		return m, fmt.Errorf("%w: key pair: %w", hsm.ErrUnavailable, err)
	}
	m.check = hsm.CheckValuePublic(h.Class, h.Key, h.Version, m.spki)
	return m, nil
}

// Supports implements hsm.Partition: everything is there.
func (*Partition) Supports(a hsm.Algorithm) bool { return a.Scheme() != 0 }

// OpenSecret implements hsm.Partition.
func (p *Partition) OpenSecret(ctx context.Context, ref hsm.Ref) (hsm.SecretKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	key, err := p.openSecret(ref)
	if err != nil {
		return nil, err // not a nil *secretKey in an interface
	}
	return key, nil
}

func (p *Partition) openSecret(ref hsm.Ref) (*secretKey, error) {
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	t, raw, err := p.unwrap(ref.Token, ref.Want)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	if c := ref.Kind.Class; c == hsm.ClassAES || c == hsm.ClassResident {
		return nil, fmt.Errorf("%w: a block key", hsm.ErrRefused)
	}
	key, err := newSecret(ref.Kind, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrCorrupt, err)
	}
	key.partition = p
	return key, ref.Prove(context.Background(), t.Check, ref.Kind.Algorithms()[0], key.apply)
}

// newSecret reads what was wrapped.
func newSecret(k hsm.Kind, raw []byte) (*secretKey, error) {
	key := &secretKey{kind: k}
	if k.Class == hsm.ClassHMAC {
		if len(raw) != int(k.Bits)/8 {
			return nil, fmt.Errorf("an hmac key of %d bytes", len(raw))
		}
		key.mac = bytes.Clone(raw)
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(unpadded(raw))
	if err != nil {
		return nil, err
	}
	var ok bool
	if k.Class == hsm.ClassRSA {
		key.rsa, ok = parsed.(*rsa.PrivateKey)
	} else {
		key.ec, ok = parsed.(*ecdsa.PrivateKey)
	}
	if !ok {
		return nil, fmt.Errorf("a private key %T of class %d", parsed, k.Class)
	}
	return key, nil
}

// unpadded is what SoftHSM wrapped without the zeros with which it fills keys up to whole
// units of 8 bytes.
func unpadded(pkcs8 []byte) []byte {
	var first asn1.RawValue
	rest, err := asn1.Unmarshal(pkcs8, &first)
	if err == nil && len(rest) < semiblock && len(bytes.Trim(rest, "\x00")) == 0 {
		return first.FullBytes
	}
	return pkcs8
}

// Apply implements hsm.SecretKey.
func (k *secretKey) Apply(ctx context.Context, a hsm.Algorithm, input []byte) ([]byte, error) {
	k.partition.mu.RLock()
	defer k.partition.mu.RUnlock()
	if err := k.partition.usable(ctx); err != nil {
		return nil, err
	}
	if k.closed.Load() {
		return nil, fmt.Errorf("%w: key closed", hsm.ErrStale)
	}
	if err := k.kind.Accepts(a, input); err != nil {
		return nil, err
	}
	began, kind := time.Now(), hsm.CallSign
	if a.Scheme() == hsm.SchemeOAEP {
		kind = hsm.CallDecrypt
	}
	output, err := k.apply(ctx, a, input)
	k.partition.meter.Done(kind, began, err)
	return output, err
}

func (k *secretKey) apply(_ context.Context, a hsm.Algorithm, input []byte) (output []byte, err error) {
	switch a.Scheme() {
	case hsm.SchemeMAC:
		h := hmac.New(a.Hash().New, k.mac)
		h.Write(input)
		return h.Sum(nil), nil
	case hsm.SchemePSS:
		output, err = rsa.SignPSS(rand.Reader, k.rsa, a.Hash(), input, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case hsm.SchemePKCS1:
		output, err = rsa.SignPKCS1v15(rand.Reader, k.rsa, a.Hash(), input)
	case hsm.SchemeECDSA:
		output, err = ecdsa.SignASN1(rand.Reader, k.ec, input)
	case hsm.SchemeOAEP:
		if output, err = rsa.DecryptOAEP(a.Hash().New(), nil, k.rsa, input, nil); err != nil {
			return nil, hsm.ErrCiphertext
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", hsm.ErrCorrupt, a, err)
	}
	return output, nil
}

// Close implements hsm.SecretKey.
func (k *secretKey) Close() { k.closed.Store(true) }
