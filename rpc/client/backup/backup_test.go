package backup

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// update writes the golden backup anew. Never use it once a release is out: there are
// backups like it.
var update = flag.Bool("update", false, "write the golden backup of the present format")

const (
	goldenBackup   = "testdata/v1.qkb"
	goldenSnapshot = "../../../fsm/testdata/golden/v1.snapshot"
)

func testKey(t testing.TB, fill byte) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{fill}, 32))
	must(t, err)
	return key
}

func spki(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return b
}

func signer(key *ecdsa.PrivateKey) func([]byte) ([]byte, error) {
	return func(message []byte) ([]byte, error) {
		sum := sha256.Sum256(message)
		return ecdsa.SignASN1(rand.Reader, key, sum[:])
	}
}

const testCluster = "00000000-0000-0000-0000-000100000000"

func testHeader(t testing.TB, records, keys uint64) Header {
	t.Helper()
	return Header{
		Format: 1, Cluster: testCluster, RecoveryEpoch: 3, Index: 17, Term: 2, Records: records, Keys: keys,
		Node: "n1.0011223344556677", Name: "n1", Created: 1_700_000_000, Signer: spki(t, testKey(t, 1)),
	}
}

func frame(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body))), body...)
}

// snapshotOf makes a snapshot that agrees with h and has the given records.
func snapshotOf(t testing.TB, h Header, records ...[]byte) []byte {
	t.Helper()
	inner, err := json.Marshal(map[string]any{"cluster": h.Cluster, "recovery_epoch": h.RecoveryEpoch, "index": h.Index, "term": h.Term, "format": 1})
	must(t, err)
	b := append([]byte("QKS1"), frame('H', inner)...)
	for _, r := range records {
		b = append(b, r...)
	}
	sum := sha256.Sum256(b)
	return append(b, trailer(t, uint64(len(records)), sum[:])...)
}

func trailer(t testing.TB, records uint64, sum []byte) []byte {
	t.Helper()
	z, err := json.Marshal(struct {
		Records uint64 `json:"records"`
		SHA256  []byte `json:"sha256"`
		MAC     []byte `json:"mac"`
	}{records, sum, make([]byte, 32)})
	must(t, err)
	return frame('Z', z)
}

// small is a short backup with two records, one of them a key.
func small(t testing.TB) []byte {
	t.Helper()
	h := testHeader(t, 2, 1)
	return written(t, h, snapshotOf(t, h, frame('C', []byte("{}")), frame('K', []byte(`{"key":1}`))))
}

func written(t testing.TB, h Header, snapshot []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, Write(&b, h, func(w io.Writer) error {
		_, err := io.Copy(struct{ io.Writer }{w}, iotest.HalfReader(bytes.NewReader(snapshot)))
		return err
	}, signer(testKey(t, 1))))
	return b.Bytes()
}

// sealed puts frames together and signs them, whatever they are.
func sealed(t testing.TB, frames ...[]byte) []byte {
	t.Helper()
	b := append([]byte("QKB1"), bytes.Join(frames, nil)...)
	sum := sha256.Sum256(b)
	signature, err := signer(testKey(t, 1))(message(sum[:]))
	must(t, err)
	return append(b, frame('S', signature)...)
}

func refuse(t *testing.T, name string, b []byte, text string) {
	t.Helper()
	_, err := Check(bytes.NewReader(b), nil)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "%!") {
		t.Errorf("%s: %v, want %v saying %q", name, err, ErrRefused, text)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 1000, pieceSize, 3*pieceSize + 17} {
		h := testHeader(t, 2, 1)
		snapshot := snapshotOf(t, h, frame('C', make([]byte, size)), frame('K', []byte("{}")))
		for pad := range 3 { // the end of a piece falls before, on and behind the snapshot's end
			if over := len(snapshot) % pieceSize; pad > 0 && over != 0 {
				snapshot = snapshotOf(t, h, frame('C', make([]byte, size+pieceSize-over+pad-2)), frame('K', []byte("{}")))
			}
			b := written(t, h, snapshot)
			for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b)), iotest.DataErrReader(bytes.NewReader(b))} {
				x, err := NewReader(r)
				must(t, err)
				got, err := io.ReadAll(x)
				must(t, err)
				if !bytes.Equal(got, snapshot) || fmt.Sprint(x.Header()) != fmt.Sprint(h) {
					t.Fatalf("%d bytes came back as %d, header %+v", len(snapshot), len(got), x.Header())
				}
			}
			var seen []uint64
			s, err := Check(bytes.NewReader(b), func(records, of uint64, n int64) {
				if seen = append(seen, records); of != 2 || n <= 0 || n > int64(len(b)) {
					t.Errorf("progress %d of %d, %d bytes", records, of, n)
				}
			})
			must(t, err)
			if sum := sha256.Sum256(b); s.Bytes != int64(len(b)) || !bytes.Equal(s.SHA256, sum[:]) || fmt.Sprint(seen) != "[1 2]" {
				t.Errorf("summary %+v of %d bytes, progress %v", s, len(b), seen)
			}
		}
	}
}

// TestGolden: the backup that was written when the format came out is still read, and
// would still be written.
func TestGolden(t *testing.T) {
	snapshot, err := os.ReadFile(goldenSnapshot)
	must(t, err)
	h := Header{
		Cluster: testCluster, Index: 79, Term: 1, Records: 0, Keys: 0,
		Node: "n1-00000001", Name: "n1", Created: 1_700_000_000, Signer: spki(t, testKey(t, 1)),
	}
	for rest := snapshot[4:]; len(rest) > 0; rest = rest[5+binary.BigEndian.Uint32(rest[1:]):] {
		switch rest[0] {
		case 'H':
			var inner struct{ Index, Term uint64 }
			must(t, json.Unmarshal(rest[5:5+binary.BigEndian.Uint32(rest[1:])], &inner))
			h.Index, h.Term = inner.Index, inner.Term
		case 'Z':
		case 'K':
			h.Keys++
			h.Records++
		default:
			h.Records++
		}
	}
	if *update {
		must(t, os.WriteFile(goldenBackup, written(t, h, snapshot), 0o600))
	}
	want, err := os.ReadFile(goldenBackup)
	must(t, err)
	s, err := Check(bytes.NewReader(want), nil)
	must(t, err)
	if s.Keys != h.Keys || s.Keys == 0 || s.Index != h.Index || s.Fingerprint() != h.Fingerprint() {
		t.Errorf("golden backup: %+v", s)
	}
	var again bytes.Buffer
	must(t, Write(&again, h, func(w io.Writer) error {
		_, err := w.Write(snapshot)
		return err
	}, func([]byte) ([]byte, error) { return want[bytes.LastIndex(want, []byte{'S', 0, 0, 0})+frameHead:], nil }))
	if !bytes.Equal(again.Bytes(), want) {
		t.Error("the golden backup would be written otherwise now")
	}
}

// TestEveryByteCounts: no flipped byte, no cut and no byte more passes.
func TestEveryByteCounts(t *testing.T) {
	good := small(t)
	for i := range good {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			flipped := bytes.Clone(good)
			flipped[i] ^= mask
			refuse(t, fmt.Sprintf("byte %d flipped by %#x", i, mask), flipped, "backup refused")
		}
		refuse(t, fmt.Sprintf("cut at %d", i), good[:i], "backup refused")
	}
	for _, more := range []string{"\x00", "\n", "S", string(good)} {
		refuse(t, fmt.Sprintf("%d bytes more", len(more)), append(bytes.Clone(good), more...), "bytes follow its end")
	}
}

// TestSignedButWrong: what a signer signed is still read strictly.
func TestSignedButWrong(t *testing.T) {
	h := testHeader(t, 1, 1)
	snapshot := snapshotOf(t, h, frame('K', []byte("{}")))
	header := func(edit func(*Header)) []byte {
		changed := h
		edit(&changed)
		b, err := json.Marshal(changed)
		must(t, err)
		return frame('B', b)
	}
	same := header(func(*Header) {})
	full := make([]byte, pieceSize)
	for _, row := range []struct {
		name   string
		frames [][]byte
		text   string
	}{
		{"another format", [][]byte{header(func(h *Header) { h.Format = 2 }), frame('D', snapshot)}, "format 2, this release reads 1"},
		{"another cluster", [][]byte{header(func(h *Header) { h.Cluster = "11111111-0000-0000-0000-000100000000" }), frame('D', snapshot)}, "the snapshot in it is of index 17"},
		{"another index", [][]byte{header(func(h *Header) { h.Index++ }), frame('D', snapshot)}, "its header tells of index 18"},
		{"another term", [][]byte{header(func(h *Header) { h.Term++ }), frame('D', snapshot)}, "its header tells"},
		{"another epoch", [][]byte{header(func(h *Header) { h.RecoveryEpoch++ }), frame('D', snapshot)}, "its header tells"},
		{"more records", [][]byte{header(func(h *Header) { h.Records++ }), frame('D', snapshot)}, "1 records with 1 keys read, 2 with 1 announced"},
		{"fewer keys", [][]byte{header(func(h *Header) { h.Keys-- }), frame('D', snapshot)}, "1 with 0 announced"},
		{"no cluster", [][]byte{header(func(h *Header) { h.Cluster = "x" }), frame('D', snapshot)}, "is no UUID"},
		{"no node", [][]byte{header(func(h *Header) { h.Node = "" }), frame('D', snapshot)}, "missing"},
		{"a long name", [][]byte{header(func(h *Header) { h.Name = strings.Repeat("x", 129) }), frame('D', snapshot)}, "more than 128 bytes"},
		{"no date", [][]byte{header(func(h *Header) { h.Created = 0 }), frame('D', snapshot)}, "creation date"},
		{"no index", [][]byte{header(func(h *Header) { h.Index = 0 }), frame('D', snapshot)}, "index 0"},
		{"no signer", [][]byte{header(func(h *Header) { h.Signer = nil }), frame('D', snapshot)}, "public key"},
		{"two headers", [][]byte{same, same, frame('D', snapshot)}, `frame 'B'`},
		{"no header", [][]byte{frame('D', snapshot)}, "bad header"},
		{"a space in the header", [][]byte{frame('B', append(bytes.Clone(same[5:]), ' ')), frame('D', snapshot)}, "not in canonical form"},
		{"an unknown field", [][]byte{frame('B', append(bytes.Clone(same[5:len(same)-1]), `,"x":1}`...)), frame('D', snapshot)}, "unknown field"},
		{"a long header", [][]byte{frame('B', make([]byte, maxHeader+1)), frame('D', snapshot)}, "bad header"},
		{"no pieces", [][]byte{same}, `frame 'S'`},
		{"an empty piece", [][]byte{same, frame('D', snapshot), frame('D', nil)}, `frame 'D' of 0 bytes`},
		{"a piece behind a short one", [][]byte{same, frame('D', snapshot[:9]), frame('D', snapshot[9:])}, "behind 1 pieces"},
		{"a long piece", [][]byte{same, frame('D', append(full, 1))}, "65537 bytes"},
		{"an unknown frame", [][]byte{same, frame('X', []byte("x")), frame('D', snapshot)}, `frame 'X'`},
		{"a snapshot that is cut", [][]byte{same, frame('D', snapshot[:len(snapshot)-1])}, "cut off"},
		{"a snapshot and more", [][]byte{same, frame('D', append(bytes.Clone(snapshot), 0))}, "bytes follow the snapshot"},
		{"no snapshot", [][]byte{same, frame('D', []byte("QKS2 and more"))}, "does not begin with QKS1"},
		{"another checksum", [][]byte{same, frame('D', append(bytes.Clone(snapshot[:bytes.LastIndex(snapshot, []byte("Z\x00\x00\x00"))]), trailer(t, 1, make([]byte, 32))...))}, "checksum"},
	} {
		refuse(t, row.name, sealed(t, row.frames...), row.text)
	}
}

// TestSigner: a backup that another key signed is refused, also where it is signed well.
func TestSigner(t *testing.T) {
	h := testHeader(t, 0, 0)
	body := func(w io.Writer) error {
		_, err := w.Write(snapshotOf(t, h))
		return err
	}
	if err := Write(io.Discard, h, body, signer(testKey(t, 2))); !errors.Is(err, ErrRefused) {
		t.Errorf("signed with another key: %v", err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	h.Signer = spki(t, p384)
	if err := Write(io.Discard, h, body, signer(p384)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "P-256") {
		t.Errorf("a key of another curve: %v", err)
	}
	h = testHeader(t, 0, 0)
	f := h.Fingerprint()
	for _, same := range []string{f, strings.ToLower(f), f[7:], strings.ToUpper(f[7:]), " " + f[:20] + " " + f[20:30] + ":" + f[30:] + " "} {
		if !SameFingerprint(same, f) {
			t.Errorf("%q is not taken for %s", same, f)
		}
	}
	for _, other := range []string{"", "SHA256:", f[:len(f)-1], f + "0", "SHA256:" + strings.Repeat("0", 64)} {
		if SameFingerprint(other, f) {
			t.Errorf("%q is taken for %s", other, f)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	h := testHeader(t, 1, 1)
	snapshot := snapshotOf(t, h, frame('K', make([]byte, 3*pieceSize)))
	failure := errors.New("no")
	copySnapshot := func(w io.Writer) error {
		_, err := w.Write(snapshot)
		return err
	}
	whole := len(written(t, h, snapshot))
	for at := 0; at < whole; at += 1 + at/7 {
		if err := Write(&limited{left: at, err: failure}, h, copySnapshot, signer(testKey(t, 1))); !errors.Is(err, failure) {
			t.Errorf("a disk that takes %d bytes: %v", at, err)
		}
	}
	for name, err := range map[string]error{
		"snapshot":  Write(io.Discard, h, func(io.Writer) error { return failure }, signer(testKey(t, 1))),
		"signature": Write(io.Discard, h, copySnapshot, func([]byte) ([]byte, error) { return nil, failure }),
	} {
		if !errors.Is(err, failure) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Write(io.Discard, h, func(io.Writer) error { return nil }, signer(testKey(t, 1))); err == nil {
		t.Error("a backup of nothing was written")
	}
	good := small(t)
	for at := range len(good) {
		if _, err := Check(io.MultiReader(bytes.NewReader(good[:at]), iotest.ErrReader(failure)), nil); !errors.Is(err, failure) {
			t.Fatalf("a disk that fails at %d: %v", at, err)
		}
	}
}

type limited struct {
	left int
	err  error
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, l.err
	}
	l.left -= len(p)
	return len(p), nil
}

func FuzzCheck(f *testing.F) {
	golden, err := os.ReadFile(goldenBackup)
	must(f, err)
	f.Add(golden)
	f.Add(small(f))
	f.Add([]byte("QKB1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Check(bytes.NewReader(b), nil)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		if s.Bytes != int64(len(b)) {
			t.Fatalf("%d of %d bytes", s.Bytes, len(b))
		}
		if _, err := Check(bytes.NewReader(append(b, 0)), nil); err == nil {
			t.Fatal("a byte more passes")
		}
	})
}
