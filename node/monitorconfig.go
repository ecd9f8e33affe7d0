package node

import (
	"net"
	"path/filepath"

	"github.com/quorumkms/quorumkms/transport"
)

// Metrics is where the node answers Prometheus and probes.
type Metrics struct {
	// Listen is host:port of /metrics, /livez, /readyz and /writez. Empty: there is none.
	// Beyond loopback it needs TLS.
	Listen string `yaml:"listen"`
	// TLS has the node show its certificate and ask for one: of class operator or auditor
	// (of no tenant), or named in Scrape.
	TLS bool `yaml:"tls"`
	// Scrape are the SPIFFE ids of others who may ask, with TLS.
	Scrape []string `yaml:"scrape"`
}

// Tracing says where spans go.
type Tracing struct {
	// Endpoint is host:port of an OTLP receiver that speaks gRPC. Empty: nothing is traced.
	Endpoint string `yaml:"endpoint"`
	// Insecure sends them without TLS.
	Insecure bool `yaml:"insecure"`
	// CA is a PEM file of the receiver's CA. Default: the system's.
	CA string `yaml:"ca"`
	// Sample is the part of calls that are traced, 0 to 1, of those that come without a
	// trace of their client's. Default 0.01.
	Sample *float64 `yaml:"sample"`
}

// Debug is for those who look into a running node.
type Debug struct {
	// Socket is the path of a unix socket, which only the node's own user can open, that
	// serves Go's profiles. Empty: there is none.
	Socket string `yaml:"socket"`
}

const (
	// defaultSample is the part of calls that are traced.
	defaultSample = 0.01
	// maxSocketPath is the longest path of a unix socket in bytes, less what its directory
	// is called while it is made.
	maxSocketPath = 90
)

// checkMonitoring says what is wrong with metrics, tracing and debug.
func (c *Config) checkMonitoring(bad func(wrong bool, format string, args ...any)) {
	m := c.Metrics
	bad(m.Listen != "" && !hostPort(m.Listen), "metrics.listen %q: want host:port", m.Listen)
	bad(m.Listen != "" && hostPort(m.Listen) && !m.TLS && !loopback(m.Listen),
		"metrics.listen %q: beyond loopback it needs metrics.tls: true, which asks for a client certificate", m.Listen)
	bad(len(m.Scrape) > 0 && !m.TLS, "metrics.scrape: without metrics.tls nobody is asked for a certificate")
	for _, uri := range m.Scrape {
		id, err := transport.ParseIdentity(uri)
		bad(err != nil || id.TrustDomain != c.TrustDomain, "metrics.scrape %.200q: want a SPIFFE id of %s, such as spiffe://%s/service/prometheus", uri, c.TrustDomain, c.TrustDomain)
	}
	t := c.Tracing
	bad(t.Endpoint != "" && !hostPort(t.Endpoint), "tracing.endpoint %q: want host:port", t.Endpoint)
	bad(t.Endpoint == "" && (t.Insecure || t.CA != "" || t.Sample != nil), "tracing: endpoint is missing: host:port of an OTLP receiver")
	bad(t.Insecure && t.CA != "", "tracing.ca: with tracing.insecure there is no TLS")
	if t.Sample != nil {
		inside := *t.Sample >= 0 && *t.Sample <= 1 // NaN is not
		bad(!inside, "tracing.sample %g: must be 0 to 1", *t.Sample)
	}
	s := c.Debug.Socket
	bad(s != "" && (!filepath.IsAbs(s) || len(s) > maxSocketPath), "debug.socket %q: want an absolute path of at most %d bytes", s, maxSocketPath)
}

func (t Tracing) sample() float64 {
	if t.Sample == nil {
		return defaultSample
	}
	return *t.Sample
}

// loopback tells whether only this host can reach an address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (ip != nil && ip.IsLoopback() || host == "localhost")
}

// mayScrape tells whether a client may read metrics.
func (m Metrics) mayScrape(id transport.Identity) error {
	switch {
	case id.Class == transport.ClassOperator, id.Class == transport.ClassAuditor && id.Tenant == "":
		return nil
	}
	for _, uri := range m.Scrape {
		if id.String() == uri {
			return nil
		}
	}
	return errMayNotScrape{id}
}

// errMayNotScrape means: a client may not read metrics.
type errMayNotScrape struct{ id transport.Identity }

func (e errMayNotScrape) Error() string {
	return e.id.String() + " may not read metrics: it is neither operator nor auditor, nor named in metrics.scrape"
}
