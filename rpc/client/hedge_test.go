package client_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// calledList keeps what Config.Called was told.
type calledList struct {
	mu   sync.Mutex
	list []client.Called
}

func (c *calledList) add(x client.Called) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, x)
}

func (c *calledList) last() client.Called {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list[len(c.list)-1]
}

// hedging are two nodes, the first of which stops answering when it is told to, and a client
// that knows how long calls take.
func hedging(t *testing.T, second answer) (c *client.Client, calls *calledList, stop *atomic.Bool, one, two *node) {
	w := newWorld(t)
	stop, calls = new(atomic.Bool), new(calledList)
	one = w.node(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if stop.Load() {
			return frozen(ctx, n, r)
		}
		return well(ctx, n, r)
	})
	two = w.node(t, "n2", second)
	c = w.client(t, func(c *client.Config) { c.Hedge, c.Called, c.Timeout = true, calls.add, time.Minute }, one.address, two.address)
	for range client.HedgeWindow {
		if err := encrypt(patient(t), c); err != nil {
			t.Fatal(err)
		}
	}
	return c, calls, stop, one, two
}

func TestHedge(t *testing.T) {
	c, calls, stop, one, two := hedging(t, nil)
	stop.Store(true)
	ciphertext, err := c.Encrypt(patient(t), "k1", []byte("late"), nil)
	if err != nil || string(ciphertext) != "sealed late" {
		t.Fatalf("%q, %v", ciphertext, err)
	}
	last := calls.last()
	if last.Address != two.address || !last.Hedged || !last.HedgeWon || last.Attempts != 2 || last.Err != nil || last.Duration <= 0 {
		t.Errorf("called: %+v", last)
	}
	if last.Method != quorumkmsv1.CryptoService_Encrypt_FullMethodName {
		t.Errorf("method %s", last.Method)
	}
	stop.Store(false)
	if err := encrypt(patient(t), c); err != nil || calls.last().Address != one.address {
		t.Errorf("%v: the node that was late is not in use any more: %+v", err, calls.last())
	}
}

// TestHedgeNot: mutations, and methods whose time is not known, wait for their one node.
func TestHedgeNot(t *testing.T) {
	c, calls, stop, _, two := hedging(t, nil)
	stop.Store(true)
	for what, call := range map[string]func(context.Context, *client.Client) error{
		"a mutation": createKey,
		"a method that was not called yet": func(ctx context.Context, c *client.Client) error {
			_, err := c.Decrypt(ctx, []byte("x"), nil)
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		asked := len(two.asked())
		go func() { done <- call(ctx, c) }()
		select {
		case err := <-done:
			t.Errorf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond): // a wrong second attempt would need far less
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || calls.last().Hedged {
			t.Errorf("%s: %v, %+v", what, err, calls.last())
		}
		if len(two.asked()) != asked {
			t.Errorf("%s was sent to a second node", what)
		}
	}
}

// TestHedgeRefused: what a node refuses for good is refused, whichever node it is.
func TestHedgeRefused(t *testing.T) {
	c, calls, stop, _, two := hedging(t, refuse(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED))
	stop.Store(true)
	if err := encrypt(patient(t), c); !errors.Is(err, client.ErrKeyDisabled) {
		t.Fatal(err)
	}
	if last := calls.last(); last.Address != two.address || !last.Hedged || !errors.Is(last.Err, client.ErrKeyDisabled) {
		t.Errorf("called: %+v", last)
	}
}

// TestHedgeFails: where the second node cannot, the first is waited for.
func TestHedgeFails(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var slow atomic.Bool
	one := w.node(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if slow.Load() {
			<-release
		}
		return well(ctx, n, r)
	})
	two := w.node(t, "n2", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if !slow.Load() {
			return well(ctx, n, r)
		}
		defer close(release) // a second request would panic
		return refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)(ctx, n, r)
	})
	calls := new(calledList)
	c := w.client(t, func(c *client.Config) { c.Hedge, c.Called, c.Timeout = true, calls.add, time.Minute }, one.address, two.address)
	for range client.HedgeWindow {
		if err := encrypt(patient(t), c); err != nil {
			t.Fatal(err)
		}
	}
	slow.Store(true)
	if err := encrypt(patient(t), c); err != nil {
		t.Fatal(err)
	}
	if last := calls.last(); last.Address != one.address || !last.Hedged || last.HedgeWon {
		t.Errorf("called: %+v", last)
	}
}

// TestHedgeBudget: no more than a share of the calls is sent twice.
func TestHedgeBudget(t *testing.T) {
	c, _, stop, _, two := hedging(t, nil)
	stop.Store(true)
	var calls sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	const many = 200
	before := len(two.asked())
	for range many {
		calls.Go(func() { _ = encrypt(ctx, c) })
	}
	eventually(t, "some are hedged", func() bool { return len(two.asked()) > before })
	cancel()
	calls.Wait()
	if n := len(two.asked()) - before; n > 5+many/20 {
		t.Errorf("%d of %d were hedged", n, many)
	}
}

// TestCalled: each call that ended is told of, with how it went.
func TestCalled(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	calls := new(calledList)
	dead := deadAddress(t)
	c := w.client(t, func(c *client.Config) { c.Called = calls.add }, dead, n.address)
	if err := encrypt(patient(t), c); err != nil {
		t.Fatal(err)
	}
	if last := calls.last(); last.Address != n.address || last.Attempts != 2 || last.Err != nil || last.Hedged {
		t.Errorf("called: %+v", last)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := encrypt(gone, c); err == nil || !errors.Is(calls.last().Err, context.Canceled) {
		t.Errorf("%v, called: %+v", err, calls.last())
	}
}
