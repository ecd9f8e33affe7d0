package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	domain  = "spiffe://" + clienttest.TrustDomain
	nodeURI = domain + "/node/n1"
)

func TestServerIsRefused(t *testing.T) {
	w := newWorld(t)
	other := clienttest.NewCA(t)
	issue := func(uris ...string) tls.Certificate { return w.ca.Issue(t, nil, uris...) }
	for name, cert := range map[string]tls.Certificate{
		"other CA":           other.Node(t, "n1"),
		"other trust domain": issue("spiffe://other.test/node/n1"),
		"domain's subdomain": issue("spiffe://sub." + clienttest.TrustDomain + "/node/n1"),
		"user":               issue(userURI),
		"operator":           issue(domain + "/operator/node"),
		"service named node": issue(domain + "/service/node"),
		"node of a tenant":   issue(domain + "/tenant/t/node/n1"),
		"no node name":       issue(domain + "/node"),
		"path below a node":  issue(domain + "/node/n1/x"),
		"other scheme":       issue("https://" + clienttest.TrustDomain + "/node/n1"),
		"two identities":     issue(nodeURI, domain+"/node/n2"),
		"no identity":        w.ca.Issue(t, func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }),
		"expired":            w.ca.Issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, nodeURI),
		"clients only": w.ca.Issue(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, nodeURI),
		"any usage": w.ca.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, nodeURI),
		"a CA": w.ca.Issue(t, func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid = true, true
		}, nodeURI),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := patient(t)
			bad := startNode(t, w.ca.ServerTLS(cert), nil)
			err := encrypt(ctx, w.client(t, nil, bad.address))
			if !errors.Is(err, client.ErrServerRefused) || ctx.Err() != nil {
				t.Errorf("error %v, want ErrServerRefused at once", err)
			}
			if err := encrypt(ctx, w.client(t, nil, bad.address, w.node(t, "n2", nil).address)); err != nil {
				t.Errorf("with a good node beside it: %v", err)
			}
			if len(bad.asked()) != 0 {
				t.Error("the server got a request")
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t)
	config := w.ca.ServerTLS(w.ca.Node(t, "n1"))
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 //nolint:gosec // that is the test
	n := startNode(t, config, nil)
	if err := encrypt(patient(t), w.client(t, nil, n.address)); !errors.Is(err, client.ErrClientRefused) {
		t.Errorf("error %v, want ErrClientRefused", err)
	}
}

func TestServerRefusesClient(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	w.cert = clienttest.NewCA(t).Issue(t, nil, userURI)
	err := encrypt(patient(t), w.client(t, nil, n.address))
	if !errors.Is(err, client.ErrClientRefused) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want ErrClientRefused at once", err)
	}
}

// presented notes which client certificates a server sees.
type presented struct {
	mu    sync.Mutex
	certs []*x509.Certificate
}

func (p *presented) watch(config *tls.Config) *tls.Config {
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.certs = append(p.certs, cs.PeerCertificates[0])
		return nil
	}
	return config
}

func (p *presented) last() *x509.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.certs[len(p.certs)-1]
}

// TestFilesAreReadAgain moves a client from server to server; before each step its
// files change.
func TestFilesAreReadAgain(t *testing.T) {
	w := newWorld(t)
	renewed, otherCA := w.ca.Issue(t, nil, userURI), clienttest.NewCA(t)
	moved := otherCA.Issue(t, nil, userURI)
	dir := t.TempDir()
	files := w.ca.Write(t, dir, w.cert)

	steps := []struct {
		name   string
		ca     *clienttest.CA // of the server
		change func()
		want   tls.Certificate
	}{
		{"first", w.ca, func() {}, w.cert},
		{"renewed", w.ca, func() { w.ca.Write(t, dir, renewed) }, renewed},
		{"half replaced", w.ca, func() { overwrite(t, files.Cert, "-----BEGIN") }, renewed},
		{"gone", w.ca, func() { remove(t, files.Key) }, renewed},
		{"another CA", otherCA, func() { otherCA.Write(t, dir, moved) }, moved},
	}
	var seen presented
	var nodes []*node
	var addresses []string
	for _, step := range steps {
		// Each server serves its step, then sends the client on.
		n := startNode(t, seen.watch(step.ca.ServerTLS(step.ca.Node(t, "n1"))), func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			if n == 1 {
				return well(ctx, n, m)
			}
			return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)
		})
		nodes, addresses = append(nodes, n), append(addresses, n.address)
	}
	c := w.client(t, func(c *client.Config) { c.TLS, c.Files = nil, files }, addresses...)
	for i, step := range steps {
		step.change()
		if err := encrypt(patient(t), c); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if len(nodes[i].asked()) == 0 {
			t.Fatalf("%s: its server was not asked", step.name)
		}
		if !seen.last().Equal(step.want.Leaf) {
			t.Errorf("%s: the client showed another certificate", step.name)
		}
	}
}

func overwrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	w := newWorld(t)
	files := w.ca.Write(t, t.TempDir(), w.cert)
	otherKey := w.ca.Write(t, t.TempDir(), w.ca.Issue(t, nil, userURI)).Key
	garbage := t.TempDir() + "/garbage.pem"
	overwrite(t, garbage, strings.Repeat("x", 100))
	huge := t.TempDir() + "/huge.pem"
	overwrite(t, huge, strings.Repeat("x", 1<<20+1))

	for name, test := range map[string]struct {
		edit func(*client.Config)
		want string // part of the error
	}{
		"no address":            {func(c *client.Config) { c.Addresses = nil }, "no address"},
		"too many addresses":    {func(c *client.Config) { c.Addresses = slices.Repeat([]string{"a:1"}, 17) }, "at most 16"},
		"address twice":         {func(c *client.Config) { c.Addresses = []string{"a:1", "b:1", "a:1"} }, "twice"},
		"no port":               {func(c *client.Config) { c.Addresses = []string{"host"} }, "host:port"},
		"port 0":                {func(c *client.Config) { c.Addresses = []string{"host:0"} }, "port"},
		"named port":            {func(c *client.Config) { c.Addresses = []string{"host:https"} }, "port"},
		"no host":               {func(c *client.Config) { c.Addresses = []string{":7443"} }, "host:port"},
		"URL":                   {func(c *client.Config) { c.Addresses = []string{"https://host:1"} }, "host:port"},
		"long address":          {func(c *client.Config) { c.Addresses = []string{strings.Repeat("a", 300) + ":1"} }, "at most"},
		"no trust domain":       {func(c *client.Config) { c.TrustDomain = "" }, "trust domain"},
		"URI as trust domain":   {func(c *client.Config) { c.TrustDomain = domain }, "trust domain"},
		"capital trust domain":  {func(c *client.Config) { c.TrustDomain = "KMS.test" }, "trust domain"},
		"negative timeout":      {func(c *client.Config) { c.Timeout = -1 }, "negative"},
		"negative mutation":     {func(c *client.Config) { c.MutationTimeout = -1 }, "negative"},
		"negative deadline":     {func(c *client.Config) { c.Deadline = -1 }, "negative"},
		"no credentials":        {func(c *client.Config) { c.Files = client.Files{} }, "neither"},
		"files and TLS":         {func(c *client.Config) { c.TLS = &tls.Config{} }, "both"},                                                               //nolint:gosec // refused
		"TLS without roots":     {func(c *client.Config) { c.Files, c.TLS = client.Files{}, &tls.Config{} }, "RootCAs"},                                   //nolint:gosec // refused
		"TLS without a cert":    {func(c *client.Config) { c.Files, c.TLS = client.Files{}, &tls.Config{RootCAs: w.ca.Pool()} }, "no client certificate"}, //nolint:gosec // refused
		"certificate not there": {func(c *client.Config) { c.Files.Cert = "/nowhere" }, "certificate file"},
		"key not there":         {func(c *client.Config) { c.Files.Key = "" }, "key file"},
		"CA not there":          {func(c *client.Config) { c.Files.CA = "/nowhere" }, "CA file"},
		"no PEM":                {func(c *client.Config) { c.Files.CA = garbage }, "no certificate"},
		"key as CA":             {func(c *client.Config) { c.Files.CA = files.Key }, "certificates only"},
		"leaf as CA":            {func(c *client.Config) { c.Files.CA = files.Cert }, "not a CA's"},
		"huge file":             {func(c *client.Config) { c.Files.CA = huge }, "larger than"},
		"key of another":        {func(c *client.Config) { c.Files.Key = otherKey }, "private key does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			config := client.Config{Addresses: []string{"[::1]:7443", "kms:1"}, TrustDomain: clienttest.TrustDomain, Files: files}
			test.edit(&config)
			c, err := client.New(config)
			if err == nil {
				t.Fatal(errors.Join(errors.New("no error"), c.Close()))
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want one with %q", err, test.want)
			}
		})
	}
}
