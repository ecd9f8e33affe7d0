package nodetest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/node/cluster"
)

// Disk is what a node's crash does not take: Raft's log, votes, snapshots and mark. A write
// returns when it is durable; one that a crash interrupts is durable or lost.
type Disk struct {
	latency time.Duration // of a write, at most

	mu      sync.Mutex
	random  *rand.Rand
	stalled chan struct{} // not nil while the disk hangs; closed when it goes on
	now     *contents
}

// contents is the disk as one process sees it. After that process's crash it is a
// copy of its own, on which it may go on in vain until it has ended.
type contents struct {
	disk *Disk
	dead chan struct{} // closed by the crash

	mu      sync.Mutex
	pending []*write
	logs    map[uint64]*raft.Log
	first   uint64
	last    uint64
	values  map[string][]byte
	snaps   []*savedSnapshot // newest first
	made    int              // snapshots, for their names
	mark    []byte
}

// write is one that is not durable yet.
type write struct{ do func(*contents) }

type savedSnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

var errNotFound = errors.New("not found") // Raft compares the text

// newDisk is an empty disk whose writes take up to latency.
func newDisk(latency time.Duration, seed uint64) *Disk {
	d := &Disk{latency: latency, random: rand.New(rand.NewPCG(seed, 1))}
	d.now = &contents{disk: d, dead: make(chan struct{}), logs: map[uint64]*raft.Log{}, values: map[string][]byte{}}
	return d
}

// Stall makes writes hang until Resume.
func (d *Disk) Stall() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stalled == nil {
		d.stalled = make(chan struct{})
	}
}

// Resume lets writes go on.
func (d *Disk) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stalled != nil {
		close(d.stalled)
		d.stalled = nil
	}
}

// hangs is closed when the disk goes on; nil if it does not hang.
func (d *Disk) hangs() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stalled
}

// snapshotIndex is that of the newest snapshot; 0: none.
func (d *Disk) snapshotIndex() uint64 {
	d.mu.Lock()
	c := d.now
	d.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.snaps) == 0 {
		return 0
	}
	return c.snaps[0].meta.Index
}

func (d *Disk) pause() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.random.Int64N(int64(d.latency) + 1))
}

// open is the disk as the next process sees it.
func (d *Disk) open() cluster.Storage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cluster.Storage{Log: diskLog{d.now}, Snapshots: diskSnapshots{d.now}, Mark: diskMark{d.now}}
}

// crash ends the life of the process that writes. Of what was under way, the first
// few writes are durable and the others are lost.
func (d *Disk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.now
	old.mu.Lock()
	defer old.mu.Unlock()
	next := &contents{
		disk: d, dead: make(chan struct{}), logs: maps.Clone(old.logs), first: old.first, last: old.last,
		values: maps.Clone(old.values), snaps: slices.Clone(old.snaps), made: old.made, mark: old.mark,
	}
	for _, w := range old.pending[:d.random.IntN(len(old.pending)+1)] {
		w.do(next)
	}
	close(old.dead)
	d.now = next
}

// write makes a change durable.
func (c *contents) write(do func(*contents)) error {
	w := &write{do}
	c.mu.Lock()
	c.pending = append(c.pending, w)
	c.mu.Unlock()
	timer := time.NewTimer(c.disk.pause())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.dead:
	}
	for hangs := c.disk.hangs(); hangs != nil && !c.crashed(); hangs = c.disk.hangs() {
		select {
		case <-hangs:
		case <-c.dead:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	do(c)
	c.pending = slices.DeleteFunc(c.pending, func(x *write) bool { return x == w })
	return nil
}

func (c *contents) crashed() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// diskLog is the log and the votes.
type diskLog struct{ *contents }

// Close implements io.Closer.
func (l diskLog) Close() error { return nil }

// FirstIndex implements raft.LogStore.
func (l diskLog) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, nil
}

// LastIndex implements raft.LogStore.
func (l diskLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, nil
}

// GetLog implements raft.LogStore.
func (l diskLog) GetLog(index uint64, out *raft.Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	entry, ok := l.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = *entry
	return nil
}

// StoreLog implements raft.LogStore.
func (l diskLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore: all of them or none.
func (l diskLog) StoreLogs(entries []*raft.Log) error {
	copies := make([]*raft.Log, len(entries))
	for i, e := range entries {
		c := *e
		copies[i] = &c
	}
	return l.write(func(c *contents) {
		for _, e := range copies {
			c.logs[e.Index] = e
			if c.first == 0 {
				c.first = e.Index
			}
			c.last = max(c.last, e.Index)
		}
	})
}

// DeleteRange implements raft.LogStore.
func (l diskLog) DeleteRange(from, to uint64) error {
	return l.write(func(c *contents) {
		for i := from; i <= to; i++ {
			delete(c.logs, i)
		}
		if from <= c.first {
			c.first = to + 1
		}
		if to >= c.last {
			c.last = from - 1
		}
		if c.first > c.last {
			c.first, c.last = 0, 0
		}
	})
}

// Set implements raft.StableStore.
func (l diskLog) Set(key, value []byte) error {
	k, v := string(key), bytes.Clone(value)
	return l.write(func(c *contents) { c.values[k] = v })
}

// Get implements raft.StableStore.
func (l diskLog) Get(key []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.values[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return bytes.Clone(v), nil
}

// SetUint64 implements raft.StableStore.
func (l diskLog) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (l diskLog) GetUint64(key []byte) (uint64, error) {
	b, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// diskMark is the mark. Writing it takes no time: only the end of a process is
// simulated, not that of the power.
type diskMark struct{ *contents }

// Read implements cluster.MarkStorage.
func (m diskMark) Read() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mark == nil {
		return nil, fs.ErrNotExist
	}
	return m.mark, nil
}

// Write implements cluster.MarkStorage.
func (m diskMark) Write(b []byte, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark = bytes.Clone(b)
	return nil
}

// Close implements io.Closer.
func (m diskMark) Close() error { return nil }

// keptSnapshots is how many snapshots a disk keeps, as files would be.
const keptSnapshots = 2

// diskSnapshots are the snapshots.
type diskSnapshots struct{ *contents }

// Create implements raft.SnapshotStore.
func (s diskSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	return &sink{on: s.contents, snapshot: &savedSnapshot{meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, s.made), Index: index, Term: term,
		Configuration: c.Clone(), ConfigurationIndex: at,
	}}}, nil
}

// List implements raft.SnapshotStore.
func (s diskSnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*raft.SnapshotMeta
	for _, x := range s.snaps {
		meta := x.meta
		out = append(out, &meta)
	}
	return out, nil
}

// Open implements raft.SnapshotStore.
func (s diskSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.snaps {
		if x.meta.ID == id {
			meta := x.meta
			return &meta, io.NopCloser(bytes.NewReader(x.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("nodetest: there is no snapshot %s", id)
}

// sink takes one snapshot in; it is on the disk when Close returns.
type sink struct {
	on       *contents
	snapshot *savedSnapshot
	buffer   bytes.Buffer
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) { return s.buffer.Write(b) }

// ID implements raft.SnapshotSink.
func (s *sink) ID() string { return s.snapshot.meta.ID }

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error { return nil }

// Close implements io.Closer.
func (s *sink) Close() error {
	s.snapshot.data = s.buffer.Bytes()
	s.snapshot.meta.Size = int64(len(s.snapshot.data))
	return s.on.write(func(c *contents) {
		c.snaps = append([]*savedSnapshot{s.snapshot}, c.snaps...)
		slices.SortStableFunc(c.snaps, func(a, b *savedSnapshot) int { return cmp.Compare(b.meta.Index, a.meta.Index) })
		c.snaps = c.snaps[:min(len(c.snaps), keptSnapshots)]
	})
}
