package rpc

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// serving is a node that always may answer.
type serving struct{}

func (serving) Usable() error                 { return nil }
func (serving) Confirm(context.Context) error { return nil }
func (serving) State() *fsm.State             { return nil }
func (serving) Serves(*fsm.State) error       { return nil }
func (serving) Record(audit.Event) error      { return nil }
func (serving) RecordAll([]audit.Event) error { return nil }
func (serving) Healthy() error                { return nil }

// taking is the transport of one call.
type taking struct {
	grpc.ServerStream
	ctx  context.Context //nolint:containedctx // the stream's
	send func() error
}

func (s taking) Context() context.Context { return s.ctx }
func (taking) RecvMsg(any) error          { return nil }
func (s taking) SendMsg(any) error        { return s.send() }

// TestHandingOver: a result is under way until the transport has taken the call's answer,
// however that ends.
func TestHandingOver(t *testing.T) {
	out := gate.NewReleases()
	g := gate.New(serving{}, serving{}, out, func() time.Duration { return 0 })
	underWay := func() bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		return out.HandedOver(ended) != nil
	}
	release := func(_ any, ctx context.Context, decode func(any) error, around grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // as gRPC has it
		return around(ctx, nil, &grpc.UnaryServerInfo{}, func(ctx context.Context, _ any) (any, error) {
			p, err := gate.Compute(ctx, func(context.Context) (int, error) { return 1, decode(nil) }, func(int) {})
			if err != nil {
				return nil, err
			}
			return gate.Release(ctx, g, p, &audit.Event{}, func(*fsm.State) error { return nil })
		})
	}
	failed := errors.New("failed")
	for name, row := range map[string]struct {
		after error // of the handler
		sent  error
	}{"answered": {}, "refused at the end": {after: failed}, "not taken": {sent: failed}} {
		t.Run(name, func(t *testing.T) {
			var order []string
			note := func(name string) grpc.UnaryServerInterceptor {
				return func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
					order = append(order, name)
					answer, err := next(ctx, r)
					return answer, errors.Join(err, row.after)
				}
			}
			h := handingOver{around: chain([]grpc.UnaryServerInterceptor{note("outer"), note("inner")})}
			sent := false
			err := h.unary(release)(nil, taking{ctx: t.Context(), send: func() error {
				if sent = true; !underWay() {
					t.Error("handed over before the transport has it")
				}
				return row.sent
			}})
			if (err != nil) != (row.after != nil || row.sent != nil) || sent != (row.after == nil) {
				t.Fatalf("sent %v: %v", sent, err)
			}
			if underWay() {
				t.Fatal("still under way")
			}
			if len(order) != 2 || order[0] != "outer" {
				t.Fatal(order)
			}
		})
	}
}

// TestChain: interceptors are called in their order, and whoever calls the next a second time
// does not come past one that has refused, nor to the method again.
func TestChain(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	for _, c := range []struct {
		name    string
		refuses int // the interceptor that does; 3: none
		twice   int // the one that calls the next twice; 3: none
		want    string
		code    codes.Code
	}{
		{"in order", 3, 3, "012m", codes.OK},
		{"refused", 1, 3, "01", codes.Unknown},
		{"the method called twice", 3, 0, "012m", codes.Internal},
		{"called twice by the last", 3, 2, "012m", codes.Internal},
		{"called twice, past the one that refused", 1, 0, "012", codes.Internal},
		{"called twice, past the last, which refused", 2, 1, "012", codes.Internal},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			trace := ""
			var all []grpc.UnaryServerInterceptor
			for i := range 3 {
				all = append(all, func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
					trace += strconv.Itoa(i)
					if i == c.refuses {
						return nil, refused
					}
					answer, err := next(ctx, r)
					if i == c.twice {
						return next(ctx, r)
					}
					return answer, err
				})
			}
			_, err := chain(all)(t.Context(), nil, nil, func(context.Context, any) (any, error) {
				trace += "m"
				return nil, nil
			})
			if trace != c.want || status.Code(err) != c.code {
				t.Errorf("went %s and ended with %v, want %s and %v", trace, err, c.want, c.code)
			}
		})
	}
}
