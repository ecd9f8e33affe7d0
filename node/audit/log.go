package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// ErrUnavailable means: a record could not be written, so the call must not be
// answered.
var ErrUnavailable = errors.New("audit record cannot be written")

const (
	// syncEvery bounds what a loss of power can take: records are handed to the
	// kernel before the answer leaves and to the disk within this time.
	syncEvery = 50 * time.Millisecond
	// maxField and maxContext bound, in bytes, what callers can put into a record.
	maxField   = 2 << 10
	maxContext = 8 << 10
	// maxLine is longer than any record, in bytes: a character may take six.
	maxLine = 256 << 10
	// FileName is the trail's file in the audit directory.
	FileName = "audit.log"
)

// Log writes the trail of one node. It may be used from any goroutine.
type Log struct {
	now func() time.Time

	mu       sync.Mutex
	node     string
	file     *os.File
	sequence uint64
	buf      bytes.Buffer
	dirty    bool
	broken   error
	observer Observer

	stop chan struct{}
	done chan struct{}
}

// Open opens the trail in dir, which is made if absent, and goes on with its
// sequence. A record that was torn by a crash is cut off, and a record says so.
func Open(dir, node string, now func() time.Time) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, FileName), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit trail: %w", err)
	}
	l := &Log{now: now, node: node, file: file, observer: nobody{}, stop: make(chan struct{}), done: make(chan struct{})}
	torn, err := l.recover()
	if err == nil && torn > 0 {
		err = l.Record(Event{
			Name: "AuditTrailRecovered", Principal: node, Class: "node", Result: Success,
			Reason: fmt.Sprintf("%d bytes of a torn record were cut off", torn),
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit trail %s: %w", file.Name(), err), file.Close())
	}
	go l.syncLoop()
	return l, nil
}

// recover finds the last whole record and cuts what follows it.
func (l *Log) recover() (torn int64, err error) {
	size, err := l.file.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, err
	}
	n := min(size, 2*maxLine)
	tail := make([]byte, n)
	if _, err := l.file.ReadAt(tail, size-n); err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	torn = n - int64(end)
	if torn > 0 {
		if err := l.file.Truncate(size - torn); err != nil {
			return 0, err
		}
	}
	if end == 0 {
		if n < size {
			return 0, errors.New("no whole record near the end")
		}
		return torn, nil
	}
	line := tail[:end-1]
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	var last Event
	if err := json.Unmarshal(line, &last); err != nil {
		return 0, fmt.Errorf("last record: %w", err)
	}
	l.sequence = last.Sequence
	return torn, nil
}

// SetNode names the node in the records that follow: its raft id, once it has one.
func (l *Log) SetNode(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node = node
}

// Record writes one record; time, node and sequence are set here. When it returns
// nil the kernel has the record. ErrUnavailable otherwise, and then for every
// later record too: a trail with a hole is no trail.
func (l *Log) Record(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	e.Time, e.Node, e.Sequence = l.now().UTC(), l.node, l.sequence+1
	if err := l.encode(&e); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if _, err := l.file.Write(l.buf.Bytes()); err != nil {
		l.broken = fmt.Errorf("%w: %w", ErrUnavailable, err)
		return l.broken
	}
	l.sequence, l.dirty = e.Sequence, true
	l.observer.Recorded(l.buf.Len(), l.sequence)
	return nil
}

// encode puts a record into the buffer; what callers made too long is clipped.
func (l *Log) encode(e *Event) error {
	for _, field := range []*string{
		&e.Name, &e.RequestID, &e.Principal, &e.Tenant, &e.Source, &e.KeyID, &e.Alias, &e.Target, &e.DecidedBy, &e.Reason,
	} {
		if len(*field) > maxField {
			*field = strings.ToValidUTF8((*field)[:maxField], "") + "… (clipped)"
		}
	}
	size := 0
	for k, v := range e.Context {
		size += len(k) + len(v)
	}
	if size > maxContext {
		e.Context = map[string]string{"(clipped)": fmt.Sprintf("%d pairs, %d bytes", len(e.Context), size)}
	}
	l.buf.Reset()
	return json.NewEncoder(&l.buf).Encode(e)
}

// Healthy is nil while records can be written.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

func (l *Log) syncLoop() {
	defer close(l.done)
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.sync()
		case <-l.stop:
			return
		}
	}
}

func (l *Log) sync() {
	l.mu.Lock()
	dirty, observer := l.dirty && l.broken == nil, l.observer
	l.dirty = false
	l.mu.Unlock()
	if !dirty {
		return
	}
	began := time.Now()
	err := l.file.Sync()
	observer.Synced(time.Since(began), err)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.broken = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// Close writes everything to the disk and closes the trail.
func (l *Log) Close() error {
	close(l.stop)
	<-l.done
	l.sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.broken
	l.broken = fmt.Errorf("%w: closed", ErrUnavailable)
	return errors.Join(err, l.file.Close())
}
