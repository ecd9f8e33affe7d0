package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/transport"
)

func certsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "certs", Short: "A development CA",
		Long: `A small certificate authority for development, demonstrations and tests. Its key
is a plain file. In production, certificates with the same SPIFFE ids come from
your own PKI.

To replace the CA: make a second one in another directory, put both certificates
into every node's and client's CA file, issue all certificates anew with --renew from
the second, and take the first out of the CA files.`,
	}
	c.AddCommand(certsInitCommand(), certsIssueCommand())
	return c
}

func certsInitCommand() *cobra.Command {
	var dir, trustDomain string
	c := &cobra.Command{
		Use: "init", Short: "Make a development CA", Args: cobra.NoArgs,
		Example: "  kmsd certs init --dir certs --trust-domain quorumkms.test",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := transport.NewDevCA(dir, trustDomain); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "development CA of", trustDomain, "in", dir)
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "certs", "directory")
	c.Flags().StringVar(&trustDomain, "trust-domain", "quorumkms.test", "SPIFFE trust domain of the cluster")
	return c
}

func certsIssueCommand() *cobra.Command {
	var dir, out string
	var hosts []string
	var ttl time.Duration
	var renew bool
	c := &cobra.Command{
		Use: "issue SPIFFE-ID", Short: "Issue a certificate", Args: cobra.ExactArgs(1),
		Example: `  kmsd certs issue --dir certs --out certs/kms-1 --host 127.0.0.1 spiffe://quorumkms.test/node/kms-1
  kmsd certs issue --dir certs --out certs/alice spiffe://quorumkms.test/tenant/default/admin/alice
  kmsd certs issue --dir certs --renew --host 127.0.0.1 spiffe://quorumkms.test/node/kms-1`,
		RunE: func(c *cobra.Command, args []string) error {
			ca, err := transport.LoadDevCA(dir)
			if err != nil {
				return err
			}
			id, err := transport.ParseIdentity(args[0])
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(dir, id.Name)
			}
			issue := ca.IssueFiles
			if renew {
				issue = ca.RenewFiles
			}
			if err := issue(transport.Files{Cert: out + ".crt", Key: out + ".key"}, id, hosts, ttl); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), out+".crt", "is", id)
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "certs", "directory of the CA")
	c.Flags().StringVar(&out, "out", "", "where to write .crt and .key, without the ending (default: the last part of the id, in --dir)")
	c.Flags().StringSliceVar(&hosts, "host", nil, "DNS names and addresses of a node")
	c.Flags().BoolVar(&renew, "renew", false, "replace the files if they are there: nodes and clients that run read them again")
	c.Flags().DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long the certificate is valid")
	return c
}
