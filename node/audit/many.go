package audit

import (
	"bytes"
	"fmt"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// maxKept bounds the memory that is kept for the next records, in bytes.
const maxKept = 1 << 20

// RecordAll is Record for several, one behind the other, in one write if they stand in one segment.
// What Record sets is set in them. With an error some may have been written, and the call of none
// is to be answered.
func (l *Log) RecordAll(all []Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	durable := l.config.Strict
	for len(all) > 0 {
		if l.broken != nil {
			return l.broken
		}
		room := trail.SegmentRecords - l.tree.Size()%trail.SegmentRecords
		part := all[:min(int64(len(all)), room)]
		if err := l.write(part); err != nil {
			return err
		}
		for i := range part {
			durable = durable || part[i].Durable
		}
		all = all[len(part):]
	}
	if l.many.Cap() > maxKept {
		l.many = bytes.Buffer{}
	}
	if durable {
		return l.await(l.sequence())
	}
	return nil
}

// write writes records that stand in one segment.
func (l *Log) write(part []Event) error {
	l.many.Reset()
	now, previous := l.config.Now().UTC(), l.previous
	sizes, leaves := make([]int, len(part)), make([]trail.Hash, len(part))
	for i := range part {
		e := &part[i]
		e.Time, e.Node, e.Sequence, e.Previous = now, l.node, l.sequence()+uint64(i)+1, previous //nolint:gosec // not negative
		if err := l.encode(e); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		leaves[i] = trail.RecordHash(bytes.TrimSuffix(l.buf.Bytes(), []byte{'\n'}))
		sizes[i], previous = l.buf.Len(), leaves[i].String()
		l.many.Write(l.buf.Bytes())
	}
	if _, err := l.file.Write(l.many.Bytes()); err != nil {
		return l.breaks(err)
	}
	full := false
	for i, leaf := range leaves {
		var err error
		if full, err = l.tree.Add(leaf); err != nil {
			return l.breaks(err)
		}
		l.observer.Recorded(sizes[i], l.sequence())
		if part[i].Alarm != "" {
			l.observer.Alarmed(part[i].Alarm)
		}
	}
	l.previous = previous
	if full {
		if err := l.turn(); err != nil {
			return l.breaks(err)
		}
	}
	return nil
}
