package hsm_test

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
	"pgregory.net/rapid"
)

var macKey = []byte("a domain mac key of 32 bytes....")

func testMAC(message []byte) ([]byte, error) { return hmacSHA256(macKey, message), nil }

func testHeader() hsm.TokenHeader {
	return hsm.TokenHeader{
		Class: hsm.ClassAES, Attributes: hsm.AttrImported, Generation: 0x01020304,
		Cluster: hsm.ID([]byte("cluster-id-16-by")), Key: hsm.ID([]byte("key-id-16-bytes.")),
		Version: 0x0a0b0c0d, Created: time.Unix(1_700_000_000, 0).UTC(),
	}
}

func buildToken(t testing.TB, h hsm.TokenHeader, wrapped int) []byte {
	t.Helper()
	b, err := hsm.BuildToken(h, [16]byte([]byte("check value 16 b")), bytes.Repeat([]byte{0xab}, wrapped), testMAC)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The token is byte for byte what the format says.
func TestTokenGolden(t *testing.T) {
	got := buildToken(t, testHeader(), 40)
	want := "4b575431" + "01" + "01" + "0001" + "01020304" +
		hex.EncodeToString([]byte("cluster-id-16-by")) + hex.EncodeToString([]byte("key-id-16-bytes.")) +
		"0a0b0c0d" + "000000006553f100" + hex.EncodeToString([]byte("check value 16 b")) +
		"0028" + strings.Repeat("ab", 40)
	body, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	if want += hex.EncodeToString(hmacSHA256(macKey, []byte("quorumkms/kwt/v1"), body)); hex.EncodeToString(got) != want {
		t.Errorf("%x\nwant %s", got, want)
	}
}

func TestTokenRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := hsm.TokenHeader{
			Class:      hsm.Class(rapid.IntRange(1, 6).Draw(rt, "class")),
			Attributes: hsm.Attributes(rapid.IntRange(0, 1).Draw(rt, "attributes")),
			Generation: rapid.Uint32().Draw(rt, "generation"),
			Version:    rapid.Uint32().Draw(rt, "version"),
			Created:    time.Unix(rapid.Int64Range(0, 253402300799).Draw(rt, "created"), 0).UTC(),
		}
		h.Attributes |= h.Class.Attributes()
		copy(h.Cluster[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "cluster"))
		copy(h.Key[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "key"))
		size := 8 * rapid.IntRange(2, hsm.MaxWrapped/8).Draw(rt, "size")
		b := buildToken(t, h, size)
		got, err := hsm.ParseToken(b)
		if err != nil {
			rt.Fatal(err)
		}
		if got.Header != h || string(got.Check[:]) != "check value 16 b" || len(got.Wrapped) != size {
			rt.Fatalf("%+v, want %+v", got.Header, h)
		}
		if !hmac.Equal(got.MAC(), hmacSHA256(macKey, got.MACMessage())) {
			rt.Fatal("mac differs")
		}
		if err := got.Matches(h); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestBuildTokenRefuses(t *testing.T) {
	for name, change := range map[string]func(h *hsm.TokenHeader, wrapped *int){
		"class 0":              func(h *hsm.TokenHeader, _ *int) { h.Class = 0 },
		"class 7":              func(h *hsm.TokenHeader, _ *int) { h.Class = 7 },
		"resident, of AES":     func(h *hsm.TokenHeader, _ *int) { h.Attributes |= hsm.AttrResident },
		"resident, of HMAC":    func(h *hsm.TokenHeader, _ *int) { h.Class, h.Attributes = hsm.ClassHMAC, hsm.AttrResident },
		"resident by class":    func(h *hsm.TokenHeader, _ *int) { h.Class = hsm.ClassResident },
		"unknown attribute":    func(h *hsm.TokenHeader, _ *int) { h.Attributes = 1 << 2 },
		"created before 1970":  func(h *hsm.TokenHeader, _ *int) { h.Created = time.Unix(-1, 0) },
		"no creation time":     func(h *hsm.TokenHeader, _ *int) { h.Created = time.Time{} },
		"created in 10000":     func(h *hsm.TokenHeader, _ *int) { h.Created = time.Unix(253402300800, 0) },
		"nothing wrapped":      func(_ *hsm.TokenHeader, n *int) { *n = 0 },
		"half an octet string": func(_ *hsm.TokenHeader, n *int) { *n = 20 },
		"too little wrapped":   func(_ *hsm.TokenHeader, n *int) { *n = 8 },
		"too much wrapped":     func(_ *hsm.TokenHeader, n *int) { *n = hsm.MaxWrapped + 8 },
	} {
		h, n := testHeader(), 40
		change(&h, &n)
		if _, err := hsm.BuildToken(h, [16]byte{}, make([]byte, n), testMAC); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	failing := func([]byte) ([]byte, error) { return nil, hsm.ErrUnavailable }
	if _, err := hsm.BuildToken(testHeader(), [16]byte{}, make([]byte, 40), failing); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("failing mac: %v", err)
	}
	short := func([]byte) ([]byte, error) { return make([]byte, 31), nil }
	if _, err := hsm.BuildToken(testHeader(), [16]byte{}, make([]byte, 40), short); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("short mac: %v", err)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"empty":            func([]byte) []byte { return nil },
		"magic":            func(b []byte) []byte { b[3] = '2'; return b },
		"suite 0":          func(b []byte) []byte { b[4] = 0; return b },
		"suite 2":          func(b []byte) []byte { b[4] = 2; return b },
		"class 0":          func(b []byte) []byte { b[5] = 0; return b },
		"class 6":          func(b []byte) []byte { b[5] = 6; return b },
		"attribute bit 2":  func(b []byte) []byte { b[7] |= 4; return b },
		"attribute bit 15": func(b []byte) []byte { b[6] |= 0x80; return b },
		"creation time":    func(b []byte) []byte { b[48] = 0xff; return b },
		"length one more":  func(b []byte) []byte { b[73]++; return b },
		"length one less":  func(b []byte) []byte { b[73]--; return b },
		"length huge":      func(b []byte) []byte { b[72] = 0xff; return b },
		"one byte cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"one byte more":    func(b []byte) []byte { return append(b, 0) },
		"no multiple of 8": func(b []byte) []byte { b[73]++; return append(b, 0) },
		"wrapped key too big": func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[72:], 8192)
			return append(b, make([]byte, 8192-40)...)
		},
	} {
		if _, err := hsm.ParseToken(change(buildToken(t, testHeader(), 40))); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	whole := buildToken(t, testHeader(), 40)
	for n := range whole {
		if _, err := hsm.ParseToken(whole[:n]); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// Every byte of a token changes what it says or what its MAC must be.
func TestEveryTokenByteIsAuthenticated(t *testing.T) {
	whole := buildToken(t, testHeader(), 40)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		got, err := hsm.ParseToken(b)
		if err == nil && hmac.Equal(got.MAC(), hmacSHA256(macKey, got.MACMessage())) {
			t.Errorf("byte %d is not authenticated", i)
		}
	}
}

func TestTokenMatches(t *testing.T) {
	token, err := hsm.ParseToken(buildToken(t, testHeader(), 40))
	if err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(h *hsm.TokenHeader){
		"key id":     func(h *hsm.TokenHeader) { h.Key[15]++ },
		"version":    func(h *hsm.TokenHeader) { h.Version++ },
		"cluster":    func(h *hsm.TokenHeader) { h.Cluster[0]++ },
		"class":      func(h *hsm.TokenHeader) { h.Class = hsm.ClassHMAC },
		"attributes": func(h *hsm.TokenHeader) { h.Attributes = 0 },
		"generation": func(h *hsm.TokenHeader) { h.Generation-- },
	} {
		h := testHeader()
		change(&h)
		if err := token.Matches(h); !errors.Is(err, hsm.ErrCorrupt) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	h := testHeader()
	h.Created = time.Time{}
	if err := token.Matches(h); err != nil {
		t.Errorf("creation time: %v", err)
	}
}

func TestParsedTokenIsACopy(t *testing.T) {
	b := buildToken(t, testHeader(), 40)
	token, err := hsm.ParseToken(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if token.Wrapped[0] != 0xab || !hmac.Equal(token.MAC(), hmacSHA256(macKey, token.MACMessage())) {
		t.Error("token changed with the caller's buffer")
	}
}

func TestKeySpecHeader(t *testing.T) {
	spec := hsm.KeySpec{
		Cluster: hsm.ID{1}, Generation: 2, Class: hsm.ClassAES, Key: hsm.ID{3}, Version: 4,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 999, time.FixedZone("", 3600)),
	}
	got, err := spec.Header()
	want := hsm.TokenHeader{
		Class: hsm.ClassAES, Generation: 2, Cluster: hsm.ID{1}, Key: hsm.ID{3}, Version: 4,
		Created: time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC),
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(s *hsm.KeySpec){
		"class":    func(s *hsm.KeySpec) { s.Class = hsm.ClassRSA },
		"imported": func(s *hsm.KeySpec) { s.Attributes = hsm.AttrImported },
		"resident": func(s *hsm.KeySpec) { s.Attributes = hsm.AttrResident },
		"created":  func(s *hsm.KeySpec) { s.Created = time.Time{} },
	} {
		s := spec
		change(&s)
		if _, err := s.Header(); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The subkeys of the CMAC examples of NIST SP 800-38B, appendix D.
func TestDouble(t *testing.T) {
	for _, v := range [][2]string{
		{"7df76b0c1ab899b33e42f047b91b546f", "fbeed618357133667c85e08f7236a8de"}, // AES-128: L, K1
		{"fbeed618357133667c85e08f7236a8de", "f7ddac306ae266ccf90bc11ee46d513b"}, // K1, K2
		{"e568f68194cf76d6174d4cc04310a854", "cad1ed03299eedac2e9a99808621502f"}, // AES-256: L, K1
		{"00000000000000008000000000000000", "00000000000000010000000000000000"},
	} {
		in, err := hex.DecodeString(v[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := hsm.Double([16]byte(in)); hex.EncodeToString(got[:]) != v[1] {
			t.Errorf("%s: %x, want %s", v[0], got, v[1])
		}
	}
}

// The check value by the words of the format, with a block cipher beside it.
func TestCheckValueAES(t *testing.T) {
	block, err := aes.NewCipher(testRef(7).Token)
	if err != nil {
		t.Fatal(err)
	}
	var calls []int
	encrypt := func(dst, src []byte) error {
		calls = append(calls, len(src))
		for i := 0; i < len(src); i += 16 {
			block.Encrypt(dst[i:], src[i:])
		}
		return nil
	}
	got, err := hsm.CheckValueAES(encrypt, hsm.ID([]byte("key-id-16-bytes.")), 0x01020304)
	if err != nil {
		t.Fatal(err)
	}
	var l [16]byte
	block.Encrypt(l[:], l[:])
	k1 := hsm.Double(l)
	var key [32]byte
	for i, counter := range []byte{1, 2} {
		b := k1
		b[1] ^= counter
		b[2] ^= 'V'
		block.Encrypt(key[16*i:], b[:])
	}
	want := hmacSHA256(key[:], []byte("quorumkms/kcv/v1"), []byte("key-id-16-bytes."), []byte{1, 2, 3, 4})[:16]
	if !bytes.Equal(got[:], want) {
		t.Errorf("%x, want %x", got, want)
	}
	if len(calls) != 2 || calls[0] != 16 || calls[1] != 32 {
		t.Errorf("calls of %v bytes", calls)
	}
	for _, fail := range []int{1, 2} {
		n := 0
		_, err := hsm.CheckValueAES(func(dst, src []byte) error {
			if n++; n == fail {
				return hsm.ErrUnavailable
			}
			return encrypt(dst, src)
		}, hsm.ID{}, 1)
		if !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("call %d fails: %v", fail, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(buildToken(f, testHeader(), 16))
	f.Add(buildToken(f, testHeader(), 40))
	f.Add(buildToken(f, hsm.TokenHeader{Class: hsm.ClassImportRSA, Version: math.MaxUint32, Created: time.Unix(0, 0)}, hsm.MaxWrapped))
	f.Fuzz(func(t *testing.T, b []byte) {
		token, err := hsm.ParseToken(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := hsm.BuildToken(token.Header, token.Check, token.Wrapped, func([]byte) ([]byte, error) { return token.MAC(), nil })
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("not canonical: %x, %v", again, err)
		}
	})
}
