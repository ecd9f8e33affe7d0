package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// openPartition opens the node's HSM partition and runs its self-test.
func openPartition(ctx context.Context, c HSM, log *slog.Logger) (hsm.Partition, error) {
	pin, err := c.pin()
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	if c.Kind == KindEmbedded {
		log.Warn("the embedded partition keeps keys in this process: for development only")
		return soft.Open(c.soft(pin))
	}
	return p11.Open(ctx, c.pkcs11(pin, log))
}

func (c HSM) pin() ([]byte, error) {
	pin, err := Secret("HSM PIN", c.PINFile, EnvPIN)
	if err == nil && len(pin) == 0 && c.Kind == KindPKCS11 {
		err = fmt.Errorf("%w: no HSM PIN: name a file with mode 0600 in hsm.pin_file, or set %s", ErrConfig, EnvPIN)
	}
	return pin, err
}

func (c HSM) soft(pin []byte) soft.Config {
	dir := c.Dir
	if c.InMemory {
		dir = ""
	}
	return soft.Config{Dir: dir, PIN: pin, Label: c.Token, TrustAll: c.TrustAll, Cloned: c.Profile == fsm.ProfileCloned}
}

func (c HSM) pkcs11(pin []byte, log *slog.Logger) p11.Config {
	return p11.Config{
		Module: c.Module, ModuleArguments: c.ModuleArguments, Token: c.Token, Serial: c.Serial, PIN: append([]byte(nil), pin...), Sessions: c.Sessions, KeySessions: c.KeySessions,
		Cloned: c.Profile == fsm.ProfileCloned, AcceptWeakness: c.AcceptWeakness, Logger: log,
	}
}

// Identity is the SPKI of the node identity key in a partition: what an invitation pins.
// It is made if there is none.
func Identity(ctx context.Context, c HSM) (spki []byte, err error) {
	if c.Kind == KindEmbedded && c.InMemory {
		return nil, fmt.Errorf("%w: an embedded partition in memory has another identity each time (hsm.in_memory)", ErrConfig)
	}
	p, err := openPartition(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return p.Identity(), p.Close()
}

// Adopt gives a partition that the vendor has cloned from a member's an identity key of its
// own, and returns its SPKI. It refuses while the node runs, or is a member already: its
// identity key is what the cluster knows it by.
func Adopt(ctx context.Context, c Config) (spki []byte, err error) {
	if c.HSM.Profile != fsm.ProfileCloned {
		return nil, fmt.Errorf("%w: hsm.profile is %s: only a partition of the profile %s is adopted", ErrConfig, c.HSM.Profile, fsm.ProfileCloned)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", cluster.ErrDataDir, err)
	}
	unlock, err := lockDir(filepath.Join(c.DataDir, lockFile))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := cluster.IsNew(c.DataDir, c.Name); err != nil {
		return nil, err
	}
	pin, err := c.HSM.pin()
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	if c.HSM.Kind == KindEmbedded {
		return soft.Adopt(c.HSM.soft(pin))
	}
	return p11.Adopt(ctx, c.HSM.pkcs11(pin, slog.New(slog.DiscardHandler)))
}

// OpenPartition opens a node's HSM partition without a node: for ceremonies while it is
// stopped. It runs the self-test.
func OpenPartition(ctx context.Context, c HSM, log *slog.Logger) (hsm.Partition, error) {
	return openPartition(ctx, c, log)
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
