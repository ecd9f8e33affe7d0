package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var (
	malformed = refused(codes.InvalidArgument, client.ErrMalformedCiphertext, "malformed ciphertext")
	notFound  = refused(codes.NotFound, client.ErrNotFound, "not found")
)

func invalidWith(texts ...string) *refusal {
	return refused(codes.InvalidArgument, client.ErrInvalid, append(texts, "invalid argument")...)
}

// testTampering alters every bit of a ciphertext and cuts it at every place: none
// opens, and what does not is told by as little as possible.
func testTampering(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx, c.nodes[0])
	user := c.dial(userID, c.nodes[0])
	ec := map[string]string{"a": "b"}
	blob, err := user.Encrypt(ctx, key, []byte("secret"), ec)
	must(c.t, err)
	for at := range blob {
		want := badCiphertext
		switch {
		case at < 6: // magic, suite, flags
			want = malformed
		case at < 22: // key id
			want = notFound
		}
		for bit := range 8 {
			altered := bytes.Clone(blob)
			altered[at] ^= 1 << bit
			_, err := user.Decrypt(ctx, altered, ec)
			want.check(c.t, fmt.Sprintf("byte %d, bit %d altered", at, bit), err)
			_, err = user.ReEncrypt(ctx, altered, ec, "")
			want.check(c.t, fmt.Sprintf("byte %d, bit %d altered, ReEncrypt", at, bit), err)
		}
	}
	for n := range blob {
		want := badCiphertext
		if n <= 98 { // no plaintext is empty
			want = malformed
		}
		_, err := user.Decrypt(ctx, blob[:n], ec)
		want.check(c.t, fmt.Sprintf("cut to %d bytes", n), err)
	}
	_, err = user.Decrypt(ctx, append(bytes.Clone(blob), 0), ec)
	badCiphertext.check(c.t, "one byte more", err)
	_, err = user.Decrypt(ctx, append(bytes.Clone(blob), make([]byte, 4096)...), ec)
	malformed.check(c.t, "more than the largest ciphertext", err)
	for what, wrong := range map[string]map[string]string{
		"none": nil, "another value": {"a": "c"}, "another key": {"A": "b"}, "one pair more": {"a": "b", "c": ""}, "shifted": {"ab": ""},
	} {
		_, err := user.Decrypt(ctx, blob, wrong)
		badCiphertext.check(c.t, "encryption context: "+what, err)
	}
	if got, err := user.Decrypt(ctx, blob, ec); err != nil || string(got) != "secret" {
		c.t.Fatalf("the ciphertext itself: %q, %v", got, err)
	}
}

// testSizes tries what is too small and too large.
func testSizes(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx, c.nodes[1])
	user := c.dial(userID, c.nodes[1])
	for _, n := range []int{0, 4097, 1 << 19} {
		_, err := user.Encrypt(ctx, key, make([]byte, n), nil)
		invalidWith(fmt.Sprintf("plaintext of %d bytes", n), "1 to 4096").check(c.t, fmt.Sprint(n, " bytes of plaintext"), err)
	}
	for _, n := range []int{1, 4096} {
		blob, err := user.Encrypt(ctx, key, bytes.Repeat([]byte{7}, n), nil)
		must(c.t, err)
		if got, err := user.Decrypt(ctx, blob, nil); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, n)) {
			c.t.Errorf("%d bytes came back as %d, %v", n, len(got), err)
		}
	}
	tooLarge := refused(codes.ResourceExhausted, nil, "larger than max", fmt.Sprint(1<<20))
	_, err := user.Encrypt(ctx, key, make([]byte, 1<<20), nil)
	tooLarge.check(c.t, "a message over 1 MiB", err)
	_, err = user.Decrypt(ctx, make([]byte, 1<<21), nil)
	tooLarge.check(c.t, "a message of 2 MiB", err)
	_, err = user.Decrypt(ctx, nil, nil)
	malformed.check(c.t, "no ciphertext", err)

	admin := c.dial(adminID, c.nodes[1]).Keys()
	many := func(n int) (tags []*pb.Tag) {
		for i := range n {
			tags = append(tags, &pb.Tag{Key: fmt.Sprint("tag", i)})
		}
		return tags
	}
	long := strings.Repeat("é", 8193)
	c.unchanged("what is too large", func() {
		for what, call := range map[string]struct {
			want *refusal
			err  error
		}{
			"8,193 characters of description": {invalidWith("8193 characters"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Description: long}))},
			"51 tags":                         {invalidWith("51 tags"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Tags: many(51)}))},
			"a tag twice": {
				invalidWith("twice"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Tags: append(many(2), many(1)...)})),
			},
			"no tags":          {invalidWith("no tags"), second(admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: key}))},
			"an empty tag key": {invalidWith("tag key is empty"), second(admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{}}}))},
			"a long tag key": {
				invalidWith("129 characters"),
				second(admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{Key: strings.Repeat("k", 129)}}})),
			},
			"a long tag value": {
				invalidWith("257 characters"),
				second(admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{Key: "k", Value: strings.Repeat("v", 257)}}})),
			},
			"a reserved tag key": {
				invalidWith(`"kms:x"`, "reserved"),
				second(admin.TagResource(ctx, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{Key: "kms:x"}}})),
			},
			"no tag keys":             {invalidWith("0 tag keys"), second(admin.UntagResource(ctx, &pb.UntagResourceRequest{KeyId: key}))},
			"a key for signing":       {invalidWith("SIGN_VERIFY"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Usage: pb.KeyUsage_KEY_USAGE_SIGN_VERIFY}))},
			"an RSA key":              {invalidWith("RSA_2048"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Spec: pb.KeySpec_KEY_SPEC_RSA_2048}))},
			"a key of foreign origin": {invalidWith("key origin 9"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Origin: 9}))},
			"a level that is none":    {invalidWith(`protection level "9"`), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{ProtectionLevel: 9}))},
			"a spec that is none":     {invalidWith("77"), second(admin.CreateKey(ctx, &pb.CreateKeyRequest{Spec: 77}))},
		} {
			call.want.check(c.t, what, call.err)
		}
	})
}

// testContexts tries encryption contexts that are none, among them what the SDK
// and Go's protobuf refuse to send.
func testContexts(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx, c.nodes[2])
	user := c.dial(userID, c.nodes[2])
	blob, err := user.Encrypt(ctx, key, []byte("x"), map[string]string{"a": "b"})
	must(c.t, err)
	crypto := user.Crypto()
	pair := func(k, v string) *pb.ContextPair { return &pb.ContextPair{Key: k, Value: v} }
	var many []*pb.ContextPair
	for i := range 65 {
		many = append(many, pair(fmt.Sprint(i), ""))
	}
	for _, x := range []struct {
		what  string
		want  *refusal
		pairs []*pb.ContextPair
	}{
		{"a key twice", invalidWith(`"a"`, "twice"), []*pb.ContextPair{pair("a", "b"), pair("c", "d"), pair("a", "b")}},
		{"a reserved key", invalidWith(`"kms:x"`, "reserved"), []*pb.ContextPair{pair("kms:x", "")}},
		{"an empty key", invalidWith("empty key"), []*pb.ContextPair{pair("", "v")}},
		{"65 pairs", invalidWith("65 pairs", "at most 64"), many},
		{"too many bytes", invalidWith("larger than 8192 bytes"), []*pb.ContextPair{pair("a", strings.Repeat("v", 8192))}},
	} {
		_, err := crypto.Encrypt(ctx, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x"), EncryptionContext: x.pairs})
		x.want.check(c.t, "Encrypt: "+x.what, err)
		_, err = crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: blob, EncryptionContext: x.pairs})
		x.want.check(c.t, "Decrypt: "+x.what, err)
		_, err = crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, Spec: 1, EncryptionContext: x.pairs})
		x.want.check(c.t, "GenerateDataKey: "+x.what, err)
		_, err = crypto.ReEncrypt(ctx, &pb.ReEncryptRequest{
			Ciphertext: blob, SourceEncryptionContext: client.ContextPairs(map[string]string{"a": "b"}), DestinationEncryptionContext: x.pairs,
		})
		x.want.check(c.t, "ReEncrypt: "+x.what, err)
	}
	c.unchanged("a message that is none", func() { c.rawMessages(ctx, key) })
}

// rawMessages sends bytes that are no message of the protocol.
func (c *testCluster) rawMessages(ctx context.Context, key string) {
	conn := c.connect(c.nodes[2].client, c.clientTLS(c.certs()+"/storage-1"), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	encrypt := func(field func(b []byte) []byte) error {
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), []byte("x"))
		var answer []byte
		return conn.Invoke(ctx, pb.CryptoService_Encrypt_FullMethodName, field(b), &answer)
	}
	contextPair := func(k, v string) func([]byte) []byte {
		p := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), k)
		p = protowire.AppendString(protowire.AppendTag(p, 2, protowire.BytesType), v)
		return func(b []byte) []byte {
			return protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), p)
		}
	}
	must(c.t, encrypt(contextPair("valid", "utf-8")))
	for what, field := range map[string]func([]byte) []byte{
		"a context key that is not UTF-8":   contextPair("a\xff", "b"),
		"a context value that is not UTF-8": contextPair("a", "\xc0\x80"),
		"a message that is cut":             func(b []byte) []byte { return b[:len(b)-1] },
		"no message":                        func([]byte) []byte { return []byte{0xff, 0xff, 0xff} },
	} {
		err := encrypt(field)
		if err == nil || !strings.Contains(status.Convert(err).Message(), "failed to unmarshal the received message") {
			c.t.Errorf("%s: %v", what, err)
		}
	}
}

// rawCodec sends and receives bytes as they are, under the name of protobuf.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// testReferences names keys in ways that are none, or are another cluster's.
func testReferences(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx, c.nodes[0])
	admin, user := c.dial(adminID, c.nodes[0]).Keys(), c.dial(userID, c.nodes[0])
	cluster, other := c.clusterID(), uuid.NewString()
	denied := refused(codes.PermissionDenied, client.ErrDenied, "no grant of yours allows it")
	absent := uuid.NewString()
	c.unchanged("a reference that is none", func() {
		for ref, want := range map[string]*refusal{
			"":                                  invalidWith("key id is missing"),
			"x":                                 invalidWith(`"x"`, "key id"),
			strings.ToUpper(key):                invalidWith("key id"),
			"urn:uuid:" + key:                   invalidWith("key id"),
			strings.ReplaceAll(key, "-", ""):    invalidWith("key id"),
			key + " ":                           invalidWith("key id"),
			strings.Repeat("x", 1025):           invalidWith("1025 bytes"),
			"alias/":                            invalidWith("0 characters"),
			"alias/a b":                         invalidWith("alias/a b"),
			"alias/" + strings.Repeat("a", 257): invalidWith("257 characters"),
			"arn:quorumkms:kms:" + cluster:      invalidWith("no ARN"),
			"arn:quorumkms:kms:" + cluster + ":default:user/x": invalidWith("no ARN of a key"),
			"arn:quorumkms:kms:" + cluster + ":default:key/x":  invalidWith("key id"),
			"arn:aws:kms:" + cluster + ":default:key/" + key:   invalidWith("key id"),
			absent:              notFound,
			"alias/absent":      notFound,
			"alias/service/obs": notFound,
			"arn:quorumkms:kms:" + cluster + ":default:key/" + absent: notFound,
			"arn:quorumkms:kms:" + other + ":default:key/" + key:      refused(codes.NotFound, client.ErrNotFound, "another cluster", other),
			"arn:quorumkms:kms:" + cluster + ":other:key/" + key:      denied,
			"arn:quorumkms:kms:" + cluster + ":other:key/" + absent:   denied,
			"arn:quorumkms:kms:" + cluster + ":other:alias/absent":    denied,
		} {
			short := fmt.Sprintf("%.60q", ref)
			want.check(c.t, "DescribeKey of "+short, second(admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: ref})))
			want.check(c.t, "DisableKey of "+short, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: ref})))
			want.check(c.t, "Encrypt under "+short, second(user.Encrypt(ctx, ref, []byte("x"), nil)))
			if !strings.Contains(ref, "alias/") {
				want.check(c.t, "CreateAlias of "+short, second(admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/new", KeyId: ref})))
			}
		}
		for name, want := range map[string]*refusal{
			"alias/service/obs": invalidWith("reserved"),
			"alias/":            invalidWith("0 characters"),
			"first":             invalidWith("must begin with alias/"),
			"alias/ä":           invalidWith("only a-z"),
			"":                  invalidWith("must begin with alias/"),
		} {
			want.check(c.t, "CreateAlias "+name, second(admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: name, KeyId: key})))
			want.check(c.t, "UpdateAlias "+name, second(admin.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: name, KeyId: key})))
			want.check(c.t, "DeleteAlias "+name, second(admin.DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: name})))
		}
		_, err := admin.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/of-an-alias", KeyId: "alias/walk/second"})
		invalidWith("is an alias", "id or ARN").check(c.t, "an alias of an alias", err)
		_, err = admin.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: "alias/absent", KeyId: key})
		notFound.check(c.t, "UpdateAlias of one that is not there", err)
		_, err = admin.DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: "alias/absent"})
		notFound.check(c.t, "DeleteAlias of one that is not there", err)
	})
}

// testBadPages asks for pages that no list gave.
func testBadPages(ctx context.Context, c *testCluster) {
	key := c.createKey(ctx, c.nodes[0])
	keys := c.dial(auditorID, c.nodes[0]).Keys()
	lists := map[string]func(limit uint32, marker string) error{
		"ListKeys": func(n uint32, m string) error {
			return second(keys.ListKeys(ctx, &pb.ListKeysRequest{Limit: n, Marker: m}))
		},
		"ListAliases": func(n uint32, m string) error {
			return second(keys.ListAliases(ctx, &pb.ListAliasesRequest{Limit: n, Marker: m}))
		},
		"ListResourceTags": func(n uint32, m string) error {
			return second(keys.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: key, Limit: n, Marker: m}))
		},
		"ListKeyRotations": func(n uint32, m string) error {
			return second(keys.ListKeyRotations(ctx, &pb.ListKeyRotationsRequest{KeyId: key, Limit: n, Marker: m}))
		},
	}
	for name, list := range lists {
		must(c.t, list(1000, ""))
		invalidWith("limit of 1001", "1 to 1000").check(c.t, name, list(1001, ""))
		invalidWith("limit of 4294967295").check(c.t, name, list(1<<32-1, ""))
		invalidWith("marker").check(c.t, name, list(1, "no marker!"))
		invalidWith("marker").check(c.t, name, list(1, strings.Repeat("A", 2000)))
		if name == "ListKeys" || name == "ListKeyRotations" {
			invalidWith("marker").check(c.t, name, list(1, base64.RawURLEncoding.EncodeToString([]byte("nothing"))))
		}
	}
}

// testForeign brings a ciphertext of another cluster.
func testForeign(ctx context.Context, c *testCluster) {
	other := startCluster(c.t, 1)
	key := other.createKey(ctx)
	blob, err := other.dial(userID).Encrypt(ctx, key, []byte("x"), nil)
	must(c.t, err)
	user := c.dial(userID, c.nodes[0])
	notFound.check(c.t, "a ciphertext of another cluster", second(user.Decrypt(ctx, blob, nil)))
	notFound.check(c.t, "a key of another cluster", second(user.Encrypt(ctx, key, []byte("x"), nil)))
	r, err := other.dial(userID).Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, Spec: 1})
	must(c.t, err)
	refused(codes.NotFound, client.ErrNotFound, "another cluster").check(c.t, "an ARN of another cluster", second(user.Encrypt(ctx, r.GetKeyId(), []byte("x"), nil)))
	_, err = user.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1, IndexToken: r.GetIndexToken()})
	invalidWith("index token").check(c.t, "an index token of another cluster", err)
	_, err = c.dialFiles(other.certs()+"/alice", c.nodes[0]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	handshakeRefused(c.t, "a certificate of another cluster's CA", err)
	_, err = other.dial(operatorID).Cluster().Init(ctx, &pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true})
	refused(codes.FailedPrecondition, client.ErrAlreadyInitialized, "belongs to cluster").check(c.t, "Init of a cluster that is there", err)
}
