//go:build cgo

package p11

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// newSecret makes the n-th key, of a kind.
func newSecret(t *testing.T, p *Partition, n byte, k hsm.Kind) hsm.Ref {
	t.Helper()
	s := testSpec(n)
	s.Class, s.Bits, s.Decrypts = k.Class, k.Bits, k.Decrypts
	made, err := p.GenerateKey(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Header()
	if err != nil {
		t.Fatal(err)
	}
	return hsm.Ref{Token: made.Token, Want: want, Kind: k, SPKI: made.SPKI}
}

// TestNoSecretIsLeftBehind: neither by making, opening and closing keys, nor by tokens and
// ciphertexts that are refused; and a token whose MAC is right is not believed either.
func TestNoSecretIsLeftBehind(t *testing.T) {
	p := withDomain(t)
	before := countObjects(t, p)
	left := func(what string, want int) {
		t.Helper()
		if n := countObjects(t, p); n != before+want {
			t.Errorf("%s: %d objects, want %d", what, n-before, want)
		}
	}
	for i, k := range secretKinds() {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			ref, other := newSecret(t, p, byte(2*i), k), newSecret(t, p, byte(2*i+1), k)
			left("GenerateKey", 0)
			key, err := p.OpenSecret(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			left("OpenSecret", 1)
			if k.Decrypts {
				if _, err := key.Apply(t.Context(), k.Algorithms()[0], make([]byte, k.Bits/8)); !errors.Is(err, hsm.ErrCiphertext) {
					t.Errorf("zeros decrypt: %v", err)
				}
			}
			key.Close()
			left("Close", 0)

			mine, theirs := parsed(t, ref.Token), parsed(t, other.Token)
			flipped := bytes.Clone(mine.Wrapped)
			flipped[11] ^= 0x20
			for what, token := range map[string][]byte{
				"changed wrapped key": forge(t, p, ref.Token, flipped, mine.Check),
				"short wrapped key":   forge(t, p, ref.Token, mine.Wrapped[:16], mine.Check),
				"key of another id":   forge(t, p, ref.Token, theirs.Wrapped, mine.Check),
				"other check value":   forge(t, p, ref.Token, mine.Wrapped, theirs.Check),
			} {
				forged := ref
				forged.Token = token
				if _, err := p.OpenSecret(t.Context(), forged); !errors.Is(err, hsm.ErrCorrupt) {
					t.Errorf("%s: %v, want %v", what, err, hsm.ErrCorrupt)
				}
				left(what, 0)
			}
			if err := p.Healthy(); err != nil {
				t.Errorf("bad tokens make the partition unhealthy: %v", err)
			}
		})
	}
}

func parsed(t *testing.T, token []byte) hsm.Token {
	t.Helper()
	parsed, err := hsm.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// TestTokenWithoutAlgorithms: keys of a kind of which a token can do nothing are not made,
// and what was made elsewhere is not opened.
func TestTokenWithoutAlgorithms(t *testing.T) {
	p := withDomain(t)
	ref := newSecret(t, p, 1, hsm.Kind{Class: hsm.ClassEC, Bits: 256})
	p.traits.algorithms = []hsm.Algorithm{hsm.HMACSHA256}
	s := testSpec(2)
	s.Class, s.Bits = hsm.ClassEC, 256
	if _, err := p.GenerateKey(t.Context(), s); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("GenerateKey: %v, want %v", err, hsm.ErrUnsupported)
	}
	if _, err := p.OpenSecret(t.Context(), ref); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("OpenSecret: %v, want %v", err, hsm.ErrUnsupported)
	}
	newSecret(t, p, 3, hsm.Kind{Class: hsm.ClassHMAC, Bits: 256})
}
