package hsm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// fakeResident is a resident key with what an HSM can do wrong.
type fakeResident struct {
	iv      byte // of the next message
	stuck   bool
	seals   int
	commits int
	commit  func(call int, com *[32]byte) error // changes an answer
	sealed  func(ciphertext []byte) []byte
	open    func(plaintext []byte) ([]byte, error)
}

func (f *fakeResident) block() cipher.Block {
	b, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fakeResident) aead() cipher.AEAD {
	a, err := cipher.NewGCM(f.block())
	if err != nil {
		panic(err)
	}
	return a
}

func (f *fakeResident) Commit(_ context.Context, t [32]byte) (com [32]byte, err error) {
	blocks := hsm.CommitBlocks(t)
	for i := range 2 {
		mac := hsm.BlockCMAC(f.block(), [16]byte(blocks[16*i:]))
		copy(com[16*i:], mac[:])
	}
	f.commits++
	if f.commit != nil {
		err = f.commit(f.commits, &com)
	}
	return com, err
}

func (f *fakeResident) Seal(ctx context.Context, plaintext []byte, bind hsm.Binding) ([]byte, error) {
	if !f.stuck {
		f.iv++
	}
	f.seals++
	iv := [hsm.IVSize]byte{f.iv}
	t, aad := bind(iv)
	com, err := f.Commit(ctx, t)
	if err != nil {
		return nil, err
	}
	ciphertext := f.aead().Seal(nil, iv[:], plaintext, aad(&com))
	if f.sealed != nil {
		ciphertext = f.sealed(ciphertext)
	}
	return ciphertext, nil
}

func (f *fakeResident) Open(_ context.Context, iv [hsm.IVSize]byte, ciphertext, aad []byte) ([]byte, error) {
	plaintext, err := f.aead().Open(nil, iv[:], ciphertext, aad)
	if err != nil {
		return nil, hsm.ErrCiphertext
	}
	if f.open != nil {
		return f.open(plaintext)
	}
	return plaintext, nil
}

func (f *fakeResident) Close() {}

func bindTest(iv [hsm.IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
	return [32]byte{iv[0], 1}, func(*[32]byte) []byte { return []byte{iv[0], 2} }
}

// TestEncryptChecksTheHSM: nothing leaves that does not open again, and a message is never
// encrypted a second time.
func TestEncryptChecksTheHSM(t *testing.T) {
	ref := testRef(1)
	ref.Kind = hsm.Kind{Class: hsm.ClassResident}
	flip := func(b []byte) []byte { b[0] ^= 1; return b }
	for name, tc := range map[string]struct {
		key  fakeResident
		want error
	}{
		"well":                         {fakeResident{}, nil},
		"an IV twice":                  {fakeResident{stuck: true, iv: 7}, hsm.ErrCorrupt},
		"an IV of zeros":               {fakeResident{stuck: true}, hsm.ErrCorrupt},
		"another ciphertext":           {fakeResident{sealed: flip}, hsm.ErrCorrupt},
		"a ciphertext without its end": {fakeResident{sealed: func(b []byte) []byte { return b[:len(b)-1] }}, hsm.ErrCorrupt},
		"no ciphertext":                {fakeResident{sealed: func([]byte) []byte { return nil }}, hsm.ErrCorrupt},
		"another plaintext":            {fakeResident{open: func(b []byte) ([]byte, error) { return flip(b), nil }}, hsm.ErrCorrupt},
		"a shorter plaintext":          {fakeResident{open: func(b []byte) ([]byte, error) { return b[1:], nil }}, hsm.ErrCorrupt},
		"a wrong K_com when sealing":   {fakeResident{commit: func(n int, com *[32]byte) error { com[31] ^= byte(n & 1); return nil }}, hsm.ErrCorrupt},
		"another key since":            {fakeResident{commit: func(n int, com *[32]byte) error { com[31] ^= map[bool]byte{true: 1}[n > 1]; return nil }}, hsm.ErrWrongAnswer},
		"lost before the message":      {fakeResident{commit: func(int, *[32]byte) error { return hsm.ErrStale }}, hsm.ErrUnavailable},
		"lost before it is checked":    {fakeResident{commit: func(n int, _ *[32]byte) error { return map[bool]error{true: hsm.ErrStale}[n == 3] }}, hsm.ErrUnavailable},
		"lost while it is checked":     {fakeResident{open: func([]byte) ([]byte, error) { return nil, hsm.ErrStale }}, hsm.ErrUnavailable},
		"out of order while it checks": {fakeResident{open: func([]byte) ([]byte, error) { return nil, hsm.ErrUnavailable }}, hsm.ErrUnavailable},
	} {
		fake := &fakeHSM{resident: &tc.key}
		k := hsm.NewKeyring(fake, hsm.KeyringConfig{})
		var err error
		var got []byte
		for range 2 { // the second is what finds an IV that is the one before
			if got, err = k.Encrypt(t.Context(), ref, []byte("message"), bindTest); err != nil {
				break
			}
		}
		if !errors.Is(err, tc.want) || (got == nil) != (tc.want != nil) {
			t.Errorf("%s: %x, %v, want %v", name, got, err, tc.want)
		}
		if name == "lost before it is checked" || name == "lost while it is checked" {
			if tc.key.seals != 1 {
				t.Errorf("%s: sealed %d times", name, tc.key.seals)
			}
		}
		k.Close()
	}
}

func TestDecryptVerifiesFirst(t *testing.T) {
	ref := testRef(1)
	ref.Kind = hsm.Kind{Class: hsm.ClassResident}
	opened := 0
	key := &fakeResident{}
	k := hsm.NewKeyring(&fakeHSM{resident: key}, hsm.KeyringConfig{})
	defer k.Close()
	var aad []byte
	ciphertext, err := k.Encrypt(t.Context(), ref, []byte("message"), bindTest)
	if err != nil {
		t.Fatal(err)
	}
	key.open = func(b []byte) ([]byte, error) { opened++; return b, nil }
	iv := [hsm.IVSize]byte{key.iv}
	tOf, finish := bindTest(iv)
	aad = finish(nil)
	why := errors.New("the commitment differs")
	_, err = k.Decrypt(t.Context(), ref, iv, tOf, ciphertext, func(*[32]byte) ([]byte, error) { return nil, why })
	if !errors.Is(err, why) || opened != 0 {
		t.Errorf("%v, opened %d times", err, opened)
	}
	got, err := k.Decrypt(t.Context(), ref, iv, tOf, ciphertext, func(*[32]byte) ([]byte, error) { return aad, nil })
	if err != nil || string(got) != "message" {
		t.Errorf("%q, %v", got, err)
	}
	for _, n := range []int{0, hsm.TagSize, hsm.TagSize + hsm.MaxResident + 1} {
		if _, err := k.Decrypt(t.Context(), ref, iv, tOf, make([]byte, n), nil); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, n := range []int{0, hsm.MaxResident + 1} {
		if _, err := k.Encrypt(t.Context(), ref, make([]byte, n), bindTest); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// TestBlockCMAC: RFC 4493, example 2, and NIST SP 800-38B, AES-256 with a message of a block.
func TestBlockCMAC(t *testing.T) {
	for key, want := range map[string]string{
		"2b7e151628aed2a6abf7158809cf4f3c":                                 "070a16b46b4d4144f79bdd9dd04a287c",
		"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": "28a7023f452e8f82bd4bf28d8c37c35c",
	} {
		raw, err := hex.DecodeString(key)
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(raw)
		if err != nil {
			t.Fatal(err)
		}
		message, err := hex.DecodeString("6bc1bee22e409f96e93d7e117393172a")
		if err != nil {
			t.Fatal(err)
		}
		if got := hsm.BlockCMAC(block, [16]byte(message)); hex.EncodeToString(got[:]) != want {
			t.Errorf("%x, want %s", got, want)
		}
	}
}

// TestCheckValues: both ways to compute a check value give the same one, and K_com of suite 2
// is that of suite 1.
func TestCheckValues(t *testing.T) {
	block := (&fakeResident{}).block()
	encrypt := func(dst, src []byte) error {
		for i := 0; i < len(src); i += 16 {
			block.Encrypt(dst[i:], src[i:])
		}
		return nil
	}
	cmac := func(dst, src *[32]byte) error {
		for i := range 2 {
			mac := hsm.BlockCMAC(block, [16]byte(src[16*i:]))
			copy(dst[16*i:], mac[:])
		}
		return nil
	}
	a, err := hsm.CheckValueAES(encrypt, hsm.ID{1}, 2)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hsm.CheckValueCMAC(cmac, hsm.ID{1}, 2)
	if err != nil || a != b {
		t.Errorf("%x by blocks, %x by CMACs (%v)", a, b, err)
	}
	k := hsm.NewKeyring(&fakeHSM{}, hsm.KeyringConfig{})
	defer k.Close()
	ref := hsm.Ref{Token: make([]byte, 32), Want: hsm.TokenHeader{Class: hsm.ClassAES, Key: hsm.ID{9}}}
	in := hsm.MessageInput{T: [32]byte(bytes.Repeat([]byte{3, 1, 4, 1}, 8))}
	keys, err := k.Derive(t.Context(), ref, in, hsm.Open)
	if err != nil {
		t.Fatal(err)
	}
	if com, err := (&fakeResident{}).Commit(t.Context(), in.T); err != nil || com != keys.Com {
		t.Errorf("K_com is %x, %x in suite 1 (%v)", com, keys.Com, err)
	}
}
