package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func recoveryRefused(texts ...string) *refusal {
	return refused(codes.FailedPrecondition, client.ErrMembershipRefused, append([]string{"recovery refused"}, texts...)...)
}

// plan asks a node what a recovery from it would mean.
func (c *testCluster) plan(ctx context.Context, p *process) *pb.RecoveryPlanResponse {
	c.t.Helper()
	r, err := c.dial(operatorID, p).Cluster().RecoveryPlan(ctx, &pb.RecoveryPlanRequest{})
	must(c.t, err)
	return r
}

// recoverRequest is the request that a plan leads to.
func recoverRequest(plan *pb.RecoveryPlanResponse) *pb.RecoverRequest {
	r := &pb.RecoverRequest{ClusterId: plan.GetClusterId(), RecoveryEpoch: plan.GetRecoveryEpoch(), Node: plan.GetNodeName()}
	r.MissedRestrictions, r.JournalProblem = plan.GetMissedRestrictions(), plan.GetJournalProblem()
	for _, m := range plan.GetMembers() {
		if !m.GetAnswers() {
			r.DeadNodes = append(r.DeadNodes, m.GetName())
		}
	}
	return r
}

// leaderless waits until a node knows that the leader is gone.
func (c *testCluster) leaderless(p *process) {
	c.t.Helper()
	c.until(p.name+" knows no leader", func(s *pb.StatusResponse) bool { return s.GetLeaderId() == "" }, p)
}

// recover recovers the cluster from a node.
func (c *testCluster) recover(ctx context.Context, p *process) *pb.RecoverResponse {
	c.t.Helper()
	r, err := c.recoverClient(p).Recover(ctx, recoverRequest(c.plan(ctx, p)))
	if err != nil {
		c.t.Fatalf("recover: %v\n%s", err, p.output())
	}
	return r
}

func (c *testCluster) recoverClient(p *process) pb.ClusterServiceClient {
	c.t.Helper()
	return pb.NewClusterServiceClient(c.connect(p.client, c.clientTLS(c.certs()+"/olga")))
}

// restrictions are made before nodes are lost and must hold afterwards.
type restrictions struct{ open, disabled, rotated object }

func (c *testCluster) restrict(ctx context.Context) restrictions {
	c.t.Helper()
	r := restrictions{c.object(ctx, "alias/open"), c.object(ctx, "alias/disabled"), c.object(ctx, "alias/rotated")}
	admin := c.dial(adminID).Keys()
	must(c.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: r.disabled.key})))
	must(c.t, second(admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: r.rotated.key})))
	return r
}

// hold checks that a node knows what was there and what was revoked.
func (r restrictions) hold(ctx context.Context, c *testCluster, p *process) {
	c.t.Helper()
	user := c.dial(userID, p)
	for _, o := range []object{r.open, r.rotated} {
		must(c.t, second(user.Decrypt(ctx, o.blob, nil)))
	}
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, "a key that was disabled", second(user.Decrypt(ctx, r.disabled.blob, nil)))
}

// TestRecover loses two of three nodes for good, the third having been away for the
// last restriction.
func TestRecover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	journal := filepath.Join(c.dir, "journal")
	must(t, os.Mkdir(journal, 0o700))
	for _, p := range c.nodes {
		p.extra = fmt.Sprintf("backup: {dir: %s}", journal)
	}
	c.begin()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	made := c.restrict(ctx)
	survivor, lost := c.nodes[0], c.nodes[1:]
	for _, p := range c.nodes { // what was acknowledged is with a majority: let it be with all
		made.hold(ctx, c, p)
	}
	late := c.object(ctx, "alias/late") // disabled while the survivor is away
	c.eventually("the survivor knows it", func() bool { return second(c.dial(userID, survivor).Decrypt(ctx, late.blob, nil)) == nil }, survivor)
	before, err := c.status(survivor)
	must(t, err)

	plan := c.plan(ctx, survivor)
	if !strings.Contains(plan.GetRefusal(), "the cluster is alive") {
		t.Errorf("with a leader: %q", plan.GetRefusal())
	}
	cluster := c.recoverClient(survivor)
	recoveryRefused("the cluster is alive").check(t, "Recover with a leader", fromStatus(second(cluster.Recover(ctx, recoverRequest(plan)))))
	_, err = c.dial(adminID, survivor).Cluster().RecoveryPlan(ctx, &pb.RecoveryPlanRequest{})
	refused(codes.PermissionDenied, client.ErrDenied).check(t, "RecoveryPlan of an administrator", err)
	refused(codes.PermissionDenied, client.ErrDenied).check(t, "Recover of an administrator",
		second(c.dial(adminID, survivor).Cluster().Recover(ctx, recoverRequest(plan))))

	survivor.pause()
	must(t, second(c.dial(adminID, lost...).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: late.key})))
	s, err := c.status(lost[0])
	must(t, err)
	c.until("the journal covers it", func(now *pb.StatusResponse) bool { return now.GetBackup().GetJournalIndex() >= s.GetAppliedIndex() }, lost[0])
	for _, p := range lost {
		p.kill()
	}
	survivor.resume()
	c.leaderless(survivor)
	survivor.kill() // a node that was started without a leader knows no state: only its log
	survivor.start()
	c.until("the survivor is back", func(s *pb.StatusResponse) bool { return s.GetClusterId() != "" }, survivor)
	plan = c.plan(ctx, survivor)
	if plan.GetMissedRestrictions() != 1 || plan.GetJournalTime() == nil || plan.GetJournalProblem() != "" || plan.GetJournalDirectory() != journal {
		t.Errorf("the journal is told as %v", plan)
	}
	if plan.GetRefusal() != "" || plan.GetKeyCount() != before.GetKeyCount() || plan.GetWait().AsDuration() != testLease*5/4 {
		t.Fatalf("the plan is %v", plan)
	}
	good := recoverRequest(plan)
	if !slices.Equal(good.GetDeadNodes(), []string{"kms-2", "kms-3"}) {
		t.Fatalf("the dead are %v", good.GetDeadNodes())
	}
	for what, x := range map[string]struct {
		change func(r *pb.RecoverRequest)
		want   *refusal
	}{
		"another cluster":      {func(r *pb.RecoverRequest) { r.ClusterId = "5b1c6a52-6f0e-4a7b-9a55-0e6f0c9d2f11" }, recoveryRefused("the cluster is " + before.GetClusterId())},
		"no cluster":           {func(r *pb.RecoverRequest) { r.ClusterId = "" }, recoveryRefused("the cluster is")},
		"another epoch":        {func(r *pb.RecoverRequest) { r.RecoveryEpoch = 1 }, recoveryRefused("epoch 0, not 1")},
		"another node":         {func(r *pb.RecoverRequest) { r.Node = "kms-2" }, recoveryRefused("this is node kms-1", "not kms-2")},
		"a dead node unnamed":  {func(r *pb.RecoverRequest) { r.DeadNodes = []string{"kms-2"} }, recoveryRefused("do not answer are kms-2, kms-3", "dead were kms-2")},
		"the living one named": {func(r *pb.RecoverRequest) { r.DeadNodes = []string{"kms-1", "kms-2", "kms-3"} }, recoveryRefused("dead were kms-1, kms-2, kms-3")},
		"a dry run":            {func(r *pb.RecoverRequest) { r.DryRun = true }, refused(codes.FailedPrecondition, client.ErrDryRun)},
	} {
		r := recoverRequest(plan)
		x.change(r)
		x.want.check(t, what, fromStatus(second(cluster.Recover(ctx, r))))
	}

	good.RequestId = "recover"
	began := time.Now()
	r, err := cluster.Recover(ctx, good)
	if err != nil {
		t.Fatalf("recover: %v\n%s", err, survivor.output())
	}
	if took := time.Since(began); took < testLease*5/4 {
		t.Errorf("it took %s: leases of the others may have been alive", took)
	}
	again, err := cluster.Recover(ctx, good)
	must(t, err)
	if r.GetRecoveryEpoch() != 1 || again.GetRecoveryEpoch() != 1 || r.GetRaftId() != before.GetRaftId() {
		t.Errorf("recovered: %v, %v", r, again)
	}
	c.until("the survivor serves", func(s *pb.StatusResponse) bool { return s.GetServing() && len(s.GetMembers()) == 1 }, survivor)
	made.hold(ctx, c, survivor)
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(t, "what was disabled while the survivor was away",
		second(c.dial(userID, survivor).Decrypt(ctx, late.blob, nil)))
	recoveryRefused("the cluster is alive").check(t, "once more", fromStatus(second(cluster.Recover(ctx, recoverRequest(c.plan(ctx, survivor))))))

	rotated, err := c.dial(adminID, survivor).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: made.rotated.key})
	must(t, err)
	if got := rotated.GetCurrentVersion(); got != 1<<20+1 {
		t.Errorf("version %d was minted, want a number of the new epoch", got)
	}
	c.oldNodesComeBack(ctx, made, survivor, lost)
	for _, p := range lost { // with the tokens they had, which hold the domain key
		must(t, os.RemoveAll(p.path("data")))
		p.configure(c.inviteTo(ctx, survivor, p))
		p.start()
		c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	c.waitVoters(3)
	for _, p := range c.nodes {
		made.hold(ctx, c, p)
	}
	survivor.kill() // the new ones go on without it
	c.createKey(ctx, lost...)
}

func (c *testCluster) inviteTo(ctx context.Context, ask, joiner *process) string {
	c.t.Helper()
	r, err := c.dial(operatorID, ask).Cluster().Invite(ctx, &pb.InviteRequest{NodeName: joiner.name, Identity: c.nik(joiner)})
	must(c.t, err)
	return r.GetJoinToken()
}

// oldNodesComeBack starts dead nodes again, with what they had. One alone learns that
// it is out. Both together are a majority of the cluster that was: while the survivor is
// down they serve; when it is back, it finds them, says so, and they end.
func (c *testCluster) oldNodesComeBack(ctx context.Context, made restrictions, survivor *process, lost []*process) {
	c.t.Helper()
	s, err := c.status(survivor)
	must(c.t, err)
	ended := func(p *process) {
		c.t.Helper()
		if code := p.waitExit(); code != exitRemoved || !strings.Contains(p.output(), "was removed from the cluster") {
			c.t.Errorf("%s came back and ended with %d:\n%s", p.name, code, p.output())
		}
	}
	lost[0].start()
	ended(lost[0])
	made.hold(ctx, c, survivor)
	if now, err := c.status(survivor); err != nil || now.GetTerm() != s.GetTerm() || !now.GetServing() {
		c.t.Errorf("the recovered cluster was disturbed: %v, %v", now, err)
	}
	survivor.kill()
	for _, p := range lost {
		p.start()
	}
	for _, p := range lost {
		c.until(p.name+" serves in the old history", func(s *pb.StatusResponse) bool { return s.GetServing() && s.GetRecoveryEpoch() == 0 }, p)
	}
	survivor.start()
	for _, p := range lost {
		ended(p)
		if !strings.Contains(p.output(), "proves that the cluster was recovered without this node") {
			c.t.Errorf("%s does not say why it ended:\n%s", p.name, p.output())
		}
	}
	if !strings.Contains(survivor.output(), "split: node "+lost[0].name) || !strings.Contains(survivor.output(), "another history of this cluster") {
		c.t.Errorf("the survivor did not say that it found them:\n%s", survivor.output())
	}
	c.until("the survivor serves, and no split is left", func(s *pb.StatusResponse) bool { return s.GetServing() && len(s.GetSplits()) == 0 }, survivor)
	made.hold(ctx, c, survivor)
}

// TestRecoverFive loses three of five nodes: the less advanced survivor is refused.
func TestRecoverFive(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 5)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	made := c.restrict(ctx)
	for _, p := range c.nodes {
		made.hold(ctx, c, p)
	}
	behind := c.nodes[4]
	if c.leader(c.nodes[0]) == behind {
		behind = c.nodes[3]
	}
	behind.kill() // it misses what follows
	var others []*process
	for _, p := range c.nodes {
		if p != behind {
			others = append(others, p)
		}
	}
	late := c.createKey(ctx, others...)
	blob, err := c.dial(userID, others...).Encrypt(ctx, late, []byte("late"), nil)
	must(t, err)
	ahead := others[0]
	c.eventually(ahead.name+" has the late key", func() bool { return second(c.dial(userID, ahead).Decrypt(ctx, blob, nil)) == nil }, ahead)
	for _, p := range others {
		p.kill() // also the one ahead: a former leader still sends what waited for its pause between attempts to end
	}
	for _, p := range []*process{ahead, behind} {
		p.start()
		c.until(p.name+" answers", func(s *pb.StatusResponse) bool { return s.GetClusterId() != "" }, p)
	}
	c.eventually("the survivors find each other", func() bool {
		for _, p := range []*process{behind, ahead} {
			if plan := c.plan(ctx, p); len(recoverRequest(plan).GetDeadNodes()) != 3 || strings.Contains(plan.GetRefusal(), "leader") {
				return false
			}
		}
		return true
	}, ahead, behind)
	err = fromStatus(second(c.recoverClient(behind).Recover(ctx, recoverRequest(c.plan(ctx, behind)))))
	recoveryRefused(ahead.name+" has more", "recover from "+ahead.name).check(t, "the one behind", err)
	if err == nil {
		t.Fatalf("%s:\n%s\n%s:\n%s", behind.name, behind.output(), ahead.name, ahead.output())
	}
	c.recover(ctx, ahead)
	if code := behind.waitExit(); code != exitRemoved {
		t.Errorf("the other survivor ended with %d:\n%s", code, behind.output())
	}
	must(t, second(c.dial(userID, ahead).Decrypt(ctx, blob, nil)))
	made.hold(ctx, c, ahead)
	must(t, os.RemoveAll(behind.path("data")))
	behind.configure(c.inviteTo(ctx, ahead, behind))
	behind.start()
	c.until("the other survivor is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, behind)
	made.hold(ctx, c, behind)
}

// TestRecoveryGoesOn kills the node at every stage of a recovery that leaves something
// on the disk: it goes on at the next start.
func TestRecoveryGoesOn(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	made := c.restrict(ctx)
	survivor := c.nodes[0]
	for _, p := range c.nodes {
		made.hold(ctx, c, p)
	}
	c.nodes[1].kill()
	c.leaderless(survivor)
	done := make(chan error, 1)
	go func() { done <- second(c.recoverClient(survivor).Recover(ctx, recoverRequest(c.plan(ctx, survivor)))) }()
	c.eventually("the recovery has begun", func() bool {
		b, err := os.ReadFile(survivor.path("data/node.json"))
		return err == nil && strings.Contains(string(b), `"stage": "recovering"`)
	}, survivor)
	survivor.kill()
	if err := <-done; err == nil {
		t.Fatal("it answered before it was killed")
	}
	survivor.start()
	c.until("the survivor serves", func(s *pb.StatusResponse) bool {
		return s.GetServing() && s.GetRecoveryEpoch() == 1 && len(s.GetMembers()) == 1
	}, survivor)
	made.hold(ctx, c, survivor)
	if b, err := os.ReadFile(survivor.path("data/node.json")); err != nil || !strings.Contains(string(b), `"stage": "sealed member"`) {
		t.Errorf("node.json is %s, %v", b, err)
	}
	if _, err := os.Stat(survivor.path("data/raft/raft.db")); errors.Is(err, os.ErrNotExist) {
		t.Error("the log is gone")
	}
}
