package kms

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// Who calls, in every test: see who.
const (
	ada  = "default/admin/ada" // the tenant's first administrator
	bea  = "default/admin/bea"
	uma  = "default/user/uma"
	uri  = "default/user/uri"
	tom  = "default/auditor/tom"
	abel = "acme/admin/abel" // the first administrator of another tenant
	una  = "acme/user/una"
	olga = "operator/olga"
	cleo = "auditor/cleo" // of all tenants
	obs  = "service/obs"
	vol  = "service/vol"
	node = "node/n1"
)

const trustDomain = "spiffe://kms.example/"

// who is a principal's URI.
func who(short string) string {
	class, _, _ := strings.Cut(short, "/")
	if slices.Contains([]string{"operator", "auditor", "service", "node"}, class) {
		return trustDomain + short
	}
	return trustDomain + "tenant/" + short
}

// principalOf takes a URI apart, as rpc.PrincipalOf does.
func principalOf(uri string) (Caller, error) {
	path, ok := strings.CutPrefix(uri, trustDomain)
	parts := strings.Split(path, "/")
	c := Caller{Principal: uri}
	switch {
	case !ok:
		return c, fmt.Errorf("%q is of another trust domain", uri)
	case len(parts) == 2:
		c.Class, c.Name = Class(parts[0]), parts[1]
	case len(parts) == 4 && parts[0] == "tenant":
		c.Tenant, c.Class, c.Name = parts[1], Class(parts[2]), parts[3]
	default:
		return c, fmt.Errorf("%q names no principal", uri)
	}
	return c, nil
}

func caller(short string) Caller {
	c, err := principalOf(who(short))
	if err != nil {
		panic(err)
	}
	return c
}

// as is a call of a principal.
func as(short string) Call { return Call{Caller: caller(short)} }

// in is a call of a principal that names a tenant.
func in(short, tenant string) Call { return Call{Caller: caller(short), Tenant: tenant} }

// testClock is a wall clock that is put by hand.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// testLog applies proposals to a state at once.
type testLog struct {
	now func() time.Time // of the leader that stamps entries

	mu    sync.Mutex
	state *fsm.State
	told  []fsm.Proposal // that reached the log
	// refuse, unless nil, answers a proposal instead of the log.
	refuse func(c fsm.Command) error
	// lost, unless nil, is the log's answer where it has none of its own.
	lost func(p fsm.Proposal) error
	// behind, unless nil, is what this node knows until it waits for more.
	behind *fsm.State
}

func (l *testLog) Propose(_ context.Context, p fsm.Proposal) (fsm.Result, error) {
	l.mu.Lock()
	lost := l.lost
	l.mu.Unlock()
	if lost != nil {
		if err := lost(p); err != nil {
			return fsm.Result{}, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		if err := l.refuse(p.Command); err != nil {
			return fsm.Result{}, err
		}
	}
	raw, err := fsm.EncodeEntry(fsm.Entry{
		Request: p.Request, Digest: p.Digest, Principal: p.Principal, Proposer: "n1-1", Time: max(l.now().UnixNano(), l.state.Now()),
	}, p.Command, bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return fsm.Result{}, err
	}
	next, result, err := l.state.Apply(l.state.Index()+1, 1, raw)
	if next == nil {
		panic(err) // the log halted
	}
	l.state, l.told = next, append(l.told, p)
	return result, err
}

// lose sets what the log answers where it has no answer of its own; nil: it has.
func (l *testLog) lose(lost func(p fsm.Proposal) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = lost
}

func (l *testLog) State() *fsm.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.behind != nil {
		return l.behind
	}
	return l.state
}

func (l *testLog) Wait(context.Context, uint64) (*fsm.State, error) {
	l.behind = nil
	return l.State(), nil
}

// Restricted is of no use: who watches looks at the state.
func (l *testLog) Restricted() <-chan struct{} { return nil }

// count is how many commands of a kind were accepted.
func (l *testLog) count(c fsm.Command) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.told {
		if fsm.NameOf(p.Command) == fsm.NameOf(c) {
			n++
		}
	}
	return n
}

// testFresh is a node with a lease that never ends.
type testFresh struct{ log *testLog }

func (testFresh) Usable() error                 { return nil }
func (testFresh) Confirm(context.Context) error { return nil }
func (f testFresh) State() *fsm.State           { return f.log.State() }
func (testFresh) Serves(*fsm.State) error       { return nil }

// testHSM is an embedded partition that can be made to fail.
type testHSM struct {
	*soft.Partition
	mu   sync.Mutex
	made int
	// fail, unless nil, is asked before a key is made.
	fail func() error
	// random, unless nil, is called before random bytes are had.
	random func()
	// unopened, unless nil, is why other partitions do not open what this one makes.
	unopened error
	opened   int
	// asked is the ceremony that names this node, if one does; noTwin tells that the partition
	// has no twin yet; problem is what the service has said of it.
	asked   fsm.Rewrap
	noTwin  bool
	problem error
	// broken are keys whose tokens cannot be moved, and rewrapped how often one was to be.
	broken    map[fsm.ID]error
	rewrapped int
	// meanwhile, unless nil, happens once while others open a token.
	meanwhile func()
}

func (h *testHSM) Opened(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unopened != nil {
		return h.unopened
	}
	h.opened++
	if f := h.meanwhile; f != nil {
		h.meanwhile = nil
		f()
	}
	return h.OpenHere(ctx, key, version, kind, made)
}

func (h *testHSM) OpenHere(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error {
	t, err := hsm.ParseToken(made.Token)
	if err != nil {
		return err
	}
	want := t.Header
	want.Class, want.Key, want.Version = kind.Class, hsm.ID(key), version
	return hsm.TryOpen(ctx, h, hsm.Ref{Token: made.Token, Want: want, Kind: kind, SPKI: made.SPKI})
}

func (h *testHSM) Rewrapping() (fsm.Rewrap, bool, bool) {
	return h.asked, !h.noTwin, h.asked.Generation != 0
}

func (h *testHSM) Rewrap(ctx context.Context, ref hsm.Ref, to uint32) ([]byte, error) {
	h.mu.Lock()
	h.rewrapped++
	err := h.broken[fsm.ID(ref.Want.Key)]
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return h.Partition.Rewrap(ctx, ref, to)
}

func (h *testHSM) RewrapProblem(err error) { h.problem = err }

func (h *testHSM) Random(ctx context.Context, b []byte) error {
	if h.random != nil {
		h.random()
	}
	return h.Partition.Random(ctx, b)
}

func (h *testHSM) GenerateKey(ctx context.Context, s hsm.KeySpec) (hsm.NewKey, error) {
	h.mu.Lock()
	h.made++
	fail := h.fail
	h.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return hsm.NewKey{}, err
		}
	}
	return h.Partition.GenerateKey(ctx, s)
}

// testAudit remembers every record.
type testAudit struct {
	mu     sync.Mutex
	events []audit.Event
	broken error
}

func (a *testAudit) Record(e audit.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	a.events = append(a.events, e)
	return nil
}

func (a *testAudit) RecordAll(all []audit.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	a.events = append(a.events, all...)
	return nil
}

func (a *testAudit) Healthy() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.broken
}

func (a *testAudit) last() audit.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.events) == 0 {
		return audit.Event{}
	}
	return a.events[len(a.events)-1]
}

// of are the records of one name.
func (a *testAudit) of(name string) (out []audit.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// testLeader says what it is told to say.
type testLeader struct {
	leads    bool
	majority func() (time.Time, bool)
}

func (l *testLeader) Leads() bool                     { return l.leads }
func (l *testLeader) MajorityTime() (time.Time, bool) { return l.majority() }

// limited gives the service quotas.
func (e *env) limited(c limit.Config) { e.limits = limit.New(c, e.clock.Now) }

// env is a service over a log of its own, with the tenants default and acme.
type env struct {
	*Service
	t      testing.TB
	log    *testLog
	hsm    *testHSM
	audit  *testAudit
	clock  *testClock
	leader *testLeader
}

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func newEnv(t testing.TB) *env {
	t.Helper()
	clock := &testClock{now: start}
	e := newEnvAt(t, clock.Now)
	e.clock = clock
	return e
}

// newEnvAt is newEnv with another clock.
func newEnvAt(t testing.TB, now func() time.Time) *env {
	t.Helper()
	partition, err := soft.Open(soft.Config{TrustAll: true})
	if err != nil {
		t.Fatal(err)
	}
	cluster := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	g, err := partition.CreateDomain(t.Context(), hsm.ID(cluster), 1)
	if err != nil {
		t.Fatal(err)
	}
	var checks []fsm.DomainCheck
	for _, c := range g.Checks {
		checks = append(checks, fsm.DomainCheck{Kind: uint8(c.Kind), Value: c.Value[:]})
	}
	keyring := hsm.NewKeyring(partition, hsm.KeyringConfig{})
	t.Cleanup(keyring.Close)
	e := &env{
		t: t, log: &testLog{now: now, state: fsm.NewState()}, hsm: &testHSM{Partition: partition}, audit: &testAudit{},
		leader: &testLeader{leads: true, majority: func() (time.Time, bool) { return now(), true }},
	}
	began := now()
	e.Service = New(Config{
		Log: e.log, Fresh: testFresh{e.log}, Keys: e.hsm, Opener: e.hsm, Rewrap: e.hsm, Deriver: keyring, Audit: e.audit, Out: gate.NewReleases(),
		Now: now, Clock: func() time.Duration { return now().Sub(began) },
		Principal: principalOf, Leader: e.leader, Limits: limit.New(limit.Config{}, now), MinRotation: time.Minute,
		Self: who(node), Logger: slog.New(slog.DiscardHandler),
	})
	e.do(&fsm.InitCluster{
		Cluster: cluster, TrustDomain: "kms.example", Operator: who(olga), Administrator: who(ada), LeaseMillis: 6000, Generation: 1, Checks: checks,
		Node: "n1-1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2", Identity: []byte("identity"), Release: fsm.NewestRelease, NoRecovery: true,
	})
	_, err = e.CreateTenant(t.Context(), as(olga), "acme", who(abel), 0)
	e.ok(err)
	t.Cleanup(func() {
		if err := e.log.State().Check(); err != nil {
			t.Errorf("the state is broken: %v", err)
		}
	})
	return e
}

// do applies a command in the first administrator's name.
func (e *env) do(c fsm.Command) fsm.Result {
	e.t.Helper()
	r, err := e.log.Propose(context.Background(), fsm.Proposal{Command: c, Principal: who(ada)})
	e.ok(err)
	return r
}

func (e *env) ok(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// refused wants an error that wraps a sentinel and says some words.
func (e *env) refused(err, want error, words ...string) {
	e.t.Helper()
	if !errors.Is(err, want) {
		e.t.Fatalf("%v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			e.t.Errorf("%q does not say %q", err, w)
		}
	}
}

// key makes a key of a tenant and returns its id.
func (e *env) key(tenant string) string {
	e.t.Helper()
	admin := ada
	if tenant == "acme" {
		admin = abel
	}
	m, _, err := e.CreateKey(e.t.Context(), as(admin), KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
	e.ok(err)
	return m.Key.ID.String()
}

// arn is the full name of a key.
func (e *env) arn(tenant, key string) string {
	return KeyARN(e.log.State().Cluster().ID, tenant, uuid.MustParse(key))
}

// stored is a key as it stands in the state.
func (e *env) stored(key string) *fsm.Key {
	e.t.Helper()
	k, ok := e.log.State().Key(uuid.MustParse(key))
	if !ok {
		e.t.Fatalf("there is no key %s", key)
	}
	return k
}

// put replaces the policy of the tenant default, or of a key.
func (e *env) put(key, text string) {
	e.t.Helper()
	_, _, err := e.PutPolicy(e.t.Context(), as(ada), key, text, nil)
	e.ok(err)
}

// force replaces a policy unchecked, as a release that knows more could have.
func (e *env) force(tenant, key, text string) {
	e.t.Helper()
	e.do(&fsm.PutPolicy{Tenant: tenant, Key: uuid.MustParse(cmp.Or(key, uuid.Nil.String())), Text: text})
}

// give makes a grant of a key of the tenant default, in its administrator's name.
func (e *env) give(key string, p GrantParams) string {
	e.t.Helper()
	id, _, err := e.CreateGrant(e.t.Context(), as(ada), key, p)
	e.ok(err)
	return id
}

func ops(all ...fsm.GrantOperation) []fsm.GrantOperation { return all }

// encrypts tries to use a key.
func (e *env) encrypts(c Call, key string, pairs ...Pair) error {
	e.t.Helper()
	_, err := e.Encrypt(e.t.Context(), c, key, []byte("plain"), pairs, "")
	return err
}

// sealed is a ciphertext that a caller has made.
func (e *env) sealed(c Call, key string, pairs ...Pair) []byte {
	e.t.Helper()
	s, err := e.Encrypt(e.t.Context(), c, key, []byte("plain"), pairs, "")
	e.ok(err)
	return s.Ciphertext
}

// opens tries to open a ciphertext.
func (e *env) opens(c Call, blob []byte, pairs ...Pair) error {
	e.t.Helper()
	o, err := e.Decrypt(e.t.Context(), c, blob, "", pairs, "")
	if err == nil && string(o.Plaintext) != "plain" {
		e.t.Errorf("opened %q", o.Plaintext)
	}
	return err
}

// acting is the context of a service that acts for a tenant.
func acting(tenant, resource string) []Pair {
	return []Pair{{fsm.ContextTenant, tenant}, {fsm.ContextResource, resource}}
}
