package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var updateGolden = flag.Bool("update-golden", false, "write the golden files of this package")

// wellCluster is a cluster of n voters of which nothing is wrong.
func wellCluster(n int) *survey {
	s := &survey{now: fakeEpoch.Add(48 * time.Hour), answers: map[string]answer{}}
	var members []*quorumkmsv1.Member
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		members = append(members, &quorumkmsv1.Member{
			RaftId: "raft-" + name, Name: name, ClientAddress: name + ":7300", Voter: true, Leader: i == 0, Reachable: true,
			State: quorumkmsv1.MemberState_MEMBER_STATE_ACTIVE, AppliedIndex: 100,
		})
	}
	for _, m := range members {
		r := &quorumkmsv1.StatusResponse{
			ClusterId: "c1", TrustDomain: "kms.test", RaftId: m.GetRaftId(), NodeName: m.GetName(), LeaderId: "raft-n1", Term: 7, Version: "v1", Release: 2, KnownRelease: 2,
			AppliedIndex: 100, LastLogIndex: 100, RunningHash: bytes.Repeat([]byte{0xab}, 32), Serving: true, LeaseLeft: durationpb.New(4 * time.Second), Members: members,
			Created: timestamppb.New(fakeEpoch), WallClock: timestamppb.New(s.now), DomainGeneration: 1,
			Hsm:               &quorumkmsv1.HsmStatus{Kind: "pkcs11", Healthy: true},
			Disk:              &quorumkmsv1.DiskStatus{Directory: "/var/lib/quorumkms", FreeBytes: 50 << 30, TotalBytes: 100 << 30},
			Audit:             &quorumkmsv1.AuditStatus{Healthy: true},
			Certificate:       &quorumkmsv1.Certificate{Subject: "spiffe://kms.test/node/" + m.GetName(), NotAfter: timestamppb.New(s.now.Add(1000 * time.Hour))},
			CertificateExpiry: timestamppb.New(s.now.Add(1000 * time.Hour)),
			CaCertificates:    []*quorumkmsv1.Certificate{{Subject: "CA", KeyHash: "0123456789abcdef", NotAfter: timestamppb.New(s.now.Add(9000 * time.Hour))}},
			Backup:            &quorumkmsv1.BackupStatus{},
			RecoveryRecipients: []*quorumkmsv1.RecoveryRecipient{{Name: "vault", Kind: "SHARES", Threshold: 2, Shares: 3, Drill: &quorumkmsv1.RecoveryDrill{
				Time: timestamppb.New(fakeEpoch), Generation: 1, KeyVersions: 3, Opened: 3,
			}}},
		}
		s.answers[m.GetRaftId()] = answer{status: r, sent: s.now, received: s.now.Add(10 * time.Millisecond)}
	}
	s.first = s.answers["raft-n1"].status
	s.best = s.first
	s.first.Backup = &quorumkmsv1.BackupStatus{
		Directory: "/mnt/backup", LastBackup: timestamppb.New(s.now.Add(-time.Hour)), LastIndex: 99, Every: durationpb.New(time.Hour), JournalIndex: 100, JournalTime: timestamppb.New(s.now),
	}
	return s
}

func (s *survey) of(name string) *quorumkmsv1.StatusResponse { return s.answers["raft-"+name].status }

// kill takes nodes away.
func (s *survey) kill(names ...string) {
	for _, name := range names {
		s.answers["raft-"+name] = answer{err: errors.New("connection refused")}
	}
}

// TestFindings has each thing wrong that can be, alone: it is told of, as it should be.
func TestFindings(t *testing.T) {
	noLeader := func(s *survey) {
		for _, r := range s.answers {
			if r.status != nil {
				r.status.LeaderId, r.status.Serving, r.status.LeaseLeft = "", false, nil
				r.status.NotServingReason = "no lease"
			}
		}
	}
	for _, row := range []struct {
		what    string
		nodes   int
		harm    func(s *survey)
		verdict string
		want    []string // level check node: text … do, of the problems in their order
	}{
		{"nothing", 3, func(*survey) {}, verdictOK, nil},
		{"nothing of five", 5, func(*survey) {}, verdictOK, nil},
		{"an accepted weakness", 3, func(s *survey) {
			s.of("n1").Hsm.Probes = []*quorumkmsv1.HsmProbe{{Name: "x", Accepted: true}}
		}, verdictOK, nil},
		{"a dead node of three", 3, func(s *survey) { s.kill("n3") }, verdictDegraded, []string{
			"fault quorum : 3 voters, 2 answer: 0 more may fail|bring n3 back: systemctl start kmsd",
			"fault member n3: it does not answer at n3:7300: connection refused|on n3: systemctl status kmsd",
		}},
		{"a dead node of five", 5, func(s *survey) { s.kill("n3") }, verdictDegraded, []string{"fault member n3: it does not answer|kmsctl cluster remove n3"}},
		{"no leader", 3, func(s *survey) { s.kill("n2", "n3"); noLeader(s) }, verdictDown, []string{
			"outage leader : there is no leader|start kmsd on n2, n3: systemctl start kmsd; only if a majority is lost for good: kmsctl cluster recover",
			"outage service : no node that answers serves|kmsctl hsm status",
			"fault quorum : 3 voters, 1 answer|bring n2, n3 back",
			"fault lease n1: it serves nothing, for it has no lease: no lease|kmsctl doctor",
			"fault member n2: it does not answer|", "fault member n3: it does not answer|",
		}},
		{"no leader, though all are there", 1, noLeader, verdictDown, []string{
			"outage leader : there is no leader though all voters answer|journalctl", "outage service : |", "fault lease n1: |", "warning quorum : 1 voters|",
		}},
		{"a member that is joining, one that leaves", 3, func(s *survey) {
			m := s.first.GetMembers()
			m[1].State, m[1].Voter = quorumkmsv1.MemberState_MEMBER_STATE_ADMITTED, false
			m[2].State, m[2].Voter = quorumkmsv1.MemberState_MEMBER_STATE_LEAVING, false
		}, verdictDegraded, []string{
			"warning quorum : 1 voters|kmsctl cluster invite", "warning member n2: it is joining|kmsd hsm trust", "warning member n3: its removal|kmsctl cluster remove n3",
		}},
		{"two voters", 2, func(*survey) {}, verdictDegraded, []string{"warning quorum : 2 voters, 2 answer: 0 more may fail|kmsctl cluster invite"}},
		{"four voters", 4, func(*survey) {}, verdictDegraded, []string{"warning quorum : 4 voters, 4 answer: 1 more may fail; an even number|kmsctl cluster demote"}},
		{"a member without a lease", 3, func(s *survey) {
			s.of("n2").Serving, s.of("n2").LeaseLeft, s.of("n2").NotServingReason = false, nil, "it has lost touch"
		}, verdictDegraded, []string{"fault lease n2: it serves nothing, for it has no lease: it has lost touch|on n2: does it reach"}},
		{"a member that does not serve otherwise", 3, func(s *survey) {
			s.of("n2").Serving, s.of("n2").NotServingReason = false, "expired"
		}, verdictDegraded, []string{"fault lease n2: it serves nothing: expired|journalctl"}},
		{"lag", 3, func(s *survey) { s.of("n1").LastLogIndex, s.of("n1").AppliedIndex = 5000, 5000 }, verdictDegraded, []string{
			"fault lag n2: it is 4900 entries|on n2: is its disk", "fault lag n3: it is 4900 entries|",
		}},
		{"a token that is lost", 3, func(s *survey) {
			s.of("n2").Hsm.Healthy, s.of("n2").Hsm.Problem, s.of("n2").Serving = false, "token lost", false
		}, verdictDegraded, []string{"fault hsm n2: its HSM token cannot be used: token lost|kmsctl hsm status --node n2"}},
		{"a weakness", 3, func(s *survey) { s.of("n2").Hsm.Probes = []*quorumkmsv1.HsmProbe{{Name: "leaves"}} }, verdictDegraded, []string{"fault hsm n2: its HSM token has weaknesses that nobody has accepted: leaves|hsm/README.md"}},
		{"certificates", 3, func(s *survey) {
			s.of("n2").Certificate.Warning = "expires in 4 days"
			s.of("n3").Certificate.Warning, s.of("n3").Certificate.NotAfter = "expired", timestamppb.New(s.now)
			for _, name := range []string{"n1", "n2", "n3"} {
				s.of(name).CaCertificates[0].Warning = "the CA ends"
			}
		}, verdictDegraded, []string{
			"fault certificate n3: expired|tls.cert on n3", "warning ca : the CA ends|put a new CA beside", "warning certificate n2: expires in 4 days|issue it anew",
		}},
		{"a clock", 3, func(s *survey) { s.of("n2").WallClock = timestamppb.New(s.now.Add(-3 * time.Second)) }, verdictDegraded, []string{"warning clock n2: its clock is 3.0s behind that of the others; from 5s|on n2: chronyc"}},
		{"a wrong clock", 3, func(s *survey) { s.of("n1").WallClock = timestamppb.New(s.now.Add(time.Hour)) }, verdictDegraded, []string{"fault clock n1: its clock is 3600.0s ahead of that of the others: it gets no lease|"}},
		{"clocks of two", 2, func(s *survey) { s.of("n1").WallClock = timestamppb.New(s.now.Add(time.Hour)) }, verdictDegraded, []string{"fault clock n2: its clock is 3600.0s behind|", "warning quorum : |"}},
		{"a clock that was asked for slowly", 3, func(s *survey) {
			r := s.answers["raft-n2"]
			r.status.WallClock, r.received = timestamppb.New(s.now.Add(-3*time.Second)), s.now.Add(6*time.Second)
			s.answers["raft-n2"] = r
		}, verdictDegraded, []string{"warning clock n2: its clock is 6.0s behind|"}},
		{"disks", 3, func(s *survey) {
			s.of("n1").Disk.FreeBytes = 0
			s.of("n2").Disk.FreeBytes = 9 << 30
			s.of("n3").Disk = &quorumkmsv1.DiskStatus{FreeBytes: 101 << 20, TotalBytes: 1000 << 20}
		}, verdictDegraded, []string{
			"fault disk n1: its disk is nearly full: 0 MiB of 100.0 GiB|on n1: df -h /var/lib/quorumkms", "warning disk n2: its disk gets full: 9.0 GiB|",
		}},
		{"an unknown disk", 3, func(s *survey) { s.of("n1").Disk = &quorumkmsv1.DiskStatus{Problem: "unsupported"} }, verdictOK, nil},
		{"the audit trail", 3, func(s *survey) {
			s.of("n2").Audit, s.of("n2").Serving = &quorumkmsv1.AuditStatus{Problem: "no space"}, false
		}, verdictDegraded, []string{"fault audit n2: its audit trail cannot be written, so it answers nothing: no space|on n2: df -h"}},
		{"a disk of the audit trail's own", 3, func(s *survey) {
			s.of("n2").Audit.Disk = &quorumkmsv1.DiskStatus{Directory: "/var/lib/quorumkms/audit", FreeBytes: 1 << 20, TotalBytes: 20 << 30}
		}, verdictDegraded, []string{"fault disk n2: its disk is nearly full: 1 MiB of 20.0 GiB are free for /var/lib/quorumkms/audit|on n2: df -h /var/lib/quorumkms/audit"}},
		{"a trail that is not signed", 3, func(s *survey) {
			s.of("n2").Alarms = []*quorumkmsv1.Alarm{{Name: "AUDIT_HEAD_STALE", Text: "the audit trail is not signed: no HSM", Count: 1}}
		}, verdictDegraded, []string{"fault alarm n2: ALARM AUDIT_HEAD_STALE: the audit trail is not signed: no HSM|kmsctl hsm status --node n2"}},
		{"sinks", 3, func(s *survey) {
			s.of("n1").Audit.Sinks = []*quorumkmsv1.AuditSinkStatus{{Name: "a", Cursor: 7, LastError: "was refused once", Failures: 1}}
			s.of("n2").Audit.Sinks = []*quorumkmsv1.AuditSinkStatus{
				{Name: "b", Lost: 5},
				{Name: "c", BehindRecords: 3, Behind: durationpb.New(40 * time.Second), LastError: "refused"},
				{Name: "d", BehindRecords: sinkBehind + 1, Behind: durationpb.New(time.Second)},
				{Name: "e", Failing: true, Behind: durationpb.New(time.Hour)},
			}
			s.of("n2").Alarms = []*quorumkmsv1.Alarm{{Name: "AUDIT_SINK_FAILING", Text: "the audit sink e takes nothing, it is 9 records behind", Count: 1, Subjects: []string{"gone"}}}
		}, verdictDegraded, []string{
			"fault sink n2: ALARM AUDIT_SINK_GAP: 5 records were removed before its audit sink b had them|raise audit.keep on n2",
			"fault alarm n2: ALARM AUDIT_SINK_FAILING: the audit sink e takes nothing, it is 9 records behind: gone|on n2: does the sink's collector",
			"warning sink n2: its audit sink c is 3 records and 40s behind: refused|on n2: journalctl",
			"warning sink n2: its audit sink d is 100001 records and 1s behind|a faster collector",
		}},
		{"alarms that all nodes tell of", 3, func(s *survey) {
			for _, name := range []string{"n1", "n2", "n3"} {
				s.of(name).RecoveryAlarms = []string{"the last recovery with vault was tried 100 days ago: kmsd recovery verify"}
				s.of(name).Alarms = []*quorumkmsv1.Alarm{
					{Name: "KEY_MATERIAL_EXPIRING", Text: "imported key material ends within 7 days", Count: 12, Subjects: []string{"version 1 of key k", "version 2 of key k"}},
					{Name: "RECOVERY_DRILL_OLD", Text: s.of(name).RecoveryAlarms[0], Count: 1},
				}
			}
		}, verdictDegraded, []string{
			"warning alarm : ALARM KEY_MATERIAL_EXPIRING: imported key material ends within 7 days (12): version 1 of key k; version 2 of key k; and 10 more|kmsctl key import",
			"warning alarm : ALARM RECOVERY_DRILL_OLD: the last recovery with vault|kmsctl recovery report FILE",
		}},
		{"alarms of nodes", 3, func(s *survey) {
			denied := &quorumkmsv1.Alarm{Name: "REPEATED_DENIALS", Text: "a principal was denied", Count: 1}
			s.of("n1").Alarms = []*quorumkmsv1.Alarm{denied, {Name: "STATE_DIVERGED", Text: "the state of n3 is not the leader's", Count: 1}}
			s.of("n2").Alarms = []*quorumkmsv1.Alarm{denied, {Name: "OF_A_LATER_VERSION", Text: "it is bad", Count: 1}}
		}, verdictDegraded, []string{
			"fault alarm : ALARM STATE_DIVERGED: the state of n3|exit code 7", "fault alarm : ALARM OF_A_LATER_VERSION: it is bad|kmsctl audit search --alarm=OF_A_LATER_VERSION",
			"warning alarm n1: ALARM REPEATED_DENIALS: a principal was denied|--alarm=REPEATED_DENIALS", "warning alarm n2: ALARM REPEATED_DENIALS|",
		}},
		{"a trail that was rewritten", 3, func(s *survey) {
			text := "the audit trail of n3 was rewritten"
			s.of("n1").Splits, s.of("n2").Splits = []string{text}, []string{text}
			s.of("n1").Alarms = []*quorumkmsv1.Alarm{{Name: "AUDIT_TRAIL_REWRITTEN", Text: text, Count: 1}}
		}, verdictDegraded, []string{"fault alarm : ALARM AUDIT_TRAIL_REWRITTEN: the audit trail of n3|kmsctl audit verify"}},
		{"an earlier version", 3, func(s *survey) { s.of("n2").Audit, s.of("n2").Disk, s.of("n2").WallClock = nil, nil, nil }, verdictOK, nil},
		{"no backups", 3, func(s *survey) { s.of("n1").Backup = nil }, verdictDegraded, []string{"warning backup : no node that answers writes|set backup.dir"}},
		{"backups that fail", 3, func(s *survey) {
			s.of("n1").Backup.BackupProblem, s.of("n1").Backup.JournalProblem = "no space", "gone"
		}, verdictDegraded, []string{"fault backup n1: its scheduled backup fails: no space; last: 2026-01-04|df -h /mnt/backup", "fault journal n1: its journal of restrictions cannot be written|"}},
		{"a backup that is due", 3, func(s *survey) { s.of("n1").Backup.DueSince = timestamppb.New(s.now.Add(-59 * time.Minute)) }, verdictOK, nil},
		{"a backup that is missed", 3, func(s *survey) {
			s.of("n1").Backup.DueSince, s.of("n1").Backup.LastBackup = timestamppb.New(s.now.Add(-61*time.Minute)), nil
		}, verdictDegraded, []string{"fault backup n1: its scheduled backup is due since 2026-01-04 02:03:05 UTC; last: none yet|"}},
		{"recovery", 3, func(s *survey) {
			s.first.RecoveryAlarms = []string{"not wrapped: kmsd hsm trust --recovery", "the last recovery was tried 100 days ago: kmsd recovery verify"}
		}, verdictDegraded, []string{"warning recovery : not wrapped|kmsd hsm trust --recovery FILE", "warning recovery : the last recovery|kmsctl recovery report FILE"}},
		{"a recovery copy that cannot be made", 3, func(s *survey) {
			s.first.RecoveryAlarms = []string{"not wrapped: kmsd hsm trust --recovery"}
			s.of("n2").RecoveryCopyProblem = "generation 2 for vault: the token does not wrap"
		}, verdictDegraded, []string{"warning recovery : not wrapped: kmsd hsm trust --recovery; n2 trusts it, and cannot make the copy at present: generation 2 for vault: the token does not wrap|on n2: see to that"}},
		{"no recipients", 3, func(s *survey) {
			s.first.RecoveryRecipients, s.first.RecoveryAlarms = nil, []string{"the domain key has no recovery recipient"}
		}, verdictDegraded, []string{"warning recovery : the domain key has no|kmsctl recovery recipients add FILE"}},
		{"the domain key", 3, func(s *survey) {
			s.first.ExposedTo, s.first.ProposedGeneration, s.first.ProposedWaitsFor = []string{"n9"}, 3, "n2 lacks it"
			s.of("n2").WaitsForGeneration = 3
			s.of("n3").WaitsForGeneration, s.of("n3").WaitsForTwin = 1, true
			s.of("n1").DomainProblem = "no room"
		}, verdictDegraded, []string{
			"fault domain n1: it does not get on with the domain key: no room|", "warning domain : ADVICE: the HSM partitions of removed nodes (n9)|kmsctl domain rotate --wait",
			"warning domain : generation 3 of the domain key is not active yet: n2 lacks it|kmsctl domain retire 3", "warning domain n2: it lacks generation 3|kmsctl domain status",
			"warning domain n3: it waits for its own Security Officer, to move key versions from generation 1|",
		}},
		{"versions", 3, func(s *survey) { s.of("n2").Version, s.of("n2").KnownRelease = "v0", 0 }, verdictDegraded, []string{"warning release : the nodes run different versions: n1, n3 runs v1; n2 runs v0|one node at a time"}},
		{"an upgrade that waits", 3, func(s *survey) {
			for _, r := range s.answers {
				r.status.KnownRelease = 3
			}
		}, verdictDegraded, []string{"warning release : the cluster is at release 2, its nodes know release 3|kmsctl cluster upgrade"}},
		{"another history", 3, func(s *survey) {
			s.of("n1").Splits, s.of("n2").Splits = []string{"epoch 2 is alive"}, []string{"epoch 2 is alive"}
		}, verdictDegraded, []string{"fault history n1: ALARM: epoch 2 is alive|power off"}},
		{"states that differ", 3, func(s *survey) { s.of("n2").RunningHash = []byte{1} }, verdictDegraded, []string{"fault state n2: ALARM: its state at index 100 is not that of n1|keep both data directories"}},
		{"states of other indexes", 3, func(s *survey) { s.of("n2").RunningHash, s.of("n2").AppliedIndex = []byte{1}, 99 }, verdictOK, nil},
	} {
		s := wellCluster(row.nodes)
		row.harm(s)
		s.find()
		if got := s.verdict(); got != row.verdict {
			t.Errorf("%s: %s, want %s", row.what, got, row.verdict)
		}
		problems := s.problems()
		var got []string
		for i, p := range problems {
			l, _ := p.Level.MarshalText()
			got = append(got, fmt.Sprintf("%s %s %s: %s|%s", l, p.Check, p.Node, p.Text, p.Do))
			if i < len(row.want) {
				begin, do, _ := strings.Cut(row.want[i], "|")
				if begin = strings.TrimSuffix(begin, " "); !strings.HasPrefix(got[i], begin) || !strings.Contains(p.Do, do) || p.Do == "" {
					t.Errorf("%s: %d: %s\nwant %s", row.what, i, got[i], row.want[i])
				}
			}
		}
		if len(problems) != len(row.want) {
			t.Errorf("%s: %d problems, want %d:\n%s", row.what, len(problems), len(row.want), strings.Join(got, "\n"))
		}
		for _, f := range s.findings {
			if checkOrder(f.Check) == checkOrder("no check") {
				t.Errorf("%s: the doctor's table does not know the check %s", row.what, f.Check)
			}
			if f.Level == fine && f.Do != "" || f.Text == "" {
				t.Errorf("%s: %+v", row.what, f)
			}
		}
	}
}

// TestOwnClock: who asks is told when it is this machine's clock that is wrong.
func TestOwnClock(t *testing.T) {
	for _, row := range []struct {
		off  time.Duration
		want string
	}{{0, ""}, {time.Second, ""}, {3 * time.Second, "this machine's clock is 3.0s behind that of the nodes"}, {-time.Minute, "this machine's clock is 60.0s ahead of that of the nodes"}} {
		s := wellCluster(3)
		for _, r := range s.answers {
			r.status.WallClock = timestamppb.New(s.now.Add(row.off))
		}
		s.find()
		s.ownClock()
		text := ""
		if p := s.problems(); len(p) > 0 {
			text = p[0].Text
		}
		if text != row.want {
			t.Errorf("%s: %q, want %q", row.off, text, row.want)
		}
	}
}

// TestGoldenStatus: what an operator sees at three in the morning.
func TestGoldenStatus(t *testing.T) {
	for _, row := range []struct {
		name string
		harm func(s *survey)
	}{
		{"status-ok", func(*survey) {}},
		{"status-degraded", func(s *survey) {
			s.kill("n3")
			s.of("n2").Hsm.Healthy, s.of("n2").Hsm.Problem, s.of("n2").Serving, s.of("n2").NotServingReason = false, "token \x1b[31mlost", false, "HSM unavailable"
			s.of("n1").Backup.BackupProblem = "no space left on device"
			s.of("n1").Certificate.Warning = "the certificate of spiffe://kms.test/node/n1 expires in 4 days"
			s.of("n1").Audit.Sinks = []*quorumkmsv1.AuditSinkStatus{{
				Name: "siem", Type: "webhook", Cursor: 900, BehindRecords: 1234, Behind: durationpb.New(5 * time.Minute), Failing: true, Failures: 17, LastError: "503 \x1b[31mdown",
			}}
			s.of("n1").Alarms = []*quorumkmsv1.Alarm{{Name: "AUDIT_SINK_FAILING", Text: "the audit sink siem takes nothing, it is 1234 records behind", Count: 1, Subjects: []string{"503 \x1b[31mdown"}}}
		}},
	} {
		s := wellCluster(3)
		row.harm(s)
		s.find()
		var b bytes.Buffer
		if err := errors.Join(s.writeVerdict(&b), writeStatus(&b, s)); err != nil {
			t.Fatal(err)
		}
		file := "testdata/" + row.name + ".golden"
		if *updateGolden {
			if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !slices.Equal(strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")) {
			t.Errorf("%s, %v:\n%s\nwant\n%s", row.name, err, b.String(), want)
		}
	}
}
