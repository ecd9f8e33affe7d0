package client

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// BenchmarkComplete is what the client adds to a request before it is sent.
func BenchmarkComplete(b *testing.B) {
	c := &Client{token: make([]byte, 28)}
	for name, request := range map[string]proto.Message{
		"use":      &quorumkmsv1.EncryptRequest{KeyId: "alias/volumes", Plaintext: make([]byte, 32)},
		"mutation": &quorumkmsv1.DisableKeyRequest{KeyId: "alias/volumes"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.complete(request)
			}
		})
	}
}
