//go:build measure

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The measurements of the hot path (make bench).
var (
	benchOut     = flag.String("bench-out", "", "file for the results, JSON")
	benchVersion = flag.String("bench-version", "unknown", "what is measured")
	benchOnly    = flag.String("bench-only", ".", "regular expression: the groups that are measured")
	benchRounds  = flag.Int("bench-rounds", 5, "how often each is measured: the median counts")
	benchProfile = flag.String("bench-profile", "", "directory for profiles of the node's processors, one an operation")
	benchSlice   = flag.Duration("bench-slice", time.Second, "how long, each time")
	benchProgram = flag.String("bench-program", "", "kmsd to measure, to compare releases; empty: this one")
)

const (
	benchCallers = 64
	benchKeys    = 1000
	benchLimits  = "control_per_tenant: 0, restrict_per_tenant: 0, restrict_per_principal: 0"
)

// bench is a run of measurements.
type bench struct {
	*benchReport
	t *testing.T // of the group
}

// TestBench measures calls against their floors: alternating with them, on the same
// processors, several times.
func TestBench(t *testing.T) {
	only := regexp.MustCompile(*benchOnly)
	b := &bench{benchReport: newBenchReport(*benchVersion)}
	for _, group := range []struct {
		name string
		run  func()
	}{
		{"calls", b.calls},
		{"sharing", b.sharing},
		{"followers", b.followers},
		{"batch", b.batches},
		{"reads", b.reads},
		{"creating", b.creating},
		{"disabling", b.disabling},
		{"failover", b.failover},
		{"sealing", b.sealing},
	} {
		if only.MatchString(group.name) {
			t.Run(group.name, func(t *testing.T) { // its nodes end with it
				b.t = t
				group.run()
			})
		}
	}
	b.end(t, *benchOut)
}

// side is a server with those that call it.
type side struct {
	pid  int // of the server
	call func(ctx context.Context, i int) error
	// drive, instead of call, has the server call itself for a while, and gives how long
	// each call took.
	drive func(callers int) []time.Duration
}

// sample is what a side did in a while: medians, if of several.
type sample struct {
	rate     float64 // calls a second
	cpu      float64 // microseconds of the server's processor time a call
	p50, p99 float64 // milliseconds
}

// run has a side called for a while.
func (b *bench) run(s side, callers int) sample {
	b.t.Helper()
	drive := s.drive
	if drive == nil {
		drive = func(callers int) []time.Duration { return b.drive(s.call, callers) }
	}
	cpu, began := b.processor(s.pid), time.Now()
	all := drive(callers)
	elapsed, used, n := time.Since(began), b.processor(s.pid)-cpu, float64(len(all))
	slices.Sort(all)
	return sample{
		rate: n / elapsed.Seconds(), cpu: used.Seconds() * 1e6 / n,
		p50: percentile(all, 0.5).Seconds() * 1e3, p99: percentile(all, 0.99).Seconds() * 1e3,
	}
}

// drive makes calls for a while and gives how long each took.
func (b *bench) drive(call func(context.Context, int) error, callers int) []time.Duration {
	b.t.Helper()
	took, err := callFor(b.t.Context(), *benchSlice, callers, call)
	must(b.t, err)
	return took
}

// callFor has callers make calls for a while and gives how long each took.
func callFor(ctx context.Context, slice time.Duration, callers int, call func(context.Context, int) error) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	took, began := make([][]time.Duration, callers), time.Now()
	var work sync.WaitGroup
	for w := range callers {
		work.Go(func() {
			for ctx.Err() == nil && time.Since(began) < slice {
				at := time.Now()
				if err := call(ctx, int(next.Add(1))); err != nil {
					cancel(err)
					return
				}
				took[w] = append(took[w], time.Since(at))
			}
		})
	}
	work.Wait()
	return slices.Concat(took...), context.Cause(ctx)
}

// alternate runs sides in turn.
func (b *bench) alternate(callers int, sides ...side) []sample {
	b.t.Helper()
	turns := make([]func() sample, len(sides))
	for i, s := range sides {
		turns[i] = func() sample { return b.run(s, callers) }
	}
	return b.inTurn(turns...)
}

// inTurn measures each in turn, several times, after a turn that does not count.
func (b *bench) inTurn(turns ...func() sample) []sample {
	b.t.Helper()
	all := make([][]sample, len(turns))
	for round := range *benchRounds + 1 {
		for i, turn := range turns {
			runtime.GC() // what one has left is no other's
			if x := turn(); round > 0 {
				all[i] = append(all[i], x)
			}
		}
	}
	out := make([]sample, len(turns))
	for i, of := range all {
		pick := func(f func(sample) float64) float64 {
			var v []float64
			for _, x := range of {
				v = append(v, f(x))
			}
			return median(v)
		}
		out[i] = sample{
			rate: pick(func(x sample) float64 { return x.rate }), cpu: pick(func(x sample) float64 { return x.cpu }),
			p50: pick(func(x sample) float64 { return x.p50 }), p99: pick(func(x sample) float64 { return x.p99 }),
		}
	}
	return out
}

// processor is the processor time that a process has used so far, to the nanosecond: the
// clock of clock_getcpuclockid(3).
func (b *bench) processor(pid int) time.Duration {
	b.t.Helper()
	var ts unix.Timespec
	must(b.t, unix.ClockGettime(int32(^pid<<3|2), &ts)) //nolint:gosec // a process id has 22 bits
	return time.Duration(ts.Nano())
}

// benchRig is a cluster that is measured.
type benchRig struct {
	*testCluster
	metrics map[*process]string // addresses
	user    *client.Client
	keys    []string
}

// start starts nodes with the defaults' timing.
func (b *bench) start(nodes, keys int) *benchRig {
	b.t.Helper()
	r := &benchRig{testCluster: newCluster(b.t, nodes), metrics: map[*process]string{}}
	r.lease = cluster.DefaultLease
	for _, p := range r.nodes {
		r.metrics[p] = freeAddress(b.t)
		p.program = *benchProgram
		p.timing, p.renew, p.limits = "heartbeat: 1s, election: 1s", "1s", benchLimits
		p.extra = fmt.Sprintf("metrics: {listen: %q}\ndebug: {socket: %q}", r.metrics[p], p.path("d"))
	}
	r.begin()
	r.user = r.dial(userID, r.nodes[0])
	admin := r.dial(adminID, r.nodes[0]).Keys()
	for len(r.keys) < keys {
		k, err := admin.CreateKey(b.t.Context(), &pb.CreateKeyRequest{})
		must(b.t, err)
		r.keys = append(r.keys, k.GetKey().GetKeyId())
	}
	r.level(b.t.Context())
	return r
}

// count is the sum of a node's metric over all its labels.
func (r *benchRig) count(p *process, name string) (sum float64) {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+r.metrics[p]+"/metrics", http.NoBody)
	must(r.t, err)
	a, err := http.DefaultClient.Do(q)
	must(r.t, err)
	defer a.Body.Close() //nolint:errcheck // only read
	lines, found := bufio.NewScanner(a.Body), false
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if bare, _, _ := strings.Cut(series, "{"); bare != "quorumkms_"+name {
			continue
		}
		if at := strings.LastIndex(lines.Text(), "} "); at >= 0 { // labels may have spaces
			value = lines.Text()[at+2:]
		}
		v, err := strconv.ParseFloat(value, 64)
		must(r.t, err)
		sum, found = sum+v, true
	}
	if !found {
		r.t.Fatalf("%s has no metric %s", p.name, name)
	}
	return sum
}

// operation is a call, under one of the keys.
type operation struct {
	name              string
	request, response int // sizes of the messages, in bytes
	call              func(ctx context.Context, user *client.Client, key int) error
}

// operations are those that are measured, and their messages' sizes.
func (r *benchRig) operations() []operation {
	r.t.Helper()
	ctx, plaintext := r.t.Context(), []byte(strings.Repeat("p", 32))
	blobs := make([][]byte, len(r.keys))
	for i, key := range r.keys {
		blob, err := r.user.Encrypt(ctx, key, plaintext, nil)
		must(r.t, err)
		blobs[i] = blob
	}
	token := func(m proto.Message) int { // of a request, which has an answer's token
		return proto.Size(m)
	}
	dataKey, err := r.user.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: r.keys[0], Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256})
	must(r.t, err)
	sealed, err := r.user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: r.keys[0], Plaintext: plaintext})
	must(r.t, err)
	opened, err := r.user.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blobs[0]})
	must(r.t, err)
	seen := dataKey.GetIndexToken()
	return []operation{
		{
			"generate-data-key", token(&pb.GenerateDataKeyRequest{KeyId: r.keys[0], Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, IndexToken: seen}), proto.Size(dataKey),
			func(ctx context.Context, user *client.Client, key int) error {
				return second(user.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: r.keys[key], Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256}))
			},
		},
		{
			"encrypt-32", token(&pb.EncryptRequest{KeyId: r.keys[0], Plaintext: plaintext, IndexToken: seen}), proto.Size(sealed),
			func(ctx context.Context, user *client.Client, key int) error {
				return second(user.Encrypt(ctx, r.keys[key], plaintext, nil))
			},
		},
		{
			"decrypt-32", token(&pb.DecryptRequest{Ciphertext: blobs[0], IndexToken: seen}), proto.Size(opened),
			func(ctx context.Context, user *client.Client, key int) error {
				return second(user.Decrypt(ctx, blobs[key], nil))
			},
		},
	}
}

// echo is a floor with the user's certificate.
func (b *bench) echo(c *testCluster) (pid int, conn *grpc.ClientConn) {
	b.t.Helper()
	f := startFloor(b.t, "TestBenchEcho", c.certs())
	return f.pid, c.connect(f.line(), c.clientTLS(filepath.Join(c.certs(), filepath.Base(userID))))
}

// calls measures one node: its processor time and throughput beside an echo's, one key and
// many.
func (b *bench) calls() {
	r := b.start(1, benchKeys)
	node := r.nodes[0]
	pid := node.cmd.Process.Pid
	floor, conn := b.echo(r.testCluster)
	for _, op := range r.operations() {
		one := side{pid: pid, call: func(ctx context.Context, _ int) error { return op.call(ctx, r.user, 0) }}
		many := side{pid: pid, call: func(ctx context.Context, _ int) error { return op.call(ctx, r.user, rand.IntN(benchKeys)) }}
		bare := side{pid: floor, call: echoCall(conn, op.request, op.response)}
		b.profile(op.name, node, one)
		b.profile("random-keys."+op.name, node, many)
		x := b.alternate(benchCallers, bare, one, many)
		b.against(op.name+".cpu", x[1].cpu, x[0].cpu, "us/op", "<= 1.7")
		b.against(op.name+".throughput", x[1].rate, x[0].rate, "op/s", ">= 0.6")
		b.against(op.name+".p99", x[1].p99, x[0].p99, "ms", "")
		b.against("random-keys."+op.name+".cpu", x[2].cpu, x[0].cpu, "us/op", "<= 2.5")
		b.against("random-keys."+op.name+".throughput", x[2].rate, x[0].rate, "op/s", "")
	}
}

// sharing counts the HSM calls behind the calls of one caller, and of many.
func (b *bench) sharing() {
	r := b.start(1, 1)
	node := r.nodes[0]
	for _, op := range r.operations() {
		for _, callers := range []int{1, benchCallers} {
			before, messages, batches := r.count(node, "hsm_call_duration_seconds_count"), r.count(node, "hsm_batch_messages_sum"), r.count(node, "hsm_batch_messages_count")
			done := 0
			for range *benchRounds {
				done += len(b.drive(func(ctx context.Context, _ int) error { return op.call(ctx, r.user, 0) }, callers))
			}
			after := r.count(node, "hsm_call_duration_seconds_count")
			wanted := "<= 0.1"
			if callers == 1 {
				wanted = "<= 1.05" // the identity key signs the audit trail each second
			}
			b.alone(fmt.Sprintf("hsm-calls.per-%s.%d-callers", op.name, callers), (after-before)/float64(done), "calls/op", wanted)
			if callers > 1 {
				b.alone("batch.items."+op.name, (r.count(node, "hsm_batch_messages_sum")-messages)/(r.count(node, "hsm_batch_messages_count")-batches), "messages", "")
			}
		}
	}
}

// profile writes a profile of a node that is called, if that is wanted.
func (b *bench) profile(name string, p *process, s side) {
	b.t.Helper()
	if *benchProfile == "" {
		return
	}
	socket := p.path("d")
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer hc.CloseIdleConnections()
	var work sync.WaitGroup
	work.Go(func() {
		for range 5 {
			b.run(s, benchCallers)
		}
	})
	for _, kind := range []string{"profile", "allocs"} { // of the processors, and what was allocated
		work.Go(func() {
			q, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet,
				fmt.Sprintf("http://node/debug/pprof/%s?seconds=%d", kind, max(1, int(3*benchSlice.Seconds()))), http.NoBody)
			must(b.t, err)
			a, err := hc.Do(q)
			must(b.t, err)
			defer a.Body.Close() //nolint:errcheck // only read
			text, err := io.ReadAll(a.Body)
			must(b.t, err)
			must(b.t, os.WriteFile(filepath.Join(*benchProfile, name+"."+kind+".pprof"), text, 0o600))
		})
	}
	work.Wait()
}

// followers measures cryptography on a follower beside the leader's.
func (b *bench) followers() {
	r := b.start(3, 1)
	leader := r.leader(r.nodes[0])
	follower := r.nodes[slices.IndexFunc(r.nodes, func(p *process) bool { return p != leader })]
	op := r.operations()[0]
	of := func(p *process) side {
		user := r.dial(userID, p)
		return side{pid: p.cmd.Process.Pid, call: func(ctx context.Context, _ int) error { return op.call(ctx, user, 0) }}
	}
	peers := func() (sum float64) { // messages between nodes
		for _, p := range r.nodes {
			sum += r.count(p, "peer_calls_total")
		}
		return sum
	}
	x := b.alternate(benchCallers, of(leader), of(follower))
	b.against("follower.cpu", x[1].cpu, x[0].cpu, "us/op", "<= 1.1")
	b.against("follower.throughput", x[1].rate, x[0].rate, "op/s", "")
	at, before := time.Now(), peers()
	time.Sleep(*benchSlice)
	rest := (peers() - before) / time.Since(at).Seconds()
	var done atomic.Int64
	busy := of(follower)
	call := busy.call
	busy.call = func(ctx context.Context, i int) error { done.Add(1); return call(ctx, i) }
	at, before = time.Now(), peers()
	b.run(busy, benchCallers)
	loaded := (peers() - before) / time.Since(at).Seconds()
	b.against("follower.peer-calls", loaded, max(rest, 1), "1/s", "")
	b.alone("follower.peer-calls-per-op", max(0, loaded-rest)*benchSlice.Seconds()/float64(done.Load()), "calls/op", "<= 0.001")
}
