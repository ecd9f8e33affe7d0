package envelope_test

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"pgregory.net/rapid"
)

// sizeGen draws sizes up to n, mostly near the ends of packages.
func sizeGen(n int) *rapid.Generator[int] {
	near := rapid.Custom(func(t *rapid.T) int {
		packages := rapid.IntRange(0, n/refPayload).Draw(t, "packages")
		return min(max(packages*refPayload+rapid.IntRange(-2, 2).Draw(t, "more"), 0), n)
	})
	return rapid.OneOf(near, rapid.IntRange(0, n))
}

// TestProperty: what was written in whatever pieces is read back in whatever
// pieces and ranges; and what was changed in whatever way is refused.
func TestProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		plaintext := pattern(sizeGen(3*refPayload+100).Draw(rt, "size"))
		size := rapid.SampledFrom(sizes(len(plaintext))).Draw(rt, "declared")
		object := sealPieces(rt, plaintext, size)

		r, err := envelope.NewReaderAt(t.Context(), testKeys, nil, bytes.NewReader(object), int64(len(object)))
		if err != nil {
			rt.Fatal(err)
		}
		off := sizeGen(len(plaintext)).Draw(rt, "off")
		n := sizeGen(len(plaintext)-off).Draw(rt, "n")
		section, err := r.Range(int64(off), int64(n))
		if err != nil {
			rt.Fatal(err)
		}
		whole, err := envelope.NewOpenReader(t.Context(), testKeys, nil, bytes.NewReader(object))
		if err != nil {
			rt.Fatal(err)
		}
		buffer := rapid.IntRange(1, 100_000).Draw(rt, "buffer")
		if got, err := readPieces(section, buffer); err != nil || !bytes.Equal(got, plaintext[off:off+n]) {
			rt.Errorf("range of %d at %d of %d: %d bytes, %v", n, off, len(plaintext), len(got), err)
		}
		if got, err := readPieces(whole, buffer); err != nil || !bytes.Equal(got, plaintext) {
			rt.Errorf("whole of %d: %d bytes, %v", len(plaintext), len(got), err)
		}

		bad := change(rt, object)
		start := refFixed + len(testKeys.blob)
		if bytes.Equal(bad[:min(78, len(bad))], object[:78]) && bytes.Equal(bad[min(start, len(bad)):], object[start:]) {
			return // in the blob, which testKeys ignores, or not at all
		}
		for name, read := range readers {
			got, err := read(t.Context(), testKeys, bad)
			if !isAny(err, []error{envelope.ErrFormat, envelope.ErrCorrupt}) || !bytes.HasPrefix(plaintext, got) {
				rt.Errorf("changed, %s: %d bytes, %v", name, len(got), err)
			}
		}
	})
}

func sealPieces(rt *rapid.T, plaintext []byte, size int64) []byte {
	var object bytes.Buffer
	w, err := envelope.NewSealWriter(rt.Context(), testKeys, keyName, nil, &object, size)
	if err != nil {
		rt.Fatal(err)
	}
	piece := rapid.IntRange(1, 200_000).Draw(rt, "piece")
	for p := range slices.Chunk(plaintext, max(piece, len(plaintext)/100)) {
		if n, err := w.Write(p); n != len(p) || err != nil {
			rt.Fatalf("write of %d: %d, %v", len(p), n, err)
		}
	}
	if err := w.Close(); err != nil {
		rt.Fatal(err)
	}
	return object.Bytes()
}

func readPieces(r io.Reader, buffer int) ([]byte, error) {
	var b bytes.Buffer
	_, err := io.CopyBuffer(struct{ io.Writer }{&b}, struct{ io.Reader }{r}, make([]byte, buffer))
	return b.Bytes(), err
}

// change returns object with a piece of it flipped, taken out, doubled or put
// elsewhere.
func change(rt *rapid.T, object []byte) []byte {
	from := rapid.IntRange(0, len(object)-1).Draw(rt, "from")
	to := rapid.IntRange(from+1, len(object)).Draw(rt, "to")
	piece := object[from:to]
	switch rapid.IntRange(0, 3).Draw(rt, "change") {
	case 0:
		bad := bytes.Clone(object)
		bad[from] ^= rapid.ByteRange(1, 255).Draw(rt, "bits")
		return bad
	case 1:
		return slices.Concat(object[:from], object[to:])
	case 2:
		return slices.Concat(object[:to], piece, object[to:])
	default:
		rest := slices.Concat(object[:from], object[to:])
		return slices.Insert(rest, rapid.IntRange(0, len(rest)).Draw(rt, "place"), piece...)
	}
}
