package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// rotated is a state with generation 1, and others in given states.
func rotated(t *testing.T, commands ...fsm.Command) *fsm.State {
	t.Helper()
	key := fsm.LogKey(make([]byte, 32))
	s := fsm.NewState()
	first := founding()
	for _, c := range append([]fsm.Command{first}, commands...) {
		if p, ok := c.(*fsm.ProposeGeneration); ok {
			p.Checks, p.Node, p.NoRecovery = first.Checks, "n1", true
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

func founding() *fsm.InitCluster {
	check := []fsm.DomainCheck{{Kind: uint8(hsm.KindMAC), Value: make([]byte, 16)}}
	return &fsm.InitCluster{
		Cluster: uuid.New(), TrustDomain: "kms.example", Operator: "spiffe://kms.example/operator/o", Administrator: "spiffe://kms.example/tenant/default/admin/a",
		LeaseMillis: 6000, Generation: 1, Checks: check, Node: "n1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2", Identity: []byte("i"), Release: fsm.NewestRelease, NoRecovery: true,
	}
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
		s := rotated(t, row.commands...)
		for _, n := range row.holds {
			d.add(hsm.Generation{Number: n, Checks: []hsm.KeyCheck{{Kind: hsm.KindMAC}}})
		}
		err := d.complete(s)
		if (err == nil) != row.ok || err != nil && !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%s: %v", row.what, err)
		}
		held := d.now()
		for i := range held { // another key under each number
			held[i].Checks = []hsm.KeyCheck{{Kind: hsm.KindMAC, Value: [16]byte{1}}}
		}
		if err := d.complete(s); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%s: the numbers of other keys: %v", row.what, err)
		}
	}
}

// TestHoldsByCheckValue: a node says that it holds what the cluster knows by these check
// values, and nothing else.
func TestHoldsByCheckValue(t *testing.T) {
	s := rotated(t, &fsm.ProposeGeneration{Number: 2}, &fsm.RetireGeneration{Number: 2}, &fsm.ProposeGeneration{Number: 3})
	same, another := []hsm.KeyCheck{{Kind: hsm.KindMAC}}, []hsm.KeyCheck{{Kind: hsm.KindMAC, Value: [16]byte{1}}}
	var d domainKeys
	for _, row := range []struct {
		what string
		held []hsm.Generation
		want []uint32
	}{
		{"the cluster's", []hsm.Generation{{Number: 1, Checks: same}, {Number: 3, Checks: same}}, []uint32{1, 3}},
		{"another under a number", []hsm.Generation{{Number: 1, Checks: same}, {Number: 3, Checks: another}}, []uint32{1}},
		{"retired, and not destroyed yet", []hsm.Generation{{Number: 2, Checks: another}}, []uint32{2}},
		{"what the state does not know", []hsm.Generation{{Number: 4, Checks: same}}, nil},
	} {
		d.held.Store(&row.held)
		if got := d.holds(s); !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.what, got, row.want)
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
	destroyed []hsm.Generation
	doubt     error
	made      hsm.Generation
}

func (d *rereading) Generations(context.Context, hsm.ID) ([]hsm.Generation, error) {
	if d.holds == nil {
		return nil, hsm.ErrUnavailable
	}
	return d.holds, nil
}

func (d *rereading) DestroyDomain(_ context.Context, _ hsm.ID, g hsm.Generation) error {
	i := slices.IndexFunc(d.holds, numbered(g.Number))
	if i < 0 {
		return hsm.ErrNotFound
	}
	if !d.holds[i].Equal(g) {
		return hsm.ErrRefused
	}
	d.destroyed, d.holds = append(d.destroyed, g), slices.Delete(slices.Clone(d.holds), i, i+1)
	return nil
}

func (d *rereading) CreateDomain(_ context.Context, _ hsm.ID, number uint32) (hsm.Generation, error) {
	d.made.Number = number
	d.holds = append(slices.Clone(d.holds), d.made)
	return d.made, nil
}

func (d *rereading) Doubt(context.Context) error { return d.doubt }

func (d *rereading) Twins(context.Context, hsm.ID) ([]uint32, error) { return nil, nil }

func (d *rereading) NewTransfer(context.Context) (hsm.Transfer, error) {
	return hsm.Transfer{}, hsm.ErrUnavailable
}

// TestLeftOver: what a partition holds under a number of the cluster's is destroyed if it is
// another generation altogether, and not for wrong answers of the partition.
func TestLeftOver(t *testing.T) {
	s := rotated(t)
	g, _ := s.Generation(1)
	right := hsmGeneration(g)
	wrong := hsmGeneration(g)
	wrong.Checks[0].Value[0] ^= 1
	inPart := hsm.Generation{Number: 1, Checks: append(slices.Clone(right.Checks), hsm.KeyCheck{Kind: hsm.KeyKind(hsm.ClassAES)})}
	sameLog := hsm.Generation{Number: 1, Checks: append(slices.Clone(wrong.Checks), hsm.KeyCheck{Kind: hsm.KindLog})}
	for _, row := range []struct {
		what      string
		holds     []hsm.Generation // asked again
		doubt     error
		destroyed []hsm.Generation
		done      bool
	}{
		{"a wrong answer", []hsm.Generation{right}, nil, nil, true},
		{"no answer", nil, nil, nil, false},
		{"another generation", []hsm.Generation{wrong}, nil, []hsm.Generation{wrong}, false},
		{"another generation with the log key", []hsm.Generation{sameLog}, nil, []hsm.Generation{sameLog}, false},
		{"the cluster's in part", []hsm.Generation{inPart}, nil, nil, false},
		{"of a token that errs", []hsm.Generation{wrong}, hsm.ErrWrongAnswer, nil, false},
		{"what is gone", []hsm.Generation{{Number: 2}}, nil, nil, false},
	} {
		d := &rereading{holds: row.holds, doubt: row.doubt}
		e := &engine{member: &Member{}, config: &Config{Domain: d}, id: "n1", ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
		e.domain.held.Store(&[]hsm.Generation{wrong})
		if done := e.install(s); done != row.done || !slices.EqualFunc(d.destroyed, row.destroyed, hsm.Generation.Equal) {
			t.Errorf("%s: done %t, destroyed %v", row.what, done, d.destroyed)
		}
		if done := slices.ContainsFunc(e.domain.now(), sameAs(g)); done != row.done {
			t.Errorf("%s: held afterwards: %t", row.what, done)
		}
	}
}

// TestRetiredIsDestroyed: what a retired number stands for in the partition goes.
func TestRetiredIsDestroyed(t *testing.T) {
	s := rotated(t, &fsm.ProposeGeneration{Number: 2}, &fsm.RetireGeneration{Number: 2})
	g, _ := s.Generation(1)
	retired := hsm.Generation{Number: 2, Checks: []hsm.KeyCheck{{Kind: hsm.KindMAC, Value: [16]byte{7}}}}
	d := &rereading{holds: []hsm.Generation{hsmGeneration(g), retired}}
	e := &engine{member: &Member{}, config: &Config{Domain: d}, id: "n1", ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
	e.domain.held.Store(&d.holds)
	if done := e.install(s); !done || len(d.destroyed) != 1 || !d.destroyed[0].Equal(retired) {
		t.Errorf("done %t, destroyed %v", done, d.destroyed)
	}
}

// TestRotationDestroysItsOwnOnly: a node whose proposal was refused destroys what it has made,
// by its check values. What has the same number is the cluster's, and may be all there is.
func TestRotationDestroysItsOwnOnly(t *testing.T) {
	made := hsm.Generation{Checks: []hsm.KeyCheck{{Kind: hsm.KindMAC, Value: [16]byte{9}}}}
	refusal := fmt.Errorf("%w: proposed already", fsm.ErrGeneration)
	lost := errors.New("the entry has no outcome")
	for _, row := range []struct {
		what     string
		proposed bool // the state knows another generation of the number by then
		own      bool // and it is this node's
		pulled   bool // it is in the partition by then, in the place of what was made
		id       string
		err      error
		gone     bool // what was made
	}{
		{what: "proposed", proposed: true, own: true, id: "2"},
		{what: "refused", err: refusal, gone: true},
		{what: "never proposed", err: ErrNoLeader, gone: true},
		{what: "no answer", err: ErrOutcomeUnknown},
		{what: "an answer that tells nothing", err: lost},
		{what: "proposed, and told otherwise", proposed: true, own: true, err: refusal},
		{what: "another of the number", proposed: true, err: refusal, gone: true},
		{what: "another of the number, a repeated request's", proposed: true, id: "2", gone: true},
		{what: "another of the number, which has come", proposed: true, pulled: true, err: refusal},
	} {
		m := fsm.NewMachine(fsm.LogKey(make([]byte, 32)), func(err error) { t.Error(err) })
		index := uint64(0)
		apply := func(c fsm.Command) {
			raw, err := fsm.EncodeEntry(fsm.Entry{Principal: "p", Proposer: "n1", Time: 1}, c, fsm.LogKey(make([]byte, 32)))
			if err != nil {
				t.Fatal(err)
			}
			index++
			if o, ok := m.Apply(&raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: raw}).(fsm.Outcome); !ok || o.Err != nil {
				t.Fatalf("%s: %v", row.what, o.Err)
			}
		}
		apply(founding())
		g, _ := m.State().Generation(1)
		first, others := hsmGeneration(g), hsm.Generation{Number: 2, Checks: []hsm.KeyCheck{{Kind: hsm.KindMAC, Value: [16]byte{5}}}}
		d := &rereading{holds: []hsm.Generation{first}, made: made}
		e := &engine{config: &Config{Domain: d}, id: "n1", ctx: t.Context(), log: slog.New(slog.DiscardHandler), machine: m}
		e.domain.held.Store(&[]hsm.Generation{first})
		_, err := (&Member{running: e}).RotateDomain(t.Context(), true, func(_ context.Context, c fsm.Command) (fsm.Result, error) {
			p, ok := c.(*fsm.ProposeGeneration)
			if !ok || p.Number != 2 {
				t.Fatalf("%s: proposed %+v", row.what, c)
			}
			another := *p
			if !row.own {
				another.Checks = domainChecks(others)
			}
			if row.proposed {
				apply(&another)
			}
			if row.pulled {
				d.holds = []hsm.Generation{first, others}
			}
			return fsm.Result{ID: row.id}, row.err
		})
		if !errors.Is(err, row.err) {
			t.Errorf("%s: %v", row.what, err)
		}
		kept := d.holds[len(d.holds)-1]
		switch want := (hsm.Generation{Number: 2, Checks: made.Checks}); {
		case row.pulled && !kept.Equal(others):
			t.Errorf("%s: the cluster's generation is destroyed, %v is left", row.what, d.holds)
		case !row.pulled && kept.Equal(want) == row.gone:
			t.Errorf("%s: what is left is %v", row.what, d.holds)
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
