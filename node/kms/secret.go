package kms

import (
	"bytes"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// MaxMessage is the longest message of Sign, Verify, GenerateMac and VerifyMac, in bytes;
// what is longer is signed by its digest.
const MaxMessage = hsm.MaxMessage

// maxSignature bounds what is taken for a signature or a ciphertext of RSA, in bytes: that
// of the longest modulus.
const maxSignature = 512

// Message is what is signed or authenticated, and how.
type Message struct {
	Bytes     []byte
	Digest    bool // Bytes is the digest, of exactly the hash's size; of signatures only
	Algorithm hsm.Algorithm
}

// Signed is the answer of the calls that use a key that is not symmetric.
type Signed struct {
	Output     []byte // the signature or MAC; nil of those that verify
	KeyARN     string
	Version    uint32
	IndexToken []byte
}

// Public is the answer of GetPublicKey.
type Public struct {
	SPKI       []byte // DER SubjectPublicKeyInfo
	Key        *fsm.Key
	Algorithms []hsm.Algorithm // that this node's HSM has, too
	KeyARN     string
	Version    uint32
	IndexToken []byte
}

// anyAlgorithm stands for whichever a key has: the call uses none.
const anyAlgorithm hsm.Algorithm = "any"

// keyed is a call that uses one key without an encryption context.
type keyed[T any] struct {
	name      string
	key       string
	algorithm hsm.Algorithm
	op        fsm.KeyOperation
	syntax    error // what is wrong with the request, whatever key it names
	work      func(ctx context.Context, st *fsm.State, t target) (T, error)
	opens     []byte                // the ciphertext, for the record
	describe  func(T, *audit.Event) // nil: there is nothing to tell
	wipe      func(T)               // nil: nothing in the result is secret
}

// useKey is what those calls have in common.
func useKey[T any](ctx context.Context, s *Service, c Call, k keyed[T]) (T, error) {
	var none T
	e := begin(k.name, c)
	e.CiphertextSHA256 = digest(k.opens)
	nameKey(&e, k.key)
	if k.algorithm != anyAlgorithm {
		e.Algorithm = string(k.algorithm)
	}
	if k.syntax != nil {
		return none, s.refuse(e, early{k.syntax})
	}
	st, err := s.enter(ctx, c, &e)
	if err != nil {
		return none, s.refuse(e, err)
	}
	ref, err := parseReference(st, c, k.key)
	if err != nil {
		return none, s.refuse(e, err)
	}
	t, err := s.find(st, ref, question{caller: c.Caller, needs: mayUse, operation: k.name, algorithm: k.algorithm}, k.op, 0)
	t.describe(&e)
	if err != nil {
		return none, s.refuseUse(e, st, t, err)
	}
	if k.describe == nil {
		k.describe = func(T, *audit.Event) {}
	}
	if k.wipe == nil {
		k.wipe = func(T) {}
	}
	return through(ctx, s, c, &e, t.authorise, func(ctx context.Context) (T, error) { return k.work(ctx, st, t) }, k.wipe, k.describe, &t)
}

// Sign signs a message of up to 4,096 bytes, or a digest.
func (s *Service) Sign(ctx context.Context, c Call, key string, m Message) (Signed, error) {
	k := keyed[Signed]{name: "Sign", key: key, algorithm: m.Algorithm, op: fsm.OpSeal, syntax: m.syntax()}
	k.work = func(ctx context.Context, st *fsm.State, t target) (Signed, error) {
		signature, err := s.inHSM(ctx, st, t, m.digest())
		return t.signed(st, signature), err
	}
	return useKey(ctx, s, c, k)
}

// Verify checks a signature; it needs no HSM. ErrSignature if it is not the key's.
func (s *Service) Verify(ctx context.Context, c Call, key string, m Message, signature []byte) (Signed, error) {
	k := keyed[Signed]{name: "Verify", key: key, algorithm: m.Algorithm, op: fsm.OpOpen, syntax: m.syntax()}
	if k.syntax == nil && (len(signature) == 0 || len(signature) > maxSignature) {
		k.syntax = invalid("signature of %d bytes: must be 1 to %d", len(signature), maxSignature)
	}
	k.work = func(_ context.Context, st *fsm.State, t target) (Signed, error) {
		public, err := t.hsmRef(st).Public()
		if err != nil {
			return Signed{}, err
		}
		if public.Verify(m.Algorithm, m.digest(), signature) != nil {
			return Signed{}, ErrSignature
		}
		return t.signed(st, nil), nil
	}
	return useKey(ctx, s, c, k)
}

// syntax says what is wrong with what is to be signed.
func (m Message) syntax() error {
	if err := checkAlgorithm(m.Algorithm, hsm.SchemePSS, hsm.SchemePKCS1, hsm.SchemeECDSA); err != nil {
		return err
	}
	switch size := m.Algorithm.Hash().Size(); {
	case m.Digest && len(m.Bytes) != size:
		return invalid("digest of %d bytes: %s wants %d", len(m.Bytes), m.Algorithm, size)
	case !m.Digest && (len(m.Bytes) == 0 || len(m.Bytes) > MaxMessage):
		return invalid("message of %d bytes: must be 1 to %d; what is longer is signed by its digest", len(m.Bytes), MaxMessage)
	}
	return nil
}

func (m Message) digest() []byte {
	if m.Digest {
		return m.Bytes
	}
	return hsm.Digest(m.Algorithm.Hash(), m.Bytes)
}

// GenerateMac computes the MAC of a message of up to 4,096 bytes.
func (s *Service) GenerateMac(ctx context.Context, c Call, key string, m Message) (Signed, error) {
	k := keyed[Signed]{name: "GenerateMac", key: key, algorithm: m.Algorithm, op: fsm.OpSeal, syntax: m.macSyntax()}
	k.work = func(ctx context.Context, st *fsm.State, t target) (Signed, error) {
		mac, err := s.inHSM(ctx, st, t, m.Bytes)
		return t.signed(st, mac), err
	}
	k.wipe = func(r Signed) { clear(r.Output) }
	return useKey(ctx, s, c, k)
}

// VerifyMac checks a MAC. ErrMac if it is not the key's.
func (s *Service) VerifyMac(ctx context.Context, c Call, key string, m Message, mac []byte) (Signed, error) {
	k := keyed[Signed]{name: "VerifyMac", key: key, algorithm: m.Algorithm, op: fsm.OpOpen, syntax: m.macSyntax()}
	if k.syntax == nil && (len(mac) == 0 || len(mac) > maxSignature) {
		k.syntax = invalid("MAC of %d bytes: must be 1 to %d", len(mac), maxSignature)
	}
	k.work = func(ctx context.Context, st *fsm.State, t target) (Signed, error) {
		want, err := s.inHSM(ctx, st, t, m.Bytes)
		defer clear(want)
		if err == nil && !hmac.Equal(want, mac) {
			err = ErrMac
		}
		return t.signed(st, nil), err
	}
	return useKey(ctx, s, c, k)
}

func (m Message) macSyntax() error {
	if err := checkAlgorithm(m.Algorithm, hsm.SchemeMAC); err != nil {
		return err
	}
	switch {
	case len(m.Bytes) == 0 || len(m.Bytes) > MaxMessage:
		return invalid("message of %d bytes: must be 1 to %d", len(m.Bytes), MaxMessage)
	case bytes.HasPrefix(m.Bytes, []byte(hsm.LabelCheckValue)):
		return invalid("message that begins with %q, which is kept for the check values of keys", hsm.LabelCheckValue)
	}
	return nil
}

// GetPublicKey returns the public half of a pair.
func (s *Service) GetPublicKey(ctx context.Context, c Call, key string) (Public, error) {
	k := keyed[Public]{name: "GetPublicKey", key: key, algorithm: anyAlgorithm, op: fsm.OpOpen}
	k.work = func(_ context.Context, st *fsm.State, t target) (Public, error) {
		ref := t.hsmRef(st)
		if _, err := ref.Public(); err != nil {
			return Public{}, err
		}
		usable := slices.DeleteFunc(ref.Kind.Algorithms(), func(a hsm.Algorithm) bool { return !s.keys.Supports(a) })
		return Public{SPKI: slices.Clone(ref.SPKI), Key: t.key, Algorithms: usable, KeyARN: t.arn, Version: t.version, IndexToken: IndexToken(st)}, nil
	}
	return useKey(ctx, s, c, k)
}

// encryptPublic is Encrypt with the public half of an RSA key. Where this node's HSM could
// not decrypt, nothing is encrypted.
func (s *Service) encryptPublic(ctx context.Context, c Call, key string, plaintext []byte, pairs []Pair, a hsm.Algorithm) (Sealed, error) {
	k := keyed[Sealed]{name: "Encrypt", key: key, algorithm: a, op: fsm.OpSeal, syntax: rsaSyntax(pairs, a)}
	k.work = func(_ context.Context, st *fsm.State, t target) (Sealed, error) {
		if !s.keys.Supports(a) {
			return Sealed{}, fmt.Errorf("%w: this node's HSM has no %s, so what it encrypts would not be decrypted", hsm.ErrUnsupported, a)
		}
		public, err := t.hsmRef(st).Public()
		if err != nil {
			return Sealed{}, err
		}
		if most := public.MaxPlaintext(a); len(plaintext) > most {
			return Sealed{}, invalid("plaintext of %d bytes: must be 1 to %d with %s and a key of spec %s", len(plaintext), most, a, t.key.Spec)
		}
		ciphertext, err := public.Encrypt(a, plaintext)
		return Sealed{Ciphertext: ciphertext, KeyARN: t.arn, Version: t.version, IndexToken: IndexToken(st)}, err
	}
	k.describe = func(r Sealed, e *audit.Event) { e.CiphertextSHA256 = digest(r.Ciphertext) }
	return useKey(ctx, s, c, k)
}

// decryptPrivate is Decrypt with an RSA key. Every failure that is the ciphertext's fault
// is the same one.
func (s *Service) decryptPrivate(ctx context.Context, c Call, ciphertext []byte, key string, pairs []Pair, a hsm.Algorithm) (Opened, error) {
	k := keyed[Opened]{name: "Decrypt", key: key, algorithm: a, op: fsm.OpOpen, opens: ciphertext, syntax: rsaSyntax(pairs, a)}
	if k.syntax == nil && key == "" {
		k.syntax = invalid("key is missing: a ciphertext of RSA does not name its key")
	}
	k.work = func(ctx context.Context, st *fsm.State, t target) (Opened, error) {
		if len(ciphertext) != int(t.hsmRef(st).Kind.Bits)/8 {
			return Opened{}, ErrCiphertext
		}
		plaintext, err := s.inHSM(ctx, st, t, ciphertext)
		if errors.Is(err, hsm.ErrCiphertext) {
			err = ErrCiphertext
		}
		return Opened{Plaintext: plaintext, KeyARN: t.arn, Version: t.version, IndexToken: IndexToken(st)}, err
	}
	k.wipe = func(r Opened) { clear(r.Plaintext) }
	return useKey(ctx, s, c, k)
}

func rsaSyntax(pairs []Pair, a hsm.Algorithm) error {
	if len(pairs) > 0 {
		return invalid("RSA has no encryption context: give none")
	}
	return checkAlgorithm(a, hsm.SchemeOAEP)
}

// inHSM uses a key in the HSM.
func (s *Service) inHSM(ctx context.Context, st *fsm.State, t target, input []byte) ([]byte, error) {
	return s.deriver.Apply(ctx, t.hsmRef(st), t.q.algorithm, input)
}

func (t target) signed(st *fsm.State, output []byte) Signed {
	return Signed{Output: output, KeyARN: t.arn, Version: t.version, IndexToken: IndexToken(st)}
}

// hsmRef names the version that is used for the HSM.
func (t target) hsmRef(st *fsm.State) hsm.Ref { return hsmRef(st, t.key, t.key.Version(t.version)) }
