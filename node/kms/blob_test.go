package kms

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

var update = flag.Bool("update", false, "write the vectors under testdata anew")

const vectorFile = "testdata/qkm1.json"

// vector is one published blob with all that is needed to open it.
type vector struct {
	Name      string     `json:"name"`
	Suite     uint8      `json:"suite,omitempty"` // 2, or 1 where there is none
	Key       string     `json:"key"`             // raw AES-256 key, hex
	KeyID     uuid.UUID  `json:"key_id"`
	Version   uint32     `json:"version"`
	Nonce     string     `json:"nonce"`   // 24 bytes, hex; of suite 2 the last 12 are zero
	Context   [][]string `json:"context"` // pairs, in no order
	Canonical string     `json:"canonical_context"`
	Plaintext string     `json:"plaintext"`
	Blob      string     `json:"blob"`
}

func (v vector) pairs() []Pair {
	var out []Pair
	for _, p := range v.Context {
		out = append(out, Pair{p[0], p[1]})
	}
	return out
}

// rawKey is a key outside any HSM: what an owner of the material has.
type rawKey struct{ cipher.Block }

func (k rawKey) EncryptBlocks(_ context.Context, dst, src []byte) error {
	for i := 0; i < len(src); i += aes.BlockSize {
		k.Encrypt(dst[i:], src[i:])
	}
	return nil
}

func (rawKey) Close() {}

// rawResident is a raw key that does what an HSM does of suite 2, with an IV that is given.
type rawResident struct {
	rawKey
	iv [hsm.IVSize]byte
}

func (k rawResident) Commit(_ context.Context, t [32]byte) (com [32]byte, err error) {
	blocks := hsm.CommitBlocks(t)
	for i := range 2 {
		mac := hsm.BlockCMAC(k.Block, [16]byte(blocks[16*i:]))
		copy(com[16*i:], mac[:])
	}
	return com, nil
}

func (k rawResident) Seal(ctx context.Context, plaintext []byte, bind hsm.Binding) ([]byte, error) {
	t, aad := bind(k.iv)
	com, err := k.Commit(ctx, t)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(k.Block)
	if err != nil {
		return nil, err
	}
	return gcm.Seal(nil, k.iv[:], plaintext, aad(&com)), nil
}

func (k rawResident) Open(_ context.Context, iv [hsm.IVSize]byte, ciphertext, aad []byte) ([]byte, error) {
	gcm, err := cipher.NewGCM(k.Block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, iv[:], ciphertext, aad)
}

type rawOpener []byte

func (r rawOpener) Open(context.Context, []byte, hsm.TokenHeader) (hsm.BlockKey, error) {
	b, err := aes.NewCipher(r)
	return rawKey{b}, err
}

// OpenResident has the IV in the place of the token.
func (r rawOpener) OpenResident(_ context.Context, iv []byte, _ hsm.TokenHeader) (hsm.ResidentKey, error) {
	b, err := aes.NewCipher(r)
	return rawResident{rawKey{b}, [hsm.IVSize]byte(iv)}, err
}

func (rawOpener) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	return nil, hsm.ErrUnsupported
}

func deriveRaw(t *testing.T, key []byte, in hsm.MessageInput, use hsm.Use) hsm.MessageKeys {
	t.Helper()
	ring := hsm.NewKeyring(rawOpener(key), hsm.KeyringConfig{})
	defer ring.Close()
	keys, err := ring.Derive(t.Context(), hsm.Ref{Token: []byte("raw")}, in, use)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (v vector) seal(t *testing.T) []byte {
	t.Helper()
	h, err := contextHash(v.pairs())
	if err != nil {
		t.Fatal(err)
	}
	header := blobHeader{suite: suite1, key: v.KeyID, version: v.Version}
	copy(header.nonce[:], unhex(t, v.Nonce))
	plaintext := unhex(t, v.Plaintext)
	if v.Suite == suite2 {
		header.suite = suite2
		ring := hsm.NewKeyring(rawOpener(unhex(t, v.Key)), hsm.KeyringConfig{})
		defer ring.Close()
		b := insideBlob{header: header, context: h, plaintext: len(plaintext)}
		ciphertext, err := ring.Encrypt(t.Context(), hsm.Ref{Token: header.nonce[:12], Kind: hsm.Kind{Class: hsm.ClassResident}}, plaintext, b.bind)
		if err != nil {
			t.Fatal(err)
		}
		return append(b.blob, ciphertext...)
	}
	blob := newBlob(header, len(plaintext))
	keys := deriveRaw(t, unhex(t, v.Key), messageInput(blob, h), hsm.Seal)
	blob, err = sealBlob(&keys, blob, h, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openRaw opens a blob with the raw key, after the format's description alone: it
// shares no code with this package.
func openRaw(key, blob, canonicalContext []byte) ([]byte, error) {
	if len(blob) < 99 || string(blob[:4]) != "QKM1" || blob[4] != 1 && blob[4] != 2 || blob[5] != 0 {
		return nil, errors.New("not a QKM1 blob")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	e := func(in []byte) []byte {
		out := make([]byte, 16)
		block.Encrypt(out, in)
		return out
	}
	k1 := e(make([]byte, 16))
	msb := k1[0] >> 7
	for i := range k1 {
		k1[i] <<= 1
		if i < 15 {
			k1[i] |= k1[i+1] >> 7
		}
	}
	k1[15] ^= msb * 0x87
	derive := func(counter byte, label byte, tail []byte) []byte {
		in := append([]byte{0, counter, label, 0}, tail...)
		for i := range in {
			in[i] ^= k1[i]
		}
		return e(in)
	}
	h := sha256.Sum256(canonicalContext)
	t := sha256.Sum256(bytes.Join([][]byte{[]byte("quorumkms/c/v1"), blob[:50], h[:]}, nil))
	msg := append(derive(1, 'X', blob[26:38]), derive(2, 'X', blob[26:38])...)
	com := append(derive(1, 'C', t[:12]), derive(2, 'C', t[12:24])...)
	m := hmac.New(sha256.New, com)
	m.Write([]byte("quorumkms/commit/v1"))
	m.Write(blob[:50])
	m.Write(h[:])
	if !hmac.Equal(m.Sum(nil), blob[50:82]) {
		return nil, errors.New("commitment does not fit")
	}
	nonce := blob[38:50]
	if blob[4] == 2 { // under the key itself
		msg, nonce = key, blob[26:38]
	}
	inner, err := aes.NewCipher(msg)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(inner)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, nonce, blob[82:], append(bytes.Clone(blob[:82]), h[:]...))
}

// canonicalRaw is KEC1 after its description.
func canonicalRaw(sorted [][]string) []byte {
	out := binary.BigEndian.AppendUint16([]byte("KEC1"), uint16(len(sorted)))
	for _, p := range sorted {
		for _, s := range p {
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(s))), s...)
		}
	}
	return out
}

func loadVectors(t *testing.T) []vector {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	return vectors
}

// TestVectors proves that blobs are what they always were, and that an owner of
// the raw key opens them without us.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	vectors := loadVectors(t)
	if len(vectors) < 8 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			blob := v.seal(t)
			if got := hex.EncodeToString(blob); got != v.Blob {
				t.Fatalf("sealed to\n%s\nwant\n%s", got, v.Blob)
			}
			canonical, err := CanonicalContext(v.pairs())
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(canonical); got != v.Canonical {
				t.Fatalf("context is %s, want %s", got, v.Canonical)
			}
			plaintext, err := openRaw(unhex(t, v.Key), blob, canonical)
			if err != nil || hex.EncodeToString(plaintext) != v.Plaintext {
				t.Fatalf("the raw key opens it to %x, %v", plaintext, err)
			}
		})
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	vectors := []vector{
		{Name: "one byte, empty context", Plaintext: "2a"},
		{Name: "text", Plaintext: hex.EncodeToString([]byte("QuorumKMS")), Context: [][]string{{"object", "cat.jpg"}, {"bucket", "photos"}}},
		{Name: "unsorted, empty value", Plaintext: strings.Repeat("00", 32), Context: [][]string{{"z", ""}, {"a", "ä€😀"}, {"Z", "1"}}},
		{Name: "largest", Plaintext: strings.Repeat("5a", MaxPlaintext), Context: [][]string{{"tenant", "default"}}},
	}
	for _, v := range vectors {
		v.Name, v.Suite = "suite 2: "+v.Name, suite2
		vectors = append(vectors, v)
	}
	for i := range vectors {
		v := &vectors[i]
		n := byte(i + 1)
		v.Key = hex.EncodeToString(bytes.Repeat([]byte{n}, 32))
		v.KeyID = uuid.UUID(bytes.Repeat([]byte{0x10 + n}, 16))
		v.Version = uint32(i)*1000 + 1
		v.Nonce = hex.EncodeToString(bytes.Repeat([]byte{0x40 + n, n}, 12))
		if v.Suite == suite2 {
			v.Nonce = v.Nonce[:24] + strings.Repeat("00", 12)
		}
		canonical, err := CanonicalContext(v.pairs())
		if err != nil {
			t.Fatal(err)
		}
		v.Canonical = hex.EncodeToString(canonical)
		v.Blob = hex.EncodeToString(v.seal(t))
	}
	b, err := json.MarshalIndent(vectors, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(b, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

// openWith is openBlob with keys derived as the blob says.
func openWith(t *testing.T, key []byte, blob []byte, h [32]byte) ([]byte, error) {
	t.Helper()
	keys := deriveRaw(t, key, messageInput(blob, h), hsm.Open)
	return openBlob(&keys, blob, h)
}

// TestTampering flips every bit of a blob: nothing opens, and all failures behind
// the header are the same one.
func TestTampering(t *testing.T) {
	v := loadVectors(t)[1]
	blob, key := unhex(t, v.Blob), unhex(t, v.Key)
	h, err := contextHash(v.pairs())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := openWith(t, key, blob, h); err != nil || hex.EncodeToString(got) != v.Plaintext {
		t.Fatalf("untouched: %x, %v", got, err)
	}
	for bit := range len(blob) * 8 {
		bad := bytes.Clone(blob)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := parseBlob(bad); err != nil {
			if bit/8 >= 6 || !errors.Is(err, ErrMalformed) {
				t.Fatalf("bit %d: %v", bit, err)
			}
			continue
		}
		if _, err := openWith(t, key, bad, h); !errors.Is(err, ErrCiphertext) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
	other, err := contextHash([]Pair{{"bucket", "photos"}, {"object", "dog.jpg"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openWith(t, key, blob, other); !errors.Is(err, ErrCiphertext) {
		t.Fatalf("another context: %v", err)
	}
	if _, err := openWith(t, bytes.Repeat([]byte{9}, 32), blob, h); !errors.Is(err, ErrCiphertext) {
		t.Fatalf("another key: %v", err)
	}
}

func TestParseBlobSizes(t *testing.T) {
	valid := newBlob(blobHeader{suite: suite1, key: uuid.New(), version: 1}, 1)
	for n := range BlobOverhead + 1 {
		b := append(bytes.Clone(valid[:min(n, len(valid))]), make([]byte, max(0, n-len(valid)))...)
		if _, err := parseBlob(b); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	for n, ok := range map[int]bool{BlobOverhead + 1: true, BlobOverhead + MaxPlaintext: true, BlobOverhead + MaxPlaintext + 1: false} {
		b := append(bytes.Clone(valid), make([]byte, n-len(valid))...)
		if _, err := parseBlob(b); (err == nil) != ok {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func FuzzParseBlob(f *testing.F) {
	f.Add([]byte("QKM1"))
	f.Add(append(newBlob(blobHeader{suite: suite1, version: 7}, 20), make([]byte, 68)...))
	f.Add(append(newBlob(blobHeader{suite: suite2, version: 7, nonce: [24]byte{11: 1}}, 20), make([]byte, 68)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseBlob(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := newBlob(h, 0); !bytes.Equal(again, b[:blobCommit]) {
			t.Fatalf("%x reads as %x", b[:blobCommit], again)
		}
	})
}

func TestCanonicalContext(t *testing.T) {
	long := strings.Repeat("x", 3000)
	var many, most []Pair
	for i := range MaxContextPairs + 1 {
		many = append(many, Pair{Key: strings.Repeat("k", i+1)})
	}
	most = many[:MaxContextPairs]
	for name, c := range map[string]struct {
		pairs []Pair
		want  string // of the error; empty: fine
	}{
		"empty":           {nil, ""},
		"one":             {[]Pair{{"a", "b"}}, ""},
		"most":            {most, ""},
		"too many":        {many, "65 pairs"},
		"duplicate":       {[]Pair{{"a", "1"}, {"b", "2"}, {"a", "1"}}, "twice"},
		"empty key":       {[]Pair{{"", "1"}}, "empty key"},
		"reserved":        {[]Pair{{"kms:x", "1"}}, "reserved"},
		"bad key":         {[]Pair{{"a\xff", "1"}}, "UTF-8"},
		"bad value":       {[]Pair{{"a", "\xc3\x28"}}, "UTF-8"},
		"too large":       {[]Pair{{"a", long}, {"b", long}, {"c", long}}, "larger than"},
		"not normalised":  {[]Pair{{"é", "1"}, {"e\u0301", "2"}}, ""},
		"upper and lower": {[]Pair{{"A", "1"}, {"a", "1"}}, ""},
	} {
		got, err := CanonicalContext(c.pairs)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, fsm.ErrInvalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		case c.want == "" && len(c.pairs) < 2:
			var raw [][]string
			for _, p := range c.pairs {
				raw = append(raw, []string{p.Key, p.Value})
			}
			if want := canonicalRaw(raw); !bytes.Equal(got, want) {
				t.Errorf("%s: %x, want %x", name, got, want)
			}
		}
	}
	a, _ := CanonicalContext([]Pair{{"b", "2"}, {"a", "1"}})
	if b := canonicalRaw([][]string{{"a", "1"}, {"b", "2"}}); !bytes.Equal(a, b) {
		t.Errorf("order matters: %x, %x", a, b)
	}
}
