package envelope

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/minio/sio"
)

// Seal reads the plaintext from src to its end and writes the sealed object
// to dst. size is the size of the plaintext in bytes, or UnknownSize for a
// pipe; an object of known size should be sealed as such, for its readers
// then know what to expect. Seal returns the number of bytes of plaintext
// written, and ErrSize if src holds fewer or more than size. What dst holds
// after an error is refused by every reader, unless it was dst that failed
// and yet kept all. Memory is bounded whatever the size.
//
// key, and the encryption context ec, are the key service's terms.
func Seal(ctx context.Context, keys DataKeys, key string, ec map[string]string, dst io.Writer, src io.Reader, size int64) (int64, error) {
	w, err := NewSealWriter(ctx, keys, key, ec, dst, size)
	if err != nil {
		return 0, err
	}
	n, err := copyAll(w, contextReader{ctx, src}, size, sealAtOnce)
	if err != nil {
		return n, err
	}
	return n, w.Close()
}

// SealWriter seals what is written to it. It is not safe for concurrent use.
type SealWriter struct {
	dst    io.Writer
	stream io.WriteCloser
	header []byte
	empty  []byte // the header instead if there is no plaintext
	size   int64  // declared, or UnknownSize
	limit  int64  // of n
	n      int64  // bytes of plaintext taken
	err    error  // of the first call that failed
	closed bool
}

var errClosed = errors.New("envelope: write after close")

// NewSealWriter returns a writer that seals a plaintext of size bytes, or of
// UnknownSize, to dst. It fetches a data key at once; ctx is for that call
// only. dst is written to from the first Write or Close on, and never closed.
//
// Close declares the plaintext complete. Who cannot provide the rest of a
// plaintext of unknown size abandons the writer without closing it; every
// reader then refuses the object.
func NewSealWriter(ctx context.Context, keys DataKeys, key string, ec map[string]string, dst io.Writer, size int64) (*SealWriter, error) {
	return newSealWriter(ctx, keys, key, ec, dst, size, rand.Reader)
}

func newSealWriter(ctx context.Context, keys DataKeys, key string, ec map[string]string, dst io.Writer, size int64, random io.Reader) (*SealWriter, error) {
	if size < UnknownSize || size > MaxSize {
		return nil, fmt.Errorf("%w: %d", ErrSize, size)
	}
	dataKey, blob, err := keys.GenerateDataKey(ctx, key, ec)
	defer clear(dataKey)
	if err != nil {
		return nil, fmt.Errorf("envelope: generate data key: %w", err)
	}
	if len(dataKey) != DataKeySize {
		return nil, fmt.Errorf("%w: %d bytes", ErrDataKey, len(dataKey))
	}
	if err := checkBlob(blob); err != nil {
		return nil, err
	}

	h := &Header{Size: size, Blob: blob}
	if _, err := io.ReadFull(random, h.salt[:]); err != nil {
		return nil, fmt.Errorf("envelope: salt: %w", err)
	}
	w := &SealWriter{dst: dst, size: size, limit: size}
	if size == UnknownSize {
		w.limit = MaxSize
	}
	if w.header, err = commit(dataKey, *h); err != nil {
		return nil, err
	}
	none := *h
	none.Size = 0
	if w.empty, err = commit(dataKey, none); err != nil {
		return nil, err
	}
	streamKey, err := derive(dataKey, h, dataLabel)
	defer clear(streamKey)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	config := dare(streamKey)
	config.Rand = random
	// sio would close a dst that can be closed.
	if w.stream, err = sio.EncryptWriter(struct{ io.Writer }{dst}, config); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return w, nil
}

// commit returns h, encoded, with its commitment.
func commit(dataKey []byte, h Header) ([]byte, error) {
	c, err := derive(dataKey, &h, commitLabel)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	copy(h.commitment[:], c)
	return h.encode(), nil
}

// Write takes plaintext. It returns ErrSize, and takes nothing, if the
// plaintext would exceed the size declared or MaxSize. After an error every
// later call returns the same.
func (w *SealWriter) Write(p []byte) (int, error) {
	if w.closed {
		return 0, errClosed
	}
	if w.err != nil || len(p) == 0 {
		return 0, w.err
	}
	if int64(len(p)) > w.limit-w.n {
		w.err = fmt.Errorf("%w: more than %d", ErrSize, w.limit)
		return 0, w.err
	}
	if w.n == 0 {
		if w.err = w.writeHeader(w.header); w.err != nil {
			return 0, w.err
		}
	}
	var n int
	n, w.err = w.stream.Write(p)
	w.n += int64(n)
	return n, w.err
}

// Close seals the last package as the final one. It returns ErrSize, and
// leaves the object unfinished, if less than the declared size was written.
func (w *SealWriter) Close() error {
	if w.closed || w.err != nil {
		return w.err
	}
	if w.size != UnknownSize && w.n != w.size {
		w.err = fmt.Errorf("%w: %d of %d", ErrSize, w.n, w.size)
		return w.err
	}
	w.closed = true
	if w.n == 0 {
		if w.err = w.writeHeader(w.empty); w.err != nil {
			return w.err
		}
	}
	w.err = w.stream.Close()
	return w.err
}

func (w *SealWriter) writeHeader(header []byte) error {
	n, err := w.dst.Write(header)
	if err == nil && n != len(header) {
		err = io.ErrShortWrite
	}
	return err
}
