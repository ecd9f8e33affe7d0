package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
)

// envSOPIN is the Security Officer's PIN in the environment.
const envSOPIN = "KMSD_HSM_SO_PIN"

func hsmCommand() *cobra.Command {
	c := &cobra.Command{Use: "hsm", Short: "Work on the node's HSM token"}
	c.AddCommand(initTokenCommand(), checkCommand(), identityCommand(), adoptCommand(), trustCommand(), untrustCommand())
	return c
}

func initTokenCommand() *cobra.Command {
	var module, arguments, label, pinFile, soPINFile string
	var noOfficer bool
	c := &cobra.Command{
		Use: "init-token", Short: "Make a PKCS#11 token with its two PINs", Args: cobra.NoArgs,
		Long: `Initializes a free slot of a PKCS#11 module as a token for one node. PINs come
from files with mode 0600 or from KMSD_HSM_PIN and KMSD_HSM_SO_PIN, never from
the command line. A token of that label is never overwritten.

Some tokens have no Security Officer once they are initialised, and get their label
otherwise (NSS, from its arguments): --no-security-officer gives such a token its
user PIN only.`,
		Example: "  SOFTHSM2_CONF=/etc/quorumkms/softhsm2.conf kmsd hsm init-token --token kms-1 --pin-file pin --so-pin-file so-pin",
		RunE: func(c *cobra.Command, _ []string) error {
			pin, err := required("user PIN", pinFile, node.EnvPIN, "--pin-file")
			if err != nil {
				return err
			}
			var soPIN []byte
			if !noOfficer {
				if soPIN, err = required("Security Officer's PIN", soPINFile, envSOPIN, "--so-pin-file"); err != nil {
					return err
				}
			}
			if err := node.InitToken(c.Context(), node.HSM{Module: module, ModuleArguments: arguments, Token: label}, soPIN, pin); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), "token", label, "is ready")
			return err
		},
	}
	c.Flags().StringVar(&module, "module", "", "PKCS#11 library (default: SoftHSM2 where distributions put it)")
	c.Flags().StringVar(&arguments, "module-arguments", "", "what the library is started with, if its vendor wants that")
	c.Flags().StringVar(&label, "token", "", "label of the new token")
	c.Flags().BoolVar(&noOfficer, "no-security-officer", false, "the token will have no Security Officer (NSS)")
	c.Flags().StringVar(&pinFile, "pin-file", "", "file with the user PIN")
	c.Flags().StringVar(&soPINFile, "so-pin-file", "", "file with the Security Officer's PIN")
	return c
}

func identityCommand() *cobra.Command {
	return partitionCommand(&cobra.Command{
		Use: "identity", Short: "Show the fingerprint of the node's identity key",
		Long: `Shows the fingerprint of the node identity key in the HSM partition of the
configuration, and makes the key if there is none. The key never leaves the partition:
an invitation that names this fingerprint lets no other partition in, whoever has stolen
the join token.`,
		Example: "  kmsd hsm identity --config /etc/quorumkms/kmsd.yaml",
	}, func(ctx context.Context, cfg node.Config) ([]byte, error) { return node.Identity(ctx, cfg.HSM) })
}

func adoptCommand() *cobra.Command {
	return partitionCommand(&cobra.Command{
		Use: "adopt", Short: "Give a cloned HSM partition an identity key of its own",
		Long: `Destroys the node identity key that came into this node's HSM partition with the
vendor's cloning (hsm.profile: cloned), makes one of its own and shows its fingerprint, for
the invitation. The domain key stays. It is refused on a node that is a member: the
cluster knows it by its identity.`,
		Example: "  kmsd hsm adopt --config /etc/quorumkms/kmsd.yaml",
	}, node.Adopt)
}

// partitionCommand completes a command that shows the fingerprint of the identity key.
func partitionCommand(c *cobra.Command, do func(context.Context, node.Config) ([]byte, error)) *cobra.Command {
	var path string
	c.Args = cobra.NoArgs
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := node.LoadConfig(path)
		if err != nil {
			return err
		}
		spki, err := do(c.Context(), cfg)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), hsm.Fingerprint(spki))
		return err
	}
	c.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file of this node")
	return c
}

func trustCommand() *cobra.Command {
	var recoveryFile, requestFile string
	c := officerCommand(&cobra.Command{
		Use: "trust FINGERPRINT", Short: "Trust another node's transfer key, or a recovery key, as Security Officer",
		Long: `A node that joins, or lacks a generation of the domain key, asks this node for it.
This node's token wraps it only for a transfer key that its Security Officer has
trusted. Compare the fingerprint with the one on the other node's own console, on a
channel other than this cluster; then give it here. PIN from a file with mode 0600 or from
KMSD_HSM_SO_PIN. Where the configuration accepts the weakness trusted-by-user the
user of the token may do it: without one of these, the node's own PIN is used.

With --recovery it is the key in that file, which kmsctl recovery init or kmsd recovery
init-token has made. Compare the fingerprint with the one that was noted at that ceremony:
whoever has the other half of a key that is trusted here, and a backup, has every key of
the cluster.

With --request it is the transfer key in that file, which kmsd recovery request has made on
the host of a new node: so the token that a recovery key is in is told for whom it may
release the domain key. --config may name a file with the part hsm only.`,
		Example: "  kmsd hsm trust --config /etc/quorumkms/kmsd.yaml --so-pin-file so-pin SHA256:9f2c…\n" +
			"  kmsd hsm trust --config /etc/quorumkms/kmsd.yaml --so-pin-file so-pin --recovery vault.recovery SHA256:77ab…\n" +
			"  kmsd hsm trust --config recovery.yaml --so-pin-file so-pin --request kms1.request SHA256:9f2c…",
	}, "trusted", func(ctx context.Context, cfg node.Config, soPIN func() ([]byte, error), fingerprint string) error {
		spki, err := keyToTrust(cfg, recoveryFile, requestFile, fingerprint)
		if err != nil {
			return err
		}
		pin, err := soPIN()
		if err != nil {
			return err
		}
		return node.TrustTransfer(ctx, cfg.HSM, pin, spki)
	})
	c.Flags().StringVar(&recoveryFile, "recovery", "", "file of the recovery key to trust")
	c.Flags().StringVar(&requestFile, "request", "", "file of the request whose transfer key is to be trusted, in a token that a recovery key is in")
	return c
}

// keyToTrust is the key of a recovery file or of a request, or else the transfer key that
// waits; its fingerprint is the one that the Security Officer has compared.
func keyToTrust(cfg node.Config, recoveryFile, requestFile, fingerprint string) ([]byte, error) {
	switch {
	case recoveryFile != "" && requestFile != "":
		return nil, fmt.Errorf("%w: --recovery and --request: one key is trusted at a time", node.ErrConfig)
	case requestFile != "":
		return requestedKey(requestFile, fingerprint)
	case recoveryFile == "":
		return waitingKey(cfg, fingerprint)
	}
	b, err := readSmall(recoveryFile)
	if err != nil {
		return nil, err
	}
	key, err := recovery.ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", recoveryFile, err)
	}
	if key.Fingerprint() != fingerprint {
		return nil, fmt.Errorf("the fingerprint of recovery key %s is %s, not %s: compare it with the one of the ceremony, character by character", key.Name, key.Fingerprint(), fingerprint)
	}
	return key.SPKI, nil
}

// requestedKey is the transfer key of a request, which the token that it is in has signed.
func requestedKey(path, fingerprint string) ([]byte, error) {
	r, err := readRequest(path, fingerprint)
	if err != nil {
		return nil, err
	}
	if _, err := (hsm.Transfer{SPKI: r.SPKI, OAEPHash: r.OAEPHash, Signature: r.Signature}).Verify(r.Identity); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r.SPKI, nil
}

func untrustCommand() *cobra.Command {
	return officerCommand(&cobra.Command{
		Use: "untrust FINGERPRINT", Short: "Take the trust in a transfer key or recovery key back, as Security Officer",
		Long: `Removes a key that was trusted with "kmsd hsm trust" from this node's token: a transfer
key when the node has joined, or when it is removed; a recovery key when it is no
recipient any more. PIN from a file with mode
0600 or from KMSD_HSM_SO_PIN.`,
		Example: "  kmsd hsm untrust --config /etc/quorumkms/kmsd.yaml --so-pin-file so-pin SHA256:9f2c…",
	}, "no longer trusted:", func(ctx context.Context, cfg node.Config, soPIN func() ([]byte, error), fingerprint string) error {
		pin, err := soPIN()
		if err != nil {
			return err
		}
		if err := node.UntrustTransfer(ctx, cfg.HSM, pin, fingerprint); err != nil {
			return err
		}
		if cfg.DataDir == "" { // no node's: nothing waits there
			return nil
		}
		if err := os.Remove(node.TransferFile(cfg.DataDir, fingerprint)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// officerCommand completes a command of the Security Officer about one transfer key;
// done is what it prints before the fingerprint.
func officerCommand(c *cobra.Command, done string, do func(ctx context.Context, cfg node.Config, soPIN func() ([]byte, error), fingerprint string) error) *cobra.Command {
	var path, soPINFile string
	c.Args = cobra.ExactArgs(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := node.LoadPartition(path)
		if err != nil {
			return err
		}
		fingerprint, err := hsm.ParseFingerprint(args[0])
		if err != nil {
			return err
		}
		soPIN := func() ([]byte, error) {
			if cfg.HSM.TrustsAsUser() { // without a PIN: the node's own
				return node.Secret("Security Officer's PIN", soPINFile, envSOPIN)
			}
			return required("Security Officer's PIN", soPINFile, envSOPIN, "--so-pin-file")
		}
		if err := do(c.Context(), cfg, soPIN, fingerprint); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), done, fingerprint)
		return err
	}
	c.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file of this node, or one with the part hsm only")
	c.Flags().StringVar(&soPINFile, "so-pin-file", "", "file with the Security Officer's PIN")
	return c
}

// waitingKey reads the transfer key that waits under a fingerprint, and makes sure
// that it is that key.
func waitingKey(cfg node.Config, fingerprint string) ([]byte, error) {
	if cfg.DataDir == "" {
		return nil, fmt.Errorf("%w: data_dir is missing: no node waits at a partition that belongs to none; name the file of a request (--request) or of a recovery key (--recovery)", node.ErrConfig)
	}
	spki, err := os.ReadFile(node.TransferFile(cfg.DataDir, fingerprint))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no node waits here with the transfer key %s: compare it with the joining node's console, character by character", fingerprint)
	}
	if err != nil {
		return nil, err
	}
	if hsm.Fingerprint(spki) != fingerprint {
		return nil, fmt.Errorf("the waiting key's fingerprint is %s, not %s", hsm.Fingerprint(spki), fingerprint)
	}
	return spki, nil
}

func required(what, path, env, flag string) ([]byte, error) {
	secret, err := node.Secret(what, path, env)
	if err == nil && len(secret) == 0 {
		err = fmt.Errorf("%w: no %s: name a file with %s, or set %s", node.ErrConfig, what, flag, env)
	}
	return secret, err
}
