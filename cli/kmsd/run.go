package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
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
them at once, and takes from the configuration the quotas of limits, backup.every,
backup.keep and log.level. The log says which other values have changed: they need a
restart.`,
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
				Supervisor: supervisor(log),
				Reload:     func() (node.Config, error) { return reload(path, level) },
			})
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file")
	return c
}

// supervisor is systemd, if that has started the process and wants to know (Type=notify).
func supervisor(log *slog.Logger) node.Supervisor {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return node.Supervisor{}
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "error", err)
	}
	return node.Supervisor{Watchdog: watchdog, Notify: func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("systemd was not told how this node does", "error", err)
		}
	}}
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

// reload reads the configuration file again, and takes log.level from it.
func reload(path string, level *slog.LevelVar) (node.Config, error) {
	cfg, err := node.LoadConfig(path)
	if err != nil {
		return node.Config{}, err
	}
	return cfg, setLevel(level, cfg.Log.Level)
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	var path string
	check := &cobra.Command{
		Use: "check", Short: "Check a configuration file and say what is wrong", Args: cobra.NoArgs,
		Long: `Checks a configuration file without starting anything, and says everything that is
wrong with it at once, each with file, line and reason. Files that it names are not looked
at: kmsd doctor does that. Exit code 2 if something is wrong.`,
		Example: "  kmsd config check --config /etc/quorumkms/kmsd.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := node.LoadConfig(path)
			if wrong, ok := errors.AsType[*node.ConfigError](err); ok {
				if _, err := fmt.Fprintln(c.OutOrStdout(), strings.Join(wrong.Lines(), "\n")); err != nil {
					return err
				}
				return fmt.Errorf("%w: %d problems in %s", node.ErrConfig, len(wrong.Problems), path)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), path+": ok")
			return err
		},
	}
	check.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file")
	c.AddCommand(check)
	return c
}
