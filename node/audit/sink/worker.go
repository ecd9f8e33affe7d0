package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
)

// worker brings the trail's records to one target, one batch at a time.
type worker struct {
	config  Config
	pace    pace
	options Options
	target  target
	reader  reader
	cursor  cursor
	fresh   bool // it has never had a cursor: what was removed before is no gap
	wake    <-chan struct{}
	saved   uint64    // the cursor's file
	savedAt time.Time // also when that failed
	log     *slog.Logger

	mu     sync.Mutex
	state  Stats     // but Records, Behind
	oldest time.Time // of the batch under way
	since  time.Time // the first attempt for the batch under way; zero if there is none
}

func newWorker(c Config, p pace, o Options, t target) *worker {
	w := &worker{
		config: c, pace: p, options: o, target: t, cursor: newCursor(c.Cursors, o.Name), wake: c.Trail.Follow(),
		log: c.Log.With("sink", o.Name), state: Stats{Name: o.Name, Type: o.Type},
	}
	at, there, err := w.cursor.load()
	switch {
	case err != nil: // no reason for the node not to start
		w.log.Error("the place of an audit sink is not known; it gets all records again", "error", err)
	case at > c.Trail.Durable():
		w.log.Error("an audit sink has had records that the trail does not have; it gets all records again", "cursor", at, "trail", c.Trail.Durable())
		at = 0
	}
	w.fresh = !there
	w.reader = reader{dir: c.Dir, trail: c.Trail, next: at + 1}
	w.state.Cursor, w.saved = at, at
	return w
}

func (w *worker) run(ctx context.Context) {
	for {
		b, ok := w.gather(ctx)
		if !ok || !w.bring(ctx, b) {
			break
		}
	}
	w.reader.close()
	w.save()
	if err := w.target.close(); err != nil {
		w.log.Warn("an audit sink was not closed", "error", err)
	}
}

// gather waits for records; ok is false if ctx ended.
func (w *worker) gather(ctx context.Context) (b batch, ok bool) {
	limit := w.target.size()
	var enough <-chan time.Time // that they were gathered for long enough
	ripe, pause := limit.gather == 0, w.pace.again
	for {
		there := w.config.Trail.Durable()
		waiting := there + 1 - w.reader.next
		if waiting > 0 && (ripe || waiting >= uint64(limit.records)) { //nolint:gosec // not negative
			b, err := w.read(ctx, there, limit)
			if err == nil {
				return b, true
			}
			if !errors.As(err, &errRemoved{}) {
				w.failed(err)
				if !wait(ctx, &pause, w.pace.longest) {
					return batch{}, false
				}
			}
			continue
		}
		if waiting > 0 && enough == nil {
			enough = time.After(limit.gather)
		}
		var unsaved <-chan time.Time
		if w.unsaved() {
			unsaved = time.After(w.pace.save)
		}
		select {
		case <-w.wake:
		case <-enough:
			ripe = true
		case <-unsaved:
			w.save()
		case <-ctx.Done():
			return batch{}, false
		}
	}
}

// read reads a batch, and tells of records that are not there any more.
func (w *worker) read(ctx context.Context, upTo uint64, limit size) (batch, error) {
	b, err := w.reader.read(ctx, upTo, limit)
	var removed errRemoved
	if !errors.As(err, &removed) {
		return b, err
	}
	fresh := w.fresh
	w.fresh = false
	w.mu.Lock()
	w.state.Cursor = removed.last
	if !fresh {
		w.state.Lost += removed.last - removed.first + 1
	}
	w.mu.Unlock()
	if !fresh {
		_ = w.record("AuditSinkGap", audit.SinkGap, audit.Failed, // logged; it fails where nothing can be recorded any more
			fmt.Sprintf("records %d to %d were removed (audit.keep) before the sink had them", removed.first, removed.last))
	}
	return b, err
}

// bring delivers a batch, as often as it takes; false if ctx ended.
func (w *worker) bring(ctx context.Context, b batch) bool {
	w.mu.Lock()
	w.oldest = eventTime(b.lines[0])
	w.mu.Unlock()
	for pause := w.pace.again; ; {
		w.attempts()
		limited, cancel := context.WithTimeout(ctx, w.pace.attempt)
		clipped, err := w.target.deliver(limited, b)
		cancel()
		if err == nil {
			w.delivered(b, clipped)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		w.failed(err)
		if !wait(ctx, &pause, w.pace.longest) {
			return false
		}
	}
}

// wait waits, and longer the next time; false if ctx ended.
func wait(ctx context.Context, pause *time.Duration, longest time.Duration) bool {
	timer := time.NewTimer(*pause)
	defer timer.Stop()
	*pause = min(2**pause, longest)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *worker) attempts() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		w.since = w.config.Now()
	}
}

func (w *worker) failed(err error) {
	w.mu.Lock()
	now := w.config.Now()
	first := w.state.LastError != err.Error()
	w.state.Failures++
	w.state.LastError, w.state.ErrorTime = err.Error(), now
	if w.since.IsZero() {
		w.since = now
	}
	w.mu.Unlock()
	if first {
		w.log.Warn("an audit sink did not take records, trying again", "error", err)
	}
}

func (w *worker) delivered(b batch, clipped int) {
	w.fresh = false
	w.mu.Lock()
	w.state.Cursor = b.last()
	w.state.Delivered += uint64(len(b.lines))
	w.state.Clipped += uint64(clipped) //nolint:gosec // not negative
	w.since, w.oldest = time.Time{}, time.Time{}
	w.mu.Unlock()
	if w.config.Now().Sub(w.savedAt) >= w.pace.save {
		w.save()
	}
}

func (w *worker) at() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Cursor
}

func (w *worker) unsaved() bool { return w.saved != w.at() }

// save keeps the cursor. If that fails, a restart has records delivered twice.
func (w *worker) save() {
	at := w.at()
	if at == w.saved {
		return
	}
	w.savedAt = w.config.Now()
	if err := w.cursor.save(at); err != nil {
		w.log.Warn("the place of an audit sink was not saved, trying again", "error", err)
		return
	}
	w.saved = at
}

// tell records that the sink has failed for long, or that it does not any more. One goroutine
// calls it.
func (w *worker) tell() {
	w.mu.Lock()
	failing := !w.since.IsZero() && w.config.Now().Sub(w.since) >= w.pace.failing
	was, why := w.state.Failing, w.state.LastError
	if w.state.ErrorTime.Before(w.since) {
		why = "the first attempt goes on"
	}
	records := w.state.Cursor
	w.mu.Unlock()
	if failing == was {
		return
	}
	var err error
	if failing {
		err = w.record("AuditSinkFailing", audit.SinkFailing, audit.Failed, fmt.Sprintf("it has taken nothing for %s: %s", w.pace.failing, why))
	} else {
		err = w.record("AuditSinkRecovered", "", audit.Success, fmt.Sprintf("it takes records again, and has those up to %d", records))
	}
	if err != nil {
		return // the next look tries again
	}
	w.mu.Lock()
	w.state.Failing = failing
	w.mu.Unlock()
}

func (w *worker) record(name string, alarm audit.Alarm, result audit.Result, reason string) error {
	err := w.config.Trail.Record(audit.Event{
		Name: name, Principal: w.config.Node, Class: "node", Target: w.options.Name, Alarm: alarm, Result: result, Reason: reason,
	})
	log := w.log.Info
	if alarm != "" {
		log = w.log.Error
	}
	log("audit sink: "+name, "reason", reason, "recorded", err == nil)
	return err
}

func (w *worker) stats() Stats {
	there := w.config.Trail.Durable()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	if there > s.Cursor {
		s.Records = there - s.Cursor
		if !w.oldest.IsZero() {
			s.Behind = max(0, w.config.Now().Sub(w.oldest))
		}
	}
	return s
}

// header is what sinks need of a record.
type header struct {
	Time   time.Time    `json:"eventTime"`
	Name   string       `json:"eventName"`
	Alarm  audit.Alarm  `json:"alarm"`
	Result audit.Result `json:"result"`
}

func eventTime(line []byte) time.Time {
	var h header
	_ = json.Unmarshal(line, &h) // without a time if it has none
	return h.Time
}
