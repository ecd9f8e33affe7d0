//go:build cgo

package p11

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// hashMechanisms are the numbers of a hash and of MGF1 with it.
func hashMechanisms(h crypto.Hash) (hash, mgf uint) {
	switch h {
	case crypto.SHA256:
		return pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256
	case crypto.SHA384:
		return pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384
	case crypto.SHA512:
		return pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512
	default:
		return pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1
	}
}

// mechanismOf is the mechanism of an algorithm. Signatures are of digests, so the hashes of PSS
// are parameters and those of PKCS #1 v1.5 part of what is signed.
func mechanismOf(a hsm.Algorithm) uint {
	switch a.Scheme() {
	case hsm.SchemePSS:
		return pkcs11.CKM_RSA_PKCS_PSS
	case hsm.SchemePKCS1:
		return pkcs11.CKM_RSA_PKCS
	case hsm.SchemeECDSA:
		return pkcs11.CKM_ECDSA
	case hsm.SchemeOAEP:
		return pkcs11.CKM_RSA_PKCS_OAEP
	case hsm.SchemeMAC:
	}
	return map[crypto.Hash]uint{
		crypto.SHA256: pkcs11.CKM_SHA256_HMAC, crypto.SHA384: pkcs11.CKM_SHA384_HMAC, crypto.SHA512: pkcs11.CKM_SHA512_HMAC,
	}[a.Hash()]
}

// allowed are the mechanisms of the algorithms of a kind.
func allowed(k hsm.Kind) attribute {
	var list []uint
	for _, a := range k.Algorithms() {
		list = append(list, mechanismOf(a))
	}
	slices.Sort(list)
	return mechanisms(slices.Compact(list)...)
}

// secretKeyTemplate is the template of a key of class HMAC, RSA or EC in a session, as
// masterKey is of AES keys. RSA keys of both kinds have the usages that the domain key
// imposes on their class; what they may do is limited by their mechanisms.
func secretKeyTemplate(k hsm.Kind, extractable bool) template {
	usage := []uint{pkcs11.CKA_SIGN}
	keyType := uint(pkcs11.CKK_EC)
	switch k.Class {
	case hsm.ClassHMAC:
		return join(secret(pkcs11.CKK_GENERIC_SECRET, false, extractable), usages(secretUsages(), usage...), template{allowed(k)}, frozen())
	case hsm.ClassRSA:
		usage, keyType = append(usage, pkcs11.CKA_DECRYPT), pkcs11.CKK_RSA
	default:
	}
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), number(pkcs11.CKA_KEY_TYPE, keyType),
		flag(pkcs11.CKA_TOKEN, false), flag(pkcs11.CKA_PRIVATE, true),
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, extractable),
	}, usages(privateUsages(), usage...), template{allowed(k)}, frozen())
}

// publicHalf is the template of the public half of a pair that is being made: it is read
// and destroyed. It has the usages of the private half: NSS tries both on each other.
func publicHalf(k hsm.Kind) template {
	keyType, parameters := uint(pkcs11.CKK_RSA), newRSA(uint(k.Bits))
	usage := []uint{pkcs11.CKA_VERIFY}
	if k.Class == hsm.ClassEC {
		curve := curveP256()
		if curveOf(k) == ecdh.P384() {
			curve = curveP384()
		}
		keyType, parameters = pkcs11.CKK_EC, template{octets(pkcs11.CKA_EC_PARAMS, curve)}
	} else {
		usage = append(usage, pkcs11.CKA_ENCRYPT)
	}
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), number(pkcs11.CKA_KEY_TYPE, keyType),
		flag(pkcs11.CKA_TOKEN, false), flag(pkcs11.CKA_PRIVATE, false),
	}, usages(publicUsages(), usage...), parameters)
}

func curveOf(k hsm.Kind) ecdh.Curve {
	if k.Bits == 384 {
		return ecdh.P384()
	}
	return ecdh.P256()
}

// Supports implements hsm.Partition.
func (p *Partition) Supports(a hsm.Algorithm) bool { return slices.Contains(p.traits.algorithms, a) }

// first is an algorithm of a kind that the token has.
func (t traits) first(k hsm.Kind) (hsm.Algorithm, error) {
	for _, a := range k.Algorithms() {
		if slices.Contains(t.algorithms, a) {
			return a, nil
		}
	}
	return "", fmt.Errorf("%w: the token has none of %v", hsm.ErrUnsupported, k.Algorithms())
}

// generateSecret makes a key of class HMAC, RSA or EC that can be wrapped; spki is of a
// pair.
func (s *session) generateSecret(k hsm.Kind) (key pkcs11.ObjectHandle, spki []byte, err error) {
	t := secretKeyTemplate(k, true)
	if k.Class == hsm.ClassHMAC {
		key, err = s.generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, t.with(number(pkcs11.CKA_VALUE_LEN, uint(k.Bits)/8)))
		return key, nil, err
	}
	m := uint(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN)
	if k.Class == hsm.ClassEC {
		m = pkcs11.CKM_EC_KEY_PAIR_GEN
	}
	public, key, err := s.generatePair(m, publicHalf(k), t)
	if err != nil {
		return 0, nil, err
	}
	if k.Class == hsm.ClassEC {
		spki, err = s.ecPublic(public, curveOf(k))
	} else {
		spki, err = s.rsaPublic(public)
	}
	if err = errors.Join(err, s.destroy(public)); err != nil {
		return 0, nil, errors.Join(err, s.destroy(key))
	}
	return key, spki, nil
}

// makeSecret is makeKey for class HMAC, RSA or EC.
func (s *session) makeSecret(t traits, k hsm.Kind, h hsm.TokenHeader, domainKey pkcs11.ObjectHandle) (check [16]byte, wrapped, spki []byte, err error) {
	a, err := t.first(k)
	if err != nil {
		return check, nil, nil, err
	}
	key, spki, err := s.generateSecret(k)
	if err != nil {
		return check, nil, nil, err
	}
	defer func() { err = errors.Join(err, s.destroy(key)) }()
	if k.Class == hsm.ClassHMAC {
		mac, err := s.apply(a, key, hsm.CheckMessageHMAC(h.Key, h.Version))
		if err != nil {
			return check, nil, nil, err
		}
		copy(check[:], mac)
	} else {
		check = hsm.CheckValuePublic(h.Class, h.Key, h.Version, spki)
	}
	wrapped, err = s.wrap(t.keyWrap(), domainKey, key)
	return check, wrapped, spki, err
}

// OpenSecret implements hsm.Partition.
func (p *Partition) OpenSecret(ctx context.Context, ref hsm.Ref) (hsm.SecretKey, error) {
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	if c := ref.Kind.Class; c == hsm.ClassAES || c == hsm.ClassResident {
		return nil, fmt.Errorf("%w: a block key", hsm.ErrRefused)
	}
	a, err := p.traits.first(ref.Kind)
	if err != nil {
		return nil, err
	}
	t, loaded, err := p.load(ctx, ref)
	if err != nil {
		return nil, p.suspect(ctx, err)
	}
	k := &secretKey{loaded, ref.Kind}
	if err := ref.Prove(ctx, t.Check, a, k.apply); err != nil {
		k.Close()
		return nil, p.suspect(ctx, err)
	}
	return k, nil
}

// secretKey is a loaded key of class HMAC, RSA or EC. It implements hsm.SecretKey.
type secretKey struct {
	*loadedKey
	kind hsm.Kind
}

// Apply implements hsm.SecretKey.
func (k *secretKey) Apply(ctx context.Context, a hsm.Algorithm, input []byte) ([]byte, error) {
	if err := k.kind.Accepts(a, input); err != nil {
		return nil, err
	}
	if !k.partition.Supports(a) {
		return nil, fmt.Errorf("%w: the token has no %s", hsm.ErrUnsupported, a)
	}
	return k.apply(ctx, a, input)
}

func (k *secretKey) apply(ctx context.Context, a hsm.Algorithm, input []byte) (output []byte, err error) {
	err = k.use(ctx, func(s *session) error {
		output, err = s.apply(a, k.handle, input)
		return err
	})
	return output, err
}

// apply uses a key with an algorithm. A ciphertext that does not open is ErrCiphertext; a
// token that reports that like a fault of its own is asked whether it is there.
func (s *session) apply(a hsm.Algorithm, key pkcs11.ObjectHandle, input []byte) ([]byte, error) {
	hash, mgf := hashMechanisms(a.Hash())
	switch a.Scheme() {
	case hsm.SchemePSS:
		params := pkcs11.NewPSSParams(hash, mgf, uint(a.Hash().Size()))
		return s.sign([]*pkcs11.Mechanism{pkcs11.NewMechanism(mechanismOf(a), params)}, key, input)
	case hsm.SchemePKCS1:
		info, err := digestInfo(a.Hash(), input)
		if err != nil {
			return nil, err
		}
		return s.sign(mechanism(mechanismOf(a)), key, info)
	case hsm.SchemeECDSA:
		raw, err := s.sign(mechanism(mechanismOf(a)), key, input)
		if err != nil {
			return nil, err
		}
		return derSignature(raw, a.Hash().Size()) // P-256 with SHA-256, P-384 with SHA-384
	case hsm.SchemeOAEP:
		plaintext, err := counts(s, hsm.CallDecrypt, func() ([]byte, error) { return s.link.lib.native.decryptOAEP(s.h, key, hash, mgf, input) })
		return plaintext, blame(err, hsm.ErrCiphertext, func() error { return s.link.alive(s) })
	case hsm.SchemeMAC:
	}
	mac, err := s.sign(mechanism(mechanismOf(a)), key, input)
	return mac, blame(err, hsm.ErrCorrupt, func() error { return err }) // a key of another size than its kind has
}

// digestInfo is what RSASSA-PKCS1-v1_5 pads (RFC 8017, 9.2).
func digestInfo(h crypto.Hash, digest []byte) ([]byte, error) {
	oids := map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
	}
	info, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}{pkix.AlgorithmIdentifier{Algorithm: oids[h], Parameters: asn1.NullRawValue}, digest})
	if err != nil {
		return nil, fmt.Errorf("%w: digest info: %w", hsm.ErrRefused, err)
	}
	return info, nil
}
