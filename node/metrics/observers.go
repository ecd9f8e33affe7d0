package metrics

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// Cluster counts what a member does. It is a cluster.Observer.
type Cluster struct {
	commit, apply, snapshot                 prometheus.Histogram
	commitFailed, entries, snapshotFailed   prometheus.Counter
	leaseGranted, leaseRefused, leaseFailed prometheus.Counter
}

func newCluster(r prometheus.Registerer) *Cluster {
	lease := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "lease_requests_total",
		Help: "Requests for a lease by this node: granted, refused by the leader for a reason that it says, or failed: no leader, no answer.",
	}, []string{"result"})
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: seconds()})
		r.MustRegister(h)
		return h
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		r.MustRegister(c)
		return c
	}
	r.MustRegister(lease)
	return &Cluster{
		commit:         histogram("raft_commit_duration_seconds", "How long entries took from this leader's proposal until they were applied here."),
		commitFailed:   counter("raft_commit_failures_total", "Entries that this leader proposed and does not know to be committed."),
		apply:          histogram("raft_apply_duration_seconds", "How long batches of entries took to apply."),
		entries:        counter("raft_applied_entries_total", "Entries that were applied, since the process began."),
		snapshot:       histogram("raft_snapshot_duration_seconds", "How long snapshots took to check and write."),
		snapshotFailed: counter("raft_snapshot_failures_total", "Snapshots that could not be written."),
		leaseGranted:   lease.WithLabelValues("granted"),
		leaseRefused:   lease.WithLabelValues("refused"),
		leaseFailed:    lease.WithLabelValues("failed"),
	}
}

// Commit implements cluster.Observer.
func (c *Cluster) Commit(context.Context, string) func(uint64, error) {
	began := time.Now()
	return func(_ uint64, err error) {
		if err != nil {
			c.commitFailed.Inc()
			return
		}
		c.commit.Observe(time.Since(began).Seconds())
	}
}

// Applied implements cluster.Observer.
func (c *Cluster) Applied(entries int, took time.Duration) {
	c.entries.Add(float64(entries))
	c.apply.Observe(took.Seconds())
}

// Snapshot implements cluster.Observer.
func (c *Cluster) Snapshot(took time.Duration, err error) {
	if err != nil {
		c.snapshotFailed.Inc()
		return
	}
	c.snapshot.Observe(took.Seconds())
}

// Lease implements cluster.Observer.
func (c *Cluster) Lease(err error) {
	switch {
	case err == nil:
		c.leaseGranted.Inc()
	case errors.Is(err, cluster.ErrNoLease):
		c.leaseRefused.Inc()
	default:
		c.leaseFailed.Inc()
	}
}

// Audit counts what the audit trail does. It is an audit.Observer.
type Audit struct {
	records, bytes prometheus.Counter
	sequence       prometheus.Gauge
	sync           prometheus.Histogram
	syncFailed     prometheus.Counter
	alarms         *prometheus.CounterVec
}

func newAudit(r prometheus.Registerer) *Audit {
	a := &Audit{
		records:  prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "audit_records_total", Help: "Audit records that were written, since the process began."}),
		bytes:    prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "audit_written_bytes_total", Help: "Bytes of audit records that were written, since the process began."}),
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "audit_last_sequence", Help: "Sequence number of the last audit record."}),
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "audit_sync_duration_seconds", Help: "How long it took to bring audit records to the disk.", Buckets: seconds(),
		}),
		syncFailed: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "audit_sync_failures_total", Help: "Times that audit records could not be brought to the disk."}),
	}
	a.alarms = prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "alarms_total", Help: "Audit records that are alarms, since the process began."}, []string{"alarm"})
	for _, name := range audit.Alarms() {
		a.alarms.WithLabelValues(string(name)) // 0 is a value, or the first would be no increase
	}
	r.MustRegister(a.records, a.bytes, a.sequence, a.sync, a.syncFailed, a.alarms)
	return a
}

// Recorded implements audit.Observer.
func (a *Audit) Recorded(bytes int, sequence uint64) {
	a.sequence.Set(float64(sequence))
	if bytes > 0 {
		a.records.Inc()
		a.bytes.Add(float64(bytes))
	}
}

// Alarmed implements audit.Observer.
func (a *Audit) Alarmed(name audit.Alarm) { a.alarms.WithLabelValues(string(name)).Inc() }

// Synced implements audit.Observer.
func (a *Audit) Synced(took time.Duration, err error) {
	if err != nil {
		a.syncFailed.Inc()
		return
	}
	a.sync.Observe(took.Seconds())
}
