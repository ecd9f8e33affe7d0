package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Write writes a backup. snapshot writes the snapshot that h describes; sign signs
// a message with the identity key of h.Signer (ECDSA P-256 of its SHA-256, ASN.1
// DER). h.Format is set here.
func Write(w io.Writer, h Header, snapshot func(io.Writer) error, sign func(message []byte) ([]byte, error)) error {
	h.Format = Format
	if err := h.check(); err != nil {
		return err
	}
	header, err := json.Marshal(&h)
	if err != nil {
		return fmt.Errorf("writing backup: %w", err)
	}
	sum := sha256.New()
	x := &writer{w: io.MultiWriter(w, sum), sum: sum}
	if _, err := io.WriteString(x.w, magic); err != nil {
		return fmt.Errorf("writing backup: %w", err)
	}
	if err := x.frame(kindHeader, header); err != nil {
		return err
	}
	if err := snapshot(x); err != nil {
		return err
	}
	if len(x.piece) == 0 {
		return errors.New("writing backup: there is no snapshot to put into it")
	}
	if err := x.frame(kindData, x.piece); err != nil {
		return err
	}
	digest := sum.Sum(nil)
	signature, err := sign(message(digest))
	if err != nil {
		return fmt.Errorf("signing backup: %w", err)
	}
	if err := verify(h.Signer, digest, signature); err != nil {
		return fmt.Errorf("signing backup: %w", err)
	}
	return x.frame(kindSignature, signature)
}

// writer cuts a snapshot into pieces.
type writer struct {
	w     io.Writer
	sum   hash.Hash
	piece []byte
}

func (x *writer) frame(kind byte, body []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body))) //nolint:gosec // at most pieceSize
	if _, err := x.w.Write(append(head, body...)); err != nil {
		return fmt.Errorf("writing backup: %w", err)
	}
	return nil
}

// Write implements io.Writer. A full piece is held back until more comes, so that
// the last one is never empty.
func (x *writer) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if len(x.piece) == pieceSize {
			if err := x.frame(kindData, x.piece); err != nil {
				return 0, err
			}
			x.piece = x.piece[:0]
		}
		n := min(pieceSize-len(x.piece), len(rest))
		x.piece, rest = append(x.piece, rest[:n]...), rest[n:]
	}
	return len(p), nil
}
