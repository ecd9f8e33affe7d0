package client

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func FuzzCheckAddress(f *testing.F) {
	for _, s := range []string{"", ":", "a:1", "[::1]:65535", "a:0", "a:65536", "a:b:1", "a:+1", strings.Repeat("a", 260) + ":1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkAddress(s) != nil {
			return
		}
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" || port == "" || len(s) > maxAddress {
			t.Errorf("%q was accepted", s)
		}
	})
}

func FuzzSplitNodes(f *testing.F) {
	for _, s := range []string{"", ",", " a:1 ,b:2,", strings.Repeat("a,", 40)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		nodes := splitNodes(s)
		if len(nodes) > MaxAddresses {
			t.Errorf("%d nodes", len(nodes))
		}
		for _, n := range nodes {
			if n == "" || strings.Contains(n, ",") || !strings.Contains(s, n) {
				t.Errorf("%q gave %q", s, n)
			}
		}
	})
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "1", "-1", "+1", "1.5", " 1", "1500", "18446744073709551616", "9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(s); d < 0 || d > maxRetryAfter || d%time.Millisecond != 0 {
			t.Errorf("%q gave %v", s, d)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "-5": 0, "soon": 0, "1.5": 0, "18446744073709551616": 0,
		"1500": 1500 * time.Millisecond, "9223372036854775807": maxRetryAfter,
	} {
		if got := parseRetryAfter(in); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "x", `connection error: desc = "transport: x"`, `connection error: desc = "x\n"`, `connection error: desc = "`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := plain(s); got != s && !strings.HasPrefix(s, "connection error: desc = ") {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func FuzzParseCA(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pool, err := parseCA(b); (pool == nil) != (err != nil) {
			t.Errorf("pool %v, error %v", pool, err)
		}
	})
}

func TestLearnedAddressesAreBounded(t *testing.T) {
	config := Config{Addresses: []string{"a:1"}, TrustDomain: "kms.test", TLS: &tls.Config{ //nolint:gosec // completed by New
		RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{{}},
	}}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // nothing is connected
	for port := range 40 {
		address := fmt.Sprintf("b:%d", port+1)
		c.learn([]string{address, address, "a:1"})
	}
	if n := len(c.order()); n != 1+MaxAddresses {
		t.Errorf("%d addresses, want the one configured and %d", n, MaxAddresses)
	}
}

func TestPlain(t *testing.T) {
	in := `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: \"refused\""`
	if got, want := plain(in), `Error while dialing: dial tcp 127.0.0.1:1: connect: "refused"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
