//go:build cgo

package p11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

func residentSpec(n byte) hsm.KeySpec {
	s := testSpec(n)
	s.Class = hsm.ClassResident
	return s
}

// newResident makes a resident key and opens it.
func newResident(t testing.TB, p *Partition, n byte) (*residentKey, hsm.Ref) {
	t.Helper()
	s := residentSpec(n)
	made, err := p.GenerateKey(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Header()
	if err != nil {
		t.Fatal(err)
	}
	key, err := p.OpenResident(t.Context(), made.Token, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Close)
	return key.(*residentKey), hsm.Ref{Token: made.Token, Want: want, Kind: s.Kind()}
}

// sealed is a message whose IV is beside it; it has no additional data.
func sealed(t testing.TB, key hsm.ResidentKey, plaintext []byte) (iv [hsm.IVSize]byte, ciphertext []byte) {
	t.Helper()
	ciphertext, err := key.Seal(t.Context(), plaintext, func(drawn [hsm.IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
		iv = drawn
		return [32]byte{}, func(*[32]byte) []byte { return nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	return iv, ciphertext
}

// rss is the resident memory of this process, in bytes.
func rss(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// TestFailedDecryptionsLeakNothing: neither memory, which the binding's call would lose with
// each, nor sessions; and the token stays in use.
func TestFailedDecryptionsLeakNothing(t *testing.T) {
	const size = 1024
	p := withDomain(t)
	key, _ := newResident(t, p, 1)
	iv, ciphertext := sealed(t, key, make([]byte, size))
	ciphertext[3] ^= 1
	fail := func(n int) {
		t.Helper()
		for range n {
			if _, err := key.Open(t.Context(), iv, ciphertext, nil); !errors.Is(err, hsm.ErrCiphertext) {
				t.Fatal(err)
			}
		}
	}
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	fail(5_000) // until the allocators have what they need
	before := rss(t)
	const n = 100_000
	fail(n)
	if grown := rss(t) - before; grown > n*size/8 {
		t.Errorf("%d failed decryptions of %d bytes leave %d bytes", n, size, grown)
	} else {
		t.Logf("%d failed decryptions: %d KiB more", n, grown>>10)
	}
	if now, err := p.current(); err != nil || now != l {
		t.Errorf("the token was opened again: %v", err)
	}
	if n := len(l.work); n != cap(l.work) {
		t.Errorf("%d sessions of %d are left", n, cap(l.work))
	}
}

// TestWrongTagOrFault: a wrong tag is the ciphertext's fault only if the key is well.
func TestWrongTagOrFault(t *testing.T) {
	p := withDomain(t)
	key, _ := newResident(t, p, 1)
	iv, ciphertext := sealed(t, key, []byte("message"))
	altered := bytes.Clone(ciphertext)
	altered[0] ^= 1
	if _, err := key.Open(t.Context(), iv, altered, nil); !errors.Is(err, hsm.ErrCiphertext) || errors.Is(err, hsm.ErrUnavailable) || code(err) != pkcs11.CKR_OK {
		t.Errorf("a wrong tag: %v", err)
	}
	unwell := &residentKey{key.loadedKey, key.token}
	unwell.token.Check[0] ^= 1
	if _, err := unwell.Open(t.Context(), iv, altered, nil); !errors.Is(err, hsm.ErrWrongAnswer) {
		t.Errorf("a wrong tag, of a key whose known answer is wrong: %v", err)
	}
	if _, err := unwell.Open(t.Context(), iv, ciphertext, nil); err != nil {
		t.Errorf("the right tag: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := key.Open(ctx, iv, ciphertext, nil); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a caller that has gone: %v", err)
	}
	// The token loses the key: a fault, whatever the ciphertext.
	if err := p.held(t.Context(), key.link, func(s *session) error { return s.destroy(key.handle) }); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Open(t.Context(), iv, altered, nil); !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrStale) || errors.Is(err, hsm.ErrCiphertext) {
		t.Errorf("a lost key: %v", err)
	}
}

// TestGenerationOfEarlierRelease: a generation that was made before there were resident keys
// does all that it did, travels as it is, and wraps none; the next one does.
func TestGenerationOfEarlierRelease(t *testing.T) {
	first := slices.DeleteFunc(hsm.DomainKinds(), hsm.KeyKind.Later)
	m := &move{donor: mustOpen(t, config(newToken(t))), recipient: mustOpen(t, config(newToken(t)))}
	err := m.donor.ceremonial(t.Context(), func(s *session) error {
		id := domainID{testCluster, 1}
		h, err := s.vacate(id)
		if err != nil {
			return err
		}
		m.generation, err = s.install(m.donor.traits, id, h, first, s.generateDomainKey)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := m.donor.Generations(t.Context(), testCluster); err != nil || len(all) != 1 || len(all[0].Checks) != len(first) {
		t.Fatalf("generations %v (%v)", all, err)
	}
	m.again(t)
	if g, err := m.recipient.Import(t.Context(), m.mustExport(t), m.want); err != nil || len(g.Checks) != len(first) {
		t.Fatalf("%v (%v)", g, err)
	}
	for _, p := range []*Partition{m.donor, m.recipient} {
		newKey(t, p, 1)
		if _, err := p.GenerateKey(t.Context(), residentSpec(2)); !errors.Is(err, hsm.ErrNotFound) || !strings.Contains(err.Error(), "kind 6") {
			t.Errorf("a resident key: %v", err)
		}
	}
	// A token of it cannot be: what is said to be one is refused.
	made, err := m.donor.CreateDomain(t.Context(), testCluster, 2)
	if err != nil || len(made.Checks) != len(hsm.DomainKinds()) {
		t.Fatalf("the next generation: %v (%v)", made, err)
	}
	s := residentSpec(3)
	s.Generation = 2
	if _, err := m.donor.GenerateKey(t.Context(), s); err != nil {
		t.Errorf("a resident key of the next generation: %v", err)
	}
}

// BenchmarkMessages: a data key of 32 bytes under either protection level, sealed and
// opened, by the keyring.
func BenchmarkMessages(b *testing.B) {
	p := withDomain(b)
	_, token, want := newKey(b, p, 1)
	rooted := hsm.Ref{Token: token, Want: want}
	_, resident := newResident(b, p, 2)
	ring := hsm.NewKeyring(p, hsm.KeyringConfig{})
	defer ring.Close()
	plaintext := make([]byte, 32)
	var iv [hsm.IVSize]byte
	bind := func(drawn [hsm.IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
		iv = drawn
		return [32]byte{}, func(*[32]byte) []byte { return nil }
	}
	ciphertext, err := ring.Encrypt(b.Context(), resident, plaintext, bind)
	if err != nil {
		b.Fatal(err)
	}
	calls := map[string]func() error{
		"rooted/seal": func() error { _, err := ring.Derive(b.Context(), rooted, hsm.MessageInput{}, hsm.Seal); return err },
		"rooted/open": func() error { _, err := ring.Derive(b.Context(), rooted, hsm.MessageInput{}, hsm.Open); return err },
		"resident/seal": func() error {
			_, err := ring.Encrypt(b.Context(), resident, plaintext, func([hsm.IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
				return [32]byte{}, func(*[32]byte) []byte { return nil }
			})
			return err
		},
		"resident/open": func() error {
			_, err := ring.Decrypt(b.Context(), resident, iv, [32]byte{}, ciphertext, func(*[32]byte) ([]byte, error) { return nil, nil })
			return err
		},
	}
	for _, name := range []string{"rooted/seal", "resident/seal", "rooted/open", "resident/open"} {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) {
				b.SetParallelism(callers)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := calls[name](); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
