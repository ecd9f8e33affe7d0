package client_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var _ envelope.DataKeys = (*client.Client)(nil)

func TestCryptography(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", nil)
	c := w.client(t, nil, n.address)
	ctx := patient(t)
	ec := map[string]string{"volume": "v1", "tenant": "blue", "": "empty"}
	pairs := []*quorumkmsv1.ContextPair{{Key: "", Value: "empty"}, {Key: "tenant", Value: "blue"}, {Key: "volume", Value: "v1"}}

	check := func(err error, got, want string, request proto.Message) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		asked := n.asked()
		if last := asked[len(asked)-1]; !proto.Equal(last, request) {
			t.Errorf("sent %v, want %v", last, request)
		}
	}
	sealed, err := c.Encrypt(ctx, "k1", []byte("text"), ec)
	check(err, string(sealed), "sealed text", &quorumkmsv1.EncryptRequest{KeyId: "k1", Plaintext: []byte("text"), EncryptionContext: pairs})
	plain, err := c.Decrypt(ctx, sealed, ec)
	check(err, string(plain), "text", &quorumkmsv1.DecryptRequest{Ciphertext: sealed, EncryptionContext: pairs})
	plain, err = c.DecryptDataKey(ctx, sealed, nil)
	check(err, string(plain), "text", &quorumkmsv1.DecryptRequest{Ciphertext: sealed})
	again, err := c.ReEncrypt(ctx, sealed, ec, "k2")
	check(err, string(again), "again sealed text", &quorumkmsv1.ReEncryptRequest{
		Ciphertext: sealed, SourceEncryptionContext: pairs, SameContext: true, DestinationKeyId: "k2",
	})
	key, blob, err := c.GenerateDataKey(ctx, "k1", ec)
	check(err, string(key)+" "+string(blob), "key blob", &quorumkmsv1.GenerateDataKeyRequest{
		KeyId: "k1", Spec: quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256, EncryptionContext: pairs,
	})
}

func TestNoStreams(t *testing.T) {
	w := newWorld(t)
	c := w.client(t, nil, "127.0.0.1:1")
	if _, err := c.NewStream(t.Context(), nil, "/x"); err == nil {
		t.Error("no error")
	}
	if err := c.Invoke(t.Context(), "/x", "no message", nil); err == nil {
		t.Error("no error")
	}
}
