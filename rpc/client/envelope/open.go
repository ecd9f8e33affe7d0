package envelope

import (
	"context"
	"fmt"
	"io"

	"github.com/minio/sio"
)

// Open reads a sealed object from src, which must end where the object ends,
// and writes the plaintext to dst. It returns the number of bytes written.
// The plaintext is whole only if the error is nil; what was written before an
// error is authentic, but a beginning only. Memory is bounded whatever the
// size.
//
// Errors are ErrFormat, ErrCorrupt (and so ErrTruncated), ErrDataKey, or wrap
// that of keys, src, dst or ctx.
func Open(ctx context.Context, keys DataKeys, ec map[string]string, dst io.Writer, src io.Reader) (int64, error) {
	r, err := NewOpenReader(ctx, keys, ec, contextReader{ctx, src})
	if err != nil {
		return 0, err
	}
	return copyAll(dst, r, r.Size(), payloadSize)
}

// OpenReader returns the plaintext of a sealed object. It is not safe for
// concurrent use.
type OpenReader struct {
	src   *source
	plain io.Reader
	size  int64 // committed, or UnknownSize
	limit int64 // of n
	n     int64 // bytes of plaintext returned
	err   error
}

// NewOpenReader reads the header of a sealed object from src, which must end
// where the object ends, and has its data key opened; ctx is for that call
// only. Errors are those of Open.
func NewOpenReader(ctx context.Context, keys DataKeys, ec map[string]string, src io.Reader) (*OpenReader, error) {
	h, err := ReadHeader(src)
	if err != nil {
		return nil, err
	}
	streamKey, err := unlock(ctx, keys, ec, h)
	defer clear(streamKey)
	if err != nil {
		return nil, err
	}
	r := &OpenReader{size: h.Size, limit: h.Size, src: &source{r: src, want: UnknownSize}}
	switch h.Size {
	case UnknownSize:
		r.limit = MaxSize
	case 0:
		r.plain = r.src // each byte of which exceeds the limit
		return r, nil
	default:
		r.src.want = streamSize(h.Size)
	}
	if r.plain, err = sio.DecryptReader(r.src, dare(streamKey)); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return r, nil
}

// Size returns the size of the plaintext in bytes, or UnknownSize.
func (r *OpenReader) Size() int64 { return r.size }

// Read returns authentic plaintext, and io.EOF only at the end of a whole
// object. Errors are those of Open, and last.
func (r *OpenReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.plain.Read(p)
	r.n += int64(n)
	switch {
	case r.n > r.limit:
		n, r.err = 0, fmt.Errorf("%w: more than %d bytes", ErrCorrupt, r.limit)
	case err == io.EOF && r.n < r.size:
		r.err = ErrTruncated
	case err == io.EOF:
		r.err = io.EOF
	case err != nil:
		r.err = r.src.explain(err)
	}
	return n, r.err
}

// source is the sealed stream as sio reads it. It keeps what sio hides: why
// the reading ended.
type source struct {
	r    io.Reader
	want int64 // bytes to expect, or UnknownSize
	n    int64 // bytes read
	eof  bool
	err  error // other than io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err == io.EOF {
		s.eof = true
	} else if err != nil {
		s.err = err
	}
	return n, err
}

// explain returns the error of this package for err, which reading the
// plaintext ended with.
func (s *source) explain(err error) error {
	switch {
	case s.err != nil:
		return fmt.Errorf("envelope: read stream: %w", s.err)
	case s.eof && s.want == UnknownSize && s.n%packageSize == 0, s.eof && s.n < s.want:
		return ErrTruncated
	default:
		return fmt.Errorf("%w: %v", ErrCorrupt, err) //nolint:errorlint // of sio, whose errors are not ours to promise
	}
}

// streamSize returns the length of the stream of a plaintext of size bytes.
func streamSize(size int64) int64 {
	const overhead = packageSize - payloadSize
	packages := (size + payloadSize - 1) / payloadSize
	return size + packages*overhead
}
