package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/transport"
)

const (
	devTrustDomain = "quorumkms.test"
	devCertificate = 30 * 24 * time.Hour
)

func devCommand() *cobra.Command {
	var client, peer, level string
	c := &cobra.Command{
		Use: "dev", Short: "Run a throw-away single node for development", Args: cobra.NoArgs,
		Long: `Starts one node with the embedded partition (keys in memory only), throw-away
certificates and a temporary directory, and prints how to talk to it. Everything
is gone when it stops. Never for data that matters.`,
		Example: "  kmsd dev",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			dir, err := os.MkdirTemp("", "kmsd-dev-")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			cfg, err := devConfig(dir, client, peer, level)
			if err != nil {
				return err
			}
			log, _, err := newLog(cfg.Log, c.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := printDev(c.OutOrStdout(), dir, client); err != nil {
				return err
			}
			return node.Run(c.Context(), cfg, node.Options{
				Version: stamp(), Log: log, Halt: halt(log), Console: io.Discard,
				Found: &cluster.Founding{Operator: devID("/operator/dev"), Administrator: devID("/tenant/default/admin/dev"), NoRecovery: true},
			})
		},
	}
	c.Flags().StringVar(&client, "client", "127.0.0.1:7300", "client listener")
	c.Flags().StringVar(&peer, "peer", "127.0.0.1:7301", "node listener")
	c.Flags().StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	return c
}

func devID(path string) string { return "spiffe://" + devTrustDomain + path }

func devConfig(dir, client, peer, level string) (node.Config, error) {
	certs := filepath.Join(dir, "certs")
	if err := transport.NewDevCA(certs, devTrustDomain); err != nil {
		return node.Config{}, err
	}
	ca, err := transport.LoadDevCA(certs)
	if err != nil {
		return node.Config{}, err
	}
	for name, path := range map[string]string{
		"node": "/node/dev", "operator": "/operator/dev", "admin": "/tenant/default/admin/dev", "user": "/tenant/default/user/dev",
	} {
		id, err := transport.ParseIdentity(devID(path))
		if err != nil {
			return node.Config{}, err
		}
		files := transport.Files{Cert: filepath.Join(certs, name+".crt"), Key: filepath.Join(certs, name+".key")}
		if err := ca.IssueFiles(files, id, []string{"localhost", "127.0.0.1"}, devCertificate); err != nil {
			return node.Config{}, err
		}
	}
	yaml := fmt.Sprintf(`name: dev
trust_domain: %s
data_dir: %q
peer: {listen: %q}
client: {listen: %q}
tls: {cert: %q, key: %q, ca: %q}
hsm: {kind: embedded, in_memory: true, trust_all: true}
log: {level: %s}
`, devTrustDomain, filepath.Join(dir, "data"), peer, client,
		filepath.Join(certs, "node.crt"), filepath.Join(certs, "node.key"), filepath.Join(certs, transport.DevCACert), level)
	path := filepath.Join(dir, "kmsd.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		return node.Config{}, err
	}
	return node.LoadConfig(path)
}

func printDev(w io.Writer, dir, client string) error {
	certs := filepath.Join(dir, "certs")
	_, err := fmt.Fprintf(w, `A development node listens on %s. Its keys live in memory only, and
nothing recovers its domain key: no recovery key holds a copy (--no-recovery).

  export KMSCTL_ADDRESSES=%s KMSCTL_TRUST_DOMAIN=%s KMSCTL_CA=%s

  # as key administrator
  export KMSCTL_CERT=%s KMSCTL_KEY=%s
  kmsctl key create --alias alias/first

  # as key user
  export KMSCTL_CERT=%s KMSCTL_KEY=%s
  echo hello | kmsctl encrypt alias/first --out hello.blob
  kmsctl decrypt --in hello.blob

  # as operator of the cluster, who makes tenants
  export KMSCTL_CERT=%s KMSCTL_KEY=%s
  kmsctl tenant list

  # others: certificates of the same CA
  kmsd certs issue --dir %s spiffe://%s/service/obs

Stop it with Ctrl-C; nothing of it stays.
`, client, client, devTrustDomain, filepath.Join(certs, transport.DevCACert),
		filepath.Join(certs, "admin.crt"), filepath.Join(certs, "admin.key"),
		filepath.Join(certs, "user.crt"), filepath.Join(certs, "user.key"),
		filepath.Join(certs, "operator.crt"), filepath.Join(certs, "operator.key"), certs, devTrustDomain)
	return err
}
