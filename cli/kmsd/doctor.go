package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/node"
)

// errDoctor is the end of a check that has found something.
var errDoctor = errors.New("something is to be fixed: see above")

func doctorCommand() *cobra.Command {
	var path, output string
	var tryPIN bool
	c := &cobra.Command{
		Use: "doctor", Short: "Check a node on its own host, also while it is down", Args: cobra.NoArgs,
		Long: `Checks what a node needs on its own host, and shows each check with what to do:
configuration, who can read secrets, certificates, data directory, free disk, audit sinks, ports, and
whether the HSM token is there. It changes nothing, and a node may run meanwhile. Run it as
the user that kmsd runs as.

The PIN is not tried: a wrong one costs the token a try. With --pin it is, once, and the
token's self-test is made.

kmsctl doctor checks the cluster. Exit code 1 if something is to be fixed.`,
		Example: "  kmsd doctor --config /etc/quorumkms/kmsd.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("%w: --output %q: want text or json", node.ErrConfig, output)
			}
			found := node.Diagnose(c.Context(), path, tryPIN)
			var err error
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				e.SetEscapeHTML(false)
				err = e.Encode(map[string]any{"checks": found})
			} else {
				t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
				for _, f := range found {
					result := "ok"
					if f.Wrong {
						result = "WRONG"
					}
					_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", f.Check, result, f.Text)
					if f.Do != "" {
						_, _ = fmt.Fprintf(t, "\t\tdo: %s\n", f.Do)
					}
				}
				err = t.Flush()
			}
			for _, f := range found {
				if f.Wrong && err == nil {
					err = errDoctor
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/quorumkms/kmsd.yaml", "configuration file of this node")
	c.Flags().BoolVar(&tryPIN, "pin", false, "try the PIN, once, and make the self-test")
	c.Flags().StringVar(&output, "output", "text", "text or json")
	return c
}
