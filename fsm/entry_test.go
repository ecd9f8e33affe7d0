package fsm

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestEncodeEntry(t *testing.T) {
	e := Entry{Request: "r<1>", Digest: digestOf("words"), Principal: admin, Proposer: firstNode, Time: -5}
	raw, err := EncodeEntry(e, &DisableKey{KeyRef{keyID(1), "default", 7}}, logKey())
	if err != nil {
		t.Fatal(err)
	}
	plain := `{"format":1,"command":"DisableKey","request":"r\u003c1\u003e","digest":"` +
		base64.StdEncoding.EncodeToString(digestOf("words")) + `","principal":"` + admin + `","proposer":"n1-00000001","time":-5,` +
		`"body":{"id":"00000000-0000-0000-0000-000000000001","tenant":"default","expect":7}}`
	if want := sealPlain([]byte(plain)); !bytes.Equal(raw, want) {
		t.Fatalf("entry is\n%s\nwant\n%s", raw, want)
	}
	got, command, err := decodeEntry(raw)
	if err != nil {
		t.Fatal(err)
	}
	if want := (DisableKey{KeyRef{keyID(1), "default", 7}}); *command.(*DisableKey) != want {
		t.Errorf("command %+v, want %+v", command, want)
	}
	if got.Request != e.Request || !bytes.Equal(got.Digest, e.Digest) || got.Principal != e.Principal || got.Proposer != e.Proposer || got.Time != e.Time {
		t.Errorf("entry %+v, want %+v", got, e)
	}
}

// TestEntryLimits: what EncodeEntry refuses also halts a machine that meets it.
func TestEntryLimits(t *testing.T) {
	s := func(n int) string { return strings.Repeat("x", n) }
	for _, row := range []struct {
		name string
		edit func(e *Entry)
		text string // "" where the entry is right
	}{
		{"no request", func(*Entry) {}, ""},
		{"request of 128 bytes", func(e *Entry) { e.Request, e.Digest = s(128), digestOf("") }, ""},
		{"request of 129 bytes", func(e *Entry) { e.Request, e.Digest = s(129), digestOf("") }, "request id has 129 bytes, at most 128"},
		{"request without digest", func(e *Entry) { e.Request = "r" }, "must come together"},
		{"digest without request", func(e *Entry) { e.Digest = digestOf("") }, "must come together"},
		{"digest of 31 bytes", func(e *Entry) { e.Request, e.Digest = "r", make([]byte, 31) }, "must come together"},
		{"digest of 33 bytes", func(e *Entry) { e.Request, e.Digest = "r", make([]byte, 33) }, "must come together"},
		{"principal of 512 bytes", func(e *Entry) { e.Principal = s(512) }, ""},
		{"principal of 513 bytes", func(e *Entry) { e.Principal = s(513) }, "principal has 513 bytes: must be 1 to 512"},
		{"no principal", func(e *Entry) { e.Principal = "" }, "principal has 0 bytes"},
		{"proposer of 128 bytes", func(e *Entry) { e.Proposer = s(128) }, ""},
		{"proposer of 129 bytes", func(e *Entry) { e.Proposer = s(129) }, "proposer has 129 bytes: must be 1 to 128"},
		{"no proposer", func(e *Entry) { e.Proposer = "" }, "proposer has 0 bytes"},
		{"earliest time", func(e *Entry) { e.Time = -1 << 63 }, ""},
		{"latest time", func(e *Entry) { e.Time = 1<<63 - 1 }, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := oneKey(t)
			e := w.entry()
			row.edit(&e)
			_, err := EncodeEntry(e, &DisableKey{ref(1)}, logKey())
			if row.text != "" {
				wantError(t, err, ErrInvalid, row.text)
				wantHalt(t, w, seal(t, e, &DisableKey{ref(1)}), row.text)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.apply(e, &DisableKey{ref(1)}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestLongestEntry: a mebibyte and not a byte more.
func TestLongestEntry(t *testing.T) {
	w := oneKey(t)
	c := createKey(2)
	raw, err := EncodeEntry(w.entry(), c, logKey())
	if err != nil {
		t.Fatal(err)
	}
	c.Tenant += strings.Repeat("x", 1<<20-len(raw))
	if raw, err = EncodeEntry(w.entry(), c, logKey()); err != nil || len(raw) != 1<<20 {
		t.Fatalf("entry of %d bytes: %v", len(raw), err)
	}
	_, err = w.apply(w.entry(), c)
	wantError(t, err, ErrNotFound, "tenant")
	c.Tenant += "x"
	_, err = EncodeEntry(w.entry(), c, logKey())
	wantError(t, err, ErrInvalid, "entry of 1048577 bytes, at most 1048576")
	wantHalt(t, w, seal(t, w.entry(), c), "entry of 1048577 bytes")
}

// TestTextMustBeUTF8: text that JSON cannot carry is refused before it is written,
// since an entry that is not read back as it was written halts every node.
func TestTextMustBeUTF8(t *testing.T) {
	w := oneKey(t)
	const bad = "a\xffb"
	e := w.entry()
	e.Principal = bad
	_, err := EncodeEntry(e, &DisableKey{ref(1)}, logKey())
	wantError(t, err, ErrInvalid, "UTF-8")
	for _, c := range []Command{
		&DisableKey{KeyRef{ID: keyID(1), Tenant: bad}},
		create(func(c *CreateKey) { c.Description = bad }),
		create(func(c *CreateKey) { c.Tags = []Tag{{"a", bad}} }),
		&TagKey{ref(1), []Tag{{bad, ""}}},
		&UntagKey{ref(1), []string{bad}},
		&UpdateKeyDescription{ref(1), bad},
		edited(ticketFor("n2"), func(c *CreateTicket) { c.ID = bad }),
		edited(admit("n2"), func(c *AdmitNode) { c.PeerAddress = bad }),
		edited(requestOf("n2"), func(c *RequestJoin) { c.ClientAddress = bad }),
		edited(initCluster(), func(c *InitCluster) { c.TrustDomain = bad }),
		&UpdateMember{ID: bad, PeerAddress: "a", ClientAddress: "b"},
		putPolicy(1, bad), bind(1, bad), &ReleaseResource{ref(1), "r", bad}, &DisablePrincipal{"spiffe://" + bad, ""}, &FreezeTenant{bad, true},
		&SetRequiredContext{ref(1), []string{bad}}, edited(createTenant("acme"), func(c *CreateTenant) { c.Administrator += bad }),
		grant(func(c *CreateGrant) { c.Name = bad }), grant(func(c *CreateGrant) { c.Constraints.Equals = []Tag{{"a", bad}} }), grant(func(c *CreateGrant) { c.Retiring = "spiffe://" + bad }),
	} {
		_, err := EncodeEntry(w.entry(), c, logKey())
		wantError(t, err, ErrInvalid, "UTF-8")
	}
	for _, text := range []string{"\ufffd", "\u2028", "<&>", "\x00\x1f\x7f", "\b\f\n\r\t\v", "\\\"/", "😀"} {
		w.do(&UpdateKeyDescription{ref(1), text})
		if got := w.key(1).Description; got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// TestEveryByteOfAnEntryCounts: no flipped bit and no cut escapes the MAC.
func TestEveryByteOfAnEntryCounts(t *testing.T) {
	w := oneKey(t)
	raw := w.log[1].Data
	if err := logKey().VerifyEntry(raw); err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for _, mask := range []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff} {
			flipped := bytes.Clone(raw)
			flipped[i] ^= mask
			if err := logKey().VerifyEntry(flipped); !errors.Is(err, ErrHalted) {
				t.Fatalf("byte %d flipped by %#x: %v", i, mask, err)
			}
		}
		if err := logKey().VerifyEntry(raw[:i]); !errors.Is(err, ErrHalted) {
			t.Fatalf("cut at %d: %v", i, err)
		}
		if err := logKey().VerifyEntry(raw[i+1:]); !errors.Is(err, ErrHalted) {
			t.Fatalf("begun at %d: %v", i+1, err)
		}
	}
	if err := LogKey(make([]byte, 32)).VerifyEntry(raw); !errors.Is(err, ErrHalted) {
		t.Fatalf("another log key: %v", err)
	}
}

// wantHalt gives a machine that holds w's log a good entry, the bad one and two
// more good ones: it applies the first, halts once and applies nothing more.
func wantHalt(t *testing.T, w *world, bad []byte, text string) {
	t.Helper()
	good := seal(t, w.entry(), &UpdateKeyDescription{ref(1), "good"})
	m, halts := machine()
	m.ApplyBatch(w.log)
	next := w.s.Index() + 1
	entry := func(i uint64, raw []byte) *raft.Log {
		return &raft.Log{Index: next + i, Term: 1, Type: raft.LogCommand, Data: raw}
	}
	out := m.ApplyBatch([]*raft.Log{entry(0, good), entry(1, bad), entry(2, good)})
	if err := out[0].(Outcome).Err; err != nil {
		t.Fatalf("the entry before: %v", err)
	}
	err := out[1].(Outcome).Err
	wantError(t, err, ErrHalted, text)
	wantError(t, err, ErrHalted, fmt.Sprintf("log entry %d", next+1))
	if Code(err) != "HALTED" {
		t.Errorf("code %s of %v", Code(err), err)
	}
	for _, o := range []any{out[2], m.Apply(entry(3, good))} {
		if o.(Outcome).Err == nil || !errors.Is(o.(Outcome).Err, ErrHalted) {
			t.Errorf("an entry behind it: %+v", o)
		}
	}
	if m.State().Index() != next {
		t.Errorf("state at %d, want %d", m.State().Index(), next)
	}
	if len(*halts) != 1 || !errors.Is((*halts)[0], ErrHalted) || !strings.Contains((*halts)[0].Error(), text) {
		t.Errorf("halted with %v, want once and saying %q", *halts, text)
	}
}

// TestStrictEntries: entries whose MAC verifies and that are still not to be applied.
func TestStrictEntries(t *testing.T) {
	w := oneKey(t)
	e := w.request("r1", "disable")
	raw := seal(t, e, &DisableKey{ref(1)})
	plain := string(raw[:len(raw)-macTail]) + "}"
	digest := base64.StdEncoding.EncodeToString(digestOf("disable"))
	for _, row := range []struct{ name, old, new, text string }{
		{"unknown field", `"time":`, `"extra":1,"time":`, `unknown field "extra"`},
		{"unknown field at the end", `"}}`, `"},"extra":1}`, `unknown field "extra"`},
		{"second mac", `"}}`, `"},"mac":""}`, `unknown field "mac"`},
		{"unknown field of the command", `"tenant":"default"`, `"tenant":"default","force":true`, `unknown field "force"`},
		{"duplicate member", `"format":1,`, `"format":1,"format":1,`, "not in canonical form"},
		{"duplicate member of the command", `"tenant":"default"`, `"tenant":"default","tenant":"default"`, "not in canonical form"},
		{"other case", `"format"`, `"Format"`, "not in canonical form"},
		{"other case in the command", `"tenant"`, `"TENANT"`, "not in canonical form"},
		{"space", `"format":1`, `"format": 1`, "not in canonical form"},
		{"space in the command", `"tenant":"default"`, `"tenant" :"default"`, "not in canonical form"},
		{"space before", `{"format"`, ` {"format"`, "not in canonical form"},
		{"line end", `"}}`, "\"}\n}", "not in canonical form"},
		{"second value", `"}}`, `"}}{}`, "not in canonical form"},
		{"trailing bracket", `"}}`, `"}}]}`, "not in canonical form"},
		{"order of members", `"format":1,"command":"DisableKey"`, `"command":"DisableKey","format":1`, "not in canonical form"},
		{"field missing", `"proposer":"n1-00000001",`, ``, "not in canonical form"},
		{"field of the command missing", `,"tenant":"default"`, ``, "not in canonical form"},
		{"optional field that is zero", `"tenant":"default"`, `"tenant":"default","expect":0`, "not in canonical form"},
		{"null", `"tenant":"default"`, `"tenant":null`, "not in canonical form"},
		{"escaped letter", `"default"`, `"\u0064efault"`, "not in canonical form"},
		{"escaped slash", `spiffe://`, `spiffe:\/\/`, "not in canonical form"},
		{"letter that must be escaped", `"default"`, `"<default"`, "not in canonical form"},
		{"half a surrogate pair", `"default"`, `"\ud800"`, "not in canonical form"},
		{"no UTF-8", `"default"`, "\"\xff\"", "not in canonical form"},
		{"control character", `"default"`, "\"\n\"", "invalid character"},
		{"id in capitals", keyID(1).String(), "0000000A-0000-0000-0000-000000000001", "not in canonical form"},
		{"id in braces", keyID(1).String(), "{" + keyID(1).String() + "}", "not in canonical form"},
		{"id that is none", keyID(1).String(), "key-1", "invalid UUID"},
		{"base64 without padding", digest, strings.TrimRight(digest, "="), "illegal base64"},
		{"base64 of another alphabet", digest, "____" + digest[4:], "illegal base64"},
		{"base64 with spare bits", digest, digest[:42] + "/=", "not in canonical form"},
		{"base64 with a line end", digest, digest[:40] + `\n` + digest[40:], "not in canonical form"},
		{"fraction", `"time":1700000000000000000`, `"time":1700000000000000000.0`, "cannot unmarshal"},
		{"exponent", `"time":1700000000000000000`, `"time":17e17`, "cannot unmarshal"},
		{"minus zero", `"time":1700000000000000000`, `"time":-0`, "not in canonical form"},
		{"time beyond 64 bits", `"time":1700000000000000000`, `"time":9223372036854775808`, "cannot unmarshal"},
		{"number as text", `"format":1`, `"format":"1"`, "cannot unmarshal"},
		{"format 0", `"format":1`, `"format":0`, "entry of format 0, this release knows 1: upgrade this node"},
		{"format 2", `"format":1`, `"format":2`, "entry of format 2, this release knows 1: upgrade this node"},
		{"unknown command", `"DisableKey"`, `"DestroyKey"`, `unknown command "DestroyKey": upgrade this node`},
		{"command in lower case", `"DisableKey"`, `"disablekey"`, `unknown command "disablekey"`},
		{"no command", `"DisableKey"`, `""`, `unknown command ""`},
		{"body of another command", `"DisableKey"`, `"Tick"`, "unknown field"},
		{"body that is null", `{"id":"` + keyID(1).String() + `","tenant":"default"}`, `null`, "not in canonical form"},
		{"body that is a list", `{"id":"` + keyID(1).String() + `","tenant":"default"}`, `[]`, "cannot unmarshal"},
		{"empty body", `{"id":"` + keyID(1).String() + `","tenant":"default"}`, `{}`, "not in canonical form"},
		{"request id taken out", `"request":"r1"`, `"request":""`, "must come together"},
		{"proposer taken out", `"proposer":"n1-00000001"`, `"proposer":""`, "proposer has 0 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if strings.Count(plain, row.old) != 1 {
				t.Fatalf("%s is %d times in %s", row.old, strings.Count(plain, row.old), plain)
			}
			bad := sealPlain([]byte(strings.Replace(plain, row.old, row.new, 1)))
			if err := logKey().VerifyEntry(bad); err != nil {
				t.Fatalf("its MAC: %v", err)
			}
			wantHalt(t, w, bad, row.text)
		})
	}
}

// TestBrokenMAC: entries that are right but for their MAC.
func TestBrokenMAC(t *testing.T) {
	w := oneKey(t)
	c := &DisableKey{ref(1)}
	raw := seal(t, w.entry(), c)
	other, err := EncodeEntry(w.entry(), c, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, by string) []byte {
		return append(append(bytes.Clone(raw[:at]), by...), raw[at+len(by):]...)
	}
	tail := len(raw) - macTail
	const none, wrong = "does not end with a MAC", "entry MAC does not verify"
	for _, row := range []struct {
		name string
		raw  []byte
		text string
	}{
		{"no bytes", nil, "entry of 0 bytes"},
		{"no entry", []byte("{}"), "entry of 2 bytes"},
		{"only a MAC", raw[tail:], "entry of"},
		{"no MAC", append(bytes.Clone(raw[:tail]), '}'), none},
		{"MAC of another key", other, wrong},
		{"MAC of another entry", append(seal(t, w.entry(), &EnableKey{ref(1)})[:tail], raw[tail:]...), wrong},
		{"other member name", change(tail, `,"MAC":"`), none},
		{"MAC that is no base64", change(tail+8, "!"), none},
		{"MAC with spare bits", change(tail+8+42, "/="), none},
		{"line end in the MAC", change(tail+8, "\n"), none},
		{"short MAC", append(bytes.Clone(raw[:tail]), `,"mac":"`+base64.StdEncoding.EncodeToString(make([]byte, 31))+`"}`...), none},
		{"other command, same MAC", bytes.Replace(raw, []byte("DisableKey"), []byte("EnableKey"), 1), wrong},
		{"line end behind", append(bytes.Clone(raw), '\n'), none},
		{"space behind", append(bytes.Clone(raw), ' '), none},
		{"zero behind", append(bytes.Clone(raw), 0), none},
		{"twice", append(bytes.Clone(raw), raw...), wrong},
		{"longer than any entry", bytes.Repeat([]byte("x"), MaxEntry+1), "entry of 1048577 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) { wantHalt(t, w, row.raw, row.text) })
	}
}

// TestIndexMustGrow: an entry that was applied is not applied again.
func TestIndexMustGrow(t *testing.T) {
	w := oneKey(t)
	raw := seal(t, w.entry(), &DisableKey{ref(1)})
	for _, index := range []uint64{0, 1, 2} {
		next, _, err := w.s.Apply(index, 1, raw)
		wantError(t, err, ErrHalted, fmt.Sprintf("entry %d follows 2", index))
		if next != nil {
			t.Errorf("entry %d gave a state", index)
		}
	}
	if _, err := w.append(1<<63, 9, raw); err != nil {
		t.Errorf("a later index: %v", err)
	}
}

// entrySeeds are entries of every command, right and wrong.
func entrySeeds(t failer) [][]byte {
	var out [][]byte
	for _, script := range goldenScripts {
		for _, l := range script(t).log {
			out = append(out, l.Data)
		}
	}
	for _, s := range commands {
		out = append(out, seal(t, Entry{}, s.make()))
	}
	return append(out, nil, []byte("{}"), sealPlain([]byte("{}")), sealPlain([]byte(`{"format":1,"body":{}}`)), sealPlain([]byte("[[[[}")))
}

// TestCanonicalCommands: of what may be left out there is one way to write it.
func TestCanonicalCommands(t *testing.T) {
	const id = `"00000000-0000-0000-0000-000000000000"`
	const grant = `{"grant":` + id + `,"key":` + id + `,"tenant":"t","grantee":"g","operations":[],"constraints":`
	for _, row := range []struct {
		name, right string
		wrong       []string
	}{
		{"PutPolicy", `{"tenant":"t"}`, []string{
			`{"tenant":"t","key":` + id + `}`, `{"tenant":"t","text":""}`, `{"tenant":"t","expect":null}`, `{"tenant":"t","expect":-1}`, `{"tenant":"t","expect":4294967296}`,
		}},
		{"PutPolicy", `{"tenant":"t","expect":0}`, []string{`{"tenant":"t","expect":00}`, `{"expect":0,"tenant":"t"}`}},
		{"CreateGrant", grant + `{}}`, []string{
			grant + `null}`, grant + `{"equals":[]}}`, grant + `{"equals":null}}`, grant + `{"subset":[]}}`, grant + `{},"parent":` + id + `}`, grant + `{},"service":false}`, grant + `{},"expires":0}`,
		}},
		{"SetRequiredContext", `{"id":` + id + `,"tenant":"t"}`, []string{`{"id":` + id + `,"tenant":"t","keys":[]}`, `{"id":` + id + `,"tenant":"t","keys":null}`}},
		{"RecordUse", `{"uses":[{"key":` + id + `,"at":1}]}`, []string{`{"uses":[{"key":` + id + `,"version":0,"at":1}]}`, `{}`}},
		{"RecordUse", `{"uses":null}`, nil},
		{"RecordUse", `{"uses":[]}`, nil},
		{"DisablePrincipal", `{"principal":"p"}`, []string{`{"principal":"p","tenant":""}`}},
		{"FreezeTenant", `{"name":"t","by_operator":false}`, []string{`{"name":"t"}`, `{"name":"t","by_operator":null}`}},
		{"DisableKeyVersion", `{"id":` + id + `,"tenant":"t","version":1}`, []string{`{"id":` + id + `,"tenant":"t","version":1.0}`, `{"tenant":"t","version":1}`}},
	} {
		c, err := DecodeCommand(row.name, []byte(row.right))
		if err != nil {
			t.Errorf("%s %s: %v", row.name, row.right, err)
		} else if again, err := json.Marshal(c); err != nil || string(again) != row.right {
			t.Errorf("%s %s became %s: %v", row.name, row.right, again, err)
		}
		for _, wrong := range row.wrong {
			if _, err := DecodeCommand(row.name, []byte(wrong)); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s %s was read: %v", row.name, wrong, err)
			}
		}
	}
}

// FuzzDecodeEntry: never panics, and what is read is written again to the same bytes.
func FuzzDecodeEntry(f *testing.F) {
	for _, seed := range entrySeeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, c, err := decodeEntry(raw)
		if err != nil {
			if !errors.Is(err, ErrHalted) {
				t.Fatalf("%v does not halt", err)
			}
			return
		}
		body, err := json.Marshal(c)
		if err != nil || !bytes.Equal(body, e.Body) || NameOf(c) != e.Command {
			t.Fatalf("%s with body %s became %s with %s: %v", e.Command, e.Body, NameOf(c), body, err)
		}
		plain, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		_, mac, err := splitMAC(raw)
		if err != nil {
			t.Fatal(err)
		}
		again := append(plain[:len(plain)-1], `,"mac":"`+base64.StdEncoding.EncodeToString(mac)+`"}`...)
		if !bytes.Equal(again, raw) {
			t.Fatalf("%s became %s", raw, again)
		}
	})
}

// FuzzApply: whatever body a command has and whoever proposes it, applying it never
// panics, keeps the invariants, and leaves the state before it as it was.
func FuzzApply(f *testing.F) {
	for _, seed := range entrySeeds(f) {
		if e, _, err := decodeEntry(seed); err == nil {
			f.Add(e.Command, []byte(e.Body), e.Proposer)
		}
	}
	w := goldenUpgraded(f)
	before := snapshotOf(f, w.s)
	f.Fuzz(func(t *testing.T, command string, body []byte, proposer string) {
		e := w.entry()
		e.Format, e.Command, e.Body, e.Proposer = format, command, body, proposer
		plain, err := json.Marshal(&e)
		if err != nil {
			return
		}
		next, _, err := w.s.Apply(w.s.Index()+1, 1, sealPlain(plain))
		if next == nil && !errors.Is(err, ErrHalted) {
			t.Fatalf("no state and %v", err)
		}
		if next != nil && next.Check() != nil {
			t.Fatalf("%s %s: %v", command, body, next.Check())
		}
		if !bytes.Equal(snapshotOf(t, w.s), before) {
			t.Fatalf("%s %s changed the state before it", command, body)
		}
	})
}

// TestDecodeCommand: a body that travels by itself is read as strictly.
func TestDecodeCommand(t *testing.T) {
	for _, l := range append(goldenScript(t).log, goldenUpgrade(t).log...) {
		e, want, err := decodeEntry(l.Data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeCommand(e.Command, e.Body)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("command %+v, want %+v: %v", got, want, err)
		}
	}
	for _, row := range []struct{ name, body, text string }{
		{"DestroyKey", `{}`, `unknown command "DestroyKey"`},
		{"", `{}`, `unknown command ""`},
		{"ActivateNode", `{"id":"n1","force":true}`, "ActivateNode: json: unknown field"},
		{"ActivateNode", `{"id":"n1"} `, "ActivateNode: not in canonical form"},
		{"ActivateNode", `{"ID":"n1"}`, "ActivateNode: not in canonical form"},
		{"Repeat", `{"request":"r1"}`, "Repeat: json: unknown field"},
		{"Repeat", `null`, "Repeat: not in canonical form"},
		{"ActivateNode", `null`, "ActivateNode: not in canonical form"},
		{"ActivateNode", ``, "ActivateNode: EOF"},
	} {
		c, err := DecodeCommand(row.name, []byte(row.body))
		wantError(t, err, ErrInvalid, row.text)
		if c != nil {
			t.Errorf("%s %s gave %+v", row.name, row.body, c)
		}
	}
}
