package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

// altering is a partition whose recovery copies somebody changes on their way.
type altering struct {
	*soft.Partition
	alter func([]byte) []byte
}

func (p *altering) ExportRecovery(ctx context.Context, r hsm.RecoveryRequest) ([]byte, error) {
	b, err := p.Partition.ExportRecovery(ctx, r)
	if err == nil && p.alter != nil {
		b = p.alter(b)
	}
	return b, err
}

func openSoft(t *testing.T) *soft.Partition {
	t.Helper()
	p, err := soft.Open(soft.Config{TrustAll: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func recoverySPKI(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

// recoverableState is a state of a partition's first two generations, of which the recipient
// vault lacks the second.
func recoverableState(t *testing.T, p *soft.Partition, id fsm.ID, spki []byte) *fsm.State {
	t.Helper()
	made := func(number uint32) []fsm.DomainCheck {
		g, err := p.CreateDomain(t.Context(), hsm.ID(id), number)
		if err != nil {
			t.Fatal(err)
		}
		return domainChecks(g)
	}
	s := fsm.NewState()
	for _, c := range []fsm.Command{
		&fsm.InitCluster{
			Cluster: id, TrustDomain: "kms.example", Operator: "spiffe://kms.example/operator/o", Administrator: "spiffe://kms.example/tenant/default/admin/a",
			LeaseMillis: 6000, Generation: 1, Checks: made(1), Node: "n1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2", Identity: p.Identity(), Release: fsm.NewestRelease,
			Recovery: &fsm.FirstRecovery{Required: 1, Approvals: 2, DrillDays: 90, Recipients: []fsm.FirstRecipient{{
				RecoveryKey: fsm.RecoveryKey{Name: "vault", Kind: "SHARES", SPKI: spki, Threshold: 2, Shares: 3}, Message: []byte("the first"),
			}}},
		},
		&fsm.ProposeGeneration{Number: 2, Checks: made(2), Node: "n1"},
	} {
		raw, err := fsm.EncodeEntry(fsm.Entry{Principal: "p", Proposer: "n1", Time: 1}, c, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		next, _, err := s.Apply(s.Index()+1, 1, raw)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	return s
}

// TestCopyIsLookedAt: a node proposes no recovery copy that whoever recovers would refuse.
func TestCopyIsLookedAt(t *testing.T) {
	id, spki, p := uuid.New(), recoverySPKI(t), &altering{Partition: openSoft(t)}
	s := recoverableState(t, p.Partition, id, spki)
	g, _ := s.Generation(2)
	other := openSoft(t)
	if _, err := other.CreateDomain(t.Context(), hsm.ID(id), 2); err != nil {
		t.Fatal(err)
	}
	request := hsm.RecoveryRequest{Cluster: hsm.ID(id), Generation: 2, Donor: "n1", Recipient: "recovery/vault", SPKI: spki}
	instead := func(p *soft.Partition, edit func(r *hsm.RecoveryRequest)) func([]byte) []byte {
		return func([]byte) []byte {
			r := request
			edit(&r)
			b, err := p.ExportRecovery(t.Context(), r)
			if err != nil {
				t.Error(err)
			}
			return b
		}
	}
	resigned := func(edit func(m *hsm.TransferMessage)) func([]byte) []byte {
		return func(b []byte) []byte {
			m, err := hsm.ParseTransfer(b)
			if err != nil {
				t.Error(err)
			}
			edit(&m)
			if m.Signature, err = p.SignIdentity(t.Context(), m.Signed()); err != nil {
				t.Error(err)
			}
			if b, err = m.Encode(); err != nil {
				t.Error(err)
			}
			return b
		}
	}
	for _, row := range []struct {
		what, text string
		alter      func([]byte) []byte
	}{
		{"cut off", "wrong length", func(b []byte) []byte { return b[:len(b)-1] }},
		{"a byte more", "wrong length", func(b []byte) []byte { return append(b, 0) }},
		{"nothing", "not a DKX1", func([]byte) []byte { return nil }},
		{"a changed ciphertext", "identity signature", func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }},
		{"of another partition", "identity signature", instead(other, func(*hsm.RecoveryRequest) {})},
		{"of another generation", "unexpected generation", instead(p.Partition, func(r *hsm.RecoveryRequest) { r.Generation = 1 })},
		{"for another recipient", "unexpected recipient", instead(p.Partition, func(r *hsm.RecoveryRequest) { r.Recipient = "recovery/safe" })},
		{"for another key", "unexpected transfer key", instead(p.Partition, func(r *hsm.RecoveryRequest) { r.SPKI = recoverySPKI(t) })},
		{"of another epoch", "unexpected epoch", instead(p.Partition, func(r *hsm.RecoveryRequest) { r.Epoch = 7 })},
		{"of another donor", "unexpected donor", instead(p.Partition, func(r *hsm.RecoveryRequest) { r.Donor = "n2" })},
		{"other keys", "unexpected check value", resigned(func(m *hsm.TransferMessage) { m.Keys[0].Check[0] ^= 1 })},
		{"a short ciphertext", "ciphertext of 256 bytes, the recovery key makes 512", resigned(func(m *hsm.TransferMessage) { m.Keys[0].Ciphertext = m.Keys[0].Ciphertext[:256] })},
	} {
		p.alter = row.alter
		e := &engine{member: &Member{}, config: &Config{Domain: p}, id: "n1", cluster: id, ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
		if err := e.copyFor(s, g, "vault"); !errors.Is(err, fsm.ErrInvalid) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: %v, want %q", row.what, err, row.text)
		}
		m := &Member{config: Config{Domain: p}, id: "n1"}
		first := &fsm.FirstRecovery{Recipients: []fsm.FirstRecipient{{RecoveryKey: fsm.RecoveryKey{Name: "vault", SPKI: spki}}}}
		if _, err := m.recoverable(t.Context(), identity{Cluster: id}, hsmGeneration(g), first); !errors.Is(err, fsm.ErrInvalid) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s, at the founding: %v, want %q", row.what, err, row.text)
		}
	}
	e := &engine{member: &Member{}, config: &Config{Domain: p}, id: "n1", cluster: id, ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
	if e.domain.held.Store(&[]hsm.Generation{}); e.copyForRecovery(s) || e.notCopied.Load() != nil {
		t.Error("who does not hold the generation has a problem with its copy")
	}
	e.domain.held.Store(&[]hsm.Generation{hsmGeneration(g)})
	if text := e.notCopied.Load; e.copyForRecovery(s) || text() == nil || !strings.HasPrefix(*text(), "generation 2 for vault: ") {
		t.Errorf("a copy that cannot be made: %v", text())
	}
	p.alter = nil
	if err := e.copyFor(s, g, "vault"); !errors.Is(err, fsm.ErrNotInitialized) {
		t.Errorf("a right copy is not proposed: %v", err)
	}
}

// TestLeaderLooksAtCopies: a leader commits none that does not fit what the state knows, and
// leaves to the state what that knows by itself.
func TestLeaderLooksAtCopies(t *testing.T) {
	id, spki, p := uuid.New(), recoverySPKI(t), openSoft(t)
	s := recoverableState(t, p, id, spki)
	sum := sha256.Sum256(spki)
	message, err := p.ExportRecovery(t.Context(), hsm.RecoveryRequest{Cluster: hsm.ID(id), Generation: 2, Donor: "n1", Recipient: "recovery/vault", SPKI: spki})
	if err != nil {
		t.Fatal(err)
	}
	good := fsm.AddRecoveryCopy{Generation: 2, Recipient: "vault", Key: sum[:], Node: "n1", Message: message}
	for _, row := range []struct {
		what string
		edit func(c *fsm.AddRecoveryCopy)
		ok   bool
	}{
		{"the right one", func(*fsm.AddRecoveryCopy) {}, true},
		{"no DKX1", func(c *fsm.AddRecoveryCopy) { c.Message = []byte("x") }, false},
		{"for another generation", func(c *fsm.AddRecoveryCopy) { c.Generation = 1 }, false},
		{"a recipient that is none", func(c *fsm.AddRecoveryCopy) { c.Recipient = "safe" }, true},
		{"another key of that name", func(c *fsm.AddRecoveryCopy) { c.Key = make([]byte, 32) }, true},
		{"a member that is none", func(c *fsm.AddRecoveryCopy) { c.Node = "n9" }, true},
		{"a generation that is none", func(c *fsm.AddRecoveryCopy) { c.Generation = 9 }, true},
	} {
		c := good
		row.edit(&c)
		if err := copyFits(s, &c); (err == nil) != row.ok || err != nil && !errors.Is(err, fsm.ErrInvalid) {
			t.Errorf("%s: %v", row.what, err)
		}
	}
}
