package hsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/quorumkms/quorumkms/hsm"
)

func importAlgorithms() []hsm.ImportAlgorithm {
	return []hsm.ImportAlgorithm{hsm.ImportOAEPSHA1, hsm.ImportOAEPSHA256, hsm.ImportAESWrapSHA1, hsm.ImportAESWrapSHA256}
}

// pairSpec asks for the pair that the n-th key of the suite is imported with.
func pairSpec(n byte, bits uint16, a hsm.ImportAlgorithm) hsm.ImportPairSpec {
	s := spec(n)
	return hsm.ImportPairSpec{Cluster: s.Cluster, Generation: s.Generation, Key: s.Key, Bits: bits, Algorithm: a, Created: s.Created}
}

func importPair(t T, p hsm.Partition, s hsm.ImportPairSpec) hsm.NewKey {
	t.Helper()
	made, err := p.NewImportPair(t.Context(), s)
	must(t, made, err)
	if size := parse[*rsa.PublicKey](t, made.SPKI).Size(); size != int(s.Bits)/8 {
		t.Errorf("a pair of %d bytes, asked for %d bits", size, s.Bits)
	}
	return made
}

// wrapMaterial wraps material as a caller does, with nothing of package hsm; kek is the
// AES key of one use.
func wrapMaterial(t T, spki []byte, a hsm.ImportAlgorithm, material, kek []byte) []byte {
	t.Helper()
	inner := material
	if a.Wraps() {
		inner = kek
	}
	block, err := rsa.EncryptOAEP(a.Hash().New(), rand.Reader, parse[*rsa.PublicKey](t, spki), inner, nil)
	must(t, block, err)
	if a.Wraps() {
		block = append(block, keyWrap(t, kek, material)...)
	}
	return block
}

// keyWrap is RFC 5649 of more than 8 bytes, written down from the RFC.
func keyWrap(t T, kek, key []byte) []byte {
	t.Helper()
	c, err := aes.NewCipher(kek)
	must(t, c, err)
	a := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(key)))
	r := append([]byte{}, key...)
	for len(r)%8 != 0 {
		r = append(r, 0)
	}
	n := len(r) / 8
	for j := range 6 {
		for i := range n {
			var b [16]byte
			c.Encrypt(b[:], append(append([]byte{}, a...), r[8*i:8*i+8]...))
			a = binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b[:8])^uint64(n*j+i+1))
			copy(r[8*i:], b[8:])
		}
	}
	return append(a, r...)
}

// importable are the kinds whose material comes in.
func importable() []hsm.Kind {
	return []hsm.Kind{{Class: hsm.ClassAES}, {Class: hsm.ClassHMAC, Bits: 256}, {Class: hsm.ClassHMAC, Bits: 384}, {Class: hsm.ClassHMAC, Bits: 512}}
}

func materialOf(n byte, k hsm.Kind) []byte {
	out := make([]byte, k.MaterialSize())
	for i := range out {
		out[i] = n + byte(i)
	}
	return out
}

// testImport takes known material in by every algorithm, and uses it.
func testImport(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	createDomain(t, p, cluster, 2)
	n := byte(0)
	for i, bits := range []uint16{2048, 3072, 4096} {
		for _, a := range importAlgorithms() {
			n++
			k := importable()[(int(n)+i)%4]
			if n <= 4 {
				k = hsm.Kind{Class: hsm.ClassAES} // by every algorithm
			}
			material := materialOf(n, k)
			pair := importPair(t, p, pairSpec(n, bits, a))
			s := spec(n)
			s.Generation, s.Class, s.Bits = 2, k.Class, k.Bits // another one than the pair's
			r := hsm.ImportRequest{Token: pair.Token, Ciphertext: wrapMaterial(t, pair.SPKI, a, material, materialOf(200, hsm.Kind{Class: hsm.ClassAES})), Spec: s}
			made, err := p.ImportKey(ctx, r)
			must(t, made, err)
			again, err := p.ImportKey(ctx, r)
			must(t, again, err)
			one, err := hsm.ParseToken(made.Token)
			must(t, one, err)
			two, err := hsm.ParseToken(again.Token)
			if must(t, two, err); one.Check != two.Check {
				t.Errorf("%s: the same bytes with another check value", a)
			}
			want := header(s)
			want.Attributes = hsm.AttrImported
			if one.Header != want {
				t.Errorf("%s: header %+v, want %+v", a, one.Header, want)
			}
			useImported(t, p, made.Token, want, k, material)
			if env.Reopen != nil && n == 12 {
				p = env.Reopen(t)
				useImported(t, p, made.Token, want, k, material)
			}
		}
	}
}

// useImported compares what a key does with what its material does outside.
func useImported(t T, p hsm.Partition, token []byte, want hsm.TokenHeader, k hsm.Kind, material []byte) {
	t.Helper()
	if k.Class == hsm.ClassAES {
		key, err := p.Open(t.Context(), token, want)
		must(t, key, err)
		defer key.Close()
		c, err := aes.NewCipher(material)
		must(t, c, err)
		var got, expected, block [hsm.BlockSize]byte
		must(t, 0, key.EncryptBlocks(t.Context(), got[:], block[:]))
		c.Encrypt(expected[:], block[:])
		if got != expected {
			t.Errorf("another AES key than the one that was imported")
		}
		plain := want
		plain.Attributes = 0
		_, err = p.Open(t.Context(), token, plain)
		wantErr(t, "an imported key as one that was made", err, hsm.ErrCorrupt)
		return
	}
	ref := hsm.Ref{Token: token, Want: want, Kind: k}
	a := k.Algorithms()[0]
	h := hmac.New(a.Hash().New, material)
	h.Write([]byte("m"))
	if got := apply(t, openSecret(t, p, ref), ref, a, "m"); !hmac.Equal(got, h.Sum(nil)) {
		t.Errorf("another HMAC key than the one that was imported")
	}
}

// testImportRefused brings what is wrong.
func testImportRefused(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	createDomain(t, p, other, 1)
	aes256 := hsm.Kind{Class: hsm.ClassAES}
	kek := materialOf(200, aes256)
	for what, s := range map[string]hsm.ImportPairSpec{
		"a short key":          pairSpec(1, 1024, hsm.ImportOAEPSHA1),
		"no algorithm":         pairSpec(1, 2048, ""),
		"an unknown algorithm": pairSpec(1, 2048, "RSAES_PKCS1_V1_5"),
	} {
		_, err := p.NewImportPair(ctx, s)
		wantErr(t, what, err, hsm.ErrRefused)
	}
	absent := pairSpec(1, 2048, hsm.ImportOAEPSHA1)
	absent.Generation = 9
	_, err := p.NewImportPair(ctx, absent)
	wantErr(t, "a generation that is not there", err, hsm.ErrNotFound)
	for _, a := range importAlgorithms() {
		pair := importPair(t, p, pairSpec(1, 2048, a))
		good := wrapMaterial(t, pair.SPKI, a, materialOf(1, aes256), kek)
		try := func(what string, want error, edit func(r *hsm.ImportRequest)) {
			t.Helper()
			r := hsm.ImportRequest{Token: bytes.Clone(pair.Token), Ciphertext: bytes.Clone(good), Spec: spec(1)}
			edit(&r)
			_, err := p.ImportKey(ctx, r)
			wantErr(t, string(a)+": "+what, err, want)
		}
		for _, n := range []int{0, 1, 16, 24, 31, 33, 40, 64} {
			if a.Wraps() && n < 16 {
				continue // RFC 5649 of one block, which nobody needs here
			}
			try("material of another size", hsm.ErrCiphertext, func(r *hsm.ImportRequest) {
				r.Ciphertext = wrapMaterial(t, pair.SPKI, a, bytes.Repeat([]byte{7}, n), kek)
			})
		}
		for _, k := range importable()[1:] {
			for _, n := range []int{k.MaterialSize() - 8, k.MaterialSize() - 1, k.MaterialSize() + 1, k.MaterialSize() + 8} {
				try(fmt.Sprintf("%d bytes for an HMAC key of %d bits", n, k.Bits), hsm.ErrCiphertext, func(r *hsm.ImportRequest) {
					r.Spec.Class, r.Spec.Bits = k.Class, k.Bits
					r.Ciphertext = wrapMaterial(t, pair.SPKI, a, bytes.Repeat([]byte{7}, n), kek)
				})
			}
		}
		if a.Wraps() {
			for _, n := range []int{16, 24} {
				try("a shorter AES key", hsm.ErrCiphertext, func(r *hsm.ImportRequest) {
					r.Ciphertext = wrapMaterial(t, pair.SPKI, a, materialOf(1, aes256), kek[:n])
				})
			}
		}
		for i := 0; i < len(good); i += 31 {
			try("a flipped bit", hsm.ErrCiphertext, func(r *hsm.ImportRequest) { r.Ciphertext[i] ^= 1 })
		}
		for what, c := range map[string][]byte{
			"nothing": nil, "a byte less": good[:len(good)-1], "a byte more": append(bytes.Clone(good), 0), "8 bytes more": append(bytes.Clone(good), make([]byte, 8)...),
			"zeros": make([]byte, len(good)), "ones": bytes.Repeat([]byte{255}, len(good)), "too much": make([]byte, 1<<16),
		} {
			try(what, hsm.ErrCiphertext, func(r *hsm.ImportRequest) { r.Ciphertext = c })
		}
		try("the other hash", hsm.ErrCiphertext, func(r *hsm.ImportRequest) {
			other := map[hsm.ImportAlgorithm]hsm.ImportAlgorithm{
				hsm.ImportOAEPSHA1: hsm.ImportOAEPSHA256, hsm.ImportOAEPSHA256: hsm.ImportOAEPSHA1,
				hsm.ImportAESWrapSHA1: hsm.ImportAESWrapSHA256, hsm.ImportAESWrapSHA256: hsm.ImportAESWrapSHA1,
			}[a]
			r.Ciphertext = wrapMaterial(t, pair.SPKI, other, materialOf(1, aes256), kek)
		})
		try("another key", hsm.ErrRefused, func(r *hsm.ImportRequest) { r.Spec.Key = spec(2).Key })
		try("another cluster", hsm.ErrRefused, func(r *hsm.ImportRequest) { r.Spec.Cluster = other })
		try("a kind that is not imported", hsm.ErrRefused, func(r *hsm.ImportRequest) { r.Spec.Class, r.Spec.Bits = hsm.ClassRSA, 2048 })
		try("the token of a key", hsm.ErrRefused, func(r *hsm.ImportRequest) { r.Token = generate(t, p, spec(1)) })
		try("a cut token", hsm.ErrRefused, func(r *hsm.ImportRequest) { r.Token = r.Token[:len(r.Token)-1] })
		for i := 0; i < len(pair.Token); i += 7 {
			r := hsm.ImportRequest{Token: bytes.Clone(pair.Token), Ciphertext: good, Spec: spec(1)}
			r.Token[i] ^= 1
			if made, err := p.ImportKey(ctx, r); err == nil {
				t.Errorf("%s: a token altered at %d is taken: %d bytes", a, i, len(made.Token))
			} else {
				wantErr(t, "an altered token", err, hsm.ErrRefused, hsm.ErrNotFound)
			}
		}
		made, err := p.ImportKey(ctx, hsm.ImportRequest{Token: pair.Token, Ciphertext: good, Spec: spec(1)})
		must(t, made, err) // all that left it as it was
		// The pair is of no other use.
		h := header(spec(1))
		h.Class, h.Version = hsm.ClassRSA, mustParse(t, pair.Token).Header.Version
		_, err = p.OpenSecret(ctx, hsm.Ref{Token: pair.Token, Want: h, Kind: hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}, SPKI: pair.SPKI})
		if mustParse(t, pair.Token).Header.Class == hsm.ClassImportRSA {
			wantErr(t, "an import pair as a key", err, hsm.ErrCorrupt)
		}
	}
	sum := sha256.Sum256(nil)
	_, err = p.ImportKey(ctx, hsm.ImportRequest{Token: sum[:], Ciphertext: sum[:], Spec: spec(1)})
	wantErr(t, "no token", err, hsm.ErrRefused)
}

func mustParse(t T, token []byte) hsm.Token {
	t.Helper()
	parsed, err := hsm.ParseToken(token)
	return must(t, parsed, err)
}
