package hsm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

func newKeyring(t *testing.T, fake *fakeHSM, c hsm.KeyringConfig) *hsm.Keyring {
	t.Helper()
	k := hsm.NewKeyring(fake, c)
	t.Cleanup(k.Close)
	return k
}

// derive fails the test unless message n gets the right keys.
func derive(t *testing.T, k *hsm.Keyring, ref hsm.Ref, n int) {
	t.Helper()
	keys, err := k.Derive(t.Context(), ref, testInput(n), hsm.Seal)
	if err != nil {
		t.Fatal(err)
	}
	if keys != reference(t, ref.Token, testInput(n)) {
		t.Fatalf("message %d: wrong keys", n)
	}
}

func TestUnknownUseIsRefused(t *testing.T) {
	k := newKeyring(t, &fakeHSM{}, hsm.KeyringConfig{})
	for _, use := range []hsm.Use{0, 3} {
		if _, err := k.Derive(t.Context(), testRef(1), testInput(0), use); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("use %d: %v", use, err)
		}
	}
}

func TestEndedContextIsNotServed(t *testing.T) {
	fake := &fakeHSM{}
	k := newKeyring(t, fake, hsm.KeyringConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Derive(ctx, testRef(1), testInput(0), hsm.Open); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if fake.opens.Load() != 0 {
		t.Error("a key was loaded")
	}
}

func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		g := newGate(fake)
		k := newKeyring(t, fake, hsm.KeyringConfig{MaxWaiting: 3})
		first, queued := behindGate(t.Context(), k, hsm.Seal, hsm.Open)
		if _, err := k.Derive(t.Context(), testRef(2), testInput(9), hsm.Open); !errors.Is(err, hsm.ErrBusy) {
			t.Errorf("fourth message: %v", err)
		}
		close(g.open)
		synctest.Wait()
		for i, r := range append(queued, first) {
			if r.err != nil {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		derive(t, k, testRef(2), 9)
	})
}

func TestStale(t *testing.T) {
	for _, tc := range []struct {
		failures int
		opens    int64
		want     error
	}{
		{0, 1, nil},
		{1, 2, nil},
		{2, 2, hsm.ErrUnavailable},
	} {
		t.Run(fmt.Sprint(tc.failures, " failures"), func(t *testing.T) {
			fake := &fakeHSM{}
			calls := 0
			fake.onCall = func(context.Context, []byte) error {
				if calls++; calls <= tc.failures {
					return fmt.Errorf("session gone: %w", hsm.ErrStale)
				}
				return nil
			}
			k := newKeyring(t, fake, hsm.KeyringConfig{})
			keys, err := k.Derive(t.Context(), testRef(1), testInput(1), hsm.Seal)
			if !errors.Is(err, tc.want) || (err == nil) != (keys == reference(t, testRef(1).Token, testInput(1))) {
				t.Errorf("error %v", err)
			}
			if fake.opens.Load() != tc.opens {
				t.Errorf("%d loads, want %d", fake.opens.Load(), tc.opens)
			}
			derive(t, k, testRef(1), 2)
		})
	}
}

// Everybody in a call that finds its key lost is served, by one new load.
func TestStaleForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		open, calls := make(chan struct{}), 0
		fake.onCall = func(context.Context, []byte) error {
			switch calls++; calls {
			case 1:
				<-open
				return nil
			case 2:
				return hsm.ErrStale
			}
			return nil
		}
		k := newKeyring(t, fake, hsm.KeyringConfig{})
		first, queued := behindGate(t.Context(), k, hsm.Seal, hsm.Open, hsm.Seal, hsm.Open)
		close(open)
		synctest.Wait()
		for i, r := range append(queued, first) {
			if r.err != nil {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		if fake.opens.Load() != 2 {
			t.Errorf("%d loads, want 2", fake.opens.Load())
		}
	})
}

func TestOtherErrorsReachEveryoneAndKeepTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		open, calls := make(chan struct{}), 0
		fake.onCall = func(context.Context, []byte) error {
			switch calls++; calls {
			case 1:
				<-open
				return nil
			case 2:
				return hsm.ErrUnavailable
			}
			return nil
		}
		k := newKeyring(t, fake, hsm.KeyringConfig{})
		_, queued := behindGate(t.Context(), k, hsm.Seal, hsm.Open)
		close(open)
		synctest.Wait()
		for i, r := range queued {
			if !errors.Is(r.err, hsm.ErrUnavailable) || r.keys != (hsm.MessageKeys{}) {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		derive(t, k, testRef(1), 7)
		if fake.opens.Load() != 1 {
			t.Errorf("%d loads, want 1", fake.opens.Load())
		}
	})
}

// One caller loads, the others wait; the loader's own context ends, and so does
// that of one who waits.
func TestLoadIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		open := make(chan struct{})
		var seen error
		fake.onOpen = func(ctx context.Context, _ []byte) error {
			<-open
			seen = ctx.Err()
			return seen
		}
		k := newKeyring(t, fake, hsm.KeyringConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		loader := start(ctx, k, testRef(1), 0, hsm.Open)
		synctest.Wait()
		leaving := start(ctx, k, testRef(1), 1, hsm.Open)
		var staying []*result
		for n := range 5 {
			staying = append(staying, start(t.Context(), k, testRef(1), n, hsm.Open))
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !errors.Is(leaving.err, context.Canceled) {
			t.Errorf("who left: %v", leaving.err)
		}
		if k.Stats().Loaded != 1 {
			t.Errorf("stats %+v", k.Stats())
		}
		close(open)
		synctest.Wait()
		for i, r := range staying {
			if r.err != nil {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		if loader.err != nil && !errors.Is(loader.err, context.Canceled) { // it may have had to wait for a call
			t.Errorf("loader: %v", loader.err)
		}
		if seen != nil || fake.opens.Load() != 1 {
			t.Errorf("%d loads, context of the load: %v", fake.opens.Load(), seen)
		}
	})
}

func TestLoadErrorsAreNotKept(t *testing.T) {
	fake := &fakeHSM{}
	failures := 1
	fake.onOpen = func(context.Context, []byte) error {
		if failures--; failures >= 0 {
			return hsm.ErrUnavailable
		}
		return nil
	}
	k := newKeyring(t, fake, hsm.KeyringConfig{MaxKeys: 1})
	if _, err := k.Derive(t.Context(), testRef(1), testInput(0), hsm.Open); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("first: %v", err)
	}
	if s := k.Stats(); s.Loaded != 0 {
		t.Errorf("stats %+v", s)
	}
	derive(t, k, testRef(1), 1)
}

// lostAtLoad is an Opener whose key is lost before it has been used once.
type lostAtLoad struct {
	noResident
	opened, closed int
}

func (o *lostAtLoad) Open(context.Context, []byte, hsm.TokenHeader) (hsm.BlockKey, error) {
	o.opened++
	return o, nil
}

func (o *lostAtLoad) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	o.opened++
	return o, nil
}
func (o *lostAtLoad) EncryptBlocks(context.Context, []byte, []byte) error { return hsm.ErrStale }
func (o *lostAtLoad) Close()                                              { o.closed++ }

func (o *lostAtLoad) Apply(context.Context, hsm.Algorithm, []byte) ([]byte, error) {
	return nil, hsm.ErrStale
}

func TestKeyLostAtLoad(t *testing.T) {
	o := &lostAtLoad{}
	k := hsm.NewKeyring(o, hsm.KeyringConfig{})
	_, err := k.Derive(t.Context(), testRef(1), testInput(0), hsm.Open)
	k.Close()
	if !errors.Is(err, hsm.ErrUnavailable) || o.opened != 2 || o.closed != 2 {
		t.Errorf("%v, opened %d, closed %d", err, o.opened, o.closed)
	}
}

// TestSecretKeyLost: a key of another class that is lost is opened again once, too.
func TestSecretKeyLost(t *testing.T) {
	o := &lostAtLoad{}
	k := hsm.NewKeyring(o, hsm.KeyringConfig{})
	kind := hsm.Kind{Class: hsm.ClassHMAC, Bits: 256}
	_, err := k.Apply(t.Context(), hsm.Ref{Token: []byte{1}, Want: hsm.TokenHeader{Class: kind.Class}, Kind: kind}, hsm.HMACSHA256, nil)
	k.Close()
	if !errors.Is(err, hsm.ErrUnavailable) || o.opened != 2 || o.closed != 2 {
		t.Errorf("%v, opened %d, closed %d", err, o.opened, o.closed)
	}
}

// wrongSigner is an HSM whose signatures are no signatures.
type wrongSigner struct{ lostAtLoad }

func (o *wrongSigner) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	o.opened++
	return o, nil
}

func (o *wrongSigner) Apply(_ context.Context, a hsm.Algorithm, digest []byte) ([]byte, error) {
	return make([]byte, 2*len(digest)), nil
}

// TestWrongSignature: what does not verify does not leave, and the key is loaded anew.
func TestWrongSignature(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	want := hsm.TokenHeader{Class: hsm.ClassEC, Key: hsm.ID{1}, Version: 1, Created: time.Unix(0, 0)}
	token, err := hsm.BuildToken(want, hsm.CheckValuePublic(want.Class, want.Key, want.Version, spki), make([]byte, hsm.MinWrapped),
		func([]byte) ([]byte, error) { return make([]byte, 32), nil })
	if err != nil {
		t.Fatal(err)
	}
	ref := hsm.Ref{Token: token, Want: want, Kind: hsm.Kind{Class: hsm.ClassEC, Bits: 256}, SPKI: spki}
	o := &wrongSigner{}
	k := hsm.NewKeyring(o, hsm.KeyringConfig{})
	for range 2 {
		if _, err := k.Apply(t.Context(), ref, hsm.ECDSASHA256, make([]byte, 32)); !errors.Is(err, hsm.ErrWrongAnswer) {
			t.Errorf("%v, want %v", err, hsm.ErrWrongAnswer)
		}
	}
	k.Close()
	if o.opened != 2 || o.closed != 2 {
		t.Errorf("opened %d, closed %d", o.opened, o.closed)
	}
}

func TestLeastRecentlyUsedKeyIsEvicted(t *testing.T) {
	fake := &fakeHSM{}
	var opened strings.Builder
	fake.onOpen = func(_ context.Context, token []byte) error {
		fmt.Fprint(&opened, token[0])
		return nil
	}
	k := newKeyring(t, fake, hsm.KeyringConfig{MaxKeys: 2})
	for i, n := range []byte{1, 2, 1, 3, 1, 2, 3} {
		derive(t, k, testRef(n), i)
	}
	if opened.String() != "12323" {
		t.Errorf("loaded %s, want 12323", opened.String())
	}
	if s := k.Stats(); s.Loaded != 2 || s.Evictions != 3 || s.Loads != 5 || fake.openMost.Load() != 2 {
		t.Errorf("stats %+v, %d open at once", s, fake.openMost.Load())
	}
}

// With every key in use a caller waits for room, and a key is never closed under
// its call.
func TestKeysInUseAreNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		g := newGate(fake)
		k := newKeyring(t, fake, hsm.KeyringConfig{MaxKeys: 1})
		first := start(t.Context(), k, testRef(1), 0, hsm.Seal)
		synctest.Wait()
		second := start(t.Context(), k, testRef(2), 1, hsm.Seal)
		ctx, cancel := context.WithCancel(t.Context())
		third := start(ctx, k, testRef(3), 2, hsm.Seal)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !errors.Is(third.err, context.Canceled) || fake.opens.Load() != 1 {
			t.Errorf("who left: %v, %d loads", third.err, fake.opens.Load())
		}
		close(g.open)
		synctest.Wait()
		if first.err != nil || second.err != nil || fake.openMost.Load() != 1 {
			t.Errorf("%v, %v, %d open at once", first.err, second.err, fake.openMost.Load())
		}
	})
}

func TestAnotherTokenIsOpenedAnew(t *testing.T) {
	fake := &fakeHSM{}
	k := newKeyring(t, fake, hsm.KeyringConfig{})
	ref := testRef(1)
	derive(t, k, ref, 0)
	rewrapped := ref
	rewrapped.Token = testRef(2).Token
	derive(t, k, rewrapped, 1)
	if k.Stats().Loaded != 1 || fake.opens.Load() != 2 {
		t.Errorf("%d loaded, %d loads", k.Stats().Loaded, fake.opens.Load())
	}
	other := rewrapped
	other.Want.Generation++
	derive(t, k, other, 2)
	if fake.opens.Load() != 3 {
		t.Errorf("another expectation: %d loads", fake.opens.Load())
	}
	version := other
	version.Want.Version++
	derive(t, k, version, 3)
	derive(t, k, other, 4)
	if k.Stats().Loaded != 2 || fake.opens.Load() != 4 {
		t.Errorf("another version: %d loaded, %d loads", k.Stats().Loaded, fake.opens.Load())
	}
}

// anyMAC is an HSM that makes MACs.
type anyMAC struct{ lostAtLoad }

func (o *anyMAC) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	o.opened++
	return o, nil
}

func (*anyMAC) Apply(context.Context, hsm.Algorithm, []byte) ([]byte, error) { return []byte{1}, nil }

// TestAnotherKindIsOpenedAnew: a loaded key serves who wants it as what it was opened as,
// and nobody else.
func TestAnotherKindIsOpenedAnew(t *testing.T) {
	o := &anyMAC{}
	k := hsm.NewKeyring(o, hsm.KeyringConfig{})
	defer k.Close()
	use := func(what string, ref hsm.Ref, opened int) {
		t.Helper()
		a := ref.Kind.Algorithms()[0]
		if _, err := k.Apply(t.Context(), ref, a, nil); err != nil || o.opened != opened {
			t.Errorf("%s: opened %d times, want %d; %v", what, o.opened, opened, err)
		}
	}
	ref := hsm.Ref{Token: []byte{1}, Want: hsm.TokenHeader{Class: hsm.ClassHMAC}, Kind: hsm.Kind{Class: hsm.ClassHMAC, Bits: 256}}
	use("first", ref, 1)
	use("again", ref, 1)
	other := ref
	other.Kind.Bits = 384
	use("of another size", other, 2)
	half := other
	half.SPKI = []byte{1}
	use("with another public half", half, 3)
}

// The keyring keeps its own copy of the token: a caller may reuse the buffer.
func TestTokenIsCopied(t *testing.T) {
	fake := &fakeHSM{}
	k := newKeyring(t, fake, hsm.KeyringConfig{})
	ref := testRef(1)
	derive(t, k, ref, 0)
	copy(ref.Token, testRef(2).Token)
	derive(t, k, ref, 1)
	if fake.opens.Load() != 2 {
		t.Errorf("%d loads, want 2", fake.opens.Load())
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		g := newGate(fake)
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{MaxKeys: 1})
		first, queued := behindGate(t.Context(), k, hsm.Open, hsm.Seal)
		noRoom := start(t.Context(), k, testRef(2), 1, hsm.Open)
		synctest.Wait()
		closed := false
		go func() {
			k.Close()
			closed = true
		}()
		synctest.Wait()
		if closed {
			t.Error("closed while messages are under way")
		}
		if !errors.Is(noRoom.err, hsm.ErrUnavailable) {
			t.Errorf("waiting for room: %v", noRoom.err)
		}
		if _, err := k.Derive(t.Context(), testRef(1), testInput(1), hsm.Open); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("after Close: %v", err)
		}
		close(g.open)
		synctest.Wait()
		for i, r := range append(queued, first) {
			if r.err != nil {
				t.Errorf("message %d: %v", i, r.err)
			}
		}
		if !closed || fake.openNow.Load() != 0 {
			t.Errorf("closed %v, %d keys open", closed, fake.openNow.Load())
		}
		k.Close()
	})
}
