//go:build cgo

package p11

import (
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// counted is the library as sessions call it: with a count of the calls. What is not named
// here is not counted. Two halves of one operation count as one, a first half that fails too.
type counted struct {
	*pkcs11.Ctx
	meter   *hsm.Meter // nil during the self-test, whose calls are to fail
	session *session
}

// done counts a call. That an object lacks an attribute is an answer.
func (c counted) done(k hsm.CallKind, began time.Time, err error) {
	if absent(err) == nil {
		err = nil
	}
	c.meter.Done(k, began, err)
	c.session.returned()
}

// counts makes a call that the binding does not, and counts it.
func counts[T any](s *session, k hsm.CallKind, call func() (T, error)) (T, error) {
	began := time.Now()
	v, err := call()
	s.ctx().done(k, began, err)
	return v, err
}

func (c counted) CreateObject(h pkcs11.SessionHandle, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	began := time.Now()
	o, err := c.Ctx.CreateObject(h, t)
	c.done(hsm.CallObject, began, err)
	return o, err //nolint:wrapcheck // who calls does
}

func (c counted) CopyObject(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	began := time.Now()
	o, err := c.Ctx.CopyObject(h, o, t)
	c.done(hsm.CallObject, began, err)
	return o, err //nolint:wrapcheck // who calls does
}

func (c counted) DestroyObject(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	began := time.Now()
	err := c.Ctx.DestroyObject(h, o)
	c.done(hsm.CallObject, began, err)
	return err //nolint:wrapcheck // who calls does
}

func (c counted) FindObjects(h pkcs11.SessionHandle, n int) ([]pkcs11.ObjectHandle, bool, error) {
	began := time.Now()
	found, more, err := c.Ctx.FindObjects(h, n)
	c.done(hsm.CallObject, began, err)
	return found, more, err //nolint:wrapcheck // who calls does
}

func (c counted) FindObjectsInit(h pkcs11.SessionHandle, t []*pkcs11.Attribute) error {
	began := time.Now()
	err := c.Ctx.FindObjectsInit(h, t)
	if err != nil {
		c.done(hsm.CallObject, began, err)
	}
	return err //nolint:wrapcheck // who calls does
}

func (c counted) GetAttributeValue(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, t []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	began := time.Now()
	values, err := c.Ctx.GetAttributeValue(h, o, t)
	c.done(hsm.CallObject, began, err)
	return values, err //nolint:wrapcheck // who calls does
}

func (c counted) SetAttributeValue(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, t []*pkcs11.Attribute) error {
	began := time.Now()
	err := c.Ctx.SetAttributeValue(h, o, t)
	c.done(hsm.CallObject, began, err)
	return err //nolint:wrapcheck // who calls does
}

func (c counted) GenerateKey(h pkcs11.SessionHandle, m []*pkcs11.Mechanism, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	began := time.Now()
	o, err := c.Ctx.GenerateKey(h, m, t)
	c.done(hsm.CallGenerate, began, err)
	return o, err //nolint:wrapcheck // who calls does
}

func (c counted) GenerateKeyPair(h pkcs11.SessionHandle, m []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pub, priv pkcs11.ObjectHandle, err error) {
	began := time.Now()
	pub, priv, err = c.Ctx.GenerateKeyPair(h, m, public, private)
	c.done(hsm.CallGenerate, began, err)
	return pub, priv, err //nolint:wrapcheck // who calls does
}

func (c counted) WrapKey(h pkcs11.SessionHandle, m []*pkcs11.Mechanism, with, key pkcs11.ObjectHandle) ([]byte, error) {
	began := time.Now()
	wrapped, err := c.Ctx.WrapKey(h, m, with, key)
	c.done(hsm.CallWrap, began, err)
	return wrapped, err //nolint:wrapcheck // who calls does
}

func (c counted) UnwrapKey(h pkcs11.SessionHandle, m []*pkcs11.Mechanism, with pkcs11.ObjectHandle, key []byte, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	began := time.Now()
	o, err := c.Ctx.UnwrapKey(h, m, with, key, t)
	c.done(hsm.CallUnwrap, began, err)
	return o, err //nolint:wrapcheck // who calls does
}

func (c counted) SignInit(h pkcs11.SessionHandle, m []*pkcs11.Mechanism, key pkcs11.ObjectHandle) error {
	began := time.Now()
	err := c.Ctx.SignInit(h, m, key)
	if err != nil {
		c.done(hsm.CallSign, began, err)
	}
	return err //nolint:wrapcheck // who calls does
}

func (c counted) Sign(h pkcs11.SessionHandle, message []byte) ([]byte, error) {
	began := time.Now()
	signature, err := c.Ctx.Sign(h, message)
	c.done(hsm.CallSign, began, err)
	return signature, err //nolint:wrapcheck // who calls does
}

func (c counted) GenerateRandom(h pkcs11.SessionHandle, n int) ([]byte, error) {
	began := time.Now()
	b, err := c.Ctx.GenerateRandom(h, n)
	c.done(hsm.CallRandom, began, err)
	return b, err //nolint:wrapcheck // who calls does
}

// Activity implements hsm.Partition.
func (p *Partition) Activity() hsm.Activity {
	a := p.meter.Count()
	a.KeyWrap, a.Algorithms = uint64(p.traits.kwp), append(a.Algorithms, p.traits.algorithms...)
	for _, hash := range p.traits.oaep {
		a.OAEPHashes = append(a.OAEPHashes, hsm.OAEPName(hash))
	}
	a.Sessions, a.MaxWaiting = p.cfg.Sessions, maxWaiting
	p.mu.Lock()
	defer p.mu.Unlock()
	a.Losses, a.Returns, a.Lost, a.Returned = p.losses, p.returns, p.lostAt, p.returned
	if l := p.link; l != nil {
		a.Busy, a.Waiting, a.OfKeys = cap(l.work)-len(l.work), int(l.waiting.Load()), int(l.ongoing.open.Load())
	}
	return a
}
