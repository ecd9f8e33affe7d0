package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fakeAudit is the audit trail of a fake node: three records, one every two seconds, signed.
// The tenant of a request says what is wrong with it at n2.
type fakeAudit struct {
	quorumkmsv1.UnimplementedAuditServiceServer
	name  string
	spki  []byte
	key   *ecdsa.PrivateKey
	lines [][]byte
	times []time.Time
	all   *[]*fakeAudit // of the cluster
}

func newFakeAudit(name string, offset time.Duration, all *[]*fakeAudit) *fakeAudit {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	f := &fakeAudit{name: name, spki: spki, key: key, all: all}
	previous := ""
	for i, operation := range []string{"CreateKey", "Encrypt", "Decrypt"} {
		at := fakeEpoch.Add(offset + time.Duration(i)*2*time.Second)
		line := fmt.Sprintf(`{"eventTime":%q,"sequence":%d,"node":"raft-%s","eventName":%q,"principal":"spiffe://kms.test/service/s\u001b1","tenant":"default","keyId":"k1","result":"SUCCESS"%s}`,
			at.Format(time.RFC3339Nano), i+1, name, operation, previous)
		f.lines, f.times = append(f.lines, []byte(line)), append(f.times, at)
		previous = fmt.Sprintf(`,"previous":%q`, trail.RecordHash([]byte(line)).String())
	}
	*all = append(*all, f)
	return f
}

// tree is that of the first records, altered where that is wanted.
func (f *fakeAudit) tree(n int, altered bool) *trail.Tree {
	t := &trail.Tree{}
	for _, line := range f.lines[:n] {
		if altered {
			line = append(bytes.Clone(line), ' ')
		}
		if _, err := t.Add(trail.RecordHash(line)); err != nil {
			panic(err)
		}
	}
	return t
}

func (f *fakeAudit) note(n int, altered bool) []byte {
	root, err := f.tree(n, altered).Root()
	if err != nil {
		panic(err)
	}
	c := trail.Checkpoint{Cluster: "c1", Node: "raft-" + f.name, Size: int64(n), Root: root, Time: fakeEpoch.Add(time.Minute)}
	b, err := c.Sign(f.spki, func(m []byte) ([]byte, error) {
		digest := sha256.Sum256(m)
		return ecdsa.SignASN1(rand.Reader, f.key, digest[:])
	})
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fakeAudit) wrong(tenant, what string) bool { return tenant == what && f.name == "n2" }

func (f *fakeAudit) DescribeTrails(_ context.Context, r *quorumkmsv1.DescribeTrailsRequest) (*quorumkmsv1.DescribeTrailsResponse, error) {
	altered := f.wrong(r.GetTenant(), "rewritten")
	out := &quorumkmsv1.DescribeTrailsResponse{
		ClusterId: "c1", RaftId: "raft-" + f.name, Position: &quorumkmsv1.TrailPosition{Last: 3, Durable: 3, Signed: 3}, Checkpoint: f.note(3, altered),
	}
	if n := r.GetProveFrom(); n > 0 {
		proof, err := tlog.ProveTree(3, int64(n), f.tree(3, altered))
		if err != nil {
			out.NoProof = err.Error()
		}
		for _, h := range proof {
			out.Proof = append(out.Proof, h[:])
		}
	}
	for _, x := range *f.all {
		t := &quorumkmsv1.Trail{RaftId: "raft-" + x.name, Name: x.name, Identity: x.spki, Records: 2, Checkpoint: x.note(2, f.wrong(r.GetTenant(), "contradicts"))}
		if x.wrong(r.GetTenant(), "convicted") {
			t.Conflict, t.ConflictTime = x.note(3, true), timestamppb.New(fakeEpoch)
		}
		if x.wrong(r.GetTenant(), "replayed") { // an earlier one of its own
			t.Conflict, t.ConflictTime = x.note(1, false), timestamppb.New(fakeEpoch)
		}
		if x.wrong(r.GetTenant(), "slandered") {
			t.Conflict, t.ConflictTime = bytes.Replace(x.note(3, true), []byte("\n3\n"), []byte("\n4\n"), 1), timestamppb.New(fakeEpoch)
		}
		out.Trails = append(out.Trails, t)
	}
	out.Trails = append(out.Trails, &quorumkmsv1.Trail{RaftId: "raft-n0", Name: "n0", Identity: (*f.all)[0].spki, Removed: true})
	return out, nil
}

func (f *fakeAudit) ReadTrail(r *quorumkmsv1.ReadTrailRequest, stream quorumkmsv1.AuditService_ReadTrailServer) error {
	records := append(bytes.Join(f.lines, []byte("\n")), '\n')
	name := trail.Name(0, trail.RecordsEnd)
	switch {
	case f.wrong(r.GetTenant(), "altered"):
		records = bytes.Replace(records, []byte(`"Decrypt"`), []byte(`"decrypt"`), 1)
	case f.wrong(r.GetTenant(), "outside"):
		name = "../" + name
	}
	messages := []*quorumkmsv1.ReadTrailResponse{
		{File: trail.Name(0, trail.CheckpointsEnd)},
		{Data: f.note(3, false)},
		{File: name},
		{Data: records[:100]},
		{Data: records[100:]},
	}
	if f.wrong(r.GetTenant(), "nameless") {
		messages = messages[1:]
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAudit) SearchRecords(r *quorumkmsv1.SearchRecordsRequest, stream quorumkmsv1.AuditService_SearchRecordsServer) error {
	switch {
	case r.GetTenant() == "denied":
		return fakeError(codes.PermissionDenied, quorumkmsv1.Reason_REASON_DENIED, "the class admin may not read the audit trail")
	case f.wrong(r.GetTenant(), "garbled"):
		return stream.Send(&quorumkmsv1.SearchRecordsResponse{RaftId: "raft-n2", Record: []byte("nonsense"), Time: timestamppb.New(fakeEpoch)})
	}
	messages := []*quorumkmsv1.SearchRecordsResponse{{RaftId: "raft-" + f.name, ClusterId: "c1"}, {Checkpoint: f.note(3, false)}}
	for i, line := range f.lines {
		if r.GetOperation() != "" && !bytes.Contains(line, []byte(r.GetOperation())) || r.GetSince() != nil && f.times[i].Before(r.GetSince().AsTime()) {
			continue
		}
		proof, err := tlog.ProveRecord(3, int64(i), f.tree(3, false))
		if err != nil {
			return err
		}
		m := &quorumkmsv1.SearchRecordsResponse{Record: line, Sequence: uint64(i + 1), Time: timestamppb.New(f.times[i])}
		for _, h := range proof {
			m.Proof = append(m.Proof, h[:])
		}
		messages = append(messages, m)
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			return err
		}
		if f.wrong(r.GetTenant(), "breaks") && len(m.GetRecord()) > 0 {
			return fakeError(codes.Unavailable, quorumkmsv1.Reason_REASON_SHUTTING_DOWN, "this node is stopping")
		}
	}
	return nil
}
