package node

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc"
)

// headStale is how long the trail may be unsigned, or its signature not in the cluster's memory,
// before that is an alarm: an election, and a token that comes back, take less.
const headStale = 30 * time.Second

// memory is what the cluster remembers of the trail.
type memory struct {
	remembered, signed uint64 // records
	apart              bool   // it is not to remember more
}

func (n *Node) memory(s *fsm.State) memory {
	at := n.audit.Position()
	head, ok := s.AuditHead(n.member.ID())
	convicted := ok && head.Conflict != nil // which is an alarm itself
	return memory{at.Remembered, at.Signed, convicted || s.Permits(&fsm.RecordAuditHeads{}) != nil}
}

// signing watches over the signing of the trail, and that it gets into the cluster's memory.
type signing struct {
	mu         sync.Mutex
	good       time.Time // when it was signed and remembered, or got on
	looked     time.Time
	remembered uint64
	why        string // it does not get on
}

// well notes that there is nothing to sign, or that it is signed.
func (w *signing) well(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.good, w.looked, w.why = now, now, ""
}

// look notes how a round went.
func (w *signing) look(now time.Time, m memory, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := m.remembered > w.remembered
	w.looked, w.remembered = now, m.remembered
	switch {
	case err != nil:
		w.why = err.Error()
	case m.apart, on, m.remembered >= m.signed:
		w.good, w.why = now, ""
	default:
		w.why = fmt.Sprintf("the cluster remembers %d of %d signed records: it has no leader, or this node no lease", m.remembered, m.signed)
	}
}

// stale is since when it does not get on, and why; zero while that is no alarm.
func (w *signing) stale(now time.Time) (since time.Time, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.good.IsZero() || now.Sub(w.good) < headStale:
		return time.Time{}, ""
	case now.Sub(w.looked) >= headStale:
		return w.good, "the HSM or the disk does not come back"
	}
	return w.good, w.why
}

// auditHealth is how the trail does.
func (n *Node) auditHealth() rpc.AuditHealth {
	h := rpc.AuditHealth{
		Broken: n.audit.Healthy(), Position: n.audit.Position(), Sinks: n.sinks.Stats(), Disk: trailDisk(n.config.DataDir),
	}
	h.StaleSince, h.StaleReason = n.signing.stale(time.Now())
	return h
}

// trailDisk is where the trail is, if that is on a file system of its own.
func trailDisk(dataDir string) *rpc.Disk {
	data, trail := diskOf(dataDir), diskOf(filepath.Join(dataDir, auditDir))
	if data.Err != nil || trail.Err != nil || trail.Device == data.Device {
		return nil
	}
	return &trail
}
