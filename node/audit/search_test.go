package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// found runs a search over all that is written.
func found(t *testing.T, l *Log, q Query, from uint64) (out []uint64) {
	t.Helper()
	s, err := l.Search(q, from)
	if err == nil {
		err = s.Run(t.Context(), l.Position().Last, func(f Found) error {
			out = append(out, f.Sequence)
			return nil
		}, func(time.Time) error { return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSearchFilters(t *testing.T) {
	c := config(t.TempDir())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { now = now.Add(time.Second); return now }
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Event{
		{Name: "Encrypt", Tenant: "acme", KeyID: "k1", Principal: "p1", Result: Success},
		{Name: "Decrypt", Tenant: "acme", KeyID: "k1", Alias: "alias/a&b", Principal: "p2", Result: Denied, Reason: "acme"},
		{Name: "Encrypt", Tenant: "globex", KeyID: "k2", Principal: "p1", Result: Success, RequestID: "r1"},
		{Name: "Decrypt", Principal: "p1", Result: Failed, Alarm: UseOfDoomedKey, Target: "acme", DestinationKeyID: "k4", DestinationAlias: "alias/to"},
	} {
		if err := l.Record(e); err != nil {
			t.Fatal(err)
		}
	}
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 0, 0, s, 0, time.UTC) }
	for what, row := range map[string]struct {
		q    Query
		from uint64
		want []uint64
	}{
		"all":                     {Query{}, 0, []uint64{1, 2, 3, 4}},
		"from":                    {Query{}, 3, []uint64{3, 4}},
		"tenant, not its name":    {Query{Tenant: "acme"}, 0, []uint64{1, 2}},
		"key":                     {Query{Key: "k1"}, 0, []uint64{1, 2}},
		"a destination":           {Query{Key: "k4"}, 0, []uint64{4}},
		"its alias":               {Query{Key: "alias/to"}, 0, []uint64{4}},
		"alias":                   {Query{Key: "alias/a&b"}, 0, []uint64{2}},
		"principal and operation": {Query{Principal: "p1", Name: "Encrypt"}, 0, []uint64{1, 3}},
		"result":                  {Query{Result: "DENIED"}, 0, []uint64{2}},
		"request":                 {Query{Request: "r1"}, 0, []uint64{3}},
		"any alarm":               {Query{Alarm: AnyAlarm}, 0, []uint64{4}},
		"an alarm":                {Query{Alarm: string(UseOfDoomedKey)}, 0, []uint64{4}},
		"another alarm":           {Query{Alarm: string(TrailRewritten)}, 0, nil},
		"since":                   {Query{Since: at(3)}, 0, []uint64{3, 4}},
		"until":                   {Query{Until: at(3)}, 0, []uint64{1, 2}},
		"nothing":                 {Query{Tenant: "acme", Name: "Sign"}, 0, nil},
	} {
		if got := found(t, l, row.q, row.from); !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", what, got, row.want)
		}
	}
	// It goes on where it was.
	s, err := l.Search(Query{Name: "Encrypt"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	run := func() {
		t.Helper()
		err := s.Run(t.Context(), l.Position().Last, func(f Found) error { got = append(got, f.Sequence); return nil }, func(time.Time) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	run()
	run()
	if err := l.Record(Event{Name: "Encrypt"}); err != nil {
		t.Fatal(err)
	}
	run()
	if !slices.Equal(got, []uint64{1, 3, 5}) {
		t.Errorf("followed: %v", got)
	}
	enough := errors.New("enough")
	s, err = l.Search(Query{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), 5, func(Found) error { return enough }, nil); !errors.Is(err, enough) {
		t.Errorf("stopped: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ended, 5, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	shut(t, l)
}

// TestSearchSegments searches a trail of several segments while they are compressed, removed
// and left out by their times.
func TestSearchSegments(t *testing.T) {
	by := newIdentity(t)
	c := config(t.TempDir())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { now = now.Add(time.Second); return now }
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	const records = 2*trail.SegmentRecords + 10
	for i := 1; i <= records; i++ {
		if err := l.Record(Event{Name: "Encrypt", KeyID: fmt.Sprintf("k%d", i%trail.SegmentRecords)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
		t.Fatal(err)
	}
	wanted := []uint64{5, trail.SegmentRecords + 5, 2*trail.SegmentRecords + 5}
	if got := found(t, l, Query{Key: "k5"}, 0); !slices.Equal(got, wanted) {
		t.Errorf("plain: %v", got)
	}
	half, err := l.Search(Query{Key: "k5"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	checkpoint, _, tree := l.Signed()
	visit := func(f Found) error {
		got = append(got, f.Sequence)
		proof, err := Prove(checkpoint, f.Sequence, tree)
		if err != nil {
			return err
		}
		return tlog.CheckRecord(proof, checkpoint.Size, checkpoint.Root, int64(f.Sequence)-1, trail.RecordHash(f.Line))
	}
	alive := func(time.Time) error { return nil }
	if err := half.Run(t.Context(), 100, visit, alive); err != nil {
		t.Fatal(err)
	}
	if err := l.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := half.Run(t.Context(), records, visit, alive); err != nil || !slices.Equal(got, wanted) {
		t.Errorf("compressed meanwhile: %v, %v", got, err)
	}
	// The files are a whole trail, also while it is written on.
	dir := t.TempDir()
	var file *os.File
	err = l.Files(t.Context(), 0, func(name string) (err error) {
		if err := l.Record(Event{Name: "Encrypt"}); err != nil {
			return err
		}
		if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
			return err
		}
		file, err = os.Create(filepath.Join(dir, name))
		return err
	}, func(b []byte) error {
		_, err := file.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.First != 1 || r.Proved < records {
		t.Errorf("%+v, %+v, %v", r, r.Finding, err)
	}
	// A segment that is outside of the time is not opened.
	broken := l.path(trail.Name(0, trail.CompressedEnd))
	was, err := os.ReadFile(broken)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	since := Query{Key: "k5", Since: now.Add(-time.Minute)}
	if got := found(t, l, since, 0); !slices.Equal(got, wanted[2:]) {
		t.Errorf("since a minute: %v", got)
	}
	if err := os.WriteFile(broken, was, 0o600); err != nil {
		t.Fatal(err)
	}
	// Segments that are removed are left out; one in the middle is missed.
	rest, err := l.Search(Query{Key: "k5"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := rest.Run(t.Context(), records, visit, alive); err != nil || !slices.Equal(got, wanted[1:]) {
		t.Errorf("removed meanwhile: %v, %v", got, err)
	}
	var names bytes.Buffer
	if err := l.Files(t.Context(), trail.SegmentRecords*2+1, func(name string) error { names.WriteString(name + " "); return nil }, func([]byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(names.Bytes(), []byte(trail.Name(1, trail.CompressedEnd))) || !bytes.Contains(names.Bytes(), []byte(trail.Name(2, trail.RecordsEnd))) {
		t.Errorf("from the last segment: %s", names.String())
	}
	shut(t, l)
}
