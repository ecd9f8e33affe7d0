package main

import (
	"context"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testQuorum asks for a tick with each call: what such a call reads is as new as what
// anyone wrote before, and it believes no lease.
func testQuorum(ctx context.Context, c *testCluster) {
	c.waitVoters(3)
	leader, followers := c.split()
	o := c.object(ctx, "alias/quorum")
	admin := c.dial(adminID, leader).Keys()
	read := pb.NewKeyServiceClient(c.connect(followers[0].client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(auditorID)))))
	quorum := metadata.AppendToOutgoingContext(ctx, "quorumkms-consistency", string(client.ConsistencyQuorum))
	for i := range 30 {
		want := fmt.Sprintf("written %d", i)
		must(c.t, second(admin.UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: o.key, Description: want})))
		got, err := read.DescribeKey(quorum, &pb.DescribeKeyRequest{KeyId: o.key})
		must(c.t, err)
		if got.GetKey().GetDescription() != want {
			c.t.Fatalf("a quorum read of a follower says %q, written was %q", got.GetKey().GetDescription(), want)
		}
	}
	sdk := c.connectSDK(userID, followers[:1], func(config *client.Config) { config.Consistency = client.ConsistencyQuorum })
	must(c.t, second(sdk.Decrypt(ctx, o.blob, nil)))

	wrong := metadata.AppendToOutgoingContext(ctx, "quorumkms-consistency", "eventual")
	refused(codes.InvalidArgument, client.ErrInvalid, `consistency "eventual"`, "lease or quorum").
		check(c.t, "an unknown consistency", fromStatus(second(read.DescribeKey(wrong, &pb.DescribeKeyRequest{KeyId: o.key}))))

	crypto := c.crypto(followers[0])
	leader.pause()
	followers[1].pause()
	noLease.check(c.t, "a quorum call in a minority", fromStatus(second(crypto.Decrypt(quorum, &pb.DecryptRequest{Ciphertext: o.blob}))))
	leader.resume()
	followers[1].resume()
	c.waitVoters(3)
}
