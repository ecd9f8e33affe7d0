package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

const (
	// clockSlack is how far a node's clock may have been set back between two segments: what
	// a search leaves out by their times it leaves out by that much less.
	clockSlack = time.Hour
	// aliveEvery is after how many records a search tells how far it is.
	aliveEvery = 1 << 10
	// AnyAlarm is the Query.Alarm that every alarm fits.
	AnyAlarm  = "any"
	fileChunk = 256 << 10
)

// Query says which records are wanted. What is empty fits any.
type Query struct {
	Tenant    string
	Key       string // id, or the alias that it was named by; also a destination
	Principal string
	Name      string // eventName
	Result    string
	Alarm     string // or AnyAlarm
	Request   string
	Since     time.Time
	Until     time.Time // itself not included
}

// Found is a record that fits.
type Found struct {
	Sequence uint64
	Time     time.Time
	Line     []byte // without its end; overwritten when the search goes on
}

// fields is what a search reads of a record.
type fields struct {
	Time      time.Time `json:"eventTime"`
	Sequence  uint64    `json:"sequence"`
	Name      string    `json:"eventName"`
	Request   string    `json:"requestId"`
	Principal string    `json:"principal"`
	Tenant    string    `json:"tenant"`
	Key       string    `json:"keyId"`
	Alias     string    `json:"alias"`
	ToKey     string    `json:"destinationKeyId"`
	ToAlias   string    `json:"destinationAlias"`
	Alarm     string    `json:"alarm"`
	Result    string    `json:"result"`
}

func (q Query) fits(f fields) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(q.Tenant, f.Tenant) && is(q.Principal, f.Principal) && is(q.Name, f.Name) && is(q.Result, f.Result) && is(q.Request, f.Request) &&
		(is(q.Key, f.Key) || q.Key == f.Alias || q.Key == f.ToKey || q.Key == f.ToAlias) && (is(q.Alarm, f.Alarm) || q.Alarm == AnyAlarm && f.Alarm != "") &&
		(q.Since.IsZero() || !f.Time.Before(q.Since)) && (q.Until.IsZero() || f.Time.Before(q.Until))
}

// needles are texts that stand in every line that fits: most lines need not be parsed.
func (q Query) needles() (out [][]byte) {
	alarm := q.Alarm
	if alarm == AnyAlarm {
		alarm = ""
		out = append(out, []byte(`"alarm":`))
	}
	for _, s := range []string{q.Tenant, q.Key, q.Principal, q.Name, q.Result, alarm, q.Request} {
		if b, err := json.Marshal(s); err == nil && s != "" {
			out = append(out, b)
		}
	}
	return out
}

// Search reads a node's records in their order. It may be used from one goroutine.
type Search struct {
	log     *Log
	query   Query
	needles [][]byte
	next    uint64 // sequence number of the record that is read next
	offset  int64  // of it in its segment, if that was begun
}

// Search begins at a sequence number, or at the first record there is.
func (l *Log) Search(q Query, from uint64) (*Search, error) {
	s := &Search{log: l, query: q, needles: q.needles(), next: max(from, 1)}
	first, err := l.first()
	if err != nil {
		return nil, err
	}
	s.next = max(s.next, first)
	return s, nil
}

// first is the sequence number of the first record there may be.
func (l *Log) first() (uint64, error) {
	segments, err := trail.Segments(l.config.Dir)
	if err != nil || len(segments) == 0 {
		return 1, err
	}
	return segments[0].First(), nil
}

// SearchReadable calls found with each record that the query is of, from a sequence number on up to
// the last. Those that cannot be read, because they are sealed or damaged, are left out with what
// follows in their segment: then unread is true.
func (l *Log) SearchReadable(ctx context.Context, q Query, from uint64, found func(Found) error) (unread bool, err error) {
	for last := l.Position().Last; from <= last; {
		search, err := l.Search(q, from)
		if err != nil {
			return unread, err
		}
		err = search.Run(ctx, last, found, func(time.Time) error { return nil })
		switch from = search.Next(); {
		case errors.Is(err, trail.ErrSealed), errors.Is(err, trail.ErrTrail) && !trail.IsPathError(err):
			unread = true
			from += trail.SegmentRecords - (from-1)%trail.SegmentRecords // behind the segment
		case err != nil:
			return unread, err
		}
	}
	return unread, nil
}

// Next is the sequence number of the record that is read next.
func (s *Search) Next() uint64 { return s.next }

// Run reads up to a record, which must be written; visit is told of those that fit, alive now
// and then of the time of a record that was read. It goes on where it was when it is called
// again. Segments that are removed meanwhile are left out.
func (s *Search) Run(ctx context.Context, upTo uint64, visit func(Found) error, alive func(time.Time) error) error {
	for s.next <= upTo {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int64((s.next - 1) / trail.SegmentRecords) //nolint:gosec // a count of files
		end := trail.Segment{Number: n + 1}.First()     // of the next segment
		switch outside, err := s.outside(n); {
		case err != nil:
			return err
		case outside:
			s.next, s.offset = min(end, upTo+1), 0
			if s.next != end { // the rest of it comes later
				return nil
			}
			continue
		}
		err := s.segment(ctx, n, min(end-1, upTo), visit, alive)
		if errors.Is(err, fs.ErrNotExist) {
			first, again := s.log.first()
			if again != nil || first <= s.next {
				return errors.Join(err, again)
			}
			s.next, s.offset = first, 0
			continue
		}
		if err != nil {
			return err
		}
		if s.next == end {
			s.offset = 0
		}
	}
	return nil
}

// outside tells whether no record of a segment can be of the time that is wanted.
func (s *Search) outside(n int64) (bool, error) {
	if q := s.query.Until; !q.IsZero() {
		first, err := s.log.begun(n)
		if err != nil || !first.from.IsZero() && !first.from.Before(q.Add(clockSlack)) {
			return err == nil, err
		}
	}
	if q := s.query.Since; !q.IsZero() {
		next, err := s.log.begun(n + 1)
		if err != nil || !next.to.IsZero() && next.to.Before(q.Add(-clockSlack)) {
			return err == nil, err
		}
	}
	return false, nil
}

// moment is a time that lies between two, as far as they are known.
type moment struct{ from, to time.Time }

// begun is the time of a segment's first record, if there is one.
func (l *Log) begun(n int64) (at moment, err error) {
	l.firstsMu.Lock()
	defer l.firstsMu.Unlock()
	if at, ok := l.firsts[n]; ok {
		return at, nil
	}
	s := trail.FindSegment(l.config.Dir, n)
	r, err := s.Open(context.Background(), nil) // that opens no sealed one
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return at, nil
	case errors.Is(err, trail.ErrSealed):
		at, err = l.signedAround(n)
	case err == nil:
		var f fields
		_, err = trail.Lines(r, func(line []byte) (bool, error) {
			if json.Unmarshal(line, &f) == nil {
				at = moment{f.Time, f.Time}
			}
			return false, nil
		})
		_ = r.Close() // only read
	}
	if err == nil && !at.to.IsZero() {
		l.firsts[n] = at
	}
	return at, err
}

// signedAround are the times of the checkpoints around a segment's first record: those of a
// sealed one are told without its key.
func (l *Log) signedAround(n int64) (at moment, err error) {
	for _, c := range []struct {
		of   int64
		last bool
		at   *time.Time
	}{{n - 1, true, &at.from}, {n, false, &at.to}} {
		b, err := os.ReadFile(l.path(trail.Name(c.of, trail.CheckpointsEnd)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return moment{}, err
		}
		first, last, err := trail.CheckpointTimes(b)
		if err != nil {
			return moment{}, err
		}
		if *c.at = first; c.last {
			*c.at = last
		}
	}
	return at, nil
}

func (s *Search) segment(ctx context.Context, n int64, upTo uint64, visit func(Found) error, alive func(time.Time) error) error {
	r, err := s.log.OpenSegment(ctx, n)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	at := trail.Segment{Number: n}.First()
	if s.offset > 0 {
		at = s.next
		if err := skip(r, s.offset); err != nil {
			return fmt.Errorf("%w: segment %d: %w", trail.ErrTrail, n, err)
		}
	}
	offset := s.offset
	_, err = trail.Lines(r, func(line []byte) (bool, error) {
		offset += int64(len(line)) + 1
		if at++; at-1 < s.next { // From is in the middle of the segment
			return true, nil
		}
		s.next, s.offset = at, offset
		if err := s.line(at-1, line, visit); err != nil {
			return false, err
		}
		if at%aliveEvery == 0 {
			if err := s.tell(ctx, line, alive); err != nil {
				return false, err
			}
		}
		return at <= upTo, nil
	})
	if err == nil && s.next <= upTo {
		return fmt.Errorf("%w: segment %d ends before record %d", trail.ErrTrail, n, s.next)
	}
	return err
}

func skip(r io.Reader, n int64) error {
	if f, ok := r.(io.Seeker); ok {
		_, err := f.Seek(n, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

func (s *Search) line(sequence uint64, line []byte, visit func(Found) error) error {
	if slices.ContainsFunc(s.needles, func(n []byte) bool { return !bytes.Contains(line, n) }) {
		return nil
	}
	var f fields
	if err := json.Unmarshal(line, &f); err != nil || f.Sequence != sequence {
		return fmt.Errorf("%w: record %d is none", trail.ErrTrail, sequence)
	}
	if !s.query.fits(f) {
		return nil
	}
	return visit(Found{sequence, f.Time, line})
}

func (s *Search) tell(ctx context.Context, line []byte, alive func(time.Time) error) error {
	var f fields
	if err := json.Unmarshal(line, &f); err != nil {
		return fmt.Errorf("%w: record %d is none", trail.ErrTrail, s.next-1)
	}
	return errors.Join(ctx.Err(), alive(f.Time))
}

// Signed is the last checkpoint and a tree that has its records, for proofs; the note is nil
// if there is none.
func (l *Log) Signed() (c trail.Checkpoint, note []byte, tree *trail.Tree) {
	l.signing.Lock()
	c, note = l.signed, l.note
	l.signing.Unlock()
	return c, note, l.Snapshot()
}

// Prove proves that a record is in the tree of a checkpoint.
func Prove(c trail.Checkpoint, sequence uint64, tree *trail.Tree) ([]trail.Hash, error) {
	return tlog.ProveRecord(c.Size, int64(sequence)-1, tree) //nolint:gosec // less than the size
}

// Files hands out the files of the trail: each begins with its name. Sealed ones are opened, if
// their key can be used. What is signed while they are read is not in them without its records: checkpoints come first.
// Segments that end before a record are left out.
func (l *Log) Files(ctx context.Context, from uint64, begin func(name string) error, data func([]byte) error) error {
	oldest, err := l.first()
	if err != nil {
		return err
	}
	notes, err := filepath.Glob(l.path("*" + trail.CheckpointsEnd))
	if err != nil {
		return err
	}
	slices.Sort(notes)
	one := func(path string) error { return sendFile(ctx, path, begin, data) }
	outside := func(path string) bool {
		var n int64
		_, err := fmt.Sscanf(filepath.Base(path), "%d.", &n)
		return err == nil && trail.Segment{Number: n + 1}.First() <= from
	}
	for _, path := range notes {
		if outside(path) {
			continue
		}
		if err := one(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // removed with its segment
			return err
		}
	}
	if err := one(l.path(trail.HashesFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	segments, err := trail.Segments(l.config.Dir)
	if err != nil {
		return err
	}
	if len(segments) > 0 && segments[0].First() != oldest { // the checkpoint of the record of that may be missing
		return fmt.Errorf("%w: segment %d was removed while checkpoints were read: begin again", ErrMoved, segments[0].Number-1)
	}
	for _, s := range segments {
		if outside(s.Path) {
			continue
		}
		if err := l.sendSegment(ctx, s, begin, data); err != nil {
			return err
		}
	}
	return nil
}

// sendSegment sends a segment's file as it is: of a sealed one what was sealed, unless its key
// cannot be used.
func (l *Log) sendSegment(ctx context.Context, s trail.Segment, begin func(name string) error, data func([]byte) error) error {
	name, r, err := s.OpenFile(ctx, l.config.Opener)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: segment %d was removed while it was read: begin again", ErrMoved, s.Number)
	case errors.Is(err, trail.ErrSealed):
		return sendFile(ctx, l.path(trail.Name(s.Number, trail.SealedEnd)), begin, data)
	case err != nil:
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	return send(ctx, name, r, begin, data)
}

func sendFile(ctx context.Context, path string, begin func(name string) error, data func([]byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	return send(ctx, filepath.Base(path), f, begin, data)
}

func send(ctx context.Context, name string, r io.Reader, begin func(name string) error, data func([]byte) error) error {
	if err := begin(name); err != nil {
		return err
	}
	chunk := make([]byte, fileChunk)
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			if err := errors.Join(ctx.Err(), data(chunk[:n])); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}
