package client

import (
	"bytes"
	"context"
	"strings"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (k DataKey) clone() DataKey {
	k.Plaintext, k.Ciphertext = bytes.Clone(k.Plaintext), bytes.Clone(k.Ciphertext)
	return k
}

// cmk is the id that a watch of a tenant names the CMK by; empty if it is another tenant's, which
// that watch does not tell of.
func (k DataKey) cmk(tenant string) string {
	of, id, _ := strings.Cut(k.KeyID, ":key/")
	if !strings.HasSuffix(of, ":"+tenant) {
		return ""
	}
	return id
}

func (c *Client) generateDataKey(ctx context.Context, key string, ec map[string]string) (DataKey, error) {
	r, err := c.Crypto().GenerateDataKey(ctx, &quorumkmsv1.GenerateDataKeyRequest{
		KeyId: key, Spec: quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256, EncryptionContext: ContextPairs(ec),
	})
	return DataKey{Plaintext: r.GetPlaintext(), Ciphertext: r.GetCiphertext(), KeyID: r.GetKeyId()}, err
}

func (c *Client) openDataKey(ctx context.Context, blob []byte, ec map[string]string) (DataKey, error) {
	r, err := c.Crypto().Decrypt(ctx, &quorumkmsv1.DecryptRequest{Ciphertext: blob, EncryptionContext: ContextPairs(ec)})
	return DataKey{Plaintext: r.GetPlaintext(), Ciphertext: blob, KeyID: r.GetKeyId()}, err
}
