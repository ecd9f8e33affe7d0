//go:build cgo

package p11

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// importPrivate is the template of the private half of an import pair, in a session. One
// of class ImportRSA unwraps and does nothing else. One of class RSA is for tokens that
// lack the algorithm's OAEP: it decrypts whole blocks, which the domain key of import pairs
// does not let it and that of RSA keys does (with SIGN beside it, as all of them have).
func importPrivate(c hsm.Class, extractable bool) template {
	usage, allowed := []uint{pkcs11.CKA_UNWRAP}, uint(pkcs11.CKM_RSA_PKCS_OAEP)
	if c == hsm.ClassRSA {
		usage, allowed = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT}, pkcs11.CKM_RSA_X_509
	}
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		flag(pkcs11.CKA_TOKEN, false), flag(pkcs11.CKA_PRIVATE, true),
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, extractable),
	}, usages(privateUsages(), usage...), template{mechanisms(allowed)}, frozen())
}

// ephemeral is the template of the AES key of one use that wraps material: it unwraps. It
// can be wrapped itself, which tells its length.
func (t traits) ephemeral() template {
	return join(secret(pkcs11.CKK_AES, false, true), usages(secretUsages(), pkcs11.CKA_UNWRAP),
		template{mechanisms(t.kwp)}, frozen())
}

// oaepCode is a hash of OAEP as the traits name it.
func oaepCode(h crypto.Hash) uint8 {
	if h == crypto.SHA256 {
		return hsm.OAEPSHA256
	}
	return hsm.OAEPSHA1
}

// ImportsInside implements hsm.Partition.
func (p *Partition) ImportsInside(a hsm.ImportAlgorithm) bool {
	return a.Known() && slices.Contains(p.traits.oaep, oaepCode(a.Hash()))
}

// NewImportPair implements hsm.Partition.
func (p *Partition) NewImportPair(ctx context.Context, spec hsm.ImportPairSpec) (made hsm.NewKey, err error) {
	h, err := spec.RawHeader()
	if p.ImportsInside(spec.Algorithm) {
		h, err = spec.InsideHeader()
	}
	if err != nil {
		return made, err
	}
	err = p.do(ctx, func(s *session) error {
		d, err := p.domain(s, domainID{h.Cluster, h.Generation})
		if err != nil {
			return err
		}
		var wrapped []byte
		if wrapped, made.SPKI, err = p.makePair(s, h.Class, uint(spec.Bits), d[hsm.KeyKind(h.Class)]); err != nil {
			return fmt.Errorf("import pair: %w", err)
		}
		check := hsm.CheckValuePublic(h.Class, h.Key, h.Version, made.SPKI)
		made.Token, err = hsm.BuildToken(h, check, wrapped, func(message []byte) ([]byte, error) {
			return s.mac(d[hsm.KindMAC], message)
		})
		return err
	})
	if err != nil {
		return hsm.NewKey{}, err
	}
	return made, nil
}

// makePair makes an import pair, wraps its private half, opens it once, and destroys it. It
// has more usages than it should only where that is accepted.
func (p *Partition) makePair(s *session, c hsm.Class, bits uint, domainKey pkcs11.ObjectHandle) (wrapped, spki []byte, err error) {
	public, private, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		publicHalf(hsm.Kind{Class: hsm.ClassRSA}).with(newRSA(bits)...), importPrivate(c, true))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.destroy(public), s.destroy(private)) }()
	if spki, err = s.rsaPublic(public); err != nil {
		return nil, nil, err
	}
	if wrapped, err = s.wrap(p.traits.keyWrap(), domainKey, private); err != nil {
		return nil, nil, err
	}
	opened, err := s.unwrap(p.traits.keyWrap(), domainKey, wrapped, importPrivate(c, false))
	if err != nil {
		return nil, nil, err
	}
	want := importPrivate(c, false)
	if p.accepts(probeUsages) {
		want = want.less(want.unset(privateUsages()))
	}
	return wrapped, spki, errors.Join(s.check(opened, want), s.destroy(opened))
}

// ImportKey implements hsm.Partition.
func (p *Partition) ImportKey(ctx context.Context, r hsm.ImportRequest) (made hsm.NewKey, err error) {
	t, h, err := r.Check()
	if err != nil {
		return made, err
	}
	if t.Header.Class == hsm.ClassImportRSA && !p.ImportsInside(t.Algorithm) {
		return made, fmt.Errorf("%w: the import token was made by an HSM that has %s; this one does not", hsm.ErrUnsupported, t.Algorithm)
	}
	k := r.Spec.Kind()
	err = p.making(ctx, false, func(s *session) error {
		d, err := p.domain(s, domainID{h.Cluster, h.Generation})
		if err != nil {
			return err
		}
		check, wrapped, err := p.takeIn(s, r, t, k, h, d)
		if err != nil {
			return err
		}
		made.Token, err = hsm.BuildToken(h, check, wrapped, func(message []byte) ([]byte, error) {
			return s.mac(d[hsm.KindMAC], message)
		})
		return err
	})
	if err != nil {
		return hsm.NewKey{}, p.suspect(ctx, err)
	}
	if err := hsm.TryOpen(ctx, p, hsm.Ref{Token: made.Token, Want: h, Kind: k}); err != nil {
		return hsm.NewKey{}, fmt.Errorf("imported key does not open: %w", err)
	}
	return made, nil
}

// takeIn unwraps material and wraps it again under the domain key of its class. Nothing
// stays behind.
func (p *Partition) takeIn(s *session, r hsm.ImportRequest, t hsm.ImportToken, k hsm.Kind, h hsm.TokenHeader, d domain) (check [16]byte, wrapped []byte, err error) {
	pair, err := p.openPair(s, r.Token, t.Header)
	if err != nil {
		return check, nil, err
	}
	defer func() { err = errors.Join(err, s.destroy(pair)) }()
	key, err := p.unwrapMaterial(s, pair, t, k, r.Ciphertext, d[aesKind])
	if err != nil {
		return check, nil, s.uniform(err)
	}
	defer func() { err = errors.Join(err, s.destroy(key)) }()
	if err := s.sized(p.traits, key, d[aesKind], k.MaterialSize()); err != nil {
		return check, nil, s.uniform(err)
	}
	if check, err = s.checkOf(k, h, key); err != nil {
		return check, nil, s.uniform(err) // the tokens look at the length when a key is used
	}
	wrapped, err = s.wrap(p.traits.keyWrap(), d[hsm.KeyKind(h.Class)], key)
	return check, wrapped, err
}

// checkOf is the check value of an AES or HMAC key.
func (s *session) checkOf(k hsm.Kind, h hsm.TokenHeader, key pkcs11.ObjectHandle) (check [16]byte, err error) {
	if k.Class == hsm.ClassAES {
		return hsm.CheckValueAES(func(dst, src []byte) error { return s.encryptBlocks(key, dst, src) }, h.Key, h.Version)
	}
	mac, err := s.apply(k.Algorithms()[0], key, hsm.CheckMessageHMAC(h.Key, h.Version))
	copy(check[:], mac)
	return check, err
}

// openPair opens the private half of an import pair, if the domain has made it.
func (p *Partition) openPair(s *session, token []byte, want hsm.TokenHeader) (pkcs11.ObjectHandle, error) {
	parsed, err := hsm.ParseToken(token)
	if err != nil {
		return 0, err
	}
	domainKey, err := p.authenticate(s, parsed, want)
	if errors.Is(err, hsm.ErrCorrupt) {
		return 0, fmt.Errorf("%w: the import token was altered, or made by another cluster", hsm.ErrRefused)
	}
	if err != nil {
		return 0, err
	}
	pair, err := s.unwrap(p.traits.keyWrap(), domainKey, parsed.Wrapped, importPrivate(want.Class, false))
	if err != nil {
		return 0, fmt.Errorf("import pair: %w", blame(err, hsm.ErrCorrupt, func() error { return s.link.alive(s) }))
	}
	return pair, nil
}

// unwrapMaterial brings the material into the session as a key that can be wrapped.
func (p *Partition) unwrapMaterial(s *session, pair pkcs11.ObjectHandle, t hsm.ImportToken, k hsm.Kind, ciphertext []byte, aesDomainKey pkcs11.ObjectHandle) (key pkcs11.ObjectHandle, err error) {
	modulus, err := s.attribute(pair, pkcs11.CKA_MODULUS)
	if err != nil {
		return 0, err
	}
	block, wrapped, err := t.Algorithm.Split(ciphertext, len(modulus))
	if err != nil {
		return 0, err
	}
	as := masterKey(true)
	if k.Class != hsm.ClassAES {
		as = secretKeyTemplate(k, true)
	}
	if !t.Algorithm.Wraps() {
		return s.unwrapBlock(pair, t, block, as, k.MaterialSize())
	}
	kek, err := s.unwrapBlock(pair, t, block, p.traits.ephemeral(), keySize)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.destroy(kek)) }()
	if err := s.sized(p.traits, kek, aesDomainKey, keySize); err != nil {
		return 0, err
	}
	return s.unwrap(p.traits.keyWrap(), kek, wrapped, as)
}

// unwrapBlock brings what is under an import pair into the session: inside the token, or,
// where that lacks the OAEP, through one buffer of the process.
func (s *session) unwrapBlock(pair pkcs11.ObjectHandle, t hsm.ImportToken, block []byte, as template, size int) (pkcs11.ObjectHandle, error) {
	if t.Header.Class == hsm.ClassImportRSA {
		return s.unwrap(oaepWith(oaepCode(t.Algorithm.Hash())), pair, block, as)
	}
	padded := make([]byte, len(block))
	defer clear(padded)
	if _, err := counts(s, hsm.CallDecrypt, func() (struct{}, error) { return struct{}{}, s.link.lib.native.decryptRaw(s.h, pair, padded, block) }); err != nil {
		return 0, err
	}
	plaintext, err := hsm.DecodeOAEP(t.Algorithm.Hash(), padded)
	if err == nil && len(plaintext) != size {
		err = hsm.ErrCiphertext
	}
	if err != nil {
		return 0, err
	}
	return counts(s, hsm.CallObject, func() (pkcs11.ObjectHandle, error) {
		return s.link.lib.native.create(s.h, s.link.quirks.fit(as.with(octets(pkcs11.CKA_VALUE, plaintext))))
	})
}

// sized is nil if a key has so many bytes. Not every token tells the length of a key that it
// has unwrapped (SoftHSM does not), but what wraps it does, to whole units of 8 bytes. What is
// shorter by less than that is no AES key, and shorter than such tokens take for the HMAC.
func (s *session) sized(t traits, key, aesDomainKey pkcs11.ObjectHandle, size int) error {
	told, err := s.attribute(key, pkcs11.CKA_VALUE_LEN)
	if err == nil && len(told) > 0 && !bytes.Equal(told, ulong(0)) && !bytes.Equal(told, ulong(uint(size))) {
		return hsm.ErrCiphertext
	}
	w, err := s.wrap(t.keyWrap(), aesDomainKey, key)
	if err == nil && len(w) != size+8 {
		return hsm.ErrCiphertext
	}
	return err
}

// uniform makes every failure of an unwrap the ciphertext's, if the token is there.
func (s *session) uniform(err error) error {
	if err == nil || errors.Is(err, hsm.ErrCiphertext) || isLoss(code(err)) || s.link.alive(s) != nil {
		return err
	}
	return fmt.Errorf("%w: %w", hsm.ErrCiphertext, err)
}
