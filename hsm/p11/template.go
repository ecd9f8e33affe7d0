//go:build cgo

package p11

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"runtime"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// attribute is one entry of a template. A nested template has no value of its own.
type attribute struct {
	kind   uint
	value  []byte
	nested template
}

// template is the attributes of an object. MODIFIABLE=F comes last: SoftHSM applies
// the entries of an unwrapped key in order and refuses those behind it. Templates and the
// values in them are shared: nobody changes one in place.
type template []attribute

// encode is t for the binding. The pointers in it stay valid until pin is released.
func (t template) encode(pin *runtime.Pinner) []*pkcs11.Attribute {
	entries, encoded := make([]pkcs11.Attribute, len(t)), make([]*pkcs11.Attribute, len(t))
	for i, a := range t {
		entries[i] = pkcs11.Attribute{Type: a.kind, Value: a.value}
		if a.nested != nil {
			entries[i].Value = rawTemplate(pin, a.nested)
		}
		encoded[i] = &entries[i]
	}
	return encoded
}

// equal tells whether both have the same entries, in any order.
func (t template) equal(other template) bool {
	if len(t) != len(other) {
		return false
	}
	values := make(map[uint][]byte, len(t))
	for _, a := range other {
		values[a.kind] = a.value
	}
	for _, a := range t {
		if v, ok := values[a.kind]; !ok || !bytes.Equal(v, a.value) {
			return false
		}
	}
	return len(values) == len(t)
}

// unset are those of the flags that t does not set.
func (t template) unset(flags []uint) (off []uint) {
	for _, kind := range flags {
		if !t.sets(kind) {
			off = append(off, kind)
		}
	}
	return off
}

// sets tells whether the flag is on in t.
func (t template) sets(kind uint) bool {
	for _, a := range t {
		if a.kind == kind {
			return bytes.Equal(a.value, boolean(true))
		}
	}
	return false
}

// with is a copy of t in which the given entries replace those of the same kind, or
// come first.
func (t template) with(entries ...attribute) template {
	result := append(make(template, 0, len(entries)+len(t)), entries...)
	for _, a := range t {
		if !slices.ContainsFunc(entries, func(e attribute) bool { return e.kind == a.kind }) {
			result = append(result, a)
		}
	}
	return result
}

// less is t without some kinds of attributes.
func (t template) less(kinds []uint) template {
	if len(kinds) == 0 {
		return t
	}
	return slices.DeleteFunc(slices.Clone(t), func(a attribute) bool { return slices.Contains(kinds, a.kind) })
}

func flag(kind uint, on bool) attribute {
	return attribute{kind: kind, value: boolean(on)}
}

var ckTrue, ckFalse = []byte{1}, []byte{0}

// boolean is a CK_BBOOL in memory.
func boolean(on bool) []byte {
	if on {
		return ckTrue
	}
	return ckFalse
}

// ulong is a CK_ULONG in memory.
func ulong(v uint) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(v)) }

func number(kind, v uint) attribute        { return attribute{kind: kind, value: ulong(v)} }
func octets(kind uint, v []byte) attribute { return attribute{kind: kind, value: v} }
func named(v string) attribute             { return octets(pkcs11.CKA_LABEL, []byte(v)) }

func mechanisms(allowed ...uint) attribute {
	var value []byte
	for _, m := range allowed {
		value = append(value, ulong(m)...)
	}
	return attribute{kind: pkcs11.CKA_ALLOWED_MECHANISMS, value: value}
}

// ckaCopyable is CKA_COPYABLE of PKCS #11 v2.40, which the binding lacks.
const ckaCopyable = 0x171

// usages sets the flags in on and clears all others in of.
func usages(of []uint, on ...uint) template {
	t := make(template, len(of))
	for i, kind := range of {
		t[i] = flag(kind, slices.Contains(on, kind))
	}
	return t
}

// The usage flags of each class of object.
func secretUsages() []uint {
	return []uint{
		pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY,
		pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	}
}

func privateUsages() []uint {
	return []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
}

func publicUsages() []uint {
	return []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_VERIFY, pkcs11.CKA_VERIFY_RECOVER, pkcs11.CKA_WRAP}
}

// frozen ends every template.
func frozen() template {
	return template{flag(ckaCopyable, false), flag(pkcs11.CKA_MODIFIABLE, false)}
}

// join is a copy of all parts, with no room behind it.
func join(parts ...template) template { return slices.Clip(slices.Concat(parts...)) }

// traits is what the self-test found out about a token.
type traits struct {
	kwp        uint    // number of the mechanism that is RFC 5649
	oaep       []uint8 // the hashes it has for OAEP; transfer keys ask for the first
	nestedList bool    // honours ALLOWED_MECHANISMS inside UNWRAP_TEMPLATE
	algorithms []hsm.Algorithm
	resident   bool // has what resident keys need
	draw       int  // random bytes that it gives at once
	inParts    bool // an encryption of blocks has as many parts as wanted
	cloned     bool // no domain key can be wrapped out, see Config
	ecPoint    bool // wants the public point of an EC key that it unwraps
	quirks
}

// quirks are how a token's objects differ from those of others, where that is accepted.
type quirks struct {
	lacks  []uint // attributes that they do not keep
	ownIDs bool   // two of the same class cannot have the same CKA_ID
}

func (t traits) keyWrap() []*pkcs11.Mechanism { return mechanism(t.kwp) }

// oaepNames is oaep for people.
func (t traits) oaepNames() string {
	var names []string
	for _, hash := range t.oaep {
		names = append(names, hsm.OAEPName(hash))
	}
	return strings.Join(names, " and ")
}

// oaepWith is RSA-OAEP with the hash of a DKX1 message.
func oaepWith(hash uint8) []*pkcs11.Mechanism {
	of := crypto.SHA1
	if hash == hsm.OAEPSHA256 {
		of = crypto.SHA256
	}
	h, mgf := hashMechanisms(of)
	params := pkcs11.NewOAEPParams(h, mgf, pkcs11.CKZ_DATA_SPECIFIED, nil)
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, params)}
}

// unwrapTemplate is what a domain key imposes on the keys it unwraps: the usage of
// their class and no other.
func (t traits) unwrapTemplate(c hsm.Class) template {
	sealed := template{flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, false)}
	switch c {
	case hsm.ClassAES:
		if t.nestedList {
			sealed = append(sealed, mechanisms(pkcs11.CKM_AES_ECB))
		}
		return join(sealed, usages(secretUsages(), pkcs11.CKA_ENCRYPT), frozen())
	case hsm.ClassResident:
		if t.nestedList {
			sealed = append(sealed, mechanisms(pkcs11.CKM_AES_GCM, pkcs11.CKM_AES_CMAC))
		}
		return join(sealed, usages(secretUsages(), residentUsages()...), frozen())
	case hsm.ClassHMAC:
		return join(sealed, usages(secretUsages(), pkcs11.CKA_SIGN), frozen())
	case hsm.ClassRSA:
		return join(sealed, usages(privateUsages(), pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT), frozen())
	case hsm.ClassEC:
		return join(sealed, usages(privateUsages(), pkcs11.CKA_SIGN), frozen())
	case hsm.ClassImportRSA:
		return join(sealed, usages(privateUsages(), pkcs11.CKA_UNWRAP), frozen())
	default: // of no class: of no use
		return join(sealed, usages(secretUsages()), frozen())
	}
}

// secret is the common part of the secret keys that live in the token or a session.
func secret(keyType uint, token, extractable bool) template {
	return template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), number(pkcs11.CKA_KEY_TYPE, keyType),
		flag(pkcs11.CKA_TOKEN, token), flag(pkcs11.CKA_PRIVATE, true),
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, extractable),
	}
}

// plain is the template of a secret key in a session that hides nothing.
func plain(keyType uint, on ...uint) template {
	return join(secret(keyType, false, true).with(flag(pkcs11.CKA_SENSITIVE, false)), usages(secretUsages(), on...))
}

// known is plain for a key with a known value.
func known(keyType uint, value []byte, on ...uint) template {
	return join(plain(keyType, on...), template{octets(pkcs11.CKA_VALUE, value)})
}

// domainKey is the template of a key of a domain generation: a wrapping key, the
// domain MAC key or the log root key. In the profile generic it can be wrapped out, with
// a key that the Security Officer trusts; in the profile cloned it cannot.
func (t traits) domainKey(kind hsm.KeyKind, name template, token bool) template {
	trustedOnly := flag(pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	if kind == hsm.KindMAC || kind == hsm.KindLog {
		return join(secret(pkcs11.CKK_GENERIC_SECRET, token, !t.cloned), name,
			usages(secretUsages(), pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY),
			template{trustedOnly, mechanisms(pkcs11.CKM_SHA256_HMAC)}, frozen())
	}
	return join(secret(pkcs11.CKK_AES, token, !t.cloned), name,
		usages(secretUsages(), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
		template{
			trustedOnly, mechanisms(t.kwp),
			{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: t.unwrapTemplate(hsm.Class(kind))},
		}, frozen())
}

// twin is the template of the twin of a wrapping key. It wraps nothing, and unwraps keys
// that can be wrapped again; for the rest they are as the wrapping key imposes.
func (t traits) twin(kind hsm.KeyKind, name template, token bool) template {
	var imposed template
	for _, a := range t.unwrapTemplate(hsm.Class(kind)) {
		if a.kind != pkcs11.CKA_EXTRACTABLE {
			imposed = append(imposed, a)
		}
	}
	return join(secret(pkcs11.CKK_AES, token, false), name,
		usages(secretUsages(), pkcs11.CKA_UNWRAP),
		template{
			flag(pkcs11.CKA_WRAP_WITH_TRUSTED, true), mechanisms(t.kwp),
			{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: imposed},
		}, frozen())
}

// masterKey is the template of a customer master key of class AES in a session. An
// opened key has every entry that the domain key imposes: tokens refuse a request
// without them. While it is being made it is extractable, so that it can be wrapped.
func masterKey(extractable bool) template { return masterKeys.of(extractable) }

var masterKeys = aesKeys(usages(secretUsages(), pkcs11.CKA_ENCRYPT), pkcs11.CKM_AES_ECB)

// residentTemplate is masterKey of a resident key. It signs with CMAC, which only the
// commitment needs.
func residentTemplate(extractable bool) template { return residentKeys.of(extractable) }

var residentKeys = aesKeys(usages(secretUsages(), residentUsages()...), pkcs11.CKM_AES_GCM, pkcs11.CKM_AES_CMAC)

// aesTemplates are those of an AES key in a session, while it is being made and once it is open.
type aesTemplates struct{ made, opened template }

func (t aesTemplates) of(extractable bool) template {
	if extractable {
		return t.made
	}
	return t.opened
}

func aesKeys(usage template, allowed ...uint) aesTemplates {
	of := func(extractable bool) template {
		return join(secret(pkcs11.CKK_AES, false, extractable), usage, template{mechanisms(allowed...)}, frozen())
	}
	return aesTemplates{made: of(true), opened: of(false)}
}

func residentUsages() []uint {
	return []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN}
}

// templateOf is the template of a key of a kind in a session.
func templateOf(k hsm.Kind, extractable bool) template {
	switch k.Class {
	case hsm.ClassAES:
		return masterKey(extractable)
	case hsm.ClassResident:
		return residentTemplate(extractable)
	default:
		return secretKeyTemplate(k, extractable)
	}
}

// arriving is what a transfer key imposes on the domain keys it unwraps: what all of
// them have in common. It keeps whoever has the recipient's PIN from opening the
// message with other attributes and wrapping the key out. (It cannot impose their
// UNWRAP_TEMPLATE: SoftHSM takes no template inside a template inside a template.)
func arriving() template {
	return join(template{
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		flag(pkcs11.CKA_ENCRYPT, false), flag(pkcs11.CKA_DECRYPT, false), flag(pkcs11.CKA_DERIVE, false),
	}, frozen())
}

// transferPrivate is the template of the private half of a transfer key.
func transferPrivate(name template, token bool) template {
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		flag(pkcs11.CKA_TOKEN, token), flag(pkcs11.CKA_PRIVATE, true),
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, false),
	}, name, usages(privateUsages(), pkcs11.CKA_UNWRAP), template{
		mechanisms(pkcs11.CKM_RSA_PKCS_OAEP),
		{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: arriving()},
	}, frozen())
}

// rsaPublic is the template of a public RSA key that may wrap, with OAEP only.
func rsaPublic(name template, token bool) template {
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		flag(pkcs11.CKA_TOKEN, token), flag(pkcs11.CKA_PRIVATE, false),
	}, name, usages(publicUsages(), pkcs11.CKA_WRAP), template{mechanisms(pkcs11.CKM_RSA_PKCS_OAEP)}, frozen())
}
