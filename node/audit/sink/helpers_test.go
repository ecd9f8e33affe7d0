package sink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

const (
	testNode = "kms-1.0a1b2c"
	patience = 90 * time.Second // for conditions on a slow machine
)

func quick() pace {
	return pace{
		failing: time.Minute, look: time.Millisecond, attempt: patience, again: time.Millisecond, longest: 5 * time.Millisecond,
		save: time.Millisecond, abandon: patience,
	}
}

// clock stands still until it is told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a trail with sinks.
type rig struct {
	t     *testing.T
	dir   string
	clock *clock
	pace  pace
	trail *audit.Log
	key   key
	set   *Set
	stop  func()
}

// key is that of sealed segments, which are what was sealed.
type key struct{ refused atomic.Bool }

func (k *key) OpenSegment(_ context.Context, _ int64, sealed io.Reader) (io.Reader, error) {
	if k.refused.Load() {
		return nil, fmt.Errorf("%w: key is disabled", trail.ErrSealed)
	}
	return sealed, nil
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, pace: quick()}
	r.open()
	t.Cleanup(func() {
		r.end()
		must(t, r.trail.Close())
	})
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	r.trail, err = audit.Open(audit.Config{Dir: r.dir, Node: testNode, Now: r.clock.Now, Opener: &r.key, Log: slog.New(slog.DiscardHandler)})
	must(r.t, err)
}

func (r *rig) config(sinks ...Options) Config {
	for i := range sinks {
		sinks[i].Complete()
	}
	Check(sinks, "/var/lib/quorumkms", func(wrong bool, format string, args ...any) {
		if wrong {
			r.t.Errorf(format, args...)
		}
	})
	return Config{
		Sinks: sinks, Trail: r.trail, Dir: r.dir, Cursors: filepath.Join(r.dir, "sinks"), Node: testNode, Name: "kms-1", Now: r.clock.Now,
		Log: slog.New(slog.DiscardHandler),
	}
}

// begin runs sinks.
func (r *rig) begin(sinks ...Options) {
	r.t.Helper()
	r.beginWith(newTarget, sinks...)
}

func (r *rig) beginWith(make func(Config, Options) (target, error), sinks ...Options) {
	r.t.Helper()
	var err error
	r.set, err = open(r.config(sinks...), r.pace, make)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := background(func() { r.set.Run(ctx) })
	r.stop = func() {
		cancel()
		<-done
	}
}

// background runs f, and closes what it returns afterwards.
func background(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// end ends the sinks, as when the node stops.
func (r *rig) end() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
}

func (r *rig) write(n int) {
	r.t.Helper()
	for range n {
		must(r.t, r.trail.Record(audit.Event{Name: "Encrypt", Principal: "spiffe://kms.test/tenant/default/user/storage-1", Class: "user", Result: audit.Success}))
	}
}

func (r *rig) stats() Stats { return r.set.Stats()[0] }

// lines are those of the trail.
func (r *rig) lines() (out []string) {
	r.t.Helper()
	segments, err := trail.Segments(r.dir)
	must(r.t, err)
	for _, s := range segments {
		in, err := s.Open(r.t.Context(), &r.key)
		must(r.t, err)
		_, err = trail.Lines(in, func(line []byte) (bool, error) {
			out = append(out, string(line))
			return true, nil
		})
		must(r.t, err)
		must(r.t, in.Close())
	}
	return out
}

func (r *rig) events(name string) (out []audit.Event) {
	r.t.Helper()
	for _, line := range r.lines() {
		var e audit.Event
		must(r.t, json.Unmarshal([]byte(line), &e))
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// until waits for a condition.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain until %s: %+v", what, r.set.Stats())
		}
		time.Sleep(time.Millisecond)
	}
}

// delivered waits until the first sink has so many records.
func (r *rig) delivered(n uint64) {
	r.t.Helper()
	r.until("all is delivered", func() bool { return r.stats().Cursor == n })
}

// same compares what was received with the trail. What repeats what came before it may stand
// there as well.
func (r *rig) same(what string, got []string) {
	r.t.Helper()
	seen := map[string]bool{}
	var once []string
	for _, line := range got {
		if !seen[line] {
			once = append(once, line)
		}
		seen[line] = true
	}
	if want := r.lines(); !slices.Equal(once, want) {
		r.t.Fatalf("%s: %d records (%d with repetitions), want the trail's %d", what, len(once), len(got), len(want))
	}
}

// box gathers lines.
type box struct {
	mu    sync.Mutex
	lines []string
}

func (b *box) add(lines ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, lines...)
}

func (b *box) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

func split(text []byte) (out []string) {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		out = append(out, s.Text())
	}
	return out
}

func readLines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Errorf("%s ends within a record", path)
	}
	return split(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
