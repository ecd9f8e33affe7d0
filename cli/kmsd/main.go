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

// Exit codes. Supervisors should not restart after exitPIN, exitRemoved, exitDiffers
// and exitAltered.
const (
	exitOK      = 0
	exitFailed  = 1
	exitConfig  = 2 // configuration, certificates or data directory; or they, or the HSM partition, are not this member's
	exitPIN     = 3 // the HSM refused the PIN: it was tried once
	exitHSM     = 4 // the HSM cannot be used, or fails its self-test
	exitRemoved = 5 // the node was removed from the cluster
	exitStorage = 6 // the disk failed
	exitDiffers = 7 // the node's state differs from the cluster's: keep its data directory
	exitAltered = 8 // the log, a snapshot or the audit trail on the disk was altered, or is damaged
	exitFinding = 9 // of "kmsd audit verify": the trail is not what was signed
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

Exit codes: 0 stopped as asked, 1 failed, 2 configuration, certificates or data
directory, or they or the HSM partition are not this member's, 3 wrong HSM PIN (tried once; do not restart), 4 HSM unusable, 5
removed from the cluster (do not restart), 6 disk failed, 7 the node's state
differs from the cluster's, 8 the data on its disk was altered or is damaged
(both: keep its data directory; do not restart), 9 an audit trail that was to be verified is
not what was signed.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.AddCommand(runCommand(), devCommand(), configCommand(), hsmCommand(), recoveryCommand(), auditCommand(), certsCommand(), versionCommand())
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
