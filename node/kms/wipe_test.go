package kms

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// watched is a deriver that keeps hold of the buffers with secrets that pass through it.
type watched struct {
	Deriver
	secret []byte
	// meanwhile, unless nil, happens once while the secret waits for its release.
	meanwhile func()
}

func (w *watched) saw(secret []byte) {
	w.secret = secret
	if f := w.meanwhile; f != nil {
		w.meanwhile = nil
		f()
	}
}

func (w *watched) Apply(ctx context.Context, ref hsm.Ref, a hsm.Algorithm, input []byte) ([]byte, error) {
	output, err := w.Deriver.Apply(ctx, ref, a, input)
	w.saw(output)
	return output, err
}

func (w *watched) Encrypt(ctx context.Context, ref hsm.Ref, plaintext []byte, bind hsm.Binding) ([]byte, error) {
	sealed, err := w.Deriver.Encrypt(ctx, ref, plaintext, bind)
	w.saw(plaintext)
	return sealed, err
}

func (w *watched) Decrypt(ctx context.Context, ref hsm.Ref, iv [hsm.IVSize]byte, t [32]byte, ciphertext []byte, verify func(com *[32]byte) ([]byte, error)) ([]byte, error) {
	plaintext, err := w.Deriver.Decrypt(ctx, ref, iv, t, ciphertext, verify)
	w.saw(plaintext)
	return plaintext, err
}

// TestWithheldSecretsAreWiped: the buffer of a result that does not leave is zeroed, whether
// the gate refuses it or it cannot be recorded; that of one that leaves is the caller's.
func TestWithheldSecretsAreWiped(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	w := &watched{Deriver: e.deriver}
	e.deriver = w
	m, _, err := e.CreateKey(ctx, as(ada), KeyParams{Spec: fsm.SpecSymmetric, Protection: fsm.ProtectionResident})
	e.ok(err)
	resident, mac, opens := m.Key.ID.String(), e.of(fsm.SpecHMAC256, ""), e.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt)
	sealed, err := e.Encrypt(ctx, as(uma), opens, []byte("plain"), nil, hsm.OAEPRSA256)
	e.ok(err)
	blob := e.sealed(as(uma), resident)
	pair := func(spec fsm.KeySpec) func() ([]byte, error) {
		return func() ([]byte, error) {
			r, err := e.GenerateDataKeyPair(ctx, as(uma), resident, spec, nil)
			return r.Plaintext, err
		}
	}
	for _, row := range []struct {
		what, key string
		call      func() (secret []byte, err error)
	}{
		{"plaintext of RSA", opens, func() ([]byte, error) {
			r, err := e.Decrypt(ctx, as(uma), sealed.Ciphertext, opens, nil, hsm.OAEPRSA256)
			return r.Plaintext, err
		}},
		{"MAC", mac, func() ([]byte, error) {
			r, err := e.GenerateMac(ctx, as(uma), mac, Message{Bytes: []byte("m"), Algorithm: hsm.HMACSHA256})
			return r.Output, err
		}},
		{"data key pair of EC", resident, pair(fsm.SpecP256)},
		{"data key pair of RSA", resident, pair(fsm.SpecRSA2048)},
		{"data key", resident, func() ([]byte, error) {
			r, err := e.GenerateDataKey(ctx, as(uma), resident, 32, nil)
			return r.Plaintext, err
		}},
		{"plaintext", resident, func() ([]byte, error) {
			r, err := e.Decrypt(ctx, as(uma), blob, "", nil, "")
			return r.Plaintext, err
		}},
	} {
		got, err := row.call()
		e.ok(err)
		if len(got) == 0 || &got[0] != &w.secret[0] || wiped(got) {
			t.Fatalf("%s: what is watched is not what leaves", row.what)
		}

		ref := fsm.KeyRef{ID: uuid.MustParse(row.key), Tenant: fsm.DefaultTenant}
		w.meanwhile = func() { e.do(&fsm.DisableKey{KeyRef: ref}) }
		got, err = row.call()
		e.refused(err, fsm.ErrDisabled)
		if last := e.audit.last(); last.Result != audit.Withheld {
			t.Errorf("%s: audit %+v", row.what, last)
		}
		if got != nil || !wiped(w.secret) {
			t.Errorf("%s: withheld, and left in memory: %x", row.what, w.secret)
		}
		e.do(&fsm.EnableKey{KeyRef: ref})

		broken := errors.New("the disk is full")
		w.meanwhile = func() { e.audit.broken = broken }
		got, err = row.call()
		e.refused(err, broken)
		if got != nil || !wiped(w.secret) {
			t.Errorf("%s: not recorded, and left in memory: %x", row.what, w.secret)
		}
		e.audit.broken = nil
	}
}

// TestUnaskedSecretsAreWiped: what a call makes and does not return.
func TestUnaskedSecretsAreWiped(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	w := &watched{Deriver: e.deriver}
	e.deriver = w
	m, _, err := e.CreateKey(ctx, as(ada), KeyParams{Spec: fsm.SpecSymmetric, Protection: fsm.ProtectionResident})
	e.ok(err)
	resident, mac := m.Key.ID.String(), e.of(fsm.SpecHMAC256, "")
	for what, call := range map[string]func() error{
		"data key": func() error {
			_, err := e.GenerateDataKeyWithoutPlaintext(ctx, as(uma), resident, 32, nil)
			return err
		},
		"data key pair": func() error {
			_, err := e.GenerateDataKeyPairWithoutPlaintext(ctx, as(uma), resident, fsm.SpecP256, nil)
			return err
		},
		"MAC to compare with": func() error {
			_, err := e.VerifyMac(ctx, as(uma), mac, Message{Bytes: []byte("m"), Algorithm: hsm.HMACSHA256}, []byte("x"))
			if errors.Is(err, ErrMac) {
				return nil
			}
			return err
		},
	} {
		w.secret = nil
		e.ok(call())
		if len(w.secret) == 0 || !wiped(w.secret) {
			t.Errorf("%s: left in memory: %x", what, w.secret)
		}
	}
}

func wiped(b []byte) bool { return bytes.Equal(b, make([]byte, len(b))) }
