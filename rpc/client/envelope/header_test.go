package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

func TestParseHeader(t *testing.T) {
	known, unknown := honest(pattern(300), false).header(), honest(pattern(300), true).header()
	set := func(b []byte, at int, values ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], values)
		return b
	}
	for name, tt := range map[string]struct {
		header []byte
		size   int64
		err    error
	}{
		"known":                 {known, 300, nil},
		"unknown":               {unknown, envelope.UnknownSize, nil},
		"empty object":          {set(known, 6, 0, 0, 0, 0, 0, 0, 0, 0), 0, nil},
		"largest":               {set(known, 6, 0, 1, 0, 0, 0, 0, 0, 0), envelope.MaxSize, nil},
		"too large":             {set(known, 6, 0, 1, 0, 0, 0, 0, 0, 1), 0, envelope.ErrFormat},
		"negative":              {set(known, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), 0, envelope.ErrFormat},
		"unknown with length":   {set(unknown, 13, 1), 0, envelope.ErrFormat},
		"unknown, length 2^48":  {set(unknown, 7, 1), 0, envelope.ErrFormat},
		"nothing":               {nil, 0, envelope.ErrTruncated},
		"half a magic":          {[]byte("KE"), 0, envelope.ErrTruncated},
		"short and no magic":    {[]byte("KEX"), 0, envelope.ErrFormat},
		"another magic":         {set(known, 3, '2'), 0, envelope.ErrFormat},
		"text":                  {[]byte(strings.Repeat("text ", 100)), 0, envelope.ErrFormat},
		"suite 0":               {set(known, 4, 0), 0, envelope.ErrFormat},
		"suite 2":               {set(known, 4, 2), 0, envelope.ErrFormat},
		"flag 2":                {set(known, 5, 2), 0, envelope.ErrFormat},
		"flag 128, unknown":     {set(unknown, 5, 0x81), 0, envelope.ErrFormat},
		"no blob":               {set(known[:80], 78, 0, 0), 0, envelope.ErrFormat},
		"blob a byte short":     {known[:len(known)-1], 0, envelope.ErrTruncated},
		"blob missing":          {known[:80], 0, envelope.ErrTruncated},
		"fixed part cut":        {known[:79], 0, envelope.ErrTruncated},
		"a byte behind":         {append(bytes.Clone(known), 0), 0, envelope.ErrFormat},
		"blob length too small": {set(known, 78, 0, 129), 0, envelope.ErrFormat},
	} {
		h, err := envelope.ParseHeader(tt.header)
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: error %v, want %v", name, err, tt.err)
			continue
		}
		if tt.err != nil {
			continue
		}
		if h.Size != tt.size || !bytes.Equal(h.Blob, testKeys.blob) || h.Len() != len(tt.header) {
			t.Errorf("%s: size %d, blob %x, length %d", name, h.Size, h.Blob, h.Len())
		}
	}
}

// TestReadHeaderStops: the reader is left where the stream begins.
func TestReadHeaderStops(t *testing.T) {
	object := honest(pattern(300), false).object()
	r := bytes.NewReader(object)
	h, err := envelope.ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(object) - r.Len(); got != h.Len() {
		t.Errorf("read %d bytes, the header has %d", got, h.Len())
	}
}

func TestRewrap(t *testing.T) {
	v := newVault()
	for _, n := range []int{0, 1, 2*refPayload + 9} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, v, plaintext, size)
			h, err := envelope.ReadHeader(bytes.NewReader(object))
			if err != nil {
				t.Fatal(err)
			}
			head, stream := object[:h.Len()], object[h.Len():]
			before := bytes.Clone(head)
			for _, key := range []string{"k", keyName, strings.Repeat("long", 50)} {
				rewrapped, err := envelope.Rewrap(t.Context(), head, v.reencrypt(key))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(head, before) {
					t.Fatal("the header given was changed")
				}
				if !bytes.Equal(rewrapped[:78], head[:78]) || len(rewrapped)-len(head) != len(key)-len(keyName) {
					t.Errorf("key of %d: header of %d bytes for one of %d", len(key), len(rewrapped), len(head))
				}
				mustOpen(t, v, slices.Concat(rewrapped, stream), plaintext)
			}
		}
	}
	v.checkWiped(t, 10)
}

func TestRewrapRefuses(t *testing.T) {
	object := honest(pattern(10), false)
	header := object.header()
	give := func(n int) func(context.Context, []byte) ([]byte, error) {
		return func(context.Context, []byte) ([]byte, error) { return make([]byte, n), nil }
	}
	for name, tt := range map[string]struct {
		header    []byte
		reencrypt func(context.Context, []byte) ([]byte, error)
		want      error
	}{
		"largest blob":   {header, give(envelope.MaxBlobSize), nil},
		"no blob":        {header, give(0), envelope.ErrDataKey},
		"too large blob": {header, give(envelope.MaxBlobSize + 1), envelope.ErrDataKey},
		"whole object":   {object.object(), give(1), envelope.ErrFormat},
		"half a header":  {header[:100], give(1), envelope.ErrTruncated},
		"key service":    {header, func(context.Context, []byte) ([]byte, error) { return nil, errVault }, errVault},
	} {
		got, err := envelope.Rewrap(t.Context(), tt.header, tt.reencrypt)
		if !errors.Is(err, tt.want) || (err == nil) != (got != nil) {
			t.Errorf("%s: %d bytes, error %v, want %v", name, len(got), err, tt.want)
		}
	}
}

// TestRewrapWithAnotherDataKey: an object does not open under a data key that
// is not its own.
func TestRewrapWithAnotherDataKey(t *testing.T) {
	v := newVault()
	for _, size := range sizes(100) {
		object := seal(t, v, pattern(100), size)
		h, err := envelope.ReadHeader(bytes.NewReader(object))
		if err != nil {
			t.Fatal(err)
		}
		rewrapped, err := envelope.Rewrap(t.Context(), object[:h.Len()], func(ctx context.Context, _ []byte) ([]byte, error) {
			_, blob, err := v.GenerateDataKey(ctx, keyName, objectContext)
			return blob, err
		})
		if err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, v, slices.Concat(rewrapped, object[h.Len():]), nil, "another data key", envelope.ErrCorrupt)
	}
}

// oddKeys is a key service that does not keep its word.
type oddKeys struct {
	keySize, blobSize int
	err               error
	handed            [][]byte
}

func (o *oddKeys) GenerateDataKey(ctx context.Context, _ string, ec map[string]string) (plaintext, blob []byte, err error) {
	blob = make([]byte, o.blobSize)
	plaintext, err = o.DecryptDataKey(ctx, blob, ec)
	return plaintext, blob, err
}

func (o *oddKeys) DecryptDataKey(context.Context, []byte, map[string]string) ([]byte, error) {
	key := bytes.Repeat([]byte{1}, o.keySize)
	o.handed = append(o.handed, key)
	return key, o.err
}

func TestOddKeys(t *testing.T) {
	object := honest(pattern(10), false).object()
	for name, tt := range map[string]struct {
		keys       *oddKeys
		seal, open error
	}{
		"as agreed":      {&oddKeys{keySize: 32, blobSize: 100}, nil, envelope.ErrCorrupt},
		"smallest blob":  {&oddKeys{keySize: 32, blobSize: 1}, nil, envelope.ErrCorrupt},
		"largest blob":   {&oddKeys{keySize: 32, blobSize: envelope.MaxBlobSize}, nil, envelope.ErrCorrupt},
		"no blob":        {&oddKeys{keySize: 32}, envelope.ErrDataKey, envelope.ErrCorrupt},
		"too large blob": {&oddKeys{keySize: 32, blobSize: envelope.MaxBlobSize + 1}, envelope.ErrDataKey, envelope.ErrCorrupt},
		"no key":         {&oddKeys{blobSize: 100}, envelope.ErrDataKey, envelope.ErrDataKey},
		"key of 16":      {&oddKeys{keySize: 16, blobSize: 100}, envelope.ErrDataKey, envelope.ErrDataKey},
		"key of 31":      {&oddKeys{keySize: 31, blobSize: 100}, envelope.ErrDataKey, envelope.ErrDataKey},
		"key of 33":      {&oddKeys{keySize: 33, blobSize: 100}, envelope.ErrDataKey, envelope.ErrDataKey},
		"error":          {&oddKeys{keySize: 32, blobSize: 100, err: errVault}, errVault, errVault},
	} {
		var b bytes.Buffer
		_, err := envelope.Seal(t.Context(), tt.keys, keyName, nil, &b, bytes.NewReader(pattern(10)), 10)
		if !errors.Is(err, tt.seal) || err != nil && b.Len() > 0 {
			t.Errorf("%s: seal: %d bytes, error %v, want %v", name, b.Len(), err, tt.seal)
		}
		if _, err := envelope.Open(t.Context(), tt.keys, nil, io.Discard, bytes.NewReader(object)); !errors.Is(err, tt.open) {
			t.Errorf("%s: open: error %v, want %v", name, err, tt.open)
		}
		if _, err := envelope.NewReaderAt(t.Context(), tt.keys, nil, bytes.NewReader(object), int64(len(object))); !errors.Is(err, tt.open) {
			t.Errorf("%s: reader at: error %v, want %v", name, err, tt.open)
		}
		if len(tt.keys.handed) != 3 {
			t.Errorf("%s: %d data keys given out, want 3", name, len(tt.keys.handed))
		}
		for _, key := range tt.keys.handed {
			if !bytes.Equal(key, make([]byte, len(key))) {
				t.Errorf("%s: a data key is not wiped", name)
			}
		}
	}
}
