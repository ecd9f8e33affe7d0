package hsm_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/quorumkms/quorumkms/hsm"
)

func testInputs(n int) []hsm.MessageInput {
	in := make([]hsm.MessageInput, n)
	for i := range in {
		in[i] = testInput(i)
	}
	return in
}

// TestDeriveAll: many messages have the keys that each has alone, with as few calls as they fit into.
func TestDeriveAll(t *testing.T) {
	ref := testRef(1)
	for _, c := range []struct {
		n     int
		use   hsm.Use
		calls []int // blocks
	}{
		{1, hsm.Seal, []int{9}},
		{31, hsm.Seal, []int{249}},
		{32, hsm.Seal, []int{249, 9}},
		{128, hsm.Seal, []int{249, 249, 249, 249, 33}},
		{63, hsm.Open, []int{253}},
		{256, hsm.Open, []int{253, 253, 253, 253, 17}},
	} {
		fake := &fakeHSM{}
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
		keys, err := k.DeriveAll(t.Context(), ref, testInputs(c.n), c.use)
		if err != nil || len(keys) != c.n {
			t.Fatalf("%d messages: %d keys, %v", c.n, len(keys), err)
		}
		for i := range keys {
			if keys[i] != reference(t, ref.Token, testInput(i)) {
				t.Errorf("message %d of %d has other keys than alone", i, c.n)
			}
		}
		if !slices.Equal(fake.sizes, c.calls) {
			t.Errorf("%d messages: calls of %v blocks, want %v", c.n, fake.sizes, c.calls)
		}
		k.Close()
	}
}

func TestDeriveAllRefused(t *testing.T) {
	k := hsm.NewKeyring(&fakeHSM{}, hsm.KeyringConfig{})
	defer k.Close()
	if keys, err := k.DeriveAll(t.Context(), testRef(1), nil, hsm.Seal); keys != nil || err != nil {
		t.Errorf("no messages: %v, %v", keys, err)
	}
	if _, err := k.DeriveAll(t.Context(), testRef(1), testInputs(1), 7); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("an unknown use: %v", err)
	}
	ref := testRef(1)
	ref.Kind = hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}
	if _, err := k.DeriveAll(t.Context(), ref, testInputs(1), hsm.Seal); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("an RSA key: %v", err)
	}
}

// TestDeriveAllBesideOthers: batches and single messages under one key share calls, and each gets its own.
func TestDeriveAllBesideOthers(t *testing.T) {
	fake := &fakeHSM{}
	k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
	defer k.Close()
	ref := testRef(1)
	var work sync.WaitGroup
	for n := range 16 {
		use := []hsm.Use{hsm.Seal, hsm.Open}[n%2]
		work.Go(func() {
			keys, err := k.DeriveAll(t.Context(), ref, testInputs(100+n), use)
			for i := range keys {
				if keys[i] != reference(t, ref.Token, testInput(i)) {
					t.Errorf("message %d has other keys than alone", i)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
		work.Go(func() {
			if keys, err := k.Derive(t.Context(), ref, testInput(n), use); err != nil || keys != reference(t, ref.Token, testInput(n)) {
				t.Errorf("beside batches: %v", err)
			}
		})
	}
	work.Wait()
	if s := k.Stats(); s.Waiting != 0 || s.Messages != 16*100+120+16 {
		t.Errorf("%+v", s)
	}
}

// TestDeriveAllFails: one wrong answer, and there are no keys; a context that ends holds nobody up.
func TestDeriveAllFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeHSM{}
		calls := 0
		fake.corrupt = func(dst []byte) {
			if calls++; calls == 3 {
				dst[20] ^= 1
			}
		}
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
		defer k.Close()
		if keys, err := k.DeriveAll(t.Context(), testRef(1), testInputs(128), hsm.Seal); !errors.Is(err, hsm.ErrWrongAnswer) || slices.ContainsFunc(keys, func(x hsm.MessageKeys) bool { return x != hsm.MessageKeys{} }) {
			t.Errorf("%v", err)
		}
		g := newGate(fake)
		first := start(t.Context(), k, testRef(1), -1, hsm.Seal) // hangs in its call
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		gone := &result{}
		go func() { _, gone.err = k.DeriveAll(ctx, testRef(1), testInputs(128), hsm.Seal) }()
		synctest.Wait()
		last := start(t.Context(), k, testRef(1), 7, hsm.Seal)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !errors.Is(gone.err, context.Canceled) {
			t.Errorf("who has gone: %v", gone.err)
		}
		close(g.open)
		synctest.Wait()
		if first.err != nil || last.err != nil || last.keys != reference(t, testRef(1).Token, testInput(7)) {
			t.Errorf("before: %v, behind: %v", first.err, last.err)
		}
		if n := k.Stats().Waiting; n != 0 {
			t.Errorf("%d are under way", n)
		}
	})
}
