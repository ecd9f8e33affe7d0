package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pair is a TLS connection in memory, handshake complete at both ends.
func pair(t *testing.T, server, client *tls.Config) (s, c *tls.Conn) {
	t.Helper()
	a, b := net.Pipe()
	s, c = tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return s, c
}

func TestCloseAtExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		creds := home.credentials("n1")
		const life = expiryRecheck + 30*time.Second
		client := home.client(nil, home.user("u"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) })
		start := time.Now()
		s, c := pair(t, creds.Server(nil, nil), client)
		conn := CloseAtExpiry(s)
		if id, err := conn.Peer(); err != nil || id != home.user("u") {
			t.Errorf("peer %v, %v", id, err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read %v, want the end", err)
		}
		if lived := time.Since(start); lived != life {
			t.Errorf("closed after %v, the certificate expired after %v", lived, life)
		}
		synctest.Wait()
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		_ = c.Close()
	})
}

func TestCloseAtExpiryStopsItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		s, c := pair(t, home.credentials("n1").Server(nil, nil), home.client(nil, home.user("u"), nil))
		go func() { _, _ = io.Copy(io.Discard, c) }()
		conn := CloseAtExpiry(s)
		closed := 0
		conn.onClose(func() { closed++ })
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		conn.onClose(func() { closed++ })
		if conn.expiry.Stop() {
			t.Error("the timer still runs")
		}
		if closed != 2 {
			t.Errorf("%d hooks ran, want 2", closed)
		}
		_ = c.Close()
	})
}

func TestCloseAtExpiryWithoutCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		s, c := pair(t, home.credentials("n1").ServerOptional(nil, nil), &tls.Config{InsecureSkipVerify: true})
		conn := CloseAtExpiry(s)
		if _, err := conn.Peer(); !errors.Is(err, ErrPeer) || conn.expiry != nil {
			t.Errorf("peer %v, timer %v", err, conn.expiry)
		}
		go func() { _, _ = io.Copy(io.Discard, c) }()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	})
}
