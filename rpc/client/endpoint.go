package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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
	// maxAnswer is the largest answer in bytes: a page of 1,000 keys with the
	// longest descriptions and the most aliases has 46 MiB.
	maxAnswer = 64 << 20
)

// endpoint is one node's address and the connection to it, made when first used.
type endpoint struct {
	address    string
	configured bool
	conn       *grpc.ClientConn
	refused    atomic.Pointer[error] // why the last handshake came to nothing
	failed     time.Time             // zero since it last answered; Client.mu guards it
}

func newEndpoint(address string, config *tls.Config) (*endpoint, error) {
	e := &endpoint{address: address}
	// The address is used as it stands: no scheme, resolver or proxy has a say.
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(watchedTLS{credentials.NewTLS(config), e}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: connectTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("client: address %s: %w", address, err)
	}
	e.conn = conn
	return e, nil
}

// reach waits a while for the connection and reports whether a call need not wait for
// it: it stands, or cannot be made just now. Dialling goes on in any case.
func (e *endpoint) reach(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, reachAtMost)
	defer cancel()
	for {
		state := e.conn.GetState()
		switch state {
		case connectivity.Ready, connectivity.TransientFailure, connectivity.Shutdown:
			return true
		case connectivity.Idle:
			e.conn.Connect()
		case connectivity.Connecting:
		}
		if !e.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// refusal returns why one side refused the other, if the last handshake ended so.
func (e *endpoint) refusal() error {
	if p := e.refused.Load(); p != nil {
		return *p
	}
	return nil
}

// internalAlert is how crypto/tls writes the alert internal_error.
const internalAlert = "tls: internal error"

// watchedTLS notes how handshakes end: gRPC keeps of that only a text.
type watchedTLS struct {
	credentials.TransportCredentials
	e *endpoint
}

func (w watchedTLS) Clone() credentials.TransportCredentials {
	return watchedTLS{w.TransportCredentials.Clone(), w.e}
}

func (w watchedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		w.e.note(err)
		return nil, nil, err
	}
	w.e.refused.Store(nil)
	return watchedConn{conn, w.e}, info, nil
}

// watchedConn: in TLS 1.3 a client learns by its first read that the server does
// not accept its certificate.
type watchedConn struct {
	net.Conn
	e *endpoint
}

func (w watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.e.note(err)
	}
	return n, err
}

// note keeps err if it is a refusal. A node that starts or stops says internal error.
func (e *endpoint) note(err error) {
	var alert *net.OpError
	switch {
	case errors.As(err, &alert) && alert.Op == "remote error" && alert.Err.Error() != internalAlert: // how crypto/tls reports an alert
		err = fmt.Errorf("%w: %w", ErrClientRefused, alert.Err)
	case !errors.Is(err, ErrServerRefused):
		return
	}
	e.refused.Store(&err)
}
