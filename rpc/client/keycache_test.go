package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
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

var roomy = client.CacheLimits{MaxEntries: 100, MaxAge: time.Hour}

// arnOf is the ARN of a CMK; one that begins with "b-" is tenant b's.
func arnOf(cmk string) string {
	tenant := "default"
	if strings.HasPrefix(cmk, "b-") {
		tenant = "b"
	}
	return "arn:quorumkms:kms:c:" + tenant + ":key/" + cmk
}

// vault answers as a node with CMKs does: "k1:text" is the ciphertext of text under k1.
func vault(_ context.Context, n int, request proto.Message) (proto.Message, error) {
	switch r := request.(type) {
	case *quorumkmsv1.DecryptRequest:
		cmk, text, _ := strings.Cut(string(r.GetCiphertext()), ":")
		return &quorumkmsv1.DecryptResponse{Plaintext: []byte(text), KeyId: arnOf(cmk)}, nil
	case *quorumkmsv1.BatchGenerateDataKeyRequest:
		batch := new(quorumkmsv1.BatchGenerateDataKeyResponse)
		item := r.GetItems()[0]
		for i := range item.GetCount() {
			text := fmt.Sprintf("new %d.%d", n, i)
			batch.Results = append(batch.Results, &quorumkmsv1.DataKeyResult{Result: &quorumkmsv1.DataKeyResult_DataKey{DataKey: &quorumkmsv1.GenerateDataKeyResponse{
				Plaintext: []byte(text), Ciphertext: []byte(item.GetKeyId() + ":" + text), KeyId: arnOf(item.GetKeyId()),
			}}})
		}
		return batch, nil
	case *quorumkmsv1.GenerateDataKeyRequest:
		text := fmt.Sprintf("new %d", n)
		return &quorumkmsv1.GenerateDataKeyResponse{
			Plaintext: []byte(text), Ciphertext: []byte(r.GetKeyId() + ":" + text), KeyId: arnOf(r.GetKeyId()),
		}, nil
	}
	return well(context.Background(), n, request)
}

// cached makes a cache that works.
func cached(t *testing.T, c *client.Client, limits client.CacheLimits) *client.KeyCache {
	t.Helper()
	k, err := client.NewKeyCache(c, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	working(t, k)
	return k
}

func working(t *testing.T, k *client.KeyCache) {
	t.Helper()
	eventually(t, "the cache works", func() bool { return client.Live(k) })
}

func open(t *testing.T, k *client.KeyCache, blob string) string {
	t.Helper()
	plaintext, err := k.DecryptDataKey(patient(t), []byte(blob), map[string]string{"volume": "v1"})
	if err != nil {
		t.Fatalf("%s: %v", blob, err)
	}
	return string(plaintext)
}

// wantAsked checks how many calls reached the node.
func wantAsked(t *testing.T, n *node, want int) {
	t.Helper()
	if got := len(n.asked()); got != want {
		t.Fatalf("the node was asked %d times, want %d", got, want)
	}
}

func TestKeyCache(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	k := cached(t, w.client(t, nil, n.address), roomy)
	ec := map[string]string{"volume": "v1"}
	plaintext, err := k.DecryptDataKey(patient(t), []byte("k1:a"), ec)
	if err != nil || string(plaintext) != "a" {
		t.Fatalf("%q, %v", plaintext, err)
	}
	clear(plaintext) // the caller's own
	if got := open(t, k, "k1:a"); got != "a" {
		t.Fatalf("out of the cache: %q", got)
	}
	wantAsked(t, n, 1)
	for what, ask := range map[string]func() error{
		"another ciphertext": func() error { return second(k.DecryptDataKey(patient(t), []byte("k1:b"), ec)) },
		"another context": func() error {
			return second(k.DecryptDataKey(patient(t), []byte("k1:a"), map[string]string{"volume": "v2"}))
		},
		"no context": func() error { return second(k.DecryptDataKey(patient(t), []byte("k1:a"), nil)) },
		"context that runs on": func() error {
			return second(k.DecryptDataKey(patient(t), []byte("k1:a"), map[string]string{"volumev1": ""}))
		},
		"quorum": func() error {
			return second(k.DecryptDataKey(client.WithConsistency(patient(t), client.ConsistencyQuorum), []byte("k1:a"), ec))
		},
	} {
		before := len(n.asked())
		if err := ask(); err != nil || len(n.asked()) != before+1 {
			t.Errorf("%s: %v, asked %d times", what, err, len(n.asked())-before)
		}
	}
	s := k.Stats()
	if s.Hits != 1 || s.Misses != 6 || s.Entries != 6 || s.Unwatched != nil {
		t.Errorf("stats %+v", s)
	}
}

func second[T any](_ T, err error) error { return err }

// TestForget: what the cluster restricts is forgotten, and fetched from no earlier state.
func TestForget(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	k := cached(t, w.client(t, nil, n.address), roomy)
	open(t, k, "k1:a")
	open(t, k, "k2:b")
	token := n.watched.restrict("k1", "k3")
	eventually(t, "the key is forgotten", func() bool { return k.Stats().Entries == 1 })
	open(t, k, "k2:b")
	wantAsked(t, n, 2)
	open(t, k, "k1:a")
	wantAsked(t, n, 3)
	if got := n.asked()[2].(*quorumkmsv1.DecryptRequest).GetIndexToken(); !bytes.Equal(got, token) {
		t.Errorf("fetched with token %x, want %x", got, token)
	}
	n.watched.restrict()
	eventually(t, "all is forgotten", func() bool { return k.Stats().Entries == 0 })
	if s := k.Stats(); s.Invalidations != 3 || s.Evictions != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestForeign: what the watch does not tell of is not kept.
func TestForeign(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	c := w.client(t, nil, n.address)
	k := cached(t, c, roomy)
	for range 2 {
		if _, err := k.DataKey(patient(t), "b-1", nil, 1); err != nil {
			t.Fatal(err)
		}
	}
	wantAsked(t, n, 2)
	p, err := client.NewDataKeyPool(c, "b-1", nil, client.PoolOptions{Size: 2, MaxAge: time.Hour, Watched: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // has none
	if _, err := p.Get(patient(t)); err == nil || !strings.Contains(err.Error(), "no CMK of the acting tenant") || len(client.Pooled(p)) != 0 {
		t.Errorf("%v, %d keys are there", err, len(client.Pooled(p)))
	}
}

// TestForgetWhileFetching: an answer from before a restriction is not kept, and nobody who asks
// behind it shares it.
func TestForgetWhileFetching(t *testing.T) {
	w := newWorld(t)
	begun, release := make(chan struct{}), make(chan struct{})
	n := w.watchedNode(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if n == 1 {
			close(begun)
			<-release
		}
		return vault(ctx, n, r)
	})
	k := cached(t, w.client(t, nil, n.address), roomy)
	first := make(chan error, 1)
	go func() {
		first <- second(k.DecryptDataKey(patient(t), []byte("k1:a"), map[string]string{"volume": "v1"}))
	}()
	<-begun
	open(t, k, "k2:x")
	n.watched.restrict("k2")
	eventually(t, "the cache was told", func() bool { return k.Stats().Entries == 0 })
	open(t, k, "k1:a") // a call of its own
	wantAsked(t, n, 3)
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if s := k.Stats(); s.Entries != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestUnwatched: without a watch the cache keeps nothing.
func TestUnwatched(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", vault)
	k, err := client.NewKeyCache(w.client(t, nil, n.address), roomy)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close() //nolint:errcheck // has none
	eventually(t, "the node refused", func() bool { return strings.Contains(k.Stats().Unwatched.Error(), "no watches here") })
	for range 3 {
		open(t, k, "k1:a")
	}
	wantAsked(t, n, 3)
	if s := k.Stats(); s.Misses != 3 || s.Entries != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestWatchEnds: a cache whose node ends the watch, or says nothing any more, is emptied, and
// works again at the next node.
func TestWatchEnds(t *testing.T) {
	for what, end := range map[string]func(*watched){
		"ended":  (*watched).end,
		"silent": func(w *watched) { w.quiet(true) },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			n, other := w.watchedNode(t, "n1", vault), w.watchedNode(t, "n2", vault)
			other.watched.quiet(true)
			k := cached(t, w.client(t, nil, n.address, other.address), roomy)
			open(t, k, "k1:a")
			end(n.watched)
			eventually(t, "the cache is empty", func() bool { return k.Stats().Entries == 0 && k.Stats().Unwatched != nil })
			if client.Live(k) {
				t.Error("an unwatched cache serves")
			}
			other.watched.quiet(false)
			working(t, k)
			open(t, k, "k1:a")
			open(t, k, "k1:a")
			if s := k.Stats(); s.Hits != 1 || s.Unwatched != nil {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// TestSharedCall: who asks for the same shares a call, which goes on without who asked first.
func TestSharedCall(t *testing.T) {
	w := newWorld(t)
	begun, release := make(chan struct{}), make(chan struct{})
	n := w.watchedNode(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		close(begun) // a second call would panic
		<-release
		return vault(ctx, n, r)
	})
	k := cached(t, w.client(t, nil, n.address), roomy)
	leaving, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- second(k.DecryptDataKey(leaving, []byte("k1:a"), map[string]string{"volume": "v1"})) }()
	<-begun
	var others sync.WaitGroup
	for range 8 {
		others.Go(func() {
			plaintext, err := k.DecryptDataKey(patient(t), []byte("k1:a"), map[string]string{"volume": "v1"})
			if err != nil || string(plaintext) != "a" {
				t.Errorf("%q, %v", plaintext, err)
			}
			clear(plaintext)
		})
	}
	eventually(t, "all wait", func() bool { return k.Stats().Misses == 9 })
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release)
	others.Wait()
	if got := open(t, k, "k1:a"); got != "a" {
		t.Errorf("out of the cache: %q", got)
	}
	wantAsked(t, n, 1)
}

// TestSharedRefusal: a refusal is everybody's, and is not kept. A call that nobody waits for
// ends.
func TestSharedRefusal(t *testing.T) {
	w := newWorld(t)
	var ended atomic.Bool
	n := w.watchedNode(t, "n1", func(ctx context.Context, n int, r proto.Message) (proto.Message, error) {
		if n == 1 {
			<-ctx.Done()
			ended.Store(true)
			return nil, ctx.Err()
		}
		return refuse(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED)(ctx, n, r)
	})
	k := cached(t, w.client(t, nil, n.address), roomy)
	alone, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- second(k.DecryptDataKey(alone, []byte("k1:a"), nil)) }()
	eventually(t, "it is asked", func() bool { return len(n.asked()) == 1 })
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	eventually(t, "the call ends", ended.Load)
	for i := range 2 {
		if err := second(k.DecryptDataKey(patient(t), []byte("k1:a"), nil)); !errors.Is(err, client.ErrKeyDisabled) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	wantAsked(t, n, 3)
}

func TestCacheLimits(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	c := w.client(t, nil, n.address)
	for want, l := range map[string]client.CacheLimits{
		"a cache of 0 entries":       {MaxAge: time.Hour},
		"a cache of -1 entries":      {MaxEntries: -1, MaxAge: time.Hour},
		"a cache of 1048577 entries": {MaxEntries: client.MaxCacheEntries + 1, MaxAge: time.Hour},
		"keys for 0s":                {MaxEntries: 1},
		"keys for -1ns":              {MaxEntries: 1, MaxAge: -1},
		"keys for 25h0m0s":           {MaxEntries: 1, MaxAge: 25 * time.Hour},
		"-1 uses":                    {MaxEntries: 1, MaxAge: time.Hour, MaxUses: -1},
		"4294967297 uses":            {MaxEntries: 1, MaxAge: time.Hour, MaxUses: client.MaxCacheUses + 1},
		"-1 bytes":                   {MaxEntries: 1, MaxAge: time.Hour, MaxBytes: -1},
	} {
		if _, err := client.NewKeyCache(c, l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", l, err, want)
		}
	}
	few := cached(t, c, client.CacheLimits{MaxEntries: 2, MaxAge: time.Hour})
	for _, blob := range []string{"k1:a", "k1:b", "k1:a", "k1:c", "k1:a"} { // b goes
		open(t, few, blob)
	}
	wantAsked(t, n, 3)
	if s := few.Stats(); s.Evictions != 1 || s.Entries != 2 {
		t.Errorf("stats %+v", s)
	}
	short := cached(t, c, client.CacheLimits{MaxEntries: 2, MaxAge: time.Millisecond})
	open(t, short, "k1:a")
	eventually(t, "it ages", func() bool { s := short.Stats(); return s.Entries == 0 && s.Evictions == 1 })
}

// TestDataKeyLimits: a key seals so many messages and bytes, and then another does.
func TestDataKeyLimits(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	c := w.client(t, nil, n.address)
	take := func(k *client.KeyCache, bytes int64) string {
		t.Helper()
		key, err := k.DataKey(patient(t), "k1", nil, bytes)
		if err != nil || string(key.Ciphertext) != "k1:"+string(key.Plaintext) {
			t.Fatalf("%+v, %v", key, err)
		}
		out := string(key.Plaintext)
		key.Wipe()
		return out
	}
	uses := cached(t, c, client.CacheLimits{MaxEntries: 9, MaxAge: time.Hour, MaxUses: 2})
	bytes := cached(t, c, client.CacheLimits{MaxEntries: 9, MaxAge: time.Hour, MaxBytes: 10})
	for _, row := range []struct {
		k    *client.KeyCache
		n    int64
		same bool // as the one before
	}{
		{uses, 1, false},
		{uses, math.MaxInt64, true},
		{uses, 0, false},
		{bytes, 6, false},
		{bytes, 4, true},
		{bytes, 0, true},
		{bytes, 1, false},
		{bytes, 11, false}, // a key of its own
		{bytes, math.MaxInt64, false},
	} {
		before := len(n.asked())
		take(row.k, row.n)
		if same := len(n.asked()) == before; same != row.same {
			t.Errorf("%+v: the same key: %v", row, same)
		}
	}
	if _, err := uses.DataKey(patient(t), "k1", nil, -1); err == nil {
		t.Error("a message of -1 bytes")
	}
	first, _, err := uses.GenerateDataKey(patient(t), "k1", nil)
	other, _, err2 := uses.GenerateDataKey(patient(t), "k1", nil)
	if err != nil || err2 != nil || string(first) == string(other) {
		t.Errorf("keys of their own: %q %v, %q %v", first, err, other, err2)
	}
}

// TestCacheCloses: what was kept is wiped, and closed stays closed.
func TestCacheCloses(t *testing.T) {
	w := newWorld(t)
	n := w.watchedNode(t, "n1", vault)
	c := w.client(t, nil, n.address)
	k := cached(t, c, roomy)
	other := cached(t, c, roomy) // goes on with the same watch
	open(t, k, "k1:secret")
	kept := client.Kept(k)
	if len(kept) != 1 || string(kept[0]) != "secret" {
		t.Fatalf("kept %q", kept)
	}
	for range 2 {
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(kept[0], make([]byte, 6)) {
		t.Errorf("not wiped: %q", kept[0])
	}
	if _, err := k.DecryptDataKey(patient(t), []byte("k1:secret"), nil); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
	if s := k.Stats(); !errors.Is(s.Unwatched, client.ErrClosed) || s.Entries != 0 {
		t.Errorf("stats %+v", s)
	}
	open(t, other, "k1:a")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if other.Stats().Entries != 0 {
		t.Error("the client is closed and its cache is not empty")
	}
	if _, err := other.DecryptDataKey(patient(t), []byte("k1:a"), nil); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
	if _, err := client.NewKeyCache(c, roomy); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
}
