package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxPEM is the largest certificate, key or CA file in bytes.
const maxPEM = 1 << 20

// Files are the paths of PEM files: a certificate followed by any intermediates,
// its key, and the certificates of the CAs that servers are verified against.
type Files struct {
	Cert string
	Key  string
	CA   string
}

// clientTLS returns the configuration of every connection, and the files it comes
// from, if any.
func (c Config) clientTLS() (*tls.Config, *reloader, error) {
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil || td.Name() != c.TrustDomain {
		return nil, nil, fmt.Errorf("client: trust domain %q: want a name such as kms.example.org", c.TrustDomain)
	}
	if c.Files != (Files{}) {
		if c.TLS != nil {
			return nil, nil, errors.New("client: both Files and TLS are set")
		}
		r := &reloader{files: c.Files}
		if r.current, err = c.Files.loadSettled(); err != nil {
			return nil, nil, err
		}
		return verifying(&tls.Config{GetClientCertificate: r.certificate}, td, r.roots), r, nil
	}
	if c.TLS == nil || c.TLS.RootCAs == nil {
		return nil, nil, errors.New("client: neither Files nor TLS with RootCAs are set")
	}
	if len(c.TLS.Certificates) == 0 && c.TLS.GetClientCertificate == nil {
		return nil, nil, errors.New("client: TLS has no client certificate")
	}
	roots := c.TLS.RootCAs
	return verifying(c.TLS.Clone(), td, func() *x509.CertPool { return roots }), nil, nil
}

// verifying completes config as New says.
func verifying(config *tls.Config, td spiffeid.TrustDomain, roots func() *x509.CertPool) *tls.Config {
	config.MinVersion, config.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
	config.ClientSessionCache = nil
	config.InsecureSkipVerify = true
	config.VerifyPeerCertificate = nil
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyServer(cs.PeerCertificates, td, roots()); err != nil {
			return fmt.Errorf("%w: %w", ErrServerRefused, err)
		}
		return nil
	}
	return config
}

// verifyServer accepts the chain of a node of td, now. It is stricter than x509:
// the leaf must itself list server authentication and must not be a CA.
func verifyServer(chain []*x509.Certificate, td spiffeid.TrustDomain, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	leaf := chain[0]
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return errors.New("the certificate is not one for server authentication")
	}
	options := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	if len(leaf.URIs) != 1 {
		return fmt.Errorf("the certificate has %d URI SANs, want exactly one SPIFFE ID", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return err
	}
	if !id.MemberOf(td) {
		return fmt.Errorf("%s is not of trust domain %s", id, td.Name())
	}
	if s := strings.Split(id.Path(), "/"); len(s) != 3 || s[1] != "node" {
		return fmt.Errorf("%s is no node", id)
	}
	return nil
}

// material is what one reading of the files gave.
type material struct {
	cert  *tls.Certificate
	roots *x509.CertPool
	stamp [3]os.FileInfo // of the files when they were read
}

// filesEvery is how often calls look whether the files have changed; a handshake
// always does.
const filesEvery = time.Second

// reloader keeps material until a file changes. While the files are no good, as in
// the middle of a replacement, what was read before stays in use. A nil reloader has
// no files.
type reloader struct {
	files   Files
	mu      sync.Mutex
	current *material
	changes uint64    // how often current was replaced
	looked  time.Time // when the files were last looked at
}

func (r *reloader) latest() *material {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	return r.current
}

func (r *reloader) look() {
	r.looked = time.Now()
	if r.files.changed(r.current.stamp) {
		if m, err := r.files.load(); err == nil {
			r.current = m
			r.changes++
		}
	}
}

// age tells the present material from earlier ones: it grows.
func (r *reloader) age() uint64 {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.looked) >= filesEvery {
		r.look()
	}
	return r.changes
}

// newer tells, by the files as they are now, whether there is material newer than of
// that age.
func (r *reloader) newer(age uint64) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	return r.changes > age
}

// outdated says that the client's certificate is not valid at a time, if so.
func (r *reloader) outdated(now time.Time) string {
	if r == nil {
		return ""
	}
	leaf := r.latest().cert.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Sprintf("the client's certificate %s expired at %s", r.files.Cert, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Sprintf("the client's certificate %s is not valid before %s", r.files.Cert, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return ""
}

func (r *reloader) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return r.latest().cert, nil
}

func (r *reloader) roots() *x509.CertPool { return r.latest().roots }

func (f Files) changed(stamp [3]os.FileInfo) bool {
	for i, path := range []string{f.Cert, f.Key, f.CA} {
		now, err := os.Stat(path)
		if err != nil {
			return false
		}
		was := stamp[i]
		if !os.SameFile(now, was) || now.Size() != was.Size() || !now.ModTime().Equal(was.ModTime()) {
			return true
		}
	}
	return false
}

// beingWritten is how long after its last change a file may still be in the middle of
// a replacement.
const beingWritten = time.Second

// loadSettled is load, which fails only when the files have been left alone.
func (f Files) loadSettled() (*material, error) {
	for {
		m, err := f.load()
		if err == nil || !f.fresh(time.Now()) {
			return m, err
		}
		time.Sleep(beingWritten / 50)
	}
}

func (f Files) fresh(now time.Time) bool {
	for _, path := range []string{f.Cert, f.Key, f.CA} {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if age := now.Sub(info.ModTime()); age >= 0 && age < beingWritten {
			return true
		}
	}
	return false
}

func (f Files) load() (*material, error) {
	var m material
	var data [3][]byte
	for i, path := range []string{f.Cert, f.Key, f.CA} {
		var err error
		if data[i], m.stamp[i], err = readPEM(path); err != nil {
			return nil, fmt.Errorf("client: %s file: %w", []string{"certificate", "key", "CA"}[i], err)
		}
	}
	pair, err := tls.X509KeyPair(data[0], data[1])
	if err != nil {
		return nil, fmt.Errorf("client: certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	m.cert = &pair
	if m.roots, err = parseCA(data[2]); err != nil {
		return nil, fmt.Errorf("client: CA file %s: %w", f.CA, err)
	}
	return &m, nil
}

func readPEM(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxPEM {
		return nil, nil, fmt.Errorf("%s: larger than %d bytes", path, maxPEM)
	}
	return b, info, nil
}

// parseCA reads CA certificates and nothing else.
func parseCA(data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	block, rest := pem.Decode(data)
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %q, want certificates only", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not a CA's", cert.Subject)
		}
		pool.AddCert(cert)
		n++
	}
	switch {
	case bytes.Contains(rest, []byte("-----BEGIN")):
		return nil, errors.New("ends in the middle of a certificate")
	case n == 0:
		return nil, errors.New("holds no certificate")
	}
	return pool, nil
}
