package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxPacket is the largest packet in bytes: what its 16-bit length can say.
	maxPacket = 1<<16 - 1
	// packetQueue is how many packets wait for one peer; more are dropped.
	packetQueue = 128
	// maxPacketPeers is how many addresses packets are sent to at a time; packets
	// for more are dropped.
	maxPacketPeers = 64
	// packetTimeout bounds the dialling for packets and the writing of one.
	packetTimeout = 2 * time.Second
	// packetIdle ends the sending side of an unused packet stream, packetSilence
	// the receiving side.
	packetIdle    = time.Minute
	packetSilence = 3 * packetIdle
	// kindTimeout bounds the wait for the first byte of a connection.
	kindTimeout = 5 * time.Second
)

// The first byte of a gossip connection.
const (
	kindPackets byte = 'P' // packets follow, each a 16-bit length and that many bytes, one way
	kindStream  byte = 'S' // a stream of memberlist follows
)

// errPacket: a packet of no bytes or too many.
var errPacket = errors.New("packet size out of bounds")

// gossipTransport implements memberlist.Transport over TLS connections of the
// node listener. Packets travel over one connection for each address, opened
// when first needed and again after it broke, and may be lost.
type gossipTransport struct {
	advertise netip.AddrPort
	creds     *Credentials
	listener  *protocol
	packets   chan *memberlist.Packet
	streams   chan net.Conn
	conns     connSet
	ctx       context.Context // ends the goroutines and the dialling
	cancel    context.CancelFunc

	mu     sync.Mutex
	closed bool
	peers  map[string]chan []byte // frames waiting, by address
	wg     sync.WaitGroup         // grows only while not closed
}

var _ memberlist.Transport = (*gossipTransport)(nil)

func newGossipTransport(advertise netip.AddrPort, creds *Credentials, listener *protocol) *gossipTransport {
	t := &gossipTransport{
		advertise: advertise,
		creds:     creds,
		listener:  listener,
		packets:   make(chan *memberlist.Packet),
		streams:   make(chan net.Conn),
		peers:     make(map[string]chan []byte),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.wg.Go(t.serve)
	return t
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *gossipTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// PacketCh implements memberlist.Transport.
func (t *gossipTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *gossipTransport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport: it closes every connection and waits
// for every goroutine.
func (t *gossipTransport) Shutdown() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	err := t.listener.Close()
	t.conns.closeAll()
	t.wg.Wait()
	return err
}

// WriteTo implements memberlist.Transport. It never waits: the packet is queued,
// or dropped where a bound is reached.
func (t *gossipTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	if len(b) == 0 || len(b) > maxPacket {
		return time.Time{}, fmt.Errorf("%w: %d bytes", errPacket, len(b))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return time.Time{}, net.ErrClosed
	}
	queue := t.peers[addr]
	if queue == nil {
		if len(t.peers) >= maxPacketPeers {
			return time.Now(), nil
		}
		queue = make(chan []byte, packetQueue)
		t.peers[addr] = queue
		t.wg.Go(func() { t.send(addr, queue) })
	}
	select {
	case queue <- appendFrame(nil, b):
	default:
	}
	return time.Now(), nil
}

// send writes the frames queued for addr until there were none for packetIdle.
func (t *gossipTransport) send(addr string, queue chan []byte) {
	var conn *Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	idle := time.NewTimer(packetIdle)
	defer idle.Stop()
	for {
		select {
		case frame := <-queue:
			if conn = t.write(conn, addr, frame); conn == nil {
				drain(queue) // what waited behind an unreachable peer is stale
			}
		case <-idle.C:
			if t.retire(addr, queue) {
				return
			}
		case <-t.ctx.Done():
			return
		}
		idle.Reset(packetIdle)
	}
}

// write sends one frame over conn, or over a new connection if there is none or
// it broke, and returns the connection to use next, nil if there is none.
func (t *gossipTransport) write(conn *Conn, addr string, frame []byte) *Conn {
	if conn != nil && writeFrame(conn, frame) == nil {
		return conn
	}
	conn, err := t.open(addr, packetTimeout, kindPackets)
	if err != nil {
		return nil
	}
	// The peer never answers here: a byte, or the end, closes the connection, so
	// that the next write fails instead of vanishing.
	t.wg.Go(func() {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
	})
	if writeFrame(conn, frame) != nil {
		return nil
	}
	return conn
}

func writeFrame(conn *Conn, frame []byte) error {
	err := conn.SetWriteDeadline(time.Now().Add(packetTimeout))
	if err == nil {
		_, err = conn.Write(frame)
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

// retire forgets an idle peer, unless a packet came in meanwhile.
func (t *gossipTransport) retire(addr string, queue chan []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(queue) > 0 {
		return false
	}
	delete(t.peers, addr)
	return true
}

func drain(queue chan []byte) {
	for range len(queue) {
		<-queue
	}
}

// DialTimeout implements memberlist.Transport.
func (t *gossipTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := t.open(addr, timeout, kindStream)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// open dials addr, within timeout, and says what kind of connection this is.
func (t *gossipTransport) open(addr string, timeout time.Duration, kind byte) (*Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.creds.dial(ctx, addr, t.creds.Client([]string{ALPNGossip}, nil))
	if err != nil {
		return nil, err
	}
	if err := t.conns.track(conn); err != nil {
		return nil, err
	}
	if err := writeFrame(conn, []byte{kind}); err != nil {
		return nil, err
	}
	return conn, conn.SetWriteDeadline(time.Time{})
}

// serve accepts connections until the listener is closed.
func (t *gossipTransport) serve() {
	for {
		conn, err := t.listener.accept()
		if err != nil {
			return
		}
		if t.conns.track(conn) == nil {
			t.wg.Go(func() { t.handle(conn) })
		}
	}
}

// handle passes an incoming stream on, or receives packets until their end.
func (t *gossipTransport) handle(conn *Conn) {
	var kind [1]byte
	err := conn.SetReadDeadline(time.Now().Add(kindTimeout))
	if err == nil {
		_, err = io.ReadFull(conn, kind[:])
	}
	if err == nil && kind[0] == kindStream && conn.SetReadDeadline(time.Time{}) == nil {
		select {
		case t.streams <- conn:
			return
		case <-t.ctx.Done():
		}
	}
	if err == nil && kind[0] == kindPackets {
		t.receive(conn)
	}
	_ = conn.Close()
}

func (t *gossipTransport) receive(conn *Conn) {
	r := bufio.NewReader(conn)
	for conn.SetReadDeadline(time.Now().Add(packetSilence)) == nil {
		b, err := readFrame(r)
		if err != nil {
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: b, From: conn.RemoteAddr(), Timestamp: time.Now()}:
		case <-t.ctx.Done():
			return
		}
	}
}

// appendFrame appends a packet of 1 to maxPacket bytes with its length before it.
func appendFrame(dst, packet []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(packet))) //nolint:gosec // the callers check the size
	return append(dst, packet...)
}

// readFrame reads one packet. A packet of no bytes is refused.
func readFrame(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == 0 {
		return nil, fmt.Errorf("%w: 0 bytes", errPacket)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}
