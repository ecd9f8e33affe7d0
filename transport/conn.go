package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrLimit means: a connection was closed because a limit of the listener is reached.
var ErrLimit = errors.New("too many connections")

// expiryRecheck is the longest time between two looks at the wall clock, which
// may jump, for the end of a peer's certificate.
const expiryRecheck = time.Minute

// Conn is a TLS connection whose handshake is complete. It closes itself when
// the peer's certificate expires. ConnectionState tells what the peer presented.
type Conn struct {
	*tls.Conn

	mu      sync.Mutex
	closed  bool
	atClose []func()
	expiry  *time.Timer
}

// CloseAtExpiry wraps a connection whose handshake is complete so that it closes
// when the peer's certificate expires by the wall clock, late by at most a
// minute if that clock was set. Without a peer certificate it never does.
func CloseAtExpiry(tc *tls.Conn) *Conn {
	c := &Conn{Conn: tc}
	if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
		c.watch(certs[0].NotAfter)
	}
	return c
}

func (c *Conn) watch(notAfter time.Time) {
	left := time.Until(notAfter)
	if left <= 0 {
		_ = c.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.expiry = time.AfterFunc(min(left, expiryRecheck), func() { c.watch(notAfter) })
	}
}

// Peer is the identity in the peer's certificate. Without one the error wraps
// ErrPeer.
func (c *Conn) Peer() (Identity, error) {
	certs := c.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return Identity{}, fmt.Errorf("%w: no certificate", ErrPeer)
	}
	return IdentityOf(certs[0])
}

// Close closes the connection, once; further calls return net.ErrClosed.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	if c.expiry != nil {
		c.expiry.Stop()
	}
	hooks := c.atClose
	c.mu.Unlock()
	err := c.Conn.Close()
	for _, f := range hooks {
		f()
	}
	return err
}

// onClose has f called when the connection is closed, at once if it is.
func (c *Conn) onClose(f func()) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.atClose = append(c.atClose, f)
	}
	c.mu.Unlock()
	if closed {
		f()
	}
}

// dial opens a connection to addr ("host:port") and completes its handshake.
func dial(ctx context.Context, addr string, config *tls.Config) (*Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(raw, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	return CloseAtExpiry(tc), nil
}

// connSet holds open connections, so that their owner can bound their number and
// close them all. The zero value is empty.
type connSet struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// add holds c; with limit (0: none) connections held already the error is
// ErrLimit, after closeAll it is net.ErrClosed, and c stays the caller's.
func (s *connSet) add(c net.Conn, limit int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if limit > 0 && len(s.open) >= limit {
		return ErrLimit
	}
	if s.open == nil {
		s.open = make(map[net.Conn]struct{})
	}
	s.open[c] = struct{}{}
	return nil
}

func (s *connSet) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// track holds c until it is closed; after closeAll it closes c and returns
// net.ErrClosed.
func (s *connSet) track(c *Conn) error {
	if err := s.add(c, 0); err != nil {
		_ = c.Close()
		return err
	}
	c.onClose(func() { s.remove(c) })
	return nil
}

// closeAll closes every connection held, and waits for it; no more are taken.
func (s *connSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	var wg sync.WaitGroup
	for c := range open {
		wg.Go(func() { _ = c.Close() })
	}
	wg.Wait()
}
