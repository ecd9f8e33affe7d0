package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
)

// kinds are all kinds of keys that are not AES.
func kinds() []hsm.Kind {
	return []hsm.Kind{
		{Class: hsm.ClassHMAC, Bits: 256},
		{Class: hsm.ClassHMAC, Bits: 384},
		{Class: hsm.ClassHMAC, Bits: 512},
		{Class: hsm.ClassEC, Bits: 256},
		{Class: hsm.ClassEC, Bits: 384},
		{Class: hsm.ClassRSA, Bits: 2048},
		{Class: hsm.ClassRSA, Bits: 2048, Decrypts: true},
		{Class: hsm.ClassRSA, Bits: 3072},
		{Class: hsm.ClassRSA, Bits: 4096, Decrypts: true},
	}
}

// supported are the kinds of keys of which a partition has an algorithm. Of others it makes
// none: what a token lacks is refused by name, and does not fail in use.
func supported(t T, p hsm.Partition, all []hsm.Kind) (kinds []hsm.Kind) {
	t.Helper()
	for i, k := range all {
		if slices.ContainsFunc(k.Algorithms(), p.Supports) {
			kinds = append(kinds, k)
			continue
		}
		s := spec(byte(i))
		s.Class, s.Bits, s.Decrypts = k.Class, k.Bits, k.Decrypts
		_, err := p.GenerateKey(t.Context(), s)
		wantErr(t, fmt.Sprintf("a key of %+v, which the partition lacks", k), err, hsm.ErrUnsupported)
	}
	return kinds
}

// secret makes the n-th key of the suite, of a kind.
func secret(t T, p hsm.Partition, n byte, k hsm.Kind) hsm.Ref {
	t.Helper()
	s := spec(n)
	s.Class, s.Bits, s.Decrypts = k.Class, k.Bits, k.Decrypts
	made, err := p.GenerateKey(t.Context(), s)
	must(t, made, err)
	if pair := k.Class == hsm.ClassRSA || k.Class == hsm.ClassEC; pair != (made.SPKI != nil) {
		t.Fatalf("a key of %+v with a public half of %d bytes", k, len(made.SPKI))
	}
	return hsm.Ref{Token: made.Token, Want: header(s), Kind: k, SPKI: made.SPKI}
}

func openSecret(t T, p hsm.Partition, ref hsm.Ref) hsm.SecretKey {
	t.Helper()
	key, err := p.OpenSecret(t.Context(), ref)
	must(t, key, err)
	t.Cleanup(key.Close)
	return key
}

// input is what a key takes with an algorithm, made of a message.
func input(t T, ref hsm.Ref, a hsm.Algorithm, message string) []byte {
	t.Helper()
	switch a.Scheme() {
	case hsm.SchemeMAC:
		return []byte(message)
	case hsm.SchemeOAEP:
		b, err := rsa.EncryptOAEP(a.Hash().New(), rand.Reader, parse[*rsa.PublicKey](t, ref.SPKI), []byte(message), nil)
		return must(t, b, err)
	default:
		return hsm.Digest(a.Hash(), []byte(message))
	}
}

func parse[K any](t T, spki []byte) K {
	t.Helper()
	key, err := x509.ParsePKIXPublicKey(spki)
	must(t, key, err)
	return key.(K)
}

// verify checks an answer with nothing of package hsm.
func verify(t T, ref hsm.Ref, a hsm.Algorithm, message string, output []byte) {
	t.Helper()
	ok := false
	digest := hsm.Digest(a.Hash(), []byte(message))
	switch a.Scheme() {
	case hsm.SchemeMAC:
		ok = len(output) == a.Hash().Size()
	case hsm.SchemePSS:
		options := &rsa.PSSOptions{SaltLength: a.Hash().Size()}
		ok = rsa.VerifyPSS(parse[*rsa.PublicKey](t, ref.SPKI), a.Hash(), digest, output, options) == nil
	case hsm.SchemePKCS1:
		ok = rsa.VerifyPKCS1v15(parse[*rsa.PublicKey](t, ref.SPKI), a.Hash(), digest, output) == nil
	case hsm.SchemeECDSA:
		ok = ecdsa.VerifyASN1(parse[*ecdsa.PublicKey](t, ref.SPKI), digest, output)
	case hsm.SchemeOAEP:
		ok = string(output) == message
	}
	if !ok {
		t.Errorf("%s of %+v: a wrong answer of %d bytes", a, ref.Kind, len(output))
	}
}

// testSecrets makes keys of every kind and uses them with every algorithm of theirs that
// the partition has, before and after it was opened again.
func testSecrets(t T, env Env) {
	p := env.Partition
	createDomain(t, p, cluster, 1)
	var refs []hsm.Ref
	macs := map[int][]byte{}
	for i, k := range supported(t, p, kinds()) {
		ref := secret(t, p, byte(i), k)
		parsed, err := hsm.ParseToken(ref.Token)
		if must(t, parsed, err); parsed.Header != ref.Want {
			t.Errorf("header %+v, want %+v", parsed.Header, ref.Want)
		}
		if k.Class == hsm.ClassHMAC {
			macs[i] = apply(t, openSecret(t, p, ref), ref, k.Algorithms()[0], "same")
		} else if public, err := ref.Public(); must(t, public, err) == nil {
			t.Error("no public key")
		}
		useSecret(t, p, ref)
		refs = append(refs, ref)
	}
	if env.Reopen == nil {
		return
	}
	p = env.Reopen(t)
	for i, ref := range refs {
		useSecret(t, p, ref)
		if mac := macs[i]; mac != nil && !hmac.Equal(mac, apply(t, openSecret(t, p, ref), ref, ref.Kind.Algorithms()[0], "same")) {
			t.Errorf("another MAC of key %d after opening again", i)
		}
	}
}

func apply(t T, key hsm.SecretKey, ref hsm.Ref, a hsm.Algorithm, message string) []byte {
	t.Helper()
	output, err := key.Apply(t.Context(), a, input(t, ref, a, message))
	return must(t, output, err)
}

// useSecret uses a key with every algorithm that the partition has for it, of which there
// is one at least.
func useSecret(t T, p hsm.Partition, ref hsm.Ref) {
	t.Helper()
	key := openSecret(t, p, ref)
	used := 0
	for _, a := range ref.Kind.Algorithms() {
		in := input(t, ref, a, "a message")
		if !p.Supports(a) {
			_, err := key.Apply(t.Context(), a, in)
			wantErr(t, string(a)+", which the partition lacks", err, hsm.ErrUnsupported)
			continue
		}
		verify(t, ref, a, "a message", apply(t, key, ref, a, "a message"))
		used++
	}
	if used == 0 {
		t.Errorf("no algorithm for %+v", ref.Kind)
	}
}

// testSecretsRefused uses keys with what is not for them.
func testSecretsRefused(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	all := []hsm.Algorithm{
		hsm.HMACSHA256, hsm.HMACSHA384, hsm.HMACSHA512, hsm.PSSSHA256, hsm.PSSSHA384, hsm.PSSSHA512,
		hsm.PKCS1SHA256, hsm.PKCS1SHA384, hsm.PKCS1SHA512, hsm.ECDSASHA256, hsm.ECDSASHA384, hsm.OAEPRSA1, hsm.OAEPRSA256,
	}
	for i, k := range supported(t, p, kinds()[:7]) {
		ref := secret(t, p, byte(i), k)
		key := openSecret(t, p, ref)
		for _, a := range all {
			if slices.Contains(k.Algorithms(), a) {
				continue
			}
			for _, n := range []int{0, 20, a.Hash().Size(), 256} {
				_, err := key.Apply(ctx, a, make([]byte, n))
				wantErr(t, fmt.Sprintf("%s with %d bytes under %+v", a, n, k), err, hsm.ErrRefused)
			}
		}
		_, err := key.Apply(ctx, "NO_SUCH", make([]byte, 32))
		wantErr(t, "an unknown algorithm", err, hsm.ErrRefused)
		for _, a := range k.Algorithms() {
			refuseInputs(t, p, key, ref, a)
		}
		useSecret(t, p, ref)
		key.Close()
		key.Close()
		_, err = key.Apply(ctx, k.Algorithms()[0], input(t, ref, k.Algorithms()[0], "x"))
		wantErr(t, "a closed key", err, hsm.ErrStale)
	}
}

func refuseInputs(t T, p hsm.Partition, key hsm.SecretKey, ref hsm.Ref, a hsm.Algorithm) {
	t.Helper()
	ctx, size := t.Context(), a.Hash().Size()
	if a.Scheme() == hsm.SchemeMAC {
		for what, message := range map[string][]byte{
			"too long": make([]byte, hsm.MaxMessage+1), "a check value's": hsm.CheckMessageHMAC(ref.Want.Key, ref.Want.Version),
		} {
			_, err := key.Apply(ctx, a, message)
			wantErr(t, "a message that is "+what, err, hsm.ErrRefused)
		}
		_, err := key.Apply(ctx, a, make([]byte, hsm.MaxMessage))
		must(t, 0, err)
		return
	}
	if a.Scheme() == hsm.SchemeOAEP {
		size = int(ref.Kind.Bits) / 8
	}
	for _, n := range []int{0, size - 1, size + 1} {
		_, err := key.Apply(ctx, a, make([]byte, n))
		wantErr(t, fmt.Sprintf("%s of %d bytes", a, n), err, hsm.ErrRefused)
	}
	if a.Scheme() != hsm.SchemeOAEP || !p.Supports(a) {
		return
	}
	good := input(t, ref, a, "secret")
	flipped := bytes.Clone(good)
	flipped[size-1] ^= 1
	other, err := rsa.EncryptOAEP(otherOAEP(a).New(), rand.Reader, parse[*rsa.PublicKey](t, ref.SPKI), []byte("x"), nil)
	must(t, other, err)
	for what, ciphertext := range map[string][]byte{
		"zeros": make([]byte, size), "ones": bytes.Repeat([]byte{0xff}, size), "a flipped bit": flipped, "another hash": other,
	} {
		_, err := key.Apply(ctx, a, ciphertext)
		wantErr(t, "a ciphertext of "+what, err, hsm.ErrCiphertext)
	}
	if err := p.Healthy(); err != nil {
		t.Errorf("bad ciphertexts make the partition unhealthy: %v", err)
	}
	output, err := key.Apply(ctx, a, good)
	if string(must(t, output, err)) != "secret" {
		t.Errorf("decrypts to %q", output)
	}
}

func otherOAEP(a hsm.Algorithm) crypto.Hash {
	if a.Hash() == crypto.SHA1 {
		return crypto.SHA256
	}
	return crypto.SHA1
}

// testSecretExpectations opens keys as what they are not.
func testSecretExpectations(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	if needed := []hsm.Kind{kinds()[0], kinds()[3], kinds()[5]}; len(supported(t, p, needed)) < len(needed) {
		return // it lacks one, by name
	}
	hmacKey, ec, rsaKey := secret(t, p, 1, kinds()[0]), secret(t, p, 2, kinds()[3]), secret(t, p, 3, kinds()[5])
	second := secret(t, p, 4, kinds()[3])
	aes := hsm.Ref{Token: generate(t, p, spec(5)), Want: header(spec(5)), Kind: hsm.Kind{Class: hsm.ClassAES}}
	edited := func(r hsm.Ref, f func(*hsm.Ref)) hsm.Ref { f(&r); return r }
	for name, tc := range map[string]struct {
		ref  hsm.Ref
		want error
	}{
		"HMAC of another size":    {edited(hmacKey, func(r *hsm.Ref) { r.Kind.Bits = 384 }), hsm.ErrCorrupt},
		"HMAC of another version": {edited(hmacKey, func(r *hsm.Ref) { r.Want.Version++ }), hsm.ErrCorrupt},
		"HMAC as EC":              {edited(hmacKey, func(r *hsm.Ref) { r.Kind = ec.Kind }), hsm.ErrRefused},
		"AES":                     {aes, hsm.ErrRefused},
		"no kind":                 {edited(hmacKey, func(r *hsm.Ref) { r.Kind = hsm.Kind{} }), hsm.ErrRefused},
		"EC of another curve":     {edited(ec, func(r *hsm.Ref) { r.Kind.Bits = 384 }), hsm.ErrCorrupt},
		"EC that decrypts":        {edited(ec, func(r *hsm.Ref) { r.Kind.Decrypts = true }), hsm.ErrRefused},
		"no public half":          {edited(ec, func(r *hsm.Ref) { r.SPKI = nil }), hsm.ErrCorrupt},
		"another public half":     {edited(ec, func(r *hsm.Ref) { r.SPKI = second.SPKI }), hsm.ErrCorrupt},
		"a longer public half":    {edited(ec, func(r *hsm.Ref) { r.SPKI = append(bytes.Clone(r.SPKI), 0) }), hsm.ErrCorrupt},
		"RSA of another size":     {edited(rsaKey, func(r *hsm.Ref) { r.Kind.Bits = 3072 }), hsm.ErrCorrupt},
		"another token":           {edited(ec, func(r *hsm.Ref) { r.Token = second.Token }), hsm.ErrCorrupt},
		"a flipped bit":           {edited(rsaKey, func(r *hsm.Ref) { r.Token = bytes.Clone(r.Token); r.Token[100] ^= 1 }), hsm.ErrCorrupt},
	} {
		key, err := p.OpenSecret(ctx, tc.ref)
		wantErr(t, name, err, tc.want)
		if key != nil {
			t.Errorf("%s: a key was returned", name)
		}
	}
	_, err := p.Open(ctx, hmacKey.Token, hmacKey.Want)
	wantErr(t, "HMAC as a block key", err, hsm.ErrRefused)
	for _, ref := range []hsm.Ref{hmacKey, ec, rsaKey} {
		useSecret(t, p, ref)
	}
}

// testSecretKeyring uses keys of every class through a keyring that has room for fewer.
func testSecretKeyring(t T, env Env) {
	const callers, rounds = 16, 12
	p := env.Partition
	createDomain(t, p, cluster, 1)
	var refs []hsm.Ref
	for i, k := range supported(t, p, []hsm.Kind{kinds()[0], kinds()[3], kinds()[5], kinds()[6]}) {
		refs = append(refs, secret(t, p, byte(1+i), k))
	}
	if len(refs) == 0 {
		return // it has no such keys
	}
	aes := hsm.Ref{Token: generate(t, p, spec(5)), Want: header(spec(5))}
	k := hsm.NewKeyring(p, hsm.KeyringConfig{MaxKeys: 3})
	defer k.Close()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for r := range rounds {
				ref := refs[(c+r)%len(refs)]
				i := slices.IndexFunc(ref.Kind.Algorithms(), p.Supports)
				a, message := ref.Kind.Algorithms()[i], fmt.Sprint(c, r)
				output, err := k.Apply(t.Context(), ref, a, input(t, ref, a, message))
				if err != nil {
					t.Errorf("caller %d: %v", c, err)
					return
				}
				verify(t, ref, a, message, output)
				if _, err := k.Derive(t.Context(), aes, hsm.MessageInput{}, hsm.Seal); err != nil {
					t.Errorf("caller %d: %v", c, err)
				}
			}
		})
	}
	wg.Wait()
	if s := k.Stats(); s.Loaded > 3 || s.Waiting != 0 {
		t.Errorf("stats %+v", s)
	}
	_, err := k.Apply(t.Context(), aes, hsm.HMACSHA256, nil)
	wantErr(t, "a MAC under an AES key", err, hsm.ErrRefused)
	_, err = k.Derive(t.Context(), refs[0], hsm.MessageInput{}, hsm.Seal)
	wantErr(t, "message keys under an HMAC key", err, hsm.ErrRefused)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := k.Apply(t.Context(), refs[0], hsm.HMACSHA256, nil); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a closed partition: %v", err)
	}
}
