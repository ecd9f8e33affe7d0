package rpc

import (
	"context"
	"fmt"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The prefixes of the protocol's enums whose other names are the service's own.
const (
	specPrefix       = "KEY_SPEC_"
	protectionPrefix = "PROTECTION_LEVEL_"
	usagePrefix      = "KEY_USAGE_"
	signingPrefix    = "SIGNING_ALGORITHM_"
	macPrefix        = "MAC_ALGORITHM_"
	encryptionPrefix = "ENCRYPTION_ALGORITHM_"
	pairPrefix       = "DATA_KEY_PAIR_SPEC_"
)

// plainName is the name of an enum's value without its prefix; empty if it is unset. What
// the protocol does not know is a number, which is nobody's name.
func plainName[T ~string](value fmt.Stringer, prefix string) T {
	name := strings.TrimPrefix(value.String(), prefix)
	if name == "UNSPECIFIED" {
		return ""
	}
	return T(name)
}

func message(b []byte, t pb.MessageType, a pb.SigningAlgorithm) (kms.Message, error) {
	m := kms.Message{Bytes: b, Digest: t == pb.MessageType_MESSAGE_TYPE_DIGEST, Algorithm: plainName[hsm.Algorithm](a, signingPrefix)}
	if _, known := pb.MessageType_name[int32(t)]; !known {
		return m, fmt.Errorf("%w: unknown message type %d", fsm.ErrInvalid, t)
	}
	return m, nil
}

func (s *cryptoServer) Sign(ctx context.Context, r *pb.SignRequest) (*pb.SignResponse, error) {
	m, err := message(r.GetMessage(), r.GetMessageType(), r.GetSigningAlgorithm())
	if err != nil {
		return nil, s.kms.Refuse("Sign", call(ctx, r), err)
	}
	out, err := s.kms.Sign(ctx, call(ctx, r), r.GetKeyId(), m)
	if err != nil {
		return nil, err
	}
	return &pb.SignResponse{Signature: out.Output, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) Verify(ctx context.Context, r *pb.VerifyRequest) (*pb.VerifyResponse, error) {
	m, err := message(r.GetMessage(), r.GetMessageType(), r.GetSigningAlgorithm())
	if err != nil {
		return nil, s.kms.Refuse("Verify", call(ctx, r), err)
	}
	out, err := s.kms.Verify(ctx, call(ctx, r), r.GetKeyId(), m, r.GetSignature())
	if err != nil {
		return nil, err
	}
	return &pb.VerifyResponse{KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) GetPublicKey(ctx context.Context, r *pb.GetPublicKeyRequest) (*pb.GetPublicKeyResponse, error) {
	out, err := s.kms.GetPublicKey(ctx, call(ctx, r), r.GetKeyId())
	if err != nil {
		return nil, err
	}
	response := &pb.GetPublicKeyResponse{
		PublicKey: out.SPKI, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken,
		Spec: specOf(out.Key), Usage: usageOf(out.Key),
	}
	for _, a := range out.Algorithms {
		if a.Signs() {
			response.SigningAlgorithms = append(response.SigningAlgorithms, pb.SigningAlgorithm(pb.SigningAlgorithm_value[signingPrefix+string(a)]))
		} else {
			response.EncryptionAlgorithms = append(response.EncryptionAlgorithms, pb.EncryptionAlgorithm(pb.EncryptionAlgorithm_value[encryptionPrefix+string(a)]))
		}
	}
	return response, nil
}

func (s *cryptoServer) GenerateMac(ctx context.Context, r *pb.GenerateMacRequest) (*pb.GenerateMacResponse, error) {
	m := kms.Message{Bytes: r.GetMessage(), Algorithm: plainName[hsm.Algorithm](r.GetMacAlgorithm(), macPrefix)}
	out, err := s.kms.GenerateMac(ctx, call(ctx, r), r.GetKeyId(), m)
	if err != nil {
		return nil, err
	}
	return &pb.GenerateMacResponse{Mac: out.Output, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) VerifyMac(ctx context.Context, r *pb.VerifyMacRequest) (*pb.VerifyMacResponse, error) {
	m := kms.Message{Bytes: r.GetMessage(), Algorithm: plainName[hsm.Algorithm](r.GetMacAlgorithm(), macPrefix)}
	out, err := s.kms.VerifyMac(ctx, call(ctx, r), r.GetKeyId(), m, r.GetMac())
	if err != nil {
		return nil, err
	}
	return &pb.VerifyMacResponse{KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken}, nil
}

func (s *cryptoServer) GenerateDataKeyPair(ctx context.Context, r *pb.GenerateDataKeyPairRequest) (*pb.GenerateDataKeyPairResponse, error) {
	if err := noRecipient(r.GetRecipient()); err != nil {
		return nil, s.kms.Refuse("GenerateDataKeyPair", call(ctx, r), err)
	}
	spec := plainName[fsm.KeySpec](r.GetSpec(), pairPrefix)
	out, err := s.kms.GenerateDataKeyPair(ctx, call(ctx, r), r.GetKeyId(), spec, pairs(r.GetEncryptionContext()))
	if err != nil {
		return nil, err
	}
	return &pb.GenerateDataKeyPairResponse{
		PrivateKeyPlaintext: out.Plaintext, PrivateKeyCiphertext: out.Ciphertext, PublicKey: out.Public,
		KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken,
	}, nil
}

func (s *cryptoServer) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, r *pb.GenerateDataKeyPairWithoutPlaintextRequest) (*pb.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	spec := plainName[fsm.KeySpec](r.GetSpec(), pairPrefix)
	out, err := s.kms.GenerateDataKeyPairWithoutPlaintext(ctx, call(ctx, r), r.GetKeyId(), spec, pairs(r.GetEncryptionContext()))
	if err != nil {
		return nil, err
	}
	return &pb.GenerateDataKeyPairWithoutPlaintextResponse{
		PrivateKeyCiphertext: out.Ciphertext, PublicKey: out.Public, KeyId: out.KeyARN, KeyVersion: out.Version, IndexToken: out.IndexToken,
	}, nil
}

func specOf(k *fsm.Key) pb.KeySpec { return pb.KeySpec(pb.KeySpec_value[specPrefix+string(k.Spec)]) }

func usageOf(k *fsm.Key) pb.KeyUsage {
	return pb.KeyUsage(pb.KeyUsage_value[usagePrefix+string(k.Usage)])
}
