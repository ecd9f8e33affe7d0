package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestSingleNode walks the main path on one node, and again after a crash.
func TestSingleNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	ctx := t.Context()
	admin, user := c.dial(adminID), c.dial(userID)
	created, err := admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Description: "first"})
	must(t, err)
	key := created.GetKey().GetKeyId()
	_, err = admin.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/first", KeyId: key})
	must(t, err)

	// A dry run is one also under a request id that was answered before.
	described := &pb.UpdateKeyDescriptionRequest{KeyId: key, Description: "second", RequestId: "describe"}
	_, err = admin.Keys().UpdateKeyDescription(ctx, described)
	must(t, err)
	described.DryRun = true
	if _, err := admin.Keys().UpdateKeyDescription(ctx, described); !errors.Is(err, client.ErrDryRun) {
		t.Fatalf("a dry run of a remembered request: %v", err)
	}

	ec := map[string]string{"bucket": "photos", "object": "cat.jpg"}
	blob, err := user.Encrypt(ctx, "alias/first", []byte("hello"), ec)
	must(t, err)
	dek, sealed, err := user.GenerateDataKey(ctx, created.GetKey().GetArn(), ec)
	must(t, err)

	open := func() {
		t.Helper()
		got, err := user.Decrypt(ctx, blob, ec)
		must(t, err)
		if string(got) != "hello" {
			t.Fatalf("decrypted %q", got)
		}
		again, err := user.DecryptDataKey(ctx, sealed, ec)
		must(t, err)
		if !bytes.Equal(again, dek) {
			t.Fatal("the data key is another")
		}
	}
	open()
	c.nodes[0].kill()
	c.nodes[0].start()
	c.waitVoters(1)
	open()
	c.nodes[0].terminate()
	c.nodes[0].start()
	c.waitVoters(1)
	open()
}
