package hsm_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

var (
	p256  = hsm.Kind{Class: hsm.ClassEC, Bits: 256}
	p384  = hsm.Kind{Class: hsm.ClassEC, Bits: 384}
	rsa2k = hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}
)

func TestKinds(t *testing.T) {
	for _, k := range []hsm.Kind{
		{Class: hsm.ClassAES},
		{Class: hsm.ClassHMAC, Bits: 256},
		{Class: hsm.ClassHMAC, Bits: 384},
		{Class: hsm.ClassHMAC, Bits: 512},
		rsa2k,
		{Class: hsm.ClassRSA, Bits: 3072},
		{Class: hsm.ClassRSA, Bits: 4096, Decrypts: true},
		p256, p384,
	} {
		if err := k.Valid(); err != nil {
			t.Errorf("%+v: %v", k, err)
		}
		for _, a := range k.Algorithms() {
			if a.Hash().Size() == 0 || a.Scheme() == 0 || a.Signs() != (a.Scheme() != hsm.SchemeMAC && a.Scheme() != hsm.SchemeOAEP) {
				t.Errorf("%s", a)
			}
		}
	}
	for _, k := range []hsm.Kind{
		{},
		{Class: 9, Bits: 256},
		{Class: hsm.ClassAES, Bits: 256},
		{Class: hsm.ClassHMAC},
		{Class: hsm.ClassHMAC, Bits: 128},
		{Class: hsm.ClassHMAC, Bits: 256, Decrypts: true},
		{Class: hsm.ClassRSA, Bits: 1024},
		{Class: hsm.ClassEC, Bits: 521},
		{Class: hsm.ClassEC, Bits: 256, Decrypts: true},
		{Class: hsm.ClassImportRSA, Bits: 2048},
	} {
		if err := k.Valid(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%+v: %v", k, err)
		}
	}
	if a := hsm.Algorithm("MD5"); a.Scheme() != 0 || a.Hash() != 0 || a.Signs() {
		t.Error("an unknown algorithm is something")
	}
}

// spkiOf is the DER of a public key.
func spkiOf(t testing.TB, public any) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func generated[K any](t testing.TB) func(K, error) K {
	t.Helper()
	return func(k K, err error) K {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

func TestParsePublicKey(t *testing.T) {
	ec := generated[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ec384 := generated[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	ec521 := generated[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	key := generated[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	short := generated[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	x := generated[*ecdh.PrivateKey](t)(ecdh.X25519().GenerateKey(rand.Reader))
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]struct {
		spki []byte
		kind hsm.Kind
	}{
		"P-256": {spkiOf(t, &ec.PublicKey), p256}, "P-384": {spkiOf(t, &ec384.PublicKey), p384}, "RSA": {spkiOf(t, &key.PublicKey), rsa2k},
	} {
		if _, err := hsm.ParsePublicKey(good.spki, good.kind); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, kind := range []hsm.Kind{p256, p384, rsa2k, {Class: hsm.ClassRSA, Bits: 3072}, {Class: hsm.ClassHMAC, Bits: 256}, {}} {
			if _, err := hsm.ParsePublicKey(good.spki, kind); kind != good.kind && !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("%s as %+v: %v", name, kind, err)
			}
		}
		for what, bad := range map[string][]byte{
			"nothing": nil, "a byte more": append(bytes.Clone(good.spki), 0), "a byte less": good.spki[:len(good.spki)-1], "no DER": []byte("key"),
		} {
			if _, err := hsm.ParsePublicKey(bad, good.kind); !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	other := key.PublicKey
	other.E = 3
	for name, bad := range map[string]any{
		"P-521": &ec521.PublicKey, "RSA of 1,024 bits": &short.PublicKey, "RSA with exponent 3": &other, "Ed25519": ed, "X25519": x.PublicKey(),
	} {
		for _, kind := range []hsm.Kind{p256, p384, rsa2k} {
			if _, err := hsm.ParsePublicKey(spkiOf(t, bad), kind); !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func FuzzParsePublicKey(f *testing.F) {
	ec := generated[*ecdsa.PrivateKey](f)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	f.Add(spkiOf(f, &ec.PublicKey), uint8(hsm.ClassEC), uint16(256))
	f.Add(spkiOf(f, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(3), 2046), E: 65537}), uint8(hsm.ClassRSA), uint16(2048))
	f.Fuzz(func(t *testing.T, spki []byte, class uint8, bits uint16) {
		kind := hsm.Kind{Class: hsm.Class(class), Bits: bits}
		public, err := hsm.ParsePublicKey(spki, kind)
		if err != nil {
			return
		}
		for _, a := range kind.Algorithms() {
			if public.Verify(a, make([]byte, a.Hash().Size()), make([]byte, 64)) == nil {
				t.Errorf("%s: zeros are a signature", a)
			}
		}
	})
}

// TestPublicHalfIsBound: the token names the public half beside it, and no other pair's.
func TestPublicHalfIsBound(t *testing.T) {
	half := func() []byte {
		return spkiOf(t, &generated[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey)
	}
	own, other := half(), half()
	want := hsm.TokenHeader{Class: hsm.ClassEC, Key: hsm.ID{1}, Version: 1, Created: time.Unix(0, 0)}
	token, err := hsm.BuildToken(want, hsm.CheckValuePublic(want.Class, want.Key, want.Version, own), make([]byte, hsm.MinWrapped),
		func([]byte) ([]byte, error) { return make([]byte, 32), nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (hsm.Ref{Token: token, Want: want, Kind: p256, SPKI: own}).Public(); err != nil {
		t.Error(err)
	}
	if _, err := (hsm.Ref{Token: token, Want: want, Kind: p256, SPKI: other}).Public(); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("another pair's public half: %v", err)
	}
}

// TestCheckValuesAreFrozen: they stand in tokens.
func TestCheckValuesAreFrozen(t *testing.T) {
	id := hsm.ID([]byte("0123456789abcdef"))
	check := hsm.CheckValuePublic(hsm.ClassEC, id, 7, []byte("spki"))
	if got, want := hex.EncodeToString(check[:]), "f7c9b24a06d895b644d00e80844908b7"; got != want {
		t.Errorf("public: %s", got)
	}
	want := sha256.Sum256([]byte("quorumkms/kcv/v1\x040123456789abcdef\x00\x00\x00\x07spki"))
	if !bytes.Equal(check[:], want[:16]) {
		t.Errorf("public: %x, want %x", check, want[:16])
	}
	message := hsm.CheckMessageHMAC(id, 7)
	if string(message) != "quorumkms/kcv/v10123456789abcdef\x00\x00\x00\x07" {
		t.Errorf("hmac: %q", message)
	}
	if err := (hsm.Kind{Class: hsm.ClassHMAC, Bits: 256}).Accepts(hsm.HMACSHA256, message); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("the message of a check value: %v", err)
	}
}
