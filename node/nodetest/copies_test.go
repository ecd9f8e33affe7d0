package nodetest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// TestFalseCopiesAreNotCommitted: no leader commits a recovery copy that nobody could recover
// with, whoever brings it and in whatever name.
func TestFalseCopiesAreNotCommitted(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, err := New(dir, Defaults(7, 3))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		add := &fsm.ProposeRecipientChange{Add: &fsm.RecoveryKey{Name: "vault", Kind: "SHARES", SPKI: spki, Threshold: 2, Shares: 3}}
		if err := c.Propose(t.Context(), add); err != nil {
			t.Fatal(err)
		}
		approve := request(&fsm.ApproveRecipientChange{Change: c.Leader().Member().State().Recovery().Change.ID})
		approve.Principal += "2"
		if _, err := c.Leader().Member().Propose(t.Context(), approve); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(spki)
		leader := c.Leader()
		before := leader.Member().State().Index()
		for _, n := range c.Nodes {
			m := n.Member()
			for _, donor := range []string{m.ID(), leader.Member().ID()} {
				command := &fsm.AddRecoveryCopy{Generation: 1, Recipient: "vault", Key: sum[:], Node: donor, Message: []byte("x")}
				if _, err := m.Propose(t.Context(), request(command)); !errors.Is(err, fsm.ErrInvalid) || !strings.Contains(err.Error(), "DKX1") {
					t.Errorf("by %s in the name of %s: %v", m.ID(), donor, err)
				}
			}
		}
		s := leader.Member().State()
		if copies := s.RecoveryCopies(); len(copies) != 0 {
			t.Errorf("%d recovery copies were committed behind index %d", len(copies), before)
		}
	})
}
