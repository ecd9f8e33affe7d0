//go:build cgo

package p11

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// maxLabel is the size of a token label, in bytes.
const maxLabel = 32

// InitToken makes a token on a free slot and sets its PINs. ErrRefused if a token
// has the label already, unless its user PIN was never set: then an earlier attempt
// was cut short, and is done again.
func InitToken(_ context.Context, cfg InitConfig) (err error) {
	if len(cfg.Label) == 0 || len(cfg.Label) > maxLabel || strings.TrimSpace(cfg.Label) != cfg.Label {
		return fmt.Errorf("%w: a token label has 1 to %d bytes and no space at its ends", hsm.ErrRefused, maxLabel)
	}
	lib, err := acquire(cfg.Module, cfg.ModuleArguments)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.release()) }()
	s, err := lib.blank(cfg)
	if err != nil {
		return err
	}
	pins := [][]byte{cfg.PIN}
	if !cfg.NoOfficer {
		pins = append(pins, cfg.SOPIN)
	}
	for _, pin := range pins {
		if len(pin) == 0 {
			return fmt.Errorf("%w: a PIN is empty", hsm.ErrPIN) // some tokens would take it
		}
		if n := uint(len(pin)); n < s.token.MinPinLen || n > s.token.MaxPinLen {
			return fmt.Errorf("%w: this token takes PINs of %d to %d bytes", hsm.ErrPIN, s.token.MinPinLen, s.token.MaxPinLen)
		}
	}
	if cfg.NoOfficer {
		cfg.SOPIN = nil
	} else if err := lib.ctx.InitToken(s.id, string(cfg.SOPIN), cfg.Label); err != nil {
		return adminError("initialise token", err)
	}
	s.token.Label = cfg.Label
	return lib.as(s, pkcs11.CKU_SO, cfg.SOPIN, func(so *session) error {
		if err := so.ctx().InitPIN(so.h, string(cfg.PIN)); err != nil {
			return adminError("set the user pin", err)
		}
		return nil
	})
}

// blank finds the slot for a new token: a free one, or of a token without Security Officer
// the one that has its label.
func (lib *library) blank(cfg InitConfig) (slot, error) {
	label := cfg.Label
	ids, err := lib.ctx.GetSlotList(true)
	if err != nil {
		return slot{}, adminError("list slots", err)
	}
	var free *slot
	for _, id := range ids {
		info, err := lib.ctx.GetTokenInfo(id)
		if err != nil {
			continue // gone since
		}
		switch made := info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0; {
		case made && info.Label == label && info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0:
			return slot{}, fmt.Errorf("%w: %s has a token %q already", hsm.ErrRefused, lib.path, label)
		case info.Label == label && (made || cfg.NoOfficer), !made && free == nil && !cfg.NoOfficer:
			free = &slot{id, info}
		}
	}
	if free == nil && cfg.NoOfficer {
		return slot{}, fmt.Errorf("%w: %s has no slot with a blank token %q; its arguments give a token its label", hsm.ErrUnavailable, lib.path, label)
	}
	if free == nil {
		return slot{}, fmt.Errorf("%w: %s has no free slot", hsm.ErrUnavailable, lib.path)
	}
	return *free, nil
}

// as runs fn in a session of the Security Officer, or of the user, after one attempt to log
// in.
func (lib *library) as(token slot, user uint, pin []byte, fn func(*session) error) (err error) {
	l := &link{lib: lib, token: token}
	h, err := l.open()
	if err != nil {
		return err
	}
	defer func() {
		if closing := lib.ctx.CloseSession(h); closing != nil {
			err = errors.Join(err, adminError("close the session", closing))
		}
	}()
	if err := login(lib, h, user, pin, false); err != nil {
		who := "security officer"
		if user == pkcs11.CKU_USER {
			who = "user"
		}
		return fmt.Errorf("%s, token %q: %w", who, token.token.Label, err)
	}
	return fn(&session{link: l, h: h})
}

func adminError(what string, err error) error {
	if isPIN(code(err)) {
		return fmt.Errorf("%s: %w: %w", what, hsm.ErrPIN, err)
	}
	return fmt.Errorf("%w: %s: %w", hsm.ErrUnavailable, what, err)
}

// asOfficer runs fn as the Security Officer of an existing token.
func asOfficer(ctx context.Context, cfg TrustConfig, fn func(*session) error) (err error) {
	user, pin := uint(pkcs11.CKU_SO), cfg.SOPIN
	switch byUser := slices.Contains(cfg.AcceptWeakness, probeTrust); {
	case byUser && len(pin) == 0:
		user, pin = pkcs11.CKU_USER, cfg.PIN
	case !byUser && len(cfg.PIN) != 0:
		return fmt.Errorf("%w: the user's PIN trusts nothing, unless the weakness %s is accepted", hsm.ErrRefused, probeTrust)
	}
	if len(pin) == 0 {
		return fmt.Errorf("%w: no PIN of the security officer", hsm.ErrRefused)
	}
	lib, err := acquire(cfg.Module, cfg.ModuleArguments)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.release()) }()
	s, err := lib.await(ctx, cfg.Token, cfg.Serial)
	if err != nil {
		return err
	}
	return lib.as(s, user, pin, func(so *session) error {
		var err error
		if user == pkcs11.CKU_USER && slices.Contains(cfg.AcceptWeakness, probeAttributes) {
			so.link.quirks, err = so.survey(true, func(uint, bool) {})
		}
		if err == nil {
			err = fn(so)
		}
		if err != nil {
			return wrapped(err)
		}
		return nil
	})
}

// Trust is the Security Officer's step: it trusts a transfer key or a recovery key (SPKI),
// so that the partition wraps for it. It needs a process of its own: a token to which this process
// is logged in as user refuses the Security Officer. A node that runs sees the
// object at once. ErrRefused if spki is neither.
func Trust(ctx context.Context, cfg TrustConfig, spki []byte) error {
	pub, err := hsm.RecipientPublicKey(spki)
	if err != nil {
		return err
	}
	return asOfficer(ctx, cfg, func(so *session) error {
		if _, err := so.trusted(spki); !errors.Is(err, hsm.ErrNotTrusted) {
			return err
		}
		o, err := so.create(trustedTemplate(spki).with(
			octets(pkcs11.CKA_MODULUS, pub.N.Bytes()), octets(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent())))
		if err != nil {
			return err
		}
		if _, err := so.trusted(spki); err != nil {
			return errors.Join(fmt.Errorf("%w: the token does not keep what it was told to trust", hsm.ErrCorrupt), err, so.destroy(o))
		}
		return nil
	})
}

// Untrust removes the key with this fingerprint (hsm.Fingerprint). ErrNotTrusted if
// there is none.
func Untrust(ctx context.Context, cfg TrustConfig, fingerprint string) error {
	fingerprint, err := hsm.ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	_, digits, _ := strings.Cut(fingerprint, ":")
	id, err := hex.DecodeString(digits)
	if err != nil {
		return fmt.Errorf("%w: fingerprint: %w", hsm.ErrRefused, err)
	}
	return asOfficer(ctx, cfg, func(so *session) error {
		objects, err := so.find(template{
			number(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), flag(pkcs11.CKA_TOKEN, true),
			octets(pkcs11.CKA_ID, bytes.Clone(id)),
		})
		if err != nil {
			return err
		}
		if len(objects) == 0 {
			return fmt.Errorf("%s: %w", fingerprint, hsm.ErrNotTrusted)
		}
		return so.destroyAll(objects)
	})
}
