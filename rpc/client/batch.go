package client

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// maxBatch is the most items that a node takes in one call, and batchBytes what they may have
	// together: the largest request, 1 MiB, but for what else is in it.
	maxBatch   = 256
	batchBytes = 1<<20 - 8<<10
	// itemFrame is the most that an item has around it in a request, in bytes.
	itemFrame = 8
)

// DataKey is a data key in both forms. It belongs to whoever has it, who wipes it after use.
type DataKey struct {
	Plaintext  []byte
	Ciphertext []byte // Client.DecryptDataKey opens it
	KeyID      string // ARN of the CMK it is encrypted under
}

// Wipe overwrites the plaintext.
func (k DataKey) Wipe() { clear(k.Plaintext) }

// BatchGenerateDataKey returns n new AES-256 keys, each with its ciphertext under key, bound to the
// context ec. It costs a fraction of n calls of GenerateDataKey. A call has 256 data keys at most:
// more take several, one after the other. With an error, those come back that were made before it.
func (c *Client) BatchGenerateDataKey(ctx context.Context, key string, n int, ec map[string]string) ([]DataKey, error) {
	if n < 1 {
		return nil, fmt.Errorf("client: %d data keys: must be 1 at least", n)
	}
	var keys []DataKey
	for len(keys) < n {
		var from peer.Peer
		r, err := c.Crypto().BatchGenerateDataKey(ctx, &quorumkmsv1.BatchGenerateDataKeyRequest{Items: []*quorumkmsv1.DataKeyItem{{
			KeyId: key, Spec: quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256, EncryptionContext: ContextPairs(ec),
			Count: uint32(min(n-len(keys), maxBatch)), //nolint:gosec // positive
		}}}, grpc.Peer(&from))
		if err != nil {
			return keys, err
		}
		for _, x := range r.GetResults() {
			if k := x.GetDataKey(); k != nil {
				keys = append(keys, DataKey{Plaintext: k.GetPlaintext(), Ciphertext: k.GetCiphertext(), KeyID: k.GetKeyId()})
			} else if err == nil {
				err = itemError(&from, x.GetError())
			}
		}
		if err == nil && len(r.GetResults()) == 0 {
			err = itemError(&from, nil)
		}
		if err != nil {
			return keys, err
		}
	}
	return keys, nil
}

// Ciphertext is a ciphertext that is to be opened.
type Ciphertext struct {
	Blob    []byte
	Context map[string]string // that it was made with
}

// Opened is what became of a ciphertext.
type Opened struct {
	Plaintext []byte // the caller's to overwrite after use
	Err       error  // an *Error, as the call for it alone would have returned; nil: it was opened
}

// BatchDecrypt opens many ciphertexts, of one key or several: a result for each, in their order. What is
// wrong with one is no matter of the others. A call takes 256 ciphertexts and 1 MiB at most: more
// take several, one after the other. With an error, nothing comes back.
func (c *Client) BatchDecrypt(ctx context.Context, all []Ciphertext) ([]Opened, error) {
	items := make([]*quorumkmsv1.DecryptItem, len(all))
	for i, x := range all {
		items[i] = &quorumkmsv1.DecryptItem{Ciphertext: x.Blob, EncryptionContext: ContextPairs(x.Context)}
	}
	out := make([]Opened, 0, len(all))
	for len(out) < len(all) {
		part := fitting(items[len(out):])
		var from peer.Peer
		r, err := c.Crypto().BatchDecrypt(ctx, &quorumkmsv1.BatchDecryptRequest{Items: part}, grpc.Peer(&from))
		if err == nil && len(r.GetResults()) != len(part) {
			err = itemError(&from, nil)
		}
		if err != nil {
			for _, x := range out {
				clear(x.Plaintext)
			}
			return nil, err
		}
		for _, x := range r.GetResults() {
			if d := x.GetDecrypted(); d != nil {
				out = append(out, Opened{Plaintext: d.GetPlaintext()})
			} else {
				out = append(out, Opened{Err: itemError(&from, x.GetError())})
			}
		}
	}
	return out, nil
}

// fitting are the first of the items: as many as one call takes, one at least.
func fitting(items []*quorumkmsv1.DecryptItem) []*quorumkmsv1.DecryptItem {
	size := 0
	for i, x := range items {
		if size += proto.Size(x) + itemFrame; i == maxBatch || i > 0 && size > batchBytes {
			return items[:i]
		}
	}
	return items
}

// itemError is why an item has no result; nil of a node that does not say.
func itemError(from *peer.Peer, e *quorumkmsv1.ItemError) *Error {
	out := &Error{Code: codes.Code(e.GetCode()), Reason: e.GetReason(), Message: e.GetMessage()}
	if from.Addr != nil {
		out.Address = from.Addr.String()
	}
	if e == nil {
		out.Code, out.Message = codes.Internal, "the answer has no result for an item"
	}
	return out
}
