package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// batches answers batches: data keys are numbered, and a ciphertext opens if it begins with "sealed ".
func batches(_ context.Context, n int, request proto.Message) (proto.Message, error) {
	switch r := request.(type) {
	case *quorumkmsv1.BatchGenerateDataKeyRequest:
		out := &quorumkmsv1.BatchGenerateDataKeyResponse{}
		for i := range r.GetItems()[0].GetCount() {
			out.Results = append(out.Results, &quorumkmsv1.DataKeyResult{Result: &quorumkmsv1.DataKeyResult_DataKey{DataKey: &quorumkmsv1.GenerateDataKeyResponse{
				Plaintext: fmt.Appendf(nil, "%d.%d", n, i), Ciphertext: []byte("sealed"), KeyId: "arn",
			}}})
		}
		return out, nil
	case *quorumkmsv1.BatchDecryptRequest:
		out := &quorumkmsv1.BatchDecryptResponse{}
		for _, item := range r.GetItems() {
			plaintext, ok := strings.CutPrefix(string(item.GetCiphertext()), "sealed ")
			x := &quorumkmsv1.DecryptResult{Result: &quorumkmsv1.DecryptResult_Decrypted{Decrypted: &quorumkmsv1.DecryptResponse{Plaintext: []byte(plaintext)}}}
			if !ok {
				x.Result = &quorumkmsv1.DecryptResult_Error{Error: &quorumkmsv1.ItemError{
					Code: uint32(codes.FailedPrecondition), Reason: quorumkmsv1.Reason_REASON_KEY_DISABLED, Message: "key is disabled",
				}}
			}
			out.Results = append(out.Results, x)
		}
		return out, nil
	}
	return nil, errors.New("another call")
}

func TestBatchGenerateDataKey(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", batches)
	c := w.client(t, nil, n.address)
	keys, err := c.BatchGenerateDataKey(patient(t), "k1", 600, map[string]string{"a": "1"})
	if err != nil || len(keys) != 600 {
		t.Fatalf("%d data keys, %v", len(keys), err)
	}
	for i, k := range keys {
		if want := fmt.Sprintf("%d.%d", i/256+1, i%256); string(k.Plaintext) != want || string(k.Ciphertext) != "sealed" || k.KeyID != "arn" {
			t.Fatalf("data key %d is %s, want %s", i, k.Plaintext, want)
		}
	}
	asked := n.asked()
	for i, count := range []uint32{256, 256, 88} {
		want := &quorumkmsv1.BatchGenerateDataKeyRequest{Items: []*quorumkmsv1.DataKeyItem{{
			KeyId: "k1", Spec: quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256, Count: count, EncryptionContext: []*quorumkmsv1.ContextPair{{Key: "a", Value: "1"}},
		}}}
		if len(asked) != 3 || !proto.Equal(asked[i], want) {
			t.Fatalf("asked %d times, %v; want %v", len(asked), asked[i], want)
		}
	}
	keys[0].Wipe()
	if !bytes.Equal(keys[0].Plaintext, make([]byte, 3)) {
		t.Errorf("wiped: %q", keys[0].Plaintext)
	}
	for _, n := range []int{0, -1} {
		if _, err := c.BatchGenerateDataKey(patient(t), "k1", n, nil); err == nil || !strings.Contains(err.Error(), "1 at least") {
			t.Errorf("%d data keys: %v", n, err)
		}
	}
}

// TestBatchGenerateDataKeyFails: what was made before a failure comes back with it.
func TestBatchGenerateDataKeyFails(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", func(ctx context.Context, n int, request proto.Message) (proto.Message, error) {
		out, err := batches(ctx, n, request)
		switch r := out.(*quorumkmsv1.BatchGenerateDataKeyResponse); n {
		case 2:
			return nil, reasonError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED)
		case 3:
			r.Results[1] = &quorumkmsv1.DataKeyResult{Result: &quorumkmsv1.DataKeyResult_Error{Error: &quorumkmsv1.ItemError{Code: uint32(codes.PermissionDenied), Reason: quorumkmsv1.Reason_REASON_DENIED}}}
		case 4:
			r.Results = nil
		}
		return out, err
	})
	c := w.client(t, nil, n.address)
	for _, row := range []struct {
		n, made int
		want    error
	}{{300, 256, client.ErrKeyDisabled}, {3, 2, client.ErrDenied}} {
		keys, err := c.BatchGenerateDataKey(patient(t), "k1", row.n, nil)
		if len(keys) != row.made || !errors.Is(err, row.want) {
			t.Errorf("%d data keys, %v; want %d, %v", len(keys), err, row.made, row.want)
		}
	}
	if keys, err := c.BatchGenerateDataKey(patient(t), "k1", 1, nil); len(keys) != 0 || err == nil {
		t.Errorf("an answer without results: %d data keys, %v", len(keys), err)
	}
}

func TestBatchDecrypt(t *testing.T) {
	w := newWorld(t)
	broken := w.node(t, "n1", refuse(codes.Unavailable, quorumkmsv1.Reason_REASON_HSM_UNAVAILABLE))
	n := w.node(t, "n2", batches)
	c := w.client(t, nil, broken.address, n.address)
	all := make([]client.Ciphertext, 300)
	for i := range all {
		all[i].Blob = fmt.Appendf(nil, "sealed %d", i)
	}
	all[7].Blob, all[299].Blob = []byte("of a disabled key"), []byte("another")
	out, err := c.BatchDecrypt(patient(t), all) // the first node cannot
	if err != nil || len(out) != len(all) {
		t.Fatalf("%d results, %v", len(out), err)
	}
	for i, x := range out {
		if i == 7 || i == 299 {
			var e *client.Error
			if !errors.Is(x.Err, client.ErrKeyDisabled) || !errors.As(x.Err, &e) || e.Address != n.address || e.Code != codes.FailedPrecondition || e.Message != "key is disabled" {
				t.Errorf("item %d: %v", i, x.Err)
			}
		} else if x.Err != nil || string(x.Plaintext) != fmt.Sprint(i) {
			t.Errorf("item %d: %q, %v", i, x.Plaintext, x.Err)
		}
	}
	if out, err := c.BatchDecrypt(patient(t), nil); len(out) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", out, err)
	}
}

// TestBatchDecryptFits: a request is never larger than a node takes it, unless a single item is.
func TestBatchDecryptFits(t *testing.T) {
	w := newWorld(t)
	largest := 0
	n := w.node(t, "n1", func(ctx context.Context, n int, request proto.Message) (proto.Message, error) {
		largest = max(largest, proto.Size(request))
		return batches(ctx, n, request)
	})
	c := w.client(t, func(c *client.Config) { c.Tenant = strings.Repeat("t", 64) }, n.address)
	all := make([]client.Ciphertext, 300)
	for i := range all {
		all[i] = client.Ciphertext{Blob: append([]byte("sealed "), make([]byte, 4000)...), Context: map[string]string{"k": strings.Repeat("v", i*30)}}
	}
	out, err := c.BatchDecrypt(patient(t), all)
	if err != nil || len(out) != 300 || largest > 1<<20 || largest < 1<<19 || len(n.asked()) > 4 {
		t.Errorf("%d results, %v; the largest of %d requests has %d bytes", len(out), err, len(n.asked()), largest)
	}
}

// TestBatchDecryptMisanswered: an answer that does not have a result for each item is none.
func TestBatchDecryptMisanswered(t *testing.T) {
	w := newWorld(t)
	n := w.node(t, "n1", func(ctx context.Context, n int, request proto.Message) (proto.Message, error) {
		out, err := batches(ctx, n, request)
		r := out.(*quorumkmsv1.BatchDecryptResponse)
		r.Results = r.GetResults()[:n]
		r.Results[0] = &quorumkmsv1.DecryptResult{}
		return r, err
	})
	c := w.client(t, nil, n.address)
	two := []client.Ciphertext{{Blob: []byte("sealed 1")}, {Blob: []byte("sealed 2")}}
	if out, err := c.BatchDecrypt(patient(t), two); err == nil || out != nil {
		t.Errorf("one result for two: %v, %v", out, err)
	}
	if out, err := c.BatchDecrypt(patient(t), two); err != nil || out[0].Err == nil || out[1].Err != nil {
		t.Errorf("a result that is none: %v, %v", out, err)
	}
}
