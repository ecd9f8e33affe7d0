//go:build cgo

package p11

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

func testSpec(n byte) hsm.KeySpec {
	return hsm.KeySpec{
		Cluster: testCluster, Generation: 1, Class: hsm.ClassAES,
		Key: hsm.ID{n, 0xee}, Version: 1, Created: time.Unix(1700000000, 0),
	}
}

// withDomain opens a partition with a generation in it.
func withDomain(t testing.TB) *Partition {
	t.Helper()
	p := mustOpen(t, config(newToken(t)))
	if _, err := p.CreateDomain(t.Context(), testCluster, 1); err != nil {
		t.Fatal(err)
	}
	return p
}

// newKey makes a key and opens it.
func newKey(t testing.TB, p *Partition, n byte) (hsm.BlockKey, []byte, hsm.TokenHeader) {
	t.Helper()
	made, err := p.GenerateKey(t.Context(), testSpec(n))
	if err != nil {
		t.Fatal(err)
	}
	token := made.Token
	want, err := testSpec(n).Header()
	if err != nil {
		t.Fatal(err)
	}
	key, err := p.Open(t.Context(), token, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Close)
	return key, token, want
}

// onSession runs fn with a session of the partition.
func onSession(t *testing.T, p *Partition, fn func(*session) error) {
	t.Helper()
	if err := p.do(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// countObjects counts all objects a logged-in user sees, those of sessions included.
func countObjects(t *testing.T, p *Partition) (n int) {
	t.Helper()
	onSession(t, p, func(s *session) error {
		all, err := s.find(nil)
		n = len(all)
		return err
	})
	return n
}

func TestNothingIsLeftBehind(t *testing.T) {
	p := withDomain(t)
	before := countObjects(t, p)
	if want := 2 + len(hsm.DomainKinds()); before != want {
		t.Fatalf("%d objects after CreateDomain, want %d: the identity key and the domain keys", before, want)
	}
	made, err := p.GenerateKey(t.Context(), testSpec(1))
	if err != nil {
		t.Fatal(err)
	}
	token := made.Token
	if n := countObjects(t, p); n != before {
		t.Errorf("GenerateKey leaves %d objects", n-before)
	}
	want, err := testSpec(1).Header()
	if err != nil {
		t.Fatal(err)
	}
	key, err := p.Open(t.Context(), token, want)
	if err != nil {
		t.Fatal(err)
	}
	if n := countObjects(t, p); n != before+1 {
		t.Errorf("Open makes %d objects, want 1", n-before)
	}
	key.Close()
	key.Close()
	if n := countObjects(t, p); n != before {
		t.Errorf("Close leaves %d objects", n-before)
	}
	if err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16)); !errors.Is(err, hsm.ErrStale) {
		t.Errorf("a closed key says %v, want %v", err, hsm.ErrStale)
	}
	token[len(token)-1] ^= 1
	if _, err := p.Open(t.Context(), token, want); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("a forged token says %v, want %v", err, hsm.ErrCorrupt)
	}
	if _, err := p.Generations(t.Context(), testCluster); err != nil {
		t.Error(err)
	}
	if n := countObjects(t, p); n != before {
		t.Errorf("a refused token and Generations leave %d objects", n-before)
	}
}

// forge makes a token whose MAC is right and whose wrapped key is what wrapped is.
func forge(t *testing.T, p *Partition, token, wrapped []byte, check [16]byte) []byte {
	t.Helper()
	parsed, err := hsm.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	var forged []byte
	onSession(t, p, func(s *session) error {
		d, err := p.domain(s, domainID{testCluster, 1})
		if err != nil {
			return err
		}
		forged, err = hsm.BuildToken(parsed.Header, check, wrapped, func(message []byte) ([]byte, error) {
			return s.mac(d[hsm.KindMAC], message)
		})
		return err
	})
	return forged
}

func TestOpenForgedToken(t *testing.T) {
	p := withDomain(t)
	_, token, want := newKey(t, p, 1)
	_, other, _ := newKey(t, p, 2)
	parsed, err := hsm.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	otherParsed, err := hsm.ParseToken(other)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(parsed.Wrapped)
	flipped[11] ^= 0x20
	for name, forged := range map[string][]byte{
		"changed wrapped key": forge(t, p, token, flipped, parsed.Check),
		"short wrapped key":   forge(t, p, token, parsed.Wrapped[:16], parsed.Check),
		"key of another id":   forge(t, p, token, otherParsed.Wrapped, parsed.Check),
		"other check value":   forge(t, p, token, parsed.Wrapped, otherParsed.Check),
	} {
		t.Run(name, func(t *testing.T) {
			before := countObjects(t, p)
			if _, err := p.Open(t.Context(), forged, want); !errors.Is(err, hsm.ErrCorrupt) {
				t.Errorf("error %v, want %v", err, hsm.ErrCorrupt)
			}
			if n := countObjects(t, p); n != before {
				t.Errorf("%d objects left behind", n-before)
			}
			if err := p.Healthy(); err != nil {
				t.Errorf("a bad token makes the partition unhealthy: %v", err)
			}
		})
	}
	key, err := p.Open(t.Context(), token, want)
	if err != nil {
		t.Fatalf("the honest token: %v", err)
	}
	key.Close()
}

// TestXAESVectors runs the vectors of the XAES-256-GCM specification
// (github.com/C2SP/C2SP, XAES-256-GCM.md) through the token, with the vectors' keys
// imported under the template of an opened master key.
func TestXAESVectors(t *testing.T) {
	p := mustOpen(t, config(newToken(t)))
	for _, v := range []struct {
		key       byte
		aad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		l, err := p.current()
		if err != nil {
			t.Fatal(err)
		}
		key := &blockKey{&loadedKey{partition: p, link: l}}
		err = p.held(t.Context(), l, func(s *session) error {
			key.handle, err = s.create(masterKey(false).with(octets(pkcs11.CKA_VALUE, bytes.Repeat([]byte{v.key}, keySize))))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		nonce := []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
		aead := xaesKey(t, key, nonce[:12])
		sealed := aead.Seal(nil, nonce[12:], []byte("XAES-256-GCM"), []byte(v.aad)) //nolint:gosec // the vector's nonce
		if got := hex.EncodeToString(sealed); got != v.want {
			t.Errorf("key %d: %s, want %s", v.key, got, v.want)
		}
		key.Close()
	}
}

// xaesKey derives the message key of XAES-256-GCM from the first half of its nonce.
func xaesKey(t *testing.T, key hsm.BlockKey, half []byte) cipher.AEAD {
	t.Helper()
	var l [16]byte
	if err := key.EncryptBlocks(t.Context(), l[:], make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	k1 := hsm.Double(l)
	src := make([]byte, 32)
	for i := range 2 {
		block := append([]byte{0, byte(i + 1), 'X', 0}, half...)
		for j := range block {
			src[16*i+j] = block[j] ^ k1[j]
		}
	}
	derived := make([]byte, 32)
	if err := key.EncryptBlocks(t.Context(), derived, src); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

// TestConcurrency: many goroutines on few sessions, each with work that shows a
// mix-up.
func TestConcurrency(t *testing.T) {
	const goroutines, rounds = 64, 20
	p := withDomain(t)
	shared, token, want := newKey(t, p, 1)
	src := make([]byte, hsm.MaxBlocks*hsm.BlockSize)
	answer := make([]byte, len(src))
	if err := shared.EncryptBlocks(t.Context(), answer, src); err != nil {
		t.Fatal(err)
	}
	before := countObjects(t, p)
	work := func(g byte) error {
		for range rounds {
			key, err := p.Open(context.Background(), token, want)
			if err != nil {
				return err
			}
			dst := make([]byte, hsm.BlockSize*(1+int(g)))
			err = errors.Join(
				key.EncryptBlocks(context.Background(), dst, src[:len(dst)]),
				shared.EncryptBlocks(context.Background(), dst, src[:len(dst)]),
			)
			key.Close()
			if err != nil {
				return err
			}
			if !bytes.Equal(dst, answer[:len(dst)]) {
				return errors.New("another answer")
			}
			if _, err := p.SignIdentity(context.Background(), []byte{g}); err != nil {
				return err
			}
			if err := p.Random(context.Background(), dst[:16]); err != nil {
				return err
			}
		}
		_, err := p.GenerateKey(context.Background(), testSpec(g))
		return err
	}
	var wg sync.WaitGroup
	for g := range byte(goroutines) {
		wg.Go(func() {
			if err := work(g); err != nil {
				t.Errorf("goroutine %d: %v", g, err)
			}
		})
	}
	wg.Wait()
	if n := countObjects(t, p); n != before {
		t.Errorf("%d objects left behind", n-before)
	}
}

// TestSessionsExhausted: calls wait for a session as long as their context lasts, in
// a queue that has an end.
func TestSessionsExhausted(t *testing.T) {
	cfg := config(newToken(t))
	cfg.Sessions = 1
	p := mustOpen(t, cfg)
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := l.take(t.Context(), l.work)
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	outcome := make(chan error)
	go func() { outcome <- p.Random(canceled, make([]byte, 8)) }()
	eventually(t, "the call waits", func() bool { return l.waiting.Load() > 0 })
	cancel()
	if err := <-outcome; !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait says %v", err)
	}
	if err := p.Random(canceled, make([]byte, 8)); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled call says %v", err)
	}
	l.waiting.Add(maxWaiting)
	if err := p.Random(t.Context(), make([]byte, 8)); !errors.Is(err, hsm.ErrBusy) {
		t.Errorf("with a full queue: %v, want %v", err, hsm.ErrBusy)
	}
	l.waiting.Add(-maxWaiting)
	go func() { outcome <- p.Random(t.Context(), make([]byte, 8)) }()
	eventually(t, "the call waits", func() bool { return l.waiting.Load() > 0 })
	l.work <- taken
	if err := <-outcome; err != nil {
		t.Errorf("a session came free: %v", err)
	}
}

// TestFailedSessionIsReplaced: an operation that was begun and not ended must not
// meet the next caller.
func TestFailedSessionIsReplaced(t *testing.T) {
	cfg := config(newToken(t))
	cfg.Sessions = 1
	p := mustOpen(t, cfg)
	var before, after pkcs11.SessionHandle
	begin := func(s *session) error {
		before = s.h
		key, err := s.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_ENCRYPT))
		if err != nil {
			return err
		}
		if err := s.ctx().EncryptInit(s.h, mechanism(pkcs11.CKM_AES_ECB), key); err != nil {
			return err
		}
		return s.encryptBlocks(key, make([]byte, 16), make([]byte, 16))
	}
	if err := p.do(t.Context(), begin); code(err) != pkcs11.CKR_OPERATION_ACTIVE || !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("error %v, want an active operation", err)
	}
	onSession(t, p, func(s *session) error {
		after = s.h
		key, err := s.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_ENCRYPT))
		if err != nil {
			return err
		}
		return errors.Join(s.encryptBlocks(key, make([]byte, 16), make([]byte, 16)), s.destroy(key))
	})
	if before == after {
		t.Error("the failed session is in use again")
	}
	if n := countObjects(t, p); n != 2 {
		t.Errorf("%d objects, want the two of the identity key", n)
	}
}

func TestEncryptBlocksSizes(t *testing.T) {
	p := withDomain(t)
	key, _, _ := newKey(t, p, 1)
	for _, c := range []struct{ dst, src int }{
		{0, 0}, {15, 15}, {17, 17}, {32, 16}, {16, 32}, {4112, 4112}, {16, 0},
	} {
		if err := key.EncryptBlocks(t.Context(), make([]byte, c.dst), make([]byte, c.src)); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%d bytes into %d: %v, want %v", c.src, c.dst, err, hsm.ErrRefused)
		}
	}
	full := make([]byte, hsm.MaxBlocks*hsm.BlockSize)
	if err := key.EncryptBlocks(t.Context(), full, make([]byte, len(full))); err != nil {
		t.Error(err)
	}
}

func BenchmarkEncryptBlocks(b *testing.B) {
	for _, blocks := range []int{4, hsm.MaxBlocks} {
		b.Run(fmt.Sprintf("blocks=%d", blocks), func(b *testing.B) {
			key, _, _ := newKey(b, withDomain(b), 1)
			src := make([]byte, blocks*hsm.BlockSize)
			b.RunParallel(func(pb *testing.PB) {
				dst := make([]byte, len(src))
				for pb.Next() {
					if err := key.EncryptBlocks(b.Context(), dst, src); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkGenerateKey is a new AES key: made, wrapped, opened once, with known answers
// beside it (Doubt, the last), which those who make keys at a time share.
func BenchmarkGenerateKey(b *testing.B) {
	b.Run("key", func(b *testing.B) {
		p := withDomain(b)
		for b.Loop() {
			if _, err := p.GenerateKey(b.Context(), testSpec(1)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("eight at a time", func(b *testing.B) {
		p := withDomain(b)
		b.SetParallelism(max(1, 8/runtime.GOMAXPROCS(0)))
		unwraps := calls(p, hsm.CallUnwrap)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := p.GenerateKey(b.Context(), testSpec(1)); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(calls(p, hsm.CallUnwrap)-unwraps)/float64(b.N)-1, "proofs/op") // each key is opened as well
	})
	b.Run("known answers", func(b *testing.B) {
		p := withDomain(b)
		for b.Loop() {
			if err := p.Doubt(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
