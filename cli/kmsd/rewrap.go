package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
)

// openedPartition opens the partition that a command works on.
type openedPartition func(ctx context.Context) (hsm.Partition, error)

func rewrapCommand() *cobra.Command {
	var config, out, soPINFile string
	var from, to uint32
	var f recoveryFlags
	c := &cobra.Command{
		Use: "rewrap", Short: "Wrap a backup's keys under another generation of the domain key", Args: cobra.NoArgs,
		Long: `Takes the wrapped keys out of a backup, has an HSM partition wrap each under another
generation of the domain key, and writes the new tokens into a file. Bring it to the
cluster with "kmsctl domain rewrap apply": it replaces a token only where the cluster
still has the old one, and only if a majority of its HSMs opens the new one.

The domain key comes from shares of a recovery key (--share), on a machine without a network
that is wiped afterwards: there it is in clear, in the memory of the process. Or it comes from
the copies in the backup, in the HSM token that a recovery key is in (--token): that token has
the twin of the old generation for the length of the command, to which its Security Officer
agrees with the PIN, from a file with mode 0600 or from KMSD_HSM_SO_PIN (if the command is
killed, "kmsd recovery twin destroy" takes the twin out). Or it is in an HSM
partition that holds both generations, and the twin of the old one ("kmsd recovery twin
install"); --config names a file with the part hsm of a node's configuration.

The file that is written holds wrapped keys only; it tells the ids of keys, their classes and
when they were made.`,
		Example: "  kmsd recovery rewrap --share share-1 --share share-3 --from 1 --backup kms-1.qkb --out keys.rewrap\n" +
			"  kmsd recovery rewrap --token recovery.yaml --so-pin-file so-pin --from 1 --backup kms-1.qkb --out keys.rewrap\n" +
			"  kmsd recovery rewrap --config recovery.yaml --backup kms-1.qkb --to 2 --out keys.rewrap",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := given([2]string{"backup", f.backup}, [2]string{"out", out}); err != nil {
				return err
			}
			if len(f.shares) > 0 || f.token != "" {
				if err := f.check(); err != nil {
					return err
				}
				if from == 0 {
					return fmt.Errorf("%w: with --share or --token, name the generation whose keys are moved: --from", node.ErrConfig)
				}
			}
			if f.token != "" {
				soPIN, err := required("Security Officer's PIN", soPINFile, envSOPIN, "--so-pin-file")
				if err != nil {
					return err
				}
				defer clear(soPIN)
				return rewrapFile(c, func(ctx context.Context) (hsm.Partition, error) {
					return recoveryTokenWithTwin(ctx, f, from, soPIN, c.ErrOrStderr())
				}, f.backup, from, to, out)
			}
			if len(f.shares) > 0 {
				return rewrapFile(c, func(ctx context.Context) (hsm.Partition, error) {
					return recoveredWithTwin(ctx, f, from, c.ErrOrStderr())
				}, f.backup, from, to, out)
			}
			cfg, err := node.LoadHSM(config)
			if err != nil {
				return err
			}
			log := toolLog(c.ErrOrStderr())
			return rewrapFile(c, func(ctx context.Context) (hsm.Partition, error) { return node.OpenPartition(ctx, cfg, log) }, f.backup, from, to, out)
		},
	}
	c.Flags().StringVar(&config, "config", "recovery.yaml", "file with the part hsm of a configuration")
	f.add(c)
	c.Flags().StringVar(&soPINFile, "so-pin-file", "", "with --token: file with the Security Officer's PIN")
	c.Flags().Uint32Var(&from, "from", 0, "generation whose keys are moved (default: the one with a twin in the partition)")
	c.Flags().Uint32Var(&to, "to", 0, "generation to wrap under (default: the one that is active in the backup)")
	c.Flags().StringVar(&out, "out", "", "file to write; it must not be there")
	return c
}

// recoveredWithTwin is the partition that shares open, with the twin of a generation.
func recoveredWithTwin(ctx context.Context, f recoveryFlags, from uint32, stderr io.Writer) (hsm.Partition, error) {
	r, err := openRecovered(ctx, f, stderr)
	if err != nil {
		return nil, err
	}
	transfer, err := r.NewTransfer(ctx)
	if err == nil {
		err = node.TwinOfOwn(ctx, r, r.state.Cluster().ID, from, transfer)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// rewrapFile writes the new tokens of a backup's keys into a file, which is there when it is
// whole.
func rewrapFile(c *cobra.Command, open openedPartition, backup string, from, to uint32, out string) (err error) {
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s is there already: name another file", out)
	}
	saved, err := os.Open(backup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, saved.Close()) }()
	p, err := open(c.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	file, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // it has its own name by then, or is of no use
	progress, done := rewrapProgress(c.ErrOrStderr())
	r, err := node.RewrapBackup(c.Context(), p, saved, from, to, file, progress)
	done()
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), out); err != nil { // not over another file
		return err
	}
	return reportRewrap(c, r, out)
}

func reportRewrap(c *cobra.Command, r node.RewrapSummary, out string) error {
	_, err := fmt.Fprintf(c.OutOrStdout(), "%d key versions of generation %d are wrapped under generation %d, in %s.\n", r.Rewrapped, r.From, r.Generation, out)
	if err != nil || r.Failed == 0 {
		return err
	}
	return fmt.Errorf("%d key versions are not in the file: %w", r.Failed, errors.Join(r.Failures...))
}

// rewrapProgress shows on a terminal how many key versions are done.
func rewrapProgress(w io.Writer) (progress func(done, of int), end func()) {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return func(int, int) {}, func() {}
	}
	bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowCount(),
		progressbar.OptionSetDescription("key versions"), progressbar.OptionClearOnFinish())
	return func(done, of int) {
		if bar.GetMax() != of {
			bar.ChangeMax(of)
		}
		_ = bar.Set(done) // what cannot be shown is no reason to stop
	}, func() { _ = bar.Finish() }
}

// toolLog tells of warnings only.
func toolLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func twinCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "twin", Short: "Let keys of an earlier generation be wrapped anew in a partition",
		Long: `A domain key imposes on the keys that it unwraps that they cannot be wrapped again. Its
twin, the same key without that condition, lets an HSM partition wrap them under another
generation. While a twin is in a partition, whoever has its PIN can take every key
of that generation out: install it for one rewrap, and destroy it then.`,
	}
	c.AddCommand(twinInstallCommand(), twinListCommand(), twinDestroyCommand())
	return c
}

// twinFlags name a generation in a partition.
type twinFlags struct {
	config, cluster string
	generation      uint32
	one             bool // a generation must be named
}

func (f *twinFlags) add(c *cobra.Command, one bool) *cobra.Command {
	c.Args = cobra.NoArgs
	c.Flags().StringVar(&f.config, "config", "recovery.yaml", "file with the part hsm of a configuration")
	c.Flags().StringVar(&f.cluster, "cluster", "", "id of the cluster")
	if f.one = one; one {
		c.Flags().Uint32Var(&f.generation, "generation", 0, "the generation")
	}
	return c
}

func (f *twinFlags) parse() (node.HSM, fsm.ID, error) {
	if f.one {
		if err := given([2]string{"generation", strconv.FormatUint(uint64(f.generation), 10)}); err != nil {
			return node.HSM{}, fsm.ID{}, err
		}
	}
	cluster, err := uuid.Parse(f.cluster)
	if err != nil {
		return node.HSM{}, cluster, fmt.Errorf("%w: --cluster %.100q: want the cluster's id, as kmsctl cluster status shows it", node.ErrConfig, f.cluster)
	}
	cfg, err := node.LoadHSM(f.config)
	return cfg, cluster, err
}

func twinInstallCommand() *cobra.Command {
	var f twinFlags
	var soPINFile string
	c := f.add(&cobra.Command{
		Use: "install", Short: "Make the twin of a generation that the partition holds, as Security Officer",
		Long: `Makes the twin of a generation of the domain key in an HSM partition that holds it: the
partition hands the generation to itself, for which its Security Officer must trust a
key. PIN from a file with mode 0600 or from KMSD_HSM_SO_PIN.

While the twin is there, whoever has the partition's PIN can take every key of that
generation out. Destroy it when the rewrap is done: kmsd recovery twin destroy.`,
		Example: "  kmsd recovery twin install --config recovery.yaml --cluster 6ba7b810-9dad-11d1-80b4-00c04fd430c8 --generation 1 --so-pin-file so-pin",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, cluster, err := f.parse()
			if err != nil {
				return err
			}
			soPIN, err := required("Security Officer's PIN", soPINFile, envSOPIN, "--so-pin-file")
			if err != nil {
				return err
			}
			defer clear(soPIN)
			if err := node.InstallTwin(c.Context(), cfg, toolLog(c.ErrOrStderr()), cluster, f.generation, soPIN); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "The twin of generation %d is in the partition. WHOEVER HAS THE PARTITION'S PIN CAN TAKE ITS KEYS OUT until it is destroyed: kmsd recovery twin destroy.\n", f.generation)
			return err
		},
	}, true)
	c.Flags().StringVar(&soPINFile, "so-pin-file", "", "file with the Security Officer's PIN")
	return c
}

func twinListCommand() *cobra.Command {
	var f twinFlags
	return f.add(&cobra.Command{
		Use: "list", Short: "List the generations that have a twin in the partition",
		Example: "  kmsd recovery twin list --config recovery.yaml --cluster 6ba7b810-9dad-11d1-80b4-00c04fd430c8",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, cluster, err := f.parse()
			if err != nil {
				return err
			}
			numbers, err := node.Twins(c.Context(), cfg, toolLog(c.ErrOrStderr()), cluster)
			if err != nil {
				return err
			}
			for _, n := range numbers {
				if _, err := fmt.Fprintln(c.OutOrStdout(), n); err != nil {
					return err
				}
			}
			return nil
		},
	}, false)
}

func twinDestroyCommand() *cobra.Command {
	var f twinFlags
	return f.add(&cobra.Command{
		Use: "destroy", Short: "Destroy the twin of a generation in the partition",
		Example: "  kmsd recovery twin destroy --config recovery.yaml --cluster 6ba7b810-9dad-11d1-80b4-00c04fd430c8 --generation 1",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, cluster, err := f.parse()
			if err != nil {
				return err
			}
			if err := node.DestroyTwin(c.Context(), cfg, toolLog(c.ErrOrStderr()), cluster, f.generation); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "The twin of generation %d is destroyed.\n", f.generation)
			return err
		},
	}, true)
}

// given refuses flags that were left out; each comes with its value.
func given(flags ...[2]string) error {
	for _, f := range flags {
		if f[1] == "" || f[1] == "0" {
			return fmt.Errorf("%w: --%s is missing", node.ErrConfig, f[0])
		}
	}
	return nil
}
