package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// rotated is a state with generation 1, and others in given states.
func rotated(t *testing.T, commands ...fsm.Command) *fsm.State {
	t.Helper()
	key := fsm.LogKey(make([]byte, 32))
	s := fsm.NewState()
	check := []fsm.DomainCheck{{Kind: uint8(hsm.KindMAC), Value: make([]byte, 16)}}
	first := &fsm.InitCluster{
		Cluster: uuid.New(), TrustDomain: "kms.example", Operator: "spiffe://kms.example/operator/o", Administrator: "spiffe://kms.example/tenant/default/admin/a",
		LeaseMillis: 6000, Generation: 1, Checks: check, Node: "n1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2", Identity: []byte("i"), Release: fsm.NewestRelease, NoRecovery: true,
	}
	for _, c := range append([]fsm.Command{first}, commands...) {
		if p, ok := c.(*fsm.ProposeGeneration); ok {
			p.Checks, p.Node, p.NoRecovery = check, "n1", true
		}
		raw, err := fsm.EncodeEntry(fsm.Entry{Principal: "p", Proposer: "n1", Time: 1}, c, key)
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

// TestCompleteDomain: a node serves when it holds every generation that is in use, neither
// more nor less.
func TestCompleteDomain(t *testing.T) {
	propose, activate := &fsm.ProposeGeneration{Number: 2}, &fsm.ActivateGeneration{Number: 2}
	for _, row := range []struct {
		what     string
		commands []fsm.Command
		holds    []uint32
		ok       bool
	}{
		{"the first one", nil, []uint32{1}, true},
		{"none", nil, nil, false},
		{"another", nil, []uint32{2}, false},
		{"without the proposed one", []fsm.Command{propose}, []uint32{1}, true},
		{"without the active one", []fsm.Command{propose, activate}, []uint32{1}, false},
		{"without the one before", []fsm.Command{propose, activate}, []uint32{2}, false},
		{"both", []fsm.Command{propose, activate}, []uint32{1, 2}, true},
		{"without a retired one", []fsm.Command{propose, activate, &fsm.RetireGeneration{Number: 1}}, []uint32{2}, true},
	} {
		var d domainKeys
		d.held.Store(&[]hsm.Generation{})
		for _, n := range row.holds {
			d.add(hsm.Generation{Number: n})
		}
		err := d.complete(rotated(t, row.commands...))
		if (err == nil) != row.ok || err != nil && !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%s: %v", row.what, err)
		}
	}
}

// TestSameGeneration: what has the number only is another.
func TestSameGeneration(t *testing.T) {
	g, _ := rotated(t).Generation(1)
	h := hsm.Generation{Number: 1, Checks: []hsm.KeyCheck{{Kind: hsm.KindMAC}}}
	if !sameAs(g)(h) {
		t.Error("a generation is not itself")
	}
	h.Checks[0].Value[3] = 1
	if sameAs(g)(h) {
		t.Error("another check value is the same generation")
	}
}

// rereading is a partition that says what it holds when it is asked again.
type rereading struct {
	Domain
	holds     []hsm.Generation
	destroyed []uint32
}

func (d *rereading) Generations(context.Context, hsm.ID) ([]hsm.Generation, error) {
	if d.holds == nil {
		return nil, hsm.ErrUnavailable
	}
	return d.holds, nil
}

func (d *rereading) DestroyDomain(_ context.Context, _ hsm.ID, number uint32) error {
	d.destroyed = append(d.destroyed, number)
	return nil
}

func (d *rereading) Twins(context.Context, hsm.ID) ([]uint32, error) { return nil, nil }

func (d *rereading) NewTransfer(context.Context) (hsm.Transfer, error) {
	return hsm.Transfer{}, hsm.ErrUnavailable
}

// TestLeftOver: what a partition holds under a number of the cluster's is destroyed if it is
// another generation, and not for one wrong answer of the partition.
func TestLeftOver(t *testing.T) {
	s := rotated(t)
	g, _ := s.Generation(1)
	right := hsmGeneration(g)
	wrong := hsmGeneration(g)
	wrong.Checks[0].Value[0] ^= 1
	for _, row := range []struct {
		what      string
		holds     []hsm.Generation // asked again
		destroyed []uint32
		done      bool
	}{
		{"a wrong answer", []hsm.Generation{right}, nil, true},
		{"no answer", nil, nil, false},
		{"another generation", []hsm.Generation{wrong}, []uint32{1}, false},
	} {
		d := &rereading{holds: row.holds}
		e := &engine{member: &Member{}, config: &Config{Domain: d}, id: "n1", ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
		e.domain.held.Store(&[]hsm.Generation{wrong})
		if done := e.install(s); done != row.done || !slices.Equal(d.destroyed, row.destroyed) {
			t.Errorf("%s: done %t, destroyed %v", row.what, done, d.destroyed)
		}
		if done := slices.ContainsFunc(e.domain.now(), sameAs(g)); done != row.done {
			t.Errorf("%s: held afterwards: %t", row.what, done)
		}
	}
}

// TestOnlyHolder: who alone holds a generation under which keys are wrapped does not leave.
func TestOnlyHolder(t *testing.T) {
	key := func(n uint32) fsm.Command {
		return &fsm.CreateKey{
			ID: uuid.New(), Tenant: fsm.DefaultTenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: n, Token: []byte("token"),
		}
	}
	propose, activate := &fsm.ProposeGeneration{Number: 2}, &fsm.ActivateGeneration{Number: 2}
	both, newest := DomainHolding{Holds: []uint32{1, 2}}, DomainHolding{Holds: []uint32{2}}
	used, unused := rotated(t, key(1), propose, activate, key(2)), rotated(t, propose, activate, key(2))
	for _, row := range []struct {
		what  string
		s     *fsm.State
		holds map[string]DomainHolding
		ok    bool
	}{
		{"another holds all", used, map[string]DomainHolding{"n1": both, "n2": both, "n3": newest}, true},
		{"nobody else holds what is used", used, map[string]DomainHolding{"n1": both, "n2": newest, "n3": newest}, false},
		{"others say nothing", used, map[string]DomainHolding{"n1": both, "n2": {Problem: "down"}}, false},
		{"nobody else holds what is not used", unused, map[string]DomainHolding{"n1": both, "n2": newest}, true},
	} {
		err := keepsGenerations(row.s, row.holds, "n1")
		if (err == nil) != row.ok || err != nil && !errors.Is(err, fsm.ErrMember) {
			t.Errorf("%s: %v", row.what, err)
		}
	}
}
