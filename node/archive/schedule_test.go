package archive

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

func (a *Archive) mustBackUp(t *testing.T) {
	t.Helper()
	time.Sleep(2 * time.Millisecond) // names carry milliseconds
	must(t, a.schedule.round(t.Context()))
	a.mustRound(t)
}

func TestScheduledBackup(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	a, _ := open(t, m, dir)
	m.create(1)
	a.mustBackUp(t)
	files, err := Backups(testCluster, dir)
	must(t, err)
	if len(files) != 1 || files[0].Index != m.State().Index() || files[0].Node != testNode || a.Status().Backup != files[0] {
		t.Fatalf("backups %+v, status %+v", files, a.Status())
	}
	f, err := os.Open(files[0].Path)
	must(t, err)
	defer f.Close()
	s, err := backup.Check(f, nil)
	must(t, err)
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 || s.Keys != 1 || s.Index != files[0].Index {
		t.Errorf("mode %v, %+v, %v", info.Mode(), s, err)
	}
	if changedSince(m.State(), files[0]) {
		t.Error("a backup is due though nothing changed")
	}
	m.tick()
	if changedSince(m.State(), files[0]) {
		t.Error("a backup is due for a tick")
	}
	m.create(2)
	if !changedSince(m.State(), files[0]) {
		t.Error("no backup is due though a key was made")
	}
}

// TestRetention: of its own backups a node keeps the newest, and of its own journal
// what the oldest backup in the directory needs. It touches nothing else.
func TestRetention(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	a, _ := open(t, m, dir)
	start := m.State().Index()
	a.mustRound(t)
	others := []string{
		"notes.txt", ".qkb", "quorumkms-" + testCluster.String() + "-e0-20200101T000000.000Z-1-n2.0011.qkj",
		"quorumkms-" + testCluster.String() + "-e0-20200101T000000.000Z-1-n2.0011.qkb.partial",
		"quorumkms-11111111-0000-0000-0000-000100000000-e0-20200101T000000.000Z-1-" + testNode + ".qkb",
		"quorumkms-" + testCluster.String() + "-e0-20200101T000000.000Z-1-" + testNode + ".qkb.bak",
	}
	for _, name := range others {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	stale := filepath.Join(dir, "quorumkms-"+testCluster.String()+"-e0-20200101T000000.000Z-1-"+testNode+".qkb.partial")
	must(t, os.WriteFile(stale, nil, 0o600))
	var restrictions []uint64
	for i := range 5 {
		restrictions = append(restrictions, m.restrict(byte(i+1)))
		a.mustRound(t)
		time.Sleep(2 * time.Millisecond)
		a.journal.rotate.Store(true) // a segment that lies across a backup
		m.tick()
		a.mustRound(t)
		a.mustBackUp(t)
	}
	files, err := Backups(testCluster, dir)
	must(t, err)
	if len(files) != 2 || files[1].Index != m.State().Index() {
		t.Errorf("kept %+v", files)
	}
	wantHistory(t, dir, files[0].Index, restrictions[4:], m.State().Index())
	if n := len(names(t, dir, testNode+journalEnd)); n > 5 {
		t.Errorf("%d segments are kept", n)
	}
	if r := history(t, dir, start); len(r.Gaps) == 0 {
		t.Error("the oldest segment is still there")
	}
	for _, name := range others {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("another's file was touched: %v", err)
		}
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash had left is still there: %v", err)
	}

	// An older backup of another node keeps the journal.
	must(t, os.WriteFile(filepath.Join(dir, "quorumkms-"+testCluster.String()+"-e0-20200101T000000.000Z-"+"2-n2.0011.qkb"), nil, 0o600))
	segments := names(t, dir, testNode+journalEnd)
	m.restrict(9)
	a.mustBackUp(t)
	for _, s := range segments {
		if !slices.Contains(names(t, dir, testNode+journalEnd), s) {
			t.Errorf("%s was removed, though a backup from before it is there", s)
		}
	}
}

// TestBackupFailures: a failure leaves what is there, is reported, and passes.
func TestBackupFailures(t *testing.T) {
	m, dir := newMember(t), filepath.Join(t.TempDir(), "backups")
	a, book := open(t, m, dir)
	a.Run()
	defer a.Close()
	eventually(t, "the failure is reported", func() bool { s := a.Status(); return s.BackupProblem != "" && s.JournalProblem != "" })
	if !strings.Contains(book.String(), "the scheduled backup cannot be written; the node serves on") {
		t.Errorf("the log says %s", book)
	}
	must(t, os.Mkdir(dir, 0o700))
	eventually(t, "both are written again", func() bool {
		s := a.Status()
		return s.BackupProblem == "" && s.JournalProblem == "" && s.Backup.Index > 0
	})
	for range 3 { // what changes is backed up again and again, and no more than two are kept
		before := a.Status().Backup.Index
		m.create(byte(before))
		eventually(t, "another backup is there", func() bool { return a.Status().Backup.Index > before })
	}
	must(t, a.Close())
	if n := len(names(t, dir, backupEnd)); n != 2 {
		t.Errorf("%d backups are kept, want 2", n)
	}
}

// TestHang: a call into the disk that does not come back is a problem that shows.
func TestHang(t *testing.T) {
	m := newMember(t)
	a, _ := open(t, m, t.TempDir())
	now := time.Now()
	a.journal.health.now = func() time.Time { return now }
	a.journal.health.begin()
	if p := a.Status().JournalProblem; p != "" {
		t.Errorf("at once: %s", p)
	}
	now = now.Add(hangsAfter + time.Second)
	if p := a.Status().JournalProblem; !strings.Contains(p, "31s: does the disk hang?") {
		t.Errorf("after a while: %q", p)
	}
	a.journal.health.end(nil)
	if p := a.Status().JournalProblem; p != "" {
		t.Errorf("afterwards: %s", p)
	}
}
