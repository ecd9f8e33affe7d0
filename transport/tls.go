package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrPeer means: the other side of a connection was refused; the text says why.
var ErrPeer = errors.New("peer refused")

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
			_, err := m.verify(cs.PeerCertificates, m.roots, x509.ExtKeyUsageClientAuth, c.trustDomain, allow)
			return err
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

// ClientPinned is Client, but the server is verified against those CA certificates
// only that hash to pin (see CAKeysHash), which a join token carries: all of this
// node's, or some of them while a CA is being replaced.
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
			roots := m.roots
			if pin != nil {
				if roots = m.pinned(pin); roots == nil {
					return fmt.Errorf("%w: the CA keys are not those the join token pins: give this node the CA file of the node that made the token", ErrPeer)
				}
			}
			_, err := m.verify(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth, c.trustDomain, nodesAnd(expect))
			return err
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
// usage, and its leaf's identity against trustDomain and allow (nil: everybody). It
// returns until when the chain is good. Stricter than x509: the leaf must list usage
// itself and must not be a CA.
func (m *material) verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, trustDomain string, allow func(Identity) error) (until time.Time, err error) {
	if len(chain) == 0 {
		return until, fmt.Errorf("%w: no certificate", ErrPeer)
	}
	leaf := chain[0]
	if leaf.IsCA {
		return until, fmt.Errorf("%w: a CA's own certificate names no principal", ErrPeer)
	}
	if !slices.Contains(leaf.ExtKeyUsage, usage) {
		return until, fmt.Errorf("%w: the certificate lacks the extended key usage for %s authentication", ErrPeer, usageName(usage))
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	verified, err := leaf.Verify(options)
	if err != nil {
		return until, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return until, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if id.TrustDomain != trustDomain {
		return until, fmt.Errorf("%w: %s is not of trust domain %s", ErrPeer, id, trustDomain)
	}
	if allow != nil {
		if err := allow(id); err != nil {
			return until, fmt.Errorf("%w: %w", ErrPeer, err)
		}
	}
	return goodUntil(verified), nil
}

// goodUntil is when the last of several chains has its first certificate expire.
func goodUntil(chains [][]*x509.Certificate) (until time.Time) {
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(until) {
			until = end
		}
	}
	return until
}

func usageName(usage x509.ExtKeyUsage) string {
	if usage == x509.ExtKeyUsageServerAuth {
		return "server"
	}
	return "client"
}
