package client_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// demo lets examples use what tests do: it is a test that ends with close.
type demo struct {
	testing.TB
	cleanups []func()
}

func (*demo) Helper()                        {}
func (*demo) Context() context.Context       { return context.Background() }
func (*demo) Fatal(args ...any)              { log.Panic(args...) }
func (*demo) Errorf(format string, a ...any) { log.Panicf(format, a...) }
func (d *demo) Cleanup(f func())             { d.cleanups = append(d.cleanups, f) }
func (d *demo) close() {
	for _, f := range slices.Backward(d.cleanups) {
		f()
	}
}

// connect stands for client.New with the addresses of a cluster; disconnect ends it.
func connect() (kms *client.Client, disconnect func()) {
	d := new(demo)
	ca := clienttest.NewCA(d)
	n := startNode(d, ca.ServerTLS(ca.Node(d, "n1")), demoKeys())
	n.watched = newWatched()
	kms, err := client.New(client.Config{
		Addresses: []string{n.address}, TrustDomain: clienttest.TrustDomain,
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(d, nil, userURI)}},
	})
	if err != nil {
		log.Panic(err)
	}
	return kms, func() {
		_ = kms.Close()
		d.close()
	}
}

// demoKeys answers as a cluster with one CMK.
func demoKeys() answer {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		log.Panic(err)
	}
	cmk, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		log.Panic(err)
	}
	const arn = "arn:quorumkms:kms:demo:default:key/6f1d3c0e-0000-4000-8000-000000000001"
	generate := func(ec []*quorumkmsv1.ContextPair) *quorumkmsv1.GenerateDataKeyResponse {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		return &quorumkmsv1.GenerateDataKeyResponse{Plaintext: key, Ciphertext: cmk.Seal(nil, nil, key, bound(ec)), KeyId: arn}
	}
	return func(_ context.Context, _ int, request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *quorumkmsv1.GenerateDataKeyRequest:
			return generate(r.GetEncryptionContext()), nil
		case *quorumkmsv1.BatchGenerateDataKeyRequest:
			batch := new(quorumkmsv1.BatchGenerateDataKeyResponse)
			for range r.GetItems()[0].GetCount() {
				key := &quorumkmsv1.DataKeyResult_DataKey{DataKey: generate(r.GetItems()[0].GetEncryptionContext())}
				batch.Results = append(batch.Results, &quorumkmsv1.DataKeyResult{Result: key})
			}
			return batch, nil
		case *quorumkmsv1.DecryptRequest:
			key, err := cmk.Open(nil, nil, r.GetCiphertext(), bound(r.GetEncryptionContext()))
			if err != nil {
				return nil, reasonError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT)
			}
			return &quorumkmsv1.DecryptResponse{Plaintext: key, KeyId: arn}, nil
		}
		return nil, reasonError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID)
	}
}

func bound(ec []*quorumkmsv1.ContextPair) []byte {
	var b []byte
	for _, p := range ec {
		b = fmt.Appendf(b, "%q=%q\n", p.GetKey(), p.GetValue())
	}
	return b
}

// warm waits until a cache works.
func warm(cache *client.KeyCache) {
	for cache.Stats().Unwatched != nil {
		time.Sleep(time.Millisecond)
	}
}
