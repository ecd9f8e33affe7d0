package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
)

// openKey opens a token that must open; the key is closed when the test ends.
func openKey(t T, p hsm.Partition, token []byte, want hsm.TokenHeader) hsm.BlockKey {
	t.Helper()
	key, err := p.Open(t.Context(), token, want)
	must(t, key, err)
	t.Cleanup(key.Close)
	return key
}

// encrypt encrypts blocks in one call.
func encrypt(t T, key hsm.BlockKey, src []byte) []byte {
	t.Helper()
	dst := make([]byte, len(src))
	if err := key.EncryptBlocks(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	return dst
}

// pattern is n different blocks.
func pattern(n int) []byte {
	b := make([]byte, n*hsm.BlockSize)
	for i := range b {
		b[i] = byte(i/hsm.BlockSize) ^ byte(i%hsm.BlockSize<<4)
	}
	return b
}

func testKeys(t T, env Env) {
	p := env.Partition
	createDomain(t, p, cluster, 1)
	createDomain(t, p, cluster, 2)
	specs := []hsm.KeySpec{spec(1), spec(2), spec(3)}
	specs[2].Generation = 2
	var tokens, blocks [][]byte
	for _, s := range specs {
		token := generate(t, p, s)
		parsed, err := hsm.ParseToken(token)
		must(t, parsed, err)
		if parsed.Header != header(s) {
			t.Errorf("header %+v, want %+v", parsed.Header, header(s))
		}
		key := openKey(t, p, token, header(s))
		check, err := hsm.CheckValueAES(func(dst, src []byte) error {
			return key.EncryptBlocks(t.Context(), dst, src)
		}, s.Key, s.Version)
		if must(t, check, err) != parsed.Check {
			t.Errorf("check value %x, want %x", parsed.Check, check)
		}
		tokens, blocks = append(tokens, token), append(blocks, encrypt(t, key, pattern(3)))
	}
	if bytes.Equal(blocks[0], blocks[1]) || bytes.Equal(blocks[0], blocks[2]) {
		t.Error("two keys encrypt alike")
	}
	if same := generate(t, p, specs[0]); bytes.Equal(same, tokens[0]) {
		t.Error("the same token twice")
	}
	wantCreated := header(specs[0])
	wantCreated.Created = wantCreated.Created.AddDate(1, 0, 0)
	openKey(t, p, tokens[0], wantCreated) // the time is for people
	if env.Reopen == nil {
		return
	}
	p = env.Reopen(t)
	for i, s := range specs {
		if got := encrypt(t, openKey(t, p, tokens[i], header(s)), pattern(3)); !bytes.Equal(got, blocks[i]) {
			t.Errorf("key %d encrypts differently after opening again", i)
		}
	}
}

func testKeysRefused(t T, env Env) {
	p := env.Partition
	createDomain(t, p, cluster, 1)
	for name, tc := range map[string]struct {
		change func(s *hsm.KeySpec)
		want   error
	}{
		"no such generation":         {func(s *hsm.KeySpec) { s.Generation = 2 }, hsm.ErrNotFound},
		"no such cluster":            {func(s *hsm.KeySpec) { s.Cluster = other }, hsm.ErrNotFound},
		"no class":                   {func(s *hsm.KeySpec) { s.Class = 0 }, hsm.ErrRefused},
		"AES of another size":        {func(s *hsm.KeySpec) { s.Bits = 128 }, hsm.ErrRefused},
		"AES that decrypts":          {func(s *hsm.KeySpec) { s.Decrypts = true }, hsm.ErrRefused},
		"HMAC of no size":            {func(s *hsm.KeySpec) { s.Class = hsm.ClassHMAC }, hsm.ErrRefused},
		"short HMAC":                 {func(s *hsm.KeySpec) { s.Class, s.Bits = hsm.ClassHMAC, 128 }, hsm.ErrRefused},
		"short RSA":                  {func(s *hsm.KeySpec) { s.Class, s.Bits = hsm.ClassRSA, 1024 }, hsm.ErrRefused},
		"another curve":              {func(s *hsm.KeySpec) { s.Class, s.Bits = hsm.ClassEC, 521 }, hsm.ErrRefused},
		"EC that decrypts":           {func(s *hsm.KeySpec) { s.Class, s.Bits, s.Decrypts = hsm.ClassEC, 256, true }, hsm.ErrRefused},
		"import class":               {func(s *hsm.KeySpec) { s.Class = hsm.ClassImportRSA }, hsm.ErrRefused},
		"unknown class":              {func(s *hsm.KeySpec) { s.Class = 9 }, hsm.ErrRefused},
		"resident of a size":         {func(s *hsm.KeySpec) { s.Class, s.Bits = hsm.ClassResident, 256 }, hsm.ErrRefused},
		"resident, by its attribute": {func(s *hsm.KeySpec) { s.Attributes = hsm.AttrResident }, hsm.ErrRefused},
		"imported":                   {func(s *hsm.KeySpec) { s.Attributes = hsm.AttrImported }, hsm.ErrRefused},
		"unknown attribute":          {func(s *hsm.KeySpec) { s.Attributes = 1 << 9 }, hsm.ErrRefused},
	} {
		s := spec(1)
		tc.change(&s)
		_, err := p.GenerateKey(t.Context(), s)
		wantErr(t, name, err, tc.want)
	}
}

func testBlocks(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	key := openKey(t, p, generate(t, p, spec(1)), header(spec(1)))

	src := pattern(hsm.MaxBlocks)
	all := encrypt(t, key, src)
	if !bytes.Equal(src, pattern(hsm.MaxBlocks)) {
		t.Error("the source was changed")
	}
	seen := make(map[string]bool)
	for i := range hsm.MaxBlocks {
		one := src[i*hsm.BlockSize:][:hsm.BlockSize]
		got := encrypt(t, key, one)
		if !bytes.Equal(got, all[i*hsm.BlockSize:][:hsm.BlockSize]) {
			t.Errorf("block %d depends on its place", i)
		}
		if bytes.Equal(got, one) || seen[string(got)] {
			t.Errorf("block %d is not encrypted", i)
		}
		seen[string(got)] = true
	}
	for _, n := range []struct{ dst, src int }{
		{0, 0},
		{15, 15},
		{17, 17},
		{16, 32},
		{32, 16},
		{16, 0},
		{(hsm.MaxBlocks + 1) * hsm.BlockSize, (hsm.MaxBlocks + 1) * hsm.BlockSize},
	} {
		err := key.EncryptBlocks(ctx, make([]byte, n.dst), make([]byte, n.src))
		wantErr(t, fmt.Sprintf("%d bytes into %d", n.src, n.dst), err, hsm.ErrRefused)
	}
	key.Close()
	key.Close()
	if err := key.EncryptBlocks(ctx, make([]byte, 16), src[:16]); err == nil {
		t.Error("a closed key encrypts")
	}
}

func testTamperedTokens(t T, env Env) {
	p := env.Partition
	createDomain(t, p, cluster, 1)
	token := generate(t, p, spec(1))
	refused := func(what string, token []byte) {
		t.Helper()
		key, err := p.Open(t.Context(), token, header(spec(1)))
		wantErr(t, what, err, hsm.ErrCorrupt)
		if key != nil {
			t.Errorf("%s: a key was returned", what)
		}
	}
	for i := range token {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(token)
			b[i] ^= bit
			refused(fmt.Sprintf("bit %#x of byte %d flipped", bit, i), b)
		}
	}
	for n := range token {
		refused(fmt.Sprintf("cut to %d bytes", n), token[:n])
	}
	refused("a byte more", append(bytes.Clone(token), 0))
	openKey(t, p, token, header(spec(1)))
}

func testWrongExpectations(t T, env Env) {
	p := env.Partition
	createDomain(t, p, cluster, 1)
	createDomain(t, p, cluster, 2)
	createDomain(t, p, other, 1)
	token := generate(t, p, spec(1))
	for name, change := range map[string]func(h *hsm.TokenHeader){
		"id":                          func(h *hsm.TokenHeader) { h.Key[15]++ },
		"version":                     func(h *hsm.TokenHeader) { h.Version++ },
		"cluster":                     func(h *hsm.TokenHeader) { h.Cluster = other },
		"cluster that is not here":    func(h *hsm.TokenHeader) { h.Cluster[0]++ },
		"class":                       func(h *hsm.TokenHeader) { h.Class = hsm.ClassHMAC },
		"attributes":                  func(h *hsm.TokenHeader) { h.Attributes = hsm.AttrImported },
		"generation":                  func(h *hsm.TokenHeader) { h.Generation = 2 },
		"generation that is not here": func(h *hsm.TokenHeader) { h.Generation = 3 },
	} {
		want := header(spec(1))
		change(&want)
		_, err := p.Open(t.Context(), token, want)
		wantErr(t, "another "+name, err, hsm.ErrCorrupt)
	}
}

// A token of a partition with other domain keys of the same name.
func testForeignTokens(t T, env Env) {
	p, second := env.Partition, env.Second(t)
	createDomain(t, second, cluster, 1)
	token := generate(t, second, spec(1))
	_, err := p.Open(t.Context(), token, header(spec(1)))
	wantErr(t, "no domain", err, hsm.ErrNotFound)
	createDomain(t, p, cluster, 2)
	_, err = p.Open(t.Context(), token, header(spec(1)))
	wantErr(t, "no such generation", err, hsm.ErrNotFound)
	createDomain(t, p, cluster, 1)
	_, err = p.Open(t.Context(), token, header(spec(1)))
	wantErr(t, "another domain key", err, hsm.ErrCorrupt)
}

func testConcurrency(t T, env Env) {
	const workers, rounds = 16, 4
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	shared := openKey(t, p, generate(t, p, spec(0)), header(spec(0)))
	want := encrypt(t, shared, pattern(4))

	work := func(n byte) error {
		s := spec(n)
		made, err := p.GenerateKey(ctx, s)
		if err != nil {
			return err
		}
		token := made.Token
		var before []byte
		for range 2 {
			key, err := p.Open(ctx, token, header(s))
			if err != nil {
				return err
			}
			defer key.Close()
			own, common := make([]byte, len(want)), make([]byte, len(want))
			if err := errors.Join(key.EncryptBlocks(ctx, own, pattern(4)), shared.EncryptBlocks(ctx, common, pattern(4))); err != nil {
				return err
			}
			if !bytes.Equal(common, want) || before != nil && !bytes.Equal(before, own) || bytes.Equal(own, want) {
				return errors.New("blocks were mixed up")
			}
			before = own
		}
		message := []byte{n}
		sig, err := p.SignIdentity(ctx, message)
		if err != nil {
			return err
		}
		if err := p.Random(ctx, make([]byte, 32)); err != nil {
			return err
		}
		return hsm.VerifyIdentitySignature(p.Identity(), message, sig)
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for r := range rounds {
				if err := work(byte(1 + w*rounds + r)); err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func testKeyring(t T, env Env) {
	const keys, callers, rounds = 4, 64, 20
	p := env.Partition
	createDomain(t, p, cluster, 1)
	var refs []hsm.Ref
	var direct []hsm.BlockKey
	for n := range byte(keys) {
		token := generate(t, p, spec(n))
		refs = append(refs, hsm.Ref{Token: token, Want: header(spec(n))})
		direct = append(direct, openKey(t, p, token, header(spec(n))))
	}
	k := hsm.NewKeyring(p, hsm.KeyringConfig{MaxKeys: keys - 1})
	defer k.Close()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for r := range rounds {
				n := (c + r) % keys
				in := hsm.MessageInput{Nonce: [24]byte{byte(c), byte(r)}, T: [32]byte{byte(r), byte(c)}}
				use := hsm.Seal
				if r%2 == 1 {
					use = hsm.Open
				}
				got, err := k.Derive(context.Background(), refs[n], in, use)
				if err != nil {
					t.Errorf("caller %d: %v", c, err)
					return
				}
				if want, err := deriveDirect(direct[n], in); err != nil || got != want {
					t.Errorf("caller %d: wrong keys, %v", c, err)
					return
				}
			}
		})
	}
	wg.Wait()
	s := k.Stats()
	if s.Messages != callers*rounds || s.Calls > s.Messages || s.Loaded > keys-1 || s.Waiting != 0 {
		t.Errorf("stats %+v", s)
	}
}

// deriveDirect computes message keys with a call a block, as the format says.
func deriveDirect(key hsm.BlockKey, in hsm.MessageInput) (keys hsm.MessageKeys, err error) {
	var l [hsm.BlockSize]byte
	err = key.EncryptBlocks(context.Background(), l[:], make([]byte, hsm.BlockSize))
	k1 := hsm.Double(l)
	derive := func(dst []byte, counter, label byte, data []byte) {
		b := append([]byte{0, counter, label, 0}, data...)
		for i := range b {
			b[i] ^= k1[i]
		}
		err = errors.Join(err, key.EncryptBlocks(context.Background(), dst, b))
	}
	derive(keys.Msg[:16], 1, 'X', in.Nonce[:12])
	derive(keys.Msg[16:], 2, 'X', in.Nonce[:12])
	derive(keys.Com[:16], 1, 'C', in.T[:12])
	derive(keys.Com[16:], 2, 'C', in.T[12:24])
	return keys, err
}
