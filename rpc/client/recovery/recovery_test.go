package recovery

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
)

// made is a recovery key of 2 of 3 shares, made once: it takes seconds.
var made = sync.OnceValues(func() (*PublicKey, []*Share) {
	key, shares, err := New("vault", 2, 3)
	if err != nil {
		panic(err)
	}
	return key, shares
})

var other = sync.OnceValues(func() (*PublicKey, []*Share) {
	key, shares, err := New("vault", 2, 2)
	if err != nil {
		panic(err)
	}
	return key, shares
})

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantRefused(t *testing.T, what string, err error, text string) {
	t.Helper()
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want a refusal with %q", what, err, text)
	}
}

// again is a share through its file.
func again(t *testing.T, s *Share) *Share {
	t.Helper()
	b, err := s.Encode()
	must(t, err)
	out, err := ParseShare(b)
	must(t, err)
	return out
}

func given(shares ...*Share) (out []Given) {
	for i, s := range shares {
		out = append(out, Given{fmt.Sprintf("file %d", i+1), s})
	}
	return out
}

func TestShares(t *testing.T) {
	key, shares := made()
	for _, some := range [][]*Share{{shares[0], shares[1]}, {shares[2], shares[0]}, {shares[1], shares[2]}, {shares[2], shares[1], shares[0]}} {
		var parsed []*Share
		for _, s := range some {
			parsed = append(parsed, again(t, s))
		}
		opened, err := Combine(given(parsed...))
		must(t, err)
		public, err := key.public()
		must(t, err)
		if !opened.PublicKey.Equal(public) {
			t.Error("another key was opened")
		}
		must(t, opened.Validate())
		Wipe(opened)
		if slices.Max(opened.D.Bits()) != 0 || slices.Max(opened.Primes[0].Bits()) != 0 {
			t.Error("a wiped key has secrets")
		}
	}
	_, foreign := other()
	altered := *shares[1]
	altered.Value = foreign[1].Value
	for what, x := range map[string]struct {
		given []Given
		text  string
	}{
		"none":      {nil, "no share is given"},
		"too few":   {given(shares[0]), "1 of the 2 shares that open recovery key vault are given"},
		"twice":     {given(shares[0], shares[0]), "file 1 and file 2 are both share 1"},
		"foreign":   {given(shares[0], foreign[1]), "file 2 of vault (" + foreign[0].Key.Fingerprint()},
		"wrong":     {given(shares[0], &altered), "file 2: recovery refused: share 2 of recovery key vault is wrong"},
		"one wrong": {given(shares[0], &altered, shares[2]), "file 2: "},
	} {
		_, err := Combine(x.given)
		wantRefused(t, what, err, x.text)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, x := range []struct {
		name              string
		threshold, shares int
		text              string
	}{
		{"", 2, 3, "name"},
		{"Vault", 2, 3, "name"},
		{"-a", 2, 3, "name"},
		{"a/b", 2, 3, "name"},
		{strings.Repeat("a", MaxName+1), 2, 3, "name"},
		{"vault", 1, 3, "1 of 3"},
		{"vault", 4, 3, "4 of 3"},
		{"vault", 2, MaxShares + 1, "2 of 33"},
		{"vault", 0, 0, "0 of 0"},
	} {
		_, _, err := New(x.name, x.threshold, x.shares)
		wantRefused(t, fmt.Sprint(x), err, x.text)
	}
}

func TestHolders(t *testing.T) {
	_, shares := made()
	mine, err := age.GenerateX25519Identity()
	must(t, err)
	hers, err := age.GenerateX25519Identity()
	must(t, err)
	h, err := ParseHolder(mine.Recipient().String())
	must(t, err)
	file, err := shares[0].Encrypt(h)
	must(t, err)
	if bytes.Contains(file, shares[0].Value) || !Encrypted(file) {
		t.Fatal("the share is not encrypted")
	}
	identities, err := ParseIdentities([]byte("# mine\n" + mine.String() + "\n"))
	must(t, err)
	s, err := OpenShare(file, identities)
	must(t, err)
	if s.Number != 1 {
		t.Errorf("share %d", s.Number)
	}
	_, err = OpenShare(file, []Identity{hers})
	wantRefused(t, "another's identity", err, "does not open")
	_, err = OpenShare(file, nil)
	wantRefused(t, "no identity", err, "an identity is needed")
	_, err = OpenShare(file[:len(file)/2], identities)
	wantRefused(t, "half a file", err, "does not open")
	plain, err := shares[0].Encode()
	must(t, err)
	if _, err := OpenShare(plain, nil); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "age1", "ssh-dss AAAA", "ssh-ed25519 AAAA", mine.Recipient().String() + "\n" + hers.Recipient().String(), mine.String()} {
		_, err := ParseHolder(bad)
		wantRefused(t, bad, err, "holder")
	}
	if _, err := ParseHolder("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@example.org"); err != nil {
		t.Error(err)
	}
	_, err = ParseIdentities([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"))
	wantRefused(t, "a broken ssh key", err, "identity")
}

// edited is a file with one member of its JSON replaced.
func edited(t *testing.T, file []byte, path string, value any) []byte {
	t.Helper()
	var all map[string]any
	must(t, json.Unmarshal(file, &all))
	at, names := all, strings.Split(path, ".")
	for _, n := range names[:len(names)-1] {
		at = at[n].(map[string]any)
	}
	at[names[len(names)-1]] = value
	b, err := json.Marshal(all)
	must(t, err)
	return b
}

// reordered is what edited has done, in the canonical order of T.
func reordered[T any](t *testing.T, b []byte) []byte {
	t.Helper()
	v := new(T)
	must(t, json.Unmarshal(b, v))
	out, err := encode(v)
	must(t, err)
	return out
}

func TestPublicKeyFile(t *testing.T) {
	key, _ := made()
	file, err := key.Encode()
	must(t, err)
	parsed, err := ParsePublicKey(file)
	must(t, err)
	if parsed.Fingerprint() != key.Fingerprint() || !strings.HasPrefix(key.Fingerprint(), "SHA256:") {
		t.Errorf("fingerprint %s", parsed.Fingerprint())
	}
	for path, value := range map[string]any{"name": "other", "threshold": 3, "shares": 2, "split": make([]byte, 32), "kind": "TOKEN", "spki": []byte{1}, "format": 2, "signature": nil} {
		_, err := ParsePublicKey(reordered[PublicKey](t, edited(t, file, path, value)))
		wantRefused(t, "another "+path, err, "")
	}
	for what, b := range map[string][]byte{"nothing": nil, "a space": append([]byte(" "), file...), "more": append(bytes.Clone(file), '\n'), "no end": file[:len(file)-1], "another member": edited(t, file, "more", 1), "null": []byte("null\n")} {
		_, err := ParsePublicKey(b)
		wantRefused(t, what, err, "")
	}
}

func TestShareFile(t *testing.T) {
	_, shares := made()
	_, foreign := other()
	file, err := shares[0].Encode()
	must(t, err)
	for path, value := range map[string]any{
		"number": 2, "value": shares[1].Value, "commitments": foreign[0].Commitments, "sealed": foreign[0].Sealed,
		"key.name": "other", "key.spki": foreign[0].Key.SPKI, "format": 0, "key.format": 7,
	} {
		_, err := ParseShare(reordered[Share](t, edited(t, file, path, value)))
		wantRefused(t, "another "+path, err, "")
	}
	over := bytes.Repeat([]byte{0xff}, elementSize) // no scalar
	_, err = ParseShare(reordered[Share](t, edited(t, file, "value", over)))
	wantRefused(t, "a value beyond the order", err, "")
}

func aReport() *Report {
	return &Report{
		Format: Format, Cluster: "01234567-89ab-cdef-0123-456789abcdef", Recipient: "vault", Kind: KindShares, Created: 2, Backup: make([]byte, 32),
		BackupIndex: 1, BackupCreated: 1, Generations: []uint32{1, 2}, Active: 2, Checks: make([]byte, 32), Tokens: 3, Opened: 3,
	}
}

func TestReport(t *testing.T) {
	key, shares := made()
	private, err := Combine(given(shares[1:]...))
	must(t, err)
	r := aReport()
	r.Key = key.Fingerprint()
	file, err := r.Sign(private)
	must(t, err)
	parsed, err := ParseReport(file)
	must(t, err)
	must(t, parsed.Verify(key))
	stranger, _ := other()
	wantRefused(t, "another key", parsed.Verify(stranger), "report of the recovery key")
	parsed.Opened = 2
	wantRefused(t, "an altered report", parsed.Verify(key), "does not verify")
	for what, edit := range map[string]func(*Report){
		"the cluster": func(r *Report) { r.Cluster = "x" }, "the date": func(r *Report) { r.Created = 0 }, "the hash": func(r *Report) { r.Backup = nil },
		"the kind": func(r *Report) { r.Kind = "OTHER" }, "no kind": func(r *Report) { r.Kind = "" },
		"more than all": func(r *Report) { r.Opened = 4 }, "the order": func(r *Report) { r.Generations = []uint32{2, 1} },
		"the active one": func(r *Report) { r.Active = 9 }, "the name": func(r *Report) { r.Recipient = "" }, "the length": func(r *Report) { r.Key = strings.Repeat("x", 300) },
	} {
		r := aReport()
		edit(r)
		b, err := encode(r)
		must(t, err)
		_, err = ParseReport(b)
		wantRefused(t, what, err, "")
	}
}

func TestRequestAndRelease(t *testing.T) {
	request := &Request{Format: Format, Node: "kms-1", Identity: []byte{1}, SPKI: []byte{2}, OAEPHash: 1, Signature: []byte{3}}
	b, err := request.Encode()
	must(t, err)
	if _, err := ParseRequest(b); err != nil {
		t.Error(err)
	}
	for what, edit := range map[string]func(*Request){
		"no node": func(r *Request) { r.Node = "" }, "a long node": func(r *Request) { r.Node = strings.Repeat("n", 300) },
		"no key": func(r *Request) { r.SPKI = nil }, "a long key": func(r *Request) { r.SPKI = make([]byte, 2000) },
	} {
		bad := *request
		edit(&bad)
		b, err := bad.Encode()
		must(t, err)
		_, err = ParseRequest(b)
		wantRefused(t, what, err, "request")
	}
	release := &Release{Format: Format, Cluster: aReport().Cluster, Node: "kms-1", Donor: "d", Identity: []byte{1}, Messages: [][]byte{{1}}}
	b, err = release.Encode()
	must(t, err)
	if _, err := ParseRelease(b); err != nil {
		t.Error(err)
	}
	for what, edit := range map[string]func(*Release){
		"no cluster": func(r *Release) { r.Cluster = "" }, "no message": func(r *Release) { r.Messages = nil }, "an empty one": func(r *Release) { r.Messages = [][]byte{nil} },
		"a long one": func(r *Release) { r.Messages = [][]byte{make([]byte, 1<<16)} }, "many": func(r *Release) { r.Messages = slicesOf(17) }, "no identity": func(r *Release) { r.Identity = nil },
	} {
		bad := *release
		edit(&bad)
		b, err := bad.Encode()
		must(t, err)
		_, err = ParseRelease(b)
		wantRefused(t, what, err, "release")
	}
}

func slicesOf(n int) (out [][]byte) {
	for range n {
		out = append(out, []byte{1})
	}
	return out
}

// fuzz checks that what a parser takes is the file of what it gives.
func fuzz[T interface{ Encode() ([]byte, error) }](f *testing.F, parse func([]byte) (T, error)) {
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parse(b)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		again, err := v.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q was read, and is written as %q, %v", b, again, err)
		}
	})
}

func FuzzParseShare(f *testing.F) {
	_, shares := made()
	b, err := shares[0].Encode()
	must(f, err)
	f.Add(b)
	f.Add([]byte("null\n"))
	fuzz(f, ParseShare)
}

func FuzzParsePublicKey(f *testing.F) {
	key, _ := made()
	b, err := key.Encode()
	must(f, err)
	f.Add(b)
	f.Add(inToken(f, newIdentity(f, elliptic.P256())))
	fuzz(f, ParsePublicKey)
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"format":1,"node":"n","identity":"AQ==","spki":"AQ==","oaep_hash":1,"signature":"AQ=="}` + "\n"))
	fuzz(f, ParseRequest)
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"01234567-89ab-cdef-0123-456789abcdef","node":"n","donor":"d","identity":"AQ==","messages":["AQ=="]}` + "\n"))
	fuzz(f, ParseRelease)
}

func FuzzParseReport(f *testing.F) {
	b, err := encode(aReport())
	must(f, err)
	f.Add(b)
	fuzz(f, func(b []byte) (reportFile, error) {
		r, err := ParseReport(b)
		return reportFile{r}, err
	})
}

// reportFile is a report that can be written without a key.
type reportFile struct{ *Report }

func (r reportFile) Encode() ([]byte, error) { return encode(r.Report) }
