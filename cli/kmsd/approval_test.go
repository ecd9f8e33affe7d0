package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestApproval takes nodes in whose identity was not pinned at their invitation, and keeps
// thieves of join tokens out.
func TestApproval(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"StolenTicket", testStolenTicket},
		{"Approved", testApproved},
		{"Rejected", testRejected},
		{"Expired", testExpiredRequest},
	} {
		if !c.run(s.name, s.f) {
			break
		}
	}
}

var approvalLine = regexp.MustCompile(`kmsctl cluster approve (\S+) --identity (\S+)`)

// joins are the open invitations as a node tells of them, by name.
func (c *testCluster) joins(ctx context.Context, ask *process) map[string]*pb.Join {
	c.t.Helper()
	r, err := c.dial(operatorID, ask).Cluster().ListJoins(ctx, &pb.ListJoinsRequest{})
	must(c.t, err)
	out := map[string]*pb.Join{}
	for _, j := range r.GetJoins() {
		out[j.GetNodeName()] = j
	}
	return out
}

// waitsForApproval waits until every node tells that a node waits for approval, and returns the
// fingerprint on its console.
func (c *testCluster) waitsForApproval(ctx context.Context, p *process) string {
	c.t.Helper()
	c.eventually(p.name+" shows its identity", func() bool { return approvalLine.MatchString(p.output()) }, p)
	for _, ask := range c.nodes {
		c.eventually(ask.name+" knows that "+p.name+" waits", func() bool {
			return c.joins(ctx, ask)[p.name].GetState() == pb.JoinState_JOIN_STATE_WAITING
		}, ask, p)
	}
	line := approvalLine.FindStringSubmatch(p.output())
	if line[1] != p.name {
		c.t.Errorf("%s asks for the approval of %s", p.name, line[1])
	}
	return line[2]
}

// refusedJoins is how many requests to join the nodes have refused.
func (c *testCluster) refusedJoins() (n uint64) {
	c.t.Helper()
	for _, p := range c.nodes {
		s, err := c.status(p)
		must(c.t, err)
		n += s.GetRefusedJoins()
	}
	return n
}

// testStolenTicket has a thief use another node's certificate and join token on a machine
// with another HSM partition.
func testStolenTicket(ctx context.Context, c *testCluster) {
	p := c.prepareNode("kms-4")
	token := c.invite(ctx, &pb.InviteRequest{NodeName: "kms-4", Identity: c.nik(p)})
	if token.GetNeedsApproval() || c.joins(ctx, c.nodes[0])["kms-4"].GetState() != pb.JoinState_JOIN_STATE_PINNED {
		c.t.Errorf("an invitation with an identity: %v, %v", token, c.joins(ctx, c.nodes[0]))
	}
	thief := c.prepare("kms-4", "kms-4-thief")
	before := c.refusedJoins()
	thief.configure(token.GetJoinToken())
	c.failsToStart("a thief of the token", thief, exitConfig, "node identity refused", "another node identity key than the one that node kms-4 was invited or approved with")
	if strings.Contains(thief.output(), "asks node") || c.member(c.nodes[0], "kms-4") != nil {
		c.t.Errorf("the thief came as far as the domain key:\n%s", thief.output())
	}
	if c.refusedJoins() <= before {
		c.t.Errorf("nobody has counted the thief: %d refused joins, %d before", c.refusedJoins(), before)
	}
	found := false
	for _, n := range c.nodes {
		for _, e := range c.trail(n) {
			found = found || e.Name == "JoinNode" && e.Target == "kms-4" && strings.Contains(e.Reason, "another node identity key")
		}
	}
	if !found {
		c.t.Error("nobody has recorded the thief")
	}
	p.configure(token.GetJoinToken()) // the ticket is still good for the node that it was made out to
	p.start()
	c.nodes = append(c.nodes, p)
	defer func() { c.nodes = c.nodes[:3] }()
	c.trustFirst(p)
	c.until("kms-4 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	must(c.t, second(c.dial(operatorID, c.nodes[0]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-4"})))
	p.waitExit()
}

// testApproved has a node wait for approval: over its own restart, a thief's attempt, and
// the death of the leader.
func testApproved(ctx context.Context, c *testCluster) {
	p := c.prepareNode("kms-5")
	nik := c.nik(p)
	invited := c.invite(ctx, &pb.InviteRequest{NodeName: "kms-5"})
	if !invited.GetNeedsApproval() || c.joins(ctx, c.nodes[0])["kms-5"].GetState() != pb.JoinState_JOIN_STATE_INVITED {
		c.t.Errorf("an invitation without an identity: %v, %v", invited, c.joins(ctx, c.nodes[0]))
	}
	approve := func(ask *process, r *pb.ApproveJoinRequest) error {
		return second(c.dial(operatorID, ask).Cluster().ApproveJoin(ctx, r))
	}
	right := &pb.ApproveJoinRequest{NodeName: "kms-5", Identity: nik}
	notFound.check(c.t, "approving before it has asked", approve(c.nodes[0], right))
	p.configure(invited.GetJoinToken())
	p.start()
	if shown := c.waitsForApproval(ctx, p); shown != nik {
		c.t.Fatalf("the console shows %s, the partition has %s", shown, nik)
	}
	for _, ask := range c.nodes { // no command of the cluster may make comparing pointless
		r, err := c.dial(operatorID, ask).Cluster().ListJoins(ctx, &pb.ListJoinsRequest{})
		must(c.t, err)
		if text := protojson.Format(r); strings.Contains(text, strings.TrimPrefix(nik, "SHA256:")) || !strings.Contains(text, p.peer) {
			c.t.Errorf("%s tells of the request: %s", ask.name, text)
		}
	}

	thief := c.prepare("kms-5", "kms-5-thief")
	thief.configure(invited.GetJoinToken())
	c.failsToStart("a thief of the token", thief, exitConfig, "node identity refused", "another node, with another identity key, has asked to join with this ticket before")

	other := "SHA256:" + strings.Repeat("5", 64)
	for what, x := range map[string]struct {
		r    *pb.ApproveJoinRequest
		want *refusal
	}{
		"another fingerprint": {&pb.ApproveJoinRequest{NodeName: "kms-5", Identity: other}, refused(codes.FailedPrecondition, client.ErrIdentityRefused, "has another identity key", "reject kms-5")},
		"half a fingerprint":  {&pb.ApproveJoinRequest{NodeName: "kms-5", Identity: nik[:40]}, invalidWith("kmsd hsm identity")},
		"no fingerprint":      {&pb.ApproveJoinRequest{NodeName: "kms-5"}, invalidWith("node identity of 0 bytes")},
		"no name":             {&pb.ApproveJoinRequest{Identity: nik}, invalidWith("node name")},
		"another node":        {&pb.ApproveJoinRequest{NodeName: "kms-77", Identity: nik}, notFound},
		"a member":            {&pb.ApproveJoinRequest{NodeName: "kms-2", Identity: nik}, notFound},
		"a dry run":           {&pb.ApproveJoinRequest{NodeName: "kms-5", Identity: nik, DryRun: true}, refused(codes.FailedPrecondition, client.ErrDryRun)},
	} {
		err := approve(c.nodes[1], x.r)
		x.want.check(c.t, "approving with "+what, err)
		if err != nil && strings.Contains(err.Error(), nik) {
			c.t.Errorf("approving with %s: the refusal tells which identity waits: %v", what, err)
		}
	}

	id := c.joins(ctx, c.nodes[0])["kms-5"].GetRaftId()
	p.kill()
	p.start()
	if c.waitsForApproval(ctx, p); c.joins(ctx, c.nodes[0])["kms-5"].GetRaftId() != id {
		c.t.Errorf("after a restart the node waits as %v", c.joins(ctx, c.nodes[0])["kms-5"])
	}
	leader := c.leader(c.nodes[0])
	leader.kill()
	rest := c.others(leader)
	c.eventually("another node leads", func() bool {
		s, err := c.status(rest[0])
		return err == nil && s.GetServing() && s.GetLeaderId() != "" && !strings.HasPrefix(s.GetLeaderId(), leader.name+".")
	}, rest...)
	if strings.Contains(p.output(), "asks node") || c.member(rest[0], "kms-5") != nil {
		c.t.Fatalf("the node came as far as the domain key, and nobody has approved it:\n%s", p.output())
	}
	grouped := strings.ToUpper(strings.TrimPrefix(nik, "SHA256:"))
	must(c.t, approve(rest[1], &pb.ApproveJoinRequest{NodeName: "kms-5", Identity: grouped[:32] + " " + grouped[32:]})) // as a person types it
	leader.start()
	c.nodes = append(c.nodes, p)
	defer func() { c.nodes = c.nodes[:3] }()
	c.trustFirst(p)
	c.until("kms-5 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	if m := c.member(rest[0], "kms-5"); m.GetRaftId() != id || m.GetIdentityFingerprint() != nik {
		c.t.Errorf("%s was approved as %s, the member is %v", nik, id, m)
	}
	notFound.check(c.t, "approving a member", approve(rest[0], right))
	must(c.t, second(c.dial(operatorID, rest[0]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-5"})))
	p.waitExit()
	c.waitVoters(3)
}

// testRejected takes invitations back: of a node that waits, and of one that has not asked.
func testRejected(ctx context.Context, c *testCluster) {
	p := c.prepareNode("kms-6")
	reject := func(r *pb.RejectJoinRequest) error {
		return second(c.dial(operatorID, c.nodes[2]).Cluster().RejectJoin(ctx, r))
	}
	notFound.check(c.t, "rejecting nobody", reject(&pb.RejectJoinRequest{NodeName: "kms-6"}))
	invalidWith("node name").check(c.t, "rejecting no name", reject(&pb.RejectJoinRequest{NodeName: "Kms 6"}))
	invited := c.invite(ctx, &pb.InviteRequest{NodeName: "kms-6"})
	p.configure(invited.GetJoinToken())
	p.start()
	c.waitsForApproval(ctx, p)
	ctl := c.buildKmsctl()
	if out := ctl.must(c.nodes[:1], "cluster", "pending"); !strings.Contains(out, "WAITS FOR APPROVAL") || !strings.Contains(out, p.client) {
		c.t.Errorf("cluster pending says: %s", out)
	}
	refused(codes.FailedPrecondition, client.ErrDryRun).check(c.t, "a dry run", reject(&pb.RejectJoinRequest{NodeName: "kms-6", DryRun: true}))
	must(c.t, reject(&pb.RejectJoinRequest{NodeName: "kms-6"}))
	if code := p.waitExit(); code != exitFailed || !strings.Contains(p.output(), "an operator has rejected the node") {
		c.t.Errorf("a rejected node ended with %d:\n%s", code, p.output())
	}
	c.failsToStart("with a ticket that was rejected", p, exitFailed, "join ticket refused", "unknown or used")

	p.configure(c.invite(ctx, &pb.InviteRequest{NodeName: "kms-6", Identity: c.nik(p)}).GetJoinToken())
	must(c.t, reject(&pb.RejectJoinRequest{NodeName: "kms-6"}))
	c.failsToStart("with an invitation that was taken back", p, exitFailed, "join ticket refused", "unknown or used")
	if m := c.member(c.nodes[0], "kms-6"); m != nil {
		c.t.Errorf("kms-6 is a member: %v", m)
	}
}

// testExpiredRequest lets the time pass in which a node could have been approved.
func testExpiredRequest(ctx context.Context, c *testCluster) {
	p := c.prepareNode("kms-7")
	p.configure(c.invite(ctx, &pb.InviteRequest{NodeName: "kms-7", ValidFor: durationpb.New(8 * time.Second)}).GetJoinToken())
	p.start()
	if code := p.waitExit(); code != exitFailed || !strings.Contains(p.output(), "expired") {
		c.t.Errorf("a node that nobody approved ended with %d:\n%s", code, p.output())
	}
	if _, waits := c.joins(ctx, c.nodes[0])["kms-7"]; waits {
		c.t.Error("an expired invitation is listed")
	}
	if _, err := os.Stat(p.path("data/raft/raft.db")); err == nil {
		c.t.Error("a node that never joined has a log")
	}
}
