package envelope_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

// seeds returns objects of testKeys, each under its own salt, with their
// plaintexts.
func seeds() (objects, plaintexts [][]byte) {
	for i, n := range []int{0, 1, 40, 700, refPayload, refPayload + 20} {
		for _, unknown := range []bool{false, true} {
			r := honest(pattern(n), unknown && n > 0)
			r.salt = binary.BigEndian.AppendUint16(make([]byte, 30), uint16(2*i))
			objects, plaintexts = append(objects, r.object()), append(plaintexts, pattern(n))
		}
	}
	return objects, plaintexts
}

func FuzzParseHeader(f *testing.F) {
	objects, _ := seeds()
	for _, object := range objects {
		head, _ := split(object)
		f.Add(head)
	}
	f.Add([]byte("KEO1"))
	f.Add(honest(nil, true).header()[:80])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := envelope.ParseHeader(b)
		if err != nil {
			return
		}
		if h.Len() != len(b) || len(h.Blob) == 0 || h.Size < envelope.UnknownSize || h.Size > envelope.MaxSize {
			t.Errorf("size %d, blob of %d, length %d of %d", h.Size, len(h.Blob), h.Len(), len(b))
		}
		same, err := envelope.Rewrap(t.Context(), b, func(_ context.Context, blob []byte) ([]byte, error) { return blob, nil })
		if err != nil || !bytes.Equal(same, b) {
			t.Errorf("encoded again: %x, %v, want %x", same, err, b)
		}
	})
}

// FuzzOpen: nothing opens but the objects that were sealed, and all readers
// are of one opinion. The blob alone is free: testKeys ignores it.
func FuzzOpen(f *testing.F) {
	objects, plaintexts := seeds()
	sealed := map[string][]byte{}
	for i, object := range objects {
		head, _ := split(object)
		sealed[string(head[:78])+string(object[len(head):])] = plaintexts[i]
		f.Add(object)
		f.Add(object[:len(object)-1])
		f.Add(append(bytes.Clone(object), 0))
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		h, err := envelope.ReadHeader(bytes.NewReader(object))
		if err != nil {
			mustRefuse(t, testKeys, object, nil, "no header", envelope.ErrFormat, envelope.ErrTruncated)
			return
		}
		plaintext, ok := sealed[string(object[:78])+string(object[h.Len():])]
		if ok {
			mustOpen(t, testKeys, object, plaintext)
			return
		}
		for name, read := range readers {
			if got, err := read(t.Context(), testKeys, object); !isAny(err, []error{envelope.ErrCorrupt}) {
				t.Errorf("%s: %d bytes, error %v, want %v", name, len(got), err, envelope.ErrCorrupt)
			}
		}
	})
}
