//go:build cgo

package p11

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

func cloned(token string) Config { return clonedOf(config(token)) }

func clonedOf(cfg Config) Config {
	cfg.Cloned = true
	return cfg
}

// TestClonedKeysStay: in the profile cloned not even a key that the Security Officer
// trusts wraps a domain key; in generic it does.
func TestClonedKeysStay(t *testing.T) {
	recipient, err := mustOpen(t, config(newToken(t))).NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, profile := range []struct {
		name   string
		config func(string) Config
		leaves bool
	}{{"generic", config, true}, {"cloned", cloned, false}} {
		p := mustOpen(t, profile.config(newToken(t)))
		if _, err := p.CreateDomain(t.Context(), testCluster, 1); err != nil {
			t.Fatal(err)
		}
		mustTrust(t, p.Info().Label, recipient.SPKI)
		onSession(t, p, func(s *session) error {
			d, err := p.domain(s, domainID{testCluster, 1})
			if err != nil {
				return err
			}
			trusted, err := s.trusted(recipient.SPKI)
			if err != nil {
				return err
			}
			for _, kind := range hsm.DomainKinds() {
				if _, err := s.wrap(oaepWith(p.traits.oaep[0]), trusted, d[kind]); (err == nil) != profile.leaves {
					t.Errorf("%s: the key of kind %d, wrapped with a trusted key: %v", profile.name, kind, err)
				}
			}
			return nil
		})
	}
}

// TestOtherProfile: a token whose domain keys were made in one profile is refused in the
// other, and it is said why.
func TestOtherProfile(t *testing.T) {
	for _, row := range []struct {
		made, used func(string) Config
		text       string
	}{
		{config, cloned, "it was made in the transfer profile generic, and cloned is configured"},
		{cloned, config, "it was made in the transfer profile cloned, and generic is configured"},
	} {
		token := newToken(t)
		p, err := Open(t.Context(), row.made(token))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateDomain(t.Context(), testCluster, 1); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), row.used(token)); !errors.Is(err, hsm.ErrSelfTest) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("error %v, want one with %q", err, row.text)
		}
		mustOpen(t, row.made(token))
	}
}

// TestAdopt: a clone gets an identity key of its own, and keeps its domain keys.
func TestAdopt(t *testing.T) {
	cfg := cloned(newToken(t))
	p, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.CreateDomain(t.Context(), testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	came := p.Identity()
	onSession(t, p, func(s *session) error { // cloning into a token that had one: then there are two
		_, _, err := s.generatePair(pkcs11.CKM_EC_KEY_PAIR_GEN, identityPublic(true), identityPrivate(true))
		return err
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrCorrupt) || !strings.Contains(err.Error(), "2 private and 2 public objects") {
		t.Errorf("two identity keys: %v", err)
	}
	own, err := Adopt(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p = mustOpen(t, cfg)
	if string(p.Identity()) != string(own) || string(own) == string(came) {
		t.Error("the adopted token has another identity than the one shown, or the one that came with the clone")
	}
	all, err := p.Generations(t.Context(), testCluster)
	if err != nil || len(all) != 1 || all[0].Checks[0] != made.Checks[0] {
		t.Errorf("the adopted token holds %v, %v", all, err)
	}
	if _, err := Adopt(t.Context(), config(newToken(t))); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("adopting a token of the profile generic: %v", err)
	}
	wrong := cloned(newToken(t))
	wrong.PIN = []byte("wrong-pin")
	if _, err := Adopt(t.Context(), wrong); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("adopting with a wrong PIN: %v", err)
	}
}

// TestTrustedForAnyMechanism: a key that the Security Officer has trusted, but for more
// than OAEP, wraps with PKCS #1 v1.5, and the self-test finds it.
func TestTrustedForAnyMechanism(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, hsm.TransferKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(newToken(t))
	err = asOfficer(t.Context(), TrustConfig{Token: cfg.Token, SOPIN: []byte(testSOPIN)}, func(so *session) error {
		_, err := so.create(trustedTemplate(spki).less([]uint{pkcs11.CKA_ALLOWED_MECHANISMS}).with(
			octets(pkcs11.CKA_MODULUS, key.N.Bytes()), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent())))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), cfg)
	for _, text := range []string{"oaep-key-other-mechanism", "trusted key wraps, PKCS #1 v1.5 succeeds", probeTemplates} {
		if !errors.Is(err, hsm.ErrSelfTest) || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want one with %q", err, text)
		}
	}
}

// TestTrustedByOfficer gives the probe that trusts keys the rights of the Security
// Officer: it must find that it can.
func TestTrustedByOfficer(t *testing.T) {
	token := newToken(t)
	var f findings
	err := asOfficer(t.Context(), TrustConfig{Token: token, SOPIN: []byte(testSOPIN)}, func(so *session) error {
		b := &bench{session: so, domain: domain{}}
		key, err := rsa.GenerateKey(rand.Reader, scratchBits)
		if err != nil {
			return err
		}
		b.public, err = b.create(rsaPublic(nil, false).with(
			octets(pkcs11.CKA_MODULUS, key.N.Bytes()), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent())))
		if err != nil {
			return err
		}
		b.trustedByUser(&f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.detail(), "the user creates a trusted RSA key succeeds") {
		t.Errorf("found only: %s", f.detail())
	}
}
