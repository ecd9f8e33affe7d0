//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// A twin is the token object with CKA_ID = cluster id and CKA_LABEL = the label of its
// domain key and "/twin". The twin of the AES class is made last and destroyed first:
// without it there is none.

const twinSuffix = "/twin"

// twinName is the label and id of the twin of a domain key.
func (d domainID) twinName(kind hsm.KeyKind) template {
	return template{named(string(d.name(kind)[0].value) + twinSuffix), octets(pkcs11.CKA_ID, d.cluster[:])}
}

// parseTwinName is the inverse of twinName; false for other objects.
func parseTwinName(label string) (d domainID, kind hsm.KeyKind, ok bool) {
	name, isTwin := strings.CutSuffix(label, twinSuffix)
	d, kind, ok = parseName(name)
	return d, kind, isTwin && ok && slices.Contains(hsm.WrappingKinds(), kind)
}

// twins finds what the token has of twins of a cluster, complete or not.
func (s *session) twins(cluster hsm.ID) (map[uint32]domain, error) {
	all := map[uint32]domain{}
	objects, err := s.secretsOf(cluster)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		label, err := s.attribute(o, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		d, kind, ok := parseTwinName(string(label))
		if !ok || d.cluster != cluster {
			continue
		}
		if all[d.number] == nil {
			all[d.number] = domain{}
		}
		if _, double := all[d.number][kind]; double {
			return nil, fmt.Errorf("%w: two keys named %q", hsm.ErrCorrupt, label)
		}
		all[d.number][kind] = o
	}
	return all, nil
}

// completes tells whether a twin is whole.
func completes(d domain) bool { return d[hsm.KeyKind(hsm.ClassAES)] != 0 }

// Twins implements hsm.Rewrapper.
func (p *Partition) Twins(ctx context.Context, cluster hsm.ID) (numbers []uint32, err error) {
	err = p.ceremonial(ctx, func(s *session) error {
		all, err := s.twins(cluster)
		if err != nil {
			return err
		}
		for _, number := range slices.Sorted(maps.Keys(all)) {
			if completes(all[number]) {
				numbers = append(numbers, number)
			} else if err := s.destroyAll(slices.Collect(maps.Values(all[number]))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return numbers, nil
}

// InstallTwin implements hsm.Rewrapper.
func (p *Partition) InstallTwin(ctx context.Context, message []byte, want hsm.ImportExpectation) error {
	m, err := hsm.ParseTransfer(message)
	if err != nil {
		return err
	}
	id := domainID{m.Cluster, m.Generation}
	return p.ceremonial(ctx, func(s *session) error {
		key, err := p.transferKey(s, m, want)
		if err != nil {
			return err
		}
		d, err := p.domain(s, id)
		if err != nil {
			return err
		}
		own, err := s.generation(p.traits, id.number, d)
		if err != nil {
			return err
		}
		if !slices.Equal(own.Checks, want.Generation.Checks) {
			return fmt.Errorf("%w: twin: this partition holds another generation %d", hsm.ErrRefused, id.number)
		}
		unseal := func(kind hsm.KeyKind, t template) (pkcs11.ObjectHandle, error) {
			return s.unwrap(oaepWith(m.OAEPHash), key, ciphertext(m, kind), t)
		}
		if err := p.rehearse(s, id, m, unseal); err != nil {
			return err
		}
		if err := s.installTwin(p.traits, id, own, unseal); err != nil {
			return err
		}
		if err := s.destroy(key); err != nil { // the next NewTransfer tries again
			p.cfg.Logger.Warn("hsm transfer key not destroyed", "error", err)
		}
		return nil
	})
}

// installTwin makes the twin of a generation, whole or not at all.
func (s *session) installTwin(t traits, id domainID, g hsm.Generation, unseal func(hsm.KeyKind, template) (pkcs11.ObjectHandle, error)) (err error) {
	all, err := s.twins(id.cluster)
	if err != nil {
		return err
	}
	if completes(all[id.number]) {
		return fmt.Errorf("twin of generation %d: %w", id.number, hsm.ErrExists)
	}
	made := slices.Collect(maps.Values(all[id.number])) // by an earlier attempt that got no further
	if err := s.destroyAll(made); err != nil {
		return err
	}
	made = nil
	defer func() {
		if err != nil {
			err = errors.Join(err, s.destroyAll(made))
		}
	}()
	kinds := hsm.WrappingKinds()
	slices.Reverse(kinds) // AES last
	for _, kind := range kinds {
		if !slices.ContainsFunc(g.Checks, func(k hsm.KeyCheck) bool { return k.Kind == kind }) {
			continue // of a release that did not know it
		}
		want := t.twin(kind, id.twinName(kind), true)
		o, err := unseal(kind, want)
		if err != nil {
			return fmt.Errorf("twin of kind %d: %w", kind, err)
		}
		made = append([]pkcs11.ObjectHandle{o}, made...)
		if err := s.check(o, want); err != nil {
			return fmt.Errorf("twin of kind %d: %w", kind, err)
		}
	}
	return nil
}

// DestroyTwin implements hsm.Rewrapper.
func (p *Partition) DestroyTwin(ctx context.Context, cluster hsm.ID, number uint32) error {
	return p.ceremonial(ctx, func(s *session) error {
		all, err := s.twins(cluster)
		if err != nil {
			return err
		}
		keys, ok := all[number]
		if !ok {
			return fmt.Errorf("twin of generation %d: %w", number, hsm.ErrNotFound)
		}
		if completes(keys) {
			if err := s.destroy(keys[hsm.KeyKind(hsm.ClassAES)]); err != nil {
				return err
			}
			delete(keys, hsm.KeyKind(hsm.ClassAES))
		}
		return s.destroyAll(slices.Collect(maps.Values(keys)))
	})
}

// Rewrap implements hsm.Rewrapper.
func (p *Partition) Rewrap(ctx context.Context, ref hsm.Ref, to uint32) (token []byte, err error) {
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	old, err := hsm.ParseToken(ref.Token)
	if err != nil {
		return nil, err
	}
	err = p.do(ctx, func(s *session) error {
		token, err = p.rewrap(s, old, ref, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	ref.Token, ref.Want.Generation = token, to
	if err := hsm.TryOpen(ctx, p, ref); err != nil {
		return nil, fmt.Errorf("rewrapped key does not open: %w", err)
	}
	return token, nil
}

func (p *Partition) rewrap(s *session, old hsm.Token, ref hsm.Ref, to uint32) (token []byte, err error) {
	domainKey, err := p.authenticate(s, old, ref.Want)
	if err != nil {
		return nil, err
	}
	next, err := p.domain(s, domainID{old.Header.Cluster, to})
	if err != nil {
		return nil, err
	}
	h := old.Header
	h.Generation = to
	wrapping, err := next.wrapping(h)
	if err != nil {
		return nil, err
	}
	all, err := s.twins(old.Header.Cluster)
	if err != nil {
		return nil, err
	}
	twin := all[old.Header.Generation]
	if !completes(twin) {
		return nil, fmt.Errorf("twin of generation %d: %w", old.Header.Generation, hsm.ErrNotFound)
	}
	twinKey, err := twin.wrapping(old.Header)
	if err != nil {
		return nil, err
	}
	opened, err := p.traits.opened(ref, true)
	if err != nil {
		return nil, err
	}
	key, err := s.unwrap(p.traits.keyWrap(), twinKey, old.Wrapped, opened)
	if err != nil {
		return nil, fmt.Errorf("open key: %w", blame(err, hsm.ErrCorrupt, func() error { return s.opensKeys(p.traits, ref.Kind.Class, domainKey) }))
	}
	defer func() { err = errors.Join(err, s.destroy(key)) }()
	wrapped, err := s.wrap(p.traits.keyWrap(), wrapping, key)
	if err != nil {
		return nil, err
	}
	return hsm.BuildToken(h, old.Check, wrapped, func(message []byte) ([]byte, error) {
		return s.mac(next[hsm.KindMAC], message)
	})
}
