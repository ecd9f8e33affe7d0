package trail

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The ends of the files' names.
const (
	RecordsEnd     = ".records"
	CompressedEnd  = ".records.gz"
	SealedEnd      = ".records.gz.sealed"
	CheckpointsEnd = ".checkpoints"
	digits         = 10
	// MaxLine is longer than any record, in bytes.
	MaxLine = 256 << 10
)

// ends are those of files of records. Each takes the place of the one before it: while it
// does, both are there, and the one before is the whole one.
var ends = []string{RecordsEnd, CompressedEnd, SealedEnd}

// ErrTrail means: the files are no trail.
var ErrTrail = errors.New("audit trail")

// errTooLong means: what should be a line is longer than any record.
var errTooLong = fmt.Errorf("%w: a line of more than %d bytes", ErrTrail, MaxLine)

// Segment is a file of records.
type Segment struct {
	Number int64
	Path   string
}

// First is the sequence number of the segment's first record.
func (s Segment) First() uint64 { return uint64(s.Number)*SegmentRecords + 1 } //nolint:gosec // not negative

func (s Segment) last() uint64 { return s.First() + SegmentRecords - 1 }

// Sealed tells whether the segment's file is sealed.
func (s Segment) Sealed() bool { return strings.HasSuffix(s.Path, SealedEnd) }

// FindSegment is a segment of a directory, whichever form its file has. That it is there,
// Open tells.
func FindSegment(dir string, n int64) Segment {
	return Segment{n, filepath.Join(dir, Name(n, RecordsEnd))}
}

// numbered reads the name of a file of records: end is which of the ends it has.
func numbered(name string) (n int64, end int, ok bool) {
	for end, text := range ends {
		number, ok := strings.CutSuffix(name, text)
		if !ok || len(number) != digits {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		return n, end, err == nil && n >= 0
	}
	return 0, 0, false
}

// Records names the segment's records, as the record of their removal does.
func (s Segment) Records() string {
	return fmt.Sprintf("records %d to %d", s.First(), s.last())
}

// Name is the file's name of a segment, with one of the ends.
func Name(segment int64, end string) string { return fmt.Sprintf("%0*d%s", digits, segment, end) }

// Segments are those of a directory, in order. ErrTrail if some are missing in between.
func Segments(dir string) ([]Segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	found := map[int64]int{} // which end
	for _, e := range entries {
		n, end, ok := numbered(e.Name())
		if !ok {
			continue
		}
		if there, both := found[n]; !both || end < there {
			found[n] = end
		}
	}
	var out []Segment
	for n, end := range found {
		out = append(out, Segment{n, filepath.Join(dir, Name(n, ends[end]))})
	}
	slices.SortFunc(out, func(a, b Segment) int { return int(a.Number - b.Number) })
	for i, s := range out {
		if want := out[0].Number + int64(i); s.Number != want {
			return nil, fmt.Errorf("%w: segment %d is missing: the records %d to %d", ErrTrail, want, want*SegmentRecords+1, s.Number*SegmentRecords)
		}
	}
	return out, nil
}

// Open opens the records, also where their file has got another form since the segment was
// listed. A sealed one is opened by o, which may be nil.
func (s Segment) Open(ctx context.Context, o Opener) (io.ReadCloser, error) {
	name, r, err := s.OpenFile(ctx, o)
	if err != nil || !strings.HasSuffix(name, CompressedEnd) {
		return r, err
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrTrail, s.Path, err), r.Close())
	}
	return &compressed{z, r}, nil
}

// OpenFile is Open, but the records are as their file has them: name is that of such a file,
// of a sealed one that of the file that was sealed.
func (s Segment) OpenFile(ctx context.Context, o Opener) (name string, r io.ReadCloser, err error) {
	f, err := s.file()
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	name = filepath.Base(f.Name())
	if !strings.HasSuffix(name, SealedEnd) {
		return name, f, nil // plain ones can be sought in
	}
	in, err := s.unseal(ctx, o, f)
	if err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	return Name(s.Number, CompressedEnd), &opened{in, f}, nil
}

// file opens the segment's file, or that which has taken its place.
func (s Segment) file() (*os.File, error) {
	first := max(0, slices.IndexFunc(ends, func(end string) bool { return strings.HasSuffix(s.Path, end) }))
	number := strings.TrimSuffix(s.Path, ends[first])
	var missing error
	for _, end := range ends[first:] {
		f, err := os.Open(number + end)
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		if missing == nil {
			missing = err
		}
	}
	return nil, missing
}

// opened is what a sealed file holds.
type opened struct {
	io.Reader
	file io.Closer
}

func (o *opened) Close() error { return o.file.Close() }

type compressed struct {
	*gzip.Reader
	file io.Closer
}

func (c *compressed) Close() error { return errors.Join(c.Reader.Close(), c.file.Close()) }

// Lines calls f with each line, without its end, until f wants no more. torn is how many
// bytes follow the last whole line.
func Lines(r io.Reader, f func(line []byte) (more bool, err error)) (torn int, err error) {
	b := bufio.NewReaderSize(r, MaxLine)
	for {
		line, err := b.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return len(line), nil
		case errors.Is(err, bufio.ErrBufferFull):
			return 0, errTooLong
		case err != nil:
			return 0, fmt.Errorf("%w: %w", ErrTrail, err)
		}
		more, err := f(bytes.TrimSuffix(line, []byte{'\n'}))
		if err != nil || !more {
			return 0, err
		}
	}
}

// each calls f with each line of the segment.
func (s Segment) each(o Opener, f func(line []byte) (bool, error)) (torn int, err error) {
	r, err := s.Open(context.Background(), o) // the tree's readers have no context; an Opener bounds what it asks for
	if err != nil {
		return 0, err
	}
	defer r.Close() //nolint:errcheck // only read
	torn, err = Lines(r, f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.Path, err)
	}
	return torn, nil
}

// leaves are the leaf hashes of a segment's records.
func (s Segment) leaves(o Opener) (out []Hash, err error) {
	_, err = s.each(o, func(line []byte) (bool, error) {
		out = append(out, RecordHash(line))
		return len(out) < SegmentRecords, nil
	})
	return out, err
}

// Root is the root of the tree of the segment's records, which are all there.
func (s Segment) Root(o Opener) (root Hash, err error) {
	leaves, err := s.leaves(o)
	if err != nil {
		return root, err
	}
	if len(leaves) != SegmentRecords {
		return root, fmt.Errorf("%w: segment %d has %d records, %d belong to it", ErrTrail, s.Number, len(leaves), SegmentRecords)
	}
	var in segmentTree
	for i, leaf := range leaves {
		if in, err = in.add(int64(i), leaf); err != nil {
			return root, err
		}
	}
	return in[len(in)-1], nil
}
