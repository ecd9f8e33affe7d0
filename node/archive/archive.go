package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

// Member is the node's part in the cluster as this package sees it.
type Member interface {
	ID() string // raft id
	State() *fsm.State
	// Wait returns when the state has reached an index.
	Wait(ctx context.Context, index uint64) (*fsm.State, error)
	// LogKey fails until the node belongs to a cluster.
	LogKey() (fsm.LogKey, error)
	// LogEntry reads the node's log: found is false if it does not hold the index,
	// command is nil if what stands there is Raft's own.
	LogEntry(index uint64) (term uint64, command []byte, found bool, err error)
}

// Signer is the node identity key.
type Signer interface {
	Identity() []byte // SubjectPublicKeyInfo
	SignIdentity(ctx context.Context, message []byte) ([]byte, error)
}

// Config is what an Archive needs.
type Config struct {
	Name   string // of the node
	Dir    string // where scheduled backups and the journal go; empty: there are none
	Every  time.Duration
	Keep   int // scheduled backups
	Member Member
	Signer Signer
	Now    func() time.Time
	Log    *slog.Logger
}

const (
	// lookEvery is how often a node looks whether it has become a member.
	lookEvery = time.Second
	// hangsAfter is how long one round of writing may take before it is a problem.
	hangsAfter = 30 * time.Second
	// retryAfter is between two tries after a failure.
	retryAfter = 2 * time.Second
	// remindAfter is how often a failure that goes on is logged.
	remindAfter = time.Minute
	// closeAtMost bounds how long a disk that hangs holds the node's end up.
	closeAtMost = 5 * time.Second
)

// Archive makes backups and, if it has a directory, writes them on a schedule there,
// and the journal.
type Archive struct {
	config Config
	making chan struct{} // bounds backups that are being made for callers
	check  chan struct{} // bounds backups that are being checked

	every   atomic.Int64  // time.Duration: Config.Every, until Reschedule
	keep    atomic.Int64  // Config.Keep, until Reschedule
	changed chan struct{} // wakes the schedule: one of these has changed

	journal  journal
	schedule schedule

	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// New makes an archive. Run starts what it does by itself.
func New(c Config) *Archive {
	a := &Archive{config: c, making: make(chan struct{}, maxMaking), check: make(chan struct{}, maxChecking), changed: make(chan struct{}, 1), cancel: func() {}}
	a.every.Store(int64(c.Every))
	a.keep.Store(int64(c.Keep))
	a.journal = journal{config: &a.config, health: health{what: "the journal of restrictions", log: c.Log, now: c.Now}}
	a.schedule = schedule{
		archive: a, health: health{what: "the scheduled backup", log: c.Log, now: c.Now},
		backedUp: func(uint64) { a.journal.rotate.Store(true) },
	}
	return a
}

// Reschedule changes how often backups are written, and how many are kept, from the next
// one on.
func (a *Archive) Reschedule(every time.Duration, keep int) {
	a.every.Store(int64(every))
	a.keep.Store(int64(keep))
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Run starts the scheduled backups and the journal, if there is a directory for them.
func (a *Archive) Run() {
	if a.config.Dir == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.wait.Go(func() { a.whenMember(ctx, a.journal.loop) })
	a.wait.Go(func() { a.whenMember(ctx, a.schedule.loop) })
}

// whenMember runs f as soon as the node belongs to a cluster.
func (a *Archive) whenMember(ctx context.Context, f func(context.Context)) {
	for {
		if _, err := a.config.Member.LogKey(); err == nil && a.config.Member.State().Initialized() {
			f(ctx)
			return
		}
		if !sleep(ctx, lookEvery) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Close ends what Run has started. A call into a disk that hangs is left to the end
// of the process.
func (a *Archive) Close() error {
	a.cancel()
	done := make(chan struct{})
	go func() {
		a.wait.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeAtMost):
		a.config.Log.Error("the disk of backup.dir hangs: the node stops without it", "dir", a.config.Dir)
	}
	return nil
}

// Status is how scheduled backups and the journal do.
type Status struct {
	Dir            string // empty: this node has none
	Backup         File   // the newest scheduled one of this node
	BackupProblem  string // empty: none
	Every          time.Duration
	DueSince       time.Time // a backup is due since then and not written yet; zero: none is
	Journal        Coverage
	JournalProblem string

	BackupFailures, JournalFailures uint64 // rounds of writing, since this process began
}

// Status reports without touching the disk.
func (a *Archive) Status() Status {
	s := Status{Dir: a.config.Dir, BackupProblem: a.schedule.health.problem(), JournalProblem: a.journal.health.problem()}
	s.BackupFailures, s.JournalFailures = a.schedule.health.failures.Load(), a.journal.health.failures.Load()
	if a.config.Dir != "" {
		s.Every = time.Duration(a.every.Load())
	}
	if at := a.schedule.due.Load(); at != 0 {
		s.DueSince = time.Unix(0, at)
	}
	if f := a.schedule.newest.Load(); f != nil {
		s.Backup = *f
	}
	if c := a.journal.written.Load(); c != nil {
		s.Journal = *c
	}
	return s
}

// health is how a piece of work goes that is done again and again.
type health struct {
	what string
	log  *slog.Logger
	now  func() time.Time

	failures atomic.Uint64
	busy     atomic.Int64 // when the present round began, unix nanoseconds; 0: none is under way

	mu   sync.Mutex
	bad  error
	told time.Time
}

func (h *health) begin() { h.busy.Store(h.now().UnixNano()) }

// end notes how a round ended: failures are loud, at once and then each minute.
func (h *health) end(err error) {
	h.busy.Store(0)
	if errors.Is(err, context.Canceled) {
		return
	}
	if err != nil {
		h.failures.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	switch {
	case err != nil && (h.bad == nil || h.bad.Error() != err.Error() || now.Sub(h.told) >= remindAfter):
		h.told = now
		h.log.Error(h.what+" cannot be written; the node serves on", "error", err)
	case err == nil && h.bad != nil:
		h.log.Info(h.what + " is written again")
	}
	h.bad = err
}

func (h *health) problem() string {
	if at := h.busy.Load(); at != 0 {
		if since := h.now().Sub(time.Unix(0, at)); since > hangsAfter {
			return fmt.Sprintf("writing has taken %s: does the disk hang?", since.Round(time.Second))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bad == nil {
		return ""
	}
	return h.bad.Error()
}

// syncDir makes names in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// create makes a file that must not be there, readable by its owner only.
func create(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
}
