//go:build cgo

package p11

import (
	"crypto/ecdsa"
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
// tell without a trace; a token object is made, and destroyed again, only if the operator
// accepts that some are missing (NSS keeps fewer in its database than in memory).
func (b *bench) attributes(f *findings) {
	for _, token := range []bool{false, true} {
		if token && !b.accepts(probeAttributes) {
			continue
		}
		lacks, err := b.lacking(token)
		if !f.must("objects with protections", err) {
			return
		}
		for _, kind := range lacks {
			f.fault("%s is not kept by %s", attributeName(kind), map[bool]string{false: "objects of a session", true: "objects of the token"}[token])
		}
		b.traits.lacks = append(b.traits.lacks, lacks...)
	}
	slices.Sort(b.traits.lacks)
	b.traits.lacks = slices.Compact(b.traits.lacks)
	b.link.lacks = b.traits.lacks
}

// survey notes for a link of its own which attributes the token lacks, if it is accepted that
// some are missing.
func (s *session) survey(accept []string) error {
	if !slices.Contains(accept, probeAttributes) {
		return nil
	}
	for _, token := range []bool{false, true} {
		lacks, err := s.lacking(token)
		if err != nil {
			return err
		}
		s.link.lacks = append(s.link.lacks, lacks...)
	}
	return nil
}

// lacking are the protections that a secret key in the token, or in the session, does not
// keep.
func (s *session) lacking(token bool) ([]uint, error) {
	left, err := s.labelled(pkcs11.CKO_SECRET_KEY, labelScratch)
	if err = errors.Join(err, s.destroyAll(left)); err != nil {
		return nil, err
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
	case err != nil && (!isLoss(rv) && rv != pkcs11.CKR_OK):
		return lacks, nil
	case err != nil:
		return nil, err
	}
	lacks, err = s.differing(o, attributes)
	return lacks, errors.Join(err, s.destroy(o))
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
