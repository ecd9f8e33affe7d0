package rpc

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type cryptoServer struct {
	pb.UnimplementedCryptoServiceServer
	kms      *kms.Service
	watchers *seats
	log      *slog.Logger
}

func (s *cryptoServer) Encrypt(ctx context.Context, r *pb.EncryptRequest) (*pb.EncryptResponse, error) {
	out, err := s.kms.Encrypt(ctx, call(ctx, r), r.GetKeyId(), r.GetPlaintext(), pairs(r.GetEncryptionContext()),
		plainName[hsm.Algorithm](r.GetEncryptionAlgorithm(), encryptionPrefix))
	if err != nil {
		return nil, err
	}
	return &pb.EncryptResponse{Ciphertext: out.Ciphertext, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) Decrypt(ctx context.Context, r *pb.DecryptRequest) (*pb.DecryptResponse, error) {
	if err := noRecipient(r.GetRecipient()); err != nil {
		return nil, s.kms.Refuse("Decrypt", call(ctx, r), err)
	}
	out, err := s.kms.Decrypt(ctx, call(ctx, r), r.GetCiphertext(), r.GetKeyId(), pairs(r.GetEncryptionContext()),
		plainName[hsm.Algorithm](r.GetEncryptionAlgorithm(), encryptionPrefix))
	if err != nil {
		return nil, err
	}
	return &pb.DecryptResponse{Plaintext: out.Plaintext, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) ReEncrypt(ctx context.Context, r *pb.ReEncryptRequest) (*pb.ReEncryptResponse, error) {
	destination := pairs(r.GetDestinationEncryptionContext())
	if r.GetSameContext() {
		if len(destination) > 0 {
			return nil, s.kms.Refuse("ReEncrypt", call(ctx, r), fmt.Errorf("%w: same_context is set and a destination context is given", fsm.ErrInvalid))
		}
		destination = pairs(r.GetSourceEncryptionContext())
	}
	out, err := s.kms.ReEncrypt(ctx, call(ctx, r), kms.ReEncryption{
		Ciphertext: r.GetCiphertext(), SourceKey: r.GetSourceKeyId(), SourceContext: pairs(r.GetSourceEncryptionContext()),
		DestinationKey: r.GetDestinationKeyId(), DestinationContext: destination,
	})
	if err != nil {
		return nil, err
	}
	return &pb.ReEncryptResponse{
		Ciphertext: out.Ciphertext, SourceKeyId: out.SourceARN, KeyId: out.KeyARN,
		SourceKeyVersion: out.SourceVersion, KeyVersion: out.Version, Unchanged: out.Unchanged, IndexToken: out.IndexToken,
	}, nil
}

func (s *cryptoServer) GenerateDataKey(ctx context.Context, r *pb.GenerateDataKeyRequest) (*pb.GenerateDataKeyResponse, error) {
	if err := noRecipient(r.GetRecipient()); err != nil {
		return nil, s.kms.Refuse("GenerateDataKey", call(ctx, r), err)
	}
	n, err := dataKeySize(r.GetSpec(), r.GetNumberOfBytes())
	if err != nil {
		return nil, s.kms.Refuse("GenerateDataKey", call(ctx, r), err)
	}
	out, err := s.kms.GenerateDataKey(ctx, call(ctx, r), r.GetKeyId(), n, pairs(r.GetEncryptionContext()))
	if err != nil {
		return nil, err
	}
	return &pb.GenerateDataKeyResponse{
		Plaintext: out.Plaintext, Ciphertext: out.Ciphertext, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken,
	}, nil
}

func (s *cryptoServer) GenerateDataKeyWithoutPlaintext(ctx context.Context, r *pb.GenerateDataKeyWithoutPlaintextRequest) (*pb.GenerateDataKeyWithoutPlaintextResponse, error) {
	n, err := dataKeySize(r.GetSpec(), r.GetNumberOfBytes())
	if err != nil {
		return nil, s.kms.Refuse("GenerateDataKeyWithoutPlaintext", call(ctx, r), err)
	}
	out, err := s.kms.GenerateDataKeyWithoutPlaintext(ctx, call(ctx, r), r.GetKeyId(), n, pairs(r.GetEncryptionContext()))
	if err != nil {
		return nil, err
	}
	return &pb.GenerateDataKeyWithoutPlaintextResponse{
		Ciphertext: out.Ciphertext, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken,
	}, nil
}

func (s *cryptoServer) GenerateRandom(ctx context.Context, r *pb.GenerateRandomRequest) (*pb.GenerateRandomResponse, error) {
	if err := noRecipient(r.GetRecipient()); err != nil {
		return nil, s.kms.Refuse("GenerateRandom", call(ctx, r), err)
	}
	b, err := s.kms.GenerateRandom(ctx, call(ctx, r), int(r.GetNumberOfBytes()))
	if err != nil {
		return nil, err
	}
	return &pb.GenerateRandomResponse{Plaintext: b}, nil
}

// Sizes of data keys by spec, in bytes.
const (
	aes128 = 16
	aes256 = 32
)

func dataKeySize(spec pb.DataKeySpec, n uint32) (int, error) {
	switch {
	case spec != pb.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED && n != 0:
		return 0, fmt.Errorf("%w: give spec or number_of_bytes, not both", fsm.ErrInvalid)
	case spec == pb.DataKeySpec_DATA_KEY_SPEC_AES_128:
		return aes128, nil
	case spec == pb.DataKeySpec_DATA_KEY_SPEC_AES_256:
		return aes256, nil
	case spec == pb.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED && n == 0:
		return 0, fmt.Errorf("%w: give spec (AES_128 or AES_256) or number_of_bytes (1 to %d)", fsm.ErrInvalid, kms.MaxRandom)
	case spec == pb.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED:
		return int(n), nil
	}
	return 0, fmt.Errorf("%w: unknown data key spec %d", fsm.ErrInvalid, spec)
}

func noRecipient(r *pb.Recipient) error {
	if r != nil {
		return fmt.Errorf("%w: a recipient key is not supported by this release", fsm.ErrInvalid)
	}
	return nil
}

func pairs(list []*pb.ContextPair) []kms.Pair {
	if len(list) == 0 {
		return nil
	}
	out := make([]kms.Pair, len(list))
	for i, p := range list {
		out[i] = kms.Pair{Key: p.GetKey(), Value: p.GetValue()}
	}
	return out
}
