package fsm

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Limits of what is remembered of audit trails.
const (
	maxCheckpoint = 2 << 10 // bytes of a signed checkpoint
	maxAuditProof = 64      // hashes of a proof: of more records than there can be
	maxAuditHeads = 64      // in one command
	auditHashSize = 32
)

// AuditHead is what the cluster remembers of a node's audit trail: its last signed
// checkpoint. One takes the place of another only with the proof that its tree goes on from
// that (RFC 6962, section 2.1.2), so that a node that has rewritten its trail is convicted,
// whoever has its key.
type AuditHead struct {
	Node       string         `json:"node"` // raft id
	Size       int64          `json:"size"` // records
	Root       []byte         `json:"root"`
	Checkpoint []byte         `json:"checkpoint"`         // signed; opaque here
	Conflict   *AuditConflict `json:"conflict,omitempty"` // stays for ever
	Revision   uint64         `json:"revision"`
}

// AuditConflict is the first checkpoint of a node that does not go on from what the cluster
// remembers.
type AuditConflict struct {
	Size       int64  `json:"size"`
	Root       []byte `json:"root"`
	Checkpoint []byte `json:"checkpoint"`
	At         int64  `json:"at"` // unix seconds
}

// NextAuditHead is a node's newer checkpoint.
type NextAuditHead struct {
	Node       string   `json:"node"`
	From       int64    `json:"from"` // records of the tree that is remembered; 0: none is
	Size       int64    `json:"size"`
	Root       []byte   `json:"root"`
	Checkpoint []byte   `json:"checkpoint"`
	Proof      [][]byte `json:"proof,omitempty"` // that the tree goes on from From; none where it does not
}

// RecordAuditHeads remembers the checkpoints of nodes. What is not newer than what is
// remembered already is left out.
type RecordAuditHeads struct {
	Heads []NextAuditHead `json:"heads"`
}

// AuditHead is what is remembered of a node's audit trail, by its raft id.
func (s *State) AuditHead(node string) (*AuditHead, bool) {
	return s.auditHeads.tree.Get(&AuditHead{Node: node})
}

// AuditHeads are those of all nodes, also of those that were removed, by raft id.
func (s *State) AuditHeads() []*AuditHead { return s.auditHeads.all() }

func (c *RecordAuditHeads) validate() error {
	if n := len(c.Heads); n == 0 || n > maxAuditHeads {
		return invalid("%d audit heads, must be 1 to %d", n, maxAuditHeads)
	}
	for _, h := range c.Heads {
		if err := h.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (h *NextAuditHead) validate() error {
	if err := validRaftID(h.Node); err != nil {
		return err
	}
	wrong := func(p []byte) bool { return len(p) != auditHashSize }
	switch {
	case h.Size < 1 || h.From < 0:
		return invalid("audit head of %d records from %d", h.Size, h.From)
	case len(h.Root) != auditHashSize || len(h.Proof) > maxAuditProof || slices.ContainsFunc(h.Proof, wrong):
		return invalid("audit head of %s: a root of %d bytes, a proof of %d hashes", h.Node, len(h.Root), len(h.Proof))
	case len(h.Checkpoint) == 0 || len(h.Checkpoint) > maxCheckpoint:
		return invalid("audit checkpoint of %d bytes, must be 1 to %d", len(h.Checkpoint), maxCheckpoint)
	}
	return nil
}

// GoesOn tells whether the tree goes on from an earlier one.
func (h *NextAuditHead) GoesOn(from *AuditHead) bool {
	if h.Size == from.Size {
		return bytes.Equal(h.Root, from.Root)
	}
	if h.Size < from.Size {
		return false
	}
	proof := make(tlog.TreeProof, len(h.Proof))
	for i, p := range h.Proof {
		proof[i] = tlog.Hash(p)
	}
	return tlog.CheckTree(proof, h.Size, tlog.Hash(h.Root), from.Size, tlog.Hash(from.Root)) == nil
}

func (c *RecordAuditHeads) apply(t *tx) (Result, error) {
	for _, h := range c.Heads {
		m, ok := t.s.Member(h.Node)
		if !ok || !m.Alive() {
			return Result{}, fmt.Errorf("%w: node %s", ErrNotFound, h.Node)
		}
		old, had := t.s.AuditHead(h.Node)
		switch {
		case !had && h.From == 0:
			t.putAuditHead(&AuditHead{Node: h.Node, Size: h.Size, Root: h.Root, Checkpoint: h.Checkpoint})
		case !had || h.From != old.Size: // it was made before another one was remembered
		case h.GoesOn(old):
			next := *old
			next.Size, next.Root, next.Checkpoint = h.Size, h.Root, h.Checkpoint
			t.putAuditHead(&next)
		case old.Conflict == nil:
			next := *old
			next.Conflict = &AuditConflict{Size: h.Size, Root: h.Root, Checkpoint: h.Checkpoint, At: t.seconds()}
			t.putAuditHead(&next)
		}
	}
	return Result{}, nil
}

// checkAuditHeads checks the form of what is remembered.
func (s *State) checkAuditHeads() error {
	for _, h := range s.AuditHeads() {
		if h.Size < 1 || len(h.Root) != auditHashSize || len(h.Checkpoint) == 0 {
			return fmt.Errorf("audit head of %s, %d records, a root of %d bytes", h.Node, h.Size, len(h.Root))
		}
	}
	return nil
}
