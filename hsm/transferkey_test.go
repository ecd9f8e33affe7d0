package hsm_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

func TestTransferKeyMessage(t *testing.T) {
	transfer := hsm.Transfer{SPKI: []byte("spki"), OAEPHash: hsm.OAEPSHA256, Signature: []byte("not in it")}
	if got := hsm.TransferKeyMessage(transfer); string(got) != "quorumkms/transfer-key/v1\x02spki" {
		t.Errorf("message %q", got)
	}
}

// The digests are of "abc": FIPS 180-4, examples.
func TestOAEPHashes(t *testing.T) {
	for number, want := range map[uint8]struct{ name, digest string }{
		1: {"SHA-1", "a9993e364706816aba3e25717850c26c9cd0d89d"},
		2: {"SHA-256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
	} {
		h, err := hsm.NewOAEPHash(number)
		if err != nil {
			t.Fatal(err)
		}
		h.Write([]byte("abc"))
		if got := hex.EncodeToString(h.Sum(nil)); got != want.digest || hsm.OAEPName(number) != want.name {
			t.Errorf("hash %d is %s, %s", number, hsm.OAEPName(number), got)
		}
	}
	for _, number := range []uint8{0, 3, 255} {
		if _, err := hsm.NewOAEPHash(number); !errors.Is(err, hsm.ErrRefused) || hsm.OAEPName(number) != "" {
			t.Errorf("hash %d is %q, %v", number, hsm.OAEPName(number), err)
		}
	}
}

// signedTransfer is a transfer key as a recipient announces it.
func signedTransfer(t *testing.T, id identity, spki []byte, oaepHash uint8) hsm.Transfer {
	t.Helper()
	transfer := hsm.Transfer{SPKI: spki, OAEPHash: oaepHash}
	transfer.Signature = id.sign(t, hsm.TransferKeyMessage(transfer))
	return transfer
}

// withByteInside puts a byte behind the key inside the bit string of an SPKI, which
// crypto/x509 overlooks.
func withByteInside(t *testing.T, spki []byte) []byte {
	t.Helper()
	var parsed struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &parsed); err != nil {
		t.Fatal(err)
	}
	parsed.Key.Bytes = append(parsed.Key.Bytes, 0)
	parsed.Key.BitLength += 8
	b, err := asn1.Marshal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParsePKIXPublicKey(b); err != nil {
		t.Fatalf("crypto/x509 refuses it by itself: %v", err)
	}
	return b
}

func TestExportRequestCheck(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, hsm.TransferKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t, elliptic.P256())
	spki := publicDER(t, &key.PublicKey)
	request := func(spki []byte) hsm.ExportRequest {
		return hsm.ExportRequest{
			Donor: "a", Recipient: "b", RecipientIdentity: id.spki,
			Transfer: signedTransfer(t, id, spki, hsm.OAEPSHA256),
		}
	}
	for _, hash := range []uint8{hsm.OAEPSHA1, hsm.OAEPSHA256} {
		r := request(spki)
		r.Transfer = signedTransfer(t, id, spki, hash)
		if pub, err := r.Check(); err != nil || !pub.Equal(&key.PublicKey) {
			t.Errorf("hash %d: %v", hash, err)
		}
	}
	e3 := publicDER(t, &rsa.PublicKey{N: key.N, E: 3})
	for name, r := range map[string]hsm.ExportRequest{
		"rsa-2048":      request(publicDER(t, &small.PublicKey)),
		"exponent 3":    request(e3),
		"p-256":         request(id.spki),
		"no key":        request(nil),
		"trailing byte": request(append(bytes.Clone(spki), 0)),
		"byte inside":   request(withByteInside(t, spki)),
	} {
		if _, err := r.Check(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(r *hsm.ExportRequest){
		"donor":     func(r *hsm.ExportRequest) { r.Donor = "" },
		"recipient": func(r *hsm.ExportRequest) { r.Recipient = strings.Repeat("r", 256) },
		"identity":  func(r *hsm.ExportRequest) { r.RecipientIdentity = newIdentity(t, elliptic.P256()).spki },
		"signature": func(r *hsm.ExportRequest) { r.Transfer.Signature = id.sign(t, spki) },
		"hash":      func(r *hsm.ExportRequest) { r.Transfer.OAEPHash = hsm.OAEPSHA1 },
		"hash 0":    func(r *hsm.ExportRequest) { r.Transfer = signedTransfer(t, id, spki, 0) },
		"hash 3":    func(r *hsm.ExportRequest) { r.Transfer = signedTransfer(t, id, spki, 3) },
	} {
		r := request(spki)
		change(&r)
		if _, err := r.Check(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	const want = "SHA256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-4: "abc"
	if got := hsm.Fingerprint([]byte("abc")); got != want {
		t.Errorf("%s", got)
	}
	digits := strings.TrimPrefix(want, "SHA256:")
	for _, s := range []string{
		want, strings.ToUpper(want), strings.ToLower(want), digits, " " + want + "\n",
		"SHA256: ba7816bf 8f01cfea 414140de 5dae2223 b00361a3 96177a9c b410ff61 f20015ad",
		"BA:78:16:BF:8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F2:00:15:AD",
	} {
		if got, err := hsm.ParseFingerprint(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "SHA256:", digits[:63], digits + "0", digits[:62] + "zz", "MD5:" + digits, want + want, digits[:62] + "-ad"} {
		if got, err := hsm.ParseFingerprint(s); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}
