package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

func TestRoundTrip(t *testing.T) {
	v := newVault()
	for _, n := range []int{0, 1, 2, 32, 4096, refPayload - 1, refPayload, refPayload + 1, 2*refPayload - 1, 2 * refPayload, 2*refPayload + 1, 5<<20 + 17, 6 << 20} {
		plaintext := pattern(n)
		for _, size := range sizes(n) {
			t.Run(fmt.Sprintf("n=%d,size=%d", n, size), func(t *testing.T) {
				object := seal(t, v, plaintext, size)
				mustOpen(t, v, object, plaintext)

				want := size
				if n == 0 {
					want = 0 // an empty object always says so
				}
				h, err := envelope.ReadHeader(bytes.NewReader(object))
				if err != nil {
					t.Fatal(err)
				}
				r, err := envelope.NewOpenReader(t.Context(), v, objectContext, bytes.NewReader(object))
				if err != nil {
					t.Fatal(err)
				}
				if h.Size != want || r.Size() != want {
					t.Errorf("size %d in the header, %d of the reader, want %d", h.Size, r.Size(), want)
				}
				packages := (n + refPayload - 1) / refPayload
				if got := len(object) - h.Len(); got != n+32*packages {
					t.Errorf("stream of %d bytes, want %d", got, n+32*packages)
				}
			})
		}
	}
	v.checkWiped(t, 50)
}

// TestChunks feeds and drains in pieces that fit nothing.
func TestChunks(t *testing.T) {
	v := newVault()
	plaintext := pattern(3*refPayload + 100)
	for _, size := range sizes(len(plaintext)) {
		var object bytes.Buffer
		w, err := envelope.NewSealWriter(t.Context(), v, keyName, objectContext, &object, size)
		if err != nil {
			t.Fatal(err)
		}
		if object.Len() != 0 {
			t.Errorf("%d bytes written before there was plaintext", object.Len())
		}
		for rest, n := plaintext, 0; len(rest) > 0; n++ {
			k, err := w.Write(rest[:min(len(rest), n*n)]) // an empty one at first
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[k:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, v, object.Bytes(), plaintext)
		for name, src := range map[string]io.Reader{
			"one byte": iotest.OneByteReader(bytes.NewReader(object.Bytes())),
			"half":     iotest.HalfReader(bytes.NewReader(object.Bytes())),
			"data err": iotest.DataErrReader(bytes.NewReader(object.Bytes())),
		} {
			r, err := envelope.NewOpenReader(t.Context(), v, objectContext, src)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := iotest.TestReader(r, plaintext); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestSealRefusesWrongSize(t *testing.T) {
	for _, tt := range []struct{ declared, actual int64 }{
		{0, 1},
		{1, 0},
		{1, 2},
		{100, 99},
		{100, 101},
		{refPayload, refPayload - 1},
		{refPayload, refPayload + 1},
		{2 * refPayload, refPayload},
		{refPayload, 2 * refPayload},
	} {
		t.Run(fmt.Sprintf("%d of %d", tt.actual, tt.declared), func(t *testing.T) {
			plaintext := pattern(int(tt.actual))
			var object bytes.Buffer
			_, err := envelope.Seal(t.Context(), testKeys, keyName, nil, &object, bytes.NewReader(plaintext), tt.declared)
			if !errors.Is(err, envelope.ErrSize) {
				t.Errorf("error %v, want %v", err, envelope.ErrSize)
			}
			mustRefuse(t, testKeys, object.Bytes(), plaintext, "leftover", envelope.ErrTruncated)
		})
	}
	for _, size := range []int64{-2, envelope.MaxSize + 1} {
		if _, err := envelope.NewSealWriter(t.Context(), testKeys, keyName, nil, io.Discard, size); !errors.Is(err, envelope.ErrSize) {
			t.Errorf("size %d: error %v, want %v", size, err, envelope.ErrSize)
		}
	}
}

// TestSealStopsAtMaxSize: a package number more would repeat a nonce.
func TestSealStopsAtMaxSize(t *testing.T) {
	w, err := envelope.NewSealWriter(t.Context(), testKeys, keyName, nil, io.Discard, envelope.UnknownSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(10)); err != nil {
		t.Fatal(err)
	}
	w.Advance(envelope.MaxSize - 20)
	if _, err := w.Write(pattern(10)); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	for range 2 {
		if n, err := w.Write(pattern(1)); n != 0 || !errors.Is(err, envelope.ErrSize) {
			t.Errorf("past the limit: %d, %v, want %v", n, err, envelope.ErrSize)
		}
	}
	if err := w.Close(); !errors.Is(err, envelope.ErrSize) {
		t.Errorf("close: %v, want %v", err, envelope.ErrSize)
	}
}

// TestAbandoned: an object that its writer did not close is refused.
func TestAbandoned(t *testing.T) {
	for _, n := range []int{1, refPayload, refPayload + 1, 3 * refPayload} {
		var object bytes.Buffer
		w, err := envelope.NewSealWriter(t.Context(), testKeys, keyName, nil, &object, envelope.UnknownSize)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(n)); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, testKeys, object.Bytes(), pattern(n), fmt.Sprint(n), envelope.ErrTruncated)
	}
}

var errBroken = errors.New("broken")

func TestSealSourceFails(t *testing.T) {
	for _, n := range []int{0, 1, refPayload, 2*refPayload + 1} {
		for _, size := range sizes(n) {
			src := io.MultiReader(bytes.NewReader(pattern(n)), iotest.ErrReader(errBroken))
			var object bytes.Buffer
			if _, err := envelope.Seal(t.Context(), testKeys, keyName, nil, &object, src, size); !errors.Is(err, errBroken) {
				t.Errorf("%d bytes as %d: error %v, want %v", n, size, err, errBroken)
			}
			mustRefuse(t, testKeys, object.Bytes(), pattern(n), fmt.Sprint(n), envelope.ErrTruncated)
		}
	}
}

// brokenWriter takes room bytes.
type brokenWriter struct {
	room   int
	short  bool // reports no error
	closed bool
}

func (w *brokenWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) && !w.short {
		return n, errBroken
	}
	return n, nil
}

func (w *brokenWriter) Close() error {
	w.closed = true
	return nil
}

func TestSealDestinationFails(t *testing.T) {
	for _, n := range []int{0, 1, 2*refPayload + 1} {
		whole := len(seal(t, testKeys, pattern(n), int64(n)))
		for _, room := range []int{0, 1, 79, 100, 209, 210, 211, refPayload, refPayload + 400, whole - 1, whole} {
			if room > whole {
				continue
			}
			for _, short := range []bool{false, true} {
				dst := &brokenWriter{room: room, short: short}
				_, err := envelope.Seal(t.Context(), testKeys, keyName, nil, dst, bytes.NewReader(pattern(n)), int64(n))
				want := errBroken
				if short {
					want = io.ErrShortWrite
				}
				if room == whole {
					want = nil
				}
				if !errors.Is(err, want) {
					t.Errorf("%d bytes, room %d: error %v, want %v", n, room, err, want)
				}
				if dst.closed {
					t.Error("destination closed")
				}
			}
		}
	}
}

func TestSealWriterAfterClose(t *testing.T) {
	var object bytes.Buffer
	w, err := envelope.NewSealWriter(t.Context(), testKeys, keyName, nil, &object, envelope.UnknownSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(5)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := w.Write(pattern(5)); err == nil {
			t.Error("write after close succeeded")
		}
	}
	mustOpen(t, testKeys, object.Bytes(), pattern(5))
}

func TestCancelled(t *testing.T) {
	plaintext := pattern(2 * refPayload)
	object := seal(t, testKeys, plaintext, int64(len(plaintext)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := envelope.Seal(ctx, testKeys, keyName, nil, io.Discard, bytes.NewReader(plaintext), envelope.UnknownSize)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("seal: %v", err)
	}
	_, err = envelope.Open(ctx, testKeys, nil, io.Discard, bytes.NewReader(object))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	_, err = envelope.OpenRange(ctx, testKeys, nil, io.Discard, bytes.NewReader(object), int64(len(object)), 0, 10)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("open range: %v", err)
	}
}

// TestFresh: no two objects share salt or nonce, though they share a data key.
func TestFresh(t *testing.T) {
	seen := map[string]bool{}
	for range 64 {
		object := seal(t, testKeys, pattern(1), 1)
		stream := object[refFixed+len(testKeys.blob):]
		seen["salt"+string(object[14:46])] = true
		seen["nonce"+string(stream[4:16])] = true
	}
	if len(seen) != 128 {
		t.Errorf("%d different salts and nonces of 128", len(seen))
	}
}

// TestMemory: a long stream costs no more memory than a short one.
func TestMemory(t *testing.T) {
	const size, most = 64 << 20, 4 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)

	pr, pw := io.Pipe()
	defer pr.Close() //nolint:errcheck // returns none
	sealed := make(chan error, 1)
	go func() {
		_, err := envelope.Seal(t.Context(), testKeys, keyName, nil, pw, io.LimitReader(zeros{}, size), envelope.UnknownSize)
		sealed <- err
		pw.CloseWithError(err)
	}()
	n, err := envelope.Open(t.Context(), testKeys, nil, io.Discard, pr)
	if err != nil || n != size {
		t.Fatalf("open: %d bytes, %v", n, err)
	}
	if err := <-sealed; err != nil {
		t.Fatalf("seal: %v", err)
	}

	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > most {
		t.Errorf("allocated %d bytes for an object of %d, want %d at most", used, size, most)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
