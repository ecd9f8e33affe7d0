package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

func openAt(t *testing.T, object []byte) *envelope.ReaderAt {
	t.Helper()
	r, err := envelope.NewReaderAt(t.Context(), testKeys, objectContext, bytes.NewReader(object), int64(len(object)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// edges returns the places in an object of n bytes where something may change.
func edges(n int) []int {
	places := []int{0, n}
	for p := 0; p <= n; p += refPayload {
		places = append(places, p, p+1, p+2, p+refPayload/2, p+refPayload-1)
	}
	places = append(places, n-1, n-2)
	slices.Sort(places)
	places = slices.Compact(places)
	return slices.DeleteFunc(places, func(p int) bool { return p < 0 || p > n })
}

func TestRanges(t *testing.T) {
	for _, n := range []int{0, 1, 100, refPayload - 1, refPayload, refPayload + 1, 3*refPayload - 1, 3 * refPayload, 3*refPayload + 50} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			object := seal(t, testKeys, plaintext, size)
			r := openAt(t, object)
			if r.Size() != int64(n) {
				t.Errorf("size %d, want %d", r.Size(), n)
			}
			for _, from := range edges(n) {
				for _, to := range edges(n) {
					if from <= to {
						checkRange(t, r, plaintext, from, to)
					}
				}
			}
		}
	}
}

func checkRange(t *testing.T, r *envelope.ReaderAt, plaintext []byte, from, to int) {
	t.Helper()
	want := plaintext[from:to]
	got := make([]byte, len(want))
	n, err := r.ReadAt(got, int64(from))
	atEnd := err == io.EOF && from == len(plaintext)
	if err != nil && !atEnd || n != len(want) || !bytes.Equal(got, want) {
		t.Errorf("read at %d..%d of %d: %d bytes, %v", from, to, len(plaintext), n, err)
	}
	section, err := r.Range(int64(from), int64(to-from))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&b}, section, make([]byte, 30_000)); err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("range %d..%d of %d: %d bytes, %v", from, to, len(plaintext), b.Len(), err)
	}
}

func TestReadAtPastTheEnd(t *testing.T) {
	for _, n := range []int{0, 1, refPayload, refPayload + 1} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			r := openAt(t, seal(t, testKeys, plaintext, size))
			for _, back := range []int{0, 1, refPayload} {
				off := max(n-back, 0)
				got := make([]byte, n+100)
				k, err := r.ReadAt(got, int64(off))
				if err != io.EOF || !bytes.Equal(got[:k], plaintext[off:]) {
					t.Errorf("at %d of %d: %d bytes, %v, want io.EOF", off, n, k, err)
				}
			}
			for _, off := range []int64{int64(n) + 1, math.MaxInt64} {
				if k, err := r.ReadAt(make([]byte, 1), off); k != 0 || err != io.EOF {
					t.Errorf("at %d of %d: %d bytes, %v, want io.EOF", off, n, k, err)
				}
			}
		}
	}
}

func TestReaderAtContract(t *testing.T) {
	plaintext := pattern(1000)
	for _, size := range sizes(len(plaintext)) {
		r := openAt(t, seal(t, testKeys, plaintext, size))
		if err := iotest.TestReader(io.NewSectionReader(r, 0, r.Size()), plaintext); err != nil {
			t.Error(err)
		}
	}
}

func TestRangeOutside(t *testing.T) {
	object := seal(t, testKeys, pattern(100), 100)
	r := openAt(t, object)
	for _, tt := range []struct{ off, n int64 }{
		{-1, 1}, {0, -1}, {0, 101}, {100, 1}, {101, 0}, {1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64}, {math.MinInt64, 1},
	} {
		if _, err := r.Range(tt.off, tt.n); !errors.Is(err, envelope.ErrRange) {
			t.Errorf("range of %d at %d: %v, want %v", tt.n, tt.off, err, envelope.ErrRange)
		}
		var b bytes.Buffer
		_, err := envelope.OpenRange(t.Context(), testKeys, nil, &b, bytes.NewReader(object), int64(len(object)), tt.off, tt.n)
		if !errors.Is(err, envelope.ErrRange) || b.Len() > 0 {
			t.Errorf("open range of %d at %d: %v, want %v", tt.n, tt.off, err, envelope.ErrRange)
		}
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); !errors.Is(err, envelope.ErrRange) {
		t.Errorf("read at -1: %v, want %v", err, envelope.ErrRange)
	}
}

func TestOpenRange(t *testing.T) {
	v := newVault()
	plaintext := pattern(2<<20 + 5)
	for _, size := range sizes(len(plaintext)) {
		object := seal(t, v, plaintext, size)
		for _, tt := range []struct{ off, n int64 }{{0, 0}, {0, 1}, {5, 1 << 20}, {refPayload, refPayload}, {2 << 20, 5}, {0, 2<<20 + 5}} {
			var b bytes.Buffer
			n, err := envelope.OpenRange(t.Context(), v, objectContext, &b, bytes.NewReader(object), int64(len(object)), tt.off, tt.n)
			if err != nil || n != tt.n || !bytes.Equal(b.Bytes(), plaintext[tt.off:tt.off+tt.n]) {
				t.Errorf("%d bytes at %d: %d, %v", tt.n, tt.off, n, err)
			}
		}
	}
	v.checkWiped(t, 10)
}

// TestRangeSize gives a size that is not the source's.
func TestRangeSize(t *testing.T) {
	for _, size := range sizes(2 * refPayload) {
		object := seal(t, testKeys, pattern(2*refPayload), size)
		for _, n := range []int64{math.MinInt64, -1, 0, 79, 80, 209, 210, 211, int64(len(object)) - refPackLen, int64(len(object)) - 1} {
			if _, err := envelope.NewReaderAt(t.Context(), testKeys, nil, bytes.NewReader(object), n); !errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("size %d given as %d: %v, want %v", size, n, err, envelope.ErrCorrupt)
			}
		}
		for _, more := range []int64{1, 32, 33, refPackLen, math.MaxInt64 - int64(len(object))} {
			r, err := envelope.NewReaderAt(t.Context(), testKeys, nil, bytes.NewReader(object), int64(len(object))+more)
			if !errors.Is(err, envelope.ErrCorrupt) || r != nil {
				t.Errorf("size %d and %d: %v, want %v", size, more, err, envelope.ErrCorrupt)
			}
		}
	}
}

// TestRangeSeesDamageInIt: and beyond its packages none.
func TestRangeSeesDamageInIt(t *testing.T) {
	plaintext := pattern(4 * refPayload)
	start := refFixed + len(testKeys.blob)
	for _, size := range sizes(len(plaintext)) {
		object := seal(t, testKeys, plaintext, size)
		for damaged := range 3 { // the fourth is opened at once where the size is unknown
			bad := bytes.Clone(object)
			bad[start+damaged*refPackLen+1000] ^= 1
			r := openAt(t, bad)
			for p := range 4 {
				got := make([]byte, refPayload)
				_, err := r.ReadAt(got, int64(p)*refPayload)
				switch {
				case p == damaged && !errors.Is(err, envelope.ErrCorrupt):
					t.Errorf("package %d damaged: %v, want %v", p, err, envelope.ErrCorrupt)
				case p != damaged && (err != nil || !bytes.Equal(got, plaintext[p*refPayload:(p+1)*refPayload])):
					t.Errorf("package %d, with %d damaged: %v", p, damaged, err)
				}
			}
		}
	}
}

// TestRangeOfMovedPackages: a package is read at its own place only.
func TestRangeOfMovedPackages(t *testing.T) {
	for _, size := range sizes(4 * refPayload) {
		head, p := split(seal(t, testKeys, pattern(4*refPayload), size))
		r := openAt(t, slices.Concat(head, p[1], p[0], p[0], p[3]))
		for i := range 3 {
			if n, err := r.ReadAt(make([]byte, 10), int64(i)*refPayload); n != 0 || !errors.Is(err, envelope.ErrCorrupt) {
				t.Errorf("package %d: %d bytes, %v, want %v", i, n, err, envelope.ErrCorrupt)
			}
		}
	}
}

// TestRangeSeesFinalInTheMiddle: an author's lie is met by each range that
// touches it.
func TestRangeSeesFinalInTheMiddle(t *testing.T) {
	ref := honest(pattern(3*refPayload), false)
	ref.packages[1].final = true
	r := openAt(t, ref.object())
	for i, want := range []error{nil, envelope.ErrCorrupt, nil} {
		if _, err := r.ReadAt(make([]byte, 10), int64(i)*refPayload); !errors.Is(err, want) {
			t.Errorf("package %d: %v, want %v", i, err, want)
		}
	}
	ref.packages[2].final = false
	if _, err := openAt(t, ref.object()).ReadAt(make([]byte, 10), 2*refPayload); !errors.Is(err, envelope.ErrTruncated) {
		t.Errorf("no final package: %v, want %v", err, envelope.ErrTruncated)
	}
}

// shrinking is a source that is not as long as it was said to be, or fails.
type shrinking struct {
	r   *bytes.Reader
	end int64
	err error
}

func (s shrinking) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= s.end {
		return s.r.ReadAt(p, off)
	}
	n, err := s.r.ReadAt(p[:max(s.end-off, 0)], off)
	if err != nil {
		return n, err
	}
	return n, s.err
}

func TestRangeSourceFails(t *testing.T) {
	object := seal(t, testKeys, pattern(3*refPayload), 3*refPayload)
	end := int64(refFixed + len(testKeys.blob) + refPackLen)
	for _, tt := range []struct{ err, want error }{
		{errBroken, errBroken},
		{io.EOF, envelope.ErrTruncated},
		{fmt.Errorf("lost: %w", io.EOF), io.EOF},
	} {
		for _, cut := range []int64{end, end + 5} {
			src := shrinking{r: bytes.NewReader(object), end: cut, err: tt.err}
			r, err := envelope.NewReaderAt(t.Context(), testKeys, nil, src, int64(len(object)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.ReadAt(make([]byte, 10), 0); err != nil {
				t.Errorf("first package: %v", err)
			}
			section, err := r.Range(0, r.Size())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, section); n != refPayload || !errors.Is(err, tt.want) {
				t.Errorf("source ends with %q: %d bytes, %v, want %v", tt.err, n, err, tt.want)
			}
		}
	}
}

func TestReadAtConcurrently(t *testing.T) {
	plaintext := pattern(5*refPayload + 9)
	r := openAt(t, seal(t, testKeys, plaintext, envelope.UnknownSize))
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 20 {
				off := (worker*7919 + i*104729) % len(plaintext)
				got := make([]byte, min(70_000, len(plaintext)-off))
				if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, plaintext[off:off+len(got)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
