package node

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// checkpointEvery is how often the audit trail is signed, if there is something new.
const checkpointEvery = time.Second

// signTrail has the HSM sign the audit trail, once the node is a member, and prepares what
// the next lease request says of it, until ctx ends.
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
		err := n.audit.Checkpoint(ctx, s.Cluster().ID.String(), n.partition)
		if err == nil {
			err = n.prepareHead(s)
		}
		if err != nil && !failing && ctx.Err() == nil {
			n.log.Warn("the audit trail is not signed at present, trying again each second", "error", err)
		}
		failing = err != nil
	}
}

// tellRewritten records the nodes that the cluster has convicted of another trail than they
// had signed, until ctx ends: each once in this node's trail, however often it starts. The
// first may read the whole trail.
func (n *Node) tellRewritten(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	var told map[string]bool // nil: not looked for yet
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s := n.member.State()
		for _, h := range s.AuditHeads() {
			if h.Conflict == nil || told[h.Node] {
				continue
			}
			var err error
			if told == nil {
				told, err = n.rewrittenBefore(ctx)
			}
			if err == nil && !told[h.Node] {
				err = n.tellConflict(s, h)
				told[h.Node] = err == nil
			}
			if err != nil && ctx.Err() == nil {
				n.log.Warn("that an audit trail was rewritten is not recorded here, trying again each second", "node_id", h.Node, "error", err)
			}
		}
	}
}

// rewrittenBefore are the nodes that this one's trail tells of already. What is sealed and cannot
// be read is left out: rather twice than never.
func (n *Node) rewrittenBefore(ctx context.Context) (map[string]bool, error) {
	told := map[string]bool{}
	for from, last := uint64(1), n.audit.Position().Last; from <= last; {
		search, err := n.audit.Search(audit.Query{Alarm: string(audit.TrailRewritten)}, from)
		if err != nil {
			return nil, err
		}
		err = search.Run(ctx, last, func(f audit.Found) error {
			var e audit.Event
			err := json.Unmarshal(f.Line, &e)
			told[e.Target] = true
			return err
		}, func(time.Time) error { return nil })
		if err != nil && !errors.Is(err, trail.ErrSealed) {
			return nil, err
		}
		from = search.Next()
		if err != nil { // behind the segment that it is
			from += trail.SegmentRecords - (from-1)%trail.SegmentRecords
		}
	}
	return told, nil
}

func (n *Node) tellConflict(s *fsm.State, h *fsm.AuditHead) error {
	text := rpc.TrailAlarm(s, h)
	n.log.Error("ALARM: "+text, "node_id", h.Node)
	return n.audit.Record(audit.Event{
		Name: "AuditTrailConflict", Principal: n.creds.Identity().String(), Class: "node", Target: h.Node, Alarm: audit.TrailRewritten,
		Result: audit.Success, Reason: text, StateIndex: s.Index(), Durable: true,
	})
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
