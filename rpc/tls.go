package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/quorumkms/quorumkms/transport"
)

// acceptedTLS is the credentials of listeners whose connections have completed
// their TLS handshake before gRPC sees them (package transport).
type acceptedTLS struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (acceptedTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil, nil, fmt.Errorf("rpc: connection of type %T is not TLS", c)
	}
	return c, accept(t.ConnectionState(), c.RemoteAddr().String()), nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (acceptedTLS) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: these credentials are a server's")
}

// Info implements credentials.TransportCredentials.
func (acceptedTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c acceptedTLS) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (acceptedTLS) OverrideServerName(string) error { return nil }

// dialledTLS is the credentials of connections to other nodes: they end when either
// side's certificate does.
type dialledTLS struct {
	own    *transport.Credentials
	config *tls.Config
}

// ClientHandshake implements credentials.TransportCredentials.
func (d dialledTLS) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := d.own.Handshake(ctx, raw, d.config)
	if err != nil {
		return nil, nil, err
	}
	return c, tlsInfo(c.ConnectionState()), nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (dialledTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: these credentials are a client's")
}

// Info implements credentials.TransportCredentials.
func (dialledTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (d dialledTLS) Clone() credentials.TransportCredentials { return d }

// OverrideServerName implements credentials.TransportCredentials.
func (dialledTLS) OverrideServerName(string) error { return nil }

func tlsInfo(state tls.ConnectionState) credentials.TLSInfo {
	return credentials.TLSInfo{State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
}
