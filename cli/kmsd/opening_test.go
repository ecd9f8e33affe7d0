package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestOpening breaks the HSM tokens of two nodes of three, one after the other: with one,
// new keys are made as before; with two, none is, and what there is goes on.
func TestOpening(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx := t.Context()
	whole := c.nodes[0]
	o := c.object(ctx, "alias/opening")
	keys := pb.NewKeyServiceClient(c.connect(whole.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(adminID)))))
	calls := map[string]func() error{
		"CreateKey":         func() error { return second(keys.CreateKey(ctx, &pb.CreateKeyRequest{})) },
		"RotateKeyOnDemand": func() error { return second(keys.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: o.key})) },
	}
	for _, p := range c.nodes[1:] {
		for what, call := range calls {
			c.eventually(what+" at the node with a whole token", func() bool { // the other may lead, and hand over
				err := fromStatus(call())
				if err != nil && !errors.Is(err, client.ErrNoLeader) {
					t.Fatalf("%s: %v", what, err)
				}
				return err == nil
			}, whole)
		}
		p.destroyToken()
		c.until(p.name+" has noticed", func(s *pb.StatusResponse) bool { return !s.GetHsm().GetHealthy() }, p)
	}
	before := c.dump(whole)
	for what, call := range calls {
		refused(codes.Unavailable, client.ErrKeyNotOpened, "1 of 2 needed", "kms-2", "kms-3", "hsm unavailable").check(t, what, fromStatus(call()))
	}
	if d := different(before, c.dump(whole)); d != "" {
		t.Errorf("what was refused left something behind: %s", d)
	}
	must(t, fromStatus(second(c.crypto(whole).Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob}))))
}

// destroyToken destroys all that a node's token holds, while the node runs.
func (p *process) destroyToken() {
	p.c.t.Helper()
	files, err := filepath.Glob(p.path("tokens/*/*"))
	must(p.c.t, err)
	for _, f := range files {
		must(p.c.t, os.Remove(f))
	}
}
