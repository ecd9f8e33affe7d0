package archive

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

func TestJournalFollows(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	start := m.tick()
	a, _ := open(t, m, dir)
	a.mustRound(t)
	wantHistory(t, dir, start, nil, start)
	one := m.restrict(1)
	m.create(2)
	two := m.restrict(2)
	end := m.tick()
	a.mustRound(t)
	wantHistory(t, dir, start, []uint64{one, two}, two) // coverage is not due yet
	a.journal.covered = time.Time{}
	a.mustRound(t)
	wantHistory(t, dir, start, []uint64{one, two}, end)
	if r := history(t, dir, start); r.Covered.Time.UnixNano() != m.State().Now() || !bytes.Equal(r.Entries[0].Raw, m.log[one]) || r.Entries[0].Term != 1 {
		t.Errorf("covered until %v, entry of term %d", r.Covered.Time, r.Entries[0].Term)
	}
	wantHistory(t, dir, start-1, []uint64{one, two}, start-1, Span{start, start})
	if got := a.Status().Journal; got.Index != end {
		t.Errorf("status %+v", got)
	}
}

// TestJournalRuns: the loop by itself, without being asked.
func TestJournalRuns(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	a, _ := open(t, m, dir)
	a.Run()
	eventually(t, "the journal has begun", func() bool { return a.Status().Journal.Index > 0 })
	start := m.State().Index()
	one := m.restrict(1)
	eventually(t, "the restriction is in the journal", func() bool { return a.Status().Journal.Index >= one })
	created := m.create(1)
	eventually(t, "the change is covered", func() bool { m.tick(); return a.Status().Journal.Index >= created })
	m.tick()
	must(t, a.Close())
	wantHistory(t, dir, start, []uint64{one}, m.State().Index()) // a node that stops says how far it came
	if len(names(t, dir, backupEnd)) == 0 {
		t.Error("no backup was written")
	}
}

// TestJournalResumes: a restart goes on in the same file, and a crash leaves at most a
// torn record.
func TestJournalResumes(t *testing.T) {
	for _, torn := range []string{"", "E", "E\x00\x00\x00\x10", strings.Repeat("\x00", 100)} {
		m, dir := newMember(t), t.TempDir()
		start := m.State().Index()
		a, _ := open(t, m, dir)
		a.mustRound(t)
		one := m.restrict(1)
		a.mustRound(t)
		missed := m.restrict(2) // applied, and the node crashed
		file := names(t, dir, journalEnd)[0]
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(torn)
		must(t, errors.Join(err, f.Close()))
		a, book := open(t, m, dir)
		a.mustRound(t)
		wantHistory(t, dir, start, []uint64{one, missed}, missed)
		if n := len(names(t, dir, journalEnd)); n != 1 {
			t.Errorf("%d segments", n)
		}
		if cut := strings.Contains(book.String(), "cut off"); cut != (torn != "") {
			t.Errorf("%q at the end: %s", torn, book)
		}
	}
}

// TestJournalAltered: an edited segment stays as it is; what this node's log still
// holds is written again.
func TestJournalAltered(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	start := m.State().Index()
	a, _ := open(t, m, dir)
	a.mustRound(t)
	one, two := m.restrict(1), m.restrict(2)
	a.mustRound(t)
	file := names(t, dir, journalEnd)[0]
	b, err := os.ReadFile(file)
	must(t, err)
	b[len(b)-40] ^= 1 // in the last entry
	must(t, os.WriteFile(file, b, 0o600))
	time.Sleep(2 * time.Millisecond) // names carry milliseconds
	a, book := open(t, m, dir)
	a.mustRound(t)
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, b) || !strings.Contains(book.String(), "left as it is") {
		t.Errorf("the altered segment: %v\n%s", err, book)
	}
	h, err := ReadHistory(testCluster, testKey(), dir)
	must(t, err)
	r, err := h.After(fsm.History{}, start)
	must(t, err)
	if len(h.Problems) != 1 || len(r.Entries) != 2 || r.Entries[0].Index != one || r.Entries[1].Index != two || len(r.Gaps) != 0 {
		t.Errorf("%s, problems %v", r, h.Problems)
	}
}

// TestJournalGaps: what the log no longer holds is a gap, and so is what it holds
// without proof that it was committed.
func TestJournalGaps(t *testing.T) {
	t.Run("a snapshot was installed", func(t *testing.T) {
		m, dir := newMember(t), t.TempDir()
		a, book := open(t, m, dir)
		a.mustRound(t)
		start := m.State().Index()
		m.restrict(1)
		last := m.restrict(2)
		m.forget(start+1, last)
		three := m.restrict(3)
		a.mustRound(t)
		wantHistory(t, dir, start, []uint64{three}, start, Span{start + 1, last})
		if !strings.Contains(book.String(), "has a gap") {
			t.Errorf("the log says %s", book)
		}
	})
	t.Run("the log ends before the state", func(t *testing.T) {
		m, dir := newMember(t), t.TempDir()
		a, _ := open(t, m, dir)
		a.mustRound(t)
		start, end := m.State().Index(), m.restrict(1)
		m.forget(end, end)
		a.mustRound(t)
		wantHistory(t, dir, start, nil, start, Span{start + 1, end})
		a.mustRound(t)
		two := m.restrict(2)
		a.mustRound(t)
		wantHistory(t, dir, start, []uint64{two}, start, Span{start + 1, end})
	})
	t.Run("entries that never were committed before a hole", func(t *testing.T) {
		m, dir := newMember(t), t.TempDir()
		a, _ := open(t, m, dir)
		a.mustRound(t)
		start := m.State().Index()
		ghost, hole := m.restrict(1), m.restrict(2)
		m.forget(hole, hole)
		m.log[ghost] = entry(t, 99)
		three := m.restrict(3)
		a.mustRound(t)
		wantHistory(t, dir, start, []uint64{three}, start, Span{ghost, hole})
	})
	t.Run("another term than the state's", func(t *testing.T) {
		m, dir := newMember(t), t.TempDir()
		a, _ := open(t, m, dir)
		a.mustRound(t)
		start := m.State().Index()
		m.term = 2
		ghost := m.restrict(1)
		m.terms[ghost] = 1
		a.mustRound(t)
		wantHistory(t, dir, start, nil, start, Span{ghost, ghost})
	})
}

// TestJournalFailures: while the directory cannot be written to, nothing is lost that
// the log still holds.
func TestJournalFailures(t *testing.T) {
	m, dir := newMember(t), filepath.Join(t.TempDir(), "backups")
	start := m.State().Index()
	a, book := open(t, m, dir)
	if err := a.journal.round(t.Context()); !errors.Is(err, os.ErrNotExist) || a.Status().JournalProblem == "" {
		t.Fatalf("without a directory: %v, status %+v", err, a.Status())
	}
	must(t, os.Mkdir(dir, 0o700))
	a.mustRound(t)
	one := m.restrict(1)
	a.mustRound(t)
	two := m.restrict(2)
	must(t, a.journal.file.Close()) // the disk fails
	if err := a.journal.round(t.Context()); err == nil || a.Status().JournalProblem == "" {
		t.Fatal("the failure went unseen")
	}
	three := m.restrict(3)
	time.Sleep(2 * time.Millisecond)
	a.mustRound(t)
	wantHistory(t, dir, one-1, []uint64{one, two, three}, three)
	if s := a.Status(); s.JournalProblem != "" || s.Journal.Index != three || start > one {
		t.Errorf("status %+v", s)
	}
	if log := book.String(); strings.Count(log, "cannot be written") != 2 || strings.Count(log, "is written again") != 2 {
		t.Errorf("the log says %s", log)
	}
	for _, file := range names(t, dir, journalEnd) {
		must(t, os.Remove(file)) // somebody tidies up
	}
	four := m.restrict(4)
	a.journal.covered = time.Time{}
	if err := a.journal.round(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file is gone: %v", err)
	}
	time.Sleep(2 * time.Millisecond)
	a.mustRound(t)
	wantHistory(t, dir, three, []uint64{four}, four)
}

// TestJournalTurns: a segment that is full, or that a backup ends, is followed by
// another without a gap.
func TestJournalTurns(t *testing.T) {
	m, dir := newMember(t), t.TempDir()
	start := m.State().Index()
	a, _ := open(t, m, dir)
	a.mustRound(t)
	var all []uint64
	for i := range 3 {
		all = append(all, m.restrict(byte(i+1)))
		m.tick()
		time.Sleep(2 * time.Millisecond)
		a.journal.rotate.Store(true)
		a.mustRound(t)
	}
	a.journal.segment.good = maxSegment
	all = append(all, m.restrict(9), m.restrict(10))
	time.Sleep(2 * time.Millisecond)
	a.mustRound(t)
	if n := len(names(t, dir, journalEnd)); n != 5 {
		t.Errorf("%d segments, want 5", n)
	}
	wantHistory(t, dir, start, all, m.State().Index())
}

// TestJournalOverRecovery: a recovery begins a new history with the same log, and its
// journal begins where the one before ends, also when the node restarts on the way.
func TestJournalOverRecovery(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		m, dir := newMember(t), t.TempDir()
		a, _ := open(t, m, dir)
		a.mustRound(t)
		one := m.restrict(1)
		a.mustRound(t)
		late := m.restrict(2) // not in the journal yet
		begun := fsm.History{Epoch: 1, ID: uuid.UUID{7}}
		recovery := m.apply(&fsm.RecoverCluster{Epoch: begun.Epoch, ID: begun.ID, Node: testNode})
		two := m.restrict(3)
		if restarts {
			a, _ = open(t, m, dir)
		}
		time.Sleep(2 * time.Millisecond)
		a.mustRound(t)
		h, err := ReadHistory(testCluster, testKey(), dir)
		must(t, err)
		if r, err := h.After(fsm.History{}, one-1); err != nil || len(r.Entries) != 1 || r.Entries[0].Index != one || r.Covered.Index != one {
			t.Errorf("before: %s, %v", r, err)
		}
		r, err := h.After(begun, one)
		must(t, err)
		if len(h.Problems) > 0 || len(r.Entries) != 3 || r.Entries[0].Index != late || r.Entries[1].Index != recovery || r.Entries[2].Index != two || len(r.Gaps) > 0 || r.Covered.Index != two {
			t.Errorf("restarts %v: after the recovery %s, problems %v", restarts, r, h.Problems)
		}
	}
}
