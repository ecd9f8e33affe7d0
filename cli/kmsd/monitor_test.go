package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// monitored is a cluster of which everything can be seen.
type monitored struct {
	*testCluster
	spans *receiver
	at    map[*process]string // where metrics and probes are answered
}

// TestMonitoring looks into a cluster as an operator does: metrics, probes, traces,
// profiles and the log; and while it breaks.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	m := &monitored{testCluster: newCluster(t, 3), spans: startReceiver(t), at: map[*process]string{}}
	for _, p := range m.nodes {
		m.at[p] = freeAddress(t)
		p.extra = fmt.Sprintf("metrics: {listen: %q}\ntracing: {endpoint: %q, insecure: true, sample: 0}\ndebug: {socket: %s}\nlog: {level: debug, format: json}",
			m.at[p], m.spans.address, p.path("debug.sock"))
	}
	m.begin()
	m.run("counters", m.testCounters)
	m.run("traces", m.testTraces)
	m.run("profiles", m.testProfiles)
	m.run("secrets", m.testSeenSecrets)
	m.run("a node alone", m.testAlone)
	m.run("over TLS", m.testScrapeTLS)
}

// get asks a node's monitoring listener.
func (m *monitored) get(p *process, path string) (code int, body string) {
	m.t.Helper()
	return fetch(m.t, http.DefaultTransport, "http://"+m.at[p]+path)
}

func fetch(t *testing.T, over http.RoundTripper, url string) (code int, body string) {
	t.Helper()
	r, err := (&http.Client{Transport: over, Timeout: patience}).Get(url)
	must(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, string(b)
}

// scrape reads a node's metrics: name and labels, as they stand there, to value.
func (m *monitored) scrape(p *process) map[string]float64 {
	m.t.Helper()
	code, body := m.get(p, "/metrics")
	if code != http.StatusOK {
		m.t.Fatalf("/metrics answers %d: %.500s", code, body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		must(m.t, err)
		out[line[:i]] = v
	}
	return out
}

func (m *monitored) testCounters(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	p := followers[0]
	before := m.scrape(p)
	o := c.object(ctx, "alias/counted")
	user := c.dial(userID, p)
	const calls = 5
	for range calls {
		must(c.t, second(user.Encrypt(ctx, o.key, []byte("counted"), nil)))
	}
	if _, err := c.dial(adminID, p).Encrypt(ctx, o.key, []byte("denied"), nil); err == nil {
		c.t.Fatal("an administrator encrypts")
	}
	after := m.scrape(p)
	for name, want := range map[string]float64{
		`quorumkms_calls_total{code="OK",operation="Encrypt"}`:               calls,
		`quorumkms_calls_total{code="PermissionDenied",operation="Encrypt"}`: 1,
		`quorumkms_call_duration_seconds_count{operation="Encrypt"}`:         calls + 1,
		`quorumkms_keys{state="ENABLED"}`:                                    1,
		`quorumkms_hsm_batch_messages_count`:                                 calls,
		`quorumkms_hsm_batch_messages_sum`:                                   calls,
		`quorumkms_hsm_key_cache_misses_total`:                               1,
		`quorumkms_hsm_key_cache_hits_total`:                                 calls - 1,
	} {
		if got := after[name] - before[name]; got != want {
			c.t.Errorf("%s moved by %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{
		"quorumkms_audit_records_total", "quorumkms_audit_written_bytes_total", "quorumkms_audit_last_sequence", "quorumkms_raft_applied_index",
		`quorumkms_hsm_call_duration_seconds_count{kind="encrypt"}`, `quorumkms_lease_requests_total{result="granted"}`, "quorumkms_raft_applied_entries_total",
		"quorumkms_audit_sync_duration_seconds_count",
	} {
		c.eventually(name+" moves", func() bool { return m.scrape(p)[name] > before[name] }, p)
	}
	for name, want := range map[string]float64{
		`quorumkms_ready{check="crypto"}`: 1, `quorumkms_ready{check="write"}`: 1, "quorumkms_lease_held": 1, "quorumkms_cluster_voters": 3,
		`quorumkms_raft_state{state="follower"}`: 1, "quorumkms_hsm_healthy": 1, "quorumkms_hsm_sessions_limit": 8, "quorumkms_audit_broken": 0,
		"quorumkms_calls_in_flight": 0,
	} {
		if got := after[name]; got != want {
			c.t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	leads := m.scrape(leader)
	if leads[`quorumkms_raft_state{state="leader"}`] != 1 || leads["quorumkms_raft_commit_duration_seconds_count"] == 0 ||
		leads[`quorumkms_peer_calls_total{code="OK",operation="Lease"}`] == 0 {
		c.t.Errorf("the leader's metrics: %v", leads)
	}
	if end := after[`quorumkms_certificate_expiry_timestamp_seconds{kind="node"}`] - float64(time.Now().Unix()); end < 3600 || end > 25*3600 {
		c.t.Errorf("the certificate ends in %v s", end)
	}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/writez": 200, "/": 404, "/debug/pprof/": 404} {
		if code, body := m.get(p, path); code != want || want == 200 && strings.Count(body, "\n") != 1 {
			c.t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

// follow has a call belong to a trace of the caller's.
func follow(ctx context.Context) (traced context.Context, trace, span string) {
	trace, span = strings.ReplaceAll(uuid.NewString(), "-", ""), strings.ReplaceAll(uuid.NewString(), "-", "")[:16]
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-"+span+"-01"), trace, span
}

func (m *monitored) testTraces(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	p := followers[0]
	must(c.t, second(c.dial(userID, p).Encrypt(ctx, "alias/counted", []byte("not followed"), nil)))

	// A change, from a follower to the leader.
	traced, trace, root := follow(ctx)
	created, err := c.dial(adminID, p).Keys().CreateKey(traced, &pb.CreateKeyRequest{Description: "followed"})
	must(c.t, err)
	const create, propose = "quorumkms.v1.KeyService/CreateKey", "quorumkms.peer.v1.PeerService/Propose"
	call := m.spans.wait(c, trace, create, p.name)
	if hex.EncodeToString(call.ParentSpanId) != root || call.Kind != otlp.Span_SPAN_KIND_SERVER || call.text("rpc.method") != "CreateKey" || call.text("rpc.grpc.status_code") != "0" {
		c.t.Errorf("the call is %v", call)
	}
	generate := m.spans.wait(c, trace, "hsm.generate", p.name)
	if generate.text("quorumkms.key.id") != created.GetKey().GetKeyId() || generate.text("quorumkms.key.version") != "1" || !bytes.Equal(generate.ParentSpanId, call.SpanId) {
		c.t.Errorf("the HSM's work is %v", generate)
	}
	m.spans.wait(c, trace, "hsm.majority", p.name)
	asked := m.spans.wait(c, trace, "raft.propose", p.name)
	forward := m.spans.waitKind(c, trace, propose, p.name, otlp.Span_SPAN_KIND_CLIENT)
	taken := m.spans.waitKind(c, trace, propose, leader.name, otlp.Span_SPAN_KIND_SERVER)
	commit := m.spans.wait(c, trace, "raft.commit", leader.name)
	for _, link := range [][2]*span{{asked, call}, {forward, asked}, {taken, forward}, {commit, taken}} {
		if !bytes.Equal(link[0].ParentSpanId, link[1].SpanId) {
			c.t.Errorf("%s of %s is not part of %s of %s", link[0].Name, link[0].node, link[1].Name, link[1].node)
		}
	}
	if index := commit.text("quorumkms.index"); index == "0" || index != asked.text("quorumkms.index") || commit.text("quorumkms.command") != "CreateKey" {
		c.t.Errorf("proposed %v, committed %v", asked, commit)
	}

	// A call that fails does so in its trace, too.
	traced, trace, _ = follow(ctx)
	_, err = c.dial(userID, p).Decrypt(traced, []byte("no ciphertext"), nil)
	refused(codes.InvalidArgument, nil).checkCode(c.t, err)
	if failed := m.spans.wait(c, trace, "quorumkms.v1.CryptoService/Decrypt", p.name); failed.text("rpc.grpc.status_code") != strconv.Itoa(int(codes.InvalidArgument)) {
		c.t.Errorf("a refused call is %v", failed)
	}

	// Cryptography, and callers whose messages share an HSM call.
	traced, trace, _ = follow(ctx)
	user := c.dial(userID, p)
	must(c.t, second(user.Encrypt(traced, "alias/counted", []byte("followed"), nil)))
	use, shared := m.spans.wait(c, trace, "hsm.derive", p.name), m.spans.wait(c, trace, "hsm.call", p.name)
	if !bytes.Equal(shared.ParentSpanId, use.SpanId) || shared.text("quorumkms.hsm.messages") != "1" || use.text("quorumkms.key.id") == "" {
		c.t.Errorf("a use of the HSM is %v, its call %v", use, shared)
	}
	c.eventually("callers share an HSM call", func() bool {
		must(c.t, concurrently(32, 64, func(int) error {
			traced, _, _ := follow(ctx)
			return second(user.Encrypt(traced, "alias/counted", []byte("followed"), nil))
		}))
		return m.spans.linked(p.name)
	})

	for _, s := range m.spans.all() {
		if !s.followed {
			c.t.Errorf("%s of %s belongs to no caller's trace", s.Name, s.node)
			break
		}
	}
}

func (m *monitored) testProfiles(_ context.Context, c *testCluster) {
	p := c.nodes[0]
	info, err := os.Stat(p.path("debug.sock"))
	must(c.t, err)
	if info.Mode() != fs.ModeSocket|0o600 {
		c.t.Errorf("the socket's mode is %v", info.Mode())
	}
	for path, want := range map[string]string{"": "heap", "goroutine?debug=1": "runtime", "heap?debug=1": "heap profile", "cmdline": "run"} {
		if code, body := p.profile(path); code != http.StatusOK || !strings.Contains(body, want) {
			c.t.Errorf("%s: %d %.200s", path, code, body)
		}
	}
	p.kill()
	p.start() // what it has left behind gives way
	c.waitVoters(3)
	if code, _ := p.profile("heap"); code != http.StatusOK {
		c.t.Errorf("after a restart: %d", code)
	}
	p.terminate()
	if exists(p.path("debug.sock")) {
		c.t.Error("a node that has stopped leaves its socket behind")
	}
	p.start()
	c.waitVoters(3)
}

// profile asks a node's debug socket.
func (p *process) profile(path string) (code int, body string) {
	p.c.t.Helper()
	return fetch(p.c.t, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.path("debug.sock"))
	}}, "http://debug/debug/pprof/"+path)
}

// testSeenSecrets looks for secrets in whatever shows a node from outside: its log at the lowest level,
// metrics, spans, profiles.
func (m *monitored) testSeenSecrets(ctx context.Context, c *testCluster) {
	_, followers := c.split()
	p := followers[0]
	user := c.dial(userID, p)
	traced, trace, _ := follow(ctx)
	secrets := map[string][]byte{"user PIN": []byte(testPIN), "SO PIN": []byte(testSOPIN)}
	plant := func(what string) []byte {
		secrets[what] = []byte("canary of " + what + " " + uuid.NewString())
		return secrets[what]
	}
	value := "value " + uuid.NewString()
	secrets["value of a context"] = []byte(value)
	blob, err := user.Encrypt(traced, "alias/counted", plant("Encrypt"), map[string]string{"object": value})
	must(c.t, err)
	must(c.t, second(user.Decrypt(traced, blob, map[string]string{"object": value})))
	_, _ = user.Decrypt(traced, blob, map[string]string{"object": "another"})
	_, _ = user.Encrypt(traced, "alias/absent", plant("Encrypt without a key"), nil)
	_, _ = user.Decrypt(traced, plant("Decrypt of no ciphertext"), nil)
	_, _ = c.dial(operatorID, p).Encrypt(traced, "alias/counted", plant("Encrypt that is denied"), nil)
	secrets["data key"], _, err = user.GenerateDataKey(traced, "alias/counted", nil)
	must(c.t, err)
	for _, n := range c.nodes[1:] {
		b, err := os.ReadFile(n.path("join-token"))
		must(c.t, err)
		secrets["join token of "+n.name] = bytes.TrimSpace(b)
	}
	m.spans.wait(c, trace, "quorumkms.v1.CryptoService/GenerateDataKey", p.name)

	seen := map[string][]byte{"spans": m.spans.raw()}
	for _, n := range c.nodes {
		_, seen["metrics of "+n.name] = bytesOf(m.get(n, "/metrics"))
		_, seen["goroutines of "+n.name] = bytesOf(n.profile("goroutine?debug=2"))
		_, seen["command line of "+n.name] = bytesOf(n.profile("cmdline"))
		seen["log of "+n.name] = []byte(n.history())
	}
	for where, content := range seen {
		if len(content) < 10 {
			c.t.Errorf("there is nothing in the %s", where)
		}
		for what, secret := range secrets {
			for _, form := range [][]byte{secret, []byte(hex.EncodeToString(secret))} {
				if bytes.Contains(content, form) {
					c.t.Errorf("%s is in the %s", what, where)
				}
			}
		}
	}
	// The node that founded the cluster has shown nothing to people: every line of it is its log's.
	lines := 0
	for line := range strings.Lines(c.nodes[0].history()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry["level"] == nil || entry["msg"] == nil || entry["time"] == nil {
			c.t.Errorf("a line that did not come through the log: %s", line)
		}
		lines++
	}
	if lines < 20 {
		c.t.Errorf("%d lines of the log were read", lines)
	}
}

func bytesOf(code int, body string) (int, []byte) { return code, []byte(body) }

// testAlone: a node that has lost the others is alive and ready for nothing, and all that
// tell of it tell the same.
func (m *monitored) testAlone(ctx context.Context, c *testCluster) {
	p := c.nodes[0]
	for _, other := range c.nodes[1:] {
		other.kill()
	}
	probe := func(path string, want int) string {
		c.t.Helper()
		body := ""
		c.eventually(fmt.Sprintf("%s answers %d", path, want), func() bool {
			var code int
			code, body = m.get(p, path)
			return code == want
		}, p)
		return body
	}
	if why := probe("/readyz", 503); !strings.Contains(why, "lease") || strings.Count(why, "\n") != 1 {
		c.t.Errorf("not ready because of %q", why)
	}
	if why := probe("/writez", 503); !strings.Contains(why, "no leader") {
		c.t.Errorf("not writable because of %q", why)
	}
	if code, body := m.get(p, "/livez"); code != 200 || body != "alive\n" {
		c.t.Errorf("alive: %d %q", code, body)
	}
	now := m.scrape(p)
	for _, name := range []string{`quorumkms_ready{check="crypto"}`, `quorumkms_ready{check="write"}`, "quorumkms_lease_held", "quorumkms_lease_remaining_seconds", "quorumkms_raft_leader_known"} {
		if v, ok := now[name]; !ok || v != 0 {
			c.t.Errorf("%s is %v", name, v)
		}
	}
	health := healthpb.NewHealthClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(operatorID)))))
	c.eventually("the health services say the same", func() bool {
		for _, service := range []string{"crypto", "write"} {
			r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
			must(c.t, err)
			if r.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
				return false
			}
		}
		return true
	}, p)
	s, err := c.status(p)
	must(c.t, err)
	if s.GetServing() || !strings.Contains(s.GetNotServingReason(), "lease") {
		c.t.Errorf("its status: serving %v, %q", s.GetServing(), s.GetNotServingReason())
	}
	for _, other := range c.nodes[1:] {
		other.start()
	}
	c.waitVoters(3)
	probe("/readyz", 200)
	probe("/writez", 200)
}

// testScrapeTLS: with TLS a node asks who wants to know.
func (m *monitored) testScrapeTLS(_ context.Context, c *testCluster) {
	p := c.nodes[2]
	p.terminate()
	p.extra = fmt.Sprintf("metrics: {listen: %q, tls: true, scrape: [\"spiffe://%s%s\"]}", m.at[p], testDomain, serviceID)
	p.configure("")
	p.start()
	c.waitVoters(3)
	for file, may := range map[string]bool{operatorID: true, auditorID: true, serviceID: true, userID: false, adminID: false, "/node/kms-1": false, "": false} {
		for _, forced := range []bool{false, true} { // with ALPN and without
			cert := ""
			if file != "" {
				cert = filepath.Join(c.certs(), filepath.Base(file))
			}
			x := &http.Client{Transport: &http.Transport{TLSClientConfig: c.clientTLS(cert), ForceAttemptHTTP2: forced}, Timeout: patience}
			r, err := x.Get("https://" + m.at[p] + "/readyz")
			if err == nil {
				_ = r.Body.Close()
			}
			if (err == nil && r.StatusCode == http.StatusOK) != may {
				c.t.Errorf("%q: %v", file, err)
			}
		}
	}
	if r, err := http.Get("http://" + m.at[p] + "/metrics"); err == nil {
		_ = r.Body.Close()
		if r.StatusCode == http.StatusOK {
			c.t.Error("answered without TLS")
		}
	}
}

// checkCode fails the test unless err has the code.
func (r *refusal) checkCode(t *testing.T, err error) {
	t.Helper()
	e, ok := err.(*client.Error)
	if !ok || e.Code != r.code {
		t.Errorf("got %v, want %s", err, r.code)
	}
}

// receiver is a small OTLP receiver.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []*span
	wire  bytes.Buffer
}

// span is one that was received.
type span struct {
	*otlp.Span
	node     string
	trace    string
	followed bool // its trace began at a caller
}

func (s *span) text(key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			if v := a.GetValue().GetStringValue(); v != "" {
				return v
			}
			return strconv.FormatInt(a.GetValue().GetIntValue(), 10)
		}
	}
	return ""
}

func startReceiver(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &receiver{address: l.Addr().String()}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, r)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return r
}

// Export implements the service.
func (r *receiver) Export(_ context.Context, x *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	b, err := proto.Marshal(x)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wire.Write(b)
	for _, rs := range x.GetResourceSpans() {
		node := ""
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.instance.id" {
				node = a.GetValue().GetStringValue()
			}
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				r.spans = append(r.spans, &span{Span: s, node: node, trace: hex.EncodeToString(s.TraceId), followed: len(s.ParentSpanId) > 0})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (r *receiver) all() []*span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

func (r *receiver) raw() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.wire.Bytes())
}

func (r *receiver) wait(c *testCluster, trace, name, node string) *span {
	c.t.Helper()
	return r.waitKind(c, trace, name, node, otlp.Span_SPAN_KIND_UNSPECIFIED)
}

// waitKind waits for a span; of any kind if that is unspecified.
func (r *receiver) waitKind(c *testCluster, trace, name, node string, kind otlp.Span_SpanKind) *span {
	c.t.Helper()
	var found *span
	c.eventually(fmt.Sprintf("span %s of %s arrives", name, node), func() bool {
		for _, s := range r.all() {
			if s.trace == trace && s.Name == name && s.node == node && (kind == otlp.Span_SPAN_KIND_UNSPECIFIED || s.Kind == kind) {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

// linked tells whether an HSM call was shared: it names the spans of the others whose messages
// it carried, and they name it.
func (r *receiver) linked(node string) bool {
	all := r.all()
	for _, s := range all {
		if s.Name != "hsm.call" || s.node != node || len(s.Links) == 0 {
			continue
		}
		other := slices.IndexFunc(all, func(o *span) bool { return bytes.Equal(o.SpanId, s.Links[0].SpanId) })
		if other >= 0 && slices.ContainsFunc(all[other].Links, func(l *otlp.Span_Link) bool { return bytes.Equal(l.SpanId, s.SpanId) }) {
			return all[other].Name == "hsm.derive" && s.text("quorumkms.hsm.messages") != "1"
		}
	}
	return false
}
