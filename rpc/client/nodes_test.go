package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// often makes a client look at the nodes after nearly every call.
func often(c *client.Config) { c.Refresh = time.Millisecond }

// callUntil makes calls, none of which may fail, until a condition holds.
func callUntil(t *testing.T, c *client.Client, what string, ok func() bool) {
	t.Helper()
	ctx := patient(t)
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("waited in vain until %s", what)
		}
		if err := encrypt(ctx, c); err != nil {
			t.Fatalf("until %s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestAllNodesReplaced: a client goes on when all the nodes it was configured with
// are gone, and forgets those it learned of and are gone too.
func TestAllNodesReplaced(t *testing.T) {
	w := newWorld(t)
	at := w.node(t, "n0", nil)
	at.names(at)
	var tried sync.Map
	c := w.client(t, func(c *client.Config) {
		often(c)
		c.Retrying = func(address string, _ error) { tried.Store(address, true) }
	}, at.address)
	for range 2*client.MaxAddresses + 2 {
		next := w.node(t, "n1", nil)
		at.names(at, next)
		callUntil(t, c, "the client has another node", func() bool {
			at.health.SetServingStatus("crypto", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
			at.names(at, next)
			return known(c, next.address)
		})
		next.names(next)
		at.server.Stop()
		callUntil(t, c, "the next node is asked", func() bool { return len(next.asked()) > 0 })
		at = next
	}
}

// known tells whether a client has learned of an address.
func known(c *client.Client, address string) bool {
	for _, a := range client.Known(c) {
		if a == address {
			return true
		}
	}
	return false
}

// TestUnreachableNodeIsTriedLast: an address that swallows everything costs one
// attempt, not one in each call.
func TestUnreachableNodeIsTriedLast(t *testing.T) {
	w := newWorld(t)
	mute := listen(t)
	defer mute.Close() //nolint:errcheck // nothing to lose
	second := w.node(t, "n2", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if n == 3 {
			return refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)(ctx, n, m)
		}
		return well(ctx, n, m)
	})
	third := w.node(t, "n3", nil)
	failures := map[string]int{}
	c := w.client(t, func(c *client.Config) {
		c.Retrying = func(address string, _ error) { failures[address]++ }
	}, mute.Addr().String(), second.address, third.address)
	for range 20 {
		if err := encrypt(patient(t), c); err != nil {
			t.Fatal(err)
		}
	}
	if failures[mute.Addr().String()] != 1 || failures[second.address] != 1 {
		t.Errorf("failed attempts: %v, want one at each of the two nodes that failed", failures)
	}
	if len(third.asked()) == 0 {
		t.Error("the third node was never asked")
	}
}

// TestReturnsToTheFirstNode: when it is healthy again, and not before.
func TestReturnsToTheFirstNode(t *testing.T) {
	w := newWorld(t)
	var good atomic.Bool
	first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if !good.Load() {
			return refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)(ctx, n, m)
		}
		return well(ctx, n, m)
	})
	first.health.SetServingStatus("crypto", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	second := w.node(t, "n2", nil)
	c := w.client(t, often, first.address, second.address)
	callUntil(t, c, "the second node has answered often", func() bool { return len(second.asked()) > 50 })
	if n := len(first.asked()); n != 1 {
		t.Errorf("the first node was asked %d times while it was unhealthy, want 1", n)
	}
	good.Store(true)
	first.health.SetServingStatus("crypto", grpc_health_v1.HealthCheckResponse_SERVING)
	callUntil(t, c, "the client is back at the first node", func() bool { return len(first.asked()) > 10 })
	if n := len(second.asked()); n > 100_000 {
		t.Errorf("%d calls", n)
	}
}

// TestNodeWithoutCluster: another one may belong to it.
func TestNodeWithoutCluster(t *testing.T) {
	w := newWorld(t)
	none := refuse(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_NOT_INITIALIZED)
	for kind, do := range calls {
		first, second := w.node(t, "n1", none), w.node(t, "n2", nil)
		if err := do(patient(t), w.client(t, nil, first.address, second.address)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		third := w.node(t, "n3", none)
		err := do(patient(t), w.client(t, nil, first.address, third.address))
		if !errors.Is(err, client.ErrNotInitialized) || errors.Is(err, client.ErrOutcomeUnknown) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v", kind, err)
		}
		if n, m := len(first.asked()), len(third.asked()); n != 2 || m != 1 {
			t.Errorf("%s: asked %d and %d times, want 2 and 1", kind, n, m)
		}
	}
}

// TestForgottenNodeUnderCall: a call that waits at a node which the client forgets
// goes on elsewhere.
func TestForgottenNodeUnderCall(t *testing.T) {
	w := newWorld(t)
	arrived := make(chan struct{})
	second := w.node(t, "n2", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if n > 1 {
			return well(ctx, n, m)
		}
		close(arrived)
		return frozen(ctx, n, m)
	})
	first := w.node(t, "n1", func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if n == 2 {
			return nil, reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE, second.address)
		}
		return well(ctx, n, m)
	})
	c := w.client(t, func(c *client.Config) {
		often(c)
		c.Timeout = time.Hour
	}, first.address)
	if err := encrypt(patient(t), c); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // far more than the test may take
	defer cancel()
	go func() { done <- encrypt(ctx, c) }()
	<-arrived
	second.names(first)
	callUntil(t, c, "the second node is forgotten", func() bool { return !known(c, second.address) })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNewestIndexToken: of concurrent answers the newest counts, not the last.
func TestNewestIndexToken(t *testing.T) {
	token := func(cluster byte, epoch uint32, index uint64) []byte {
		b := binary.BigEndian.AppendUint32(bytes.Repeat([]byte{cluster}, 16), epoch)
		return binary.BigEndian.AppendUint64(b, index)
	}
	w := newWorld(t)
	replies := [][]byte{token(5, 1, 300), token(5, 1, 299), token(5, 2, 7), token(5, 1, 400), token(4, 0, 1), nil}
	want := [][]byte{nil, replies[0], replies[0], replies[2], replies[2], replies[4]}
	var sent [][]byte
	n := w.node(t, "n1", func(_ context.Context, n int, m proto.Message) (proto.Message, error) {
		sent = append(sent, m.(*quorumkmsv1.DescribeKeyRequest).GetIndexToken())
		return &quorumkmsv1.DescribeKeyResponse{IndexToken: replies[n-1]}, nil
	})
	c := w.client(t, nil, n.address)
	for range replies {
		if _, err := c.Keys().DescribeKey(patient(t), &quorumkmsv1.DescribeKeyRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range want {
		if !bytes.Equal(sent[i], want[i]) {
			t.Errorf("call %d sent token %x, want %x", i, sent[i], want[i])
		}
	}
}

// TestStartingNodeIsNoRefusal: a node that has no protocol to serve yet ends the
// handshake with an internal error; the call goes on until it has.
func TestStartingNodeIsNoRefusal(t *testing.T) {
	w := newWorld(t)
	var hellos atomic.Int32
	config := w.ca.ServerTLS(w.ca.Node(t, "n1"))
	starting := config.Clone()
	starting.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if hellos.Add(1) < 3 {
			return nil, errors.New("nothing is served yet")
		}
		return config, nil
	}
	n := startNode(t, starting, nil)
	if err := encrypt(patient(t), w.client(t, nil, n.address)); err != nil {
		t.Error(err)
	}
}
