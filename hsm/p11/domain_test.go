//go:build cgo

package p11

import (
	"bytes"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

func TestParseName(t *testing.T) {
	id := domainID{testCluster, 4294967295}
	for _, kind := range hsm.DomainKinds() {
		label := string(id.name(kind)[0].value)
		got, gotKind, ok := parseName(label)
		want := id
		if kind == hsm.KindLog {
			want.number = 0
		}
		if !ok || got != want || gotKind != kind {
			t.Errorf("%s: %v %d %t", label, got, gotKind, ok)
		}
		if len(label) > 64 {
			t.Errorf("%s: %d bytes, tokens take 64 at least", label, len(label))
		}
	}
	const c = "c1010203040506070809000a0b0c0d0e"
	for _, label := range []string{
		"", "quorumkms/", "quorumkms/nik", "quorumkms/transfer", "quorumkms/trusted", "aes", c + "/1/aes",
		"quorumkms/" + c, "quorumkms/" + c + "/aes", "quorumkms/" + c + "/1/log", "quorumkms/" + c + "/01/aes",
		"quorumkms/" + c + "/+1/aes", "quorumkms/" + c + "/-1/aes", "quorumkms/" + c + "/4294967296/aes",
		"quorumkms/" + c + "/1/aes/", "quorumkms/" + c + "/1/2/aes", "quorumkms/" + c + "/1/des",
		"quorumkms/" + c + "00/1/aes", "quorumkms/C1010203040506070809000a0b0c0d0e/1/aes", "quorumkms/xx/1/aes",
	} {
		if d, kind, ok := parseName(label); ok {
			t.Errorf("%q is taken for generation %d, kind %d", label, d.number, kind)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, kind := range hsm.DomainKinds() {
		f.Add(string(domainID{testCluster, 7}.name(kind)[0].value))
	}
	f.Add("quorumkms/nik")
	f.Fuzz(func(t *testing.T, label string) {
		d, kind, ok := parseName(label)
		if ok && string(d.name(kind)[0].value) != label {
			t.Errorf("%q is not canonical", label)
		}
	})
}

// TestLeftovers: what a crash in the middle of CreateDomain leaves is recognised and
// removed.
func TestLeftovers(t *testing.T) {
	for _, made := range [][]hsm.KeyKind{
		{aesKind},
		{aesKind, hsm.KeyKind(hsm.ClassEC), hsm.KindLog},
		{hsm.KindLog},
	} {
		p := mustOpen(t, config(newToken(t)))
		id := domainID{testCluster, 1}
		onSession(t, p, func(s *session) error {
			for _, kind := range made {
				if _, err := s.generateDomainKey(kind, p.traits.domainKey(kind, id.name(kind), true)); err != nil {
					return err
				}
			}
			return nil
		})
		if g, err := p.Generations(t.Context(), testCluster); err != nil || len(g) != 0 {
			t.Errorf("leftovers %v are generations %v (%v)", made, g, err)
		}
		if _, err := p.LogKey(t.Context(), testCluster); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("leftovers %v: log key: %v", made, err)
		}
		if _, err := p.GenerateKey(t.Context(), testSpec(1)); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("leftovers %v: generate key: %v", made, err)
		}
		if _, err := p.CreateDomain(t.Context(), testCluster, 2); err != nil {
			t.Errorf("leftovers %v: %v", made, err)
		}
		if n := countObjects(t, p); n != 2+len(hsm.DomainKinds()) {
			t.Errorf("leftovers %v: %d objects in the end", made, n)
		}
	}
}

// TestInstallIsAllOrNothing fails each step of making a generation.
func TestInstallIsAllOrNothing(t *testing.T) {
	p := withDomain(t)
	id := domainID{testCluster, 2}
	before := countObjects(t, p)
	first, err := p.Generations(t.Context(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	errStep := errors.New("no more")
	for steps := range len(hsm.DomainKinds()) - 1 {
		err := p.do(t.Context(), func(s *session) error {
			h, err := s.vacate(id)
			if err != nil {
				return err
			}
			left := steps
			_, err = s.install(p.traits, id, h, hsm.DomainKinds(), func(kind hsm.KeyKind, want template) (pkcs11.ObjectHandle, error) {
				if left == 0 {
					return 0, errStep
				}
				left--
				return s.generateDomainKey(kind, want)
			})
			return err
		})
		if !errors.Is(err, errStep) {
			t.Fatalf("step %d: %v", steps, err)
		}
		if n := countObjects(t, p); n != before {
			t.Errorf("step %d leaves %d objects", steps, n-before)
		}
	}
	if after, err := p.Generations(t.Context(), testCluster); err != nil || !reflect.DeepEqual(first, after) {
		t.Errorf("the other generation changed: %v (%v)", after, err)
	}
	wrong := func(s *session, kind hsm.KeyKind, want template) (pkcs11.ObjectHandle, error) {
		return s.generateDomainKey(kind, want.with(flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)))
	}
	err = p.do(t.Context(), func(s *session) error {
		_, err := s.install(p.traits, id, holdings{}, hsm.DomainKinds(), func(kind hsm.KeyKind, want template) (pkcs11.ObjectHandle, error) {
			return wrong(s, kind, want)
		})
		return err
	})
	if n := countObjects(t, p); !errors.Is(err, hsm.ErrCorrupt) || n != before {
		t.Errorf("a token that does not do what it is told: %v, %d objects left", err, n-before)
	}
}

// TestDamagedGeneration: a key that was tampered with while the node ran is not
// used after the token was opened again.
func TestDamagedGeneration(t *testing.T) {
	id := domainID{testCluster, 1}
	replace := func(kind hsm.KeyKind, entries ...attribute) func(*Partition, *session, domain) error {
		return func(p *Partition, s *session, d domain) error {
			if err := s.destroy(d[kind]); err != nil {
				return err
			}
			_, err := s.generateDomainKey(kind, p.traits.domainKey(kind, id.name(kind), true).with(entries...))
			return err
		}
	}
	for name, damage := range map[string]func(*Partition, *session, domain) error{
		"a key is missing":         func(_ *Partition, s *session, d domain) error { return s.destroy(d[aesKind]) },
		"the log key is missing":   func(_ *Partition, s *session, d domain) error { return s.destroy(d[hsm.KindLog]) },
		"a key may leave":          replace(aesKind, flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)),
		"a key may do more":        replace(hsm.KindMAC, flag(pkcs11.CKA_DERIVE, true)),
		"a key unwraps as it will": replace(aesKind, attribute{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: template{flag(pkcs11.CKA_SENSITIVE, true)}}),
		"a key is there twice": func(p *Partition, s *session, _ domain) error {
			_, err := s.generateDomainKey(aesKind, p.traits.domainKey(aesKind, id.name(aesKind), true))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := withDomain(t)
			onSession(t, p, func(s *session) error {
				d, err := p.domain(s, id)
				if err != nil {
					return err
				}
				s.link.mu.Lock()
				delete(s.link.domains, id) // as after the token was opened again
				s.link.mu.Unlock()
				return damage(p, s, d)
			})
			if _, err := p.GenerateKey(t.Context(), testSpec(1)); !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("generate key: %v, want %v", err, hsm.ErrCorrupt)
			}
			if _, err := p.Generations(t.Context(), testCluster); !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("generations: %v, want %v", err, hsm.ErrCorrupt)
			}
		})
	}
}

// knownDomainKey makes a key of a generation with a value that is given, as a vendor's cloning
// puts the same key into a token again.
func (s *session) knownDomainKey(kind hsm.KeyKind, t template, value byte) (pkcs11.ObjectHandle, error) {
	keyType := uint(pkcs11.CKK_AES)
	if kind == hsm.KindMAC || kind == hsm.KindLog {
		keyType = pkcs11.CKK_GENERIC_SECRET
	}
	return s.create(t.with(number(pkcs11.CKA_KEY_TYPE, keyType), octets(pkcs11.CKA_VALUE, bytes.Repeat([]byte{value}, hsm.DomainKeySize))))
}

// TestCopiedGeneration: keys that are in the token more than once are used if they are the
// same, and destroyed together.
func TestCopiedGeneration(t *testing.T) {
	id := domainID{testCluster, 2}
	var told logged
	cfg := config(newToken(t))
	cfg.Logger = slog.New(slog.NewTextHandler(&told, nil))
	p := mustOpen(t, cfg)
	before := countObjects(t, p)
	if _, err := p.CreateDomain(t.Context(), testCluster, 1); err != nil {
		t.Fatal(err)
	}
	var g hsm.Generation
	onSession(t, p, func(s *session) error {
		h, err := s.vacate(id)
		if err != nil {
			return err
		}
		g, err = s.install(p.traits, id, h, hsm.DomainKinds(), func(kind hsm.KeyKind, want template) (pkcs11.ObjectHandle, error) {
			return s.knownDomainKey(kind, want, byte(kind))
		})
		return err
	})
	spec := testSpec(1)
	spec.Generation = 2
	made, err := p.GenerateKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	want, err := spec.Header()
	if err != nil {
		t.Fatal(err)
	}
	single := countObjects(t, p)
	again := func(value byte, kinds ...hsm.KeyKind) {
		onSession(t, p, func(s *session) error {
			s.link.uncache(id) // as after the token was opened again
			for _, kind := range kinds {
				if _, err := s.knownDomainKey(kind, p.traits.domainKey(kind, id.name(kind), true), value|byte(kind)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 2 {
		for _, kind := range hsm.DomainKinds() {
			if kind != hsm.KindLog {
				again(0, kind)
			}
		}
	}
	key, err := p.Open(t.Context(), made.Token, want)
	if err != nil {
		t.Fatalf("copied twice: %v", err)
	}
	key.Close()
	all, err := p.Generations(t.Context(), testCluster)
	if err != nil || len(all) != 2 || !all[1].Equal(g) {
		t.Fatalf("copied twice, generations %v (%v)", all, err)
	}
	if !told.says("hsm token holds keys of a domain more than once") {
		t.Error("nobody is told")
	}
	if err := p.DestroyDomain(t.Context(), testCluster, g); err != nil {
		t.Fatal(err)
	}
	if n := countObjects(t, p); n != single-len(hsm.DomainKinds())+1 {
		t.Errorf("%d objects are left, want none of the copies: %d", n, single-len(hsm.DomainKinds())+1)
	}
	if n := countObjects(t, p); n != before+len(hsm.DomainKinds()) {
		t.Errorf("%d objects are left", n)
	}
}

// TestCopiesThatDiffer: two keys of one name that are not the same, or of which one may do
// more, are used by nobody, and destroyed by no node.
func TestCopiesThatDiffer(t *testing.T) {
	id := domainID{testCluster, 1}
	for name, add := range map[string]func(*Partition, *session) error{
		"another value": func(p *Partition, s *session) error {
			_, err := s.generateDomainKey(hsm.KindMAC, p.traits.domainKey(hsm.KindMAC, id.name(hsm.KindMAC), true))
			return err
		},
		"another log key": func(p *Partition, s *session) error {
			_, err := s.generateDomainKey(hsm.KindLog, p.traits.domainKey(hsm.KindLog, id.name(hsm.KindLog), true))
			return err
		},
		"the same key, which may do more": func(p *Partition, s *session) error {
			d, err := p.domain(s, id)
			if err != nil {
				return err
			}
			want := p.traits.domainKey(aesKind, id.name(aesKind), true)
			if err := s.destroy(d[aesKind]); err != nil {
				return err
			}
			for _, t := range []template{want, want.with(flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false))} {
				if _, err := s.knownDomainKey(aesKind, t, 7); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		p := withDomain(t)
		all, err := p.Generations(t.Context(), testCluster)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateDomain(t.Context(), testCluster, 2); err != nil {
			t.Fatal(err)
		}
		onSession(t, p, func(s *session) error {
			if err := add(p, s); err != nil {
				return err
			}
			s.link.uncache(id)
			return nil
		})
		n := countObjects(t, p)
		if _, err := p.Generations(t.Context(), testCluster); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: generations: %v", name, err)
		}
		if _, err := p.GenerateKey(t.Context(), testSpec(1)); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: generate key: %v", name, err)
		}
		if err := p.DestroyDomain(t.Context(), testCluster, all[0]); !errors.Is(err, hsm.ErrCorrupt) || countObjects(t, p) != n {
			t.Errorf("%s: destroy: %v", name, err)
		}
	}
}

func TestGenerationsShareTheLogKey(t *testing.T) {
	p := withDomain(t)
	log1, err := p.LogKey(t.Context(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateDomain(t.Context(), testCluster, 1); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("again: %v, want %v", err, hsm.ErrExists)
	}
	if _, err := p.CreateDomain(t.Context(), testCluster, 7); err != nil {
		t.Fatal(err)
	}
	other := hsm.ID{0xc2}
	if _, err := p.CreateDomain(t.Context(), other, 1); err != nil {
		t.Fatal(err)
	}
	log7, err := p.LogKey(t.Context(), testCluster)
	if err != nil || !slices.Equal(log1, log7) {
		t.Errorf("the log key changed (%v)", err)
	}
	if foreign, err := p.LogKey(t.Context(), other); err != nil || slices.Equal(log1, foreign) {
		t.Errorf("two clusters share a log key (%v)", err)
	}
	all, err := p.Generations(t.Context(), testCluster)
	if err != nil || len(all) != 2 || all[0].Number != 1 || all[1].Number != 7 {
		t.Fatalf("generations %v (%v)", all, err)
	}
	for i, c := range all[0].Checks {
		if same := c == all[1].Checks[i]; same != (c.Kind == hsm.KindLog) {
			t.Errorf("kind %d: same check value is %t", c.Kind, same)
		}
	}
}

// TestDestroyDomainGoesOn: what an earlier attempt has left of a generation is destroyed.
func TestDestroyDomainGoesOn(t *testing.T) {
	p := withDomain(t)
	made, err := p.CreateDomain(t.Context(), testCluster, 7)
	if err != nil {
		t.Fatal(err)
	}
	left := func() (n int) {
		onSession(t, p, func(s *session) error {
			h, err := s.holdings(testCluster)
			n = len(h.generations[7])
			return err
		})
		return n
	}
	onSession(t, p, func(s *session) error {
		h, err := s.holdings(testCluster)
		if err != nil {
			return err
		}
		return s.destroy(h.generations[7][hsm.KindMAC])
	})
	if n := left(); n == 0 {
		t.Fatal("nothing is left to destroy")
	}
	if err := p.DestroyDomain(t.Context(), testCluster, made); err != nil {
		t.Fatal(err)
	}
	if n := left(); n != 0 {
		t.Errorf("%d keys of the generation are left", n)
	}
	if err := p.DestroyDomain(t.Context(), testCluster, made); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("destroying it again: %v, want %v", err, hsm.ErrNotFound)
	}
}
