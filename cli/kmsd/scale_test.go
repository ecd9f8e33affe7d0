//go:build measure

package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The measurements of a node with many keys (make bench-scale).
var (
	scaleKeys    = flag.String("scale-keys", "100000,1000000", "sizes, ascending")
	scaleOut     = flag.String("scale-out", "", "file for the figures, JSON")
	scaleVersion = flag.String("scale-version", "unknown", "what is measured")
	scaleLoaded  = flag.Int("scale-max-keys", 4096, "hsm.max_keys of the node that serves: keys loaded at one time")
	scaleLoad    = flag.Bool("scale-only-load", false, "load, and measure nothing else")
	scaleFor     = flag.Duration("scale-for", 5*time.Second, "how long a throughput is measured")
)

const (
	callers     = 16 // at work at one time where throughput is measured
	hotKeys     = 100
	appliedSet  = 3000 // keys made in the machine that is measured alone
	probeEvery  = 5 * time.Millisecond
	calmFor     = 3 * time.Second // how long a node is watched at rest
	listedPages = 100
)

// TestScale loads a node with more and more keys and measures it at each size: the log
// and the state in this process, everything that is served with kmsd as a process of
// its own, by the SDK over TLS on loopback.
func TestScale(t *testing.T) {
	f := newFigures(*scaleVersion)
	var sizes []int
	for text := range strings.SplitSeq(*scaleKeys, ",") {
		n, err := strconv.Atoi(text)
		must(t, err)
		sizes = append(sizes, n)
	}
	seen := watchApplies(t)
	r := newScaleRig(t, f, slices.Max(sizes))
	empty := heap()
	for i, n := range sizes {
		if i > 0 {
			r.open()
		}
		r.load(n)
		if *scaleLoad {
			r.close()
			continue
		}
		r.measureSnapshot(seen)
		r.measureMemory(empty)
		r.measureMachine()
		r.measureService()
		f.write(t, *scaleOut)
	}
	for _, m := range r.makers {
		m.end()
	}
	f.end(t, *scaleOut)
}

// probe repeats a call every now and then until ctx ends.
func probe(ctx context.Context, call func() error) (took []time.Duration, err error) {
	for tick := time.NewTicker(probeEvery); ctx.Err() == nil; {
		began := time.Now()
		if err := call(); err != nil {
			tick.Stop()
			return took, err
		}
		took = append(took, time.Since(began))
		<-tick.C
	}
	return took, nil
}

// measureSnapshot takes a snapshot while keys are changed, and compares with how
// changes fare at rest.
func (r *scaleRig) measureSnapshot(seen *applies) {
	r.t.Helper()
	n := len(r.ids)
	change := func() error {
		i := rand.IntN(n)
		return r.propose(r.t.Context(), &fsm.UpdateKeyDescription{
			KeyRef: fsm.KeyRef{ID: r.ids[i], Tenant: fsm.DefaultTenant}, Description: fmt.Sprintf("volume %07d", i),
		})
	}
	watch := func(what string, during func()) {
		runtime.GC()
		seen.take()
		ctx, stop := context.WithCancel(r.t.Context())
		defer stop()
		var took []time.Duration
		var err error
		var work sync.WaitGroup
		work.Go(func() { took, err = probe(ctx, change) })
		during()
		stop()
		work.Wait()
		must(r.t, err)
		r.f.latencies(n, "Apply in Raft, "+what, seen.take(), time.Microsecond)
		r.f.latencies(n, "a change through the log, "+what, took, time.Millisecond)
	}
	watch("at rest", func() { time.Sleep(calmFor) })
	watch("while a snapshot is taken", func() {
		x, err := r.member.Raft()
		must(r.t, err)
		began := time.Now()
		must(r.t, x.Snapshot().Error())
		r.f.add(n, "snapshot: check, write, sync, read back, compact", time.Since(began).Seconds(), "s")
	})
	info, err := os.Stat(r.snapshotFile())
	must(r.t, err)
	r.f.add(n, "snapshot: Raft's state machine stands still", seen.snapshot.Seconds()*1e6, "us")
	r.f.add(n, "snapshot: size", float64(info.Size())/1e6, "MB")
	r.f.add(n, "snapshot: size a key", float64(info.Size())/float64(n), "B")
}

// measureMemory closes the member and takes its state apart.
func (r *scaleRig) measureMemory(empty int64) {
	r.t.Helper()
	n := len(r.ids)
	r.f.add(n, "memory a key, of the member", float64(heap()-empty)/float64(n), "B")
	s := r.member.State()
	r.close()
	all := heap()
	keys := s.Keys(fsm.DefaultTenant, fsm.ID{}, n+1)
	aliases := s.Aliases(fsm.DefaultTenant, "", n+1)
	if len(keys) != n || len(aliases) != n {
		r.t.Fatalf("%d keys, %d aliases; want %d of each", len(keys), len(aliases), n)
	}
	keys, aliases = slices.Clip(slices.Clone(keys)), slices.Clip(slices.Clone(aliases))
	runtime.KeepAlive(s)
	s = nil //nolint:wastedassign // the heap is measured
	pointers := int64(cap(keys)+cap(aliases)) * 8
	records := heap() - pointers
	r.f.add(n, "memory a key, of the state: all", float64(all-empty)/float64(n), "B")
	r.f.add(n, "memory a key, of the state: its indexes", float64(all-records)/float64(n), "B")
	runtime.KeepAlive(keys)
	runtime.KeepAlive(aliases)
}

// measureMachine restores a machine from the snapshot and applies entries to it one at
// a time, each verified, applied and published.
func (r *scaleRig) measureMachine() {
	r.t.Helper()
	n := len(r.ids)
	key, err := r.partition.LogKey(r.t.Context(), [16]byte(r.domain))
	must(r.t, err)
	before := heap()
	m := fsm.NewMachine(key, func(err error) { panic(err) })
	file, err := os.Open(r.snapshotFile())
	must(r.t, err)
	began := time.Now()
	must(r.t, m.Restore(file))
	r.f.add(n, "restore of a snapshot: read, verify, check", time.Since(began).Seconds(), "s")
	r.f.add(n, "memory a key, of the state restored: all", float64(heap()-before)/float64(n), "B")
	token := make([]byte, 154) // as long as those of the HSM
	kinds := map[string][]time.Duration{}
	index := m.State().Index()
	apply := func(kind string, command fsm.Command) {
		raw, err := fsm.EncodeEntry(fsm.Entry{
			Principal: "spiffe://" + testDomain + adminID, Proposer: r.node.name, Time: time.Now().UnixNano(),
		}, command, key)
		must(r.t, err)
		index++
		l := &raft.Log{Index: index, Term: m.State().Term(), Type: raft.LogCommand, Data: raw}
		began := time.Now()
		o := m.Apply(l).(fsm.Outcome)
		kinds[kind] = append(kinds[kind], time.Since(began))
		must(r.t, o.Err)
	}
	for i := range appliedSet {
		id, number := uuid.New(), 9_000_000+i
		apply("CreateKey", r.keyOf(number, id, token))
		apply("CreateAlias", r.aliasOf(number, id))
		apply("RotateKey", r.rotationOf(id, token))
	}
	for _, kind := range []string{"CreateKey", "CreateAlias", "RotateKey"} {
		r.f.latencies(n, "Apply of one entry, "+kind, kinds[kind], time.Microsecond)
	}
}

// service is the SDK at work with a real node.
type service struct {
	*scaleRig
	admin, user *client.Client
	order       []int // keys in random order
	mu          sync.Mutex
	blobs       [][]byte // data keys under keys in that order
}

// measureService runs kmsd on the data directory.
func (r *scaleRig) measureService() {
	r.t.Helper()
	n, p, ctx := len(r.ids), r.node, r.t.Context()
	p.timing, p.renew, p.raft = "heartbeat: 1s, election: 1s", "1s", ", snapshot_interval: "+noSnapshots.String()
	loaded := min(*scaleLoaded, max(16, n/20))
	p.hsm, p.limits = fmt.Sprintf(", max_keys: %d", loaded), "control_per_tenant: 0"
	p.configure("")
	x := &service{scaleRig: r, admin: p.c.dial(adminID, p), user: p.c.dial(userID, p), order: rand.Perm(n)}
	began := time.Now()
	p.start()
	for {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, _, err := x.user.GenerateDataKey(call, r.ids[0].String(), nil)
		cancel()
		if err == nil {
			break
		}
		select {
		case <-p.exited:
			r.t.Fatal(p.output())
		default:
		}
		if time.Since(began) > 5*time.Minute {
			r.t.Fatalf("%v\n%s", err, p.output())
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.f.add(n, "restart: from exec to the first data key", time.Since(began).Seconds(), "s")
	r.f.add(n, "restart: resident memory of kmsd afterwards", x.resident("VmRSS"), "MB")
	r.f.add(n, "restart: most resident memory of kmsd", x.resident("VmHWM"), "MB")
	x.throughput(ctx, loaded)
	x.latency(ctx)
	p.terminate()
}

func (x *service) resident(what string) float64 {
	fields := strings.Fields(procField(fmt.Sprintf("/proc/%d/status", x.node.cmd.Process.Pid), what))
	if len(fields) == 0 {
		return 0
	}
	kB, _ := strconv.ParseFloat(fields[0], 64)
	return kB / 1e3
}

// rate makes calls from several goroutines for a while; call makes the i-th.
func (x *service) rate(ctx context.Context, name string, call func(ctx context.Context, i int) error) {
	x.t.Helper()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var all []time.Duration
	next := 0
	began := time.Now()
	var work sync.WaitGroup
	for range callers {
		work.Go(func() {
			for ctx.Err() == nil && time.Since(began) < *scaleFor {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				at := time.Now()
				if err := call(ctx, i); err != nil {
					cancel(fmt.Errorf("%s %d: %w", name, i, err))
					return
				}
				mu.Lock()
				all = append(all, time.Since(at))
				mu.Unlock()
			}
		})
	}
	work.Wait()
	took := time.Since(began)
	if err := context.Cause(ctx); err != nil {
		x.t.Fatal(err)
	}
	n := len(x.ids)
	x.f.add(n, name, float64(len(all))/took.Seconds(), "1/s")
	x.f.latencies(n, name+",", all, time.Millisecond)
}

func (x *service) throughput(ctx context.Context, loaded int) {
	x.t.Helper()
	hot := func(ctx context.Context, i int) error {
		_, _, err := x.user.GenerateDataKey(ctx, x.ids[x.order[i%hotKeys]].String(), nil)
		return err
	}
	x.rate(ctx, fmt.Sprintf("GenerateDataKey, %d keys that stay loaded", hotKeys), hot)
	plain := sync.Map{}
	x.rate(ctx, "GenerateDataKey, keys in random order, none loaded", func(ctx context.Context, i int) error {
		key, blob, err := x.user.GenerateDataKey(ctx, x.ids[x.order[i%len(x.order)]].String(), nil)
		if err == nil {
			x.mu.Lock()
			x.blobs = append(x.blobs, blob)
			x.mu.Unlock()
			plain.Store(string(blob), key)
		}
		return err
	})
	for len(x.blobs) < loaded+10*callers { // so few that their keys would stay loaded
		_, blob, err := x.user.GenerateDataKey(ctx, x.ids[x.order[len(x.blobs)%len(x.order)]].String(), nil)
		must(x.t, err)
		x.blobs = append(x.blobs, blob)
	}
	x.rate(ctx, "Decrypt, keys in random order, none loaded", func(ctx context.Context, i int) error {
		blob := x.blobs[i%len(x.blobs)]
		key, err := x.user.DecryptDataKey(ctx, blob, nil)
		if want, known := plain.Load(string(blob)); err == nil && known && !bytes.Equal(key, want.([]byte)) {
			return fmt.Errorf("opened as another key")
		}
		return err
	})
}

// latency measures single calls at rest, and while all keys are listed.
func (x *service) latency(ctx context.Context) {
	x.t.Helper()
	n := len(x.ids)
	keys := x.admin.Keys()
	describe := func() error {
		return second(keys.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: x.ids[rand.IntN(n)].String()}))
	}
	byAlias := func() error {
		return second(keys.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: fmt.Sprintf("alias/volume-%07d", rand.IntN(n))}))
	}
	decrypt := func() error {
		return second(x.user.DecryptDataKey(ctx, x.blobs[rand.IntN(len(x.blobs))], nil))
	}
	watch := func(what string, during func()) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		calls := []struct {
			name string
			call func() error
			took []time.Duration
			err  error
		}{{name: "DescribeKey by id", call: describe}, {name: "DescribeKey by alias", call: byAlias}, {name: "Decrypt", call: decrypt}}
		var work sync.WaitGroup
		for i := range calls {
			c := &calls[i]
			work.Go(func() { c.took, c.err = probe(ctx, c.call) })
		}
		during()
		stop()
		work.Wait()
		for _, c := range calls {
			must(x.t, c.err)
			x.f.latencies(n, c.name+", "+what, c.took, time.Millisecond)
		}
	}
	pages, listed, largest := x.list(ctx, listedPages)
	x.f.latencies(n, "ListKeys, a page of 1000", pages, time.Millisecond)
	x.f.add(n, "ListKeys, keys of such a page", float64(largest), "keys")
	watch("at rest", func() { time.Sleep(calmFor) })
	watch("while all keys are listed", func() {
		began := time.Now()
		if _, listed, _ = x.list(ctx, n); listed != n {
			x.t.Errorf("%d of %d keys listed", listed, n)
		}
		took := time.Since(began)
		x.f.add(n, "ListKeys of all keys: time", took.Seconds(), "s")
		x.f.add(n, "ListKeys of all keys: keys", float64(listed)/took.Seconds(), "1/s")
	})
}

// list goes through pages from the beginning.
func (x *service) list(ctx context.Context, most int) (took []time.Duration, listed, largest int) {
	x.t.Helper()
	keys := x.admin.Keys()
	for marker := ""; len(took) < most; {
		began := time.Now()
		r, err := keys.ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, Marker: marker})
		must(x.t, err)
		took = append(took, time.Since(began))
		listed, largest = listed+len(r.GetKeys()), max(largest, len(r.GetKeys()))
		if marker = r.GetNextMarker(); marker == "" {
			break
		}
	}
	return took, listed, largest
}
