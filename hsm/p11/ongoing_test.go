//go:build cgo

package p11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// placesOf is a partition whose link has places for so many encryptions that go on.
func placesOf(t *testing.T, n int) (*Partition, *link) {
	t.Helper()
	p := withDomain(t)
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	if len(l.ongoing.places) != defaultKeySessions {
		t.Fatalf("%d places with a token that states no limit, want %d", len(l.ongoing.places), defaultKeySessions)
	}
	l.ongoing.places = l.ongoing.places[:n]
	return p, l
}

// often uses a key until its encryption goes on, or would.
func often(t *testing.T, key hsm.BlockKey) (answer []byte) {
	t.Helper()
	src := counting(4 * hsm.BlockSize)
	for range 2 * beginsAfter {
		dst := make([]byte, len(src))
		if err := key.EncryptBlocks(t.Context(), dst, src); err != nil {
			t.Fatal(err)
		}
		if answer != nil && !bytes.Equal(dst, answer) {
			t.Fatal("the same blocks encrypt to others")
		}
		answer = dst
	}
	return answer
}

func inOngoing(key hsm.BlockKey) bool { return key.(*blockKey).ongoing.Load() != nil }

// TestEncryptionGoesOn: a key that is used often has one, which ends when the key is closed, and
// with it its session.
func TestEncryptionGoesOn(t *testing.T) {
	p, l := placesOf(t, 2)
	key, _, _ := newKey(t, p, 1)
	if inOngoing(key) || p.Activity().OfKeys != 0 {
		t.Fatal("the encryption of a key that was not used goes on")
	}
	often(t, key)
	if !inOngoing(key) || p.Activity().OfKeys != 1 {
		t.Fatalf("%d encryptions go on, want 1", p.Activity().OfKeys)
	}
	alone := key.(*blockKey).alone.Load()
	often(t, key)
	if after := key.(*blockKey).alone.Load(); after != alone {
		t.Errorf("%d calls began anew", after-alone)
	}
	handle := key.(*blockKey).ongoing.Load().h
	key.Close()
	if p.Activity().OfKeys != 0 || l.ongoing.places[0].h != noSession {
		t.Error("the encryption outlives its key")
	}
	if _, err := l.lib.ctx.GetSessionInfo(handle); err == nil {
		t.Error("its session is open")
	}
}

// TestEncryptionsOfMoreKeysThanPlaces: each key has its own answers, whatever place others take
// from it, and however many use it at a time.
func TestEncryptionsOfMoreKeysThanPlaces(t *testing.T) {
	p, _ := placesOf(t, 3)
	const keys = 8
	var all [keys]hsm.BlockKey
	var answers [keys][]byte
	for i := range all {
		all[i], _, _ = newKey(t, p, byte(i+1))
		answers[i] = often(t, all[i])
	}
	src := counting(4 * hsm.BlockSize)
	use := func(ctx context.Context, n int) error {
		dst := make([]byte, len(src))
		for range 400 {
			i := rand.IntN(keys) //nolint:gosec // which key is used does not matter
			if n == 0 {
				i = 0 // of one that is always in use
			}
			if err := all[i].EncryptBlocks(ctx, dst, src); err != nil {
				return err
			}
			if !bytes.Equal(dst, answers[i]) {
				return fmt.Errorf("key %d answers as another", i)
			}
		}
		return nil
	}
	var work sync.WaitGroup
	for n := range 6 {
		work.Go(func() {
			if err := use(t.Context(), n/3); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if n := p.Activity().OfKeys; n != 3 {
		t.Errorf("%d encryptions go on, want 3", n)
	}
	for _, key := range all {
		key.Close()
	}
	if n := p.Activity().OfKeys; n != 0 {
		t.Errorf("%d encryptions outlive their keys", n)
	}
}

// TestEncryptionBreaksOff: when the session of an encryption that goes on fails, the call is made
// anew, and nobody learns of it; after a few, none begin any more.
func TestEncryptionBreaksOff(t *testing.T) {
	p, l := placesOf(t, 2)
	key, _, _ := newKey(t, p, 1)
	answer := often(t, key)
	for n := range maxFailures {
		if e := key.(*blockKey).ongoing.Load(); e == nil {
			t.Fatalf("after %d failures no encryption goes on", n)
		} else if err := l.lib.ctx.CloseSession(e.h); err != nil { // behind its back
			t.Fatal(err)
		}
		if again := often(t, key); !bytes.Equal(again, answer) {
			t.Fatal("another answer than before")
		}
	}
	if inOngoing(key) {
		t.Error("an encryption was begun after too many failures")
	}
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
}

// TestNoEncryptionGoesOn: none does if that is configured.
func TestNoEncryptionGoesOn(t *testing.T) {
	p, _ := placesOf(t, 0)
	key, _, _ := newKey(t, p, 1)
	often(t, key)
	if inOngoing(key) {
		t.Error("one goes on")
	}
	for _, n := range []int{-1, MaxKeySessions + 1} {
		cfg := config("any")
		cfg.KeySessions = &n
		if err := cfg.check(); err == nil {
			t.Errorf("%d sessions of keys are accepted", n)
		}
	}
	none := 0
	p.cfg.KeySessions = &none
	if n := p.keySessions(p.link.token.token); n != 0 {
		t.Errorf("%d places, none are configured", n)
	}
	p.cfg.KeySessions = nil
	limited := p.link.token.token
	limited.MaxSessionCount = 16
	if n := p.keySessions(limited); n != 0 {
		t.Errorf("%d places with a token that states a limit", n)
	}
}

// TestDoubtEndsEncryptions: after a wrong answer every call is begun by itself, since that is what
// a token in doubt is asked.
func TestDoubtEndsEncryptions(t *testing.T) {
	p, _ := placesOf(t, 2)
	key, _, _ := newKey(t, p, 1)
	answer := often(t, key)
	if err := p.Doubt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := often(t, key); !bytes.Equal(again, answer) {
		t.Fatal("another answer than before")
	}
	if inOngoing(key) || p.Activity().OfKeys != 0 {
		t.Error("its encryption goes on")
	}
}

// TestEncryptionsYield: where the token has no session left for another use, one that goes on
// gives it its own.
func TestEncryptionsYield(t *testing.T) {
	p, l := placesOf(t, 2)
	key, _, _ := newKey(t, p, 1)
	often(t, key)
	onSession(t, p, func(s *session) error {
		for n, want := range []bool{true, false} {
			if got := l.ongoing.yields(s, hsm.ErrUnavailable); got != want {
				t.Errorf("call %d says %v, want %v", n, got, want)
			}
		}
		return nil
	})
	often(t, key)
	if inOngoing(key) || p.Activity().OfKeys != 0 {
		t.Error("one began again")
	}
}

// TestForgedTokenEndsNoEncryption: others' tokens that do not open are no wrong answer.
func TestForgedTokenEndsNoEncryption(t *testing.T) {
	p, _ := placesOf(t, 2)
	key, token, want := newKey(t, p, 1)
	often(t, key)
	token = bytes.Clone(token)
	token[len(token)-1] ^= 1
	if _, err := p.Open(t.Context(), token, want); !errors.Is(err, hsm.ErrCorrupt) {
		t.Fatalf("a forged token: %v, want %v", err, hsm.ErrCorrupt)
	}
	if often(t, key); !inOngoing(key) {
		t.Error("the encryption of another key ended")
	}
}

// TestRandomInPieces: a token that gives little at once gives the rest after it.
func TestRandomInPieces(t *testing.T) {
	p := withDomain(t)
	if p.traits.draw != hsm.MaxRandom {
		t.Errorf("%d random bytes at once, want %d", p.traits.draw, hsm.MaxRandom)
	}
	p.traits.draw = 100
	a, before := make([]byte, 250), calls(p, hsm.CallRandom)
	if err := p.Random(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if n := calls(p, hsm.CallRandom) - before; n != 3 {
		t.Errorf("%d calls, want 3", n)
	}
	if bytes.Contains(a, make([]byte, 16)) || bytes.Equal(a[:100], a[100:200]) {
		t.Errorf("random bytes %x", a)
	}
}
