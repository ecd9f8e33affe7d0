package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const inTheHSM = pb.ProtectionLevel_PROTECTION_LEVEL_HSM_RESIDENT

// residentKey makes a key that encrypts in the HSM.
func (c *testCluster) residentKey(ctx context.Context, through ...*process) (key string) {
	c.t.Helper()
	r, err := c.dial(adminID, through...).Keys().CreateKey(ctx, &pb.CreateKeyRequest{ProtectionLevel: inTheHSM})
	must(c.t, err)
	if r.GetKey().GetProtectionLevel() != inTheHSM {
		c.t.Errorf("made %v", r.GetKey())
	}
	return r.GetKey().GetKeyId()
}

// residentUnderOldDomain makes a resident key in a cluster whose domain key the version before
// has made: not before there is another one.
func (c *testCluster) residentUnderOldDomain(ctx context.Context, p *process) {
	c.t.Helper()
	_, err := c.dial(adminID, p).Keys().CreateKey(ctx, &pb.CreateKeyRequest{ProtectionLevel: inTheHSM})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "rotate the domain key first").check(c.t, "a resident key under the old domain key", err)
	number := c.rotateDomain(ctx, p)
	c.trustWaiting("the next generation is active", p, anyNode, isActive(number))
	c.usesResident(ctx, c.residentKey(ctx, p), c.nodes...)
}

// usesResident makes every call of symmetric keys, sealing at each node and opening at the next.
func (c *testCluster) usesResident(ctx context.Context, key string, nodes ...*process) (sealed [][]byte) {
	c.t.Helper()
	with := map[string]string{"object": "1"}
	for i, p := range nodes {
		user, next := c.dial(userID, p), c.dial(userID, nodes[(i+1)%len(nodes)])
		plaintext := bytes.Repeat([]byte{byte(i)}, 1+4095*(i%2))
		blob, err := user.Encrypt(ctx, key, plaintext, with)
		must(c.t, err)
		if blob[4] != 2 {
			c.t.Errorf("a blob of suite %d", blob[4])
		}
		got, err := next.Decrypt(ctx, blob, with)
		must(c.t, err)
		if !bytes.Equal(got, plaintext) {
			c.t.Errorf("%s opens something else than %s has sealed", nodes[(i+1)%len(nodes)].name, p.name)
		}
		d, err := user.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, NumberOfBytes: 32, EncryptionContext: []*pb.ContextPair{{Key: "object", Value: "1"}}})
		must(c.t, err)
		got, err = next.Decrypt(ctx, d.GetCiphertext(), with)
		must(c.t, err)
		if !bytes.Equal(got, d.GetPlaintext()) {
			c.t.Error("a data key opens as another")
		}
		sealed = append(sealed, blob)
	}
	return sealed
}

func (c *testCluster) opensResident(ctx context.Context, sealed [][]byte, nodes ...*process) {
	c.t.Helper()
	for _, p := range nodes {
		for _, blob := range sealed {
			must(c.t, second(c.dial(userID, p).Decrypt(ctx, blob, map[string]string{"object": "1"})))
		}
	}
}

// reserves waits until whichever node is asked knows what has been reserved, by version.
func (c *testCluster) reserves(ctx context.Context, what, key string, want ...uint64) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s: %d messages are reserved", what, want), func() bool { return slices.Equal(c.reservedMessages(ctx, key), want) }, c.nodes...)
}

// reservedMessages are those of each version of a key.
func (c *testCluster) reservedMessages(ctx context.Context, key string) (counts []uint64) {
	c.t.Helper()
	r, err := c.dial(adminID).Keys().ListKeyVersions(ctx, &pb.ListKeyVersionsRequest{KeyId: key})
	must(c.t, err)
	for _, v := range r.GetVersions() {
		counts = append(counts, v.GetReservedMessages())
	}
	return counts
}

// TestResident takes a key that encrypts in the HSM through what may happen to a cluster.
func TestResident(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	key := c.residentKey(ctx, c.nodes[1])
	sealed := c.usesResident(ctx, key, c.nodes...)
	c.reserves(ctx, "three nodes", key, 3*1024)
	c.refuseResident(ctx, key)
	c.tamperResident(ctx, sealed[0])

	// A grant, and a rotation.
	_, err := c.dial(adminID).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: key, GranteePrincipal: "spiffe://" + testDomain + userID, Operations: []string{"Decrypt"},
	})
	must(t, err)
	must(t, second(c.dial(adminID).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
	c.opensResident(ctx, sealed, c.nodes...)
	sealed = append(sealed, c.usesResident(ctx, key, c.nodes...)...)
	c.reserves(ctx, "of two versions", key, 3*1024, 3*1024)

	// The leader dies: those that have a reservation encrypt on.
	leader := c.leader(c.nodes[0])
	var others []*process
	for _, p := range c.nodes {
		if p != leader {
			others = append(others, p)
		}
	}
	leader.kill()
	c.opensResident(ctx, sealed, others...)
	sealed = append(sealed, c.usesResident(ctx, key, others...)...)
	fresh := c.residentKey(ctx, others...)
	c.usesResident(ctx, fresh, others...)
	leader.start()
	c.until(leader.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, leader)

	// All restart: what was reserved and not used is lost, and counts.
	for _, p := range c.nodes {
		p.terminate()
	}
	for _, p := range c.nodes {
		p.start()
	}
	for _, p := range c.nodes {
		c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	c.opensResident(ctx, sealed, c.nodes...)
	sealed = append(sealed, c.usesResident(ctx, key, c.nodes...)...)
	c.reserves(ctx, "after a restart of all nodes", key, 3*1024, 6*1024)

	// Another domain key: versions of before open, the next is wrapped under it.
	number := c.rotateDomain(ctx, c.nodes[0])
	c.trustWaiting("the next generation is active", c.nodes[0], anyNode, isActive(number))
	c.opensResident(ctx, sealed, c.nodes...)
	must(t, second(c.dial(adminID).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
	c.opensResident(ctx, append(sealed, c.usesResident(ctx, key, c.nodes...)...), c.nodes...)

	must(t, second(c.dial(adminID).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})))
	for _, p := range c.nodes {
		_, err := c.dial(userID, p).Encrypt(ctx, key, []byte("x"), nil)
		refused(codes.FailedPrecondition, client.ErrKeyDisabled, key).check(t, "a disabled key at "+p.name, err)
	}
}

func (c *testCluster) refuseResident(ctx context.Context, key string) {
	c.t.Helper()
	keys := c.dial(adminID).Keys()
	_, err := keys.CreateKey(ctx, &pb.CreateKeyRequest{ProtectionLevel: inTheHSM, Spec: pb.KeySpec_KEY_SPEC_ECC_NIST_P256})
	refused(codes.FailedPrecondition, client.ErrUnsupported, "ECC_NIST_P256 work in the HSM in any case").check(c.t, "a pair", err)
	_, err = keys.CreateKey(ctx, &pb.CreateKeyRequest{ProtectionLevel: 9})
	refused(codes.InvalidArgument, client.ErrInvalid, `protection level "9"`).check(c.t, "an unknown level", err)
	_, err = c.dial(userID).Encrypt(ctx, key, make([]byte, 4097), nil)
	refused(codes.InvalidArgument, client.ErrInvalid, "1 to 4096").check(c.t, "a long plaintext", err)
}

// tamperResident sends blobs that were altered, many at a time: each gets the same answer, no
// node takes its HSM for ill, and the blob itself opens all the while.
func (c *testCluster) tamperResident(ctx context.Context, blob []byte) {
	c.t.Helper()
	with := map[string]string{"object": "1"}
	err := concurrently(8, 600, func(i int) error {
		user := c.dial(userID, c.nodes[i%len(c.nodes)])
		x := bytes.Clone(blob)
		x[26+i%12] ^= byte(1 + i/12) // of the IV
		if i%2 == 1 {
			x = bytes.Clone(blob)
			x[50+i%(len(blob)-50)] ^= byte(1 + i%255)
		}
		_, err := user.Decrypt(ctx, x, with)
		refused(codes.InvalidArgument, client.ErrInvalidCiphertext, "altered").check(c.t, fmt.Sprintf("altered blob %d", i), err)
		if i%50 == 0 {
			return second(user.Decrypt(ctx, blob, with))
		}
		return nil
	})
	must(c.t, err)
	for _, p := range c.nodes {
		c.until(p.name+" serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
}
