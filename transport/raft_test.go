package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// startRaft is a transport on a Mux of its own.
func startRaft(t *testing.T, home *authority, name string, change func(*RaftConfig)) *RaftTransport {
	t.Helper()
	creds := home.credentials(name)
	m := startMux(t, creds, Limits{}, nil)
	c := RaftConfig{Mux: m, Credentials: creds, Advertise: m.Addr().String(), Logger: testLog(t)}
	if change != nil {
		change(&c)
	}
	transport, err := NewRaftTransport(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := transport.Close(); err != nil {
			t.Error(err)
		}
	})
	return transport
}

// answer replies to every message until the test ends and counts heartbeats.
func answer(t *testing.T, transport *RaftTransport) *atomic.Int64 {
	var heartbeats atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case rpc := <-transport.Consumer():
				switch rpc.Command.(type) {
				case *raft.AppendEntriesRequest:
					heartbeats.Add(1)
					rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
				case *raft.RequestPreVoteRequest:
					rpc.Respond(&raft.RequestPreVoteResponse{Granted: true}, nil)
				default:
					rpc.Respond(nil, errors.New("unexpected message"))
				}
			case <-done:
				return
			}
		}
	})
	t.Cleanup(func() { close(done); wg.Wait() })
	return &heartbeats
}

func heartbeat(from, to *RaftTransport) error {
	request := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte(from.LocalAddr())}, Term: 1}
	return from.AppendEntries("id", to.LocalAddr(), &request, new(raft.AppendEntriesResponse))
}

func TestRaftTransportKeepsPreVote(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startRaft(t, home, "a", nil), startRaft(t, home, "b", nil)
	answer(t, b)
	var transport raft.Transport = a
	preVote, ok := transport.(raft.WithPreVote)
	if !ok {
		t.Fatal("raft would not use pre-vote")
	}
	var response raft.RequestPreVoteResponse
	if err := preVote.RequestPreVote("b", b.LocalAddr(), &raft.RequestPreVoteRequest{Term: 2}, &response); err != nil || !response.Granted {
		t.Errorf("pre-vote: %+v, %v", response, err)
	}
}

func TestRaftTransportIgnoresHeartbeatHandler(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a, b := startRaft(t, home, "a", nil), startRaft(t, home, "b", nil)
	var transport raft.Transport = b
	transport.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.Error("a heartbeat took the fast path")
		rpc.Respond(new(raft.AppendEntriesResponse), nil)
	})
	heartbeats := answer(t, b)
	if err := heartbeat(a, b); err != nil || heartbeats.Load() != 1 {
		t.Errorf("%d heartbeats came through the consumer, %v", heartbeats.Load(), err)
	}
}

func TestRaftTransportRefuses(t *testing.T) {
	noLeaks(t)
	home, foreign := newAuthority(t, testDomain), newAuthority(t, testDomain)
	b := startRaft(t, home, "b", func(c *RaftConfig) {
		c.Allow = func(id Identity) error {
			if id.Name == "removed" {
				return errors.New("no longer a member")
			}
			return nil
		}
	})
	answer(t, b)
	at := func(name string) func(*RaftConfig) {
		return func(c *RaftConfig) {
			c.ServerIdentity = func(address raft.ServerAddress) (string, bool) { return name, address == b.LocalAddr() }
		}
	}
	good := startRaft(t, home, "a", at("b"))
	if err := heartbeat(good, b); err != nil {
		t.Errorf("the member that lives there: %v", err)
	}
	unknown := startRaft(t, home, "a", func(c *RaftConfig) {
		c.ServerIdentity = func(raft.ServerAddress) (string, bool) { return "", false }
	})
	if err := heartbeat(unknown, b); err != nil {
		t.Errorf("an address nothing is known of: %v", err)
	}
	if err := heartbeat(startRaft(t, home, "a", at("c")), b); !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), "where node c lives") {
		t.Errorf("another member than the one that lives there: %v", err)
	}
	if err := heartbeat(startRaft(t, home, "removed", nil), b); err == nil {
		t.Error("a removed node was heard")
	}
	if err := heartbeat(startRaft(t, foreign, "a", nil), b); !errors.Is(err, ErrPeer) {
		t.Errorf("a node of another CA: %v", err)
	}
	if _, err := NewRaftTransport(RaftConfig{Advertise: "nowhere"}); err == nil {
		t.Error("an address without a port was accepted")
	}
}

func TestRaftTransportClose(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var m *Mux // stays open
	a, b := startRaft(t, home, "a", nil), startRaft(t, home, "b", func(c *RaftConfig) { m = c.Mux })
	answer(t, b)
	if err := heartbeat(a, b); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the idle connections it accepted are closed", func() bool {
		m.conns.mu.Lock()
		defer m.conns.mu.Unlock()
		return len(m.conns.open) == 0
	})
	if err := heartbeat(a, b); err == nil {
		t.Error("heard after close")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := heartbeat(a, b); err == nil {
		t.Error("spoke after close")
	}
}

// TestRaftTransportRecheck: the open connections of a node that is refused by now are
// cut, and no others.
func TestRaftTransportRecheck(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var removed atomic.Bool
	b := startRaft(t, home, "b", func(c *RaftConfig) {
		c.Allow = func(id Identity) error {
			if id.Name == "removed" && removed.Load() {
				return errors.New("no longer a member")
			}
			return nil
		}
	})
	heartbeats := answer(t, b)
	stays, goes := startRaft(t, home, "a", nil), startRaft(t, home, "removed", nil)
	speak := func(want ...error) {
		t.Helper()
		for i, from := range []*RaftTransport{stays, goes} {
			if err := heartbeat(from, b); (err == nil) != (want[i] == nil) {
				t.Errorf("node %d: %v", i, err)
			}
		}
	}
	speak(nil, nil)
	b.Recheck()
	speak(nil, nil)
	open := len(stays.layer.conns.list())
	removed.Store(true)
	speak(nil, nil) // on the connections that stand
	b.Recheck()
	speak(nil, net.ErrClosed)
	if heartbeats.Load() != 7 || len(stays.layer.conns.list()) != open {
		t.Errorf("%d heartbeats, %d connections, before %d", heartbeats.Load(), len(stays.layer.conns.list()), open)
	}
}

func TestRaftTransportDialTimeout(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // connects, never shakes hands
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	a := startRaft(t, home, "a", func(c *RaftConfig) { c.Timeout = 50 * time.Millisecond })
	request := raft.TimeoutNowRequest{}
	var timeout net.Error
	err = a.TimeoutNow("x", raft.ServerAddress(mute.Addr().String()), &request, new(raft.TimeoutNowResponse))
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
}

// recorder is a machine that remembers what was applied.
type recorder struct {
	mu  sync.Mutex
	log []string
}

func (r *recorder) Apply(l *raft.Log) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, string(l.Data))
	return nil
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, " ")
}

func (r *recorder) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (r *recorder) Restore(io.ReadCloser) error         { return errors.New("no snapshots") }

func TestRaftCluster(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	names := map[raft.ServerAddress]string{}
	var servers []raft.Server
	var transports []*RaftTransport
	for i := range 3 {
		name := fmt.Sprintf("n%d", i)
		transport := startRaft(t, home, name, func(c *RaftConfig) {
			c.ServerIdentity = func(a raft.ServerAddress) (string, bool) { n, ok := names[a]; return n, ok }
		})
		names[transport.LocalAddr()] = name
		servers = append(servers, raft.Server{ID: raft.ServerID(name), Address: transport.LocalAddr()})
		transports = append(transports, transport)
	}
	var nodes []*raft.Raft
	var machines []*recorder
	for i, transport := range transports {
		config := raft.DefaultConfig()
		config.LocalID = servers[i].ID
		config.HeartbeatTimeout, config.ElectionTimeout = 400*time.Millisecond, 400*time.Millisecond
		config.LeaderLeaseTimeout, config.CommitTimeout = 200*time.Millisecond, 10*time.Millisecond
		config.LogOutput = io.Discard
		machine, store := new(recorder), raft.NewInmemStore()
		node, err := raft.NewRaft(config, machine, store, store, raft.NewInmemSnapshotStore(), transport)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := node.Shutdown().Error(); err != nil {
				t.Error(err)
			}
		})
		nodes, machines = append(nodes, node), append(machines, machine)
	}
	if err := nodes[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		t.Fatal(err)
	}
	live := nodes
	commit := func(what string) {
		eventually(t, what+" is committed", func() bool {
			for _, node := range live {
				if node.State() == raft.Leader {
					return node.Apply([]byte(what), patience).Error() == nil
				}
			}
			return false
		})
	}
	commit("one")
	commit("two")
	eventually(t, "all machines agree", func() bool {
		return machines[0].String() == machines[1].String() && machines[1].String() == machines[2].String() &&
			strings.HasSuffix(machines[0].String(), "two")
	})
	_, leader := nodes[0].LeaderWithID()
	live = nil
	for i, node := range nodes {
		if servers[i].ID != leader {
			live = append(live, node)
		} else if err := node.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
	}
	commit("three")
}
