package metrics

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/audit"
	auditsink "github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/transport"
)

var update = flag.Bool("update", false, "write the table of metrics")

type fakeMember struct {
	state  *fsm.State
	vitals cluster.Vitals
}

func (f *fakeMember) State() *fsm.State      { return f.state }
func (f *fakeMember) Vitals() cluster.Vitals { return f.vitals }

type fakePartition struct {
	meter hsm.Meter
	bad   error
}

func (f *fakePartition) Activity() hsm.Activity {
	a := f.meter.Count()
	a.Sessions, a.Busy, a.Waiting, a.Losses, a.Returns = 8, 3, 2, 1, 1
	return a
}
func (f *fakePartition) Healthy() error { return f.bad }

// exercised is a registry in which everything has a value.
func exercised(t testing.TB) (*Metrics, *fakeMember, *fakePartition) {
	t.Helper()
	dir := t.TempDir()
	if err := transport.NewDevCA(dir, "quorumkms.test"); err != nil {
		t.Fatal(err)
	}
	ca, err := transport.LoadDevCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := transport.Files{Cert: dir + "/n.crt", Key: dir + "/n.key", CA: dir + "/" + transport.DevCACert}
	id := transport.Identity{TrustDomain: "quorumkms.test", Class: transport.ClassNode, Name: "kms-1"}
	if err := ca.IssueFiles(transport.Files{Cert: files.Cert, Key: files.Key}, id, []string{"127.0.0.1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	creds, err := transport.Load(files, "quorumkms.test")
	if err != nil {
		t.Fatal(err)
	}
	m := New("v9")
	member := &fakeMember{fsm.NewState(), cluster.Vitals{Raft: "Follower", LeaseLeft: time.Second, LastContact: time.Second, Applied: 7}}
	partition := &fakePartition{}
	if err := m.Read(Sources{
		Now: time.Now, Ready: func() error { return nil }, Writable: func() error { return errors.New("no leader") },
		Member: member, Partition: partition, Audit: func() error { return nil }, Certificates: creds,
		Position: func() audit.Position {
			return audit.Position{Last: 41, Durable: 41, Signed: 38, SignedAt: time.Unix(7, 0), Remembered: 30}
		},
		Sinks: func() []auditsink.Stats {
			return []auditsink.Stats{{Name: "siem", Records: 12, Behind: 90 * time.Second, Delivered: 29, Failures: 3, Lost: 2, Clipped: 1, Failing: true}}
		},
		Alarms:  func() map[audit.Alarm]int { return map[audit.Alarm]int{audit.SinkFailing: 1} },
		Keyring: func() hsm.Stats { return hsm.Stats{Calls: 3, Messages: 6, Batches: []uint64{1, 0, 2, 0, 0, 0, 0, 0}} },
		Archive: func() archive.Status {
			return archive.Status{Dir: "/mnt", Backup: archive.File{Time: time.Unix(5, 0)}, BackupFailures: 2}
		},
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Calls{m.Clients, m.Peers} {
		_, _ = c.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/quorumkms.v1.CryptoService/Encrypt"}, func(context.Context, any) (any, error) { return nil, nil })
	}
	m.Cluster.Commit(t.Context(), "Tick")(1, nil)
	m.Audit.Recorded(100, 41)
	m.Audit.Alarmed(audit.RepeatedDenials)
	return m, member, partition
}

// families are the node's own, by name; Go's and the process's are left out.
func families(t testing.TB, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range all {
		out[f.GetName()] = f
	}
	return out
}

const grafana = "../../scripts/grafana/"

// row is what the table says of a metric.
func row(f *dto.MetricFamily) string {
	var labels []string
	for _, x := range f.GetMetric() {
		for _, l := range x.GetLabel() {
			if !slices.Contains(labels, l.GetName()) {
				labels = append(labels, l.GetName())
			}
		}
	}
	slices.Sort(labels)
	return fmt.Sprintf("| `%s` | %s | %s | %s |", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
}

// absent are the rows of metrics that have no value in a state without recovery recipients.
const absent = "quorumkms_recovery_drill_age_seconds"

// TestTable: the table of metrics lists each of them as it is, and no others.
func TestTable(t *testing.T) {
	m, _, _ := exercised(t)
	var want []string
	all := families(t, m)
	for name, f := range all {
		if strings.HasPrefix(name, prefix) {
			want = append(want, row(f))
		}
	}
	c := newCollector(Sources{Now: time.Now})
	for _, d := range c.all {
		if text := d.String(); strings.Contains(text, `"`+absent+`"`) {
			help := regexp.MustCompile(`help: "([^"]*)"`).FindStringSubmatch(text)[1]
			want = append(want, row(&dto.MetricFamily{Name: new(absent), Type: dto.MetricType_GAUGE.Enum(), Help: &help}))
		}
	}
	slices.Sort(want)
	path := grafana + "README.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- metrics: `go test ./node/metrics -update` -->\n", "<!-- end -->"
	before, rest, ok1 := strings.Cut(string(b), begin)
	present, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	table := "\n| metric | type | labels | what it is |\n|---|---|---|---|\n" + strings.Join(want, "\n") + "\n\n"
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+table+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if present != table {
		t.Errorf("%s does not list the metrics as they are: go test ./node/metrics -update", path)
	}
}

// named finds the metrics that PromQL names.
var named = regexp.MustCompile(`\b(quorumkms|go|process)_[a-z0-9_]+`)

// TestUsedMetricsExist: what dashboard and alert rules ask for is there.
func TestUsedMetricsExist(t *testing.T) {
	m, _, _ := exercised(t)
	all := families(t, m)
	for _, file := range []string{"quorumkms.json", "alerts.yaml"} {
		b, err := os.ReadFile(grafana + file)
		if err != nil {
			t.Fatal(err)
		}
		for name := range usedIn(string(b)) {
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if cut, ok := strings.CutSuffix(name, suffix); ok && all[cut].GetType() == dto.MetricType_HISTOGRAM {
					base = cut
				}
			}
			if all[base] == nil && base != absent {
				t.Errorf("%s asks for %s, which is nowhere", file, name)
			}
		}
	}
}

func usedIn(text string) map[string]bool {
	out := map[string]bool{}
	for _, name := range named.FindAllString(text, -1) {
		out[name] = true
	}
	return out
}

// TestDashboardShowsAll: no metric is left that no panel and no rule shows, but for those
// that are looked at by hand.
func TestDashboardShowsAll(t *testing.T) {
	m, _, _ := exercised(t)
	used := map[string]bool{}
	for _, file := range []string{"quorumkms.json", "alerts.yaml"} {
		b, err := os.ReadFile(grafana + file)
		if err != nil {
			t.Fatal(err)
		}
		for name := range usedIn(string(b)) {
			used[name] = true
		}
	}
	byHand := []string{"quorumkms_cluster_release", "quorumkms_hsm_key_sessions", "quorumkms_keys_scan_seconds", "quorumkms_raft_applied_entries_total"}
	for name := range families(t, m) {
		shown := used[name] || used[name+"_bucket"] || used[name+"_sum"] || used[name+"_count"] || slices.Contains(byHand, name)
		if strings.HasPrefix(name, prefix) && !shown {
			t.Errorf("nothing shows %s", name)
		}
	}
}

// TestConventions: names, units and helps are as Prometheus wants them.
func TestConventions(t *testing.T) {
	m, _, _ := exercised(t)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestCalls: calls are counted by operation and code, and nothing is left in flight.
func TestCalls(t *testing.T) {
	m := New("v9")
	for _, err := range []error{nil, nil, status.Error(codes.PermissionDenied, "no"), status.Error(codes.Code(77), "?"), errors.New("?")} {
		_, _ = m.Clients.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/Encrypt"}, func(context.Context, any) (any, error) { return nil, err })
	}
	_ = m.Clients.Stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/s/Watch"}, func(any, grpc.ServerStream) error { return nil })
	for code, want := range map[string]float64{"OK": 2, "PermissionDenied": 1, "Unknown": 1, "Unauthenticated": 1} {
		if got := testutil.ToFloat64(m.Clients.total.WithLabelValues("Encrypt", code)); got != want {
			t.Errorf("%s: %v, want %v", code, got, want)
		}
	}
	f := families(t, m)
	took := f["quorumkms_call_duration_seconds"].GetMetric()
	if len(took) != 1 || took[0].GetHistogram().GetSampleCount() != 5 {
		t.Errorf("durations %v", took)
	}
	if n := f["quorumkms_calls_in_flight"].GetMetric()[0].GetGauge().GetValue(); n != 0 {
		t.Errorf("%v in flight", n)
	}
}

// TestValues: what is read arrives as it is.
func TestValues(t *testing.T) {
	m, member, partition := exercised(t)
	partition.meter.Done(hsm.CallEncrypt, time.Now().Add(-time.Second), errors.New("no"))
	f := families(t, m)
	value := func(name string, labels ...string) float64 {
		t.Helper()
		for _, x := range f[prefix+name].GetMetric() {
			var have []string
			for _, l := range x.GetLabel() {
				have = append(have, l.GetValue())
			}
			if slices.Equal(have, labels) {
				return x.GetGauge().GetValue() + x.GetCounter().GetValue()
			}
		}
		t.Fatalf("no %s of %v", name, labels)
		return 0
	}
	for _, c := range []struct {
		got, want float64
	}{
		{value("ready", "crypto"), 1},
		{value("ready", "write"), 0},
		{value("hsm_call_errors_total", "encrypt"), 1},
		{value("hsm_sessions_busy"), 3},
		{value("lease_held"), 1},
		{value("raft_state", "follower"), 1},
		{value("raft_state", "leader"), 0},
		{value("raft_applied_index"), 7},
		{value("backup_last_success_timestamp_seconds"), 5},
		{value("backup_failures_total"), 2},
		{value("audit_last_sequence"), 41},
		{value("audit_unsigned_records"), 3},
		{value("audit_unremembered_records"), 8},
		{value("audit_checkpoint_timestamp_seconds"), 7},
		{value("audit_sink_lag_records", "siem"), 12},
		{value("audit_sink_failing", "siem"), 1},
		{value("audit_sink_delivered_records_total", "siem"), 29},
		{value("audit_sink_failures_total", "siem"), 3},
		{value("audit_sink_lost_records_total", "siem"), 2},
		{value("audit_sink_clipped_records_total", "siem"), 1},
		{value("audit_sink_lag_seconds", "siem") - 60, 30},
		{value("alarm", "AUDIT_SINK_FAILING"), 1},
		{value("alarm", "STATE_DIVERGED"), 0},
		{value("alarms_total", "REPEATED_DENIALS"), 1},
		{value("alarms_total", "KEY_MATERIAL_EXPIRING"), 0},
		{value("audit_written_bytes_total"), 100},
		{value("keys", "ENABLED"), 0},
		{value("certificate_expiry_timestamp_seconds", "node") - float64(time.Now().Unix()), 3600},
	} {
		if c.got < c.want-5 || c.got > c.want+5 || c.want < 60 && c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	batch := f["quorumkms_hsm_batch_messages"].GetMetric()[0].GetHistogram()
	if batch.GetSampleCount() != 3 || batch.GetSampleSum() != 6 || batch.GetBucket()[2].GetCumulativeCount() != 3 || batch.GetBucket()[2].GetUpperBound() != 4 {
		t.Errorf("batches %v", batch)
	}
	for _, x := range f["quorumkms_hsm_call_duration_seconds"].GetMetric() {
		h := x.GetHistogram()
		if x.GetLabel()[0].GetValue() == "encrypt" && (h.GetSampleCount() != 1 || h.GetSampleSum() < 1 || h.GetBucket()[7].GetCumulativeCount() != 0 || h.GetBucket()[8].GetCumulativeCount() != 1) {
			t.Errorf("encrypt took %v", h)
		}
	}
	member.vitals.LastContact = -1
	if f = families(t, m); f[prefix+"raft_last_contact_seconds"] != nil {
		t.Error("a leader that was never heard of has a time of contact")
	}
}

// TestHandler: Prometheus is answered in its text format.
func TestHandler(t *testing.T) {
	m, _, _ := exercised(t)
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `quorumkms_calls_total{code="OK",operation="Encrypt"} 1`) {
		t.Errorf("%d: %.500s", w.Code, w.Body)
	}
}

// BenchmarkCall is what the count costs a call: compare with the same call uncounted.
func BenchmarkCall(b *testing.B) {
	m := New("v9")
	info := &grpc.UnaryServerInfo{FullMethod: "/quorumkms.v1.CryptoService/Encrypt"}
	next := func(context.Context, any) (any, error) { return nil, nil }
	for name, call := range map[string]func(context.Context) (any, error){
		"counted":   func(ctx context.Context) (any, error) { return m.Clients.Unary(ctx, nil, info, next) },
		"uncounted": func(ctx context.Context) (any, error) { return next(ctx, nil) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := call(context.Background()); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkScrape is what one answer costs.
func BenchmarkScrape(b *testing.B) {
	m, _, _ := exercised(b)
	h := m.Handler(slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	}
}
