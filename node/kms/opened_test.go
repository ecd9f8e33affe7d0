package kms

import (
	"errors"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// TestUnopenedKeysAreNotMade: what the other HSMs do not open reaches no log, whoever
// asked for it.
func TestUnopenedKeysAreNotMade(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	_, _, err := e.EnableKeyRotation(t.Context(), as(ada), key, time.Hour, 0)
	e.ok(err)
	if e.hsm.opened != 1 {
		t.Errorf("%d tokens opened by others, want 1", e.hsm.opened)
	}
	broken := errors.New("two HSMs are broken")
	e.hsm.unopened = broken
	_, _, err = e.CreateKey(t.Context(), as(ada), KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
	e.refused(err, broken)
	_, _, err = e.RotateKeyOnDemand(t.Context(), as(ada), key, 0)
	e.refused(err, broken)
	e.clock.advance(2 * time.Hour)
	e.doDue(t.Context(), map[fsm.Due]time.Time{})
	if n := e.log.count(&fsm.CreateKey{}); n != 1 || len(e.stored(key).Versions) != 1 {
		t.Errorf("%d keys, versions %v", n, e.stored(key).Versions)
	}
	e.hsm.unopened = nil
	e.doDue(t.Context(), map[fsm.Due]time.Time{})
	if n := len(e.stored(key).Versions); n != 2 {
		t.Errorf("%d versions after the HSMs are back, want 2", n)
	}
}

// rotateDomain makes the next generation of the domain key the active one.
func (e *env) rotateDomain() uint32 {
	e.t.Helper()
	cluster := e.log.State().Cluster()
	g, err := e.hsm.CreateDomain(e.t.Context(), hsm.ID(cluster.ID), cluster.Generations[len(cluster.Generations)-1].Number+1)
	e.ok(err)
	command := &fsm.ProposeGeneration{Number: g.Number, Node: "n1-1", NoRecovery: true}
	for _, c := range g.Checks {
		command.Checks = append(command.Checks, fsm.DomainCheck{Kind: uint8(c.Kind), Value: c.Value[:]})
	}
	e.do(command)
	e.do(&fsm.ActivateGeneration{Number: g.Number})
	return g.Number
}

// TestOpeningHoldsNoPlace: an RSA key that waits for the other HSMs keeps nobody from making
// a data key pair.
func TestOpeningHoldsNoPlace(t *testing.T) {
	e := newEnv(t)
	held := -1
	e.hsm.meanwhile = func() { held = len(e.pairs) }
	e.of(fsm.SpecRSA2048, fsm.UsageSignVerify)
	if held != 0 {
		t.Errorf("%d places for pairs are taken while others open the key, want 0", held)
	}
}

// TestRotatedMeanwhile: a call whose token is of the generation before the active one makes
// another, and does not fail; also where its caller has named a revision.
func TestRotatedMeanwhile(t *testing.T) {
	e := newEnv(t)
	rotate := func() { e.rotateDomain() }
	current := func(key string) uint32 { return e.stored(key).Current().Generation }

	e.hsm.meanwhile = rotate
	key := e.key("default")
	if g := current(key); g != 2 {
		t.Errorf("the key is wrapped under generation %d, want 2", g)
	}
	e.hsm.meanwhile = rotate
	_, _, err := e.RotateKeyOnDemand(t.Context(), as(ada), key, e.stored(key).Revision)
	e.ok(err)
	if g := current(key); g != 3 {
		t.Errorf("the rotated key is wrapped under generation %d, want 3", g)
	}
	e.hsm.meanwhile = rotate
	blob := e.sealed(in(obs, "acme"), "", acting("acme", "r")...)
	k, _ := e.log.State().ServiceKey("acme", "obs")
	if k == nil || k.Current().Generation != 4 {
		t.Errorf("the service's key is %+v, want one under generation 4", k)
	}
	e.ok(e.opens(in(obs, "acme"), blob, acting("acme", "r")...))
	_, _, err = e.RotateKeyOnDemand(t.Context(), as(ada), key, 1)
	e.refused(err, fsm.ErrConflict)
}
