package fsm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// Who and when, in every test.
const (
	startTime = int64(1_700_000_000_000_000_000) // unix nanoseconds
	second    = int64(1_000_000_000)
	admin     = "spiffe://kms.example/tenant/default/admin/ada"
	firstNode = "n1-00000001"
	day       = int64(secondsPerDay)

	user    = "spiffe://kms.example/tenant/default/user/uma"
	other   = "spiffe://kms.example/tenant/default/user/otto"
	storage = "spiffe://kms.example/service/obs"
)

// start is startTime in seconds.
const start = startTime / second

func logKey() LogKey { return bytes.Repeat([]byte{0x4c}, 32) }

// failer is what the helpers need of testing.TB and of rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// keyID gives the n-th key id; 0 is no id.
func keyID(n uint64) ID {
	var id ID
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// world is a log and the state behind it.
type world struct {
	t        failer
	s        *State
	clock    int64  // unix nanoseconds, of the next entry
	proposer string // raft id of the node that is asked next; firstNode if empty
	caller   string // SPIFFE URI of who asks next; admin if empty
	log      []*raft.Log
}

func newWorld(t failer) *world { return &world{t: t, s: NewState(), clock: startTime} }

// initialized is a world behind its first entry.
func initialized(t failer) *world {
	w := newWorld(t)
	w.do(initCluster())
	return w
}

func initCluster() *InitCluster {
	return &InitCluster{
		Cluster: keyID(1 << 32), TrustDomain: "kms.example",
		Operator:      "spiffe://kms.example/operator/olga",
		Administrator: admin,
		LeaseMillis:   9_000,
		Generation:    1,
		Checks:        []DomainCheck{{Kind: 1, Value: bytes.Repeat([]byte{0xc1}, 16)}, {Kind: 2, Value: bytes.Repeat([]byte{0xc2}, 16)}},
		Node:          firstNode, Name: "n1", PeerAddress: "n1:7000", ClientAddress: "n1:7001",
		Identity: []byte("identity of n1"), Release: NewestRelease, NoRecovery: true,
	}
}

func createKey(n uint64) *CreateKey {
	return &CreateKey{
		ID: keyID(n), Tenant: DefaultTenant, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric,
		Version: 1, Generation: 1, Token: []byte("token 1"),
	}
}

func ref(n uint64) KeyRef { return KeyRef{ID: keyID(n), Tenant: DefaultTenant} }

func rotateKey(n uint64, version uint32) *RotateKey {
	return &RotateKey{KeyRef: ref(n), Version: version, Generation: 1, Cause: CauseOnDemand, Token: []byte("token")}
}

func alias(name string, n uint64) AliasTarget {
	return AliasTarget{Tenant: DefaultTenant, Name: name, Key: keyID(n)}
}

func deleteAlias(name string) *DeleteAlias { return &DeleteAlias{Tenant: DefaultTenant, Name: name} }

func (w *world) entry() Entry {
	return Entry{Principal: cmp.Or(w.caller, admin), Proposer: cmp.Or(w.proposer, firstNode), Time: w.clock}
}

// seal is EncodeEntry without its checks: what a faulty proposer would write.
func seal(t failer, e Entry, c Command) []byte {
	t.Helper()
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatalf("encoding %s: %v", NameOf(c), err)
	}
	e.Format, e.Command, e.Body = format, NameOf(c), body
	plain, err := json.Marshal(&e)
	if err != nil {
		t.Fatalf("encoding entry: %v", err)
	}
	return sealPlain(plain)
}

// sealPlain puts a MAC that verifies on any entry that ends with a brace.
func sealPlain(plain []byte) []byte {
	mac := base64.StdEncoding.EncodeToString(logKey().mac("quorumkms/entry/v1", plain))
	return append(bytes.Clone(plain[:len(plain)-1]), `,"mac":"`+mac+`"}`...)
}

// apply appends an entry to the log, applies it and checks everything that holds
// after every entry.
func (w *world) apply(e Entry, c Command) (Result, error) {
	w.t.Helper()
	raw := seal(w.t, e, c)
	encoded, err := EncodeEntry(e, c, logKey())
	if err == nil && !bytes.Equal(encoded, raw) {
		w.t.Fatalf("%s: EncodeEntry wrote %s, not %s", NameOf(c), encoded, raw)
	}
	if err != nil && !errors.Is(err, ErrInvalid) {
		w.t.Fatalf("%s: EncodeEntry: %v, want %v", NameOf(c), err, ErrInvalid)
	}
	if err := logKey().VerifyEntry(raw); err != nil {
		w.t.Fatalf("%s: %v", NameOf(c), err)
	}
	return w.append(w.s.Index()+1, 1, raw)
}

func (w *world) append(index, term uint64, raw []byte) (Result, error) {
	w.t.Helper()
	old := w.s
	next, result, err := old.Apply(index, term, raw)
	if next == nil {
		w.t.Fatalf("entry %s halted: %v", raw, err)
	}
	if broken := next.Check(); broken != nil {
		w.t.Fatalf("after %s: %v", raw, broken)
	}
	if next.Index() != index || next.Term() != term || next.Now() < old.Now() || result.Index != index {
		w.t.Fatalf("entry %d of term %d gave index %d, term %d, time %d after %d, result %+v",
			index, term, next.Index(), next.Term(), next.Now(), old.Now(), result)
	}
	if bytes.Equal(next.Hash(), old.Hash()) {
		w.t.Fatalf("entry %d left the hash as it was", index)
	}
	if err != nil {
		w.wantUnchanged(old, next, result, err)
	}
	w.log = append(w.log, &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: raw})
	w.s = next
	return result, err
}

// wantUnchanged: a refused command changes nothing but index, term, time and hash.
func (w *world) wantUnchanged(old, next *State, result Result, err error) {
	w.t.Helper()
	if a, b := records(w.t, old), records(w.t, next); a != b {
		w.t.Fatalf("refused (%v), yet the records changed from\n%s\nto\n%s", err, a, b)
	}
	if result != (Result{Index: next.Index()}) {
		w.t.Fatalf("refused (%v), yet it answers %+v", err, result)
	}
	if Code(err) == "" || errors.Is(err, ErrHalted) {
		w.t.Fatalf("refused with %q, which wraps no sentinel of a refusal", err)
	}
}

// do applies a command that must succeed.
func (w *world) do(c Command) Result {
	w.t.Helper()
	result, err := w.apply(w.entry(), c)
	if err != nil {
		w.t.Fatalf("%s %+v: %v", NameOf(c), c, err)
	}
	return result
}

// refuse applies a command that must be refused, with the sentinel and words of
// the text. What is wrong without a state must be refused before it is written too.
func (w *world) refuse(c Command, want error, text string) {
	w.t.Helper()
	w.refuseEarly(c, want, text, errors.Is(want, ErrInvalid))
}

// refuseLate is refuse for what is wrong by the state alone, whatever the sentinel.
func (w *world) refuseLate(c Command, want error, text string) {
	w.t.Helper()
	w.refuseEarly(c, want, text, false)
}

func (w *world) refuseEarly(c Command, want error, text string, early bool) {
	w.t.Helper()
	_, err := EncodeEntry(w.entry(), c, logKey())
	if got := err != nil; got != early {
		w.t.Fatalf("%s: EncodeEntry: %v, though it is to be refused with %v", NameOf(c), err, want)
	}
	_, err = w.apply(w.entry(), c)
	wantError(w.t, err, want, text)
}

func wantError(t failer, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %q, want one that wraps %q and says %q", err, want, text)
	}
}

// as asks f's commands as another principal.
func (w *world) as(caller string, f func()) {
	before := w.caller
	w.caller = caller
	f()
	w.caller = before
}

// edit makes a state that commands reach only slowly, or not at all.
func (w *world) edit(f func(t *tx)) {
	t := w.s.begin(w.s.index+1, 1, &Entry{Time: w.clock}, nil)
	f(t)
	t.hash.Sum(t.s.hash[:0])
	w.s = t.s
}

// frame is one frame of a snapshot.
type frame struct {
	kind byte
	json []byte
}

// frames takes a snapshot apart.
func frames(t failer, snapshot []byte) []frame {
	t.Helper()
	rest, ok := bytes.CutPrefix(snapshot, []byte("QKS1"))
	if !ok {
		t.Fatalf("snapshot begins with %q", snapshot[:4])
	}
	var out []frame
	for len(rest) > 0 {
		n := binary.BigEndian.Uint32(rest[1:5])
		out = append(out, frame{rest[0], rest[5 : 5+n]})
		rest = rest[5+n:]
	}
	return out
}

// joinFrames puts frames together and seals them with a trailer that verifies.
func joinFrames(t failer, all []frame) []byte {
	t.Helper()
	b := []byte("QKS1")
	for _, f := range all {
		b = appendFrame(b, f.kind, f.json)
	}
	digest := sha256Of(b)
	trailer, err := json.Marshal(snapshotTrailer{
		Records: uint64(max(1, len(all))) - 1, SHA256: digest,
		MAC: logKey().mac("quorumkms/snapshot/v1", all[0].json, digest),
	})
	if err != nil {
		t.Fatalf("encoding trailer: %v", err)
	}
	return appendFrame(b, 'Z', trailer)
}

func appendFrame(b []byte, kind byte, json []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, kind), uint32(len(json)))
	return append(b, json...)
}

// records is everything a state holds but index, term, time and hash, one record a line.
func records(t failer, s *State) string {
	t.Helper()
	var b strings.Builder
	for _, f := range frames(t, snapshotOf(t, s)) {
		if f.kind != 'H' && f.kind != 'Z' {
			b.WriteString(string(f.kind) + " " + string(f.json) + "\n")
		}
	}
	return b.String()
}

func snapshotOf(t failer, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteSnapshot(&b, logKey()); err != nil {
		t.Fatalf("writing snapshot: %v", err)
	}
	return b.Bytes()
}

// refusal is one row of a table of refused commands.
type refusal struct {
	name    string
	command Command
	want    error
	text    string // words the error must say
}

func testRefusals(t *testing.T, base func(t failer) *world, rows []refusal) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) { base(t).refuse(row.command, row.want, row.text) })
	}
}

// accepted is one row of a table of commands at the edge of what is allowed.
type accepted struct {
	name    string
	command Command
}

func testAccepted(t *testing.T, base func(t failer) *world, rows []accepted) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) { base(t).do(row.command) })
	}
}

func sha256Of(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// reread writes a snapshot and reads it back.
func reread(t failer, s *State) *State {
	t.Helper()
	restored, err := ReadSnapshot(bytes.NewReader(snapshotOf(t, s)), logKey())
	if err != nil {
		t.Fatalf("reading snapshot: %v", err)
	}
	return restored
}
