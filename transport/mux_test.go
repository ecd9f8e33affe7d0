package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// greet says hello on every connection a listener accepts and echoes until its
// end; it stops with the listener.
func greet(t *testing.T, ln net.Listener) {
	var conns connSet
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil || conns.add(c, 0) != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := io.WriteString(c, "hello"); err == nil {
					_, _ = io.Copy(c, c)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		conns.closeAll()
		wg.Wait()
	})
}

// visit dials m and hears the greeting.
func visit(m *Mux, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := dial(ctx, m.Addr().String(), config)
	if err != nil {
		return nil, err
	}
	if err := echo(c, "", "hello"); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func echo(c net.Conn, say, hear string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, say); err != nil {
		return err
	}
	b := make([]byte, len(hear))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != hear {
		return errors.New("heard " + string(b))
	}
	return nil
}

func TestMuxTellsProtocolsApart(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	creds := home.credentials("n1")
	var refused refusals
	m := startMux(t, creds, Limits{}, refused.add)
	accepted := make(chan string, 1)
	for _, alpn := range []string{ALPNPeer, ALPNRaft} {
		ln := m.Protocol(alpn, OnlyNodes)
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				id, err := c.(*Conn).Peer()
				if err == nil && c.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState().HandshakeComplete {
					_ = sayHello(c)
				}
				accepted <- alpn + " " + id.Name
			}
		}()
	}
	for _, tc := range []struct {
		offer []string
		want  string
	}{
		{[]string{ALPNRaft}, ALPNRaft},
		{[]string{ALPNPeer}, ALPNPeer},
		{[]string{"x", ALPNRaft, ALPNPeer}, ALPNPeer}, // named first
	} {
		c, err := visit(m, creds.Client(tc.offer, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got := <-accepted; got != tc.want+" n1" {
			t.Errorf("offer %v: %s", tc.offer, got)
		}
		_ = c.Close()
	}
	if _, err := visit(m, creds.Client([]string{ALPNGossip}, nil)); err == nil {
		t.Error("a protocol nobody named was accepted")
	}
	if _, err := visit(m, home.client([]string{ALPNRaft}, home.user("u"), nil)); err == nil {
		t.Error("a user was accepted where only nodes are allowed")
	}
	eventually(t, "the refusals are told", func() bool {
		return refused.is(ErrPeer)() && refused.says("unsupported application protocols")()
	})
}

func TestMuxProtocolLife(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	m := startMux(t, creds, Limits{}, nil)
	if _, err := visit(m, creds.Client([]string{"p/1"}, nil)); err == nil {
		t.Error("accepted with no protocol named")
	}
	ln := m.Protocol("p/1", nil)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a protocol could be named twice")
			}
		}()
		m.Protocol("p/1", nil)
	}()
	greet(t, ln)
	c, err := visit(m, creds.Client([]string{"p/1"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if err := echo(c, "still", "still"); err != nil {
		t.Errorf("closing the protocol cut its connection: %v", err)
	}
	if _, err := visit(m, creds.Client([]string{"p/1"}, nil)); err == nil {
		t.Error("accepted after the protocol was closed")
	}
	greet(t, m.Protocol("p/1", nil))
	again, err := visit(m, creds.Client([]string{"p/1"}, nil))
	if err != nil {
		t.Fatalf("the protocol cannot be named again: %v", err)
	}
	_ = again.Close()
}

func TestMuxOptionalCertificate(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	m := startMux(t, home.credentials("n1"), Limits{}, nil)
	greet(t, m.ProtocolOptional(ALPNPeer, nil))
	greet(t, m.Protocol(ALPNRaft, nil))
	c, err := visit(m, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNPeer}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if _, err := visit(m, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNRaft}}); err == nil {
		t.Error("no certificate was accepted where one is demanded")
	}
}

func TestMuxReloadWhileConnectionsRun(t *testing.T) {
	noLeaks(t)
	home, next := newAuthority(t, testDomain), newAuthority(t, testDomain)
	files := home.issue(home.node("n1"), nil)
	files.CA = filepath.Join(home.dir, "trusted.pem")
	writeFile(t, files.CA, home.ca.CertPEM())
	creds, err := Load(files, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	m := startMux(t, creds, Limits{}, nil)
	greet(t, m.Protocol("p/1", nil))
	config := home.client([]string{"p/1"}, home.user("u"), nil)
	early, err := visit(m, config)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()

	// A new certificate from the same CA.
	home.reissue(files, home.node("n1"), nil)
	if err := creds.Reload(); err != nil {
		t.Fatal(err)
	}
	late, err := visit(m, config)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	serial := func(c *tls.Conn) string { return c.ConnectionState().PeerCertificates[0].SerialNumber.String() }
	if serial(early) == serial(late) {
		t.Error("a new connection got the old certificate")
	}

	// Another CA: the old clients are refused, and their connections end.
	next.reissue(files, next.node("n1"), nil)
	writeFile(t, files.CA, next.ca.CertPEM())
	if err := creds.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := visit(m, config); err == nil {
		t.Error("a client of the CA that was removed was accepted")
	}
	fresh, err := visit(m, next.client([]string{"p/1"}, next.user("u"), nil))
	if err != nil {
		t.Fatalf("a client of the new CA: %v", err)
	}
	defer fresh.Close()
	if err := echo(fresh, "alive", "alive"); err != nil {
		t.Error(err)
	}
	for _, c := range []*tls.Conn{early, late} {
		if err := echo(c, "", "x"); !errors.Is(err, io.EOF) {
			t.Errorf("a connection of a client of the CA that was removed: %v", err)
		}
	}
}

func TestMuxClosesAtExpiry(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	m := startMux(t, home.credentials("n1"), Limits{}, nil)
	greet(t, m.Protocol("p/1", nil))
	const life = 3 * time.Second
	c, err := visit(m, home.client([]string{"p/1"}, home.user("u"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echo(c, "", "x"); !errors.Is(err, io.EOF) {
		t.Errorf("the connection of an expired client: %v", err)
	}
}

func TestMuxConnectionLimit(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	var refused refusals
	m := startMux(t, creds, Limits{Connections: 2}, refused.add)
	greet(t, m.Protocol("p/1", nil))
	config := creds.Client([]string{"p/1"}, nil)
	var open []*tls.Conn
	for range 2 {
		c, err := visit(m, config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	if _, err := visit(m, config); err == nil {
		t.Error("a third connection was accepted")
	}
	eventually(t, "the refusal is told", refused.is(ErrLimit))
	for _, c := range open {
		if err := echo(c, "alive", "alive"); err != nil {
			t.Error(err)
		}
	}
	_ = open[0].Close()
	eventually(t, "a freed place is given again", func() bool {
		c, err := visit(m, config)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// halfOpen connects and says nothing.
func halfOpen(t *testing.T, m *Mux) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func ended(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestMuxHalfOpenHandshakesBlockNobody(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	var refused refusals
	m := startMux(t, creds, Limits{Handshakes: 4, HandshakeTimeout: time.Hour}, refused.add)
	greet(t, m.Protocol("p/1", nil))
	config := creds.Client([]string{"p/1"}, nil)
	var slow []net.Conn
	for range 3 {
		slow = append(slow, halfOpen(t, m))
	}
	eventually(t, "three handshakes are under way", func() bool { return len(m.slots) == 3 })
	for range 3 {
		c, err := visit(m, config)
		if err != nil {
			t.Fatalf("beside half-open handshakes: %v", err)
		}
		defer c.Close()
	}
	slow = append(slow, halfOpen(t, m))
	eventually(t, "four handshakes are under way", func() bool { return len(m.slots) == 4 })
	if over := halfOpen(t, m); !ended(over) {
		t.Error("a handshake over the limit was not closed at once")
	}
	eventually(t, "the refusal is told", refused.is(ErrLimit))
	_ = slow[0].Close()
	eventually(t, "a freed handshake is given again", func() bool {
		c, err := visit(m, config)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestMuxEndsSlowHandshakes(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	var refused refusals
	m := startMux(t, creds, Limits{Handshakes: 1, HandshakeTimeout: 250 * time.Millisecond}, refused.add)
	greet(t, m.Protocol("p/1", nil))
	// A slow loris: the header of a long record, then a byte now and then.
	loris := halfOpen(t, m)
	if _, err := loris.Write([]byte{22, 3, 1, 0x40, 0}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slow handshake is ended", func() bool {
		_, err := loris.Write([]byte{1})
		return err != nil
	})
	eventually(t, "the refusal is told", refused.is(context.DeadlineExceeded))
	eventually(t, "a good client is served", func() bool {
		c, err := visit(m, creds.Client([]string{"p/1"}, nil))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestMuxGarbage(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	m := startMux(t, creds, Limits{HandshakeTimeout: time.Hour}, nil)
	greet(t, m.Protocol("p/1", nil))
	for _, s := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", "\x00\x00\x00\x00\x00\x00"} {
		c := halfOpen(t, m)
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: not closed", s)
		}
	}
}

func TestMuxProtocolThatDoesNotAccept(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	var refused refusals
	m := startMux(t, creds, Limits{Handshakes: 1, HandshakeTimeout: 4 * time.Second}, refused.add)
	m.Protocol("deaf/1", nil)
	greet(t, m.Protocol("p/1", nil))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	deaf, err := dial(ctx, m.Addr().String(), creds.Client([]string{"deaf/1"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	eventually(t, "others are served meanwhile", func() bool {
		c, err := visit(m, creds.Client([]string{"p/1"}, nil))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	if err := echo(deaf, "", "x"); !errors.Is(err, io.EOF) {
		t.Errorf("a connection nobody accepts: %v", err)
	}
	eventually(t, "the refusal is told", refused.is(ErrLimit))
}

func TestMuxClose(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	m, err := Listen("127.0.0.1:0", creds, Limits{HandshakeTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx) }()
	ln := m.Protocol("p/1", nil)
	greet(t, ln)
	m.Protocol("deaf/1", nil)
	slow := halfOpen(t, m)
	eventually(t, "a handshake is under way", func() bool { return len(m.slots) == 1 })
	open, err := visit(m, creds.Client([]string{"p/1"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	waiting, err := dial(t.Context(), m.Addr().String(), creds.Client([]string{"deaf/1"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	eventually(t, "its handshake is over", func() bool {
		m.conns.mu.Lock()
		defer m.conns.mu.Unlock()
		return len(m.conns.open) == 3 && len(m.slots) == 1
	})
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	for name, c := range map[string]net.Conn{"half-open": slow, "open": open, "waiting": waiting} {
		_ = c.SetDeadline(time.Now().Add(patience))
		if !ended(c) {
			t.Errorf("the %s connection survived", name)
		}
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if c, err := net.Dial("tcp", m.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the port is still open")
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Errorf("close again: %v", err)
	}
}

func TestMuxCloseWithoutServe(t *testing.T) {
	noLeaks(t)
	creds := newAuthority(t, testDomain).credentials("n1")
	m, err := Listen("127.0.0.1:0", creds, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(m.Addr().String(), creds, Limits{}); err == nil {
		t.Error("the port was opened twice")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Serve(context.Background()); err != nil {
		t.Errorf("serve after close: %v", err)
	}
}
