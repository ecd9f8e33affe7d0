package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
)

func recording(t testing.TB, sample float64) (*Tracing, *tracetest.InMemoryExporter) {
	t.Helper()
	seen := tracetest.NewInMemoryExporter()
	return with(Config{Node: "kms-1", Version: "v9", Sample: sample, Log: slog.New(slog.DiscardHandler)}, sdk.WithSyncer(seen)), seen
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"

func incoming(ctx context.Context, traceparent ...string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.MD{"traceparent": traceparent})
}

var method = &grpc.UnaryServerInfo{FullMethod: "/quorumkms.v1.CryptoService/Encrypt"}

// TestWhatIsFollowed: the client's word counts, then the sample; of other nodes' calls, their
// word alone.
func TestWhatIsFollowed(t *testing.T) {
	for _, row := range []struct {
		what    string
		sample  float64
		headers []string
		clients int
		peers   int
	}{
		{"nothing is said, all is sampled", 1, nil, 1, 0},
		{"nothing is said, nothing is sampled", 0, nil, 0, 0},
		{"the client follows", 0, []string{parent + "01"}, 1, 1},
		{"the client does not", 1, []string{parent + "00"}, 0, 0},
		{"nonsense", 0, []string{"00-zz-01"}, 0, 0},
		{"two traces", 0, []string{parent + "01", parent + "01"}, 0, 0},
		{"too long", 0, []string{parent + "01" + strings.Repeat("0", 1<<14)}, 0, 0},
	} {
		x, seen := recording(t, row.sample)
		next := func(context.Context, any) (any, error) { return nil, nil }
		_, _ = x.Clients(incoming(t.Context(), row.headers...), nil, method, next)
		clients := len(seen.GetSpans())
		_, _ = x.Peers(incoming(t.Context(), row.headers...), nil, method, next)
		if peers := len(seen.GetSpans()) - clients; clients != row.clients || peers != row.peers {
			t.Errorf("%s: %d and %d spans, want %d and %d", row.what, clients, peers, row.clients, row.peers)
		}
	}
}

// TestErrorsKeepTheirTexts: what an error says may be what a client has sent.
func TestErrorsKeepTheirTexts(t *testing.T) {
	x, seen := recording(t, 1)
	_, _ = x.Clients(t.Context(), nil, method, func(ctx context.Context, _ any) (any, error) {
		_, err := x.Log(failing{}).Propose(ctx, fsm.Proposal{Command: &fsm.Tick{}})
		x.Commit(ctx, "Tick")(0, err)
		_, err = x.Deriver(failing{}).Derive(ctx, hsm.Ref{}, hsm.MessageInput{}, hsm.Seal)
		return nil, status.Error(grpccodes.Unavailable, err.Error())
	})
	spans := seen.GetSpans()
	if len(spans) != 4 {
		t.Fatalf("%d spans", len(spans))
	}
	for _, s := range spans {
		if s.Status.Code != codes.Error || strings.Contains(fmt.Sprintf("%+v", s), "secret") {
			t.Errorf("%s: %+v, %v, %v", s.Name, s.Status, s.Attributes, s.Events)
		}
	}
}

type failing struct {
	kms.Log
	kms.Deriver
}

var errSecret = errors.New("a secret")

func (failing) Propose(context.Context, fsm.Proposal) (fsm.Result, error) {
	return fsm.Result{}, errSecret
}

func (failing) Derive(context.Context, hsm.Ref, hsm.MessageInput, hsm.Use) (hsm.MessageKeys, error) {
	return hsm.MessageKeys{}, errSecret
}

// TestShared: a call of several is in the trace of the first that is followed, and linked
// with the others both ways.
func TestShared(t *testing.T) {
	x, seen := recording(t, 1)
	ctx1, one := x.tracer.Start(t.Context(), "one")
	ctx2, two := x.tracer.Start(t.Context(), "two")
	_, done := x.Shared([]context.Context{t.Context(), ctx1, ctx2, ctx1, ctx2}) // two batches of two
	done(nil)
	one.End()
	two.End()
	by := map[string]tracetest.SpanStub{}
	for _, s := range seen.GetSpans() {
		by[s.Name] = s
	}
	call := by["hsm.call"]
	if call.Parent.SpanID() != by["one"].SpanContext.SpanID() || len(call.Links) != 1 || call.Links[0].SpanContext.SpanID() != by["two"].SpanContext.SpanID() {
		t.Errorf("the call: %+v", call)
	}
	if len(by["one"].Links) != 0 || len(by["two"].Links) != 1 || by["two"].Links[0].SpanContext.SpanID() != call.SpanContext.SpanID() {
		t.Errorf("the callers: %+v, %+v", by["one"].Links, by["two"].Links)
	}
	seen.Reset()
	_, done = x.Shared([]context.Context{t.Context(), t.Context()})
	done(nil)
	if n := len(seen.GetSpans()); n != 0 {
		t.Errorf("%d spans of callers that nobody follows", n)
	}
}

// TestOutgoing: the trace goes along with a call to another node, and the context's own
// headers stay as they are.
func TestOutgoing(t *testing.T) {
	x, seen := recording(t, 1)
	var sent metadata.MD
	call := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
		sent, _ = metadata.FromOutgoingContext(ctx)
		return nil
	}
	if err := x.Outgoing(t.Context(), "/p/Propose", nil, nil, nil, call); err != nil || len(sent) != 0 {
		t.Errorf("a call of the node's own: %v, %v", sent, err)
	}
	ctx, span := x.tracer.Start(metadata.AppendToOutgoingContext(t.Context(), "other", "stays"), "call")
	if err := x.Outgoing(ctx, "/p/Propose", nil, nil, nil, call); err != nil {
		t.Fatal(err)
	}
	span.End()
	made := seen.GetSpans()[0].SpanContext
	if got := sent.Get("traceparent"); len(got) != 1 || got[0] != "00-"+made.TraceID().String()+"-"+made.SpanID().String()+"-01" || sent.Get("other")[0] != "stays" {
		t.Errorf("sent %v", sent)
	}
	if before, _ := metadata.FromOutgoingContext(ctx); before.Get("traceparent") != nil {
		t.Error("the caller's headers were changed")
	}
}

// TestUnfollowed: a call that is not followed costs the HSM's part nothing.
func TestUnfollowed(t *testing.T) {
	x, _ := recording(t, 0)
	d := x.Deriver(idle{})
	callers := []context.Context{t.Context()}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = d.Derive(t.Context(), hsm.Ref{}, hsm.MessageInput{}, hsm.Seal)
		_, done := x.Shared(callers)
		done(nil)
	}); n > 1 { // t.Context
		t.Errorf("%v allocations", n)
	}
}

type idle struct{ kms.Deriver }

func (idle) Derive(context.Context, hsm.Ref, hsm.MessageInput, hsm.Use) (hsm.MessageKeys, error) {
	return hsm.MessageKeys{}, nil
}

// TestComplaints: a receiver that is away is worth a line now and then.
func TestComplaints(t *testing.T) {
	var out strings.Builder
	c := &complainer{log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 10 {
		c.Handle(errors.New("connection refused"))
	}
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// BenchmarkCall is what a call costs that is followed, and one that is not.
func BenchmarkCall(b *testing.B) {
	for name, sample := range map[string]float64{"followed": 1, "not followed": 0} {
		b.Run(name, func(b *testing.B) {
			x := with(Config{Sample: sample, Log: slog.New(slog.DiscardHandler)}, sdk.WithBatcher(tracetest.NewNoopExporter()))
			d := x.Deriver(idle{})
			b.ReportAllocs()
			for b.Loop() {
				_, _ = x.Clients(b.Context(), nil, method, func(ctx context.Context, _ any) (any, error) {
					return d.Derive(ctx, hsm.Ref{}, hsm.MessageInput{}, hsm.Seal)
				})
			}
		})
	}
}
