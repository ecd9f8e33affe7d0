package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
)

func recoveryInitTokenCommand() *cobra.Command {
	var config, name, out string
	c := &cobra.Command{
		Use: "init-token", Short: "Make a recovery key in an HSM token that is kept apart", Args: cobra.NoArgs,
		Long: `Makes a recovery key in an HSM token that kmsd hsm init-token has prepared: another one
than any node's, on a machine that has no network, kept in another place. The key is
RSA-4096, never leaves the token and does nothing but open copies of the domain key there:
with such a token and a backup the domain key is recovered, and is never in clear.

NAME.recovery is public, and signed by the token's identity key: give it to the cluster
(kmsctl cluster init --recovery-recipient, kmsctl recovery recipients add) and to the
Security Officers of its nodes (kmsd hsm trust --recovery). Everybody who was there notes
the fingerprint: they compare it.

A key of that name that is in the token already is left as it is, and its file is written
again. Have the vendor's backup of the token made: who loses it loses this way back.`,
		Example: "  kmsd recovery init-token --config recovery.yaml --name vault",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := given([2]string{"name", name}); err != nil {
				return err
			}
			if err := recovery.ValidName(name); err != nil {
				return fmt.Errorf("%w: --name: %w", node.ErrConfig, err)
			}
			if out == "" {
				out = name + ".recovery"
			}
			p, err := openRecoveryToken(c.Context(), config, c.ErrOrStderr())
			if err != nil {
				return err
			}
			err = makeRecoveryToken(c, p, name, out)
			return errors.Join(err, p.Close())
		},
	}
	c.Flags().StringVar(&config, "config", "recovery.yaml", "file with the part hsm of a configuration")
	c.Flags().StringVar(&name, "name", "", "name of the recovery key")
	c.Flags().StringVar(&out, "out", "", "file to write the public half to; it must not be there (default: NAME.recovery)")
	return c
}

func makeRecoveryToken(c *cobra.Command, p hsm.Partition, name, out string) error {
	key, made, err := p.EnsureRecoveryKey(c.Context(), name)
	if err != nil {
		return err
	}
	file, err := recovery.NewToken(recovery.PublicKey{Name: key.Name, SPKI: key.SPKI, OAEPHash: key.OAEPHash, Identity: p.Identity()}, signer(c.Context(), p))
	if err != nil {
		return err
	}
	if err := writeNew(out, file); err != nil {
		return err
	}
	is := "made"
	if !made {
		is = "was there already; its file is written again"
	}
	return writeFields(c.OutOrStdout(), [][2]string{
		{"Recovery key", key.Name + ", " + is},
		{"Kind", recovery.KindToken},
		{"Token", p.Info().Label + ", identity " + hsm.Fingerprint(p.Identity())},
		{"OAEP", "with " + hsm.OAEPName(key.OAEPHash)},
		{"Fingerprint", hsm.Fingerprint(key.SPKI)},
		{"Public half", out},
	})
}

func signer(ctx context.Context, p hsm.Partition) recovery.Signer {
	return func(message []byte) ([]byte, error) { return p.SignIdentity(ctx, message) }
}

// openRecoveryToken opens the token that a file with the part hsm of a configuration names.
func openRecoveryToken(ctx context.Context, config string, stderr io.Writer) (hsm.Partition, error) {
	cfg, err := node.LoadHSM(config)
	if err != nil {
		return nil, err
	}
	if cfg.Kind == node.KindEmbedded && cfg.InMemory {
		return nil, fmt.Errorf("%s: %w: an embedded partition in memory keeps no recovery key (hsm.in_memory)", config, node.ErrConfig)
	}
	return node.OpenPartition(ctx, cfg, toolLog(stderr))
}

// tokenKeys are the recovery keys that are in a token. What they open stays in it, and is not
// stored there.
type tokenKeys struct {
	partition hsm.Partition
	keys      []hsm.RecoveryKey
}

func withRecoveryToken(ctx context.Context, f recoveryFlags, stderr io.Writer) (*recovered, error) {
	p, err := openRecoveryToken(ctx, f.token, stderr)
	if err != nil {
		return nil, err
	}
	k := &tokenKeys{partition: p}
	k.keys, err = p.RecoveryKeys(ctx)
	if err == nil && len(k.keys) == 0 {
		err = fmt.Errorf("%w: token %q has no recovery key: kmsd recovery init-token makes one, before anything is lost", recovery.ErrRefused, p.Info().Label)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return &recovered{Partition: p, key: k}, nil
}

func (k *tokenKeys) opens(r fsm.Recipient) bool {
	return slices.ContainsFunc(k.keys, func(x hsm.RecoveryKey) bool { return bytes.Equal(x.SPKI, r.SPKI) })
}

func (k *tokenKeys) stranger() string {
	var names []string
	for _, x := range k.keys {
		names = append(names, x.Name)
	}
	return fmt.Sprintf("no recovery key in token %q (%s) is of a recipient", k.partition.Info().Label, strings.Join(names, ", "))
}

func (k *tokenKeys) take(ctx context.Context, message []byte, want hsm.ImportExpectation) error {
	_, err := k.partition.ImportRecovery(ctx, message, want)
	return err
}

func (k *tokenKeys) sign(ctx context.Context, r *recovery.Report) ([]byte, error) {
	return r.SignWith(signer(ctx, k.partition))
}

func (k *tokenKeys) close() {}

// trustHint completes the error of a release that a token refuses: its own Security Officer
// decides for whom it wraps.
func trustHint(err error, f recoveryFlags, request string, to *recovery.Request) error {
	if f.token == "" || !errors.Is(err, hsm.ErrNotTrusted) {
		return err
	}
	return fmt.Errorf("%w: the Security Officer of the recovery token must compare the fingerprint with the one on the new node's console and trust it: kmsd hsm trust --config %s --request %s %s", err, f.token, request, to.Fingerprint())
}

// twinTries is how often a twin that is not destroyed at once is tried again.
const twinTries = 10

// twinnedToken is a recovery token that has the twin of a generation until it is closed.
type twinnedToken struct {
	*recovered
	ctx     context.Context //nolint:containedctx // Close has none, and must not be cancelled
	from    uint32
	untrust func() error
}

// Close destroys the twin and takes the trust back.
func (t *twinnedToken) Close() error {
	id := t.state.Cluster().ID
	err := t.DestroyTwin(t.ctx, hsm.ID(id), t.from)
	for range twinTries { // a token that was lost comes back within seconds
		if !errors.Is(err, hsm.ErrUnavailable) {
			break
		}
		time.Sleep(time.Second)
		err = t.DestroyTwin(t.ctx, hsm.ID(id), t.from)
	}
	if err != nil {
		err = fmt.Errorf("THE TWIN OF GENERATION %d IS STILL IN THE RECOVERY TOKEN, and whoever has its PIN can take keys out: kmsd recovery twin destroy --config FILE --cluster %s --generation %d: %w", t.from, id, t.from, err)
	}
	return errors.Join(err, t.recovered.Close(), t.untrust())
}

// recoveryTokenWithTwin opens a backup in the token that the recovery key is in, and makes the
// twin of a generation there. The token hands the generation to itself, for which its Security
// Officer trusts a key; he is not let in while this process is its user, so it is opened twice.
func recoveryTokenWithTwin(ctx context.Context, f recoveryFlags, from uint32, soPIN []byte, stderr io.Writer) (hsm.Partition, error) {
	cfg, err := node.LoadHSM(f.token)
	if err != nil {
		return nil, err
	}
	if cfg.Kind == node.KindEmbedded {
		return nil, fmt.Errorf("%w: an embedded partition has a twin only as long as its process runs", hsm.ErrRefused)
	}
	p, err := openRecoveryToken(ctx, f.token, stderr)
	if err != nil {
		return nil, err
	}
	transfer, err := p.NewTransfer(ctx)
	if err = errors.Join(err, p.Close()); err != nil {
		return nil, err
	}
	if err := node.TrustTransfer(ctx, cfg, soPIN, transfer.SPKI); err != nil {
		return nil, err
	}
	after := context.WithoutCancel(ctx)
	untrust := func() error { return node.UntrustTransfer(after, cfg, soPIN, hsm.Fingerprint(transfer.SPKI)) }
	r, err := openRecovered(ctx, f, stderr)
	if err != nil {
		return nil, errors.Join(err, untrust())
	}
	if err := node.TwinOfOwn(ctx, r, r.state.Cluster().ID, from, transfer); err != nil {
		return nil, errors.Join(err, r.Close(), untrust())
	}
	return &twinnedToken{recovered: r, ctx: after, from: from, untrust: untrust}, nil
}
