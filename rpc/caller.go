package rpc

import (
	"context"
	"crypto/tls"
	"fmt"

	"google.golang.org/grpc/credentials"
	headers "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/transport"
)

// callerOf says who calls, from the verified certificate alone.
func callerOf(ctx context.Context) (kms.Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return kms.Caller{}, errNoCertificate
	}
	state, ok := tlsState(p)
	if !ok || len(state.PeerCertificates) == 0 {
		return kms.Caller{}, errNoCertificate
	}
	id, err := transport.IdentityOf(state.PeerCertificates[0])
	if err != nil {
		return kms.Caller{}, err
	}
	caller := principal(id)
	caller.Source = p.Addr.String()
	return caller, nil
}

func principal(id transport.Identity) kms.Caller {
	return kms.Caller{Principal: id.String(), Class: kms.Class(id.Class), Tenant: id.Tenant, Name: id.Name}
}

// PrincipalOf takes a SPIFFE URI of a trust domain apart.
func PrincipalOf(trustDomain string) func(uri string) (kms.Caller, error) {
	return func(uri string) (kms.Caller, error) {
		id, err := transport.ParseIdentity(uri)
		if err != nil {
			return kms.Caller{}, err
		}
		if id.TrustDomain != trustDomain {
			return kms.Caller{}, fmt.Errorf("%s is of the trust domain %s, this cluster's is %s", uri, id.TrustDomain, trustDomain)
		}
		return principal(id), nil
	}
}

func tlsState(p *peer.Peer) (tls.ConnectionState, bool) {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return info.State, ok
}

// callerKey is the context key under which the interceptor leaves the caller.
type callerKey struct{}

func withCaller(ctx context.Context, c kms.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// request is what all requests of the protocol have in common.
type request interface {
	GetTenant() string
	GetIndexToken() []byte
}

// consistencyHeader is the request header that asks for another consistency than the
// node's own: "quorum" or "lease".
const consistencyHeader = "quorumkms-consistency"

// call gathers what every call has in common.
func call(ctx context.Context, r request) kms.Call {
	caller, _ := ctx.Value(callerKey{}).(kms.Caller)
	c := kms.Call{Caller: caller, Tenant: r.GetTenant(), IndexToken: r.GetIndexToken()}
	if wanted := headers.ValueFromIncomingContext(ctx, consistencyHeader); len(wanted) > 0 {
		c.Consistency = wanted[0]
	}
	if m, ok := r.(interface{ GetRequestId() string }); ok {
		c.RequestID = m.GetRequestId()
	}
	if m, ok := r.(interface{ GetDryRun() bool }); ok {
		c.DryRun = m.GetDryRun()
	}
	return c
}
