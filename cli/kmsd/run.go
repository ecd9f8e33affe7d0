package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/node"
)

func runCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "run", Short: "Run the node", Args: cobra.NoArgs,
		Long: `Runs the node until SIGINT or SIGTERM: then it sends clients to other nodes,
hands the leadership over, finishes the calls under way and stops, within 20
seconds; a second signal ends it at once, which loses nothing either. It reads
certificate, key and CA files again when they have changed; SIGHUP makes it read
them, and log.level, at once.`,
		Example: "  kmsd run --config /etc/quorumkms/kmsd.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := node.LoadConfig(path)
			if err != nil {
				return err
			}
			log, level, err := newLog(cfg.Log, c.ErrOrStderr())
			if err != nil {
				return err
			}
			captureLogs(log)
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, hangupSignals...)
			defer signal.Stop(hangup)
			return node.Run(c.Context(), cfg, node.Options{
				Version: stamp(), Log: log, Halt: halt(log), Console: c.ErrOrStderr(), Hangup: hangup,
				Reload: func() error { return reloadLevel(path, level) },
			})
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file")
	return c
}

// halt ends the process at once: nothing that was acknowledged is lost by it.
func halt(log *slog.Logger) func(error) {
	return func(err error) {
		log.Error("this node must not go on", "error", err)
		fmt.Fprintln(os.Stderr, "kmsd:", err)
		os.Exit(exitCode(err))
	}
}

// newLog makes the node's log; its level can be changed.
func newLog(c node.Log, w io.Writer) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if err := setLevel(level, c.Level); err != nil {
		return nil, nil, err
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), level, nil
	}
	return slog.New(slog.NewTextHandler(w, options)), level, nil
}

func setLevel(level *slog.LevelVar, name string) error {
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("%w: log.level %q: want debug, info, warn or error", node.ErrConfig, name)
	}
	return nil
}

// reloadLevel takes log.level from the configuration file again.
func reloadLevel(path string, level *slog.LevelVar) error {
	cfg, err := node.LoadConfig(path)
	if err != nil {
		return err
	}
	return setLevel(level, cfg.Log.Level)
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	var path string
	check := &cobra.Command{
		Use: "check", Short: "Check a configuration file and say what is wrong", Args: cobra.NoArgs,
		Example: "  kmsd config check --config /etc/quorumkms/kmsd.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := node.LoadConfig(path); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), path+": ok")
			return err
		},
	}
	check.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file")
	c.AddCommand(check)
	return c
}
