package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// What is wrong with a cluster is found here, for cluster status and for doctor.

const (
	// maxLag is how many entries a member may be behind the newest before that is a problem:
	// under load answers of different moments differ by some hundred.
	maxLag = 2000
	// maxSkew is the difference of two clocks at which the leader refuses leases, warnSkew
	// when it is told.
	maxSkew  = 5 * time.Second
	warnSkew = 2 * time.Second
	// Free bytes of a node's disk, and parts of a hundred of a small one's, below which it is
	// nearly full, or full.
	lowDisk, lowDiskPart   = 10 << 30, 10
	fullDisk, fullDiskPart = 1 << 30, 2
	// backupLate is how long, in periods, a backup may be due before it is missed, and
	// minBackupLate at the least.
	backupLate    = 1
	minBackupLate = 2 * time.Minute
	// fewestVoters survive a failure.
	fewestVoters = 3
)

// level is how bad a finding is.
type level int

const (
	fine    level = iota
	warning       // nothing has failed yet
	fault         // something has failed, and the cluster goes on
	outage        // the cluster does not do its work
)

// MarshalText implements encoding.TextMarshaler.
func (l level) MarshalText() ([]byte, error) { //nolint:unparam // encoding.TextMarshaler
	return []byte([]string{"ok", "warning", "fault", "outage"}[l]), nil
}

// finding is what one check has found of one node, or of the cluster.
type finding struct {
	Check string `json:"check"`
	Node  string `json:"node,omitempty"` // empty: of the cluster, or of who asks
	Level level  `json:"level"`
	Text  string `json:"text"`
	Do    string `json:"do,omitempty"` // a command, and what to know about it
}

// answer is what a member says of itself, or why it does not.
type answer struct {
	status   *quorumkmsv1.StatusResponse
	err      error
	sent     time.Time
	received time.Time
}

// offset is how far a member's clock is ahead of the caller's, and how wrong that may be.
func (r answer) offset() (ahead, doubt time.Duration, ok bool) {
	if r.status.GetWallClock() == nil {
		return 0, 0, false
	}
	doubt = r.received.Sub(r.sent) / 2
	return r.status.GetWallClock().AsTime().Sub(r.sent.Add(doubt)), doubt, true
}

// survey is a cluster as its members tell of it.
type survey struct {
	first   *quorumkmsv1.StatusResponse // of the node that was asked first
	best    *quorumkmsv1.StatusResponse // the one that knows most of the cluster
	answers map[string]answer           // by raft id
	now     time.Time

	findings []finding
}

// examine asks every member, and finds out what is wrong.
func (a *app) examine(ctx context.Context, first *quorumkmsv1.StatusResponse, sent time.Time) *survey {
	s := &survey{first: first, best: first, answers: a.askAll(ctx, first), now: time.Now()}
	if own := s.answers[first.GetRaftId()]; own.status == nil { // at its address it is not to be reached from here
		s.answers[first.GetRaftId()] = answer{status: first, sent: sent, received: s.now}
	}
	for _, m := range first.GetMembers() {
		r := s.answers[m.GetRaftId()].status
		if r != nil && knows(r) > knows(s.best) {
			s.best = r
		}
	}
	s.find()
	return s
}

// knows is how much a node's word on the cluster is worth.
func knows(r *quorumkmsv1.StatusResponse) int {
	n := 0
	if r.GetLeaderId() != "" {
		n++
	}
	if r.GetLeaseLeft().AsDuration() > 0 {
		n += 2
	}
	return n
}

// askAll asks every member itself, each at its own address.
func (a *app) askAll(ctx context.Context, first *quorumkmsv1.StatusResponse) map[string]answer {
	answers := map[string]answer{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for i, m := range first.GetMembers() {
		if i >= maxAsked || m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_GONE {
			continue
		}
		asking.Go(func() {
			r := answer{sent: time.Now()}
			r.status, r.err = a.askMember(ctx, m.GetClientAddress())
			r.received = time.Now()
			if r.err == nil && r.status.GetRaftId() != m.GetRaftId() {
				r = answer{err: fmt.Errorf("another node is there, %s", r.status.GetNodeName())}
			}
			mu.Lock()
			defer mu.Unlock()
			answers[m.GetRaftId()] = r
		})
	}
	asking.Wait()
	return answers
}

func (s *survey) add(check, node string, l level, text, do string) {
	s.findings = append(s.findings, finding{Check: check, Node: node, Level: l, Text: text, Do: do})
}

// members are those that the cluster counts on, in their order.
func (s *survey) members() []*quorumkmsv1.Member {
	return slices.DeleteFunc(slices.Clone(s.best.GetMembers()), func(m *quorumkmsv1.Member) bool {
		return m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_GONE
	})
}

// problems are the findings that are not fine, the worst first.
func (s *survey) problems() []finding {
	out := slices.DeleteFunc(slices.Clone(s.findings), func(f finding) bool { return f.Level == fine })
	slices.SortStableFunc(out, func(a, b finding) int { return cmp.Compare(b.Level, a.Level) })
	return out
}

// The verdicts on a cluster, and the exit codes that --check gives them.
const (
	verdictOK       = "OK"
	verdictDegraded = "DEGRADED"
	verdictDown     = "DOWN"

	exitDegraded = 1
	exitDown     = 2
)

func (s *survey) verdict() string {
	switch problems := s.problems(); {
	case len(problems) == 0:
		return verdictOK
	case problems[0].Level == outage:
		return verdictDown
	default:
		return verdictDegraded
	}
}

// verdictError is the end of a command that has shown what is wrong: only its exit code is
// left to say.
type verdictError struct{ code int }

func (e *verdictError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// check is the error of a verdict that is not OK.
func check(verdict string) error {
	switch verdict {
	case verdictOK:
		return nil
	case verdictDown:
		return &verdictError{exitDown}
	default:
		return &verdictError{exitDegraded}
	}
}

// find makes all checks.
func (s *survey) find() {
	s.splits()
	s.leader()
	s.quorum()
	for _, m := range s.members() {
		s.member(m)
	}
	s.alarms()
	s.clocks()
	s.certificates()
	s.states()
	s.backups()
	s.recovery()
	s.domain()
	s.releases()
}

func (s *survey) splits() {
	seen := map[string]bool{}
	for _, m := range s.members() {
		r := s.answers[m.GetRaftId()].status
		for _, a := range r.GetAlarms() { // what is an alarm is told as one
			seen[a.GetText()] = true
		}
		for _, split := range r.GetSplits() {
			if !seen[split] {
				seen[split] = true
				s.add("history", m.GetName(), fault, "ALARM: "+split,
					"power off the nodes of the history that is not to go on; kmsctl cluster status --addresses ADDRESS shows each node's recovery epoch")
			}
		}
	}
}

// answering are the names of the voters that answer, and of those that do not.
func (s *survey) answering() (there, silent []string) {
	for _, m := range s.members() {
		if !m.GetVoter() {
			continue
		}
		if s.answers[m.GetRaftId()].status != nil {
			there = append(there, m.GetName())
		} else {
			silent = append(silent, m.GetName())
		}
	}
	return there, silent
}

func (s *survey) leader() {
	serving := 0
	for _, r := range s.answers {
		if r.status.GetServing() {
			serving++
		}
	}
	there, silent := s.answering()
	switch {
	case s.best.GetLeaderId() == "" && len(silent) > 0:
		s.add("leader", "", outage, fmt.Sprintf("there is no leader: nothing can be changed, and leases end; %d of %d voters answer", len(there), len(there)+len(silent)),
			fmt.Sprintf("start kmsd on %s: systemctl start kmsd; only if a majority is lost for good: kmsctl cluster recover", strings.Join(silent, ", ")))
	case s.best.GetLeaderId() == "":
		s.add("leader", "", outage, "there is no leader though all voters answer: nothing can be changed, and leases end",
			"journalctl -u kmsd -n 100 on each node: they do not reach each other at their peer addresses, or their disks hang")
	default:
		s.add("leader", "", fine, s.leaderName()+" leads", "")
	}
	if serving == 0 {
		s.add("service", "", outage, "no node that answers serves cryptography", "kmsctl hsm status, and see below why each does not")
		return
	}
	s.add("service", "", fine, fmt.Sprintf("%d nodes serve cryptography", serving), "")
}

func (s *survey) leaderName() string {
	for _, m := range s.best.GetMembers() {
		if m.GetRaftId() == s.best.GetLeaderId() {
			return m.GetName()
		}
	}
	return s.best.GetLeaderId()
}

// quorum looks at how many voters there are, and how many more may fail.
func (s *survey) quorum() {
	there, silent := s.answering()
	voters := len(there) + len(silent)
	spare := len(there) - (voters/2 + 1)
	text := fmt.Sprintf("%d voters, %d answer: %d more may fail", voters, len(there), max(spare, 0))
	switch {
	case len(silent) > 0 && spare <= 0:
		s.add("quorum", "", fault, text, "bring "+strings.Join(silent, ", ")+" back: systemctl start kmsd on its host")
	case voters < fewestVoters:
		s.add("quorum", "", warning, text, "join nodes until there are three voters: kmsctl cluster invite NAME")
	case voters%2 == 0:
		s.add("quorum", "", warning, text+"; an even number survives no more than one voter less",
			"kmsctl cluster invite NAME for one voter more, or kmsctl cluster demote NODE for one less")
	default:
		s.add("quorum", "", fine, text, "")
	}
}

// shortError is an error of a call as one line shows it.
func shortError(err error) string {
	if err == nil {
		return "it was not asked"
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Message
	}
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}

// member makes the checks of one member alone.
func (s *survey) member(m *quorumkmsv1.Member) {
	name, host := m.GetName(), "on "+m.GetName()+": "
	r := s.answers[m.GetRaftId()]
	switch m.GetState() {
	case quorumkmsv1.MemberState_MEMBER_STATE_ADMITTED:
		s.add("member", name, warning, "it is joining, and has not got the domain key yet", host+"its console shows what it waits for; a donor's Security Officer runs kmsd hsm trust; to give it up: kmsctl cluster remove "+name)
		return
	case quorumkmsv1.MemberState_MEMBER_STATE_LEAVING:
		s.add("member", name, warning, "its removal has not come to its end", "kmsctl cluster remove "+name)
		return
	case quorumkmsv1.MemberState_MEMBER_STATE_UNSPECIFIED, quorumkmsv1.MemberState_MEMBER_STATE_ACTIVE, quorumkmsv1.MemberState_MEMBER_STATE_GONE:
	}
	if r.status == nil {
		s.add("member", name, fault, fmt.Sprintf("it does not answer at %s: %s", m.GetClientAddress(), shortError(r.err)),
			host+"systemctl status kmsd, journalctl -u kmsd -n 50; then systemctl start kmsd; if the machine is lost for good: kmsctl cluster remove "+name)
		return
	}
	s.add("member", name, fine, "it answers at "+m.GetClientAddress(), "")
	s.hsm(name, r.status)
	s.serves(name, r.status)
	s.lag(name, r.status)
	s.disk(name, r.status.GetDisk())
	s.disk(name, r.status.GetAudit().GetDisk()) // if it has one of its own
	s.audit(name, r.status)
	s.sinks(name, r.status.GetAudit())
}

func (s *survey) hsm(name string, r *quorumkmsv1.StatusResponse) {
	h := r.GetHsm()
	var weak []string
	for _, p := range h.GetProbes() {
		if !p.GetPassed() && !p.GetAccepted() {
			weak = append(weak, p.GetName())
		}
	}
	switch {
	case !h.GetHealthy():
		s.add("hsm", name, fault, "its HSM token cannot be used: "+h.GetProblem(), "kmsctl hsm status --node "+name+"; bring the token back, the node goes on by itself")
	case len(weak) > 0:
		s.add("hsm", name, fault, "its HSM token has weaknesses that nobody has accepted: "+strings.Join(weak, ", "), "kmsctl hsm status --node "+name+"; hsm/README.md says what each means")
	default:
		s.add("hsm", name, fine, tokenText(h)+" is healthy", "")
	}
}

func (s *survey) serves(name string, r *quorumkmsv1.StatusResponse) {
	switch why := r.GetNotServingReason(); {
	case r.GetServing():
		s.add("lease", name, fine, fmt.Sprintf("it serves, its lease lasts %.1fs", r.GetLeaseLeft().AsDuration().Seconds()), "")
	case !r.GetHsm().GetHealthy() || r.GetAudit() != nil && !r.GetAudit().GetHealthy():
		// that is the reason, and told of already
	case r.GetLeaseLeft().AsDuration() <= 0:
		s.add("lease", name, fault, "it serves nothing, for it has no lease: "+why, "kmsctl doctor; on "+name+": does it reach the others' peer addresses, is its clock right? journalctl -u kmsd -n 50")
	default:
		s.add("lease", name, fault, "it serves nothing: "+why, "on "+name+": journalctl -u kmsd -n 50")
	}
}

func (s *survey) lag(name string, r *quorumkmsv1.StatusResponse) {
	newest := uint64(0)
	for _, o := range s.answers {
		newest = max(newest, o.status.GetLastLogIndex())
	}
	if lag := newest - min(r.GetAppliedIndex(), newest); lag > maxLag {
		s.add("lag", name, fault, fmt.Sprintf("it is %d entries of the log behind", lag), "on "+name+": is its disk or its network slow? iostat -x 1; journalctl -u kmsd -n 50")
		return
	}
	s.add("lag", name, fine, "its log is up to date", "")
}

func (s *survey) disk(name string, d *quorumkmsv1.DiskStatus) {
	if d.GetTotalBytes() == 0 || d.GetProblem() != "" { // an earlier version, or another system
		return
	}
	free, total := d.GetFreeBytes(), d.GetTotalBytes()
	text := fmt.Sprintf("%s of %s are free for %s", sizeText(free), sizeText(total), d.GetDirectory())
	do := "on " + name + ": df -h " + d.GetDirectory() + "; make room, or a larger disk: when it is full the node ends with exit code 6"
	switch {
	case free < min(fullDisk, total/100*fullDiskPart):
		s.add("disk", name, fault, "its disk is nearly full: "+text, do)
	case free < min(lowDisk, total/100*lowDiskPart):
		s.add("disk", name, warning, "its disk gets full: "+text, do)
	default:
		s.add("disk", name, fine, text, "")
	}
}

func sizeText(bytes uint64) string {
	const gib, mib = 1 << 30, 1 << 20
	if bytes >= gib {
		return fmt.Sprintf("%.1f GiB", float64(bytes)/gib)
	}
	return fmt.Sprintf("%d MiB", bytes/mib)
}

func (s *survey) audit(name string, r *quorumkmsv1.StatusResponse) {
	t := r.GetAudit()
	switch {
	case t == nil, t.GetHealthy() && alarmed(r, alarmHeadStale): // which is told of
	case !t.GetHealthy():
		s.add("audit", name, fault, "its audit trail cannot be written, so it answers nothing: "+t.GetProblem(), "on "+name+": df -h, and its disk; then systemctl restart kmsd")
	case t.GetPosition() == nil: // an earlier version
		s.add("audit", name, fine, "its audit trail is written", "")
	default:
		at := t.GetPosition()
		s.add("audit", name, fine, fmt.Sprintf("its audit trail has %d records, signed are %d, the cluster remembers %d", at.GetLast(), at.GetSigned(), t.GetRemembered()), "")
	}
}

// clocks compares the members' clocks with each other: with the one in the middle.
func (s *survey) clocks() {
	type clock struct {
		name         string
		ahead, doubt time.Duration
		leads        bool
	}
	var all []clock
	for _, m := range s.members() {
		if ahead, doubt, ok := s.answers[m.GetRaftId()].offset(); ok {
			all = append(all, clock{m.GetName(), ahead, doubt, m.GetRaftId() == s.best.GetLeaderId()})
		}
	}
	if len(all) == 0 {
		return
	}
	sorted := slices.SortedStableFunc(slices.Values(all), func(a, b clock) int { return cmp.Compare(a.ahead, b.ahead) })
	middle := sorted[(len(sorted)-1)/2]
	if i := slices.IndexFunc(all, func(c clock) bool { return c.leads }); i >= 0 && len(all) < fewestVoters {
		middle = all[i] // of two nobody can say which is wrong: the leader refuses leases by its own
	}
	for _, c := range all {
		skew := c.ahead - middle.ahead
		sure := max(skew.Abs()-c.doubt-middle.doubt, 0)
		text := fmt.Sprintf("its clock is %s that of the others", skewText(skew))
		do := "on " + c.name + ": chronyc tracking (or timedatectl status), and have the clock set by NTP"
		switch {
		case sure > maxSkew:
			s.add("clock", c.name, fault, text+": it gets no lease", do)
		case sure > warnSkew:
			s.add("clock", c.name, warning, fmt.Sprintf("%s; from %s on it gets no lease", text, maxSkew), do)
		default:
			s.add("clock", c.name, fine, "its clock goes with the others'", "")
		}
	}
}

func skewText(d time.Duration) string {
	if d < 0 {
		return fmt.Sprintf("%.1fs behind", -d.Seconds())
	}
	return fmt.Sprintf("%.1fs ahead of", d.Seconds())
}

// certificates looks at those of the members, and once at each CA.
func (s *survey) certificates() {
	cas := map[string]bool{}
	for _, m := range s.members() {
		r := s.answers[m.GetRaftId()].status
		if r == nil {
			continue
		}
		s.certificate(m.GetName(), r.GetCertificate(), r.GetWallClock().AsTime(),
			"issue it anew and put it in place of tls.cert on "+m.GetName()+": the node reads it by itself (kmsd certs issue --renew with the development CA)")
		for _, ca := range r.GetCaCertificates() {
			if !cas[ca.GetKeyHash()] && (ca.GetWarning() != "" || ca.GetNotAfter() != nil) {
				cas[ca.GetKeyHash()] = true
				s.certificate("", ca, r.GetWallClock().AsTime(), "put a new CA beside it into every CA file, issue new certificates from that, then take the old one out (README.md, Certificates)")
			}
		}
	}
}

func (s *survey) certificate(node string, c *quorumkmsv1.Certificate, now time.Time, do string) {
	name := "certificate"
	if node == "" {
		name = "ca"
	}
	switch {
	case c == nil:
	case c.GetWarning() == "":
		s.add(name, node, fine, fmt.Sprintf("%s is good until %s", c.GetSubject(), timeText(c.GetNotAfter())), "")
	case c.GetNotAfter() != nil && !c.GetNotAfter().AsTime().After(now):
		s.add(name, node, fault, c.GetWarning(), do)
	default:
		s.add(name, node, warning, c.GetWarning(), do)
	}
}

// states compares the running hashes of members that are at the same index.
func (s *survey) states() {
	hashes := map[uint64]*quorumkmsv1.StatusResponse{}
	for _, m := range s.members() {
		r := s.answers[m.GetRaftId()].status
		if r == nil || len(r.GetRunningHash()) == 0 {
			continue
		}
		other, ok := hashes[r.GetAppliedIndex()]
		if !ok {
			hashes[r.GetAppliedIndex()] = r
			continue
		}
		if string(other.GetRunningHash()) != string(r.GetRunningHash()) {
			s.add("state", m.GetName(), fault, fmt.Sprintf("ALARM: its state at index %d is not that of %s", r.GetAppliedIndex(), other.GetNodeName()),
				"keep both data directories; the node that differs from the majority stops by itself with exit code 7: find out why, then remove it and let it join anew")
		}
	}
}

// backups looks at scheduled backups and journals: one node at least should make them.
func (s *survey) backups() {
	answered, none := 0, true
	for _, m := range s.members() {
		r := s.answers[m.GetRaftId()].status
		if r == nil {
			continue
		}
		answered++
		if b := r.GetBackup(); b.GetDirectory() != "" {
			none = false
			s.backup(m.GetName(), b)
		}
	}
	if none && answered > 0 {
		s.add("backup", "", warning, "no node that answers writes scheduled backups: what is lost with a majority's disks is lost", "set backup.dir on a node and restart it; by hand: kmsctl backup create FILE")
	}
}

func (s *survey) backup(name string, b *quorumkmsv1.BackupStatus) {
	look := "on " + name + ": df -h " + b.GetDirectory() + ", and can kmsd write there? journalctl -u kmsd -n 50; by hand: kmsctl backup create FILE"
	late := max(backupLate*b.GetEvery().AsDuration(), minBackupLate)
	due := s.now
	if b.GetDueSince() != nil {
		due = b.GetDueSince().AsTime()
	}
	last := "none yet"
	if b.GetLastBackup() != nil {
		last = timeText(b.GetLastBackup())
	}
	switch {
	case b.GetBackupProblem() != "":
		s.add("backup", name, fault, fmt.Sprintf("its scheduled backup fails: %s; last: %s", b.GetBackupProblem(), last), look)
	case s.now.Sub(due) > late:
		s.add("backup", name, fault, fmt.Sprintf("its scheduled backup is due since %s; last: %s", timeText(b.GetDueSince()), last), look)
	default:
		s.add("backup", name, fine, "its last scheduled backup: "+last, "")
	}
	if p := b.GetJournalProblem(); p != "" {
		s.add("journal", name, fault, "its journal of restrictions cannot be written: after a restore what was revoked since would come back: "+p, look)
	}
}

// doDrill tries a recovery, and tells the cluster.
const doDrill = "offline, with enough shares: kmsd recovery verify --report FILE; then kmsctl recovery report FILE"

// recovery passes on what the state says about the recovery of the domain key.
func (s *survey) recovery() {
	for _, text := range s.best.GetRecoveryAlarms() {
		do := "kmsctl recovery recipients add FILE, with a key that kmsctl recovery init has made"
		switch {
		case strings.Contains(text, "hsm trust"):
			do = "on a node that holds the generation, the Security Officer: kmsd hsm trust --recovery FILE FINGERPRINT"
			for _, m := range s.members() { // trusting it again would not help there
				if why := s.answers[m.GetRaftId()].status.GetRecoveryCopyProblem(); why != "" {
					text += "; " + m.GetName() + " trusts it, and cannot make the copy at present: " + why
					do = "on " + m.GetName() + ": see to that, the copy is made by itself then (kmsctl hsm status --node " + m.GetName() + "; journalctl -u kmsd -n 50); or on another node: kmsd hsm trust --recovery FILE FINGERPRINT"
				}
			}
		case len(s.best.GetRecoveryRecipients()) > 0 && alarmed(s.best, alarmDrillOld):
			continue // an alarm, and told as one
		case len(s.best.GetRecoveryRecipients()) > 0:
			do = doDrill
		}
		s.add("recovery", "", warning, text, do)
	}
	if len(s.best.GetRecoveryAlarms()) == 0 {
		s.add("recovery", "", fine, fmt.Sprintf("%d recovery recipients, tried in time", len(s.best.GetRecoveryRecipients())), "")
	}
}

// domain looks at what waits for people: generations and the moving of key versions.
func (s *survey) domain() {
	r := s.best
	if names := r.GetExposedTo(); len(names) > 0 {
		s.add("domain", "", warning, "ADVICE: "+exposedText(names), "kmsctl domain rotate --wait")
	}
	if n := r.GetProposedGeneration(); n != 0 {
		s.add("domain", "", warning, fmt.Sprintf("generation %d of the domain key is not active yet: %s", n, orDash(r.GetProposedWaitsFor())), "kmsctl domain status shows who must do what; to give it up: kmsctl domain retire "+fmt.Sprint(n))
	}
	for _, m := range s.members() {
		x := s.answers[m.GetRaftId()].status
		switch {
		case x.GetWaitsForTwin():
			s.add("domain", m.GetName(), warning, fmt.Sprintf("it waits for its own Security Officer, to move key versions from generation %d", x.GetWaitsForGeneration()), "kmsctl domain status shows the fingerprint; on "+m.GetName()+": kmsd hsm trust FINGERPRINT")
		case x.GetWaitsForGeneration() != 0:
			s.add("domain", m.GetName(), warning, fmt.Sprintf("it lacks generation %d of the domain key", x.GetWaitsForGeneration()), "kmsctl domain status shows the fingerprint that a donor's Security Officer trusts: kmsd hsm trust FINGERPRINT")
		case x.GetDomainProblem() != "":
			s.add("domain", m.GetName(), fault, "it does not get on with the domain key: "+x.GetDomainProblem(), "kmsctl domain status; on "+m.GetName()+": journalctl -u kmsd -n 50")
		}
	}
}

// releases compares the members' versions, and the cluster's release with what they know.
func (s *survey) releases() {
	versions := map[string][]string{}
	var all []string
	lowest, answered := uint32(0), 0
	for _, m := range s.members() {
		r := s.answers[m.GetRaftId()].status
		if r == nil {
			continue
		}
		answered++
		if versions[r.GetVersion()] == nil {
			all = append(all, r.GetVersion())
		}
		versions[r.GetVersion()] = append(versions[r.GetVersion()], m.GetName())
		if known := max(r.GetKnownRelease(), firstRelease); lowest == 0 || known < lowest {
			lowest = known
		}
	}
	switch {
	case len(all) > 1:
		var parts []string
		for _, v := range all {
			parts = append(parts, strings.Join(versions[v], ", ")+" runs "+v)
		}
		s.add("release", "", warning, "the nodes run different versions: "+strings.Join(parts, "; "), "replace the binary and systemctl restart kmsd, one node at a time; then kmsctl cluster upgrade")
	case lowest > s.best.GetRelease() && answered == len(s.members()):
		s.add("release", "", warning, fmt.Sprintf("the cluster is at release %d, its nodes know release %d: what is new is refused", s.best.GetRelease(), lowest), "kmsctl cluster upgrade")
	case answered > 0:
		s.add("release", "", fine, fmt.Sprintf("all run %s, release %d", all[0], s.best.GetRelease()), "")
	}
}

// writeVerdict is the beginning of a status: in a line how it is, and what to do.
func (s *survey) writeVerdict(w io.Writer) error {
	problems := s.problems()
	head := verdictOK + ": nothing is wrong"
	if n := len(problems); n > 0 {
		head = fmt.Sprintf("%s: %d problems, the worst first", s.verdict(), n)
		if n == 1 {
			head = s.verdict() + ": 1 problem"
		}
	}
	if _, err := fmt.Fprintln(w, head); err != nil {
		return err
	}
	for i, p := range problems {
		text := p.Text
		if p.Node != "" {
			text = p.Node + ": " + text
		}
		if _, err := fmt.Fprintf(w, "%3d. %s\n     do: %s\n", i+1, clean(text), clean(p.Do)); err != nil {
			return err
		}
	}
	return nil
}
