package recovery

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/cloudflare/circl/secretsharing"
)

// watched is a reader that remembers where its bytes went.
type watched struct {
	io.Reader
	seen [][]byte
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.seen = append(w.seen, p[:n])
	return n, err
}

// TestSharesAreWiped: nothing of a share in clear is left where it was read to, whatever
// came of it.
func TestSharesAreWiped(t *testing.T) {
	file := golden(t, "golden.share-1")
	broken := bytes.Replace(file, []byte(`"value":"`), []byte(`"value":"A`), 1)
	for _, row := range []struct {
		what string
		r    io.Reader
		size int
		ok   bool
	}{
		{"a share", bytes.NewReader(file), len(file), true},
		{"a share in pieces", iotest.OneByteReader(bytes.NewReader(file)), len(file), true},
		{"another value", bytes.NewReader(broken), len(broken), false},
		{"more than was announced", bytes.NewReader(file), len(file) - 1, false},
		{"an error at its end", iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(file))), len(file), false},
	} {
		w := &watched{Reader: row.r}
		s, err := readShare(w, row.size)
		if (err == nil) != row.ok || err != nil && !errors.Is(err, ErrRefused) || (s != nil) != row.ok {
			t.Errorf("%s: %v, %v", row.what, s, err)
		}
		for _, b := range w.seen {
			if bytes.ContainsFunc(b, func(r rune) bool { return r != 0 }) {
				t.Errorf("%s: %d bytes are left in memory", row.what, len(b))
				break
			}
		}
		if s == nil {
			continue
		}
		part, err := s.scalar()
		if err != nil || part.Value.IsZero() {
			t.Errorf("%s: its scalar is %v, %v", row.what, part, err)
		}
		if wipeScalars([]secretsharing.Share{part}...); !part.Value.IsZero() {
			t.Errorf("%s: the scalar is left", row.what)
		}
		value := s.Value
		if s.Wipe(); !bytes.Equal(value, make([]byte, len(value))) {
			t.Errorf("%s: the value is left", row.what)
		}
	}
}
