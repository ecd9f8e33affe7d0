//go:build cgo

package p11

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// move is a transfer between two partitions.
type move struct {
	donor, recipient *Partition
	generation       hsm.Generation
	request          hsm.ExportRequest
	want             hsm.ImportExpectation
}

func newMove(t *testing.T) *move {
	t.Helper()
	m := &move{donor: mustOpen(t, config(newToken(t))), recipient: mustOpen(t, config(newToken(t)))}
	var err error
	if m.generation, err = m.donor.CreateDomain(t.Context(), testCluster, 1); err != nil {
		t.Fatal(err)
	}
	m.again(t)
	return m
}

// again makes a fresh transfer key.
func (m *move) again(t *testing.T) {
	t.Helper()
	transfer, err := m.recipient.NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.request = hsm.ExportRequest{
		Cluster: testCluster, Epoch: 3, Generation: 1, Donor: "a", Recipient: "b",
		Transfer: transfer, RecipientIdentity: m.recipient.Identity(),
	}
	m.want = hsm.ImportExpectation{
		Cluster: testCluster, Epoch: 3, Donor: "a", Recipient: "b",
		DonorIdentity: m.donor.Identity(), Generation: m.generation,
	}
}

func (m *move) mustExport(t *testing.T) []byte {
	t.Helper()
	mustTrust(t, m.donor.Info().Label, m.request.Transfer.SPKI)
	message, err := m.donor.Export(t.Context(), m.request)
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// TestTransfer: the Security Officer of the donor decides, from another process, and
// the running partition heeds it at once.
func TestTransfer(t *testing.T) {
	m := newMove(t)
	if _, err := m.donor.Export(t.Context(), m.request); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Fatalf("error %v, want %v", err, hsm.ErrNotTrusted)
	}
	message := m.mustExport(t)
	got, err := m.recipient.Import(t.Context(), message, m.want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m.generation) {
		t.Errorf("imported %v, want %v", got, m.generation)
	}
	if n := countObjects(t, m.recipient); n != 2+len(hsm.DomainKinds()) {
		t.Errorf("%d objects in the recipient: the transfer key should be gone", n)
	}
	made, err := m.donor.GenerateKey(t.Context(), testSpec(1))
	if err != nil {
		t.Fatal(err)
	}
	want, err := testSpec(1).Header()
	if err != nil {
		t.Fatal(err)
	}
	key, err := m.recipient.Open(t.Context(), made.Token, want)
	if err != nil {
		t.Fatalf("the recipient does not open the donor's key: %v", err)
	}
	key.Close()
	theirs, err := m.recipient.LogKey(t.Context(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	if ours, err := m.donor.LogKey(t.Context(), testCluster); err != nil || !slices.Equal(ours, theirs) {
		t.Errorf("another log key (%v)", err)
	}
	if _, err := m.recipient.Import(t.Context(), message, m.want); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("the message works twice: %v", err)
	}
	// An imported generation is as guarded as one made here.
	label := m.recipient.Info().Label
	if err := m.recipient.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, config(label))
}

// TestUntrust: trusting twice leaves one object, and untrusting none.
func TestUntrust(t *testing.T) {
	m := newMove(t)
	before := countObjects(t, m.donor)
	m.mustExport(t)
	m.mustExport(t)
	if n := countObjects(t, m.donor); n != before+1 {
		t.Errorf("%d objects for one trusted key", n-before)
	}
	label, fingerprint := m.donor.Info().Label, hsm.Fingerprint(m.request.Transfer.SPKI)
	if out, err := inProcess(t, "untrust", label, fingerprint); err != nil {
		t.Fatalf("untrust: %v: %s", err, out)
	}
	if _, err := m.donor.Export(t.Context(), m.request); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Errorf("error %v, want %v", err, hsm.ErrNotTrusted)
	}
	if out, err := inProcess(t, "untrust", label, fingerprint); err == nil || !strings.Contains(out, hsm.ErrNotTrusted.Error()) {
		t.Errorf("again: %v: %s", err, out)
	}
	if out, err := inProcess(t, "untrust", label, "SHA256:00"); err == nil || !strings.Contains(out, hsm.ErrRefused.Error()) {
		t.Errorf("no fingerprint: %v: %s", err, out)
	}
	if n := countObjects(t, m.donor); n != before {
		t.Errorf("%d objects left", n-before)
	}
}

func TestTrustRefuses(t *testing.T) {
	m := newMove(t)
	token := m.donor.Info().Label
	spki := m.request.Transfer.SPKI
	cfg := TrustConfig{Token: token, SOPIN: []byte(testSOPIN)}
	if err := Trust(t.Context(), cfg, spki); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "process of its own") {
		t.Errorf("in the process of the user: %v", err)
	}
	if err := Trust(t.Context(), cfg, m.donor.Identity()); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("an identity key: %v", err)
	}
	if err := Trust(t.Context(), cfg, nil); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("nothing: %v", err)
	}
	fresh := newToken(t)
	if err := Trust(t.Context(), TrustConfig{Token: fresh, SOPIN: []byte("wrong-pin")}, spki); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong pin: %v", err)
	}
	if err := Trust(t.Context(), TrustConfig{Token: fresh}, spki); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("no pin: %v", err)
	}
	if err := Trust(t.Context(), TrustConfig{Token: "nowhere", SOPIN: []byte(testSOPIN)}, spki); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("no token: %v", err)
	}
	if err := Trust(t.Context(), TrustConfig{Token: fresh, SOPIN: []byte(testSOPIN)}, spki); err != nil {
		t.Errorf("in time: %v", err)
	}
}

// TestUserCannotTrust: an object that looks trusted but for TRUSTED does not count,
// nor does one that is in the way of a trusted one.
func TestUserCannotTrust(t *testing.T) {
	m := newMove(t)
	pub, err := hsm.TransferPublicKey(m.request.Transfer.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	onSession(t, m.donor, func(s *session) error {
		want := trustedTemplate(m.request.Transfer.SPKI).with(
			octets(pkcs11.CKA_MODULUS, pub.N.Bytes()), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent()))
		if _, err := s.create(want); err == nil {
			t.Error("the user makes a trusted key")
		}
		_, err := s.create(want.with(flag(pkcs11.CKA_TRUSTED, false)))
		return err
	})
	if _, err := m.donor.Export(t.Context(), m.request); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Errorf("error %v, want %v", err, hsm.ErrNotTrusted)
	}
	m.mustExport(t)
}

// TestImportUnchanged: a message that is wrong in any way changes nothing.
func TestImportUnchanged(t *testing.T) {
	m := newMove(t)
	honest := m.mustExport(t)
	resigned := func(change func(*hsm.TransferMessage)) func(*testing.T, []byte) []byte {
		return func(t *testing.T, message []byte) []byte {
			parsed, err := hsm.ParseTransfer(message)
			if err != nil {
				t.Fatal(err)
			}
			change(&parsed)
			if parsed.Signature, err = m.donor.SignIdentity(t.Context(), parsed.Signed()); err != nil {
				t.Fatal(err)
			}
			encoded, err := parsed.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return encoded
		}
	}
	for name, change := range map[string]func(*testing.T, []byte) []byte{
		"bit flipped": func(_ *testing.T, message []byte) []byte {
			message[len(message)/2] ^= 1
			return message
		},
		"cut": func(_ *testing.T, message []byte) []byte { return message[:len(message)-1] },
		"keys swapped": resigned(func(p *hsm.TransferMessage) {
			p.Keys[0].Ciphertext, p.Keys[1].Ciphertext = p.Keys[1].Ciphertext, p.Keys[0].Ciphertext
		}),
		"last key swapped": resigned(func(p *hsm.TransferMessage) {
			p.Keys[5].Ciphertext, p.Keys[6].Ciphertext = p.Keys[6].Ciphertext, p.Keys[5].Ciphertext
		}),
		"ciphertext damaged": resigned(func(p *hsm.TransferMessage) { p.Keys[3].Ciphertext[100] ^= 1 }),
		"ciphertext short":   resigned(func(p *hsm.TransferMessage) { p.Keys[3].Ciphertext = p.Keys[3].Ciphertext[:100] }),
		"another hash":       resigned(func(p *hsm.TransferMessage) { p.OAEPHash = hsm.OAEPSHA1 + hsm.OAEPSHA256 - p.OAEPHash }),
	} {
		t.Run(name, func(t *testing.T) {
			message := change(t, slices.Clone(honest))
			if _, err := m.recipient.Import(t.Context(), message, m.want); !errors.Is(err, hsm.ErrRefused) {
				t.Errorf("error %v, want %v", err, hsm.ErrRefused)
			}
			if n := countObjects(t, m.recipient); n != 3 {
				t.Errorf("%d objects, want the identity key and the transfer key", n)
			}
			if err := m.recipient.Healthy(); err != nil {
				t.Errorf("a bad message makes the partition unhealthy: %v", err)
			}
		})
	}
	if _, err := m.recipient.Import(t.Context(), honest, m.want); err != nil {
		t.Errorf("the honest message: %v", err)
	}
}

// TestTransferKeyIsReplaced: there is one, and it outlives the process.
func TestTransferKeyIsReplaced(t *testing.T) {
	m := newMove(t)
	old := m.mustExport(t)
	m.again(t)
	if n := countObjects(t, m.recipient); n != 3 {
		t.Errorf("%d objects, want the identity key and one transfer key", n)
	}
	if _, err := m.recipient.Import(t.Context(), old, m.want); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("a message for the transfer key of before: %v", err)
	}
	message := m.mustExport(t)
	label := m.recipient.Info().Label
	if err := m.recipient.Close(); err != nil {
		t.Fatal(err)
	}
	m.recipient = mustOpen(t, config(label))
	if _, err := m.recipient.Import(t.Context(), message, m.want); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// TestPlantedTransferKey: a transfer key that does not guard what it opens is not
// used.
func TestPlantedTransferKey(t *testing.T) {
	m := newMove(t)
	message := m.mustExport(t)
	onSession(t, m.recipient, func(s *session) error {
		if err := s.destroyTransfer(); err != nil {
			return err
		}
		name := template{named(labelTransfer)}
		_, _, err := s.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, rsaPublic(name, false).with(newRSA(scratchBits)...),
			transferPrivate(name, true).less([]uint{pkcs11.CKA_UNWRAP_TEMPLATE}))
		return err
	})
	if _, err := m.recipient.Import(t.Context(), message, m.want); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("error %v, want %v", err, hsm.ErrCorrupt)
	}
}
