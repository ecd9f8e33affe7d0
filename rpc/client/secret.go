package client

import (
	"context"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Sign signs a message of 1 to 4,096 bytes with a key of usage SIGN_VERIFY. What is longer
// is hashed by the caller: SignDigest.
func (c *Client) Sign(ctx context.Context, key string, message []byte, a quorumkmsv1.SigningAlgorithm) (signature []byte, err error) {
	r, err := c.Crypto().Sign(ctx, &quorumkmsv1.SignRequest{KeyId: key, Message: message, SigningAlgorithm: a})
	return r.GetSignature(), err
}

// SignDigest signs a digest of exactly the size of the algorithm's hash.
func (c *Client) SignDigest(ctx context.Context, key string, digest []byte, a quorumkmsv1.SigningAlgorithm) (signature []byte, err error) {
	r, err := c.Crypto().Sign(ctx, &quorumkmsv1.SignRequest{
		KeyId: key, Message: digest, MessageType: quorumkmsv1.MessageType_MESSAGE_TYPE_DIGEST, SigningAlgorithm: a,
	})
	return r.GetSignature(), err
}

// Verify is nil if a signature of a message is the key's, and ErrInvalidSignature if it is
// not. Whoever has the public key can do without the cluster.
func (c *Client) Verify(ctx context.Context, key string, message, signature []byte, a quorumkmsv1.SigningAlgorithm) error {
	_, err := c.Crypto().Verify(ctx, &quorumkmsv1.VerifyRequest{KeyId: key, Message: message, Signature: signature, SigningAlgorithm: a})
	return err
}

// VerifyDigest is Verify for a digest.
func (c *Client) VerifyDigest(ctx context.Context, key string, digest, signature []byte, a quorumkmsv1.SigningAlgorithm) error {
	_, err := c.Crypto().Verify(ctx, &quorumkmsv1.VerifyRequest{
		KeyId: key, Message: digest, MessageType: quorumkmsv1.MessageType_MESSAGE_TYPE_DIGEST, Signature: signature, SigningAlgorithm: a,
	})
	return err
}

// PublicKey is the public half of an RSA or ECC key: SubjectPublicKeyInfo, DER.
func (c *Client) PublicKey(ctx context.Context, key string) (spki []byte, err error) {
	r, err := c.Crypto().GetPublicKey(ctx, &quorumkmsv1.GetPublicKeyRequest{KeyId: key})
	return r.GetPublicKey(), err
}

// GenerateMac computes the HMAC of a message of 1 to 4,096 bytes.
func (c *Client) GenerateMac(ctx context.Context, key string, message []byte, a quorumkmsv1.MacAlgorithm) (mac []byte, err error) {
	r, err := c.Crypto().GenerateMac(ctx, &quorumkmsv1.GenerateMacRequest{KeyId: key, Message: message, MacAlgorithm: a})
	return r.GetMac(), err
}

// VerifyMac is nil if a MAC of a message is the key's, and ErrInvalidMac if it is not.
func (c *Client) VerifyMac(ctx context.Context, key string, message, mac []byte, a quorumkmsv1.MacAlgorithm) error {
	_, err := c.Crypto().VerifyMac(ctx, &quorumkmsv1.VerifyMacRequest{KeyId: key, Message: message, Mac: mac, MacAlgorithm: a})
	return err
}

// EncryptRSA encrypts with an RSA key of usage ENCRYPT_DECRYPT. The ciphertext is RSA's own:
// it does not name its key, and has no encryption context.
func (c *Client) EncryptRSA(ctx context.Context, key string, plaintext []byte, a quorumkmsv1.EncryptionAlgorithm) (ciphertext []byte, err error) {
	r, err := c.Crypto().Encrypt(ctx, &quorumkmsv1.EncryptRequest{KeyId: key, Plaintext: plaintext, EncryptionAlgorithm: a})
	return r.GetCiphertext(), err
}

// DecryptRSA opens what was encrypted with the public half of an RSA key, by EncryptRSA or
// elsewhere.
func (c *Client) DecryptRSA(ctx context.Context, key string, ciphertext []byte, a quorumkmsv1.EncryptionAlgorithm) (plaintext []byte, err error) {
	r, err := c.Crypto().Decrypt(ctx, &quorumkmsv1.DecryptRequest{KeyId: key, Ciphertext: ciphertext, EncryptionAlgorithm: a})
	return r.GetPlaintext(), err
}

// GenerateDataKeyPair returns a new pair: the private half, PKCS #8 DER, in plaintext, which
// is the caller's to overwrite after use, and as a blob under key, bound to the context ec,
// which Decrypt opens; and the public half, SubjectPublicKeyInfo DER.
func (c *Client) GenerateDataKeyPair(ctx context.Context, key string, spec quorumkmsv1.DataKeyPairSpec, ec map[string]string) (private, blob, public []byte, err error) {
	r, err := c.Crypto().GenerateDataKeyPair(ctx, &quorumkmsv1.GenerateDataKeyPairRequest{
		KeyId: key, Spec: spec, EncryptionContext: ContextPairs(ec),
	})
	return r.GetPrivateKeyPlaintext(), r.GetPrivateKeyCiphertext(), r.GetPublicKey(), err
}
