package node

import (
	"context"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// checkpointEvery is how often the audit trail is signed, if there is something new.
const checkpointEvery = time.Second

// signTrail has the HSM sign the audit trail, once the node is a member, and prepares what
// the next lease request says of it, until ctx ends.
func (n *Node) signTrail(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	failing := false
	n.signing.well(time.Now())
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s := n.member.State()
		if !n.member.Joined() || !s.Initialized() {
			n.signing.well(time.Now())
			continue
		}
		err := n.audit.Checkpoint(ctx, s.Cluster().ID.String(), n.partition)
		if err == nil {
			err = n.prepareHead(s)
		}
		n.signing.look(time.Now(), n.memory(s), err)
		if err != nil && !failing && ctx.Err() == nil {
			n.log.Warn("the audit trail is not signed at present, trying again each second", "error", err)
		}
		failing = err != nil
	}
}

// prepareHead makes what the lease requests carry of the trail: the proof may take a while.
func (n *Node) prepareHead(s *fsm.State) error {
	remembered, ok := s.AuditHead(n.member.ID())
	if !ok {
		remembered = new(fsm.AuditHead)
	}
	n.audit.Kept(remembered.Size)
	h, ok, err := n.audit.Head(remembered.Size, remembered.Root)
	if err != nil || !ok {
		n.head.Store(nil)
		return err
	}
	out := &cluster.AuditHead{Note: h.Note, From: h.From}
	for _, p := range h.Proof {
		out.Proof = append(out.Proof, p[:])
	}
	n.head.Store(out)
	return nil
}
