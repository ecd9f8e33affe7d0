package transport

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

func notYet(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
}

func twoURIs(c *x509.Certificate) {
	c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: testDomain, Path: "/node/other"})
}

func noURI(c *x509.Certificate) { c.URIs = nil }

func usages(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func TestServerRefuses(t *testing.T) {
	noLeaks(t)
	home, foreign, elsewhere := newAuthority(t, testDomain), newAuthority(t, testDomain), newAuthority(t, "other.test")
	creds := home.credentials("n1")
	// A CA of the same key in another trust domain: the chain is good, the name is not.
	elsewhere.ca.cert, elsewhere.ca.key = home.ca.cert, home.ca.key
	alpn := []string{"p/1"}
	good := func() *tls.Config { return home.client(alpn, home.user("u"), nil) }
	for _, tc := range []struct {
		name   string
		client *tls.Config
		want   string // in the server's error; empty: accepted
	}{
		{"a good client", good(), ""},
		{"no certificate", &tls.Config{InsecureSkipVerify: true, NextProtos: alpn}, "didn't provide a certificate"},
		{"another CA", foreign.client(alpn, foreign.user("u"), nil), "unknown authority"},
		{"two URI SANs", home.client(alpn, home.user("u"), twoURIs), "2 URI SANs"},
		{"no URI SAN", home.client(alpn, home.user("u"), noURI), "0 URI SANs"},
		{"expired", home.client(alpn, home.user("u"), expired), "expired"},
		{"not yet valid", home.client(alpn, home.user("u"), notYet), "not yet valid"},
		{"a server's certificate", home.client(alpn, home.user("u"), usages(x509.ExtKeyUsageServerAuth)), "lacks the extended key usage for client"},
		{"no extended key usage", home.client(alpn, home.user("u"), usages()), "lacks the extended key usage for client"},
		{"any extended key usage", home.client(alpn, home.user("u"), usages(x509.ExtKeyUsageAny)), "lacks the extended key usage for client"},
		{"a CA's certificate", home.client(alpn, home.user("u"), func(c *x509.Certificate) { c.IsCA = true }), "a CA's own"},
		{"another trust domain", elsewhere.client(alpn, elsewhere.user("u"), nil), "not of trust domain"},
		{"a refused class", home.client(alpn, home.node("n2"), nil), "want no nodes"},
		{"TLS 1.2", func() *tls.Config { c := good(); c.MaxVersion = tls.VersionTLS12; return c }(), "unsupported versions"},
		{"another protocol", home.client([]string{"p/2"}, home.user("u"), nil), "unsupported application protocols"},
		{"no protocol", home.client(nil, home.user("u"), nil), "no application protocol"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := creds.Server(alpn, func(id Identity) error {
				if id.Class == ClassNode {
					return errors.New("want no nodes")
				}
				return nil
			})
			serverErr, clientErr := handshake(t, server, tc.client)
			if tc.want == "" {
				if serverErr != nil || clientErr != nil {
					t.Fatalf("server %v, client %v", serverErr, clientErr)
				}
				return
			}
			if serverErr == nil || clientErr == nil || !strings.Contains(serverErr.Error(), tc.want) {
				t.Fatalf("server %v, client %v; want %q", serverErr, clientErr, tc.want)
			}
		})
	}
}

func TestServerOptional(t *testing.T) {
	noLeaks(t)
	home, foreign := newAuthority(t, testDomain), newAuthority(t, testDomain)
	creds := home.credentials("n1")
	var asked bool
	server := creds.ServerOptional([]string{"h2"}, func(Identity) error { asked = true; return nil })

	none := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if serverErr, clientErr := handshake(t, server, none); serverErr != nil || clientErr != nil || asked {
		t.Errorf("without a certificate: server %v, client %v, asked %v", serverErr, clientErr, asked)
	}
	if serverErr, _ := handshake(t, server, foreign.client([]string{"h2"}, foreign.user("u"), nil)); !errors.Is(serverErr, ErrPeer) || asked {
		t.Errorf("with another CA's certificate: %v", serverErr)
	}
	if serverErr, _ := handshake(t, server, home.client([]string{"h2"}, home.user("u"), expired)); !errors.Is(serverErr, ErrPeer) || asked {
		t.Errorf("with an expired certificate: %v", serverErr)
	}
	if serverErr, clientErr := handshake(t, server, home.client([]string{"h2"}, home.user("u"), nil)); serverErr != nil || clientErr != nil || !asked {
		t.Errorf("with a good certificate: server %v, client %v, asked %v", serverErr, clientErr, asked)
	}
}

// bare is a server that presents a pair and asks nothing of clients.
func bare(t *testing.T, files Files) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"p/1"}}
}

func TestClientRefuses(t *testing.T) {
	noLeaks(t)
	home, foreign, elsewhere := newAuthority(t, testDomain), newAuthority(t, testDomain), newAuthority(t, "other.test")
	creds := home.credentials("n1")
	elsewhere.ca.cert, elsewhere.ca.key = home.ca.cert, home.ca.key
	both := usages(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	old := bare(t, home.issue(home.node("n2"), nil))
	old.MaxVersion = tls.VersionTLS12
	mute := bare(t, home.issue(home.node("n2"), nil))
	mute.NextProtos = nil
	for _, tc := range []struct {
		name   string
		server *tls.Config
		want   string
	}{
		{"a good node", bare(t, home.issue(home.node("n2"), nil)), ""},
		{"a node whose DNS names are wrong", bare(t, home.issue(home.node("n2"), func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil })), ""},
		{"another CA", bare(t, foreign.issue(foreign.node("n2"), nil)), "unknown authority"},
		{"a user who poses as a server", bare(t, home.issue(home.user("u"), both)), "want node"},
		{"a user's certificate", bare(t, home.issue(home.user("u"), nil)), "lacks the extended key usage for server"},
		{"two URI SANs", bare(t, home.issue(home.node("n2"), twoURIs)), "2 URI SANs"},
		{"expired", bare(t, home.issue(home.node("n2"), expired)), "expired"},
		{"not yet valid", bare(t, home.issue(home.node("n2"), notYet)), "not yet valid"},
		{"another trust domain", bare(t, elsewhere.issue(elsewhere.node("n2"), nil)), "not of trust domain"},
		{"another node", bare(t, home.issue(home.node("n3"), nil)), "want n2"},
		{"TLS 1.2", old, "protocol version"},
		{"no protocol", mute, "no application protocol"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := handshake(t, tc.server, creds.Client([]string{"p/1"}, func(id Identity) error {
				if id.Name != "n2" {
					return errors.New("want n2")
				}
				return nil
			}))
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestClientPinned(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	creds := home.credentials("n1")
	server := creds.Server(nil, nil)
	if _, err := handshake(t, server, creds.ClientPinned(nil, creds.CAKeysHash(), nil)); err != nil {
		t.Error(err)
	}
	wrong := creds.CAKeysHash()
	wrong[0] ^= 1
	for name, pin := range map[string][]byte{"wrong": wrong, "short": wrong[:31], "empty": {}, "nil": nil} {
		if _, err := handshake(t, server, creds.ClientPinned(nil, pin, nil)); !errors.Is(err, ErrPeer) {
			t.Errorf("%s pin: %v", name, err)
		}
	}
	if bytes.Equal(creds.CAKeysHash(), wrong) {
		t.Error("CAKeysHash hands out its own memory")
	}
}

func TestCAKeysHash(t *testing.T) {
	a, b := newAuthority(t, testDomain), newAuthority(t, testDomain)
	one, two := a.ca.CertPEM(), b.ca.CertPEM()
	hash := func(parts ...[]byte) string {
		_, cas, err := parseCA(bytes.Join(parts, []byte("a comment\n")))
		if err != nil {
			t.Fatal(err)
		}
		return string(hashKeys(keyHashes(cas)))
	}
	if hash(one, two) != hash(two, one) || hash(one, two) != hash(one, two, one) {
		t.Error("order or repetition of certificates changes the hash")
	}
	if hash(one) == hash(two) || hash(one) == hash(one, two) {
		t.Error("different sets of keys have the same hash")
	}
}

func TestLoadRefuses(t *testing.T) {
	home, foreign := newAuthority(t, testDomain), newAuthority(t, testDomain)
	elsewhere := newAuthority(t, "other.test")
	elsewhere.ca.cert, elsewhere.ca.key = home.ca.cert, home.ca.key
	good := home.issue(home.node("n1"), nil)
	junk := filepath.Join(t.TempDir(), "junk")
	writeFile(t, junk, []byte("junk"))
	large := filepath.Join(t.TempDir(), "large")
	writeFile(t, large, make([]byte, maxPEM+1))
	half, many := filepath.Join(t.TempDir(), "half"), filepath.Join(t.TempDir(), "many")
	writeFile(t, half, append(home.ca.CertPEM(), foreign.ca.CertPEM()[:300]...))
	writeFile(t, many, bytes.Repeat(home.ca.CertPEM(), maxCAs+1))
	both := usages(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	with := func(change func(*Files)) Files { f := good; change(&f); return f }
	pair := func(id Identity, change func(*x509.Certificate)) Files { return home.issue(id, change) }
	far := elsewhere.issue(elsewhere.node("n1"), nil)
	far.CA = good.CA
	for _, tc := range []struct {
		name  string
		files Files
		want  string
	}{
		{"good", good, ""},
		{"no certificate file", with(func(f *Files) { f.Cert = junk + "x" }), "certificate file"},
		{"no key file", with(func(f *Files) { f.Key = junk + "x" }), "key file"},
		{"no CA file", with(func(f *Files) { f.CA = junk + "x" }), "CA file"},
		{"a directory", with(func(f *Files) { f.Key = t.TempDir() }), "key file"},
		{"a huge file", with(func(f *Files) { f.Cert = large }), "larger than"},
		{"certificate of junk", with(func(f *Files) { f.Cert = junk }), "failed to find any PEM data"},
		{"key of junk", with(func(f *Files) { f.Key = junk }), "failed to find any PEM data"},
		{"half a CA file", with(func(f *Files) { f.CA = half }), "ends in the middle of a certificate"},
		{"too many CAs", with(func(f *Files) { f.CA = many }), "holds 17 certificates, at most 16"},
		{"CA of junk", with(func(f *Files) { f.CA = junk }), "holds no certificate"},
		{"CA with a key in it", with(func(f *Files) { f.CA = f.Key }), "want certificates only"},
		{"a leaf as CA", with(func(f *Files) { f.CA = f.Cert }), "not a CA's"},
		{"another's key", with(func(f *Files) { f.Key = pair(home.node("n1"), nil).Key }), "private key does not match"},
		{"another CA", with(func(f *Files) { f.CA = filepath.Join(foreign.dir, DevCACert) }), "unknown authority"},
		{"expired", pair(home.node("n1"), expired), "expired"},
		{"not yet valid", pair(home.node("n1"), notYet), "not yet valid"},
		{"two URI SANs", pair(home.node("n1"), twoURIs), "2 URI SANs"},
		{"client only", pair(home.node("n1"), usages(x509.ExtKeyUsageClientAuth)), "for server authentication"},
		{"server only", pair(home.node("n1"), usages(x509.ExtKeyUsageServerAuth)), "for client authentication"},
		{"a user", pair(home.user("u"), both), "want node"},
		{"another trust domain", far, "not of trust domain"},
	} {
		c, err := Load(tc.files, testDomain)
		if tc.want == "" {
			if err != nil || c.Identity() != home.node("n1") || time.Until(c.Certificate().NotAfter()) <= 0 || c.TrustDomain() != testDomain {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
	for _, td := range []string{"", "KMS", "spiffe://kms.test", strings.Repeat("d", maxTrustDomain+1)} {
		if _, err := Load(good, td); !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), "trust domain") {
			t.Errorf("trust domain %q: %v", td, err)
		}
	}
}

func TestReloadKeepsTheOldOnFailure(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	files := home.issue(home.node("n1"), nil)
	creds, err := Load(files, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	before := creds.Certificate().NotAfter()
	server, client := creds.Server(nil, nil), creds.Client(nil, nil)
	for name, spoil := range map[string]func(){
		"a key that does not match": func() { writeFile(t, files.Key, home.ca.CertPEM()) },
		"an expired certificate":    func() { home.reissue(files, home.node("n1"), expired) },
		"another identity":          func() { home.reissue(files, home.node("n2"), nil) },
		"a missing file": func() {
			if err := os.Remove(files.Cert); err != nil {
				t.Fatal(err)
			}
		},
	} {
		home.reissue(files, home.node("n1"), nil)
		spoil()
		if err := creds.Reload(); !errors.Is(err, ErrCredentials) {
			t.Errorf("%s: %v", name, err)
		}
		if serverErr, clientErr := handshake(t, server, client); serverErr != nil || clientErr != nil || creds.Certificate().NotAfter() != before {
			t.Errorf("%s: the old credentials no longer work: %v, %v", name, serverErr, clientErr)
		}
	}
}

func FuzzParseCA(f *testing.F) {
	dir := f.TempDir()
	if err := NewDevCA(dir, testDomain); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{DevCACert, DevCAKey} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pool, cas, err := parseCA(data); err == nil && (pool == nil || len(cas) == 0) {
			t.Fatalf("accepted without roots: %v, %v", pool, cas)
		}
	})
}
