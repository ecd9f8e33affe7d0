package node

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

// openPartition opens the node's HSM partition and runs its self-test.
func openPartition(ctx context.Context, c HSM, log *slog.Logger) (hsm.Partition, error) {
	pin, err := Secret("HSM PIN", c.PINFile, EnvPIN)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	if c.Kind == KindEmbedded {
		log.Warn("the embedded partition keeps keys in this process: for development only")
		dir := c.Dir
		if c.InMemory {
			dir = ""
		}
		return soft.Open(soft.Config{Dir: dir, PIN: pin, Label: c.Token, TrustAll: c.TrustAll})
	}
	if len(pin) == 0 {
		return nil, fmt.Errorf("%w: no HSM PIN: name a file with mode 0600 in hsm.pin_file, or set %s", ErrConfig, EnvPIN)
	}
	return p11.Open(ctx, p11.Config{
		Module: c.Module, ModuleArguments: c.ModuleArguments, Token: c.Token, Serial: c.Serial, PIN: append([]byte(nil), pin...), Sessions: c.Sessions,
		AcceptWeakness: c.AcceptWeakness, Logger: log,
	})
}

// TrustTransfer is the Security Officer's step on the donor: it makes the token
// trust a transfer key, in a process of its own.
func TrustTransfer(ctx context.Context, c HSM, soPIN, spki []byte) error {
	if c.Kind == KindEmbedded {
		return soft.Trust(c.Dir, soPIN, spki)
	}
	t, err := c.trust(soPIN)
	if err != nil {
		return err
	}
	defer clear(t.PIN)
	return p11.Trust(ctx, t, spki)
}

// UntrustTransfer takes the trust in a transfer key back, as Security Officer: after
// the node has joined, or when it is removed.
func UntrustTransfer(ctx context.Context, c HSM, soPIN []byte, fingerprint string) error {
	if c.Kind == KindEmbedded {
		return soft.Untrust(c.Dir, soPIN, fingerprint)
	}
	t, err := c.trust(soPIN)
	if err != nil {
		return err
	}
	defer clear(t.PIN)
	return p11.Untrust(ctx, t, fingerprint)
}

// TrustsAsUser tells whether the user does the Security Officer's steps: the token has none,
// and that is accepted.
func (c HSM) TrustsAsUser() bool {
	return c.Kind == KindPKCS11 && slices.Contains(c.AcceptWeakness, p11.WeaknessTrust)
}

// trust says how to open the token for the Security Officer, or without a PIN of his for the
// user in his place.
func (c HSM) trust(soPIN []byte) (t p11.TrustConfig, err error) {
	t = p11.TrustConfig{
		Module: c.Module, ModuleArguments: c.ModuleArguments, Token: c.Token, Serial: c.Serial,
		SOPIN: soPIN, AcceptWeakness: c.AcceptWeakness,
	}
	if len(soPIN) == 0 && c.TrustsAsUser() {
		t.PIN, err = Secret("HSM PIN", c.PINFile, EnvPIN)
	}
	return t, err
}

// InitToken makes a new PKCS#11 token. Without a PIN of the Security Officer the token is one
// that knows none once its user has a PIN.
func InitToken(ctx context.Context, c HSM, soPIN, pin []byte) error {
	return p11.InitToken(ctx, p11.InitConfig{
		Module: c.Module, ModuleArguments: c.ModuleArguments, Label: c.Token,
		SOPIN: soPIN, PIN: pin, NoOfficer: len(soPIN) == 0,
	})
}
