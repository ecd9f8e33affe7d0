package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestRolling changes everything about a cluster's members while clients use it: not
// one of their calls fails.
func TestRolling(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	r := &rolling{c: c, nodes: slices.Clone(c.nodes)}
	for i := range 7 { // more than one subtest uses them
		r.spare = append(r.spare, c.prepareNode(fmt.Sprintf("kms-%d", len(c.nodes)+1+i)))
	}
	for _, p := range slices.Concat(r.nodes, r.spare) {
		p.raft = smallLog
	}
	c.begin()
	for _, s := range []struct {
		name string
		f    func(context.Context)
	}{
		{"Restart", r.restart},
		{"KilledLeader", r.killedLeader},
		{"AwayForLong", r.awayForLong},
		{"ReplaceDeadNode", r.replaceDeadNode},
		{"FiveAndBack", r.fiveAndBack},
		{"NonVoter", r.nonVoter},
		{"ReplaceAll", r.replaceAll},
		{"QuorumIsKept", r.quorumIsKept},
	} {
		if !c.run(s.name, func(ctx context.Context, _ *testCluster) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
			defer cancel()
			s.f(ctx)
			r.sameState()
		}) {
			break // the next one builds on it
		}
	}
}

// smallLog makes a node that was away for some seconds need a snapshot.
const smallLog = ", snapshot_interval: 1s, snapshot_threshold: 24, trailing_logs: 8"

// rolling is the cluster and those of its nodes that are members.
type rolling struct {
	c      *testCluster
	nodes  []*process
	spare  []*process // that have not joined yet
	handed int        // leaders that stopped and handed the leadership over
}

func (r *rolling) operator(except ...*process) pb.ClusterServiceClient {
	of := slices.DeleteFunc(slices.Clone(r.nodes), func(p *process) bool { return slices.Contains(except, p) })
	return r.c.dial(operatorID, of...).Cluster()
}

// voters waits until the members all serve and agree who votes.
func (r *rolling) voters(want ...*process) {
	r.c.t.Helper()
	var names []string
	for _, p := range want {
		names = append(names, p.name)
	}
	slices.Sort(names)
	for _, p := range r.nodes {
		r.c.eventually(p.name+" sees the voters "+strings.Join(names, " "), func() bool {
			s, err := r.c.status(p)
			var got []string
			for _, m := range s.GetMembers() {
				if m.GetVoter() {
					got = append(got, m.GetName())
				}
			}
			slices.Sort(got)
			return err == nil && slices.Equal(got, names) && s.GetServing()
		}, r.nodes...)
	}
}

// add takes a new node in.
func (r *rolling) add(nonVoter bool) *process {
	r.c.t.Helper()
	p := r.spare[0]
	r.spare = r.spare[1:]
	r.c.nodes = append(r.c.nodes, p)
	r.c.joinAs(p, &pb.InviteRequest{NonVoter: nonVoter}, r.nodes[0])
	r.nodes = append(r.nodes, p)
	return p
}

// remove takes a node out; if it runs, it ends by itself.
func (r *rolling) remove(ctx context.Context, p *process, runs bool) {
	r.c.t.Helper()
	must(r.c.t, second(r.operator(p).Remove(ctx, &pb.RemoveRequest{Node: p.name})))
	r.nodes = slices.DeleteFunc(r.nodes, func(x *process) bool { return x == p })
	if !runs {
		return
	}
	if code := p.waitExit(); code != exitRemoved {
		r.c.t.Errorf("%s ended with %d after its removal:\n%s", p.name, code, p.output())
	}
}

// sameState compares the running hashes of all members.
func (r *rolling) sameState() {
	c, first := r.c, r.nodes[0]
	c.t.Helper()
	for _, p := range r.nodes[1:] {
		c.eventually(first.name+" and "+p.name+" are at the same index", func() bool {
			a, err := c.status(first)
			must(c.t, err)
			b, err := c.status(p)
			must(c.t, err)
			if a.GetAppliedIndex() != b.GetAppliedIndex() {
				return false
			}
			if !bytes.Equal(a.GetRunningHash(), b.GetRunningHash()) || len(a.GetRunningHash()) != 32 {
				c.t.Fatalf("at %d the hashes of %s and %s are %x and %x", a.GetAppliedIndex(), first.name, p.name, a.GetRunningHash(), b.GetRunningHash())
			}
			return true
		}, first, p)
	}
}

// stop ends a node as an operator does: it must end by itself, in time, with the code
// of a stop that was asked for, and hand the leadership over if it has it.
func (r *rolling) stop(p *process) {
	c, led := r.c, r.c.leader(p) == p
	c.t.Helper()
	began := time.Now()
	must(c.t, p.cmd.Process.Signal(syscall.SIGTERM))
	if code := p.waitExit(); code != exitOK {
		c.t.Fatalf("%s ended with %d:\n%s", p.name, code, p.output())
	}
	if took := time.Since(began); took > 15*time.Second {
		c.t.Errorf("%s took %s to stop:\n%s", p.name, took, p.output())
	}
	if led && !strings.Contains(p.output(), "handing the leadership over") {
		c.t.Errorf("%s led and did not try to hand the leadership over:\n%s", p.name, p.output())
	}
	if led && !strings.Contains(p.output(), "was not handed over") { // one that is too slow for it is followed by an election
		r.handed++
	}
	c.t.Logf("%s (leader: %t) stopped within %s", p.name, led, time.Since(began).Round(time.Millisecond))
}

func (r *rolling) start(p *process) {
	r.c.t.Helper()
	p.start()
	r.c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
}

// restart restarts all nodes one after the other, twice, the leader among them.
func (r *rolling) restart(ctx context.Context) {
	l := r.c.startLoad(r.nodes...)
	l.goesOn()
	for round := range 2 {
		for _, p := range r.nodes {
			l.during("while %s stops in round %d", p.name, round)
			r.stop(p)
			l.during("while %s is down in round %d", p.name, round)
			l.goesOn()
			l.during("while %s starts in round %d", p.name, round)
			r.start(p)
		}
	}
	if r.handed == 0 {
		r.c.t.Error("no leader handed the leadership over")
	}
	l.end(ctx, r.nodes[0])
}

// killedLeader kills the leader, and then the next one.
func (r *rolling) killedLeader(ctx context.Context) {
	l := r.c.startLoad(r.nodes...)
	for range 2 {
		l.goesOn()
		leader := r.c.leader(r.nodes[0])
		l.during("after the death of the leader %s", leader.name)
		leader.kill()
		l.goesOn()
		r.start(leader)
	}
	l.end(ctx, r.nodes[0])
}

// awayForLong keeps a node away until the others have dropped what it lacks: it comes
// back by a snapshot.
func (r *rolling) awayForLong(ctx context.Context) {
	c, p, other := r.c, r.nodes[2], r.nodes[0]
	l := c.startLoad(r.nodes...)
	l.goesOn()
	l.during("while %s is away", p.name)
	r.stop(p)
	s, err := c.status(other)
	must(c.t, err)
	for _, o := range r.nodes[:2] {
		c.eventually(o.name+" has dropped what "+p.name+" lacks", func() bool { return o.newestSnapshot() > s.GetAppliedIndex()+64 }, o)
	}
	l.during("while %s catches up", p.name)
	r.start(p)
	if !strings.Contains(p.output(), "handing a snapshot") && p.newestSnapshot() <= s.GetAppliedIndex() {
		c.t.Errorf("%s, stopped at %d, has no snapshot beyond it:\n%s", p.name, s.GetAppliedIndex(), p.output())
	}
	l.goesOn()
	l.end(ctx, p)
}

// replaceDeadNode loses a node for good: it is removed and a new one takes its place.
func (r *rolling) replaceDeadNode(ctx context.Context) {
	l := r.c.startLoad(r.nodes...)
	l.goesOn()
	dead := r.c.leader(r.nodes[0])
	l.during("after %s was lost", dead.name)
	dead.kill()
	must(r.c.t, os.RemoveAll(dead.path("data")))
	l.during("while %s, which was lost, is removed", dead.name)
	r.remove(ctx, dead, false)
	l.goesOn()
	l.during("while a node joins in place of %s", dead.name)
	r.add(false)
	r.voters(r.nodes...)
	l.end(ctx, r.nodes[0])
}

// fiveAndBack takes two more voters in and the first of all out.
func (r *rolling) fiveAndBack(ctx context.Context) {
	l := r.c.startLoad(r.nodes...)
	for range 2 {
		l.during("while a node joins %d others", len(r.nodes))
		r.add(false)
		r.voters(r.nodes...)
		l.goesOn()
	}
	l.during("while two of five are dead")
	two := r.nodes[:2]
	for _, p := range two {
		p.kill()
	}
	l.goesOn()
	for _, p := range two {
		r.start(p)
	}
	for len(r.nodes) > 3 {
		p := r.c.leader(r.nodes[len(r.nodes)-1])
		l.during("while the leader %s of %d nodes is removed", p.name, len(r.nodes))
		r.remove(ctx, p, true)
		r.voters(r.nodes...)
		l.goesOn()
	}
	l.end(ctx, r.nodes[0])
}

// nonVoter takes a node in that serves and does not vote, has a restriction wait for
// it, gives it a vote and takes it again.
func (r *rolling) nonVoter(ctx context.Context) {
	c, voters := r.c, slices.Clone(r.nodes)
	l := c.startLoad(r.nodes...)
	l.during("while a non-voter joins")
	p := r.add(true)
	r.voters(voters...)
	l.goesOn()
	own := c.startLoad(p) // its clients find the others by themselves
	own.goesOn()

	l.during("while the non-voter is frozen")
	own.during("while the non-voter is frozen")
	key := c.createKey(ctx, voters...)
	blob, err := c.dial(userID, voters...).Encrypt(ctx, key, []byte("x"), nil)
	must(c.t, err)
	crypto := c.crypto(p)
	c.eventually("the key is at "+p.name, func() bool { return second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob})) == nil }, p)
	p.pause()
	answers := make(chan error, 32)
	var waiting sync.WaitGroup
	for range cap(answers) {
		waiting.Go(func() { answers <- second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob})) })
	}
	_, err = c.dial(adminID, voters...).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})
	must(c.t, err)
	p.resume()
	waiting.Wait()
	close(answers)
	for err := range answers {
		if e := fromStatus(err); !errors.Is(e, client.ErrKeyDisabled) {
			noLease.check(c.t, "at the non-voter that was frozen", e)
		}
	}
	l.goesOn()

	l.during("while the non-voter gets a vote")
	must(c.t, second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: p.name, Voter: true})))
	r.voters(r.nodes...)
	must(c.t, second(r.operator().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: p.name})))
	l.goesOn()
	l.during("while the leader loses its vote")
	must(c.t, second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: p.name, RequestId: "demote"})))
	r.voters(voters...)
	if c.leader(p) == p {
		c.t.Error("a node without a vote leads")
	}
	must(c.t, second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: p.name, RequestId: "demote"})))
	must(c.t, second(c.dial(userID, p).Encrypt(ctx, c.createKey(ctx, p), []byte("x"), nil)))
	_, err = r.operator().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: p.name})
	refused(codes.FailedPrecondition, client.ErrMembershipRefused, "no voter").check(c.t, "the leadership to a node without a vote", err)
	l.during("while the non-voter is removed")
	own.during("while the non-voter is removed")
	r.remove(ctx, p, true)
	own.end(ctx, r.nodes[0])
	l.end(ctx, r.nodes[0])
}

// replaceAll puts new nodes in the place of all: clients that were told of the old ones
// only go on.
func (r *rolling) replaceAll(ctx context.Context) {
	l := r.c.startLoad(r.nodes...)
	for _, old := range slices.Clone(r.nodes) {
		l.during("while a node joins in place of %s", old.name)
		r.add(false)
		r.voters(r.nodes...)
		l.during("while %s is removed", old.name)
		r.remove(ctx, old, true)
		r.voters(r.nodes...)
		l.goesOn()
	}
	l.during("after all nodes were replaced")
	l.goesOn()
	for _, p := range r.nodes {
		l.during("while %s, which is new, is down", p.name)
		r.stop(p)
		l.goesOn()
		r.start(p)
	}
	l.end(ctx, r.nodes[0])
}

// quorumIsKept asks for changes that would leave too few voters in touch: they are
// refused, and the cluster goes on.
func (r *rolling) quorumIsKept(ctx context.Context) {
	c := r.c
	l := c.startLoad(r.nodes...)
	l.goesOn()
	dead, live := r.nodes[2], r.nodes[1]
	l.during("while %s is dead", dead.name)
	dead.kill()
	lost := refused(codes.FailedPrecondition, client.ErrMembershipRefused, "only 1 of 2 voters would be in touch")
	c.eventually("the leader misses "+dead.name, func() bool {
		leader := c.leader(live)
		return !c.member(leader, dead.name).GetReachable()
	}, live)
	lost.check(c.t, "removing a live voter", second(r.operator(dead).Remove(ctx, &pb.RemoveRequest{Node: live.name})))
	lost.check(c.t, "demoting a live voter", second(r.operator(dead).SetVoter(ctx, &pb.SetVoterRequest{Node: live.name})))
	l.goesOn()
	must(c.t, second(r.operator(dead).SetVoter(ctx, &pb.SetVoterRequest{Node: dead.name}))) // that one is lost anyway
	r.start(dead)
	must(c.t, second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: dead.name, Voter: true})))
	r.voters(r.nodes...)
	notFound.check(c.t, "SetVoter of nobody", second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: "nobody", Voter: true})))
	refused(codes.FailedPrecondition, client.ErrDryRun).check(c.t, "SetVoter", second(r.operator().SetVoter(ctx, &pb.SetVoterRequest{Node: live.name, DryRun: true})))
	l.end(ctx, r.nodes[0])
}
