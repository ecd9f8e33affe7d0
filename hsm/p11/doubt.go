//go:build cgo

package p11

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// A token that once passed the self-test can begin to err. What every key rests on is asked
// again with known keys: when an answer was wrong, before a lost token is used again, and
// after each key that is made, whose token would otherwise be made, and opened, with the same
// fault, and with nothing else once the fault is gone (proof.go).

// Doubt implements hsm.Partition.
func (p *Partition) Doubt(ctx context.Context) error {
	l, err := p.current()
	if err != nil {
		return err
	}
	p.endAll(l, hsm.ErrWrongAnswer) // the questions are ordinary calls
	return p.asked(ctx, l)
}

// asked has the token answer what is known. A wrong answer takes the link out of use.
func (p *Partition) asked(ctx context.Context, l *link) error {
	err := p.on(ctx, l, func(s *session) error { return s.provesAll(p.traits) })
	if errors.Is(err, hsm.ErrWrongAnswer) {
		p.lose(l, err)
	}
	return err
}

// suspect gives the error of opening a token its sentinel if it is not the token that is
// wrong but the HSM.
func (p *Partition) suspect(ctx context.Context, err error) error {
	if !errors.Is(err, hsm.ErrCorrupt) {
		return err
	}
	l, doubt := p.current()
	if doubt == nil {
		doubt = p.asked(ctx, l)
	}
	if doubt != nil {
		return fmt.Errorf("%w (at first: %v)", doubt, err) //nolint:errorlint // it is not believed
	}
	return err
}

// proves has the token wrap, unwrap, encrypt and authenticate with keys that are known: what
// the making of a key rests on. It leaves nothing behind. ErrWrongAnswer names what was wrong.
func (s *session) proves(t traits) (err error) {
	made := make([]pkcs11.ObjectHandle, 0, 3)
	defer func() {
		for _, o := range made {
			err = errors.Join(err, s.destroy(o))
		}
	}()
	keep := func(o pkcs11.ObjectHandle, failed error) (pkcs11.ObjectHandle, error) {
		if failed == nil {
			made = append(made, o)
		}
		return o, failed
	}
	asked := answers()
	kek, err := keep(s.create(asked.kek))
	if err != nil {
		return err
	}
	secret, err := keep(s.create(asked.secret))
	if err != nil {
		return err
	}
	w, err := s.wrap(t.keyWrap(), kek, secret)
	if err != nil {
		return err
	}
	if !bytes.Equal(w, asked.wrapped) {
		return wrongAnswer("wrap")
	}
	mac, err := s.mac(secret, w)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, asked.mac) {
		return wrongAnswer("HMAC")
	}
	opened, err := keep(s.unwrap(t.keyWrap(), kek, w, asked.opened))
	if err != nil {
		if isLoss(code(err)) {
			return err
		}
		return fmt.Errorf("%w: unwrap: %v", hsm.ErrWrongAnswer, err) //nolint:errorlint // of its own wrapping
	}
	var blocks [2 * hsm.BlockSize]byte
	if err := s.encryptBlocks(opened, blocks[:], asked.plaintext[:]); err != nil {
		return err
	}
	if blocks != asked.blocks {
		return wrongAnswer("AES-ECB of an unwrapped key")
	}
	return nil
}

// knownAnswers are what proves asks, and what is right.
type knownAnswers struct {
	kek, secret, opened template
	wrapped             []byte                  // secret, with kek
	mac                 []byte                  // of wrapped, with secret
	plaintext, blocks   [2 * hsm.BlockSize]byte // under opened, which is secret's value
}

// answers are computed once, by Go.
var answers = sync.OnceValue(func() *knownAnswers {
	a := &knownAnswers{
		kek:     known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
		secret:  known(pkcs11.CKK_GENERIC_SECRET, wrappedValue(), pkcs11.CKA_SIGN),
		opened:  plain(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT),
		wrapped: unhex(wrappedAnswer),
	}
	h := hmac.New(sha256.New, wrappedValue())
	h.Write(a.wrapped)
	a.mac = h.Sum(nil)
	copy(a.plaintext[hsm.BlockSize:], ordinaryValue())
	block, err := aes.NewCipher(wrappedValue())
	if err != nil {
		panic(err) // the key is a constant
	}
	for i := 0; i < len(a.blocks); i += hsm.BlockSize {
		block.Encrypt(a.blocks[i:], a.plaintext[i:])
	}
	return a
})

// provesResident has the token do what resident keys do, with one that is known.
func (s *session) provesResident(t traits) (err error) {
	if !t.resident {
		return nil
	}
	key, err := s.create(known(pkcs11.CKK_AES, residentValue(), residentUsages()...))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.destroy(key)) }()
	err = s.residentAnswers(key)
	if errors.Is(err, errAnswer) {
		return wrongAnswer(err.Error())
	}
	return err
}

// provesAll is both, and draws random bytes, and signs with the node's identity.
func (s *session) provesAll(t traits) (err error) {
	if err := errors.Join(s.proves(t), s.provesResident(t)); err != nil {
		return err
	}
	var draws [2][]byte
	for i := range draws {
		if draws[i], err = s.random(2 * comparedRandom); err != nil {
			return err
		}
	}
	if bytes.Equal(draws[0], draws[1]) {
		return wrongAnswer("the same random bytes twice")
	}
	_, err = s.signWith(s.link.nik, s.link.identity, draws[0])
	if errors.Is(err, hsm.ErrCorrupt) {
		return wrongAnswer("signature")
	}
	return err
}

func wrongAnswer(to string) error { return fmt.Errorf("%w: %s", hsm.ErrWrongAnswer, to) }
