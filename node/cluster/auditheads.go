package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// Each node's audit trail is signed every second, and the checkpoint goes with its next
// lease request to the leader, which puts those of all nodes into the log together: so the
// cluster remembers how far each trail goes, and notices one that was rewritten.

const (
	// headsEvery is how often the leader puts checkpoints into the log.
	headsEvery = time.Second
	// headsTimeout bounds one attempt.
	headsTimeout = 5 * time.Second
)

// AuditHead is a node's checkpoint on its way to the leader.
type AuditHead struct {
	Note  []byte   // trail.Checkpoint, signed
	From  int64    // records of the tree that the proof begins with
	Proof [][]byte // that the tree goes on from there
}

// auditHead is this node's checkpoint, if it is newer than what the cluster remembers.
func (e *engine) auditHead(s *fsm.State) *AuditHead {
	if e.config.AuditHead == nil || s.Permits(&fsm.RecordAuditHeads{}) != nil {
		return nil
	}
	return e.config.AuditHead()
}

// offered keeps a node's checkpoint until the leader puts it into the log. One that is not
// the node's is dropped: who made it has no lease to lose by it.
func (e *engine) offered(m *fsm.Member, s *fsm.State, h *AuditHead) {
	if h == nil {
		return
	}
	next, err := opened(m, s, h)
	if err != nil {
		e.log.Warn("a node's audit checkpoint was refused", "node_id", m.ID, "error", err)
		return
	}
	e.headsMu.Lock()
	defer e.headsMu.Unlock()
	e.heads[m.ID] = next
}

func opened(m *fsm.Member, s *fsm.State, h *AuditHead) (fsm.NextAuditHead, error) {
	c, err := trail.OpenCheckpoint(h.Note, m.Identity)
	if err == nil && (c.Node != m.ID || c.Cluster != s.Cluster().ID.String()) {
		err = fmt.Errorf("%w: it is of node %s in cluster %s", trail.ErrCheckpoint, c.Node, c.Cluster)
	}
	next := fsm.NextAuditHead{Node: m.ID, From: h.From, Size: c.Size, Root: c.Root[:], Checkpoint: h.Note, Proof: h.Proof}
	if err == nil { // one that is refused would take those of all other nodes with it
		err = fsm.WellFormed(&fsm.RecordAuditHeads{Heads: []fsm.NextAuditHead{next}})
	}
	return next, err
}

// recordable is nil for a checkpoint that goes on from what is remembered, and for one that convicts
// its node. One that does neither, such as one from before, would be held against the node for ever.
func recordable(m *fsm.Member, old *fsm.AuditHead, h fsm.NextAuditHead) error {
	if h.GoesOn(old) {
		return nil
	}
	next, err := trail.OpenCheckpoint(h.Checkpoint, m.Identity)
	if err != nil {
		return err
	}
	was, err := trail.OpenCheckpoint(old.Checkpoint, m.Identity)
	if err != nil {
		return fmt.Errorf("the one that is remembered: %w", err)
	}
	if !next.Convicts(was) {
		return fmt.Errorf("%w: of %d records, signed at %s, it neither goes on from the one of %d records, signed at %s, nor was it signed later",
			trail.ErrCheckpoint, next.Size, next.Time.Format(time.RFC3339), was.Size, was.Time.Format(time.RFC3339))
	}
	return nil
}

// headsLoop puts checkpoints into the log while this node leads.
func (e *engine) headsLoop() {
	tick := time.NewTicker(headsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			return
		}
		if err := e.recordHeads(); err != nil && !errors.Is(err, context.Canceled) {
			e.log.Debug("audit checkpoints were not recorded, the next will be", "error", err)
		}
	}
}

func (e *engine) recordHeads() error {
	e.headsMu.Lock()
	heads := e.heads
	e.heads = map[string]fsm.NextAuditHead{}
	e.headsMu.Unlock()
	if !e.leads() {
		return nil
	}
	command := new(fsm.RecordAuditHeads)
	s := e.machine.State()
	for id, h := range heads {
		m, ok := s.Member(id)
		if !ok || !m.Alive() {
			continue
		}
		old, ok := s.AuditHead(id)
		if ok && old.Size != h.From || !ok && h.From != 0 {
			continue // another one has been recorded since
		}
		if ok {
			if err := recordable(m, old, h); err != nil {
				e.log.Warn("a node's audit checkpoint was not recorded", "node_id", id, "error", err)
				continue
			}
		}
		command.Heads = append(command.Heads, h)
	}
	if len(command.Heads) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(e.ctx, headsTimeout)
	defer cancel()
	_, err := e.commit(ctx, fsm.Proposal{Command: command, Principal: e.principal()}, e.id)
	return err
}
