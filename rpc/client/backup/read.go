package backup

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Reader gives the snapshot in a backup. What it has read is to be trusted only
// after it has returned io.EOF, which it does when the signature has verified and
// nothing follows it. It needs memory for one piece.
type Reader struct {
	r      *bufio.Reader
	sum    hash.Hash
	header Header
	piece  []byte // what of the present piece was not given out yet
	last   bool   // the present piece is shorter than a full one: no other may follow
	pieces uint64
	err    error // what every further Read returns
}

// NewReader reads the header. An error wraps ErrRefused, or is r's own.
func NewReader(r io.Reader) (*Reader, error) {
	x := &Reader{r: bufio.NewReaderSize(r, pieceSize), sum: sha256.New()}
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(x.r, start); err != nil && !cut(err) {
		return nil, err
	}
	if string(start) != magic {
		return nil, refused("it does not begin with %s: it is no backup of QuorumKMS", magic)
	}
	x.sum.Write(start)
	head, kind, n, err := x.head()
	if err != nil {
		return nil, err
	}
	if kind != kindHeader || n > maxHeader {
		return nil, refused("bad header: frame %q of %d bytes", kind, n)
	}
	body, err := x.body(n)
	if err != nil {
		return nil, err
	}
	var release struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &release); err == nil && release.Format != Format {
		return nil, refused("format %d, this release reads %d: use the release that wrote it, or a later one", release.Format, Format)
	}
	if err := decodeStrict(body, &x.header); err != nil {
		return nil, refused("bad header: %w", err)
	}
	if err := x.header.check(); err != nil {
		return nil, err
	}
	x.sum.Write(head)
	x.sum.Write(body)
	return x, nil
}

// Header is what the backup says of itself.
func (x *Reader) Header() Header { return x.header }

// Read implements io.Reader.
func (x *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(x.piece) == 0 && x.err == nil {
		x.err = x.next()
	}
	if len(x.piece) == 0 {
		return 0, x.err
	}
	n := copy(p, x.piece)
	x.piece = x.piece[n:]
	return n, nil
}

// next takes the next frame in: a piece, or the signature, after which it is io.EOF.
func (x *Reader) next() error {
	head, kind, n, err := x.head()
	if err != nil {
		return err
	}
	switch {
	case kind == kindSignature && x.pieces > 0 && n <= maxSignature:
		return x.signature(n)
	case kind != kindData || x.last || n == 0 || n > pieceSize:
		return refused("frame %q of %d bytes behind %d pieces of the snapshot", kind, n, x.pieces)
	}
	if x.piece, err = x.body(n); err != nil {
		return err
	}
	x.sum.Write(head)
	x.sum.Write(x.piece)
	x.pieces, x.last = x.pieces+1, n < pieceSize
	return nil
}

func (x *Reader) signature(n int) error {
	signature, err := x.body(n)
	if err != nil {
		return err
	}
	if err := verify(x.header.Signer, x.sum.Sum(nil), signature); err != nil {
		return err
	}
	switch _, err := x.r.ReadByte(); {
	case err == nil:
		return refused("bytes follow its end")
	case !errors.Is(err, io.EOF):
		return err
	}
	return io.EOF
}

func (x *Reader) head() (head []byte, kind byte, n int, err error) {
	head = make([]byte, frameHead)
	if _, err := io.ReadFull(x.r, head); err != nil {
		return nil, 0, 0, cutOff(err)
	}
	return head, head[0], int(binary.BigEndian.Uint32(head[1:])), nil
}

func (x *Reader) body(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(x.r, b); err != nil {
		return nil, cutOff(err)
	}
	return b, nil
}

func cut(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func cutOff(err error) error {
	if cut(err) {
		return refused("it is cut off: its end is missing")
	}
	return fmt.Errorf("reading backup: %w", err)
}
