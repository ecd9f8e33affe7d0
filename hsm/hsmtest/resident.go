package hsmtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
)

// residentSpec asks for the n-th key as one of suite 2.
func residentSpec(n byte) hsm.KeySpec {
	s := spec(n)
	s.Class = hsm.ClassResident
	return s
}

func residentRef(token []byte, s hsm.KeySpec) hsm.Ref {
	return hsm.Ref{Token: token, Want: header(s), Kind: s.Kind()}
}

// letter is a message as its receiver has it.
type letter struct {
	iv         [hsm.IVSize]byte
	com        [32]byte
	ciphertext []byte
	aad        []byte
}

func tOf(iv [hsm.IVSize]byte, context string) [32]byte {
	return sha256.Sum256(append(iv[:], context...))
}

// bound binds a message to a context, and notes what it was bound to.
func bound(l *letter, context string) hsm.Binding {
	return func(iv [hsm.IVSize]byte) ([32]byte, func(*[32]byte) []byte) {
		return tOf(iv, context), func(com *[32]byte) []byte {
			mac := sha256.Sum256(com[:])
			aad := slices.Concat(iv[:], mac[:], []byte(context))
			if l != nil {
				l.iv, l.com, l.aad = iv, *com, aad
			}
			return aad
		}
	}
}

func openResident(t T, p hsm.Partition, token []byte, want hsm.TokenHeader) hsm.ResidentKey {
	t.Helper()
	key, err := p.OpenResident(t.Context(), token, want)
	must(t, key, err)
	t.Cleanup(key.Close)
	return key
}

func testResident(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	s := residentSpec(1)
	token := generate(t, p, s)
	parsed, err := hsm.ParseToken(token)
	must(t, parsed, err)
	if parsed.Header != header(s) || parsed.Header.Attributes != hsm.AttrResident {
		t.Errorf("header %+v, want %+v", parsed.Header, header(s))
	}
	key := openResident(t, p, token, header(s))
	other := openResident(t, p, generate(t, p, residentSpec(2)), header(residentSpec(2)))
	seen := map[[hsm.IVSize]byte]bool{{}: true}
	var letters []letter
	for _, n := range []int{1, 15, 16, 17, 32, 4096, hsm.MaxResident} {
		plaintext := bytes.Repeat([]byte{byte(n)}, n)
		var l letter
		l.ciphertext, err = key.Seal(ctx, plaintext, bound(&l, "context"))
		if must(t, l, err); len(l.ciphertext) != n+hsm.TagSize || seen[l.iv] {
			t.Errorf("%d bytes become %d under the IV %x", n, len(l.ciphertext), l.iv)
		}
		seen[l.iv] = true
		com, err := key.Commit(ctx, tOf(l.iv, "context"))
		if must(t, com, err) != l.com {
			t.Error("another K_com than when the message was sealed")
		}
		got, err := key.Open(ctx, l.iv, l.ciphertext, l.aad)
		if !bytes.Equal(must(t, got, err), plaintext) {
			t.Errorf("%d bytes open as something else", n)
		}
		if com, err := other.Commit(ctx, tOf(l.iv, "context")); must(t, com, err) == l.com {
			t.Error("two keys have one K_com")
		}
		_, err = other.Open(ctx, l.iv, l.ciphertext, l.aad)
		wantErr(t, "under another key", err, hsm.ErrCiphertext)
		letters = append(letters, l)
	}
	if com, err := key.Commit(ctx, tOf(letters[0].iv, "contexts")); must(t, com, err) == letters[0].com {
		t.Error("K_com does not depend on t")
	}
	tampered(t, key, letters[4])
	for _, n := range []int{0, hsm.MaxResident + 1} {
		_, err := key.Seal(ctx, make([]byte, n), bound(nil, ""))
		wantErr(t, fmt.Sprintf("sealing %d bytes", n), err, hsm.ErrRefused)
		_, err = key.Open(ctx, letters[0].iv, make([]byte, n+hsm.TagSize), nil)
		wantErr(t, fmt.Sprintf("opening %d bytes", n), err, hsm.ErrRefused)
	}
	key.Close()
	key.Close()
	_, err = key.Open(ctx, letters[0].iv, letters[0].ciphertext, letters[0].aad)
	wantErr(t, "a closed key", err, hsm.ErrStale)
	if env.Reopen != nil {
		p = env.Reopen(t)
		l := letters[5]
		got, err := openResident(t, p, token, header(s)).Open(ctx, l.iv, l.ciphertext, l.aad)
		if !bytes.Equal(must(t, got, err), bytes.Repeat([]byte{0}, 4096)) {
			t.Error("opens as something else after opening again")
		}
	}
}

// tampered changes each byte of a message in turn, and its length. Every time it is the
// ciphertext's fault, and the key works as before.
func tampered(t T, key hsm.ResidentKey, l letter) {
	t.Helper()
	refused := func(what string, l letter) {
		t.Helper()
		got, err := key.Open(t.Context(), l.iv, l.ciphertext, l.aad)
		wantErr(t, what, err, hsm.ErrCiphertext)
		if got != nil {
			t.Errorf("%s: %d bytes beside the error", what, len(got))
		}
		if errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s looks like a fault of the token: %v", what, err)
		}
	}
	for i := range l.ciphertext {
		x := l
		x.ciphertext = bytes.Clone(l.ciphertext)
		x.ciphertext[i] ^= 0x20
		refused(fmt.Sprintf("byte %d", i), x)
	}
	for i := range l.iv {
		x := l
		x.iv[i] ^= 1
		refused(fmt.Sprintf("byte %d of the IV", i), x)
	}
	x := l
	x.aad = append(bytes.Clone(l.aad), 0)
	refused("longer additional data", x)
	x.aad = nil
	refused("no additional data", x)
	x = l
	x.ciphertext = l.ciphertext[1:]
	refused("a byte less", x)
	x.ciphertext = append(bytes.Clone(l.ciphertext), 0)
	refused("a byte more", x)
	if _, err := key.Open(t.Context(), l.iv, l.ciphertext, l.aad); err != nil {
		t.Errorf("the right message afterwards: %v", err)
	}
}

// testResidentRefused: a key is of one suite for life, whatever is said of it.
func testResidentRefused(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	inside, outside := residentSpec(1), spec(1)
	residentToken, token := generate(t, p, inside), generate(t, p, outside)
	_, err := p.Open(ctx, residentToken, header(inside))
	wantErr(t, "a resident key as a block key", err, hsm.ErrRefused)
	_, err = p.Open(ctx, residentToken, header(outside))
	wantErr(t, "a resident key that is said to be a block key", err, hsm.ErrCorrupt)
	_, err = p.OpenResident(ctx, token, header(outside))
	wantErr(t, "a block key as a resident key", err, hsm.ErrRefused)
	_, err = p.OpenResident(ctx, token, header(inside))
	wantErr(t, "a block key that is said to be resident", err, hsm.ErrCorrupt)
	_, err = p.OpenSecret(ctx, residentRef(residentToken, inside))
	wantErr(t, "a resident key as a secret key", err, hsm.ErrRefused)
	for name, change := range map[string]func(*hsm.TokenHeader){
		"attributes": func(h *hsm.TokenHeader) { h.Attributes = 0 },
		"class":      func(h *hsm.TokenHeader) { h.Class = hsm.ClassHMAC },
		"version":    func(h *hsm.TokenHeader) { h.Version++ },
		"key":        func(h *hsm.TokenHeader) { h.Key[3]++ },
	} {
		want := header(inside)
		change(&want)
		_, err = p.OpenResident(ctx, residentToken, want)
		wantErr(t, name, err, hsm.ErrCorrupt)
	}
	for i := range residentToken {
		altered := bytes.Clone(residentToken)
		altered[i] ^= 1
		_, err := p.OpenResident(ctx, altered, header(inside))
		wantErr(t, fmt.Sprintf("byte %d of the token", i), err, hsm.ErrCorrupt, hsm.ErrNotFound)
	}
}

// testResidentKeyring: many messages at a time, with some that were altered among them.
func testResidentKeyring(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	ring := hsm.NewKeyring(p, hsm.KeyringConfig{})
	defer ring.Close()
	refs := []hsm.Ref{
		residentRef(generate(t, p, residentSpec(1)), residentSpec(1)), residentRef(generate(t, p, residentSpec(2)), residentSpec(2)),
	}
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			ref, context, plaintext := refs[i%2], fmt.Sprintf("context %d", i), bytes.Repeat([]byte{byte(i)}, i+1)
			var l letter
			var err error
			if l.ciphertext, err = ring.Encrypt(ctx, ref, plaintext, bound(&l, context)); err != nil {
				t.Error(err)
				return
			}
			verify := func(com *[32]byte) ([]byte, error) {
				if *com != l.com {
					return nil, hsm.ErrCiphertext
				}
				return l.aad, nil
			}
			got, err := ring.Decrypt(ctx, ref, l.iv, tOf(l.iv, context), l.ciphertext, verify)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("opened %x: %v", got, err)
			}
			_, err = ring.Decrypt(ctx, ref, l.iv, tOf(l.iv, "another"), l.ciphertext, verify)
			wantErr(t, "another context", err, hsm.ErrCiphertext)
			l.ciphertext[i] ^= 1
			_, err = ring.Decrypt(ctx, ref, l.iv, tOf(l.iv, context), l.ciphertext, verify)
			wantErr(t, "an altered message", err, hsm.ErrCiphertext)
		})
	}
	all.Wait()
	if err := p.Healthy(); err != nil {
		t.Errorf("after altered messages: %v", err)
	}
	if s := ring.Stats(); s.Loads != 2 {
		t.Errorf("%d loads of two keys: an altered message costs one", s.Loads)
	}
	_, err := ring.Derive(ctx, refs[0], hsm.MessageInput{}, hsm.Seal)
	wantErr(t, "message keys of a resident key", err, hsm.ErrRefused)
	plain := hsm.Ref{Token: generate(t, p, spec(3)), Want: header(spec(3))}
	_, err = ring.Encrypt(ctx, plain, []byte("x"), bound(nil, ""))
	wantErr(t, "a block key inside the hsm", err, hsm.ErrRefused)
	_, err = ring.Decrypt(ctx, plain, [hsm.IVSize]byte{}, [32]byte{}, make([]byte, 20), nil)
	wantErr(t, "a block key inside the hsm", err, hsm.ErrRefused)
}
