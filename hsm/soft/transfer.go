package soft

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"fmt"

	"github.com/quorumkms/quorumkms/hsm"
)

// NewTransfer implements hsm.Partition. The key is in memory only.
func (p *Partition) NewTransfer(ctx context.Context) (hsm.Transfer, error) {
	if p.cloned {
		return hsm.Transfer{}, hsm.ErrCloned
	}
	key, err := rsa.GenerateKey(rand.Reader, hsm.TransferKeyBits)
	if err != nil {
		return hsm.Transfer{}, fmt.Errorf("%w: transfer key: %w", hsm.ErrUnavailable, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return hsm.Transfer{}, fmt.Errorf("%w: transfer key: %w", hsm.ErrUnavailable, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return hsm.Transfer{}, err
	}
	t := hsm.Transfer{SPKI: spki, OAEPHash: p.oaepHash}
	if t.Signature, err = p.sign(hsm.TransferKeyMessage(t)); err != nil {
		return hsm.Transfer{}, err
	}
	p.transfer = key
	return t, nil
}

// Export implements hsm.Partition. Every hash of OAEP will do.
func (p *Partition) Export(ctx context.Context, r hsm.ExportRequest) ([]byte, error) {
	pub, err := r.Check()
	if err != nil {
		return nil, err
	}
	return p.export(ctx, pub, r.Transfer.SPKI, hsm.TransferMessage{
		Cluster: r.Cluster, Epoch: r.Epoch, Generation: r.Generation, Donor: r.Donor, Recipient: r.Recipient, OAEPHash: r.Transfer.OAEPHash,
	})
}

// Trusted implements hsm.Partition.
func (p *Partition) Trusted(ctx context.Context, spki []byte) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return err
	}
	return p.isTrusted(spki)
}

// ExportRecovery implements hsm.Partition.
func (p *Partition) ExportRecovery(ctx context.Context, r hsm.RecoveryRequest) ([]byte, error) {
	pub, err := r.Check()
	if err != nil {
		return nil, err
	}
	return p.export(ctx, pub, r.SPKI, hsm.TransferMessage{
		Cluster: r.Cluster, Epoch: r.Epoch, Generation: r.Generation, Donor: r.Donor, Recipient: r.Recipient,
		OAEPHash: cmp.Or(r.OAEPHash, hsm.OAEPSHA256),
	})
}

// export completes a message with the keys of its generation, wrapped for a key that is
// trusted.
func (p *Partition) export(ctx context.Context, pub *rsa.PublicKey, spki []byte, m hsm.TransferMessage) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	if p.cloned {
		return nil, hsm.ErrCloned
	}
	d, err := p.held(m.Cluster, m.Generation)
	if err != nil {
		return nil, err
	}
	if err := p.isTrusted(spki); err != nil {
		return nil, err
	}
	g, err := d.generation(m.Generation)
	if err != nil {
		return nil, err
	}
	oaep, err := hsm.NewOAEPHash(m.OAEPHash)
	if err != nil {
		return nil, err
	}
	m.SPKIHash = sha256.Sum256(spki)
	for _, c := range g.Checks {
		ciphertext, err := rsa.EncryptOAEP(oaep, rand.Reader, pub, d.key(m.Generation, c.Kind), nil)
		if err != nil {
			return nil, fmt.Errorf("%w: export: %w", hsm.ErrUnavailable, err)
		}
		m.Keys = append(m.Keys, hsm.TransferKeyEntry{Kind: c.Kind, Check: c.Value, Ciphertext: ciphertext})
	}
	if m.Signature, err = p.sign(m.Signed()); err != nil {
		return nil, err
	}
	return m.Encode()
}

// Import implements hsm.Partition.
func (p *Partition) Import(ctx context.Context, message []byte, want hsm.ImportExpectation) (hsm.Generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return hsm.Generation{}, err
	}
	if p.cloned {
		return hsm.Generation{}, hsm.ErrCloned
	}
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return hsm.Generation{}, err
	}
	if p.transfer == nil {
		return hsm.Generation{}, fmt.Errorf("%w: import: there is no transfer key", hsm.ErrRefused)
	}
	g, err := p.take(p.transfer, p.oaepHash, m, want)
	if err != nil {
		return hsm.Generation{}, err
	}
	if !want.More {
		p.transfer = nil
	}
	return g, nil
}

// RecoverWith takes a generation in from a copy that was wrapped for a recovery key whose
// private half is at hand. It checks what Import does; want.More means nothing.
func (p *Partition) RecoverWith(ctx context.Context, key *rsa.PrivateKey, message []byte, want hsm.ImportExpectation) (hsm.Generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return hsm.Generation{}, err
	}
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return hsm.Generation{}, err
	}
	return p.take(key, m.OAEPHash, m, want)
}

// take opens a message with a key and installs the generation in it.
func (p *Partition) take(key *rsa.PrivateKey, oaepHash uint8, m hsm.TransferMessage, want hsm.ImportExpectation) (hsm.Generation, error) {
	keys, err := unwrapKeys(key, oaepHash, m, want)
	if err != nil {
		return hsm.Generation{}, err
	}
	if d := p.domain(m.Cluster); d != nil {
		if d.Generations[m.Generation] != nil {
			return hsm.Generation{}, fmt.Errorf("generation %d: %w", m.Generation, hsm.ErrExists)
		}
		if err := sameLog(d, keys); err != nil {
			return hsm.Generation{}, err
		}
	}
	return p.install(m.Cluster, m.Generation, keys)
}

// sameLog refuses keys with another log root key than the domain's.
func sameLog(d *domain, keys map[hsm.KeyKind][]byte) error {
	if !hmac.Equal(d.LogRoot, keys[hsm.KindLog]) {
		return fmt.Errorf("%w: import: another log key than the cluster's", hsm.ErrRefused)
	}
	return nil
}

// unwrapKeys verifies a message and decrypts its keys.
func unwrapKeys(private *rsa.PrivateKey, oaepHash uint8, m hsm.TransferMessage, want hsm.ImportExpectation) (map[hsm.KeyKind][]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: transfer key: %w", hsm.ErrUnavailable, err)
	}
	if err := m.Verify(want, hsm.Transfer{SPKI: spki, OAEPHash: oaepHash}); err != nil {
		return nil, err
	}
	oaep, err := hsm.NewOAEPHash(m.OAEPHash)
	if err != nil {
		return nil, err
	}
	keys := make(map[hsm.KeyKind][]byte)
	for _, entry := range m.Keys {
		key, err := rsa.DecryptOAEP(oaep, nil, private, entry.Ciphertext, nil)
		if err != nil || len(key) != hsm.DomainKeySize {
			return nil, fmt.Errorf("%w: import: key of kind %d does not decrypt", hsm.ErrRefused, entry.Kind)
		}
		check, err := checkValue(entry.Kind, key)
		if err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare(check[:], entry.Check[:]) != 1 {
			return nil, fmt.Errorf("%w: import: key of kind %d is not the announced one", hsm.ErrRefused, entry.Kind)
		}
		keys[entry.Kind] = key
	}
	return keys, nil
}
