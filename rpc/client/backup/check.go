package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash"
	"io"
)

// Of the snapshot in a backup (QKS1, package fsm), what can be checked without a key.
const (
	snapshotMagic   = "QKS1"
	snapshotHeader  = 'H'
	snapshotKey     = 'K'
	snapshotTrailer = 'Z'

	maxRecord = 16 << 20 // bytes
	maxSmall  = 4 << 10  // bytes of the snapshot's header and trailer
)

// Summary is what Check has found.
type Summary struct {
	Header
	Bytes  int64  // of the file
	SHA256 []byte // of the file
}

// Progress is told how far a Check has come: records of the snapshot and bytes of
// the file.
type Progress func(records, ofRecords uint64, bytes int64)

// Check reads a whole backup and checks all that needs no key: the structure and
// the exact length, the snapshot's count and checksum, the signature by the key that
// the header carries, and that header and snapshot agree. Whether that key is a node's
// is for the caller to find out (Fingerprint). progress may be nil. An error wraps
// ErrRefused, or is r's own.
func Check(r io.Reader, progress Progress) (Summary, error) {
	whole := &counted{r: r, sum: sha256.New()}
	b, err := NewReader(whole)
	if err != nil {
		return Summary{}, err
	}
	if progress == nil {
		progress = func(uint64, uint64, int64) {}
	}
	s := &snapshot{r: b, sum: sha256.New(), progress: func(records uint64) { progress(records, b.header.Records, whole.n) }}
	if err := s.check(b.header); err != nil {
		return Summary{}, err
	}
	return Summary{Header: b.header, Bytes: whole.n, SHA256: whole.sum.Sum(nil)}, nil
}

// counted counts and hashes what is read. The reader above it reads ahead, to the
// end at last.
type counted struct {
	r   io.Reader
	n   int64
	sum hash.Hash
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.sum.Write(p[:n])
	return n, err
}

// snapshot walks over the frames of a snapshot.
type snapshot struct {
	r        *Reader
	sum      hash.Hash
	progress func(records uint64)
}

func (s *snapshot) check(h Header) error {
	start := make([]byte, len(snapshotMagic))
	if err := s.full(start); err != nil {
		return err
	}
	if string(start) != snapshotMagic {
		return refused("the snapshot in it does not begin with %s", snapshotMagic)
	}
	s.sum.Write(start)
	if err := s.header(h); err != nil {
		return err
	}
	for records, keys := uint64(0), uint64(0); ; records++ {
		head := make([]byte, frameHead)
		if err := s.full(head); err != nil {
			return err
		}
		kind, n := head[0], int64(binary.BigEndian.Uint32(head[1:]))
		if kind == snapshotTrailer {
			if records != h.Records || keys != h.Keys {
				return refused("%d records with %d keys read, %d with %d announced", records, keys, h.Records, h.Keys)
			}
			return s.trailer(n, records)
		}
		if kind < 'A' || kind > 'Z' || kind == snapshotHeader || n > maxRecord {
			return refused("record %d: frame %q of %d bytes", records, kind, n)
		}
		if kind == snapshotKey {
			keys++
		}
		s.sum.Write(head)
		if copied, err := io.Copy(s.sum, io.LimitReader(s.r, n)); err != nil {
			return err
		} else if copied < n {
			return refused("the snapshot in it is cut off")
		}
		s.progress(records + 1)
	}
}

// header checks that the snapshot is the one which the backup's header describes.
func (s *snapshot) header(h Header) error {
	head := make([]byte, frameHead)
	if err := s.full(head); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != snapshotHeader || n > maxSmall {
		return refused("bad header of the snapshot: frame %q of %d bytes", head[0], n)
	}
	body := make([]byte, n)
	if err := s.full(body); err != nil {
		return err
	}
	var inner struct {
		Cluster       string `json:"cluster"`
		RecoveryEpoch uint32 `json:"recovery_epoch"`
		Index         uint64 `json:"index"`
		Term          uint64 `json:"term"`
	}
	if err := json.Unmarshal(body, &inner); err != nil {
		return refused("bad header of the snapshot: %w", err)
	}
	if inner.Cluster != h.Cluster || inner.RecoveryEpoch != h.RecoveryEpoch || inner.Index != h.Index || inner.Term != h.Term {
		return refused("its header tells of index %d of cluster %s, the snapshot in it is of index %d of cluster %.60s",
			h.Index, h.Cluster, inner.Index, inner.Cluster)
	}
	s.sum.Write(head)
	s.sum.Write(body)
	return nil
}

func (s *snapshot) trailer(n int64, records uint64) error {
	if n > maxSmall {
		return refused("bad trailer of the snapshot: %d bytes", n)
	}
	body := make([]byte, n)
	if err := s.full(body); err != nil {
		return err
	}
	var z struct {
		Records uint64 `json:"records"`
		SHA256  []byte `json:"sha256"`
		MAC     []byte `json:"mac"`
	}
	if err := decodeStrict(body, &z); err != nil {
		return refused("bad trailer of the snapshot: %w", err)
	}
	if sum := s.sum.Sum(nil); z.Records != records || !bytes.Equal(z.SHA256, sum) {
		return refused("the checksum of the snapshot in it does not fit: %s is announced", base64.StdEncoding.EncodeToString(z.SHA256))
	}
	switch n, err := io.Copy(io.Discard, s.r); {
	case err != nil:
		return err
	case n > 0:
		return refused("bytes follow the snapshot in it")
	}
	return nil
}

// full fills b from the snapshot.
func (s *snapshot) full(b []byte) error {
	_, err := io.ReadFull(s.r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("the snapshot in it is cut off")
	}
	return err
}
