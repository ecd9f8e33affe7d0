//go:build cgo

package p11

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// scratchBits is the size of the RSA key of the self-test: a real transfer key has
// the same template and takes several times longer to make.
const scratchBits = 2048

// scratch names a scratch object like a domain key of no cluster.
func scratch(kind hsm.KeyKind) template { return domainID{}.name(kind) }

// setUp makes the scratch objects, and so shows that everything legitimate works:
// the refusals of the probes that follow mean something.
func (b *bench) setUp(f *findings) {
	var err error
	all := secretUsages()
	if b.ordinary, err = b.create(known(pkcs11.CKK_AES, ordinaryValue(), all...)); !f.must("a known key", err) {
		return
	}
	b.payload, err = b.generate(pkcs11.CKM_AES_KEY_GEN, masterKey(true).with(number(pkcs11.CKA_VALUE_LEN, keySize)))
	if !f.must("a master key", err) {
		return
	}
	if !b.setUpDomain(f) || !b.setUpTransfer(f) {
		return
	}
	if b.wrapped, err = b.wrap(b.traits.keyWrap(), b.domain[aesKind], b.payload); !f.must("wrap a master key", err) {
		return
	}
	b.master, err = b.unwrap(b.traits.keyWrap(), b.domain[aesKind], b.wrapped, masterKey(false))
	if f.must("open a master key", err) {
		f.must("an opened master key", b.check(b.master, masterKey(false)))
	}
	if _, b.nik, err = b.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN, identityPublic(false), identityPrivate(false)); f.must("an identity key", err) {
		f.must("an identity key", b.check(b.nik, identityPrivate(false)))
	}
}

const aesKind = hsm.KeyKind(hsm.ClassAES)

// setUpDomain makes one key of every kind. The token may not take a list of
// mechanisms inside a template.
func (b *bench) setUpDomain(f *findings) bool {
	b.traits.nestedList = true
	trial, err := b.generateDomainKey(aesKind, b.traits.domainKey(aesKind, scratch(aesKind), false))
	if err == nil {
		err = b.check(trial, b.traits.domainKey(aesKind, scratch(aesKind), false))
	}
	b.traits.nestedList = err == nil
	for _, kind := range hsm.DomainKinds() {
		want := b.traits.domainKey(kind, scratch(kind), false)
		if b.domain[kind], err = b.generateDomainKey(kind, want); !f.must("a domain key", err) {
			return false
		}
		if !f.must("a domain key", b.check(b.domain[kind], want)) {
			return false
		}
	}
	return true
}

// setUpTransfer makes a transfer key and finds out with which hashes the token has
// OAEP: with SHA-256 if it can, but a recipient may ask for the other.
func (b *bench) setUpTransfer(f *findings) bool {
	name := template{named(labelTransfer)}
	public, private := rsaPublic(name, false), transferPrivate(name, false)
	var err error
	b.public, b.private, err = b.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, public.with(newRSA(scratchBits)...), private)
	if !f.must("a transfer key", err) ||
		!f.must("a transfer key", b.check(b.private, private)) || !f.must("a transfer key", b.check(b.public, public)) {
		return false
	}
	b.traits.oaep = nil
	for _, hash := range []uint8{hsm.OAEPSHA256, hsm.OAEPSHA1} {
		if err = b.transfers(hash); err == nil {
			b.traits.oaep = append(b.traits.oaep, hash)
			continue
		}
		f.watch(err)
	}
	if b.traits.oaep == nil {
		return f.must("a transfer", err)
	}
	f.note("OAEP with %s", b.traits.oaepNames())
	return true
}

// transfers opens two keys as domain keys: one that the token wrapped with OAEP, and
// one that was encrypted outside, so that the hash is the one it is said to be.
func (b *bench) transfers(hash uint8) error {
	ours, err := b.wrap(oaepWith(hash), b.public, b.payload)
	if err != nil {
		return err
	}
	theirs, err := b.sealed(b.private, hash, ordinaryValue())
	if err != nil {
		return err
	}
	want := b.traits.domainKey(aesKind, scratch(aesKind), false)
	for _, w := range [][]byte{ours, theirs} {
		o, err := b.unwrap(oaepWith(hash), b.private, w, want)
		if err != nil {
			return err
		}
		if err := errors.Join(b.check(o, want), b.destroy(o)); err != nil {
			return err
		}
	}
	return nil
}

// sealed encrypts key for a private key outside the token: with OAEP, or PKCS #1 v1.5 if
// hash is 0.
func (b *bench) sealed(private pkcs11.ObjectHandle, hash uint8, key []byte) ([]byte, error) {
	spki, err := b.rsaPublic(private)
	if err != nil {
		return nil, err
	}
	return sealedFor(spki, hash, key)
}

// operation tries to begin something with a key. It uses a session of its own: what
// begins stays pending.
func (b *bench) operation(begin func(pkcs11.SessionHandle) error) error {
	h, err := b.link.open()
	if err != nil {
		return err
	}
	err = begin(h)
	if closing := b.ctx().CloseSession(h); closing != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, closing)
	}
	return err
}

func (b *bench) encrypts(m []*pkcs11.Mechanism, key pkcs11.ObjectHandle) error {
	return b.operation(func(h pkcs11.SessionHandle) error { return b.ctx().EncryptInit(h, m, key) })
}

func (b *bench) decrypts(m []*pkcs11.Mechanism, key pkcs11.ObjectHandle) error {
	return b.operation(func(h pkcs11.SessionHandle) error { return b.ctx().DecryptInit(h, m, key) })
}

func (b *bench) signs(m []*pkcs11.Mechanism, key pkcs11.ObjectHandle) error {
	return b.operation(func(h pkcs11.SessionHandle) error { return b.ctx().SignInit(h, m, key) })
}

// reads tries to read the value of a key.
func (b *bench) reads(key pkcs11.ObjectHandle) error {
	value, err := b.attribute(key, pkcs11.CKA_VALUE)
	if err == nil && len(value) == 0 {
		return errors.New("an empty value")
	}
	return err
}

// obtains notes an attack that yields an object. It has failed too if the object
// has the attributes of imposed: a token may replace what was asked for.
func (b *bench) obtains(f *findings, what string, o pkcs11.ObjectHandle, err error, imposed template) {
	if err != nil {
		f.refuse(what, err)
		return
	}
	switch err := b.exactly(o, imposed); {
	case imposed == nil, errors.Is(err, hsm.ErrCorrupt):
		f.fault("%s succeeds", what)
	case err == nil:
		f.refused++
	default:
		f.must(what, err)
	}
	f.must("clean up", b.destroy(o))
}

// existing lists the objects of ours that are in the token, by label.
func (b *bench) existing(class uint) (map[pkcs11.ObjectHandle]string, error) {
	objects, err := b.find(template{number(pkcs11.CKA_CLASS, class), flag(pkcs11.CKA_TOKEN, true)})
	if err != nil {
		return nil, err
	}
	ours := map[pkcs11.ObjectHandle]string{}
	for _, o := range objects {
		label, err := b.attribute(o, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(string(label), labelPrefix) {
			ours[o] = string(label)
		}
	}
	return ours, nil
}
