package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// errFinding means: an audit trail is not what was signed.
var errFinding = errors.New("the audit trail is not what was signed")

func auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Verify a node's audit trail without a node", Args: cobra.NoArgs}
	c.AddCommand(auditVerify())
	return c
}

func auditVerify() *cobra.Command {
	var dir, heads, node string
	c := &cobra.Command{
		Use: "verify", Short: "Verify the files of an audit trail with public keys alone", Args: cobra.NoArgs,
		Long: `Reads the files of one node's audit trail (data_dir/audit, or a copy of it) and compares them
with the checkpoints in them and with what the cluster remembers of it: a file that "kmsctl
audit heads" has written, which also has the public keys. No node and no HSM is asked.

It tells up to which record the trail is what was signed, or the first record that was
altered, removed, inserted, or stands in another place. Heads that were written before
somebody had the node's key convict what was made with it.

Exit codes: 0 the trail is what was signed, 9 it is not, 1 nothing can be said of it.`,
		Example: "  kmsd audit verify --dir /var/lib/quorumkms/audit --heads heads.json\n" +
			"  kmsd audit verify --dir evidence/audit --heads heads.json --node kms-2",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := given([2]string{"dir", dir}, [2]string{"heads", heads}); err != nil {
				return err
			}
			r, name, err := verifyTrail(c, dir, heads, node)
			if err != nil {
				return err
			}
			for _, line := range r.Text(name) {
				if _, err := fmt.Fprintln(c.OutOrStdout(), line); err != nil {
					return err
				}
			}
			if r.Finding != nil {
				return errFinding
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory with the files")
	c.Flags().StringVar(&heads, "heads", "", "what the cluster remembers: a file of kmsctl audit heads")
	c.Flags().StringVar(&node, "node", "", "name or raft id of the node (default: the one that the files name)")
	return c
}

func verifyTrail(c *cobra.Command, dir, file, node string) (r trail.Report, name string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return r, "", err
	}
	heads, err := trail.ParseHeads(b)
	if err != nil {
		return r, "", fmt.Errorf("%s: %w", file, err)
	}
	if node == "" {
		if _, node, err = trail.Claimed(dir); err != nil {
			return r, "", err
		}
	}
	if node == "" && len(heads.Nodes) == 1 {
		node = heads.Nodes[0].Node
	}
	if node == "" {
		return r, "", fmt.Errorf("%s has no checkpoint that names its node: name it, --node", dir)
	}
	n, ok := heads.Find(node)
	if !ok {
		var names []string
		for _, n := range heads.Nodes {
			names = append(names, n.Name)
		}
		return r, "", fmt.Errorf("%s knows no node %.80q: it has %s", file, node, strings.Join(names, ", "))
	}
	o := trail.Options{Identity: n.Identity, Node: n.Node, Cluster: heads.Cluster, Conflict: []byte(n.Conflict)}
	if n.Checkpoint != "" {
		o.Heads = []trail.Head{{Note: []byte(n.Checkpoint), Source: "the cluster's memory in " + file}}
	}
	if f, ok := c.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		o.Progress = func(records int64) { fmt.Fprintf(f, "\r%d records", records) } //nolint:errcheck // it is no matter
		defer fmt.Fprint(f, "\r\x1b[K")                                              //nolint:errcheck // the same
	}
	r, err = trail.Verify(dir, o)
	if r.Node == "" {
		r.Node = n.Node
	}
	return r, n.Name, err
}
