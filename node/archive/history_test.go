package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// put writes segments as files of a new directory.
func put(t *testing.T, segments ...*script) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for i, x := range segments {
		f := File{Cluster: x.s.Cluster, Epoch: x.s.RecoveryEpoch, Time: time.Unix(int64(i), 0), Index: x.s.After, Node: x.s.Node}
		must(t, os.WriteFile(filepath.Join(dir, f.name(journalEnd)), x.b, 0o600))
	}
	return dir
}

func (r Restrictions) String() string {
	var entries []uint64
	for _, e := range r.Entries {
		entries = append(entries, e.Index)
	}
	at := int64(0)
	if !r.Covered.Time.IsZero() {
		at = r.Covered.Time.UnixNano() - startTime
	}
	return fmt.Sprintf("%v covered %d@%d gaps %v", entries, r.Covered.Index, at, r.Gaps)
}

func TestHistory(t *testing.T) {
	const a, b = "a.01", "b.02"
	one := []*script{begin(t, a, 0, 5).entry(8).covered(10), begin(t, a, 0, 10).entry(14).covered(20)}
	for _, row := range []struct {
		name     string
		segments []*script
		index    uint64
		want     string
	}{
		{"nothing", nil, 7, "[] covered 7@0 gaps []"},
		{"from before the backup", one, 7, "[8 14] covered 20@20 gaps []"},
		{"from the backup on", one, 5, "[8 14] covered 20@20 gaps []"},
		{"from after the backup", one, 3, "[8 14] covered 3@0 gaps [{4 5}]"},
		{"a backup in the second segment", one, 12, "[14] covered 20@20 gaps []"},
		{"a backup at the end", one, 20, "[] covered 20@20 gaps []"},
		{"a backup behind the end", one, 25, "[] covered 25@0 gaps []"},
		{"a missing segment", []*script{one[0], begin(t, a, 0, 15).entry(16).covered(20)}, 5, "[8 16] covered 10@10 gaps [{11 15}]"},
		{"an entry after the last coverage", []*script{begin(t, a, 0, 5).covered(10).entry(12)}, 5, "[12] covered 12@10 gaps []"},
		{"a gap", []*script{begin(t, a, 0, 5).covered(10).gap(13, 20).entry(22).covered(30)}, 5, "[22] covered 12@10 gaps [{13 20}]"},
		{"a gap before the backup", []*script{begin(t, a, 0, 5).gap(6, 20).covered(30)}, 25, "[] covered 30@30 gaps []"},
		{"a backup in a gap", []*script{begin(t, a, 0, 5).gap(6, 20).covered(30)}, 15, "[] covered 15@0 gaps [{16 20}]"},
		{"two gaps", []*script{begin(t, a, 0, 5).gap(6, 8).covered(10).gap(11, 12).covered(14)}, 5, "[] covered 5@0 gaps [{6 8} {11 12}]"},
		{
			"a gap that another node fills",
			[]*script{begin(t, a, 0, 5).covered(10).gap(11, 20).covered(30), begin(t, b, 0, 2).entry(9).entry(15).covered(25)},
			5,
			"[9 15] covered 30@30 gaps []",
		},
		{
			"a gap that another node fills in part",
			[]*script{begin(t, a, 0, 5).covered(10).gap(11, 20).covered(30), begin(t, b, 0, 12).entry(15).covered(25)},
			5,
			"[15] covered 10@10 gaps [{11 12}]",
		},
		{"the same from two nodes", []*script{begin(t, a, 0, 5).entry(8).covered(10), begin(t, b, 0, 5).entry(8).covered(12)}, 5, "[8] covered 12@12 gaps []"},
		{"another epoch", []*script{begin(t, a, 1, 0).entry(8).covered(10), begin(t, a, 0, 5).entry(7).covered(9)}, 5, "[7] covered 9@9 gaps []"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, err := ReadHistory(testCluster, testKey(), put(t, row.segments...))
			must(t, err)
			r, err := h.After(fsm.History{}, row.index)
			must(t, err)
			if len(h.Problems) > 0 || r.String() != row.want {
				t.Errorf("%s, problems %v; want %s", r, h.Problems, row.want)
			}
		})
	}
}

func TestHistoryOfSeveralDirectories(t *testing.T) {
	first, second := put(t, begin(t, "a.01", 0, 5).entry(8).covered(10)), put(t, begin(t, "b.02", 0, 9).entry(11).covered(12))
	h, err := ReadHistory(testCluster, testKey(), first, second)
	must(t, err)
	r, err := h.After(fsm.History{}, 5)
	must(t, err)
	if r.String() != "[8 11] covered 12@12 gaps []" {
		t.Errorf("%s", r)
	}
	if _, err := ReadHistory(testCluster, testKey(), first, filepath.Join(first, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestHistoryNamesProblems: what was altered is named, what stands before it counts,
// and files of others are left alone.
func TestHistoryNamesProblems(t *testing.T) {
	altered := short(t)
	altered.b[altered.ends[2]+20] ^= 1
	renamed := begin(t, "b.02", 0, 7).covered(9)
	renamed.s.After = 3
	dir := put(t, altered, renamed)
	for _, name := range []string{"notes.txt", "quorumkms-x.qkj", "quorumkms-00000000-0000-0000-0000-000000000001-e0-20260101T000000.000Z-1-c.qkj"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("no journal"), 0o600))
	}
	h, err := ReadHistory(testCluster, testKey(), dir)
	must(t, err)
	all := errors.Join(h.Problems...)
	if len(h.Problems) != 2 || !errors.Is(all, ErrJournal) || !strings.Contains(all.Error(), fmt.Sprintf("at byte %d: the MAC of a record does not verify", altered.ends[2])) ||
		!strings.Contains(all.Error(), testNode+journalEnd) || !strings.Contains(all.Error(), "it was renamed") {
		t.Errorf("problems %v", h.Problems)
	}
	r, err := h.After(fsm.History{}, 10)
	must(t, err)
	if r.String() != "[12] covered 20@20 gaps []" {
		t.Errorf("%s", r)
	}
}

// TestHistoryConflict: two journals that verify and differ are no history.
func TestHistoryConflict(t *testing.T) {
	other := begin(t, "b.02", 0, 5).record(kindEntry, append(numbers(8, 1), entry(t, 9)...)).covered(10)
	h, err := ReadHistory(testCluster, testKey(), put(t, begin(t, "a.01", 0, 5).entry(8).covered(10), other))
	must(t, err)
	if _, err := h.After(fsm.History{}, 5); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), "another entry 8") {
		t.Errorf("two entries of one index: %v", err)
	}
	if r, err := h.After(fsm.History{}, 8); err != nil || r.String() != "[] covered 10@10 gaps []" {
		t.Errorf("behind them: %s, %v", r, err)
	}
}

func TestNames(t *testing.T) {
	f := File{Cluster: testCluster, Epoch: 3, Time: time.UnixMilli(1_700_000_000_123).UTC(), Index: 1 << 63, Node: "a-b.c_d.0011"}
	name := f.name(backupEnd)
	if want := "quorumkms-00000000-0000-0000-0000-000100000000-e3-20231114T221320.123Z-9223372036854775808-a-b.c_d.0011.qkb"; name != want {
		t.Errorf("name %s, want %s", name, want)
	}
	if got, ok := parseName("", name, backupEnd); !ok || fmt.Sprint(got) != fmt.Sprint(File{name, f.Cluster, f.Epoch, f.Time, f.Index, f.Node}) {
		t.Errorf("%s is read as %+v", name, got)
	}
	for _, bad := range []string{
		"", ".qkb", name + partialEnd, name[1:], strings.Replace(name, "-e3-", "-e03-", 1), strings.Replace(name, "e3", "e4294967296", 1),
		strings.Replace(name, "221320", "251320", 1), strings.Replace(name, "0001", "000G", 1), strings.Replace(name, "9223", "99999223", 1),
	} {
		if f, ok := parseName("", bad, backupEnd); ok {
			t.Errorf("%q is read as %+v", bad, f)
		}
	}
}

// TestParallelHistories: two recoveries from the same epoch are two histories, each with
// entries of its own.
func TestParallelHistories(t *testing.T) {
	of := func(node string, id byte, entries ...uint64) *script {
		h := Header{Cluster: testCluster, RecoveryEpoch: 1, RecoveryID: uuid.UUID{id}, Node: node, After: 5, Created: startTime}
		s, b, err := beginSegment(testKey(), h)
		must(t, err)
		x := &script{t: t, s: s, b: b}
		for _, index := range entries {
			x.record(kindEntry, append(numbers(index, 1), entry(t, index+uint64(id))...))
		}
		return x.covered(20)
	}
	h, err := ReadHistory(testCluster, testKey(), put(t, of("a.01", 1, 8), of("b.02", 2, 8, 9)))
	must(t, err)
	for history, want := range map[fsm.History]string{
		{Epoch: 1, ID: uuid.UUID{1}}: "[8] covered 20@20 gaps []",
		{Epoch: 1, ID: uuid.UUID{2}}: "[8 9] covered 20@20 gaps []",
		{Epoch: 1}:                   "[] covered 5@0 gaps []",
	} {
		if r, err := h.After(history, 5); err != nil || r.String() != want || len(h.Problems) > 0 {
			t.Errorf("%v: %s, %v, problems %v; want %s", history, r, err, h.Problems, want)
		}
	}
}
