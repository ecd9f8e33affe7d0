package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func FuzzParsePair(f *testing.F) {
	for _, s := range []string{"", "=", "a", "a=", "a=b", "a=b=c", "=b", "a=\xff", "ü=ö"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, value, err := parsePair(s)
		if err == nil && (key == "" || key+"="+value != s || strings.Contains(key, "=") || !utf8.ValidString(s)) {
			t.Errorf("%q gave %q and %q", s, key, value)
		}
	})
}

func FuzzParseSpan(f *testing.F) {
	for _, s := range []string{"", "d", "0d", "1d", "90d", "12w", "2160h", "-1d", "+1d", "1.5d", "1h30m", "106751d", "106752d", "99999999999999999999w"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseSpan(s)
		if err != nil {
			return
		}
		if again, err := parseSpan(spanText(d)); d <= 0 || err != nil || again != d {
			t.Errorf("%q gave %v, which is written %q", s, d, spanText(d))
		}
	})
}

func TestParseSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "12w": 84 * 24 * time.Hour, "2160h": 2160 * time.Hour, "1h30m": 90 * time.Minute,
		"106751d": 106751 * 24 * time.Hour,
		"":        0, "d": 0, "0d": 0, "-1d": 0, "+1d": 0, "1.5d": 0, "1d12h": 0, "90": 0, "0s": 0, "-1h": 0, "106752d": 0, "99999999999999999999w": 0,
	} {
		if got, err := parseSpan(in); (err == nil) != (want > 0) || err == nil && got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
}

func FuzzParseWhen(f *testing.F) {
	for _, s := range []string{"", "24h", "7d", "2027-01-31T00:00:00Z", "2027-01-31T00:00:00.5+01:00", "2027-01-31", "1ns", "106751d", "9999-12-31T23:59:59Z"} {
		f.Add(s)
	}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		at, _, err := parseWhen(s, now)
		if err == nil && (!at.After(now) || at.Nanosecond() != 0 || at.Location() != time.UTC || at.Year() > 9999) {
			t.Errorf("%q gave %v", s, at)
		}
	})
}

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 500, time.UTC)
	for in, want := range map[string]string{
		"24h": "2026-05-02T12:00:00Z", "7d": "2026-05-08T12:00:00Z", "2027-01-31T01:00:00+01:00": "2027-01-31T00:00:00Z",
		"2027-01-31T00:00:00.9Z": "2027-01-31T00:00:00Z",
		"2026-05-01T12:00:00Z":   "", "2020-01-01T00:00:00Z": "", "-1h": "", "1ns": "", "soon": "", "": "", "2027-01-31": "",
	} {
		at, relative, err := parseWhen(in, now)
		if (err == nil) != (want != "") || err == nil && (at.Format(time.RFC3339) != want || relative != !strings.Contains(in, "T")) {
			t.Errorf("%q: %v, relative %t, %v; want %s", in, at, relative, err, want)
		}
	}
}

func FuzzPrincipal(f *testing.F) {
	for _, s := range []string{"", "spiffe://", "spiffe://a", "spiffe://a/", "spiffe://a/b", "SPIFFE://a/b", "spiffe://a/b/../c", "spiffe://a/b?c", "https://a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var p principal
		if p.Set(s) == nil && (string(p) != s || !strings.HasPrefix(s, "spiffe://") || strings.ContainsAny(s, "?#%")) {
			t.Errorf("%q was accepted as %q", s, p)
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", ":", "0:0", "1:2", "1:", ":1", "-1:2", "+1:2", "1:2:3", "9223372036854775807:1", "9223372036854775808:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, n, err := parseRange(s)
		if err != nil {
			return
		}
		want := fmt.Sprintf("%d:%d", off, n)
		if off < 0 || n < 0 || len(s) < len(want) {
			t.Errorf("%q gave %s", s, want)
		}
	})
}

func FuzzParseBlob(f *testing.F) {
	good := append([]byte("QKM1\x01\x00"), make([]byte, blobMin-6)...)
	f.Add(good)
	f.Add(good[:blobMin-1])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, version, ok := parseBlob(b)
		if !ok {
			if id != (uuid.UUID{}) || version != 0 {
				t.Errorf("refused, but gave %s and %d", id, version)
			}
			return
		}
		if !bytes.HasPrefix(b, []byte("QKM1")) || !bytes.Equal(id[:], b[6:22]) || version != binary.BigEndian.Uint32(b[22:26]) {
			t.Errorf("%x gave %s and %d", b, id, version)
		}
	})
}

func TestParseBlobIsStrict(t *testing.T) {
	good := append([]byte("QKM1\x01\x00"), make([]byte, blobMin-6)...)
	if _, _, ok := parseBlob(good); !ok {
		t.Fatal("refused")
	}
	for at, b := range map[int]byte{0: 'X', 3: '2', 4: 3, 5: 1} {
		bad := bytes.Clone(good)
		bad[at] = b
		if _, _, ok := parseBlob(bad); ok {
			t.Errorf("byte %d as %#x was accepted", at, b)
		}
	}
	bad := bytes.Clone(good)
	bad[4] = 0
	if _, _, ok := parseBlob(bad); ok {
		t.Error("suite 0 was accepted")
	}
	if _, _, ok := parseBlob(good[:len(good)-1]); ok {
		t.Error("a short blob was accepted")
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for left, want := range map[time.Duration]string{
		-time.Second:     "2026-05-01 11:59:59 UTC (EXPIRED)",
		0:                "2026-05-01 12:00:00 UTC (EXPIRED)",
		90 * time.Minute: "2026-05-01 13:30:00 UTC (in 1h30m0s)",
		50 * time.Hour:   "2026-05-03 14:00:00 UTC (in 2 days)",
	} {
		if got := expiry(now.Add(left), now); got != want {
			t.Errorf("%v: %q, want %q", left, got, want)
		}
	}
}

// TestCollect: pages of at most three out of ten numbers.
func TestCollect(t *testing.T) {
	fetch := func(limit uint32, marker string) ([]int, string, error) {
		from := len(marker)
		to := min(from+int(min(limit, 3)), 10)
		var items []int
		for i := from; i < to; i++ {
			items = append(items, i)
		}
		if to == 10 {
			return items, "", nil
		}
		return items, strings.Repeat("x", to), nil
	}
	for _, test := range []struct {
		p          page
		first, n   int
		nextMarker int
	}{
		{page{}, 0, 10, 0},
		{page{limit: 1}, 0, 1, 1},
		{page{limit: 3}, 0, 3, 3},
		{page{limit: 7}, 0, 7, 7},
		{page{limit: 10}, 0, 10, 0},
		{page{limit: 11}, 0, 10, 0},
		{page{limit: 2, marker: "xxxxxxx"}, 7, 2, 9},
		{page{marker: "xxxxxxx"}, 7, 3, 0},
	} {
		got, next, err := collect(test.p, fetch)
		if err != nil || len(got) != test.n || got[0] != test.first || len(next) != test.nextMarker {
			t.Errorf("%+v: %v, next %q, %v", test.p, got, next, err)
		}
		if !slices.IsSorted(got) {
			t.Errorf("%+v: %v", test.p, got)
		}
	}

	failure := errors.New("failure")
	for name, fetch := range map[string]func(uint32, string) ([]int, string, error){
		"same marker": func(uint32, string) ([]int, string, error) { return []int{1}, "m", nil },
		"empty page":  func(_ uint32, m string) ([]int, string, error) { return nil, m + "x", nil },
		"error":       func(uint32, string) ([]int, string, error) { return nil, "", failure },
	} {
		if got, _, err := collect(page{}, fetch); err == nil || errors.Is(err, failure) != (name == "error") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestReleaseBinary builds as for a release: static, without C, and stamped.
func TestReleaseBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kmsctl")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "-ldflags", "-X main.version=v9.8.7 -X main.commit=abc123", ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close() //nolint:errcheck // only read
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Error("the binary is not static")
		}
	}
	out, err := exec.CommandContext(t.Context(), path, "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "kmsctl v9.8.7 (abc123, go") {
		t.Errorf("version: %s, %v", out, err)
	}
}

// TestKeyRow: of a key that may not be described, a list shows the id and says so.
func TestKeyRow(t *testing.T) {
	if row := keyRow(&quorumkmsv1.KeyMetadata{KeyId: "k"}); row[0] != "k" || row[1] != "not shown" || row[2] != "" {
		t.Errorf("a hidden key: %q", row)
	}
	k := &quorumkmsv1.KeyMetadata{KeyId: "k", State: quorumkmsv1.KeyState_KEY_STATE_DISABLED, Spec: quorumkmsv1.KeySpec_KEY_SPEC_ECC_NIST_P256, CurrentVersion: 2}
	if row := keyRow(k); row[1] != "disabled" || row[2] != "ecc-nist-p256" || row[3] != "2" {
		t.Errorf("a disabled key: %q", row)
	}
}

// TestShownIsAccepted: what is shown of a key can be given to the flags.
func TestShownIsAccepted(t *testing.T) {
	for _, e := range []enum{specs, usages, origins, protections, wrappingAlgorithms} {
		for n := range e.names {
			if got, err := e.parse("flag", e.text(n)); n != 0 && (err != nil || got != n) {
				t.Errorf("%s: %d is shown as %q, which is %d (%v)", e.prefix, n, e.text(n), got, err)
			}
		}
	}
	if text := specs.text(99); text != "99" {
		t.Errorf("an unknown kind is %q", text)
	}
}
