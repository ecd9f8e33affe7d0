package client

import (
	"context"

	"google.golang.org/grpc/metadata"
)

// Consistency is how a node makes sure that the state it answers from is fresh.
type Consistency string

const (
	// ConsistencyLease answers under the node's lease, without a round trip:
	// cryptography obeys every restriction that has returned, and what a call reads is
	// at least as new as what this client has seen.
	ConsistencyLease Consistency = "lease"
	// ConsistencyQuorum has the cluster commit a tick for the call: what it reads is as
	// new as anything that returned before, to whomever, and no node's clock is
	// believed. It costs a round trip to a quorum, shared with other such calls.
	ConsistencyQuorum Consistency = "quorum"
)

// consistencyHeader is the request header that carries it.
const consistencyHeader = "quorumkms-consistency"

type consistencyKey struct{}

// WithConsistency sets the consistency of the calls that are made with the context.
func WithConsistency(ctx context.Context, c Consistency) context.Context {
	return context.WithValue(ctx, consistencyKey{}, c)
}

// withHeaders adds what a call sends beside its request.
func (c *Client) withHeaders(ctx context.Context) context.Context {
	wanted, ok := ctx.Value(consistencyKey{}).(Consistency)
	if !ok {
		wanted = c.config.Consistency
	}
	if wanted == "" {
		return ctx // the node's own
	}
	return metadata.AppendToOutgoingContext(ctx, consistencyHeader, string(wanted))
}
