package soft_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

// TestRecover takes a generation in from a recovery copy, and refuses what differs.
func TestRecover(t *testing.T) {
	ctx := t.Context()
	id := hsm.ID([]byte("recovered-clustr"))
	donor := openIn(t, "")
	g, err := donor.CreateDomain(ctx, id, 3)
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	trust(t, donor, spki)
	message, err := donor.ExportRecovery(ctx, hsm.RecoveryRequest{Cluster: id, Epoch: 2, Generation: 3, Donor: "n1", Recipient: "recovery/vault", SPKI: spki})
	if err != nil {
		t.Fatal(err)
	}
	want := hsm.ImportExpectation{Cluster: id, Epoch: 2, Donor: "n1", Recipient: "recovery/vault", DonorIdentity: donor.Identity(), Generation: g}
	other, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(message)
	altered[len(altered)/2] ^= 1
	p := openIn(t, "")
	for what, refuse := range map[string]func() error{
		"another key":     func() error { return recovered(t, p, other, message, want) },
		"an altered copy": func() error { return recovered(t, p, key, altered, want) },
		"no copy":         func() error { return recovered(t, p, key, nil, want) },
		"another donor":   func() error { w := want; w.DonorIdentity = p.Identity(); return recovered(t, p, key, message, w) },
		"another cluster": func() error { w := want; w.Cluster[0] ^= 1; return recovered(t, p, key, message, w) },
		"another check": func() error {
			w := want
			w.Generation.Checks = w.Generation.Checks[1:]
			return recovered(t, p, key, message, w)
		},
		"for somebody":   func() error { w := want; w.Recipient = "recovery/other"; return recovered(t, p, key, message, w) },
		"another number": func() error { w := want; w.Generation.Number++; return recovered(t, p, key, message, w) },
		"as a transfer":  func() error { _, err := p.Import(ctx, message, want); return err },
	} {
		if err := refuse(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := recovered(t, p, key, message, want); err != nil {
		t.Fatal(err)
	}
	if err := recovered(t, p, key, message, want); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("once more: %v", err)
	}
	a, errA := donor.LogKey(ctx, id)
	b, errB := p.LogKey(ctx, id)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("log keys differ: %v, %v", errA, errB)
	}
	made, err := donor.GenerateKey(ctx, hsm.KeySpec{Cluster: id, Generation: 3, Class: hsm.ClassAES, Version: 1, Created: time.Unix(1_700_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := hsm.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := p.Open(ctx, made.Token, parsed.Header)
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
}

func recovered(t *testing.T, p *soft.Partition, key *rsa.PrivateKey, message []byte, want hsm.ImportExpectation) error {
	t.Helper()
	_, err := p.RecoverWith(t.Context(), key, message, want)
	return err
}
