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
		if m, ok := s.Member(id); !ok || !m.Alive() {
			continue
		}
		if old, ok := s.AuditHead(id); ok && old.Size != h.From || !ok && h.From != 0 {
			continue // another one has been recorded since
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
