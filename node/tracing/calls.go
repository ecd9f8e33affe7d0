package tracing

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// headers are a call's, for the traceparent in them.
type headers metadata.MD

// Get implements propagation.TextMapCarrier.
func (h headers) Get(key string) string {
	if v := metadata.MD(h).Get(key); len(v) == 1 {
		return v[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (h headers) Set(key, value string) { metadata.MD(h).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (h headers) Keys() []string {
	keys := make([]string, 0, len(h))
	for k := range h {
		keys = append(keys, k)
	}
	return keys
}

var _ propagation.TextMapCarrier = headers(nil)

// named are a method's name and attributes, as OpenTelemetry has them for gRPC.
func named(method string) (string, []attribute.KeyValue) {
	name := strings.TrimPrefix(method, "/")
	service, operation, _ := strings.Cut(name, "/")
	return name, []attribute.KeyValue{
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", operation),
	}
}

func ended(span trace.Span, err error, isFault bool) {
	code := status.Code(err)
	span.SetAttributes(attribute.Int("rpc.grpc.status_code", int(code)))
	if isFault {
		span.SetStatus(codes.Error, code.String())
	}
	span.End()
}

// fault tells which codes are a server's fault, as OpenTelemetry has it.
func fault(err error) bool {
	switch status.Code(err) {
	case grpccodes.Unknown, grpccodes.DeadlineExceeded, grpccodes.Unimplemented, grpccodes.Internal, grpccodes.Unavailable, grpccodes.DataLoss:
		return true
	default:
		return false
	}
}

// incoming begins the span of a call that comes in, in its client's trace if it has one.
func (t *Tracing) incoming(ctx context.Context, method string) (context.Context, trace.Span) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = t.headers.Extract(ctx, headers(md))
	}
	name, attributes := named(method)
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
}

// Clients is a grpc.UnaryServerInterceptor: each call begins a span, or goes on with its
// client's trace.
func (t *Tracing) Clients(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, span := t.incoming(ctx, info.FullMethod)
	if span.IsRecording() {
		if m, ok := r.(proto.Message); ok {
			span.SetAttributes(attribute.Int("quorumkms.request.bytes", proto.Size(m)))
		}
	}
	answer, err := next(ctx, r)
	if span.IsRecording() && err == nil {
		if m, ok := answer.(proto.Message); ok {
			span.SetAttributes(attribute.Int("quorumkms.response.bytes", proto.Size(m)))
		}
	}
	ended(span, err, fault(err))
	return answer, err
}

// Peers is a grpc.UnaryServerInterceptor for calls of other nodes: only those that belong to
// a trace are followed.
func (t *Tracing) Peers(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if md, ok := metadata.FromIncomingContext(ctx); !ok || headers(md).Get("traceparent") == "" {
		return next(ctx, r)
	}
	ctx, span := t.incoming(ctx, info.FullMethod)
	answer, err := next(ctx, r)
	ended(span, err, fault(err))
	return answer, err
}

// Outgoing is a grpc.UnaryClientInterceptor for calls of other nodes: those that belong to a
// trace carry it over.
func (t *Tracing) Outgoing(ctx context.Context, method string, r, answer any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if !follows(ctx) {
		return call(ctx, method, r, answer, conn, options...)
	}
	name, attributes := named(method)
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok {
		md = metadata.MD{}
	}
	t.headers.Inject(ctx, headers(md)) // a copy, which is this call's alone
	err := call(metadata.NewOutgoingContext(ctx, md), method, r, answer, conn, options...)
	ended(span, err, err != nil)
	return err
}
