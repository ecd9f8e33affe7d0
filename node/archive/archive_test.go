package archive

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

// patience is for conditions on a slow machine.
const patience = 60 * time.Second

// member is a node's log and state. Entries of the log may be missing, or others than
// those that were applied.
type member struct {
	t   *testing.T
	key *ecdsa.PrivateKey

	mu      sync.Mutex
	s       *fsm.State
	log     map[uint64][]byte
	terms   map[uint64]uint64
	term    uint64
	changed chan struct{}
}

func newMember(t *testing.T) *member {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	m := &member{t: t, key: key, s: fsm.NewState(), log: map[uint64][]byte{}, terms: map[uint64]uint64{}, term: 1, changed: make(chan struct{})}
	m.apply(&fsm.InitCluster{
		Cluster: testCluster, TrustDomain: "kms.example", Operator: "spiffe://kms.example/operator/olga", Administrator: "spiffe://kms.example/tenant/default/admin/ada",
		LeaseMillis: 6000, Generation: 1, Checks: []fsm.DomainCheck{{Kind: 1, Value: make([]byte, 16)}},
		Node: testNode, Name: "n1", PeerAddress: "n1:7000", ClientAddress: "n1:7001", Identity: m.Identity(),
	})
	return m
}

func (m *member) ID() string { return testNode }

func (m *member) State() *fsm.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s
}

func (m *member) Wait(ctx context.Context, index uint64) (*fsm.State, error) {
	for {
		m.mu.Lock()
		s, changed := m.s, m.changed
		m.mu.Unlock()
		if s.Index() >= index {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *member) LogKey() (fsm.LogKey, error) { return testKey(), nil }

func (m *member) LogEntry(index uint64) (uint64, []byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, found := m.log[index]
	return m.terms[index], raw, found, nil
}

func (m *member) Identity() []byte {
	b, err := x509.MarshalPKIXPublicKey(m.key.Public())
	must(m.t, err)
	return b
}

func (m *member) SignIdentity(_ context.Context, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, m.key, sum[:])
}

// apply appends a command to the log and applies it.
func (m *member) apply(c fsm.Command) uint64 {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	index := m.s.Index() + 1
	raw := encode(m.t, index, c)
	next, _, _ := m.s.Apply(index, m.term, raw)
	if next == nil {
		m.t.Fatalf("%s halted the state", fsm.NameOf(c))
	}
	m.s, m.log[index], m.terms[index] = next, raw, m.term
	close(m.changed)
	m.changed = make(chan struct{})
	return index
}

// tick moves the state without changing anything.
func (m *member) tick() uint64 { return m.apply(&fsm.Tick{Hash: make([]byte, 32)}) }

// restrict applies a command that restricts; it need not succeed.
func (m *member) restrict(n byte) uint64 {
	return m.apply(&fsm.DisableKey{KeyRef: fsm.KeyRef{ID: uuid.UUID{15: n}, Tenant: fsm.DefaultTenant}})
}

func (m *member) create(n byte) uint64 {
	return m.apply(&fsm.CreateKey{
		ID: uuid.UUID{15: n}, Tenant: fsm.DefaultTenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric,
		Version: 1, Generation: 1, Token: []byte("token"),
	})
}

// forget takes entries out of the log, as a snapshot does.
func (m *member) forget(first, last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := first; i <= last; i++ {
		delete(m.log, i)
	}
}

// logBook keeps what an archive logs.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open makes an archive of a member; nothing of it runs.
func open(t *testing.T, m *member, dir string) (*Archive, *logBook) {
	t.Helper()
	book := &logBook{}
	return New(Config{
		Name: "n1", Dir: dir, Every: time.Second, Keep: 2, Member: m, Signer: m, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(book, nil)),
	}), book
}

func (a *Archive) mustRound(t *testing.T) {
	t.Helper()
	must(t, a.journal.round(t.Context()))
}

// history is what is known after an index, by the files alone.
func history(t *testing.T, dir string, index uint64) Restrictions {
	t.Helper()
	h, err := ReadHistory(testCluster, testKey(), dir)
	must(t, err)
	must(t, errors.Join(h.Problems...))
	r, err := h.After(fsm.History{}, index)
	must(t, err)
	return r
}

func wantHistory(t *testing.T, dir string, from uint64, entries []uint64, covered uint64, gaps ...Span) {
	t.Helper()
	r := history(t, dir, from)
	ok := len(r.Entries) == len(entries) && r.Covered.Index == covered && len(r.Gaps) == len(gaps)
	for i := range r.Entries {
		ok = ok && r.Entries[i].Index == entries[i]
	}
	for i := range r.Gaps {
		ok = ok && r.Gaps[i] == gaps[i]
	}
	if !ok {
		t.Fatalf("after %d: %s; want %v covered %d gaps %v", from, r, entries, covered, gaps)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func names(t *testing.T, dir, end string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), end) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

func TestMakeAndVerify(t *testing.T) {
	m := newMember(t)
	a, _ := open(t, m, "")
	m.create(1)
	m.create(2)
	var b bytes.Buffer
	s := m.State()
	must(t, a.Make(t.Context(), &b, s))
	good := b.Bytes()
	summary, err := backup.Check(bytes.NewReader(good), nil)
	must(t, err)
	found, err := a.Verify(bytes.NewReader(good))
	must(t, err)
	if found.Keys != 2 || found.Index != s.Index() || found.Name != "n1" || found.Signer.ID != testNode || summary.Fingerprint() != found.Fingerprint() {
		t.Errorf("found %+v", found)
	}
	for i := range good {
		flipped := bytes.Clone(good)
		flipped[i] ^= 1
		if _, err := a.Verify(bytes.NewReader(flipped)); !errors.Is(err, backup.ErrRefused) && !errors.Is(err, fsm.ErrSnapshot) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	for name, b := range map[string][]byte{"cut": good[:len(good)-1], "extended": append(bytes.Clone(good), 0)} {
		if _, err := a.Verify(bytes.NewReader(b)); !errors.Is(err, backup.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := a.Make(cancelled(t), &b, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestForgedBackups: what somebody with a key of his own, or with the log key of
// another cluster, makes of a good state.
func TestForgedBackups(t *testing.T) {
	m := newMember(t)
	m.create(1)
	a, _ := open(t, m, "")
	stranger := newMember(t)
	forge := func(signer Signer, key fsm.LogKey, edit func(*backup.Header)) []byte {
		t.Helper()
		s, b := m.State(), bytes.Buffer{}
		h := backup.Header{
			Cluster: testCluster.String(), Index: s.Index(), Term: s.Term(), Records: s.Records(), Keys: uint64(s.KeyCount()),
			Node: testNode, Name: "n1", Created: 1, Signer: signer.Identity(),
		}
		edit(&h)
		must(t, backup.Write(&b, h, func(w io.Writer) error { return s.WriteSnapshot(w, key) },
			func(message []byte) ([]byte, error) { return signer.SignIdentity(t.Context(), message) }))
		return b.Bytes()
	}
	asIs := func(*backup.Header) {}
	for _, row := range []struct {
		name string
		b    []byte
		text string
	}{
		{"as it is", forge(m, testKey(), asIs), ""},
		{"a stranger's key", forge(stranger, testKey(), asIs), "is and was no member"},
		{"a stranger's name", forge(m, testKey(), func(h *backup.Header) { h.Node = "n9.00" }), "is and was no member"},
		{"another log key", forge(m, make(fsm.LogKey, 32), asIs), "another cluster wrote it"},
		{"another key count", forge(m, testKey(), func(h *backup.Header) { h.Keys = 0 }), "header and the snapshot in it differ"},
		{"another index", forge(m, testKey(), func(h *backup.Header) { h.Index++ }), "header and the snapshot in it differ"},
	} {
		_, err := a.Verify(bytes.NewReader(row.b))
		if (err == nil) != (row.text == "") || err != nil && !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: %v, want %q", row.name, err, row.text)
		}
	}
}

func TestVerifyLimits(t *testing.T) {
	m := newMember(t)
	a, _ := open(t, m, "")
	r := &bounded{strings.NewReader("12345"), 4}
	if _, err := r.Read(make([]byte, 4)); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 4)); !errors.Is(err, backup.ErrRefused) {
		t.Errorf("a byte too many: %v", err)
	}
	a.check <- struct{}{}
	if _, err := a.Verify(strings.NewReader("")); !errors.Is(err, ErrBusy) {
		t.Errorf("a second check: %v", err)
	}
	a.making <- struct{}{}
	a.making <- struct{}{}
	if err := a.Make(t.Context(), &bytes.Buffer{}, m.State()); !errors.Is(err, ErrBusy) {
		t.Errorf("a third backup: %v", err)
	}
}
