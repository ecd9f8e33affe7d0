package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// maxSealPause is the longest time until sealing is tried again. Each attempt may be a record.
const maxSealPause = 10 * time.Minute

// Sealer seals segments with a key that a node may use.
type Sealer interface {
	// Seal writes what from holds, size bytes, sealed to to, as the Opener of the Config opens it.
	Seal(ctx context.Context, segment int64, to io.Writer, from io.Reader, size int64) error
}

// Unsealed are whole segments that should be sealed and could not be: they are kept as they
// are, and tried again.
type Unsealed struct {
	Segments int
	First    uint64 // sequence numbers of their records
	Last     uint64
	Reason   string
}

// Unsealed tells what could not be sealed, as of the last attempt; ok is false if nothing
// waits for it.
func (l *Log) Unsealed() (u Unsealed, ok bool) {
	l.unsealedMu.Lock()
	defer l.unsealedMu.Unlock()
	return l.unsealed, l.unsealed.Segments > 0
}

// seal seals the whole segments of which others remember a record that comes later: so no
// proof that the trail goes on from what is remembered needs a sealed one, and the segment that
// is being written has a record. Those that a sink has not taken yet wait for it: once sealed, it
// would need the key. What cannot be sealed stays as it is and holds nothing up.
func (l *Log) seal(ctx context.Context, remembered int64) error {
	if l.config.Sealer == nil || l.config.Now().Before(l.sealAgain) {
		return nil
	}
	segments, err := trail.Segments(l.config.Dir)
	if err != nil {
		return err
	}
	taken := l.takenBySinks()
	var left Unsealed
	refused := false // the key that one needs is that of the others
	for _, s := range segments {
		if !strings.HasSuffix(s.Path, trail.CompressedEnd) || (s.Number+1)*trail.SegmentRecords >= remembered || s.First()+trail.SegmentRecords-1 > taken {
			continue
		}
		if !refused {
			err := l.sealOne(ctx, s)
			if err == nil {
				continue
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the node stops
			}
			refused = !errors.Is(err, ErrAltered)
			if refused || left.Segments == 0 {
				left.Reason = err.Error()
			}
		}
		if left.Segments++; left.Segments == 1 {
			left.First = s.First()
		}
		left.Last = s.First() + trail.SegmentRecords - 1
	}
	l.sealAgain, l.sealPause = time.Time{}, min(2*l.sealPause, maxSealPause)
	switch {
	case left.Segments == 0:
		l.sealPause = 0
	case l.sealPause == 0: // the next time
		l.sealPause = tidyEvery / 2
	default:
		l.sealAgain = l.config.Now().Add(l.sealPause)
	}
	l.tellUnsealed(left)
	return nil
}

// TakenBySinks has the log ask up to which record all sinks have taken the trail.
func (l *Log) TakenBySinks(taken func() uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = taken
}

func (l *Log) takenBySinks() uint64 {
	l.mu.Lock()
	taken := l.taken
	l.mu.Unlock()
	if taken == nil {
		return math.MaxUint64
	}
	return taken()
}

// tellUnsealed logs what has changed.
func (l *Log) tellUnsealed(now Unsealed) {
	l.unsealedMu.Lock()
	was := l.unsealed
	l.unsealed = now
	l.unsealedMu.Unlock()
	switch {
	case now.Segments > 0 && now.Reason != was.Reason:
		l.config.Log.Warn("whole segments of the audit trail are not sealed, trying again", "segments", now.Segments, "first", now.First, "last", now.Last, "error", now.Reason)
	case now.Segments == 0 && was.Segments > 0:
		l.config.Log.Info("all segments of the audit trail are sealed that should be")
	}
}

// sealOne replaces the file of a segment by its sealed form, once that was opened again and has
// the records that the tree has.
func (l *Log) sealOne(ctx context.Context, s trail.Segment) error {
	l.mu.Lock()
	want, ok := l.tree.SegmentRoot(s.Number)
	l.mu.Unlock()
	same := func(s trail.Segment) error {
		root, err := s.Root(l.config.Opener)
		if err == nil && (!ok || root != want) {
			err = fmt.Errorf("%w: %s does not hold the records of segment %d", ErrAltered, s.Path, s.Number)
		}
		return err
	}
	switch err := same(s); { // then it is evidence
	case errors.Is(err, trail.ErrTrail) && !trail.IsPathError(err):
		return fmt.Errorf("%w: %w", ErrAltered, err)
	case err != nil:
		return err
	}
	from, err := os.Open(s.Path)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	info, err := from.Stat()
	if err != nil {
		return err
	}
	sealed := trail.Segment{Number: s.Number, Path: l.path(trail.Name(s.Number, trail.SealedEnd))}
	err = Replace(sealed.Path, trailMode, func(w io.Writer) error {
		return l.config.Sealer.Seal(ctx, s.Number, w, from, info.Size())
	})
	if err != nil {
		return err
	}
	if err := same(sealed); err != nil {
		return errors.Join(err, l.remove(s.Number, trail.SealedEnd))
	}
	if err := os.Chtimes(sealed.Path, info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return l.remove(s.Number, trail.RecordsEnd, trail.CompressedEnd)
}

// OpenSegment opens a segment's records, whichever form its file has.
func (l *Log) OpenSegment(ctx context.Context, n int64) (io.ReadCloser, error) {
	return trail.FindSegment(l.config.Dir, n).Open(ctx, l.config.Opener)
}
