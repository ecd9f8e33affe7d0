package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// released is where the binaries of the newest version are that is out.
func released(t *testing.T) (dir, version string) {
	t.Helper()
	c := exec.Command("../../scripts/released.sh")
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Fatalf("building the version before: %v\n%s", err, said.String())
	}
	dir = strings.TrimSpace(string(out))
	return dir, filepath.Base(dir)
}

// kmsctl runs the other program, as an operator, against some nodes.
func (c *testCluster) kmsctl(program string, to []*process, args ...string) (output string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	var addresses []string
	for _, p := range to {
		addresses = append(addresses, p.client)
	}
	run := exec.CommandContext(ctx, program, args...)
	base := filepath.Join(c.certs(), filepath.Base(operatorID))
	run.Env = append(os.Environ(), "KMSCTL_ADDRESSES="+strings.Join(addresses, ","), "KMSCTL_TRUST_DOMAIN="+testDomain,
		"KMSCTL_CERT="+base+".crt", "KMSCTL_KEY="+base+".key", "KMSCTL_CA="+filepath.Join(c.certs(), transport.DevCACert))
	out, err := run.CombinedOutput()
	if err != nil && run.ProcessState == nil {
		c.t.Fatalf("kmsctl %s: %v", strings.Join(args, " "), err)
	}
	return string(out), run.ProcessState.ExitCode()
}

// TestUpgrade upgrades a cluster of the version before, node by node, under load:
// no call fails. The cluster's release can be raised when the last node is through,
// and then no node of the old version comes back.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	const oldLimits, newLimits = "limits: { }", "limits: {" + testLimits + "}" // the version before knows no quotas
	old, version := released(t)
	kmsctl := filepath.Join(t.TempDir(), "kmsctl")
	if out, err := exec.Command("go", "build", "-o", kmsctl, "../kmsctl").CombinedOutput(); err != nil {
		t.Fatalf("building kmsctl: %v\n%s", err, out)
	}
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		p.program = filepath.Join(old, "kmsd")
		p.limits = " "
		p.raft = ", snapshot_interval: 2s, snapshot_threshold: 64, trailing_logs: 64"
	}
	c.begin()
	ctx := t.Context()
	l := c.startLoad(c.nodes...)
	l.goesOn()
	out, code := c.kmsctl(kmsctl, c.nodes, "cluster", "upgrade")
	if code != 0 || !strings.Contains(out, version) || !strings.Contains(out, "is at release 1, the newest that its nodes know") {
		t.Errorf("before the upgrade: %d\n%s", code, out)
	}

	leader := c.leader(c.nodes[0])
	order := []*process{leader}
	for _, p := range c.nodes {
		if p != leader {
			order = append([]*process{p}, order...) // the leader is in the middle
		}
	}
	order[1], order[2] = order[2], order[1]
	for i, p := range order {
		l.during("%s is upgraded", p.name)
		p.terminate()
		p.program, p.limits = "", ""
		p.edit(oldLimits, newLimits)
		p.start()
		c.until(p.name+" serves again", func(s *pb.StatusResponse) bool { return s.GetServing() && s.GetKnownRelease() > 1 }, p)
		l.goesOn()
		switch i {
		case 0:
			c.refusesUpgrade(ctx, kmsctl, version, p, order[1:], "the leader does not know the command")
		case 1: // under a leader of the new version
			c.eventually(p.name+" leads", func() bool {
				_, err := c.dial(operatorID, p).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: p.name})
				return err == nil && c.leader(p) == p
			}, p)
			c.refusesUpgrade(ctx, kmsctl, version, p, order[2:], "knows release 2: "+order[2].name+"; upgrade")
			l.goesOn()
			select {
			case <-order[2].exited:
				t.Fatalf("an upgrade that was refused ended the old node:\n%s", order[2].output())
			default:
			}
		}
	}
	_, err := c.dial(adminID).Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: pb.KeySpec_KEY_SPEC_HMAC_256})
	refused(codes.FailedPrecondition, client.ErrRelease, "cluster upgrade").check(t, "an HMAC key before the upgrade", err)
	out, code = c.kmsctl(kmsctl, c.nodes, "cluster", "upgrade", "--dry-run")
	if code != 0 || !strings.Contains(out, "is at release 1 and can be raised to release 2") {
		t.Errorf("dry run: %d\n%s", code, out)
	}
	c.eventually("the leader has heard of all nodes", func() bool {
		out, code = c.kmsctl(kmsctl, c.nodes, "cluster", "upgrade")
		return code == 0
	}, c.nodes...)
	if !strings.Contains(out, "was at release 1 and is at release 2 now") {
		t.Errorf("the upgrade says:\n%s", out)
	}
	for _, p := range c.nodes {
		c.until(p.name+" knows of it", func(s *pb.StatusResponse) bool { return s.GetRelease() == 2 }, p)
	}
	l.during("the cluster is upgraded")
	l.goesOn()
	// Under the domain key that the old version made.
	for _, spec := range []pb.KeySpec{pb.KeySpec_KEY_SPEC_HMAC_256, pb.KeySpec_KEY_SPEC_ECC_NIST_P256, pb.KeySpec_KEY_SPEC_RSA_2048} {
		usage := signVerify
		if spec == pb.KeySpec_KEY_SPEC_HMAC_256 {
			usage = pb.KeyUsage_KEY_USAGE_GENERATE_VERIFY_MAC
		}
		key := c.keyOfSpec(ctx, spec, usage)
		if spec == pb.KeySpec_KEY_SPEC_HMAC_256 {
			must(t, second(c.dial(userID, order[1]).GenerateMac(ctx, key, []byte("m"), hmac256)))
			continue
		}
		must(t, second(c.dial(userID, order[1]).Sign(ctx, key, []byte("m"), signingWays(spec)[0].algorithm)))
	}

	late := order[0]
	late.terminate()
	late.program = filepath.Join(old, "kmsd")
	late.edit(newLimits, oldLimits)
	c.failsToStart("the old version", late, exitConfig, "data directory", "of a later release")
	late.program = ""
	late.start()
	c.waitVoters(3)
	// Afterwards: the old version does not know what lies in the token then.
	c.residentUnderOldDomain(ctx, order[1])
	l.end(ctx, late)
}

// refusesUpgrade asks, in the middle of an upgrade, for its end.
func (c *testCluster) refusesUpgrade(ctx context.Context, kmsctl, version string, through *process, behind []*process, text string) {
	c.t.Helper()
	out, code := c.kmsctl(kmsctl, c.nodes, "cluster", "upgrade")
	for _, p := range behind {
		if !strings.Contains(out, p.name+" runs "+version) {
			code = 0
		}
	}
	if code != 1 {
		c.t.Errorf("kmsctl in the middle of the upgrade: exit code %d\n%s", code, out)
	}
	_, err := c.dial(operatorID, through).Cluster().Upgrade(ctx, &pb.UpgradeRequest{})
	refused(codes.FailedPrecondition, client.ErrRelease, text).check(c.t, "Upgrade in the middle of it", err)
	s, err := c.status(through)
	must(c.t, err)
	if s.GetRelease() != 1 {
		c.t.Errorf("in the middle of the upgrade the cluster is at release %d", s.GetRelease())
	}
}
