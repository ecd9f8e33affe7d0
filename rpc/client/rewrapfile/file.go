// Package rewrapfile is the file that brings key versions from one generation of the domain key
// to another: kmsd recovery rewrap writes it on a machine without a cluster, kmsctl domain
// rewrap apply reads it. It holds wrapped keys only, which no one can open without the
// cluster's domain key, and says which keys there are.
//
// It is JSON, one value a line: a Header, Items, a Trailer with the SHA-256 of all lines
// before it. The trailer finds damage, not malice: a node takes a token only if its HSM has
// opened it as the same key.
package rewrapfile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Format is the format of files, in their first line.
const Format = "quorumkms-rewrap/1"

// maxLine is the longest line, in bytes: an item with the largest token has less.
const maxLine = 32 << 10

// ErrMalformed means: it is no such file, or one that is damaged or cut off.
var ErrMalformed = errors.New("not a whole file of rewrapped keys")

// Header is the first line.
type Header struct {
	Format     string `json:"format"`
	Cluster    string `json:"cluster"`    // UUID
	From       uint32 `json:"from"`       // generation of the tokens that are replaced
	Generation uint32 `json:"generation"` // of the new ones
	Index      uint64 `json:"index"`      // log index of the backup that they were made of
}

// Item is one key version's new token.
type Item struct {
	Key     string `json:"key"` // UUID
	Version uint32 `json:"version"`
	Old     []byte `json:"old"`   // SHA-256 of the token that it replaces
	Token   []byte `json:"token"` // KWT1
}

// Trailer is the last line.
type Trailer struct {
	Count  uint64 `json:"count"`  // of items
	SHA256 []byte `json:"sha256"` // of every line before it, line ends included
}

// Writer writes a file.
type Writer struct {
	w     *bufio.Writer
	hash  hash.Hash
	count uint64
}

// NewWriter begins a file; it fills in the format.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	out := &Writer{w: bufio.NewWriter(w), hash: sha256.New()}
	h.Format = Format
	return out, out.line(h)
}

// Add adds an item.
func (w *Writer) Add(item Item) error {
	w.count++
	return w.line(item)
}

// Close ends the file. It does not close what it was written to.
func (w *Writer) Close() error {
	if err := w.line(Trailer{Count: w.count, SHA256: w.hash.Sum(nil)}); err != nil {
		return err
	}
	return w.w.Flush()
}

func (w *Writer) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	w.hash.Write(b)
	_, err = w.w.Write(b)
	return err
}

// Check reads a whole file and proves that it is complete. ErrMalformed.
func Check(r io.Reader) (Header, uint64, error) {
	n := uint64(0)
	h, err := Read(r, func(Item) error {
		n++
		return nil
	})
	return h, n, err
}

// Read calls f with each item of a file. The file is known to be whole only when Read
// returns nil. ErrMalformed, or f's error.
func Read(r io.Reader, f func(Item) error) (h Header, err error) {
	lines := bufio.NewReaderSize(r, maxLine)
	sum, count := sha256.New(), uint64(0)
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return h, fmt.Errorf("%w: line %d has more than %d bytes", ErrMalformed, n, maxLine)
		case err != nil && !errors.Is(err, io.EOF):
			return h, err
		case err != nil:
			return h, fmt.Errorf("%w: it ends in line %d", ErrMalformed, n)
		}
		if n == 1 {
			if err := strict(line, &h); err != nil || h.Format != Format {
				return h, fmt.Errorf("%w: line 1 does not say %q", ErrMalformed, Format)
			}
			sum.Write(line)
			continue
		}
		var item Item
		if strict(line, &item) == nil && item.Version != 0 {
			sum.Write(line)
			count++
			if err := f(item); err != nil {
				return h, err
			}
			continue
		}
		var end Trailer
		if err := strict(line, &end); err != nil {
			return h, fmt.Errorf("%w: line %d: %w", ErrMalformed, n, err)
		}
		if end.Count != count || !bytes.Equal(end.SHA256, sum.Sum(nil)) {
			return h, fmt.Errorf("%w: its checksum differs, or items are missing", ErrMalformed)
		}
		if _, err := lines.ReadByte(); !errors.Is(err, io.EOF) {
			return h, fmt.Errorf("%w: something follows its last line", ErrMalformed)
		}
		return h, nil
	}
}

// strict reads a value that must be as it would be written.
func strict[T any](line []byte, v *T) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(append(again, '\n'), line) {
		return errors.New("it is not written as it should be")
	}
	return nil
}
