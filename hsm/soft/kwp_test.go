package soft

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"
)

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKEK(t *testing.T, key []byte) cipher.Block {
	t.Helper()
	kek, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

// The examples of RFC 5649, section 6.
func TestKWPVectors(t *testing.T) {
	kek := newKEK(t, decode(t, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"))
	for _, v := range [][2]string{
		{"c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		key, want := decode(t, v[0]), decode(t, v[1])
		if got := wrapKWP(kek, key); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", v[0], got, want)
		}
		if got, err := unwrapKWP(kek, want); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: %x, %v", v[1], got, err)
		}
	}
}

func TestKWPRoundTrip(t *testing.T) {
	kek := newKEK(t, make([]byte, 32))
	rapid.Check(t, func(rt *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(rt, "key")
		wrapped := wrapKWP(kek, key)
		if got, err := unwrapKWP(kek, wrapped); err != nil || !bytes.Equal(got, key) {
			rt.Fatalf("%x, %v", got, err)
		}
		bit := rapid.IntRange(0, 8*len(wrapped)-1).Draw(rt, "bit")
		wrapped[bit/8] ^= 1 << (bit % 8)
		if got, err := unwrapKWP(kek, wrapped); err == nil {
			rt.Fatalf("bit %d flipped: %x", bit, got)
		}
	})
}

// What wrapKWP never makes, wrapped with the right key.
func TestKWPRefuses(t *testing.T) {
	kek := newKEK(t, make([]byte, 32))
	for _, tc := range []struct {
		name, plain string
		ok          bool
	}{
		{"one semiblock", "a65959a600000008" + "0102030405060708", true},
		{"length too large", "a65959a600000009" + "0102030405060708", false},
		{"length zero", "a65959a600000000" + "0000000000000000", false},
		{"length negative", "a65959a6ffffffff" + "0102030405060708", false},
		{"padding not zero", "a65959a600000007" + "0102030405060708", false},
		{"another constant", "a65959a700000008" + "0102030405060708", false},
		{"constant of rfc 3394", "a6a6a6a6a6a6a6a6" + "0102030405060708", false},
		{"two semiblocks", "a65959a600000009" + "0102030405060708" + "0900000000000000", true},
		{"a semiblock of padding", "a65959a600000008" + "0102030405060708" + "0000000000000000", false},
		{"last byte of padding not zero", "a65959a600000009" + "0102030405060708" + "0900000000000001", false},
		{"first byte of padding not zero", "a65959a600000009" + "0102030405060708" + "0901000000000000", false},
	} {
		b := decode(t, tc.plain)
		wrapRaw(kek, b)
		if got, err := unwrapKWP(kek, b); (err == nil) != tc.ok {
			t.Errorf("%s: %x, %v", tc.name, got, err)
		}
	}
	for n := range 17 {
		if got, err := unwrapKWP(kek, make([]byte, n)); err == nil {
			t.Errorf("%d zero bytes: %x", n, got)
		}
	}
	if got, err := unwrapKWP(newKEK(t, bytes.Repeat([]byte{1}, 32)), wrapKWP(kek, make([]byte, 32))); err == nil {
		t.Errorf("another key: %x", got)
	}
}

func FuzzUnwrapKWP(f *testing.F) {
	kek, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil))
	f.Add(make([]byte, 40))
	f.Add(wrapKWP(kek, make([]byte, 32)))
	f.Add(wrapKWP(kek, []byte("seven b")))
	f.Fuzz(func(t *testing.T, wrapped []byte) {
		key, err := unwrapKWP(kek, wrapped)
		if err == nil && !bytes.Equal(wrapKWP(kek, key), wrapped) {
			t.Fatalf("%x unwraps to %x, which wraps otherwise", wrapped, key)
		}
	})
}
