// Kmsd is a node of a QuorumKMS cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/transport"
)

// Stamped by the linker.
var (
	version = ""
	commit  = ""
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kmsd:", err)
	}
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFinding):
		return exitFinding
	case errors.Is(err, hsm.ErrPIN):
		return exitPIN
	case errors.Is(err, hsm.ErrUnavailable), errors.Is(err, hsm.ErrSelfTest), errors.Is(err, hsm.ErrNotFound), errors.Is(err, hsm.ErrWrongAnswer):
		return exitHSM
	case errors.Is(err, cluster.ErrRemoved):
		return exitRemoved
	case errors.Is(err, cluster.ErrDiverged):
		return exitDiffers
	case errors.Is(err, cluster.ErrAltered), errors.Is(err, audit.ErrAltered):
		return exitAltered
	case errors.Is(err, cluster.ErrStorage):
		return exitStorage
	case errors.Is(err, node.ErrConfig), errors.Is(err, transport.ErrCredentials), errors.Is(err, cluster.ErrDataDir),
		errors.Is(err, cluster.ErrProfile), errors.Is(err, fsm.ErrIdentity):
		return exitConfig
	}
	return exitFailed
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "kmsd",
		Short: "A node of a QuorumKMS cluster",
		Long: `kmsd runs one node of a QuorumKMS cluster and does the work that needs the
node's own files and HSM token. Everything else is kmsctl's.

"kmsd help exit-codes" says what its exit codes mean.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(runCommand(), devCommand(), configCommand(), hsmCommand(), recoveryCommand(), auditCommand(), certsCommand(), versionCommand(), doctorCommand(), genManCommand(), exitCodesTopic())
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version and commit", Args: cobra.NoArgs,
		Example: "  kmsd version",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "kmsd", stamp())
			return err
		},
	}
}

// genManCommand writes the man pages of all commands: make man.
func genManCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gen-man DIR", Short: "Write the man pages", Args: cobra.ExactArgs(1), Hidden: true,
		Example: "  kmsd gen-man man/man1",
		RunE: func(c *cobra.Command, args []string) error {
			c.Root().DisableAutoGenTag = true
			return doc.GenManTree(c.Root(), &doc.GenManHeader{Section: "1", Source: "QuorumKMS", Manual: "QuorumKMS"}, args[0])
		},
	}
}

// stamp is the version and commit of this binary.
func stamp() string {
	v, r := version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if r == "" && s.Key == "vcs.revision" {
				r = s.Value
			}
		}
	}
	if r == "" {
		return v
	}
	return v + " (" + r + ")"
}
