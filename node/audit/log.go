package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// ErrUnavailable means: a record could not be written, so the call must not be
// answered.
var ErrUnavailable = errors.New("audit record cannot be written")

// ErrAltered means: the records on the disk are not those that this node has signed, or no trail.
var ErrAltered = errors.New("audit trail was altered, or is damaged")

// ErrMoved means: the trail's files were changed while they were read.
var ErrMoved = errors.New("audit trail has moved on")

const (
	// syncEvery bounds what a loss of power can take: records are handed to the
	// kernel before the answer leaves and to the disk within this time.
	syncEvery = 50 * time.Millisecond
	// maxField and maxContext bound, in bytes, what callers can put into a record.
	maxField   = 2 << 10
	maxContext = 8 << 10
	// earlierFile is the whole trail of the first release.
	earlierFile = "audit.log"
)

// Config is what a Log needs.
type Config struct {
	Dir  string // made if absent
	Node string // how records name the node until SetNode
	Now  func() time.Time
	// Strict has every record on the disk before its call is answered.
	Strict bool
	// Keep is how long the records of whole segments are kept; 0: for ever.
	Keep time.Duration
	// Sealer, unless nil, seals whole segments that others remember. Opener opens those that
	// are sealed, whether or not more are to be.
	Sealer Sealer
	Opener trail.Opener
	Log    *slog.Logger
}

// Log writes the trail of one node, in the form that package trail documents. It may be
// used from any goroutine.
type Log struct {
	config Config

	mu         sync.Mutex
	moved      *sync.Cond // the disk has more, or the trail is broken
	node       string
	file       *os.File // of the segment that is being written
	tree       *trail.Tree
	above      int // hashes above the segments that are in their file
	previous   string
	buf        []byte         // records that are about to be written
	placed     []placedRecord // those in buf
	durable    uint64         // sequence number of the last record that is on the disk
	broken     error
	remembered int64 // records that others remember
	observer   Observer

	queue callQueue // of calls that record

	wanted chan struct{}   // somebody waits for the disk
	told   atomic.Uint64   // durable, for them
	wakes  []chan struct{} // of those that follow the trail
	stop   chan struct{}
	done   sync.WaitGroup

	stopTidy chan struct{}
	tidier   sync.WaitGroup

	signing sync.Mutex // guards what follows, and is never held for long
	signed  trail.Checkpoint
	note    []byte // of signed

	tidying   sync.Mutex       // one at a time; guards what follows
	removals  map[int64]uint64 // segments whose removal is recorded, and by which record at the latest
	account   account          // what is known of that of the one before the first
	sealAgain time.Time        // not before
	sealPause time.Duration    // after the last failure

	taken func() uint64 // by all sinks; nil: there are none; mu guards it

	unsealedMu sync.Mutex
	unsealed   Unsealed

	firstsMu sync.Mutex
	firsts   map[int64]moment // of segments' first records, as far as they were asked for
}

// Open opens the trail and goes on with its sequence. What a crash or a loss of power has left
// behind the last record of the chain is cut off, and a record says so. ErrAltered if the trail is
// not what this node signed last.
func Open(c Config) (*Log, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit directory: %w", err)
	}
	l := &Log{config: c, node: c.Node, observer: nobody{}, wanted: make(chan struct{}, 1), stop: make(chan struct{}), stopTidy: make(chan struct{}), firsts: map[int64]moment{}, removals: map[int64]uint64{}}
	l.moved = sync.NewCond(&l.mu)
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("audit trail in %s: %w", c.Dir, err)
	}
	l.done.Go(l.syncLoop)
	l.tidier.Go(l.tidyLoop)
	return l, nil
}

// recover makes the tree of what is there, and cuts off what follows the last record of the chain.
func (l *Log) recover() error {
	adopted, err := l.adopt()
	if err != nil {
		return err
	}
	newest, err := l.findNewest()
	if err != nil {
		return err
	}
	there, err := trail.Load(l.config.Dir, newest.checkpoint.Size, l.config.Opener)
	if err != nil && !trail.IsPathError(err) { // it can be read, and is no trail
		return fmt.Errorf("%w: %w", ErrAltered, err)
	}
	if err != nil {
		return err
	}
	l.tree = there.Tree
	if err := l.takeNewest(newest, there); err != nil {
		return err
	}
	if there.Wrong != nil && adopted { // no loss of power: it has just been written
		return fmt.Errorf("%w: behind record %d: %w", ErrAltered, l.sequence(), there.Wrong)
	}
	if err := l.keepAbove(0); err != nil { // all of them, see again
		return err
	}
	if there.Last != nil {
		var last Event
		if err := json.Unmarshal(there.Last, &last); err != nil || last.Sequence != l.sequence() {
			return fmt.Errorf("the last record is not record %d: %w", l.sequence(), errors.Join(ErrAltered, err))
		}
		l.previous = trail.RecordHash(there.Last).String()
	}
	if there.Active.Path == "" {
		l.reached(l.sequence()) // a segment's end is on the disk before the hash above it
		err = l.begin()
	} else {
		err = l.resume(there)
	}
	if err != nil || there.Torn == 0 {
		return err
	}
	why := "a torn record"
	if there.Wrong != nil {
		why = there.Wrong.Error()
	}
	cut := fmt.Sprintf("%d bytes behind record %d were cut off: %s", there.Torn, l.sequence(), why)
	l.config.Log.Warn("the audit trail was not whole after a crash or a loss of power, and goes on: " + cut)
	err = l.Record(Event{Name: "AuditTrailRecovered", Principal: l.node, Class: "node", Result: Success, Reason: cut})
	if err != nil {
		return errors.Join(err, l.file.Close())
	}
	return nil
}

// sequence is the number of the last record.
func (l *Log) sequence() uint64 { return uint64(l.tree.Size()) } //nolint:gosec // not negative

func (l *Log) segment() int64 { return l.tree.Size() / trail.SegmentRecords }

func (l *Log) path(name string) string { return filepath.Join(l.config.Dir, name) }

// begin begins the file of the next segment.
func (l *Log) begin() error {
	f, err := os.OpenFile(l.path(trail.Name(l.segment(), trail.RecordsEnd)), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.file = f
	return syncDir(l.config.Dir)
}

// resume goes on with a segment.
func (l *Log) resume(there *trail.Loaded) error {
	f, err := os.OpenFile(there.Active.Path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if there.Torn > 0 {
		err = f.Truncate(there.Whole)
	}
	if err == nil {
		err = again(there.Active.Path, there.Sure, there.Whole)
	}
	if err = errors.Join(err, f.Sync(), syncDir(l.config.Dir)); err != nil { // what is signed must be on the disk
		return errors.Join(err, f.Close())
	}
	l.file = f
	l.reached(l.sequence())
	if l.segmentIsFull() {
		return l.turn()
	}
	return nil
}

// again writes a part of a file once more as it stands. After a sync that failed, in an earlier
// life of this process, what is read may be in the memory of the kernel alone, which takes it for
// written: no other sync would bring it to the disk.
func again(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	chunk := make([]byte, fileChunk)
	for from < to && err == nil {
		n := min(to-from, fileChunk)
		if _, err = f.ReadAt(chunk[:n], from); err == nil {
			_, err = f.WriteAt(chunk[:n], from)
		}
		from += n
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (l *Log) segmentIsFull() bool {
	return l.tree.Size() > 0 && l.tree.Size()%trail.SegmentRecords == 0 && l.tree.Filling()
}

// turn ends a full segment and begins the next. All calls wait for it: four small writes to the
// disk, once in 65,536 records, of which the sync loop has left what came in the last moment. To
// begin the next file first, and to sync the full one beside the calls, would leave two unsynced
// files after a loss of power, and a tree to be taken back across their border: recovering
// would be harder to get right than the wait is worth.
func (l *Log) turn() error {
	if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
		return err
	}
	l.reached(l.sequence())
	if err := l.tree.Turn(); err != nil {
		return err
	}
	if err := l.keepAbove(l.above); err != nil {
		return err
	}
	return l.begin()
}

// keepAbove writes those hashes above the segments that are not in their file.
func (l *Log) keepAbove(there int) error {
	f, err := os.OpenFile(l.path(trail.HashesFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	above := l.tree.Above()
	var b []byte
	for _, h := range above[there:] {
		b = append(b, h[:]...)
	}
	_, err = f.WriteAt(b, int64(there*len(trail.Hash{})))
	l.above = len(above)
	return errors.Join(err, f.Sync(), f.Close())
}

// SetNode names the node in the records that follow: its raft id, once it has one.
func (l *Log) SetNode(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node = node
}

// Healthy is nil while records can be written.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

func (l *Log) syncLoop() {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.wanted:
		case <-l.stop:
			return
		}
		l.sync()
	}
}

// sync brings what has been written to the disk.
func (l *Log) sync() {
	l.mu.Lock()
	file, upTo, observer := l.file, l.sequence(), l.observer
	if l.durable >= upTo || l.broken != nil {
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	began := time.Now()
	err := file.Sync()
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.durable >= upTo: // the segment has been ended meanwhile, which syncs it
	case err != nil:
		observer.Synced(took, err)
		_ = l.breaks(err) // told to all that write
	default:
		observer.Synced(took, nil)
		l.reached(upTo)
	}
	l.moved.Broadcast()
}

// Close writes everything to the disk and closes the trail.
func (l *Log) Close() error {
	close(l.stopTidy)
	l.tidier.Wait() // what it records may wait for the disk
	close(l.stop)
	l.done.Wait()
	l.sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.broken
	l.broken = fmt.Errorf("%w: closed", ErrUnavailable)
	l.moved.Broadcast()
	return errors.Join(err, l.file.Close())
}

// Durable is the sequence number of the last record that is on the disk. It waits for nobody.
func (l *Log) Durable() uint64 { return l.told.Load() }

// Follow is a channel that has something in it when more is on the disk than before it was
// last read. Who does not read it holds nobody up.
func (l *Log) Follow() <-chan struct{} {
	wake := make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes = append(l.wakes, wake)
	return wake
}

// reached notes that the disk has the records up to one.
func (l *Log) reached(sequence uint64) {
	l.durable = sequence
	l.told.Store(sequence)
	l.moved.Broadcast()
	for _, wake := range l.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Position is how far the trail is.
type Position struct {
	Last    uint64 // sequence number of the last record
	Durable uint64 // of the last one that is on the disk
	Signed  uint64 // of the last one that a checkpoint covers
	// SignedAt is when that was made; zero: there is none.
	SignedAt time.Time
	// Remembered is the sequence number of the last record that others remember (Kept).
	Remembered uint64
}

// Position tells how far the trail is.
func (l *Log) Position() Position {
	signed, _ := l.lastSigned()
	l.mu.Lock()
	defer l.mu.Unlock()
	return Position{
		Last: l.sequence(), Durable: l.durable, Signed: uint64(signed.Size), SignedAt: signed.Time, Remembered: uint64(l.remembered), //nolint:gosec // not negative
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
