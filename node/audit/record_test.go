package audit

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// counting notes what it is told.
type counting struct {
	nobody
	mu        sync.Mutex
	sequences []uint64
	bytes     int
	alarms    int
}

func (c *counting) Recorded(bytes int, sequence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += bytes
	if bytes > 0 {
		c.sequences = append(c.sequences, sequence)
	}
}

func (c *counting) Alarmed(Alarm) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarms++
}

// whole is the report on a trail that nobody has signed.
func whole(t *testing.T, dir string) trail.Report {
	t.Helper()
	r, err := trail.Verify(dir, trail.Options{Identity: newIdentity(t).Identity()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRecordAll: records that are written together are those that are written one by one: numbered,
// chained and observed, and none of anybody else among them.
func TestRecordAll(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	var seen counting
	l.Observe(&seen)
	const writers, rounds, n = 4, 5, 50
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			for round := range rounds {
				all := make([]Event, n)
				for i := range all {
					all[i] = Event{Name: "Decrypt", RequestID: fmt.Sprint(w, "-", round), Result: Success, KeyVersion: uint32(i)}
				}
				all[7].Alarm = UseOfDoomedKey
				if err := errors.Join(l.RecordAll(all), l.Record(Event{Name: "Encrypt", Result: Success})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if err := l.RecordAll(nil); err != nil {
		t.Error(err)
	}
	if p := l.Position(); p.Last != writers*rounds*(n+1) || len(seen.sequences) != int(p.Last) || seen.alarms != writers*rounds || !slices.IsSorted(seen.sequences) {
		t.Errorf("%+v, observed %d records and %d alarms", p, len(seen.sequences), seen.alarms)
	}
	shut(t, l)
	if r := whole(t, dir); r.Last != writers*rounds*(n+1) || r.Finding != nil {
		t.Errorf("%+v", r)
	}
	events := read(t, dir)
	for i := 0; i < len(events); i++ {
		if events[i].Name != "Decrypt" {
			continue
		}
		for k, e := range events[i : i+n] {
			if e.RequestID != events[i].RequestID || e.KeyVersion != uint32(k) {
				t.Fatalf("record %d of a batch is %+v", k, e)
			}
		}
		i += n - 1
	}
	if err := l.RecordAll([]Event{{}}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
}

// TestRecordAllOverSegments: a segment ends where it ends, in the middle of records that are written together.
func TestRecordAllOverSegments(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	all := make([]Event, 1000)
	for written := 0; written < 2*trail.SegmentRecords+500; written += len(all) {
		for i := range all {
			all[i] = Event{Name: "Decrypt", Result: Success}
		}
		all[0].Durable = written%10_000 == 0
		if err := l.RecordAll(all); err != nil {
			t.Fatal(err)
		}
		if p := l.Position(); all[0].Durable && p.Durable != p.Last {
			t.Fatalf("not on the disk: %+v", p)
		}
	}
	last := l.Position().Last
	shut(t, l)
	if r := whole(t, dir); r.Last != last || r.Finding != nil {
		t.Errorf("%d records, verified %+v", last, r)
	}
	l = open(t, dir)
	if p := l.Position(); p.Last != last {
		t.Errorf("opened again: %+v", p)
	}
	shut(t, l)
}

// TestRecordAllBroken: when one write has failed nothing is written any more.
func TestRecordAllBroken(t *testing.T) {
	l := open(t, t.TempDir())
	if err := l.file.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.RecordAll(make([]Event, 3)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
	if err := l.Record(Event{}); !errors.Is(err, ErrUnavailable) || l.Healthy() == nil || l.Position().Last != 0 {
		t.Errorf("%v, %+v", err, l.Position())
	}
	_ = l.Close()
}
