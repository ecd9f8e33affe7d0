package node

import (
	"context"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// checkpointEvery is how often the audit trail is signed, if there is something new.
const checkpointEvery = time.Second

// signTrail has the HSM sign the audit trail, once the node is a member, until ctx ends.
func (n *Node) signTrail(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s := n.member.State()
		if !n.member.Joined() || !s.Initialized() {
			continue
		}
		if h, ok := s.AuditHead(n.member.ID()); ok {
			n.audit.Kept(h.Size)
		}
		err := n.audit.Checkpoint(ctx, s.Cluster().ID.String(), n.partition)
		if err != nil && !failing && ctx.Err() == nil {
			n.log.Warn("the audit trail is not signed at present, trying again each second", "error", err)
		}
		failing = err != nil
	}
}

// auditHead is what the lease messages carry of the trail.
func (n *Node) auditHead(from int64, root []byte) *cluster.AuditHead {
	h, ok, err := n.audit.Head(from, root)
	if err != nil {
		n.log.Warn("that the audit trail goes on from what the cluster remembers is not proved", "records", from, "error", err)
	}
	if !ok {
		return nil
	}
	return wire(h)
}

func wire(h audit.Head) *cluster.AuditHead {
	out := &cluster.AuditHead{Note: h.Note, From: h.From}
	for _, p := range h.Proof {
		out.Proof = append(out.Proof, p[:])
	}
	return out
}
