package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The protocols of the node listener.
const (
	ALPNRaft   = "quorumkms-raft/1"
	ALPNGossip = "quorumkms-gossip/1"
	ALPNPeer   = "h2" // gRPC between nodes
)

// The defaults of Limits.
const (
	DefaultHandshakes       = 64
	DefaultConnections      = 1024
	DefaultHandshakeTimeout = 5 * time.Second
)

const (
	// acceptDelayMin and acceptDelayMax bound the pause after a failed accept,
	// such as for want of file descriptors.
	acceptDelayMin = 5 * time.Millisecond
	acceptDelayMax = time.Second
)

// Limits bound what a listener spends on peers, known and unknown. A connection
// over a limit is closed at once. Zero fields take their defaults.
type Limits struct {
	Handshakes       int           // unfinished handshakes at a time
	Connections      int           // open connections, handshakes included
	HandshakeTimeout time.Duration // for one handshake, and again for its listener to accept
}

func (l Limits) withDefaults() Limits {
	if l.Handshakes <= 0 {
		l.Handshakes = DefaultHandshakes
	}
	if l.Connections <= 0 {
		l.Connections = DefaultConnections
	}
	if l.HandshakeTimeout <= 0 {
		l.HandshakeTimeout = DefaultHandshakeTimeout
	}
	return l
}

// Mux is one TCP port that carries several protocols over TLS, told apart by
// ALPN. Create it with Listen, name its protocols, run Serve, end it with Close.
type Mux struct {
	// Refused, if set before Serve, is told of each connection that did not reach
	// a protocol, and why. It must not block.
	Refused func(remote net.Addr, err error)

	creds     *Credentials
	limits    Limits
	ln        net.Listener
	conns     connSet      // accepted TCP connections, until closed
	anonymous atomic.Int64 // connections without a certificate
	slots     chan struct{}
	done      chan struct{}

	mu        sync.Mutex
	closed    bool
	protocols []*protocol    // in order of preference
	wg        sync.WaitGroup // handshakes; grows only while not closed
}

// Listen opens the port addr ("host:port"). Connections wait until Serve.
func Listen(addr string, c *Credentials, l Limits) (*Mux, error) {
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	l = l.withDefaults()
	return &Mux{creds: c, limits: l, ln: ln, slots: make(chan struct{}, l.Handshakes), done: make(chan struct{})}, nil
}

// Addr is the address of the port.
func (m *Mux) Addr() net.Addr { return m.ln.Addr() }

// Protocol is the listener of one protocol: of the connections that offer alpn
// and whose certificate passes as Credentials.Server says. It accepts *Conn,
// handshake complete. Closing it ends the protocol, not the connections it gave.
// A protocol that a client offers beside others is preferred the earlier it was
// named. Naming one twice without closing it in between panics.
func (m *Mux) Protocol(alpn string, allow func(Identity) error) net.Listener {
	return m.register(alpn, allow, tls.RequireAnyClientCert)
}

// ProtocolOptional is Protocol with the rule of Credentials.ServerOptional: a
// client without a certificate is let through.
func (m *Mux) ProtocolOptional(alpn string, allow func(Identity) error) net.Listener {
	return m.register(alpn, allow, tls.RequestClientCert)
}

func (m *Mux) register(alpn string, allow func(Identity) error, auth tls.ClientAuthType) *protocol {
	p := &protocol{mux: m, alpn: alpn, allow: allow, auth: auth, conns: make(chan *Conn), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.protocols, func(q *protocol) bool { return q.alpn == alpn }) {
		panic(fmt.Sprintf("transport: protocol %q named twice", alpn))
	}
	m.protocols = append(m.protocols, p)
	return p
}

// Serve accepts connections until ctx is done or Close is called, then returns
// nil, the port and every connection closed and all its goroutines ended.
func (m *Mux) Serve(ctx context.Context) error {
	defer func() { _ = m.Close() }()
	stop := context.AfterFunc(ctx, m.shut)
	defer stop()
	delay := acceptDelayMin
	for {
		raw, err := m.ln.Accept()
		switch {
		case err == nil:
			delay = acceptDelayMin
			m.admit(ctx, raw)
		case errors.Is(err, net.ErrClosed):
			return nil
		default:
			m.refused(m.ln.Addr(), fmt.Errorf("accept: %w", err))
			select {
			case <-time.After(delay):
			case <-m.done:
			}
			delay = min(2*delay, acceptDelayMax)
		}
	}
}

// Close closes the port, its protocols and every connection still open, and
// waits for the goroutines of the Mux.
func (m *Mux) Close() error {
	m.shut()
	m.conns.closeAll()
	m.wg.Wait()
	return nil
}

// shut closes all but the open connections, without waiting.
func (m *Mux) shut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	close(m.done)
	_ = m.ln.Close()
}

func (m *Mux) refused(remote net.Addr, err error) {
	if m.Refused != nil {
		m.Refused(remote, err)
	}
}

// admit starts the handshake of a new connection if the limits allow.
func (m *Mux) admit(ctx context.Context, raw net.Conn) {
	err := m.conns.add(raw, m.limits.Connections)
	if err == nil {
		if err = m.start(ctx, raw); err == nil {
			return
		}
		m.conns.remove(raw)
	}
	_ = raw.Close()
	m.refused(raw.RemoteAddr(), err)
}

func (m *Mux) start(ctx context.Context, raw net.Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return net.ErrClosed
	}
	select {
	case m.slots <- struct{}{}:
	default:
		return fmt.Errorf("%w: %d handshakes unfinished", ErrLimit, m.limits.Handshakes)
	}
	m.wg.Go(func() { m.handshake(ctx, raw) })
	return nil
}

// handshake brings one connection to its protocol, or closes it.
func (m *Mux) handshake(ctx context.Context, raw net.Conn) {
	tc := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: m.configFor})
	timed, cancel := context.WithTimeout(ctx, m.limits.HandshakeTimeout)
	err := tc.HandshakeContext(timed)
	cancel()
	<-m.slots
	if err != nil {
		_ = raw.Close()
		m.conns.remove(raw)
		m.refused(raw.RemoteAddr(), fmt.Errorf("handshake: %w", err))
		return
	}
	conn := m.creds.adopt(tc, x509.ExtKeyUsageClientAuth)
	conn.onClose(func() { m.conns.remove(raw) })
	if err := m.deliver(conn); err != nil {
		_ = conn.Close()
		m.refused(raw.RemoteAddr(), err)
	}
}

// configFor answers a client's hello with the first protocol that both sides
// know. For a client that shares none it returns a configuration under which the
// handshake fails.
func (m *Mux) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	m.mu.Lock()
	protocols := slices.Clone(m.protocols)
	m.mu.Unlock()
	for _, p := range protocols {
		if slices.Contains(hello.SupportedProtos, p.alpn) {
			return m.creds.accepting([]string{p.alpn}, p.allow, p.auth), nil
		}
	}
	if len(protocols) == 0 {
		return nil, fmt.Errorf("%w: no protocol is served yet", ErrPeer)
	}
	return m.creds.accepting([]string{protocols[0].alpn}, nil, tls.RequireAnyClientCert), nil
}

// Limits of connections without a certificate: they may ask to be told so, no more.
const (
	maxAnonymous      = 64
	anonymousLifetime = 10 * time.Second
)

// limitAnonymous keeps connections without a certificate few and short.
func (m *Mux) limitAnonymous(conn *Conn) error {
	if len(conn.ConnectionState().PeerCertificates) > 0 {
		return nil
	}
	if m.anonymous.Add(1) > maxAnonymous {
		m.anonymous.Add(-1)
		return fmt.Errorf("%w: %d have no certificate", ErrLimit, maxAnonymous)
	}
	timer := time.AfterFunc(anonymousLifetime, func() { _ = conn.Close() })
	conn.onClose(func() {
		timer.Stop()
		m.anonymous.Add(-1)
	})
	return nil
}

func (m *Mux) deliver(conn *Conn) error {
	if err := m.limitAnonymous(conn); err != nil {
		return err
	}
	alpn := conn.ConnectionState().NegotiatedProtocol
	m.mu.Lock()
	i := slices.IndexFunc(m.protocols, func(p *protocol) bool { return p.alpn == alpn })
	if i < 0 {
		m.mu.Unlock()
		return fmt.Errorf("protocol %q: %w", alpn, net.ErrClosed)
	}
	p := m.protocols[i]
	m.mu.Unlock()
	timer := time.NewTimer(m.limits.HandshakeTimeout)
	defer timer.Stop()
	select {
	case p.conns <- conn:
		return nil
	case <-p.done:
	case <-m.done:
	case <-timer.C:
		return fmt.Errorf("%w: %q does not accept", ErrLimit, alpn)
	}
	return fmt.Errorf("protocol %q: %w", alpn, net.ErrClosed)
}

// protocol is the net.Listener of one ALPN name.
type protocol struct {
	mux   *Mux
	alpn  string
	allow func(Identity) error
	auth  tls.ClientAuthType
	conns chan *Conn
	once  sync.Once
	done  chan struct{}
}

// Accept implements net.Listener.
func (p *protocol) Accept() (net.Conn, error) {
	c, err := p.accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (p *protocol) accept() (*Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
	case <-p.mux.done:
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (p *protocol) Close() error {
	p.once.Do(func() {
		close(p.done)
		p.mux.mu.Lock()
		defer p.mux.mu.Unlock()
		p.mux.protocols = slices.DeleteFunc(p.mux.protocols, func(q *protocol) bool { return q == p })
	})
	return nil
}

// Addr implements net.Listener.
func (p *protocol) Addr() net.Addr { return p.mux.Addr() }
