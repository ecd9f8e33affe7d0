package archive

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

// Restoration is what a restore of a backup with its journals comes to.
type Restoration struct {
	backup.Header
	SHA256  []byte // of the backup
	State   *fsm.State
	Signer  fsm.Member // as the backup knows it
	Epoch   uint32     // recovery epoch of the history that begins
	Covered Coverage   // up to where the journals are complete
	Gaps    []Span     // from which restrictions may be missing; behind Covered
	// Doubt says why it is not known what was revoked after the backup, so that keys
	// come back disabled; empty if it is known up to Covered.
	Doubt    string
	Replay   []fsm.Command // restrictions after the backup, as they are made again
	Segments int           // of the journal that were used
	Enabled  int           // keys of the backup that are enabled
	Unknown  int           // keys that the journals name and the backup lacks: made after it
}

// PlanRestore reads a backup and the journals in the directories, and checks
// everything but whether the HSM holds the domain key. epoch is the least recovery
// epoch of the new history; it is raised above every one that the files tell of.
// backup.ErrRefused, fsm.ErrSnapshot and ErrJournal: a file that was altered is no
// basis for anything; without it there is a gap instead.
func PlanRestore(file io.Reader, key fsm.LogKey, epoch uint32, journals ...string) (*Restoration, error) {
	sum := sha256.New()
	s, h, err := Open(&bounded{io.TeeReader(file, sum), MaxBackup}, key)
	if err != nil {
		return nil, err
	}
	r := &Restoration{Header: h, SHA256: sum.Sum(nil), State: s, Epoch: max(epoch, h.RecoveryEpoch+1), Covered: Coverage{Index: h.Index}}
	m, ok := s.Member(h.Node)
	if !ok || string(m.Identity) != string(h.Signer) {
		return nil, fmt.Errorf("%w: node %s, whose key %s signed it, is and was no member of its cluster", backup.ErrRefused, h.Node, h.Fingerprint())
	}
	r.Signer = *m
	r.Enabled = s.CountKeys(fsm.KeyEnabled)
	history, err := ReadHistory(s.Cluster().ID, key, journals...)
	if err != nil {
		return nil, err
	}
	if len(history.Problems) > 0 {
		return nil, fmt.Errorf("%w (%d files in all; whoever restores without them has a gap)", history.Problems[0], len(history.Problems))
	}
	if err := r.take(history, key); err != nil {
		return nil, err
	}
	if r.Epoch > fsm.MaxRecoveryEpoch {
		return nil, fmt.Errorf("%w: recovery epoch %d: must be at most %d", fsm.ErrInvalid, r.Epoch, fsm.MaxRecoveryEpoch)
	}
	return r, nil
}

// take adds what the journals say.
func (r *Restoration) take(h *History, key fsm.LogKey) error {
	own := r.State.History()
	known, err := h.After(own, r.Index)
	if err != nil {
		return err
	}
	r.Covered, r.Gaps, r.Segments = known.Covered, known.Gaps, len(h.Segments)
	var others []fsm.History // later than the backup's, or beside it
	for _, s := range h.Segments {
		r.Epoch = max(r.Epoch, s.RecoveryEpoch+1)
		if of := s.history(); of.Epoch >= own.Epoch && of != own {
			others = append(others, of)
		}
	}
	entries := known.Entries
	slices.SortFunc(others, func(a, b fsm.History) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), bytes.Compare(a.ID[:], b.ID[:]))
	})
	for _, of := range slices.Compact(others) {
		later, err := h.After(of, 0)
		if err != nil {
			return err
		}
		entries = append(entries, later.Entries...)
	}
	switch {
	case len(others) > 0:
		r.Doubt = fmt.Sprintf("the cluster was recovered after the backup (epoch %d, the backup is of %d): no journal tells how the two follow each other", others[len(others)-1].Epoch, r.RecoveryEpoch)
	case len(h.Segments) == 0:
		r.Doubt = "there is no journal"
	case len(r.Gaps) > 0:
		r.Doubt = fmt.Sprintf("the journal has a gap behind index %d", r.Covered.Index)
	case r.Covered.Time.IsZero():
		r.Doubt = fmt.Sprintf("no journal covers what follows the backup's index %d", r.Index)
	}
	return r.replay(entries, key)
}

func (r *Restoration) replay(entries []Entry, key fsm.LogKey) error {
	lost := map[fsm.ID]bool{}
	for _, e := range entries {
		_, command, err := key.OpenEntry(e.Raw)
		if err != nil {
			return err
		}
		if again := fsm.Replay(command); again != nil {
			r.Replay = append(r.Replay, again)
		}
		if id, ok := fsm.KeyOf(command); ok {
			if _, there := r.State.Key(id); !there {
				lost[id] = true
			}
		}
	}
	r.Unknown = len(lost)
	return nil
}

// JournalEnd is the index up to which it is known what was revoked; 0: it is not.
func (r *Restoration) JournalEnd() uint64 {
	if r.Doubt != "" {
		return 0
	}
	return r.Covered.Index
}

// Missed is what the journals in this node's directory tell of and its own log lacks:
// it was away when the others made these restrictions.
type Missed struct {
	Dir     string // empty: this node has none
	Replay  []fsm.Command
	Until   time.Time // up to when the journals go; zero if that is not known
	Problem string    // why not all of it could be read
}

// Missed compares the journals with a log that ends with the index last.
func (a *Archive) Missed(s *fsm.State, last uint64) (Missed, error) {
	m := Missed{Dir: a.config.Dir}
	if m.Dir == "" {
		return m, nil
	}
	key, err := a.config.Member.LogKey()
	if err != nil {
		return m, err
	}
	history, err := ReadHistory(s.Cluster().ID, key, m.Dir)
	if err != nil {
		m.Problem = err.Error()
		return m, nil //nolint:nilerr // the operator decides whether to go on without journals
	}
	if len(history.Problems) > 0 {
		m.Problem = errors.Join(history.Problems...).Error()
	}
	known, err := history.After(s.History(), 0)
	if err != nil {
		return m, err
	}
	for _, segment := range history.Segments {
		if t := segment.Until.Time; segment.history() == s.History() && t.After(m.Until) {
			m.Until = t
		}
	}
	for _, e := range known.Entries {
		term, _, found, err := a.config.Member.LogEntry(e.Index)
		if err != nil {
			return m, err
		}
		if found && term == e.Term || !found && e.Index <= last {
			continue
		}
		_, command, err := key.OpenEntry(e.Raw)
		if err != nil {
			return m, err
		}
		if again := fsm.Replay(command); again != nil {
			m.Replay = append(m.Replay, again)
		}
	}
	return m, nil
}
