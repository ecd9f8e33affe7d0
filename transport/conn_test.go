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

func TestConnClosesAtExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		creds := home.credentials("n1")
		const life = expiryRecheck + 30*time.Second
		client := home.client(nil, home.user("u"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) })
		start := time.Now()
		s, c := pair(t, creds.Server(nil, nil), client)
		conn := creds.adopt(s, x509.ExtKeyUsageClientAuth)
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

func TestConnStopsItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		creds := home.credentials("n1")
		s, c := pair(t, creds.Server(nil, nil), home.client(nil, home.user("u"), nil))
		go func() { _, _ = io.Copy(io.Discard, c) }()
		conn := creds.adopt(s, x509.ExtKeyUsageClientAuth)
		closed := 0
		conn.onClose(func() { closed++ })
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		conn.onClose(func() { closed++ })
		if conn.timer.Stop() {
			t.Error("the timer still runs")
		}
		if closed != 2 {
			t.Errorf("%d hooks ran, want 2", closed)
		}
		_ = c.Close()
	})
}

func TestConnWithoutCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := newAuthority(t, testDomain)
		creds := home.credentials("n1")
		s, c := pair(t, creds.ServerOptional(nil, nil), &tls.Config{InsecureSkipVerify: true})
		conn := creds.adopt(s, x509.ExtKeyUsageClientAuth)
		if _, err := conn.Peer(); !errors.Is(err, ErrPeer) || !conn.until.Equal(creds.Certificate().NotAfter()) {
			t.Errorf("peer %v, good until %v", err, conn.until)
		}
		go func() { _, _ = io.Copy(io.Discard, c) }()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	})
}
