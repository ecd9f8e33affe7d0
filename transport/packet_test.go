package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// startPackets is a gossip transport on a Mux of its own, without memberlist.
func startPackets(t *testing.T, home *authority, name string) *gossipTransport {
	t.Helper()
	creds := home.credentials(name)
	m := startMux(t, creds, Limits{}, nil)
	addr := netip.MustParseAddrPort(m.Addr().String())
	tr := newGossipTransport(addr, creds, m.Protocol(ALPNGossip, OnlyNodes).(*protocol))
	t.Cleanup(func() {
		if err := tr.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// arrives sends b until it arrives at to, packets may be lost, and returns it.
func arrives(t *testing.T, from, to *gossipTransport, b []byte) *memberlist.Packet {
	t.Helper()
	var got *memberlist.Packet
	eventually(t, "the packet arrives", func() bool {
		if _, err := from.WriteTo(b, to.advertise.String()); err != nil {
			t.Fatal(err)
		}
		select {
		case got = <-to.PacketCh():
			return bytes.Equal(got.Buf, b) // or an earlier one, sent twice
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	return got
}

func TestPackets(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startPackets(t, home, "a"), startPackets(t, home, "b")
	for _, size := range []int{1, 1400, maxPacket} {
		got := arrives(t, a, b, bytes.Repeat([]byte{byte(size)}, size))
		if got.From == nil || got.Timestamp.IsZero() {
			t.Errorf("size %d: from %v at %v", size, got.From, got.Timestamp)
		}
	}
	for _, size := range []int{0, maxPacket + 1} {
		if _, err := a.WriteTo(make([]byte, size), b.advertise.String()); !errors.Is(err, errPacket) {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func TestPacketsAfterBrokenConnection(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startPackets(t, home, "a"), startPackets(t, home, "b")
	arrives(t, a, b, []byte("one"))
	b.conns.mu.Lock()
	broken := len(b.conns.open)
	for c := range b.conns.open {
		go func() { _ = c.Close() }()
	}
	b.conns.mu.Unlock()
	if broken == 0 {
		t.Fatal("no connection was kept")
	}
	arrives(t, a, b, []byte("two"))
}

func TestPacketsAreBounded(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a := startPackets(t, home, "a")
	mute, err := net.Listen("tcp", "127.0.0.1:0") // connects, never shakes hands
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for range 3 * packetQueue {
		if _, err := a.WriteTo([]byte("x"), mute.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * maxPacketPeers {
		if _, err := a.WriteTo([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1+i)).String()); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	peers := len(a.peers)
	a.mu.Unlock()
	if peers != maxPacketPeers {
		t.Errorf("%d peers, want %d", peers, maxPacketPeers)
	}
	full := make(chan []byte, 1) // a peer whose packets nobody takes
	full <- nil
	a.mu.Lock()
	a.peers["full"] = full
	a.mu.Unlock()
	written := make(chan error, 1)
	go func() {
		_, err := a.WriteTo([]byte("x"), "full")
		written <- err
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("a full queue makes the sender wait")
	}
	if err := a.Shutdown(); err != nil {
		t.Error(err)
	}
	if _, err := a.WriteTo([]byte("x"), mute.Addr().String()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after shutdown: %v", err)
	}
}

func TestPacketPeerRetires(t *testing.T) {
	a := &gossipTransport{peers: map[string]chan []byte{}}
	queue := make(chan []byte, 1)
	a.peers["x"] = queue
	queue <- []byte("late")
	if a.retire("x", queue) || a.peers["x"] == nil {
		t.Error("retired with a packet waiting")
	}
	drain(queue)
	if !a.retire("x", queue) || a.peers["x"] != nil {
		t.Error("did not retire")
	}
}

func TestGossipStream(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startPackets(t, home, "a"), startPackets(t, home, "b")
	c, err := a.DialTimeout(b.advertise.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-b.StreamCh()
	defer s.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := echo(s, "there", "hello"); err != nil {
		t.Error(err)
	}
	if err := echo(c, "", "there"); err != nil {
		t.Error(err)
	}
	if _, err := a.DialTimeout("127.0.0.1:1", patience); err == nil {
		t.Error("dialled nobody")
	}
	if err := a.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := echo(s, "", "x"); err == nil {
		t.Error("a stream survived its transport")
	}
}

func TestGossipConnectionRefuses(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startPackets(t, home, "a"), startPackets(t, home, "b")
	for name, bytes := range map[string]string{
		"an unknown kind":    "X",
		"an empty packet":    "P\x00\x00",
		"a cut packet":       "P\x00\x05abc",
		"a cut length":       "P\x00",
		"nothing but a kind": "P",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := dial(ctx, b.advertise.String(), a.creds.Client([]string{ALPNGossip}, nil))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, bytes); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if err := echo(c, "", "x"); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: not closed: %v", name, err)
		}
		_ = c.Close()
	}
	select {
	case p := <-b.PacketCh():
		t.Errorf("a packet came through: %q", p.Buf)
	default:
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x00\x00", "\x00\x01a", "\x00\x02a", "\xff\xffabc", "\x00\x01ab"} {
		f.Add([]byte(s))
	}
	f.Add(appendFrame(nil, make([]byte, maxPacket)))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		packet, err := readFrame(r)
		if err != nil {
			return
		}
		if len(packet) == 0 || !bytes.Equal(appendFrame(nil, packet), data[:len(data)-r.Len()]) {
			t.Fatalf("%x read as %x", data, packet)
		}
	})
}
