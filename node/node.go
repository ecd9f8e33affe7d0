package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
	"github.com/quorumkms/quorumkms/node/metrics"
	"github.com/quorumkms/quorumkms/node/tracing"
	"github.com/quorumkms/quorumkms/rpc"
	"github.com/quorumkms/quorumkms/transport"
)

// The proofs that what is wired fits.
var (
	_ hsm.Partition  = (*p11.Partition)(nil)
	_ hsm.Partition  = (*soft.Partition)(nil)
	_ cluster.Domain = hsm.Partition(nil)
	_ cluster.Peers  = (*rpc.Peers)(nil)
	_ kms.Log        = (*cluster.Member)(nil)
	_ kms.KeyMaker   = hsm.Partition(nil)
	_ kms.Opener     = (*cluster.Member)(nil)
	_ kms.Deriver    = (*hsm.Keyring)(nil)
	_ kms.Leadership = (*cluster.Member)(nil)
	_ gate.Freshness = (*cluster.Member)(nil)
	_ archive.Member = (*cluster.Member)(nil)
	_ archive.Signer = hsm.Partition(nil)
	_ gate.Recorder  = (*audit.Log)(nil)
)

// Options are what a node gets from its program.
type Options struct {
	Version string
	Log     *slog.Logger
	// Halt is called when the node must not go on; it should end the process at
	// once. What the node has acknowledged is on the disk.
	Halt func(error)
	// Console is told, for a person, what a joining node waits for.
	Console io.Writer
	// Hangup delivers requests to read certificates and CA again at once, and to call
	// Reload.
	Hangup <-chan os.Signal
	// Reload, optional, reads the configuration again, and sets the log's level. The node
	// takes from it what can change while it runs.
	Reload func() (Config, error)
	// Supervisor, if there is one, is told how the node does.
	Supervisor Supervisor
	// Found, unless nil, makes a node without a cluster found one by itself: for
	// development.
	Found *cluster.Founding
}

const (
	// TransferDir is the directory in the data directory that holds the transfer keys that wait for the
	// Security Officer, as <SHA-256 of the SPKI, hex>.der.
	TransferDir = "transfer"
	auditDir    = "audit"
	restoreDir  = "restore"
	lockFile    = "lock"

	// drainTimeout bounds how long calls under way may take when the node stops.
	drainTimeout = 8 * time.Second
	leaveTimeout = time.Second      // for telling the others by gossip
	stopAtMost   = 20 * time.Second // afterwards the process ends as it is
	healthEvery  = 250 * time.Millisecond
	joinPause    = 2 * time.Second // between attempts to join
)

// Node is a running node.
type Node struct {
	config    Config
	options   Options
	log       *slog.Logger
	partition hsm.Partition
	keyring   *hsm.Keyring
	releases  *gate.Releases
	head      atomic.Pointer[cluster.AuditHead] // of the audit trail, for the next lease request
	audit     *audit.Log
	sealer    *trailSealer
	sinks     *sink.Set
	signing   signing
	alarms    *alarms
	creds     *transport.Credentials
	peers     *rpc.Peers
	peerMux   *transport.Mux
	clientMux *transport.Mux
	member    *cluster.Member
	archive   *archive.Archive
	opened    atomic.Pointer[cluster.Member] // member, for those that run while it opens
	raft      atomic.Pointer[transport.RaftTransport]
	gossip    *transport.Gossip
	server    *rpc.Server
	service   *kms.Service
	limits    *limit.Limiter
	cleanup   []func() error // in the order of opening
	wait      sync.WaitGroup
	joining   sync.WaitGroup
	watchdog  *time.Timer               // runs while the node stops
	beat      atomic.Pointer[time.Time] // when watchHealth went round last
	told      atomic.Bool               // the supervisor, that the node is ready
	failed    chan error

	stopping atomic.Bool      // no more calls are taken
	metrics  *metrics.Metrics // nil unless configured, as the others
	tracing  *tracing.Tracing
	monitor  *monitor
	debug    *http.Server
}

// Run runs a node until ctx ends; then it hands over, finishes calls and stops.
func Run(ctx context.Context, c Config, o Options) error {
	n := &Node{config: c, options: o, log: o.Log.With("node", c.Name), failed: make(chan error, 8), releases: gate.NewReleases()}
	harden(n.log)
	err := n.open(ctx)
	if err == nil {
		err = n.serve(ctx)
	}
	return errors.Join(err, n.close())
}

func (n *Node) onClose(f func() error) { n.cleanup = append(n.cleanup, f) }

func (n *Node) close() error {
	var errs []error
	for i := len(n.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, n.cleanup[i]())
	}
	n.wait.Wait()
	if n.watchdog != nil {
		n.watchdog.Stop()
	}
	return errors.Join(errs...)
}

// open brings everything up that can fail before the node listens.
func (n *Node) open(ctx context.Context) error {
	c := n.config
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", cluster.ErrDataDir, err)
	}
	unlock, err := lockDir(filepath.Join(c.DataDir, lockFile))
	if err != nil {
		return err
	}
	n.onClose(unlock)
	if n.creds, err = transport.Load(c.TLS.files(), c.TrustDomain); err != nil {
		return err
	}
	if id := n.creds.Identity(); id.Class != transport.ClassNode || id.Name != c.Name {
		return fmt.Errorf("%w: tls.cert is of %s, this node needs one of spiffe://%s/node/%s", ErrConfig, id, c.TrustDomain, c.Name)
	}
	if n.partition, err = openPartition(ctx, c.HSM, n.log); err != nil {
		return err
	}
	n.onClose(n.partition.Close)
	if err := n.openObservers(ctx); err != nil {
		return err
	}
	n.keyring = hsm.NewKeyring(n.partition, hsm.KeyringConfig{MaxKeys: c.HSM.MaxKeys, Doubt: n.partition.Doubt, Tracer: n.callTracer()})
	n.onClose(func() error {
		n.keyring.Close()
		return nil
	})
	n.sealer = &trailSealer{key: c.Audit.Seal}
	trail := audit.Config{
		Dir: filepath.Join(c.DataDir, auditDir), Node: c.Name, Now: time.Now, Strict: c.Audit.Strict, Keep: time.Duration(c.Audit.Keep),
		Opener: n.sealer, Log: n.log,
	}
	if c.Audit.Seal != "" {
		trail.Sealer = n.sealer
	}
	if n.audit, err = audit.Open(trail); err != nil {
		return fmt.Errorf("%w %s: %w", cluster.ErrDataDir, c.DataDir, err)
	}
	n.onClose(n.audit.Close)
	if err := n.openMember(ctx); err != nil {
		return err
	}
	if err := n.openSinks(); err != nil {
		return err
	}
	n.wire()
	if err := errors.Join(n.readMetrics(), n.openMonitor()); err != nil {
		return err
	}
	return n.openDebug()
}

func (n *Node) openMember(ctx context.Context) error {
	c := n.config
	limits := transport.Limits{Handshakes: c.Limits.Handshakes, Connections: c.Limits.Connections}
	var err error
	if n.peerMux, err = transport.Listen(c.Peer.Listen, n.creds, limits); err != nil {
		return fmt.Errorf("peer listener: %w", err)
	}
	n.onClose(n.peerMux.Close)
	if n.clientMux, err = transport.Listen(c.Client.Listen, n.creds, limits); err != nil {
		return fmt.Errorf("client listener: %w", err)
	}
	n.onClose(n.clientMux.Close)
	n.peers = rpc.NewPeers(n.creds, n.peerName, n.dialling()...)
	n.onClose(n.peers.Close)
	n.member, err = cluster.Open(ctx, cluster.Config{
		Name: c.Name, TrustDomain: c.TrustDomain, DataDir: c.DataDir,
		PeerAddress: c.Peer.Advertise, ClientAddress: c.Client.Advertise, Pin: n.creds.CAKeysHash,
		Domain: n.partition, Profile: c.HSM.Profile, Peers: n.peers, Transport: n.raftTransport, HandedOver: n.releases.HandedOver, Clock: cluster.SystemClock{}, Now: time.Now,
		Raft: c.Raft.timing(), Lease: c.Lease.timing(), Log: n.log, Halt: n.halt, Waiting: n.tellWaiting, Announce: n.announce,
		Observer: n.observer(), AuditHead: n.head.Load,
	})
	if err != nil {
		return err
	}
	n.opened.Store(n.member)
	n.onClose(n.member.Close)
	n.audit.SetNode(n.member.ID())
	if err := os.RemoveAll(filepath.Join(c.DataDir, restoreDir)); err != nil { // what a crash has left
		return fmt.Errorf("%w: %w", cluster.ErrDataDir, err)
	}
	return nil
}

func (n *Node) raftTransport(proof func(role string, channel []byte) []byte) (raft.Transport, error) {
	t, err := transport.NewRaftTransport(transport.RaftConfig{
		Mux: n.peerMux, Credentials: n.creds, Advertise: n.config.Peer.Advertise, Logger: n.log, Proof: proof, Allow: n.notRemoved,
		ServerIdentity: func(address raft.ServerAddress) (string, bool) { return n.peerName(string(address)) },
	})
	if err != nil {
		return nil, err
	}
	n.raft.Store(t)
	return t, nil
}

// notRemoved refuses nodes that this one knows to be removed: while it holds a lease,
// that is, knows a fresh state. With an old one it could take a node that came back
// under its name for the one that was removed, and lock itself out.
func (n *Node) notRemoved(id transport.Identity) error {
	if m := n.opened.Load(); m != nil && m.Usable() == nil && m.Removed(id.Name) {
		return fmt.Errorf("%w: %s", cluster.ErrRemoved, id)
	}
	return nil
}

// isMember refuses nodes that this one does not know to be members.
func (n *Node) isMember(id transport.Identity) error {
	m := n.opened.Load()
	if m == nil || !m.State().Initialized() || m.State().MemberByName(id.Name) != nil {
		return nil
	}
	return fmt.Errorf("%s is no member", id)
}

// peerName tells which member lives at an address; nobody is known while the
// member opens.
func (n *Node) peerName(address string) (string, bool) {
	m := n.opened.Load()
	if m == nil {
		return "", false
	}
	return m.PeerName(address)
}

func (n *Node) wire() {
	n.limits = limit.New(n.config.Limits.quotas(), time.Now)
	service := kms.New(n.traced(kms.Config{
		Log: n.member, Fresh: n.member, Keys: n.partition, Opener: n.member, Rewrap: n.member, Deriver: n.keyring, Audit: n.audit, Out: n.releases,
		Now: time.Now, Clock: cluster.SystemClock{}.Now, Quorum: n.config.Lease.Consistency == kms.ConsistencyQuorum,
		Principal: rpc.PrincipalOf(n.config.TrustDomain), Leader: n.member, Limits: n.limits,
		MinRotation: time.Duration(n.config.Rotation.MinPeriod), Self: n.creds.Identity().String(), Logger: n.log,
	}))
	n.service = service
	n.sealer.keys.Store(&trailKeys{service: service, member: n.member, ending: n.stopping.Load})
	n.alarms = newAlarms(alarmsConfig{
		Self: n.creds.Identity().String(), Now: time.Now, State: n.member.State, Leads: n.member.Leads, Differences: n.member.Differences,
		Denied: service.Denied, Sinks: n.sinks.Stats, Stale: n.signing.stale, Trail: n.audit, Log: n.log,
	})
	b := n.config.Backup
	n.archive = archive.New(archive.Config{
		Name: n.config.Name, Dir: b.Dir, Every: time.Duration(b.Every), Keep: b.Keep, Member: n.member, Signer: n.partition, Now: time.Now, Log: n.log,
	})
	n.onClose(n.archive.Close)
	clients, peers := n.around()
	n.server = rpc.NewServer(rpc.Config{
		Clients: clients, Peers: peers,
		KMS: service, Member: n.member, Archive: n.archive, RestoreDir: filepath.Join(n.config.DataDir, restoreDir), Audit: n.audit, Log: n.log, Credentials: n.creds, Announce: n.announce,
		Node: rpc.NodeView{
			Name: n.config.Name, TrustDomain: n.config.TrustDomain, Version: n.options.Version,
			Ready: n.ready, Partition: n.partition, Keyring: n.keyring.Stats, Reachable: n.reachable, Credentials: n.creds, Now: time.Now,
			Disk: func() rpc.Disk { return diskOf(n.config.DataDir) }, Audit: n.auditHealth,
			Alarms: n.alarms.now,
		},
	})
}

// announce leaves a transfer key where the Security Officer's command finds it.
func (n *Node) announce(spki []byte) error {
	dir := filepath.Join(n.config.DataDir, TransferDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file := TransferFile(n.config.DataDir, hsm.Fingerprint(spki))
	if there, err := os.ReadFile(file); err == nil && bytes.Equal(there, spki) {
		return nil // it asks again and again
	}
	return os.WriteFile(file, spki, 0o600)
}

// TransferFile is where a transfer key waits for the Security Officer; fingerprint
// is as hsm.Fingerprint writes it.
func TransferFile(dataDir, fingerprint string) string {
	return filepath.Join(dataDir, TransferDir, fingerprint[strings.LastIndexByte(fingerprint, ':')+1:]+".der")
}

func (n *Node) reachable(raftID string) bool {
	if n.gossip == nil {
		return false
	}
	for _, m := range n.gossip.Members() {
		if m.Name == raftID {
			return m.State == transport.GossipAlive
		}
	}
	return false
}

// serve listens until ctx ends or something fails.
func (n *Node) serve(ctx context.Context) error {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	clients := n.clientMux.ProtocolOptional(transport.ALPNPeer, nil)
	peers := n.peerMux.Protocol(transport.ALPNPeer, transport.OnlyNodes)
	var err error
	n.gossip, err = transport.StartGossip(ctx, transport.GossipConfig{
		Name: n.member.ID(), Credentials: n.creds, Mux: n.peerMux, Advertise: n.config.Peer.Advertise,
		Join: n.member.OtherPeers, Logger: n.log, Allow: n.isMember,
	})
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	n.onClose(n.gossip.Close)
	n.background("peer listener", func() error { return n.peerMux.Serve(serving) })
	n.background("client listener", func() error { return n.clientMux.Serve(serving) })
	n.background("peer calls", func() error { return n.server.ServePeers(peers) })
	n.background("client calls", func() error { return n.server.ServeClients(clients) })
	n.serveMonitor()
	n.archive.Run()
	n.background("duties", func() error { n.service.RunDuties(serving); return nil })
	n.background("rewrapping", func() error { n.service.RunRewraps(serving); return nil })
	n.background("reservations", func() error { n.service.RunReservations(serving); return nil })
	n.background("audit checkpoints", func() error { n.signTrail(serving); return nil })
	n.background("alarms", func() error { n.alarms.watch(serving); return nil })
	n.background("records of alarms", func() error { n.alarms.tell(serving); return nil })
	n.background("collector", func() error { tuneCollector(serving); return nil })
	n.background("audit sinks", func() error { n.sinks.Run(serving); return nil })
	n.background("health", func() error { n.watchHealth(serving); return nil })
	n.background("supervisor", func() error { n.supervise(serving); return nil })
	n.background("signs of life", func() error { n.signLife(serving); return nil })
	n.background("files", func() error { n.watchFiles(serving); return nil })
	joining, stopJoining := context.WithCancel(ctx)
	defer stopJoining()
	n.joining.Go(func() { n.failing("joining", n.join(joining)) })
	n.log.Info("node is up", "raft_id", n.member.ID(), "peer", n.config.Peer.Advertise, "client", n.config.Client.Advertise,
		"hsm", n.partition.Info().Kind, "identity", hsm.Fingerprint(n.partition.Identity()), "version", n.options.Version)
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-n.failed:
	}
	n.notify(daemon.SdNotifyStopping, "STATUS=stopping")
	n.watchdog = time.AfterFunc(stopAtMost, func() { n.options.Halt(errStuck) })
	stopJoining()
	n.joining.Wait()
	n.drain()
	return err
}

// errStuck: something, such as a call into the HSM's library, does not come back.
var errStuck = fmt.Errorf("stopping took longer than %s", stopAtMost)

func (n *Node) background(what string, f func() error) {
	n.wait.Go(func() { n.failing(what, f()) })
}

func (n *Node) failing(what string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	select {
	case n.failed <- fmt.Errorf("%s: %w", what, err):
	default:
	}
}

// drain sends clients elsewhere, hands the leadership over and lets calls under way
// finish. Raft and the peer calls go on until the end: calls under way may need them.
func (n *Node) drain() {
	n.stopping.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() { n.server.Drain(ctx) })
	parts.Go(func() {
		leaving, done := context.WithTimeout(ctx, leaveTimeout)
		defer done()
		if err := n.gossip.Leave(leaving); err != nil {
			n.log.Debug("leaving gossip", "error", err)
		}
	})
	if err := n.member.StepDown(ctx); err != nil {
		n.log.Warn("the leadership was not handed over; the others elect a leader", "error", err)
	}
	parts.Wait()
	n.server.Stop()
	if n.monitor != nil {
		stopHTTP(n.monitor.server)
	}
}

// join makes a new node a member of a cluster, if it was told of one.
func (n *Node) join(ctx context.Context) error {
	if n.member.Joined() {
		return nil
	}
	if n.options.Found != nil {
		_, err := n.member.Found(ctx, *n.options.Found)
		return err
	}
	text, err := Secret("join token", n.config.Join.TokenFile, EnvJoinToken)
	if err != nil {
		return err
	}
	if text == nil {
		n.log.Info("this node belongs to no cluster: found one with `kmsctl cluster init`, or give it a join token")
		return nil
	}
	token, err := cluster.ParseJoinToken(string(text))
	if err != nil {
		return err
	}
	told := ""
	pending := func(p cluster.JoinPending) {
		if told != p.Fingerprint {
			told = p.Fingerprint
			n.tellPending(p)
		}
	}
	joining := cluster.Joining{Token: token, Addresses: n.config.Join.Addresses, Pending: pending, Waiting: func(w cluster.JoinWaiting) {
		if told != w.Fingerprint {
			told = w.Fingerprint
			n.tellFingerprint(w)
		}
	}}
	for {
		err := n.member.Join(ctx, joining)
		if err == nil {
			n.log.Info("joined the cluster", "cluster", token.Cluster)
			return nil
		}
		if cluster.Permanent(err) {
			return err
		}
		n.log.Warn("not joined yet, trying again", "error", err)
		select {
		case <-time.After(joinPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
