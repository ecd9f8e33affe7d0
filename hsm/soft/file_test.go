package soft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
)

// testContents is a domain with one generation.
func testContents() *contents {
	keys := make(map[hsm.KeyKind][]byte)
	for _, kind := range hsm.DomainKinds() {
		if kind != hsm.KindLog {
			keys[kind] = bytes.Repeat([]byte{byte(kind)}, hsm.DomainKeySize)
		}
	}
	d := &domain{LogRoot: make([]byte, hsm.DomainKeySize), Generations: map[uint32]map[hsm.KeyKind][]byte{1: keys}}
	return &contents{Identity: []byte("der"), Domains: map[string]*domain{"cluster": d}}
}

func marshal(t testing.TB, c *contents) []byte {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseContents(t *testing.T) {
	whole := marshal(t, testContents())
	if c, err := parseContents(whole); err != nil || !bytes.Equal(marshal(t, c), whole) {
		t.Fatalf("%v", err)
	}
	for name, change := range map[string]func(d *domain){
		"short log key":             func(d *domain) { d.LogRoot = d.LogRoot[1:] },
		"a later key that is short": func(d *domain) { d.Generations[1][hsm.KeyKind(hsm.ClassResident)] = []byte{1} },
		"a later key that is empty": func(d *domain) { d.Generations[1][hsm.KeyKind(hsm.ClassResident)] = []byte{} },
		"key missing":               func(d *domain) { delete(d.Generations[1], hsm.KindMAC) },
		"short key":                 func(d *domain) { d.Generations[1][hsm.KindMAC] = []byte{1} },
		"key too many":              func(d *domain) { d.Generations[1][99] = make([]byte, hsm.DomainKeySize) },
		"no keys":                   func(d *domain) { d.Generations[2] = nil },
	} {
		c := testContents()
		change(c.Domains["cluster"])
		if _, err := parseContents(marshal(t, c)); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []string{
		"", "null", "{}", `{"identity":"","domains":null}`, `{"identity":"","domains":{"a":null}}`,
		`{"identity":"","domains":{},"more":1}`, string(whole) + "{}", string(whole) + "x", string(whole[:len(whole)-1]),
	} {
		if _, err := parseContents([]byte(s)); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// rehash makes the checksum right again.
func rehash(b []byte) []byte {
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

func sealed(t testing.TB) []byte {
	t.Helper()
	s, err := newSealer([]byte("pin"), minPINIterations, [saltSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.seal(testContents())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Changes by somebody who corrects the checksum too.
func TestUnsealForged(t *testing.T) {
	whole := sealed(t)
	if _, _, err := unseal(whole, []byte("pin")); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"too few iterations":  {func(b []byte) { binary.BigEndian.PutUint32(b[4:], minPINIterations-1) }, hsm.ErrCorrupt},
		"too many iterations": {func(b []byte) { binary.BigEndian.PutUint32(b[4:], maxPINIterations+1) }, hsm.ErrCorrupt},
		"iterations":          {func(b []byte) { binary.BigEndian.PutUint32(b[4:], minPINIterations+1) }, hsm.ErrPIN},
		"salt":                {func(b []byte) { b[8]++ }, hsm.ErrPIN},
		"nonce":               {func(b []byte) { b[24]++ }, hsm.ErrPIN},
		"ciphertext":          {func(b []byte) { b[36]++ }, hsm.ErrPIN},
		"tag":                 {func(b []byte) { b[len(b)-sha256.Size-1]++ }, hsm.ErrPIN},
	} {
		b := bytes.Clone(whole)
		tc.change(b)
		if _, _, err := unseal(rehash(b), []byte("pin")); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	whole := sealed(f)
	f.Add([]byte(nil))
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(rehash(make([]byte, fileHeader+gcmTag+sha256.Size)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, err := unseal(b, []byte("pin"))
		if err != nil && !errors.Is(err, hsm.ErrCorrupt) && !errors.Is(err, hsm.ErrPIN) {
			t.Fatalf("%x: %v", b, err)
		}
	})
}

func FuzzParseContents(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(marshal(f, testContents()))
	f.Add([]byte(`{"identity":"","domains":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseContents(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if _, err := parseContents(marshal(t, c)); err != nil {
			t.Fatal(err)
		}
	})
}
