//go:build cgo

package p11

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/hsmtest"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

func TestConformance(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Env {
		token := newToken(t)
		p := mustOpen(t, config(token))
		return hsmtest.Env{
			Partition: p,
			Reopen: func(hsmtest.T) hsm.Partition {
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				return mustOpen(t, config(token))
			},
			Second: func(hsmtest.T) hsm.Partition { return mustOpen(t, config(newToken(t))) },
			Asking: func(_ hsmtest.T, oaepHash uint8) hsm.Partition {
				p := mustOpen(t, config(newToken(t)))
				if !slices.Contains(p.traits.oaep, oaepHash) {
					return nil
				}
				p.traits.oaep = []uint8{oaepHash}
				return p
			},
			Cloned: func(hsmtest.T) hsm.Partition { return mustOpen(t, cloned(newToken(t))) },
			Trust:  func(_ hsmtest.T, p hsm.Partition, spki []byte) { byOfficer(t, p, spki) },
		}
	})
}

func byOfficer(t *testing.T, p hsm.Partition, spki []byte) {
	t.Helper()
	mustTrust(t, p.Info().Label, spki)
}

// embedded is a partition of the other provider.
func embedded(t *testing.T, oaepHash uint8) *soft.Partition {
	t.Helper()
	p, err := soft.Open(soft.Config{TrustAll: true, OAEPHash: oaepHash})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestTransferBetweenProviders: a domain moves from a token to an embedded partition
// and back, with every hash the token has.
func TestTransferBetweenProviders(t *testing.T) {
	trustsAll := func(hsmtest.T, hsm.Partition, []byte) {}
	hashes := mustOpen(t, config(newToken(t))).traits.oaep
	for _, hash := range hashes {
		t.Run(hsm.OAEPName(hash), func(t *testing.T) {
			token := mustOpen(t, config(newToken(t)))
			token.traits.oaep = []uint8{hash}
			hsmtest.Transfer(t, embedded(t, 0), token, trustsAll)
			hsmtest.Transfer(t, mustOpen(t, config(newToken(t))), embedded(t, hash), func(_ hsmtest.T, p hsm.Partition, spki []byte) { byOfficer(t, p, spki) })
		})
	}
}

// TestExportLacksHash: a recipient that this token cannot serve is refused before its
// key is looked for, and people are told what each side has.
func TestExportLacksHash(t *testing.T) {
	for _, c := range []struct {
		has, asks uint8
		text      string
	}{
		{hsm.OAEPSHA1, hsm.OAEPSHA256, "asks for OAEP with SHA-256, this token has it with SHA-1 only"},
		{hsm.OAEPSHA256, hsm.OAEPSHA1, "asks for OAEP with SHA-1, this token has it with SHA-256 only"},
	} {
		donor, recipient := mustOpen(t, config(newToken(t))), embedded(t, c.asks)
		donor.traits.oaep = []uint8{c.has}
		transfer, err := recipient.NewTransfer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = donor.Export(t.Context(), hsm.ExportRequest{
			Cluster: testCluster, Generation: 1, Donor: "a", Recipient: "b",
			Transfer: transfer, RecipientIdentity: recipient.Identity(),
		})
		if !errors.Is(err, hsm.ErrRefused) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("error %v, want %q", err, c.text)
		}
	}
}
