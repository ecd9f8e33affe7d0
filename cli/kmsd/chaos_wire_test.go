//go:build linux && chaos

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wire is the network of a sandbox. Each host is a TUN device: what the kernel sends
// into one, this program reads, and loses, delays, or writes into another.
type wire struct {
	t *testing.T

	mu    sync.Mutex
	hosts map[netip.Addr]*os.File
	links map[link]quality

	flying, lost, late atomic.Int64 // packets on the way, and so far dropped and delayed on purpose
}

// link is one direction between two hosts.
type link struct{ from, to netip.Addr }

// quality is what happens to the packets of a link. Packets whose delays differ
// overtake each other.
type quality struct {
	cut           bool
	loss          float64 // 0 to 1
	delay, jitter time.Duration
}

const (
	wireMTU   = 9000
	maxFlying = 16384 // packets; more are dropped, as a router does
)

func newWire(t *testing.T) *wire {
	w := &wire{t: t, hosts: map[netip.Addr]*os.File{}, links: map[link]quality{}}
	t.Cleanup(func() {
		for _, f := range w.hosts {
			_ = f.Close()
		}
	})
	return w
}

// host makes a TUN device with an address in a network namespace that it creates;
// without a name, in that of the test.
func (w *wire) host(namespace string, address netip.Addr) {
	w.t.Helper()
	device := fmt.Sprintf("kms%d", address.As4()[3])
	f := tun(w.t, device)
	ip := []string{"ip"}
	if namespace != "" {
		run(w.t, "ip", "netns", "add", namespace)
		run(w.t, "ip", "link", "set", device, "netns", namespace)
		ip = append(ip, "-n", namespace)
		run(w.t, append(ip, "link", "set", "lo", "up")...)
	}
	run(w.t, append(ip, "address", "add", address.String()+"/24", "dev", device)...)
	run(w.t, append(ip, "link", "set", device, "up", "mtu", fmt.Sprint(wireMTU))...)
	w.mu.Lock()
	w.hosts[address] = f
	w.mu.Unlock()
	go w.carry(f) // until the device is closed
}

// tun makes a TUN device that carries bare IP packets.
func tun(t *testing.T, device string) *os.File {
	t.Helper()
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	request, err := unix.NewIfreq(device)
	must(t, err)
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	return os.NewFile(uintptr(fd), path)
}

func (w *wire) carry(from *os.File) {
	packet := make([]byte, wireMTU)
	for {
		n, err := from.Read(packet)
		if errors.Is(err, fs.ErrClosed) {
			return
		}
		if err != nil || n < 20 || packet[0]>>4 != 4 {
			continue // IPv6 housekeeping
		}
		l := link{netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))}
		w.mu.Lock()
		to, q := w.hosts[l.to], w.links[l]
		w.mu.Unlock()
		w.send(to, q, packet[:n])
	}
}

func (w *wire) send(to *os.File, q quality, packet []byte) {
	switch {
	case to == nil:
	case q.cut || rand.Float64() < q.loss || w.flying.Load() > maxFlying:
		w.lost.Add(1)
	case q.delay == 0 && q.jitter == 0:
		_, _ = to.Write(packet) // a host whose queue is full loses it
	default:
		w.late.Add(1)
		w.flying.Add(1)
		held := append([]byte(nil), packet...)
		time.AfterFunc(q.delay+time.Duration(rand.Float64()*float64(q.jitter)), func() {
			w.flying.Add(-1)
			_, _ = to.Write(held)
		})
	}
}

// set gives a link a quality.
func (w *wire) set(from, to netip.Addr, q quality) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[link{from, to}] = q
}

// heal makes every link perfect.
func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.links)
}
