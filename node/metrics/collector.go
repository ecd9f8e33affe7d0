package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/audit"
	auditsink "github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/transport"
)

// Member is the node's part in the cluster.
type Member interface {
	State() *fsm.State
	Vitals() cluster.Vitals
}

// Partition is the node's HSM partition.
type Partition interface {
	Activity() hsm.Activity
	Healthy() error
}

// Certificates are the node's own and the CAs.
type Certificates interface {
	Certificate() transport.Certificate
	CAs() []transport.Certificate
}

// Sources are the parts of a node that are read when somebody asks; all are required. None
// of them may ask another node or the HSM.
type Sources struct {
	Now          func() time.Time
	Ready        func() error // nil: the node answers cryptographic calls
	Writable     func() error // nil: changes can be made through it
	Member       Member
	Partition    Partition
	Keyring      func() hsm.Stats
	Audit        func() error // nil: records can be written
	Position     func() audit.Position
	Sinks        func() []auditsink.Stats
	Alarms       func() map[audit.Alarm]int // how many hold
	Archive      func() archive.Status
	Certificates Certificates
}

// maxDue bounds how much of what is overdue is counted.
const maxDue = 1000

// collector reads a node's parts.
type collector struct {
	Sources
	all    []*prometheus.Desc
	census census

	ready, uptime                                            *prometheus.Desc
	hsmHealthy, hsmTook, hsmErrors, hsmSessions, hsmBusy     *prometheus.Desc
	hsmWaiting, hsmLosses, hsmReturns, hsmBatch, hsmWrong    *prometheus.Desc
	keysLoaded, keysMax, keyHits, keyMisses, keyEvictions    *prometheus.Desc
	hsmOfKeys, messages                                      *prometheus.Desc
	leaseHeld, leaseLeft                                     *prometheus.Desc
	raftState, raftTerm, leaderKnown, leaderChanges, contact *prometheus.Desc
	applied, committed, lastLog, proposals                   *prometheus.Desc
	members, voters, release                                 *prometheus.Desc
	auditBroken, unsigned, unremembered, checkpoint          *prometheus.Desc
	sinkRecords, sinkBehind, sinkFailing, sinkDelivered      *prometheus.Desc
	sinkFailures, sinkLost, sinkClipped                      *prometheus.Desc
	alarm                                                    *prometheus.Desc
	keys, rotations, deletions                               *prometheus.Desc
	backupOn, backupAt, backupFailures, backupFails          *prometheus.Desc
	journalFailures, journalFails                            *prometheus.Desc
	certificate, drillAge, recipients, alarms                *prometheus.Desc
	scan                                                     *prometheus.Desc
	began                                                    time.Time
}

func newCollector(s Sources) *collector {
	c := &collector{Sources: s, began: s.Now()}
	d := func(name, help string, labels ...string) *prometheus.Desc {
		x := prometheus.NewDesc(prefix+name, help, labels, nil)
		c.all = append(c.all, x)
		return x
	}
	c.ready = d("ready", "1 if the node is ready: crypto, to answer cryptographic calls; write, to make changes. As the health checks say.", "check")
	c.uptime = d("uptime_seconds", "How long the node has run.")

	c.hsmHealthy = d("hsm_healthy", "1 if the HSM partition can be used.")
	c.hsmTook = d("hsm_call_duration_seconds", "How long calls of the HSM took, failed ones included, by what they are for.", "kind")
	c.hsmErrors = d("hsm_call_errors_total", "Calls of the HSM that failed, by what they are for.", "kind")
	c.hsmSessions = d("hsm_sessions_limit", "HSM calls that run at one time at most (hsm.sessions); 0: no limit.")
	c.hsmOfKeys = d("hsm_key_sessions", "Sessions that keys have of their own (hsm.key_sessions).")
	c.hsmBusy = d("hsm_sessions_busy", "HSM calls under way.")
	c.hsmWaiting = d("hsm_session_waiters", "Calls that wait for an HSM session.")
	c.hsmLosses = d("hsm_losses_total", "How often the HSM was lost.")
	c.hsmReturns = d("hsm_returns_total", "How often the HSM was back.")
	c.hsmBatch = d("hsm_batch_messages", "How many messages one HSM call carried.")
	c.hsmWrong = d("hsm_wrong_answers_total", "Wrong answers of the HSM that were caught.")
	c.keysLoaded = d("hsm_loaded_keys", "Keys that are loaded in the HSM.")
	c.keysMax = d("hsm_loaded_keys_limit", "Keys that are loaded at one time at most (hsm.max_keys).")
	c.keyHits = d("hsm_key_cache_hits_total", "Uses of a key that was loaded.")
	c.keyMisses = d("hsm_key_cache_misses_total", "Keys that had to be loaded.")
	c.keyEvictions = d("hsm_key_cache_evictions_total", "Keys that were unloaded to make room for others.")
	c.messages = d("hsm_messages_in_flight", "Uses of keys that are under way.")

	c.leaseHeld = d("lease_held", "1 while the node holds a lease, and so may answer.")
	c.leaseLeft = d("lease_remaining_seconds", "How long the node may still answer if it learns nothing more.")
	c.raftState = d("raft_state", "1 for the node's role in Raft.", "state")
	c.raftTerm = d("raft_term", "Raft's term.")
	c.leaderKnown = d("raft_leader_known", "1 if the node knows a leader.")
	c.leaderChanges = d("raft_leader_changes_total", "Changes of the leader that the process has seen, a loss of it included.")
	c.contact = d("raft_last_contact_seconds", "Time since the leader was heard of; 0 on the leader, absent if never.")
	c.applied = d("raft_applied_index", "Log index up to which the node's state is.")
	c.committed = d("raft_commit_index", "Log index up to which the node knows entries to be committed.")
	c.lastLog = d("raft_last_log_index", "Log index of the node's last entry.")
	c.proposals = d("raft_proposals_in_flight", "Changes asked for at this node that wait for the log.")
	c.members = d("cluster_members", "Members of the cluster, as this node's state knows.")
	c.voters = d("cluster_voters", "Active voters of the cluster, as this node's state knows.")
	c.release = d("cluster_release", "Release of the formats that the cluster speaks.")

	c.auditBroken = d("audit_broken", "1 if audit records cannot be written; the node then answers nothing.")
	c.unsigned = d("audit_unsigned_records", "Audit records that no checkpoint covers yet.")
	c.unremembered = d("audit_unremembered_records", "Signed audit records that the cluster's memory does not cover yet.")
	c.checkpoint = d("audit_checkpoint_timestamp_seconds", "When the audit trail was last signed; it is signed when there is something new. Absent if it never was.")
	c.sinkRecords = d("audit_sink_lag_records", "Audit records that are on the disk and that the sink has not.", "sink")
	c.sinkBehind = d("audit_sink_lag_seconds", "Age of the oldest audit record that the sink was offered and has not taken; 0 if it takes them.", "sink")
	c.sinkFailing = d("audit_sink_failing", "1 if the sink has taken nothing for so long that there is an alarm.", "sink")
	c.sinkDelivered = d("audit_sink_delivered_records_total", "Audit records that the sink took, since the process began; those that were repeated count twice.", "sink")
	c.sinkFailures = d("audit_sink_failures_total", "Attempts to deliver audit records that failed, since the process began.", "sink")
	c.sinkLost = d("audit_sink_lost_records_total", "Audit records that were removed before the sink had them, since the process began.", "sink")
	c.sinkClipped = d("audit_sink_clipped_records_total", "Audit records that were longer than the sink can take, since the process began.", "sink")
	c.alarm = d("alarm", "How many alarms of a name hold at this node; those that are events alone are counted in quorumkms_alarms_total.", "alarm")
	c.keys = d("keys", "Keys of all tenants, by state.", "state")
	c.scan = d("keys_scan_seconds", "How long it took to count the keys by state; they are counted for a hundredth of the time at most.")
	c.rotations = d("keys_rotation_overdue", "Keys whose rotation is due and not done, up to 1,000.")
	c.deletions = d("keys_deletion_overdue", "Keys, versions and imported material whose end is due and not done, up to 1,000.")

	c.backupOn = d("backup_configured", "1 if the node writes scheduled backups and the journal of restrictions.")
	c.backupAt = d("backup_last_success_timestamp_seconds", "When the node's newest scheduled backup was made; absent if there is none.")
	c.backupFailures = d("backup_failures_total", "Scheduled backups that could not be written, since the process began.")
	c.backupFails = d("backup_failing", "1 if the last scheduled backup could not be written, or its writing hangs.")
	c.journalFailures = d("journal_failures_total", "Times that the journal of restrictions could not be written, since the process began.")
	c.journalFails = d("journal_failing", "1 if the journal of restrictions cannot be written.")
	c.certificate = d("certificate_expiry_timestamp_seconds", "When the node's certificate expires, and the first of the CAs.", "kind")
	c.drillAge = d("recovery_drill_age_seconds", "Age of the last recovery drill of the recipient whose is oldest; without one, since it was added. Absent without recipients.")
	c.recipients = d("recovery_recipients", "Recovery recipients.")
	c.alarms = d("recovery_alarms", "What `kmsctl cluster status` warns of about recovery.")
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.all {
		to <- d
	}
}

// sink takes what is read.
type sink chan<- prometheus.Metric

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// histogram takes counts of classes, the last of which has no bound.
func (s sink) histogram(d *prometheus.Desc, bounds []float64, counts []uint64, sum float64, labels ...string) {
	upTo, total := make(map[float64]uint64, len(bounds)), uint64(0)
	for i, n := range counts {
		total += n
		if i < len(bounds) {
			upTo[bounds[i]] = total
		}
	}
	s <- prometheus.MustNewConstHistogram(d, total, sum, upTo, labels...)
}

func (s sink) timestamp(d *prometheus.Desc, at time.Time, labels ...string) {
	s.gauge(d, float64(at.UnixMilli())/1000, labels...)
}

func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := sink(to)
	s.gauge(c.ready, truth(c.Ready() == nil), "crypto")
	s.gauge(c.ready, truth(c.Writable() == nil), "write")
	s.gauge(c.uptime, c.Now().Sub(c.began).Seconds())
	s.gauge(c.auditBroken, truth(c.Audit() != nil))
	c.collectAudit(s)
	c.collectHSM(s)
	c.collectKeyring(s)
	c.collectMember(s)
	c.collectState(s, c.Member.State())
	c.collectArchive(s)
	c.collectCertificates(s)
}

func (c *collector) collectAudit(s sink) {
	at := c.Position()
	s.gauge(c.unsigned, float64(at.Last-min(at.Signed, at.Last)))
	s.gauge(c.unremembered, float64(at.Signed-min(at.Remembered, at.Signed)))
	if !at.SignedAt.IsZero() {
		s.timestamp(c.checkpoint, at.SignedAt)
	}
	for _, x := range c.Sinks() {
		s.gauge(c.sinkRecords, float64(x.Records), x.Name)
		s.gauge(c.sinkBehind, x.Behind.Seconds(), x.Name)
		s.gauge(c.sinkFailing, truth(x.Failing), x.Name)
		s.counter(c.sinkDelivered, x.Delivered, x.Name)
		s.counter(c.sinkFailures, x.Failures, x.Name)
		s.counter(c.sinkLost, x.Lost, x.Name)
		s.counter(c.sinkClipped, x.Clipped, x.Name)
	}
	hold := c.Alarms()
	for _, name := range audit.Alarms() {
		s.gauge(c.alarm, float64(hold[name]), string(name))
	}
}

func (c *collector) collectHSM(s sink) {
	a := c.Partition.Activity()
	s.gauge(c.hsmHealthy, truth(c.Partition.Healthy() == nil))
	var bounds []float64
	for _, t := range hsm.CallTimes() {
		bounds = append(bounds, t.Seconds())
	}
	for _, k := range a.Calls {
		s.histogram(c.hsmTook, bounds, k.Took, k.Time.Seconds(), k.Kind.String())
		s.counter(c.hsmErrors, k.Errors, k.Kind.String())
	}
	s.gauge(c.hsmSessions, float64(a.Sessions))
	s.gauge(c.hsmOfKeys, float64(a.OfKeys))
	s.gauge(c.hsmBusy, float64(a.Busy))
	s.gauge(c.hsmWaiting, float64(a.Waiting))
	s.counter(c.hsmLosses, a.Losses)
	s.counter(c.hsmReturns, a.Returns)
}

func (c *collector) collectKeyring(s sink) {
	k := c.Keyring()
	var bounds []float64
	for i := range len(k.Batches) - 1 {
		bounds = append(bounds, float64(int(1)<<i))
	}
	s.histogram(c.hsmBatch, bounds, k.Batches, float64(k.Messages))
	s.counter(c.hsmWrong, k.Wrong)
	s.gauge(c.keysLoaded, float64(k.Loaded))
	s.gauge(c.keysMax, float64(k.MaxKeys))
	s.counter(c.keyHits, k.Hits)
	s.counter(c.keyMisses, k.Loads)
	s.counter(c.keyEvictions, k.Evictions)
	s.gauge(c.messages, float64(k.Waiting))
}

func (c *collector) collectMember(s sink) {
	v := c.Member.Vitals()
	s.gauge(c.leaseHeld, truth(v.LeaseLeft > 0))
	s.gauge(c.leaseLeft, v.LeaseLeft.Seconds())
	for label, state := range map[string]string{"follower": "Follower", "candidate": "Candidate", "leader": "Leader", "shutdown": "Shutdown", "none": ""} {
		s.gauge(c.raftState, truth(v.Raft == state), label)
	}
	s.gauge(c.raftTerm, float64(v.Term))
	s.gauge(c.leaderKnown, truth(v.LeaderKnown))
	s.counter(c.leaderChanges, v.LeaderChanges)
	if v.LastContact >= 0 {
		s.gauge(c.contact, v.LastContact.Seconds())
	}
	s.gauge(c.applied, float64(v.Applied))
	s.gauge(c.committed, float64(v.Committed))
	s.gauge(c.lastLog, float64(v.LastLog))
	s.gauge(c.proposals, float64(v.Proposals))
}

func (c *collector) collectState(s sink, st *fsm.State) {
	members, voters := 0, 0
	for _, m := range st.Members() {
		if m.Alive() {
			members++
		}
		if m.Serves() && m.Voter {
			voters++
		}
	}
	s.gauge(c.members, float64(members))
	s.gauge(c.voters, float64(voters))
	s.gauge(c.release, float64(st.Cluster().Release))

	counts, took := c.census.of(st)
	for _, state := range fsm.KeyStates() {
		s.gauge(c.keys, float64(counts[state]), string(state))
	}
	s.gauge(c.scan, took.Seconds())

	now := c.Now().Unix()
	rotations, deletions := 0, 0
	for _, due := range st.Due(now, maxDue) {
		switch k, ok := st.Key(due.ID); {
		case due.Grant || !ok:
		case k.RotationDue() && k.Rotation.Next == due.At:
			rotations++
		case due.At > 1: // 1: its messages are used up, which is no date
			deletions++
		default:
			rotations++
		}
	}
	s.gauge(c.rotations, float64(rotations))
	s.gauge(c.deletions, float64(deletions))

	recovery, oldest := st.Recovery(), int64(0)
	for _, r := range recovery.Recipients {
		at := r.Added
		if r.Drill != nil {
			at = r.Drill.At
		}
		if oldest == 0 || at < oldest {
			oldest = at
		}
	}
	if oldest != 0 {
		s.gauge(c.drillAge, float64(max(0, now-oldest)))
	}
	s.gauge(c.recipients, float64(len(recovery.Recipients)))
	s.gauge(c.alarms, float64(len(st.RecoveryAlarms(now))))
}

func (c *collector) collectArchive(s sink) {
	a := c.Archive()
	s.gauge(c.backupOn, truth(a.Dir != ""))
	if !a.Backup.Time.IsZero() {
		s.timestamp(c.backupAt, a.Backup.Time)
	}
	s.counter(c.backupFailures, a.BackupFailures)
	s.gauge(c.backupFails, truth(a.BackupProblem != ""))
	s.counter(c.journalFailures, a.JournalFailures)
	s.gauge(c.journalFails, truth(a.JournalProblem != ""))
}

func (c *collector) collectCertificates(s sink) {
	s.timestamp(c.certificate, c.Certificates.Certificate().NotAfter(), "node")
	var first time.Time
	for _, ca := range c.Certificates.CAs() {
		if end := ca.NotAfter(); first.IsZero() || end.Before(first) {
			first = end
		}
	}
	if !first.IsZero() {
		s.timestamp(c.certificate, first, "ca")
	}
}

// censusPart is how much of the time is spent counting keys at most: one part of so many.
const censusPart = 100

// census remembers the count of keys, which costs a look at every one.
type census struct {
	mu      sync.Mutex
	counts  map[fsm.KeyState]int // nil: never counted
	changed uint64               // of the state that they are of
	at      time.Time            // when they were counted
	took    time.Duration
}

func (c *census) of(s *fsm.State) (map[fsm.KeyState]int, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil || c.changed != s.Changed() && time.Since(c.at) >= censusPart*c.took {
		began := time.Now()
		c.counts, c.changed, c.at = s.Census(), s.Changed(), began
		c.took = time.Since(began)
	}
	return c.counts, c.took
}
