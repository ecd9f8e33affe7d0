package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// twins is a partition that has twins, and makes none.
type twins struct {
	Domain
	has, destroyed []uint32
	asked          bool // for a transfer key, which a twin is made with
}

func (d *twins) Twins(context.Context, hsm.ID) ([]uint32, error) { return d.has, nil }

func (d *twins) DestroyTwin(_ context.Context, _ hsm.ID, number uint32) error {
	d.destroyed = append(d.destroyed, number)
	return nil
}

func (d *twins) NewTransfer(context.Context) (hsm.Transfer, error) {
	d.asked = true
	return hsm.Transfer{}, hsm.ErrUnavailable
}

// TestTwinOfNothing: no twin is made, or kept, of a generation that wraps nothing any more,
// though the ceremony has not ended yet.
func TestTwinOfNothing(t *testing.T) {
	id, old := uuid.New(), sha256.Sum256([]byte("token"))
	begun := []fsm.Command{
		&fsm.CreateKey{ID: id, Tenant: fsm.DefaultTenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: 1, Token: []byte("token")},
		&fsm.ProposeGeneration{Number: 2}, &fsm.ActivateGeneration{Number: 2}, &fsm.BeginRewrap{Generation: 1, Node: "n1"},
	}
	moved := &fsm.RewrapKeyVersions{Generation: 2, Items: []fsm.RewrapItem{{Key: id, Version: 1, Old: old[:], Token: []byte("moved")}}}
	going, done := rotated(t, begun...), rotated(t, append(slices.Clone(begun), moved)...)
	for _, row := range []struct {
		what      string
		s         *fsm.State
		has       []uint32
		destroyed []uint32
		asked     bool
	}{
		{"with what is to be moved", going, []uint32{1}, nil, false},
		{"with what is to be moved, and no twin", going, nil, nil, true},
		{"when all is moved", done, []uint32{1}, []uint32{1}, false},
		{"when all is moved, and there was no twin", done, nil, nil, false},
	} {
		if _, on := row.s.Rewrapping(); !on {
			t.Fatalf("%s: no ceremony", row.what)
		}
		d := &twins{has: row.has}
		e := &engine{member: &Member{}, config: &Config{Domain: d}, id: "n1", ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
		g, _ := row.s.Generation(1)
		e.domain.held.Store(&[]hsm.Generation{hsmGeneration(g)})
		e.domain.movingIs(errors.New("a version does not open"))
		if err := e.keepTwin(row.s); (err != nil) != row.asked || !slices.Equal(d.destroyed, row.destroyed) || d.asked != row.asked {
			t.Errorf("%s: %v, destroyed %v, a transfer key was asked for: %v", row.what, err, d.destroyed, d.asked)
		}
		e.domain.problemIs(nil)
		if e.domain.moving == "" {
			t.Errorf("%s: what is wrong with the ceremony is forgotten", row.what)
		}
		if err := e.keepTwin(rotated(t)); err != nil || e.domain.moving != "" {
			t.Errorf("without a ceremony: %v, %q", err, e.domain.moving)
		}
	}
}
