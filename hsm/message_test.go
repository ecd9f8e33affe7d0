package hsm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha3"
	"encoding/hex"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// sealXAES is XAES-256-GCM with the key schedule of a Keyring.
func sealXAES(t *testing.T, k *hsm.Keyring, key, nonce, plaintext, aad []byte) []byte {
	t.Helper()
	ref := hsm.Ref{Token: key, Want: hsm.TokenHeader{Key: hsm.ID(key)}}
	keys, err := k.Derive(context.Background(), ref, hsm.MessageInput{Nonce: [24]byte(nonce)}, hsm.Seal)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(keys.Msg[:])
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(nil, nonce[12:], plaintext, aad)
}

// The vectors of https://c2sp.org/XAES-256-GCM.
func TestXAESVectors(t *testing.T) {
	k := hsm.NewKeyring(&fakeHSM{}, hsm.KeyringConfig{})
	defer k.Close()
	for _, v := range []struct {
		key       byte
		aad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		key := bytes.Repeat([]byte{v.key}, 32)
		got := sealXAES(t, k, key, []byte("ABCDEFGHIJKLMNOPQRSTUVWX"), []byte("XAES-256-GCM"), []byte(v.aad))
		if hex.EncodeToString(got) != v.want {
			t.Errorf("key %d: %x, want %s", v.key, got, v.want)
		}
	}
}

// The accumulated randomized vector of the specification: 10,000 keys.
func TestXAESAccumulated(t *testing.T) {
	k := hsm.NewKeyring(&fakeHSM{}, hsm.KeyringConfig{MaxKeys: 4})
	defer k.Close()
	in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	next := func(n int) []byte {
		b := make([]byte, n)
		if _, err := in.Read(b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for range 10_000 {
		key, nonce := next(32), next(24)
		plaintext := next(int(next(1)[0]))
		aad := next(int(next(1)[0]))
		if _, err := out.Write(sealXAES(t, k, key, nonce, plaintext, aad)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 32)
	if _, err := out.Read(got); err != nil {
		t.Fatal(err)
	}
	const want = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
	if hex.EncodeToString(got) != want {
		t.Errorf("%x, want %s", got, want)
	}
}
