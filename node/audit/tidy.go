package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

const (
	// tidyEvery is how often whole segments are looked after.
	tidyEvery = 10 * time.Second
	// keptCheckpoints is how many checkpoints of a whole segment are kept, at equal
	// distances, and the last.
	keptCheckpoints = 1024
	// PartEnd is the end of a file's name that Replace has not finished.
	PartEnd   = ".part"
	trailMode = 0o600
)

// tidyLoop compresses whole segments, seals them, and removes those that are older than they
// are kept.
func (l *Log) tidyLoop() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l.tidier.Go(func() {
		<-l.stopTidy
		cancel()
	})
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	last := ""
	for {
		text := ""
		if err := l.tidy(ctx); err != nil {
			text = err.Error()
		}
		if text != "" && text != last {
			l.config.Log.Warn("whole segments of the audit trail were not looked after, trying again", "error", text)
		}
		last = text
		select {
		case <-tick.C:
		case <-l.stopTidy:
			return
		}
	}
}

// Kept tells the log up to which record others remember the trail: what is behind is not
// removed, since the node could not prove any more that it goes on from there.
func (l *Log) Kept(remembered int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remembered = max(l.remembered, remembered)
}

func (l *Log) tidy(ctx context.Context) error {
	l.tidying.Lock()
	defer l.tidying.Unlock()
	segments, err := trail.Segments(l.config.Dir)
	if err != nil {
		return err
	}
	l.mu.Lock()
	current, remembered := l.segment(), l.remembered
	l.mu.Unlock()
	var errs []error
	old, oldest := true, true // so are all before it; none before it stays
	for _, s := range segments {
		if s.Number >= current {
			break
		}
		if old = old && l.old(s, remembered); old {
			gone, err := l.prune(ctx, s, remembered, oldest)
			errs = append(errs, err)
			if gone {
				continue
			}
		}
		oldest = false
		if strings.HasSuffix(s.Path, trail.RecordsEnd) {
			errs = append(errs, l.compress(s), l.thin(s))
		}
	}
	return errors.Join(append(errs, l.seal(ctx, remembered))...)
}

// old tells whether a segment need not be kept.
func (l *Log) old(s trail.Segment, remembered int64) bool {
	if l.config.Keep == 0 || (s.Number+1)*trail.SegmentRecords > remembered {
		return false
	}
	info, err := os.Stat(s.Path)
	return err == nil && l.config.Now().Sub(info.ModTime()) > l.config.Keep
}

// prune records that a segment is to be removed, and removes the oldest once others remember a
// trail with that record: who finds the segment missing finds the record, signed.
// trail.RemovalEvent says why it is always there. After a restart in between there is another one.
func (l *Log) prune(ctx context.Context, s trail.Segment, remembered int64, oldest bool) (gone bool, err error) {
	reason := "they are older than audit.keep"
	if oldest {
		unsure, err := l.accounted(ctx, s)
		if err != nil {
			return false, err
		}
		if unsure {
			reason += fmt.Sprintf("; that this node removed those up to %d may stand in records that cannot be read", s.First()-1)
		}
	}
	if l.removals[s.Number] == 0 {
		err := l.Record(Event{
			Name: trail.RemovalEvent, Principal: l.config.Node, Class: "node", Result: Success, Durable: true,
			Target: s.Records(), Reason: reason,
		})
		if err != nil {
			return false, err
		}
		l.removals[s.Number] = l.Position().Last
	}
	if !oldest || uint64(remembered) < l.removals[s.Number] { //nolint:gosec // not negative
		return false, nil
	}
	if err := os.Remove(l.path(trail.Name(s.Number, trail.CheckpointsEnd))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := l.remove(s.Number, trail.RecordsEnd, trail.CompressedEnd, trail.SealedEnd); err != nil {
		return false, err
	}
	return true, syncDir(l.config.Dir)
}

// remove removes those forms of a segment's file that are there.
func (l *Log) remove(segment int64, ends ...string) error {
	for _, end := range ends {
		if err := os.Remove(l.path(trail.Name(segment, end))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// accounted looks for the record that says that what came before the first segment was removed.
// Without it somebody else did: that must not be covered up by removing more. If it may be among
// sealed records that cannot be read, unsure is true: a key that is gone for good must not fill the
// disk.
//
// The whole trail may be read for it, so it is not looked for each time.
func (l *Log) accounted(ctx context.Context, first trail.Segment) (unsure bool, err error) {
	before := trail.Segment{Number: first.Number - 1}
	if first.Number == 0 || l.removals[before.Number] > 0 {
		return false, nil
	}
	a := &l.account
	if a.first != first.Number {
		*a = account{first: first.Number}
	} else if l.config.Now().Before(a.again) {
		return a.unsure, a.err
	}
	a.unsure, a.err = l.lookForRemoval(ctx, before)
	a.pause = min(max(2*a.pause, tidyEvery), maxSealPause)
	a.again = l.config.Now().Add(a.pause)
	return a.unsure, a.err
}

// account is whether it is known who removed what came before a segment.
type account struct {
	first  int64 // the segment
	unsure bool
	err    error
	again  time.Time // it is looked for not before
	pause  time.Duration
}

func (l *Log) lookForRemoval(ctx context.Context, before trail.Segment) (unsure bool, err error) {
	unsure, err = l.SearchReadable(ctx, Query{Name: trail.RemovalEvent}, before.First()+trail.SegmentRecords, func(f Found) error {
		var e Event
		if err := json.Unmarshal(f.Line, &e); err != nil {
			return err
		}
		if e.Class == "node" && e.Target == before.Records() {
			l.removals[before.Number] = f.Sequence
		}
		return nil
	})
	if l.removals[before.Number] > 0 {
		unsure = false
	}
	if err == nil && !unsure && l.removals[before.Number] == 0 {
		err = fmt.Errorf("%w: the records up to %d are missing, and no record says that this node removed them: no more are removed; kmsctl audit verify", ErrAltered, before.First()+trail.SegmentRecords-1)
	}
	return unsure, err
}

// compression is gzip's level for whole segments: 0.9 us a record. Go's own gzip takes more than twice
// that, for the same size at its level 3 and for a hundredth less at its default.
const compression = 2

// compress replaces the file of a whole segment, which keeps the time of its last record.
func (l *Log) compress(s trail.Segment) error {
	info, err := os.Stat(s.Path)
	if err != nil {
		return err
	}
	from, err := os.Open(s.Path)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	path := l.path(trail.Name(s.Number, trail.CompressedEnd))
	err = Replace(path, trailMode, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, compression)
		if err != nil {
			return err
		}
		_, err = io.Copy(z, bufio.NewReader(from))
		return errors.Join(err, z.Close())
	})
	if err != nil {
		return err
	}
	return errors.Join(os.Chtimes(path, info.ModTime(), info.ModTime()), os.Remove(s.Path))
}

// thin leaves some of the checkpoints of a whole segment.
func (l *Log) thin(s trail.Segment) error {
	path := l.path(trail.Name(s.Number, trail.CheckpointsEnd))
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := trail.Checkpoints(b)
	if err != nil || len(all) <= keptCheckpoints {
		return err
	}
	every := (len(all) + keptCheckpoints - 1) / keptCheckpoints
	return Replace(path, trailMode, func(w io.Writer) error {
		for i, note := range all {
			if i%every != 0 && i != len(all)-1 {
				continue
			}
			if _, err := w.Write(note); err != nil {
				return err
			}
		}
		return nil
	})
}

// Replace writes a file anew, whole or not at all.
func Replace(path string, mode os.FileMode, write func(io.Writer) error) error {
	part := path + PartEnd
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	if err := errors.Join(write(b), b.Flush(), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// adopt makes segments of the trail that the first release has written: one file of records
// that do not name the one before them. Their sequence goes on. Where the trail has its
// present form already, that release was started again, which leaves an empty file at least.
func (l *Log) adopt() (adopted bool, err error) {
	earlier := l.path(earlierFile)
	if _, err := os.Stat(l.path(trail.HashesFile)); err == nil {
		info, err := os.Stat(earlier)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		case info.Size() > 0:
			return false, fmt.Errorf("%s was written by an earlier release beside the trail: keep it elsewhere, and start the node again", earlier)
		}
		return false, os.Remove(earlier)
	}
	f, err := os.Open(earlier)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read
	var lines [][]byte
	segment := int64(0)
	flush := func() error {
		err := Replace(l.path(trail.Name(segment, trail.RecordsEnd)), trailMode, func(w io.Writer) error {
			for _, line := range lines {
				if _, err := w.Write(append(line, '\n')); err != nil {
					return err
				}
			}
			return nil
		})
		lines = lines[:0]
		segment++
		return err
	}
	_, err = trail.Lines(f, func(line []byte) (bool, error) {
		if lines = append(lines, slices.Clone(line)); len(lines) == trail.SegmentRecords {
			return true, flush()
		}
		return true, nil
	})
	if err != nil {
		return false, err
	}
	if len(lines) > 0 || segment == 0 {
		if err := flush(); err != nil {
			return false, err
		}
	}
	return true, os.Remove(earlier) // what it had is on the disk elsewhere
}
