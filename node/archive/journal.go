package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

const (
	// pause is between two rounds of the journal: what was applied meanwhile shares a
	// write to the disk.
	pause = 100 * time.Millisecond
	// coverEvery is how often coverage is written while something changes, coverIdle
	// while nothing does.
	coverEvery = 2 * time.Second
	coverIdle  = time.Minute
	// lastRound bounds the round that a stopping node still makes.
	lastRound = 2 * time.Second
)

// journal writes the restrictions that this node applies. All but rotate and written
// belong to its loop.
type journal struct {
	config  *Config
	health  health
	rotate  atomic.Bool              // a new segment is wanted
	written atomic.Pointer[Coverage] // what is on the disk, for Status

	resumed bool     // it is known how far this node's journal went before
	segment *Segment // that is written; nil: none
	file    *os.File
	pending []byte // records that are not written yet
	seen    uint64 // index up to which Raft's log was followed
	durable uint64 // index up to which the journal is on the disk

	covered time.Time // when coverage was written last
	changed uint64    // State.Changed of that moment; 0: coverage is due
}

func (j *journal) loop(ctx context.Context) {
	for ctx.Err() == nil {
		err := j.round(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			sleep(ctx, retryAfter)
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, coverIdle)
		_, _ = j.config.Member.Wait(waiting, j.seen+1) // either way the next round looks
		cancel()
		sleep(ctx, pause)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRound)
	defer cancel()
	j.changed = 0
	if err := j.round(last); err == nil {
		j.drop()
	}
}

// round follows Raft's log up to the present state. After a failure, what was not
// written to the disk is not counted: the next round takes it from Raft's log again,
// into a new segment.
func (j *journal) round(ctx context.Context) (err error) {
	j.health.begin()
	defer func() {
		if err != nil {
			j.drop()
		}
		j.health.end(err)
	}()
	key, err := j.config.Member.LogKey()
	if err != nil {
		return err
	}
	s := j.config.Member.State()
	if err := j.open(key, s); err != nil {
		return err
	}
	if err := j.follow(ctx, key, s); err != nil {
		return err
	}
	j.cover(key, s)
	return j.flush()
}

// drop closes the segment.
func (j *journal) drop() {
	if j.file != nil {
		_ = j.file.Close() // what counts has been synced
	}
	j.file, j.segment, j.pending, j.seen = nil, nil, nil, j.durable
}

// follow adds what the log holds between what was seen and the state.
func (j *journal) follow(ctx context.Context, key fsm.LogKey, s *fsm.State) error {
	from, err := j.lowest(s)
	if err != nil {
		return err
	}
	for j.seen < s.Index() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if from > j.seen {
			j.gap(key, from)
			continue
		}
		term, raw, found, err := j.config.Member.LogEntry(j.seen + 1)
		if err == nil && !found { // a snapshot took its place just now
			from, err = j.lowest(s)
		} else if err == nil {
			err = j.entry(key, j.seen+1, term, raw)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lowest is the index behind which the log holds every entry up to the state's, and
// holds those that were committed: one log's entry of an index and a term has the
// same entries before it as any other's (Raft's log matching). Before a hole there may
// be entries that never were.
func (j *journal) lowest(s *fsm.State) (uint64, error) {
	for index := s.Index(); index > j.seen; index-- {
		term, _, found, err := j.config.Member.LogEntry(index)
		if err != nil {
			return 0, err
		}
		if !found || index == s.Index() && term != s.Term() {
			return index, nil
		}
	}
	return j.seen, nil
}

func (j *journal) gap(key fsm.LogKey, last uint64) {
	j.config.Log.Warn("the journal of restrictions has a gap: this node's log no longer holds what was applied; the journals of other nodes may fill it",
		"first", j.seen+1, "last", last)
	j.add(key, kindGap, numbers(j.seen+1, last))
	j.seen, j.segment.Until.Index = last, last
}

// entry looks at the next entry of the log; raw is nil for Raft's own.
func (j *journal) entry(key fsm.LogKey, index, term uint64, raw []byte) error {
	if raw == nil {
		j.seen = index
		return nil
	}
	_, command, err := key.OpenEntry(raw)
	if err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	if fsm.EffectOf(command) == fsm.Restricts {
		if j.segment.good+int64(len(j.pending)) >= maxSegment {
			if err := j.turn(key); err != nil {
				return err
			}
		}
		j.add(key, kindEntry, append(numbers(index, term), raw...))
		j.segment.Until.Index = index
	}
	j.seen = index
	return nil
}

// cover writes how far the journal goes, if that is due.
func (j *journal) cover(key fsm.LogKey, s *fsm.State) {
	if s.Index() < j.seen { // the log is still being replayed
		return
	}
	due := coverIdle
	if s.Changed() > j.changed {
		due = coverEvery
	}
	now := j.config.Now()
	if passed := now.Sub(j.covered); j.changed != 0 && passed >= 0 && passed < due {
		return
	}
	j.coverage(key, time.Unix(0, s.Now()))
	j.covered, j.changed = now, s.Changed()
}

// inPlace fails if somebody has taken the file away: what is written to it would be
// lost.
func (j *journal) inPlace() error {
	mine, err := j.file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(j.segment.Path)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, there) {
		return fmt.Errorf("%s was replaced by another file", j.segment.Path)
	}
	return nil
}

// coverage adds that the journal goes up to what was seen. A time that held before
// holds still.
func (j *journal) coverage(key fsm.LogKey, at time.Time) {
	nanoseconds := uint64(0)
	if !at.IsZero() {
		nanoseconds = uint64(at.UnixNano())
	}
	j.add(key, kindCoverage, numbers(j.seen, nanoseconds))
	j.segment.Until = Coverage{j.seen, at.UTC()}
}

func (j *journal) add(key fsm.LogKey, kind byte, body []byte) {
	b, tag := record(key, j.segment.tag, kind, body)
	j.pending, j.segment.tag = append(j.pending, b...), tag
}

// flush brings what is pending to the disk.
func (j *journal) flush() error {
	if len(j.pending) == 0 {
		return nil
	}
	if err := j.inPlace(); err != nil {
		return err
	}
	if _, err := j.file.Write(j.pending); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.segment.good += int64(len(j.pending))
	j.pending = nil
	j.note()
	return nil
}

// note takes what the segment says as being on the disk.
func (j *journal) note() {
	until := j.segment.Until
	j.durable = until.Index
	j.written.Store(&until)
}

// open makes sure that there is a segment to write to, of the present history.
func (j *journal) open(key fsm.LogKey, s *fsm.State) error {
	if !j.resumed {
		if err := j.resume(key, s); err != nil {
			return err
		}
	}
	switch {
	case j.segment == nil:
		return j.begin(key, s)
	case j.segment.history() != s.History(): // a recovery goes on with this node's log
		j.drop()
		return j.begin(key, s)
	case j.rotate.Load():
		return j.turn(key)
	}
	return nil
}

// resume finds out how far this node's journal goes, and goes on with its last segment
// if that is sound and of the present history.
func (j *journal) resume(key fsm.LogKey, s *fsm.State) error {
	files, err := list(j.config.Dir, s.Cluster().ID, journalEnd)
	if err != nil {
		return err
	}
	j.durable = s.Index() // unless there is a journal, it begins here
	for i := len(files) - 1; i >= 0 && !j.resumed; i-- {
		f := files[i]
		if f.Node != j.config.Member.ID() {
			continue
		}
		segment, err := readSegment(f, key)
		if err != nil {
			j.config.Log.Error("a segment of the journal of restrictions cannot be used; it is left as it is", "error", err)
		}
		if segment == nil {
			continue
		}
		if err == nil && segment.history() == s.History() {
			if err := j.reopen(segment); err != nil {
				return err
			}
		}
		j.durable, j.resumed = segment.Until.Index, true
	}
	j.seen, j.resumed = j.durable, true
	return nil
}

// reopen goes on with a segment, without what a crash has left at its end.
func (j *journal) reopen(s *Segment) error {
	f, err := os.OpenFile(s.Path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if s.Torn > 0 {
		j.config.Log.Warn("a torn record at the end of the journal of restrictions is cut off", "file", s.Path, "bytes", s.Torn)
		err = f.Truncate(s.good)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.segment, j.file = s, f
	j.note()
	return nil
}

// turn ends the segment with how far it goes and begins another.
func (j *journal) turn(key fsm.LogKey) error {
	j.coverage(key, j.segment.Until.Time)
	if err := j.flush(); err != nil {
		return err
	}
	j.drop()
	return j.begin(key, j.config.Member.State())
}

// begin makes a new segment behind what is on the disk.
func (j *journal) begin(key fsm.LogKey, s *fsm.State) error {
	c, now := s.Cluster(), j.config.Now()
	segment, b, err := beginSegment(key, Header{
		Cluster: c.ID, RecoveryEpoch: c.RecoveryEpoch, RecoveryID: c.RecoveryID, Node: j.config.Member.ID(), After: j.seen, Created: now.UnixNano(),
	})
	if err != nil {
		return err
	}
	name := File{Cluster: c.ID, Epoch: c.RecoveryEpoch, Time: now, Index: j.seen, Node: segment.Node}.name(journalEnd)
	f, err := create(j.config.Dir, name)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(j.config.Dir)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	segment.Path = f.Name()
	j.segment, j.file, j.changed = segment, f, 0
	j.rotate.Store(false)
	return nil
}
