package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/transport"
)

// alarming is what alarms are found from, as a test sets it.
type alarming struct {
	t       *testing.T
	dir     string
	trail   *audit.Log
	clock   time.Time
	state   *fsm.State
	leads   bool
	differs []cluster.Difference
	denied  []kms.Denied
	sinks   []sink.Stats
	stale   time.Time
	wait    audit.Unsealed
	*alarms
}

func newAlarming(t *testing.T) *alarming {
	t.Helper()
	x := &alarming{t: t, dir: t.TempDir(), clock: time.Unix(1_800_000_000, 0), state: fsm.NewState()}
	x.apply(&fsm.InitCluster{
		Cluster: uuid.New(), TrustDomain: "kms.example", Operator: "spiffe://kms.example/operator/o", Administrator: "spiffe://kms.example/tenant/default/admin/a",
		LeaseMillis: 6000, Generation: 1, Checks: []fsm.DomainCheck{{Kind: 1, Value: make([]byte, 16)}}, Node: "n1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2",
		Identity: []byte("i"), Release: fsm.NewestRelease,
		Recovery: &fsm.FirstRecovery{Required: 1, Approvals: 1, DrillDays: 90, Recipients: []fsm.FirstRecipient{
			{RecoveryKey: fsm.RecoveryKey{Name: "safe", Kind: fsm.KindShares, SPKI: []byte("k"), Threshold: 1, Shares: 1}, Message: []byte("m")},
		}},
	})
	x.start()
	t.Cleanup(func() { x.ok(x.trail.Close()) })
	return x
}

func (x *alarming) ok(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *alarming) apply(c fsm.Command) {
	x.t.Helper()
	raw, err := fsm.EncodeEntry(fsm.Entry{Principal: "p", Proposer: "n1", Time: x.clock.UnixNano()}, c, make([]byte, 32))
	x.ok(err)
	next, _, err := x.state.Apply(x.state.Index()+1, 1, raw)
	x.ok(err)
	x.state = next
}

// start is a node's start: what it knew is in its trail alone.
func (x *alarming) start() {
	x.t.Helper()
	if x.trail != nil {
		x.ok(x.trail.Close())
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	x.trail, err = audit.Open(audit.Config{Dir: x.dir, Node: "n1", Now: func() time.Time { return x.clock }, Log: log})
	x.ok(err)
	x.alarms = newAlarms(alarmsConfig{
		Self: "spiffe://kms.example/node/n1", Now: func() time.Time { return x.clock }, State: func() *fsm.State { return x.state }, Leads: func() bool { return x.leads },
		Differences: func() []cluster.Difference { return x.differs }, Denied: func() []kms.Denied { return x.denied }, Sinks: func() []sink.Stats { return x.sinks },
		Stale: func(time.Time) (time.Time, string) { return x.stale, "no HSM" }, Trail: unsealed{x.trail, x}, Log: log,
	})
}

// unsealed is a trail that waits for its key.
type unsealed struct {
	*audit.Log
	x *alarming
}

func (u unsealed) Unsealed() (audit.Unsealed, bool) { return u.x.wait, u.x.wait.Segments > 0 }

// round is what the loops do.
func (x *alarming) round() {
	x.look()
	x.tellEach()
	x.tellOnce(x.t.Context())
}

// records are those that are there, as event and alarm.
func (x *alarming) records() (out []audit.Event) {
	x.t.Helper()
	search, err := x.trail.Search(audit.Query{}, 0)
	x.ok(err)
	x.ok(search.Run(x.t.Context(), x.trail.Position().Last, func(f audit.Found) error {
		var e audit.Event
		err := json.Unmarshal(f.Line, &e)
		out = append(out, e)
		return err
	}, func(time.Time) error { return nil }))
	return out
}

// want compares the records, each an event's name and words that it has.
func (x *alarming) want(what string, want ...string) []audit.Event {
	x.t.Helper()
	got := x.records()
	var names []string
	for i, e := range got {
		names = append(names, e.Name)
		if i >= len(want) {
			continue
		}
		name, words, _ := strings.Cut(want[i], " ")
		if e.Name != name || !strings.Contains(e.Reason, words) {
			x.t.Errorf("%s: record %d is %s: %s, want %s", what, i+1, e.Name, e.Reason, want[i])
		}
		if e.Principal != x.config.Self || e.Class != "node" || e.Result != audit.Success {
			x.t.Errorf("%s: %+v", what, e)
		}
	}
	if len(got) != len(want) {
		x.t.Fatalf("%s: %v, want %v", what, names, want)
	}
	return got
}

// TestAlarmsThatComeAndGo are recorded when they begin, and where nothing else tells it, when
// they are over; a restart forgets them.
func TestAlarmsThatComeAndGo(t *testing.T) {
	x := newAlarming(t)
	x.round()
	x.want("nothing")
	x.denied = []kms.Denied{{Principal: "spiffe://kms.example/tenant/acme/user/u", Tenant: "acme", Since: x.clock, Calls: 20, Last: kms.Denial{Operation: "Decrypt", Key: "k7"}}}
	x.stale = x.clock
	x.differs = []cluster.Difference{{Member: &fsm.Member{ID: "n3-1", Name: "n3"}, Index: 77}}
	x.sinks = []sink.Stats{{Name: "siem", Failing: true, Records: 12, LastError: "refused"}, {Name: "fine"}}
	x.wait = audit.Unsealed{Segments: 1, First: 1, Last: 65536, Reason: "alias/audit is disabled"}
	x.round()
	x.round()
	began := []string{"RepeatedDenials user/u, 20 calls", "StateDiverged the state of n3 (n3-1)", "AuditHeadStale no HSM", "AuditSegmentsNotSealed records 1 to 65536"}
	got := x.want("all hold", began...)
	if e := got[0]; e.Alarm != audit.RepeatedDenials || e.Target != x.denied[0].Principal || e.Tenant != "acme" || !strings.Contains(e.Reason, "the last one Decrypt of key k7") {
		t.Errorf("%+v", e)
	}
	if e := got[1]; e.Alarm != audit.StateDiverged || e.Target != "n3-1" || !strings.Contains(e.Reason, "index 77") {
		t.Errorf("%+v", e)
	}
	if got[2].Alarm != audit.HeadStale {
		t.Errorf("%+v", got[2])
	}
	if e := got[3]; e.Alarm != audit.NotSealed || !strings.HasSuffix(e.Reason, ": alias/audit is disabled") {
		t.Errorf("%+v", e)
	}
	for name, n := range map[audit.Alarm]int{audit.RepeatedDenials: 1, audit.StateDiverged: 1, audit.HeadStale: 1, audit.SinkFailing: 1, audit.DrillOld: 0} {
		if x.counts()[name] != n {
			t.Errorf("%d of %s hold, want %d", x.counts()[name], name, n)
		}
	}
	x.denied[0].Calls = 523
	x.round()
	x.denied, x.differs, x.sinks, x.stale, x.wait = nil, nil, nil, time.Time{}, audit.Unsealed{}
	x.round()
	x.round()
	var ends []string
	for _, e := range x.records()[4:] {
		ends = append(ends, e.Name)
		if e.Alarm != "" || e.Name == "RepeatedDenialsOver" && !strings.Contains(e.Reason, "523 calls") {
			t.Errorf("an end: %+v", e)
		}
	}
	slices.Sort(ends)
	if !slices.Equal(ends, []string{"AuditHeadCurrent", "AuditSegmentsSealed", "RepeatedDenialsOver"}) || len(x.now()) != 0 {
		t.Errorf("over: %v, %+v", ends, x.now())
	}
	x.stale = x.clock
	x.round()
	x.want("again", append(began, x.records()[4].Name, x.records()[5].Name, x.records()[6].Name, "AuditHeadStale")...)
}

// TestAlarmsThatStay: what concerns the cluster is recorded by the leader, and once in a trail,
// however often its node starts.
func TestAlarmsThatStay(t *testing.T) {
	x := newAlarming(t)
	key, other := uuid.UUID{15: 1}, uuid.UUID{15: 2}
	ends := x.clock.Add(materialEnds + time.Hour).Unix()
	x.external(key, ends)
	x.external(other, 0)
	x.clock = x.clock.Add(2 * time.Hour)
	x.round()
	x.want("a follower")
	if x.counts()[audit.MaterialExpiring] != 1 {
		t.Errorf("a follower shows %v", x.now())
	}
	x.leads = true
	x.round()
	x.round()
	want := []string{"KeyMaterialExpiring version 1 of key " + key.String()}
	if e := x.want("the leader", want...)[0]; e.Alarm != audit.MaterialExpiring || e.KeyID != key.String() || e.KeyVersion != 1 || e.Tenant != fsm.DefaultTenant || e.Target != "until "+date(ends) {
		t.Errorf("%+v", e)
	}
	x.start()
	x.round()
	x.want("after a start", want...)
	x.clock = x.clock.Add(100 * 24 * time.Hour)
	x.round()
	want = append(want, "RecoveryDrillOld nobody has tried to recover with safe")
	if e := x.want("an old drill", want...)[1]; e.Alarm != audit.DrillOld || !strings.HasPrefix(e.Target, "safe") {
		t.Errorf("%+v", e)
	}
	x.clock = x.clock.Add(24 * time.Hour)
	x.start()
	x.round()
	x.want("a day later", want...)

	x.apply(&fsm.RecordAuditHeads{Heads: []fsm.NextAuditHead{{Node: "n1", Size: 5, Root: make([]byte, 32), Checkpoint: []byte("c")}}})
	x.apply(&fsm.RecordAuditHeads{Heads: []fsm.NextAuditHead{{Node: "n1", From: 5, Size: 4, Root: make([]byte, 32), Checkpoint: []byte("d")}}})
	x.leads = false
	x.round()
	want = append(want, "AuditTrailConflict the audit trail of n1 (n1) was rewritten")
	x.want("a conflict is recorded by each", want...)
	x.start()
	x.round()
	x.want("once", want...)
}

// external makes a key with imported material.
func (x *alarming) external(id uuid.UUID, ends int64) {
	x.t.Helper()
	x.apply(&fsm.CreateExternalKey{ID: id, Tenant: fsm.DefaultTenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric})
	x.apply(&fsm.ImportKeyMaterial{
		KeyRef: fsm.KeyRef{ID: id, Tenant: fsm.DefaultTenant}, Version: 1, Generation: 1, Token: []byte("t"), Check: make([]byte, 16), Expires: ends,
	})
}

// TestAlarmsShown: alarms of one name and text are one, whose subjects are bounded.
func TestAlarmsShown(t *testing.T) {
	x := newAlarming(t)
	const n = 3 * maxSubjects
	for i := range n {
		x.denied = append(x.denied, kms.Denied{Principal: fmt.Sprintf("p%d", i), Since: x.clock.Add(time.Duration(i) * time.Second)})
	}
	x.look()
	got := x.now()
	if len(got) != 1 || got[0].Count != n || len(got[0].Subjects) != maxSubjects || !got[0].Since.Equal(x.clock) || strings.Contains(got[0].Text, "p0") || !strings.HasPrefix(got[0].Subjects[0], "p0, ") {
		t.Errorf("%+v", got)
	}
	if x.counts()[audit.RepeatedDenials] != n {
		t.Errorf("%v", x.counts())
	}
}

// TestUnrecordedAlarms are tried again.
func TestUnrecordedAlarms(t *testing.T) {
	x := newAlarming(t)
	x.stale = x.clock
	x.look()
	x.config.Trail = failing{x.trail}
	x.tellEach()
	x.want("it fails")
	x.config.Trail = x.trail
	x.tellEach()
	x.want("it does not", "AuditHeadStale")
}

type failing struct{ alarmTrail }

func (failing) Record(audit.Event) error { return errors.New("no space") }

// TestSigning: that the trail is not signed is no alarm at once, and one when it fails, is not
// remembered, or hangs; it is over when it gets on.
func TestSigning(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	for _, row := range []struct {
		what string
		f    func(w *signing)
		want string // why it is stale at second 40
	}{
		{"never begun", func(*signing) {}, ""},
		{"well", func(w *signing) { w.look(at(39), memory{5, 5, false}, nil) }, ""},
		{"fails for a while", func(w *signing) {
			w.look(at(20), memory{5, 5, false}, nil)
			w.look(at(39), memory{5, 5, false}, errors.New("no HSM"))
		}, ""},
		{"fails", func(w *signing) {
			w.well(at(10))
			w.look(at(39), memory{5, 5, false}, errors.New("no HSM"))
		}, "no HSM"},
		{"is not remembered", func(w *signing) {
			w.look(at(9), memory{3, 3, false}, nil)
			w.look(at(10), memory{3, 4, false}, nil)
			w.look(at(39), memory{3, 5, false}, nil)
		}, "the cluster remembers 3 of 5"},
		{"gets on", func(w *signing) {
			w.look(at(9), memory{3, 3, false}, nil)
			w.look(at(30), memory{4, 9, false}, nil)
			w.look(at(39), memory{4, 10, false}, nil)
		}, ""},
		{"is not to be remembered", func(w *signing) { w.look(at(39), memory{0, 5, true}, nil) }, ""},
		{"hangs", func(w *signing) { w.look(at(5), memory{5, 5, false}, nil) }, "does not come back"},
	} {
		w := new(signing)
		row.f(w)
		since, why := w.stale(at(40))
		if (why == "") != since.IsZero() || (row.want == "") != (why == "") || !strings.Contains(why, row.want) {
			t.Errorf("%s: since %s: %q, want %q", row.what, since, why, row.want)
		}
	}
}

// TestAlarmsAreToldOf: what there is has a row in README's table, and an alert rule.
func TestAlarmsAreToldOf(t *testing.T) {
	for file, form := range map[string]string{"../README.md": "| `%s` |", "../scripts/grafana/alerts.yaml": "%s"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range audit.Alarms() {
			if !strings.Contains(string(b), fmt.Sprintf(form, name)) {
				t.Errorf("%s does not tell of %s", file, name)
			}
		}
	}
}

// TestHaltIsRecorded: a node whose state is not the cluster's has that in its trail when it
// stops, and stops also when its trail cannot be written; other ends are none of that.
func TestHaltIsRecorded(t *testing.T) {
	dir := t.TempDir()
	x := newAlarming(t)
	x.ok(transport.NewDevCA(dir, "kms.example"))
	ca, err := transport.LoadDevCA(dir)
	x.ok(err)
	files := transport.Files{Cert: dir + "/n.crt", Key: dir + "/n.key", CA: dir + "/" + transport.DevCACert}
	x.ok(ca.IssueFiles(files, transport.Identity{TrustDomain: "kms.example", Class: transport.ClassNode, Name: "n1"}, []string{"127.0.0.1"}, time.Hour))
	creds, err := transport.Load(files, "kms.example")
	x.ok(err)
	var halted []error
	n := &Node{config: Config{Name: "n1"}, audit: x.trail, creds: creds, options: Options{Halt: func(err error) { halted = append(halted, err) }}}
	diverged := fmt.Errorf("%w: at index 7", cluster.ErrDiverged)
	n.halt(errors.New("a disk"))
	x.want("another reason")
	n.halt(diverged)
	if e := x.want("it differs", "StateDiverged at index 7")[0]; e.Alarm != audit.StateDiverged || e.Target != "n1" {
		t.Errorf("%+v", e)
	}
	x.start() // the one that the node has is closed
	n.halt(diverged)
	if len(halted) != 3 || !errors.Is(halted[2], cluster.ErrDiverged) {
		t.Errorf("halted by %v", halted)
	}
	x.want("where nothing can be written", "StateDiverged")
}
