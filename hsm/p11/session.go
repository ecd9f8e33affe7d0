//go:build cgo

package p11

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// session is a session of a link: in a pool, or taken by one goroutine.
type session struct {
	link *link
	h    pkcs11.SessionHandle
	use
}

func (s *session) ctx() counted { return counted{s.link.lib.ctx, s.link.meter, s} }

// encode is what objects of this token are made with.
func (s *session) encode(t template, pin *runtime.Pinner) []*pkcs11.Attribute {
	return s.link.quirks.fit(t).encode(pin)
}

func mechanism(m uint) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)}
}

// create makes an object with a known value.
func (s *session) create(t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	o, err := s.ctx().CreateObject(s.h, s.encode(t, &pin))
	if err != nil {
		return 0, fmt.Errorf("create object: %w", err)
	}
	return o, nil
}

func (s *session) generate(m uint, t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	o, err := s.ctx().GenerateKey(s.h, mechanism(m), s.encode(t, &pin))
	if err != nil {
		return 0, fmt.Errorf("generate key: %w", err)
	}
	return o, nil
}

func (s *session) generatePair(m uint, public, private template) (pub, priv pkcs11.ObjectHandle, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	defer s.takesLong()()
	pub, priv, err = s.ctx().GenerateKeyPair(s.h, mechanism(m), s.encode(public, &pin), s.encode(private, &pin))
	if err != nil {
		return 0, 0, fmt.Errorf("generate key pair: %w", err)
	}
	return pub, priv, nil
}

func (s *session) wrap(m []*pkcs11.Mechanism, with, key pkcs11.ObjectHandle) ([]byte, error) {
	var b []byte
	var err error
	switch m[0].Mechanism {
	case pkcs11.CKM_AES_KEY_WRAP, ckmAESKeyWrapPad, ckmAESKeyWrapKWP:
		b, err = counts(s, hsm.CallWrap, func() ([]byte, error) { return s.link.lib.native.wrapKey(s.h, m[0].Mechanism, with, key) })
	default:
		b, err = s.ctx().WrapKey(s.h, m, with, key)
	}
	if err != nil {
		return nil, fmt.Errorf("wrap key: %w", err)
	}
	return b, nil
}

func (s *session) unwrap(m []*pkcs11.Mechanism, with pkcs11.ObjectHandle, key []byte, t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	o, err := s.ctx().UnwrapKey(s.h, m, with, key, s.encode(t, &pin))
	if err != nil {
		return 0, fmt.Errorf("unwrap key: %w", err)
	}
	return o, nil
}

func (s *session) destroy(o pkcs11.ObjectHandle) error {
	if err := s.ctx().DestroyObject(s.h, o); err != nil {
		return fmt.Errorf("destroy object: %w", err)
	}
	return nil
}

func (s *session) sign(m []*pkcs11.Mechanism, key pkcs11.ObjectHandle, message []byte) ([]byte, error) {
	if err := s.ctx().SignInit(s.h, m, key); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig, err := s.ctx().Sign(s.h, message)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

// mac is HMAC-SHA256.
func (s *session) mac(key pkcs11.ObjectHandle, message []byte) ([]byte, error) {
	return s.sign(mechanism(pkcs11.CKM_SHA256_HMAC), key, message)
}

func (s *session) encryptBlocks(key pkcs11.ObjectHandle, dst, src []byte) error {
	began := time.Now()
	err := s.link.lib.native.encryptECB(s.h, key, dst, src)
	s.ctx().done(hsm.CallEncrypt, began, err)
	return err
}

func (s *session) random(n int) ([]byte, error) {
	b, err := s.ctx().GenerateRandom(s.h, n)
	if err != nil {
		return nil, fmt.Errorf("random: %w", err)
	}
	return b, nil
}

func (s *session) set(o pkcs11.ObjectHandle, t template) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	if err := s.ctx().SetAttributeValue(s.h, o, t.encode(&pin)); err != nil {
		return fmt.Errorf("set attributes: %w", err)
	}
	return nil
}

func (s *session) copied(o pkcs11.ObjectHandle, t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	c, err := s.ctx().CopyObject(s.h, o, t.encode(&pin))
	if err != nil {
		return 0, fmt.Errorf("copy object: %w", err)
	}
	return c, nil
}

func (s *session) derive(m []*pkcs11.Mechanism, base pkcs11.ObjectHandle, t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	o, err := s.ctx().DeriveKey(s.h, m, base, t.encode(&pin))
	if err != nil {
		return 0, fmt.Errorf("derive key: %w", err)
	}
	return o, nil
}

const (
	findBatch  = 64
	maxObjects = 4096 // objects one search may yield
)

// find returns the objects that match.
func (s *session) find(t template) ([]pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	if err := s.ctx().FindObjectsInit(s.h, t.encode(&pin)); err != nil {
		return nil, fmt.Errorf("find objects: %w", err)
	}
	var found []pkcs11.ObjectHandle
	for {
		batch, _, err := s.ctx().FindObjects(s.h, findBatch)
		if err != nil {
			return nil, fmt.Errorf("find objects: %w", err)
		}
		if len(batch) == 0 {
			break
		}
		if found = append(found, batch...); len(found) > maxObjects {
			return nil, fmt.Errorf("find objects: %w: more than %d objects", hsm.ErrCorrupt, maxObjects)
		}
	}
	if err := s.ctx().FindObjectsFinal(s.h); err != nil {
		return nil, fmt.Errorf("find objects: %w", err)
	}
	return found, nil
}

// attribute reads one attribute that is not a template.
func (s *session) attribute(o pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	a, err := s.ctx().GetAttributeValue(s.h, o, []*pkcs11.Attribute{{Type: kind}})
	if err != nil {
		return nil, fmt.Errorf("read attribute %#x: %w", kind, err)
	}
	return a[0].Value, nil
}

// check reads an object's attributes back and compares them with what they must be, but
// for those that the token is accepted to lack. ErrCorrupt names the attributes that differ.
func (s *session) check(o pkcs11.ObjectHandle, want template) error {
	return s.exactly(o, s.link.quirks.fit(want))
}

// exactly is check with no exceptions.
func (s *session) exactly(o pkcs11.ObjectHandle, want template) error {
	kinds, err := s.differing(o, want)
	if err != nil || kinds == nil {
		return err
	}
	var differ []byte
	for _, kind := range kinds {
		differ = fmt.Appendf(differ, " %#x", kind)
	}
	return fmt.Errorf("%w: object with wrong attributes:%s", hsm.ErrCorrupt, differ)
}

// differing are the attributes in which an object is not what it must be.
func (s *session) differing(o pkcs11.ObjectHandle, want template) (kinds []uint, err error) {
	for _, a := range want {
		same, err := s.has(o, a)
		if err != nil {
			return nil, err
		}
		if !same {
			kinds = append(kinds, a.kind)
		}
	}
	return kinds, nil
}

func (s *session) has(o pkcs11.ObjectHandle, want attribute) (bool, error) {
	if want.nested != nil {
		got, err := s.link.lib.native.readNested(s.h, o, want.kind)
		if errors.Is(err, errPointers) {
			return false, nil
		}
		return err == nil && want.nested.equal(got), absent(err)
	}
	got, err := s.attribute(o, want.kind)
	return err == nil && bytes.Equal(got, want.value), absent(err)
}

// absent is nil for the errors that say that an object lacks an attribute.
func absent(err error) error {
	switch code(err) {
	case pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_SENSITIVE:
		return nil
	default:
		return err
	}
}
