package node

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/metrics"
	"github.com/quorumkms/quorumkms/node/tracing"
	"github.com/quorumkms/quorumkms/rpc"
)

// The proofs that what observes fits.
var (
	_ cluster.Observer  = (*metrics.Cluster)(nil)
	_ audit.Observer    = (*metrics.Audit)(nil)
	_ hsm.CallTracer    = (*tracing.Tracing)(nil)
	_ metrics.Member    = (*cluster.Member)(nil)
	_ metrics.Partition = hsm.Partition(nil)
	_ cluster.Observer  = observers{}
)

// openTracing starts what the configuration asks for. Neither metrics nor tracing costs a
// node anything that is not configured for it.
func (n *Node) openObservers(ctx context.Context) error {
	if n.config.Metrics.Listen != "" {
		n.metrics = metrics.New(n.options.Version)
	}
	t := n.config.Tracing
	if t.Endpoint == "" {
		return nil
	}
	var err error
	n.tracing, err = tracing.Open(ctx, tracing.Config{
		Endpoint: t.Endpoint, Insecure: t.Insecure, CA: t.CA, Sample: t.sample(),
		Node: n.config.Name, Version: n.options.Version, Log: n.log,
	})
	if err != nil {
		return err
	}
	n.onClose(func() error {
		if err := n.tracing.Close(); err != nil {
			n.log.Warn("the last spans were not sent", "error", err)
		}
		return nil
	})
	return nil
}

// callTracer follows HSM calls that several callers share.
func (n *Node) callTracer() hsm.CallTracer {
	if n.tracing == nil {
		return nil
	}
	return n.tracing
}

// observer is told what the member does.
func (n *Node) observer() cluster.Observer {
	if n.metrics == nil && n.tracing == nil {
		return nil
	}
	return observers{n.metrics, n.tracing}
}

// observers are the metrics and the tracing of a member, each of which may be missing.
type observers struct {
	metrics *metrics.Metrics
	tracing *tracing.Tracing
}

// Commit implements cluster.Observer.
func (o observers) Commit(ctx context.Context, command string) func(uint64, error) {
	counted, traced := func(uint64, error) {}, func(uint64, error) {}
	if o.metrics != nil {
		counted = o.metrics.Cluster.Commit(ctx, command)
	}
	if o.tracing != nil {
		traced = o.tracing.Commit(ctx, command)
	}
	return func(index uint64, err error) {
		counted(index, err)
		traced(index, err)
	}
}

// Applied implements cluster.Observer.
func (o observers) Applied(entries int, took time.Duration) {
	if o.metrics != nil {
		o.metrics.Cluster.Applied(entries, took)
	}
}

// Snapshot implements cluster.Observer.
func (o observers) Snapshot(took time.Duration, err error) {
	if o.metrics != nil {
		o.metrics.Cluster.Snapshot(took, err)
	}
}

// Lease implements cluster.Observer.
func (o observers) Lease(err error) {
	if o.metrics != nil {
		o.metrics.Cluster.Lease(err)
	}
}

// traced are the parts of the key service, with spans if there is tracing.
func (n *Node) traced(c kms.Config) kms.Config {
	if t := n.tracing; t != nil {
		c.Log, c.Keys, c.Opener, c.Deriver = t.Log(c.Log), t.Keys(c.Keys), t.Opener(c.Opener), t.Deriver(c.Deriver)
	}
	return c
}

// around is what sees every call of clients, and of peers.
func (n *Node) around() (clients, peers rpc.Around) {
	if m := n.metrics; m != nil {
		clients.Unary, clients.Stream = append(clients.Unary, m.Clients.Unary), append(clients.Stream, m.Clients.Stream)
		peers.Unary, peers.Stream = append(peers.Unary, m.Peers.Unary), append(peers.Stream, m.Peers.Stream)
	}
	if t := n.tracing; t != nil {
		clients.Unary, peers.Unary = append(clients.Unary, t.Clients), append(peers.Unary, t.Peers)
	}
	return clients, peers
}

// dialling is what calls of other nodes go through.
func (n *Node) dialling() []grpc.DialOption {
	if n.tracing == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(n.tracing.Outgoing)}
}

// readMetrics has the node's parts read when somebody asks.
func (n *Node) readMetrics() error {
	if n.metrics == nil {
		return nil
	}
	n.audit.Observe(n.metrics.Audit)
	return n.metrics.Read(metrics.Sources{
		Now: time.Now, Ready: n.ready, Writable: n.writable, Member: n.member, Partition: n.partition, Keyring: n.keyring.Stats,
		Audit: n.audit.Healthy, Position: n.audit.Position, Sinks: n.sinks.Stats, Alarms: n.alarms.counts, Archive: n.archive.Status, Certificates: n.creds,
	})
}
