//go:build linux && chaos

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rig is a cluster whose nodes can be broken in every way: each has a host of its own
// on the wire, a disk of its own and a token behind a shim.
type rig struct {
	*testCluster
	began time.Time
	wire  *wire
	hosts []*machine
	wait  sync.WaitGroup

	mu    sync.Mutex
	exits map[int]int // how often nodes ended by themselves, by exit code
}

// machine is what a node runs on.
type machine struct {
	*process
	address netip.Addr
	disk    *disk
	token   *os.File      // says what the shim does
	off     chan struct{} // holds something while the node must not be started
	seen    atomic.Pointer[view]
}

const (
	peerPort, clientPort = 7444, 7443
	restartPause         = 500 * time.Millisecond // of a supervisor
)

// clientsAddress is the clients' on the wire; the n-th node has n in its place.
var clientsAddress = hostAddress(254)

func hostAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(n)}) }

// newRig prepares machines and nodes; on tells which directory of a node is its disk.
func newRig(t *testing.T, nodes int, on string) *rig {
	t.Helper()
	r := &rig{testCluster: newCluster(t, 0), began: time.Now(), wire: newWire(t), exits: map[int]int{}}
	r.wire.host("", clientsAddress)
	shim := filepath.Join(r.dir, "p11shim.so")
	run(t, "gcc", "-shared", "-fPIC", "-O2", "-pthread", "-o", shim, "testdata/p11shim.c")
	module := os.Getenv("SOFTHSM2_MODULE")
	if module == "" {
		t.Fatal("SOFTHSM2_MODULE is not set: scripts/chaos.sh does that")
	}
	for i := range nodes {
		name := fmt.Sprintf("kms-%d", i+1)
		m := &machine{address: hostAddress(i + 1), off: make(chan struct{}, 1)}
		m.disk = newDisk(t, filepath.Join(r.dir, name+".img"), filepath.Join(r.dir, name, on))
		m.process = r.addNode(name)
		r.wire.host(name, m.address)
		m.within = []string{"nsenter", "--net=/run/netns/" + name}
		m.client, m.peer = fmt.Sprintf("%s:%d", m.address, clientPort), fmt.Sprintf("%s:%d", m.address, peerPort)
		var err error
		m.token, err = os.Create(filepath.Join(r.dir, name+".token"))
		must(t, err)
		m.well()
		m.hsm, m.extra = ", module: "+shim, "log: {level: debug}"
		m.env = append(m.env, "KMSD_TEST_MODULE="+module, "KMSD_TEST_TOKEN="+m.token.Name())
		r.hosts = append(r.hosts, m)
	}
	return r
}

// settle brings everything up to now to the disks: SoftHSM does not do that for the
// keys in its token, nor these tests for configurations.
func (r *rig) settle() {
	for _, m := range r.hosts {
		run(r.t, "sync", "--file-system", m.disk.at)
	}
}

// condition tells the shim what the token is like from now on: see
// testdata/p11shim.c.
func (m *machine) condition(c byte) {
	_, err := m.token.WriteAt([]byte{c}, 0)
	must(m.c.t, err)
}

func (m *machine) well() { m.condition('w') }

func (m *machine) mayNotStart() { m.off <- struct{}{} }
func (m *machine) mayStart()    { <-m.off }

// supervise starts every node again that ends, unless it must stay off, as the init
// system of its host would, until ctx ends.
func (r *rig) supervise(ctx context.Context) {
	for _, m := range r.hosts {
		r.wait.Go(func() {
			for {
				m.mu.Lock()
				exited, cmd := m.exited, m.cmd
				m.mu.Unlock()
				select {
				case <-exited:
				case <-ctx.Done():
					return
				}
				r.ended(m, cmd.ProcessState.ExitCode())
				sleep(ctx, restartPause)
				select {
				case m.off <- struct{}{}:
					m.start()
					m.mayStart()
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

func (r *rig) ended(m *machine, code int) {
	if code == exitPIN || code == exitRemoved || code == exitDiffers {
		r.t.Errorf("%s ended with %d:\n%s", m.name, code, m.output())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exits[code]++
}
