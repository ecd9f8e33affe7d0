//go:build cgo

package p11

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// A domain key is the token object with CKA_ID = cluster id (where keys of one class cannot
// share it: SHA-256 of the label) and CKA_LABEL =
// quorumkms/<cluster, hex>/<generation>/<kind>; the log root key, which belongs to
// all generations, has no generation in its label. The domain MAC key is made last
// and destroyed first: a generation without it is incomplete, as if not there.

type domainID struct {
	cluster hsm.ID
	number  uint32
}

// domain is the handles of a complete generation whose templates were checked.
type domain map[hsm.KeyKind]pkcs11.ObjectHandle

// wrapping is the key that wraps a key. ErrNotFound if the generation was made by a release
// that knew no keys of that class.
func (d domain) wrapping(h hsm.TokenHeader) (pkcs11.ObjectHandle, error) {
	kind := hsm.KeyKind(h.Class)
	key, ok := d[kind]
	if !ok {
		return 0, fmt.Errorf("generation %d has no key of kind %d: %w", h.Generation, kind, hsm.ErrNotFound)
	}
	return key, nil
}

func kindNames() map[hsm.KeyKind]string {
	return map[hsm.KeyKind]string{
		hsm.KeyKind(hsm.ClassAES): "aes", hsm.KeyKind(hsm.ClassHMAC): "hmac", hsm.KeyKind(hsm.ClassRSA): "rsa",
		hsm.KeyKind(hsm.ClassEC): "ec", hsm.KeyKind(hsm.ClassImportRSA): "import-rsa", residentKind: "resident",
		hsm.KindMAC: "mac", hsm.KindLog: "log",
	}
}

// name is the label and id of a domain key.
func (d domainID) name(kind hsm.KeyKind) template {
	name := labelPrefix + hex.EncodeToString(d.cluster[:])
	if kind != hsm.KindLog {
		name += "/" + strconv.FormatUint(uint64(d.number), 10)
	}
	return template{named(name + "/" + kindNames()[kind]), octets(pkcs11.CKA_ID, d.cluster[:])}
}

// parseName is the inverse of name; false for other objects. The log root key has
// number 0.
func parseName(name string) (d domainID, kind hsm.KeyKind, ok bool) {
	parts := strings.Split(strings.TrimPrefix(name, labelPrefix), "/")
	last := parts[len(parts)-1]
	for k, n := range kindNames() {
		if n == last {
			kind = k
		}
	}
	if kind == 0 || len(parts) < 2 || len(parts[0]) != hex.EncodedLen(len(d.cluster)) {
		return d, kind, false
	}
	if _, err := hex.Decode(d.cluster[:], []byte(parts[0])); err != nil {
		return d, kind, false
	}
	if len(parts) == 3 {
		number, err := strconv.ParseUint(parts[1], 10, 32)
		if err != nil {
			return d, kind, false
		}
		d.number = uint32(number)
	}
	return d, kind, string(d.name(kind)[0].value) == name
}

// holdings is what the token holds of one cluster, complete or not.
type holdings struct {
	log         pkcs11.ObjectHandle // 0: none
	generations map[uint32]domain
	copies      []copied // beside those above; of the log root key only such as are the same
}

// copied is another object with the name of a domain key: a vendor's cloning that was run
// twice leaves some. The copy with the lowest handle is used.
type copied struct {
	number uint32 // 0: of the log root key
	kind   hsm.KeyKind
	object pkcs11.ObjectHandle
}

// copiesOf are further copies of a generation's keys; of the log root key: of number 0.
func (h holdings) copiesOf(number uint32) (all []copied) {
	for _, c := range h.copies {
		if c.number == number {
			all = append(all, c)
		}
	}
	return all
}

// objectsOf are a generation's keys and their copies. The domain MAC keys stand first: what
// is left of a generation when they are destroyed is none.
func (h holdings) objectsOf(number uint32) []pkcs11.ObjectHandle {
	var macs, others []pkcs11.ObjectHandle
	sort := func(kind hsm.KeyKind, o pkcs11.ObjectHandle) {
		if isMAC(kind) {
			macs = append(macs, o)
		} else {
			others = append(others, o)
		}
	}
	for kind, o := range h.generations[number] {
		sort(kind, o)
	}
	for _, c := range h.copiesOf(number) {
		sort(c.kind, c.object)
	}
	return append(macs, others...)
}

func (h holdings) complete(number uint32) bool {
	_, ok := h.generations[number][hsm.KindMAC]
	return ok
}

// numbers are the complete generations.
func (h holdings) numbers() []uint32 {
	var list []uint32
	for _, number := range slices.Sorted(maps.Keys(h.generations)) {
		if h.complete(number) {
			list = append(list, number)
		}
	}
	return list
}

// numbers are the generations in use here: complete ones in the token, and what copies were
// opened to.
func (s *session) numbers(h holdings, cluster hsm.ID) []uint32 {
	list := slices.AppendSeq(h.numbers(), maps.Keys(s.link.recoveredOf(cluster)))
	slices.Sort(list)
	return slices.Compact(list)
}

// secretsOf finds the secret keys in the token that may be the cluster's: their labels tell.
func (s *session) secretsOf(cluster hsm.ID) ([]pkcs11.ObjectHandle, error) {
	ours := template{number(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), flag(pkcs11.CKA_TOKEN, true)}
	if !s.link.quirks.ownIDs {
		ours = append(ours, octets(pkcs11.CKA_ID, cluster[:]))
	}
	return s.find(ours)
}

func (s *session) holdings(cluster hsm.ID) (holdings, error) {
	h := holdings{generations: map[uint32]domain{}}
	objects, err := s.secretsOf(cluster)
	if err != nil {
		return h, err
	}
	slices.Sort(objects) // so that the same copy is used each time
	for _, o := range objects {
		label, err := s.attribute(o, pkcs11.CKA_LABEL)
		if err != nil {
			return h, err
		}
		d, kind, ok := parseName(string(label))
		if !ok || d.cluster != cluster {
			continue
		}
		if kind == hsm.KindLog {
			if h.log != 0 {
				if err := s.sameKey(traits{}, d, kind, h.log, o); err != nil {
					return h, err
				}
				h.copies = append(h.copies, copied{0, kind, o})
				continue
			}
			h.log = o
			continue
		}
		if h.generations[d.number] == nil {
			h.generations[d.number] = domain{}
		}
		if _, double := h.generations[d.number][kind]; double {
			h.copies = append(h.copies, copied{d.number, kind, o})
			continue
		}
		h.generations[d.number][kind] = o
	}
	return h, nil
}

// sameKey refuses two objects with the name of a domain key that are not the same key.
func (s *session) sameKey(t traits, id domainID, kind hsm.KeyKind, a, b pkcs11.ObjectHandle) error {
	var checks [2][16]byte
	for i, o := range []pkcs11.ObjectHandle{a, b} {
		var err error
		if checks[i], err = s.checkValue(t, kind, o); err != nil {
			return err
		}
	}
	if checks[0] != checks[1] {
		return fmt.Errorf("%w: two keys named %q, which are not the same", hsm.ErrCorrupt, id.name(kind)[0].value)
	}
	return nil
}

// domain finds a complete generation and checks the template of each of its keys,
// once a link. What a copy was opened to has been checked, and comes first.
func (p *Partition) domain(s *session, id domainID) (domain, error) {
	s.link.mu.Lock()
	d := s.link.recovered[id]
	if d == nil {
		d = s.link.domains[id]
	}
	s.link.mu.Unlock()
	if d != nil {
		return d, nil
	}
	return p.stored(s, id)
}

// stored looks for a generation in the token, whatever is known of it, and checks it.
func (p *Partition) stored(s *session, id domainID) (domain, error) {
	h, err := s.holdings(id.cluster)
	if err != nil {
		return nil, err
	}
	if !h.complete(id.number) {
		return nil, fmt.Errorf("generation %d: %w", id.number, hsm.ErrNotFound)
	}
	d := h.generations[id.number]
	if h.log != 0 {
		d[hsm.KindLog] = h.log
	}
	for _, kind := range hsm.DomainKinds() {
		o, ok := d[kind]
		if !ok && kind.Later() {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("%w: generation %d has no key of kind %d", hsm.ErrCorrupt, id.number, kind)
		}
		if p.accepts(probeTemplates) {
			continue
		}
		if err := s.check(o, p.traits.domainKey(kind, id.name(kind), true)); err != nil {
			return nil, fmt.Errorf("generation %d, key of kind %d: %w", id.number, kind, err)
		}
	}
	if err := p.checkCopies(s, id, h, d); err != nil {
		return nil, err
	}
	s.link.mu.Lock()
	s.link.domains[id] = d
	s.link.mu.Unlock()
	return d, nil
}

// uncache has a generation looked for, and checked, anew.
func (l *link) uncache(id domainID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.domains, id)
}

// checkCopies refuses a generation of which the token has two keys of a name that differ: in
// their values, or in what may be done with them. Copies of the same key do no harm.
func (p *Partition) checkCopies(s *session, id domainID, h holdings, d domain) error {
	copies := append(h.copiesOf(id.number), h.copiesOf(0)...)
	for _, c := range copies {
		if err := s.sameKey(p.traits, id, c.kind, d[c.kind], c.object); err != nil {
			return err
		}
		if p.accepts(probeTemplates) {
			continue
		}
		if err := s.check(c.object, p.traits.domainKey(c.kind, id.name(c.kind), true)); err != nil {
			return fmt.Errorf("generation %d, another copy of the key of kind %d: %w", id.number, c.kind, err)
		}
	}
	if len(copies) > 0 {
		p.cfg.Logger.Warn("hsm token holds keys of a domain more than once: the copies are the same, and one of each is used", "generation", id.number, "copies", len(copies))
	}
	return nil
}

func (p *Partition) accepts(probe string) bool { return slices.Contains(p.cfg.AcceptWeakness, probe) }

// checkValue is the check value of a domain key.
func (s *session) checkValue(t traits, kind hsm.KeyKind, key pkcs11.ObjectHandle) (value [16]byte, err error) {
	if kind == hsm.KindMAC || kind == hsm.KindLog {
		mac, err := s.mac(key, hsm.CheckMACMessage(kind))
		if err != nil {
			return value, err
		}
		return hsm.CheckFromMAC(mac)
	}
	zeros, err := s.create(known(pkcs11.CKK_GENERIC_SECRET, make([]byte, hsm.DomainKeySize)))
	if err != nil {
		return value, err
	}
	defer func() { err = errors.Join(err, s.destroy(zeros)) }()
	w, err := s.wrap(t.keyWrap(), key, zeros)
	return hsm.CheckFromWrap(kind, w), err
}

func (s *session) generation(t traits, number uint32, d domain) (hsm.Generation, error) {
	g := hsm.Generation{Number: number}
	for _, kind := range hsm.DomainKinds() {
		if _, ok := d[kind]; !ok && kind.Later() {
			continue
		}
		value, err := s.checkValue(t, kind, d[kind])
		if err != nil {
			return hsm.Generation{}, err
		}
		g.Checks = append(g.Checks, hsm.KeyCheck{Kind: kind, Value: value})
	}
	return g, nil
}

// ceremonial runs fn as do does, one at a time.
func (p *Partition) ceremonial(ctx context.Context, fn func(*session) error) error {
	select {
	case p.ceremony <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, context.Cause(ctx))
	}
	defer func() { <-p.ceremony }()
	return p.do(ctx, fn)
}

// vacate makes room for a generation: it removes what earlier attempts left behind.
// ErrExists if the generation is there.
func (s *session) vacate(id domainID) (holdings, error) {
	h, err := s.holdings(id.cluster)
	if err != nil {
		return h, err
	}
	if h.complete(id.number) {
		return h, fmt.Errorf("generation %d: %w", id.number, hsm.ErrExists)
	}
	for number := range h.generations {
		if h.complete(number) {
			continue
		}
		if err := s.destroyAll(h.objectsOf(number)); err != nil {
			return h, err
		}
		delete(h.generations, number)
	}
	if h.log != 0 && len(h.generations) == 0 {
		unused := []pkcs11.ObjectHandle{h.log}
		for _, c := range h.copiesOf(0) {
			unused = append(unused, c.object)
		}
		err = s.destroyAll(unused)
		h.log = 0
	}
	return h, err
}

// install makes the keys of a generation, of these kinds, all or none. h is what vacate left.
func (s *session) install(t traits, id domainID, h holdings, kinds []hsm.KeyKind, makeKey func(hsm.KeyKind, template) (pkcs11.ObjectHandle, error)) (g hsm.Generation, err error) {
	d := domain{}
	var made []pkcs11.ObjectHandle // newest first
	defer func() {
		if err != nil {
			err = errors.Join(err, s.destroyAll(made))
		}
	}()
	if h.log != 0 {
		d[hsm.KindLog] = h.log
	}
	for _, kind := range append(slices.DeleteFunc(slices.Clone(kinds), isMAC), hsm.KindMAC) {
		if _, there := d[kind]; there {
			continue
		}
		want := t.domainKey(kind, id.name(kind), true)
		o, err := makeKey(kind, want)
		if err != nil {
			return g, fmt.Errorf("key of kind %d: %w", kind, err)
		}
		made = append([]pkcs11.ObjectHandle{o}, made...)
		if err := s.check(o, want); err != nil {
			return g, fmt.Errorf("key of kind %d: %w", kind, err)
		}
		d[kind] = o
	}
	return s.generation(t, id.number, d)
}

func isMAC(kind hsm.KeyKind) bool { return kind == hsm.KindMAC }

// CreateDomain implements hsm.Partition.
func (p *Partition) CreateDomain(ctx context.Context, cluster hsm.ID, number uint32) (g hsm.Generation, err error) {
	id := domainID{cluster, number}
	err = p.ceremonial(ctx, func(s *session) error {
		h, err := s.vacate(id)
		if err != nil {
			return err
		}
		g, err = s.install(p.traits, id, h, hsm.DomainKinds(), s.generateDomainKey)
		return err
	})
	return g, err
}

// DestroyDomain implements hsm.Partition.
func (p *Partition) DestroyDomain(ctx context.Context, cluster hsm.ID, g hsm.Generation) error {
	id := domainID{cluster, g.Number}
	return p.ceremonial(ctx, func(s *session) error {
		h, err := s.holdings(cluster)
		switch {
		case err != nil:
			return err
		case len(h.generations[g.Number]) == 0:
			return fmt.Errorf("generation %d: %w", g.Number, hsm.ErrNotFound)
		case h.complete(g.Number): // of what an earlier attempt has left there are no check values
			if err := p.mustBe(s, cluster, g); err != nil {
				return err
			}
			if len(h.numbers()) == 1 {
				return fmt.Errorf("%w: generation %d is the only one", hsm.ErrRefused, g.Number)
			}
		}
		s.link.uncache(id)
		return s.destroyAll(h.objectsOf(g.Number))
	})
}

// mustBe refuses unless the token's generation of that number, each copy of it, has those
// check values: it looks anew.
func (p *Partition) mustBe(s *session, cluster hsm.ID, g hsm.Generation) error {
	d, err := p.stored(s, domainID{cluster, g.Number})
	if err != nil {
		return err
	}
	there, err := s.generation(p.traits, g.Number, d)
	if err != nil {
		return err
	}
	if !there.Equal(g) {
		return fmt.Errorf("%w: generation %d has other check values", hsm.ErrRefused, g.Number)
	}
	return nil
}

func (s *session) generateDomainKey(kind hsm.KeyKind, t template) (pkcs11.ObjectHandle, error) {
	m := uint(pkcs11.CKM_AES_KEY_GEN)
	if kind == hsm.KindMAC || kind == hsm.KindLog {
		m = pkcs11.CKM_GENERIC_SECRET_KEY_GEN
	}
	return s.generate(m, t.with(number(pkcs11.CKA_VALUE_LEN, hsm.DomainKeySize)))
}

// Generations implements hsm.Partition.
func (p *Partition) Generations(ctx context.Context, cluster hsm.ID) (all []hsm.Generation, err error) {
	err = p.do(ctx, func(s *session) error {
		h, err := s.holdings(cluster)
		if err != nil {
			return err
		}
		all = nil // of an attempt before
		for _, number := range s.numbers(h, cluster) {
			d, err := p.domain(s, domainID{cluster, number})
			if err != nil {
				return err
			}
			g, err := s.generation(p.traits, number, d)
			if err != nil {
				return err
			}
			all = append(all, g)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// LogKey implements hsm.Partition.
func (p *Partition) LogKey(ctx context.Context, cluster hsm.ID) (key []byte, err error) {
	err = p.do(ctx, func(s *session) error {
		h, err := s.holdings(cluster)
		if err != nil {
			return err
		}
		numbers := slices.Sorted(maps.Keys(s.link.recoveredOf(cluster)))
		if len(numbers) == 0 {
			numbers = h.numbers()
		}
		if len(numbers) == 0 {
			return fmt.Errorf("log key: %w", hsm.ErrNotFound)
		}
		d, err := p.domain(s, domainID{cluster, numbers[0]})
		if err != nil {
			return err
		}
		key, err = s.mac(d[hsm.KindLog], hsm.LogKeyMessage(cluster))
		return err
	})
	return key, err
}

// Possess implements hsm.Partition.
func (p *Partition) Possess(ctx context.Context, proof hsm.Possession) (mac []byte, err error) {
	message, err := hsm.PossessionMessage(proof)
	if err != nil {
		return nil, err
	}
	err = p.do(ctx, func(s *session) error {
		d, err := p.domain(s, domainID{proof.Cluster, proof.Generation})
		if err != nil {
			return err
		}
		mac, err = s.mac(d[hsm.KindMAC], message)
		return err
	})
	return mac, err
}
