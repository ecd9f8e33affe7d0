package transport

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// knowing gives proofs under a cluster's key.
func knowing(key string) func(*RaftConfig) {
	return func(c *RaftConfig) {
		c.Proof = func(role string, channel []byte) []byte {
			m := hmac.New(sha256.New, []byte(key))
			m.Write([]byte(role))
			m.Write(channel)
			return m.Sum(nil)
		}
	}
}

// TestRaftProof: a node certificate alone speaks no Raft, in either direction.
func TestRaftProof(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a := startRaft(t, home, "a", knowing("cluster"))
	b := startRaft(t, home, "b", knowing("cluster"))
	beats := answer(t, b)
	if err := heartbeat(a, b); err != nil {
		t.Fatal(err)
	}
	stranger := startRaft(t, home, "stranger", knowing("another"))
	trusting := startRaft(t, home, "trusting", nil) // proves nothing at all
	answer(t, stranger)
	for name, from := range map[string]*RaftTransport{"another key": stranger, "no proof": trusting} {
		if err := heartbeat(from, b); err == nil {
			t.Errorf("%s: its message was answered", name)
		}
	}
	if err := heartbeat(a, stranger); err == nil {
		t.Error("a stranger's answer was taken")
	}
	if n := beats.Load(); n != 1 {
		t.Errorf("%d messages arrived, want 1", n)
	}
}

// TestRaftProofIsOfOneConnection: what was shown on one connection is worth nothing
// on another.
func TestRaftProofIsOfOneConnection(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	b := startRaft(t, home, "b", knowing("cluster"))
	answer(t, b)
	dialB := func() *tls.Conn {
		t.Helper()
		creds := home.credentials("thief")
		raw, err := new(net.Dialer).DialContext(t.Context(), "tcp", string(b.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, creds.Client([]string{ALPNRaft}, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := c.HandshakeContext(ctx); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	first := dialB()
	state := first.ConnectionState()
	channel, err := state.ExportKeyingMaterial(proofLabel, nil, proofSize)
	if err != nil {
		t.Fatal(err)
	}
	var config RaftConfig
	knowing("cluster")(&config)
	stolen := config.Proof(roleDialer, channel)
	second := dialB()
	if _, err := second.Write(stolen); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(second, make([]byte, proofSize)); err == nil || n != 0 {
		t.Fatalf("a proof of another connection was answered with %d bytes, %v", n, err)
	}
	// On its own connection it is good, so the test can tell.
	if _, err := first.Write(stolen); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, make([]byte, proofSize)); err != nil {
		t.Fatal(err)
	}
}

// TestRaftProofSlowStranger: one that says nothing keeps nobody waiting.
func TestRaftProofSlowStranger(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a := startRaft(t, home, "a", knowing("cluster"))
	b := startRaft(t, home, "b", knowing("cluster"))
	answer(t, b)
	c, err := dial(t.Context(), string(b.LocalAddr()), home.credentials("silent").Client([]string{ALPNRaft}, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := heartbeat(a, b); err != nil {
		t.Fatal(err)
	}
}

// TestAnonymousConnectionsAreFew: without a certificate a connection is one of a
// few, whatever the limit of the listener.
func TestAnonymousConnectionsAreFew(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var seen refusals
	m := startMux(t, home.credentials("a"), Limits{}, seen.add)
	l := m.ProtocolOptional(ALPNPeer, nil)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	anonymous := home.client([]string{ALPNPeer}, home.user("u"), nil)
	anonymous.Certificates, anonymous.GetClientCertificate = nil, nil
	for range maxAnonymous + 1 {
		c, err := (&tls.Dialer{Config: anonymous}).DialContext(t.Context(), "tcp", m.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	eventually(t, "one too many is refused", seen.says("have no certificate"))
	named := home.client([]string{ALPNPeer}, home.user("u"), nil)
	c, err := (&tls.Dialer{Config: named}).DialContext(t.Context(), "tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Fatal(err)
	}
}
