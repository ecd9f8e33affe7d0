package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func config(dir string) Config {
	return Config{Dir: dir, Node: "node-1", Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func shut(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string) []Event {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "0000000000.records"))
	if err != nil {
		t.Fatal(err)
	}
	var out []Event
	for line := range bytes.Lines(b) {
		var e Event
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, e)
	}
	return out
}

// TestSequence writes from many goroutines over several lives: the sequence has no
// gap and no repetition.
func TestSequence(t *testing.T) {
	dir := t.TempDir()
	const lives, writers, each = 3, 8, 50
	for range lives {
		l := open(t, dir)
		var wait sync.WaitGroup
		for range writers {
			wait.Go(func() {
				for range each {
					if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
		shut(t, l)
	}
	events := read(t, dir)
	if len(events) != lives*writers*each {
		t.Fatalf("%d records, want %d", len(events), lives*writers*each)
	}
	for i, e := range events {
		if e.Sequence != uint64(i+1) || e.Node != "node-1" || e.Time.IsZero() {
			t.Fatalf("record %d is %+v", i, e)
		}
	}
}

// TestTornRecord cuts the last record at every byte: what is whole stays, the rest
// is cut off, a record says so, and the sequence goes on.
func TestTornRecord(t *testing.T) {
	whole := t.TempDir()
	l := open(t, whole)
	for _, name := range []string{"CreateKey", "Encrypt"} {
		if err := l.Record(Event{Name: name, Result: Success}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	b, err := os.ReadFile(filepath.Join(whole, "0000000000.records"))
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(b, '\n') + 1
	for cut := 1; cut < len(b); cut++ {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "0000000000.records"), b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		shut(t, l)
		events := read(t, dir)
		last := events[len(events)-1]
		if cut == first {
			if len(events) != 1 {
				t.Fatalf("cut between records: %d records", len(events))
			}
			continue
		}
		if last.Name != "AuditTrailRecovered" || last.Sequence != uint64(len(events)) || !strings.Contains(last.Reason, "torn") {
			t.Fatalf("cut at %d: the last record is %+v", cut, last)
		}
	}
}

// TestUnwritable: a trail with a hole is no trail, so the first failure is the
// last word.
func TestUnwritable(t *testing.T) {
	l := open(t, t.TempDir())
	if err := l.file.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Record(Event{Name: "Encrypt"}); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if err := l.Healthy(); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	close(l.stopTidy)
	l.tidier.Wait()
	close(l.stop)
	l.done.Wait()
}

// TestOversizedRecord: what a caller makes too long is clipped, and the trail opens
// again behind it.
func TestOversizedRecord(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	long := strings.Repeat("\x01", 1<<20)
	if err := l.Record(Event{Name: "Status", Tenant: long, Reason: long, Context: map[string]string{long: long}, DestinationContext: map[string]string{long: long}, DestinationAlias: long}); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	l = open(t, dir)
	shut(t, l)
	events := read(t, dir)
	if len(events) != 1 || !strings.HasSuffix(events[0].Tenant, "(clipped)") || len(events[0].Context) != 1 || len(events[0].DestinationContext) != 1 {
		t.Fatalf("%d records", len(events))
	}
}

// TestFollow: who follows the trail is woken until what it has seen is all there is on the
// disk, also across a restart, and who does not read holds nobody up.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	wake, ignored := l.Follow(), l.Follow()
	const n = 500
	for range n {
		if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
			t.Fatal(err)
		}
	}
	for l.Durable() < n {
		<-wake
	}
	if err := l.Record(Event{Name: "CreateKey", Result: Success, Durable: true}); err != nil || l.Durable() != n+1 {
		t.Fatalf("%d records are on the disk, %v", l.Durable(), err)
	}
	if len(ignored) != 1 {
		t.Errorf("%d wake-ups wait", len(ignored))
	}
	shut(t, l)
	l = open(t, dir)
	if l.Durable() != n+1 {
		t.Errorf("%d records are on the disk after a restart", l.Durable())
	}
	shut(t, l)
}
