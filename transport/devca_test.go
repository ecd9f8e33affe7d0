package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDevCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "ca")
	if err := NewDevCA(dir, testDomain); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, DevCAKey))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, DevCAKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the CA's key: %v, %v", info.Mode(), err)
	}
	if err := NewDevCA(dir, testDomain); !errors.Is(err, os.ErrExist) {
		t.Errorf("made again: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, DevCAKey)); err != nil || string(after) != string(before) {
		t.Error("the key was overwritten")
	}
	if err := os.Remove(filepath.Join(dir, DevCAKey)); err != nil {
		t.Fatal(err)
	}
	if err := NewDevCA(dir, testDomain); !errors.Is(err, os.ErrExist) {
		t.Errorf("made again beside a certificate: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, DevCAKey)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key without a certificate stayed: %v", err)
	}
	if _, err := LoadDevCA(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("loaded without a key: %v", err)
	}
	for _, td := range []string{"", "UPPER", "spiffe://kms.test"} {
		if err := NewDevCA(t.TempDir(), td); err == nil {
			t.Errorf("made for trust domain %q", td)
		}
	}
}

func TestLoadDevCARefusesALeaf(t *testing.T) {
	home := newAuthority(t, testDomain)
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, DevCACert), Key: filepath.Join(dir, DevCAKey)}
	if err := home.ca.IssueFiles(files, home.node("n1"), nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadDevCA(dir); err == nil {
		t.Error("a leaf was loaded as a CA")
	}
}

func TestIssue(t *testing.T) {
	home := newAuthority(t, testDomain)
	serials := map[string]bool{}
	for _, id := range []Identity{
		home.node("n1"), home.user("u"),
		{TrustDomain: testDomain, Class: ClassOperator, Name: "o"},
		{TrustDomain: testDomain, Class: ClassAdmin, Tenant: "t", Name: "a"},
		{TrustDomain: testDomain, Class: ClassAuditor, Tenant: "t", Name: "a"},
		{TrustDomain: testDomain, Class: ClassAuditor, Name: "a"},
		{TrustDomain: testDomain, Class: ClassService, Name: "s"},
	} {
		certPEM, keyPEM, err := home.ca.Issue(id, []string{"host.test", "127.0.0.1", "::1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		c := pair.Leaf
		if got, err := IdentityOf(c); err != nil || got != id {
			t.Errorf("%s: %v, %v", id, got, err)
		}
		if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key %T", id, c.PublicKey)
		}
		if !slices.Equal(c.DNSNames, []string{"host.test"}) || len(c.IPAddresses) != 2 || c.IsCA {
			t.Errorf("%s: names %v %v", id, c.DNSNames, c.IPAddresses)
		}
		want := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if id.Class == ClassNode {
			want = append(want, x509.ExtKeyUsageServerAuth)
		}
		if !slices.Equal(c.ExtKeyUsage, want) {
			t.Errorf("%s: usages %v, want %v", id, c.ExtKeyUsage, want)
		}
		if left := time.Until(c.NotAfter); left > time.Hour || left < 50*time.Minute {
			t.Errorf("%s: valid for %v", id, left)
		}
		serials[c.SerialNumber.String()] = true
	}
	if len(serials) != 7 {
		t.Errorf("%d serials for 7 certificates", len(serials))
	}
}

func TestIssueRefuses(t *testing.T) {
	home := newAuthority(t, testDomain)
	for name, id := range map[string]Identity{
		"nobody":               {},
		"another trust domain": {TrustDomain: "other.test", Class: ClassNode, Name: "n"},
		"no class":             {TrustDomain: testDomain, Name: "n"},
		"an unknown class":     {TrustDomain: testDomain, Class: "root", Name: "n"},
		"a node of a tenant":   {TrustDomain: testDomain, Class: ClassNode, Tenant: "t", Name: "n"},
		"a user of no tenant":  {TrustDomain: testDomain, Class: ClassUser, Name: "u"},
		"a path as a name":     {TrustDomain: testDomain, Class: ClassUser, Tenant: "t/user/u", Name: "v"},
		"a path as a class":    {TrustDomain: testDomain, Class: "tenant/t/user", Name: "u"},
		"two names in one":     {TrustDomain: testDomain + "/tenant/t", Class: ClassUser, Name: "u"},
	} {
		if _, _, err := home.ca.Issue(id, nil, time.Hour); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, ttl := range []time.Duration{0, -time.Hour, 2 * devCALife} {
		if _, _, err := home.ca.Issue(home.node("n"), nil, ttl); err == nil || !strings.Contains(err.Error(), "lifetime") {
			t.Errorf("lifetime %v: %v", ttl, err)
		}
	}
}

func TestIssueFiles(t *testing.T) {
	home := newAuthority(t, testDomain)
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, "n1.pem"), Key: filepath.Join(dir, "n1-key.pem"), CA: filepath.Join(home.dir, DevCACert)}
	if err := home.ca.IssueFiles(files, home.node("n1"), nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(files.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}
	if _, err := Load(files, testDomain); err != nil {
		t.Error(err)
	}
	if err := home.ca.IssueFiles(files, home.node("n2"), nil, time.Hour); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrote: %v", err)
	}
	if err := home.ca.IssueFiles(Files{Cert: filepath.Join(dir, "no", "c"), Key: filepath.Join(dir, "no", "k")}, home.node("n2"), nil, time.Hour); err == nil {
		t.Error("wrote into no directory")
	}
}

func TestRenewFiles(t *testing.T) {
	home, next := newAuthority(t, testDomain), newAuthority(t, testDomain)
	dir := t.TempDir()
	files := Files{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), CA: filepath.Join(home.dir, DevCACert)}
	writeFile(t, files.Key+".new", []byte("left by a crash"))
	for _, ca := range []*DevCA{home.ca, home.ca, next.ca} {
		if err := ca.RenewFiles(files, home.node("n1"), nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		writeFile(t, files.CA, ca.CertPEM())
		if _, err := Load(files, testDomain); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
	if info, err := os.Stat(files.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if err := home.ca.RenewFiles(files, home.node("n1"), nil, 0); err == nil {
		t.Error("a certificate without a life was issued")
	}
}
