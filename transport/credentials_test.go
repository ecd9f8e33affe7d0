package transport

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRefresh: files that changed are read when they have been seen twice, and again
// and again while they are no good.
func TestRefresh(t *testing.T) {
	home := newAuthority(t, testDomain)
	files := home.issue(home.node("n1"), nil)
	creds, err := Load(files, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string, done bool, text string) {
		t.Helper()
		got, err := creds.Refresh()
		if got != done || (err == nil) != (text == "") || err != nil && (!errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), text)) {
			t.Errorf("%s: read %v, error %v; want %v, %q", what, got, err, done, text)
		}
	}
	expect("nothing changed", false, "")
	before := creds.Certificate()
	home.reissue(files, home.node("n1"), nil)
	expect("seen once", false, "")
	expect("seen twice", true, "")
	if bytes.Equal(creds.Certificate().KeyHash(), before.KeyHash()) {
		t.Error("the certificate is still the old one")
	}
	expect("nothing changed since", false, "")

	before = creds.Certificate()
	good, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, files.Key, good[:len(good)/2])
	expect("half a key, seen once", false, "")
	expect("half a key", false, files.Key)
	expect("half a key still", false, files.Key)
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	expect("no key, seen once", false, "")
	expect("no key", false, "key file")
	if !bytes.Equal(creds.Certificate().KeyHash(), before.KeyHash()) {
		t.Error("files that are no good took the place of good ones")
	}
	writeFile(t, files.Key, good)
	expect("the key is back, seen once", false, "")
	expect("the key is back", true, "")

	writeFile(t, files.Key, good[:1])
	if err := creds.Reload(); !errors.Is(err, ErrCredentials) {
		t.Errorf("reload: %v", err)
	}
	writeFile(t, files.Key, good)
	if err := creds.Reload(); err != nil {
		t.Errorf("reload: %v", err)
	}
	expect("read by reload", false, "")
}

// TestRolloverKeepsConnections: a connection stays through everything that leaves its
// peer trusted, and ends with the CA.
func TestRolloverKeepsConnections(t *testing.T) {
	noLeaks(t)
	home, next := newAuthority(t, testDomain), newAuthority(t, testDomain)
	files := home.issue(home.node("n1"), nil)
	creds, err := Load(files, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	m := startMux(t, creds, Limits{}, nil)
	greet(t, m.Protocol("p/1", nil))
	connect := func(a *authority) *tls.Conn {
		t.Helper()
		c, err := visit(m, a.client([]string{"p/1"}, a.user("u"), nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	step := func(ca []byte) {
		t.Helper()
		writeFile(t, files.CA, ca)
		if err := creds.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	alive := func(c *tls.Conn) {
		t.Helper()
		if err := echo(c, "alive", "alive"); err != nil {
			t.Error(err)
		}
	}
	old := connect(home)
	step(append(home.ca.CertPEM(), next.ca.CertPEM()...))
	fresh := connect(next)
	alive(old)
	next.reissue(files, next.node("n1"), nil)
	step(append(home.ca.CertPEM(), next.ca.CertPEM()...))
	alive(old)
	alive(fresh)
	if got := creds.CAs(); len(got) != 2 || !strings.Contains(creds.Certificate().Issuer(), "development CA") {
		t.Errorf("CAs %v, issuer %s", got, creds.Certificate().Issuer())
	}
	step(next.ca.CertPEM())
	alive(fresh)
	if err := echo(old, "", "x"); !errors.Is(err, io.EOF) {
		t.Errorf("a connection of the old CA: %v", err)
	}
	if n := len(creds.open()); n != 1 {
		t.Errorf("%d connections are held, want 1", n)
	}
}

// TestOwnExpiry: with its own certificate a node's connections end, unless it has got
// another one meanwhile.
func TestOwnExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		const life = 90 * time.Second
		short := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) }
		files := home.issue(home.node("n1"), short)
		creds, err := Load(files, testDomain)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		s, c := pair(t, creds.Server(nil, nil), home.client(nil, home.user("u"), nil))
		_ = creds.adopt(s, x509.ExtKeyUsageClientAuth)
		time.Sleep(life / 2)
		home.reissue(files, home.node("n1"), short)
		if err := errors.Join(creds.Reload(), creds.Valid()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read %v, want the end", err)
		}
		if lived := time.Since(start); lived != life/2+life {
			t.Errorf("closed after %v, want %v", lived, life/2+life)
		}
		if err := creds.Valid(); !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), "expired at 2000-") || !strings.Contains(err.Error(), files.Cert) {
			t.Errorf("afterwards: %v", err)
		}
		_ = c.Close()
	})
}

// TestPinnedBundle: a join token may pin some of the CAs in a node's file; then the
// others do not count.
func TestPinnedBundle(t *testing.T) {
	noLeaks(t)
	a, b, c := newAuthority(t, testDomain), newAuthority(t, testDomain), newAuthority(t, testDomain)
	pinOf := func(authorities ...*authority) []byte {
		var certs []*x509.Certificate
		for _, x := range authorities {
			certs = append(certs, x.ca.cert)
		}
		return hashKeys(keyHashes(certs))
	}
	files := a.issue(a.node("n9"), nil)
	writeFile(t, files.CA, bytes.Join([][]byte{a.ca.CertPEM(), b.ca.CertPEM(), a.ca.CertPEM()}, nil))
	creds, err := Load(files, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		pin    []byte
		server *authority
		want   string
	}{
		{"both, the first", pinOf(a, b), a, ""},
		{"both, the second", pinOf(b, a), b, ""},
		{"the first alone", pinOf(a), a, ""},
		{"the second alone", pinOf(b), b, ""},
		{"the first alone, a server of the second", pinOf(a), b, "unknown authority"},
		{"the second alone, a server of the first", pinOf(b), a, "unknown authority"},
		{"more than it has", pinOf(a, b, c), a, "not those the join token pins"},
		{"another", pinOf(c), c, "not those the join token pins"},
	} {
		_, err := handshake(t, bare(t, tc.server.issue(tc.server.node("n2"), nil)), creds.ClientPinned([]string{"p/1"}, tc.pin, nil))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestCertificateWarning(t *testing.T) {
	const day = 24 * time.Hour
	home := newAuthority(t, testDomain)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		life, age time.Duration
		want      string
	}{
		{365 * day, 0, ""},
		{365 * day, 335 * day, ""},
		{365 * day, 335*day + time.Second, "the certificate of spiffe://kms.test/node/n1 expires in 29 days, at 2027-01-01T00:00:00Z"},
		{90 * day, 60*day + time.Second, "expires in 29 days"},
		{30 * day, 20 * day, ""},
		{30 * day, 20*day + time.Second, "expires in 9 days"},
		{day, 16 * time.Hour, ""},
		{day, 17 * time.Hour, "expires in 7 hours"},
		{day, day - 5*time.Minute, "expires in 5 minutes"},
		{day, day - 5*time.Second, "expires in 5 seconds"},
		{day, day, "expired at 2026-01-02T00:00:00Z"},
	} {
		c := *home.ca.cert
		c.IsCA, c.NotBefore, c.NotAfter = false, begin, begin.Add(tc.life)
		c.URIs = nil
		template, err := home.ca.template(home.node("n1"), nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = template.URIs
		got := Certificate{&c}.Warning(begin.Add(tc.age))
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("of a life of %s after %s: %q, want %q", tc.life, tc.age, got, tc.want)
		}
	}
	if got := (Certificate{home.ca.cert}).Subject(); !strings.Contains(got, "development CA of "+testDomain) {
		t.Errorf("the CA is %q", got)
	}
}
