package recovery

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

// update makes the golden files anew. Never use it when a release with them is out: people
// hold shares like these.
var update = flag.Bool("update", false, "make the golden files anew")

func golden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	return b
}

// TestGolden: a recovery key that was made once, and a report that it signed, are read
// and opened for ever.
func TestGolden(t *testing.T) {
	if *update {
		makeGolden(t)
	}
	key, err := ParsePublicKey(golden(t, "golden.recovery"))
	must(t, err)
	var all []Given
	for _, name := range []string{"golden.share-1", "golden.share-3"} {
		s, err := ParseShare(golden(t, name))
		must(t, err)
		all = append(all, Given{name, s})
	}
	private, err := Combine(all)
	must(t, err)
	sum := sha256.Sum256(private.D.Bytes())
	if got := hex.EncodeToString(sum[:]) + "\n"; got != string(golden(t, "golden.private-sha256")) {
		t.Errorf("another private half: %s", got)
	}
	identities, err := ParseIdentities(golden(t, "golden.identity"))
	must(t, err)
	s, err := OpenShare(golden(t, "golden.share-2.age"), identities)
	must(t, err)
	if _, err := Combine([]Given{{"share 2", s}, all[0]}); err != nil {
		t.Error(err)
	}
	report, err := ParseReport(golden(t, "golden.report"))
	must(t, err)
	must(t, report.Verify(key))
}

func makeGolden(t *testing.T) {
	t.Helper()
	put := func(name string, b []byte, err error) {
		t.Helper()
		must(t, err)
		must(t, os.WriteFile(filepath.Join("testdata", name), b, 0o600))
	}
	key, shares, err := New("golden", 2, 3)
	must(t, err)
	b, err := key.Encode()
	put("golden.recovery", b, err)
	b, err = shares[0].Encode()
	put("golden.share-1", b, err)
	b, err = shares[2].Encode()
	put("golden.share-3", b, err)
	h, err := ParseHolder("age1tc2t2mnnuuk2prf0azes9afmdkl8tffkuhyt9el3q2tm6xfp85ysu06nz4")
	must(t, err)
	b, err = shares[1].Encrypt(h)
	put("golden.share-2.age", b, err)
	put("golden.identity", []byte("AGE-SECRET-KEY-10MF4UH6Q0S260AK2NVTF5QN6U7EUYYZP5Y5KZK00GVR4MGM7T8FS7KTALS\n"), nil)
	private, err := Combine(given(shares...))
	must(t, err)
	sum := sha256.Sum256(private.D.Bytes())
	put("golden.private-sha256", []byte(hex.EncodeToString(sum[:])+"\n"), nil)
	r := aReport()
	r.Key = key.Fingerprint()
	b, err = r.Sign(private)
	put("golden.report", b, err)
}
