package trail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// A whole segment may be sealed: its compressed file is encrypted, as package envelope does it,
// under a data key of a customer master key. What is signed stays as it is: the records, not
// the files. Who has no permission to use the key takes a sealed segment's hash from
// HashesFile, and the checkpoints behind it prove that hash.

// SealPurpose is what the encryption context of a sealed segment names as its purpose.
const SealPurpose = "audit-trail"

// SealContext is the encryption context that a segment is sealed with. So one that was put in
// the place of another is not opened.
func SealContext(cluster, node string, segment int64) map[string]string {
	return map[string]string{"purpose": SealPurpose, "cluster": cluster, "node": node, "segment": strconv.FormatInt(segment, 10)}
}

// Opener opens sealed segments, for who may use their key.
type Opener interface {
	// OpenSegment returns what was sealed; sealed is the file, which ends where that ends. An
	// error that wraps ErrSealed means: the key cannot be used; what it says is why.
	OpenSegment(ctx context.Context, segment int64, sealed io.Reader) (io.Reader, error)
}

// ErrSealed means: records are sealed, and whoever asks cannot use their key.
var ErrSealed = errors.New("sealed audit records cannot be read")

// errNoOpener is why nobody opens a segment where there is no Opener.
var errNoOpener = fmt.Errorf("%w: nobody asks for their key here", ErrSealed)

// sealedMagic begins a file of package envelope; none is shorter than sealedLeast, in bytes.
const (
	sealedMagic = "KEO1"
	sealedLeast = 128
)

// looksSealed tells what is no sealed file at all.
func (s Segment) looksSealed() error {
	f, err := os.Open(s.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTrail, err)
	}
	defer f.Close() //nolint:errcheck // only read
	begin := make([]byte, sealedLeast)
	_, err = io.ReadFull(f, begin)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err == nil && string(begin[:len(sealedMagic)]) != sealedMagic:
		return fmt.Errorf("%w: %s is no sealed file", ErrTrail, filepath.Base(s.Path))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrTrail, err)
	}
	return nil
}

// unseal has a sealed segment opened.
func (s Segment) unseal(ctx context.Context, o Opener, sealed io.Reader) (io.Reader, error) {
	err := errNoOpener
	if o != nil {
		var r io.Reader
		if r, err = o.OpenSegment(ctx, s.Number, sealed); err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("the records %d to %d, segment %d: %w", s.First(), s.last(), s.Number, err)
}
