package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

// hexBytes is a string of hexadecimal digits in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

type vector struct {
	Size     int
	Unknown  bool
	DataKey  hexBytes
	Salt     hexBytes
	Nonce    hexBytes
	Blob     hexBytes
	BlobSize int
	Header   hexBytes // up to the blob
	Object   hexBytes // where it is short
	SHA256   hexBytes // of the whole object
}

// TestGolden keeps the format as it was first released: what is written now is
// what was written then, and both are what the description says.
func TestGolden(t *testing.T) {
	b, err := os.ReadFile("testdata/keo1.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) != 13 {
		t.Fatalf("%d vectors, want 13", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(fmt.Sprintf("size=%d,unknown=%t", v.Size, v.Unknown), func(t *testing.T) { checkVector(t, v) })
	}
}

func checkVector(t *testing.T, v vector) {
	plaintext, size := pattern(v.Size), int64(v.Size)
	if v.BlobSize > 0 {
		v.Blob = pattern(v.BlobSize)
	}
	if v.Unknown {
		size = envelope.UnknownSize
	}
	keys := fixedKeys{dataKey: v.DataKey, blob: v.Blob}

	var sealed bytes.Buffer
	random := bytes.NewReader(append(bytes.Clone(v.Salt), v.Nonce...))
	w, err := envelope.NewSealWriterFrom(t.Context(), keys, keyName, nil, &sealed, size, random)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plaintext); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	r := honest(plaintext, v.Unknown && v.Size > 0)
	r.dataKey, r.salt, r.nonce, r.blob = v.DataKey, v.Salt, v.Nonce, v.Blob
	for name, object := range map[string][]byte{"sealed": sealed.Bytes(), "reference": r.object()} {
		if sum := sha256.Sum256(object); !bytes.Equal(sum[:], v.SHA256) {
			t.Errorf("%s: SHA-256 %x, want %x", name, sum, v.SHA256)
		}
		if !bytes.HasPrefix(object, v.Header) {
			t.Errorf("%s: header %x, want %x", name, object[:refFixed], v.Header)
		}
	}
	if v.Object != nil {
		mustOpen(t, keys, v.Object, plaintext)
	}
	mustOpen(t, keys, sealed.Bytes(), plaintext)
}
