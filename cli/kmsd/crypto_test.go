package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testCryptography seals on every node and opens on every other, before and after
// a rotation, with keys named in every way.
func testCryptography(ctx context.Context, c *testCluster) {
	admin := c.dial(adminID).Keys()
	made, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)
	id, arn := made.GetKey().GetKeyId(), made.GetKey().GetArn()
	alias, err := admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/crypto", KeyId: arn})
	must(c.t, err)
	names := []string{id, arn, "alias/crypto", fmt.Sprintf("arn:quorumkms:kms:%s:default:alias/crypto", c.clusterID())}
	ec := map[string]string{"object": "cat.jpg", "bucket": "photos"}
	token := alias.GetIndexToken()
	sealed := map[string][]byte{} // plaintext -> blob
	for version := uint32(1); version <= 2; version++ {
		for _, p := range c.nodes {
			crypto := c.dial(userID, p).Crypto()
			for _, name := range names {
				plaintext := fmt.Sprintf("%s by %s, version %d", p.name, name, version)
				r, err := crypto.Encrypt(ctx, &pb.EncryptRequest{
					KeyId: name, Plaintext: []byte(plaintext), EncryptionContext: client.ContextPairs(ec), IndexToken: token,
				})
				must(c.t, err)
				if r.GetKeyId() != arn || r.GetKeyVersion() != version || len(r.GetCiphertext()) != len(plaintext)+98 {
					c.t.Fatalf("encrypting under %s through %s: %v", name, p.name, r)
				}
				sealed[plaintext] = r.GetCiphertext()
			}
			for plaintext, blob := range sealed {
				for _, name := range append(names, "") {
					r, err := crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob, KeyId: name, EncryptionContext: client.ContextPairs(ec), IndexToken: token})
					must(c.t, err)
					if string(r.GetPlaintext()) != plaintext || r.GetKeyId() != arn {
						c.t.Fatalf("decrypting through %s: %v", p.name, r)
					}
				}
			}
		}
		rotated, err := admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: "alias/crypto"})
		must(c.t, err)
		token = rotated.GetIndexToken()
	}
	for i, p := range c.nodes {
		testReEncrypt(ctx, c, p, c.nodes[(i+1)%len(c.nodes)])
		testDataKeys(ctx, c, p, id)
	}
}

// testReEncrypt moves ciphertexts through one node and opens them through another.
func testReEncrypt(ctx context.Context, c *testCluster, through, other *process) {
	admin, user := c.dial(adminID, through).Keys(), c.dial(userID, through)
	key, destination := c.createKey(ctx, through), c.createKey(ctx, through)
	ec, next := map[string]string{"a": "1"}, map[string]string{"a": "2"}
	blob, err := user.Encrypt(ctx, key, []byte("moving"), ec)
	must(c.t, err)
	move := func(r *pb.ReEncryptRequest) *pb.ReEncryptResponse {
		c.t.Helper()
		r.SourceEncryptionContext = client.ContextPairs(ec)
		out, err := user.Crypto().ReEncrypt(ctx, r)
		must(c.t, err)
		return out
	}
	opens := func(b []byte, in map[string]string) {
		c.t.Helper()
		r, err := c.dial(userID, other).Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: b, EncryptionContext: client.ContextPairs(in), IndexToken: c.latest(c.nodes[0])})
		must(c.t, err)
		if string(r.GetPlaintext()) != "moving" {
			c.t.Fatalf("opened %q", r.GetPlaintext())
		}
	}
	same := move(&pb.ReEncryptRequest{Ciphertext: blob, SameContext: true})
	listed := move(&pb.ReEncryptRequest{Ciphertext: blob, DestinationEncryptionContext: client.ContextPairs(ec), DestinationKeyId: key, SourceKeyId: key})
	for _, r := range []*pb.ReEncryptResponse{same, listed} {
		if !r.GetUnchanged() || !bytes.Equal(r.GetCiphertext(), blob) || r.GetKeyVersion() != 1 || r.GetSourceKeyVersion() != 1 {
			c.t.Fatalf("to the same key, version and context: %v", r)
		}
	}
	must(c.t, second(admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
	newer := move(&pb.ReEncryptRequest{Ciphertext: blob, SameContext: true})
	if newer.GetUnchanged() || newer.GetKeyVersion() != 2 || newer.GetSourceKeyVersion() != 1 || bytes.Equal(newer.GetCiphertext(), blob) {
		c.t.Fatalf("to the new version: %v", newer)
	}
	opens(newer.GetCiphertext(), ec)
	if again := move(&pb.ReEncryptRequest{Ciphertext: newer.GetCiphertext(), SameContext: true}); !again.GetUnchanged() {
		c.t.Fatalf("a second time: %v", again)
	}
	moved := move(&pb.ReEncryptRequest{Ciphertext: blob, DestinationKeyId: destination, SameContext: true})
	if moved.GetUnchanged() || moved.GetKeyId() == moved.GetSourceKeyId() {
		c.t.Fatalf("to another key: %v", moved)
	}
	opens(moved.GetCiphertext(), ec)
	bound := move(&pb.ReEncryptRequest{Ciphertext: newer.GetCiphertext(), DestinationEncryptionContext: client.ContextPairs(next)})
	if bound.GetUnchanged() {
		c.t.Fatalf("to another context: %v", bound)
	}
	opens(bound.GetCiphertext(), next)
	_, err = user.Decrypt(ctx, bound.GetCiphertext(), ec)
	badCiphertext.check(c.t, "the old context after ReEncrypt", err)
	unbound := move(&pb.ReEncryptRequest{Ciphertext: blob})
	opens(unbound.GetCiphertext(), nil)
	opens(blob, ec)
	_, err = user.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: blob, SourceEncryptionContext: client.ContextPairs(next), SameContext: true})
	badCiphertext.check(c.t, "ReEncrypt with a wrong source context", err)
	_, err = user.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: blob, SourceKeyId: destination, SameContext: true})
	refused(codes.InvalidArgument, client.ErrInvalid, key, destination).check(c.t, "ReEncrypt with a wrong source key", err)
	_, err = user.Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{Ciphertext: blob, SameContext: true, DestinationEncryptionContext: client.ContextPairs(next)})
	refused(codes.InvalidArgument, client.ErrInvalid, "same_context").check(c.t, "two destination contexts", err)
}

// badCiphertext is the one answer to a ciphertext that does not open.
var badCiphertext = refused(codes.InvalidArgument, client.ErrInvalidCiphertext,
	"ciphertext does not verify: it was altered, or the encryption context is not the one it was made with")

func testDataKeys(ctx context.Context, c *testCluster, p *process, key string) {
	user := c.dial(userID, p)
	crypto := user.Crypto()
	specs := []struct {
		spec pb.DataKeySpec
		n    uint32
		size int
	}{
		{pb.DataKeySpec_DATA_KEY_SPEC_AES_128, 0, 16},
		{pb.DataKeySpec_DATA_KEY_SPEC_AES_256, 0, 32},
		{pb.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED, 1, 1},
		{pb.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED, 1024, 1024},
	}
	seen := map[string]bool{}
	for _, s := range specs {
		r, err := crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, Spec: s.spec, NumberOfBytes: s.n})
		must(c.t, err)
		opened, err := user.Decrypt(ctx, r.GetCiphertext(), nil)
		must(c.t, err)
		if len(opened) != s.size || !bytes.Equal(opened, r.GetPlaintext()) || s.size > 1 && seen[string(opened)] {
			c.t.Fatalf("data key %v: %d bytes, opened %d", s, len(r.GetPlaintext()), len(opened))
		}
		seen[string(opened)] = true
		hidden, err := crypto.GenerateDataKeyWithoutPlaintext(ctx, &pb.GenerateDataKeyWithoutPlaintextRequest{KeyId: key, Spec: s.spec, NumberOfBytes: s.n})
		must(c.t, err)
		if opened, err = user.Decrypt(ctx, hidden.GetCiphertext(), nil); err != nil || len(opened) != s.size || s.size > 1 && seen[string(opened)] {
			c.t.Fatalf("data key %v without plaintext: %d bytes, %v", s, len(opened), err)
		}
		seen[string(opened)] = true
		random, err := crypto.GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: uint32(s.size)})
		must(c.t, err)
		if len(random.GetPlaintext()) != s.size || s.size > 1 && seen[string(random.GetPlaintext())] {
			c.t.Fatalf("%d random bytes", len(random.GetPlaintext()))
		}
		seen[string(random.GetPlaintext())] = true
	}
	for what, r := range map[string]*pb.GenerateDataKeyRequest{
		"spec or number_of_bytes, not both": {KeyId: key, Spec: 1, NumberOfBytes: 16},
		"give spec":                         {KeyId: key},
		"1025 bytes":                        {KeyId: key, NumberOfBytes: 1025},
		"unknown data key spec 9":           {KeyId: key, Spec: 9},
		"recipient":                         {KeyId: key, Spec: 1, Recipient: &pb.Recipient{}},
	} {
		_, err := crypto.GenerateDataKey(ctx, r)
		refused(codes.InvalidArgument, client.ErrInvalid, what).check(c.t, what, err)
	}
	for _, n := range []uint32{0, 1025, 1 << 31} {
		_, err := crypto.GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: n})
		refused(codes.InvalidArgument, client.ErrInvalid, fmt.Sprint(n), "1 to 1024").check(c.t, fmt.Sprint(n, " random bytes"), err)
	}
}

// testDisableHolds disables keys that every node is using just then: once
// DisableKey has returned, no call that begins afterwards succeeds, on any node.
func testDisableHolds(ctx context.Context, c *testCluster) {
	users := make([]*client.Client, len(c.nodes))
	for i, p := range c.nodes {
		users[i] = c.dial(userID, p)
	}
	for round := range 8 {
		key := c.createKey(ctx, c.nodes[round%3])
		token := c.latest(c.nodes[0])
		blob, err := users[0].Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x"), IndexToken: token})
		must(c.t, err)
		var (
			work     sync.WaitGroup
			mu       sync.Mutex
			last     time.Time // when the last call began that succeeded
			count    int
			hammer   = make(chan struct{})
			disabled time.Time
		)
		use := func(user *client.Client) error {
			began := time.Now()
			_, err := user.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob.GetCiphertext()})
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				count++
				if began.After(last) {
					last = began
				}
			}
			return err
		}
		for _, user := range users {
			must(c.t, second(user.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob.GetCiphertext(), IndexToken: token})))
			work.Go(func() {
				for {
					select {
					case <-hammer:
						return
					default:
					}
					if err := use(user); err != nil {
						refused(codes.FailedPrecondition, client.ErrKeyDisabled, key).check(c.t, "while the key is being disabled", err)
					}
				}
			})
		}
		_, err = c.dial(adminID, c.nodes[(round+1)%3]).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})
		disabled = time.Now()
		must(c.t, err)
		for i, user := range users {
			refused(codes.FailedPrecondition, client.ErrKeyDisabled, "disabled", key).check(c.t, c.nodes[i].name+" after DisableKey", use(user))
		}
		close(hammer)
		work.Wait()
		if last.After(disabled) || count == 0 {
			c.t.Fatalf("round %d: of %d calls that succeeded the last began %s after DisableKey had returned", round, count, last.Sub(disabled))
		}
	}
}
