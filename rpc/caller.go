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

// accepted is what is known of a connection that was accepted, and who is at its other end: its
// verified certificate alone says that, and does not change while it stands.
type accepted struct {
	credentials.TLSInfo
	caller  kms.Caller
	problem error // why it is nobody
}

func accept(state tls.ConnectionState, source string) *accepted {
	a := &accepted{TLSInfo: tlsInfo(state)}
	if len(state.PeerCertificates) == 0 {
		a.problem = errNoCertificate
		return a
	}
	id, err := transport.IdentityOf(state.PeerCertificates[0])
	if err != nil {
		a.problem = err
		return a
	}
	a.caller = principal(id)
	a.caller.Source = source
	return a
}

// callerOf says who calls.
func callerOf(ctx context.Context) (kms.Caller, error) {
	a, err := connectionOf(ctx)
	if err != nil {
		return kms.Caller{}, err
	}
	return a.caller, a.problem
}

func connectionOf(ctx context.Context) (*accepted, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(*accepted); ok {
			return a, nil
		}
	}
	return nil, errNoCertificate
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
	caller, _ := callerOf(ctx) // authenticate has refused who is nobody
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
