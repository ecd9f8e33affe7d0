// Package metrics is what a node tells Prometheus: what is counted while calls run, and
// what is read from the node's parts when somebody asks.
//
// Names begin with quorumkms_ and end with their unit. Labels take few values, all known
// beforehand: never a key, a tenant or a principal. The list for people, with what to look
// at, is scripts/grafana/README.md; a test compares it with what is here.
//
// Reading order: metrics.go, calls.go and observers.go (what is counted), collector.go (what
// is read).
package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	prefix = "quorumkms_"

	// maxScrapes bounds the answers that are made at one time, scrapeTimeout how long one
	// may take.
	maxScrapes    = 4
	scrapeTimeout = 10 * time.Second
)

// Metrics is the registry of one node, and what counts into it.
type Metrics struct {
	Clients *Calls   // around the calls of clients
	Peers   *Calls   // around the calls of other nodes
	Cluster *Cluster // observes the member
	Audit   *Audit   // observes the audit trail

	registry *prometheus.Registry
}

// New makes the registry of a node of that version.
func New(version string) *Metrics {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "Always 1; what runs is in the labels.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{
		Clients: newCalls(r, "call", "calls of clients"), Peers: newCalls(r, "peer_call", "calls of other nodes"),
		Cluster: newCluster(r), Audit: newAudit(r), registry: r,
	}
}

// Read has what s tells read whenever somebody asks. It is called once.
func (m *Metrics) Read(s Sources) error { return m.registry.Register(newCollector(s)) }

// Handler answers Prometheus. What cannot be read is left out, and goes to the log.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
}

// seconds are the durations that calls and work on the disk are told apart by.
func seconds() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
}
