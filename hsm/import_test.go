package hsm_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// TestDecodeOAEP takes off what crypto/rsa puts on, and refuses every block with a byte
// that is another one, or padding that ends nowhere.
func TestDecodeOAEP(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := func(h crypto.Hash, message []byte) []byte {
		t.Helper()
		c, err := rsa.EncryptOAEP(h.New(), rand.Reader, &key.PublicKey, message, nil)
		if err != nil {
			t.Fatal(err)
		}
		return new(big.Int).Exp(new(big.Int).SetBytes(c), key.D, key.N).FillBytes(make([]byte, 256))
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		longest := 256 - 2*h.Size() - 2
		for _, n := range []int{0, 1, 31, 32, 33, longest - 1, longest} {
			message := bytes.Repeat([]byte{1}, n) // as the byte that ends the padding
			b := block(h, message)
			got, err := hsm.DecodeOAEP(h, bytes.Clone(b))
			if err != nil || !bytes.Equal(got, message) {
				t.Errorf("%s: %d bytes became %d, %v", h, n, len(got), err)
			}
			if n != 32 {
				continue
			}
			for i := range b { // a byte of the seed or of the masked rest changes all that is checked
				bad := bytes.Clone(b)
				bad[i] ^= 0x80
				if got, err := hsm.DecodeOAEP(h, bad); err == nil && bytes.Equal(got, message) || err != nil && !errors.Is(err, hsm.ErrCiphertext) {
					t.Errorf("%s: byte %d altered: %x, %v", h, i, got, err)
				}
			}
			other := crypto.SHA1 + crypto.SHA256 - h
			if _, err := hsm.DecodeOAEP(other, bytes.Clone(b)); !errors.Is(err, hsm.ErrCiphertext) {
				t.Errorf("%s as %s: %v", h, other, err)
			}
		}
		for _, n := range []int{0, 1, 2*h.Size() + 1} {
			if _, err := hsm.DecodeOAEP(h, make([]byte, n)); !errors.Is(err, hsm.ErrCiphertext) {
				t.Errorf("a block of %d bytes: %v", n, err)
			}
		}
		for what, edit := range map[string]func(db []byte){
			"no end":                func(db []byte) { clear(db[h.Size():]) },
			"a two in the padding":  func(db []byte) { db[h.Size()] = 2 },
			"another label's hash":  func(db []byte) { db[0] ^= 1 },
			"nothing but an end":    func(db []byte) { clear(db[h.Size():]); db[len(db)-1] = 1 },
			"a message behind ends": func(db []byte) { db[h.Size()] = 1 },
		} {
			b := masked(h, edit)
			_, err := hsm.DecodeOAEP(h, b)
			if good := what == "nothing but an end" || what == "a message behind ends"; good != (err == nil) {
				t.Errorf("%s: %s: %v", h, what, err)
			}
			b = masked(h, edit)
			b[0] = 1
			if _, err := hsm.DecodeOAEP(h, b); !errors.Is(err, hsm.ErrCiphertext) {
				t.Errorf("%s: %s, with a first byte of 1: %v", h, what, err)
			}
		}
	}
}

// masked is a block of OAEP with a seed of zeros whose data block is edited, made with
// nothing of the decoder.
func masked(h crypto.Hash, edit func(db []byte)) []byte {
	db := make([]byte, 256-1-h.Size())
	copy(db, h.New().Sum(nil))
	db[len(db)-33] = 1
	edit(db)
	xor := func(out, seed []byte) {
		var stream []byte
		for n := byte(0); len(stream) < len(out); n++ {
			d := h.New()
			d.Write(append(slices.Clone(seed), 0, 0, 0, n))
			stream = d.Sum(stream)
		}
		for i := range out {
			out[i] ^= stream[i]
		}
	}
	seed := make([]byte, h.Size())
	xor(db, seed)
	xor(seed, db)
	return slices.Concat([]byte{0}, seed, db)
}

func TestImportSplit(t *testing.T) {
	for _, c := range []struct {
		a       hsm.ImportAlgorithm
		n       int
		refused bool
	}{
		{hsm.ImportOAEPSHA1, 255, true},
		{hsm.ImportOAEPSHA1, 256, false},
		{hsm.ImportOAEPSHA256, 257, true},
		{hsm.ImportAESWrapSHA1, 256, true},
		{hsm.ImportAESWrapSHA1, 264, true},
		{hsm.ImportAESWrapSHA1, 272, false},
		{hsm.ImportAESWrapSHA256, 295, true},
		{hsm.ImportAESWrapSHA256, 296, false},
		{hsm.ImportAESWrapSHA256, 328, false},
		{hsm.ImportAESWrapSHA256, 336, true},
	} {
		block, rest, err := c.a.Split(make([]byte, c.n), 256)
		if (err != nil) != c.refused || err == nil && (len(block) != 256 || len(rest) != c.n-256) {
			t.Errorf("%s of %d bytes: %d and %d, %v", c.a, c.n, len(block), len(rest), err)
		}
	}
}

// TestImportVersions: no version of a key has the number of an import token.
func TestImportVersions(t *testing.T) {
	const greatest = 4095<<20 + 1 + 1000 // epoch, and versions in it: see package fsm
	h, err := hsm.ImportPairSpec{Bits: 2048, Algorithm: hsm.ImportOAEPSHA1, Created: time.Unix(1, 0).UTC()}.InsideHeader()
	if err != nil || uint64(h.Version) <= greatest {
		t.Errorf("version %#x, %v", h.Version, err)
	}
}

// FuzzParseImportToken: what is read is an import token, and nothing panics.
func FuzzParseImportToken(f *testing.F) {
	for _, a := range []hsm.ImportAlgorithm{hsm.ImportOAEPSHA1, hsm.ImportAESWrapSHA256} {
		for _, header := range []func(hsm.ImportPairSpec) (hsm.TokenHeader, error){hsm.ImportPairSpec.InsideHeader, hsm.ImportPairSpec.RawHeader} {
			h, err := header(hsm.ImportPairSpec{Bits: 2048, Algorithm: a, Created: time.Unix(1, 0).UTC()})
			if err != nil {
				f.Fatal(err)
			}
			token, err := hsm.BuildToken(h, [16]byte{}, make([]byte, 16), func([]byte) ([]byte, error) { return make([]byte, 32), nil })
			if err != nil {
				f.Fatal(err)
			}
			if got, err := hsm.ParseImportToken(token); err != nil || got.Algorithm != a || got.Header != h {
				f.Fatalf("%+v, %v", got, err)
			}
			f.Add(token)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := hsm.ParseImportToken(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrRefused) || errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("refused with %v", err)
			}
			return
		}
		if !got.Algorithm.Known() || got.Header.Attributes != 0 || got.Header.Class != hsm.ClassImportRSA && got.Header.Class != hsm.ClassRSA {
			t.Errorf("taken: %+v", got)
		}
	})
}
