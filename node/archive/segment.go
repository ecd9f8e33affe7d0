package archive

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

const (
	segmentMagic  = "QKJ1"
	segmentFormat = 1
	segmentLabel  = "quorumkms/journal/v1"

	kindHeader   = 'H'
	kindEntry    = 'E'
	kindCoverage = 'C'
	kindGap      = 'G'

	recordHead  = 9 // bytes: kind, length, check
	tagSize     = sha256.Size
	entryHead   = 16 // bytes of an entry's index and term
	twoNumbers  = 16 // bytes of a coverage and of a gap
	maxBody     = entryHead + fsm.MaxEntry
	maxHeader   = 4 << 10  // bytes
	maxSegment  = 16 << 20 // bytes after which a new segment is begun
	maxFileSize = maxSegment + recordHead + maxBody + tagSize + 1<<10
)

// ErrJournal means: a segment of the journal was altered, or is of a later release.
var ErrJournal = errors.New("journal refused")

// Header is the first record of a segment.
type Header struct {
	Format        int    `json:"format"`
	Cluster       fsm.ID `json:"cluster"`
	RecoveryEpoch uint32 `json:"recovery_epoch"`
	RecoveryID    fsm.ID `json:"recovery_id,omitzero"`
	Node          string `json:"node"`    // raft id
	After         uint64 `json:"after"`   // the segment begins behind this log index
	Created       int64  `json:"created"` // unix nanoseconds, by the node's clock
}

// history is the history that the segment is of.
func (h *Header) history() fsm.History { return fsm.History{Epoch: h.RecoveryEpoch, ID: h.RecoveryID} }

// Entry is a restricting entry of the journal. Its MAC has been verified.
type Entry struct {
	Index uint64
	Term  uint64
	Raw   []byte // as it stands in the log
}

// Span is a range of log indexes, both ends included.
type Span struct {
	First, Last uint64
}

// Coverage says up to where a journal is complete.
type Coverage struct {
	Index uint64
	Time  time.Time // entries after Index have no earlier time; zero if unknown
}

// Segment is what one file of the journal says.
type Segment struct {
	Header
	Path    string
	Entries []Entry
	Gaps    []Span
	Until   Coverage
	Torn    int64 // bytes at the end that a crash has left; they say nothing

	past []covered     // the ranges before the last gap
	from uint64        // the present range begins behind this index
	good int64         // bytes before those torn
	tag  [tagSize]byte // of the last record
}

// record puts a record together and returns it with its tag.
func record(key fsm.LogKey, before [tagSize]byte, kind byte, body []byte) ([]byte, [tagSize]byte) {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body))) //nolint:gosec // at most maxBody
	tag := recordTag(key, before, head, body)
	out := binary.BigEndian.AppendUint32(head, crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)))
	return append(append(out, body...), tag[:]...), tag
}

func recordTag(key fsm.LogKey, before [tagSize]byte, head, body []byte) [tagSize]byte {
	value := append(append(before[:], head...), body...)
	return [tagSize]byte(key.Prove(segmentLabel, value))
}

// numbers is the body of coverages and gaps, and the beginning of entries.
func numbers(a, b uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a), b)
}

// beginSegment is how a segment's file begins.
func beginSegment(key fsm.LogKey, h Header) (*Segment, []byte, error) {
	h.Format = segmentFormat
	body, err := json.Marshal(&h)
	if err != nil {
		return nil, nil, err
	}
	b, tag := record(key, [tagSize]byte{}, kindHeader, body)
	s := &Segment{Header: h, from: h.After, Until: Coverage{Index: h.After}, good: int64(len(segmentMagic) + len(b)), tag: tag}
	return s, append([]byte(segmentMagic), b...), nil
}

// ParseSegment reads and verifies a segment. With an error that wraps ErrJournal it
// returns what stands before the place where the segment was altered, or nil if that
// is the header. A segment whose header was torn is nil without an error.
func ParseSegment(b []byte, key fsm.LogKey) (*Segment, error) {
	if len(b) > maxFileSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrJournal, len(b), maxFileSize)
	}
	if begun := unzeroed(b); len(begun) < len(segmentMagic) && bytes.HasPrefix([]byte(segmentMagic), begun) {
		return nil, nil
	}
	if !bytes.HasPrefix(b, []byte(segmentMagic)) {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrJournal, segmentMagic)
	}
	s := &Segment{good: int64(len(segmentMagic))}
	for first := true; s.good < int64(len(b)); first = false {
		rest := b[s.good:]
		kind, body, torn, err := s.next(key, rest)
		if err == nil && !torn {
			err = s.take(key, first, kind, body)
		}
		if err != nil {
			err = fmt.Errorf("%w: at byte %d: %w", ErrJournal, s.good, err)
		}
		if torn || err != nil {
			s.Torn = int64(len(rest))
			if first {
				return nil, err
			}
			return s, err
		}
		size := recordHead + len(body) + tagSize
		s.good += int64(size)
		s.tag = [tagSize]byte(rest[size-tagSize : size])
	}
	if s.good == int64(len(segmentMagic)) {
		return nil, nil
	}
	return s, nil
}

// unzeroed is b without the zeros at its end: what a crash did not let reach the disk
// may be zeros.
func unzeroed(b []byte) []byte { return bytes.TrimRight(b, "\x00") }

// next looks at the record that rest begins with: it is whole, or torn by a crash,
// or altered.
func (s *Segment) next(key fsm.LogKey, rest []byte) (kind byte, body []byte, torn bool, err error) {
	written := len(unzeroed(rest))
	if written < recordHead {
		return 0, nil, true, nil
	}
	head, check := rest[:recordHead-4], binary.BigEndian.Uint32(rest[recordHead-4:])
	n := int64(binary.BigEndian.Uint32(head[1:]))
	if crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)) != check || n > maxBody {
		return 0, nil, false, errors.New("the length of a record was altered")
	}
	whole := recordHead + n + tagSize
	if int64(len(rest)) < whole {
		return 0, nil, true, nil
	}
	body = rest[recordHead : recordHead+n]
	if tag := recordTag(key, s.tag, head, body); hmac.Equal(tag[:], rest[recordHead+n:whole]) {
		return head[0], body, false, nil
	}
	if int64(written) < whole {
		return 0, nil, true, nil
	}
	return 0, nil, false, errors.New("the MAC of a record does not verify: it was altered, or another cluster wrote it")
}

// take adds what a verified record says.
func (s *Segment) take(key fsm.LogKey, first bool, kind byte, body []byte) error {
	if first != (kind == kindHeader) {
		return fmt.Errorf("a record of kind %q", kind)
	}
	switch {
	case kind == kindHeader:
		return s.takeHeader(body)
	case kind == kindEntry && len(body) > entryHead:
		e := Entry{Index: binary.BigEndian.Uint64(body), Term: binary.BigEndian.Uint64(body[8:]), Raw: bytes.Clone(body[entryHead:])}
		if _, _, err := key.OpenEntry(e.Raw); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		if e.Index <= s.Until.Index {
			return fmt.Errorf("entry %d behind index %d", e.Index, s.Until.Index)
		}
		s.Entries, s.Until.Index = append(s.Entries, e), e.Index
	case kind == kindCoverage && len(body) == twoNumbers:
		index, at := binary.BigEndian.Uint64(body), int64(binary.BigEndian.Uint64(body[8:])) //nolint:gosec // as it was written
		if index < s.Until.Index {
			return fmt.Errorf("a coverage of index %d behind index %d", index, s.Until.Index)
		}
		if s.Until.Index = index; at != 0 {
			s.Until.Time = time.Unix(0, at).UTC()
		}
	case kind == kindGap && len(body) == twoNumbers:
		gap := Span{binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:])}
		if gap.First <= s.Until.Index || gap.Last < gap.First {
			return fmt.Errorf("a gap from %d to %d behind index %d", gap.First, gap.Last, s.Until.Index)
		}
		s.past = append(s.past, covered{s.from, Coverage{gap.First - 1, s.Until.Time}})
		s.Gaps, s.from, s.Until.Index = append(s.Gaps, gap), gap.Last, gap.Last
	default:
		return fmt.Errorf("a record of kind %q with %d bytes, which this release does not know", kind, len(body))
	}
	return nil
}

func (s *Segment) takeHeader(body []byte) error {
	if len(body) > maxHeader {
		return fmt.Errorf("a header of %d bytes", len(body))
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.Header); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if again, err := json.Marshal(&s.Header); err != nil || !bytes.Equal(again, body) {
		return errors.New("the header is not in canonical form")
	}
	if s.Format != segmentFormat {
		return fmt.Errorf("format %d, this release reads %d", s.Format, segmentFormat)
	}
	s.from, s.Until = s.After, Coverage{Index: s.After}
	return nil
}
