package rpc

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (s *cryptoServer) BatchGenerateDataKey(ctx context.Context, r *pb.BatchGenerateDataKeyRequest) (*pb.BatchGenerateDataKeyResponse, error) {
	items := make([]kms.DataKeyItem, len(few(r.GetItems())))
	for i, x := range few(r.GetItems()) {
		n, wrong := dataKeySize(x.GetSpec(), x.GetNumberOfBytes())
		items[i] = kms.DataKeyItem{
			Key: x.GetKeyId(), Bytes: n, Context: pairs(x.GetEncryptionContext()), WithoutPlaintext: x.GetWithoutPlaintext(),
			Count: int(max(1, x.GetCount())), Wrong: wrong,
		}
	}
	all, err := s.kms.BatchGenerateDataKey(ctx, call(ctx, r), items)
	if err != nil {
		return nil, err
	}
	out := &pb.BatchGenerateDataKeyResponse{Results: make([]*pb.DataKeyResult, len(all))}
	return out, answer(s, all, func(i int, x *kms.Sealed, e *pb.ItemError) {
		if e != nil {
			out.Results[i] = &pb.DataKeyResult{Result: &pb.DataKeyResult_Error{Error: e}}
			return
		}
		out.IndexToken = x.IndexToken
		out.Results[i] = &pb.DataKeyResult{Result: &pb.DataKeyResult_DataKey{DataKey: &pb.GenerateDataKeyResponse{
			Plaintext: x.Plaintext, Ciphertext: x.Ciphertext, KeyId: x.KeyARN, KeyVersion: x.Version,
		}}}
	})
}

func (s *cryptoServer) BatchEncrypt(ctx context.Context, r *pb.BatchEncryptRequest) (*pb.BatchEncryptResponse, error) {
	items := make([]kms.EncryptItem, len(few(r.GetItems())))
	for i, x := range few(r.GetItems()) {
		items[i] = kms.EncryptItem{Key: x.GetKeyId(), Plaintext: x.GetPlaintext(), Context: pairs(x.GetEncryptionContext())}
	}
	all, err := s.kms.BatchEncrypt(ctx, call(ctx, r), items)
	if err != nil {
		return nil, err
	}
	out := &pb.BatchEncryptResponse{Results: make([]*pb.EncryptResult, len(all))}
	return out, answer(s, all, func(i int, x *kms.Sealed, e *pb.ItemError) {
		if e != nil {
			out.Results[i] = &pb.EncryptResult{Result: &pb.EncryptResult_Error{Error: e}}
			return
		}
		out.IndexToken = x.IndexToken
		out.Results[i] = &pb.EncryptResult{Result: &pb.EncryptResult_Encrypted{Encrypted: &pb.EncryptResponse{
			Ciphertext: x.Ciphertext, KeyId: x.KeyARN, KeyVersion: x.Version,
		}}}
	})
}

func (s *cryptoServer) BatchDecrypt(ctx context.Context, r *pb.BatchDecryptRequest) (*pb.BatchDecryptResponse, error) {
	items := make([]kms.DecryptItem, len(few(r.GetItems())))
	for i, x := range few(r.GetItems()) {
		items[i] = kms.DecryptItem{Ciphertext: x.GetCiphertext(), Key: x.GetKeyId(), Context: pairs(x.GetEncryptionContext())}
	}
	all, err := s.kms.BatchDecrypt(ctx, call(ctx, r), items)
	if err != nil {
		return nil, err
	}
	out := &pb.BatchDecryptResponse{Results: make([]*pb.DecryptResult, len(all))}
	return out, answer(s, all, func(i int, x *kms.Opened, e *pb.ItemError) {
		if e != nil {
			out.Results[i] = &pb.DecryptResult{Result: &pb.DecryptResult_Error{Error: e}}
			return
		}
		out.IndexToken = x.IndexToken
		out.Results[i] = &pb.DecryptResult{Result: &pb.DecryptResult_Decrypted{Decrypted: &pb.DecryptResponse{
			Plaintext: x.Plaintext, KeyId: x.KeyARN, KeyVersion: x.Version,
		}}}
	})
}

// maxItemText bounds what one item is told of its error, in bytes: one request can have the same
// one told 256 times.
const maxItemText = 1 << 10

// few are the items that are looked at: one more than there may be tells that there are too many.
func few[T any](items []T) []T { return items[:min(len(items), kms.MaxBatch+1)] }

// answer puts every item's result into an answer: a value, or an error. Where no item has succeeded and
// one has failed for this node's sake the batch fails with that, so that another node is asked:
// there is nothing to be lost.
func answer[T any](s *cryptoServer, all []kms.Result[T], put func(i int, value *T, e *pb.ItemError)) error {
	succeeded, failed := false, error(nil)
	for i := range all {
		x := &all[i]
		if x.Err == nil {
			succeeded = true
			put(i, &x.Value, nil)
			continue
		}
		code, reason, text := verdictOn(x.Err)
		switch {
		case code == codes.Internal:
			s.log.Error("an item of a batch failed for a reason that callers are not told", "error", x.Err)
		case code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled, reason == pb.Reason_REASON_BUSY:
			failed = x.Err
		}
		if len(text) > maxItemText {
			text = strings.ToValidUTF8(text[:maxItemText], "") + "…"
		}
		put(i, nil, &pb.ItemError{Code: uint32(code), Reason: reason, Message: text})
	}
	if succeeded {
		return nil
	}
	return failed
}
