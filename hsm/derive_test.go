package hsm_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/quorumkms/quorumkms/hsm"
	"pgregory.net/rapid"
)

// result is what one Derive returned.
type result struct {
	keys hsm.MessageKeys
	err  error
}

// gate holds the first HSM call back, so that messages queue behind it.
type gate struct {
	open chan struct{}
	used atomic.Bool
}

func newGate(fake *fakeHSM) *gate {
	g := &gate{open: make(chan struct{})}
	fake.onCall = func(context.Context, []byte) error {
		if !g.used.Swap(true) {
			<-g.open
		}
		return nil
	}
	return g
}

// start runs Derive of message n; the result can be read when the bubble is idle.
func start(ctx context.Context, k *hsm.Keyring, ref hsm.Ref, n int, use hsm.Use) *result {
	r := &result{err: errors.New("still running")}
	go func() { r.keys, r.err = k.Derive(ctx, ref, testInput(n), use) }()
	return r
}

// behindGate starts one message, which hangs in its call, and then queues the
// uses behind it, in that order. It returns with everything queued.
func behindGate(ctx context.Context, k *hsm.Keyring, uses ...hsm.Use) (first *result, queued []*result) {
	first = start(ctx, k, testRef(1), -1, hsm.Seal)
	synctest.Wait()
	for i, use := range uses {
		queued = append(queued, start(ctx, k, testRef(1), i, use))
		synctest.Wait()
	}
	return first, queued
}

func TestDeriveEqualsReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fake := &fakeHSM{}
		keys := rapid.IntRange(1, 5).Draw(rt, "keys")
		maxKeys := rapid.IntRange(1, 4).Draw(rt, "maxKeys")
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{MaxKeys: maxKeys})
		type message struct {
			ref hsm.Ref
			in  hsm.MessageInput
			use hsm.Use
		}
		messages := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) message {
			m := message{
				ref: testRef(byte(rapid.IntRange(1, keys).Draw(rt, "key"))),
				use: rapid.SampledFrom([]hsm.Use{hsm.Seal, hsm.Open}).Draw(rt, "use"),
			}
			copy(m.in.Nonce[:], rapid.SliceOfN(rapid.Byte(), 24, 24).Draw(rt, "nonce"))
			copy(m.in.T[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "t"))
			return m
		}), 1, 100).Draw(rt, "messages")
		results := make([]result, len(messages))
		var wg sync.WaitGroup
		for i, m := range messages {
			wg.Go(func() { results[i].keys, results[i].err = k.Derive(context.Background(), m.ref, m.in, m.use) })
		}
		wg.Wait()
		for i, m := range messages {
			if results[i].err != nil {
				rt.Fatal(results[i].err)
			}
			if results[i].keys != reference(t, m.ref.Token, m.in) {
				rt.Fatalf("message %d: wrong keys", i)
			}
		}
		if most := fake.openMost.Load(); most > int64(maxKeys) {
			rt.Fatalf("%d keys open at once, limit %d", most, maxKeys)
		}
		k.Close()
		if n := fake.openNow.Load(); n != 0 {
			rt.Fatalf("%d keys open after Close", n)
		}
	})
}

func TestQueuedMessagesShareCalls(t *testing.T) {
	for _, tc := range []struct {
		name  string
		uses  []hsm.Use
		sizes []int
	}{
		{"none", nil, []int{9}},
		{"one", []hsm.Use{hsm.Open}, []int{9, 5}},
		{"full of open", slices.Repeat([]hsm.Use{hsm.Open}, 63), []int{9, 253}},
		{"one open more", slices.Repeat([]hsm.Use{hsm.Open}, 64), []int{9, 253, 5}},
		{"full of seal", slices.Repeat([]hsm.Use{hsm.Seal}, 31), []int{9, 249}},
		{"one seal more", slices.Repeat([]hsm.Use{hsm.Seal}, 32), []int{9, 249, 9}},
		{"mixed", slices.Repeat([]hsm.Use{hsm.Seal, hsm.Open}, 30), []int{9, 253, 109}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := &fakeHSM{}
				g := newGate(fake)
				k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
				first, queued := behindGate(t.Context(), k, tc.uses...)
				close(g.open)
				synctest.Wait()
				if first.err != nil || first.keys != reference(t, testRef(1).Token, testInput(-1)) {
					t.Errorf("first message: wrong keys, %v", first.err)
				}
				for i, r := range queued {
					if r.err != nil || r.keys != reference(t, testRef(1).Token, testInput(i)) {
						t.Errorf("message %d: wrong keys, %v", i, r.err)
					}
				}
				if !slices.Equal(fake.sizes, tc.sizes) {
					t.Errorf("calls of %v blocks, want %v", fake.sizes, tc.sizes)
				}
				s := k.Stats()
				if s.Calls != uint64(len(tc.sizes)) || s.Messages != uint64(1+len(tc.uses)) || s.Loads != 1 {
					t.Errorf("stats %+v", s)
				}
				k.Close()
			})
		})
	}
}

// swap exchanges n blocks from i with n blocks from j.
func swap(b []byte, i, j, n int) {
	for at := range n * hsm.BlockSize {
		x, y := i*hsm.BlockSize+at, j*hsm.BlockSize+at
		b[x], b[y] = b[y], b[x]
	}
}

// fault is something that can go wrong with the answers of a call.
type fault struct {
	name    string
	corrupt func(dst []byte)
}

// faults are those for a call of n messages to seal: 1 + 8n blocks.
func faults(n int) []fault {
	blocks := 8 * n // behind the zero block
	all := []fault{
		{"another key", func(dst []byte) {
			for i := range dst {
				dst[i] ^= 0x5a
			}
		}},
		{"nothing written", func(dst []byte) { clear(dst) }},
		{"noise", func(dst []byte) { _, _ = rand.Read(dst) }}, // never fails
		{"noise behind the zero block", func(dst []byte) { _, _ = rand.Read(dst[hsm.BlockSize:]) }},
		{"one answer for everything", func(dst []byte) {
			for i := hsm.BlockSize; i < len(dst); i += hsm.BlockSize {
				copy(dst[i:], dst[:hsm.BlockSize])
			}
		}},
		{"reversed", func(dst []byte) {
			for i := range blocks / 2 {
				swap(dst, 1+i, blocks-i, 1)
			}
		}},
	}
	for shift := 1; shift < blocks; shift++ {
		all = append(all, fault{fmt.Sprintf("shifted by %d", shift), func(dst []byte) {
			rest, by := dst[hsm.BlockSize:], shift*hsm.BlockSize
			copy(rest, append(slices.Clone(rest[by:]), rest[:by]...))
		}})
	}
	for unit := 1; unit <= blocks/2; unit++ {
		for offset := 1; offset <= unit && offset+2*unit <= 1+blocks; offset++ {
			all = append(all, fault{fmt.Sprintf("neighbours of %d from %d", unit, offset), func(dst []byte) {
				for i := offset; i+2*unit <= 1+blocks; i += 2 * unit {
					swap(dst, i, i+unit, unit)
				}
			}})
		}
	}
	return all
}

// A call that goes wrong gives nobody any keys, and the key is loaded anew for the
// next message.
func TestWrongAnswersAreCaught(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 7} {
		for _, f := range faults(n) {
			t.Run(fmt.Sprintf("%d messages/%s", n, f.name), func(t *testing.T) {
				checkCaught(t, slices.Repeat([]hsm.Use{hsm.Seal}, n), f.corrupt)
			})
		}
	}
}

// Every single bit of a call with sealed messages counts; so does every swap of
// two blocks in it.
func TestAnyFlipOrSwapIsCaught(t *testing.T) {
	uses := slices.Repeat([]hsm.Use{hsm.Seal}, 3)
	blocks := 1 + 8*len(uses)
	for i := range blocks {
		checkCaught(t, uses, func(dst []byte) { dst[i*hsm.BlockSize+i%16] ^= 1 << (i % 8) })
		for j := range i {
			checkCaught(t, uses, func(dst []byte) {
				before := slices.Clone(dst)
				swap(dst, i, j, 1)
				if slices.Equal(before, dst) {
					dst[0] ^= 1 // the two copies of one block: swapping them changes nothing
				}
			})
		}
	}
}

// checkCaught runs one call with these messages and a fault.
func checkCaught(t *testing.T, uses []hsm.Use, corrupt func(dst []byte)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		g := newGate(fake)
		calls := 0
		fake.corrupt = func(dst []byte) {
			if calls++; calls == 2 { // the one behind the gate
				corrupt(dst)
			}
		}
		var doubts atomic.Int64
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{Doubt: func(context.Context) error { doubts.Add(1); return nil }})
		defer k.Close()
		_, queued := behindGate(t.Context(), k, uses...)
		close(g.open)
		synctest.Wait()
		if doubts.Load() == 0 || k.Stats().Wrong == 0 {
			t.Fatalf("the token is doubted %d times, %d wrong answers are counted", doubts.Load(), k.Stats().Wrong)
		}
		for i, r := range queued {
			if !errors.Is(r.err, hsm.ErrWrongAnswer) || r.keys != (hsm.MessageKeys{}) {
				t.Fatalf("message %d: error %v, keys returned %v", i, r.err, r.keys != hsm.MessageKeys{})
			}
		}
		if n := fake.openNow.Load(); n != 0 {
			t.Fatalf("%d keys still loaded", n)
		}
		again := start(t.Context(), k, testRef(1), 5, hsm.Seal)
		synctest.Wait()
		if again.err != nil || again.keys != reference(t, testRef(1).Token, testInput(5)) || fake.opens.Load() != 2 {
			t.Fatalf("next message: %v, %d loads", again.err, fake.opens.Load())
		}
	})
}

// Messages to open have the checks that cost nothing, and share the fate of those
// to seal in their call.
func TestWrongAnswersToOpenAreCaught(t *testing.T) {
	opens := []hsm.Use{hsm.Open, hsm.Open}
	checkCaught(t, opens, func(dst []byte) { dst[15] ^= 1 })
	checkCaught(t, opens, func(dst []byte) { clear(dst[hsm.BlockSize:]) })
	checkCaught(t, []hsm.Use{hsm.Open, hsm.Seal}, func(dst []byte) { dst[len(dst)-1] ^= 1 })
}

func TestWaitersLeaveAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		g := newGate(fake)
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
		first := start(t.Context(), k, testRef(1), 0, hsm.Seal)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var leaving, staying []*result
		for n := 1; n <= 3; n++ {
			leaving = append(leaving, start(ctx, k, testRef(1), n, hsm.Seal))
			staying = append(staying, start(t.Context(), k, testRef(1), n+100, hsm.Seal))
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		for _, r := range leaving {
			if !errors.Is(r.err, context.Canceled) {
				t.Errorf("cancelled while queued: %v", r.err)
			}
		}
		if s := k.Stats(); s.Waiting != 4 {
			t.Errorf("%d messages under way, want 4", s.Waiting)
		}
		close(g.open)
		synctest.Wait()
		for i, r := range append(staying, first) {
			if r.err != nil {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		if !slices.Equal(fake.sizes, []int{9, 25}) {
			t.Errorf("calls of %v blocks", fake.sizes)
		}
		k.Close()
	})
}

// The caller that makes the call is cancelled: the call goes on, for everyone. A
// caller whose message is in that call leaves at once.
func TestCancelDuringTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		hold := make(chan struct{})
		var seen []error
		fake.onCall = func(ctx context.Context, _ []byte) error {
			<-hold
			seen = append(seen, ctx.Err())
			return ctx.Err()
		}
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		opener := start(t.Context(), k, testRef(1), 0, hsm.Seal)
		synctest.Wait()
		runner := start(ctx, k, testRef(1), 1, hsm.Seal) // of the second call
		synctest.Wait()
		passenger := start(ctx, k, testRef(1), 2, hsm.Seal)
		other := start(t.Context(), k, testRef(1), 3, hsm.Seal)
		synctest.Wait()
		hold <- struct{}{}
		synctest.Wait() // the second call runs, with three messages
		cancel()
		synctest.Wait()
		if !errors.Is(passenger.err, context.Canceled) {
			t.Errorf("passenger: %v", passenger.err)
		}
		hold <- struct{}{}
		synctest.Wait()
		for name, r := range map[string]*result{"opener": opener, "runner": runner, "other": other} {
			if r.err != nil {
				t.Errorf("%s: %v", name, r.err)
			}
		}
		if other.keys != reference(t, testRef(1).Token, testInput(3)) {
			t.Error("wrong keys")
		}
		if !slices.Equal(seen, []error{nil, nil}) {
			t.Errorf("contexts of the calls: %v", seen)
		}
		k.Close()
	})
}

// The caller next in line leaves in the moment in which it gets the role of the
// runner: whoever comes after it gets the role. On one processor the runner hands
// over before the caller that was cancelled under its call can move.
func TestNextRunnerLeaves(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			fake := &fakeHSM{}
			hold := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			calls := 0
			fake.onCall = func(context.Context, []byte) error {
				switch calls++; calls {
				case 1:
					<-hold
					cancel()
				case 3:
					<-hold
				}
				return nil
			}
			k := newKeyring(t, fake, hsm.KeyringConfig{})
			first := start(t.Context(), k, testRef(1), 0, hsm.Open)
			synctest.Wait()
			leaving := start(ctx, k, testRef(1), 1, hsm.Open)
			synctest.Wait()
			staying := start(t.Context(), k, testRef(1), 2, hsm.Open)
			synctest.Wait()
			hold <- struct{}{}
			synctest.Wait()
			if first.err != nil || staying.err != nil || !errors.Is(leaving.err, context.Canceled) {
				t.Errorf("first %v, leaving %v, staying %v", first.err, leaving.err, staying.err)
			}
			var later []*result // nothing is left of who has gone
			for n := range 4 {
				later = append(later, start(t.Context(), k, testRef(1), n, hsm.Open))
				synctest.Wait()
			}
			close(hold)
			synctest.Wait()
			for n, r := range later {
				if r.err != nil || r.keys != reference(t, testRef(1).Token, testInput(n)) {
					t.Errorf("message %d: wrong keys, %v", n, r.err)
				}
			}
		})
	}
}

// Callers come and go at random while calls run: the role of the runner is never
// lost, and who gets keys gets the right ones.
func TestDeriveUnderCancellation(t *testing.T) {
	fake := &fakeHSM{}
	var mu sync.Mutex
	cancels := make(map[int]context.CancelFunc)
	fake.onCall = func(context.Context, []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for i, cancel := range cancels { // map order: any two of them
			cancel()
			delete(cancels, i)
			if i%2 == 0 {
				break
			}
		}
		return nil
	}
	k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 100 {
				ctx, cancel := context.WithCancel(context.Background())
				mu.Lock()
				cancels[g] = cancel
				mu.Unlock()
				n := g*1000 + i
				keys, err := k.Derive(ctx, testRef(1), testInput(n), hsm.Open)
				switch {
				case err == nil && keys != reference(t, testRef(1).Token, testInput(n)):
					t.Errorf("message %d: wrong keys", n)
				case err != nil && !errors.Is(err, context.Canceled):
					t.Errorf("message %d: %v", n, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := k.Stats(); s.Waiting != 0 {
		t.Errorf("%d messages under way", s.Waiting)
	}
	k.Close()
}
