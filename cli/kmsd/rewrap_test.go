package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// manyKeys are more than one batch, so that a leader can die in between.
const manyKeys = 150

// TestRewrap moves everything from one generation of the domain key to the next while
// clients use the cluster and nodes die. No call fails, and the old generation is
// destroyed at the end.
func TestRewrap(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	before := c.seal(ctx, 3)
	kinds := c.everyKind(ctx)
	resident, material := c.residentKey(ctx), randomBytes(32)
	c.level(ctx)
	sealedInside := c.usesResident(ctx, resident, c.nodes...)
	imported := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_SYMMETRIC)
	must(t, second(c.bring(ctx, imported, material, nil, c.nodes[0], c.nodes[1])))
	c.level(ctx)
	sealedImported, err := c.dial(userID).Encrypt(ctx, imported, []byte(proven), nil)
	must(t, err)
	for range manyKeys {
		c.createKey(ctx)
	}
	number := c.rotateDomain(ctx, c.nodes[0])
	c.trustWaiting("the generation is active", c.nodes[0], anyNode, isActive(number))
	c.rewrapRefused(ctx, number)

	l := c.startLoad(c.nodes...)
	leader, followers := c.split()
	mover := followers[0]
	op := c.dial(operatorID, mover).Cluster()
	r, err := op.StartRewrap(ctx, &pb.StartRewrapRequest{Generation: 1, RequestId: "start"})
	must(t, err)
	if r.GetRewrap().GetRaftId() != c.member(mover, mover.name).GetRaftId() || r.GetRewrap().GetRemaining() < manyKeys {
		t.Errorf("started as %v", r.GetRewrap())
	}
	must(t, second(c.dial(operatorID, leader).Cluster().StartRewrap(ctx, &pb.StartRewrapRequest{Generation: 1, Node: mover.name, RequestId: "start again"})))
	_, err = c.dial(operatorID, leader).Cluster().StartRewrap(ctx, &pb.StartRewrapRequest{Generation: 1, Node: leader.name})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "stop that first").check(t, "a second node", err)
	left := func() uint64 { return c.generation(mover, 1).GetKeyVersions() }
	whole := left()

	// Nothing moves before the Security Officer has agreed; a restart changes nothing.
	mover.kill()
	mover.start()
	c.eventually("the node asks its Security Officer", func() bool {
		r, err := c.describeDomain(mover)
		return err == nil && slices.ContainsFunc(r.GetNodes(), func(n *pb.DomainNode) bool {
			return n.GetName() == mover.name && n.GetWaitsForGeneration() == 1 && slices.Equal(n.GetDonors(), []string{mover.name})
		})
	}, mover)
	if left() < whole {
		t.Error("key versions were moved without the Security Officer")
	}
	ctl := c.buildKmsctl()
	if out := ctl.must([]*process{mover}, "domain", "status"); !strings.Contains(out, "its own Security Officer") {
		t.Errorf("domain status says: %s", out)
	}
	l.during("the first are moved")
	c.trustWaiting("some are moved", mover, anyNode, func(r *pb.DescribeDomainResponse) bool { return r.GetGenerations()[0].GetKeyVersions() < whole })
	l.during("the leader is killed")
	leader.kill()
	l.goesOn()
	leader.start()
	l.during("the rest is moved")
	c.eventually("all are moved", func() bool {
		r, err := c.describeDomain(mover)
		return err == nil && r.GetGenerations()[0].GetKeyVersions() == 0 && r.GetRewrap() == nil
	}, c.nodes...)
	l.end(ctx, mover)

	must(t, second(op.RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 1})))
	c.eventually("the old generation is destroyed everywhere", func() bool {
		r, err := c.describeDomain(mover)
		return err == nil && !slices.ContainsFunc(r.GetNodes(), func(n *pb.DomainNode) bool { return slices.Contains(n.GetHolds(), 1) || n.GetProblem() != "" })
	}, c.nodes...)
	for _, p := range c.nodes {
		c.intact(ctx, p, before)
		c.useKinds(ctx, p, kinds)
		c.opensResident(ctx, sealedInside, p)
		must(t, second(c.dial(userID, p).Decrypt(ctx, sealedImported, nil)))
	}
	c.usesResident(ctx, resident, c.nodes...)
	must(t, second(c.dial(adminID).Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: imported, Version: 1})))
	must(t, second(c.bring(ctx, imported, material, nil, c.nodes[2], c.nodes[0]))) // the same bytes, by their check value
	c.twinIsGone(ctx, mover)
	trail, err := os.ReadFile(mover.trailFile())
	must(t, err)
	for _, act := range []string{"StartRewrap", "RewrapKeyVersion", "EndRewrap"} {
		if !bytes.Contains(trail, []byte(`"eventName":"`+act+`"`)) {
			t.Errorf("%s is not recorded", act)
		}
	}
}

// twinIsGone looks into a node's token for what a ceremony may have left.
func (c *testCluster) twinIsGone(ctx context.Context, p *process) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "all.qkb")
	var b bytes.Buffer
	must(c.t, c.dial(operatorID, p).CreateBackup(ctx, &b))
	must(c.t, os.WriteFile(file, b.Bytes(), 0o600))
	if twins := c.opensBackup(ctx, p, file)[twinsOf]; twins != "[]" {
		c.t.Errorf("%s has twins of generations %s", p.name, twins)
	}
}

func (c *testCluster) rewrapRefused(ctx context.Context, number uint32) {
	c.t.Helper()
	op := c.dial(operatorID).Cluster()
	for what, row := range map[string]struct {
		r    *pb.StartRewrapRequest
		want refusal
	}{
		"the active one":    {&pb.StartRewrapRequest{Generation: number}, *refused(codes.FailedPrecondition, client.ErrGenerationRefused, "is ACTIVE")},
		"none":              {&pb.StartRewrapRequest{Generation: 77}, *refused(codes.NotFound, client.ErrNotFound, "generation 77")},
		"a node that isn't": {&pb.StartRewrapRequest{Generation: 1, Node: "kms-9"}, *refused(codes.NotFound, client.ErrNotFound, "kms-9")},
	} {
		_, err := op.StartRewrap(ctx, row.r)
		row.want.check(c.t, what, err)
	}
	_, err := op.StopRewrap(ctx, &pb.StopRewrapRequest{Generation: 1})
	refused(codes.NotFound, client.ErrNotFound, "no key versions are being moved").check(c.t, "stopping nothing", err)
	_, err = c.dial(adminID).Cluster().StartRewrap(ctx, &pb.StartRewrapRequest{Generation: 1})
	refused(codes.PermissionDenied, client.ErrDenied, "").check(c.t, "a key administrator", err)
	_, err = op.StartRewrap(ctx, &pb.StartRewrapRequest{Generation: 1, DryRun: true})
	refused(codes.FailedPrecondition, client.ErrDryRun, "").check(c.t, "a dry run", err)
}

// kindOfKey is a key that is not symmetric, and what it made before.
type kindOfKey struct {
	id   string
	spec pb.KeySpec
	mac  []byte
	blob []byte // an RSA ciphertext
}

// everyKind makes a key of each kind of domain key's class but AES.
func (c *testCluster) everyKind(ctx context.Context) (all []kindOfKey) {
	c.t.Helper()
	for _, k := range []struct {
		spec  pb.KeySpec
		usage pb.KeyUsage
	}{
		{pb.KeySpec_KEY_SPEC_HMAC_256, pb.KeyUsage_KEY_USAGE_GENERATE_VERIFY_MAC},
		{pb.KeySpec_KEY_SPEC_RSA_2048, pb.KeyUsage_KEY_USAGE_ENCRYPT_DECRYPT},
		{pb.KeySpec_KEY_SPEC_ECC_NIST_P256, pb.KeyUsage_KEY_USAGE_SIGN_VERIFY},
	} {
		r, err := c.dial(adminID).Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: k.spec, Usage: k.usage})
		must(c.t, err)
		x := kindOfKey{id: r.GetKey().GetKeyId(), spec: k.spec}
		user := c.dial(userID).Crypto()
		switch k.spec {
		case pb.KeySpec_KEY_SPEC_HMAC_256:
			m, err := user.GenerateMac(ctx, &pb.GenerateMacRequest{KeyId: x.id, Message: []byte(proven), MacAlgorithm: hmac256, IndexToken: r.GetIndexToken()})
			must(c.t, err)
			x.mac = m.GetMac()
		case pb.KeySpec_KEY_SPEC_RSA_2048:
			e, err := user.Encrypt(ctx, &pb.EncryptRequest{KeyId: x.id, Plaintext: []byte(proven), EncryptionAlgorithm: pb.EncryptionAlgorithm_ENCRYPTION_ALGORITHM_RSAES_OAEP_SHA_1, IndexToken: r.GetIndexToken()})
			must(c.t, err)
			x.blob = e.GetCiphertext()
		default:
		}
		all = append(all, x)
	}
	return all
}

// useKinds proves that the keys are the same as before.
func (c *testCluster) useKinds(ctx context.Context, p *process, all []kindOfKey) {
	c.t.Helper()
	user := c.dial(userID, p).Crypto()
	for _, x := range all {
		switch {
		case x.mac != nil:
			must(c.t, second(user.VerifyMac(ctx, &pb.VerifyMacRequest{KeyId: x.id, Message: []byte(proven), MacAlgorithm: hmac256, Mac: x.mac})))
		case x.blob != nil:
			d, err := user.Decrypt(ctx, &pb.DecryptRequest{KeyId: x.id, Ciphertext: x.blob, EncryptionAlgorithm: pb.EncryptionAlgorithm_ENCRYPTION_ALGORITHM_RSAES_OAEP_SHA_1})
			must(c.t, err)
			if string(d.GetPlaintext()) != proven {
				c.t.Errorf("the RSA key opens %q", d.GetPlaintext())
			}
		default:
			s, err := user.Sign(ctx, &pb.SignRequest{KeyId: x.id, Message: []byte(proven), SigningAlgorithm: pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_256})
			must(c.t, err)
			must(c.t, second(user.Verify(ctx, &pb.VerifyRequest{KeyId: x.id, Message: []byte(proven), SigningAlgorithm: pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_256, Signature: s.GetSignature()})))
		}
	}
}
