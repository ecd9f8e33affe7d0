package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	testDomain = "kms.test"
	patience   = time.Minute // how long a condition may take on a slow machine
)

// noLeaks fails the test if goroutines it started remain after it and all its
// clean-ups. memberlist and Raft let some of theirs run out.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if err = goleak.Find(before); err == nil {
				return
			}
		}
		t.Error(err)
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// authority is a CA under test with a directory for what it issues.
type authority struct {
	t   *testing.T
	ca  *DevCA
	dir string
	n   int
}

func newAuthority(t *testing.T, trustDomain string) *authority {
	t.Helper()
	dir := t.TempDir()
	if err := NewDevCA(dir, trustDomain); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadDevCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, ca: ca, dir: dir}
}

func (a *authority) node(name string) Identity {
	return Identity{TrustDomain: a.ca.TrustDomain(), Class: ClassNode, Name: name}
}

func (a *authority) user(name string) Identity {
	return Identity{TrustDomain: a.ca.TrustDomain(), Class: ClassUser, Tenant: "t1", Name: name}
}

// issue writes a pair for id into files of its own; change may bend the
// certificate.
func (a *authority) issue(id Identity, change func(*x509.Certificate)) Files {
	a.t.Helper()
	a.n++
	base := filepath.Join(a.dir, fmt.Sprintf("pair%d", a.n))
	files := Files{Cert: base + ".pem", Key: base + "-key.pem", CA: filepath.Join(a.dir, DevCACert)}
	a.reissue(files, id, change)
	return files
}

// reissue replaces the pair in files.
func (a *authority) reissue(files Files, id Identity, change func(*x509.Certificate)) {
	a.t.Helper()
	template, err := a.ca.template(id, []string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	if change != nil {
		change(template)
	}
	cert, key, err := sign(template, a.ca.cert, a.ca.key)
	if err != nil {
		a.t.Fatal(err)
	}
	writeFile(a.t, files.Cert, cert)
	writeFile(a.t, files.Key, key)
}

func (a *authority) credentials(name string) *Credentials {
	a.t.Helper()
	c, err := Load(a.issue(a.node(name), nil), a.ca.TrustDomain())
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// client is a client's configuration that checks nothing of the server.
func (a *authority) client(alpn []string, id Identity, change func(*x509.Certificate)) *tls.Config {
	a.t.Helper()
	files := a.issue(id, change)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, Certificates: []tls.Certificate{pair}}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// handshake runs one over loopback and returns both sides' verdicts. With TLS
// 1.3 a client learns the server's only when it reads.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			raw, err := ln.Accept()
			if err != nil {
				return err
			}
			defer raw.Close()
			tc := tls.Server(raw, server)
			if err := tc.HandshakeContext(ctx); err != nil {
				return err
			}
			return sayHello(tc)
		}()
	}()
	clientErr = func() error {
		c, err := dial(ctx, ln.Addr().String(), client)
		if err != nil {
			return err
		}
		defer c.Close()
		return hearHello(c)
	}()
	return <-done, clientErr
}

// dial opens a connection under any configuration.
func dial(ctx context.Context, addr string, config *tls.Config) (*tls.Conn, error) {
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

func sayHello(c net.Conn) error {
	_, err := io.WriteString(c, "hello")
	return errors.Join(err, c.Close())
}

func hearHello(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "hello" {
		err = fmt.Errorf("read %q", b)
	}
	return err
}

// startMux serves a Mux on a free port until the test ends.
func startMux(t *testing.T, c *Credentials, l Limits, refused func(net.Addr, error)) *Mux {
	t.Helper()
	m, err := Listen("127.0.0.1:0", c, l)
	if err != nil {
		t.Fatal(err)
	}
	m.Refused = refused
	done := make(chan error, 1)
	go func() { done <- m.Serve(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return m
}

// refusals collects what a Mux refused.
type refusals struct {
	mu   sync.Mutex
	errs []error
}

func (r *refusals) add(_ net.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *refusals) has(ok func(error) bool) func() bool {
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, err := range r.errs {
			if ok(err) {
				return true
			}
		}
		return false
	}
}

func (r *refusals) is(target error) func() bool {
	return r.has(func(err error) bool { return errors.Is(err, target) })
}

func (r *refusals) says(text string) func() bool {
	return r.has(func(err error) bool { return strings.Contains(err.Error(), text) })
}

// testLog is a logger of everything to the test's output, silent unless verbose.
func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
