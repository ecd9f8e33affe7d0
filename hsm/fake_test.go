package hsm_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// fakeHSM opens "tokens" that are raw AES-256 keys. Its hooks stand for what a
// token can do wrong; they are set before the first call.
type fakeHSM struct {
	onOpen  func(ctx context.Context, token []byte) error
	onCall  func(ctx context.Context, src []byte) error // before encrypting
	corrupt func(dst []byte)                            // after it
	// resident, unless nil, is the key of OpenResident.
	resident hsm.ResidentKey

	opens, openNow, openMost atomic.Int64
	mu                       sync.Mutex
	sizes                    []int // blocks of every call that is no load
}

// noResident is an opener's part that opens no resident keys.
type noResident struct{}

func (noResident) OpenResident(context.Context, []byte, hsm.TokenHeader) (hsm.ResidentKey, error) {
	return nil, hsm.ErrUnsupported
}

type fakeKey struct {
	hsm    *fakeHSM
	block  cipher.Block
	closed atomic.Bool
}

func (f *fakeHSM) Open(ctx context.Context, token []byte, _ hsm.TokenHeader) (hsm.BlockKey, error) {
	f.opens.Add(1)
	if f.onOpen != nil {
		if err := f.onOpen(ctx, token); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(token)
	if err != nil {
		return nil, errors.Join(hsm.ErrCorrupt, err)
	}
	now := f.openNow.Add(1)
	for most := f.openMost.Load(); now > most && !f.openMost.CompareAndSwap(most, now); {
		most = f.openMost.Load()
	}
	return &fakeKey{hsm: f, block: block}, nil
}

// OpenResident implements hsm.Opener.
func (f *fakeHSM) OpenResident(context.Context, []byte, hsm.TokenHeader) (hsm.ResidentKey, error) {
	f.opens.Add(1)
	if f.resident == nil {
		return nil, hsm.ErrUnsupported
	}
	return f.resident, nil
}

// OpenSecret implements hsm.Opener: there are AES keys only.
func (f *fakeHSM) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	return nil, hsm.ErrUnsupported
}

func (k *fakeKey) EncryptBlocks(ctx context.Context, dst, src []byte) error {
	if k.closed.Load() {
		return errors.New("use of a closed key")
	}
	loading := len(src) == hsm.BlockSize
	if !loading && k.hsm.onCall != nil {
		if err := k.hsm.onCall(ctx, src); err != nil {
			return err
		}
	}
	for i := 0; i < len(src); i += hsm.BlockSize {
		k.block.Encrypt(dst[i:], src[i:])
	}
	if loading {
		return nil
	}
	k.hsm.mu.Lock()
	k.hsm.sizes = append(k.hsm.sizes, len(src)/hsm.BlockSize)
	k.hsm.mu.Unlock()
	if k.hsm.corrupt != nil {
		k.hsm.corrupt(dst)
	}
	if k.closed.Load() {
		return errors.New("key closed under a running call")
	}
	return nil
}

func (k *fakeKey) Close() {
	if !k.closed.Swap(true) {
		k.hsm.openNow.Add(-1)
	}
}

// testRef is the n-th key of the tests: its token is the raw key.
func testRef(n byte) hsm.Ref {
	token := make([]byte, 32)
	for i := range token {
		token[i] = n
	}
	return hsm.Ref{Token: token, Want: hsm.TokenHeader{Class: hsm.ClassAES, Key: hsm.ID{n}, Version: 1}}
}

// testInput is the n-th message of the tests.
func testInput(n int) (in hsm.MessageInput) {
	seed := binary.BigEndian.AppendUint64(nil, uint64(n)) //nolint:gosec // small
	in.T = sha256.Sum256(seed)
	other := sha256.Sum256(in.T[:])
	copy(in.Nonce[:], other[:])
	return in
}

// reference computes the keys of a message straight from the format's text.
func reference(t testing.TB, key []byte, in hsm.MessageInput) (k hsm.MessageKeys) {
	t.Helper()
	e, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	var l [16]byte
	e.Encrypt(l[:], l[:])
	doubled := new(big.Int).Lsh(new(big.Int).SetBytes(l[:]), 1)
	if doubled.Bit(128) == 1 {
		doubled.SetBit(doubled, 128, 0)
		doubled.Xor(doubled, big.NewInt(0x87))
	}
	var k1 [16]byte
	doubled.FillBytes(k1[:])
	derive := func(dst []byte, counter, label byte, data []byte) {
		b := append([]byte{0, counter, label, 0}, data...)
		for i := range b {
			b[i] ^= k1[i]
		}
		e.Encrypt(dst, b)
	}
	derive(k.Msg[:16], 1, 'X', in.Nonce[:12])
	derive(k.Msg[16:], 2, 'X', in.Nonce[:12])
	derive(k.Com[:16], 1, 'C', in.T[:12])
	derive(k.Com[16:], 2, 'C', in.T[12:24])
	return k
}

func hmacSHA256(key []byte, message ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, m := range message {
		h.Write(m)
	}
	return h.Sum(nil)
}
