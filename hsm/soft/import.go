package soft

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/quorumkms/quorumkms/hsm"
)

// ImportsInside implements hsm.Partition: here everything is inside.
func (*Partition) ImportsInside(a hsm.ImportAlgorithm) bool { return a.Known() }

// NewImportPair implements hsm.Partition.
func (p *Partition) NewImportPair(ctx context.Context, s hsm.ImportPairSpec) (hsm.NewKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return hsm.NewKey{}, err
	}
	h, err := s.InsideHeader()
	if err != nil {
		return hsm.NewKey{}, err
	}
	if _, err := p.held(h.Cluster, h.Generation); err != nil {
		return hsm.NewKey{}, err
	}
	key, err := rsa.GenerateKey(rand.Reader, int(s.Bits))
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("%w: import pair: %w", hsm.ErrUnavailable, err)
	}
	var m material
	if m.raw, err = x509.MarshalPKCS8PrivateKey(key); err == nil {
		m.spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	}
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("%w: import pair: %w", hsm.ErrUnavailable, err)
	}
	m.check = hsm.CheckValuePublic(h.Class, h.Key, h.Version, m.spki)
	return p.seal(h, m)
}

// seal makes the token of material, and wipes that.
func (p *Partition) seal(h hsm.TokenHeader, m material) (hsm.NewKey, error) {
	defer clear(m.raw)
	d, err := p.held(h.Cluster, h.Generation)
	if err != nil {
		return hsm.NewKey{}, err
	}
	kek, err := aes.NewCipher(d.key(h.Generation, hsm.KeyKind(h.Class)))
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("%w: domain key: %w", hsm.ErrCorrupt, err)
	}
	token, err := hsm.BuildToken(h, m.check, wrapKWP(kek, m.raw), func(message []byte) ([]byte, error) {
		return mac(d.key(h.Generation, hsm.KindMAC), message), nil
	})
	if err != nil {
		return hsm.NewKey{}, err
	}
	return hsm.NewKey{Token: token, SPKI: m.spki}, nil
}

// ImportKey implements hsm.Partition.
func (p *Partition) ImportKey(ctx context.Context, r hsm.ImportRequest) (hsm.NewKey, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return hsm.NewKey{}, err
	}
	t, h, err := r.Check()
	if err != nil {
		return hsm.NewKey{}, err
	}
	_, pkcs8, err := p.unwrap(r.Token, t.Header)
	if errors.Is(err, hsm.ErrCorrupt) {
		return hsm.NewKey{}, fmt.Errorf("%w: the import token was altered, or made by another cluster", hsm.ErrRefused)
	}
	if err != nil {
		return hsm.NewKey{}, err
	}
	defer clear(pkcs8)
	pair, err := newSecret(hsm.Kind{Class: hsm.ClassRSA}, pkcs8)
	if err != nil {
		return hsm.NewKey{}, fmt.Errorf("%w: import pair: %w", hsm.ErrCorrupt, err)
	}
	k := r.Spec.Kind()
	raw, err := unwrapMaterial(pair.rsa, t.Algorithm, r.Ciphertext)
	if err != nil || len(raw) != k.MaterialSize() {
		clear(raw)
		return hsm.NewKey{}, hsm.ErrCiphertext
	}
	m := material{raw: raw}
	if m.check, err = p.checkOf(k, h, raw); err != nil {
		clear(raw)
		return hsm.NewKey{}, err
	}
	return p.seal(h, m)
}

// checkOf is the check value of an AES or HMAC key.
func (p *Partition) checkOf(k hsm.Kind, h hsm.TokenHeader, raw []byte) (check [16]byte, err error) {
	if k.Class == hsm.ClassAES {
		key, err := p.blockKey(raw)
		if err != nil {
			return check, err
		}
		return key.check(h)
	}
	sum, err := (&secretKey{kind: k, mac: raw}).apply(context.Background(), k.Algorithms()[0], hsm.CheckMessageHMAC(h.Key, h.Version))
	copy(check[:], sum)
	return check, err
}

func unwrapMaterial(pair *rsa.PrivateKey, a hsm.ImportAlgorithm, ciphertext []byte) ([]byte, error) {
	block, wrapped, err := a.Split(ciphertext, pair.Size())
	if err != nil {
		return nil, err
	}
	plaintext, err := rsa.DecryptOAEP(a.Hash().New(), nil, pair, block, nil)
	if err != nil || !a.Wraps() {
		return plaintext, err
	}
	defer clear(plaintext)
	if len(plaintext) != keySize {
		return nil, hsm.ErrCiphertext
	}
	kek, err := aes.NewCipher(plaintext)
	if err != nil {
		return nil, err
	}
	return unwrapKWP(kek, wrapped)
}
