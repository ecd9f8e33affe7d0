package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// handingOver registers services whose calls tell the gate when their answers have been handed
// to the transport: when SendMsg has returned, which is called here for that reason. A
// stats.Handler would be told too, of much else beside, for a tenth of a call's processor time.
type handingOver struct {
	*grpc.Server
	around grpc.UnaryServerInterceptor
}

// RegisterService implements grpc.ServiceRegistrar.
func (h handingOver) RegisterService(d *grpc.ServiceDesc, implementation any) {
	own := *d
	own.Methods, own.Streams = nil, nil
	for _, m := range d.Methods { // a stream of one message each way is what gRPC has for a unary call, too
		own.Streams = append(own.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: h.unary(m.Handler)})
	}
	for _, s := range d.Streams {
		s.Handler = carrying(s.Handler)
		own.Streams = append(own.Streams, s)
	}
	h.Server.RegisterService(&own, implementation)
}

func (h handingOver) unary(handle grpc.MethodHandler) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		ctx := gate.Carry(stream.Context())
		defer gate.Finish(ctx)
		answer, err := handle(server, ctx, stream.RecvMsg, h.around)
		if err != nil {
			return err
		}
		return stream.SendMsg(answer)
	}
}

func carrying(handle grpc.StreamHandler) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		ctx := gate.Carry(stream.Context())
		defer gate.Finish(ctx)
		return handle(server, watched{stream, ctx})
	}
}

// chain makes one interceptor of several, the first outermost.
func chain(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, r any, info *grpc.UnaryServerInfo, last grpc.UnaryHandler) (any, error) {
		l := links{all: all, info: info, last: last}
		l.next = l.inner
		return l.inner(ctx, r)
	}
}

// links is a call's way through a chain: one handler for all of it, since every interceptor
// calls the next at most once. One that called it again would come past those behind it, of which
// one may have refused: then there is no last any more.
type links struct {
	all  []grpc.UnaryServerInterceptor // still to come
	info *grpc.UnaryServerInfo
	last grpc.UnaryHandler // nil once it was called, or an interceptor has returned
	next grpc.UnaryHandler // inner
}

func (l *links) inner(ctx context.Context, r any) (any, error) {
	if len(l.all) == 0 {
		last := l.last
		if l.last = nil; last == nil {
			return nil, status.Error(codes.Internal, "an interceptor calls twice")
		}
		return last(ctx, r)
	}
	around := l.all[0]
	l.all = l.all[1:]
	answer, err := around(ctx, r, l.info, l.next)
	l.last = nil
	return answer, err
}
