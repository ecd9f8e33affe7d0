package kms

import (
	"errors"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
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
