package kms

import (
	"context"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// erring is a deriver whose HSM errs when keys to open a message are asked for.
type erring struct {
	Deriver
	errs bool
}

func (d *erring) Derive(ctx context.Context, ref hsm.Ref, in hsm.MessageInput, use hsm.Use) (hsm.MessageKeys, error) {
	keys, err := d.Deriver.Derive(ctx, ref, in, use)
	if d.errs && use == hsm.Open {
		keys.Com[31] ^= 1
	}
	return keys, err
}

// TestErringHSMBlamesNoCiphertext: a ciphertext that does not open because the HSM errs is
// not called invalid; an altered one is.
func TestErringHSMBlamesNoCiphertext(t *testing.T) {
	e := newEnv(t)
	d := &erring{Deriver: e.deriver}
	e.deriver = d
	key := e.key("default")
	blob := e.sealed(as(uma), key)
	e.ok(e.opens(as(uma), blob))
	d.errs = true
	e.refused(e.opens(as(uma), blob), hsm.ErrWrongAnswer)
	d.errs = false
	blob[len(blob)-1] ^= 1
	e.refused(e.opens(as(uma), blob), ErrCiphertext)
}
