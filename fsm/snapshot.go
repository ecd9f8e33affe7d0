package fsm

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A snapshot is "QKS1" and then frames: kind u8, length u32 (big-endian), JSON.
// The first frame is the header, the last the trailer, in between is one frame a
// record, in the order of the tables. The trailer's SHA-256 covers every byte
// before it; its MAC is HMAC-SHA256 under the log key over
// "quorumkms/snapshot/v1", the header's JSON and that SHA-256.
const (
	snapshotMagic = "QKS1"
	snapshotLabel = "quorumkms/snapshot/v1"
	frameHead     = 5
	maxFrame      = 16 << 20 // bytes; a key with every version at its limit fits
)

// recordKind names a kind of record in snapshots and in the running hash.
type recordKind byte

const (
	kindHeader  recordKind = 'H'
	kindCluster recordKind = 'C'
	kindTenant  recordKind = 'T'
	kindMember  recordKind = 'M'
	kindTicket  recordKind = 'J'
	kindKey     recordKind = 'K'
	kindAlias   recordKind = 'A'
	kindRequest recordKind = 'R'
	kindTrailer recordKind = 'Z'

	kindGrant     recordKind = 'G'
	kindPolicy    recordKind = 'P'
	kindDisabled  recordKind = 'D'
	kindBinding   recordKind = 'B'
	kindUse       recordKind = 'U'
	kindCopy      recordKind = 'Y'
	kindAuditHead recordKind = 'L'
)

// ErrSnapshot means: a snapshot is damaged, cut, forged or of another cluster.
var ErrSnapshot = errors.New("snapshot refused")

type snapshotHeader struct {
	Format        int    `json:"format"`
	Cluster       ID     `json:"cluster"`
	RecoveryEpoch uint32 `json:"recovery_epoch"`
	Index         uint64 `json:"index"`
	Term          uint64 `json:"term"`
	Now           int64  `json:"now"`
	Hash          []byte `json:"hash"`
}

type snapshotTrailer struct {
	Records uint64 `json:"records"`
	SHA256  []byte `json:"sha256"`
	MAC     []byte `json:"mac"`
}

type snapshotWriter struct {
	w       *bufio.Writer
	sum     hash.Hash
	records uint64
	err     error
}

// Records is how many records a snapshot of the state has.
func (s *State) Records() uint64 {
	n := s.tenants.len() + s.members.len() + s.tickets.len() + s.keys.len() + s.aliases.len() + s.requestOrder.len() +
		s.grants.len() + s.policies.len() + s.disabled.len() + s.bindings.len() + s.uses.len() + s.copies.len() + s.auditHeads.len()
	if s.Initialized() {
		n++
	}
	return uint64(n) //nolint:gosec // not negative
}

// WriteSnapshot writes the state; it holds nothing up, since the state does not
// change.
func (s *State) WriteSnapshot(w io.Writer, key LogKey) error {
	sum := sha256.New()
	x := &snapshotWriter{w: bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<16), sum: sum}
	_, x.err = x.w.WriteString(snapshotMagic)
	header := x.frame(kindHeader, snapshotHeader{
		Format: format, Cluster: s.cluster.ID, RecoveryEpoch: s.cluster.RecoveryEpoch,
		Index: s.index, Term: s.term, Now: s.now, Hash: s.hash[:],
	})
	if s.Initialized() {
		x.record(kindCluster, s.cluster)
	}
	s.tenants.tree.Scan(func(r *Tenant) bool { return x.record(kindTenant, r) })
	s.members.tree.Scan(func(r *Member) bool { return x.record(kindMember, r) })
	s.tickets.tree.Scan(func(r *Ticket) bool { return x.record(kindTicket, r) })
	s.keys.tree.Scan(func(r keyItem) bool { return x.record(kindKey, r.key) })
	s.aliases.tree.Scan(func(r *Alias) bool { return x.record(kindAlias, r) })
	s.grants.tree.Scan(func(r *Grant) bool { return x.record(kindGrant, r) })
	s.policies.tree.Scan(func(r *Policy) bool { return x.record(kindPolicy, r) })
	s.disabled.tree.Scan(func(r *DisabledPrincipal) bool { return x.record(kindDisabled, r) })
	s.bindings.tree.Scan(func(r *Binding) bool { return x.record(kindBinding, r) })
	s.uses.tree.Scan(func(r *LastUse) bool { return x.record(kindUse, r) })
	s.copies.tree.Scan(func(r *RecoveryCopy) bool { return x.record(kindCopy, r) })
	s.auditHeads.tree.Scan(func(r *AuditHead) bool { return x.record(kindAuditHead, r) })
	s.requestOrder.tree.Scan(func(r *Request) bool { return x.record(kindRequest, r) })
	if x.err != nil {
		return fmt.Errorf("writing snapshot: %w", x.err)
	}
	if err := x.w.Flush(); err != nil {
		return fmt.Errorf("writing snapshot: %w", err)
	}
	digest := x.sum.Sum(nil)
	x.frame(kindTrailer, snapshotTrailer{Records: x.records, SHA256: digest, MAC: key.mac(snapshotLabel, header, digest)})
	if err := errors.Join(x.err, x.w.Flush()); err != nil {
		return fmt.Errorf("writing snapshot: %w", err)
	}
	return nil
}

func (x *snapshotWriter) record(kind recordKind, r any) bool {
	x.records++
	x.frame(kind, r)
	return x.err == nil
}

func (x *snapshotWriter) frame(kind recordKind, r any) []byte {
	b, err := json.Marshal(r)
	if x.err == nil {
		x.err = err
	}
	if x.err == nil && len(b) > maxFrame {
		x.err = fmt.Errorf("record of %d bytes, at most %d", len(b), maxFrame)
	}
	if x.err != nil {
		return nil
	}
	head := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(b))) //nolint:gosec // at most maxFrame
	if _, x.err = x.w.Write(head); x.err == nil {
		_, x.err = x.w.Write(b)
	}
	return b
}

type snapshotReader struct {
	r    *bufio.Reader
	sum  hash.Hash
	peek bool // the MAC is not looked at: there is no key
}

func newSnapshotReader(r io.Reader) *snapshotReader {
	return &snapshotReader{r: bufio.NewReaderSize(r, 1<<16), sum: sha256.New()}
}

// frame reads the next frame; sum takes in everything but the trailer.
func (x *snapshotReader) frame() (recordKind, []byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(x.r, head[:]); err != nil {
		return 0, nil, unreadable(err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w: record of %d bytes, at most %d", ErrSnapshot, n, maxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(x.r, b); err != nil {
		return 0, nil, unreadable(err)
	}
	kind := recordKind(head[0])
	if kind != kindTrailer {
		x.sum.Write(head[:])
		x.sum.Write(b)
	}
	return kind, b, nil
}

func unreadable(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: cut off: %w", ErrSnapshot, err)
	}
	return fmt.Errorf("%w: %w", ErrSnapshot, err)
}

// ReadSnapshot reads and verifies all of a snapshot before it gives a state.
func ReadSnapshot(r io.Reader, key LogKey) (*State, error) {
	return newSnapshotReader(r).scan(key, func(recordKind) bool { return true })
}

// VerifySnapshot reads a snapshot as ReadSnapshot does, every record as it would be
// restored, but keeps nothing in memory.
func VerifySnapshot(r io.Reader, key LogKey) error {
	_, err := newSnapshotReader(r).scan(key, func(kind recordKind) bool { return kind == kindCluster })
	return err
}

// PeekRecovery reads what a snapshot says of the cluster and of the recovery copies of its
// domain key, for who has no log key yet. Nothing of it is verified: it is good for one
// thing, to find the log key with which ReadSnapshot then verifies all.
func PeekRecovery(r io.Reader) (*State, error) {
	x := newSnapshotReader(r)
	x.peek = true
	return x.scan(nil, func(kind recordKind) bool { return kind == kindCluster || kind == kindCopy })
}

// scan reads and verifies all of a snapshot and gives a state with the records of the
// kinds to be kept.
func (x *snapshotReader) scan(key LogKey, keep func(recordKind) bool) (*State, error) {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(x.r, magic); err != nil || string(magic) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrSnapshot, snapshotMagic)
	}
	x.sum.Write(magic)
	kind, headerBytes, err := x.frame()
	if err != nil {
		return nil, err
	}
	var header snapshotHeader
	if err := decodeStrict(headerBytes, &header); err != nil {
		return nil, fmt.Errorf("%w: bad header: %w", ErrSnapshot, err)
	}
	if kind != kindHeader || len(header.Hash) != sha256.Size {
		return nil, fmt.Errorf("%w: bad header: frame of kind %q, hash of %d bytes", ErrSnapshot, byte(kind), len(header.Hash))
	}
	if header.Format != format {
		return nil, fmt.Errorf("%w: format %d, this release knows %d: upgrade this node", ErrSnapshot, header.Format, format)
	}
	s := NewState()
	s.index, s.term, s.now = header.Index, header.Term, header.Now
	s.restricted, s.changed, s.forgotten = header.Index, header.Index, header.Index
	copy(s.hash[:], header.Hash)
	t := &tx{s: s}
	for records := uint64(0); ; records++ {
		kind, b, err := x.frame()
		if err != nil {
			return nil, err
		}
		if kind != kindTrailer {
			put, err := loadRecord(kind, b)
			if err != nil {
				return nil, fmt.Errorf("%w: record %d: %w", ErrSnapshot, records, err)
			}
			if keep(kind) {
				put(t)
			}
			continue
		}
		if err := x.trailer(b, headerBytes, records, key); err != nil {
			return nil, err
		}
		if s.cluster.ID != header.Cluster || s.cluster.RecoveryEpoch != header.RecoveryEpoch {
			return nil, fmt.Errorf("%w: header and cluster record differ", ErrSnapshot)
		}
		return s, nil
	}
}

func (x *snapshotReader) trailer(b, header []byte, records uint64, key LogKey) error {
	var z snapshotTrailer
	if err := decodeStrict(b, &z); err != nil {
		return fmt.Errorf("%w: bad trailer: %w", ErrSnapshot, err)
	}
	switch _, err := x.r.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: bytes after the trailer", ErrSnapshot)
	case !errors.Is(err, io.EOF): // such as a backup's signature that does not verify
		return fmt.Errorf("%w: at its end: %w", ErrSnapshot, err)
	}
	digest := x.sum.Sum(nil)
	if z.Records != records || !hmac.Equal(z.SHA256, digest) {
		return fmt.Errorf("%w: %d records read, %d announced; the checksum does not fit", ErrSnapshot, records, z.Records)
	}
	if !x.peek && !hmac.Equal(z.MAC, key.mac(snapshotLabel, header, digest)) {
		return fmt.Errorf("%w: its MAC does not verify: it was altered, or another cluster wrote it", ErrSnapshot)
	}
	return nil
}

// loadRecord decodes one record and gives what puts it into the state that is being
// read. Revisions are the records' own.
func loadRecord(kind recordKind, b []byte) (put func(*tx), err error) {
	switch kind {
	case kindCluster:
		var c Cluster
		if err := decodeStrict(b, &c); err != nil {
			return nil, err
		}
		if r := c.Release; r < FirstRelease || r > NewestRelease {
			return nil, fmt.Errorf("the cluster is at release %d, this software knows %d: upgrade this node", r, NewestRelease)
		}
		return func(t *tx) { t.s.cluster = c }, nil
	case kindTenant:
		return decodeRecord(b, func(t *tx, r *Tenant) { t.s.tenants.edit(t).Set(r) })
	case kindMember:
		return decodeRecord(b, func(t *tx, r *Member) { t.s.members.edit(t).Set(r) })
	case kindTicket:
		return decodeRecord(b, func(t *tx, r *Ticket) { t.s.tickets.edit(t).Set(r) })
	case kindKey:
		return decodeRecord(b, func(t *tx, k *Key) { k.shareTexts(); t.setKey(k) })
	case kindAlias:
		return decodeRecord(b, func(t *tx, a *Alias) { a.Tenant = once(a.Tenant); t.setAlias(a) })
	case kindGrant:
		return decodeRecord(b, (*tx).setGrant)
	case kindPolicy:
		return decodeRecord(b, (*tx).setPolicy)
	case kindDisabled:
		return decodeRecord(b, (*tx).setDisabled)
	case kindBinding:
		return decodeRecord(b, (*tx).setBinding)
	case kindUse:
		return decodeRecord(b, func(t *tx, r *LastUse) { t.s.uses.edit(t).Set(r) })
	case kindCopy:
		return decodeRecord(b, func(t *tx, r *RecoveryCopy) { t.s.copies.edit(t).Set(r) })
	case kindAuditHead:
		return decodeRecord(b, func(t *tx, r *AuditHead) { t.s.auditHeads.edit(t).Set(r) })
	case kindRequest:
		return decodeRecord(b, func(t *tx, r *Request) { t.s.requests.edit(t).Set(r); t.s.requestOrder.edit(t).Set(r) })
	case kindHeader, kindTrailer:
	}
	return nil, fmt.Errorf("unknown kind %q", byte(kind))
}

func decodeRecord[T any](b []byte, put func(*tx, *T)) (func(*tx), error) {
	r := new(T)
	if err := decodeStrict(b, r); err != nil {
		return nil, err
	}
	return func(t *tx) { put(t, r) }, nil
}
