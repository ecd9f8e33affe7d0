package audit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// tailed is a trail of 30 records of which 20 are signed.
func tailed(t *testing.T, by *identity) (dir string, all [][]byte) {
	t.Helper()
	dir = t.TempDir()
	l := open(t, dir)
	for i := range 30 {
		if i == 20 {
			if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Record(Event{Name: "Encrypt", KeyID: fmt.Sprintf("key-%d", i+1), Result: Success}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	all = lines(t, dir)
	all[29] = append(all[29], '\n')
	return dir, all
}

// TestLossOfPower leaves behind what the disk did not have yet when the power went: the trail
// is cut off where its chain ends, says so, and goes on. What was signed was on the disk.
func TestLossOfPower(t *testing.T) {
	by := newIdentity(t)
	for what, row := range map[string]struct {
		damage func(all [][]byte) [][]byte
		last   uint64 // record of the chain
		why    string
	}{
		"zeros at the end":             {func(all [][]byte) [][]byte { return append(all[:27], make([]byte, 5000)) }, 27, "a torn record"},
		"zeros, longer than any line":  {func(all [][]byte) [][]byte { return append(all[:27], make([]byte, 2*trail.MaxLine)) }, 27, "a line of more than"},
		"zeros in a record":            {func(all [][]byte) [][]byte { clear(all[24][5:50]); return all }, 24, "no record"},
		"zeros in place of several":    {func(all [][]byte) [][]byte { clear(all[24]); clear(all[25][:9]); return all }, 24, "no record"},
		"all that is not signed":       {func(all [][]byte) [][]byte { clear(all[20]); return all }, 20, "no record"},
		"a record is lost":             {func(all [][]byte) [][]byte { return append(all[:24], all[25:]...) }, 24, "record 26, not 25"},
		"a record as it was before":    {func(all [][]byte) [][]byte { all[24] = replaced(all[24], "key-25", "key-52"); return all }, 25, "names another one"},
		"one that does not name any":   {func(all [][]byte) [][]byte { all[24] = []byte(`{"sequence":25}` + "\n"); return all }, 24, "names another one"},
		"no loss":                      {func(all [][]byte) [][]byte { return all }, 30, ""},
		"a signed record":              {func(all [][]byte) [][]byte { clear(all[18][5:50]); return all }, 0, "the first 20 records are not those"},
		"the last signed one":          {func(all [][]byte) [][]byte { clear(all[19]); return all }, 0, "the first 20 records are not those"},
		"the end of what is signed":    {func(all [][]byte) [][]byte { return append(all[:19], make([]byte, 500)) }, 0, "it ends at record 19, and the node has signed 20"},
		"a signed one, and what comes": {func(all [][]byte) [][]byte { all[10][30] ^= 1; clear(all[24]); return all }, 0, "the first 20 records are not those"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, all := tailed(t, by)
			before := bytes.Join(row.damage(all), nil)
			path := filepath.Join(dir, trail.Name(0, trail.RecordsEnd))
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
			var logged bytes.Buffer
			c := config(dir)
			c.Log = slog.New(slog.NewTextHandler(&logged, nil))
			l, err := Open(c)
			if row.last == 0 {
				if !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), row.why) {
					t.Errorf("opened: %v", err)
				}
				if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, before) {
					t.Errorf("the file was changed: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
				t.Fatal(err)
			}
			if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
				t.Fatal(err)
			}
			shut(t, l)
			if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.Proved != r.Last {
				t.Errorf("%+v, %+v, %v", r, r.Finding, err)
			}
			events := read(t, dir)
			if row.why == "" {
				if len(events) != int(row.last)+1 {
					t.Errorf("%d records", len(events))
				}
				return
			}
			kept := 0
			for _, line := range all[:row.last] {
				kept += len(line)
			}
			told := fmt.Sprintf("%d bytes behind record %d were cut off: ", len(before)-kept, row.last)
			e := events[row.last]
			if len(events) != int(row.last)+2 || e.Name != "AuditTrailRecovered" || !strings.HasPrefix(e.Reason, told) || !strings.Contains(e.Reason, row.why) {
				t.Errorf("%d records; %+v, want %s…%s", len(events), e, told, row.why)
			}
			if !strings.Contains(logged.String(), told) {
				t.Errorf("logged: %s", logged.String())
			}
		})
	}
}

// TestNoLossOfPower: what is wrong long before the end was on the disk, signed or not.
func TestNoLossOfPower(t *testing.T) {
	c := config(t.TempDir())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { now = now.Add(time.Minute); return now }
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := l.Record(Event{Name: "Encrypt", Result: Success}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	all := lines(t, c.Dir)
	whole := bytes.Join(all, nil)
	for wrong, want := range map[int]bool{10: false, 20: false, 26: true, 29: true} {
		b := bytes.Clone(whole)
		i := len(bytes.Join(all[:wrong], nil)) // of the line behind record wrong
		clear(b[i+5 : i+50])
		if err := os.WriteFile(filepath.Join(c.Dir, trail.Name(0, trail.RecordsEnd)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(c)
		if err == nil {
			shut(t, l)
		}
		if (err == nil) != want || err != nil && (!errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "no loss of power")) {
			t.Errorf("wrong behind record %d of 30, one a minute: %v", wrong, err)
		}
	}
}

// TestTornCheckpoint: what a loss of power has left of the last checkpoint is cut off if the
// trail agrees with an earlier one.
func TestTornCheckpoint(t *testing.T) {
	by := newIdentity(t)
	nonsense := []byte("\x00\x00nonsense\n\n\x00\x00\n")
	for what, row := range map[string]struct {
		alter func(b []byte) []byte
		want  string // why it is refused
	}{
		"zeros":         {func(b []byte) []byte { return append(b, make([]byte, 300)...) }, ""},
		"no checkpoint": {func(b []byte) []byte { return append(b, nonsense...) }, ""},
		"two":           {func(b []byte) []byte { return append(append(b, nonsense...), nonsense...) }, ""},
		"the only one":  {func([]byte) []byte { return nonsense }, "refused"},
		"behind one of other size": {func(b []byte) []byte {
			return append(bytes.Replace(b, []byte("\n20\n"), []byte("\n19\n"), 1), nonsense...)
		}, "the first 19 records"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, _ := tailed(t, by)
			path := filepath.Join(dir, trail.Name(0, trail.CheckpointsEnd))
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, row.alter(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(config(dir))
			if row.want != "" {
				if !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("opened: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p := l.Position(); p.Signed != 20 || p.Last != 30 {
				t.Errorf("at %+v", p)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole) {
				t.Errorf("the checkpoints are %q, %v", b, err)
			}
			if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
				t.Fatal(err)
			}
			shut(t, l)
			if r, err := trail.Verify(dir, trail.Options{Identity: by.Identity()}); err != nil || r.Finding != nil || r.Proved != 30 {
				t.Errorf("%+v, %+v, %v", r, r.Finding, err)
			}
		})
	}
}

// TestWrittenAgain: what is not signed is written once more when a trail goes on, for the kernel
// may hold it for written since a sync that failed.
func TestWrittenAgain(t *testing.T) {
	by := newIdentity(t)
	dir, _ := tailed(t, by)
	long := time.Now().Add(-time.Hour).Truncate(time.Second)
	written := func(name string) bool {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s was changed, %v", name, err)
		}
		if err := l.Checkpoint(t.Context(), cluster, by); err != nil {
			t.Fatal(err)
		}
		shut(t, l)
		return !info.ModTime().Equal(long)
	}
	records := trail.Name(0, trail.RecordsEnd)
	if !written(records) {
		t.Error("ten records that were not signed were not written again")
	}
	if written(records) {
		t.Error("signed records were written again")
	}
	// From the first that is not signed on.
	path := filepath.Join(t.TempDir(), "file")
	whole := bytes.Repeat([]byte("0123456789"), fileChunk/4)
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again(path, 7, int64(len(whole)-3)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("another content: %v", err)
	}
}
