// Package sink takes a node's audit records elsewhere: to files, syslog, a webhook, or a
// directory whose files somebody puts into an object store.
//
// The trail on the disk is the queue. Each sink reads its segments (reader.go) behind a cursor
// of its own (cursor.go), and keeps no more than one batch in memory. What writes the trail
// never waits for a sink: it puts something into a channel that has room for it, or not.
//
// A sink gets what is on the disk, in order, each line as it stands in the trail, and gets it
// again until it has taken it. It may get records twice, after a failure or a restart: node
// and sequence tell.
//
// To read: worker.go, then the kinds: file.go, syslog.go, webhook.go, ship.go.
package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
)

// Trail is what sinks need of the audit trail.
type Trail interface {
	// Durable is the sequence number of the last record that is on the disk.
	Durable() uint64
	// Follow has something in it when that has grown.
	Follow() <-chan struct{}
	// OpenSegment opens the records of a segment, whichever form its file has.
	OpenSegment(ctx context.Context, segment int64) (io.ReadCloser, error)
	Record(audit.Event) error
}

// Config is what a Set needs.
type Config struct {
	Sinks   []Options // completed and checked
	Trail   Trail
	Dir     string // of the trail
	Cursors string // directory of the cursors, made if absent
	Node    string // raft id
	Name    string // the node's name
	Now     func() time.Time
	Log     *slog.Logger
}

// The times of a Set; tests have others.
type pace struct {
	failing time.Duration // without success makes an alarm
	look    time.Duration // between looks at that
	attempt time.Duration // for one delivery
	again   time.Duration // before the first repetition, doubled for each
	longest time.Duration // before any
	save    time.Duration // between writes of a cursor
	abandon time.Duration // for a delivery under way at the end
}

func standardPace() pace {
	return pace{
		failing: time.Minute, look: time.Second, attempt: 30 * time.Second, again: 200 * time.Millisecond, longest: 30 * time.Second,
		save: time.Second, abandon: 3 * time.Second,
	}
}

// Set is a node's sinks.
type Set struct {
	config  Config
	pace    pace
	workers []*worker
}

// Open prepares the sinks, and needs none of what they bring records to.
func Open(c Config) (*Set, error) { return open(c, standardPace(), newTarget) }

func open(c Config, p pace, build func(Config, Options) (target, error)) (*Set, error) {
	s := &Set{config: c, pace: p}
	for _, o := range c.Sinks {
		t, err := build(c, o)
		if err != nil {
			return nil, fmt.Errorf("audit sink %s: %w", o.Name, err)
		}
		s.workers = append(s.workers, newWorker(c, p, o, t))
	}
	return s, nil
}

// newTarget makes the kind of sink that is asked for.
func newTarget(c Config, o Options) (target, error) {
	switch o.Type {
	case TypeFile:
		return newFile(c, o), nil
	case TypeSyslog:
		return newSyslog(c, o)
	case TypeWebhook:
		return newWebhook(c, o), nil
	case TypeShip:
		return newShip(c, o), nil
	}
	return nil, fmt.Errorf("unknown type %q", o.Type)
}

// Run serves the sinks until ctx ends. A delivery that does not come back then, since a disk
// hangs, is left alone: the next run repeats it.
func (s *Set) Run(ctx context.Context) {
	var work sync.WaitGroup
	for _, w := range s.workers {
		work.Go(func() { w.run(ctx) })
	}
	s.watch(ctx)
	ended := make(chan struct{})
	go func() {
		work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(s.pace.abandon):
		s.config.Log.Warn("an audit sink hangs and is left alone; the next run goes on where it was")
	}
}

// watch records when sinks fail for long, and when they take records again.
func (s *Set) watch(ctx context.Context) {
	if len(s.workers) == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(s.pace.look)
	defer tick.Stop()
	for {
		for _, w := range s.workers {
			w.tell()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Stats is where a sink stands.
type Stats struct {
	Name, Type string
	Cursor     uint64        // sequence number of the last record that it has
	Records    uint64        // that are on the disk and that it has not
	Behind     time.Duration // age of the oldest of them
	Delivered  uint64        // records since the start, those that were repeated twice
	Lost       uint64        // records since the start that were removed before it had them
	Clipped    uint64        // records since the start that were longer than it can take
	Failures   uint64        // attempts since the start
	LastError  string        // of the last attempt that failed; stays when a later one succeeds
	ErrorTime  time.Time
	Failing    bool // for so long that there is an alarm
}

// Taken is up to which record all sinks have taken the trail.
func (s *Set) Taken() uint64 {
	taken := uint64(math.MaxUint64)
	for _, x := range s.Stats() {
		taken = min(taken, x.Cursor)
	}
	return taken
}

// Stats tells where the sinks stand.
func (s *Set) Stats() []Stats {
	out := make([]Stats, 0, len(s.workers))
	for _, w := range s.workers {
		out = append(out, w.stats())
	}
	return out
}

// batch is consecutive records: the lines of the trail, without their ends.
type batch struct {
	first uint64
	lines [][]byte
}

func (b batch) last() uint64 { return b.first + uint64(len(b.lines)) - 1 }

// text is the records as lines.
func (b batch) text() []byte {
	size := 0
	for _, line := range b.lines {
		size += len(line) + 1
	}
	out := make([]byte, 0, size)
	for _, line := range b.lines {
		out = append(append(out, line...), '\n')
	}
	return out
}

// size bounds a batch, and says how long records are gathered for one.
type size struct {
	records int
	bytes   int
	gather  time.Duration
}

// target is where a sink brings records.
type target interface {
	size() size
	// deliver returns nil when the records are where they are to be. It ends with ctx, unless
	// the system does not let it.
	deliver(ctx context.Context, b batch) (clipped int, err error)
	close() error
}

// errTarget means: where the records are to go does not take them.
var errTarget = errors.New("not delivered")
