package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// sealKey makes the seals of one data directory: HMAC-SHA256 under the log key over
// "quorumkms/seal/v1", the cluster and the raft id. What another node wrote, or this
// one in an earlier directory, does not verify under it.
type sealKey []byte

func newSealKey(key fsm.LogKey, cluster fsm.ID, raftID string) sealKey {
	return key.Prove("quorumkms/seal/v1", append(cluster[:], raftID...))
}

// seal is HMAC-SHA256 under the seal key: 32 bytes.
type seal [sha256.Size]byte

// Names of what is sealed; none is the beginning of another.
const (
	sealedRecord   = "log\x00"
	sealedValue    = "stable\x00"
	sealedMark     = "mark\x00"
	sealedSnapshot = "snapshot\x00"
)

func (k sealKey) seal(what string, parts ...[]byte) (out seal) {
	h := hmac.New(sha256.New, k)
	h.Write([]byte(what))
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	return out
}

// verifies compares in constant time.
func (x seal) verifies(other []byte) bool { return hmac.Equal(x[:], other) }

// A record of the log is kept with its seal behind its extensions: the seal of the
// record that was written before it (32 bytes) and its own (32), which covers
// everything in the record, its place, and that other seal. Other nodes never see
// it: each seals what it writes itself.
const recordSeal = 2 * sha256.Size

func (k sealKey) record(l *raft.Log, link seal) seal {
	head := make([]byte, 0, sha256.Size+64)
	head = append(head, link[:]...)
	head = binary.BigEndian.AppendUint64(head, l.Index)
	head = binary.BigEndian.AppendUint64(head, l.Term)
	head = append(head, byte(l.Type))
	head = binary.BigEndian.AppendUint64(head, uint64(l.AppendedAt.Unix()))       //nolint:gosec // bits, not a number
	head = binary.BigEndian.AppendUint32(head, uint32(l.AppendedAt.Nanosecond())) //nolint:gosec // below 1e9
	head = binary.BigEndian.AppendUint64(head, uint64(len(l.Data)))
	return k.seal(sealedRecord, head, l.Data, l.Extensions)
}

// sealRecord gives a copy of a record with its seal; link is the seal of the record
// before it.
func (k sealKey) sealRecord(l *raft.Log, link seal) (raft.Log, seal) {
	own := k.record(l, link)
	out := *l
	out.Extensions = make([]byte, 0, len(l.Extensions)+recordSeal)
	out.Extensions = append(append(append(out.Extensions, l.Extensions...), link[:]...), own[:]...)
	return out, own
}

// openRecord verifies a record's own seal and takes it off.
func (k sealKey) openRecord(l *raft.Log) (link, own seal, err error) {
	n := len(l.Extensions) - recordSeal
	if n < 0 {
		return link, own, altered("log entry %d has no seal", l.Index)
	}
	copy(link[:], l.Extensions[n:])
	copy(own[:], l.Extensions[n+len(link):])
	plain := *l
	if plain.Extensions = l.Extensions[:n:n]; n == 0 {
		plain.Extensions = nil
	}
	if !k.record(&plain, link).verifies(own[:]) {
		return link, own, altered("the seal of log entry %d does not verify", l.Index)
	}
	*l = plain
	return link, own, nil
}

// wayBack is what an operator does about a disk that was altered.
const wayBack = "keep the data directory as evidence, remove this node (kmsctl cluster remove) and let it join anew with an empty one"

// altered makes the error for something on the disk that this node did not write.
func altered(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %s", ErrAltered, fmt.Errorf(format, args...), wayBack)
}
