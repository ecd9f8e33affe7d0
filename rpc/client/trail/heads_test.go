package trail

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

type signer struct {
	key  *ecdsa.PrivateKey
	spki []byte
}

func newSigner(t *testing.T) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, spki}
}

func (s signer) note(t *testing.T, c Checkpoint) string {
	t.Helper()
	b, err := c.Sign(s.spki, func(m []byte) ([]byte, error) {
		digest := sha256.Sum256(m)
		return ecdsa.SignASN1(rand.Reader, s.key, digest[:])
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func point(node string, size int64, root byte) Checkpoint {
	return Checkpoint{Cluster: "c1", Node: node, Size: size, Root: Hash{root}, Time: time.UnixMilli(1_700_000_000_000).UTC()}
}

func later(c Checkpoint, seconds int) Checkpoint {
	c.Time = c.Time.Add(time.Duration(seconds) * time.Second)
	return c
}

// TestConvicted: an earlier checkpoint, brought again, convicts nobody, nor does one that the node
// has not signed.
func TestConvicted(t *testing.T) {
	a, b := newSigner(t), newSigner(t)
	was := point("n1", 20, 1)
	for what, row := range map[string]struct {
		conflict string
		want     bool
	}{
		"none":                           {"", false},
		"signed later":                   {a.note(t, later(point("n1", 33, 2), 1)), true},
		"of fewer records, signed later": {a.note(t, later(point("n1", 10, 2), 1)), true},
		"of as many, but others":         {a.note(t, later(point("n1", 20, 2), -1)), true},
		"the same tree":                  {a.note(t, later(point("n1", 20, 1), 1)), false},
		"an earlier one":                 {a.note(t, later(point("n1", 10, 2), -1)), false},
		"more records, signed earlier":   {a.note(t, later(point("n1", 33, 2), -1)), false},
		"by another key":                 {b.note(t, later(point("n1", 33, 2), 1)), false},
		"of another node":                {a.note(t, later(point("n2", 33, 2), 1)), false},
		"no checkpoint":                  {"nonsense", false},
	} {
		n := NodeHead{Node: "n1", Identity: a.spki, Checkpoint: a.note(t, was), Conflict: row.conflict}
		if f := n.Convicted(); (f != nil) != row.want || f != nil && f.Kind != Rewritten {
			t.Errorf("%s: %+v", what, f)
		}
	}
}

func TestHeads(t *testing.T) {
	a, b := newSigner(t), newSigner(t)
	good := func() Heads {
		return Heads{Format: 1, Cluster: "c1", Nodes: []NodeHead{
			{Node: "kms-1.1", Name: "kms-1", Identity: a.spki, Removed: true},
			{Node: "kms-1.2", Name: "kms-1", Identity: b.spki, Checkpoint: b.note(t, point("kms-1.2", 7, 1)), Conflict: b.note(t, later(point("kms-1.2", 9, 2), 1))},
		}}
	}
	h := good()
	file, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseHeads(file)
	if err != nil {
		t.Fatal(err)
	}
	again, err := read.Encode()
	if err != nil || !bytes.Equal(again, file) {
		t.Errorf("written again: %v\n%s", err, again)
	}
	for name, want := range map[string]string{"kms-1": "kms-1.2", "kms-1.1": "kms-1.1", "kms-1.2": "kms-1.2", "kms-3": ""} {
		if n, ok := read.Find(name); n.Node != want || ok != (want != "") {
			t.Errorf("%s: found %q, %v", name, n.Node, ok)
		}
	}
	if f := read.Nodes[1].Convicted(); f == nil || f.Kind != Rewritten || f.Last != 9 {
		t.Errorf("convicted: %+v", f)
	}
	if f := read.Nodes[0].Convicted(); f != nil {
		t.Errorf("convicted: %+v", f)
	}
	for what, edit := range map[string]func(h *Heads){
		"no cluster":                   func(h *Heads) { h.Cluster = "" },
		"another cluster":              func(h *Heads) { h.Cluster = "c2" },
		"another format":               func(h *Heads) { h.Format = 2 },
		"out of order":                 func(h *Heads) { h.Nodes[0], h.Nodes[1] = h.Nodes[1], h.Nodes[0] },
		"a node twice":                 func(h *Heads) { h.Nodes[1].Node = h.Nodes[0].Node },
		"no node":                      func(h *Heads) { h.Nodes[0].Node = "" },
		"no key":                       func(h *Heads) { h.Nodes[0].Identity = []byte("key") },
		"another's key":                func(h *Heads) { h.Nodes[1].Identity = a.spki },
		"another's checkpoint":         func(h *Heads) { h.Nodes[0].Checkpoint = h.Nodes[1].Checkpoint },
		"an altered checkpoint":        func(h *Heads) { h.Nodes[1].Checkpoint = strings.Replace(h.Nodes[1].Checkpoint, "\n7\n", "\n8\n", 1) },
		"an altered conflict":          func(h *Heads) { h.Nodes[1].Conflict = strings.Replace(h.Nodes[1].Conflict, "\n9\n", "\n8\n", 1) },
		"a conflict with nothing":      func(h *Heads) { h.Nodes[1].Checkpoint = "" },
		"something that is not a note": func(h *Heads) { h.Nodes[1].Checkpoint = "nonsense" },
	} {
		h := good()
		edit(&h)
		b, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseHeads(b); !errors.Is(err, ErrHeads) {
			t.Errorf("%s: %v", what, err)
		}
		if what != "another format" { // which Encode sets
			if _, err := h.Encode(); !errors.Is(err, ErrHeads) {
				t.Errorf("%s, written: %v", what, err)
			}
		}
	}
	for what, b := range map[string][]byte{
		"nothing":           nil,
		"no JSON":           []byte("{"),
		"more behind it":    append(bytes.Clone(file), ' '),
		"other spaces":      bytes.Replace(file, []byte("  "), []byte(" "), 1),
		"another member":    bytes.Replace(file, []byte(`"format": 1,`), []byte(`"format": 1, "x": 1,`), 1),
		"too long":          make([]byte, MaxHeads+1),
		"cut":               file[:len(file)-2],
		"format is missing": bytes.Replace(file, []byte(`"format": 1,`), nil, 1),
	} {
		if _, err := ParseHeads(b); !errors.Is(err, ErrHeads) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestExport makes an export of two nodes, and does to it what somebody may do.
func TestExport(t *testing.T) {
	const records = 5
	heads := Heads{Cluster: "c1"}
	var data, manifest bytes.Buffer
	x, err := NewExporter(&data, &manifest, ExportHeader{Cluster: "c1", Query: "tenant=acme", Proofs: true})
	if err != nil {
		t.Fatal(err)
	}
	signers := map[string]signer{}
	for _, node := range []string{"n1", "n2"} {
		s, tree := newSigner(t), &Tree{}
		signers[node] = s
		line := func(i int) []byte { return []byte(node + strings.Repeat("x", i)) }
		for i := range records {
			if _, err := tree.Add(RecordHash(line(i))); err != nil {
				t.Fatal(err)
			}
		}
		p := point(node, records, 0)
		if p.Root, err = tree.Root(); err != nil {
			t.Fatal(err)
		}
		heads.Nodes = append(heads.Nodes, NodeHead{Node: node, Name: node, Identity: s.spki, Checkpoint: s.note(t, p)})
		if err := x.Checkpoint(node, []byte(s.note(t, p))); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, 2, 4} {
			proof, err := tlog.ProveRecord(records, int64(i), tree)
			if err != nil {
				t.Fatal(err)
			}
			var hashes [][]byte
			for _, h := range proof {
				hashes = append(hashes, h[:])
			}
			if err := x.Record(node, uint64(i+1), line(i), hashes); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, err := x.End(); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	check := func(d, m []byte, h Heads) (ExportReport, error) {
		return CheckExport(bytes.NewReader(d), bytes.NewReader(m), h)
	}
	r, err := check(data.Bytes(), manifest.Bytes(), heads)
	if err != nil || r.Finding != nil || r.Records != 6 || r.Nodes["n1"] != 3 || r.Nodes["n2"] != 3 || r.Query != "tenant=acme" {
		t.Fatalf("%+v, %v", r, err)
	}
	other := signers["n1"].note(t, point("n1", records, 77))
	forged := bytes.SplitAfter(manifest.Bytes(), []byte("\n"))
	line, err := json.Marshal(manifestLine{Node: "n1", Checkpoint: signers["n2"].note(t, point("n1", records, 77))})
	if err != nil {
		t.Fatal(err)
	}
	forged[1] = append(line, '\n')
	twice := Heads{Cluster: "c1", Nodes: []NodeHead{{Node: "n1", Name: "n1", Identity: signers["n1"].spki, Checkpoint: other}, heads.Nodes[1]}}
	for what, row := range map[string]struct {
		data, manifest []byte
		heads          Heads
		kind           Kind
		line           uint64
	}{
		"a record is altered":     {bytes.Replace(data.Bytes(), []byte("n2xx\n"), []byte("n2xy\n"), 1), manifest.Bytes(), heads, Altered, 5},
		"a record is removed":     {bytes.Replace(data.Bytes(), []byte("n1xx\n"), nil, 1), manifest.Bytes(), heads, Altered, 2},
		"the last is removed":     {bytes.Replace(data.Bytes(), []byte("n2xxxx\n"), nil, 1), manifest.Bytes(), heads, Removed, 6},
		"a record is added":       {append(bytes.Clone(data.Bytes()), "n2x\n"...), manifest.Bytes(), heads, Inserted, 7},
		"two are exchanged":       {[]byte("n1xx\nn1\nn1xxxx\nn2\nn2xx\nn2xxxx\n"), manifest.Bytes(), heads, Altered, 1},
		"a checkpoint is forged":  {data.Bytes(), bytes.Join(forged, nil), heads, Forged, 0},
		"a node is unknown":       {data.Bytes(), manifest.Bytes(), Heads{Cluster: "c1", Nodes: heads.Nodes[1:]}, Forged, 0},
		"the heads have another":  {data.Bytes(), manifest.Bytes(), twice, Rewritten, 0},
		"the end tells otherwise": {data.Bytes(), bytes.Replace(manifest.Bytes(), []byte(`"records":6`), []byte(`"records":7`), 1), heads, Altered, 6},
	} {
		r, err := check(row.data, row.manifest, row.heads)
		if err != nil || r.Finding == nil || r.Finding.Kind != row.kind || r.Line != row.line {
			t.Errorf("%s: %+v, line %d, %v", what, r.Finding, r.Line, err)
		}
	}
	for what, m := range map[string][]byte{
		"no manifest":     nil,
		"cut":             manifest.Bytes()[:manifest.Len()-1],
		"its end is gone": bytes.Join(forged[:3], nil),
		"no JSON":         []byte("{"),
		"without proofs":  []byte(`{"format":1,"cluster":"c1","proofs":false}` + "\n"),
		"another cluster": []byte(`{"format":1,"cluster":"c2","proofs":true}` + "\n"),
		"another format":  []byte(`{"format":2,"cluster":"c1","proofs":true}` + "\n"),
		"more behind it":  append(bytes.Clone(manifest.Bytes()), "{}\n"...),
		"no checkpoint":   bytes.Join(slices.Concat(forged[:1], forged[2:]), nil),
	} {
		if r, err := check(data.Bytes(), m, heads); !errors.Is(err, ErrExport) && (what != "its end is gone" || r.Finding == nil) {
			t.Errorf("%s: %+v, %v", what, r.Finding, err)
		}
	}
}
