package soft

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// EnsureRecoveryKey implements hsm.Recoverer.
func (p *Partition) EnsureRecoveryKey(ctx context.Context, name string) (k hsm.RecoveryKey, made bool, err error) {
	if err := hsm.ValidRecoveryName(name); err != nil {
		return k, false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return k, false, err
	}
	if p.cloned {
		return k, false, hsm.ErrCloned
	}
	if p.contents.Recovery[name] == nil {
		if err := p.makeRecoveryKey(name); err != nil {
			return k, false, err
		}
		made = true
	}
	key, err := p.recoveryKey(name)
	if err != nil {
		return k, false, err
	}
	k, err = p.describe(name, key)
	return k, made, err
}

func (p *Partition) makeRecoveryKey(name string) error {
	key, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	if err != nil {
		return fmt.Errorf("%w: recovery key: %w", hsm.ErrUnavailable, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("%w: recovery key: %w", hsm.ErrUnavailable, err)
	}
	next := p.contents.with()
	if next.Recovery == nil {
		next.Recovery = map[string][]byte{}
	}
	next.Recovery[name] = der
	return p.store(next)
}

func (p *Partition) recoveryKey(name string) (*rsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(p.contents.Recovery[name])
	if err != nil {
		return nil, fmt.Errorf("%w: recovery key %s: %w", hsm.ErrCorrupt, name, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: recovery key %s is none of RSA", hsm.ErrCorrupt, name)
	}
	return key, nil
}

func (p *Partition) describe(name string, key *rsa.PrivateKey) (hsm.RecoveryKey, error) {
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err == nil {
		_, err = hsm.RecoveryPublicKey(spki)
	}
	if err != nil {
		return hsm.RecoveryKey{}, fmt.Errorf("%w: recovery key %s: %v", hsm.ErrCorrupt, name, err) //nolint:errorlint // the file's fault, not a refusal
	}
	return hsm.RecoveryKey{Name: name, SPKI: spki, OAEPHash: p.oaepHash}, nil
}

// RecoveryKeys implements hsm.Recoverer.
func (p *Partition) RecoveryKeys(ctx context.Context) (all []hsm.RecoveryKey, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.contents.Recovery)) {
		key, err := p.recoveryKey(name)
		if err != nil {
			return nil, err
		}
		k, err := p.describe(name, key)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// ImportRecovery implements hsm.Recoverer.
func (p *Partition) ImportRecovery(ctx context.Context, message []byte, want hsm.ImportExpectation) (hsm.Generation, error) {
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
	key, err := p.recoveryKeyOf(m)
	if err != nil {
		return hsm.Generation{}, err
	}
	keys, err := unwrapKeys(key, m.OAEPHash, m, want)
	if err != nil {
		return hsm.Generation{}, err
	}
	cluster := hex.EncodeToString(m.Cluster[:])
	d := p.recovered[cluster]
	if d == nil {
		d = &domain{LogRoot: keys[hsm.KindLog], Generations: map[uint32]map[hsm.KeyKind][]byte{}}
	}
	if d.Generations[m.Generation] != nil {
		return hsm.Generation{}, fmt.Errorf("generation %d: %w", m.Generation, hsm.ErrExists)
	}
	if err := sameLog(d, keys); err != nil {
		return hsm.Generation{}, err
	}
	delete(keys, hsm.KindLog)
	d.Generations[m.Generation], p.recovered[cluster] = keys, d
	return d.generation(m.Generation)
}

// recoveryKeyOf is the recovery key that a message is for.
func (p *Partition) recoveryKeyOf(m hsm.TransferMessage) (*rsa.PrivateKey, error) {
	for name := range p.contents.Recovery {
		key, err := p.recoveryKey(name)
		if err != nil {
			return nil, err
		}
		k, err := p.describe(name, key)
		if err != nil {
			return nil, err
		}
		if sha256.Sum256(k.SPKI) == m.SPKIHash {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: recovery copy: this partition has no recovery key that it was made for", hsm.ErrRefused)
}
