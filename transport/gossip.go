package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// MaxGossipMeta is the largest metadata of a member in bytes.
	MaxGossipMeta = memberlist.MetaMaxSize
	// DefaultProbeInterval is the time between two probes of a member.
	DefaultProbeInterval = time.Second

	// maxGossipMembers bounds the members known, dead ones included.
	maxGossipMembers = 64
	// maxGossipName is the longest name of a member in bytes.
	maxGossipName = 255
	// gossipStreamTimeout bounds one exchange over a stream.
	gossipStreamTimeout = 5 * time.Second
	// gossipSync is the time between two full exchanges with a random member.
	gossipSync = 10 * time.Second
	// deadReclaim is how long after its death a member may return at another
	// address: at once, for certificates say who it is. An answer that comes too
	// early is lost until the next gossipSync.
	deadReclaim = time.Millisecond
	// joinDelayMax is the longest time, in probe intervals, between two attempts
	// to reach addresses where no member is known to live.
	joinDelayMax = 15
	// leaveTimeout bounds Leave where its context does not.
	leaveTimeout = 5 * time.Second
)

// GossipState is what this node believes of a member.
type GossipState string

// The states of a member.
const (
	GossipAlive GossipState = "alive"
	GossipDead  GossipState = "dead" // failed, or left
)

// GossipMember is what gossip says of a member. It is a hint, never a fact: who
// is a member is decided by the replicated state alone.
type GossipMember struct {
	Name  string
	Addr  string // "ip:port"
	Meta  []byte // at most MaxGossipMeta bytes
	State GossipState
	Since time.Time // when State was entered, by this node's clock
}

// GossipConfig is what StartGossip needs. Fields marked optional may be zero.
type GossipConfig struct {
	// Name is unique in the cluster: the Raft id.
	Name        string
	Credentials *Credentials
	Mux         *Mux
	// Advertise is the address ("host:port") under which peers reach this node's
	// Mux. A host name is looked up once, at the start.
	Advertise string
	// Meta, optional, is told to the other members and asked once a probe interval
	// for a change. At most MaxGossipMeta bytes.
	Meta func() []byte
	// Join, optional, gives addresses ("host:port") where members should live. Those
	// at which none is known to be alive are contacted, again and again with growing
	// pauses: at the start, and after partitions and deaths.
	Join func() []string
	// Allow, optional, refuses nodes that may not gossip.
	Allow func(Identity) error
	// Events, optional, is told of each change of a member, one at a time. It must
	// not block; Members may be called from it, other methods not.
	Events func(GossipMember)
	// ProbeInterval, optional, is the time between two probes.
	ProbeInterval time.Duration
	// Logger, optional: the library's own messages go there at debug level.
	Logger *slog.Logger
}

// Gossip is a node's part in the gossip of liveness and addresses.
type Gossip struct {
	config    GossipConfig
	self      netip.AddrPort
	transport *gossipTransport
	list      *memberlist.Memberlist
	loops     sync.WaitGroup
	cancel    context.CancelFunc // ends the loops
	life      sync.Mutex         // one of Leave and Close at a time
	closed    bool

	mu      sync.Mutex
	meta    []byte
	members map[string]GossipMember
}

// StartGossip registers ALPNGossip with the Mux and starts to gossip; ctx bounds
// the lookup of the advertised address. End it with Close.
func StartGossip(ctx context.Context, c GossipConfig) (*Gossip, error) {
	if c.Name == "" || len(c.Name) > maxGossipName {
		return nil, fmt.Errorf("gossip name %q: want 1 to %d bytes", c.Name, maxGossipName)
	}
	if c.ProbeInterval <= 0 {
		c.ProbeInterval = DefaultProbeInterval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	self, err := resolve(ctx, c.Advertise)
	if err != nil {
		return nil, fmt.Errorf("advertised address: %w", err)
	}
	g := &Gossip{config: c, self: self, members: make(map[string]GossipMember)}
	if c.Meta != nil {
		if g.meta = bytes.Clone(c.Meta()); len(g.meta) > MaxGossipMeta {
			return nil, fmt.Errorf("gossip metadata of %d bytes, at most %d", len(g.meta), MaxGossipMeta)
		}
	}
	g.transport = newGossipTransport(self, c.Credentials, c.Mux.register(ALPNGossip, nodesAnd(c.Allow), tls.RequireAnyClientCert))
	if g.list, err = memberlist.Create(g.memberlistConfig()); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), g.transport.Shutdown())
	}
	loops, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.loops.Go(func() { g.joinLoop(loops) })
	g.loops.Go(func() { g.metaLoop(loops) })
	return g, nil
}

func (g *Gossip) memberlistConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.config.Name
	c.Transport = g.transport
	c.AdvertiseAddr = g.self.Addr().String()
	c.AdvertisePort = int(g.self.Port())
	c.BindPort = c.AdvertisePort
	c.TCPTimeout = gossipStreamTimeout
	c.ProbeInterval = g.config.ProbeInterval
	c.ProbeTimeout = g.config.ProbeInterval / 2
	c.GossipInterval = g.config.ProbeInterval / 5
	c.PushPullInterval = gossipSync
	c.DeadNodeReclaimTime = deadReclaim
	c.EnableCompression = false
	c.Logger = debugLog(g.config.Logger)
	d := (*gossipDelegate)(g)
	c.Delegate, c.Events, c.Alive, c.Conflict = d, d, d, d
	return c
}

// Members are the members known, by name, this node included.
func (g *Gossip) Members() []GossipMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(maps.Values(g.members), func(a, b GossipMember) int { return strings.Compare(a.Name, b.Name) })
}

// Leave tells the others that this node leaves; they see it dead at once. It
// waits, until the deadline of ctx or for 5 seconds, until one of them was told.
// Close must follow. After Close it returns net.ErrClosed.
func (g *Gossip) Leave(ctx context.Context) error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	g.cancel()
	timeout := leaveTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if timeout <= 0 { // memberlist would wait for ever
		return context.DeadlineExceeded
	}
	return g.list.Leave(timeout)
}

// Close stops gossiping, without a word to the others, and closes every
// connection. What memberlist has running ends within a few probe intervals.
func (g *Gossip) Close() error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.cancel()
	err := g.transport.Shutdown() // frees a loop that waits for a peer
	g.loops.Wait()
	return errors.Join(err, g.list.Shutdown())
}

// joinLoop contacts the addresses that should hold members: at once when they
// change, and then with growing pauses.
func (g *Gossip) joinLoop(ctx context.Context) {
	if g.config.Join == nil {
		return
	}
	var (
		tried []string
		pause time.Duration
		next  time.Time
	)
	for {
		missing := g.missing(ctx)
		if !slices.Equal(missing, tried) {
			tried, pause, next = missing, g.config.ProbeInterval, time.Time{}
		}
		if len(missing) > 0 && !time.Now().Before(next) {
			for _, addr := range missing {
				if ctx.Err() != nil {
					return
				}
				if _, err := g.list.Join([]string{addr}); err != nil {
					g.config.Logger.DebugContext(ctx, "gossip join", "address", addr, "error", err)
				}
			}
			next = time.Now().Add(pause)
			pause = min(2*pause, joinDelayMax*g.config.ProbeInterval)
		}
		if !sleep(ctx, g.config.ProbeInterval) {
			return
		}
	}
}

// missing are the addresses to join at which no live member is known.
func (g *Gossip) missing(ctx context.Context) []string {
	known := map[string]bool{g.self.String(): true}
	for _, m := range g.Members() {
		known[m.Addr] = known[m.Addr] || m.State == GossipAlive
	}
	var out []string
	for _, addr := range g.config.Join() {
		a, err := resolve(ctx, addr)
		if err != nil {
			g.config.Logger.DebugContext(ctx, "gossip join", "address", addr, "error", err)
			continue
		}
		if !known[a.String()] && len(out) < maxGossipMembers {
			known[a.String()] = true
			out = append(out, a.String())
		}
	}
	return out
}

// metaLoop tells the others when Meta changes.
func (g *Gossip) metaLoop(ctx context.Context) {
	if g.config.Meta == nil {
		return
	}
	for sleep(ctx, g.config.ProbeInterval) {
		meta := g.config.Meta()
		g.mu.Lock()
		same := bytes.Equal(meta, g.meta)
		if !same && len(meta) <= MaxGossipMeta {
			g.meta = bytes.Clone(meta)
		}
		g.mu.Unlock()
		switch {
		case same:
		case len(meta) > MaxGossipMeta:
			g.config.Logger.WarnContext(ctx, "gossip metadata too large, keeping the last", "bytes", len(meta), "limit", MaxGossipMeta)
		default:
			if err := g.list.UpdateNode(g.config.ProbeInterval); err != nil {
				g.config.Logger.DebugContext(ctx, "gossip metadata", "error", err)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// resolve turns "host:port" into an address, looking up a host name.
func resolve(ctx context.Context, addr string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q: want a port from 1 to 65535", addr)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(n)), nil
}
