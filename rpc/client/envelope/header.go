package envelope

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	magic       = "KEO1"
	suite1      = 1
	flagUnknown = 1 << 0

	offSuite      = 4
	offFlags      = 5
	offLength     = 6
	offSalt       = 14
	offCommitment = 46
	offBlobLen    = 78
	fixedSize     = 80
)

// Header is what precedes the stream of a sealed object. It holds no secret.
// Size is not to be trusted before the object has been opened.
type Header struct {
	Size int64  // of the plaintext in bytes, or UnknownSize
	Blob []byte // the data key as the key service encrypted it, 1 to MaxBlobSize bytes

	salt       [32]byte
	commitment [32]byte
}

// Len returns the length of the header in bytes: the offset of the stream.
func (h *Header) Len() int { return fixedSize + len(h.Blob) }

// params returns bytes [4:14], which every derivation covers.
func (h *Header) params() []byte {
	b := make([]byte, offSalt-offSuite)
	b[0] = suite1
	if h.Size == UnknownSize {
		b[offFlags-offSuite] = flagUnknown
		return b
	}
	binary.BigEndian.PutUint64(b[offLength-offSuite:], uint64(h.Size)) //nolint:gosec // 0..MaxSize
	return b
}

func (h *Header) encode() []byte {
	b := make([]byte, 0, h.Len())
	b = append(b, magic...)
	b = append(b, h.params()...)
	b = append(b, h.salt[:]...)
	b = append(b, h.commitment[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Blob))) //nolint:gosec // 1..MaxBlobSize
	return append(b, h.Blob...)
}

// ParseHeader parses a header that fills b exactly.
func ParseHeader(b []byte) (*Header, error) {
	r := bytes.NewReader(b)
	h, err := ReadHeader(r)
	if err != nil {
		return nil, err
	}
	if r.Len() != 0 {
		return nil, fmt.Errorf("%w: %d trailing bytes", ErrFormat, r.Len())
	}
	return h, nil
}

// ReadHeader reads a header from r, and not a byte more. It returns ErrFormat
// for what is no header and ErrTruncated for the beginning of one.
func ReadHeader(r io.Reader) (*Header, error) {
	b := make([]byte, fixedSize)
	n, err := io.ReadFull(r, b)
	if got := string(b[:min(n, len(magic))]); !strings.HasPrefix(magic, got) {
		return nil, fmt.Errorf("%w: not a sealed object", ErrFormat)
	}
	if err != nil {
		return nil, headerError(err)
	}
	h, err := parseFixed(b)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, h.Blob); err != nil {
		return nil, headerError(err)
	}
	return h, nil
}

func headerError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return fmt.Errorf("envelope: read header: %w", err)
}

// parseFixed parses the fixedSize bytes before the blob, the magic excepted,
// and makes room for the blob.
func parseFixed(b []byte) (*Header, error) {
	if b[offSuite] != suite1 {
		return nil, fmt.Errorf("%w: suite %d", ErrFormat, b[offSuite])
	}
	flags, length := b[offFlags], binary.BigEndian.Uint64(b[offLength:])
	size := UnknownSize
	switch {
	case flags&^flagUnknown != 0:
		return nil, fmt.Errorf("%w: flags %#02x", ErrFormat, flags)
	case length > uint64(MaxSize):
		return nil, fmt.Errorf("%w: length %d", ErrFormat, length)
	case flags == 0:
		size = int64(length)
	case length != 0:
		return nil, fmt.Errorf("%w: length unknown and %d", ErrFormat, length)
	}
	n := binary.BigEndian.Uint16(b[offBlobLen:])
	if n == 0 {
		return nil, fmt.Errorf("%w: no data key", ErrFormat)
	}
	h := &Header{Size: size, Blob: make([]byte, n)}
	copy(h.salt[:], b[offSalt:])
	copy(h.commitment[:], b[offCommitment:])
	return h, nil
}

// Rewrap returns a copy of header, which must be one header exactly, with the
// blob that reencrypt made of its blob. The stream goes on unchanged behind
// the new header, whose length may differ. reencrypt must return a blob of
// the same data key: Rewrap sees no data key and cannot tell.
func Rewrap(ctx context.Context, header []byte, reencrypt func(ctx context.Context, blob []byte) ([]byte, error)) ([]byte, error) {
	h, err := ParseHeader(header)
	if err != nil {
		return nil, err
	}
	blob, err := reencrypt(ctx, h.Blob)
	if err != nil {
		return nil, fmt.Errorf("envelope: re-encrypt data key: %w", err)
	}
	if err := checkBlob(blob); err != nil {
		return nil, err
	}
	h.Blob = blob
	return h.encode(), nil
}

func checkBlob(blob []byte) error {
	if len(blob) == 0 || len(blob) > MaxBlobSize {
		return fmt.Errorf("%w: blob of %d bytes", ErrDataKey, len(blob))
	}
	return nil
}
