package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The fake's keys that are not symmetric are the same for all: P-256 signs with SHA-256,
// RSA of 2,048 bits decrypts with OAEP, HMAC-SHA256 authenticates.
var fakeSecrets = sync.OnceValue(func() (s struct {
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey
},
) {
	var err error
	if s.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		panic(err)
	}
	if s.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		panic(err)
	}
	return s
})

const fakeMacKey = "the fake's key for MACs"

// ofUsage finds a key that is for something.
func (f *fake) ofUsage(name string, usage quorumkmsv1.KeyUsage) (*fakeKey, error) {
	k, err := f.usable(name)
	if err == nil && k.meta.GetUsage() != usage {
		err = fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_UNSUPPORTED, "the key is for something else")
	}
	return k, err
}

func fakeDigest(message []byte, t quorumkmsv1.MessageType) []byte {
	if t == quorumkmsv1.MessageType_MESSAGE_TYPE_DIGEST {
		return message
	}
	sum := sha256.Sum256(message)
	return sum[:]
}

func (f *fake) Sign(_ context.Context, r *quorumkmsv1.SignRequest) (*quorumkmsv1.SignResponse, error) {
	k, err := f.ofUsage(r.GetKeyId(), quorumkmsv1.KeyUsage_KEY_USAGE_SIGN_VERIFY)
	if err != nil {
		return nil, err
	}
	signature, err := ecdsa.SignASN1(rand.Reader, fakeSecrets().ec, fakeDigest(r.GetMessage(), r.GetMessageType()))
	return &quorumkmsv1.SignResponse{Signature: signature, KeyId: k.meta.GetArn(), KeyVersion: 1}, err
}

func (f *fake) Verify(_ context.Context, r *quorumkmsv1.VerifyRequest) (*quorumkmsv1.VerifyResponse, error) {
	k, err := f.ofUsage(r.GetKeyId(), quorumkmsv1.KeyUsage_KEY_USAGE_SIGN_VERIFY)
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(&fakeSecrets().ec.PublicKey, fakeDigest(r.GetMessage(), r.GetMessageType()), r.GetSignature()) {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_SIGNATURE, "the signature does not verify")
	}
	return &quorumkmsv1.VerifyResponse{KeyId: k.meta.GetArn(), KeyVersion: 1}, nil
}

func (f *fake) GetPublicKey(_ context.Context, r *quorumkmsv1.GetPublicKeyRequest) (*quorumkmsv1.GetPublicKeyResponse, error) {
	k, err := f.usable(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	var public any = &fakeSecrets().ec.PublicKey
	if k.meta.GetSpec() == quorumkmsv1.KeySpec_KEY_SPEC_RSA_2048 {
		public = &fakeSecrets().rsa.PublicKey
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	return &quorumkmsv1.GetPublicKeyResponse{
		PublicKey: spki, KeyId: k.meta.GetArn(), KeyVersion: 1, Spec: k.meta.GetSpec(), Usage: k.meta.GetUsage(),
	}, err
}

func (f *fake) mac(name string, message []byte) ([]byte, *fakeKey, error) {
	k, err := f.ofUsage(name, quorumkmsv1.KeyUsage_KEY_USAGE_GENERATE_VERIFY_MAC)
	h := hmac.New(sha256.New, []byte(fakeMacKey))
	h.Write(message)
	return h.Sum(nil), k, err
}

func (f *fake) GenerateMac(_ context.Context, r *quorumkmsv1.GenerateMacRequest) (*quorumkmsv1.GenerateMacResponse, error) {
	mac, k, err := f.mac(r.GetKeyId(), r.GetMessage())
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.GenerateMacResponse{Mac: mac, KeyId: k.meta.GetArn(), KeyVersion: 1}, nil
}

func (f *fake) VerifyMac(_ context.Context, r *quorumkmsv1.VerifyMacRequest) (*quorumkmsv1.VerifyMacResponse, error) {
	mac, k, err := f.mac(r.GetKeyId(), r.GetMessage())
	switch {
	case err != nil:
		return nil, err
	case !hmac.Equal(mac, r.GetMac()):
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_MAC, "the MAC does not verify")
	}
	return &quorumkmsv1.VerifyMacResponse{KeyId: k.meta.GetArn(), KeyVersion: 1}, nil
}

func (f *fake) encryptRSA(r *quorumkmsv1.EncryptRequest) (*quorumkmsv1.EncryptResponse, error) {
	k, err := f.ofUsage(r.GetKeyId(), quorumkmsv1.KeyUsage_KEY_USAGE_ENCRYPT_DECRYPT)
	if err != nil {
		return nil, err
	}
	c, err := rsa.EncryptOAEP(crypto.SHA256.New(), rand.Reader, &fakeSecrets().rsa.PublicKey, r.GetPlaintext(), nil)
	return &quorumkmsv1.EncryptResponse{Ciphertext: c, KeyId: k.meta.GetArn(), KeyVersion: 1}, err
}

func (f *fake) decryptRSA(r *quorumkmsv1.DecryptRequest) (*quorumkmsv1.DecryptResponse, error) {
	k, err := f.ofUsage(r.GetKeyId(), quorumkmsv1.KeyUsage_KEY_USAGE_ENCRYPT_DECRYPT)
	if err != nil {
		return nil, err
	}
	plaintext, err := rsa.DecryptOAEP(crypto.SHA256.New(), nil, fakeSecrets().rsa, r.GetCiphertext(), nil)
	if err != nil {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT, "ciphertext does not verify")
	}
	return &quorumkmsv1.DecryptResponse{Plaintext: plaintext, KeyId: k.meta.GetArn(), KeyVersion: 1}, nil
}

func (f *fake) GenerateDataKeyPair(_ context.Context, r *quorumkmsv1.GenerateDataKeyPairRequest) (*quorumkmsv1.GenerateDataKeyPairResponse, error) {
	private, err := x509.MarshalPKCS8PrivateKey(fakeSecrets().ec)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&fakeSecrets().ec.PublicKey)
	if err != nil {
		return nil, err
	}
	blob, k, err := f.seal(r.GetKeyId(), private, r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	return &quorumkmsv1.GenerateDataKeyPairResponse{
		PrivateKeyPlaintext: private, PrivateKeyCiphertext: blob, PublicKey: public, KeyId: k.meta.GetArn(), KeyVersion: 1,
	}, nil
}

func (f *fake) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, r *quorumkmsv1.GenerateDataKeyPairWithoutPlaintextRequest) (*quorumkmsv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	full, err := f.GenerateDataKeyPair(ctx, &quorumkmsv1.GenerateDataKeyPairRequest{KeyId: r.GetKeyId(), EncryptionContext: r.GetEncryptionContext()})
	return &quorumkmsv1.GenerateDataKeyPairWithoutPlaintextResponse{
		PrivateKeyCiphertext: full.GetPrivateKeyCiphertext(), PublicKey: full.GetPublicKey(), KeyId: full.GetKeyId(), KeyVersion: 1,
	}, err
}
