package transport

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrCredentials means: the certificate, key or CA file cannot be used; the text
// says which and why.
var ErrCredentials = errors.New("credentials unusable")

// maxPEM is the largest certificate, key or CA file in bytes.
const maxPEM = 1 << 20

// maxCAs is the largest number of certificates in a CA file: an old and a new CA
// while one is being replaced, with room to spare.
const maxCAs = 16

// Files are the paths of a node's PEM files: its certificate followed by any
// intermediates, the key of the certificate, and the certificates of the CAs it
// trusts for nodes and clients alike.
type Files struct {
	Cert string
	Key  string
	CA   string
}

// Credentials are a node's own certificate and the CAs it trusts. They may be
// reloaded at any time: new connections see the new files, and of those that exist
// the ones whose peer they do not vouch for any more are closed. All methods may be
// called from any goroutine.
type Credentials struct {
	files       Files
	trustDomain string
	current     atomic.Pointer[material]

	reload sync.Mutex // one reading at a time
	read   stamp      // of the files when they were last read, well or in vain
	seen   stamp      // of the files when they were last looked at
	failed bool       // the last reading was in vain

	mu    sync.Mutex
	conns map[*Conn]struct{} // open ones
}

// stamp tells whether files have changed: what os.Stat says of each, nil where it
// fails.
type stamp [3]os.FileInfo

func (f Files) stamp() (s stamp) {
	for i, path := range []string{f.Cert, f.Key, f.CA} {
		if info, err := os.Stat(path); err == nil {
			s[i] = info
		}
	}
	return s
}

func (s stamp) equal(o stamp) bool {
	for i, a := range s {
		b := o[i]
		if (a == nil) != (b == nil) || a != nil && (!os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime())) {
			return false
		}
	}
	return true
}

// material is what one reading of the files gave. It is immutable.
type material struct {
	cert     tls.Certificate
	identity Identity
	roots    *x509.CertPool
	cas      []*x509.Certificate
	caHash   []byte
}

// Load reads and checks the files of a node of trustDomain: the key belongs to
// the certificate, the certificate chains to the CA now, for servers and for
// clients, and its identity is of class node in trustDomain. Every error wraps
// ErrCredentials.
func Load(files Files, trustDomain string) (*Credentials, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil || td.Name() != trustDomain || len(trustDomain) > maxTrustDomain {
		return nil, fmt.Errorf("%w: trust domain %q: want a name such as kms.example.org", ErrCredentials, trustDomain)
	}
	c := &Credentials{files: files, trustDomain: trustDomain, read: files.stamp(), conns: make(map[*Conn]struct{})}
	m, err := readFiles(files, trustDomain)
	if err != nil {
		return nil, err
	}
	c.seen = c.read
	c.current.Store(m)
	return c, nil
}

// Reload reads the files again. On an error, which wraps ErrCredentials, what
// was loaded before stays in use. The identity must not change. When it returns, the
// connections are closed whose peer is not trusted any more.
func (c *Credentials) Reload() error {
	c.reload.Lock()
	defer c.reload.Unlock()
	c.seen = c.files.stamp()
	return c.load()
}

// Refresh is Reload if a file has changed since the last reading, or that was in
// vain. It is to be called now and then. A change counts when it was seen twice, so
// that files that are just being written are left alone. done tells whether new
// files were read.
func (c *Credentials) Refresh() (done bool, err error) {
	c.reload.Lock()
	defer c.reload.Unlock()
	now := c.files.stamp()
	settled := now.equal(c.seen)
	c.seen = now
	if !settled || now.equal(c.read) && !c.failed {
		return false, nil
	}
	err = c.load()
	return err == nil, err
}

func (c *Credentials) load() error {
	c.read = c.seen
	m, err := readFiles(c.files, c.trustDomain)
	if have := c.Identity(); err == nil && m.identity != have {
		err = fmt.Errorf("%w: %s now names %s, this node is %s", ErrCredentials, c.files.Cert, m.identity, have)
	}
	if c.failed = err != nil; c.failed {
		return err
	}
	c.current.Store(m)
	var checks sync.WaitGroup
	for _, conn := range c.open() {
		checks.Go(conn.check) // a peer that does not read holds its own end up only
	}
	checks.Wait()
	return nil
}

func (c *Credentials) open() []*Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.conns))
}

// Valid is nil until the node's own certificate expires.
func (c *Credentials) Valid() error {
	if leaf := c.current.Load().cert.Leaf; !time.Now().Before(leaf.NotAfter) {
		return fmt.Errorf("%w: this node's certificate expired at %s: put a new one into %s", ErrCredentials, leaf.NotAfter.UTC().Format(time.RFC3339), c.files.Cert)
	}
	return nil
}

// trusts returns until when a peer's chain is good for usage and this node's own
// certificate too. A peer that may do without a certificate has no chain.
func (c *Credentials) trusts(chain []*x509.Certificate, usage x509.ExtKeyUsage) (until time.Time, err error) {
	m := c.current.Load()
	until = m.cert.Leaf.NotAfter
	if len(chain) == 0 {
		return until, nil
	}
	peer, err := m.verify(chain, m.roots, usage, c.trustDomain, nil)
	if peer.Before(until) {
		until = peer
	}
	return until, err
}

// Identity is the node's own.
func (c *Credentials) Identity() Identity { return c.current.Load().identity }

// TrustDomain is the cluster's.
func (c *Credentials) TrustDomain() string { return c.trustDomain }

// Certificate is the node's own.
func (c *Credentials) Certificate() Certificate {
	return Certificate{c.current.Load().cert.Leaf}
}

// CAs are the certificates that peers are verified against.
func (c *Credentials) CAs() []Certificate {
	var out []Certificate
	for _, ca := range c.current.Load().cas {
		out = append(out, Certificate{ca})
	}
	return out
}

// KeyHash is SHA-256 of this side's own public key (SPKI).
func (c *Credentials) KeyHash() []byte {
	sum := sha256.Sum256(c.current.Load().cert.Leaf.RawSubjectPublicKeyInfo)
	return sum[:]
}

// CAKeysHash is SHA-256 over the sorted, distinct SHA-256 hashes of the
// SubjectPublicKeyInfo of the CA certificates: what a join token pins.
func (c *Credentials) CAKeysHash() []byte { return bytes.Clone(c.current.Load().caHash) }

func readFiles(files Files, trustDomain string) (*material, error) {
	ca, err := readPEM("CA", files.CA)
	if err != nil {
		return nil, err
	}
	certPEM, err := readPEM("certificate", files.Cert)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM("key", files.Key)
	if err != nil {
		return nil, err
	}
	m := new(material)
	if m.roots, m.cas, err = parseCA(ca); err != nil {
		return nil, fmt.Errorf("%w: CA file %s: %w", ErrCredentials, files.CA, err)
	}
	m.caHash = hashKeys(keyHashes(m.cas))
	if m.cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return nil, fmt.Errorf("%w: certificate %s with key %s: %w", ErrCredentials, files.Cert, files.Key, err)
	}
	if err := m.verifySelf(trustDomain); err != nil {
		return nil, fmt.Errorf("%w: certificate file %s: %w", ErrCredentials, files.Cert, err)
	}
	return m, nil
}

func (m *material) verifySelf(trustDomain string) (err error) {
	chain := make([]*x509.Certificate, len(m.cert.Certificate))
	for i, der := range m.cert.Certificate {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return err
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := m.verify(chain, m.roots, usage, trustDomain, OnlyNodes); err != nil {
			return err
		}
	}
	m.cert.Leaf = chain[0]
	m.identity, err = IdentityOf(chain[0])
	return err
}

func readPEM(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s file: %w", ErrCredentials, what, err)
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s file: %w", ErrCredentials, what, err)
	}
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%w: %s file %s: larger than %d bytes", ErrCredentials, what, path, maxPEM)
	}
	return b, nil
}

// parseCA reads CA certificates and nothing else.
func parseCA(data []byte) (*x509.CertPool, []*x509.Certificate, error) {
	pool := x509.NewCertPool()
	var cas []*x509.Certificate
	block, rest := pem.Decode(data)
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("holds a %q, want certificates only", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		if !cert.IsCA {
			return nil, nil, fmt.Errorf("the certificate of %q is not a CA's", cert.Subject)
		}
		pool.AddCert(cert)
		cas = append(cas, cert)
	}
	switch {
	case bytes.Contains(rest, []byte("-----BEGIN")):
		return nil, nil, errors.New("ends in the middle of a certificate")
	case len(cas) == 0:
		return nil, nil, errors.New("holds no certificate")
	case len(cas) > maxCAs:
		return nil, nil, fmt.Errorf("holds %d certificates, at most %d", len(cas), maxCAs)
	}
	return pool, cas, nil
}

// keyHashes are the sorted, distinct SHA-256 hashes of certificates' keys.
func keyHashes(certs []*x509.Certificate) [][]byte {
	var keys [][]byte
	for _, c := range certs {
		keys = append(keys, Certificate{c}.KeyHash())
	}
	slices.SortFunc(keys, bytes.Compare)
	return slices.CompactFunc(keys, bytes.Equal)
}

func hashKeys(keys [][]byte) []byte {
	hash := sha256.Sum256(bytes.Join(keys, nil))
	return hash[:]
}

// pinned are the CAs whose keys, all or some of them together, hash to pin; nil if
// there are none.
func (m *material) pinned(pin []byte) *x509.CertPool {
	keys := keyHashes(m.cas)
	for chosen := 1; chosen < 1<<len(keys); chosen++ {
		var some [][]byte
		for i, k := range keys {
			if chosen&(1<<i) != 0 {
				some = append(some, k)
			}
		}
		if !bytes.Equal(hashKeys(some), pin) {
			continue
		}
		pool := x509.NewCertPool()
		for _, ca := range m.cas {
			if slices.ContainsFunc(some, func(k []byte) bool { return bytes.Equal(k, Certificate{ca}.KeyHash()) }) {
				pool.AddCert(ca)
			}
		}
		return pool
	}
	return nil
}
