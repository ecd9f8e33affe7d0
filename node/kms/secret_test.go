package kms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// of makes a key of the tenant default.
func (e *env) of(spec fsm.KeySpec, usage fsm.KeyUsage) string {
	e.t.Helper()
	m, _, err := e.CreateKey(e.t.Context(), as(ada), KeyParams{Spec: spec, Usage: usage})
	e.ok(err)
	if m.Key.Spec != spec || usage != "" && m.Key.Usage != usage {
		e.t.Errorf("made %s for %s", m.Key.Spec, m.Key.Usage)
	}
	return m.Key.ID.String()
}

func (e *env) sign(c Call, key string, a hsm.Algorithm) error {
	_, err := e.Sign(e.t.Context(), c, key, Message{Bytes: []byte("m"), Algorithm: a})
	return err
}

func (e *env) macs(c Call, key string) error {
	_, err := e.GenerateMac(e.t.Context(), c, key, Message{Bytes: []byte("m"), Algorithm: hsm.HMACSHA256})
	return err
}

func TestSignatures(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	for spec, algorithms := range map[fsm.KeySpec][]hsm.Algorithm{
		fsm.SpecP256:    {hsm.ECDSASHA256},
		fsm.SpecP384:    {hsm.ECDSASHA384},
		fsm.SpecRSA2048: {hsm.PSSSHA256, hsm.PSSSHA384, hsm.PSSSHA512, hsm.PKCS1SHA256, hsm.PKCS1SHA384, hsm.PKCS1SHA512},
	} {
		key := e.of(spec, fsm.UsageSignVerify)
		other := e.of(spec, fsm.UsageSignVerify)
		public, err := e.GetPublicKey(ctx, as(uma), key)
		e.ok(err)
		if !bytes.Equal(public.SPKI, e.stored(key).Current().Public) || len(public.Algorithms) != len(algorithms) {
			t.Errorf("%s: public key %+v", spec, public)
		}
		for _, a := range algorithms {
			message := Message{Bytes: bytes.Repeat([]byte{'m'}, MaxMessage), Algorithm: a}
			digest := Message{Bytes: hsm.Digest(a.Hash(), message.Bytes), Algorithm: a, Digest: true}
			signed, err := e.Sign(ctx, as(uma), key, message)
			e.ok(err)
			if last := e.audit.last(); last.Name != "Sign" || last.Algorithm != string(a) || last.KeyID != key || last.Result != audit.Success {
				t.Errorf("audit %+v", last)
			}
			again, err := e.Sign(ctx, as(uma), key, digest)
			e.ok(err)
			for _, m := range []Message{message, digest} {
				for _, s := range [][]byte{signed.Output, again.Output} {
					_, err := e.Verify(ctx, as(uma), key, m, s)
					e.ok(err)
				}
				tampered := bytes.Clone(signed.Output)
				tampered[len(tampered)-1] ^= 1
				_, err := e.Verify(ctx, as(uma), key, m, tampered)
				e.refused(err, ErrSignature)
				_, err = e.Verify(ctx, as(uma), other, m, signed.Output)
				e.refused(err, ErrSignature)
			}
			_, err = e.Verify(ctx, as(uma), key, Message{Bytes: []byte("another"), Algorithm: a}, signed.Output)
			e.refused(err, ErrSignature)
			for _, n := range []int{0, a.Hash().Size() - 1, a.Hash().Size() + 1} {
				_, err = e.Sign(ctx, as(uma), key, Message{Bytes: make([]byte, n), Digest: true, Algorithm: a})
				e.refused(err, fsm.ErrInvalid, "digest of")
			}
			for _, n := range []int{0, MaxMessage + 1} {
				_, err = e.Sign(ctx, as(uma), key, Message{Bytes: make([]byte, n), Algorithm: a})
				e.refused(err, fsm.ErrInvalid, "1 to 4096")
			}
			for _, n := range []int{0, 513} {
				_, err = e.Verify(ctx, as(uma), key, message, make([]byte, n))
				e.refused(err, fsm.ErrInvalid, "signature of")
			}
		}
	}
}

func TestMacs(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	for spec, a := range map[fsm.KeySpec]hsm.Algorithm{fsm.SpecHMAC256: hsm.HMACSHA256, fsm.SpecHMAC384: hsm.HMACSHA384, fsm.SpecHMAC512: hsm.HMACSHA512} {
		key := e.of(spec, "") // the only usage there is
		m := Message{Bytes: bytes.Repeat([]byte{'m'}, MaxMessage), Algorithm: a}
		mac, err := e.GenerateMac(ctx, as(uma), key, m)
		e.ok(err)
		if len(mac.Output) != a.Hash().Size() || mac.Version != 1 || mac.KeyARN != e.arn("default", key) {
			t.Errorf("%s: %+v", spec, mac)
		}
		_, err = e.VerifyMac(ctx, as(uma), key, m, mac.Output)
		e.ok(err)
		for _, wrong := range [][]byte{mac.Output[1:], append([]byte{mac.Output[0] ^ 1}, mac.Output[1:]...), append(mac.Output, 0)} {
			_, err = e.VerifyMac(ctx, as(uma), key, m, wrong)
			e.refused(err, ErrMac)
		}
		if last := e.audit.last(); last.Result != audit.Failed || last.Algorithm != string(a) {
			t.Errorf("audit %+v", last)
		}
		_, err = e.VerifyMac(ctx, as(uma), key, Message{Bytes: []byte("x"), Algorithm: a}, mac.Output)
		e.refused(err, ErrMac)
		label := Message{Bytes: hsm.CheckMessageHMAC(hsm.ID(uuid.MustParse(key)), 1), Algorithm: a}
		_, err = e.GenerateMac(ctx, as(uma), key, label)
		e.refused(err, fsm.ErrInvalid, hsm.LabelCheckValue)
		for _, n := range []int{0, MaxMessage + 1} {
			_, err = e.GenerateMac(ctx, as(uma), key, Message{Bytes: make([]byte, n), Algorithm: a})
			e.refused(err, fsm.ErrInvalid, "1 to 4096")
		}
	}
}

func TestRSAEncryption(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key, other := e.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt), e.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt)
	public, err := e.GetPublicKey(ctx, as(uma), key)
	e.ok(err)
	parsed, err := x509.ParsePKIXPublicKey(public.SPKI)
	e.ok(err)
	outside, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, parsed.(*rsa.PublicKey), []byte("plain"), nil) //nolint:gosec // OAEP
	e.ok(err)
	for a, most := range map[hsm.Algorithm]int{hsm.OAEPRSA1: 214, hsm.OAEPRSA256: 190} {
		for _, n := range []int{1, most} {
			sealed, err := e.Encrypt(ctx, as(uma), key, bytes.Repeat([]byte{7}, n), nil, a)
			e.ok(err)
			if last := e.audit.last(); last.CiphertextSHA256 != digest(sealed.Ciphertext) || last.Algorithm != string(a) {
				t.Errorf("audit %+v", last)
			}
			opened, err := e.Decrypt(ctx, as(uma), sealed.Ciphertext, key, nil, a)
			e.ok(err)
			if len(sealed.Ciphertext) != 256 || !bytes.Equal(opened.Plaintext, bytes.Repeat([]byte{7}, n)) {
				t.Errorf("%d bytes come back as %d", n, len(opened.Plaintext))
			}
		}
		_, err = e.Encrypt(ctx, as(uma), key, make([]byte, most+1), nil, a)
		e.refused(err, fsm.ErrInvalid, "must be 1 to", "RSA_2048")
		_, err = e.Encrypt(ctx, as(uma), key, []byte{1}, []Pair{{"a", "b"}}, a)
		e.refused(err, fsm.ErrInvalid, "no encryption context")
		_, err = e.Decrypt(ctx, as(uma), outside, key, []Pair{{"a", "b"}}, a)
		e.refused(err, fsm.ErrInvalid, "no encryption context")
		_, err = e.Decrypt(ctx, as(uma), outside, "", nil, a)
		e.refused(err, fsm.ErrInvalid, "key is missing")
		for what, c := range map[string][]byte{"none": nil, "short": outside[1:], "long": append(bytes.Clone(outside), 0), "zeros": make([]byte, 256)} {
			if _, err = e.Decrypt(ctx, as(uma), c, key, nil, a); !errors.Is(err, ErrCiphertext) || err.Error() != ErrCiphertext.Error() {
				t.Errorf("%s, %s: %v", a, what, err)
			}
		}
	}
	opened, err := e.Decrypt(ctx, as(uma), outside, key, nil, hsm.OAEPRSA1)
	e.ok(err)
	if string(opened.Plaintext) != "plain" {
		t.Errorf("opened %q", opened.Plaintext)
	}
	_, err = e.Decrypt(ctx, as(uma), outside, key, nil, hsm.OAEPRSA256)
	e.refused(err, ErrCiphertext)
	_, err = e.Decrypt(ctx, as(uma), outside, other, nil, hsm.OAEPRSA1)
	e.refused(err, ErrCiphertext)
}

// TestUsages: every call with every kind of key; what it is not for is refused for what
// the key is.
func TestUsages(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	symmetric, mac := e.key("default"), e.of(fsm.SpecHMAC256, fsm.UsageMac)
	ec, rsaSigns := e.of(fsm.SpecP256, fsm.UsageSignVerify), e.of(fsm.SpecRSA2048, fsm.UsageSignVerify)
	rsaOpens := e.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt)
	blob := e.sealed(as(uma), symmetric)
	calls := map[string]func(c Call, key string) error{
		"Encrypt": func(c Call, key string) error { return e.encrypts(c, key) },
		"Encrypt with RSA": func(c Call, key string) error {
			_, err := e.Encrypt(ctx, c, key, []byte("x"), nil, hsm.OAEPRSA1)
			return err
		},
		"Decrypt with RSA": func(c Call, key string) error { _, err := e.Decrypt(ctx, c, blob, key, nil, hsm.OAEPRSA1); return err },
		"GenerateDataKeyWithoutPlaintext": func(c Call, key string) error {
			_, err := e.GenerateDataKeyWithoutPlaintext(ctx, c, key, 8, nil)
			return err
		},
		"GenerateDataKeyPair": func(c Call, key string) error {
			_, err := e.GenerateDataKeyPair(ctx, c, key, fsm.SpecP256, nil)
			return err
		},
		"ReEncrypt": func(c Call, key string) error {
			_, err := e.ReEncrypt(ctx, c, ReEncryption{Ciphertext: blob, DestinationKey: key})
			return err
		},
		"Sign":            func(c Call, key string) error { return e.sign(c, key, hsm.ECDSASHA256) },
		"Sign with RSA":   func(c Call, key string) error { return e.sign(c, key, hsm.PSSSHA256) },
		"Sign with P-384": func(c Call, key string) error { return e.sign(c, key, hsm.ECDSASHA384) },
		"Verify": func(c Call, key string) error {
			_, err := e.Verify(ctx, c, key, Message{Bytes: []byte("x"), Algorithm: hsm.PKCS1SHA256}, []byte("x"))
			return err
		},
		"GenerateMac": e.macs,
		"VerifyMac": func(c Call, key string) error {
			_, err := e.VerifyMac(ctx, c, key, Message{Bytes: []byte("x"), Algorithm: hsm.HMACSHA256}, []byte("x"))
			return err
		},
		"GetPublicKey": func(c Call, key string) error { _, err := e.GetPublicKey(ctx, c, key); return err },
	}
	serves := map[string][]string{
		symmetric: {"Encrypt", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "ReEncrypt"},
		mac:       {"GenerateMac", "VerifyMac"},
		ec:        {"Sign", "GetPublicKey"},
		rsaSigns:  {"Sign with RSA", "Verify", "GetPublicKey"},
		rsaOpens:  {"Encrypt with RSA", "Decrypt with RSA", "GetPublicKey"},
	}
	answers := map[string]error{"Verify": ErrSignature, "VerifyMac": ErrMac, "Decrypt with RSA": ErrCiphertext}
	for key, own := range serves {
		for name, call := range calls {
			err := call(as(uma), key)
			dry := as(uma)
			dry.DryRun = true
			switch {
			case !contains(own, name) && name == "Encrypt" && key == rsaOpens:
				e.refused(err, fsm.ErrInvalid, "name the algorithm, RSAES_OAEP_SHA_1 or RSAES_OAEP_SHA_256")
			case !contains(own, name):
				e.refused(err, fsm.ErrUnsupported, key, string(e.stored(key).Spec))
				e.refused(call(dry, key), fsm.ErrUnsupported, key)
			case !errors.Is(err, answers[name]):
				t.Errorf("%s with %s: %v", name, e.stored(key).Spec, err)
			default:
				e.refused(call(dry, key), ErrDryRun)
			}
		}
	}
	for _, a := range []hsm.Algorithm{"", "NO_SUCH", hsm.HMACSHA256, hsm.OAEPRSA1} {
		e.refused(e.sign(as(uma), ec, a), fsm.ErrInvalid, "algorithm")
	}
	for _, p := range []KeyParams{
		{Spec: fsm.SpecRSA2048},
		{Spec: "RSA_1024"},
		{Spec: fsm.SpecP256, Usage: fsm.UsageEncryptDecrypt},
		{Spec: fsm.SpecHMAC256, Usage: fsm.UsageSignVerify},
		{Spec: fsm.SpecSymmetric, Usage: fsm.UsageMac},
		{},
	} {
		_, _, err := e.CreateKey(ctx, as(ada), p)
		e.refused(err, fsm.ErrInvalid)
	}
	if _, _, err := e.RotateKeyOnDemand(ctx, as(ada), ec, 0); !errors.Is(err, fsm.ErrUnsupported) {
		t.Errorf("rotation: %v", err)
	}
}

func contains(list []string, s string) bool {
	return strings.Contains("\n"+strings.Join(list, "\n")+"\n", "\n"+s+"\n")
}

// TestSecretsAreAuthorised: the same doors as for symmetric keys.
func TestSecretsAreAuthorised(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	mac, ec := e.of(fsm.SpecHMAC256, ""), e.of(fsm.SpecP256, "")
	e.refused(e.macs(as(ada), mac), ErrDenied)
	e.refused(e.macs(as(una), e.arn("default", mac)), ErrDenied, "no grant of yours allows it")
	e.refused(e.macs(in(obs, "default"), mac), ErrDenied, "a service is held to an encryption context, which GenerateMac has not")
	_, err := e.Decrypt(ctx, in(obs, "default"), []byte{1}, mac, nil, hsm.OAEPRSA1)
	e.refused(err, ErrDenied, "which RSAES_OAEP_SHA_1 has not")
	_, _, err = e.CreateGrant(ctx, as(ada), mac, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantSign)})
	e.refused(err, fsm.ErrUnsupported, "not for Sign")
	e.give(mac, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantGenerateMac)})
	e.ok(e.macs(as(una), e.arn("default", mac)))
	_, err = e.GetPublicKey(ctx, as(una), e.arn("default", ec))
	e.refused(err, ErrDenied)
	e.put(ec, `@id("no-signing") forbid (principal, action == KMS::Action::"Sign", resource);`)
	e.refused(e.sign(as(uma), ec, hsm.ECDSASHA256), ErrDenied, "no-signing")
	_, err = e.GetPublicKey(ctx, as(uma), ec)
	e.ok(err)
	x, _, err := e.ExplainPolicy(ctx, as(ada), mac, who(uma), "Sign", nil)
	e.ok(err)
	if x.Allowed || !strings.Contains(x.Reason, "HMAC_256") {
		t.Errorf("explained %+v", x)
	}
	x, _, err = e.ExplainPolicy(ctx, as(ada), mac, who(uma), "GenerateMac", nil)
	e.ok(err)
	if !x.Allowed {
		t.Errorf("explained %+v", x)
	}
	_, _, err = e.SetKeyDecryptOnly(ctx, as(ada), mac, 0)
	e.ok(err)
	e.refused(e.macs(as(uma), mac), fsm.ErrDecryptOnly)
	_, err = e.VerifyMac(ctx, as(uma), mac, Message{Bytes: []byte("x"), Algorithm: hsm.HMACSHA256}, []byte("x"))
	e.refused(err, ErrMac)
	_, _, err = e.ScheduleKeyDeletion(ctx, as(ada), mac, 7, 0)
	e.ok(err)
	e.refused(e.macs(as(uma), mac), fsm.ErrPendingDeletion)
	if last := e.audit.last(); last.Alarm != audit.UseOfDoomedKey {
		t.Errorf("audit %+v", last)
	}
}

// TestPublicKeyOfAnother: a public half that is not the one that the token names is no
// public half.
func TestPublicKeyOfAnother(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key := e.stored(e.of(fsm.SpecP256, ""))
	wrong := &fsm.CreateKeyOfSpec{
		ID: uuid.New(), Tenant: "default", Spec: fsm.SpecP256, Usage: fsm.UsageSignVerify, Generation: 1, Token: key.Current().Token, Public: key.Current().Public,
	}
	e.do(wrong) // the token is another key's
	id := uuid.New()
	made, err := e.hsm.GenerateKey(ctx, hsm.KeySpec{
		Cluster: hsm.ID(e.log.State().Cluster().ID), Generation: 1, Class: hsm.ClassEC, Bits: 256, Key: hsm.ID(id), Version: 1, Created: e.clock.Now(),
	})
	e.ok(err)
	e.do(&fsm.CreateKeyOfSpec{ID: id, Tenant: "default", Spec: fsm.SpecP256, Usage: fsm.UsageSignVerify, Generation: 1, Token: made.Token, Public: key.Current().Public})
	for _, id := range []string{wrong.ID.String(), id.String()} {
		_, err := e.GetPublicKey(ctx, as(uma), id)
		e.refused(err, hsm.ErrCorrupt)
		e.refused(e.sign(as(uma), id, hsm.ECDSASHA256), hsm.ErrCorrupt)
		_, err = e.Verify(ctx, as(uma), id, Message{Bytes: []byte("x"), Algorithm: hsm.ECDSASHA256}, []byte("x"))
		e.refused(err, hsm.ErrCorrupt)
	}
}

func TestDataKeyPairs(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key := e.key("default")
	ec := []Pair{{"a", "b"}}
	for _, spec := range []fsm.KeySpec{fsm.SpecRSA2048, fsm.SpecRSA3072, fsm.SpecP256, fsm.SpecP384} {
		made, err := e.GenerateDataKeyPair(ctx, as(uma), key, spec, ec)
		e.ok(err)
		hidden, err := e.GenerateDataKeyPairWithoutPlaintext(ctx, as(uma), key, spec, ec)
		e.ok(err)
		if hidden.Plaintext != nil || bytes.Equal(hidden.Public, made.Public) {
			t.Errorf("%s: a private half of %d bytes, or the same pair twice", spec, len(hidden.Plaintext))
		}
		for _, r := range []Sealed{made, hidden} {
			opened, err := e.Decrypt(ctx, as(uma), r.Ciphertext, "", ec, "")
			e.ok(err)
			if r.Plaintext != nil && !bytes.Equal(opened.Plaintext, r.Plaintext) {
				t.Errorf("%s: the blob opens to something else", spec)
			}
			isPair(t, opened.Plaintext, r.Public)
			if _, err := hsm.ParsePublicKey(r.Public, kindOf(spec, fsm.UsageSignVerify)); err != nil {
				t.Errorf("%s: %v", spec, err)
			}
		}
	}
	for _, spec := range []fsm.KeySpec{"", fsm.SpecHMAC256, fsm.SpecSymmetric, "RSA_1024"} {
		_, err := e.GenerateDataKeyPair(ctx, as(uma), key, spec, nil)
		e.refused(err, fsm.ErrInvalid, "RSA_2048")
	}
}

// isPair checks that a private half (PKCS #8) belongs to a public one.
func isPair(t *testing.T, private, public []byte) {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	var half any
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		half = &k.PublicKey
		d := sha256.Sum256(private)
		if s, err := rsa.SignPSS(rand.Reader, k, crypto.SHA256, d[:], nil); err != nil || rsa.VerifyPSS(&k.PublicKey, crypto.SHA256, d[:], s, nil) != nil {
			t.Errorf("the pair does not sign: %v", err)
		}
	case *ecdsa.PrivateKey:
		half = &k.PublicKey
	}
	spki, err := x509.MarshalPKIXPublicKey(half)
	if err != nil || !bytes.Equal(spki, public) {
		t.Errorf("no pair: %v", err)
	}
}

// BenchmarkRSAPair: what a data key pair costs.
func BenchmarkRSAPair(b *testing.B) {
	for range b.N {
		if _, err := rsaPair(b.Context(), rand.Reader, 2048); err != nil {
			b.Fatal(err)
		}
	}
}

// TestDefaultUsageIsTheSameRequest: a usage that is left out and one that is named are the
// same request, also for a node of the first release, which names it always.
func TestDefaultUsageIsTheSameRequest(t *testing.T) {
	e := newEnv(t)
	c := as(ada)
	c.RequestID = "once"
	first, _, err := e.CreateKey(t.Context(), c, KeyParams{Spec: fsm.SpecSymmetric})
	e.ok(err)
	again, _, err := e.CreateKey(t.Context(), c, KeyParams{Spec: fsm.SpecSymmetric, Usage: fsm.UsageEncryptDecrypt})
	e.ok(err)
	if again.Key.ID != first.Key.ID {
		t.Error("two keys")
	}
}
