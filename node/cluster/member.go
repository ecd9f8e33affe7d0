package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Domain is what the member needs of its HSM partition.
type Domain interface {
	hsm.Rewrapper
	Identity() []byte
	SignIdentity(ctx context.Context, message []byte) ([]byte, error)
	CreateDomain(ctx context.Context, cluster hsm.ID, number uint32) (hsm.Generation, error)
	DestroyDomain(ctx context.Context, cluster hsm.ID, g hsm.Generation) error
	Doubt(ctx context.Context) error
	Generations(ctx context.Context, cluster hsm.ID) ([]hsm.Generation, error)
	LogKey(ctx context.Context, cluster hsm.ID) ([]byte, error)
	NewTransfer(ctx context.Context) (hsm.Transfer, error)
	Export(ctx context.Context, r hsm.ExportRequest) ([]byte, error)
	Trusted(ctx context.Context, spki []byte) error
	ExportRecovery(ctx context.Context, r hsm.RecoveryRequest) ([]byte, error)
	Import(ctx context.Context, message []byte, want hsm.ImportExpectation) (hsm.Generation, error)
	Possess(ctx context.Context, p hsm.Possession) ([]byte, error)
	Open(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.BlockKey, error)
	OpenResident(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.ResidentKey, error)
	OpenSecret(ctx context.Context, ref hsm.Ref) (hsm.SecretKey, error)
}

// Peers reaches other nodes at their peer addresses.
type Peers interface {
	Propose(ctx context.Context, address string, p fsm.Proposal, proposer string) (fsm.Result, error)
	Lease(ctx context.Context, address string, r LeaseRequest) (LeaseGrant, error)
	Ack(ctx context.Context, address, node string, applied uint64) error
	TransferLeadership(ctx context.Context, address, node string) (leader string, err error)
	// Progress asks the leader at address how far the members are.
	Progress(ctx context.Context, address string) ([]Progress, error)
	Survey(ctx context.Context, address string, r SurveyRequest) (Survey, error)
	// Open has a member open tokens with its partition. The answers are in the order of
	// the request.
	Open(ctx context.Context, address string, r OpenRequest) ([]OpenResult, error)
	// Join opens the conversation with a member at address whose CA's keys hash to pin.
	Join(ctx context.Context, address string, pin []byte) (JoinStream, error)
	// Domain asks a member which generations of the domain key it holds.
	Domain(ctx context.Context, address, node string) (DomainHolding, error)
}

// RaftTiming is Raft's timing. Timeouts are drawn from [T, 2T].
type RaftTiming struct {
	Heartbeat         time.Duration
	Election          time.Duration
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	TrailingLogs      uint64
}

// Config is what a member needs.
type Config struct {
	Name          string
	TrustDomain   string
	DataDir       string
	PeerAddress   string // where other nodes reach this one
	ClientAddress string // where clients reach it
	Pin           func() []byte

	Domain Domain
	Peers  Peers
	// Profile is the transfer profile of the partition; empty: fsm.ProfileGeneric.
	Profile string
	// Transport is called once, when the node is a member. proof is what an end of a
	// connection in a role must show to belong to the cluster (transport.RaftConfig).
	Transport func(proof func(role string, channel []byte) []byte) (raft.Transport, error)
	// Storage, optional, opens Raft's storage for the directory in DataDir that belongs
	// to it. Default: files there, the snapshots sealed as the log always is.
	Storage func(dir string) (Storage, error)
	// Waiting, optional, is told, for a person, what this member waits for: not more than
	// once a transfer key.
	Waiting func(DomainWait)
	// Announce leaves a transfer key of this node where its own Security Officer finds it.
	Announce func(spki []byte) error
	// AuditHead, optional, is the newest checkpoint of this node's audit trail, if it is
	// another than what the cluster remembers. It must not wait for anything.
	AuditHead func() *AuditHead
	// HandedOver returns when every result whose checks began before the call has been
	// handed over or wiped (gate.Releases).
	HandedOver func(context.Context) error
	Clock      Clock
	Now        func() time.Time
	Raft       RaftTiming
	Lease      LeaseTiming
	Log        *slog.Logger
	// Halt is called when this node must not go on: its storage failed, its log
	// cannot be applied, or it was removed. It should end the process.
	Halt func(error)
	// Observer, optional, is told what the member does.
	Observer Observer
}

// Member is one node's part in the cluster. Until it has founded or joined one,
// most calls answer fsm.ErrNotInitialized.
type Member struct {
	config Config
	id     string // raft id

	mu       sync.Mutex
	identity identity
	running  *engine
	transfer hsm.Transfer // of the one who has reserved joining, and later of installLoop
	busy     bool         // founding or joining
	closed   bool
	empty    *fsm.State

	refusedJoins atomic.Uint64 // since this process began
}

// engine is a member that belongs to a cluster: Raft and what keeps it useful.
type engine struct {
	member     *Member
	served     atomic.Pointer[serving] // that Serves has answered with yes last
	config     *Config
	observer   Observer
	id         string
	cluster    fsm.ID
	history    fsm.History // of the cluster; with another one no Raft is spoken
	logKey     fsm.LogKey
	log        *slog.Logger
	raft       *raft.Raft
	machine    *fsm.Machine
	store      *sealedStore
	snapshots  raft.SnapshotStore
	transport  raft.Transport
	lessee     *lessee
	grantor    *grantor
	openings   *openings
	domain     domainKeys
	twin       atomic.Uint32          // generation of which this node has the twin that the state asks for; 0: none
	notCopied  atomic.Pointer[string] // why a recovery copy that is missing could not be made, where trust is not what it lacks
	refusal    atomic.Pointer[string] // why the leader grants no lease, if it says
	clockWrong atomic.Bool            // most other nodes' wall clocks are far from this leader's
	ticks      tickWatch
	settled    atomic.Uint64 // index that this node has applied and of whose predecessors no result is on its way out

	waiters       chan waiter
	renewals      chan struct{} // bounds lease requests under way
	proposals     chan struct{} // bounds commands that wait
	confirmations *confirmations
	leaderChanged chan struct{}

	leaderMu      sync.Mutex
	leaderMoved   chan struct{} // closed and replaced when the leader changes
	leaderChanges atomic.Uint64

	nextAddress time.Duration // when noteAddress may try again; of dutyLoop alone

	transferring chan struct{}     // bounds transfers of the leadership to one
	timedOut     map[string]uint64 // raft id -> term in which a transfer to it timed out; of the one who transfers

	outlived chan error // that the cluster was recovered without this node
	splitsMu sync.Mutex
	splits   map[string]string // peer address -> what other history lives there

	headsMu sync.Mutex
	heads   map[string]fsm.NextAuditHead // by raft id: sent by nodes, and not in the log yet

	ctx    context.Context //nolint:containedctx // the engine's own life
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// maxRenewals bounds the lease requests under way.
const maxRenewals = 8

// Open reads the data directory and, if the node is a member, starts Raft.
func Open(ctx context.Context, c Config) (*Member, error) {
	id, err := openIdentity(c.DataDir, c.Name)
	if err != nil {
		return nil, err
	}
	m := &Member{config: c, id: id.RaftID, identity: id, empty: fsm.NewState()}
	var e *engine
	switch id.Stage {
	case stageMember, stageEntering:
		e, err = m.start(ctx, id, nil)
	case stageRecovering:
		e, _, err = m.startRecovered(ctx, id)
	case stageNew, stageInitializing, stageUnsealed: // an unsealed directory is opened as a sealed one
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	return m, m.become(e, id)
}

// ID is the node's raft id.
func (m *Member) ID() string { return m.id }

// Joined tells whether the node belongs to a cluster.
func (m *Member) Joined() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running != nil
}

// State is the present state: empty while the node belongs to no cluster.
func (m *Member) State() *fsm.State {
	e, err := m.engine()
	if err != nil {
		return m.empty
	}
	return e.machine.State()
}

// Wait returns the state once it has reached an index.
func (m *Member) Wait(ctx context.Context, index uint64) (*fsm.State, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	return e.machine.Wait(ctx, index)
}

// Restricted returns a channel that is closed when an entry whose command restricts has been
// applied here: take the channel first, then look at the state. Nil while there is no state.
func (m *Member) Restricted() <-chan struct{} {
	e, err := m.engine()
	if err != nil {
		return nil
	}
	return e.machine.Restricted()
}

func (m *Member) engine() (*engine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrShutdown
	case m.running == nil:
		return nil, fmt.Errorf("%w: this node belongs to no cluster yet", fsm.ErrNotInitialized)
	}
	return m.running, nil
}

// start runs Raft for the cluster of an identity, whose domain key the HSM holds.
// prepare, unless nil, changes Raft's stores before.
func (m *Member) start(ctx context.Context, id identity, prepare prepare) (*engine, error) {
	c := &m.config
	key, err := c.Domain.LogKey(ctx, hsm.ID(id.Cluster))
	if err != nil {
		return nil, fmt.Errorf("the HSM of this node does not hold the domain key of cluster %s; if its token was replaced, remove the node from the cluster and let it join anew with an empty data directory: %w", id.Cluster, err)
	}
	held, err := c.Domain.Generations(ctx, hsm.ID(id.Cluster))
	if err != nil {
		return nil, fmt.Errorf("the HSM of this node does not tell which domain keys it holds: %w", err)
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	e := &engine{
		member: m, config: c, id: m.id, cluster: id.Cluster, history: id.History, logKey: key, log: c.Log,
		machine:       fsm.NewMachine(key, c.Halt),
		waiters:       make(chan waiter, fsm.MaxMembers),
		renewals:      make(chan struct{}, maxRenewals),
		proposals:     make(chan struct{}, maxProposals),
		confirmations: newConfirmations(),
		leaderChanged: make(chan struct{}, 1),
		leaderMoved:   make(chan struct{}),
		transferring:  make(chan struct{}, 1),
		timedOut:      map[string]uint64{},
		outlived:      make(chan error, 1),
		splits:        map[string]string{},
		heads:         map[string]fsm.NextAuditHead{},
	}
	e.observer = nobody{}
	if c.Observer != nil {
		e.observer = c.Observer
	}
	duration := func() time.Duration { return leaseDuration(e.machine.State()) }
	e.lessee = surviving(e.id, newLessee(duration, c.Clock, c.Now, binary.BigEndian.Uint64(random[:])))
	e.grantor = newGrantor(duration, c.Clock)
	e.domain.held.Store(&held)
	e.openings = &openings{call: e.askToOpen, refuses: e.openRefused, queues: map[string]*openQueue{}}
	if err := e.startRaft(prepare); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.watchLeader()
	e.wait.Go(e.grantLoop)
	e.wait.Go(e.renewLoop)
	e.wait.Go(e.confirmLoop)
	e.wait.Go(e.ackLoop)
	e.wait.Go(e.dutyLoop)
	e.wait.Go(e.installLoop)
	e.wait.Go(e.splitLoop)
	e.wait.Go(e.headsLoop)
	return e, nil
}

// prepare changes Raft's stores before Raft starts on them.
type prepare func(e *engine, rc *raft.Config) error

// bootstrap makes an empty log that of a cluster of this node alone.
func bootstrap(e *engine, rc *raft.Config) error {
	return raft.BootstrapCluster(rc, e.store, e.store, e.snapshots, e.transport, e.alone())
}

// alone is the configuration of a cluster of this node alone.
func (e *engine) alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(e.id), Address: raft.ServerAddress(e.config.PeerAddress)}}}
}

func (e *engine) startRaft(prepare prepare) error {
	c := e.config
	dir := filepath.Join(c.DataDir, raftDir)
	logger := raftLogger(c.Log, c.Clock)
	if err := e.openStorage(dir); err != nil {
		return err
	}
	transport, err := c.Transport(e.proof)
	if err != nil {
		return errors.Join(err, e.store.Close())
	}
	leading := newLeading(transport, e.mute)
	e.transport = leading
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(e.id)
	rc.Logger = logger
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = c.Raft.Heartbeat, c.Raft.Election, c.Raft.Heartbeat
	rc.CommitTimeout = commitTimeout
	rc.MaxAppendEntries = maxAppendEntries
	rc.BatchApplyCh = true
	rc.SnapshotInterval, rc.SnapshotThreshold, rc.TrailingLogs = c.Raft.SnapshotInterval, c.Raft.SnapshotThreshold, c.Raft.TrailingLogs
	rc.NoLegacyTelemetry = true
	if prepare != nil {
		if err := prepare(e, rc); err != nil {
			return errors.Join(fmt.Errorf("%w: %w", ErrDataDir, err), e.closeStores())
		}
	}
	if e.raft, err = raft.NewRaft(rc, watchedMachine{e.machine, e.observer, c.Clock, leading.committed}, e.store, e.store, e.snapshots, e.transport); err != nil {
		return errors.Join(fmt.Errorf("%w: starting raft: %w", ErrDataDir, err), e.closeStores())
	}
	return nil
}

// openStorage opens what Raft has on the disk; nothing is served from a directory
// that is not as this node left it.
func (e *engine) openStorage(dir string) error {
	c, id := e.config, e.member.identity
	seals := sealing{key: newSealKey(e.logKey, e.cluster, e.id), legacy: !id.sealedFromBirth(), member: id.Stage.hasLog(), fatal: c.Halt}
	open := c.Storage
	if open == nil {
		open = func(dir string) (Storage, error) {
			return openFiles(dir, seals, func(r io.Reader) error { return fsm.VerifySnapshot(r, e.logKey) })
		}
	}
	storage, err := open(dir)
	if err != nil {
		return err
	}
	if e.store, err = openSealed(storage, seals); err != nil {
		return errors.Join(err, storage.Mark.Close(), storage.Log.Close())
	}
	e.snapshots = storage.Snapshots
	return nil
}

const (
	maxAppendEntries = 256                   // entries of one message; a batch costs the disk one sync
	commitTimeout    = 10 * time.Millisecond // how soon followers learn of a commit at the latest (leading.go)
)

func (e *engine) closeStores() error { return errors.Join(e.closeTransport(), e.store.Close()) }

func (e *engine) closeTransport() error {
	if c, ok := e.transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// proof shows that this node knows the cluster's log key and is of the same history,
// on one connection. Nodes of two histories may hold different entries of one term
// and index: they must never speak Raft with each other.
func (e *engine) proof(role string, channel []byte) []byte {
	if e.history != (fsm.History{}) {
		channel = append(historyBytes(e.history), channel...)
	}
	return e.logKey.Prove("quorumkms/raft/v1/"+role, channel)
}

// watchLeader wakes the lease and who waits for the leader when it changes.
func (e *engine) watchLeader() {
	seen := make(chan raft.Observation, 16)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	e.raft.RegisterObserver(observer)
	e.wait.Go(func() {
		defer e.raft.DeregisterObserver(observer)
		for {
			select {
			case <-seen:
				e.leaderChanges.Add(1)
				e.leaderMu.Lock()
				close(e.leaderMoved)
				e.leaderMoved = make(chan struct{})
				e.leaderMu.Unlock()
				select {
				case e.leaderChanged <- struct{}{}:
				default:
				}
			case <-e.ctx.Done():
				return
			}
		}
	})
}

// principal is how this node signs its own acts in the log.
func (e *engine) principal() string {
	return "spiffe://" + e.config.TrustDomain + "/node/" + e.config.Name
}

func (e *engine) stop() error {
	e.cancel()
	e.openings.stop()
	e.wait.Wait()
	e.lessee.forget()
	stopped := e.raft.Shutdown()
	err := e.closeTransport() // a snapshot on its way to a stalled node must not hold the end up
	return errors.Join(err, stopped.Error(), e.store.Close())
}

// Close stops Raft. It does not hand leadership over: see StepDown.
func (m *Member) Close() error {
	m.mu.Lock()
	e := m.running
	m.closed, m.running = true, nil
	m.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.stop()
}

// reserve makes sure that one founding or joining goes on at a time.
func (m *Member) reserve() (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrShutdown
	case m.running != nil:
		return nil, fmt.Errorf("%w: this node belongs to cluster %s", ErrInitialized, m.identity.Cluster)
	case m.busy:
		return nil, fmt.Errorf("%w: this node is founding or joining a cluster just now", fsm.ErrExists)
	}
	m.busy = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.busy = false
	}, nil
}
