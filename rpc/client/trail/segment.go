package trail

import (
	"bufio"
	"bytes"
	"compress/gzip"
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
	CheckpointsEnd = ".checkpoints"
	digits         = 10
	// MaxLine is longer than any record, in bytes.
	MaxLine = 256 << 10
)

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

// Records names the segment's records, as the record of their removal does.
func (s Segment) Records() string {
	return fmt.Sprintf("records %d to %d", s.First(), Segment{Number: s.Number + 1}.First()-1)
}

// Name is the file's name of a segment, with one of the ends.
func Name(segment int64, end string) string { return fmt.Sprintf("%0*d%s", digits, segment, end) }

// Segments are those of a directory, in order. ErrTrail if some are missing in between.
func Segments(dir string) ([]Segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	found := map[int64]string{}
	for _, e := range entries {
		for _, end := range []string{CompressedEnd, RecordsEnd} {
			number, ok := strings.CutSuffix(e.Name(), end)
			if !ok || len(number) != digits {
				continue
			}
			n, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				continue
			}
			if found[n] == "" || end == RecordsEnd { // both: it was being compressed
				found[n] = filepath.Join(dir, e.Name())
			}
			break
		}
	}
	var out []Segment
	for n, path := range found {
		out = append(out, Segment{n, path})
	}
	slices.SortFunc(out, func(a, b Segment) int { return int(a.Number - b.Number) })
	for i, s := range out {
		if want := out[0].Number + int64(i); s.Number != want {
			return nil, fmt.Errorf("%w: segment %d is missing: the records %d to %d", ErrTrail, want, want*SegmentRecords+1, s.Number*SegmentRecords)
		}
	}
	return out, nil
}

// Open opens the records, also where they have been compressed since the segment was listed.
func (s Segment) Open() (io.ReadCloser, error) {
	f, err := os.Open(s.Path)
	if errors.Is(err, os.ErrNotExist) && strings.HasSuffix(s.Path, RecordsEnd) {
		s.Path = strings.TrimSuffix(s.Path, RecordsEnd) + CompressedEnd
		f, err = os.Open(s.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrail, err)
	}
	if !strings.HasSuffix(s.Path, CompressedEnd) {
		return f, nil
	}
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrTrail, s.Path, err), f.Close())
	}
	return &compressed{z, f}, nil
}

type compressed struct {
	*gzip.Reader
	file *os.File
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
func (s Segment) each(f func(line []byte) (bool, error)) (torn int, err error) {
	r, err := s.Open()
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
func (s Segment) leaves() (out []Hash, err error) {
	_, err = s.each(func(line []byte) (bool, error) {
		out = append(out, RecordHash(line))
		return len(out) < SegmentRecords, nil
	})
	return out, err
}
