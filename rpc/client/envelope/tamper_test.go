package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/minio/sio"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

func TestTruncatedAtEveryByte(t *testing.T) {
	v := newVault()
	for _, n := range []int{0, 1, 300} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, v, plaintext, size)
			want := envelope.ErrTruncated
			if size == envelope.UnknownSize {
				want = envelope.ErrCorrupt
			}
			for cut := range len(object) {
				mustRefuse(t, v, object[:cut], plaintext, fmt.Sprintf("size %d cut at %d of %d", size, cut, len(object)), want)
			}
		}
	}
	v.checkWiped(t, 1000)
}

func TestTruncatedAtPackages(t *testing.T) {
	for _, n := range []int{refPayload, 3 * refPayload, 3*refPayload + 77} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, testKeys, plaintext, size)
			stream := refFixed + len(testKeys.blob)
			for at := stream; at <= len(object); at += refPackLen {
				for cut := at - 1; cut <= at+1 && cut < len(object); cut++ {
					want := envelope.ErrCorrupt
					if cut == at || size != envelope.UnknownSize || cut < stream {
						want = envelope.ErrTruncated
					}
					mustRefuse(t, testKeys, object[:cut], plaintext, fmt.Sprintf("size %d cut at %d of %d", size, cut, len(object)), want)
				}
			}
		}
	}
}

func TestTrailing(t *testing.T) {
	for _, n := range []int{0, 1, 100, refPayload, refPayload + 1, 2 * refPayload} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, testKeys, plaintext, size)
			stream := object[refFixed+len(testKeys.blob):]
			for name, more := range map[string][]byte{
				"a byte":     {0},
				"32 bytes":   make([]byte, 32),
				"33 bytes":   make([]byte, 33),
				"a package":  make([]byte, refPackLen),
				"its object": object,
				"its stream": stream,
			} {
				if len(more) == 0 {
					continue
				}
				mustRefuse(t, testKeys, slices.Concat(object, more), plaintext, fmt.Sprintf("size %d and %s", size, name), envelope.ErrCorrupt)
			}
		}
	}
}

func TestEveryByteFlipped(t *testing.T) {
	v := newVault()
	for _, n := range []int{0, 1, 200} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, v, plaintext, size)
			for i := range object {
				for _, bit := range []byte{0x01, 0x10, 0x80} {
					bad := bytes.Clone(object)
					bad[i] ^= bit
					mustRefuse(t, v, bad, plaintext, fmt.Sprintf("size %d byte %d ^ %#x", size, i, bit), envelope.ErrFormat, envelope.ErrCorrupt, errVault)
				}
			}
		}
	}
}

// TestBytesFlippedUnderOneKey has the key service open whatever blob it is
// given: header and stream are held by this package alone.
func TestBytesFlippedUnderOneKey(t *testing.T) {
	plaintext := pattern(2*refPayload + 50)
	start := refFixed + len(testKeys.blob)
	for _, size := range sizes(len(plaintext)) {
		object := seal(t, testKeys, plaintext, size)
		var places []int
		for i := range refFixed {
			places = append(places, i)
		}
		for p := start; p < len(object); p += refPackLen {
			for i := range 18 {
				places = append(places, p+i)
			}
			places = append(places, p+refPackLen/2, p+refPackLen-17, p+refPackLen-1)
		}
		places = append(places, len(object)-1)
		for _, i := range places {
			if i >= len(object) {
				continue
			}
			bad := bytes.Clone(object)
			bad[i] ^= 0x80
			mustRefuse(t, testKeys, bad, plaintext, fmt.Sprintf("size %d byte %d", size, i), envelope.ErrFormat, envelope.ErrCorrupt)
		}
	}
}

// TestPackagesMoved rearranges whole packages, also those of another object
// under the same data key.
func TestPackagesMoved(t *testing.T) {
	plaintext := pattern(3*refPayload + 50)
	for _, size := range sizes(len(plaintext)) {
		head, p := split(seal(t, testKeys, plaintext, size))
		otherHead, q := split(seal(t, testKeys, plaintext, size))
		for name, parts := range map[string][][]byte{
			"first two swapped":     {head, p[1], p[0], p[2], p[3]},
			"middle two swapped":    {head, p[0], p[2], p[1], p[3]},
			"final one first":       {head, p[3], p[0], p[1], p[2]},
			"first dropped":         {head, p[1], p[2], p[3]},
			"middle dropped":        {head, p[0], p[2], p[3]},
			"middle twice":          {head, p[0], p[1], p[1], p[2], p[3]},
			"first twice":           {head, p[0], p[0], p[2], p[3]},
			"only the final":        {head, p[3]},
			"final twice":           {head, p[0], p[1], p[2], p[3], p[3]},
			"final in the middle":   {head, p[0], p[1], p[3], p[2]},
			"first of another":      {head, q[0], p[1], p[2], p[3]},
			"middle of another":     {head, p[0], q[1], p[2], p[3]},
			"final of another":      {head, p[0], p[1], p[2], q[3]},
			"all of another":        {head, q[0], q[1], q[2], q[3]},
			"header of another":     {otherHead, p[0], p[1], p[2], p[3]},
			"two streams":           {head, p[0], p[1], p[2], p[3], q[0], q[1], q[2], q[3]},
			"two objects":           {head, p[0], p[1], p[2], p[3], otherHead, q[0], q[1], q[2], q[3]},
			"salt of another":       {head[:14], otherHead[14:46], head[46:], p[0], p[1], p[2], p[3]},
			"commitment of another": {head[:46], otherHead[46:78], head[78:], p[0], p[1], p[2], p[3]},
		} {
			mustRefuse(t, testKeys, slices.Concat(parts...), plaintext, fmt.Sprintf("size %d, %s", size, name), envelope.ErrCorrupt)
		}
	}
}

// split returns the header of an object of testKeys, and its packages.
func split(object []byte) (head []byte, packages [][]byte) {
	start := refFixed + len(testKeys.blob)
	return object[:start], slices.Collect(slices.Chunk(object[start:], refPackLen))
}

func TestWrongContext(t *testing.T) {
	v := newVault()
	object := seal(t, v, pattern(100), 100)
	for name, ec := range map[string]map[string]string{
		"none":      nil,
		"empty":     {},
		"less":      {"tenant": "default"},
		"more":      {"tenant": "default", "resource": "bucket/object", "x": ""},
		"other":     {"tenant": "default", "resource": "bucket/other"},
		"other key": {"tenant": "default", "Resource": "bucket/object"},
	} {
		var b bytes.Buffer
		if _, err := envelope.Open(t.Context(), v, ec, &b, bytes.NewReader(object)); !errors.Is(err, errVault) || b.Len() != 0 {
			t.Errorf("%s: %d bytes, error %v, want %v", name, b.Len(), err, errVault)
		}
		if _, err := envelope.NewReaderAt(t.Context(), v, ec, bytes.NewReader(object), int64(len(object))); !errors.Is(err, errVault) {
			t.Errorf("%s: reader at: error %v, want %v", name, err, errVault)
		}
	}
}

// TestLies has the holder of the data key write objects whose header commits
// to something that the stream is not.
func TestLies(t *testing.T) {
	full, rest := refPackage{payload: pattern(refPayload)}, refPackage{payload: pattern(50)}
	end := func(p refPackage) refPackage { return refPackage{payload: p.payload, final: true} }
	for name, lie := range map[string]struct {
		declared int64
		packages []refPackage
		want     error
	}{
		"one byte less":                   {49, []refPackage{end(rest)}, envelope.ErrCorrupt},
		"one byte more":                   {51, []refPackage{end(rest)}, envelope.ErrTruncated},
		"empty, with a stream":            {0, []refPackage{end(rest)}, envelope.ErrCorrupt},
		"not empty, without a stream":     {50, nil, envelope.ErrTruncated},
		"a package more":                  {2 * refPayload, []refPackage{end(full)}, envelope.ErrTruncated},
		"a package less":                  {refPayload, []refPackage{full, end(full)}, envelope.ErrCorrupt},
		"most":                            {envelope.MaxSize, []refPackage{full, end(rest)}, envelope.ErrTruncated},
		"no final package":                {refPayload, []refPackage{full}, envelope.ErrCorrupt},
		"no final package, short":         {50, []refPackage{rest}, envelope.ErrCorrupt},
		"final before the end":            {2*refPayload + 50, []refPackage{full, end(full), end(rest)}, envelope.ErrCorrupt},
		"final first":                     {refPayload + 50, []refPackage{end(full), end(rest)}, envelope.ErrCorrupt},
		"short in the middle":             {refPayload + 50, []refPackage{rest, end(full)}, envelope.ErrCorrupt},
		"unknown, no stream":              {envelope.UnknownSize, nil, envelope.ErrTruncated},
		"unknown, no final package":       {envelope.UnknownSize, []refPackage{full, full}, envelope.ErrTruncated},
		"unknown, no final package short": {envelope.UnknownSize, []refPackage{full, rest}, envelope.ErrCorrupt},
		"unknown, final before the end":   {envelope.UnknownSize, []refPackage{full, end(full), end(rest)}, envelope.ErrCorrupt},
	} {
		r := honest(nil, lie.declared == envelope.UnknownSize)
		r.packages = lie.packages
		if !r.unknown {
			r.declared = uint64(lie.declared)
		}
		var plaintext []byte
		for _, p := range lie.packages {
			plaintext = append(plaintext, p.payload...)
		}
		for reader, read := range readers {
			got, err := read(t.Context(), testKeys, r.object())
			if !errors.Is(err, lie.want) {
				t.Errorf("%s, %s: error %v, want %v", name, reader, err, lie.want)
			}
			if !bytes.HasPrefix(plaintext, got) || !r.unknown && int64(len(got)) > lie.declared {
				t.Errorf("%s, %s: released %d bytes", name, reader, len(got))
			}
		}
	}
}

// TestOnlySuite1 seals under the right stream key what sio would also read.
func TestOnlySuite1(t *testing.T) {
	plaintext := pattern(refPayload + 100)
	for name, config := range map[string]sio.Config{
		"DARE 1.0":          {MinVersion: sio.Version10, MaxVersion: sio.Version10, CipherSuites: []byte{sio.AES_256_GCM}},
		"ChaCha20-Poly1305": {MinVersion: sio.Version20, MaxVersion: sio.Version20, CipherSuites: []byte{sio.CHACHA20_POLY1305}},
		"AES-256-GCM":       {MinVersion: sio.Version20, MaxVersion: sio.Version20, CipherSuites: []byte{sio.AES_256_GCM}},
	} {
		for _, unknown := range []bool{false, true} {
			r := honest(plaintext, unknown)
			config.Key = r.derive("keo/data/v1")
			stream := bytes.NewBuffer(r.header())
			if _, err := sio.Encrypt(stream, bytes.NewReader(plaintext), config); err != nil {
				t.Fatal(err)
			}
			if name == "AES-256-GCM" {
				mustOpen(t, testKeys, stream.Bytes(), plaintext)
			} else {
				mustRefuse(t, testKeys, stream.Bytes(), nil, name, envelope.ErrCorrupt)
			}
		}
	}
}

// TestSourceFails: what the source says is neither damage nor an end.
func TestSourceFails(t *testing.T) {
	for _, broken := range []error{errBroken, fmt.Errorf("lost: %w", io.EOF), fmt.Errorf("lost: %w", io.ErrUnexpectedEOF)} {
		for _, n := range []int{100, refPayload, 2 * refPayload} {
			for _, size := range sizes(n) {
				object := seal(t, testKeys, pattern(n), size)
				start := refFixed + len(testKeys.blob)
				for _, cut := range []int{start, start + 40, start + refPackLen, start + refPackLen + 40, len(object)} {
					if cut > len(object) {
						continue
					}
					src := io.MultiReader(bytes.NewReader(object[:cut]), iotest.ErrReader(broken))
					_, err := envelope.Open(t.Context(), testKeys, nil, io.Discard, src)
					if !errors.Is(err, broken) || errors.Is(err, envelope.ErrCorrupt) {
						t.Errorf("size %d, %q at %d of %d: %v", size, broken, cut, len(object), err)
					}
				}
			}
		}
	}
	object := seal(t, testKeys, pattern(1), 1)
	for _, cut := range []int{0, 3, 79, 80, 209} {
		src := io.MultiReader(bytes.NewReader(object[:cut]), iotest.ErrReader(errBroken))
		if _, err := envelope.Open(t.Context(), testKeys, nil, io.Discard, src); !errors.Is(err, errBroken) {
			t.Errorf("header cut at %d: %v, want %v", cut, err, errBroken)
		}
	}
}

func TestErrorsLast(t *testing.T) {
	plaintext := pattern(3 * refPayload)
	object := seal(t, testKeys, plaintext, int64(len(plaintext)))
	object[refFixed+len(testKeys.blob)+refPackLen+100] ^= 1 // in the second package
	r, err := envelope.NewOpenReader(t.Context(), testKeys, nil, bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if !errors.Is(err, envelope.ErrCorrupt) || !bytes.Equal(got, plaintext[:refPayload]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, n := range []int{0, 1, 1000, 2 * refPayload} {
		if k, again := r.Read(make([]byte, n)); k != 0 || !errors.Is(again, envelope.ErrCorrupt) {
			t.Errorf("read of %d after the error: %d, %v", n, k, again)
		}
	}
}
