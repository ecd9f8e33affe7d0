package recovery

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
)

// identity stands for a token's identity key.
type identity struct {
	*ecdsa.PrivateKey
	spki []byte
}

func newIdentity(t testing.TB, curve elliptic.Curve) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	return identity{key, spki}
}

func (i identity) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, i.PrivateKey, digest[:])
}

// inToken is the file of a recovery key that is in a token with an identity.
func inToken(t testing.TB, i identity) []byte {
	t.Helper()
	key, _ := made()
	file, err := NewToken(PublicKey{Name: "vault", SPKI: key.SPKI, OAEPHash: 1, Identity: i.spki}, i.sign)
	must(t, err)
	return file
}

func TestTokenFile(t *testing.T) {
	i, stranger := newIdentity(t, elliptic.P256()), newIdentity(t, elliptic.P256())
	file := inToken(t, i)
	key, err := ParsePublicKey(file)
	must(t, err)
	shares, _ := made()
	if key.Kind != KindToken || key.Threshold != 0 || key.OAEPHash != 1 || key.Fingerprint() != shares.Fingerprint() || !bytes.Equal(key.Identity, i.spki) {
		t.Errorf("read %+v", key)
	}
	foreign, _ := other()
	for path, value := range map[string]any{
		"name": "other", "oaep_hash": 2, "identity": stranger.spki, "spki": foreign.SPKI, "signature": []byte{1}, "kind": KindShares, "format": 2,
		"threshold": 2, "shares": 3, "split": make([]byte, 32),
	} {
		_, err := ParsePublicKey(reordered[PublicKey](t, edited(t, file, path, value)))
		wantRefused(t, "another "+path, err, "")
	}
	_, err = ParsePublicKey(reordered[PublicKey](t, edited(t, file, "kind", "PASSPHRASE")))
	wantRefused(t, "an unknown kind", err, `recovery key vault is of kind "PASSPHRASE", this release knows SHARES and TOKEN`)
	good := *key
	for what, edit := range map[string]func(k *PublicKey){
		"no hash":            func(k *PublicKey) { k.OAEPHash = 0 },
		"another hash":       func(k *PublicKey) { k.OAEPHash = 3 },
		"no identity":        func(k *PublicKey) { k.Identity = nil },
		"an identity of 384": func(k *PublicKey) { k.Identity = newIdentity(t, elliptic.P384()).spki },
		"an RSA identity":    func(k *PublicKey) { k.Identity = k.SPKI },
		"a long identity":    func(k *PublicKey) { k.Identity = make([]byte, maxTransfer+1) },
		"another's":          func(k *PublicKey) { k.Identity = stranger.spki },
		"a byte more":        func(k *PublicKey) { k.Identity = append(bytes.Clone(k.Identity), 0) },
		"no key":             func(k *PublicKey) { k.SPKI = nil },
		"shares":             func(k *PublicKey) { k.Threshold, k.Shares = 2, 3 },
		"a split":            func(k *PublicKey) { k.Split = make([]byte, 32) },
		"no name":            func(k *PublicKey) { k.Name = "" },
	} {
		k := good
		edit(&k)
		_, err := NewToken(k, i.sign)
		wantRefused(t, what, err, "")
	}
	_, shared := made()
	s := *shared[0]
	s.Key = good
	b, err := s.Encode()
	must(t, err)
	_, err = ParseShare(b)
	wantRefused(t, "a share of a token's key", err, "share of a recovery key of kind TOKEN")
}

func TestTokenReport(t *testing.T) {
	i, stranger := newIdentity(t, elliptic.P256()), newIdentity(t, elliptic.P256())
	key, err := ParsePublicKey(inToken(t, i))
	must(t, err)
	signed := func(by identity) *Report {
		r := aReport()
		r.Key = key.Fingerprint()
		file, err := r.SignWith(by.sign)
		must(t, err)
		parsed, err := ParseReport(file)
		must(t, err)
		return parsed
	}
	r := signed(i)
	must(t, r.Verify(key))
	wantRefused(t, "another token's", signed(stranger).Verify(key), "another token made it")
	altered := *r
	altered.Tokens++
	wantRefused(t, "altered", altered.Verify(key), "does not verify")
	altered = *r
	altered.Kind = KindShares
	wantRefused(t, "of the other kind", altered.Verify(key), "vault is of kind TOKEN")
	split, _ := made() // the same RSA key: what signs is another
	wantRefused(t, "a report of a token for a key of shares", r.Verify(split), "vault is of kind SHARES")
}

// TestGoldenToken: a file that a token has signed, and a report of its, are read for ever.
func TestGoldenToken(t *testing.T) {
	if *update {
		i := newIdentity(t, elliptic.P256())
		must(t, os.WriteFile(filepath.Join("testdata", "golden.token"), inToken(t, i), 0o600))
		key, err := ParsePublicKey(golden(t, "golden.token"))
		must(t, err)
		r := aReport()
		r.Key = key.Fingerprint()
		file, err := r.SignWith(i.sign)
		must(t, err)
		must(t, os.WriteFile(filepath.Join("testdata", "golden.token-report"), file, 0o600))
	}
	key, err := ParsePublicKey(golden(t, "golden.token"))
	must(t, err)
	report, err := ParseReport(golden(t, "golden.token-report"))
	must(t, err)
	must(t, report.Verify(key))
}
