// Package tracing follows calls with OpenTelemetry: through the gRPC servers, over to the
// leader, into the HSM and through Raft.
//
// A node that is not configured for it uses nothing of this package. Spans carry what was
// asked for (the operation), key ids, versions, indexes, sizes and codes: never plaintext,
// ciphertext, keys, values of encryption contexts, nor the texts of errors, which may
// repeat what callers have sent.
//
// Reading order: tracing.go, calls.go (gRPC), work.go (the HSM and the log).
package tracing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
)

const (
	scope = "github.com/quorumkms/quorumkms"

	// maxQueue bounds the spans that wait to be sent; more are dropped.
	maxQueue = 2048
	// exportTimeout bounds one attempt to send spans.
	exportTimeout = 5 * time.Second
	// closeAtMost bounds how long a receiver that is away holds the node's end up.
	closeAtMost = 2 * time.Second
)

// Config says where spans go.
type Config struct {
	Endpoint string // host:port of an OTLP receiver that speaks gRPC
	Insecure bool   // without TLS
	CA       string // PEM file of the receiver's CA; empty: the system's
	// Sample is the part of calls that are followed, of those that do not come with a
	// trace: those are followed if it is.
	Sample  float64
	Node    string
	Version string
	Log     *slog.Logger
}

// Tracing follows the calls of one node.
type Tracing struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	headers  propagation.TraceContext
}

// Open starts sending spans. A receiver that is not there costs spans, nothing else.
func Open(ctx context.Context, c Config) (*Tracing, error) {
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(c.Endpoint), otlptracegrpc.WithTimeout(exportTimeout)}
	if c.Insecure {
		options = append(options, otlptracegrpc.WithInsecure())
	} else {
		pool, err := roots(c.CA)
		if err != nil {
			return nil, err
		}
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool})))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	// The library has one place for errors that nobody waits for: the receiver is away.
	otel.SetErrorHandler(&complainer{log: c.Log})
	return with(c, sdk.WithBatcher(exporter, sdk.WithMaxQueueSize(maxQueue), sdk.WithExportTimeout(exportTimeout))), nil
}

func with(c Config, to sdk.TracerProviderOption) *Tracing {
	provider := sdk.NewTracerProvider(to,
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(c.Sample))),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "kmsd"), attribute.String("service.instance.id", c.Node), attribute.String("service.version", c.Version),
		)))
	return &Tracing{provider: provider, tracer: provider.Tracer(scope)}
}

// complainEvery is how often the log says that spans are not sent.
const complainEvery = time.Minute

// complainer passes errors on to the log, now and then.
type complainer struct {
	log  *slog.Logger
	mu   sync.Mutex
	last time.Time
}

// Handle implements otel.ErrorHandler.
func (c *complainer) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); c.last.IsZero() || now.Sub(c.last) >= complainEvery {
		c.last = now
		c.log.Warn("spans were not sent", "error", err)
	}
}

// roots are the CAs of a file; nil, the system's, without one.
func roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // crypto/tls wants it so
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("tracing.ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("tracing.ca: %s holds no certificate", file)
	}
	return pool, nil
}

// Close sends what is left, for a while.
func (t *Tracing) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeAtMost)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("tracing: %w", err)
	}
	return nil
}

// follows tells whether a context belongs to a trace that is recorded: what a node does by
// itself is not followed.
func follows(ctx context.Context) bool { return trace.SpanFromContext(ctx).IsRecording() }

// within begins a span of a trace that is recorded; of another it does nothing. end ends it.
func (t *Tracing) within(ctx context.Context, name string, attributes ...attribute.KeyValue) (inside context.Context, span trace.Span, end func(error)) {
	if !follows(ctx) {
		return ctx, trace.SpanFromContext(ctx), func(error) {}
	}
	ctx, span = t.tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, span, func(err error) { finish(span, err) }
}

// finish ends a span. Why something failed stands in the log and the audit trail; here,
// that it did.
func finish(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
