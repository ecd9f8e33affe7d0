package audit

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// Calls that record at about the same time share one write: the first takes what has queued
// behind it, as those do that share a call of the HSM (package hsm). Nobody waits for others to
// come, and nobody writes more than once for others.

// maxShared is how many records one write may have; a call's own stay together.
const maxShared = 1024

// callQueue is the queue of those that want something recorded.
type callQueue struct {
	mu      sync.Mutex
	busy    bool // somebody has the role of the writer
	waiting []*waiter
	spare   []*waiter // room for the next queue
}

// waiter is what one call has recorded.
type waiter struct {
	text    []byte // of its records, without their places, one behind the other
	records []waiting
	durable bool
	writes  bool          // has the role of the writer
	wake    chan struct{} // takes one token when it has, or is done
	last    uint64        // sequence number of the last record
	err     error
}

// waiting is a record of a waiter.
type waiting struct {
	end   int // in text
	alarm Alarm
}

var waiters = sync.Pool{New: func() any { return &waiter{wake: make(chan struct{}, 1)} }}

// Record writes one record; time, node, sequence and the name of the record before are set
// here. When it returns nil the kernel has the record, and the disk if it is to be Durable.
// ErrUnavailable otherwise, and then for every later record too: a trail with a hole is no
// trail.
func (l *Log) Record(e Event) error { return l.RecordAll([]Event{e}) }

// RecordAll is Record of several, which follow one another in the trail.
func (l *Log) RecordAll(events []Event) error {
	w := waiters.Get().(*waiter)
	defer w.recycle()
	for i := range events {
		w.text = events[i].encode(w.text)
		w.records = append(w.records, waiting{len(w.text), events[i].Alarm})
		w.durable = w.durable || events[i].Durable || l.config.Strict
	}
	if !l.queue.enter(w) {
		<-w.wake
	}
	if w.writes {
		runtime.Gosched() // lets calls that are about to record do so
		l.writeQueue(w)
	}
	if w.err != nil || !w.durable {
		return w.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.await(w.last)
}

func (w *waiter) recycle() {
	*w = waiter{text: w.text[:0], records: w.records[:0], wake: w.wake}
	waiters.Put(w)
}

// enter queues and tells whether that is all: then it has the role of the writer.
func (q *callQueue) enter(w *waiter) (writes bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, w)
	w.writes = !q.busy
	q.busy = true
	return w.writes
}

// writeQueue writes what has queued.
func (l *Log) writeQueue(self *waiter) {
	q := &l.queue
	q.mu.Lock()
	taken, n := q.waiting, 0
	for records := 0; n < len(taken) && (n == 0 || records+len(taken[n].records) <= maxShared); n++ {
		records += len(taken[n].records)
	}
	q.waiting = append(q.spare[:0], taken[n:]...)
	q.mu.Unlock()
	taken = taken[:n]
	defer q.deliver(taken, self)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeAll(taken)
}

// deliver tells waiters that they are done, and gives the role of the writer to the next, if any.
func (q *callQueue) deliver(taken []*waiter, self *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range taken {
		if w != self {
			w.wake <- struct{}{}
		}
	}
	clear(taken)
	q.spare = taken
	if q.busy = len(q.waiting) > 0; q.busy {
		q.waiting[0].writes = true
		q.waiting[0].wake <- struct{}{}
	}
}

// writeAll writes the records of waiters. With one that cannot be written, none counts.
func (l *Log) writeAll(all []*waiter) {
	err := l.broken
	finished := false
	defer func() {
		if !finished { // it panicked: nobody knows what is written
			err = l.breaks(errors.New("recording panicked"))
		}
		for _, w := range all {
			w.err = err
		}
	}()
	for _, w := range all {
		begin := 0
		for _, r := range w.records {
			if err == nil {
				err = l.place(w.text[begin:r.end], r.alarm)
			}
			begin = r.end
		}
		w.last = l.sequence() + uint64(len(l.placed))
	}
	if err == nil {
		err = l.flush()
	}
	finished = true
}

// placedRecord is a record that is in the buffer and not yet in the file.
type placedRecord struct {
	leaf  trail.Hash
	bytes int
	alarm Alarm
}

// place gives a record its place in the trail, in the buffer, which is written at a segment's
// end.
func (l *Log) place(text []byte, alarm Alarm) error {
	begin := len(l.buf)
	l.buf = placed(l.buf, l.config.Now().UTC(), l.sequence()+uint64(len(l.placed))+1, l.node, text, l.previous)
	line := l.buf[begin:]
	leaf := trail.RecordHash(line[:len(line)-1])
	l.previous = leaf.String()
	l.placed = append(l.placed, placedRecord{leaf, len(line), alarm})
	if (l.tree.Size()+int64(len(l.placed)))%trail.SegmentRecords == 0 {
		return l.flush()
	}
	return nil
}

// flush writes the buffer.
func (l *Log) flush() error {
	if len(l.placed) == 0 {
		return nil
	}
	_, err := l.file.Write(l.buf)
	full := false
	for _, r := range l.placed {
		if err == nil {
			full, err = l.tree.Add(r.leaf)
		}
		if err == nil {
			l.observer.Recorded(r.bytes, l.sequence())
			if r.alarm != "" {
				l.observer.Alarmed(r.alarm)
			}
		}
	}
	l.buf, l.placed = l.buf[:0], l.placed[:0]
	if full && err == nil {
		err = l.turn()
	}
	if err != nil {
		return l.breaks(err)
	}
	return nil
}

// breaks ends the trail.
func (l *Log) breaks(err error) error {
	if l.broken == nil {
		l.broken = fmt.Errorf("%w: %w", ErrUnavailable, err)
		l.moved.Broadcast()
	}
	return l.broken
}

// await waits until a record is on the disk. Those that wait together share one write.
func (l *Log) await(sequence uint64) error {
	for l.durable < sequence && l.broken == nil {
		select {
		case l.wanted <- struct{}{}:
		default:
		}
		l.moved.Wait()
	}
	if l.durable >= sequence {
		return nil
	}
	return l.broken
}
