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
	"google.golang.org/grpc/credentials"
)

const (
	// A node that could not be reached is dialled again after redialMin, then less
	// and less often, at least every redialMax.
	redialMin = 50 * time.Millisecond
	redialMax = time.Second
	// connectTimeout limits connecting, the handshake included.
	connectTimeout = 5 * time.Second
	// maxAnswer is the largest answer in bytes: a page of 1,000 keys with the
	// longest descriptions and the most aliases has 46 MiB.
	maxAnswer = 64 << 20
)

// endpoint is one node's address and the connection to it, made when first used.
type endpoint struct {
	address string
	conn    *grpc.ClientConn
	refused atomic.Pointer[error] // why the last handshake came to nothing
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

// refusal returns why one side refused the other, if the last handshake ended so.
func (e *endpoint) refusal() error {
	if p := e.refused.Load(); p != nil {
		return *p
	}
	return nil
}

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

// note keeps err if it is a refusal.
func (e *endpoint) note(err error) {
	var alert *net.OpError
	switch {
	case errors.As(err, &alert) && alert.Op == "remote error": // how crypto/tls reports an alert
		err = fmt.Errorf("%w: %w", ErrClientRefused, alert.Err)
	case !errors.Is(err, ErrServerRefused):
		return
	}
	e.refused.Store(&err)
}
