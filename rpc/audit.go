package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// searchStall is how long a client may keep a search from moving on: it waits for other
	// nodes' records while it puts them in order.
	searchStall = 10 * time.Minute
	// lifeEvery is how often a search without records gives a sign of life.
	lifeEvery = time.Second
	// followEvery is how often a search that follows looks for more.
	followEvery = 200 * time.Millisecond
	// signedWithin is how long a search with proofs waits for what is not signed yet.
	signedWithin = 5 * time.Second
	// maxReaders and maxReadersEach bound the searches and copies of a node's trail that are under way.
	maxReaders     = 32
	maxReadersEach = 8
	maxFilter      = 2 << 10 // bytes, as in a record
)

type auditServer struct {
	pb.UnimplementedAuditServiceServer
	kms     *kms.Service
	member  *cluster.Member
	trail   *audit.Log
	readers *seats
}

func (s *auditServer) DescribeTrails(ctx context.Context, r *pb.DescribeTrailsRequest) (*pb.DescribeTrailsResponse, error) {
	_, st, err := s.kms.AuditTrail(ctx, kms.DescribeTrails, call(ctx, r), "")
	if err != nil {
		return nil, err
	}
	at := s.trail.Position()
	checkpoint, note, tree := s.trail.Signed()
	out := &pb.DescribeTrailsResponse{
		ClusterId: st.Cluster().ID.String(), RaftId: s.member.ID(), Checkpoint: note, IndexToken: kms.IndexToken(st),
		Position: &pb.TrailPosition{Last: at.Last, Durable: at.Durable, Signed: at.Signed},
	}
	for _, m := range st.Members() {
		t := &pb.Trail{RaftId: m.ID, Name: m.Name, Identity: m.Identity, Removed: !m.Alive()}
		if h, ok := st.AuditHead(m.ID); ok {
			t.Records, t.Checkpoint = uint64(h.Size), h.Checkpoint //nolint:gosec // not negative
			if c := h.Conflict; c != nil {
				t.Conflict, t.ConflictTime = c.Checkpoint, date(c.At)
			}
		}
		out.Trails = append(out.Trails, t)
	}
	switch from := r.GetProveFrom(); {
	case from == 0:
	case note == nil || from > uint64(checkpoint.Size): //nolint:gosec // not negative
		out.NoProof = fmt.Sprintf("the last checkpoint has %d records", checkpoint.Size)
	default:
		proof, err := tlog.ProveTree(checkpoint.Size, int64(from), tree) //nolint:gosec // not more than the size
		if err != nil {
			out.NoProof = err.Error()
		}
		out.Proof = hashes(proof)
	}
	return out, nil
}

func hashes(list []trail.Hash) [][]byte {
	return each(list, func(h trail.Hash) []byte { return h[:] })
}

// stream lets a caller in, has f answer it, and records one that breaks off on this side.
func (s *auditServer) stream(ctx context.Context, name string, c kms.Call, target string, stall time.Duration, f func(ctx context.Context, tenant string, st *fsm.State, alive func()) error) error {
	end, err := s.readers.take(c.Caller.Principal)
	if err != nil {
		return s.kms.Refuse(name, c, err)
	}
	defer end()
	opening, cancel := context.WithTimeout(ctx, callTimeout)
	tenant, st, err := s.kms.AuditTrail(opening, name, c, target)
	cancel()
	if err != nil {
		return err
	}
	err = movingWithin(ctx, stall, func(ctx context.Context, alive func()) error { return f(ctx, tenant, st, alive) })
	if err == nil || ctx.Err() != nil { // it went on until the client had enough
		return err
	}
	return s.kms.Refuse(name, c, err)
}

func (s *auditServer) ReadTrail(r *pb.ReadTrailRequest, stream pb.AuditService_ReadTrailServer) error {
	ctx := stream.Context()
	target := ""
	if r.GetFrom() > 0 {
		target = fmt.Sprintf("from=%d", r.GetFrom())
	}
	return s.stream(ctx, kms.ReadTrail, call(ctx, r), target, streamStall, func(ctx context.Context, _ string, st *fsm.State, alive func()) error {
		send := func(m *pb.ReadTrailResponse) error {
			alive()
			return stream.Send(m)
		}
		if err := send(&pb.ReadTrailResponse{IndexToken: kms.IndexToken(st)}); err != nil {
			return err
		}
		return s.trail.Files(ctx, r.GetFrom(),
			func(name string) error { return send(&pb.ReadTrailResponse{File: name}) },
			func(b []byte) error { return send(&pb.ReadTrailResponse{Data: b}) })
	})
}

// query reads a request; target is how the search is recorded.
func query(r *pb.SearchRecordsRequest) (q audit.Query, target string, err error) {
	texts := []struct{ name, value string }{
		{"key", r.GetKey()},
		{"principal", r.GetPrincipal()},
		{"operation", r.GetOperation()},
		{"result", r.GetResult()},
		{"alarm", r.GetAlarm()},
		{"request", r.GetOfRequest()},
	}
	for _, t := range texts {
		switch {
		case len(t.value) > maxFilter:
			return q, "", fmt.Errorf("%w: %s has %d bytes, at most %d", fsm.ErrInvalid, t.name, len(t.value), maxFilter)
		case t.value != "":
			target += " " + t.name + "=" + t.value
		}
	}
	q = audit.Query{
		Key: kms.KeyID(r.GetKey()), Principal: r.GetPrincipal(), Name: r.GetOperation(), Result: r.GetResult(), Alarm: r.GetAlarm(), Request: r.GetOfRequest(),
	}
	for _, t := range []struct {
		name string
		at   *timestamppb.Timestamp
		into *time.Time
	}{{"since", r.GetSince(), &q.Since}, {"until", r.GetUntil(), &q.Until}} {
		if t.at == nil {
			continue
		}
		if err := t.at.CheckValid(); err != nil {
			return q, "", fmt.Errorf("%w: %s: %w", fsm.ErrInvalid, t.name, err)
		}
		*t.into = t.at.AsTime()
		target += " " + t.name + "=" + t.into.Format(time.RFC3339)
	}
	if r.GetFrom() > 0 {
		target += fmt.Sprintf(" from=%d", r.GetFrom())
	}
	if target == "" {
		return q, "everything", nil
	}
	return q, target[1:], nil
}

func (s *auditServer) SearchRecords(r *pb.SearchRecordsRequest, stream pb.AuditService_SearchRecordsServer) error {
	ctx := stream.Context()
	c := call(ctx, r)
	q, target, err := query(r)
	if err != nil {
		return s.kms.Refuse(kms.SearchRecords, c, err)
	}
	return s.stream(ctx, kms.SearchRecords, c, target, searchStall, func(ctx context.Context, tenant string, st *fsm.State, alive func()) error {
		q.Tenant = tenant
		search, err := s.trail.Search(q, r.GetFrom())
		if err != nil {
			return err
		}
		x := &searching{s: s, request: r, stream: stream, search: search, alive: alive, sent: time.Now()}
		first := &pb.SearchRecordsResponse{RaftId: s.member.ID(), ClusterId: st.Cluster().ID.String(), IndexToken: kms.IndexToken(st)}
		if err := x.send(first); err != nil {
			return err
		}
		if r.GetFollow() {
			err = x.follow(ctx, c.Caller)
		} else {
			err = x.once(ctx)
		}
		switch {
		case errors.Is(err, errEnough):
			return nil
		case errors.Is(err, trail.ErrSealed) && !c.Caller.SeesAll(): // why is the key's owner's affair
			return fmt.Errorf("%w: the key of audit.seal cannot be used here; ask an auditor of all tenants", trail.ErrSealed)
		}
		return err
	})
}

// searching is one search.
type searching struct {
	s       *auditServer
	request *pb.SearchRecordsRequest
	stream  pb.AuditService_SearchRecordsServer
	search  *audit.Search
	alive   func()
	sent    time.Time // when the last message was
	count   uint64    // of records that were sent
	read    time.Time // of a record that was read: what is older was sent

	checkpoint trail.Checkpoint
	tree       *trail.Tree
}

// errEnough ends a search that has all it may send.
var errEnough = errors.New("as many as were asked for")

func (x *searching) send(m *pb.SearchRecordsResponse) error {
	x.alive()
	x.sent = time.Now()
	return x.stream.Send(m)
}

// life gives a sign of life, if there was none for a while.
func (x *searching) life(upTo time.Time) error {
	x.read = upTo
	if time.Since(x.sent) < lifeEvery {
		return nil
	}
	return x.send(&pb.SearchRecordsResponse{Time: timestamppb.New(upTo)})
}

func (x *searching) found(f audit.Found) error {
	m := &pb.SearchRecordsResponse{Record: f.Line, Sequence: f.Sequence, Time: timestamppb.New(f.Time)}
	if x.request.GetWithProofs() {
		proof, err := audit.Prove(x.checkpoint, f.Sequence, x.tree)
		if err != nil {
			return err
		}
		m.Proof = hashes(proof)
	}
	x.read = f.Time
	if err := x.send(m); err != nil {
		return err
	}
	if x.count++; x.count == x.request.GetLimit() {
		return errEnough
	}
	return nil
}

// upTo is how far can be read now; all tells that it is all there is.
func (x *searching) upTo() (n uint64, all bool, err error) {
	last := x.s.trail.Position().Last
	if !x.request.GetWithProofs() {
		return last, true, nil
	}
	c, note, tree := x.s.trail.Signed()
	if note == nil {
		return 0, false, nil
	}
	if c.Size != x.checkpoint.Size {
		x.checkpoint, x.tree = c, tree
		err = x.send(&pb.SearchRecordsResponse{Checkpoint: note})
	}
	n = uint64(c.Size) //nolint:gosec // not negative
	return n, n >= last, err
}

// once sends what there is.
func (x *searching) once(ctx context.Context) error {
	last := x.s.trail.Position().Last
	if x.request.GetWithProofs() {
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		over := time.After(signedWithin)
		for waiting := true; waiting && x.s.trail.Position().Signed < last; {
			select {
			case <-tick.C:
			case <-over:
				waiting = false
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	n, _, err := x.upTo()
	if err != nil {
		return err
	}
	return x.search.Run(ctx, n, x.found, x.life)
}

// follow sends what there is and what comes, while the caller may.
func (x *searching) follow(ctx context.Context, caller kms.Caller) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		now := time.Now()
		n, all, err := x.upTo()
		if err != nil {
			return err
		}
		if err := x.search.Run(ctx, n, x.found, x.life); err != nil {
			return err
		}
		if !all {
			now = x.read
		}
		if err := x.life(now); err != nil {
			return err
		}
		if err := x.s.kms.StillAudits(caller); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// trailAlarms names the nodes whose trails were rewritten.
func trailAlarms(st *fsm.State) (out []string) {
	for _, h := range st.AuditHeads() {
		if c := h.Conflict; c != nil {
			out = append(out, TrailAlarm(st, h))
		}
	}
	return out
}

// TrailAlarm says what the cluster knows of a trail that was rewritten.
func TrailAlarm(st *fsm.State, h *fsm.AuditHead) string {
	name := h.Node
	if m, ok := st.Member(h.Node); ok {
		name = m.Name + " (" + h.Node + ")"
	}
	return fmt.Sprintf("the audit trail of %s was rewritten: at %s it had signed %d records that do not go on from the %d it had signed before; kmsctl audit verify",
		name, time.Unix(h.Conflict.At, 0).UTC().Format(time.RFC3339), h.Conflict.Size, h.Size)
}
