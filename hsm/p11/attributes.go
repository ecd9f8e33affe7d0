//go:build cgo

package p11

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// labelScratch names the one object that a self-test may put into the token. It is not one
// of ours: what an earlier attempt left behind is no unknown object.
const labelScratch = "quorumkms-scratch"

// protections are the attributes by which an object is protected from whoever has the
// PIN, with a value that says something. Some tokens do not know all of them.
func protections() template {
	return template{
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_WRAP_WITH_TRUSTED, true),
		mechanisms(pkcs11.CKM_AES_ECB),
		{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: template{flag(pkcs11.CKA_SENSITIVE, true)}},
		flag(ckaCopyable, false), flag(pkcs11.CKA_MODIFIABLE, false),
	}
}

// attributes finds out which protections the token's objects do not keep. Session objects
// tell without a trace; token objects are made, and destroyed again, only if the operator
// accepts that some are missing (NSS keeps fewer in its database than in memory).
func (b *bench) attributes(f *findings) {
	q, err := b.survey(b.writes && b.accepts(probeAttributes), func(kind uint, token bool) {
		where := "a session"
		if token {
			where = "the token"
		}
		f.fault("%s is not kept by objects of %s", attributeName(kind), where)
	})
	if !f.must("objects with protections", err) {
		return
	}
	if q.ownIDs {
		f.fault("keys of the token with one CKA_ID are one key")
	}
	b.traits.quirks, b.link.quirks = q, q
}

// survey finds the quirks of a token; told hears of each attribute. With writes it makes
// token objects too.
func (s *session) survey(writes bool, told func(kind uint, token bool)) (q quirks, err error) {
	for _, token := range []bool{false, true} {
		if token && !writes {
			return q, nil
		}
		lacks, err := s.lacking(token)
		if err != nil {
			return quirks{}, err
		}
		for _, kind := range lacks {
			told(kind, token)
		}
		q.lacks = append(q.lacks, lacks...)
	}
	slices.Sort(q.lacks)
	q.lacks = slices.Compact(q.lacks)
	q.ownIDs, err = s.mergesIDs()
	return q, err
}

// mergesIDs makes two keys in the token that differ in all but class and CKA_ID.
func (s *session) mergesIDs() (merges bool, err error) {
	var made []pkcs11.ObjectHandle
	defer func() { err = errors.Join(err, s.destroyAll(made)) }()
	for i := range byte(2) {
		o, err := s.create(known(pkcs11.CKK_AES, bytes.Repeat([]byte{i}, keySize), pkcs11.CKA_ENCRYPT).with(
			flag(pkcs11.CKA_TOKEN, true), named(labelScratch), octets(pkcs11.CKA_ID, []byte(labelScratch))))
		if err != nil && (isLoss(code(err)) || i == 0) {
			return false, err
		}
		if err != nil || slices.Contains(made, o) {
			return true, nil
		}
		made = append(made, o)
	}
	found, err := s.labelled(pkcs11.CKO_SECRET_KEY, labelScratch)
	return len(found) != len(made), err
}

// fit is what the template of an object is on a token with such quirks. Domain keys, which
// share the cluster's id, have ids of their own where they must.
func (q quirks) fit(t template) template {
	t = t.less(q.lacks)
	if !q.ownIDs {
		return t
	}
	for _, a := range t {
		if a.kind == pkcs11.CKA_LABEL {
			_, _, ofDomain := parseName(string(a.value))
			_, _, ofTwin := parseTwinName(string(a.value))
			if ofDomain || ofTwin {
				id := sha256.Sum256(a.value)
				return append(t.less([]uint{pkcs11.CKA_ID}), octets(pkcs11.CKA_ID, id[:]))
			}
		}
	}
	return t
}

// lacking are the protections that a secret key in the token, or in the session, does not
// keep.
func (s *session) lacking(token bool) ([]uint, error) {
	if token {
		left, err := s.labelled(pkcs11.CKO_SECRET_KEY, labelScratch)
		if err = errors.Join(err, s.destroyAll(left)); err != nil {
			return nil, err
		}
	}
	if lacks, err := s.keeps(token, protections()); err != nil || lacks == nil {
		return nil, err
	}
	var all []uint
	for _, a := range protections() {
		lacks, err := s.keeps(token, template{a})
		if err != nil {
			return nil, err
		}
		all = append(all, lacks...)
	}
	return all, nil
}

// keeps makes a key with some attributes; it returns those that it has not then: all, if
// the token does not make it.
func (s *session) keeps(token bool, attributes template) (lacks []uint, err error) {
	t := known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_ENCRYPT).with(flag(pkcs11.CKA_TOKEN, token), named(labelScratch))
	for _, a := range attributes {
		lacks = append(lacks, a.kind)
	}
	o, err := s.create(append(t.less(lacks), attributes...))
	switch rv := code(err); {
	case err == nil:
		lacks, err = s.differing(o, attributes)
		return lacks, errors.Join(err, s.destroy(o))
	case isLoss(rv), rv == pkcs11.CKR_OK:
		return nil, err
	default: // the token does not take it so
		return lacks, nil
	}
}

func attributeName(kind uint) string {
	return map[uint]string{
		pkcs11.CKA_SENSITIVE: "SENSITIVE", pkcs11.CKA_WRAP_WITH_TRUSTED: "WRAP_WITH_TRUSTED",
		pkcs11.CKA_ALLOWED_MECHANISMS: "ALLOWED_MECHANISMS", pkcs11.CKA_UNWRAP_TEMPLATE: "UNWRAP_TEMPLATE",
		ckaCopyable: "COPYABLE=F", pkcs11.CKA_MODIFIABLE: "MODIFIABLE=F",
	}[kind]
}

// ckaNSSDB is CKA_NSS_DB of NSS: the public point of a private EC key.
const ckaNSSDB = 0xd5a0db00

// opened is the template of a key of a reference in a session.
func (t traits) opened(ref hsm.Ref, extractable bool) (template, error) {
	point, err := t.point(ref.Kind, ref.SPKI)
	return join(point, templateOf(ref.Kind, extractable)), err
}

// point is what a token wants to know beyond the template of an EC key that it unwraps:
// the public point, of those that want it.
func (t traits) point(k hsm.Kind, spki []byte) (template, error) {
	if !t.ecPoint || k.Class != hsm.ClassEC {
		return nil, nil
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", hsm.ErrCorrupt, err)
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: public key of another kind", hsm.ErrCorrupt)
	}
	point, err := public.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", hsm.ErrCorrupt, err)
	}
	return template{octets(ckaNSSDB, point)}, nil
}
