package rpc

import (
	"context"

	"google.golang.org/grpc/stats"

	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// handOver tells the gate when a call's answer has been handed to the transport.
type handOver struct{}

// TagRPC implements stats.Handler.
func (handOver) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return gate.Carry(ctx)
}

// HandleRPC implements stats.Handler.
func (handOver) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ended := s.(*stats.End); ended {
		gate.Finish(ctx)
	}
}

// TagConn implements stats.Handler.
func (handOver) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (handOver) HandleConn(context.Context, stats.ConnStats) {}
