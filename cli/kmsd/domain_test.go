package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// TestDomain takes a cluster through generations of its domain key.
func TestDomain(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Refused", testDomainRefused},
		{"Forged", testDomainForged},
		{"UnderLoad", testDomainUnderLoad},
		{"Away", testDomainAway},
		{"Removed", testDomainRemoved},
		{"Newcomer", testDomainNewcomer},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

func (c *testCluster) describeDomain(p *process) (*pb.DescribeDomainResponse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.dial(operatorID, p).Cluster().DescribeDomain(ctx, &pb.DescribeDomainRequest{})
}

// generation is one generation as a node knows it; nil if it knows none of that number.
func (c *testCluster) generation(p *process, number uint32) *pb.DomainGeneration {
	r, err := c.describeDomain(p)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(r.GetGenerations(), func(g *pb.DomainGeneration) bool { return g.GetNumber() == number })
	if i < 0 {
		return nil
	}
	return r.GetGenerations()[i]
}

// trustWaiting plays the Security Officers: it trusts the transfer keys of the nodes that
// wait, as far as want says so, until done.
func (c *testCluster) trustWaiting(what string, ask *process, want func(*pb.DomainNode) bool, done func(*pb.DescribeDomainResponse) bool) {
	c.t.Helper()
	trusted := map[string]bool{}
	c.eventually(what, func() bool {
		r, err := c.describeDomain(ask)
		if err != nil {
			return false
		}
		for _, n := range r.GetNodes() {
			if n.GetWaitsForGeneration() == 0 || trusted[n.GetFingerprint()] || !want(n) {
				continue
			}
			trusted[n.GetFingerprint()] = true
			donor := c.node(n.GetDonors()[0])
			if out, code := kmsd(c.t, donor.env, "hsm", "trust", "--config", donor.path("kmsd.yaml"), "--so-pin-file", donor.path("so-pin"), n.GetFingerprint()); code != 0 {
				c.t.Fatalf("trust on %s: %s", donor.name, out)
			}
		}
		return done(r)
	}, c.nodes...)
}

func anyNode(*pb.DomainNode) bool { return true }

func isActive(number uint32) func(*pb.DescribeDomainResponse) bool {
	return func(r *pb.DescribeDomainResponse) bool {
		return slices.ContainsFunc(r.GetGenerations(), func(g *pb.DomainGeneration) bool {
			return g.GetNumber() == number && g.GetState() == pb.GenerationState_GENERATION_STATE_ACTIVE
		})
	}
}

func (c *testCluster) rotateDomain(ctx context.Context, p *process) uint32 {
	c.t.Helper()
	r, err := c.dial(operatorID, p).Cluster().RotateDomain(ctx, &pb.RotateDomainRequest{NoRecovery: true, RequestId: uuid.NewString()})
	must(c.t, err)
	return r.GetGeneration()
}

func testDomainRefused(ctx context.Context, c *testCluster) {
	op := c.dial(operatorID).Cluster()
	_, err := op.RotateDomain(ctx, &pb.RotateDomainRequest{})
	refused(codes.InvalidArgument, client.ErrInvalid, "0 recovery recipients, 1 must hold a generation", "--no-recovery").check(c.t, "without a recovery copy", err)
	c.createKey(ctx)
	_, err = op.RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 1})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "generation 1 is active").check(c.t, "retiring the active one", err)

	// A proposal is given up again; its number is not used twice.
	first, err := op.RotateDomain(ctx, &pb.RotateDomainRequest{NoRecovery: true, RequestId: "given up"})
	must(c.t, err)
	again, err := c.dial(operatorID, c.nodes[2]).Cluster().RotateDomain(ctx, &pb.RotateDomainRequest{NoRecovery: true, RequestId: "given up"})
	if err != nil || again.GetGeneration() != first.GetGeneration() || first.GetGeneration() != 2 {
		c.t.Fatalf("generation %v, and again %v, %v", first, again, err)
	}
	_, err = op.RotateDomain(ctx, &pb.RotateDomainRequest{NoRecovery: true})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "generation 2 is proposed already").check(c.t, "another one", err)
	must(c.t, second(op.RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 2})))
	c.eventually("nobody holds a generation that was given up", func() bool {
		r, err := c.describeDomain(c.nodes[0])
		return err == nil && !slices.ContainsFunc(r.GetNodes(), func(n *pb.DomainNode) bool {
			return len(n.GetHolds()) != 1 || n.GetWaitsForGeneration() != 0
		})
	}, c.nodes...)
}

// testDomainForged asks a donor for the domain key in ways that are false in one place each.
func testDomainForged(ctx context.Context, c *testCluster) {
	c.issue("/node/stranger", "stranger")
	donor := c.nodes[0]
	id := func(name string) string { return c.member(donor, name).GetRaftId() }
	other, err := soft.Open(soft.Config{}) // an HSM, but not that of a member
	must(c.t, err)
	defer func() { must(c.t, other.Close()) }()
	transfer, err := other.NewTransfer(ctx)
	must(c.t, err)
	thisCluster := uuid.MustParse(c.clusterID())
	honest := cluster.JoinPull{Cluster: thisCluster, Node: id("kms-2"), Generation: 1, Transfer: transfer, Holds: true}
	for _, row := range []struct {
		what, as string
		edit     func(p *cluster.JoinPull)
		is       error
		text     string
	}{
		{"a node that is no member", "stranger", func(*cluster.JoinPull) {}, cluster.ErrJoin, "stranger is not the active member"},
		{"another member's name", "kms-3", func(*cluster.JoinPull) {}, cluster.ErrJoin, "kms-3 is not the active member"},
		{"another cluster", "kms-2", func(p *cluster.JoinPull) { p.Cluster[0] ^= 1 }, cluster.ErrJoin, "is asked for, this is"},
		{"another HSM", "kms-2", func(*cluster.JoinPull) {}, fsm.ErrIdentity, "did not sign with the HSM key that the cluster knows"},
		{"another HSM, to be given the key", "kms-2", func(p *cluster.JoinPull) { p.Holds = false }, fsm.ErrIdentity, "did not sign"},
		{"too long a raft id", "kms-2", func(p *cluster.JoinPull) { p.Node = strings.Repeat("x", fsm.MaxRaftID+1) }, cluster.ErrJoin, "is not the active member"},
		{"too long a transfer key", "kms-2", func(p *cluster.JoinPull) { p.Transfer.SPKI = make([]byte, 1025) }, cluster.ErrJoin, "transfer key of 1025"},
	} {
		p := honest
		row.edit(&p)
		err := c.pullAs(ctx, row.as, donor, other, p)
		if !errors.Is(err, row.is) || !strings.Contains(err.Error(), row.text) {
			c.t.Errorf("%s: %v; want %v and a text with %q", row.what, err, row.is, row.text)
		}
	}
}

// pullAs asks for a generation with a node's certificate and an HSM partition's signature,
// and proves nothing.
func (c *testCluster) pullAs(ctx context.Context, name string, donor *process, signer *soft.Partition, p cluster.JoinPull) error {
	c.t.Helper()
	creds, err := transport.Load(transport.Files{
		Cert: filepath.Join(c.certs(), name+".crt"), Key: filepath.Join(c.certs(), name+".key"), CA: filepath.Join(c.certs(), transport.DevCACert),
	}, testDomain)
	must(c.t, err)
	peers := rpc.NewPeers(creds, func(string) (string, bool) { return "", false })
	defer func() { must(c.t, peers.Close()) }()
	stream, err := peers.Join(ctx, donor.peer, creds.CAKeysHash())
	must(c.t, err)
	defer func() { _ = stream.Close() }()
	channel, err := stream.Channel()
	must(c.t, err)
	p.Signature, err = signer.SignIdentity(ctx, cluster.PullTranscript(channel, p))
	must(c.t, err)
	must(c.t, stream.Send(p))
	m, err := stream.Receive()
	if err != nil {
		return err
	}
	if t, ok := m.(cluster.JoinTransfer); !ok || len(t.Message) != 0 {
		c.t.Errorf("%s was given %+v", name, m)
	}
	must(c.t, stream.Send(cluster.JoinPossession{Proof: make([]byte, 32)}))
	_, err = stream.Receive()
	return err
}

// testDomainUnderLoad rotates while clients use the cluster, and kills the leader when
// one of two nodes has installed the generation. No call fails.
func testDomainUnderLoad(ctx context.Context, c *testCluster) {
	before := c.seal(ctx, 3)
	l := c.startLoad(c.nodes...)
	maker := c.nodes[1]
	l.during("a generation is proposed")
	number := c.rotateDomain(ctx, maker)
	installed := func(n int) func(*pb.DescribeDomainResponse) bool {
		return func(r *pb.DescribeDomainResponse) bool {
			return slices.ContainsFunc(r.GetGenerations(), func(g *pb.DomainGeneration) bool {
				return g.GetNumber() == number && len(g.GetInstalled()) == n
			})
		}
	}
	first := ""
	c.trustWaiting("a second node has the generation", maker, func(n *pb.DomainNode) bool {
		if first == "" {
			first = n.GetName()
		}
		return n.GetName() == first
	}, installed(2))
	if g := c.generation(maker, number); g.GetState() != pb.GenerationState_GENERATION_STATE_PROPOSED || !strings.HasPrefix(g.GetWaitsFor(), "nodes that have not installed generation ") {
		c.t.Fatalf("with one node missing: %v", g)
	}
	if n := c.generation(maker, number).GetKeyVersions(); n != 0 {
		c.t.Errorf("a proposed generation wraps %d key versions", n)
	}
	leader := c.leader(c.nodes[0])
	l.during("the leader is killed")
	leader.kill()
	ask := c.nodes[0]
	if ask == leader {
		ask = c.nodes[1]
	}
	l.goesOn()
	leader.start()
	l.during("the rest install it")
	c.trustWaiting("the generation is active", ask, anyNode, isActive(number))
	l.during("the generation is active")
	l.end(ctx, ask)
	if n := c.generation(ask, number).GetKeyVersions(); n == 0 {
		c.t.Error("no key was made under the new generation while there was load")
	}
	after := c.seal(ctx, 2)
	for _, p := range c.nodes {
		c.intact(ctx, p, append(before, after...))
	}
	_, err := c.dial(operatorID).Cluster().RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 1})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "generation 1 wraps").check(c.t, "retiring what is in use", err)
}

// testDomainAway proposes a generation while a node is down: it is not activated, the
// status says why, and the node catches up.
func testDomainAway(ctx context.Context, c *testCluster) {
	c.waitVoters(3)
	leader, followers := c.split()
	away := followers[0]
	away.kill()
	number := c.rotateDomain(ctx, leader)
	var last *pb.DescribeDomainResponse
	c.trustWaiting("all but one have the generation", leader, anyNode, func(r *pb.DescribeDomainResponse) bool {
		last = r
		i := slices.IndexFunc(r.GetGenerations(), func(g *pb.DomainGeneration) bool { return g.GetNumber() == number })
		return i >= 0 && len(r.GetGenerations()[i].GetInstalled()) == 2
	})
	g := c.generation(leader, number)
	if g.GetState() != pb.GenerationState_GENERATION_STATE_PROPOSED || !strings.HasSuffix(g.GetWaitsFor(), ": "+away.name) {
		c.t.Errorf("while %s is away: %v", away.name, g)
	}
	if !slices.ContainsFunc(last.GetNodes(), func(n *pb.DomainNode) bool { return n.GetName() == away.name && n.GetProblem() != "" }) {
		c.t.Errorf("the status does not say that %s does not answer: %v", away.name, last.GetNodes())
	}
	under := c.generation(leader, number-1).GetKeyVersions()
	c.createKey(ctx, leader)
	if n := c.generation(leader, number-1).GetKeyVersions(); n != under+1 {
		c.t.Errorf("the active generation wraps %d key versions, after %d and one more", n, under)
	}
	away.start()
	c.trustWaiting("the generation is active", leader, anyNode, isActive(number))
	c.waitVoters(3)
	for _, p := range c.nodes {
		c.eventually(p.name+" makes keys under it", func() bool {
			_, err := c.dial(adminID, p).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
			return err == nil
		}, p)
	}
}

// testDomainRemoved removes a node and rotates: its partition opens what was wrapped
// before, and nothing since.
func testDomainRemoved(ctx context.Context, c *testCluster) {
	op := c.dial(operatorID)
	gone, left := c.nodes[2], c.nodes[:2]
	s, err := c.status(c.nodes[0])
	must(c.t, err)
	if len(s.GetExposedTo()) != 0 {
		c.t.Errorf("a generation is advised because of %v", s.GetExposedTo())
	}
	before := c.createKey(ctx)
	must(c.t, second(op.Cluster().Remove(ctx, &pb.RemoveRequest{Node: gone.name})))
	gone.waitExit()
	c.nodes = left
	if s, err = c.status(left[0]); err != nil || !slices.Equal(s.GetExposedTo(), []string{gone.name}) {
		c.t.Errorf("after the removal a generation is advised because of %v, %v", s.GetExposedTo(), err)
	}
	ctl := c.buildKmsctl()
	for _, of := range []string{"cluster", "domain"} {
		if out := ctl.must(left[:1], of, "status"); !strings.Contains(out, "ADVICE") || !strings.Contains(out, gone.name) {
			c.t.Errorf("after the removal %s status says: %s", of, out)
		}
	}
	number := c.rotateDomain(ctx, left[0])
	c.trustWaiting("the generation is active", left[0], anyNode, isActive(number))
	if s, err = c.status(left[0]); err != nil || len(s.GetExposedTo()) != 0 {
		c.t.Errorf("after the rotation a generation is advised because of %v, %v", s.GetExposedTo(), err)
	}
	if out := ctl.must(left[:1], "domain", "status"); strings.Contains(out, "ADVICE") {
		c.t.Errorf("after the rotation: %s", out)
	}
	after := c.createKey(ctx, left[0])
	file := filepath.Join(c.t.TempDir(), "all.qkb")
	ctl.must(left[:1], "backup", "create", file)
	opened := c.opensBackup(ctx, gone, file)
	if got := opened[before]; got != "opened" {
		c.t.Errorf("the removed partition and a key of before: %q", got)
	}
	if got := opened[after]; !strings.Contains(got, hsm.ErrNotFound.Error()) {
		c.t.Errorf("the removed partition and a key of after the rotation: %q", got)
	}
	if got := c.opensBackup(ctx, left[1], file)[after]; got != "opened" {
		c.t.Errorf("a member's partition and a key of after the rotation: %q", got)
	}
}

// testDomainNewcomer has a node join: it gets every generation in use with one step of a
// Security Officer, and serves what each has wrapped.
func testDomainNewcomer(ctx context.Context, c *testCluster) {
	old := c.seal(ctx, 1)
	number := c.rotateDomain(ctx, c.nodes[0])
	c.trustWaiting("the generation is active", c.nodes[0], anyNode, isActive(number))
	all := append(old, c.seal(ctx, 1)...)
	p := c.addNode("kms-4")
	c.join(p)
	c.intact(ctx, p, all)
	if n := strings.Count(p.output(), "--so-pin-file <file>"); n != 1 {
		c.t.Errorf("the newcomer asked %d times for a Security Officer:\n%s", n, p.output())
	}
	var trail []byte
	for _, p := range c.nodes {
		b, err := os.ReadFile(p.trailFile())
		must(c.t, err)
		trail = append(trail, b...)
	}
	for _, act := range []string{"RotateDomain", "DescribeDomain", "RetireGeneration", "InstallGeneration"} {
		if !bytes.Contains(trail, []byte(`"eventName":"`+act+`"`)) {
			c.t.Errorf("%s is not recorded", act)
		}
	}
	r, err := c.describeDomain(p)
	must(c.t, err)
	for _, n := range r.GetNodes() {
		if fmt.Sprint(n.GetHolds()) != fmt.Sprint(r.GetNodes()[0].GetHolds()) {
			c.t.Errorf("%s holds %v", n.GetName(), n.GetHolds())
		}
	}
}

// TestRestoreAfterRetirement: a backup that knows a generation which has been retired since
// is restored, if nothing in it needs that generation.
func TestRestoreAfterRetirement(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p := c.nodes[0]
	number := c.rotateDomain(ctx, p)
	c.eventually("the generation is active", func() bool {
		r, err := c.describeDomain(p)
		return err == nil && isActive(number)(r)
	}, p)
	o := c.object(ctx, "alias/kept")
	var backup bytes.Buffer
	must(t, c.dial(operatorID, p).CreateBackup(ctx, &backup))
	must(t, second(c.dial(operatorID, p).Cluster().RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 1})))
	c.eventually("the generation is destroyed", func() bool {
		r, err := c.describeDomain(p)
		return err == nil && slices.Equal(r.GetNodes()[0].GetHolds(), []uint32{number})
	}, p)
	p.kill()
	c.newNode(p)
	must(t, second(restoreOf(backup.Bytes(), nil).into(ctx, c, operatorID, p)))
	c.eventually("the node serves", func() bool {
		s, err := c.status(p)
		return err == nil && s.GetServing()
	}, p)
	if g := c.generation(p, 1); g.GetState() != pb.GenerationState_GENERATION_STATE_RETIRED {
		t.Errorf("the generation that no node holds is %v", g)
	}
	must(t, second(c.dial(adminID, p).Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: o.key}))) // without a journal all come back disabled
	must(t, second(c.dial(userID, p).Decrypt(ctx, o.blob, nil)))
	if next := c.rotateDomain(ctx, p); next < 1<<10 {
		t.Errorf("after a restore the next generation is %d, which the lost history may have had", next)
	}
}
