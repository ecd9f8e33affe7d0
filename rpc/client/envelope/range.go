package envelope

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/minio/sio"
)

// OpenRange writes the n bytes of plaintext from off on to dst. src is the
// sealed object, of size bytes. It returns the number of bytes written;
// ErrRange if the range is not within the plaintext; else errors as Open.
func OpenRange(ctx context.Context, keys DataKeys, ec map[string]string, dst io.Writer, src io.ReaderAt, size, off, n int64) (int64, error) {
	r, err := NewReaderAt(ctx, keys, ec, src, size)
	if err != nil {
		return 0, err
	}
	section, err := r.Range(off, n)
	if err != nil {
		return 0, err
	}
	return copyAll(dst, contextReader{ctx, section}, n, payloadSize)
}

// ReaderAt gives access to any range of the plaintext of a sealed object. It
// is safe for concurrent use if its source is. It keeps the stream key for as
// long as it lives.
//
// A range is authentic and at its place; damage elsewhere in the object goes
// unseen.
type ReaderAt struct {
	src       io.ReaderAt
	start     int64 // of the stream in src
	length    int64 // of the stream
	size      int64 // of the plaintext
	streamKey []byte
}

// NewReaderAt reads the header of the sealed object src, of size bytes, and
// has its data key opened; ctx is for that call only. It refuses an object
// whose size is not the one its length asks for, and, where the length is
// unknown, one whose last package is not the final one: it opens that package
// first. Errors are those of Open.
func NewReaderAt(ctx context.Context, keys DataKeys, ec map[string]string, src io.ReaderAt, size int64) (*ReaderAt, error) {
	h, err := ReadHeader(io.NewSectionReader(src, 0, max(size, 0)))
	if err != nil {
		return nil, err
	}
	r := &ReaderAt{src: src, start: int64(h.Len()), size: h.Size}
	r.length = size - r.start
	if r.streamKey, err = unlock(ctx, keys, ec, h); err != nil {
		return nil, err
	}
	if err := r.checkEnd(); err != nil {
		clear(r.streamKey)
		return nil, err
	}
	return r, nil
}

// checkEnd compares the length of the stream with the size of the plaintext,
// or finds the latter out.
func (r *ReaderAt) checkEnd() error {
	if r.size != UnknownSize {
		switch want := streamSize(r.size); {
		case r.length < want:
			return ErrTruncated
		case r.length > want:
			return fmt.Errorf("%w: %d trailing bytes", ErrCorrupt, r.length-want)
		}
		return nil
	}
	if r.length == 0 {
		return ErrTruncated
	}
	size, err := sio.DecryptedSize(uint64(r.length)) //nolint:gosec // > 0
	if err != nil || size > uint64(MaxSize) {
		return fmt.Errorf("%w: stream of %d bytes", ErrCorrupt, r.length)
	}
	r.size = int64(size)
	last, err := r.Range(r.size-1, 1)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(last, make([]byte, 1))
	return err
}

// Size returns the size of the plaintext in bytes.
func (r *ReaderAt) Size() int64 { return r.size }

// ReadAt implements io.ReaderAt on the plaintext. It opens whole packages of
// 64 KiB; Range is cheaper for a range that is read bit by bit.
func (r *ReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", ErrRange, off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.size-off)
	section, err := r.Range(off, n)
	if err != nil {
		return 0, err
	}
	read, err := io.ReadFull(section, p[:n])
	if err == nil && n < int64(len(p)) {
		err = io.EOF
	}
	return read, err
}

// Range returns a reader of the n bytes of plaintext from off on, or ErrRange
// if they are not all within the object. It opens each package once.
func (r *ReaderAt) Range(off, n int64) (io.Reader, error) {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d", ErrRange, n, off, r.size)
	}
	if n == 0 {
		return &rangeReader{err: io.EOF}, nil
	}
	first, behind := off/payloadSize, (off+n-1)/payloadSize+1 // packages
	from, to := first*packageSize, min(behind*packageSize, r.length)
	src := &source{r: io.NewSectionReader(r.src, r.start+from, to-from), want: to - from}
	config := dare(r.streamKey)
	config.SequenceNumber = uint32(first) //nolint:gosec // MaxSize is 2^32 packages
	plain, err := sio.DecryptReader(src, config)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return &rangeReader{
		plain: plain,
		src:   src,
		skip:  off % payloadSize,
		left:  n,
		tail:  min(behind*payloadSize, r.size) - (off + n),
		final: to == r.length,
	}, nil
}

// rangeReader reads a range out of whole packages, and sees to it that the
// final one is the last of the object and no other.
type rangeReader struct {
	plain io.Reader
	src   *source
	skip  int64 // bytes in the packages before the range
	left  int64 // bytes of the range not returned yet
	tail  int64 // bytes in the packages behind the range
	final bool  // the last of the packages is that of the object
	err   error
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.read(p[:min(int64(len(p)), r.left)])
	if err != nil {
		r.err = r.src.explain(err)
		return n, r.err
	}
	if r.left > 0 {
		return n, nil
	}
	if r.err = r.finish(); r.err != nil {
		return 0, r.err
	}
	r.err = io.EOF
	return n, nil
}

func (r *rangeReader) read(p []byte) (int, error) {
	if r.skip > 0 {
		if _, err := io.CopyN(io.Discard, r.plain, r.skip); err != nil {
			return 0, err
		}
		r.skip = 0
	}
	n, err := r.plain.Read(p)
	r.left -= int64(n)
	return n, err
}

// finish reads the packages to their end, after which sio reports io.EOF if
// the last of them was a final one, and an error if not.
func (r *rangeReader) finish() error {
	tail, err := io.Copy(io.Discard, r.plain)
	whole := tail == r.tail
	switch {
	case whole && r.final == (err == nil):
		return nil
	case whole && r.final && r.src.err == nil:
		return ErrTruncated
	case err == nil:
		err = errFinal
	}
	return r.src.explain(err)
}

var errFinal = errors.New("final package before the end")
