//go:build cgo

package p11

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// A recovery key is the private RSA key with CKA_LABEL = quorumkms/recovery/<name> and the
// template of a transfer key. What a copy opens to is objects of the session that owns the
// loaded keys: they are gone with it, however the process ends, and never in the token.

const labelRecovery = labelPrefix + "recovery/"

// recoveryPrivate is the template of the private half of a recovery key.
func recoveryPrivate(name string) template {
	return transferPrivate(template{named(labelRecovery + name)}, true)
}

// EnsureRecoveryKey implements hsm.Recoverer. A new key has opened something before it is
// given out: copies are made for it for years before one is needed.
func (p *Partition) EnsureRecoveryKey(ctx context.Context, name string) (k hsm.RecoveryKey, made bool, err error) {
	if err := hsm.ValidRecoveryName(name); err != nil {
		return k, false, err
	}
	if p.cfg.Cloned {
		return k, false, hsm.ErrCloned
	}
	err = p.ceremonial(ctx, func(s *session) error {
		keys, err := s.labelled(pkcs11.CKO_PRIVATE_KEY, labelRecovery+name)
		switch {
		case err != nil:
			return err
		case len(keys) > 1:
			return fmt.Errorf("%w: %d keys named %q", hsm.ErrCorrupt, len(keys), labelRecovery+name)
		case len(keys) == 1:
			k, err = p.describeRecoveryKey(s, name, keys[0])
			return err
		}
		want := recoveryPrivate(name)
		public, private, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			rsaPublic(template{named(labelRecovery + name)}, false).with(newRSA(hsm.RecoveryKeyBits)...), want)
		switch code(err) {
		case pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:
			return fmt.Errorf("%w: RSA keys of %d bits: %w", hsm.ErrUnsupported, hsm.RecoveryKeyBits, err)
		}
		if err != nil {
			return fmt.Errorf("recovery key: %w", err)
		}
		if k, err = p.describeRecoveryKey(s, name, private); err == nil {
			err = p.opensSealed(s, private, k)
		}
		if err = errors.Join(err, s.destroy(public)); err != nil {
			return errors.Join(err, s.destroy(private))
		}
		made = true
		return nil
	})
	if err != nil {
		return hsm.RecoveryKey{}, false, err
	}
	return k, made, nil
}

// describeRecoveryKey checks a recovery key and reads its public half.
func (p *Partition) describeRecoveryKey(s *session, name string, key pkcs11.ObjectHandle) (hsm.RecoveryKey, error) {
	k := hsm.RecoveryKey{Name: name, OAEPHash: p.traits.oaep[0]}
	if err := s.check(key, recoveryPrivate(name)); err != nil && !p.accepts(probeTemplates) {
		return k, fmt.Errorf("recovery key %s: %w", name, err)
	}
	var err error
	if k.SPKI, err = s.rsaPublic(key); err != nil {
		return k, err
	}
	if _, err := hsm.RecoveryPublicKey(k.SPKI); err != nil {
		return k, fmt.Errorf("%w: the token has a wrong recovery key %s: %v", hsm.ErrCorrupt, name, err) //nolint:errorlint // the token's fault, not a refusal
	}
	return k, nil
}

// opensSealed has a recovery key open what was encrypted for it here, as a domain key.
func (p *Partition) opensSealed(s *session, key pkcs11.ObjectHandle, k hsm.RecoveryKey) (err error) {
	sealed, err := sealedFor(k.SPKI, k.OAEPHash, ordinaryValue())
	if err != nil {
		return err
	}
	opened, err := s.unwrap(oaepWith(k.OAEPHash), key, sealed, p.traits.domainKey(aesKind, scratch(aesKind), false))
	if err != nil {
		return fmt.Errorf("trying the recovery key: %w", err)
	}
	defer func() { err = errors.Join(err, s.destroy(opened)) }()
	same, err := s.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_WRAP))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.destroy(same)) }()
	got, err := s.checkValue(p.traits, aesKind, opened)
	if err != nil {
		return err
	}
	want, err := s.checkValue(p.traits, aesKind, same)
	if err == nil && got != want {
		err = fmt.Errorf("%w: a new recovery key opens another key than was sealed for it", hsm.ErrWrongAnswer)
	}
	return err
}

// sealedFor encrypts a key for a public key outside the token: with OAEP, or PKCS #1 v1.5 if
// hash is 0.
func sealedFor(spki []byte, hash uint8, key []byte) ([]byte, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, err
	}
	pub, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("not an rsa key")
	}
	if hash == 0 {
		return rsa.EncryptPKCS1v15(rand.Reader, pub, key) //nolint:staticcheck // the attack
	}
	h, err := hsm.NewOAEPHash(hash)
	if err != nil {
		return nil, err
	}
	return rsa.EncryptOAEP(h, rand.Reader, pub, key, nil)
}

// recoveryObjects finds the recovery keys in the token, by name.
func (s *session) recoveryObjects() (map[string]pkcs11.ObjectHandle, error) {
	objects, err := s.find(template{number(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), flag(pkcs11.CKA_TOKEN, true)})
	if err != nil {
		return nil, err
	}
	all := map[string]pkcs11.ObjectHandle{}
	for _, o := range objects {
		label, err := s.attribute(o, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(string(label), labelRecovery)
		if !ok {
			continue
		}
		if _, double := all[name]; double {
			return nil, fmt.Errorf("%w: two keys named %q", hsm.ErrCorrupt, label)
		}
		all[name] = o
	}
	return all, nil
}

// RecoveryKeys implements hsm.Recoverer.
func (p *Partition) RecoveryKeys(ctx context.Context) (all []hsm.RecoveryKey, err error) {
	err = p.do(ctx, func(s *session) error {
		objects, err := s.recoveryObjects()
		if err != nil {
			return err
		}
		all = nil // of an attempt before
		for name, o := range objects {
			k, err := p.describeRecoveryKey(s, name, o)
			if err != nil {
				return err
			}
			all = append(all, k)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b hsm.RecoveryKey) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// ImportRecovery implements hsm.Recoverer.
func (p *Partition) ImportRecovery(ctx context.Context, message []byte, want hsm.ImportExpectation) (g hsm.Generation, err error) {
	if p.cfg.Cloned {
		return g, hsm.ErrCloned
	}
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return g, err
	}
	err = p.ceremonial(ctx, func(s *session) error {
		key, err := p.recoveryKeyOf(s, m, want)
		if err != nil {
			return err
		}
		g, err = p.takeCopy(ctx, s, key, m)
		return err
	})
	if err != nil {
		return hsm.Generation{}, err
	}
	return g, nil
}

// recoveryKeyOf finds the recovery key that a copy is for, and verifies the copy. Any hash of
// the token's will do: a copy may be older than what the token has learnt since.
func (p *Partition) recoveryKeyOf(s *session, m hsm.TransferMessage, want hsm.ImportExpectation) (pkcs11.ObjectHandle, error) {
	objects, err := s.recoveryObjects()
	if err != nil {
		return 0, err
	}
	for name, o := range objects {
		k, err := p.describeRecoveryKey(s, name, o)
		if err != nil {
			return 0, err
		}
		if sha256.Sum256(k.SPKI) != m.SPKIHash {
			continue
		}
		if !slices.Contains(p.traits.oaep, m.OAEPHash) {
			return 0, fmt.Errorf("%w: recovery copy: it was made with OAEP with %s, this token has it with %s only",
				hsm.ErrRefused, hsm.OAEPName(m.OAEPHash), p.traits.oaepNames())
		}
		return o, m.Verify(want, hsm.Transfer{SPKI: k.SPKI, OAEPHash: m.OAEPHash})
	}
	return 0, fmt.Errorf("%w: recovery copy: this token has no recovery key that it was made for", hsm.ErrRefused)
}

// takeCopy opens the keys of a copy in the session that owns the loaded keys, all or none. The
// session s proves that they are the announced ones.
func (p *Partition) takeCopy(ctx context.Context, s *session, key pkcs11.ObjectHandle, m hsm.TransferMessage) (g hsm.Generation, err error) {
	l, id := s.link, domainID{m.Cluster, m.Generation}
	before := l.recoveredOf(m.Cluster)
	if before[id.number] != nil {
		return g, fmt.Errorf("generation %d: %w", id.number, hsm.ErrExists)
	}
	d := domain{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.heldBeside(ctx, l, s, func(owner *session) error { return owner.destroyAll(slices.Collect(maps.Values(d))) }))
		}
	}()
	for _, k := range m.Keys {
		want := p.traits.domainKey(k.Kind, id.name(k.Kind), false)
		err := p.heldBeside(ctx, l, s, func(owner *session) error {
			o, err := owner.unwrap(oaepWith(m.OAEPHash), key, k.Ciphertext, want)
			if err != nil {
				return blame(err, hsm.ErrRefused, func() error { return l.alive(owner) })
			}
			d[k.Kind] = o
			return nil
		})
		if err == nil {
			err = s.check(d[k.Kind], want)
		}
		if err != nil {
			return g, fmt.Errorf("recovery copy, key of kind %d: %w", k.Kind, err)
		}
	}
	if g, err = s.generation(p.traits, id.number, d); err != nil {
		return g, err
	}
	for i, k := range m.Keys { // which are in the order of a generation, see Verify
		if g.Checks[i].Kind != k.Kind || subtle.ConstantTimeCompare(g.Checks[i].Value[:], k.Check[:]) != 1 {
			return g, fmt.Errorf("%w: recovery copy: key of kind %d is not the announced one", hsm.ErrRefused, k.Kind)
		}
	}
	for _, other := range before {
		if err := p.sameLog(s, holdings{log: other[hsm.KindLog]}, m); err != nil {
			return g, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recovered[id] = d
	return g, nil
}

// recoveredOf are the generations of a cluster that copies were opened to.
func (l *link) recoveredOf(cluster hsm.ID) map[uint32]domain {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[uint32]domain{}
	for id, d := range l.recovered {
		if id.cluster == cluster {
			all[id.number] = d
		}
	}
	return all
}
