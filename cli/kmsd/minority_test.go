package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testLease is the lease in the configuration of the nodes under test.
const testLease = 3 * time.Second

var noLease = refused(codes.Unavailable, client.ErrNoLease, "holds no lease")

// crypto calls one node as the key user, once a call: the SDK would go on trying.
func (c *testCluster) crypto(p *process) pb.CryptoServiceClient {
	c.t.Helper()
	return pb.NewCryptoServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(userID)))))
}

// split tells the leader from the followers.
func (c *testCluster) split() (leader *process, followers []*process) {
	c.t.Helper()
	leader = c.leader(c.nodes[0])
	for _, p := range c.nodes {
		if p != leader {
			followers = append(followers, p)
		}
	}
	return leader, followers
}

// testMinority leaves the leader alone: it stops serving within its lease, what is
// written comes to a known end when the others are back.
func testMinority(ctx context.Context, c *testCluster) {
	c.waitVoters(3)
	leader, followers := c.split()
	o := c.object(ctx, "alias/minority")
	crypto := c.crypto(leader)
	use := func() error {
		return fromStatus(second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})))
	}
	must(c.t, use())
	admin := c.dial(adminID, leader).Keys()
	must(c.t, second(admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: o.key})))
	for _, p := range followers {
		p.pause()
		defer p.resume()
	}
	alone := time.Now()
	c.eventually("the lonely leader stops serving", func() bool {
		began := time.Now()
		err := use()
		if err == nil && began.After(alone.Add(testLease)) {
			c.t.Fatalf("a call that began %s after the followers froze was served", began.Sub(alone))
		}
		if err != nil {
			noLease.check(c.t, "Decrypt at the lonely leader", err)
		}
		return err != nil
	}, leader)
	for what, err := range map[string]error{
		"Decrypt":        second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})),
		"Encrypt":        second(crypto.Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x")})),
		"ReEncrypt":      second(crypto.ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: o.blob})),
		"GenerateRandom": second(crypto.GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})),
		"GenerateDataKey": second(crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{
			KeyId: o.key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256,
		})),
	} {
		noLease.check(c.t, what+" at the lonely leader", fromStatus(err))
	}
	c.unhealthy(ctx, leader)

	// A client that knows all nodes learns nothing better, and says what it was told.
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := c.dial(userID).Decrypt(short, o.blob, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		c.t.Errorf("Decrypt with a minority: %v", err)
	}
	write := &pb.CreateKeyRequest{Description: "written in a minority", RequestId: "minority"}
	short, cancel = context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = admin.CreateKey(short, write)
	if !errors.Is(err, client.ErrOutcomeUnknown) && !errors.Is(err, client.ErrNoLeader) && !errors.Is(err, client.ErrNoLease) {
		c.t.Errorf("CreateKey with a minority: %v", err)
	}

	keys := pb.NewKeyServiceClient(c.connect(leader.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(adminID)))))
	began, most := time.Now(), 30*time.Second
	short, cancel = context.WithTimeout(ctx, most)
	defer cancel()
	noLease.check(c.t, "CreateKey at the lonely leader", fromStatus(second(keys.CreateKey(short, &pb.CreateKeyRequest{}))))
	if took := time.Since(began); took > most/2 {
		c.t.Errorf("the lonely leader kept the caller from asking another node for %s", took)
	}

	for _, p := range followers {
		p.resume()
	}
	c.waitVoters(3)
	for _, p := range c.nodes {
		must(c.t, fromStatus(second(c.crypto(p).Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob}))))
	}
	made, err := admin.CreateKey(ctx, write)
	must(c.t, err)
	all, err := admin.ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, IndexToken: made.GetIndexToken()})
	must(c.t, err)
	n := 0
	for _, k := range all.GetKeys() {
		if k.GetDescription() == write.GetDescription() {
			n++
		}
	}
	if n != 1 {
		c.t.Errorf("the request that was repeated made %d keys", n)
	}
}

// unhealthy waits until a node's health checks say that it serves nothing.
func (c *testCluster) unhealthy(ctx context.Context, p *process) {
	c.t.Helper()
	health := healthpb.NewHealthClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(userID)))))
	for _, name := range []string{"crypto", "write"} {
		c.eventually(p.name+" is unhealthy: "+name, func() bool {
			r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: name})
			must(c.t, err)
			return r.GetStatus() == healthpb.HealthCheckResponse_NOT_SERVING
		}, p)
	}
	r, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	must(c.t, err)
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		c.t.Errorf("%s does not say that it is alive: %s", p.name, r.GetStatus())
	}
}

// testFrozen freezes a node, disables a key meanwhile, and lets the node go on with
// calls that waited for it: none of them, and none after them, is served.
func testFrozen(ctx context.Context, c *testCluster) {
	for _, role := range []string{"leader", "follower"} {
		c.waitVoters(3)
		leader, followers := c.split()
		frozen, others := leader, followers
		if role == "follower" {
			frozen, others = followers[0], []*process{leader, followers[1]}
		}
		o := c.object(ctx, "alias/frozen-"+role)
		crypto := c.crypto(frozen)
		c.eventually("the key is at "+frozen.name, func() bool {
			return second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})) == nil
		}, frozen)
		frozen.pause()
		defer frozen.resume()
		answers := make(chan error, 64)
		var waiting sync.WaitGroup
		for range cap(answers) {
			waiting.Go(func() { answers <- second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})) })
		}
		began := time.Now()
		_, err := c.dial(adminID, others...).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: o.key})
		must(c.t, err)
		c.t.Logf("DisableKey with a frozen %s took %s", role, time.Since(began).Round(time.Millisecond))
		frozen.resume()
		waiting.Wait()
		close(answers)
		check := func(err error) (informed bool) {
			e := fromStatus(err)
			switch {
			case err == nil:
				c.t.Fatalf("the %s that was frozen used a key that was disabled meanwhile", role)
			case errors.Is(e, client.ErrKeyDisabled):
				return true
			default:
				noLease.check(c.t, "at the "+role+" that was frozen", e)
			}
			return false
		}
		for err := range answers {
			check(err)
		}
		c.eventually("the "+role+" that was frozen knows that the key is disabled", func() bool {
			return check(second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})))
		}, frozen)
	}
	c.waitVoters(3)
}
