package sink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// reader reads a trail's records in order, also while it is being written.
type reader struct {
	dir   string
	trail Trail
	next  uint64 // sequence number of the record that is read next
	in    io.ReadCloser
	buf   *bufio.Reader
}

// errRemoved means: the next record is not there any more; next has moved to the first that is.
type errRemoved struct{ first, last uint64 }

func (e errRemoved) Error() string {
	return fmt.Sprintf("the records %d to %d were removed", e.first, e.last)
}

// read reads records of one segment up to one that is on the disk, as many as fit into a batch
// and one at least.
func (r *reader) read(ctx context.Context, upTo uint64, limit size) (batch, error) {
	if r.in == nil {
		if err := r.open(ctx); err != nil {
			return batch{}, err
		}
	}
	b, size := batch{first: r.next}, 0
	for r.next <= upTo && len(b.lines) < limit.records && size < limit.bytes {
		line, err := r.line()
		if err != nil {
			r.close()
			r.next = b.first
			return batch{}, err
		}
		b.lines = append(b.lines, line)
		size += len(line)
		r.next++
		if (r.next-1)%trail.SegmentRecords == 0 {
			r.close()
			break
		}
	}
	return b, nil
}

func (r *reader) segment() int64 { return int64((r.next - 1) / trail.SegmentRecords) } //nolint:gosec // 2^47 at most

// open opens the segment of the next record, at that record.
func (r *reader) open(ctx context.Context) error {
	in, err := r.trail.OpenSegment(ctx, r.segment())
	if err == nil {
		r.in, r.buf = in, bufio.NewReaderSize(in, trail.MaxLine)
		for range (r.next - 1) % trail.SegmentRecords {
			if _, err := r.buf.ReadSlice('\n'); err != nil {
				r.close()
				return fmt.Errorf("%w: segment %d has fewer records than it must: %w", trail.ErrTrail, r.segment(), err)
			}
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	segments, err := trail.Segments(r.dir)
	if err != nil {
		return err
	}
	if len(segments) == 0 || segments[0].First() <= r.next {
		return fmt.Errorf("%w: segment %d is missing", trail.ErrTrail, r.segment())
	}
	e := errRemoved{r.next, segments[0].First() - 1}
	r.next = segments[0].First()
	return e
}

func (r *reader) line() ([]byte, error) {
	line, err := r.buf.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", trail.ErrTrail, r.next, err)
	}
	return bytes.Clone(line[:len(line)-1]), nil
}

func (r *reader) close() {
	if r.in != nil {
		_ = r.in.Close() // only read
	}
	r.in, r.buf = nil, nil
}
