package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testBatches makes data keys on one node and opens them on another, a batch at a time, and looks for each
// item in the trail.
func testBatches(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	user, other := c.dial(userID, p), c.dial(userID, c.nodes[2])
	key := c.createKey(ctx, p)
	ec := map[string]string{"object": "cat.jpg"}

	var keys []client.DataKey
	records := c.recordedBatch(p, "GenerateDataKey", func() {
		var err error
		keys, err = user.BatchGenerateDataKey(ctx, key, 256, ec)
		must(c.t, err)
	})
	distinct := map[string]bool{}
	blobs := make([]client.Ciphertext, len(keys))
	for i, k := range keys {
		blobs[i] = client.Ciphertext{Blob: k.Ciphertext, Context: ec}
		distinct[string(k.Plaintext)], distinct[string(k.Ciphertext)] = true, true
		if len(k.Plaintext) != 32 || !strings.HasSuffix(k.KeyID, ":key/"+key) {
			c.t.Fatalf("data key %d: %d bytes under %s", i, len(k.Plaintext), k.KeyID)
		}
		if r := records[i]; r.CiphertextSHA256 != hexSum(k.Ciphertext) || r.KeyID != key || r.KeyVersion != 1 || r.Context["object"] != "cat.jpg" || r.Result != audit.Success || r.DecidedBy == "" {
			c.t.Fatalf("data key %d is recorded as %+v", i, r)
		}
	}
	if len(keys) != 256 || len(records) != 256 || len(distinct) != 512 {
		c.t.Fatalf("%d data keys, %d records, %d values", len(keys), len(records), len(distinct))
	}

	must(c.t, second(other.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x"), IndexToken: c.latest(p)}))) // it knows the key
	var opened []client.Opened
	records = c.recordedBatch(c.nodes[2], "Decrypt", func() {
		var err error
		opened, err = other.BatchDecrypt(ctx, blobs)
		must(c.t, err)
	})
	for i, x := range opened {
		must(c.t, x.Err)
		if !bytes.Equal(x.Plaintext, keys[i].Plaintext) || records[i].CiphertextSHA256 != hexSum(keys[i].Ciphertext) {
			c.t.Fatalf("item %d: opened to %x, recorded as %+v", i, x.Plaintext, records[i])
		}
	}
	more, err := user.BatchGenerateDataKey(ctx, key, 300, nil)
	must(c.t, err)
	if len(more) != 300 {
		c.t.Errorf("%d data keys, want 300", len(more))
	}
	testBatchItems(ctx, c, p, key, blobs)
	testBatchSizes(ctx, c, p, key)
	c.checkChain(p)
}

// recordedBatch makes a call and returns the records that it left: all of one name and one request id.
func (c *testCluster) recordedBatch(p *process, name string, call func()) []audit.Event {
	c.t.Helper()
	before, err := os.Stat(p.trailFile())
	must(c.t, err)
	call()
	all := slices.DeleteFunc(c.records(p, before.Size()), func(e audit.Event) bool { return e.Class == "node" })
	for _, e := range all {
		if e.Name != name || e.RequestID == "" || e.RequestID != all[0].RequestID || e.Source == "" || e.StateIndex == 0 {
			c.t.Fatalf("a batch left %+v and %+v", all[0], e)
		}
	}
	return all
}

// testBatchItems: what is wrong with an item is its own matter, and told as by the single call.
func testBatchItems(ctx context.Context, c *testCluster, p *process, key string, blobs []client.Ciphertext) {
	user, admin := c.dial(userID, p), c.dial(adminID, p)
	off := c.createKey(ctx, p)
	disabled, err := user.Encrypt(ctx, off, []byte("x"), nil)
	must(c.t, err)
	must(c.t, second(admin.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: off})))
	corrupt := bytes.Clone(blobs[0].Blob)
	corrupt[60] ^= 1
	items := []client.Ciphertext{
		blobs[0],
		{Blob: corrupt, Context: blobs[0].Context},
		{Blob: blobs[0].Blob},
		{Blob: []byte("none")},
		{Blob: disabled},
		{},
		{Blob: blobs[1].Blob, Context: map[string]string{"kms:": "reserved"}},
		blobs[1],
	}
	out, err := user.BatchDecrypt(ctx, items)
	must(c.t, err)
	for i, x := range items {
		_, single := user.Decrypt(ctx, x.Blob, x.Context)
		got, is := (*client.Error)(nil), (*client.Error)(nil)
		if !errors.As(single, &is) {
			if out[i].Err != nil {
				c.t.Errorf("item %d: %v", i, out[i].Err)
			}
			continue
		}
		if !errors.As(out[i].Err, &got) || got.Code != is.Code || got.Reason != is.Reason || got.Message != is.Message || got.Address == "" || out[i].Plaintext != nil {
			c.t.Errorf("item %d: %v, the single call: %v", i, out[i].Err, single)
		}
	}
	if !errors.Is(out[4].Err, client.ErrKeyDisabled) || !errors.Is(out[1].Err, client.ErrInvalidCiphertext) {
		c.t.Errorf("%v and %v", out[4].Err, out[1].Err)
	}
	none, err := user.BatchGenerateDataKey(ctx, off, 3, nil)
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, "data keys of a disabled key", err)
	if len(none) != 0 {
		c.t.Errorf("%d data keys of a disabled key", len(none))
	}
	_, err = admin.BatchDecrypt(ctx, blobs[:2])
	refused(codes.PermissionDenied, client.ErrDenied, "admin").check(c.t, "a batch of an administrator", err)

	crypto := user.Crypto()
	dry, err := crypto.BatchGenerateDataKey(ctx, &pb.BatchGenerateDataKeyRequest{DryRun: true, Items: []*pb.DataKeyItem{
		{KeyId: key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_128}, {KeyId: off, NumberOfBytes: 8}, {KeyId: key}, {KeyId: key, NumberOfBytes: 8, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256},
	}})
	must(c.t, err)
	for i, want := range []pb.Reason{pb.Reason_REASON_DRY_RUN, pb.Reason_REASON_KEY_DISABLED, pb.Reason_REASON_INVALID, pb.Reason_REASON_INVALID} {
		if got := dry.GetResults()[i].GetError(); got.GetReason() != want {
			c.t.Errorf("dry run, item %d: %v, want %s", i, got, want)
		}
	}
	mixed, err := crypto.BatchGenerateDataKey(ctx, &pb.BatchGenerateDataKeyRequest{Items: []*pb.DataKeyItem{
		{KeyId: key, NumberOfBytes: 16, WithoutPlaintext: true, Count: 2}, {KeyId: key, NumberOfBytes: 24},
	}})
	must(c.t, err)
	for i, want := range []int{0, 0, 24} {
		if k := mixed.GetResults()[i].GetDataKey(); len(k.GetPlaintext()) != want || len(k.GetCiphertext()) == 0 || k.GetKeyVersion() != 1 || mixed.GetIndexToken() == nil {
			c.t.Errorf("item %d: %v", i, k)
		}
	}
}

// testBatchSizes: what a batch may be, and not more.
func testBatchSizes(ctx context.Context, c *testCluster, p *process, key string) {
	user := c.dial(userID, p)
	crypto := user.Crypto()
	count := refused(codes.InvalidArgument, client.ErrInvalid, "1 to 256 items")
	_, err := crypto.BatchDecrypt(ctx, &pb.BatchDecryptRequest{})
	count.check(c.t, "no items", err)
	_, err = crypto.BatchEncrypt(ctx, &pb.BatchEncryptRequest{Items: slices.Repeat([]*pb.EncryptItem{{KeyId: key, Plaintext: []byte("x")}}, 257)})
	count.check(c.t, "more than 256 items", err)
	_, err = crypto.BatchGenerateDataKey(ctx, &pb.BatchGenerateDataKeyRequest{Items: []*pb.DataKeyItem{{KeyId: key, NumberOfBytes: 8, Count: 1 << 31}, {KeyId: key, NumberOfBytes: 8, Count: 1 << 31}}})
	count.check(c.t, "billions of data keys", err)

	large := &pb.EncryptItem{KeyId: key, Plaintext: bytes.Repeat([]byte("x"), 4096)}
	sealed, err := crypto.BatchEncrypt(ctx, &pb.BatchEncryptRequest{Items: slices.Repeat([]*pb.EncryptItem{large}, 252)})
	must(c.t, err)
	all := make([]client.Ciphertext, 256)
	for i := range all {
		all[i].Blob = sealed.GetResults()[i%252].GetEncrypted().GetCiphertext()
	}
	opened, err := user.BatchDecrypt(ctx, all) // more than one message
	must(c.t, err)
	for i, x := range opened {
		if x.Err != nil || !bytes.Equal(x.Plaintext, large.GetPlaintext()) {
			c.t.Fatalf("item %d: %v", i, x.Err)
		}
	}
	_, err = crypto.BatchEncrypt(ctx, &pb.BatchEncryptRequest{Items: slices.Repeat([]*pb.EncryptItem{large}, 256)})
	refused(codes.ResourceExhausted, nil, "larger than max").check(c.t, "more than 1 MiB", err)
}

// checkChain reads a trail and compares each record with the hash that the next one has of it.
func (c *testCluster) checkChain(p *process) {
	c.t.Helper()
	all := c.trail(p)
	text, err := os.ReadFile(p.trailFile())
	must(c.t, err)
	previous := ""
	for i, line := range bytes.Split(text, []byte{'\n'})[:len(all)] {
		if all[i].Previous != previous {
			c.t.Fatalf("record %d says that the one before has the hash %q, it is %q", i+1, all[i].Previous, previous)
		}
		previous = trail.RecordHash(line).String()
	}
}
