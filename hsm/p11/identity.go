//go:build cgo

package p11

import (
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

const (
	labelPrefix   = "quorumkms/" // of every object of ours
	labelIdentity = labelPrefix + "nik"

	p256Scalar = 32 // bytes of r and of s
)

var errNoIdentity = errors.New("no node identity key")

// identityPrivate is the template of the node identity key.
func identityPrivate(token bool) template {
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
		flag(pkcs11.CKA_TOKEN, token), flag(pkcs11.CKA_PRIVATE, true),
		flag(pkcs11.CKA_SENSITIVE, true), flag(pkcs11.CKA_EXTRACTABLE, false),
		named(labelIdentity),
	}, usages(privateUsages(), pkcs11.CKA_SIGN), template{mechanisms(pkcs11.CKM_ECDSA)}, frozen())
}

// The OIDs of the curves, DER.
func curveP256() []byte { return []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07} }
func curveP384() []byte { return []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22} }

func identityPublic(token bool) template {
	return join(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), number(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
		flag(pkcs11.CKA_TOKEN, token), flag(pkcs11.CKA_PRIVATE, false),
		named(labelIdentity), octets(pkcs11.CKA_EC_PARAMS, curveP256()),
	}, usages(publicUsages(), pkcs11.CKA_VERIFY), frozen())
}

// identity finds the node identity key and proves that its halves belong together.
// errNoIdentity if there is no private half.
func (s *session) identity() (pkcs11.ObjectHandle, []byte, error) {
	private, err := s.labelled(pkcs11.CKO_PRIVATE_KEY, labelIdentity)
	if err != nil {
		return 0, nil, err
	}
	if len(private) == 0 {
		return 0, nil, errNoIdentity
	}
	public, err := s.labelled(pkcs11.CKO_PUBLIC_KEY, labelIdentity)
	if err != nil {
		return 0, nil, err
	}
	if len(private) != 1 || len(public) != 1 {
		return 0, nil, fmt.Errorf("%w: %d private and %d public objects named %q, there must be one of each",
			hsm.ErrCorrupt, len(private), len(public), labelIdentity)
	}
	spki, err := s.ecPublic(public[0], ecdh.P256())
	if err != nil {
		return 0, nil, err
	}
	_, err = s.signWith(private[0], spki, []byte(labelIdentity))
	return private[0], spki, err
}

// ensureIdentity is identity; it makes the key if there is none.
func (s *session) ensureIdentity() (pkcs11.ObjectHandle, []byte, error) {
	private, spki, err := s.identity()
	if !errors.Is(err, errNoIdentity) {
		return private, spki, err
	}
	orphans, err := s.labelled(pkcs11.CKO_PUBLIC_KEY, labelIdentity)
	if err != nil {
		return 0, nil, err
	}
	if err := s.destroyAll(orphans); err != nil {
		return 0, nil, err
	}
	if _, _, err := s.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN, identityPublic(true), identityPrivate(true)); err != nil {
		return 0, nil, fmt.Errorf("node identity key: %w", err)
	}
	private, spki, err = s.identity()
	if err == nil {
		err = s.check(private, identityPrivate(true))
	}
	return private, spki, err
}

// Adopt gives a token that was cloned from another a node identity key of its own, and
// returns its SPKI: what came with the clone, of the other node, is destroyed. Nothing else
// may have the token open as the same node's.
func Adopt(ctx context.Context, cfg Config) (spki []byte, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	defer clear(cfg.PIN)
	if !cfg.Cloned {
		return nil, fmt.Errorf("%w: only a token of the transfer profile cloned is adopted", hsm.ErrRefused)
	}
	lib, err := acquire(cfg.Module, cfg.ModuleArguments)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lib.release()) }()
	found, err := lib.await(ctx, cfg.Token, cfg.Serial)
	if err != nil {
		return nil, err
	}
	l, err := connect(lib, found, cfg.PIN, 1, false, nil)
	if err != nil {
		return nil, err
	}
	defer l.drain()
	p := &Partition{cfg: cfg, lib: lib}
	err = p.on(ctx, l, func(s *session) error {
		private, err := s.labelled(pkcs11.CKO_PRIVATE_KEY, labelIdentity)
		if err != nil {
			return err
		}
		if err := errors.Join(s.destroyAll(private), s.destroyTransfer()); err != nil {
			return err
		}
		_, spki, err = s.ensureIdentity() // which destroys public halves that are left
		return err
	})
	return spki, err
}

// labelled finds the token objects of a class with this label.
func (s *session) labelled(class uint, label string) ([]pkcs11.ObjectHandle, error) {
	return s.find(template{
		number(pkcs11.CKA_CLASS, class), flag(pkcs11.CKA_TOKEN, true), named(label),
	})
}

func (s *session) destroyAll(objects []pkcs11.ObjectHandle) error {
	for _, o := range objects {
		if err := s.destroy(o); err != nil {
			return err
		}
	}
	return nil
}

// ecPublic is the SPKI of a public key of a curve. Its point is a DER octet string; some
// tokens leave that wrapping out.
func (s *session) ecPublic(o pkcs11.ObjectHandle, curve ecdh.Curve) ([]byte, error) {
	point, err := s.attribute(o, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	public, err := curve.NewPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", hsm.ErrCorrupt, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", hsm.ErrCorrupt, err)
	}
	return spki, nil
}

// signWith signs SHA-256(message) as ASN.1 DER, and verifies what the token made.
func (s *session) signWith(key pkcs11.ObjectHandle, spki, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	raw, err := s.sign(mechanism(pkcs11.CKM_ECDSA), key, digest[:])
	if err != nil {
		return nil, err
	}
	sig, err := derSignature(raw, p256Scalar)
	if err != nil {
		return nil, err
	}
	if err := hsm.VerifyIdentitySignature(spki, message, sig); err != nil {
		return nil, fmt.Errorf("%w: %v", hsm.ErrWrongAnswer, err) //nolint:errorlint // the token's fault, not a refusal
	}
	return sig, nil
}

// derSignature is an ECDSA signature, r || s of so many bytes each, as ASN.1 DER.
func derSignature(raw []byte, scalar int) ([]byte, error) {
	if len(raw) != 2*scalar {
		return nil, fmt.Errorf("%w: signature of %d bytes", hsm.ErrCorrupt, len(raw))
	}
	sig, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(raw[:scalar]), new(big.Int).SetBytes(raw[scalar:]),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", hsm.ErrCorrupt, err)
	}
	return sig, nil
}

// Identity implements hsm.Partition.
func (p *Partition) Identity() []byte { return append([]byte(nil), p.identity...) }

// SignIdentity implements hsm.Partition.
func (p *Partition) SignIdentity(ctx context.Context, message []byte) (sig []byte, err error) {
	err = p.do(ctx, func(s *session) error {
		sig, err = s.signWith(s.link.nik, p.identity, message)
		return err
	})
	return sig, err
}

// Random implements hsm.Partition.
func (p *Partition) Random(ctx context.Context, b []byte) error {
	if len(b) == 0 || len(b) > hsm.MaxRandom {
		return fmt.Errorf("%w: random of %d bytes", hsm.ErrRefused, len(b))
	}
	return p.do(ctx, func(s *session) error {
		for part := range slices.Chunk(b, p.traits.draw) {
			random, err := s.random(len(part))
			if err == nil && copy(part, random) != len(part) {
				err = fmt.Errorf("%w: %d random bytes", hsm.ErrWrongAnswer, len(random))
			}
			if err == nil && p.drawnBefore(random) {
				err = fmt.Errorf("%w: the same random bytes twice", hsm.ErrWrongAnswer)
				p.lose(s.link, err)
			}
			if clear(random); err != nil {
				return err
			}
		}
		return nil
	})
}

// comparedRandom is the least draw that is compared with the one before, in bytes: two that
// are the same by chance nobody sees.
const comparedRandom = 16

// drawnBefore tells whether the generator stands still.
func (p *Partition) drawnBefore(random []byte) bool {
	if len(random) < comparedRandom {
		return false
	}
	drawn := sha256.Sum256(random)
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.drawn
	p.drawn = drawn
	return before == drawn
}
