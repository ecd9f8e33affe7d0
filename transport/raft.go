package transport

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// DefaultRaftPool is how many idle connections are kept to each peer.
	DefaultRaftPool = 3
	// DefaultRaftTimeout bounds one message of Raft and its answer; snapshots get
	// it once for every 256 KiB.
	DefaultRaftTimeout = 3 * time.Second
)

// RaftConfig is what NewRaftTransport needs. Zero fields marked optional take
// their defaults.
type RaftConfig struct {
	Mux         *Mux
	Credentials *Credentials
	// Advertise is the address ("host:port") under which the peers know this node.
	Advertise string
	// ServerIdentity, optional, names the member (the name of its node identity)
	// that lives at an address; a connection dialled there must end at that member.
	// Where it answers false, any node of the trust domain is accepted: a node that
	// has not yet replayed its log knows no members and must still find a leader.
	ServerIdentity func(address raft.ServerAddress) (name string, ok bool)
	// Allow, optional, refuses nodes that may no longer speak Raft, such as removed
	// ones. It is asked at each incoming connection, and at Recheck.
	Allow func(Identity) error
	// Proof, optional, gives what an end of a connection in that role ("dialer",
	// "acceptor") must show to belong to the cluster: proofSize bytes that depend on
	// channel, the connection's exporter value. Both ends compute both proofs. A node
	// certificate alone then speaks no Raft.
	Proof func(role string, channel []byte) []byte
	// Pool, optional, is the number of idle connections kept to a peer.
	Pool int
	// Timeout, optional, bounds one message and its answer.
	Timeout time.Duration
	// Logger, optional, gets what the library says, at debug level.
	Logger *slog.Logger
}

// RaftTransport carries Raft over the node listener. It embeds the struct
// raft.NetworkTransport, not the interface, because Raft looks for pre-vote
// (raft.WithPreVote) and for Close on the concrete type.
type RaftTransport struct {
	*raft.NetworkTransport
	layer *raftLayer
}

var (
	_ raft.Transport   = (*RaftTransport)(nil)
	_ raft.WithPreVote = (*RaftTransport)(nil)
	_ raft.WithClose   = (*RaftTransport)(nil)
)

// NewRaftTransport starts the transport; it accepts connections until Close,
// which also closes every connection it accepted or dialled. raft.Raft closes it
// at shutdown.
func NewRaftTransport(c RaftConfig) (*RaftTransport, error) {
	if _, _, err := net.SplitHostPort(c.Advertise); err != nil {
		return nil, fmt.Errorf("advertised address: %w", err)
	}
	if c.Pool <= 0 {
		c.Pool = DefaultRaftPool
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultRaftTimeout
	}
	layer := &raftLayer{
		config:   c,
		listener: c.Mux.register(ALPNRaft, nodesAnd(c.Allow), tls.RequireAnyClientCert),
	}
	return &RaftTransport{raft.NewNetworkTransport(layer, c.Pool, c.Timeout, debugLog(c.Logger).Writer()), layer}, nil
}

// Recheck closes the connections of nodes that Allow refuses by now.
func (t *RaftTransport) Recheck() {
	if t.layer.config.Allow == nil {
		return
	}
	for _, c := range t.layer.conns.list() {
		if id, err := c.Peer(); err != nil || t.layer.config.Allow(id) != nil {
			_ = c.Close()
		}
	}
}

// SetHeartbeatHandler ignores the fast path: heartbeats handled beside Raft's
// main loop race a change of term and can make logs diverge (hashicorp/raft
// issue 695). They go through Consumer like every other message.
func (t *RaftTransport) SetHeartbeatHandler(func(raft.RPC)) {}

// raftLayer is the raft.StreamLayer of a RaftTransport.
type raftLayer struct {
	config   RaftConfig
	listener *protocol
	conns    connSet
}

// Accept implements net.Listener.
func (l *raftLayer) Accept() (net.Conn, error) {
	c, err := l.listener.accept()
	if err != nil {
		return nil, err
	}
	if err := l.conns.track(c); err != nil {
		return nil, err
	}
	if l.config.Proof == nil {
		return c, nil
	}
	return &provenConn{Conn: c, proof: l.config.Proof}, nil
}

// Dial implements raft.StreamLayer: timeout is for all of it.
func (l *raftLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	c, err := l.config.Credentials.dial(ctx, string(address), l.config.Credentials.Client([]string{ALPNRaft}, l.expect(address)))
	if err != nil {
		return nil, err
	}
	if err := l.conns.track(c); err != nil {
		return nil, err
	}
	if l.config.Proof != nil {
		if err := exchange(c, l.config.Proof, true, deadline); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", address, err), c.Close())
		}
	}
	return c, nil
}

// provenConn is an accepted connection whose other end proves itself before the
// first byte is read: in the goroutine that reads, so that a slow stranger keeps
// nobody waiting.
type provenConn struct {
	*Conn
	proof func(role string, channel []byte) []byte
	once  sync.Once
	err   error
}

// Read implements net.Conn.
func (c *provenConn) Read(b []byte) (int, error) {
	c.once.Do(func() {
		if c.err = exchange(c.Conn, c.proof, false, time.Now().Add(proofTimeout)); c.err != nil {
			c.err = errors.Join(c.err, c.Close())
		}
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}

const (
	proofSize    = 32 // bytes
	proofTimeout = 5 * time.Second
	proofLabel   = "EXPORTER-quorumkms-raft-v1"
	roleDialer   = "dialer"
	roleAcceptor = "acceptor"
)

// exchange shows this end's proof and checks the other's. The dialer begins.
func exchange(c *Conn, proof func(role string, channel []byte) []byte, dialer bool, deadline time.Time) error {
	state := c.ConnectionState()
	channel, err := state.ExportKeyingMaterial(proofLabel, nil, proofSize)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	show := func(role string) error {
		_, err := c.Write(proof(role, channel))
		return err
	}
	check := func(role string) error {
		got := make([]byte, proofSize)
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !hmac.Equal(got, proof(role, channel)) {
			return fmt.Errorf("%w: it does not know the cluster's log key", ErrPeer)
		}
		return nil
	}
	if dialer {
		err = errors.Join(show(roleDialer), check(roleAcceptor))
	} else if err = check(roleDialer); err == nil {
		err = show(roleAcceptor)
	}
	return errors.Join(err, c.SetDeadline(time.Time{}))
}

// expect accepts the member that lives at address.
func (l *raftLayer) expect(address raft.ServerAddress) func(Identity) error {
	return func(id Identity) error {
		if l.config.ServerIdentity == nil {
			return nil
		}
		if name, ok := l.config.ServerIdentity(address); ok && id.Name != name {
			return fmt.Errorf("%s answered at %s, where node %s lives", id, address, name)
		}
		return nil
	}
}

// Close implements net.Listener.
func (l *raftLayer) Close() error {
	err := l.listener.Close()
	l.conns.closeAll()
	return err
}

// Addr implements net.Listener: the advertised address.
func (l *raftLayer) Addr() net.Addr { return advertised(l.config.Advertise) }

// advertised is an address as configured, which may hold a host name.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// debugLog is a classic logger whose lines go to l (nil: nowhere) at debug level.
func debugLog(l *slog.Logger) *log.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
