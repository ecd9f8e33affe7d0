//go:build cgo

package p11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// existingTemplates reads back every object of ours that is in the token.
func (b *bench) existingTemplates(f *findings) {
	count := 0
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		objects, err := b.existing(class)
		if !f.must("list objects", err) {
			return
		}
		for o, label := range objects {
			want, err := b.wanted(o, class, label)
			if err == nil {
				err = b.otherProfile(o, label, b.check(o, want))
			}
			f.must(label, err)
			count++
		}
	}
	f.note("%d objects", count)
}

// otherProfile says so if a domain key with wrong attributes is right for the transfer
// profile that is not configured.
func (b *bench) otherProfile(o pkcs11.ObjectHandle, label string, err error) error {
	id, kind, ok := parseName(label)
	other := b.traits
	other.cloned = !other.cloned
	if err == nil || !ok || b.check(o, other.domainKey(kind, id.name(kind), true)) != nil {
		return err
	}
	is, not := "generic", "cloned"
	if other.cloned {
		is, not = not, is
	}
	return fmt.Errorf("%w: it was made in the transfer profile %s, and %s is configured", hsm.ErrCorrupt, is, not)
}

// wanted is the template an object of ours must have.
func (b *bench) wanted(o pkcs11.ObjectHandle, class uint, label string) (template, error) {
	id, kind, isDomain := parseName(label)
	of, twinOf, isTwin := parseTwinName(label)
	switch {
	case class == pkcs11.CKO_SECRET_KEY && isDomain:
		return b.traits.domainKey(kind, id.name(kind), true), nil
	case class == pkcs11.CKO_SECRET_KEY && isTwin: // a rewrap was under way: it goes on
		return b.traits.twin(twinOf, of.twinName(twinOf), true), nil
	case class == pkcs11.CKO_PRIVATE_KEY && label == labelIdentity:
		return identityPrivate(true), nil
	case class == pkcs11.CKO_PUBLIC_KEY && label == labelIdentity:
		return identityPublic(true), nil
	case class == pkcs11.CKO_PRIVATE_KEY && label == labelTransfer:
		return transferPrivate(template{named(label)}, true), nil
	case class == pkcs11.CKO_PRIVATE_KEY && strings.HasPrefix(label, labelRecovery):
		return recoveryPrivate(strings.TrimPrefix(label, labelRecovery)), nil
	case class == pkcs11.CKO_PUBLIC_KEY && label == labelTrusted:
		spki, err := b.rsaPublic(o)
		return trustedTemplate(spki), err
	default:
		return nil, fmt.Errorf("%w: unknown object", hsm.ErrCorrupt)
	}
}

// unwrapsReadable asks domain keys to unwrap a key with more than its class allows:
// the scratch keys of every class, and those in the token.
func (b *bench) unwrapsReadable(f *findings) {
	payload := domain{}
	for _, class := range []hsm.Class{hsm.ClassAES, hsm.ClassResident, hsm.ClassHMAC} {
		payload[hsm.KeyKind(class)] = b.payload
	}
	_, ec, err := b.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN, identityPublic(false),
		identityPrivate(false).with(flag(pkcs11.CKA_EXTRACTABLE, true)))
	if !f.must("an extractable key pair", err) {
		return
	}
	for _, class := range []hsm.Class{hsm.ClassRSA, hsm.ClassEC, hsm.ClassImportRSA} {
		payload[hsm.KeyKind(class)] = ec
	}
	for kind, p := range payload {
		b.unwrapsWith(f, b.domain[kind], kind, p)
	}
	objects, err := b.existing(pkcs11.CKO_SECRET_KEY)
	f.must("list objects", err)
	for o, label := range objects {
		if _, kind, ok := parseName(label); ok && payload[kind] != 0 {
			b.unwrapsWith(f, o, kind, payload[kind])
		}
	}
}

// unwrapsWith wraps payload with a domain key and asks for it in every wrong way.
func (b *bench) unwrapsWith(f *findings, key pkcs11.ObjectHandle, kind hsm.KeyKind, payload pkcs11.ObjectHandle) {
	w, err := b.wrap(b.traits.keyWrap(), key, payload)
	if !f.must("wrap with a domain key", err) {
		return
	}
	imposed := b.traits.unwrapTemplate(hsm.Class(kind))
	class, keyType, usage := uint(pkcs11.CKO_SECRET_KEY), uint(pkcs11.CKK_AES), secretUsages()
	if kind != aesKind && kind != residentKind && kind != hsm.KeyKind(hsm.ClassHMAC) {
		class, keyType, usage = pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_EC, privateUsages()
	}
	asked := template{
		number(pkcs11.CKA_CLASS, class), number(pkcs11.CKA_KEY_TYPE, keyType),
		flag(pkcs11.CKA_TOKEN, false), flag(pkcs11.CKA_PRIVATE, true),
	}
	wrong := map[string]template{
		"readable":    join(asked, imposed.with(flag(pkcs11.CKA_SENSITIVE, false))),
		"extractable": join(asked, imposed.with(flag(pkcs11.CKA_EXTRACTABLE, true))),
		"both":        join(asked, imposed.with(flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true))),
		"modifiable":  join(asked, imposed.with(flag(pkcs11.CKA_MODIFIABLE, true))),
		"as it likes": join(asked, template{flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true)}),
		"unspecified": asked,
	}
	for _, u := range usage {
		if !imposed.sets(u) {
			wrong[fmt.Sprintf("with usage %#x", u)] = join(asked, imposed.with(flag(u, true)))
		}
	}
	for what, t := range wrong {
		o, err := b.unwrap(b.traits.keyWrap(), key, w, t)
		b.obtains(f, fmt.Sprintf("domain key of kind %d unwraps a key %s", kind, what), o, err, imposed)
	}
}

// mechanismsImposed asks domain keys for master keys that are free in their choice of
// mechanism.
func (b *bench) mechanismsImposed(f *findings) {
	b.mechanismsImposedBy(f, aesKind, b.wrapped, masterKey(false))
	if b.traits.resident {
		b.mechanismsImposedBy(f, residentKind, b.wrappedResident, residentTemplate(false))
	}
}

func (b *bench) mechanismsImposedBy(f *findings, kind hsm.KeyKind, wrapped []byte, imposed template) {
	for what, list := range map[string]attribute{
		"CBC":             mechanisms(pkcs11.CKM_AES_CBC),
		"ECB, GCM or CBC": mechanisms(pkcs11.CKM_AES_ECB, pkcs11.CKM_AES_GCM, pkcs11.CKM_AES_CBC),
	} {
		o, err := b.unwrap(b.traits.keyWrap(), b.domain[kind], wrapped, imposed.with(list))
		b.obtains(f, fmt.Sprintf("unwrap a master key of kind %d for %s", kind, what), o, err, imposed)
	}
	free := imposed[:0:0]
	for _, a := range imposed {
		if a.kind != pkcs11.CKA_ALLOWED_MECHANISMS {
			free = append(free, a)
		}
	}
	o, err := b.unwrap(b.traits.keyWrap(), b.domain[kind], wrapped, free)
	b.obtains(f, fmt.Sprintf("unwrap a master key of kind %d for any mechanism", kind), o, err, imposed)
}

// wrappings are ways to wrap with an AES key, with what they need.
func (b *bench) wrappings() map[string][]*pkcs11.Mechanism {
	iv := make([]byte, hsm.BlockSize)
	return map[string][]*pkcs11.Mechanism{
		"RFC 5649": b.traits.keyWrap(),
		"RFC 3394": mechanism(pkcs11.CKM_AES_KEY_WRAP),
		"ECB":      mechanism(pkcs11.CKM_AES_ECB),
		"CBC":      {pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, iv)},
		"CBC-PAD":  {pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_PAD, iv)},
	}
}

// rsaMechanisms are the ways to use an RSA key.
func (b *bench) rsaMechanisms() map[string][]*pkcs11.Mechanism {
	all := map[string][]*pkcs11.Mechanism{
		"PKCS #1 v1.5": mechanism(pkcs11.CKM_RSA_PKCS), "raw RSA": mechanism(pkcs11.CKM_RSA_X_509),
	}
	for _, hash := range b.traits.oaep {
		all["OAEP with "+hsm.OAEPName(hash)] = oaepWith(hash)
	}
	return all
}

// leaves tries to get a key out under the ordinary key and an untrusted public one.
func (b *bench) leaves(f *findings, what string, key pkcs11.ObjectHandle) {
	f.refuse(what+" read", b.reads(key))
	for name, m := range b.wrappings() {
		_, err := b.wrap(m, b.ordinary, key)
		f.refuse(what+" wrapped with a known key, "+name, err)
	}
	for name, m := range b.rsaMechanisms() {
		_, err := b.wrap(m, b.public, key)
		f.refuse(what+" wrapped with an untrusted public key, "+name, err)
	}
}

// domainKeyLeaves tries it with every kind of domain key. The keys in the token are
// tried too, under a key that nobody knows and that is gone afterwards.
func (b *bench) domainKeyLeaves(f *findings) {
	_, err := b.wrap(b.traits.keyWrap(), b.ordinary, b.payload)
	f.must("wrap an ordinary key", err)
	for kind, key := range b.domain {
		what := fmt.Sprintf("domain key of kind %d", kind)
		b.leaves(f, what, key)
		_, err := b.wrap(b.traits.keyWrap(), b.domain[aesKind], key)
		f.refuse(what+" wrapped with a domain key", err)
	}
	unknown, err := b.generate(pkcs11.CKM_AES_KEY_GEN, secret(pkcs11.CKK_AES, false, false).with(
		number(pkcs11.CKA_VALUE_LEN, keySize), flag(pkcs11.CKA_WRAP, true)))
	if !f.must("a wrapping key", err) {
		return
	}
	objects, err := b.existing(pkcs11.CKO_SECRET_KEY)
	f.must("list objects", err)
	for o, label := range objects {
		_, err := b.wrap(b.traits.keyWrap(), unknown, o)
		f.refuse(label+" wrapped with an ordinary key", err)
		f.refuse(label+" read", b.reads(o))
	}
}

// ciphers are ways to use an AES key other than ECB.
func (b *bench) ciphers() map[string][]*pkcs11.Mechanism {
	iv := make([]byte, hsm.BlockSize)
	counter := append(ulong(8*hsm.BlockSize), iv...)
	return map[string][]*pkcs11.Mechanism{
		"CBC":     {pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, iv)},
		"CBC-PAD": {pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_PAD, iv)},
		"CTR":     {pkcs11.NewMechanism(pkcs11.CKM_AES_CTR, counter)},
	}
}

// derivations are ways to derive a key that need no pointers in their parameters.
func derivations() map[string][]*pkcs11.Mechanism {
	return map[string][]*pkcs11.Mechanism{
		"SHA-256":     mechanism(pkcs11.CKM_SHA256_KEY_DERIVATION),
		"extract key": {pkcs11.NewMechanism(pkcs11.CKM_EXTRACT_KEY_FROM_KEY, ulong(0))},
	}
}

// misused tries every use of a key but the one that allowed names. What it unwraps it
// asks for as opened.
func (b *bench) misused(f *findings, what string, key pkcs11.ObjectHandle, allowed string, opened template) {
	ecb := map[string][]*pkcs11.Mechanism{"ECB": mechanism(pkcs11.CKM_AES_ECB)}
	for _, list := range []map[string][]*pkcs11.Mechanism{ecb, b.ciphers()} {
		for name, m := range list {
			if name != allowed {
				f.refuse(what+" encrypts "+name, b.encrypts(m, key))
			}
			f.refuse(what+" decrypts "+name, b.decrypts(m, key))
		}
	}
	gcm := pkcs11.NewGCMParams(make([]byte, hsm.IVSize), nil, 8*hsm.TagSize)
	defer gcm.Free()
	for _, use := range []func([]*pkcs11.Mechanism, pkcs11.ObjectHandle) error{b.encrypts, b.decrypts} {
		f.refuse(what+" does GCM", use([]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, gcm)}, key))
	}
	for name, m := range map[string]uint{"CMAC": pkcs11.CKM_AES_CMAC, "HMAC": pkcs11.CKM_SHA_1_HMAC, "HMAC-SHA512": pkcs11.CKM_SHA512_HMAC} {
		f.refuse(what+" signs "+name, b.signs(mechanism(m), key))
	}
	b.wrapsNothing(f, what, key, allowed, opened)
}

// wrapsNothing tries to wrap, unwrap and derive with a key.
func (b *bench) wrapsNothing(f *findings, what string, key pkcs11.ObjectHandle, allowed string, opened template) {
	for name, m := range b.wrappings() {
		if name == allowed {
			continue
		}
		w, err := b.wrap(m, key, b.payload)
		f.refuse(what+" wraps, "+name, err)
		if err != nil {
			w = make([]byte, keySize)
		}
		o, err := b.unwrap(m, key, w, opened)
		b.obtains(f, what+" unwraps, "+name, o, err, nil)
	}
	for name, m := range derivations() {
		o, err := b.derive(m, key, plain(pkcs11.CKK_GENERIC_SECRET))
		b.obtains(f, what+" derives, "+name, o, err, nil)
	}
}

func (b *bench) domainKeyOtherMechanism(f *findings) {
	b.misused(f, "domain key", b.domain[aesKind], "RFC 5649", masterKey(false))
	b.misused(f, "domain mac key", b.domain[hsm.KindMAC], "", plain(pkcs11.CKK_AES))
	b.misused(f, "log root key", b.domain[hsm.KindLog], "", plain(pkcs11.CKK_AES))
}

func (b *bench) masterKeyOtherMechanism(f *findings) {
	f.must("a master key encrypts blocks", b.encrypts(mechanism(pkcs11.CKM_AES_ECB), b.master))
	b.misused(f, "master key", b.master, "ECB", plain(pkcs11.CKK_AES))
	b.residentMisused(f)
	b.secretsMisused(f)
}

func (b *bench) masterKeyLeaves(f *findings) {
	b.leaves(f, "master key", b.master)
	_, err := b.wrap(b.traits.keyWrap(), b.domain[aesKind], b.master)
	f.refuse("master key wrapped with a domain key", err)
	b.residentLeaves(f)
	b.secretsLeave(f)
}

// altered tries to change a key, in place and in a copy.
func (b *bench) altered(f *findings, what string, key pkcs11.ObjectHandle, changes template, is template) {
	for _, change := range changes {
		t := template{change}
		f.refuse(fmt.Sprintf("%s changed in %#x", what, change.kind), b.set(key, t))
		o, err := b.copied(key, join(template{flag(pkcs11.CKA_TOKEN, false)}, t))
		b.obtains(f, fmt.Sprintf("%s copied with another %#x", what, change.kind), o, err, is)
		o, err = b.copied(key, join(template{flag(pkcs11.CKA_MODIFIABLE, true)}, t))
		b.obtains(f, fmt.Sprintf("%s copied modifiable with another %#x", what, change.kind), o, err, is)
	}
}

func (b *bench) domainKeyAltered(f *findings) {
	weak := template{flag(pkcs11.CKA_SENSITIVE, true)}
	loose := template{
		flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false), flag(pkcs11.CKA_TRUSTED, true),
		flag(pkcs11.CKA_DECRYPT, true), flag(pkcs11.CKA_MODIFIABLE, true), flag(ckaCopyable, true),
	}
	for kind, key := range b.domain {
		changes := loose
		if kind != hsm.KindMAC && kind != hsm.KindLog {
			changes = join(loose, template{
				mechanisms(pkcs11.CKM_AES_ECB), {kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: weak},
			})
		}
		b.altered(f, fmt.Sprintf("domain key of kind %d", kind), key, changes, b.traits.domainKey(kind, scratch(kind), false))
	}
}

func (b *bench) masterKeyAltered(f *findings) {
	b.altered(f, "master key", b.master, template{
		flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_DECRYPT, true),
		flag(pkcs11.CKA_WRAP, true), flag(pkcs11.CKA_DERIVE, true), flag(pkcs11.CKA_MODIFIABLE, true),
		flag(ckaCopyable, true), mechanisms(pkcs11.CKM_AES_CBC),
	}, masterKey(false))
	b.residentAltered(f)
	b.secretsAltered(f)
}

// trustedByUser tries to trust a key without the Security Officer.
func (b *bench) trustedByUser(f *findings) {
	trusted := flag(pkcs11.CKA_TRUSTED, true)
	o, err := b.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_WRAP).with(trusted))
	b.obtains(f, "the user creates a trusted AES key", o, err, template{flag(pkcs11.CKA_TRUSTED, false)})
	modulus, err := b.attribute(b.public, pkcs11.CKA_MODULUS)
	if f.must("read a modulus", err) {
		o, err = b.create(rsaPublic(nil, false).with(trusted,
			octets(pkcs11.CKA_MODULUS, modulus), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent())))
		b.obtains(f, "the user creates a trusted RSA key", o, err, template{flag(pkcs11.CKA_TRUSTED, false)})
	}
	f.refuse("the user trusts an AES key", b.set(b.ordinary, template{trusted}))
	f.refuse("the user trusts an RSA key", b.set(b.public, template{trusted}))
	o, err = b.copied(b.ordinary, template{trusted})
	b.obtains(f, "the user trusts a copy", o, err, template{flag(pkcs11.CKA_TRUSTED, false)})
}

// oaepKeyOtherMechanism uses the keys of a transfer with anything but OAEP. Only the
// Security Officer can make a trusted key: those in the token are tried, and one
// that is the same but for TRUSTED.
func (b *bench) oaepKeyOtherMechanism(f *findings) {
	trusted, err := b.existing(pkcs11.CKO_PUBLIC_KEY)
	f.must("list objects", err)
	keys := map[pkcs11.ObjectHandle]string{b.public: "untrusted key"}
	for o, label := range trusted {
		if label == labelTrusted {
			keys[o] = "trusted key"
		}
	}
	f.note("tried on %d trusted keys of the token and an untrusted one", len(keys)-1)
	pkcs1, raw := mechanism(pkcs11.CKM_RSA_PKCS), mechanism(pkcs11.CKM_RSA_X_509)
	for o, what := range keys {
		for name, m := range map[string][]*pkcs11.Mechanism{"PKCS #1 v1.5": pkcs1, "raw RSA": raw} {
			_, err := b.wrap(m, o, b.payload)
			f.refuse(what+" wraps, "+name, err)
			f.refuse(what+" encrypts, "+name, b.encrypts(m, o))
		}
	}
	want := b.traits.domainKey(aesKind, scratch(aesKind), false)
	for key, what := range b.receiving(f) {
		w, err := b.sealed(key, 0, ordinaryValue())
		if !f.must("encrypt outside the token", err) {
			return
		}
		o, err := b.unwrap(pkcs1, key, w, want)
		b.obtains(f, what+" unwraps, PKCS #1 v1.5", o, err, nil)
		for name, m := range b.rsaMechanisms() {
			f.refuse(what+" decrypts, "+name, b.decrypts(m, key))
			f.refuse(what+" signs, "+name, b.signs(m, key))
		}
	}
}

// receiving are the keys that domain keys arrive with: the scratch transfer key, and the
// recovery keys in the token, which have the same template and are there for long.
func (b *bench) receiving(f *findings) map[pkcs11.ObjectHandle]string {
	keys := map[pkcs11.ObjectHandle]string{b.private: "transfer key"}
	recovery, err := b.recoveryObjects()
	f.must("list recovery keys", err)
	for name, o := range recovery {
		keys[o] = "recovery key " + name
	}
	return keys
}

// transferReadable asks the keys that domain keys arrive with for one that can be read, wrapped
// out or used as a cipher, and tries to get those keys out themselves.
func (b *bench) transferReadable(f *findings) {
	unknown, err := b.generate(pkcs11.CKM_AES_KEY_GEN, secret(pkcs11.CKK_AES, false, false).with(
		number(pkcs11.CKA_VALUE_LEN, keySize), flag(pkcs11.CKA_WRAP, true)))
	if !f.must("a wrapping key", err) {
		return
	}
	for key, what := range b.receiving(f) {
		b.arrivesReadable(f, key, what)
		b.receivingKeyLeaves(f, key, what, unknown)
	}
	b.altered(f, "transfer key", b.private, template{
		flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_DECRYPT, true),
		mechanisms(pkcs11.CKM_RSA_PKCS),
		{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: template{flag(pkcs11.CKA_SENSITIVE, false)}},
	}, transferPrivate(nil, false))
}

func (b *bench) arrivesReadable(f *findings, key pkcs11.ObjectHandle, what string) {
	hash := b.traits.oaep[0]
	w, err := b.sealed(key, hash, ordinaryValue())
	if !f.must("encrypt outside the token", err) {
		return
	}
	want := b.traits.domainKey(aesKind, scratch(aesKind), false)
	o, err := b.unwrap(oaepWith(hash), key, w, want)
	if f.must("open a domain key", err) {
		f.must("an opened domain key", b.check(o, want))
		f.must("clean up", b.destroy(o))
	}
	wrong := map[string]template{
		"as it likes": {
			number(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			flag(pkcs11.CKA_TOKEN, false), flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true),
		},
	}
	for _, a := range arriving() {
		opposite := flag(a.kind, !arriving().sets(a.kind))
		wrong[fmt.Sprintf("with another %#x", a.kind)] = want.with(opposite)
	}
	for how, t := range wrong {
		o, err := b.unwrap(oaepWith(hash), key, w, t)
		b.obtains(f, what+" unwraps a domain key "+how, o, err, arriving())
	}
}

// receivingKeyLeaves tries to get a key out that domain keys arrive with: whoever has it opens
// what was wrapped for it. The keys in the token are wrapped with a key that nobody knows and
// that is gone afterwards.
func (b *bench) receivingKeyLeaves(f *findings, key pkcs11.ObjectHandle, what string, unknown pkcs11.ObjectHandle) {
	for _, kind := range []uint{pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1} {
		value, err := b.attribute(key, kind)
		if err == nil && len(value) == 0 {
			err = errAnswer
		}
		f.refuse(fmt.Sprintf("%s read in %#x", what, kind), err)
	}
	_, err := b.wrap(b.traits.keyWrap(), unknown, key)
	f.refuse(what+" wrapped with an ordinary key", err)
	_, err = b.wrap(b.traits.keyWrap(), b.domain[aesKind], key)
	f.refuse(what+" wrapped with a domain key", err)
}

// identityKeyLeaves tries to get a node identity key out.
func (b *bench) identityKeyLeaves(f *findings) {
	b.leaves(f, "identity key", b.nik)
	for name, m := range b.rsaMechanisms() {
		f.refuse("identity key decrypts, "+name, b.decrypts(m, b.nik))
	}
	b.altered(f, "identity key", b.nik, template{
		flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_DERIVE, true),
		mechanisms(pkcs11.CKM_ECDH1_DERIVE),
	}, identityPrivate(false))
}
