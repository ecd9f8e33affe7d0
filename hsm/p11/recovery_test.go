//go:build cgo

package p11

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// TestRecoveryCopyLeavesNothing: what a copy opens to is no object of the token's, works as
// domain keys do, and cannot be taken out of the token without its Security Officer.
func TestRecoveryCopyLeavesNothing(t *testing.T) {
	ctx := t.Context()
	donor, p := mustOpen(t, config(newToken(t))), mustOpen(t, config(newToken(t)))
	g, err := donor.CreateDomain(ctx, testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := p.EnsureRecoveryKey(ctx, "vault")
	if err != nil {
		t.Fatal(err)
	}
	mustTrust(t, donor.Info().Label, key.SPKI)
	r := hsm.RecoveryRequest{Cluster: testCluster, Generation: 1, Donor: "a", Recipient: "recovery/vault", SPKI: key.SPKI, OAEPHash: key.OAEPHash}
	message, err := donor.ExportRecovery(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	before := countObjects(t, p)
	want := hsm.ImportExpectation{Cluster: testCluster, Donor: "a", Recipient: "recovery/vault", DonorIdentity: donor.Identity(), Generation: g}
	damaged, err := hsm.ParseTransfer(message)
	if err != nil {
		t.Fatal(err)
	}
	damaged.Keys[len(damaged.Keys)-1].Ciphertext[9] ^= 1 // the last one that is opened
	if damaged.Signature, err = donor.SignIdentity(ctx, damaged.Signed()); err != nil {
		t.Fatal(err)
	}
	wrong, err := damaged.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.ImportRecovery(ctx, wrong, want); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("a damaged copy: %v", err)
	}
	if n := countObjects(t, p); n != before {
		t.Errorf("a damaged copy left %d objects, %d before", n, before)
	}
	if _, err := p.ImportRecovery(ctx, message, want); err != nil {
		t.Fatal(err)
	}
	stored := func() (n int) {
		onSession(t, p, func(s *session) error {
			all, err := s.find(template{flag(pkcs11.CKA_TOKEN, true)})
			n = len(all)
			return err
		})
		return n
	}
	if n := stored(); n != before {
		t.Errorf("%d objects in the token, %d before", n, before)
	}
	onSession(t, p, func(s *session) error {
		d, err := p.domain(s, domainID{testCluster, 1})
		if err != nil {
			return err
		}
		for kind, o := range d {
			if err := s.check(o, p.traits.domainKey(kind, domainID{testCluster, 1}.name(kind), false)); err != nil {
				t.Errorf("kind %d: %v", kind, err)
			}
			if _, err := s.attribute(o, pkcs11.CKA_VALUE); err == nil {
				t.Errorf("kind %d can be read", kind)
			}
			known, err := s.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_WRAP))
			if err != nil {
				return err
			}
			if _, err := s.wrap(p.traits.keyWrap(), known, o); err == nil {
				t.Errorf("kind %d can be wrapped with a known key", kind)
			}
		}
		return nil
	})

	// Errors of a copy that is wrong cost neither the key nor what was taken in.
	if _, err := p.ImportRecovery(ctx, message, want); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("again: %v", err)
	}
	other := slices.DeleteFunc([]uint8{hsm.OAEPSHA1, hsm.OAEPSHA256}, func(h uint8) bool { return slices.Contains(donor.traits.oaep, h) })
	for _, hash := range other {
		r.OAEPHash = hash
		if _, err := donor.ExportRecovery(ctx, r); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("a copy with a hash that the donor lacks: %v", err)
		}
	}
	made, err := p.GenerateKey(ctx, hsm.KeySpec{Cluster: testCluster, Generation: 1, Class: hsm.ClassAES, Version: 1, Created: time.Unix(1_700_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := hsm.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := donor.Open(ctx, made.Token, parsed.Header)
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
}
