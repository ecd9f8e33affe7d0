package nodetest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// Node is one machine: its disk and clock stay, its processes come and go.
type Node struct {
	cluster *Cluster
	// Name is the machine's; its raft id changes when it joins anew.
	Name  string
	Clock *Clock
	voter bool // is to have a vote

	mu   sync.Mutex
	made int // identities, for their names
	id   string
	dir  string
	disk *Disk
	life *life // nil while no process runs
}

// life is one process.
type life struct {
	node     *Node
	end      *end
	cancel   context.CancelFunc
	opened   atomic.Pointer[cluster.Member]
	releases *gate.Releases
}

// name is the process's raft id, or its machine's name while it opens.
func (l *life) name() string {
	if m := l.opened.Load(); m != nil {
		return m.ID()
	}
	return l.node.Name
}

// restartPause is how long a supervisor waits before it starts a process that has
// ended by itself.
const restartPause = time.Second

// Disk is the machine's disk; a node that joins anew gets an empty one.
func (n *Node) Disk() *Disk {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disk
}

// ID is the raft id of the machine's present data directory.
func (n *Node) ID() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.id
}

// Member is the running process's member, or nil.
func (n *Node) Member() *cluster.Member {
	if l := n.running(); l != nil {
		return l.opened.Load()
	}
	return nil
}

func (n *Node) running() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

func (n *Node) address() string { return n.Name + ":1" }

// wipe gives the machine an empty data directory; the next process is a new node.
func (n *Node) wipe() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made++
	n.dir = filepath.Join(n.cluster.dir, fmt.Sprintf("%s-%d", n.Name, n.made))
	n.disk = newDisk(n.cluster.options.DiskLatency, n.cluster.options.Seed+uint64(n.made)<<32) // a small count
	n.id = ""
	return os.MkdirAll(filepath.Join(n.dir, "raft"), 0o700)
}

// enter writes the identity of a node that a cluster has admitted: what joining leaves
// behind.
func (n *Node) enter(id fsm.ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.id = n.Name + "." + hex.EncodeToString(fmt.Appendf(nil, "%08d", n.made))
	b, err := json.Marshal(map[string]any{"raft_id": n.id, "name": n.Name, "stage": "entering", "cluster": id})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, "node.json"), b, 0o600)
}

// Start runs a process, unless one runs.
func (n *Node) Start() error {
	n.mu.Lock()
	if n.life != nil {
		n.mu.Unlock()
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{node: n, cancel: cancel, releases: gate.NewReleases()}
	l.end = &end{
		network: n.cluster.Network, node: n.Name, address: n.address(), ctx: ctx,
		raft: make(chan raft.RPC), member: l.opened.Load,
	}
	n.life = l
	config := n.config(l)
	n.mu.Unlock()
	n.cluster.Network.attach(l.end)
	m, err := cluster.Open(ctx, config)
	if err != nil {
		n.kill(l)
		return fmt.Errorf("starting %s: %w", n.Name, err)
	}
	l.opened.Store(m)
	if n.running() != l { // it crashed while it opened
		n.bury(m)
		return nil
	}
	n.mu.Lock()
	n.id = m.ID()
	n.mu.Unlock()
	n.cluster.Trace.Event("start", "%s as %s", n.Name, m.ID())
	n.cluster.watch(l)
	n.cluster.serve(l)
	return nil
}

func (n *Node) config(l *life) cluster.Config {
	o, disk, dir := n.cluster.options, n.disk, n.dir
	return cluster.Config{
		Name: n.Name, TrustDomain: trustDomain, DataDir: dir, PeerAddress: n.address(), ClientAddress: n.Name + ":2",
		Pin: func() []byte { return nil }, Domain: domain{n.cluster.logKey, n.Name}, Peers: peers{l.end},
		Transport: func(func(string, []byte) []byte) (raft.Transport, error) {
			return &raftTransport{l.end, func() { n.cluster.Trace.Event("snapshot", "sent by %s", n.Name) }}, nil
		},
		Storage: func(dir string) (cluster.Storage, error) {
			// A member's directory without a log counts as damaged.
			return disk.open(), os.WriteFile(filepath.Join(dir, "raft.db"), nil, 0o600)
		},
		HandedOver: l.releases.HandedOver, Clock: n.Clock, Now: n.Clock.wall,
		Raft: o.Raft, Lease: o.Renewal, Log: n.cluster.Trace.logger(n.Name),
		Halt: func(err error) { n.halted(l, err) },
	}
}

// halted is the end of a process by its own decision; a supervisor starts it again,
// except a node that was removed.
func (n *Node) halted(l *life, err error) {
	if !n.kill(l) {
		return // it was dead
	}
	n.cluster.Trace.Event("halt", "%s: %v", n.Name, err)
	if errors.Is(err, cluster.ErrRemoved) {
		return
	}
	n.cluster.halts(n, err)
	n.cluster.background(func() {
		time.Sleep(restartPause)
		n.cluster.start(n)
	})
}

// Crash ends the running process at once: its memory is lost, its disk is kept.
func (n *Node) Crash() {
	if l := n.running(); l != nil && n.kill(l) {
		n.cluster.Trace.Event("killed", "%s", n.Name)
	}
}

// kill ends a process; false if it had ended.
func (n *Node) kill(l *life) bool {
	n.mu.Lock()
	if n.life != l {
		n.mu.Unlock()
		return false
	}
	n.life = nil
	l.cancel()
	disk := n.disk
	n.mu.Unlock()
	disk.crash()
	if m := l.opened.Load(); m != nil {
		n.bury(m)
	}
	return true
}

// bury closes the member of a dead process, which nobody hears any more, once it has
// noticed that it leads nobody: Raft leaves commands unanswered for ever that it has
// queued when it shuts down.
func (n *Node) bury(m *cluster.Member) {
	n.cluster.background(func() {
		time.Sleep(3 * n.cluster.options.Raft.Heartbeat)
		_ = m.Close() // a dead process's errors
	})
}

// Stop ends the running process after it has handed the leadership over.
func (n *Node) Stop() {
	l := n.running()
	if l == nil {
		return
	}
	if m := l.opened.Load(); m != nil {
		_ = m.StepDown(l.end.ctx) // as well as it can
	}
	if n.kill(l) {
		n.cluster.Trace.Event("stop", "%s", n.Name)
	}
}

// domain stands for an HSM partition that holds the cluster's domain key.
type domain struct {
	key  []byte
	name string
}

var errNoDomain = errors.New("nodetest: this partition holds the log key only")

func (d domain) Identity() []byte { return []byte("identity of " + d.name) }

func (d domain) LogKey(context.Context, hsm.ID) ([]byte, error) { return d.key, nil }

func (d domain) CreateDomain(_ context.Context, _ hsm.ID, number uint32) (hsm.Generation, error) {
	return hsm.Generation{Number: number, Checks: []hsm.KeyCheck{{Kind: hsm.KindLog}}}, nil
}

func (d domain) SignIdentity(context.Context, []byte) ([]byte, error) { return nil, errNoDomain }

func (d domain) Generations(context.Context, hsm.ID) ([]hsm.Generation, error) {
	return []hsm.Generation{{Number: 1, Checks: []hsm.KeyCheck{{Kind: hsm.KindLog}}}}, nil
}

func (d domain) DestroyDomain(context.Context, hsm.ID, hsm.Generation) error { return errNoDomain }

func (d domain) Doubt(context.Context) error { return nil }

func (d domain) InstallTwin(context.Context, []byte, hsm.ImportExpectation) error { return errNoDomain }

func (d domain) Twins(context.Context, hsm.ID) ([]uint32, error) { return nil, nil }

func (d domain) DestroyTwin(context.Context, hsm.ID, uint32) error { return errNoDomain }

func (d domain) Rewrap(context.Context, hsm.Ref, uint32) ([]byte, error) { return nil, errNoDomain }

func (d domain) NewTransfer(context.Context) (hsm.Transfer, error) {
	return hsm.Transfer{}, errNoDomain
}

func (d domain) Export(context.Context, hsm.ExportRequest) ([]byte, error) { return nil, errNoDomain }

func (d domain) Trusted(context.Context, []byte) error { return errNoDomain }

func (d domain) ExportRecovery(context.Context, hsm.RecoveryRequest) ([]byte, error) {
	return nil, errNoDomain
}

func (d domain) Import(context.Context, []byte, hsm.ImportExpectation) (hsm.Generation, error) {
	return hsm.Generation{}, errNoDomain
}

func (d domain) Open(context.Context, []byte, hsm.TokenHeader) (hsm.BlockKey, error) {
	return nil, errNoDomain
}

func (d domain) OpenResident(context.Context, []byte, hsm.TokenHeader) (hsm.ResidentKey, error) {
	return nil, errNoDomain
}

func (d domain) OpenSecret(context.Context, hsm.Ref) (hsm.SecretKey, error) {
	return nil, errNoDomain
}

func (d domain) Possess(context.Context, hsm.Possession) ([]byte, error) { return nil, errNoDomain }
