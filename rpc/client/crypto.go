package client

import (
	"context"
	"maps"
	"slices"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// ContextPairs returns an encryption context in the form of the protocol, sorted
// by key.
func ContextPairs(ec map[string]string) []*quorumkmsv1.ContextPair {
	var pairs []*quorumkmsv1.ContextPair
	for _, k := range slices.Sorted(maps.Keys(ec)) {
		pairs = append(pairs, &quorumkmsv1.ContextPair{Key: k, Value: ec[k]})
	}
	return pairs
}

// Encrypt encrypts 1 to 4,096 bytes under key, bound to the context ec. What is
// larger is sealed with a data key; see package envelope.
func (c *Client) Encrypt(ctx context.Context, key string, plaintext []byte, ec map[string]string) (ciphertext []byte, err error) {
	r, err := c.Crypto().Encrypt(ctx, &quorumkmsv1.EncryptRequest{
		KeyId: key, Plaintext: plaintext, EncryptionContext: ContextPairs(ec),
	})
	return r.GetCiphertext(), err
}

// Decrypt opens a ciphertext. ec must be the context it was made with.
func (c *Client) Decrypt(ctx context.Context, ciphertext []byte, ec map[string]string) (plaintext []byte, err error) {
	k, err := c.openDataKey(ctx, ciphertext, ec)
	return k.Plaintext, err
}

// ReEncrypt moves a ciphertext to the current version of the key destination, or
// of its own key if that is empty, in the same context. The plaintext does not
// leave the cluster. A ciphertext that is there already comes back unchanged.
func (c *Client) ReEncrypt(ctx context.Context, ciphertext []byte, ec map[string]string, destination string) ([]byte, error) {
	r, err := c.Crypto().ReEncrypt(ctx, &quorumkmsv1.ReEncryptRequest{
		Ciphertext: ciphertext, SourceEncryptionContext: ContextPairs(ec), SameContext: true, DestinationKeyId: destination,
	})
	return r.GetCiphertext(), err
}

// GenerateDataKey returns a new AES-256 key and its ciphertext under key, bound to
// the context ec. The plaintext is the caller's to overwrite after use.
func (c *Client) GenerateDataKey(ctx context.Context, key string, ec map[string]string) (plaintext, blob []byte, err error) {
	k, err := c.generateDataKey(ctx, key, ec)
	return k.Plaintext, k.Ciphertext, err
}

// DecryptDataKey opens what GenerateDataKey returned as blob. The plaintext is the
// caller's to overwrite after use.
func (c *Client) DecryptDataKey(ctx context.Context, blob []byte, ec map[string]string) (plaintext []byte, err error) {
	return c.Decrypt(ctx, blob, ec)
}
