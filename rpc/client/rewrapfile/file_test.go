package rewrapfile

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func file(t testing.TB, items ...Item) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{Cluster: "c", From: 1, Generation: 2, Index: 7})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range items {
		if err := w.Add(item); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func two() []Item {
	return []Item{{"k", 1, []byte("old"), []byte("token")}, {"k", 2, []byte("older"), bytes.Repeat([]byte{7}, 8192)}}
}

func TestRoundTrip(t *testing.T) {
	for _, items := range [][]Item{nil, two()} {
		var got []Item
		h, err := Read(bytes.NewReader(file(t, items...)), func(i Item) error {
			got = append(got, i)
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, items) || h != (Header{Format, "c", 1, 2, 7}) {
			t.Errorf("read %+v, %v of %+v, error %v", h, got, items, err)
		}
	}
	if _, n, err := Check(bytes.NewReader(file(t, two()...))); n != 2 || err != nil {
		t.Errorf("checked %d, error %v", n, err)
	}
	stop := errors.New("stop")
	if _, err := Read(bytes.NewReader(file(t, two()...)), func(Item) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v, want the reader's own", err)
	}
}

// TestDamaged alters, cuts and reorders every line.
func TestDamaged(t *testing.T) {
	good := file(t, two()...)
	refuse := func(what string, b []byte) {
		t.Helper()
		if _, _, err := Check(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: error %v", what, err)
		}
	}
	for i := range good {
		refuse("cut off", good[:i])
		if i%17 == 0 {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			refuse("altered", bad)
		}
	}
	lines := strings.SplitAfter(string(good), "\n")
	refuse("without an item", []byte(lines[0]+lines[1]+lines[3]))
	refuse("in another order", []byte(lines[0]+lines[2]+lines[1]+lines[3]))
	refuse("doubled", []byte(lines[0]+lines[1]+lines[1]+lines[2]+lines[3]))
	refuse("with a tail", append(bytes.Clone(good), ' '))
	refuse("with a long line", []byte(lines[0]+strings.Repeat("x", maxLine+1)))
	refuse("of another format", []byte(strings.Replace(string(good), Format, "quorumkms-rewrap/2", 1)))
	refuse("with another field", []byte(strings.Replace(string(good), `"version":1`, `"version":1,"x":1`, 1)))
}

func FuzzRead(f *testing.F) {
	f.Add(file(f, two()...))
	f.Add(file(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		var items []Item
		h, err := Read(bytes.NewReader(b), func(i Item) error {
			items = append(items, i)
			return nil
		})
		if err != nil {
			return
		}
		var again bytes.Buffer
		w, err := NewWriter(&again, h)
		for _, item := range items {
			if err == nil {
				err = w.Add(item)
			}
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Errorf("written again it is another file, error %v", err)
		}
	})
}
