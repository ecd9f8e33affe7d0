//go:build measure

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// bareRaft is the configuration of one node of the floor of changes: Raft's library with
// its log in a file, mutual TLS, and nothing else.
type bareRaft struct {
	Dir, Certs string
	Addresses  []string // of all nodes
	Self       int
	Entry      int // size of one, in bytes
}

// raftWork is what the leader is asked to do, a line on its standard input; it answers
// with how long each entry took.
type raftWork struct {
	Callers int
	Slice   time.Duration
}

// TestBenchRaft is a node of that floor. The first prints a line when it leads.
func TestBenchRaft(t *testing.T) {
	text := os.Getenv(floorConfig)
	if text == "" { // it is no test: TestBench starts it
		return
	}
	var c bareRaft
	must(t, json.Unmarshal([]byte(text), &c))
	r := c.start(t)
	in := bufio.NewScanner(os.Stdin)
	if c.Self == 0 {
		for !<-r.LeaderCh() { //nolint:revive // nothing to do but wait
		}
		fmt.Println("leads")
	}
	for in.Scan() {
		var w raftWork
		must(t, json.Unmarshal(in.Bytes(), &w))
		data := make([]byte, c.Entry)
		took, err := callFor(t.Context(), w.Slice, w.Callers, func(context.Context, int) error { return r.Apply(data, time.Second).Error() })
		must(t, err)
		out, err := json.Marshal(took)
		must(t, err)
		fmt.Println(string(out))
	}
	must(t, r.Shutdown().Error())
}

func (c *bareRaft) start(t *testing.T) *raft.Raft {
	t.Helper()
	own := c.Addresses[c.Self]
	config := floorTLS(t, c.Certs)
	l, err := tls.Listen("tcp", own, config)
	must(t, err)
	store, err := raftboltdb.New(raftboltdb.Options{ // as node/cluster's
		Path: filepath.Join(c.Dir, "raft.db"), BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	must(t, err)
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(own)
	rc.Logger = hclog.NewNullLogger()
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = time.Second, time.Second, time.Second
	rc.CommitTimeout, rc.MaxAppendEntries, rc.BatchApplyCh, rc.NoLegacyTelemetry = 10*time.Millisecond, 256, true, true // as node/cluster's
	rc.SnapshotThreshold = 1 << 40                                                                                      // never: a stricter floor
	snapshots := raft.NewInmemSnapshotStore()
	layer := raft.NewNetworkTransport(raftTLS{l, config}, 3, 3*time.Second, io.Discard) // as transport's
	if c.Self == 0 {
		var all raft.Configuration
		for _, a := range c.Addresses {
			all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(a), Address: raft.ServerAddress(a)})
		}
		must(t, raft.BootstrapCluster(rc, store, store, snapshots, layer, all))
	}
	r, err := raft.NewRaft(rc, forgetful{}, store, store, snapshots, layer)
	must(t, err)
	return r
}

// raftTLS is Raft's own transport over mutual TLS.
type raftTLS struct {
	net.Listener
	config *tls.Config
}

// Dial implements raft.StreamLayer.
func (l raftTLS) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(address), l.config)
}

// forgetful is a state machine without state.
type forgetful struct{}

func (forgetful) Apply(*raft.Log) any                 { return nil }
func (forgetful) ApplyBatch(logs []*raft.Log) []any   { return make([]any, len(logs)) }
func (forgetful) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("there is no state") }
func (forgetful) Restore(r io.ReadCloser) error       { return r.Close() }

var _ raft.BatchingFSM = forgetful{}

// bareRaft starts three nodes of Raft alone beside a cluster, whose leader commits entries
// of that size.
func (b *bench) bareRaft(c *testCluster, entry int) side {
	b.t.Helper()
	config := bareRaft{Certs: c.certs(), Entry: entry}
	for range 3 {
		config.Addresses = append(config.Addresses, freeAddress(b.t))
	}
	var leader *floor
	for i := range config.Addresses {
		config.Self, config.Dir = i, filepath.Join(c.dir, fmt.Sprint("bare-", i))
		must(b.t, os.Mkdir(config.Dir, 0o700))
		text, err := json.Marshal(config)
		must(b.t, err)
		if f := startFloor(b.t, "TestBenchRaft", string(text)); i == 0 {
			leader = f
		}
	}
	leader.line()
	return side{pid: leader.pid, drive: func(callers int) (took []time.Duration) {
		must(b.t, json.NewEncoder(leader.in).Encode(raftWork{callers, *benchSlice}))
		must(b.t, json.Unmarshal([]byte(leader.line()), &took))
		return took
	}}
}
