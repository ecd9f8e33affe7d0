package sink

import (
	"compress/gzip"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// TestHungSink: nobody waits for a sink that never answers. There is one alarm record, and one
// when it answers at last; then it has everything.
func TestHungSink(t *testing.T) {
	r := newRig(t)
	var got box
	let := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		text := body(q)
		<-let
		got.add(split(text)...)
	}))
	defer server.Close()
	r.begin(Options{Type: TypeWebhook, URL: server.URL})
	const n = 10_000
	r.write(n) // comes to its end though nothing was taken
	r.until("the lag is seen", func() bool { s := r.stats(); return s.Records == n && s.Cursor == 0 })
	for range 3 { // also an hour later there is one alarm
		r.clock.advance(30 * time.Second)
		r.until("the lag in time is seen", func() bool { return r.stats().Behind >= 30*time.Second })
	}
	r.until("it fails", func() bool { return r.stats().Failing })
	r.clock.advance(time.Hour)
	alarms := r.events("AuditSinkFailing")
	if len(alarms) != 1 || alarms[0].Alarm != audit.SinkFailing || alarms[0].Target != TypeWebhook || !strings.Contains(alarms[0].Reason, "the first attempt goes on") {
		t.Errorf("alarms: %+v", alarms)
	}
	close(let)
	r.until("it has recovered", func() bool { return len(r.events("AuditSinkRecovered")) > 0 })
	r.delivered(n + 2)
	if e := r.events("AuditSinkRecovered"); len(e) != 1 || e[0].Alarm != "" || e[0].Result != audit.Success {
		t.Errorf("recovered: %+v", e)
	}
	if s := r.stats(); s.Failing || s.Records != 0 || s.Behind != 0 || s.Delivered != n+2 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
	r.same("afterwards", got.all())
}

// TestFailsAndRecovers: a sink that answers an error gets everything once it does not.
func TestFailsAndRecovers(t *testing.T) {
	r := newRig(t)
	var got box
	var well atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		text := body(q)
		if !well.Load() {
			http.Error(w, "the disk of the collector is full", http.StatusInsufficientStorage)
			return
		}
		got.add(split(text)...)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	r.begin(Options{Type: TypeWebhook, Name: "siem", URL: server.URL, MaxRecords: 7})
	r.write(50)
	r.until("it was tried again", func() bool { return r.stats().Failures > 2 })
	if s := r.stats(); s.Failing || !strings.Contains(s.LastError, "507") || !strings.Contains(s.LastError, "collector is full") || !s.ErrorTime.Equal(r.clock.Now()) {
		t.Errorf("%+v", s)
	}
	for range 2 { // it fails and recovers twice
		well.Store(false)
		r.write(10)
		r.until("it fails anew", func() bool { return r.stats().Records > 0 && !r.set.workers[0].begun().IsZero() })
		before := len(r.events("AuditSinkFailing"))
		r.clock.advance(2 * time.Minute)
		r.until("there is an alarm", func() bool { return len(r.events("AuditSinkFailing")) == before+1 })
		well.Store(true)
		r.until("it has recovered", func() bool { return len(r.events("AuditSinkRecovered")) == before+1 && r.stats().Records == 0 })
	}
	if e := r.events("AuditSinkFailing"); len(e) != 2 || !strings.Contains(e[0].Reason, "507") || e[0].Target != "siem" {
		t.Errorf("alarms: %+v", e)
	}
	r.delivered(uint64(len(r.lines())))
	r.same("afterwards", got.all())
	if s := r.stats(); s.Delivered != uint64(len(got.all())) {
		t.Errorf("%d received: %+v", len(got.all()), s)
	}
}

// begun is when the first attempt under way began.
func (w *worker) begun() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since
}

// TestAttemptEnds: an attempt that hangs is given up, and another made.
func TestAttemptEnds(t *testing.T) {
	r := newRig(t)
	r.pace.attempt = 10 * time.Millisecond
	var got box
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		text := body(q)
		if asked.Add(1) < 3 {
			<-q.Context().Done()
			return
		}
		got.add(split(text)...)
	}))
	defer server.Close()
	r.begin(Options{Type: TypeWebhook, URL: server.URL})
	r.write(5)
	r.delivered(5)
	r.same("afterwards", got.all())
}

// stuck never comes back, as a disk that hangs.
type stuck struct {
	asked chan struct{}
	let   chan struct{}
}

func (s stuck) size() size { return size{records: 10, bytes: 1 << 20} }
func (s stuck) deliver(context.Context, batch) (int, error) {
	s.asked <- struct{}{}
	<-s.let
	return 0, nil
}
func (s stuck) close() error { return nil }

// TestStuckAtTheEnd: a node stops though a sink does not come back.
func TestStuckAtTheEnd(t *testing.T) {
	r := newRig(t)
	r.pace.abandon = time.Millisecond
	s := stuck{make(chan struct{}), make(chan struct{})}
	r.beginWith(func(Config, Options) (target, error) { return s, nil }, Options{Type: TypeFile, Path: "/unused"})
	r.write(1)
	<-s.asked
	r.end()
	close(s.let)
}

// TestSegments: a sink reads a segment that is compressed and one that is being written, and
// goes on from the middle of one.
func TestSegments(t *testing.T) {
	r := newRig(t)
	r.write(5)
	path := filepath.Join(t.TempDir(), "audit.log")
	o := Options{Type: TypeFile, Path: path}
	r.begin(o)
	r.delivered(5)
	r.end()
	r.write(trail.SegmentRecords - 5)
	r.write(10)
	compress(t, filepath.Join(r.dir, trail.Name(0, trail.RecordsEnd)))
	r.begin(o)
	r.delivered(trail.SegmentRecords + 10)
	r.write(3)
	r.delivered(trail.SegmentRecords + 13)
	if got := readLines(t, path); len(got) != trail.SegmentRecords+13 {
		t.Errorf("%d records", len(got))
	}
	r.same("the file", readLines(t, path))
}

// TestSealedSegment: a sink that has not read a segment before it was sealed waits until its key
// can be used, and misses nothing.
func TestSealedSegment(t *testing.T) {
	r := newRig(t)
	r.write(5)
	path := filepath.Join(t.TempDir(), "audit.log")
	o := Options{Type: TypeFile, Path: path}
	r.begin(o)
	r.delivered(5)
	r.end()
	r.write(trail.SegmentRecords + 5)
	plain := filepath.Join(r.dir, trail.Name(0, trail.RecordsEnd))
	compress(t, plain)
	must(t, os.Rename(plain+".gz", filepath.Join(r.dir, trail.Name(0, trail.SealedEnd))))
	r.key.refused.Store(true)
	r.begin(o)
	r.until("it says why", func() bool {
		return strings.Contains(r.stats().LastError, "segment 0: sealed audit records cannot be read: key is disabled")
	})
	if s := r.stats(); s.Cursor != 5 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
	r.key.refused.Store(false)
	r.delivered(trail.SegmentRecords + 10)
	r.same("the file", readLines(t, path))
}

func compress(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	f, err := os.Create(path + ".gz")
	must(t, err)
	z := gzip.NewWriter(f)
	_, err = z.Write(text)
	must(t, err)
	must(t, z.Close())
	must(t, f.Close())
	must(t, os.Remove(path))
}

// TestGap: what is removed before a sink had it is an alarm and is counted, and the sink goes
// on behind it. One that is new has missed nothing.
func TestGap(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	old := Options{Type: TypeFile, Name: "old", Path: filepath.Join(dir, "old")}
	r.write(5)
	r.begin(old)
	r.delivered(5)
	r.end()
	r.write(trail.SegmentRecords + 5)
	must(t, os.Remove(filepath.Join(r.dir, trail.Name(0, trail.RecordsEnd))))
	r.begin(old, Options{Type: TypeFile, Name: "new", Path: filepath.Join(dir, "new")})
	const all = trail.SegmentRecords + 10 + 1 // and the alarm
	r.delivered(all)
	r.until("the new one has it, too", func() bool { return r.set.Stats()[1].Cursor == all })
	if e := r.events("AuditSinkGap"); len(e) != 1 || e[0].Alarm != audit.SinkGap || e[0].Target != "old" || !strings.Contains(e[0].Reason, "records 6 to 65536") {
		t.Errorf("alarms: %+v", e)
	}
	if s := r.set.Stats(); s[0].Lost != trail.SegmentRecords-5 || s[1].Lost != 0 || s[0].Failures+s[1].Failures != 0 {
		t.Errorf("%+v", s)
	}
	r.same("the new file", readLines(t, filepath.Join(dir, "new")))
	r.same("the old file", readLines(t, filepath.Join(dir, "old"))[5:])
}

// TestCursors: a place that cannot be read, or that the trail has not reached, costs
// repetitions and no record.
func TestCursors(t *testing.T) {
	for name, text := range map[string]string{"garbage": "7x\n", "empty": "", "negative": "-1\n", "ahead": "12345\n"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(20)
			r.until("all is on the disk", func() bool { return r.trail.Durable() == 20 })
			must(t, os.MkdirAll(filepath.Join(r.dir, "sinks"), 0o700))
			cursor := filepath.Join(r.dir, "sinks", "file.cursor")
			must(t, os.WriteFile(cursor, []byte(text), 0o600))
			path := filepath.Join(t.TempDir(), "audit.log")
			r.begin(Options{Type: TypeFile, Path: path})
			r.delivered(20)
			r.end()
			r.same("the file", readLines(t, path))
			if b, err := os.ReadFile(cursor); err != nil || string(b) != "20\n" {
				t.Errorf("the cursor is %q, %v", b, err)
			}
		})
	}
}

// TestKilled: a cursor that lags behind, as after kill -9, costs repetitions and no record.
func TestKilled(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(t.TempDir(), "audit.log")
	o := Options{Type: TypeFile, Path: path}
	r.write(30)
	r.begin(o)
	r.delivered(30)
	r.end()
	must(t, os.WriteFile(filepath.Join(r.dir, "sinks", "file.cursor"), []byte("11\n"), 0o600))
	must(t, r.trail.Close())
	r.open()
	r.write(4)
	r.begin(o)
	r.delivered(34)
	got := readLines(t, path)
	if len(got) != 34+19 {
		t.Errorf("%d records, want 34 and 19 again", len(got))
	}
	r.same("the file", got)
}
