// Package envelope seals objects and streams with data keys: format KEO1.
//
// A key management service hands out a data key twice, in plaintext and as a
// blob that only the service can open. [Seal] encrypts an object under the
// plaintext, forgets it, and keeps the blob in the object's header. [Open]
// has the service open the blob. The service never sees the object, and the
// object's key is nowhere in clear.
//
// # Format KEO1
//
// The format is frozen. Integers are big-endian.
//
//	 0     "KEO1"
//	 4     suite, u8 = 1
//	 5     flags, u8; bit 0: length unknown; other bits 0
//	 6     length of the plaintext in bytes, u64; 0 if unknown; at most 2^48
//	14     salt, 32 random bytes
//	46     commitment, 32
//	78     n, u16, at least 1
//	80     blob of the data key, n
//	80+n   stream, to the end
//
//	stream key = HKDF-SHA256(data key, salt, "keo/data/v1"   || bytes [4:14])
//	commitment = HKDF-SHA256(data key, salt, "keo/commit/v1" || bytes [4:14])
//
// The data key has 32 bytes. Suite 1 is DARE 2.0 of github.com/minio/sio with
// AES-256-GCM and nothing else: packages of 64 KiB, each 32 bytes longer than
// its plaintext, the last one of 1 byte to 64 KiB and marked as final. The
// nonce of a stream is random, the stream key is that of one stream only, and
// a package's number is part of its nonce.
//
// DARE has no encoding of an empty plaintext. The empty object is the header
// with length 0, known, and an empty stream; a writer that did not know the
// length writes that header too once it is closed without a byte. A header
// with "length unknown" over an empty stream is therefore always a truncated
// object, and as the commitment covers flags and length, no other object can
// be cut down to an empty one.
//
// Neither the stream key nor the commitment depends on the blob: [Rewrap]
// moves an object to another key, or another version of it, by its header
// alone.
//
// # What a reader may rely on
//
// The commitment is compared before anything is decrypted. Every byte that a
// reader returns is authentic and at its place. But readers are streaming:
// the bytes of a truncated or damaged object that stand before the damage are
// returned before it is met. An object is whole only when [Open] has returned
// nil or [OpenReader] io.EOF. Who must not act on a part of an object writes
// to a temporary file and renames it after success.
//
// Data keys and stream keys are overwritten as soon as they have been used.
// What Go's crypto packages copied of them stays until the memory is reused.
package envelope

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/minio/sio"
)

const (
	// UnknownSize stands for the size of a plaintext that is not known before
	// its end.
	UnknownSize int64 = -1

	// MaxSize is the largest plaintext in bytes: 2^32 packages.
	MaxSize int64 = 1 << 48

	// MaxBlobSize is the largest blob of a data key in bytes.
	MaxBlobSize = 1<<16 - 1

	// DataKeySize is the size of a data key in bytes.
	DataKeySize = 32
)

const (
	payloadSize = 64 << 10              // bytes of plaintext in every package but the last
	packageSize = 16 + payloadSize + 16 // header, ciphertext, tag
	sealAtOnce  = 4 * payloadSize       // bytes that Seal reads at a time: sio copies one package of each

	dataLabel   = "keo/data/v1"
	commitLabel = "keo/commit/v1"
)

var (
	// ErrFormat means: the bytes are no KEO1 header, or one of a suite, flag or
	// size that this release does not know.
	ErrFormat = errors.New("envelope: malformed header")

	// ErrCorrupt means: the object does not verify.
	ErrCorrupt = errors.New("envelope: object does not verify")

	// ErrTruncated means: the source ended before the object did. It is an
	// ErrCorrupt. An object of unknown length that was cut within a package
	// cannot be told from a damaged one and is reported as ErrCorrupt only.
	ErrTruncated = fmt.Errorf("%w: truncated", ErrCorrupt)

	// ErrSize means: the plaintext is not of the size declared, or exceeds MaxSize.
	ErrSize = errors.New("envelope: plaintext is not of the declared size")

	// ErrRange means: the range is not within the object.
	ErrRange = errors.New("envelope: range outside of the object")

	// ErrDataKey means: the key service returned a data key that is not of
	// DataKeySize, or a blob that is empty or exceeds MaxBlobSize.
	ErrDataKey = errors.New("envelope: unusable data key")
)

// DataKeys is the part of a key management service this package needs. The
// encryption context is handed over as the caller of this package gave it; a
// blob opens only with the context it was made with.
type DataKeys interface {
	// GenerateDataKey returns a new data key of DataKeySize bytes and its
	// blob, encrypted under key. The plaintext belongs to the caller, who
	// overwrites it.
	GenerateDataKey(ctx context.Context, key string, encryptionContext map[string]string) (plaintext, blob []byte, err error)

	// DecryptDataKey opens a blob. The plaintext belongs to the caller, who
	// overwrites it.
	DecryptDataKey(ctx context.Context, blob []byte, encryptionContext map[string]string) (plaintext []byte, err error)
}

func derive(dataKey []byte, h *Header, label string) ([]byte, error) {
	return hkdf.Key(sha256.New, dataKey, h.salt[:], label+string(h.params()), sha256.Size)
}

// unlock returns the stream key of the object with header h, after its
// commitment was found right. The caller clears it.
func unlock(ctx context.Context, keys DataKeys, ec map[string]string, h *Header) ([]byte, error) {
	dataKey, err := keys.DecryptDataKey(ctx, h.Blob, ec)
	defer clear(dataKey)
	if err != nil {
		return nil, fmt.Errorf("envelope: open data key: %w", err)
	}
	if len(dataKey) != DataKeySize {
		return nil, fmt.Errorf("%w: %d bytes", ErrDataKey, len(dataKey))
	}
	commitment, err := derive(dataKey, h, commitLabel)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if subtle.ConstantTimeCompare(commitment, h.commitment[:]) != 1 {
		return nil, fmt.Errorf("%w: commitment does not match", ErrCorrupt)
	}
	streamKey, err := derive(dataKey, h, dataLabel)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return streamKey, nil
}

// dare pins sio to suite 1.
func dare(streamKey []byte) sio.Config {
	return sio.Config{
		MinVersion:   sio.Version20,
		MaxVersion:   sio.Version20,
		CipherSuites: []byte{sio.AES_256_GCM},
		Key:          streamKey,
	}
}

// contextReader ends reading when ctx is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// copyAll copies size bytes, or what there is of UnknownSize, by way of one
// buffer of so many bytes at most, whatever dst and src would rather do.
func copyAll(dst io.Writer, src io.Reader, size, buffer int64) (int64, error) {
	if size != UnknownSize {
		buffer = min(buffer, size+1)
	}
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, buffer))
}
