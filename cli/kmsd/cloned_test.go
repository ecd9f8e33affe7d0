package main

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The vendor's cloning, with SoftHSM: a token is a directory, whose objects are files
// under a key that a copy of the directory shares. A copy brings the node identity key
// along, as vendors' cloning does.

// copyToken gives a node a copy of another's token in the place of its own.
func (c *testCluster) copyToken(from, to *process) {
	c.t.Helper()
	must(c.t, os.RemoveAll(to.path("tokens")))
	must(c.t, os.CopyFS(to.path("tokens"), os.DirFS(from.path("tokens"))))
	to.token, to.hsm = from.name, ", profile: cloned"
}

// objects are the files of the objects in a node's token.
func (c *testCluster) objects(p *process) (names []string) {
	c.t.Helper()
	files, err := filepath.Glob(p.path("tokens/*/*.object"))
	must(c.t, err)
	for _, f := range files {
		if name := filepath.Base(f); name != "token.object" {
			names = append(names, name)
		}
	}
	return names
}

// clone copies objects into the token of a node that runs, and tells SoftHSM.
func (c *testCluster) clone(from, to *process, names []string) {
	c.t.Helper()
	in, err := filepath.Glob(from.path("tokens/*"))
	must(c.t, err)
	out, err := filepath.Glob(to.path("tokens/*"))
	must(c.t, err)
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(in[0], name))
		must(c.t, err)
		must(c.t, os.WriteFile(filepath.Join(out[0], name), b, 0o600))
	}
	counter := filepath.Join(out[0], "generation")
	b, err := os.ReadFile(counter)
	must(c.t, err)
	must(c.t, os.WriteFile(counter, binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b)+1), 0o600))
}

// adopt gives a cloned token an identity of its own, and returns its fingerprint.
func (c *testCluster) adopt(p *process) string {
	c.t.Helper()
	p.configure("")
	out, code := kmsd(c.t, p.env, "hsm", "adopt", "--config", p.path("kmsd.yaml"))
	if code != 0 {
		c.t.Fatalf("adopting the token of %s: %s", p.name, out)
	}
	return strings.TrimSpace(out)
}

// notAdopted runs kmsd hsm adopt, which must refuse.
func (c *testCluster) notAdopted(what string, p *process, code int, text string) {
	c.t.Helper()
	if out, got := kmsd(c.t, p.env, "hsm", "adopt", "--config", p.path("kmsd.yaml")); got != code || !strings.Contains(out, text) {
		c.t.Errorf("adopting %s: code %d, %s; want %d and a text with %q", what, got, out, code, text)
	}
}

// TestCloned runs a cluster whose domain keys travel by the vendor's cloning only.
func TestCloned(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.nodes[0].hsm = ", profile: cloned"
	c.begin()
	c.addNode("kms-2")
	c.addNode("kms-3")
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Join", testClonedJoin},
		{"Rotate", testClonedRotate},
		{"OtherPartition", testOtherPartition},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

func testClonedJoin(ctx context.Context, c *testCluster) {
	first := c.nodes[0]
	s, err := c.status(first)
	must(c.t, err)
	if s.GetTransferProfile() != fsm.ProfileCloned {
		c.t.Fatalf("the cluster's transfer profile is %q", s.GetTransferProfile())
	}
	_, err = c.dial(operatorID, first).Cluster().Init(ctx, &pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true, Profile: fsm.ProfileGeneric})
	invalidWith("profile", "generic", "configured for cloned").check(c.t, "Init with another profile", err)
	blob := c.seal(ctx, 1)

	stranger := c.prepare("kms-2", "kms-2-empty") // its token holds nothing of the cluster
	stranger.hsm = ", profile: cloned"
	stranger.configure(c.inviteAt(ctx, first, &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(stranger)}))
	c.failsToStart("with a token that was not cloned", stranger, exitFailed, "holds no domain key of cluster "+s.GetClusterId(), "vendor's tools", "kmsd hsm adopt")
	stranger.hsm = ""
	stranger.configure(c.inviteAt(ctx, first, &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(stranger)}))
	c.failsToStart("with the profile generic", stranger, exitConfig, "transfer profile", `"generic"`, "the cluster's is cloned", "hsm.profile")
	c.notAdopted("a token of the profile generic", stranger, exitConfig, "hsm.profile is generic")

	p := c.nodes[1]
	c.copyToken(first, p)
	_, err = c.dial(operatorID, first).Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(p)})
	refused(codes.FailedPrecondition, client.ErrIdentityRefused, "kms-1", "has that identity key").check(c.t, "inviting a clone with the other's identity", err)
	p.configure(c.inviteAt(ctx, first, &pb.InviteRequest{NodeName: "kms-2"}))
	c.failsToStart("with the identity that was cloned", p, exitConfig, "node identity refused", "has the same node identity key", "kmsd hsm adopt")

	own := c.adopt(p)
	if m := c.member(first, "kms-1"); own == m.GetIdentityFingerprint() || own != c.nik(p) {
		c.t.Fatalf("the adopted token has identity %s, then %s; kms-1's is %s", own, c.nik(p), m.GetIdentityFingerprint())
	}
	p.configure(c.inviteAt(ctx, first, &pb.InviteRequest{NodeName: "kms-2", Identity: own}))
	p.start()
	c.until("kms-2 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	if strings.Contains(p.output(), "hsm trust") {
		c.t.Errorf("a node of the profile cloned asks for a Security Officer:\n%s", p.output())
	}
	c.intact(ctx, p, blob)
	c.notAdopted("a node that runs", p, exitConfig, "another process")

	p = c.nodes[2]
	c.copyToken(first, p)
	p.configure(c.inviteAt(ctx, first, &pb.InviteRequest{NodeName: "kms-3", Identity: c.adopt(p)}))
	p.start()
	c.waitVoters(3)
	c.intact(ctx, p, blob)
	p.kill()
	c.notAdopted("a member", p, exitConfig, "belongs to cluster")
	p.start()
	c.waitVoters(3)
}

func (c *testCluster) inviteAt(ctx context.Context, p *process, r *pb.InviteRequest) string {
	c.t.Helper()
	out, err := c.dial(operatorID, p).Cluster().Invite(ctx, r)
	must(c.t, err)
	return out.GetJoinToken()
}

// testClonedRotate makes a generation, which other nodes find in their tokens when it was
// cloned there.
func testClonedRotate(ctx context.Context, c *testCluster) {
	first := c.nodes[0]
	before := c.objects(first)
	blobs := c.seal(ctx, 1)
	number := c.rotateDomain(ctx, first)
	var made []string
	for _, name := range c.objects(first) {
		if !slices.Contains(before, name) {
			made = append(made, name)
		}
	}
	waiting := func(n *pb.DomainNode) bool {
		return n.GetWaitsForGeneration() == number && n.GetFingerprint() == "" && slices.Equal(n.GetDonors(), []string{"kms-1"}) && n.GetProblem() == ""
	}
	c.eventually("two nodes wait for the vendor's cloning", func() bool {
		r, err := c.describeDomain(first)
		return err == nil && len(r.GetNodes()) == 3 && waiting(r.GetNodes()[1]) && waiting(r.GetNodes()[2])
	}, c.nodes...)
	if out := c.buildKmsctl().must(c.nodes[:1], "domain", "status"); !strings.Contains(out, "clone generation 2 into its HSM partition from that of kms-1") || strings.Contains(out, "hsm trust") {
		c.t.Errorf("domain status says: %s", out)
	}
	c.clone(first, c.nodes[1], made)
	c.eventually("one node has proved possession", func() bool {
		g := c.generation(first, number)
		return len(g.GetInstalled()) == 2 && g.GetState() == pb.GenerationState_GENERATION_STATE_PROPOSED
	}, c.nodes...)
	if !strings.Contains(c.nodes[2].output(), "does not hold generation 2") {
		c.t.Errorf("kms-3 does not say on its console what it waits for:\n%s", c.nodes[2].output())
	}
	c.clone(first, c.nodes[2], made)
	c.eventually("the generation is active", func() bool {
		r, err := c.describeDomain(c.nodes[2])
		return err == nil && isActive(number)(r)
	}, c.nodes...)
	blobs = append(blobs, c.seal(ctx, 1)...)
	for _, p := range c.nodes {
		c.eventually(p.name+" serves", func() bool {
			s, err := c.status(p)
			return err == nil && s.GetServing()
		}, p)
		c.intact(ctx, p, blobs)
	}
}

// testOtherPartition starts a member with other HSM partitions than its own, and with the
// other profile.
func testOtherPartition(_ context.Context, c *testCluster) {
	p := c.nodes[1]
	p.kill()
	own := p.env
	p.env = []string{"SOFTHSM2_CONF=" + c.nodes[2].path("softhsm2.conf")}
	c.failsToStart("with the partition of another member", p, exitConfig, "node identity refused", "the cluster knows "+c.member(c.nodes[0], "kms-2").GetRaftId(), "configure the partition that the node joined with")
	p.env = own
	p.edit(", profile: cloned", "")
	c.failsToStart("with the other profile", p, exitHSM, "was made in the transfer profile cloned, and generic is configured", hsm.ErrSelfTest.Error())
	p.edit("hsm: {", "hsm: {accept_weakness: [existing-templates], ")
	c.failsToStart("with the other profile, and its objects accepted", p, exitConfig, "transfer profile", "configured for generic, the cluster's is cloned")
	p.edit("accept_weakness: [existing-templates], ", "profile: cloned, ")
	p.start()
	c.waitVoters(3)
}
