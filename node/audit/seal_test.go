package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

var (
	errKey     = errors.New("key is disabled")
	errContext = errors.New("another context")
)

// vault seals with data keys that it keeps.
type vault struct {
	mu     sync.Mutex
	keys   map[string][]byte
	of     map[string]map[string]string // contexts
	broken error                        // the key cannot be used
	made   int
	opened map[string]int // segments
}

func newVault() *vault {
	return &vault{keys: map[string][]byte{}, of: map[string]map[string]string{}, opened: map[string]int{}}
}

func (v *vault) breaks(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.broken = err
}

func (v *vault) GenerateDataKey(_ context.Context, _ string, ec map[string]string) (plaintext, blob []byte, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.made++; v.broken != nil {
		return nil, nil, v.broken
	}
	key := make([]byte, envelope.DataKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(key)
	v.keys[string(sum[:])], v.of[string(sum[:])] = key, ec
	return bytes.Clone(key), sum[:], nil
}

func (v *vault) DecryptDataKey(_ context.Context, blob []byte, ec map[string]string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.broken != nil {
		return nil, v.broken
	}
	if !maps.Equal(ec, v.of[string(blob)]) {
		return nil, errContext
	}
	v.opened[ec["segment"]]++
	return bytes.Clone(v.keys[string(blob)]), nil
}

func (v *vault) Seal(ctx context.Context, segment int64, to io.Writer, from io.Reader, size int64) error {
	_, err := envelope.Seal(ctx, v, "alias/audit", trail.SealContext(cluster, "node-1", segment), to, from, size)
	return err
}

func (v *vault) OpenSegment(ctx context.Context, segment int64, sealed io.Reader) (io.Reader, error) {
	r, err := envelope.NewOpenReader(ctx, v, trail.SealContext(cluster, "node-1", segment), sealed)
	if errors.Is(err, errKey) {
		return nil, fmt.Errorf("%w: %w", trail.ErrSealed, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: altered: %w", trail.ErrTrail, err)
	}
	return r, nil
}

// sealable is a trail of two whole segments and ten records, with a checkpoint after each
// quarter of a segment. Its times are a second apart, and a day between segments.
var sealable struct {
	once sync.Once
	by   *identity
	dir  string
	head trail.Head
	last time.Time
}

const sealableRecords = 2*trail.SegmentRecords + 10

func sealableTrail(t *testing.T) (dir string) {
	t.Helper()
	sealable.once.Do(func() {
		sealable.by = newIdentity(t)
		var err error
		if sealable.dir, err = os.MkdirTemp("", "sealable-*"); err != nil {
			t.Fatal(err)
		}
		c := config(sealable.dir)
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		c.Now = func() time.Time { now = now.Add(time.Second); return now }
		l, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i <= sealableRecords; i++ {
			if i%trail.SegmentRecords == 1 {
				now = now.Add(24 * time.Hour)
			}
			e := Event{Name: "Encrypt", KeyID: fmt.Sprintf("k%d", i%trail.SegmentRecords)}
			if n := i - 2*trail.SegmentRecords; n > 4 && n <= 6 { // what sealing leaves
				e.Name, e.Class, e.Result, e.Context = "GenerateDataKey", "node", Success, trail.SealContext(cluster, "node-1", int64(n-5))
			}
			if err := l.Record(e); err != nil {
				t.Fatal(err)
			}
			if i%(trail.SegmentRecords/4) == 3 || i == sealableRecords {
				if err := l.Checkpoint(t.Context(), cluster, sealable.by); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, note, _ := l.Signed()
		sealable.head, sealable.last = trail.Head{Note: note, Source: "the cluster"}, now
		if err := l.tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		shut(t, l)
	})
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(sealable.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMain removes what the tests share.
func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range []string{sealable.dir, sealed.dir} {
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// sealing opens a trail whose whole segments are to be sealed, and that nobody tidies but the
// test; told is what it logs.
func sealing(t *testing.T, dir string, v *vault, edit func(*Config)) (l *Log, told *bytes.Buffer) {
	t.Helper()
	told = new(bytes.Buffer)
	c := config(dir)
	c.Sealer, c.Opener, c.Log = v, v, slog.New(slog.NewTextHandler(told, nil))
	if edit != nil {
		edit(&c)
	}
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	close(l.stopTidy) // the tests tidy
	l.tidier.Wait()
	l.stopTidy = make(chan struct{})
	return l, told
}

func tidied(t *testing.T, l *Log) {
	t.Helper()
	if err := l.tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// forms are the files of records.
func forms(t *testing.T, dir string) (out []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.records*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		out = append(out, strings.TrimLeft(filepath.Base(path), "0"))
	}
	slices.Sort(out)
	return out
}

// sealed is that trail with both whole segments sealed, and what sealed it.
var sealed struct {
	once sync.Once
	dir  string
	by   *vault
}

// sealedTrail is a copy of it, and of its vault.
func sealedTrail(t *testing.T) (dir string, v *vault) {
	t.Helper()
	sealed.once.Do(func() {
		var err error
		if sealed.dir, err = os.MkdirTemp("", "sealed-*"); err != nil {
			t.Fatal(err)
		}
		sealed.by = newVault()
		if err := os.CopyFS(sealed.dir, os.DirFS(sealableTrail(t))); err != nil {
			t.Fatal(err)
		}
		l, _ := sealing(t, sealed.dir, sealed.by, nil)
		l.Kept(sealableRecords)
		tidied(t, l)
		shut(t, l)
	})
	if got := forms(t, sealed.dir); !slices.Equal(got, bothSealed) {
		t.Fatalf("%v", got)
	}
	dir, v = t.TempDir(), newVault()
	v.keys, v.of = maps.Clone(sealed.by.keys), maps.Clone(sealed.by.of)
	if err := os.CopyFS(dir, os.DirFS(sealed.dir)); err != nil {
		t.Fatal(err)
	}
	return dir, v
}

var bothSealed = []string{".records.gz.sealed", "1.records.gz.sealed", "2.records"}

func verified(t *testing.T, dir string, heads ...trail.Head) trail.Report {
	t.Helper()
	r, err := trail.Verify(dir, trail.Options{Identity: sealable.by.Identity(), Heads: heads})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSealed: whole segments are sealed once something behind them is remembered, and read as
// before, also after a restart, and by a node that seals no more.
func TestSealed(t *testing.T) {
	dir, v := sealableTrail(t), newVault()
	plain := trail.Segment{Path: filepath.Join(dir, trail.Name(0, trail.CompressedEnd))}
	before, err := os.Stat(plain.Path)
	if err != nil {
		t.Fatal(err)
	}
	l, _ := sealing(t, dir, v, nil)
	for _, row := range []struct {
		remembered int64
		want       []string
	}{
		{trail.SegmentRecords, []string{".records.gz", "1.records.gz", "2.records"}}, // the next may have no record
		{trail.SegmentRecords + 1, []string{".records.gz.sealed", "1.records.gz", "2.records"}},
		{2 * trail.SegmentRecords, []string{".records.gz.sealed", "1.records.gz", "2.records"}},
		{2*trail.SegmentRecords + 1, bothSealed},
	} {
		l.Kept(row.remembered)
		tidied(t, l)
		if got := forms(t, dir); !slices.Equal(got, row.want) {
			t.Errorf("%d are remembered: %v", row.remembered, got)
		}
	}
	after, err := os.Stat(plain.Path + ".sealed")
	if err != nil || !after.ModTime().Equal(before.ModTime()) || after.Mode().Perm() != trailMode {
		t.Errorf("%v, %v; before %v", after, err, before)
	}
	if b, err := os.ReadFile(plain.Path + ".sealed"); err != nil || string(b[:4]) != "KEO1" || bytes.Contains(b, []byte{0x1f, 0x8b, 8, 0, 0}) {
		t.Errorf("it is no KEO1: %v", err)
	}
	if u, ok := l.Unsealed(); ok {
		t.Errorf("%+v", u)
	}
	wanted := []uint64{5, trail.SegmentRecords + 5, 2*trail.SegmentRecords + 5}
	look := func(what string) {
		t.Helper()
		clear(v.opened)
		if got := found(t, l, Query{Key: "k5"}, 0); !slices.Equal(got, wanted) || v.opened["0"] != 1 || v.opened["1"] != 1 {
			t.Errorf("%s: %v, opened %v", what, got, v.opened)
		}
	}
	look("sealed")
	// A record in a sealed segment is proved, and of the trees that are remembered none needs one.
	checkpoint, _, tree := l.Signed()
	proof, err := Prove(checkpoint, 7, tree)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := tree.ReadHashes([]int64{tlog.StoredHashIndex(0, 6)})
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckRecord(proof, checkpoint.Size, checkpoint.Root, 6, leaf[0]); err != nil {
		t.Error(err)
	}
	v.breaks(errKey)
	if err := l.Record(Event{Name: "Encrypt"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(t.Context(), cluster, sealable.by); err != nil {
		t.Fatal(err)
	}
	if h, ok, err := l.Head(2*trail.SegmentRecords+1, nil); err != nil || !ok || len(h.Proof) == 0 {
		t.Errorf("%v, %v, %d hashes", ok, err, len(h.Proof))
	}
	v.breaks(nil)
	// What a client gets of the files is what it got before.
	copied := map[string]*bytes.Buffer{}
	var file *bytes.Buffer
	err = l.Files(t.Context(), 0, func(name string) error {
		file = new(bytes.Buffer)
		copied[name] = file
		return nil
	}, func(b []byte) error { file.Write(b); return nil })
	want, err2 := os.ReadFile(filepath.Join(sealable.dir, trail.Name(0, trail.CompressedEnd)))
	if got := copied[trail.Name(0, trail.CompressedEnd)]; err != nil || err2 != nil || got == nil || !bytes.Equal(got.Bytes(), want) || copied[trail.Name(1, trail.CompressedEnd)] == nil {
		t.Errorf("%v, %v, %v", slices.Collect(maps.Keys(copied)), err, err2)
	}
	shut(t, l)
	l, _ = sealing(t, dir, v, func(c *Config) { c.Sealer = nil })
	look("after a restart")
	shut(t, l)
}

// TestSealingRefused: a key that cannot be used holds nothing up. It is logged once for each
// reason, told, and tried again, more and more seldom.
func TestSealingRefused(t *testing.T) {
	dir, v := sealableTrail(t), newVault()
	now := sealable.last
	l, told := sealing(t, dir, v, func(c *Config) { c.Now = func() time.Time { return now } })
	defer shut(t, l)
	l.Kept(sealableRecords)
	v.breaks(errKey)
	tidied(t, l)
	u, ok := l.Unsealed()
	if want := (Unsealed{2, 1, 2 * trail.SegmentRecords, "envelope: generate data key: key is disabled"}); !ok || u != want {
		t.Errorf("%+v", u)
	}
	tidied(t, l) // the next time
	made := v.made
	tidied(t, l)
	if v.made != made {
		t.Error("it was tried again at once")
	}
	for range 20 {
		now = now.Add(maxSealPause)
		tidied(t, l)
	}
	if v.made != made+20 {
		t.Errorf("tried %d times in 20 of the longest pauses", v.made-made)
	}
	if n := strings.Count(told.String(), "are not sealed"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, told)
	}
	if got := forms(t, dir); slices.ContainsFunc(got, func(name string) bool { return strings.Contains(name, "sealed") }) {
		t.Errorf("%v", got)
	}
	if err := l.Record(Event{Name: "Encrypt", Durable: true}); err != nil {
		t.Error(err)
	}
	v.breaks(nil)
	now = now.Add(maxSealPause)
	tidied(t, l)
	if u, ok := l.Unsealed(); ok || !slices.Equal(forms(t, dir), bothSealed) || !strings.Contains(told.String(), "all segments") {
		t.Errorf("%+v, %v\n%s", u, forms(t, dir), told)
	}
}

// openless can seal and open nothing, as with a grant for GenerateDataKey alone.
type openless struct{ *vault }

func (openless) OpenSegment(context.Context, int64, io.Reader) (io.Reader, error) {
	return nil, fmt.Errorf("%w: no grant", trail.ErrSealed)
}

// TestSealedIsReadBeforeThePlainOneGoes: what cannot be opened again is not sealed.
func TestSealedIsReadBeforeThePlainOneGoes(t *testing.T) {
	dir := sealableTrail(t)
	l, _ := sealing(t, dir, newVault(), func(c *Config) { c.Opener = openless{} })
	defer shut(t, l)
	l.Kept(sealableRecords)
	tidied(t, l)
	if u, ok := l.Unsealed(); !ok || !strings.Contains(u.Reason, "no grant") || !slices.Equal(forms(t, dir), []string{".records.gz", "1.records.gz", "2.records"}) {
		t.Errorf("%+v, %v", u, forms(t, dir))
	}
}

// TestHalfSealed goes on behind each moment at which a node may have stopped, and behind what
// somebody may have put there.
func TestHalfSealed(t *testing.T) {
	finished, v := sealedTrail(t)
	sealedFile := func(n int64) string { return trail.Name(n, trail.SealedEnd) }
	for what, row := range map[string]struct {
		do   func(dir string) error
		want []string
	}{
		"a part of the sealed one": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, sealedFile(0)+PartEnd), []byte("KEO1"), 0o600)
		}, bothSealed},
		"both": {func(dir string) error {
			return os.CopyFS(dir, onlyFile(finished, sealedFile(0)))
		}, bothSealed},
		"the plain one, too": {func(dir string) error {
			return errors.Join(os.CopyFS(dir, onlyFile(finished, sealedFile(0))), gunzip(filepath.Join(dir, trail.Name(0, trail.CompressedEnd)), filepath.Join(dir, trail.Name(0, trail.RecordsEnd))))
		}, bothSealed},
		"a sealed one that is none": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, sealedFile(0)), []byte("nonsense"), 0o600)
		}, bothSealed},
		"the records are others": {func(dir string) error { // then they are evidence, and stay
			return os.Rename(filepath.Join(dir, trail.Name(1, trail.CompressedEnd)), filepath.Join(dir, trail.Name(0, trail.CompressedEnd)))
		}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			dir := sealableTrail(t)
			if err := row.do(dir); err != nil {
				t.Fatal(err)
			}
			if row.want == nil {
				if err := os.CopyFS(dir, onlyFile(sealable.dir, trail.Name(1, trail.CompressedEnd))); err != nil {
					t.Fatal(err)
				}
			}
			l, _ := sealing(t, dir, v, nil)
			defer shut(t, l)
			l.Kept(sealableRecords)
			tidied(t, l)
			if row.want == nil {
				u, ok := l.Unsealed()
				if want := []string{".records.gz", "1.records.gz.sealed", "2.records"}; !ok || u.First != 1 || u.Last != trail.SegmentRecords || !strings.Contains(u.Reason, ErrAltered.Error()) || !slices.Equal(forms(t, dir), want) {
					t.Errorf("%+v, %v", u, forms(t, dir))
				}
				return
			}
			if got := forms(t, dir); !slices.Equal(got, row.want) {
				t.Errorf("%v", got)
			}
			if got := found(t, l, Query{Key: "k9"}, 0); len(got) != 3 {
				t.Errorf("found %v", got)
			}
		})
	}
}

// TestSealedUnreadable: without the key a search names what it cannot read, and one that does not
// need it goes on; the files are sent as they are.
func TestSealedUnreadable(t *testing.T) {
	dir, v := sealedTrail(t)
	l, _ := sealing(t, dir, v, nil)
	defer shut(t, l)
	v.breaks(errKey)
	run := func(q Query, from uint64) (out []uint64, err error) {
		s, err := l.Search(q, from)
		if err == nil {
			err = s.Run(t.Context(), sealableRecords, func(f Found) error { out = append(out, f.Sequence); return nil }, func(time.Time) error { return nil })
		}
		return out, err
	}
	if _, err := run(Query{Key: "k5"}, 0); !errors.Is(err, trail.ErrSealed) || !strings.Contains(err.Error(), "the records 1 to 65536, segment 0: ") || !strings.Contains(err.Error(), "key is disabled") {
		t.Errorf("%v", err)
	}
	if _, err := run(Query{Key: "k5"}, trail.SegmentRecords+9); !errors.Is(err, trail.ErrSealed) || !strings.Contains(err.Error(), "the records 65537 to 131072, segment 1: ") {
		t.Errorf("from the second on: %v", err)
	}
	if got, err := run(Query{Key: "k5"}, 2*trail.SegmentRecords+1); err != nil || !slices.Equal(got, []uint64{2*trail.SegmentRecords + 5}) {
		t.Errorf("behind them: %v, %v", got, err)
	}
	// Those that end before it are left out by their checkpoints' times.
	if _, err := run(Query{Since: sealable.last.Add(-time.Hour)}, 0); !errors.Is(err, trail.ErrSealed) || !strings.Contains(err.Error(), "segment 1: ") {
		t.Errorf("since a time in the second: %v", err)
	}
	if got, err := run(Query{Since: sealable.last.Add(2 * time.Hour)}, 0); err != nil || len(got) > 0 {
		t.Errorf("since a time behind them: %v, %v", got, err)
	}
	until := time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)
	if got, err := run(Query{Until: until}, trail.SegmentRecords+1); err != nil || len(got) > 0 {
		t.Errorf("until before it began: %v, %v", got, err)
	}
	copied := t.TempDir()
	var file *os.File
	err := l.Files(t.Context(), 0, func(name string) (err error) {
		file, err = os.Create(filepath.Join(copied, name))
		return err
	}, func(b []byte) error {
		_, err := file.Write(b)
		return err
	})
	if err != nil || !slices.Equal(forms(t, copied), bothSealed) {
		t.Fatalf("%v, %v", forms(t, copied), err)
	}
	if r := verified(t, copied, sealable.head); r.Finding != nil || len(r.Sealed) != 1 || r.Proved != sealableRecords {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
}

// TestSealedAltered: a sealed file that was altered, or is another's, is not read, and one that
// was removed is missed.
func TestSealedAltered(t *testing.T) {
	finished, v := sealedTrail(t)
	one := filepath.Join(finished, trail.Name(1, trail.SealedEnd))
	for what, row := range map[string]struct {
		do   func(path string) error
		says string
	}{
		"a byte": {func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)-100] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		}, "does not verify"},
		"the end": {func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-1)
		}, "does not verify"},
		"another's": {func(path string) error {
			return os.Rename(filepath.Join(filepath.Dir(path), trail.Name(1, trail.SealedEnd)), path)
		}, "another context"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(finished)); err != nil {
				t.Fatal(err)
			}
			if err := row.do(filepath.Join(dir, trail.Name(0, trail.SealedEnd))); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(one); err != nil || os.WriteFile(filepath.Join(dir, filepath.Base(one)), b, 0o600) != nil {
				t.Fatal(err)
			}
			l, _ := sealing(t, dir, v, nil)
			defer shut(t, l)
			s, err := l.Search(Query{}, 0)
			if err == nil {
				err = s.Run(t.Context(), sealableRecords, func(Found) error { return nil }, func(time.Time) error { return nil })
			}
			if !errors.Is(err, trail.ErrTrail) || errors.Is(err, trail.ErrSealed) || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := os.Remove(one); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, finished, sealable.head); r.Finding == nil || r.Finding.Kind != trail.Removed || r.Finding.First != trail.SegmentRecords+1 || r.Finding.Last != 2*trail.SegmentRecords {
		t.Errorf("removed: %+v", r.Finding)
	}
}

// TestSealedOffline: files and public keys prove the hashes of sealed segments, and say that their
// contents were not looked at. A copy that was opened is read.
func TestSealedOffline(t *testing.T) {
	finished, v := sealedTrail(t)
	all := []trail.Range{{First: 1, Last: 2 * trail.SegmentRecords}}
	r := verified(t, finished, sealable.head)
	if r.Finding != nil || !slices.Equal(r.Sealed, all) || r.First != 1 || r.Last != sealableRecords || r.Proved != sealableRecords {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
	if text := strings.Join(r.Text("n"), "\n"); !strings.Contains(text, "records 1 to 131072 are sealed and WERE NOT READ: the hash of what was signed is proved; that the file holds that, only opening it shows (kmsctl audit open") {
		t.Error(text)
	}
	with := func(edit func(dir string) error) string {
		t.Helper()
		dir := t.TempDir()
		if err := errors.Join(os.CopyFS(dir, os.DirFS(finished)), edit(dir)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	plain := filepath.Join(sealable.dir, trail.Name(1, trail.CompressedEnd))
	beside := with(func(dir string) error { return os.CopyFS(dir, onlyFile(sealable.dir, filepath.Base(plain))) })
	if r := verified(t, beside, sealable.head); r.Finding != nil || !slices.Equal(r.Sealed, []trail.Range{{First: 1, Last: trail.SegmentRecords}}) || r.Proved != sealableRecords {
		t.Errorf("one beside: %+v, %+v", r, r.Finding)
	}
	if r := verified(t, sealable.dir, sealable.head); r.Finding != nil || r.Sealed != nil {
		t.Errorf("all opened: %+v, %+v", r, r.Finding)
	}
	changed := with(func(dir string) error {
		path := filepath.Join(dir, trail.Name(1, trail.RecordsEnd))
		if err := gunzip(plain, path); err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, bytes.Replace(b, []byte(`"keyId":"k7"`), []byte(`"keyId":"k8"`), 1), 0o600)
		}
		return err
	})
	if r := verified(t, changed, sealable.head); r.Finding == nil || r.Finding.Kind != trail.Altered || r.Finding.First > trail.SegmentRecords+7 || r.Finding.Last < trail.SegmentRecords+7 {
		t.Errorf("one beside that was altered: %+v", r.Finding)
	}
	hashes := with(func(dir string) error {
		path := filepath.Join(dir, trail.HashesFile)
		b, err := os.ReadFile(path)
		if err == nil {
			b[1] ^= 1
			err = os.WriteFile(path, b, 0o600)
		}
		return err
	})
	if r := verified(t, hashes, sealable.head); r.Finding == nil || r.Finding.Kind != trail.Altered || !strings.Contains(r.Finding.Text, trail.HashesFile) {
		t.Errorf("another hash: %+v", r.Finding)
	}
	lost := with(func(dir string) error { return os.Remove(filepath.Join(dir, trail.HashesFile)) })
	if r, err := trail.Verify(lost, trail.Options{Identity: sealable.by.Identity()}); !errors.Is(err, trail.ErrTrail) || !strings.Contains(err.Error(), "does not have its hash") {
		t.Errorf("no hashes: %+v, %v", r, err)
	}
	if _, err := Open(config(lost)); !errors.Is(err, trail.ErrSealed) || !strings.Contains(err.Error(), "kmsctl audit open") {
		t.Errorf("a node without the hashes: %v", err)
	}
	c := config(lost)
	c.Opener = v
	l, err := Open(c)
	if err != nil {
		t.Fatalf("with the key: %v", err)
	}
	shut(t, l)
	ends := with(func(dir string) error { return os.Remove(filepath.Join(dir, trail.Name(2, trail.RecordsEnd))) })
	if _, err := Open(config(ends)); !errors.Is(err, trail.ErrTrail) || !strings.Contains(err.Error(), "what followed was removed") {
		t.Errorf("a node whose trail ends sealed: %v", err)
	}
	if r := verified(t, ends, sealable.head); r.Finding == nil || r.Finding.Kind != trail.CutOff || r.Finding.First != 2*trail.SegmentRecords+1 {
		t.Errorf("cut off: %+v", r.Finding)
	}
}

// TestSealedPruned: sealed segments go when they are old.
func TestSealedPruned(t *testing.T) {
	dir, v := sealedTrail(t)
	if err := os.CopyFS(dir, onlyFile(sealable.dir, trail.Name(0, trail.CompressedEnd))); err != nil { // half sealed
		t.Fatal(err)
	}
	v.breaks(errKey)
	l, _ := sealing(t, dir, v, func(c *Config) { c.Keep = time.Nanosecond })
	defer shut(t, l)
	l.Kept(sealableRecords)
	tidied(t, l)
	if err := l.Checkpoint(t.Context(), cluster, sealable.by); err != nil {
		t.Fatal(err)
	}
	l.Kept(int64(l.Position().Last))
	tidied(t, l)
	if got := forms(t, dir); !slices.Equal(got, []string{"2.records"}) {
		t.Errorf("%v", got)
	}
	if r := verified(t, dir, sealable.head); r.Finding != nil || r.First != 2*trail.SegmentRecords+1 || r.Last != sealableRecords+2 || r.Sealed != nil {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
}

// TestSealedRemoval: whether a record says that the oldest segment was removed may stand in one that
// is sealed. Verification says so, and so does the record of the next removal, unless it can be read.
func TestSealedRemoval(t *testing.T) {
	dir, v := sealedTrail(t)
	for _, end := range []string{trail.SealedEnd, trail.CheckpointsEnd} {
		if err := os.Remove(filepath.Join(dir, trail.Name(0, end))); err != nil {
			t.Fatal(err)
		}
	}
	r := verified(t, dir, sealable.head)
	if text := strings.Join(r.Text("n"), "\n"); r.Finding != nil || r.First != trail.SegmentRecords+1 || !strings.Contains(text, "may be among those that are sealed") {
		t.Errorf("%+v: %s", r.Finding, text)
	}
	now := time.Now()
	l, told := sealing(t, dir, v, func(c *Config) { c.Keep, c.Now = time.Nanosecond, func() time.Time { return now } })
	l.Kept(sealableRecords)
	if err := l.tidy(t.Context()); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "no record says that this node removed them") {
		t.Errorf("it can be read: %v\n%s", err, told)
	}
	opened := v.opened["1"]
	if err := l.tidy(t.Context()); !errors.Is(err, ErrAltered) || v.opened["1"] != opened {
		t.Errorf("it is looked for again at once: %v, opened %d times and %d", err, opened, v.opened["1"])
	}
	v.breaks(errKey)
	now = now.Add(time.Hour)
	tidied(t, l)
	var reasons []string
	if _, err := l.SearchReadable(t.Context(), Query{Name: trail.RemovalEvent}, 1, func(f Found) error {
		reasons = append(reasons, string(f.Line))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(reasons) != 1 || !strings.Contains(reasons[0], "those up to 65536 may stand in records that cannot be read") {
		t.Errorf("it cannot be read: %v", reasons)
	}
	shut(t, l)
}

// TestSealedIsProved: that records are sealed hides nothing. What is no sealed file is named, and so is
// one that the node did not make; without a checkpoint behind them, or if all that others remember
// lies before their end, nothing is said of them.
func TestSealedIsProved(t *testing.T) {
	dir, _ := sealedTrail(t)
	note := func(file string, n int) trail.Head {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		all, err := trail.Checkpoints(b)
		if err != nil {
			t.Fatal(err)
		}
		return trail.Head{Note: all[n], Source: "an old file"}
	}
	inside := note(trail.Name(1, trail.CheckpointsEnd), 1)
	verify := func(dir string, heads ...trail.Head) (trail.Report, error) {
		return trail.Verify(dir, trail.Options{Identity: sealable.by.Identity(), Heads: heads})
	}
	if _, err := verify(dir, inside); !errors.Is(err, trail.ErrTrail) || !strings.Contains(err.Error(), "records up to 131072 are sealed, and all that others remember lies before their end") {
		t.Errorf("with what is remembered of sealed records alone: %v", err)
	}
	if r, err := verify(dir, inside, sealable.head); err != nil || r.Finding != nil {
		t.Errorf("with both: %+v, %v", r.Finding, err)
	}
	for what, row := range map[string]struct {
		edit func(dir string) error
		kind trail.Kind
		text string
	}{
		"no file of that form": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, trail.Name(1, trail.SealedEnd)), nil, 0o600)
		}, trail.Altered, "is no sealed file"},
		"nothing signed": {func(dir string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*"+trail.CheckpointsEnd))
			for _, f := range files {
				err = errors.Join(err, os.Remove(f))
			}
			return err
		}, "", "no checkpoint proves their hashes"},
	} {
		copied := t.TempDir()
		if err := errors.Join(os.CopyFS(copied, os.DirFS(dir)), row.edit(copied)); err != nil {
			t.Fatal(err)
		}
		r, err := verify(copied)
		switch {
		case row.kind == "" && (err == nil || !strings.Contains(err.Error(), row.text)):
			t.Errorf("%s: %+v, %v", what, r, err)
		case row.kind != "" && (err != nil || r.Finding == nil || r.Finding.Kind != row.kind || r.Finding.First != trail.SegmentRecords+1 || !strings.Contains(r.Finding.Text, row.text)):
			t.Errorf("%s: %+v, %v", what, r.Finding, err)
		}
	}
	// Of the node's own making is what a record behind it tells of.
	l, err := Open(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, l)
	for range trail.SegmentRecords + 3 {
		if err := l.Record(Event{Name: "Encrypt"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Checkpoint(t.Context(), cluster, sealable.by); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.config.Dir, trail.Name(0, trail.RecordsEnd))
	b, err := os.ReadFile(filepath.Join(dir, trail.Name(0, trail.SealedEnd)))
	if err != nil {
		t.Fatal(err)
	}
	l.tidying.Lock()
	err = errors.Join(os.RemoveAll(path), os.RemoveAll(filepath.Join(l.config.Dir, trail.Name(0, trail.CompressedEnd))),
		os.WriteFile(filepath.Join(l.config.Dir, trail.Name(0, trail.SealedEnd)), b, 0o600))
	l.tidying.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := verify(l.config.Dir); err != nil || r.Finding == nil || r.Finding.Kind != trail.Altered || r.Finding.Last != trail.SegmentRecords || !strings.Contains(r.Finding.Text, "no record behind them says that the node did that") {
		t.Errorf("a node that never seals: %+v, %v", r.Finding, err)
	}
}

// TestSealingGoesOn behind a segment that is damaged, and waits for sinks.
func TestSealingGoesOn(t *testing.T) {
	dir, v := t.TempDir(), newVault()
	if err := os.CopyFS(dir, os.DirFS(sealableTrail(t))); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, trail.Name(0, trail.CompressedEnd))
	info, err := os.Stat(first)
	if err == nil {
		err = os.Truncate(first, info.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, _ := sealing(t, dir, v, nil)
	defer shut(t, l)
	taken := uint64(trail.SegmentRecords)
	l.TakenBySinks(func() uint64 { return taken })
	l.Kept(sealableRecords)
	tidied(t, l)
	if got := forms(t, dir); !slices.Equal(got, []string{".records.gz", "1.records.gz", "2.records"}) {
		t.Errorf("a sink has not taken it: %v", got)
	}
	taken = sealableRecords
	tidied(t, l)
	if got := forms(t, dir); !slices.Equal(got, []string{".records.gz", "1.records.gz.sealed", "2.records"}) {
		t.Errorf("%v", got)
	}
	if u, ok := l.Unsealed(); !ok || u.Segments != 1 || u.First != 1 || !strings.Contains(u.Reason, ErrAltered.Error()) {
		t.Errorf("%+v", u)
	}
	n := 0
	unread, err := l.SearchReadable(t.Context(), Query{Name: "GenerateDataKey"}, 1, func(Found) error { n++; return nil })
	if err != nil || !unread || n != 2 {
		t.Errorf("what can be read: %d records, unread %v, %v", n, unread, err)
	}
}

// onlyFile is a directory as if it had one file.
func onlyFile(dir, name string) fstest.MapFS {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		panic(err)
	}
	return fstest.MapFS{name: {Data: b, Mode: trailMode}}
}

func gunzip(from, to string) error {
	in, err := trail.Segment{Path: from}.Open(context.Background(), nil)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(in)
	return errors.Join(err, in.Close(), os.WriteFile(to, b, trailMode))
}
