//go:build measure

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-metrics"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// scaleRig is a node's data directory under a member in this process: all of the node
// but its listeners and its key service. So many keys are made that calls over gRPC
// would take hours.
type scaleRig struct {
	t         *testing.T
	f         *figures
	node      *process
	partition *p11.Partition
	domain    fsm.ID // of the cluster
	makers    []*maker
	member    *cluster.Member
	ids       []fsm.ID
}

const (
	loaders      = 512 // keys under way at one time
	keyMakers    = 2   // processes that have the HSM make keys: SoftHSM serves the threads of one process one at a time
	noSnapshots  = 24 * time.Hour
	trailingLogs = 10240 // as by default
)

// newScaleRig founds a cluster of one node.
func newScaleRig(t *testing.T, f *figures, most int) *scaleRig {
	t.Helper()
	c := newCluster(t, 1)
	r := &scaleRig{t: t, f: f, node: c.nodes[0], ids: make([]fsm.ID, 0, most)}
	conf := strings.TrimPrefix(r.node.env[0], "SOFTHSM2_CONF=")
	must(t, os.Setenv("SOFTHSM2_CONF", conf))
	must(t, os.MkdirAll(r.node.path("data"), 0o700))
	var err error
	r.partition, err = p11.Open(t.Context(), p11.Config{Token: r.node.name, PIN: []byte(testPIN)})
	must(t, err)
	t.Cleanup(func() { must(t, r.partition.Close()) })
	f.Versions["hsm"] = strings.TrimSpace(r.partition.Info().Manufacturer) + ", " + strings.TrimSpace(r.partition.Info().Model)
	r.open()
	r.domain, err = r.member.Found(t.Context(), cluster.Founding{
		Operator: "spiffe://" + testDomain + operatorID, Administrator: "spiffe://" + testDomain + adminID, Lease: cluster.DefaultLease, NoRecovery: true,
	})
	must(t, err)
	return r
}

// open starts the member, as node.Run does.
func (r *scaleRig) open() {
	r.t.Helper()
	p := r.node
	var err error
	r.member, err = cluster.Open(r.t.Context(), cluster.Config{
		Name: p.name, TrustDomain: testDomain, DataDir: p.path("data"), PeerAddress: p.peer, ClientAddress: p.client,
		Pin: func() []byte { return nil }, Domain: r.partition,
		Transport: func(func(string, []byte) []byte) (raft.Transport, error) {
			_, transport := raft.NewInmemTransport(raft.ServerAddress(p.peer))
			return transport, nil
		},
		HandedOver: func(context.Context) error { return nil },
		Clock:      cluster.SystemClock{}, Now: time.Now,
		Raft: cluster.RaftTiming{
			Heartbeat: time.Second, Election: time.Second,
			SnapshotInterval: noSnapshots, SnapshotThreshold: 1 << 40, TrailingLogs: trailingLogs,
		},
		Lease: cluster.LeaseTiming{Renew: time.Second, Batch: 20 * time.Millisecond},
		Log:   slog.New(slog.DiscardHandler),
		Halt:  func(err error) { panic(err) },
	})
	must(r.t, err)
	if r.member.Joined() {
		for deadline := time.Now().Add(patience); r.member.Usable() != nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				r.t.Fatal("the member does not lead itself")
			}
		}
	}
}

func (r *scaleRig) close() {
	r.t.Helper()
	must(r.t, r.member.Close())
	r.member = nil
}

func (r *scaleRig) propose(ctx context.Context, command fsm.Command) error {
	_, err := r.member.Propose(ctx, fsm.Proposal{Principal: "spiffe://" + testDomain + adminID, Command: command})
	return err
}

// keyOf is the n-th key: names and tags as storage systems have them.
func (r *scaleRig) keyOf(n int, id fsm.ID, token []byte) *fsm.CreateKey {
	return &fsm.CreateKey{
		ID: id, Tenant: fsm.DefaultTenant, Description: fmt.Sprintf("volume %07d", n),
		Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric,
		Tags:    []fsm.Tag{{Key: "app", Value: fmt.Sprintf("database-%d", n%100)}, {Key: "zone", Value: string(rune('a' + n%3))}},
		Version: 1, Generation: 1, Token: token,
	}
}

func (r *scaleRig) aliasOf(n int, id fsm.ID) *fsm.CreateAlias {
	return &fsm.CreateAlias{AliasTarget: fsm.AliasTarget{Tenant: fsm.DefaultTenant, Name: fmt.Sprintf("alias/volume-%07d", n), Key: id}}
}

func (r *scaleRig) rotationOf(id fsm.ID, token []byte) *fsm.RotateKey {
	return &fsm.RotateKey{KeyRef: fsm.KeyRef{ID: id, Tenant: fsm.DefaultTenant}, Version: 2, Generation: 1, Cause: fsm.CauseOnDemand, Token: token}
}

// load makes keys until there are n, each with two tags, an alias and two versions that
// the HSM has made and wrapped: three entries of the log.
func (r *scaleRig) load(n int) {
	r.t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // this program's only; what is measured is measured without
	first := len(r.ids)
	for len(r.ids) < n {
		r.ids = append(r.ids, uuid.New())
	}
	ctx, fail := context.WithCancelCause(r.t.Context())
	defer fail(nil)
	makers := r.startMakers()
	made := make(chan wrappedKey, loaders)
	var making, work sync.WaitGroup
	for i, m := range makers {
		making.Go(func() {
			if err := m.make(ctx, r.ids, first+i, n, len(makers), made); err != nil {
				fail(err)
			}
		})
	}
	go func() { making.Wait(); close(made) }()
	var done atomic.Int64
	done.Store(int64(first))
	for range loaders {
		work.Go(func() {
			for k := range made {
				if err := r.create(ctx, k); err != nil {
					fail(fmt.Errorf("key %d: %w", k.n, err))
				}
				done.Add(1)
			}
		})
	}
	began, last, told := time.Now(), done.Load(), time.Now()
	finished := make(chan struct{})
	go func() { work.Wait(); close(finished) }()
	for tick := time.NewTicker(5 * time.Second); ; {
		select {
		case <-tick.C:
			now := done.Load()
			r.f.progress(int(now), "loading, %.0f keys a second", float64(now-last)/time.Since(told).Seconds())
			last, told = now, time.Now()
			continue
		case <-finished:
			tick.Stop()
		}
		break
	}
	if err := context.Cause(ctx); err != nil {
		r.t.Fatal(err)
	}
	r.f.add(n, "load: keys (3 entries, 2 wrapped keys each)", float64(n-first)/time.Since(began).Seconds(), "1/s")
}

func (r *scaleRig) create(ctx context.Context, k wrappedKey) error {
	id := r.ids[k.n]
	for _, command := range []fsm.Command{r.keyOf(k.n, id, k.tokens[0]), r.aliasOf(k.n, id), r.rotationOf(id, k.tokens[1])} {
		if err := r.propose(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// snapshotFile is the newest snapshot's state.
func (r *scaleRig) snapshotFile() string {
	r.t.Helper()
	all, err := filepath.Glob(filepath.Join(r.node.path("data"), "raft", "snapshots", "*", "state.bin"))
	must(r.t, err)
	newest, at := "", time.Time{}
	for _, path := range all {
		info, err := os.Stat(path)
		must(r.t, err)
		if info.ModTime().After(at) {
			newest, at = path, info.ModTime()
		}
	}
	if newest == "" {
		r.t.Fatal("there is no snapshot")
	}
	return newest
}

// applies is a sink of Raft's own measurements: how long its state machine works, batch
// by batch, and how long it takes to give a snapshot.
type applies struct {
	metrics.BlackholeSink
	mu       sync.Mutex
	batches  []time.Duration
	snapshot time.Duration
}

func (a *applies) AddSample(key []string, value float32) { a.AddSampleWithLabels(key, value, nil) }

func (a *applies) AddSampleWithLabels(key []string, value float32, _ []metrics.Label) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch took := time.Duration(float64(value) * 1e6); strings.Join(key, ".") {
	case "raft.fsm.applyBatch":
		a.batches = append(a.batches, took)
	case "raft.fsm.snapshot":
		a.snapshot = took
	}
}

// take gives what has been seen since it was called last.
func (a *applies) take() []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.batches
	a.batches = nil
	return out
}

// watchApplies makes Raft's measurements arrive here.
func watchApplies(t *testing.T) *applies {
	t.Helper()
	a := new(applies)
	config := metrics.DefaultConfig("")
	config.EnableHostname, config.EnableRuntimeMetrics = false, false
	_, err := metrics.NewGlobal(config, a)
	must(t, err)
	return a
}
