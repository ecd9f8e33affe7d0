package nodetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

var (
	seeds    = flag.Int("sim.seeds", 2, "how many seeds to run")
	first    = flag.Uint64("sim.first", 1, "first seed")
	duration = flag.Duration("sim.duration", 20*time.Second, "virtual time of faults, each seed")
	machines = flag.Int("sim.nodes", 0, "voters; 0: three, with some seeds five or with a non-voter")
	keep     = flag.String("sim.dir", "", "where failures are saved; default: a temporary directory")
	reruns   = flag.Int("sim.reruns", 200, "how often a seed that failed is run again")
	rerunFor = flag.Duration("sim.rerunfor", 3*time.Minute, "real time that reruns of one seed may take")
)

// outcome is what one run of a seed gave.
type outcome struct {
	violations []history.Violation
	broken     error
	summary    history.Summary
	counts     map[string]int
	virtual    time.Duration
	save       func(dir string) error
}

func (o outcome) failed() bool { return len(o.violations) > 0 || o.broken != nil }

func (o outcome) String() string {
	var b strings.Builder
	if o.broken != nil {
		fmt.Fprintf(&b, "broken: %v\n", o.broken)
	}
	for i, v := range o.violations {
		if i == 10 {
			fmt.Fprintf(&b, "… %d more\n", len(o.violations)-i)
			break
		}
		fmt.Fprintln(&b, v)
	}
	return b.String()
}

// TestSim runs seeds: a cluster under a schedule of faults, with clients whose history
// is judged.
func TestSim(t *testing.T) {
	var mu sync.Mutex
	var total history.Summary
	var virtual time.Duration
	counts := map[string]int{}
	t.Run("seeds", func(t *testing.T) {
		for seed := *first; seed < *first+uint64(*seeds); seed++ { // a small count
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				o := simulate(t, seed)
				mu.Lock()
				defer mu.Unlock()
				total.Add(o.summary)
				virtual += o.virtual
				for k, n := range o.counts {
					counts[k] += n
				}
				if o.failed() {
					report(t, seed, o)
				}
			})
		}
	})
	summarize(*seeds, virtual, total, counts)
	if total.Released == 0 || total.Waited(time.Second) == 0 || total.Rights == 0 || total.Lacking == 0 {
		t.Errorf("the runs prove nothing: %d uses released, %d restrictions had to wait, %d uses had a right that they needed, %d lacked one",
			total.Released, total.Waited(time.Second), total.Rights, total.Lacking)
	}
}

// summarize prints what the runs are worth.
func summarize(seeds int, virtual time.Duration, total history.Summary, counts map[string]int) {
	fmt.Printf("%d seeds, %s of virtual time\n%s\n", seeds, virtual.Round(time.Second), total)
	var faults, events []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		line := fmt.Sprintf("%s %d", k, counts[k])
		if slices.ContainsFunc(chances, func(c chance) bool { return string(c.kind) == k }) {
			faults = append(faults, line)
		} else {
			events = append(events, line)
		}
	}
	fmt.Printf("faults: %s\nevents: %s\n", strings.Join(faults, ", "), strings.Join(events, ", "))
}

// report saves the trace of a failure and tells how often it comes again.
func report(t *testing.T, seed uint64, o outcome) {
	dir := *keep
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "quorumkms-sim")
	}
	dir = filepath.Join(dir, fmt.Sprintf("seed-%d", seed))
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = o.save(dir)
	}
	t.Errorf("seed %d fails; its trace is in %s (%v)\n%s", seed, dir, err, o)
	again, runs := 0, 0
	for began := time.Now(); runs < *reruns && time.Since(began) < *rerunFor; runs++ {
		if simulate(t, seed).failed() {
			again++
		}
	}
	t.Logf("seed %d run again %d times: it failed %d times", seed, runs, again)
}

// sizes are the voters and non-voters of a seed.
func sizes(seed uint64) (voters, nonVoters int) {
	switch {
	case *machines != 0:
		return *machines, 0
	case seed%5 == 0:
		return 5, 0
	case seed%4 == 0:
		return 3, 1
	}
	return 3, 0
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64) outcome {
	var o outcome
	var h history.History
	dir := t.TempDir()
	voters, nonVoters := sizes(seed)
	faults := schedule(seed, voters+nonVoters, *duration)
	synctest.Test(t, func(t *testing.T) {
		options := Defaults(seed, voters)
		options.NonVoters, options.Drift = nonVoters, drifts(seed)
		start := time.Now()
		c, err := New(dir, options)
		if err != nil {
			t.Fatal(err)
		}
		err = torment(c, seed, faults)
		o.virtual = time.Since(start)
		c.Close()
		h = c.History.History()
		o.broken, o.counts = errors.Join(err, c.Broken()), c.Trace.Counts()
		o.save = func(dir string) error { return save(dir, c, h, faults, o) }
	})
	o.violations = history.Check(h, history.Rules{Slack: driftSlack})
	o.summary = history.Summarize(h)
	return o
}

// driftSlack is what 100 ms on a slow clock are longer in true time.
const driftSlack = 12 * time.Millisecond

// drifts draws the nodes' clocks: up to 10 % fast or slow, in turn.
func drifts(seed uint64) func(int) Drift {
	return func(number int) Drift {
		random := rand.New(rand.NewPCG(seed, uint64(number)+0xc10c)) // a small count
		return Drift{Rate: 0.9 + random.Float64()*0.2, Period: 20 * time.Second}
	}
}

// torment runs faults and clients, heals, and reads everything at the end.
func torment(c *Cluster, seed uint64, faults []fault) error {
	n := &nemesis{cluster: c}
	w := newWorkload(c, n, seed)
	if err := w.prepare(); err != nil {
		return err
	}
	w.start()
	n.run(faults)
	w.stop()
	n.mend()
	if err := c.Await(time.Minute, c.Healthy); err != nil {
		return fmt.Errorf("the cluster did not recover: %w", err)
	}
	return w.finish()
}

func save(dir string, c *Cluster, h history.History, faults []fault, o outcome) error {
	f, err := os.Create(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		return err
	}
	return errors.Join(h.Save(f), f.Close(), c.Trace.Save(dir),
		os.WriteFile(filepath.Join(dir, "schedule.txt"), []byte(describe(faults)), 0o600),
		os.WriteFile(filepath.Join(dir, "violations.txt"), []byte(o.String()), 0o600))
}

// workload is what the clients do.
type workload struct {
	cluster *Cluster
	nemesis *nemesis
	seed    uint64
	done    chan struct{}
	clients sync.WaitGroup

	under chan struct{} // uses under way
	iced  fsm.ID        // a key of a tenant that is frozen now and then

	mu   sync.Mutex
	keys []fsm.ID
	held [granters]access // what is used by a grant at present
}

// access is a key and what its use needs besides.
type access struct {
	key fsm.ID
	by  []Right
}

const (
	users    = 4 // sessions of cryptography
	granters = 3 // sessions of grants

	frozen Tenant = "frozen" // now and then

	admins  = 4 // sessions of writes
	readers = 3 // sessions of reads
	keys    = 6 // at the beginning
	maxUses = 64
)

func newWorkload(c *Cluster, n *nemesis, seed uint64) *workload {
	return &workload{cluster: c, nemesis: n, seed: seed, done: make(chan struct{}), under: make(chan struct{}, maxUses)}
}

func (w *workload) prepare() error {
	w.iced = uuid.New()
	create := command(history.Create, w.iced).(*fsm.CreateKey)
	create.Tenant = string(frozen)
	for _, c := range []fsm.Command{&fsm.CreateTenant{Name: string(frozen), Administrator: operator}, create} {
		ctx, cancel := context.WithTimeout(w.cluster.ctx, time.Minute)
		err := w.cluster.Propose(ctx, c)
		cancel()
		if err != nil {
			return err
		}
	}
	client, random := w.cluster.NewClient(), rand.New(rand.NewPCG(w.seed, 3))
	for range keys {
		id := uuid.New()
		if err := client.Write(history.Create, id, w.cluster.anyNode(random)); err != nil {
			return err
		}
		w.keys = append(w.keys, id)
	}
	return nil
}

func (w *workload) key(random *rand.Rand) fsm.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys[random.IntN(len(w.keys))]
}

// each runs f again and again, with pauses of up to think.
func (w *workload) each(number uint64, think time.Duration, f func(client *Client, random *rand.Rand)) {
	client, random := w.cluster.NewClient(), rand.New(rand.NewPCG(w.seed, number))
	w.clients.Go(func() {
		for {
			select {
			case <-time.After(time.Duration(random.Int64N(int64(think)))):
			case <-w.done:
				return
			}
			f(client, random)
		}
	})
}

func (w *workload) start() {
	for i := range uint64(users) {
		w.each(100+i, 150*time.Millisecond, func(client *Client, random *rand.Rand) {
			w.use(client, random, w.draw(random), w.nemesis.pauses(random))
		})
	}
	for i := range granters {
		grantee := newGrantee()
		w.each(400+uint64(i), time.Second, func(client *Client, random *rand.Rand) { // a small count
			w.mu.Lock()
			present := w.held[i]
			w.mu.Unlock()
			next := w.grant(client, random, present, &grantee)
			w.mu.Lock()
			w.held[i] = next
			w.mu.Unlock()
		})
	}
	w.each(500, 15*time.Second, func(client *Client, random *rand.Rand) {
		w.toggle(client, random, frozen, access{w.iced, []Right{frozen}})
	})
	for i := range uint64(admins) {
		w.each(200+i, 2*time.Second, w.administer)
	}
	for i := range uint64(readers) {
		w.each(300+i, 500*time.Millisecond, func(client *Client, random *rand.Rand) {
			n, key := w.cluster.anyNode(random)(), w.key(random)
			if random.IntN(3) == 0 {
				client.QuorumRead(n, key)
			} else {
				client.Read(n, key)
			}
		})
	}
}

// draw is what a user does next: with a key of which it may, or by a grant.
func (w *workload) draw(random *rand.Rand) access {
	switch n := random.IntN(8); n {
	case 0:
		return access{w.iced, []Right{frozen}}
	case 1, 2, 3:
		w.mu.Lock()
		a := w.held[n%granters]
		w.mu.Unlock()
		if a.by != nil {
			return a
		}
	}
	return access{key: w.key(random)}
}

// use begins a use on any node.
func (w *workload) use(client *Client, random *rand.Rand, a access, p Pauses) {
	n := w.cluster.anyNode(random)()
	select {
	case w.under <- struct{}{}:
		w.clients.Go(func() {
			defer func() { <-w.under }()
			_ = client.Use(n, a.key, p, a.by...) // recorded
		})
	default:
	}
}

// atOnce uses on some nodes what was given or taken just now.
func (w *workload) atOnce(client *Client, random *rand.Rand, a access) {
	for range 3 {
		w.use(client, random, a, Pauses{})
	}
}

// newGrantee is a principal of which nobody has heard.
func newGrantee() Principal {
	return Principal("spiffe://" + trustDomain + "/tenant/isv/user/" + uuid.NewString())
}

// grant takes one step in the life of a grant: it is made, or its grantee is disabled
// for a moment, or it is revoked.
func (w *workload) grant(client *Client, random *rand.Rand, present access, grantee *Principal) access {
	nodes := w.cluster.anyNode(random)
	switch {
	case present.by == nil:
		key, tenant := w.iced, string(frozen)
		if random.IntN(2) == 0 {
			key, tenant = w.key(random), fsm.DefaultTenant
		}
		g := NewGrant(key, tenant, *grantee)
		present = access{key, []Right{*grantee, g}}
		if key == w.iced {
			present.by = append(present.by, frozen)
		}
		if outcomeOf(client.Give(g, nodes)) == history.Refused {
			return access{}
		}
	case random.IntN(4) == 0:
		if !w.toggle(client, random, *grantee, present) {
			*grantee = newGrantee() // of the old one nobody knows for sure
			return access{}
		}
		return present
	default:
		_ = client.Take(present.by[1], nodes) // recorded
		w.atOnce(client, random, present)
		return access{}
	}
	w.atOnce(client, random, present)
	return present
}

// toggle takes a right and gives it back; false if that may not have happened.
func (w *workload) toggle(client *Client, random *rand.Rand, r Right, a access) bool {
	nodes := w.cluster.anyNode(random)
	_ = client.Take(r, nodes) // recorded
	w.atOnce(client, random, a)
	if outcomeOf(client.Give(r, nodes)) == history.OK {
		return true
	}
	return outcomeOf(client.Give(r, nodes)) == history.OK
}

// administer writes once. Keys come back from Disabled soon, from Pending later.
func (w *workload) administer(client *Client, random *rand.Rand) {
	kind, id := drawKind(random), w.key(random)
	if kind == history.Create {
		id = uuid.New()
	}
	err := client.Write(kind, id, w.cluster.anyNode(random))
	if kind == history.Create && outcomeOf(err) != history.Failed {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.keys = append(w.keys, id)
	}
}

// drawKind draws a write: Enable more often than what forbids.
func drawKind(random *rand.Rand) history.Kind {
	n := random.IntN(20)
	for _, k := range []struct {
		kind  history.Kind
		parts int
	}{{history.Disable, 4}, {history.Enable, 8}, {history.Schedule, 1}, {history.Cancel, 4}, {history.Touch, 1}} {
		if n -= k.parts; n < 0 {
			return k.kind
		}
	}
	return history.Create
}

func (w *workload) stop() {
	close(w.done)
	w.clients.Wait()
}

// finish reads every key on every node once all have caught up.
func (w *workload) finish() error {
	c := w.cluster
	err := c.Await(time.Minute, func() error {
		latest := uint64(0)
		for _, n := range c.Nodes {
			if n.Member() == nil {
				return errDown
			}
			latest = max(latest, n.Member().State().Index())
		}
		for _, n := range c.Nodes {
			if n.Member().State().Index() != latest {
				return fmt.Errorf("%s is at %d of %d", n.Name, n.Member().State().Index(), latest)
			}
		}
		return nil
	})
	client := c.NewClient()
	for _, id := range w.keys {
		client.Final(id)
	}
	for _, a := range w.held {
		for _, n := range c.Nodes {
			if a.by == nil {
				continue
			}
			_ = client.Use(n, a.key, Pauses{}, a.by...) // recorded
		}
	}
	return err
}

// pauses draws how an operation is held up by the pauses under way.
func (n *nemesis) pauses(random *rand.Rand) Pauses {
	n.mu.Lock()
	defer n.mu.Unlock()
	var p Pauses
	for _, f := range n.paused {
		if random.Float64() > f.part {
			continue
		}
		long := time.Duration(random.Int64N(int64(9 * time.Second)))
		switch random.IntN(4) {
		case 0:
			p.Work = long
		case 1:
			p.Lease = long
		case 2:
			p.HandOver = long
		case 3:
			p.State = long
		}
	}
	return p
}
