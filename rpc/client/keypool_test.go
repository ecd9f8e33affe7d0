package client_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var small = client.PoolOptions{Size: 4, LowWater: 2, MaxAge: time.Hour}

func pooled(t *testing.T, c *client.Client, o client.PoolOptions) *client.DataKeyPool {
	t.Helper()
	p, err := client.NewDataKeyPool(c, "k1", map[string]string{"bucket": "b"}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// settled waits until nothing is fetched any more, and is how many keys there are.
func settled(t *testing.T, p *client.DataKeyPool) (size int) {
	t.Helper()
	eventually(t, "the pool is filled", func() bool {
		size = p.Stats().Size
		return client.PoolIdle(p) && size > small.LowWater
	})
	return size
}

// TestPool: each key is handed out once, and there are never too many.
func TestPool(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", vault)
	p := pooled(t, w.client(t, nil, n.address), small)
	settled(t, p)
	seen := sync.Map{}
	var takers sync.WaitGroup
	for range 8 {
		takers.Go(func() {
			for range 10 {
				k, err := p.Get(patient(t))
				if err != nil || string(k.Ciphertext) != "k1:"+string(k.Plaintext) {
					t.Errorf("%+v, %v", k, err)
				}
				if _, again := seen.LoadOrStore(string(k.Plaintext), true); again {
					t.Errorf("%s was handed out twice", k.Plaintext)
				}
				if s := p.Stats().Size; s > 4 {
					t.Errorf("%d keys are there", s)
				}
				k.Wipe()
			}
		})
	}
	takers.Wait()
	if s := p.Stats(); s.Hits+s.Misses != 80 || s.Wiped != 0 || s.Failed != nil {
		t.Errorf("stats %+v", s)
	}
	for _, r := range n.asked() {
		g := r.(*quorumkmsv1.BatchGenerateDataKeyRequest).GetItems()[0]
		if g.GetKeyId() != "k1" || len(g.GetEncryptionContext()) != 1 || g.GetEncryptionContext()[0].GetValue() != "b" {
			t.Errorf("asked for %+v", g)
		}
	}
	if _, _, err := p.GenerateDataKey(patient(t), "k1", map[string]string{"bucket": "b"}); err != nil {
		t.Error(err)
	}
	for key, ec := range map[string]map[string]string{"k2": {"bucket": "b"}, "k1": {"bucket": "c"}} {
		if _, _, err := p.GenerateDataKey(patient(t), key, ec); err == nil || !strings.Contains(err.Error(), "the pool is of k1") {
			t.Errorf("%s, %v: %v", key, ec, err)
		}
	}
}

// TestPoolRefills: in the background, at the mark, one at a time.
func TestPoolRefills(t *testing.T) {
	w := newWorld(t)
	var under, most atomic.Int32
	n := w.node(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		now := under.Add(1)
		defer under.Add(-1)
		if now > most.Load() {
			most.Store(now)
		}
		return vault(ctx, n, r)
	})
	p := pooled(t, w.client(t, nil, n.address), small)
	settled(t, p)
	take := func() {
		t.Helper()
		k, err := p.Get(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		k.Wipe()
	}
	take()
	if s := p.Stats(); s.Refills != 1 || s.Size != 3 {
		t.Errorf("above the mark: %+v", s)
	}
	take()
	if size := settled(t, p); size != 4 {
		t.Errorf("%d keys after a refill", size)
	}
	if s := p.Stats(); s.Refills != 2 || most.Load() != 1 {
		t.Errorf("at the mark: %+v, %d calls at once", s, most.Load())
	}
}

// TestPoolFails: who finds the pool empty is told why; who does not is served.
func TestPoolFails(t *testing.T) {
	w := newWorld(t)
	var off atomic.Bool
	n := w.node(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if off.Load() {
			return refuse(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED)(ctx, n, r)
		}
		return vault(ctx, n, r)
	})
	p := pooled(t, w.client(t, nil, n.address), small)
	settled(t, p)
	off.Store(true)
	for range 4 {
		if _, err := p.Get(patient(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Get(patient(t)); !errors.Is(err, client.ErrKeyDisabled) || !errors.Is(p.Stats().Failed, client.ErrKeyDisabled) {
		t.Errorf("%v, stats %+v", err, p.Stats())
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	off.Store(false)
	eventually(t, "it works again", func() bool {
		_, err := p.Get(patient(t))
		return err == nil
	})
	settled(t, p)
	if _, err := p.Get(gone); err != nil { // nothing to wait for
		t.Error(err)
	}
}

// TestPoolWipes: what nobody got, of age and at the end.
func TestPoolWipes(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", vault)
	c := w.client(t, nil, n.address)
	p := pooled(t, c, small)
	settled(t, p)
	held := client.Pooled(p)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range held {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("not wiped: %q", b)
		}
	}
	if _, err := p.Get(patient(t)); !errors.Is(err, client.ErrClosed) || p.Stats().Wiped != 4 {
		t.Errorf("%v, %+v", err, p.Stats())
	}
	short := pooled(t, c, client.PoolOptions{Size: 1, MaxAge: 10 * time.Millisecond})
	eventually(t, "it ages", func() bool { s := short.Stats(); return s.Wiped > 0 && s.Size == 0 })
	if _, err := short.Get(patient(t)); err != nil {
		t.Error(err)
	}
}

// TestPoolCloses: while it waits for a node, and with its client.
func TestPoolCloses(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", frozen)
	c := w.client(t, nil, n.address)
	p := pooled(t, c, small)
	waiting := make(chan error, 1)
	go func() { waiting <- second(p.Get(patient(t))) }()
	eventually(t, "both wait", func() bool { return p.Stats().Misses == 1 && len(n.asked()) == 1 })
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Get(hurried); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := pooled(t, c, small).Get(patient(t)); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
	watched := small
	watched.Watched = true
	if _, err := client.NewDataKeyPool(c, "k1", nil, watched); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
}

// TestPoolWatched: a watched pool is emptied when its key is restricted, and keeps nothing
// while it is not watched.
func TestPoolWatched(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	o := small
	o.Watched = true
	p := pooled(t, w.client(t, nil, n.address), o)
	get := func() string {
		t.Helper()
		k, err := p.Get(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		return string(k.Plaintext)
	}
	get()
	eventually(t, "it works", func() bool { return client.PoolLive(p) })
	get()
	held := uint64(settled(t, p))
	n.watched.restrict("k9") // not this one
	n.watched.restrict("k1")
	eventually(t, "it is emptied", func() bool { return p.Stats().Size == 0 && p.Stats().Wiped == held })
	get()
	held += uint64(settled(t, p))
	n.watched.end()
	eventually(t, "it is emptied again", func() bool { return p.Stats().Size == 0 && p.Stats().Wiped == held })
	asked := len(n.asked())
	get()
	if len(n.asked()) != asked+1 || p.Stats().Size != 0 {
		t.Errorf("unwatched: asked %d times, stats %+v", len(n.asked())-asked, p.Stats())
	}
}

func TestPoolOptions(t *testing.T) {
	w := newWorld(t)
	c := w.client(t, nil, deadAddress(t))
	for want, o := range map[string]client.PoolOptions{
		"a pool of 0 data keys":    {MaxAge: time.Hour},
		"a pool of -1 data keys":   {Size: -1, MaxAge: time.Hour},
		"a pool of 4097 data keys": {Size: client.MaxPoolSize + 1, MaxAge: time.Hour},
		"low-water mark of -1":     {Size: 2, LowWater: -1, MaxAge: time.Hour},
		"low-water mark of 2":      {Size: 2, LowWater: 2, MaxAge: time.Hour},
		"data keys for 0s":         {Size: 2},
		"data keys for -1ns":       {Size: 2, MaxAge: -1},
		"data keys for 1h0m1s":     {Size: 2, MaxAge: time.Hour + time.Second},
	} {
		if _, err := client.NewDataKeyPool(c, "k1", nil, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}
