package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// A node that could not be reached is dialled again after redialMin, then less
	// and less often, at least every redialMax.
	redialMin = 50 * time.Millisecond
	redialMax = time.Second
	// connectTimeout limits connecting, the handshake included; reachAtMost is how much
	// of that a call waits for before it tries another node.
	connectTimeout = 5 * time.Second
	reachAtMost    = time.Second
	// A connection on which nothing arrives for pingAfter is probed, and given up
	// pingTimeout later.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// replaceWithin is how long a connection with earlier certificates may stay in use
	// while none can be made with the present ones.
	replaceWithin = 30 * time.Second
	// maxAnswer is the largest answer in bytes: a page of 1,000 keys with the
	// longest descriptions and the most aliases has 46 MiB.
	maxAnswer = 64 << 20
)

// directly is how gRPC is told to take an address as it stands.
const directly = "passthrough:///"

// endpoint is one node's address and the connection to it.
type endpoint struct {
	address    string
	configured bool
	config     *tls.Config
	files      *reloader     // of config; nil if it comes from no files
	failed     time.Time     // zero since it last answered; Client.mu guards it
	roundTrip  time.Duration // smoothed; zero: not measured; Client.mu guards it

	mu      sync.Mutex
	open    map[*link]struct{} // the two below, and earlier ones with calls under way
	current *link              // calls use it
	next    *link              // with newer certificates, takes its place when it stands; or nil
	since   time.Time          // when next was made
	closed  bool
}

// link is one connection, made when first used. It is closed when another has taken
// its place and its last call has ended.
type link struct {
	*grpc.ClientConn
	age     uint64                // of the certificates it was made with
	refused atomic.Pointer[error] // why the last handshake came to nothing
	users   int                   // calls that use it; endpoint.mu guards it
}

func newEndpoint(address string, config *tls.Config, files *reloader) (*endpoint, error) {
	e := &endpoint{address: address, config: config, files: files, open: map[*link]struct{}{}}
	var err error
	e.current, err = e.connect(files.age())
	return e, err
}

func (e *endpoint) connect(age uint64) (*link, error) {
	l := &link{age: age}
	// The address is used as it stands: no scheme, resolver or proxy has a say.
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	conn, err := grpc.NewClient(directly+e.address,
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(watchedTLS{credentials.NewTLS(e.config), l}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: connectTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("client: address %s: %w", e.address, err)
	}
	l.ClientConn = conn
	e.open[l] = struct{}{}
	return l, nil
}

// take returns the connection for a call; give must follow. When the certificates
// have changed, a new connection is made beside the old one, which serves until the
// new one stands.
func (e *endpoint) take() *link {
	age := e.files.age()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.renew(age)
	}
	e.current.users++
	return e.current
}

func (e *endpoint) renew(age uint64) {
	newest := e.current
	if e.next != nil {
		newest = e.next
	}
	if newest.age != age {
		l, err := e.connect(age)
		if err != nil {
			return // the address was good before: there is nothing that could fail
		}
		earlier := e.next
		e.next, e.since = l, time.Now()
		e.drop(earlier)
		l.Connect()
	}
	if e.next == nil {
		return
	}
	useless := e.current.GetState() != connectivity.Ready || time.Since(e.since) > replaceWithin
	switch state := e.next.GetState(); {
	case state == connectivity.Ready || useless:
		earlier := e.current
		e.current, e.next = e.next, nil
		e.drop(earlier)
	case state == connectivity.Idle:
		e.next.Connect()
	}
}

// drop closes a connection that is not to be used again, unless calls still use it.
func (e *endpoint) drop(l *link) {
	if l == nil || l == e.current || l == e.next || l.users > 0 {
		return
	}
	delete(e.open, l)
	_ = l.Close() // no call of anybody's is lost
}

// give returns what take gave.
func (e *endpoint) give(l *link) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.users--
	e.drop(l)
}

// close ends the connections, with the calls that use them.
func (e *endpoint) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	var errs []error
	for l := range e.open {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// reach waits a while for the connection and reports whether a call need not wait for
// it: it stands, or cannot be made just now. Dialling goes on in any case.
func (l *link) reach(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, reachAtMost)
	defer cancel()
	for {
		state := l.GetState()
		switch state {
		case connectivity.Ready, connectivity.TransientFailure, connectivity.Shutdown:
			return true
		case connectivity.Idle:
			l.Connect()
		case connectivity.Connecting:
		}
		if !l.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// refusal returns why one side refused the other, if the last handshake ended so.
func (l *link) refusal() error {
	if p := l.refused.Load(); p != nil {
		return *p
	}
	return nil
}

// internalAlert is how crypto/tls writes the alert internal_error.
const internalAlert = "tls: internal error"

// watchedTLS notes how handshakes end: gRPC keeps of that only a text.
type watchedTLS struct {
	credentials.TransportCredentials
	l *link
}

func (w watchedTLS) Clone() credentials.TransportCredentials {
	return watchedTLS{w.TransportCredentials.Clone(), w.l}
}

func (w watchedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		w.l.note(err)
		return nil, nil, err
	}
	w.l.refused.Store(nil)
	return watchedConn{conn, w.l}, info, nil
}

// watchedConn: in TLS 1.3 a client learns by its first read that the server does
// not accept its certificate.
type watchedConn struct {
	net.Conn
	l *link
}

func (w watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.l.note(err)
	}
	return n, err
}

// note keeps err if it is a refusal. A node that starts or stops says internal error.
func (l *link) note(err error) {
	var alert *net.OpError
	switch {
	case errors.As(err, &alert) && alert.Op == "remote error" && alert.Err.Error() != internalAlert: // how crypto/tls reports an alert
		err = fmt.Errorf("%w: %w", ErrClientRefused, alert.Err)
	case !errors.Is(err, ErrServerRefused):
		return
	}
	l.refused.Store(&err)
}
