package archive

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

const (
	// jitterPart of the period, and maxJitter at the most, is how far the backups of
	// several nodes are spread.
	jitterPart = 10
	maxJitter  = time.Minute
	// maxLook bounds how late a backup may be that was not due for want of a change.
	maxLook     = 10 * time.Second
	writeBuffer = 1 << 20 // bytes
)

// schedule writes a backup each period in which something changed.
type schedule struct {
	archive  *Archive
	health   health
	newest   atomic.Pointer[File] // of this node
	backedUp func(index uint64)   // is told of each backup
	due      atomic.Int64         // since when one is due that is not written, unix nanoseconds; 0: none is
}

func (x *schedule) loop(ctx context.Context) {
	for ctx.Err() == nil {
		every := time.Duration(x.archive.every.Load())
		look := min(every/jitterPart, maxLook)
		last, err := x.last()
		if err == nil {
			due := time.Duration(0)
			if last != nil {
				x.newest.Store(last)
				due = every - x.archive.config.Now().Sub(last.Time)
			}
			// A clock that went back does not put it off for longer.
			due = min(max(due, 0), every)
			jitter := rand.N(min(every/jitterPart, maxJitter)) //nolint:gosec // it is no secret
			if x.rescheduled(ctx, due+jitter) {
				continue
			}
			for last != nil && !changedSince(x.archive.config.Member.State(), *last) {
				if !sleep(ctx, look) {
					return
				}
			}
			if ctx.Err() != nil {
				return
			}
			x.due.CompareAndSwap(0, x.archive.config.Now().UnixNano())
			if err = x.round(ctx); err == nil {
				x.due.Store(0)
			}
		}
		x.health.end(err)
		if err != nil {
			sleep(ctx, min(every, lookAgain))
		}
	}
}

// rescheduled waits, and tells whether the schedule has changed meanwhile.
func (x *schedule) rescheduled(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-x.archive.changed:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// lookAgain is between two tries to write a backup.
const lookAgain = 10 * time.Second

func changedSince(s *fsm.State, last File) bool {
	return s.Changed() > last.Index || s.Cluster().RecoveryEpoch != last.Epoch
}

// mine are this node's files that end in end, the oldest first.
func (x *schedule) mine(end string) ([]File, error) {
	c := x.archive.config
	files, err := list(c.Dir, c.Member.State().Cluster().ID, end)
	return slices.DeleteFunc(files, func(f File) bool { return f.Node != c.Member.ID() }), err
}

func (x *schedule) last() (*File, error) {
	files, err := x.mine(backupEnd)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	return &files[len(files)-1], nil
}

// round writes one backup, reads it back, and then lets the oldest go.
func (x *schedule) round(ctx context.Context) error {
	x.health.begin()
	if err := x.clean(); err != nil {
		return err
	}
	c, s := x.archive.config, x.archive.config.Member.State()
	f := File{Cluster: s.Cluster().ID, Epoch: s.Cluster().RecoveryEpoch, Time: c.Now().UTC().Truncate(time.Millisecond), Index: s.Index(), Node: c.Member.ID()}
	name := f.name(backupEnd)
	f.Path = filepath.Join(c.Dir, name)
	if err := x.write(ctx, name+partialEnd, s); err != nil {
		return errors.Join(err, gone(f.Path+partialEnd))
	}
	if err := os.Rename(f.Path+partialEnd, f.Path); err != nil {
		return errors.Join(err, gone(f.Path+partialEnd))
	}
	if err := syncDir(c.Dir); err != nil {
		return err
	}
	x.newest.Store(&f)
	c.Log.Info("a scheduled backup was written", "file", f.Path, "index", f.Index, "keys", s.KeyCount())
	x.backedUp(f.Index)
	return x.retain()
}

func (x *schedule) write(ctx context.Context, name string, s *fsm.State) error {
	file, err := create(x.archive.config.Dir, name)
	if err != nil {
		return err
	}
	buffer := bufio.NewWriterSize(watched{file, &x.health}, writeBuffer)
	err = x.archive.write(ctx, buffer, s)
	if err == nil {
		err = errors.Join(buffer.Flush(), file.Sync())
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = backup.Check(watched{file, &x.health}, nil)
	}
	return errors.Join(err, file.Close())
}

// watched is a file of which each call is a round by itself: a large backup may take
// long, one call may not.
type watched struct {
	file   *os.File
	health *health
}

func (w watched) Write(p []byte) (int, error) {
	w.health.begin()
	return w.file.Write(p)
}

func (w watched) Read(p []byte) (int, error) {
	w.health.begin()
	return w.file.Read(p)
}

// clean removes what a crash has left of this node's backups.
func (x *schedule) clean() error {
	files, err := x.mine(backupEnd + partialEnd)
	for _, f := range files {
		err = errors.Join(err, gone(f.Path))
	}
	return err
}

// retain removes this node's oldest backups beyond those that are kept, and its
// segments of the journal that end before every backup in the directory. The newest
// backup, which was just written and read back, stays.
func (x *schedule) retain() error {
	c := x.archive.config
	backups, err := x.mine(backupEnd)
	if err != nil {
		return err
	}
	for _, f := range backups[:max(0, len(backups)-max(int(x.archive.keep.Load()), 1))] {
		if err := gone(f.Path); err != nil {
			return err
		}
		c.Log.Info("an old backup was removed", "file", f.Path)
	}
	all, err := list(c.Dir, c.Member.State().Cluster().ID, backupEnd)
	if err != nil || len(all) == 0 {
		return err
	}
	segments, err := x.mine(journalEnd)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(segments) && !behind(segments[i+1], all[0]); i++ {
		if err := gone(segments[i].Path); err != nil {
			return err
		}
	}
	return nil
}

// behind tells whether a segment begins after a backup: then the one before it may
// hold what is needed to restore that backup.
func behind(segment, backup File) bool {
	return cmp.Or(cmp.Compare(segment.Epoch, backup.Epoch), cmp.Compare(segment.Index, backup.Index)) > 0
}

// gone removes a file; one that is gone already is as it should be.
func gone(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", filepath.Base(path), err)
	}
	return nil
}
