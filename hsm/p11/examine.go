//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// Find looks for a token and logs in nowhere.
func Find(module, arguments, label, serial string) (found Found, err error) {
	lib, err := acquire(module, arguments)
	if err != nil {
		return Found{}, err
	}
	defer func() { err = errors.Join(err, lib.release()) }()
	s, err := lib.find(label, serial)
	if err != nil {
		return Found{}, err
	}
	flag := func(f uint) bool { return s.token.Flags&f != 0 }
	return Found{
		Manufacturer: s.token.ManufacturerID, Model: s.token.Model, Serial: s.token.SerialNumber,
		PINTried: flag(pkcs11.CKF_USER_PIN_COUNT_LOW), PINLastTry: flag(pkcs11.CKF_USER_PIN_FINAL_TRY), PINLocked: flag(pkcs11.CKF_USER_PIN_LOCKED),
	}, nil
}

// Examine looks at a token and writes nothing to it: it lists what it offers, and runs the
// self-test on objects of a session. A self-test that fails is no error; its probes tell.
func Examine(ctx context.Context, cfg Config) (x Examination, err error) {
	err = visit(ctx, cfg, func(l *link, s *session, cfg Config) error {
		found, probes, err := selfTest(ctx, l, cfg.Cloned, cfg.AcceptWeakness, false)
		if err != nil && !errors.Is(err, hsm.ErrSelfTest) {
			return err
		}
		info := l.token.token
		x.Info = hsm.Info{
			Kind: "pkcs11", Manufacturer: info.ManufacturerID, Model: info.Model, Serial: info.SerialNumber, Label: info.Label, Probes: probes,
		}
		x.Firmware = fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor)
		if len(found.oaep) > 0 {
			x.OAEP = found.oaep[0]
		}
		ours, err := s.ours()
		x.Objects = len(ours)
		if err == nil {
			x.Needs, err = needs(l, found, cfg.Sessions)
		}
		return err
	})
	return x, err
}

// Erase destroys every object of ours in a token that has been declared scratch.
func Erase(ctx context.Context, cfg Config) error {
	return visit(ctx, cfg, func(_ *link, s *session, _ Config) error {
		ours, err := s.ours()
		if err != nil {
			return err
		}
		return s.destroyAll(ours)
	})
}

// visit runs fn on a link of its own, as user.
func visit(ctx context.Context, cfg Config, fn func(*link, *session, Config) error) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	defer clear(cfg.PIN)
	lib, err := acquire(cfg.Module, cfg.ModuleArguments)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.release()) }()
	t, err := lib.await(ctx, cfg.Token, cfg.Serial)
	if err != nil {
		return err
	}
	l, err := connect(lib, t, cfg.PIN, 1, false, nil)
	if err != nil {
		return err
	}
	defer l.drain()
	s, err := l.take(ctx, l.work)
	if err != nil {
		return err
	}
	defer func() {
		s.ends()
		l.work <- s
	}()
	if err := fn(l, s, cfg); err != nil {
		return wrapped(err)
	}
	return nil
}

// ours finds every object of ours in the token.
func (s *session) ours() ([]pkcs11.ObjectHandle, error) {
	b := &bench{session: s}
	var all []pkcs11.ObjectHandle
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		objects, err := b.existing(class)
		if err != nil {
			return nil, err
		}
		for o := range objects {
			all = append(all, o)
		}
	}
	return all, nil
}

// needs compares what a token offers with what there must be for a node with so many
// sessions. Mechanisms are those that the token lists; what works, the self-test found.
func needs(l *link, found traits, sessions int) ([]Need, error) {
	list, err := l.lib.ctx.GetMechanismList(l.token.id)
	if err != nil {
		return nil, fmt.Errorf("list mechanisms: %w", err)
	}
	offers := func(m uint) bool {
		return slices.ContainsFunc(list, func(o *pkcs11.Mechanism) bool { return o.Mechanism == m })
	}
	var all []Need
	for _, row := range []struct {
		name     string
		m        uint
		required bool
		detail   string
	}{
		{"CKM_AES_KEY_GEN", pkcs11.CKM_AES_KEY_GEN, true, "domain keys and customer keys"},
		{"CKM_GENERIC_SECRET_KEY_GEN", pkcs11.CKM_GENERIC_SECRET_KEY_GEN, true, "domain MAC key; HMAC keys"},
		{"CKM_AES_ECB", pkcs11.CKM_AES_ECB, true, "message keys: many blocks a call"},
		{"CKM_SHA256_HMAC", pkcs11.CKM_SHA256_HMAC, true, "key tokens; HMAC keys"},
		{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN, true, "node identity key, P-256"},
		{"CKM_ECDSA", pkcs11.CKM_ECDSA, true, "node identity key"},
		{"CKM_RSA_PKCS_KEY_PAIR_GEN", pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, true, "transfer keys, RSA-3072"},
		{"CKM_RSA_PKCS_OAEP", pkcs11.CKM_RSA_PKCS_OAEP, true, "transfer of the domain key"},
		{"CKM_RSA_PKCS_PSS", pkcs11.CKM_RSA_PKCS_PSS, false, "RSA keys that sign"},
		{"CKM_RSA_PKCS", pkcs11.CKM_RSA_PKCS, false, "RSA keys that sign"},
		{"CKM_SHA384_HMAC", pkcs11.CKM_SHA384_HMAC, false, "HMAC_384 keys"},
		{"CKM_SHA512_HMAC", pkcs11.CKM_SHA512_HMAC, false, "HMAC_512 keys"},
	} {
		all = append(all, Need{row.name, row.required, offers(row.m), row.detail})
	}
	kwp := Need{Name: "RFC 5649 key wrap", Required: true, Offered: found.kwp != 0, Detail: "known answer fails for 0x210a and 0x210b"}
	if kwp.Offered {
		kwp.Detail = fmt.Sprintf("mechanism %#x, by known answer", found.kwp)
	}
	oaep := Need{Name: "OAEP wrap and unwrap", Required: true, Offered: len(found.oaep) > 0, Detail: "with SHA-256 or SHA-1"}
	if oaep.Offered {
		oaep.Detail = "with " + found.oaepNames()
	}
	room := uint(sessions) + 3
	limit := l.token.token.MaxRwSessionCount
	unlimited := limit == pkcs11.CK_EFFECTIVELY_INFINITE || limit == ^uint(0)
	rw := Need{
		Name: fmt.Sprintf("%d sessions", room), Required: true, Offered: unlimited || limit >= room,
		Detail: fmt.Sprintf("the token has %d; hsm.sessions and three more", limit),
	}
	if unlimited {
		rw.Detail = "the token states no limit"
	}
	all = append(all, kwp, oaep, rw)
	for _, k := range secretKinds() {
		for _, a := range k.Algorithms() {
			all = append(all, Need{Name: string(a), Offered: slices.Contains(found.algorithms, a), Detail: "by known answer, with a key that was wrapped and opened"})
		}
	}
	return all, nil
}
