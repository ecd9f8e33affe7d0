package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrLimit means: a connection was closed because a limit of the listener is reached.
var ErrLimit = errors.New("too many connections")

// expiryRecheck is the longest time between two looks at the wall clock, which
// may jump, for the end of a connection's certificates.
const expiryRecheck = time.Minute

// Conn is a TLS connection whose handshake is complete. It closes itself when a
// certificate in the peer's chain or this side's own expires, by the wall clock, late
// by at most a minute if that clock was set, and when the reloaded CAs do not vouch
// for the peer any more. ConnectionState tells what the peer presented.
type Conn struct {
	*tls.Conn
	creds *Credentials
	usage x509.ExtKeyUsage // for which the peer's certificate must be good

	mu      sync.Mutex
	closed  bool
	until   time.Time // when a certificate expires
	atClose []func()
	timer   *time.Timer
}

// adopt wraps a connection whose handshake is complete, under a configuration of c's.
func (c *Credentials) adopt(tc *tls.Conn, usage x509.ExtKeyUsage) *Conn {
	conn := &Conn{Conn: tc, creds: c, usage: usage}
	c.mu.Lock()
	c.conns[conn] = struct{}{}
	c.mu.Unlock()
	conn.onClose(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.conns, conn)
	})
	conn.check()
	return conn
}

// check looks at the certificates anew.
func (c *Conn) check() {
	until, err := c.creds.trusts(c.ConnectionState().PeerCertificates, c.usage)
	if err != nil {
		_ = c.Close()
		return
	}
	c.mu.Lock()
	c.until = until
	c.mu.Unlock()
	c.watch()
}

// watch looks at the clock, now and until the connection closes.
func (c *Conn) watch() {
	c.mu.Lock()
	left := time.Until(c.until)
	if left > 0 && !c.closed {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.timer = time.AfterFunc(min(left, expiryRecheck), c.watch)
	}
	c.mu.Unlock()
	if left <= 0 {
		_ = c.Close()
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
	if c.timer != nil {
		c.timer.Stop()
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

// Handshake completes a client's TLS handshake over raw, which it closes on an
// error, under a configuration of c's.
func (c *Credentials) Handshake(ctx context.Context, raw net.Conn, config *tls.Config) (*Conn, error) {
	tc := tls.Client(raw, config)
	err := c.Valid()
	if err == nil {
		err = tc.HandshakeContext(ctx)
	}
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake with %s: %w", raw.RemoteAddr(), err)
	}
	return c.adopt(tc, x509.ExtKeyUsageServerAuth), nil
}

// dial opens a connection to addr ("host:port") and completes its handshake.
func (c *Credentials) dial(ctx context.Context, addr string, config *tls.Config) (*Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.Handshake(ctx, raw, config)
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

// list is the connections held that are complete.
func (s *connSet) list() (out []*Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if complete, ok := c.(*Conn); ok {
			out = append(out, complete)
		}
	}
	return out
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
