package client_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
)

// until calls again and again, none of which may fail, until a condition holds.
func until(t *testing.T, c *client.Client, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if err := encrypt(patient(t), c); err != nil {
			t.Fatalf("until %s: %v", what, err)
		}
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// TestConnectionFollowsFiles: with new certificates a new connection takes over, and
// a call that is under way on the old one finishes there.
func TestConnectionFollowsFiles(t *testing.T) {
	w := newWorld(t)
	var seen presented
	release, slow := make(chan struct{}), make(chan error, 1)
	n := startNode(t, seen.watch(w.ca.ServerTLS(w.ca.Node(t, "n1"))), func(ctx context.Context, n int, m proto.Message) (proto.Message, error) {
		if n == 2 {
			<-release
		}
		return well(ctx, n, m)
	})
	dir := t.TempDir()
	files := w.ca.Write(t, dir, w.cert)
	var repeated atomic.Int32
	c := w.client(t, func(c *client.Config) {
		c.TLS, c.Files, c.Timeout = nil, files, time.Minute
		c.Retrying = func(string, error) { repeated.Add(1) }
	}, n.address)
	if err := encrypt(patient(t), c); err != nil {
		t.Fatal(err)
	}
	go func() { slow <- encrypt(patient(t), c) }()
	for len(n.asked()) < 2 {
		time.Sleep(time.Millisecond)
	}
	renewed := w.ca.Issue(t, nil, userURI)
	w.ca.Write(t, dir, renewed)
	until(t, c, "the server sees the new certificate", func() bool { return seen.last().Equal(renewed.Leaf) })
	if got := client.Connections(c); got != 2 {
		t.Errorf("%d connections while a call uses the old one, want 2", got)
	}
	close(release)
	if err := <-slow; err != nil {
		t.Errorf("the call on the old connection: %v", err)
	}
	until(t, c, "the old connection is closed", func() bool { return client.Connections(c) == 1 })
	if got := repeated.Load(); got != 0 {
		t.Errorf("%d attempts failed", got)
	}
}

// TestRefusedRenewal: while nodes do not take the new certificate, the old connection
// goes on.
func TestRefusedRenewal(t *testing.T) {
	w := newWorld(t)
	var seen presented
	n := startNode(t, seen.watch(w.ca.ServerTLS(w.ca.Node(t, "n1"))), nil)
	dir := t.TempDir()
	files := w.ca.Write(t, dir, w.cert)
	c := w.client(t, func(c *client.Config) { c.TLS, c.Files = nil, files }, n.address)
	if err := encrypt(patient(t), c); err != nil {
		t.Fatal(err)
	}
	w.ca.Write(t, dir, clienttest.NewCA(t).Issue(t, nil, userURI))
	until(t, c, "a connection with the new certificate is tried", func() bool { return client.Connections(c) == 2 })
	tried := time.Now()
	until(t, c, "some time has passed", func() bool { return time.Since(tried) > time.Second })
	good := w.ca.Issue(t, nil, userURI)
	w.ca.Write(t, dir, good)
	until(t, c, "a certificate that is accepted is in use", func() bool {
		return seen.last().Equal(good.Leaf) && client.Connections(c) == 1
	})
}

// TestOutdatedCertificateIsNamed: a client that is refused for its certificate's dates
// is told so.
func TestOutdatedCertificateIsNamed(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	for want, edit := range map[string]func(*x509.Certificate){
		"expired at ": func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		},
		"is not valid before ": func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		},
	} {
		dir := t.TempDir()
		files := w.ca.Write(t, dir, w.ca.Issue(t, edit, userURI))
		c := w.client(t, func(c *client.Config) { c.TLS, c.Files = nil, files }, n.address)
		err := encrypt(patient(t), c)
		if status.Code(err) != codes.Unauthenticated || !errors.Is(err, client.ErrClientRefused) ||
			!strings.Contains(err.Error(), "the client's certificate "+files.Cert+" "+want) {
			t.Errorf("%v; want Unauthenticated and a text with %q", err, want)
		}
		w.ca.Write(t, dir, w.ca.Issue(t, nil, userURI))
		if err := encrypt(patient(t), c); err != nil {
			t.Errorf("the call after the renewal: %v", err)
		}
	}
}

// TestNewWaitsForHalfReplacedFiles: a client that is made while its certificate has
// been replaced and the key has not gets both.
func TestNewWaitsForHalfReplacedFiles(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	old, dir := t.TempDir(), t.TempDir()
	w.ca.Write(t, old, w.cert)
	files := w.ca.Write(t, dir, w.ca.Issue(t, nil, userURI))
	good, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(old, "key.pem"), files.Key); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		time.Sleep(100 * time.Millisecond)
		overwrite(t, files.Key, string(good))
	}()
	c := w.client(t, func(c *client.Config) { c.TLS, c.Files = nil, files }, n.address)
	<-written
	if err := encrypt(patient(t), c); err != nil {
		t.Error(err)
	}
}
