//go:build cgo

package p11

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// secretWith puts a known key of a kind, with other attributes, in the place of those of
// the bench.
func secretWith(b *bench, k hsm.Kind, drop []uint, entries ...attribute) error {
	known, err := ofKnown(k)
	if err != nil {
		return err
	}
	key, err := b.create(join(known.values, secretKeyTemplate(k, false).with(entries...).less(drop)))
	b.secrets = []openedSecret{{k, key}}
	return err
}

// TestProbesCanFail gives each probe objects that lack a protection: it must find
// the attacks which that protection prevents, and name them.
func TestProbesCanFail(t *testing.T) {
	p := mustOpen(t, config(newToken(t)))
	modifiable := flag(pkcs11.CKA_MODIFIABLE, true)
	aesKey := func(b *bench, drop []uint, entries ...attribute) error {
		want := b.traits.domainKey(aesKind, scratch(aesKind), false).with(entries...)
		var err error
		b.domain[aesKind], err = b.generateDomainKey(aesKind, want.less(drop))
		return err
	}
	// of makes a domain key of another kind.
	of := func(kind hsm.KeyKind, b *bench, drop []uint, entries ...attribute) error {
		want := b.traits.domainKey(kind, scratch(kind), false).with(entries...)
		var err error
		b.domain[kind], err = b.generateDomainKey(kind, want.less(drop))
		return err
	}
	nik := func(b *bench, drop []uint, entries ...attribute) error {
		var err error
		_, b.nik, err = b.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN, identityPublic(false), identityPrivate(false).with(entries...).less(drop))
		return err
	}
	master := func(b *bench, drop []uint, entries ...attribute) error {
		want := masterKey(false).with(entries...).with(number(pkcs11.CKA_VALUE_LEN, keySize))
		var err error
		b.master, err = b.generate(pkcs11.CKM_AES_KEY_GEN, want.less(drop))
		return err
	}
	transfer := func(b *bench, drop []uint, entries ...attribute) error {
		var err error
		b.public, b.private, err = b.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			rsaPublic(nil, false).with(newRSA(scratchBits)...).less(drop),
			transferPrivate(nil, false).with(entries...).less(drop))
		return err
	}
	all := func(kinds []uint) (on []attribute) {
		for _, kind := range kinds {
			on = append(on, flag(kind, true))
		}
		return on
	}
	unwrapTemplate := func(nested ...attribute) attribute {
		return attribute{kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: nested}
	}
	for _, c := range []struct {
		probe, lacks string
		weaken       func(*bench) error
		finds        []string
	}{
		{
			"domain-key-unwraps-readable", "an unwrap template",
			func(b *bench) error { return aesKey(b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE}) },
			[]string{"unwraps a key readable", "unwraps a key extractable", "as it likes", "with usage 0x105"},
		},
		{
			"domain-key-unwraps-readable", "SENSITIVE in the unwrap template",
			func(b *bench) error { return aesKey(b, nil, unwrapTemplate(flag(pkcs11.CKA_EXTRACTABLE, false))) },
			[]string{"unwraps a key readable"},
		},
		{
			"domain-key-mechanisms-not-imposed", "mechanisms in the unwrap template",
			func(b *bench) error {
				err := aesKey(b, nil, attribute{
					kind:   pkcs11.CKA_UNWRAP_TEMPLATE,
					nested: b.traits.unwrapTemplate(hsm.ClassAES).less([]uint{pkcs11.CKA_ALLOWED_MECHANISMS}),
				})
				if err == nil {
					b.wrapped, err = b.wrap(b.traits.keyWrap(), b.domain[aesKind], b.payload)
				}
				return err
			},
			[]string{"for CBC", "for any mechanism"},
		},
		{
			"domain-key-leaves", "WRAP_WITH_TRUSTED",
			func(b *bench) error { return aesKey(b, nil, flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)) },
			[]string{"kind 1 wrapped with a known key, RFC 5649", "kind 1 wrapped with an untrusted public key, OAEP with SHA-1", "kind 1 wrapped with a domain key"},
		},
		{
			"domain-key-unwraps-readable", "an unwrap template in the key of class HMAC",
			func(b *bench) error { return of(hsm.KeyKind(hsm.ClassHMAC), b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE}) },
			[]string{"kind 2 unwraps a key readable", "kind 2 unwraps a key extractable"},
		},
		{
			"domain-key-unwraps-readable", "an unwrap template in the key of class RSA",
			func(b *bench) error { return of(hsm.KeyKind(hsm.ClassRSA), b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE}) },
			[]string{"kind 3 unwraps a key readable", "kind 3 unwraps a key extractable"},
		},
		{
			"domain-key-unwraps-readable", "an unwrap template in the key of class EC",
			func(b *bench) error { return of(hsm.KeyKind(hsm.ClassEC), b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE}) },
			[]string{"kind 4 unwraps a key readable", "kind 4 unwraps a key extractable"},
		},
		{
			"domain-key-unwraps-readable", "an unwrap template in the key for imports",
			func(b *bench) error {
				return of(hsm.KeyKind(hsm.ClassImportRSA), b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE})
			},
			[]string{"kind 5 unwraps a key readable", "kind 5 unwraps a key extractable"},
		},
		{
			"domain-key-leaves", "WRAP_WITH_TRUSTED in the MAC key",
			func(b *bench) error { return of(hsm.KindMAC, b, nil, flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)) },
			[]string{"kind 16 wrapped with a known key, RFC 5649", "kind 16 wrapped with a domain key"},
		},
		{
			"domain-key-leaves", "WRAP_WITH_TRUSTED in the log root key",
			func(b *bench) error { return of(hsm.KindLog, b, nil, flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)) },
			[]string{"kind 17 wrapped with a known key, RFC 5649", "kind 17 wrapped with an untrusted public key, OAEP with SHA-1"},
		},
		{
			"identity-key-leaves", "EXTRACTABLE=F",
			func(b *bench) error { return nik(b, nil, flag(pkcs11.CKA_EXTRACTABLE, true)) },
			[]string{"identity key wrapped with a known key, RFC 5649"},
		},
		{
			"identity-key-leaves", "SENSITIVE",
			func(b *bench) error {
				return nik(b, nil, flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"identity key read"},
		},
		{
			"identity-key-leaves", "MODIFIABLE and COPYABLE",
			func(b *bench) error { return nik(b, nil, modifiable, flag(ckaCopyable, true)) },
			[]string{"identity key changed in", "identity key copied with another"},
		},
		{
			"domain-key-leaves", "SENSITIVE",
			func(b *bench) error { return aesKey(b, nil, flag(pkcs11.CKA_SENSITIVE, false)) },
			[]string{"kind 1 read"},
		},
		{
			"domain-key-other-mechanism", "a list of mechanisms",
			func(b *bench) error { return aesKey(b, []uint{pkcs11.CKA_ALLOWED_MECHANISMS}) },
			[]string{"domain key wraps, RFC 3394", "domain key unwraps, RFC 3394"},
		},
		{
			"domain-key-other-mechanism", "limits of usage",
			func(b *bench) error {
				return aesKey(b, []uint{pkcs11.CKA_ALLOWED_MECHANISMS}, all(secretUsages())...)
			},
			[]string{"domain key decrypts ECB", "domain key encrypts CBC", "domain key signs CMAC"},
		},
		{
			"domain-key-altered", "MODIFIABLE and COPYABLE",
			func(b *bench) error { return aesKey(b, nil, modifiable, flag(ckaCopyable, true)) },
			[]string{"kind 1 changed in 0x105", "kind 1 copied with another 0x105"},
		},
		{
			"oaep-key-other-mechanism", "a list of mechanisms",
			func(b *bench) error { return transfer(b, []uint{pkcs11.CKA_ALLOWED_MECHANISMS}) },
			[]string{"untrusted key wraps, PKCS #1 v1.5", "transfer key unwraps, PKCS #1 v1.5"},
		},
		{
			"oaep-key-other-mechanism", "limits of usage",
			func(b *bench) error {
				return transfer(b, []uint{pkcs11.CKA_ALLOWED_MECHANISMS}, all(privateUsages())...)
			},
			[]string{"transfer key decrypts, OAEP with SHA-1", "transfer key signs, PKCS #1 v1.5"},
		},
		{
			"transfer-key-unwraps-readable", "an unwrap template",
			func(b *bench) error { return transfer(b, []uint{pkcs11.CKA_UNWRAP_TEMPLATE}) },
			[]string{"as it likes", "with another 0x103", "with another 0x210", "with another 0x105"},
		},
		{
			"transfer-key-unwraps-readable", "SENSITIVE and EXTRACTABLE=F",
			func(b *bench) error {
				return transfer(b, nil, flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"transfer key read in", "transfer key wrapped with an ordinary key", "transfer key wrapped with a domain key"},
		},
		{
			"transfer-key-unwraps-readable", "WRAP_WITH_TRUSTED in the unwrap template",
			func(b *bench) error {
				return transfer(b, nil, attribute{
					kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: arriving().less([]uint{pkcs11.CKA_WRAP_WITH_TRUSTED}),
				})
			},
			[]string{"with another 0x210"},
		},
		{
			"master-key-leaves", "EXTRACTABLE=F",
			func(b *bench) error { return master(b, nil, flag(pkcs11.CKA_EXTRACTABLE, true)) },
			[]string{"wrapped with a known key, RFC 5649", "wrapped with a domain key"},
		},
		{
			"master-key-leaves", "SENSITIVE",
			func(b *bench) error {
				return master(b, nil, flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"master key read"},
		},
		{
			"master-key-other-mechanism", "a list of mechanisms",
			func(b *bench) error { return master(b, []uint{pkcs11.CKA_ALLOWED_MECHANISMS}) },
			[]string{"master key encrypts CBC", "master key encrypts CTR"},
		},
		{
			"master-key-leaves", "EXTRACTABLE=F in an HMAC key",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassHMAC, Bits: 256}, nil, flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"key for HMAC_SHA_256 wrapped with a known key, RFC 5649", "key for HMAC_SHA_256 wrapped with a domain key"},
		},
		{
			"master-key-leaves", "EXTRACTABLE=F in a private key",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassEC, Bits: 256}, nil, flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"key for ECDSA_SHA_256 wrapped with a known key, RFC 5649"},
		},
		{
			"master-key-leaves", "SENSITIVE in a private key",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}, nil, flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true))
			},
			[]string{"key for RSASSA_PSS_SHA_256 read in 0x123", "key for RSASSA_PSS_SHA_256 read in 0x124"},
		},
		{
			"master-key-other-mechanism", "a list of mechanisms in an RSA key",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}, []uint{pkcs11.CKA_ALLOWED_MECHANISMS})
			},
			[]string{"key for RSASSA_PSS_SHA_256 signs raw RSA", "key for RSASSA_PSS_SHA_256 decrypts OAEP", "key for RSASSA_PSS_SHA_256 decrypts raw RSA"},
		},
		{
			"master-key-other-mechanism", "a list of mechanisms in an RSA key that decrypts",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassRSA, Bits: 2048, Decrypts: true}, []uint{pkcs11.CKA_ALLOWED_MECHANISMS})
			},
			[]string{"key for RSAES_OAEP_SHA_1 signs PSS", "key for RSAES_OAEP_SHA_1 signs PKCS #1 v1.5"},
		},
		{
			"master-key-altered", "MODIFIABLE and COPYABLE in a private key",
			func(b *bench) error {
				return secretWith(b, hsm.Kind{Class: hsm.ClassEC, Bits: 384}, nil, modifiable, flag(ckaCopyable, true))
			},
			[]string{"key for ECDSA_SHA_384 changed in", "key for ECDSA_SHA_384 copied with another"},
		},
		{
			"master-key-altered", "MODIFIABLE and COPYABLE",
			func(b *bench) error { return master(b, nil, modifiable, flag(ckaCopyable, true)) },
			[]string{"master key changed in 0x105", "master key copied with another 0x105"},
		},
	} {
		t.Run(c.probe+" without "+c.lacks, func(t *testing.T) {
			var f findings
			onSession(t, p, func(s *session) error {
				b := &bench{session: s, domain: domain{}, traits: traits{kwp: p.traits.kwp}}
				b.setUp(&f)
				if f.faults != nil {
					t.Fatalf("set up: %v", f.faults)
				}
				if err := c.weaken(b); err != nil {
					return err
				}
				f = findings{}
				i := slices.IndexFunc(probes(), func(p probe) bool { return p.name == c.probe })
				probes()[i].run(b, &f)
				return s.link.replace(s) // and with it the scratch objects
			})
			if f.lost != nil {
				t.Fatalf("token lost: %v", f.lost)
			}
			for _, text := range c.finds {
				if !slices.ContainsFunc(f.faults, func(fault string) bool { return strings.Contains(fault, text) }) {
					t.Errorf("does not find %q, only: %s", text, f.detail())
				}
			}
		})
	}
}

// TestPlantedObjects: whoever has the PIN can put objects into the token while the
// node is down. The next start refuses to serve.
func TestPlantedObjects(t *testing.T) {
	id := domainID{testCluster, 1}
	for name, c := range map[string]struct {
		plant func(*Partition, *session) error
		finds []string
	}{
		"domain key without unwrap template": {
			func(p *Partition, s *session) error {
				_, err := s.generateDomainKey(aesKind, p.traits.domainKey(aesKind, id.name(aesKind), true).less([]uint{pkcs11.CKA_UNWRAP_TEMPLATE}))
				return err
			},
			[]string{probeTemplates, "domain-key-unwraps-readable"},
		},
		"domain key with another unwrap template": {
			func(p *Partition, s *session) error {
				_, err := s.generateDomainKey(aesKind, p.traits.domainKey(aesKind, id.name(aesKind), true).with(attribute{
					kind: pkcs11.CKA_UNWRAP_TEMPLATE, nested: p.traits.unwrapTemplate(hsm.ClassAES).with(flag(pkcs11.CKA_SENSITIVE, false)),
				}))
				return err
			},
			[]string{probeTemplates, "domain-key-unwraps-readable"},
		},
		"domain mac key that leaves": {
			func(p *Partition, s *session) error {
				_, err := s.generateDomainKey(hsm.KindMAC, p.traits.domainKey(hsm.KindMAC, id.name(hsm.KindMAC), true).with(
					flag(pkcs11.CKA_WRAP_WITH_TRUSTED, false)))
				return err
			},
			[]string{probeTemplates, "domain-key-leaves"},
		},
		"domain key of known value": {
			func(p *Partition, s *session) error {
				_, err := s.create(p.traits.domainKey(aesKind, id.name(aesKind), true).with(
					flag(pkcs11.CKA_SENSITIVE, false), octets(pkcs11.CKA_VALUE, ordinaryValue())))
				return err
			},
			[]string{probeTemplates, "domain-key-leaves"},
		},
		"transfer key without unwrap template": {
			func(_ *Partition, s *session) error {
				name := template{named(labelTransfer)}
				_, _, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, rsaPublic(name, false).with(newRSA(scratchBits)...),
					transferPrivate(name, true).less([]uint{pkcs11.CKA_UNWRAP_TEMPLATE}))
				return err
			},
			[]string{probeTemplates},
		},
		"recovery key without unwrap template": {
			func(_ *Partition, s *session) error {
				_, _, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, rsaPublic(nil, false).with(newRSA(scratchBits)...),
					recoveryPrivate("vault").less([]uint{pkcs11.CKA_UNWRAP_TEMPLATE}))
				return err
			},
			[]string{probeTemplates, "transfer-key-unwraps-readable"},
		},
		"recovery key that leaves and decrypts": {
			func(_ *Partition, s *session) error {
				_, _, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, rsaPublic(nil, false).with(newRSA(scratchBits)...),
					recoveryPrivate("vault").with(flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_DECRYPT, true)))
				return err
			},
			[]string{probeTemplates, "oaep-key-other-mechanism", "transfer-key-unwraps-readable"},
		},
		"unknown object of ours": {
			func(_ *Partition, s *session) error {
				_, err := s.create(plainToken(labelPrefix + "surprise"))
				return err
			},
			[]string{probeTemplates, "domain-key-leaves"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(newToken(t))
			p, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			onSession(t, p, func(s *session) error { return c.plant(p, s) })
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), cfg)
			if !errors.Is(err, hsm.ErrSelfTest) {
				t.Fatalf("error %v, want %v", err, hsm.ErrSelfTest)
			}
			for i, probe := range c.finds {
				if !strings.Contains(err.Error(), probe) {
					t.Errorf("error %q does not name %s", err, probe)
				}
				cfg.AcceptWeakness = c.finds[:i]
				if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrSelfTest) {
					t.Errorf("with %v accepted: %v, want %v", cfg.AcceptWeakness, err, hsm.ErrSelfTest)
				}
			}
			cfg.AcceptWeakness = c.finds
			for _, probe := range mustOpen(t, cfg).Info().Probes {
				if weak := slices.Contains(c.finds, probe.Name); probe.Passed == weak || probe.Accepted != weak {
					t.Errorf("probe %+v", probe)
				}
			}
		})
	}
}

func plainToken(label string) template {
	return known(pkcs11.CKK_GENERIC_SECRET, ordinaryValue()).with(
		flag(pkcs11.CKA_TOKEN, true), named(label))
}

// TestForeignObjects: a token may serve others too.
func TestForeignObjects(t *testing.T) {
	cfg := config(newToken(t))
	p, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	onSession(t, p, func(s *session) error {
		_, err := s.create(plainToken("somebody else's").with(octets(pkcs11.CKA_ID, testCluster[:])))
		return err
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, cfg)
	if _, err := again.CreateDomain(t.Context(), testCluster, 1); err != nil {
		t.Error(err)
	}
}

// TestFindingsAreBrief: what is alike is told once, and not more than can be read.
func TestFindingsAreBrief(t *testing.T) {
	var f findings
	for _, kind := range []int{17, 1, 3, 3} {
		f.refuse(fmt.Sprintf("domain key of kind %d wrapped with a known key, ECB", kind), nil)
	}
	f.refuse("domain key of kind 16 read", nil)
	f.fault("an identity key: domain key of kind unknown")
	f.refuse("a refused one", pkcs11.Error(pkcs11.CKR_KEY_UNEXTRACTABLE))
	const want = "an identity key: domain key of kind unknown; domain key of kind 16 read succeeds; domain keys of kinds 1, 3, 17 wrapped with a known key, ECB succeeds; 1 attempts refused"
	if got := f.detail(); got != want {
		t.Errorf("told %q", got)
	}
	for i := range 200 {
		f.fault("quorumkms/%03d wrapped with an ordinary key succeeds", i)
	}
	got := f.detail()
	if n := len(got); n > maxFaults+64 || n < maxFaults/2 {
		t.Errorf("%d bytes", n)
	}
	shown := strings.Count(got, "; ") - 2 // of them, without what is left out and refused
	if !strings.Contains(got, fmt.Sprintf("; and %d more; 1 attempts refused", 203-1-shown)) {
		t.Errorf("%d faults are told in %q", shown+1, got)
	}
	f.faults = []string{strings.Repeat("x", 2*maxFaults)}
	if got := f.detail(); got != strings.Repeat("x", maxFaults)+" …; 1 attempts refused" {
		t.Errorf("one long fault, told as %q", got)
	}
}
