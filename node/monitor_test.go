package node

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/transport"
)

// TestMonitorConfig: what shows a node to others is off, or guarded.
func TestMonitorConfig(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct {
		lines string
		want  string // "": it is right
	}{
		{"", ""},
		{"metrics: {listen: \"127.0.0.1:7320\"}", ""},
		{"metrics: {listen: \"[::1]:7320\"}", ""},
		{"metrics: {listen: \"localhost:7320\"}", ""},
		{"metrics: {listen: \"0.0.0.0:7320\", tls: true, scrape: [\"spiffe://kms.example/service/prometheus\"]}", ""},
		{"metrics: {listen: \"0.0.0.0:7320\"}", "beyond loopback it needs metrics.tls: true"},
		{"metrics: {listen: \":7320\"}", "beyond loopback"},
		{"metrics: {listen: \"kms-1:7320\"}", "beyond loopback"},
		{"metrics: {listen: \"127.0.0.1\"}", "want host:port"},
		{"metrics: {listen: \"127.0.0.1:7320\", scrape: [\"spiffe://kms.example/service/prometheus\"]}", "without metrics.tls"},
		{"metrics: {listen: \"127.0.0.1:7320\", tls: true, scrape: [prometheus]}", "want a SPIFFE id of kms.example"},
		{"metrics: {listen: \"127.0.0.1:7320\", tls: true, scrape: [\"spiffe://other/service/prometheus\"]}", "want a SPIFFE id of kms.example"},
		{"tracing: {endpoint: \"otel:4317\"}", ""},
		{"tracing: {endpoint: \"otel:4317\", sample: 0}", ""},
		{"tracing: {endpoint: \"otel:4317\", sample: 1.5}", "tracing.sample 1.5: must be 0 to 1"},
		{"tracing: {endpoint: \"otel:4317\", sample: .nan}", "tracing.sample NaN"},
		{"tracing: {endpoint: otel}", "tracing.endpoint"},
		{"tracing: {sample: 1}", "tracing: endpoint is missing"},
		{"tracing: {endpoint: \"otel:4317\", insecure: true, ca: x}", "there is no TLS"},
		{"debug: {socket: /run/quorumkms/debug.sock}", ""},
		{"debug: {socket: debug.sock}", "want an absolute path"},
		{"debug: {socket: /" + strings.Repeat("x", maxSocketPath) + "}", "at most 90 bytes"},
		{"debug: {listen: \"127.0.0.1:6060\"}", "unknown field debug.listen"},
	} {
		path := filepath.Join(dir, "kmsd.yaml")
		text := `
name: kms-1
trust_domain: kms.example
data_dir: ` + dir + `/data
peer: {listen: "127.0.0.1:1"}
client: {listen: "127.0.0.1:2"}
tls: {cert: a, key: b, ca: c}
hsm: {token: kms}
` + row.lines + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", row.lines, err, row.want)
		}
	}
	if got := (Tracing{}).sample(); got != defaultSample {
		t.Errorf("%g of the calls are followed", got)
	}
	if got := (Tracing{Sample: new(0.0)}).sample(); got != 0 {
		t.Errorf("%g of the calls are followed, none was said", got)
	}
}

// TestMayScrape: operators, auditors of all tenants, and who is named.
func TestMayScrape(t *testing.T) {
	m := Metrics{Scrape: []string{"spiffe://kms.example/service/prometheus"}}
	for uri, want := range map[string]bool{
		"spiffe://kms.example/operator/olga":          true,
		"spiffe://kms.example/auditor/axel":           true,
		"spiffe://kms.example/service/prometheus":     true,
		"spiffe://kms.example/service/prometheus2":    false,
		"spiffe://kms.example/node/kms-2":             false,
		"spiffe://kms.example/tenant/default/admin/a": false,
		"spiffe://kms.example/tenant/t/auditor/axel":  false,
	} {
		id, err := transport.ParseIdentity(uri)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.mayScrape(id); (err == nil) != want {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestProbe: one line, whatever the reason holds.
func TestProbe(t *testing.T) {
	for _, row := range []struct {
		err  error
		code int
		body string
	}{
		{nil, http.StatusOK, "ready\n"},
		{errors.New("no lease"), http.StatusServiceUnavailable, "no lease\n"},
		{errors.New("two\nlines\r\n<b>"), http.StatusServiceUnavailable, "two lines <b>\n"},
		{errors.New(strings.Repeat("é", maxReason)), http.StatusServiceUnavailable, strings.Repeat("é", maxReason/2) + "\n"},
	} {
		w := httptest.NewRecorder()
		probe("ready", func() error { return row.err })(w, httptest.NewRequest(http.MethodGet, "/readyz", http.NoBody))
		if w.Code != row.code || w.Body.String() != row.body || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
			t.Errorf("%v: %d %q", row.err, w.Code, w.Body)
		}
	}
}

// TestListenPrivate: the socket is its owner's alone; one that a process has left behind
// gives way, anything else does not.
func TestListenPrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "debug.sock")
	l, err := listenPrivate(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if _, err := listenPrivate(path); err == nil || !strings.Contains(err.Error(), "another process serves there") {
		t.Errorf("a second one: %v", err)
	}
	go func(l net.Listener) {
		c, err := l.Accept() // the attempt of the second one
		for err == nil {
			_ = c.Close()
			c, err = l.Accept()
		}
	}(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = listenPrivate(path); err != nil {
		t.Fatalf("behind a process that was killed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenPrivate(file); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestLimited: as many connections as there is room for, and another when one ends.
func TestLimited(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{Listener: tcp, room: make(chan struct{}, 1), done: make(chan struct{})}
	s := httpServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }), slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- served(s.Serve(l)) }()
	for range 3 { // each ends before the next begins
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get("http://" + tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	held, err := net.Dial("tcp", tcp.Addr().String()) // takes the room
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	stopHTTP(s)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
