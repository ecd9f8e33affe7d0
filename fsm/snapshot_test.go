package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// small is a world with a record of every kind and a short snapshot.
func small(t failer) *world {
	w := initialized(t)
	w.ask("r", "", createKey(1))
	w.do(&CreateAlias{alias("alias/a", 1)})
	w.do(ticketFor("n2"))
	w.do(edited(createGrant(1, 1), func(c *CreateGrant) { c.Name, c.Retiring, c.Expires = "n", other, start+9 }))
	w.do(putPolicy(1, "p"))
	w.do(&DisablePrincipal{other, DefaultTenant})
	w.do(bind(1, "volume/1"))
	w.do(&RecordUse{[]Use{{keyID(1), 1, start}, {keyID(1), 0, start}}})
	return w
}

func refuseSnapshot(t *testing.T, name string, b []byte, text string) {
	t.Helper()
	s, err := ReadSnapshot(bytes.NewReader(b), logKey())
	if s != nil || !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "%!") {
		t.Fatalf("%s: a state: %v, and %v, want %v saying %q", name, s != nil, err, ErrSnapshot, text)
	}
	if verified := VerifySnapshot(bytes.NewReader(b), logKey()); verified == nil || verified.Error() != err.Error() {
		t.Fatalf("%s: reading says %v, verifying %v", name, err, verified)
	}
}

// TestSnapshotForm pins the layout and what the trailer covers.
func TestSnapshotForm(t *testing.T) {
	w := small(t)
	got := snapshotOf(t, w.s)
	head := fmt.Sprintf(`{"format":1,"cluster":%q,"recovery_epoch":0,"index":9,"term":1,"now":%d,"hash":`, keyID(1<<32), startTime)
	want := []byte("QKS1H\x00\x00\x00")
	if !bytes.HasPrefix(got, want) || !bytes.HasPrefix(got[9:], []byte(head)) {
		t.Errorf("snapshot begins with %q, want %q and %s", got[:200], want, head)
	}
	all := frames(t, got)
	var kinds []byte
	for _, f := range all {
		kinds = append(kinds, f.kind)
	}
	if string(kinds) != "HCTMJKAGPDBURZ" {
		t.Errorf("frames %q, want HCTMJKAGPDBURZ", kinds)
	}
	wantSame(t, "snapshot", got, joinFrames(t, all[:len(all)-1]))
}

func TestSnapshotRoundTrip(t *testing.T) {
	many := initialized(t)
	many.edit(func(t *tx) {
		for n := uint64(1); n <= 1000; n++ {
			t.putKey(&Key{ID: keyID(n), Tenant: DefaultTenant, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, State: KeyEnabled, Versions: []KeyVersion{{Version: 1, Generation: 1, Token: []byte{1}}}})
		}
	})
	for name, s := range map[string]*State{
		"before the first entry": NewState(),
		"initialized":            initialized(t).s,
		"every kind of record":   small(t).s,
		"the golden script":      goldenScript(t).s,
		"that of release 2":      goldenUpgrade(t).s,
		"more than a buffer":     many.s,
	} {
		t.Run(name, func(t *testing.T) {
			b := snapshotOf(t, s)
			for _, r := range []io.Reader{bytes.NewReader(b), iotest.HalfReader(bytes.NewReader(b)), iotest.DataErrReader(bytes.NewReader(b))} {
				got, err := ReadSnapshot(r, logKey())
				if err != nil {
					t.Fatal(err)
				}
				if err := got.Check(); err != nil {
					t.Error(err)
				}
				if got.Index() != s.Index() || got.Term() != s.Term() || got.Now() != s.Now() || !bytes.Equal(got.Hash(), s.Hash()) || got.Initialized() != s.Initialized() {
					t.Errorf("state at %d, term %d, time %d, hash %x", got.Index(), got.Term(), got.Now(), got.Hash())
				}
				wantSame(t, "snapshot", snapshotOf(t, got), b)
			}
			if err := VerifySnapshot(bytes.NewReader(b), logKey()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEveryByteOfASnapshotCounts: no flipped byte, no cut and no byte more is read.
func TestEveryByteOfASnapshotCounts(t *testing.T) {
	good := snapshotOf(t, small(t).s)
	for i := range good {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			flipped := bytes.Clone(good)
			flipped[i] ^= mask
			refuseSnapshot(t, fmt.Sprintf("byte %d flipped by %#x", i, mask), flipped, "snapshot refused")
		}
		refuseSnapshot(t, fmt.Sprintf("cut at %d", i), good[:i], "snapshot refused")
	}
	for _, more := range []string{"\x00", "\n", "Z", string(good)} {
		refuseSnapshot(t, fmt.Sprintf("%d bytes more", len(more)), append(bytes.Clone(good), more...), "bytes after the trailer")
	}
}

// TestSnapshotCutAtFrames: whole frames taken out, doubled or in another order.
func TestSnapshotCutAtFrames(t *testing.T) {
	all := frames(t, snapshotOf(t, small(t).s))
	join := func(fs ...[]frame) []byte {
		b := []byte("QKS1")
		for _, part := range fs {
			for _, f := range part {
				b = appendFrame(b, f.kind, f.json)
			}
		}
		return b
	}
	for i := range all {
		name := fmt.Sprintf("frame %d (%c)", i, all[i].kind)
		refuseSnapshot(t, name+" taken out", join(all[:i], all[i+1:]), "")
		refuseSnapshot(t, name+" doubled", join(all[:i+1], all[i:]), "")
		if i > 0 {
			refuseSnapshot(t, name+" moved", join(all[:i-1], all[i:i+1], all[i-1:i], all[i+1:]), "")
		}
	}
}

func TestSnapshotOfAnotherCluster(t *testing.T) {
	s := small(t).s
	var b bytes.Buffer
	if err := s.WriteSnapshot(&b, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	refuseSnapshot(t, "another log key", b.Bytes(), "its MAC does not verify: it was altered, or another cluster wrote it")
}

// TestSealedButWrong: what verifies is still read strictly.
func TestSealedButWrong(t *testing.T) {
	all := frames(t, snapshotOf(t, small(t).s))
	all = all[:len(all)-1] // joinFrames makes the trailer
	edit := func(i int, old, by string) []byte {
		changed := append([]frame(nil), all...)
		if strings.Count(string(changed[i].json), old) != 1 {
			t.Fatalf("%s is not once in %s", old, changed[i].json)
		}
		changed[i].json = []byte(strings.Replace(string(changed[i].json), old, by, 1))
		return joinFrames(t, changed)
	}
	kind := func(i int, k byte) []byte {
		changed := append([]frame(nil), all...)
		changed[i].kind = k
		return joinFrames(t, changed)
	}
	const header, cluster, key = 0, 1, 5
	hash := hex.EncodeToString(small(t).s.Hash())
	for _, row := range []struct {
		name string
		b    []byte
		text string
	}{
		{"other format", edit(header, `"format":1`, `"format":2`), "format 2, this release knows 1: upgrade this node"},
		{"format 0", edit(header, `"format":1`, `"format":0`), "format 0, this release knows 1"},
		{"other cluster in the header", edit(header, keyID(1<<32).String(), keyID(2).String()), "header and cluster record differ"},
		{"other epoch in the header", edit(header, `"recovery_epoch":0`, `"recovery_epoch":1`), "header and cluster record differ"},
		{"short hash", edit(header, hashText(t, hash), hashText(t, hash[2:])), "hash of 31 bytes"},
		{"unknown field in the header", edit(header, `"format":1`, `"format":1,"x":1`), "unknown field"},
		{"space in the header", edit(header, `"format":1`, `"format": 1`), "not in canonical form"},
		{"header of another kind", kind(header, 'C'), "bad header: frame of kind 'C'"},
		{"unknown field in a record", edit(key, `"state"`, `"x":1,"state"`), "record 4: json: unknown field"},
		{"duplicate member in a record", edit(key, `"state"`, `"state":"DISABLED","state"`), "record 4: not in canonical form"},
		{"other case in a record", edit(key, `"state"`, `"State"`), "record 4: not in canonical form"},
		{"two values in a record", edit(cluster, `"trust_domain"`, `"trust_domain":"x"}{"trust_domain"`), "record 0"},
		{"unknown kind", kind(key, 'X'), "record 4: unknown kind 'X'"},
		{"kind 0", kind(key, 0), `record 4: unknown kind '\x00'`},
		{"a second header", kind(key, 'H'), "record 4: unknown kind 'H'"},
		{"key as alias", kind(key, 'A'), "record 4: json: unknown field"},
		{"no cluster record", joinFrames(t, append([]frame{all[header]}, all[cluster+1:]...)), "header and cluster record differ"},
	} {
		t.Run(row.name, func(t *testing.T) { refuseSnapshot(t, row.name, row.b, row.text) })
	}
}

func hashText(t *testing.T, hexHash string) string {
	t.Helper()
	raw, err := hex.DecodeString(hexHash)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSnapshotTrailer: trailers whose sums are right and that are still refused.
func TestSnapshotTrailer(t *testing.T) {
	good := snapshotOf(t, small(t).s)
	all := frames(t, good)
	trailer := string(all[len(all)-1].json)
	body := good[:len(good)-len(trailer)-frameHead]
	for _, row := range []struct{ name, old, new, text string }{
		{"one record more", `"records":12`, `"records":13`, "12 records read, 13 announced"},
		{"one record fewer", `"records":12`, `"records":11`, "12 records read, 11 announced"},
		{"minus", `"records":12`, `"records":-12`, "bad trailer"},
		{"space", `"records":12`, `"records": 12`, "bad trailer: not in canonical form"},
		{"unknown field", `"records":12`, `"records":12,"x":0`, "bad trailer: json: unknown field"},
		{"no MAC", `"mac":"`, `"mac":"","x":"`, "bad trailer"},
	} {
		if strings.Count(trailer, row.old) != 1 {
			t.Fatalf("%s is not once in %s", row.old, trailer)
		}
		refuseSnapshot(t, row.name, appendFrame(bytes.Clone(body), 'Z', []byte(strings.Replace(trailer, row.old, row.new, 1))), row.text)
	}
	empty, err := json.Marshal(snapshotTrailer{Records: 12, SHA256: sha256Of(body)})
	if err != nil {
		t.Fatal(err)
	}
	refuseSnapshot(t, "MAC null", appendFrame(bytes.Clone(body), 'Z', empty), "its MAC does not verify")
}

func TestSnapshotFrameLimit(t *testing.T) {
	head := append([]byte("QKS1H"), binary.BigEndian.AppendUint32(nil, maxFrame+1)...)
	refuseSnapshot(t, "frame beyond the limit", head, "record of 16777217 bytes, at most 16777216")
	head = append([]byte("QKS1H"), binary.BigEndian.AppendUint32(nil, maxFrame)...)
	refuseSnapshot(t, "frame at the limit, cut", head, "cut off")
	w := initialized(t)
	w.edit(func(t *tx) {
		t.putKey(&Key{ID: keyID(1), Tenant: DefaultTenant, Versions: []KeyVersion{{Token: make([]byte, maxFrame)}}})
	})
	if err := w.s.WriteSnapshot(io.Discard, logKey()); err == nil || !strings.Contains(err.Error(), "at most 16777216") {
		t.Errorf("a record that no reader takes was written: %v", err)
	}
}

func TestSnapshotForeign(t *testing.T) {
	for _, b := range []string{"", "Q", "QKS", "QKS2", "qks1", "\x00\x00\x00\x00", "{}"} {
		refuseSnapshot(t, b, []byte(b), "it does not begin with QKS1")
	}
	refuseSnapshot(t, "only the magic", []byte("QKS1"), "cut off")
}

// TestSnapshotWriteErrors: wherever the writer fails, the error comes out.
func TestSnapshotWriteErrors(t *testing.T) {
	w := initialized(t)
	w.edit(func(t *tx) {
		for n := uint64(1); n <= 600; n++ {
			t.putKey(&Key{ID: keyID(n), Tenant: DefaultTenant, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, State: KeyEnabled, Versions: []KeyVersion{{Version: 1, Generation: 1, Token: make([]byte, 200)}}})
		}
	})
	size := len(snapshotOf(t, w.s))
	for _, limit := range []int{0, 1, size / 3, size / 2, size - 300, size - 1} {
		if err := w.s.WriteSnapshot(&sink{limit: limit}, logKey()); !errors.Is(err, errFull) {
			t.Errorf("writing %d of %d bytes: %v", limit, size, err)
		}
	}
	if err := w.s.WriteSnapshot(&sink{limit: size}, logKey()); err != nil {
		t.Error(err)
	}
}

func FuzzReadSnapshot(f *testing.F) {
	good := snapshotOf(f, small(f).s)
	f.Add(good)
	f.Add(snapshotOf(f, NewState()))
	f.Add(good[:len(good)-1])
	f.Add([]byte("QKS1H\x00\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadSnapshot(bytes.NewReader(b), logKey())
		if err != nil {
			if s != nil || !errors.Is(err, ErrSnapshot) {
				t.Fatalf("state %v, error %v", s, err)
			}
			return
		}
		if !bytes.Equal(snapshotOf(t, s), b) {
			t.Fatalf("%q was read and is written otherwise", b)
		}
	})
}

// FuzzSealedRecord: a record of any kind and content behind a MAC that verifies
// never makes the reader panic, and what is read is written in a stable form.
func FuzzSealedRecord(f *testing.F) {
	all := frames(f, snapshotOf(f, small(f).s))
	all = all[:len(all)-1]
	for _, r := range all {
		f.Add(r.kind, r.json)
	}
	f.Add(byte('K'), []byte(`{}`))
	f.Add(byte('Z'), []byte(`null`))
	f.Fuzz(func(t *testing.T, kind byte, record []byte) {
		s, err := ReadSnapshot(bytes.NewReader(joinFrames(t, append(all[:len(all):len(all)], frame{kind, record}))), logKey())
		if err != nil {
			if s != nil || !errors.Is(err, ErrSnapshot) {
				t.Fatalf("state %v, error %v", s, err)
			}
			return
		}
		again := reread(t, s)
		if !bytes.Equal(snapshotOf(t, again), snapshotOf(t, s)) {
			t.Fatalf("record %c %s: the state is written differently each time", kind, record)
		}
	})
}
