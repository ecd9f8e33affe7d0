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
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	// ErrCredentials means: the certificate, key or CA file cannot be used; the text
	// says which and why.
	ErrCredentials = errors.New("credentials unusable")
	// ErrPeer means: the other side of a connection was refused; the text says why.
	ErrPeer = errors.New("peer refused")
)

// maxPEM is the largest certificate, key or CA file in bytes.
const maxPEM = 1 << 20

// Files are the paths of a node's PEM files: its certificate followed by any
// intermediates, the key of the certificate, and the certificates of the CAs it
// trusts for nodes and clients alike.
type Files struct {
	Cert string
	Key  string
	CA   string
}

// Credentials are a node's own certificate and the CAs it trusts. They may be
// reloaded at any time; connections that exist stay as they are, new ones see
// the new files. All methods may be called from any goroutine.
type Credentials struct {
	files       Files
	trustDomain string
	reload      sync.Mutex // one Reload at a time
	current     atomic.Pointer[material]
}

// material is what one reading of the files gave. It is immutable.
type material struct {
	cert     tls.Certificate
	identity Identity
	roots    *x509.CertPool
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
	m, err := readFiles(files, trustDomain)
	if err != nil {
		return nil, err
	}
	c := &Credentials{files: files, trustDomain: trustDomain}
	c.current.Store(m)
	return c, nil
}

// Reload reads the files again. On an error, which wraps ErrCredentials, what
// was loaded before stays in use. The identity must not change.
func (c *Credentials) Reload() error {
	c.reload.Lock()
	defer c.reload.Unlock()
	m, err := readFiles(c.files, c.trustDomain)
	if err != nil {
		return err
	}
	if have := c.Identity(); m.identity != have {
		return fmt.Errorf("%w: %s now names %s, this node is %s", ErrCredentials, c.files.Cert, m.identity, have)
	}
	c.current.Store(m)
	return nil
}

// Identity is the node's own.
func (c *Credentials) Identity() Identity { return c.current.Load().identity }

// TrustDomain is the cluster's.
func (c *Credentials) TrustDomain() string { return c.trustDomain }

// NotAfter is when the node's own certificate expires.
func (c *Credentials) NotAfter() time.Time { return c.current.Load().cert.Leaf.NotAfter }

// KeyHash is SHA-256 of this side's own public key (SPKI).
func (c *Credentials) KeyHash() []byte {
	sum := sha256.Sum256(c.current.Load().cert.Leaf.RawSubjectPublicKeyInfo)
	return sum[:]
}

// CAKeysHash is SHA-256 over the sorted, distinct SHA-256 hashes of the
// SubjectPublicKeyInfo of the CA certificates: what a join token pins.
func (c *Credentials) CAKeysHash() []byte { return bytes.Clone(c.current.Load().caHash) }

// Server is the configuration of a listener for the given ALPN protocols (none:
// any or none). It speaks TLS 1.3 only, demands a certificate of the trust
// domain for client authentication, asks allow (nil: everybody) about its
// identity, and gives out no session tickets. Reloaded files count from the next
// connection on. A refused certificate fails the handshake with an error that
// wraps ErrPeer.
func (c *Credentials) Server(alpn []string, allow func(Identity) error) *tls.Config {
	return c.server(alpn, allow, tls.RequireAnyClientCert)
}

// ServerOptional is Server, but a client without a certificate passes the
// handshake; the layer above sees no peer certificate and must answer
// Unauthenticated. A certificate that is presented is verified all the same.
func (c *Credentials) ServerOptional(alpn []string, allow func(Identity) error) *tls.Config {
	return c.server(alpn, allow, tls.RequestClientCert)
}

func (c *Credentials) server(alpn []string, allow func(Identity) error, auth tls.ClientAuthType) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		ClientAuth:             auth,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.accepting(alpn, allow, auth), nil
		},
	}
}

// accepting is the configuration of one connection that a client opened.
func (c *Credentials) accepting(alpn []string, allow func(Identity) error, auth tls.ClientAuthType) *tls.Config {
	m := c.current.Load()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		ClientAuth:             auth,
		Certificates:           []tls.Certificate{m.cert},
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkProtocol(cs, alpn); err != nil {
				return err
			}
			if len(cs.PeerCertificates) == 0 && auth == tls.RequestClientCert {
				return nil
			}
			return m.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, c.trustDomain, allow)
		},
	}
}

// Client is the configuration for dialling a node with the given ALPN protocols
// (none: any or none). It speaks TLS 1.3 only, presents the node's certificate,
// and accepts only a server of class node in the trust domain whose certificate
// chains to the CA for server authentication and which expect (nil: every node)
// accepts.
//
// The server is known by its URI SAN alone. crypto/tls can verify only DNS names
// and addresses, which say nothing about identity here, so its verification is
// switched off (InsecureSkipVerify) and VerifyConnection does all of it.
func (c *Credentials) Client(alpn []string, expect func(Identity) error) *tls.Config {
	return c.client(alpn, expect, nil)
}

// ClientPinned is Client, but the CA certificates the server is verified against
// must hash to pin (see CAKeysHash), which a join token carries.
func (c *Credentials) ClientPinned(alpn []string, pin []byte, expect func(Identity) error) *tls.Config {
	return c.client(alpn, expect, append([]byte{}, pin...))
}

func (c *Credentials) client(alpn []string, expect func(Identity) error, pin []byte) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c.current.Load().cert, nil
		},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies chain and URI SAN; see Client
		VerifyConnection: func(cs tls.ConnectionState) error {
			m := c.current.Load()
			if err := checkProtocol(cs, alpn); err != nil {
				return err
			}
			if pin != nil && !bytes.Equal(pin, m.caHash) {
				return fmt.Errorf("%w: the CA keys are not those the join token pins", ErrPeer)
			}
			return m.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, c.trustDomain, nodesAnd(expect))
		},
	}
}

// checkProtocol: crypto/tls lets a peer that offers no ALPN at all pass.
func checkProtocol(cs tls.ConnectionState, alpn []string) error {
	if len(alpn) > 0 && !slices.Contains(alpn, cs.NegotiatedProtocol) {
		return fmt.Errorf("%w: no application protocol in common", ErrPeer)
	}
	return nil
}

// verify checks a presented chain against the roots at the current time, for
// usage, and its leaf's identity against trustDomain and allow (nil: everybody).
// Stricter than x509: the leaf must list usage itself and must not be a CA.
func (m *material) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, trustDomain string, allow func(Identity) error) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: no certificate", ErrPeer)
	}
	leaf := chain[0]
	if leaf.IsCA {
		return fmt.Errorf("%w: a CA's own certificate names no principal", ErrPeer)
	}
	if !slices.Contains(leaf.ExtKeyUsage, usage) {
		return fmt.Errorf("%w: the certificate lacks the extended key usage for %s authentication", ErrPeer, usageName(usage))
	}
	options := x509.VerifyOptions{Roots: m.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(options); err != nil {
		return fmt.Errorf("%w: %w", ErrPeer, err)
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if id.TrustDomain != trustDomain {
		return fmt.Errorf("%w: %s is not of trust domain %s", ErrPeer, id, trustDomain)
	}
	if allow == nil {
		return nil
	}
	if err := allow(id); err != nil {
		return fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return nil
}

func usageName(usage x509.ExtKeyUsage) string {
	if usage == x509.ExtKeyUsageServerAuth {
		return "server"
	}
	return "client"
}

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
	if m.roots, m.caHash, err = parseCA(ca); err != nil {
		return nil, fmt.Errorf("%w: CA file %s: %w", ErrCredentials, files.CA, err)
	}
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
		if err := m.verify(chain, usage, trustDomain, OnlyNodes); err != nil {
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

// parseCA reads CA certificates and nothing else, and hashes their keys as
// CAKeysHash says.
func parseCA(data []byte) (*x509.CertPool, []byte, error) {
	pool := x509.NewCertPool()
	var keys [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
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
		spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		keys = append(keys, spki[:])
	}
	if len(keys) == 0 {
		return nil, nil, errors.New("holds no certificate")
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	hash := sha256.Sum256(bytes.Join(keys, nil))
	return pool, hash[:], nil
}
