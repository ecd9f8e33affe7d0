package envelope_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

const keyName = "alias/objects"

var objectContext = map[string]string{"tenant": "default", "resource": "bucket/object"}

var errVault = errors.New("vault: cannot decrypt")

// vault is a key service in memory. Blobs are bound to the key's name and to
// the encryption context.
type vault struct {
	master cipher.AEAD

	mu     sync.Mutex
	handed [][]byte // every plaintext data key given out
}

func newVault() *vault {
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		panic(err)
	}
	master, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return &vault{master: master}
}

func (v *vault) GenerateDataKey(_ context.Context, key string, ec map[string]string) (plaintext, blob []byte, err error) {
	plaintext = make([]byte, envelope.DataKeySize)
	if _, err := rand.Read(plaintext); err != nil {
		return nil, nil, err
	}
	blob = v.seal(key, plaintext, ec)
	return v.hand(plaintext), blob, nil
}

func (v *vault) DecryptDataKey(_ context.Context, blob []byte, ec map[string]string) ([]byte, error) {
	if len(blob) == 0 || len(blob) < 1+int(blob[0]) {
		return nil, errVault
	}
	key, sealed := blob[1:1+blob[0]], blob[1+blob[0]:]
	plaintext, err := v.master.Open(nil, nil, sealed, boundTo(string(key), ec))
	if err != nil {
		return nil, errVault
	}
	return v.hand(plaintext), nil
}

// reencrypt moves a blob to key without a change of context.
func (v *vault) reencrypt(key string) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, blob []byte) ([]byte, error) {
		plaintext, err := v.DecryptDataKey(ctx, blob, objectContext)
		if err != nil {
			return nil, err
		}
		defer clear(plaintext)
		return v.seal(key, plaintext, objectContext), nil
	}
}

func (v *vault) seal(key string, plaintext []byte, ec map[string]string) []byte {
	blob := append([]byte{byte(len(key))}, key...)
	return v.master.Seal(blob, nil, plaintext, boundTo(key, ec))
}

func (v *vault) hand(plaintext []byte) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.handed = append(v.handed, plaintext)
	return plaintext
}

// checkWiped fails unless every data key given out has been overwritten.
func (v *vault) checkWiped(t *testing.T, atLeast int) {
	t.Helper()
	if len(v.handed) < atLeast {
		t.Errorf("%d data keys given out, want %d at least", len(v.handed), atLeast)
	}
	for i, key := range v.handed {
		if !bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("data key %d of %d is not wiped", i, len(v.handed))
		}
	}
}

func boundTo(key string, ec map[string]string) []byte {
	b, err := json.Marshal(ec) // sorted by key
	if err != nil {
		panic(err)
	}
	return append([]byte(key+"\x00"), b...)
}

// fixedKeys returns one data key for whatever blob, so that every defence but
// the key service's is on trial.
type fixedKeys struct{ dataKey, blob []byte }

func (f fixedKeys) GenerateDataKey(context.Context, string, map[string]string) (plaintext, blob []byte, err error) {
	return bytes.Clone(f.dataKey), f.blob, nil
}

func (f fixedKeys) DecryptDataKey(context.Context, []byte, map[string]string) ([]byte, error) {
	return bytes.Clone(f.dataKey), nil
}

var testKeys = fixedKeys{dataKey: bytes.Repeat([]byte{0xd5}, 32), blob: bytes.Repeat([]byte{0xb1}, 130)}

// pattern returns size bytes, those that testdata/keo1.json speaks of.
func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(7*i + 13*(i>>8) + i>>16)
	}
	return b
}

func seal(t testing.TB, keys envelope.DataKeys, plaintext []byte, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := envelope.Seal(t.Context(), keys, keyName, objectContext, &b, bytes.NewReader(plaintext), size)
	if err != nil {
		t.Fatalf("seal %d bytes as %d: %v", len(plaintext), size, err)
	}
	if n != int64(len(plaintext)) {
		t.Fatalf("seal %d bytes as %d: took %d", len(plaintext), size, n)
	}
	return b.Bytes()
}

// sizes returns both ways to declare n bytes.
func sizes(n int) []int64 { return []int64{int64(n), envelope.UnknownSize} }

// readers are all ways to read an object whole. They return what was released
// before an error.
var readers = map[string]func(ctx context.Context, keys envelope.DataKeys, object []byte) ([]byte, error){
	"stream": func(ctx context.Context, keys envelope.DataKeys, object []byte) ([]byte, error) {
		var b bytes.Buffer
		n, err := envelope.Open(ctx, keys, objectContext, &b, bytes.NewReader(object))
		if n != int64(b.Len()) {
			return nil, fmt.Errorf("open reports %d bytes of %d", n, b.Len())
		}
		return b.Bytes(), err
	},
	"reader": func(ctx context.Context, keys envelope.DataKeys, object []byte) ([]byte, error) {
		r, err := envelope.NewOpenReader(ctx, keys, objectContext, bytes.NewReader(object))
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		_, err = io.CopyBuffer(struct{ io.Writer }{&b}, r, make([]byte, 4999))
		return b.Bytes(), err
	},
	"range": func(ctx context.Context, keys envelope.DataKeys, object []byte) ([]byte, error) {
		r, err := envelope.NewReaderAt(ctx, keys, objectContext, bytes.NewReader(object), int64(len(object)))
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		section, err := r.Range(0, r.Size())
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(&b, section)
		return b.Bytes(), err
	},
	"read at": func(ctx context.Context, keys envelope.DataKeys, object []byte) ([]byte, error) {
		r, err := envelope.NewReaderAt(ctx, keys, objectContext, bytes.NewReader(object), int64(len(object)))
		if err != nil {
			return nil, err
		}
		b := make([]byte, r.Size())
		n, err := r.ReadAt(b, 0)
		if err == io.EOF && len(b) == 0 {
			err = nil
		}
		return b[:n], err
	},
}

// mustOpen fails unless every reader returns plaintext.
func mustOpen(t *testing.T, keys envelope.DataKeys, object, plaintext []byte) {
	t.Helper()
	for name, read := range readers {
		got, err := read(t.Context(), keys, object)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got, plaintext) {
			t.Errorf("%s: %d bytes differ from the plaintext of %d", name, len(got), len(plaintext))
		}
	}
}

// mustRefuse fails unless every reader returns one of the errors wanted, and
// before it nothing but a beginning of plaintext.
func mustRefuse(t *testing.T, keys envelope.DataKeys, object, plaintext []byte, what string, want ...error) {
	t.Helper()
	for name, read := range readers {
		got, err := read(t.Context(), keys, object)
		if !isAny(err, want) {
			t.Errorf("%s, %s: error %v, want %v", what, name, err, want)
		}
		if !bytes.HasPrefix(plaintext, got) {
			t.Errorf("%s, %s: released %d bytes that are no beginning of the plaintext", what, name, len(got))
		}
	}
}

func isAny(err error, want []error) bool {
	for _, w := range want {
		if errors.Is(err, w) {
			return true
		}
	}
	return false
}
