package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func TestFailover(t *testing.T) {
	w := newWorld(t)
	bad := map[string]answer{
		"no leader":         refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEADER),
		"no lease":          refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE),
		"hsm unavailable":   refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_HSM_UNAVAILABLE),
		"outcome unknown":   refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN),
		"behind":            refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_BEHIND),
		"shutting down":     refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_SHUTTING_DOWN),
		"audit unavailable": refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_AUDIT_UNAVAILABLE),
		"no reason":         refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_UNSPECIFIED),
		"busy":              refuse(codes.ResourceExhausted, quorumkmsv1.Reason_REASON_BUSY),
		"frozen":            frozen,
	}
	for name, reply := range bad {
		for kind, do := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				first, second := w.node(t, "n1", reply), w.node(t, "n2", nil)
				config := shortAttempts
				if name != "frozen" {
					config = nil
				}
				c := w.client(t, config, first.address, second.address)
				for i := range 2 {
					if err := do(patient(t), c); err != nil {
						t.Fatalf("call %d: %v", i, err)
					}
				}
				a, b := first.asked(), second.asked()
				if len(a) != 1 || len(b) != 2 {
					t.Fatalf("the bad node was asked %d times, the good one %d times; want 1 and 2", len(a), len(b))
				}
				if requestID(a[0]) != requestID(b[0]) {
					t.Errorf("request ids of the attempts: %q, %q", requestID(a[0]), requestID(b[0]))
				}
				if kind == "create key" {
					checkRequestIDs(t, b)
				}
			})
		}
	}
}

// shortAttempts: long enough for a slow machine, which may repeat at worst.
func shortAttempts(c *client.Config) {
	c.Timeout, c.MutationTimeout = time.Second, time.Second
}

func checkRequestIDs(t *testing.T, requests []proto.Message) {
	t.Helper()
	seen := map[string]bool{}
	for _, r := range requests {
		id := requestID(r)
		if u, err := uuid.Parse(id); err != nil || u.Version() != 4 {
			t.Errorf("request id %q is no UUIDv4", id)
		}
		if seen[id] {
			t.Errorf("request id %s used for two calls", id)
		}
		seen[id] = true
	}
}

func TestFinalAnswersAreNotRepeated(t *testing.T) {
	w := newWorld(t)
	for name, reply := range map[string]answer{
		"invalid":      refuse(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID),
		"denied":       refuse(codes.PermissionDenied, quorumkmsv1.Reason_REASON_DENIED),
		"not found":    refuse(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND),
		"exists":       refuse(codes.AlreadyExists, quorumkmsv1.Reason_REASON_EXISTS),
		"disabled":     refuse(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED),
		"conflict":     refuse(codes.Aborted, quorumkmsv1.Reason_REASON_CONFLICT),
		"limit":        refuse(codes.ResourceExhausted, quorumkmsv1.Reason_REASON_LIMIT),
		"internal":     refuse(codes.Internal, quorumkmsv1.Reason_REASON_UNSPECIFIED),
		"unknown code": refuse(codes.Unknown, quorumkmsv1.Reason_REASON_UNSPECIFIED),
	} {
		for kind, do := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				first, second := w.node(t, "n1", reply), w.node(t, "n2", nil)
				err := do(patient(t), w.client(t, nil, first.address, second.address))
				if failure, ok := errors.AsType[*client.Error](err); !ok || failure.Address != first.address {
					t.Errorf("error %v, want that of the first node", err)
				}
				if errors.Is(err, client.ErrOutcomeUnknown) {
					t.Errorf("error %v: the outcome is known", err)
				}
				if n, m := len(first.asked()), len(second.asked()); n != 1 || m != 0 {
					t.Errorf("asked %d and %d times, want 1 and 0", n, m)
				}
			})
		}
	}
}

func TestDeadAndMuteAddresses(t *testing.T) {
	w := newWorld(t)
	mute := listen(t)  // connects, but does not even shake hands
	defer mute.Close() //nolint:errcheck // nothing to lose
	n := w.node(t, "n1", nil)
	var retried atomic.Int32
	c := w.client(t, func(c *client.Config) {
		shortAttempts(c)
		c.Retrying = func(string, error) { retried.Add(1) }
	}, deadAddress(t), mute.Addr().String(), n.address)
	for kind, do := range calls {
		if err := do(patient(t), c); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	if retried.Load() < 2 {
		t.Errorf("%d repetitions reported, want those for two addresses", retried.Load())
	}
	if got := len(n.asked()); got != 2 {
		t.Errorf("the good node was asked %d times, want 2", got)
	}
}

// TestConnectionBreaksAfterSending: the server dies with the request in its hands.
func TestConnectionBreaksAfterSending(t *testing.T) {
	w := newWorld(t)
	for kind, do := range calls {
		t.Run(kind, func(t *testing.T) {
			var first *node
			var stopping sync.WaitGroup
			defer stopping.Wait()
			first = w.node(t, "n1", func(ctx context.Context, _ int, _ proto.Message) (proto.Message, error) {
				stopping.Go(first.server.Stop)
				<-ctx.Done()
				return nil, ctx.Err()
			})
			second := w.node(t, "n2", nil)
			if err := do(patient(t), w.client(t, nil, first.address, second.address)); err != nil {
				t.Fatal(err)
			}
			a, b := first.asked(), second.asked()
			if len(a) != 1 || len(b) != 1 || requestID(a[0]) != requestID(b[0]) {
				t.Errorf("requests %v, then %v; want the same one", a, b)
			}
		})
	}
}

func TestOutcomeUnknown(t *testing.T) {
	w := newWorld(t)
	lost := status.Error(codes.Unavailable, "lost")
	for name, test := range map[string]struct {
		do    func(context.Context, *client.Client) error
		first error // then no leader, for ever
		want  bool
	}{
		"mutation may have been done":      {createKey, lost, true},
		"node does not know":               {createKey, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN), true},
		"done, but not in the audit":       {createKey, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_AUDIT_UNAVAILABLE), true},
		"mutation was not done":            {createKey, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEADER), false},
		"cryptography has none to be sure": {encrypt, lost, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := w.node(t, "n1", func(_ context.Context, n int, _ proto.Message) (proto.Message, error) {
				if n == 1 {
					return nil, test.first
				}
				return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEADER)
			})
			ctx, cancel := context.WithCancel(patient(t))
			defer cancel()
			c := w.client(t, func(c *client.Config) {
				c.Retrying = func(string, error) {
					if len(n.asked()) >= 2 {
						cancel()
					}
				}
			}, n.address)
			err := test.do(ctx, c)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, client.ErrNoLeader) {
				t.Errorf("error %v, want the cancellation and the last answer", err)
			}
			if errors.Is(err, client.ErrOutcomeUnknown) != test.want {
				t.Errorf("error %v: outcome unknown must be %t", err, test.want)
			}
			for _, r := range n.asked() {
				if requestID(r) != requestID(n.asked()[0]) {
					t.Errorf("request ids differ: %v", n.asked())
				}
			}
		})
	}
}

// TestMutationCutShort: the caller's time ends while a node works on a mutation.
func TestMutationCutShort(t *testing.T) {
	w := newWorld(t)
	for kind, do := range calls {
		ctx, cancel := context.WithCancel(patient(t))
		n := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			cancel()
			return frozen(ctx, n, m)
		})
		err := do(ctx, w.client(t, nil, n.address))
		if !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrOutcomeUnknown) != (kind == "create key") {
			t.Errorf("%s: error %v", kind, err)
		}
	}
}

func TestDeadlineIsKept(t *testing.T) {
	w := newWorld(t)
	noLease := refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)
	for name, test := range map[string]struct {
		reply answer
		want  error
	}{
		"no lease": {noLease, client.ErrNoLease},
		"frozen":   {frozen, context.DeadlineExceeded},
	} {
		for _, given := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/deadline given %t", name, given), func(t *testing.T) {
				t.Parallel()
				c := w.client(t, func(c *client.Config) { c.Timeout = time.Second },
					w.node(t, "n1", test.reply).address, w.node(t, "n2", test.reply).address)
				ctx := t.Context()
				if given {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 2*time.Second)
					defer cancel()
				}
				start := time.Now()
				err := encrypt(ctx, c)
				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, test.want) {
					t.Errorf("error %v", err)
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("a call with 2 or 3 s took %v", took)
				}
			})
		}
	}
}

// TestFrozenNodeLeavesTime: the attempt's limit is longer than the deadline.
func TestFrozenNodeLeavesTime(t *testing.T) {
	w := newWorld(t)
	c := w.client(t, func(c *client.Config) { c.Timeout = time.Hour },
		w.node(t, "n1", frozen).address, w.node(t, "n2", nil).address)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := encrypt(ctx, c); err != nil {
		t.Error(err)
	}
}

func TestBusyIsBounded(t *testing.T) {
	w := newWorld(t)
	busy := refuse(codes.ResourceExhausted, quorumkmsv1.Reason_REASON_BUSY)
	a, b := w.node(t, "n1", busy), w.node(t, "n2", busy)
	err := encrypt(patient(t), w.client(t, nil, a.address, b.address))
	if !errors.Is(err, client.ErrBusy) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want busy", err)
	}
	if n := len(a.asked()) + len(b.asked()); n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
}

func TestInitStaysAtOneNode(t *testing.T) {
	w := newWorld(t)
	other := w.node(t, "n2", nil)
	t.Run("unreachable", func(t *testing.T) {
		ctx, cancel := context.WithCancel(patient(t))
		defer cancel()
		c := w.client(t, func(c *client.Config) { c.Retrying = func(string, error) { cancel() } }, deadAddress(t), other.address)
		_, err := c.Cluster().Init(ctx, &quorumkmsv1.InitRequest{})
		if !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another node is preferred", func(t *testing.T) {
		first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			if n == 1 {
				return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)
			}
			return well(ctx, n, m)
		})
		c := w.client(t, nil, first.address, other.address)
		if err := encrypt(patient(t), c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Cluster().Init(patient(t), &quorumkmsv1.InitRequest{}); err != nil {
			t.Fatal(err)
		}
	})
	for _, m := range other.asked() {
		if _, ok := m.(*quorumkmsv1.InitRequest); ok {
			t.Error("Init reached another node")
		}
	}
}

func TestLearnedAddresses(t *testing.T) {
	w := newWorld(t)
	for _, fixed := range []bool{false, true} {
		t.Run(fmt.Sprintf("fixed %t", fixed), func(t *testing.T) {
			other := w.node(t, "n2", nil)
			hints := []string{"", "nonsense", "host:0", "host:99999", "unix:/tmp/x", " " + other.address + " "}
			first := w.node(t, "n1", refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, hints...))
			ctx, cancel := context.WithCancel(patient(t))
			defer cancel()
			c := w.client(t, func(c *client.Config) {
				c.Fixed = fixed
				c.Retrying = func(address string, _ error) {
					if address != first.address {
						t.Errorf("tried %s", address)
					}
					if len(first.asked()) >= 3 {
						cancel()
					}
				}
			}, first.address)
			err := encrypt(ctx, c)
			if (err != nil) != fixed {
				t.Errorf("error %v", err)
			}
			if fixed && len(other.asked()) != 0 {
				t.Error("an address that was not configured was used")
			}
		})
	}
	t.Run("after the configured ones that have not failed", func(t *testing.T) {
		noLease := func(nodes ...string) error {
			return reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, nodes...)
		}
		learned := w.node(t, "n4", nil)
		first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			if n == 1 {
				return nil, noLease(learned.address)
			}
			return well(ctx, n, m)
		})
		second := w.node(t, "n2", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			if n > 1 {
				return nil, noLease()
			}
			return well(ctx, n, m)
		})
		third := w.node(t, "n3", nil)
		c := w.client(t, nil, first.address, second.address, third.address)
		for range 2 {
			if err := encrypt(patient(t), c); err != nil {
				t.Fatal(err)
			}
		}
		if len(first.asked()) != 1 || len(second.asked()) != 2 || len(third.asked()) != 1 || len(learned.asked()) != 0 {
			t.Errorf("asked: first %d, second %d, third %d, learned %d", len(first.asked()), len(second.asked()), len(third.asked()), len(learned.asked()))
		}
	})
	t.Run("not a node", func(t *testing.T) {
		impostor := startNode(t, w.ca.ServerTLS(w.cert), nil)
		first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
			if n < 3 {
				return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, impostor.address)
			}
			return well(ctx, n, m)
		})
		if err := encrypt(patient(t), w.client(t, nil, first.address)); err != nil {
			t.Error(err)
		}
		if len(impostor.asked()) != 0 {
			t.Error("a server that is no node got the request")
		}
	})
}

func TestIndexToken(t *testing.T) {
	w := newWorld(t)
	var sent [][]byte
	replies := [][]byte{[]byte("t1"), nil, []byte("t2"), []byte("t3"), []byte("t4")}
	n := w.node(t, "n1", func(_ context.Context, n int, m proto.Message) (proto.Message, error) {
		sent = append(sent, m.(*quorumkmsv1.DescribeKeyRequest).GetIndexToken())
		if n == 4 {
			return nil, reasonError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND)
		}
		return &quorumkmsv1.DescribeKeyResponse{IndexToken: replies[n-1]}, nil
	})
	c := w.client(t, nil, n.address)
	for i, given := range [][]byte{nil, nil, nil, nil, []byte("own")} {
		r, err := c.Keys().DescribeKey(patient(t), &quorumkmsv1.DescribeKeyRequest{IndexToken: given})
		if (err != nil) != (i == 3) {
			t.Fatal(err)
		}
		clear(r.GetIndexToken()) // the caller's; not the client's
	}
	for i, want := range []string{"", "t1", "t1", "t2", "own"} {
		if !bytes.Equal(sent[i], []byte(want)) {
			t.Errorf("call %d sent token %q, want %q", i, sent[i], want)
		}
	}
}

func TestRequestIsCompletedNotChanged(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	c := w.client(t, func(c *client.Config) { c.Tenant = "blue" }, n.address)
	given := []*quorumkmsv1.CreateKeyRequest{
		{Description: "d", Tags: []*quorumkmsv1.Tag{{Key: "a", Value: "b"}}},
		{Tenant: "green", RequestId: "mine"},
	}
	for _, m := range given {
		before := proto.Clone(m)
		if _, err := c.Keys().CreateKey(patient(t), m); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(m, before) {
			t.Errorf("request changed from %v to %v", before, m)
		}
	}
	got := n.asked()
	checkRequestIDs(t, got[:1])
	want := proto.CloneOf(given[0])
	want.Tenant, want.RequestId = "blue", requestID(got[0])
	if !proto.Equal(got[0], want) || !proto.Equal(got[1], given[1]) {
		t.Errorf("sent %v", got)
	}
}

func TestCallsAtOnceWhileNodesFail(t *testing.T) {
	w := newWorld(t)
	flaky := func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if n%3 == 0 {
			return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)
		}
		return well(ctx, n, m)
	}
	c := w.client(t, nil, deadAddress(t), w.node(t, "n1", flaky).address, w.node(t, "n2", flaky).address)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for range 8 {
				if err := errors.Join(encrypt(patient(t), c), createKey(patient(t), c)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestClose(t *testing.T) {
	w := newWorld(t)
	var c *client.Client
	var closing sync.WaitGroup
	n := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		closing.Go(func() {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return frozen(ctx, n, m)
	})
	c = w.client(t, nil, n.address)
	if err := encrypt(patient(t), c); !errors.Is(err, client.ErrClosed) {
		t.Errorf("call under way: %v, want ErrClosed", err)
	}
	closing.Wait()
	if err := encrypt(patient(t), c); !errors.Is(err, client.ErrClosed) {
		t.Errorf("later call: %v, want ErrClosed", err)
	}
}
