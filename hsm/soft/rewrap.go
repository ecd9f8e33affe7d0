package soft

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// twin names a generation with a twin. The key is the same: here nothing imposes
// anything on what it unwraps.
type twin struct {
	cluster hsm.ID
	number  uint32
}

// InstallTwin implements hsm.Rewrapper.
func (p *Partition) InstallTwin(ctx context.Context, message []byte, want hsm.ImportExpectation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return err
	}
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return err
	}
	if p.transfer == nil {
		return fmt.Errorf("%w: twin: there is no transfer key", hsm.ErrRefused)
	}
	keys, err := unwrapKeys(p.transfer, p.oaepHash, m, want)
	if err != nil {
		return err
	}
	defer func() {
		for _, key := range keys {
			clear(key)
		}
	}()
	d, err := p.held(m.Cluster, m.Generation)
	if err != nil {
		return err
	}
	own, err := d.generation(m.Generation)
	if err != nil {
		return err
	}
	t := twin{m.Cluster, m.Generation}
	switch {
	case !slices.Equal(own.Checks, want.Generation.Checks):
		return fmt.Errorf("%w: twin: this partition holds another generation %d", hsm.ErrRefused, m.Generation)
	case p.twins[t]:
		return fmt.Errorf("twin of generation %d: %w", m.Generation, hsm.ErrExists)
	}
	p.twins[t], p.transfer = true, nil
	return nil
}

// Twins implements hsm.Rewrapper.
func (p *Partition) Twins(ctx context.Context, cluster hsm.ID) ([]uint32, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	var numbers []uint32
	for t := range p.twins {
		if t.cluster == cluster {
			numbers = append(numbers, t.number)
		}
	}
	slices.SortFunc(numbers, cmp.Compare)
	return numbers, nil
}

// DestroyTwin implements hsm.Rewrapper.
func (p *Partition) DestroyTwin(ctx context.Context, cluster hsm.ID, number uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(ctx); err != nil {
		return err
	}
	t := twin{cluster, number}
	if !p.twins[t] {
		return fmt.Errorf("twin of generation %d: %w", number, hsm.ErrNotFound)
	}
	delete(p.twins, t)
	return nil
}

// Rewrap implements hsm.Rewrapper.
func (p *Partition) Rewrap(ctx context.Context, ref hsm.Ref, to uint32) ([]byte, error) {
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	token, err := p.rewrap(ctx, ref, to)
	if err != nil {
		return nil, err
	}
	ref.Token, ref.Want.Generation = token, to
	if err := hsm.TryOpen(ctx, p, ref); err != nil {
		return nil, fmt.Errorf("rewrapped key does not open: %w", err)
	}
	return token, nil
}

func (p *Partition) rewrap(ctx context.Context, ref hsm.Ref, to uint32) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	t, raw, err := p.unwrap(ref.Token, ref.Want)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	h := t.Header
	if !p.twins[twin{h.Cluster, h.Generation}] {
		return nil, fmt.Errorf("twin of generation %d: %w", h.Generation, hsm.ErrNotFound)
	}
	d, err := p.held(h.Cluster, to)
	if err != nil {
		return nil, err
	}
	h.Generation = to
	kek, err := d.wrapping(h)
	if err != nil {
		return nil, err
	}
	return hsm.BuildToken(h, t.Check, wrapKWP(kek, raw), func(message []byte) ([]byte, error) {
		return mac(d.key(to, hsm.KindMAC), message), nil
	})
}
