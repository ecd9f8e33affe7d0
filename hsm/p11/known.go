//go:build cgo

package p11

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// secretKinds is one kind of key for every algorithm there is.
func secretKinds() []hsm.Kind {
	return []hsm.Kind{
		{Class: hsm.ClassHMAC, Bits: 256},
		{Class: hsm.ClassHMAC, Bits: 384},
		{Class: hsm.ClassHMAC, Bits: 512},
		{Class: hsm.ClassRSA, Bits: 2048},
		{Class: hsm.ClassRSA, Bits: 2048, Decrypts: true},
		{Class: hsm.ClassEC, Bits: 256},
		{Class: hsm.ClassEC, Bits: 384},
	}
}

// knownSecret is a key of a kind that everybody knows.
type knownSecret struct {
	values template // what C_CreateObject wants beside the key's template
	mac    []byte   // of class HMAC
	spki   []byte   // of a pair
}

// ofKnown is the known key of a kind of secretKinds.
func ofKnown(k hsm.Kind) (known knownSecret, err error) {
	switch k.Class {
	case hsm.ClassHMAC:
		known.mac = counting(int(k.Bits) / 8)
		known.values = template{octets(pkcs11.CKA_VALUE, known.mac)}
	case hsm.ClassEC:
		curve, oid := elliptic.P256(), curveP256()
		if k.Bits == 384 {
			curve, oid = elliptic.P384(), curveP384()
		}
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.ParseRawPrivateKey(curve, counting(int(k.Bits)/8)); err != nil {
			return known, err
		}
		known.values = template{octets(pkcs11.CKA_EC_PARAMS, oid), octets(pkcs11.CKA_VALUE, counting(int(k.Bits)/8))}
		known.spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	default:
		key := knownRSA()
		known.values = template{
			octets(pkcs11.CKA_MODULUS, key.N.Bytes()), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent()),
			octets(pkcs11.CKA_PRIVATE_EXPONENT, key.D.Bytes()),
			octets(pkcs11.CKA_PRIME_1, key.Primes[0].Bytes()), octets(pkcs11.CKA_PRIME_2, key.Primes[1].Bytes()),
			octets(pkcs11.CKA_EXPONENT_1, key.Precomputed.Dp.Bytes()), octets(pkcs11.CKA_EXPONENT_2, key.Precomputed.Dq.Bytes()),
			octets(pkcs11.CKA_COEFFICIENT, key.Precomputed.Qinv.Bytes()),
		}
		known.spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	}
	return known, err
}

// counting is n bytes that count up.
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// knownRSA is a key of 2048 bits made of two primes that stand here.
func knownRSA() *rsa.PrivateKey {
	p := new(big.Int).SetBytes(unhex("da8baee6be3e84b765f4bf3382afd6cd9c30b202422dd50fc44403f154fcc9378ded87c2327bdbfaa73a97b639967a3db6b43a0beb3c892a84fcf9886ede1c93" +
		"98b549fbf6af908ff38fc2bf40caa25aae5eb630d603ad4545fadb012a52ff38014ebc9c98ce6baca8f68e8feac1b6e5b5ff66cb160c405fa28a4f017787d079"))
	q := new(big.Int).SetBytes(unhex("d18630c16d49ebafd2132f72b3d824e4de06cbf0199ba84444d0aab11d3f69115eec0c207886ff02e9c8355cff9131418f89ca30d1d43dedf73b503bb31dc7a2" +
		"790213507bc9a553a57f4ce9799df6001f9180e56d42397e6d124d9f4e561e4e6c9e8b73bb41f53dbe431463b173179b62fc11c0f1d4e222c4625e1adc6397e9"))
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	e := new(big.Int).SetBytes(publicExponent())
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: int(e.Int64())},
		D:         new(big.Int).ModInverse(e, phi), Primes: []*big.Int{p, q},
	}
	key.Precompute()
	return key
}

// openKnown makes the known key of a kind as a key is while it is being made, wraps it with a
// domain key of its class and opens it: so keys of that kind work on this token.
func (s *session) openKnown(t traits, k hsm.Kind, domainKey pkcs11.ObjectHandle) (pkcs11.ObjectHandle, error) {
	known, err := ofKnown(k)
	if err != nil {
		return 0, err
	}
	made, err := s.create(join(known.values, secretKeyTemplate(k, true)))
	if err != nil {
		return 0, err
	}
	w, err := s.wrap(t.keyWrap(), domainKey, made)
	if err = errors.Join(err, s.destroy(made)); err != nil {
		return 0, err
	}
	point, err := t.point(k, known.spki)
	if err != nil {
		return 0, err
	}
	return s.unwrap(t.keyWrap(), domainKey, w, join(point, secretKeyTemplate(k, false)))
}

// algorithms opens a known key of every kind and finds out which of the algorithms the
// token has, by their answers. One that lacks some serves all the same: keys of a kind of
// which it has none are not made.
func (b *bench) algorithms(f *findings) {
	for _, k := range secretKinds() {
		key, err := b.openKnown(b.traits, k, b.domain[hsm.KeyKind(k.Class)])
		if err != nil && k.Class == hsm.ClassEC && !b.traits.ecPoint { // NSS
			b.traits.ecPoint = true
			if key, err = b.openKnown(b.traits, k, b.domain[hsm.KeyKind(k.Class)]); err != nil {
				b.traits.ecPoint = false
			}
		}
		if err == nil {
			err = b.asImposed(k, key)
		}
		if err != nil {
			f.watch(err)
			f.note("no keys of %v: %v", k.Algorithms(), err)
			continue
		}
		b.secrets = append(b.secrets, openedSecret{k, key})
		for _, a := range k.Algorithms() {
			if err := b.answers(k, a, key); err != nil {
				f.watch(err)
				f.note("no %s: %v", a, err)
				continue
			}
			b.traits.algorithms = append(b.traits.algorithms, a)
		}
	}
	b.findResident(f)
}

// asImposed checks a key of a kind that was opened. A private key with more usages than were
// asked for is taken only from a token of which that is accepted (NSS).
func (b *bench) asImposed(k hsm.Kind, key pkcs11.ObjectHandle) error {
	want := secretKeyTemplate(k, false)
	err := b.check(key, want)
	if !errors.Is(err, hsm.ErrCorrupt) || k.Class == hsm.ClassHMAC {
		return err
	}
	if other := b.check(key, want.less(want.unset(privateUsages()))); other != nil {
		return other
	}
	if b.loose == nil {
		b.loose = map[hsm.Kind]error{}
	}
	b.loose[k] = err
	if !b.accepts(probeUsages) {
		return err
	}
	return nil
}

// usagesImposed tells of the kinds of private keys that the token opens with more usages than
// it is asked for. If that is not accepted there are no keys of these kinds.
func (b *bench) usagesImposed(f *findings) {
	for k, err := range b.loose {
		if b.accepts(probeUsages) {
			f.fault("keys for %s: %v", k.Algorithms()[0], err)
		} else {
			f.note("keys for %s only if this weakness is accepted", k.Algorithms()[0])
		}
	}
}

// answers uses the known key of a kind and compares the answer with what it must be.
func (b *bench) answers(k hsm.Kind, a hsm.Algorithm, key pkcs11.ObjectHandle) error {
	known, err := ofKnown(k)
	if err != nil {
		return err
	}
	message := []byte("a message to find out whether the token has an algorithm")
	input, public := message, (*hsm.PublicKey)(nil)
	if known.spki != nil {
		if public, err = hsm.ParsePublicKey(known.spki, k); err != nil {
			return err
		}
		input = hsm.Digest(a.Hash(), message)
	}
	if k.Decrypts {
		if input, err = public.Encrypt(a, message); err != nil {
			return err
		}
	}
	var output []byte
	err = b.operation(func(h pkcs11.SessionHandle) error {
		output, err = (&session{link: b.link, h: h}).apply(a, key, input)
		return err
	})
	switch {
	case err != nil:
		return err
	case k.Decrypts && !slices.Equal(output, message), a.Signs() && public.Verify(a, input, output) != nil:
		return fmt.Errorf("%w: %s", errAnswer, a)
	case k.Class == hsm.ClassHMAC:
		h := hmac.New(a.Hash().New, known.mac)
		h.Write(message)
		if !hmac.Equal(h.Sum(nil), output) {
			return errAnswer
		}
	}
	return nil
}

// openedSecret is the known key of a kind as it is when opened.
type openedSecret struct {
	kind hsm.Kind
	key  pkcs11.ObjectHandle
}
