package node

import (
	"context"
	"fmt"
	"log/slog"

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
		Module: c.Module, Token: c.Token, Serial: c.Serial, PIN: append([]byte(nil), pin...), Sessions: c.Sessions,
		AcceptWeakness: c.AcceptWeakness, Logger: log,
	})
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
	return p11.Trust(ctx, p11.TrustConfig{Module: c.Module, Token: c.Token, Serial: c.Serial, SOPIN: soPIN}, spki)
}

// UntrustTransfer takes the trust in a transfer key back, as Security Officer: after
// the node has joined, or when it is removed.
func UntrustTransfer(ctx context.Context, c HSM, soPIN []byte, fingerprint string) error {
	if c.Kind == KindEmbedded {
		return soft.Untrust(c.Dir, soPIN, fingerprint)
	}
	return p11.Untrust(ctx, p11.TrustConfig{Module: c.Module, Token: c.Token, Serial: c.Serial, SOPIN: soPIN}, fingerprint)
}

// InitToken makes a new PKCS#11 token.
func InitToken(ctx context.Context, c HSM, soPIN, pin []byte) error {
	return p11.InitToken(ctx, p11.InitConfig{Module: c.Module, Label: c.Token, SOPIN: soPIN, PIN: pin})
}
