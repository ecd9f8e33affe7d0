package soft

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// key is a domain key of a generation; nil if there is none.
func (d *domain) key(number uint32, kind hsm.KeyKind) []byte {
	if kind == hsm.KindLog {
		return d.LogRoot
	}
	return d.Generations[number][kind]
}

// wipe overwrites every key.
func (d *domain) wipe() {
	clear(d.LogRoot)
	for _, keys := range d.Generations {
		for _, key := range keys {
			clear(key)
		}
	}
}

// generation describes one generation the domain holds.
func (d *domain) generation(number uint32) (hsm.Generation, error) {
	g := hsm.Generation{Number: number}
	for _, kind := range hsm.DomainKinds() {
		if kind.Later() && d.key(number, kind) == nil {
			continue
		}
		value, err := checkValue(kind, d.key(number, kind))
		if err != nil {
			return hsm.Generation{}, err
		}
		g.Checks = append(g.Checks, hsm.KeyCheck{Kind: kind, Value: value})
	}
	return g, nil
}

// checkValue is the check value of a domain key.
func checkValue(kind hsm.KeyKind, key []byte) ([16]byte, error) {
	if kind == hsm.KindMAC || kind == hsm.KindLog {
		return hsm.CheckFromMAC(mac(key, hsm.CheckMACMessage(kind)))
	}
	kek, err := aes.NewCipher(key)
	if err != nil {
		return [16]byte{}, fmt.Errorf("%w: domain key: %w", hsm.ErrCorrupt, err)
	}
	var zeros [hsm.DomainKeySize]byte
	return hsm.CheckFromWrap(kind, wrapKWP(kek, zeros[:])), nil
}

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

// domain is what the partition holds of the cluster; nil if nothing.
func (p *Partition) domain(cluster hsm.ID) *domain {
	return p.contents.Domains[hex.EncodeToString(cluster[:])]
}

// held is the domain of the cluster if it has the generation; otherwise
// ErrNotFound.
func (p *Partition) held(cluster hsm.ID, number uint32) (*domain, error) {
	if d := p.recovered[hex.EncodeToString(cluster[:])]; d != nil && d.Generations[number] != nil {
		return d, nil
	}
	return p.stored(cluster, number)
}

// stored is held of what is stored.
func (p *Partition) stored(cluster hsm.ID, number uint32) (*domain, error) {
	d := p.domain(cluster)
	if d == nil || d.Generations[number] == nil {
		return nil, fmt.Errorf("generation %d: %w", number, hsm.ErrNotFound)
	}
	return d, nil
}

// install stores a generation the partition does not hold yet.
func (p *Partition) install(cluster hsm.ID, number uint32, keys map[hsm.KeyKind][]byte) (hsm.Generation, error) {
	d := &domain{LogRoot: keys[hsm.KindLog], Generations: map[uint32]map[hsm.KeyKind][]byte{}}
	if old := p.domain(cluster); old != nil {
		maps.Copy(d.Generations, old.Generations)
	}
	d.Generations[number] = maps.Clone(keys)
	delete(d.Generations[number], hsm.KindLog)
	g, err := d.generation(number)
	if err != nil {
		return hsm.Generation{}, err
	}
	next := p.contents.with()
	next.Domains[hex.EncodeToString(cluster[:])] = d
	return g, p.store(next)
}

// CreateDomain implements hsm.Partition.
func (p *Partition) CreateDomain(ctx context.Context, cluster hsm.ID, number uint32) (hsm.Generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return hsm.Generation{}, err
	}
	if _, err := p.stored(cluster, number); err == nil {
		return hsm.Generation{}, fmt.Errorf("generation %d: %w", number, hsm.ErrExists)
	}
	keys := make(map[hsm.KeyKind][]byte)
	for _, kind := range hsm.DomainKinds() {
		keys[kind] = make([]byte, hsm.DomainKeySize)
		if _, err := rand.Read(keys[kind]); err != nil {
			return hsm.Generation{}, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
		}
	}
	if d := p.domain(cluster); d != nil {
		keys[hsm.KindLog] = d.LogRoot
	}
	return p.install(cluster, number, keys)
}

// DestroyDomain implements hsm.Partition.
func (p *Partition) DestroyDomain(ctx context.Context, cluster hsm.ID, g hsm.Generation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return err
	}
	old, err := p.stored(cluster, g.Number)
	if err != nil {
		return err
	}
	there, err := old.generation(g.Number)
	switch {
	case err != nil:
		return err
	case !there.Equal(g):
		return fmt.Errorf("%w: generation %d has other check values", hsm.ErrRefused, g.Number)
	case len(old.Generations) == 1:
		return fmt.Errorf("%w: generation %d is the only one", hsm.ErrRefused, g.Number)
	}
	d := &domain{LogRoot: old.LogRoot, Generations: maps.Clone(old.Generations)}
	delete(d.Generations, g.Number)
	next := p.contents.with()
	next.Domains[hex.EncodeToString(cluster[:])] = d
	return p.store(next)
}

// Generations implements hsm.Partition.
func (p *Partition) Generations(ctx context.Context, cluster hsm.ID) ([]hsm.Generation, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	numbers := map[uint32]*domain{}
	for _, d := range []*domain{p.domain(cluster), p.recovered[hex.EncodeToString(cluster[:])]} {
		if d != nil {
			for number := range d.Generations {
				numbers[number] = d
			}
		}
	}
	var all []hsm.Generation
	for _, number := range slices.Sorted(maps.Keys(numbers)) {
		g, err := numbers[number].generation(number)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// LogKey implements hsm.Partition.
func (p *Partition) LogKey(ctx context.Context, cluster hsm.ID) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	d := cmp.Or(p.recovered[hex.EncodeToString(cluster[:])], p.domain(cluster))
	if d == nil {
		return nil, fmt.Errorf("log key: %w", hsm.ErrNotFound)
	}
	return mac(d.LogRoot, hsm.LogKeyMessage(cluster)), nil
}

// Possess implements hsm.Partition.
func (p *Partition) Possess(ctx context.Context, proof hsm.Possession) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	message, err := hsm.PossessionMessage(proof)
	if err != nil {
		return nil, err
	}
	d, err := p.held(proof.Cluster, proof.Generation)
	if err != nil {
		return nil, err
	}
	return mac(d.key(proof.Generation, hsm.KindMAC), message), nil
}
