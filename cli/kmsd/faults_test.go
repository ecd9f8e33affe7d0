package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// smallDisk is the size of the file systems that are filled up.
const smallDisk = "size=4m"

// TestFaults breaks the disks of a cluster's nodes, one after the other.
func TestFaults(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		p.raft = ", snapshot_interval: 1s, snapshot_threshold: 24, trailing_logs: 8"
		p.extra = "log: {level: debug}"
	}
	c.nodes[0].mount("data", smallDisk)
	c.nodes[1].mount("data/audit", smallDisk)
	c.begin()
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"FarBehind", testFarBehind}, {"AuditTrailFull", testAuditTrailFull}, {"DiskFull", testDiskFull}, {"Quorum", testQuorum}, {"SameState", testSameState},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

// sealed is something that was acknowledged: a key, and a data key under it.
type sealed struct {
	key       string
	dek, blob []byte
}

// seal makes keys through some of the nodes and remembers what was acknowledged.
func (c *testCluster) seal(ctx context.Context, n int, through ...*process) (out []sealed) {
	c.t.Helper()
	admin, user := c.dial(adminID, through...), c.dial(userID, through...)
	for i := range n {
		made, err := admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Description: fmt.Sprint("sealed ", i)})
		must(c.t, err)
		s := sealed{key: made.GetKey().GetKeyId()}
		r, err := user.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{
			KeyId: s.key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, IndexToken: made.GetIndexToken(),
		})
		must(c.t, err)
		s.dek, s.blob = r.GetPlaintext(), r.GetCiphertext()
		out = append(out, s)
	}
	return out
}

// intact checks that one node serves everything that was acknowledged.
func (c *testCluster) intact(ctx context.Context, p *process, all []sealed) {
	c.t.Helper()
	index := c.latest(p)
	admin, user := c.dial(adminID, p).Keys(), c.dial(userID, p)
	for _, s := range all {
		k, err := admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: s.key, IndexToken: index})
		must(c.t, err)
		dek, err := user.DecryptDataKey(ctx, s.blob, nil)
		must(c.t, err)
		if !bytes.Equal(dek, s.dek) || k.GetKey().GetState() != pb.KeyState_KEY_STATE_ENABLED {
			c.t.Fatalf("%s: key %s is %v", p.name, s.key, k)
		}
		must(c.t, second(user.Encrypt(ctx, s.key, []byte("again"), nil)))
	}
}

// newestSnapshot is the log index of a node's newest snapshot; 0 without one.
func (p *process) newestSnapshot() (newest uint64) {
	p.c.t.Helper()
	entries, err := os.ReadDir(p.path("data/raft/snapshots"))
	must(p.c.t, err)
	for _, e := range entries { // <term>-<index>-<time>
		if parts := strings.Split(e.Name(), "-"); len(parts) == 3 && !strings.HasSuffix(e.Name(), ".tmp") {
			index, err := strconv.ParseUint(parts[1], 10, 64)
			must(p.c.t, err)
			newest = max(newest, index)
		}
	}
	return newest
}

// testFarBehind stops a node until the others have dropped the entries it lacks:
// it gets a snapshot and serves what is in it.
func testFarBehind(ctx context.Context, c *testCluster) {
	p := c.nodes[2]
	before := c.seal(ctx, 3)
	s, err := c.status(p)
	must(c.t, err)
	p.kill()
	others := c.nodes[:2]
	all := append(before, c.seal(ctx, 40, others...)...)
	must(c.t, second(c.dial(adminID, others...).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: before[0].key})))
	leader := c.leader(others[0])
	made, err := c.status(leader)
	must(c.t, err)
	for _, o := range others {
		c.eventually(o.name+" has made a snapshot", func() bool { return o.newestSnapshot() >= made.GetAppliedIndex() }, o)
	}
	p.start()
	c.waitVoters(3)
	if installed := strings.Contains(p.output(), "Installed remote snapshot"); !installed || p.newestSnapshot() <= s.GetAppliedIndex() {
		c.t.Errorf("no snapshot was installed on %s, which was at %d and has one of %d:\n%s", p.name, s.GetAppliedIndex(), p.newestSnapshot(), p.output())
	}
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, "a key disabled meanwhile", second(c.dial(userID, p).Decrypt(ctx, before[0].blob, nil)))
	c.intact(ctx, p, all[1:])
	p.kill()
	p.start()
	c.waitVoters(3)
	c.intact(ctx, p, all[1:])
}

// fill takes all the space that is left in a directory's file system.
func (p *process) fill(dir string) (free func()) {
	p.c.t.Helper()
	name := filepath.Join(p.path(dir), "filler")
	f, err := os.Create(name)
	must(p.c.t, err)
	for n := 1 << 16; n > 0; {
		if _, err = f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		p.c.t.Fatalf("filling %s: %v", dir, err)
	}
	must(p.c.t, f.Close())
	return func() { must(p.c.t, os.Remove(name)) }
}

// testAuditTrailFull takes a node the room for its audit trail: it answers nothing
// any more, and does nothing, until it has been started again with room.
func testAuditTrailFull(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	o := c.object(ctx, "alias/audited")
	free := p.fill("data/audit")
	unavailable := refused(codes.Unavailable, client.ErrAuditUnavailable, "audit record cannot be written")
	crypto := c.crypto(p)
	c.eventually(p.name+" has no room for a record", func() bool {
		err := fromStatus(second(crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})))
		if err != nil {
			unavailable.check(c.t, "Decrypt without an audit trail", err)
		}
		return err != nil
	}, p)
	keys := func(file string) pb.KeyServiceClient {
		return pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), file))))
	}
	admin := keys("alice")
	for what, call := range map[string]func() error{
		"Encrypt": func() error {
			return second(crypto.Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x")}))
		},
		"GenerateDataKey": func() error {
			return second(crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: o.key, Spec: 1}))
		},
		"GenerateRandom": func() error { return second(crypto.GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})) },
		"a wrong call":   func() error { return second(crypto.GenerateRandom(ctx, &pb.GenerateRandomRequest{})) },
		"DescribeKey":    func() error { return second(admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: o.key})) },
		"CreateKey":      func() error { return second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Description: "unrecorded"})) },
		"DisableKey":     func() error { return second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: o.key})) },
		"a denied call":  func() error { return second(keys("olga").ListKeys(ctx, &pb.ListKeysRequest{})) },
	} {
		unavailable.check(c.t, what+" without an audit trail", fromStatus(call()))
	}
	health := healthpb.NewHealthClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), "alice"))))
	c.eventually(p.name+" is unhealthy", func() bool {
		r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: "crypto"})
		must(c.t, err)
		return r.GetStatus() == healthpb.HealthCheckResponse_NOT_SERVING
	}, p)
	// A client that knows the other nodes does not notice; nothing was done unrecorded.
	must(c.t, second(c.dial(userID, p, c.nodes[2]).Decrypt(ctx, o.blob, nil)))
	all, err := c.dial(adminID, c.nodes[:3]...).Keys().ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, IndexToken: c.latest(c.nodes[2])})
	must(c.t, err)
	if slices.ContainsFunc(all.GetKeys(), func(k *pb.KeyMetadata) bool { return k.GetDescription() == "unrecorded" }) {
		c.t.Error("a key was made without a record")
	}
	p.terminate()
	free()
	p.start()
	c.waitVoters(3)
	must(c.t, fromStatus(second(c.crypto(p).Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob}))))
	c.trail(p)
}

// testDiskFull takes the leader's disk away: it ends, the others go on, and with
// room it comes back with everything that was acknowledged.
func testDiskFull(ctx context.Context, c *testCluster) {
	p, others := c.nodes[0], c.nodes[1:]
	must(c.t, second(c.dial(operatorID, others...).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{Node: p.name})))
	all := c.seal(ctx, 5)
	free := p.fill("data")
	for running := true; running; {
		select {
		case <-p.exited:
			running = false
		case <-ctx.Done():
			c.t.Fatalf("%s goes on without a disk:\n%s", p.name, p.output())
		default:
			all = append(all, c.seal(ctx, 1, others...)...)
		}
	}
	if code := p.waitExit(); code != exitStorage {
		c.t.Errorf("without room on its disk the node ended with %d", code)
	}
	for _, text := range []string{"storage failed", "no space left on device"} {
		if !strings.Contains(p.output(), text) {
			c.t.Errorf("%q is not in its log:\n%s", text, p.output())
		}
	}
	for _, o := range others {
		c.intact(ctx, o, all)
	}
	all = append(all, c.seal(ctx, 5, others...)...)
	p.start()
	if code := p.waitExit(); code != exitStorage && code != exitConfig {
		c.t.Errorf("started without room on its disk the node ended with %d:\n%s", code, p.output())
	}
	free()
	p.start()
	c.waitVoters(3)
	for _, o := range c.nodes {
		c.intact(ctx, o, all)
	}
	c.trail(p)
}

// testSameState compares the nodes' running hashes over all they have applied.
func testSameState(ctx context.Context, c *testCluster) {
	must(c.t, second(c.dial(adminID, c.nodes[:3]...).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})))
	first := c.nodes[0]
	for _, p := range c.nodes[1:3] {
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
