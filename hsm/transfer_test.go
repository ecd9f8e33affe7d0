package hsm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// identity is a NIK outside an HSM.
type identity struct {
	key  *ecdsa.PrivateKey
	spki []byte
}

func newIdentity(t testing.TB, curve elliptic.Curve) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return identity{key, publicDER(t, &key.PublicKey)}
}

func publicDER(t testing.TB, pub any) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func (id identity) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, id.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

var announced = hsm.Transfer{SPKI: []byte("the recipient's transfer key, as bytes"), OAEPHash: hsm.OAEPSHA1}

// testTransfer is a message nobody has signed, and what its recipient expects.
func testTransfer(donor identity) (hsm.TransferMessage, hsm.ImportExpectation) {
	m := hsm.TransferMessage{
		Cluster: hsm.ID([]byte("cluster-id-16-by")), Epoch: 3, Generation: 2, Donor: "node-a", Recipient: "node-b",
		SPKIHash: sha256.Sum256(announced.SPKI), OAEPHash: announced.OAEPHash,
	}
	want := hsm.ImportExpectation{
		Cluster: m.Cluster, Epoch: 3, Donor: "node-a", Recipient: "node-b", DonorIdentity: donor.spki,
		Generation: hsm.Generation{Number: 2},
	}
	for i, kind := range hsm.DomainKinds() {
		check := [16]byte{byte(kind), byte(i)}
		m.Keys = append(m.Keys, hsm.TransferKeyEntry{Kind: kind, Check: check, Ciphertext: bytes.Repeat([]byte{byte(i)}, 384)})
		want.Generation.Checks = append(want.Generation.Checks, hsm.KeyCheck{Kind: kind, Value: check})
	}
	return m, want
}

func encode(t testing.TB, m hsm.TransferMessage) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTransferLayout(t *testing.T) {
	m, _ := testTransfer(identity{})
	m.Keys = m.Keys[:2]
	m.Keys[0].Ciphertext, m.Keys[1].Ciphertext = []byte("one"), []byte("three")
	m.Signature = []byte("signature")
	sum := sha256.Sum256(announced.SPKI)
	body := slices.Concat([]byte("DKX1cluster-id-16-by"), []byte{0, 0, 0, 3, 0, 0, 0, 2},
		[]byte("\x06node-a\x06node-b"), sum[:], []byte{1, 2},
		[]byte{1}, m.Keys[0].Check[:], []byte("\x00\x03one"),
		[]byte{2}, m.Keys[1].Check[:], []byte("\x00\x05three"))
	if want := append(body, "\x00\x09signature"...); !bytes.Equal(encode(t, m), want) {
		t.Errorf("%x\nwant %x", encode(t, m), want)
	}
	if want := append([]byte("quorumkms/dkx/v1"), body...); !bytes.Equal(m.Signed(), want) {
		t.Errorf("signed %x\nwant %x", m.Signed(), want)
	}
}

func TestTransferVerify(t *testing.T) {
	donor := newIdentity(t, elliptic.P256())
	m, want := testTransfer(donor)
	m.Signature = donor.sign(t, m.Signed())
	parsed, err := hsm.ParseTransfer(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Verify(want, announced); err != nil {
		t.Fatal(err)
	}
	for field, other := range map[string]hsm.Transfer{
		"transfer key": {SPKI: []byte("another"), OAEPHash: announced.OAEPHash},
		"oaep hash":    {SPKI: announced.SPKI, OAEPHash: hsm.OAEPSHA256},
	} {
		if err := parsed.Verify(want, other); !errors.Is(err, hsm.ErrRefused) || !strings.Contains(err.Error(), field) {
			t.Errorf("another %s: %v", field, err)
		}
	}
	stranger := newIdentity(t, elliptic.P256())
	for name, change := range map[string]func(w *hsm.ImportExpectation){
		"cluster":             func(w *hsm.ImportExpectation) { w.Cluster[0]++ },
		"epoch":               func(w *hsm.ImportExpectation) { w.Epoch++ },
		"generation":          func(w *hsm.ImportExpectation) { w.Generation.Number++ },
		"donor":               func(w *hsm.ImportExpectation) { w.Donor = "node-b" },
		"recipient":           func(w *hsm.ImportExpectation) { w.Recipient = "node-a" },
		"signature":           func(w *hsm.ImportExpectation) { w.DonorIdentity = stranger.spki },
		"identity key":        func(w *hsm.ImportExpectation) { w.DonorIdentity = nil },
		"check value":         func(w *hsm.ImportExpectation) { w.Generation.Checks[6].Value[15]++ },
		"keys":                func(w *hsm.ImportExpectation) { w.Generation.Checks = nil },
		"6 expected":          func(w *hsm.ImportExpectation) { w.Generation.Checks = w.Generation.Checks[:6] },
		"kinds [1 16 3 4 5 6": func(w *hsm.ImportExpectation) { w.Generation.Checks[1].Kind = hsm.KindMAC },
		"kinds [17 16 6 5 4":  func(w *hsm.ImportExpectation) { slices.Reverse(w.Generation.Checks) },
		"7 expected":          func(w *hsm.ImportExpectation) { w.Generation.Checks = slices.Delete(w.Generation.Checks, 5, 6) },
		"check value of kind": func(w *hsm.ImportExpectation) { w.Generation.Checks[0].Value = [16]byte{} },
	} {
		w := want
		w.Generation.Checks = slices.Clone(want.Generation.Checks)
		change(&w)
		if err := parsed.Verify(w, announced); !errors.Is(err, hsm.ErrRefused) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTransferOfEarlierRelease: a generation that was made before there were resident keys
// travels as it is, and no key of it may be left out or put in.
func TestTransferOfEarlierRelease(t *testing.T) {
	donor := newIdentity(t, elliptic.P256())
	m, want := testTransfer(donor)
	whole := m.Keys
	later := func(k hsm.KeyCheck) bool { return k.Kind.Later() }
	want.Generation.Checks = slices.DeleteFunc(want.Generation.Checks, later)
	m.Keys = slices.DeleteFunc(slices.Clone(m.Keys), func(k hsm.TransferKeyEntry) bool { return k.Kind.Later() })
	m.Signature = donor.sign(t, m.Signed())
	if err := m.Verify(want, announced); err != nil || len(m.Keys) != 7 {
		t.Errorf("%d keys: %v", len(m.Keys), err)
	}
	m.Keys = whole
	m.Signature = donor.sign(t, m.Signed())
	if err := m.Verify(want, announced); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("a key more: %v", err)
	}
	without := append(slices.Clone(whole[:5]), whole[6])
	m.Keys, want.Generation.Checks = without, nil
	for _, k := range without {
		want.Generation.Checks = append(want.Generation.Checks, hsm.KeyCheck{Kind: k.Kind, Value: k.Check})
	}
	m.Signature = donor.sign(t, m.Signed())
	if err := m.Verify(want, announced); !errors.Is(err, hsm.ErrRefused) || !strings.Contains(err.Error(), "no generation has these") {
		t.Errorf("without a log key on both sides: %v", err)
	}
}

// What the donor signs is refused if it is not what the recipient expects.
func TestTransferVerifySigned(t *testing.T) {
	donor := newIdentity(t, elliptic.P256())
	for name, change := range map[string]func(m *hsm.TransferMessage){
		"a key less":      func(m *hsm.TransferMessage) { m.Keys = m.Keys[:6] },
		"a key twice":     func(m *hsm.TransferMessage) { m.Keys = append(m.Keys, m.Keys[6]) },
		"another order":   func(m *hsm.TransferMessage) { m.Keys[0], m.Keys[1] = m.Keys[1], m.Keys[0] },
		"another kind":    func(m *hsm.TransferMessage) { m.Keys[5].Kind = hsm.KindLog },
		"another check":   func(m *hsm.TransferMessage) { m.Keys[3].Check[0]++ },
		"another cluster": func(m *hsm.TransferMessage) { m.Cluster[15]++ },
		"another hash":    func(m *hsm.TransferMessage) { m.OAEPHash = hsm.OAEPSHA256 },
	} {
		m, want := testTransfer(donor)
		change(&m)
		m.Signature = donor.sign(t, m.Signed())
		if err := m.Verify(want, announced); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryTransferByteIsAuthenticated(t *testing.T) {
	donor := newIdentity(t, elliptic.P256())
	m, want := testTransfer(donor)
	m.Signature = donor.sign(t, m.Signed())
	whole := encode(t, m)
	for i := 0; i < len(whole); i++ {
		b := bytes.Clone(whole)
		b[i] ^= 1
		parsed, err := hsm.ParseTransfer(b)
		if err == nil {
			err = parsed.Verify(want, announced)
		}
		if !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if i > 200 && i < len(whole)-200 {
			i += 50 // the inside of ciphertexts is all alike
		}
	}
}

func TestEncodeTransferRefuses(t *testing.T) {
	for name, change := range map[string]func(m *hsm.TransferMessage){
		"no donor":             func(m *hsm.TransferMessage) { m.Donor = "" },
		"long donor":           func(m *hsm.TransferMessage) { m.Donor = strings.Repeat("d", 256) },
		"no recipient":         func(m *hsm.TransferMessage) { m.Recipient = "" },
		"long recipient":       func(m *hsm.TransferMessage) { m.Recipient = strings.Repeat("r", 256) },
		"oaep hash 0":          func(m *hsm.TransferMessage) { m.OAEPHash = 0 },
		"oaep hash 3":          func(m *hsm.TransferMessage) { m.OAEPHash = 3 },
		"no keys":              func(m *hsm.TransferMessage) { m.Keys = nil },
		"17 keys":              func(m *hsm.TransferMessage) { m.Keys = slices.Repeat(m.Keys[:1], 17) },
		"empty ciphertext":     func(m *hsm.TransferMessage) { m.Keys[6].Ciphertext = nil },
		"too long ciphertext":  func(m *hsm.TransferMessage) { m.Keys[0].Ciphertext = make([]byte, 1025) },
		"no signature":         func(m *hsm.TransferMessage) { m.Signature = nil },
		"too long a signature": func(m *hsm.TransferMessage) { m.Signature = make([]byte, 73) },
	} {
		m, _ := testTransfer(identity{})
		m.Signature = []byte("signature")
		change(&m)
		if _, err := m.Encode(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseTransferRefuses(t *testing.T) {
	m, _ := testTransfer(identity{})
	m.Keys = m.Keys[:1]
	m.Signature = []byte("signature")
	whole := encode(t, m)
	for n := range whole {
		if _, err := hsm.ParseTransfer(whole[:n]); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := hsm.ParseTransfer(append(whole, 0)); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("one byte more: %v", err)
	}
	magic := bytes.Clone(whole)
	magic[3] = '2'
	if _, err := hsm.ParseTransfer(magic); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("DKX2: %v", err)
	}
}

func TestVerifyIdentitySignature(t *testing.T) {
	id := newIdentity(t, elliptic.P256())
	message := []byte("a message to sign")
	sig := id.sign(t, message)
	if err := hsm.VerifyIdentitySignature(id.spki, message, sig); err != nil {
		t.Error(err)
	}
	p384 := newIdentity(t, elliptic.P384())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name               string
		spki, message, sig []byte
	}{
		{"no key", nil, message, sig},
		{"trailing byte", append(bytes.Clone(id.spki), 0), message, sig},
		{"p-384", p384.spki, message, p384.sign(t, message)},
		{"rsa", publicDER(t, &rsaKey.PublicKey), message, sig},
		{"another message", id.spki, message[1:], sig},
		{"no signature", id.spki, message, nil},
		{"cut signature", id.spki, message, sig[:len(sig)-1]},
		{"trailing byte in the signature", id.spki, message, append(bytes.Clone(sig), 0)},
		{"another identity", newIdentity(t, elliptic.P256()).spki, message, sig},
	} {
		if err := hsm.VerifyIdentitySignature(tc.spki, tc.message, tc.sig); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestPossessionMessage(t *testing.T) {
	p := hsm.Possession{
		Cluster: hsm.ID([]byte("cluster-id-16-by")), Generation: 5, Verifier: "node-a", Prover: "b",
		Exporter: bytes.Repeat([]byte{1}, 32), Nonce: bytes.Repeat([]byte{2}, 32),
	}
	got, err := hsm.PossessionMessage(p)
	want := "quorumkms/possess/v1cluster-id-16-by\x00\x00\x00\x05\x06node-a\x01b" + strings.Repeat("\x01", 32) + strings.Repeat("\x02", 32)
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	for name, change := range map[string]func(p *hsm.Possession){
		"verifier":       func(p *hsm.Possession) { p.Verifier = "" },
		"prover":         func(p *hsm.Possession) { p.Prover = strings.Repeat("p", 256) },
		"short exporter": func(p *hsm.Possession) { p.Exporter = p.Exporter[1:] },
		"long exporter":  func(p *hsm.Possession) { p.Exporter = make([]byte, 33) },
		"no nonce":       func(p *hsm.Possession) { p.Nonce = nil },
	} {
		bad := p
		change(&bad)
		if _, err := hsm.PossessionMessage(bad); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDomainCheckValues(t *testing.T) {
	wrapped := []byte("forty bytes of a wrapped key of zeros...")
	sum := sha256.Sum256(append([]byte("quorumkms/dk-kcv/v1\x04"), wrapped...))
	if got := hsm.CheckFromWrap(hsm.KeyKind(hsm.ClassEC), wrapped); !bytes.Equal(got[:], sum[:16]) {
		t.Errorf("wrap: %x", got)
	}
	if got := hsm.CheckMACMessage(hsm.KindLog); string(got) != "quorumkms/dk-kcv/v1\x11" {
		t.Errorf("mac message %q", got)
	}
	if got, err := hsm.CheckFromMAC(sum[:]); err != nil || !bytes.Equal(got[:], sum[:16]) {
		t.Errorf("mac: %x, %v", got, err)
	}
	if _, err := hsm.CheckFromMAC(sum[1:]); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("short mac: %v", err)
	}
	if got := hsm.LogKeyMessage(hsm.ID([]byte("cluster-id-16-by"))); string(got) != "quorumkms/lmk/v1cluster-id-16-by" {
		t.Errorf("log key message %q", got)
	}
}

func FuzzParseTransfer(f *testing.F) {
	m, _ := testTransfer(identity{})
	m.Signature = []byte("signature")
	f.Add([]byte(nil))
	f.Add([]byte("DKX1"))
	f.Add(encode(f, m))
	m.Keys = m.Keys[:1]
	f.Add(encode(f, m))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := hsm.ParseTransfer(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("not canonical: %x, %v", again, err)
		}
	})
}
