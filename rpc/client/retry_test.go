package client_test

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// limited is the refusal of a caller that asks too often; without a pause below zero.
func limited(pause time.Duration) error {
	info := &errdetails.ErrorInfo{Domain: "quorumkms", Reason: "RATE_LIMITED"}
	if pause >= 0 {
		info.Metadata = map[string]string{"retry_after_ms": strconv.FormatInt(pause.Milliseconds(), 10)}
	}
	s, err := status.New(codes.ResourceExhausted, "too many calls").WithDetails(info)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// TestRateLimitIsWaitedOut: at the same node, with the same request.
func TestRateLimitIsWaitedOut(t *testing.T) {
	w := newWorld(t)
	for name, asked := range map[string]time.Duration{"a pause": 200 * time.Millisecond, "no pause": -1} {
		for kind, do := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
					if n <= 2 {
						return nil, limited(asked)
					}
					return well(ctx, n, m)
				})
				second := w.node(t, "n2", nil)
				var told atomic.Int32
				c := w.client(t, func(c *client.Config) {
					c.Retrying = func(string, error) { told.Add(1) }
				}, first.address, second.address)
				start := time.Now()
				if err := do(patient(t), c); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took < 2*asked {
					t.Errorf("it took %v, less than both pauses", took)
				}
				a := first.asked()
				if len(a) != 3 || len(second.asked()) != 0 || told.Load() != 2 {
					t.Fatalf("asked %d and %d times, told %d times; want 3, 0 and 2", len(a), len(second.asked()), told.Load())
				}
				for _, m := range a {
					if requestID(m) != requestID(a[0]) {
						t.Errorf("request ids differ: %v", a)
					}
				}
			})
		}
	}
}

func TestRateLimitIsBounded(t *testing.T) {
	w := newWorld(t)
	t.Run("by patience", func(t *testing.T) {
		n := w.node(t, "n1", refuseWith(limited(time.Millisecond)))
		err := createKey(patient(t), w.client(t, nil, n.address))
		failure, ok := errors.AsType[*client.Error](err)
		if !ok || !errors.Is(err, client.ErrRateLimited) || errors.Is(err, client.ErrOutcomeUnknown) || failure.RetryAfter != time.Millisecond {
			t.Errorf("error %v", err)
		}
		if got := len(n.asked()); got != 5 {
			t.Errorf("asked %d times, want 5", got)
		}
	})
	t.Run("by the call's time", func(t *testing.T) {
		n := w.node(t, "n1", refuseWith(limited(2*time.Minute)))
		err := createKey(patient(t), w.client(t, nil, n.address)) // it has a minute
		if !errors.Is(err, client.ErrRateLimited) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that of the node, at once", err)
		}
		if got := len(n.asked()); got != 1 {
			t.Errorf("asked %d times, want 1", got)
		}
	})
	t.Run("an earlier attempt may have been done", func(t *testing.T) {
		n := w.node(t, "n1", func(_ context.Context, n int, _ proto.Message) (proto.Message, error) {
			if n == 1 {
				return nil, status.Error(codes.Unavailable, "lost")
			}
			return nil, limited(2 * time.Minute)
		})
		err := createKey(patient(t), w.client(t, nil, n.address))
		if !errors.Is(err, client.ErrRateLimited) || !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("error %v", err)
		}
	})
}

// TestMutationsOfEveryServiceAreRepeated: with one request id.
func TestMutationsOfEveryServiceAreRepeated(t *testing.T) {
	w := newWorld(t)
	for name, do := range map[string]func(context.Context, *client.Client) error{
		"create grant": func(ctx context.Context, c *client.Client) error {
			_, err := c.Grants().CreateGrant(ctx, &quorumkmsv1.CreateGrantRequest{})
			return err
		},
		"put policy": func(ctx context.Context, c *client.Client) error {
			_, err := c.Policies().PutPolicy(ctx, &quorumkmsv1.PutPolicyRequest{})
			return err
		},
		"disable principal": func(ctx context.Context, c *client.Client) error {
			_, err := c.Tenants().DisablePrincipal(ctx, &quorumkmsv1.DisablePrincipalRequest{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := w.node(t, "n1", refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN))
			second := w.node(t, "n2", nil)
			c := w.client(t, func(c *client.Config) { c.Tenant = "blue" }, first.address, second.address)
			if err := do(patient(t), c); err != nil {
				t.Fatal(err)
			}
			a, b := first.asked(), second.asked()
			if len(a) != 1 || len(b) != 1 || requestID(a[0]) != requestID(b[0]) {
				t.Fatalf("requests %v, then %v; want the same one", a, b)
			}
			checkRequestIDs(t, b)
			if r, ok := b[0].(interface{ GetTenant() string }); !ok || r.GetTenant() != "blue" {
				t.Errorf("the request names no tenant: %v", b[0])
			}
		})
	}
}

// reading are the names of calls without effect.
var reading = regexp.MustCompile("^(Describe|List|Get|Validate|Explain)")

// TestRequestsSayWhatTheyAre: by the request id the client knows a mutation, and tenant
// and index token are where it looks for them.
func TestRequestsSayWhatTheyAre(t *testing.T) {
	for _, file := range []protoreflect.FileDescriptor{
		quorumkmsv1.File_quorumkms_v1_key_proto, quorumkmsv1.File_quorumkms_v1_grant_proto,
		quorumkmsv1.File_quorumkms_v1_policy_proto, quorumkmsv1.File_quorumkms_v1_tenant_proto,
	} {
		methods := file.Services().Get(0).Methods()
		for i := range methods.Len() {
			m := methods.Get(i)
			fields := m.Input().Fields()
			is := func(name protoreflect.Name, kind protoreflect.Kind) bool {
				f := fields.ByName(name)
				return f != nil && f.Kind() == kind && !f.IsList()
			}
			mutation := !reading.MatchString(string(m.Name()))
			if is("request_id", protoreflect.StringKind) != mutation || is("dry_run", protoreflect.BoolKind) != mutation {
				t.Errorf("%s: a request id and a dry run are what mutations have", m.FullName())
			}
			if !is("tenant", protoreflect.StringKind) || !is("index_token", protoreflect.BytesKind) {
				t.Errorf("%s: no tenant or no index token", m.FullName())
			}
			if f := m.Output().Fields().ByName("index_token"); f == nil || f.Kind() != protoreflect.BytesKind {
				t.Errorf("%s: the answer has no index token", m.FullName())
			}
		}
	}
}
