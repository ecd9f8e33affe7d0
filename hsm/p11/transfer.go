//go:build cgo

package p11

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

const (
	labelTransfer = labelPrefix + "transfer"
	labelTrusted  = labelPrefix + "trusted"
)

func publicExponent() []byte { return []byte{1, 0, 1} }

// newRSA is what a key pair generation needs to know beyond the templates.
func newRSA(bits uint) template {
	return template{number(pkcs11.CKA_MODULUS_BITS, bits), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent())}
}

// NewTransfer implements hsm.Partition. The key is a token object: it outlives the
// process, since the Security Officer of the donor may take his time.
func (p *Partition) NewTransfer(ctx context.Context) (t hsm.Transfer, err error) {
	if p.cfg.Cloned {
		return t, hsm.ErrCloned
	}
	err = p.ceremonial(ctx, func(s *session) error {
		if err := s.destroyTransfer(); err != nil {
			return err
		}
		name := template{named(labelTransfer)}
		want := transferPrivate(name, true)
		public, private, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			rsaPublic(name, false).with(newRSA(hsm.TransferKeyBits)...), want)
		if err != nil {
			return fmt.Errorf("transfer key: %w", err)
		}
		t, err = p.announce(s, private, want)
		if err = errors.Join(err, s.destroy(public)); err != nil {
			return errors.Join(err, s.destroy(private))
		}
		return nil
	})
	if err != nil {
		return hsm.Transfer{}, err
	}
	return t, nil
}

// announce checks a new transfer key and signs its public half.
func (p *Partition) announce(s *session, private pkcs11.ObjectHandle, want template) (t hsm.Transfer, err error) {
	if err := s.check(private, want); err != nil {
		return t, fmt.Errorf("transfer key: %w", err)
	}
	if t.SPKI, err = s.rsaPublic(private); err != nil {
		return t, err
	}
	if _, err := hsm.TransferPublicKey(t.SPKI); err != nil {
		return t, fmt.Errorf("%w: the token made a wrong transfer key: %v", hsm.ErrCorrupt, err) //nolint:errorlint // the token's fault, not a refusal
	}
	t.OAEPHash = p.traits.oaep[0]
	t.Signature, err = s.signWith(s.link.nik, p.identity, hsm.TransferKeyMessage(t))
	return t, err
}

// destroyTransfer destroys the transfer key, if there is one.
func (s *session) destroyTransfer() error {
	keys, err := s.labelled(pkcs11.CKO_PRIVATE_KEY, labelTransfer)
	if err != nil {
		return err
	}
	return s.destroyAll(keys)
}

// rsaPublic is the SPKI of an RSA key, of either half.
func (s *session) rsaPublic(o pkcs11.ObjectHandle) ([]byte, error) {
	modulus, err := s.attribute(o, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	exponent, err := s.attribute(o, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	e := new(big.Int).SetBytes(exponent)
	if !e.IsInt64() {
		return nil, fmt.Errorf("%w: rsa exponent of %d bytes", hsm.ErrCorrupt, len(exponent))
	}
	spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())})
	if err != nil {
		return nil, fmt.Errorf("%w: rsa key: %w", hsm.ErrCorrupt, err)
	}
	return spki, nil
}

// trustedTemplate is a peer's transfer key as the Security Officer stores it.
func trustedTemplate(spki []byte) template {
	id := sha256.Sum256(spki)
	name := template{named(labelTrusted), octets(pkcs11.CKA_ID, id[:])}
	return rsaPublic(name, true).with(flag(pkcs11.CKA_TRUSTED, true))
}

// trusted finds the object by which the Security Officer trusts a key. What else
// has its name does not count.
func (s *session) trusted(spki []byte) (pkcs11.ObjectHandle, error) {
	id := sha256.Sum256(spki)
	objects, err := s.find(template{
		number(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), flag(pkcs11.CKA_TOKEN, true), octets(pkcs11.CKA_ID, id[:]),
	})
	if err != nil {
		return 0, err
	}
	for _, o := range objects {
		if err := s.check(o, trustedTemplate(spki)); errors.Is(err, hsm.ErrCorrupt) {
			continue
		} else if err != nil {
			return 0, err
		}
		stored, err := s.rsaPublic(o)
		if err != nil {
			return 0, err
		}
		if bytes.Equal(stored, spki) {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%s: %w", hsm.Fingerprint(spki), hsm.ErrNotTrusted)
}

// Export implements hsm.Partition. The token wraps with the key the Security Officer
// trusts: no other way leads out of it, and none with a hash that it lacks.
func (p *Partition) Export(ctx context.Context, r hsm.ExportRequest) ([]byte, error) {
	if _, err := r.Check(); err != nil {
		return nil, err
	}
	if !slices.Contains(p.traits.oaep, r.Transfer.OAEPHash) {
		return nil, fmt.Errorf("%w: export: the recipient asks for OAEP with %s, this token has it with %s only",
			hsm.ErrRefused, hsm.OAEPName(r.Transfer.OAEPHash), p.traits.oaepNames())
	}
	return p.export(ctx, r.Transfer.SPKI, hsm.TransferMessage{
		Cluster: r.Cluster, Epoch: r.Epoch, Generation: r.Generation, Donor: r.Donor, Recipient: r.Recipient, OAEPHash: r.Transfer.OAEPHash,
	})
}

// ExportRecovery implements hsm.Partition: it leads out by the same way as Export.
func (p *Partition) ExportRecovery(ctx context.Context, r hsm.RecoveryRequest) ([]byte, error) {
	if _, err := r.Check(); err != nil {
		return nil, err
	}
	hash := cmp.Or(r.OAEPHash, p.traits.oaep[0])
	if !slices.Contains(p.traits.oaep, hash) {
		return nil, fmt.Errorf("%w: recovery copy: the recovery key's token has OAEP with %s, this token has it with %s only",
			hsm.ErrRefused, hsm.OAEPName(hash), p.traits.oaepNames())
	}
	return p.export(ctx, r.SPKI, hsm.TransferMessage{
		Cluster: r.Cluster, Epoch: r.Epoch, Generation: r.Generation, Donor: r.Donor, Recipient: r.Recipient, OAEPHash: hash,
	})
}

// Trusted implements hsm.Partition.
func (p *Partition) Trusted(ctx context.Context, spki []byte) error {
	return p.do(ctx, func(s *session) error {
		_, err := s.trusted(spki)
		return err
	})
}

// export completes a message with the keys of its generation, wrapped for a key that is
// trusted.
func (p *Partition) export(ctx context.Context, spki []byte, m hsm.TransferMessage) ([]byte, error) {
	if p.cfg.Cloned {
		return nil, hsm.ErrCloned
	}
	m.SPKIHash = sha256.Sum256(spki)
	err := p.do(ctx, func(s *session) error {
		d, err := p.domain(s, domainID{m.Cluster, m.Generation})
		if err != nil {
			return err
		}
		recipient, err := s.trusted(spki)
		if err != nil {
			return err
		}
		g, err := s.generation(p.traits, m.Generation, d)
		if err != nil {
			return err
		}
		m.Keys = nil // of an attempt before
		for _, c := range g.Checks {
			ciphertext, err := s.wrap(oaepWith(m.OAEPHash), recipient, d[c.Kind])
			if err != nil {
				return fmt.Errorf("export key of kind %d: %w", c.Kind, err)
			}
			m.Keys = append(m.Keys, hsm.TransferKeyEntry{Kind: c.Kind, Check: c.Value, Ciphertext: ciphertext})
		}
		m.Signature, err = s.signWith(s.link.nik, p.identity, m.Signed())
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Encode()
}

// Import implements hsm.Partition. Nothing is stored in the token before every key
// of the message was opened and is the announced one. The transfer key is destroyed
// when all is done.
func (p *Partition) Import(ctx context.Context, message []byte, want hsm.ImportExpectation) (g hsm.Generation, err error) {
	if p.cfg.Cloned {
		return g, hsm.ErrCloned
	}
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return g, err
	}
	err = p.ceremonial(ctx, func(s *session) error {
		key, err := p.transferKey(s, m, want)
		if err != nil {
			return err
		}
		id := domainID{m.Cluster, m.Generation}
		h, err := s.vacate(id)
		if err != nil {
			return err
		}
		if err := p.sameLog(s, h, m); err != nil {
			return err
		}
		unseal := func(kind hsm.KeyKind, t template) (pkcs11.ObjectHandle, error) {
			return s.unwrap(oaepWith(m.OAEPHash), key, ciphertext(m, kind), t)
		}
		if err := p.rehearse(s, id, m, unseal); err != nil {
			return err
		}
		var kinds []hsm.KeyKind
		for _, k := range m.Keys {
			kinds = append(kinds, k.Kind)
		}
		if g, err = s.install(p.traits, id, h, kinds, unseal); err != nil {
			return err
		}
		if want.More {
			return nil
		}
		if left := s.destroy(key); left != nil { // the next NewTransfer tries again
			p.cfg.Logger.Warn("hsm transfer key not destroyed", "error", left)
		}
		return nil
	})
	if err != nil {
		return hsm.Generation{}, err
	}
	return g, nil
}

// transferKey finds the transfer key that m is for, and verifies m. Its hash is the
// first of the token's, then and now: a token that has changed needs a new transfer
// key.
func (p *Partition) transferKey(s *session, m hsm.TransferMessage, want hsm.ImportExpectation) (pkcs11.ObjectHandle, error) {
	keys, err := s.labelled(pkcs11.CKO_PRIVATE_KEY, labelTransfer)
	if err != nil {
		return 0, err
	}
	if len(keys) != 1 {
		return 0, fmt.Errorf("%w: import: %d transfer keys", hsm.ErrRefused, len(keys))
	}
	name := template{named(labelTransfer)}
	if err := s.check(keys[0], transferPrivate(name, true)); err != nil && !p.accepts(probeTemplates) {
		return 0, fmt.Errorf("transfer key: %w", err)
	}
	spki, err := s.rsaPublic(keys[0])
	if err != nil {
		return 0, err
	}
	return keys[0], m.Verify(want, hsm.Transfer{SPKI: spki, OAEPHash: p.traits.oaep[0]})
}

// sameLog refuses a message with another log root key than the cluster's.
func (p *Partition) sameLog(s *session, h holdings, m hsm.TransferMessage) error {
	if h.log == 0 {
		return nil
	}
	value, err := s.checkValue(p.traits, hsm.KindLog, h.log)
	if err != nil {
		return err
	}
	for _, k := range m.Keys {
		if k.Kind == hsm.KindLog && k.Check != value {
			return fmt.Errorf("%w: import: another log key than the cluster's", hsm.ErrRefused)
		}
	}
	return nil
}

func ciphertext(m hsm.TransferMessage, kind hsm.KeyKind) []byte {
	for _, k := range m.Keys {
		if k.Kind == kind {
			return k.Ciphertext
		}
	}
	return nil
}

// rehearse opens every key of m as a session object and compares its check value.
func (p *Partition) rehearse(s *session, id domainID, m hsm.TransferMessage, unseal func(hsm.KeyKind, template) (pkcs11.ObjectHandle, error)) error {
	for _, k := range m.Keys {
		o, err := unseal(k.Kind, p.traits.domainKey(k.Kind, id.name(k.Kind), false))
		if err != nil {
			return fmt.Errorf("import key of kind %d: %w", k.Kind, blame(err, hsm.ErrRefused, func() error { return s.link.alive(s) }))
		}
		value, err := s.checkValue(p.traits, k.Kind, o)
		if err = errors.Join(err, s.destroy(o)); err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(value[:], k.Check[:]) != 1 {
			return fmt.Errorf("%w: import: key of kind %d is not the announced one", hsm.ErrRefused, k.Kind)
		}
	}
	return nil
}
