//go:build cgo

package p11

import (
	"fmt"
	"maps"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// The attacks on master keys that are not AES.

func (o openedSecret) String() string {
	return fmt.Sprintf("key for %s", o.kind.Algorithms()[0])
}

// secretMisused tries every use of a key but those of its own algorithms. One thing cannot
// be refused: PKCS #1 v1.5 is one mechanism for signatures and for decryption, and the
// domain key, whose template is of the first release, imposes both usages on RSA keys.
func (b *bench) secretMisused(f *findings, o openedSecret) {
	own := map[uint]bool{}
	for _, a := range o.kind.Algorithms() {
		own[mechanismOf(a)] = true
	}
	signing := map[string]uint{
		"PKCS #1 v1.5": pkcs11.CKM_RSA_PKCS, "PKCS #1 v1.5 with SHA-256": pkcs11.CKM_SHA256_RSA_PKCS, "raw RSA": pkcs11.CKM_RSA_X_509,
		"ECDSA": pkcs11.CKM_ECDSA, "ECDSA with SHA-1": pkcs11.CKM_ECDSA_SHA1,
	}
	if o.kind.Class == hsm.ClassHMAC { // with a private key NSS crashes: it has no value to look at
		maps.Copy(signing, map[string]uint{
			"HMAC-SHA1": pkcs11.CKM_SHA_1_HMAC, "HMAC-SHA256": pkcs11.CKM_SHA256_HMAC, "HMAC-SHA384": pkcs11.CKM_SHA384_HMAC,
			"HMAC-SHA512": pkcs11.CKM_SHA512_HMAC, "CMAC": pkcs11.CKM_AES_CMAC,
		})
	}
	for name, m := range signing {
		if !own[m] {
			f.refuse(o.String()+" signs "+name, b.signs(mechanism(m), o.key))
		}
		if !own[m] || o.kind.Class != hsm.ClassRSA {
			f.refuse(o.String()+" decrypts "+name, b.decrypts(mechanism(m), o.key))
		}
	}
	pss := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32))}
	if !own[pkcs11.CKM_RSA_PKCS_PSS] {
		f.refuse(o.String()+" signs PSS", b.signs(pss, o.key))
	}
	for _, hash := range []uint8{hsm.OAEPSHA1, hsm.OAEPSHA256} {
		f.refuse(o.String()+" signs OAEP", b.signs(oaepWith(hash), o.key))
		if !o.kind.Decrypts {
			f.refuse(o.String()+" decrypts OAEP", b.decrypts(oaepWith(hash), o.key))
		}
	}
	for name, m := range b.ciphers() {
		f.refuse(o.String()+" encrypts "+name, b.encrypts(m, o.key))
		f.refuse(o.String()+" decrypts "+name, b.decrypts(m, o.key))
	}
	for name, m := range b.rsaMechanisms() {
		opened, err := b.unwrap(m, o.key, make([]byte, 256), plain(pkcs11.CKK_AES))
		b.obtains(f, o.String()+" unwraps, "+name, opened, err, nil)
	}
	for name, m := range derivations() {
		derived, err := b.derive(m, o.key, plain(pkcs11.CKK_GENERIC_SECRET))
		b.obtains(f, o.String()+" derives, "+name, derived, err, nil)
	}
}

func (b *bench) secretsMisused(f *findings) {
	for _, o := range b.secrets {
		b.secretMisused(f, o)
	}
}

func (b *bench) secretsLeave(f *findings) {
	for _, o := range b.secrets {
		b.leaves(f, o.String(), o.key)
		for _, kind := range []uint{pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1, pkcs11.CKA_EXPONENT_1, pkcs11.CKA_COEFFICIENT} {
			if value, err := b.attribute(o.key, kind); o.kind.Class == hsm.ClassRSA && (err == nil && len(value) > 0) {
				f.fault("%s read in %#x succeeds", o, kind)
			}
		}
		_, err := b.wrap(b.traits.keyWrap(), b.domain[hsm.KeyKind(o.kind.Class)], o.key)
		f.refuse(o.String()+" wrapped with a domain key", err)
	}
}

func (b *bench) secretsAltered(f *findings) {
	for _, o := range b.secrets {
		b.altered(f, o.String(), o.key, template{
			flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_UNWRAP, true),
			flag(pkcs11.CKA_DERIVE, true), flag(pkcs11.CKA_MODIFIABLE, true), flag(ckaCopyable, true),
			mechanisms(pkcs11.CKM_RSA_X_509, pkcs11.CKM_SHA_1_HMAC, pkcs11.CKM_ECDH1_DERIVE),
		}, secretKeyTemplate(o.kind, false))
	}
}
