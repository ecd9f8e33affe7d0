package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestMembership takes nodes in and out of one cluster.
func TestMembership(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	c.addNode("kms-4")
	c.addNode("kms-5")
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"RefusedTokens", testRefusedTokens},
		{"ForgedProofs", testForgedProofs},
		{"NonVoter", testNonVoter},
		{"Invitations", testInvitations},
		{"Transfer", testTransfer},
		{"RemoveFollower", testRemoveFollower},
		{"WipedDirectory", testWipedDirectory},
		{"RemoveLeader", testRemoveLeader},
		{"SameState", testSameState},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

func (c *testCluster) invite(ctx context.Context, r *pb.InviteRequest) *pb.InviteResponse {
	c.t.Helper()
	out, err := c.dial(operatorID, c.nodes[:3]...).Cluster().Invite(ctx, r)
	must(c.t, err)
	return out
}

// member is what a node says of the living member of a name; nil if there is none.
func (c *testCluster) member(ask *process, name string) *pb.Member {
	c.t.Helper()
	s, err := c.status(ask)
	must(c.t, err)
	for _, m := range s.GetMembers() {
		if m.GetName() == name {
			return m
		}
	}
	return nil
}

// failsToStart starts a node that must end with a code and say why.
func (c *testCluster) failsToStart(what string, p *process, code int, texts ...string) {
	c.t.Helper()
	p.start()
	if got := p.waitExit(); got != code {
		c.t.Errorf("%s: exit code %d, want %d", what, got, code)
	}
	last := p.output()[strings.LastIndex(p.output(), "\nkmsd: ")+1:]
	for _, text := range texts {
		if !strings.Contains(last, text) || strings.Contains(last, "%!") {
			c.t.Errorf("%s: the last word is %q, want %q in it", what, last, text)
		}
	}
}

// testRefusedTokens shows the cluster every kind of join token but a good one.
func testRefusedTokens(ctx context.Context, c *testCluster) {
	joiner := c.node("kms-4")
	good, err := cluster.ParseJoinToken(c.invite(ctx, &pb.InviteRequest{NodeName: "kms-4"}).GetJoinToken())
	must(c.t, err)
	foreign := good
	foreign.Cluster[0] ^= 1
	unknown, err := cluster.ParseJoinToken(good.String())
	must(c.t, err)
	unknown.Ticket[0] ^= 1 // the seed comes first
	damaged := []byte(good.String())
	damaged[20] = map[bool]byte{true: 'B', false: 'A'}[damaged[20] == 'A']
	for what, x := range map[string]struct {
		token string
		texts []string
	}{
		"a token of another cluster": {foreign.String(), []string{"joining refused", "the invitation is to cluster " + foreign.Cluster.String()}},
		"an unknown ticket":          {unknown.String(), []string{"join ticket refused", "unknown or used"}},
		"another node's ticket": {
			c.invite(ctx, &pb.InviteRequest{NodeName: "kms-6"}).GetJoinToken(),
			[]string{"join ticket refused", "made out to node kms-6, not kms-4"},
		},
		"a damaged token": {string(damaged), []string{"join token", "checksum"}},
		"a short token":   {good.String()[:104], []string{"join token", "bytes, a token has"}},
		"no token":        {"not a token!", []string{"join token", "base32"}},
	} {
		joiner.configure(x.token)
		c.failsToStart(what, joiner, exitFailed, x.texts...)
	}
	joiner.configure(good.String())
	must(c.t, os.Chmod(joiner.path("join-token"), 0o644))
	c.failsToStart("a token that others can read", joiner, exitConfig, "join token", "0644", "chmod 0600")
	must(c.t, os.Chmod(joiner.path("join-token"), 0o600))

	short := c.invite(ctx, &pb.InviteRequest{NodeName: "kms-4", ValidFor: durationpb.New(time.Second)})
	joiner.configure(short.GetJoinToken())
	c.eventually("the ticket has expired", func() bool { return time.Now().After(short.GetExpires().AsTime().Add(time.Second)) })
	c.failsToStart("an expired ticket", joiner, exitFailed, "join ticket refused", "expired")

	pinned := good
	pinned.Pin = make([]byte, len(good.Pin))
	joiner.configure(pinned.String())
	c.failsToStart("a token that pins another CA", joiner, exitFailed, "joining refused", "the CA keys are not those the join token pins")

	joiner.configure(unknown.String())
	joiner.edit("join: {addresses: [", "join: {addresses: ["+freeAddress(c.t)+", ") // where nobody answers
	c.failsToStart("a refusal while another member does not answer", joiner, exitFailed, "join ticket refused", "unknown or used", "connection refused")
	if m := c.member(c.nodes[0], "kms-4"); m != nil {
		c.t.Errorf("kms-4 is a member: %v", m)
	}
	if _, err := os.Stat(joiner.path("data/raft/raft.db")); !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("a node that never joined has a log: %v", err)
	}
}

// testInvitations asks for invitations that are refused.
func testInvitations(ctx context.Context, c *testCluster) {
	operator := c.dial(operatorID, c.nodes[1]).Cluster()
	for what, x := range map[string]struct {
		r    *pb.InviteRequest
		want *refusal
	}{
		"a member's name":  {&pb.InviteRequest{NodeName: "kms-2"}, refused(codes.AlreadyExists, client.ErrExists, "kms-2", "remove it first")},
		"no name":          {&pb.InviteRequest{}, invalidWith("node name")},
		"a bad name":       {&pb.InviteRequest{NodeName: "KMS 9"}, invalidWith("KMS 9")},
		"too short a time": {&pb.InviteRequest{NodeName: "kms-9", ValidFor: durationpb.New(time.Millisecond)}, invalidWith("1ms", "1h")},
		"too long a time":  {&pb.InviteRequest{NodeName: "kms-9", ValidFor: durationpb.New(time.Hour + time.Second)}, invalidWith("1h0m1s")},
		"a negative time":  {&pb.InviteRequest{NodeName: "kms-9", ValidFor: durationpb.New(-time.Hour)}, invalidWith("-1h")},
		"a bad identity":   {&pb.InviteRequest{NodeName: "kms-9", Identity: "SHA256:12"}, invalidWith("SHA256:12", "kmsd hsm identity")},
		"a member's identity": {
			&pb.InviteRequest{NodeName: "kms-9", Identity: c.member(c.nodes[0], "kms-2").GetIdentityFingerprint()},
			refused(codes.FailedPrecondition, client.ErrIdentityRefused, "kms-2", "has that identity key"),
		},
		"a dry run": {&pb.InviteRequest{NodeName: "kms-9", DryRun: true}, refused(codes.FailedPrecondition, client.ErrDryRun)},
	} {
		x.want.check(c.t, "Invite: "+what, second(operator.Invite(ctx, x.r)))
	}
	again := &pb.InviteRequest{NodeName: "kms-9", RequestId: "invite-9"}
	must(c.t, second(operator.Invite(ctx, again)))
	refused(codes.AlreadyExists, client.ErrExists, "shown once").check(c.t, "the same invitation again", second(operator.Invite(ctx, again)))
	again.Identity = "SHA256:" + strings.Repeat("0", 64)
	refused(codes.InvalidArgument, client.ErrRequestIDReused, "invite-9").check(c.t, "the same invitation of another identity", second(operator.Invite(ctx, again)))
	again.NodeName = "kms-10"
	refused(codes.InvalidArgument, client.ErrRequestIDReused, "invite-9").check(c.t, "another invitation", second(operator.Invite(ctx, again)))
	notFound.check(c.t, "Remove of nobody", second(operator.Remove(ctx, &pb.RemoveRequest{Node: "kms-77"})))
	refused(codes.FailedPrecondition, client.ErrDryRun).check(c.t, "Remove", second(operator.Remove(ctx, &pb.RemoveRequest{Node: "kms-3", DryRun: true})))
	_, err := operator.Init(ctx, &pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true})
	refused(codes.FailedPrecondition, client.ErrAlreadyInitialized, "belongs to cluster").check(c.t, "Init", err)
}

// testNonVoter takes a node in that serves and does not vote; the token that
// brought it in brings nobody else in.
func testNonVoter(ctx context.Context, c *testCluster) {
	p := c.node("kms-4")
	token := c.invite(ctx, &pb.InviteRequest{NodeName: "kms-4", NonVoter: true, Identity: c.nik(p)}).GetJoinToken()
	must(c.t, os.RemoveAll(p.path("data")))
	p.configure(token)
	p.start()
	c.trustFirst(p)
	c.until("kms-4 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	key := c.createKey(ctx, p)
	for range 3 {
		blob, err := c.dial(userID, p).Encrypt(ctx, key, []byte("x"), nil)
		must(c.t, err)
		_, err = c.dial(userID, c.nodes[0]).Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob, IndexToken: c.latest(p)})
		must(c.t, err)
	}
	_, err := c.dial(adminID, c.nodes[0]).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})
	must(c.t, err)
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, "Encrypt at the non-voter", second(c.dial(userID, p).Encrypt(ctx, key, []byte("x"), nil)))
	leader := c.leader(p)
	s, err := c.status(leader)
	must(c.t, err)
	c.eventually("the leader has heard that kms-4 has caught up", func() bool {
		return c.member(leader, "kms-4").GetAppliedIndex() > s.GetAppliedIndex()
	}, leader)
	if m := c.member(leader, "kms-4"); m.GetVoter() || m.GetState() != pb.MemberState_MEMBER_STATE_ACTIVE {
		c.t.Errorf("the non-voter is %v", m)
	}
	_, err = c.dial(operatorID, p).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: "kms-4"})
	refused(codes.FailedPrecondition, client.ErrMembershipRefused, "no voter").check(c.t, "the leadership to a non-voter", err)

	twin := c.prepare("kms-4", "kms-4-twin")
	twin.configure(token)
	c.failsToStart("a used ticket", twin, exitFailed, "join ticket refused", "unknown or used")
}

// testTransfer moves the leadership about.
func testTransfer(ctx context.Context, c *testCluster) {
	leader, followers := c.leader(c.nodes[0]), []*process(nil)
	for _, p := range c.nodes[:3] {
		if p != leader {
			followers = append(followers, p)
		}
	}
	to := func(ask *process, node string) string {
		c.t.Helper()
		r, err := c.dial(operatorID, ask).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: node})
		must(c.t, err)
		return r.GetLeaderId()
	}
	id := func(p *process) string { return c.member(c.nodes[0], p.name).GetRaftId() }
	steps := []struct {
		ask  *process
		node string
		want *process
	}{
		{followers[0], followers[1].name, followers[1]}, // asked of a follower, by name
		{followers[1], id(leader), leader},              // asked of the leader, by raft id
		{followers[0], leader.name, leader},             // it leads already
	}
	for _, s := range steps {
		if got := to(s.ask, s.node); got != id(s.want) || c.leader(s.want) != s.want {
			c.t.Fatalf("asked %s for %s: %s leads", s.ask.name, s.node, got)
		}
		c.createKey(ctx, s.ask) // and the cluster goes on
	}
	if got := to(leader, ""); got != id(followers[0]) && got != id(followers[1]) {
		c.t.Fatalf("%s leads", got)
	}
	_, err := c.dial(operatorID, leader).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: "nobody"})
	notFound.check(c.t, "the leadership to nobody", err)
	c.waitVoters(3)
}

// servesNothing fails the test if a node that is out of the cluster answers a call
// about keys before it ends; it returns the exit code.
func (c *testCluster) servesNothing(ctx context.Context, p *process, key string, blob []byte) int {
	c.t.Helper()
	crypto, keys := c.crypto(p), pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(c.certs()+"/alice")))
	for {
		select {
		case <-p.exited:
			return p.waitExit()
		default:
		}
		if err := second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob})); err == nil {
			c.t.Fatalf("%s decrypts after its removal", p.name)
		}
		if err := second(keys.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})); err == nil {
			c.t.Fatalf("%s changes keys after its removal", p.name)
		}
		if ctx.Err() != nil {
			c.t.Fatalf("%s goes on running:\n%s", p.name, p.output())
		}
	}
}

// removed checks that a node that was removed learns it, also after a restart, and
// comes back under its name as a new node.
func (c *testCluster) removed(ctx context.Context, p, ask *process, oldID string, o object) {
	c.t.Helper()
	for _, what := range []string{"removed", "started again"} {
		if code := c.servesNothing(ctx, p, o.key, o.blob); code != exitRemoved || !strings.Contains(p.output(), "was removed from the cluster") {
			c.t.Errorf("%s, when %s, ended with %d:\n%s", p.name, what, code, p.output())
		}
		if what == "removed" {
			p.start()
		}
	}
	if m := c.member(ask, p.name); m != nil {
		c.t.Errorf("after its removal %s is %v", p.name, m)
	}
	must(c.t, os.RemoveAll(p.path("data")))
	p.configure(c.invite(ctx, &pb.InviteRequest{NodeName: p.name, Identity: c.nik(p)}).GetJoinToken())
	p.start()
	c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() && s.GetRaftId() != oldID }, p)
	c.waitVoters(3)
	must(c.t, second(c.dial(userID, p).Decrypt(ctx, o.blob, nil)))
	if m := c.member(ask, p.name); m.GetRaftId() == oldID || !m.GetVoter() {
		c.t.Errorf("%s is back as %v", p.name, m)
	}
}

func testRemoveFollower(ctx context.Context, c *testCluster) {
	leader := c.leader(c.nodes[0])
	p := c.nodes[0]
	if p == leader {
		p = c.nodes[1]
	}
	id, o := c.member(leader, p.name).GetRaftId(), c.object(ctx, "alias/removed-follower")
	itself, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the node may end before it has answered
		select {
		case <-p.exited:
		case <-itself.Done():
		}
		cancel()
	}()
	r, err := c.dial(operatorID, p).Cluster().Remove(itself, &pb.RemoveRequest{Node: p.name, RequestId: "remove"})
	if err != nil {
		c.t.Logf("removing a node through itself: %v", err)
	}
	again, err := c.dial(operatorID, leader).Cluster().Remove(ctx, &pb.RemoveRequest{Node: p.name, RequestId: "remove"})
	must(c.t, err)
	if again.GetRaftId() != id || r != nil && r.GetRaftId() != id {
		c.t.Errorf("removed %v, %v, want %s", r, again, id)
	}
	c.removed(ctx, p, leader, id, o)
}

// testRemoveLeader removes the leader through a client that knows all nodes.
func testRemoveLeader(ctx context.Context, c *testCluster) {
	leader := c.leader(c.nodes[0])
	var others []*process
	for _, p := range c.nodes[:3] {
		if p != leader {
			others = append(others, p)
		}
	}
	id, o := c.member(leader, leader.name).GetRaftId(), c.object(ctx, "alias/removed-leader")
	r, err := c.dial(operatorID, leader, others[0], others[1]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: leader.name})
	must(c.t, err)
	if r.GetRaftId() != id || c.leader(others[0]) == leader {
		c.t.Errorf("removed %v, want %s; %s leads", r, id, c.leader(others[0]).name)
	}
	c.removed(ctx, leader, others[0], id, o)
}

// testWipedDirectory loses the data directory of a node, whole and in part.
func testWipedDirectory(ctx context.Context, c *testCluster) {
	p := c.nodes[2]
	c.until("kms-3 is up", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	id := c.member(c.nodes[0], p.name).GetRaftId()
	p.kill()
	must(c.t, os.Rename(p.path("data/raft"), p.path("lost")))
	c.failsToStart("without its log", p, exitConfig, "data directory", "raft")
	must(c.t, os.Rename(p.path("data/node.json"), p.path("data/lost.json")))
	must(c.t, os.RemoveAll(p.path("data/raft")))
	must(c.t, os.Rename(p.path("lost"), p.path("data/raft")))
	c.failsToStart("without node.json", p, exitConfig, "node.json is missing", "join anew")

	must(c.t, os.RemoveAll(p.path("data")))
	p.configure("")
	p.start()
	c.eventually("kms-3 is nobody", func() bool { return strings.Contains(p.output(), "belongs to no cluster") }, p)
	notInitialized := refused(codes.FailedPrecondition, client.ErrNotInitialized)
	notInitialized.check(c.t, "GenerateRandom at a wiped node", second(c.dial(userID, p).Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})))
	notInitialized.check(c.t, "CreateKey at a wiped node", second(c.dial(adminID, p).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})))
	notInitialized.check(c.t, "ListKeys at a wiped node", second(c.dial(adminID, p).Keys().ListKeys(ctx, &pb.ListKeysRequest{})))
	notInitialized.check(c.t, "Invite at a wiped node", second(c.dial(operatorID, p).Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "x"})))
	notInitialized.check(c.t, "Remove at a wiped node", second(c.dial(operatorID, p).Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-1"})))
	s, err := c.status(p)
	must(c.t, err)
	if s.GetRaftId() == id || s.GetClusterId() != "" || s.GetServing() {
		c.t.Errorf("a wiped node says %v", s)
	}
	p.terminate()
	_, err = c.dial(operatorID, c.nodes[0]).Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-3"})
	refused(codes.AlreadyExists, client.ErrExists, "remove it first").check(c.t, "inviting it without removing it", err)
	_, err = c.dial(operatorID, c.nodes[0]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: id})
	must(c.t, err)
	p.configure(c.invite(ctx, &pb.InviteRequest{NodeName: "kms-3", Identity: c.nik(p)}).GetJoinToken())
	p.start()
	c.waitVoters(3)
	if m := c.member(c.nodes[0], "kms-3"); m.GetRaftId() == id || m.GetRaftId() != s.GetRaftId() {
		c.t.Errorf("%s came back as %s, it was %s when wiped", id, m.GetRaftId(), s.GetRaftId())
	}
}
