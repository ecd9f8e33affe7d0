package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// deadSink is an audit sink of the first node, whose collector is not there.
const deadSink = "siem"

func (c *testCluster) withDeadSink() {
	c.nodes[0].extra = fmt.Sprintf("audit: {sinks: [{type: webhook, name: %s, url: %q}]}", deadSink, "http://"+freeAddress(c.t)+"/")
}

// holding is what a node tells of an alarm that holds there.
func holding(s *pb.StatusResponse, name audit.Alarm) *pb.Alarm {
	i := slices.IndexFunc(s.GetAlarms(), func(a *pb.Alarm) bool { return a.GetName() == string(name) })
	if i < 0 {
		return nil
	}
	return s.GetAlarms()[i]
}

// alarms has a principal denied again and again, material that ends soon and a sink whose
// collector is dead: each is recorded once, and shown to who looks, by name to who may know.
func (x *trails) alarms(ctx context.Context, c *testCluster) {
	for range kms.RepeatedDenials {
		_, err := c.dial(userID, c.nodes[1]).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: x.key})
		if err == nil {
			c.t.Fatal("a user disables another tenant's key")
		}
	}
	key := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_SYMMETRIC)
	ends := timestamppb.New(time.Now().Add(5 * 24 * time.Hour).Truncate(time.Second))
	must(c.t, second(c.bring(ctx, key, randomBytes(32), func(r *pb.ImportKeyMaterialRequest) { r.ValidTo = ends }, c.nodes[0], c.nodes[0])))

	one := func(name audit.Alarm) audit.Event {
		c.t.Helper()
		var got []audit.Event
		c.eventually(string(name)+" is recorded", func() bool {
			got = x.records(c, auditorID, "--alarm="+string(name))
			return len(got) > 0
		}, c.nodes...)
		if len(got) != 1 || got[0].Class != "node" || got[0].Result != audit.Success {
			c.t.Errorf("%s: %+v", name, got)
		}
		return got[0]
	}
	user := "spiffe://" + testDomain + userID
	if e := one(audit.RepeatedDenials); e.Name != "RepeatedDenials" || e.Target != user || !strings.HasPrefix(e.Node, "kms-2") || !strings.Contains(e.Reason, user+", ") || !strings.Contains(e.Reason, "the last one DisableKey") {
		c.t.Errorf("%+v", e)
	}
	leader := c.leader(c.nodes[0])
	if e := one(audit.MaterialExpiring); e.KeyID != key || e.KeyVersion != 1 || e.Tenant != "default" || !strings.HasPrefix(e.Node, leader.name) {
		c.t.Errorf("%+v, the leader is %s", e, leader.name)
	}

	c.until("an operator is shown who was denied", func(s *pb.StatusResponse) bool {
		a := holding(s, audit.RepeatedDenials)
		return a.GetCount() == 1 && strings.HasPrefix(a.GetSubjects()[0], user)
	}, c.nodes[1])
	for _, p := range c.nodes {
		c.until("every node shows what ends", func(s *pb.StatusResponse) bool { return holding(s, audit.MaterialExpiring).GetCount() == 1 }, p)
	}
	c.until("the sink is behind", func(s *pb.StatusResponse) bool {
		sinks := s.GetAudit().GetSinks()
		return len(sinks) == 1 && sinks[0].GetName() == deadSink && sinks[0].GetBehindRecords() > 0 && sinks[0].GetFailures() > 0 && sinks[0].GetDelivered() == 0 && sinks[0].GetLastError() != ""
	}, c.nodes[0])
	for _, p := range c.nodes[:2] { // what concerns any tenant is not for its users
		s, err := c.dial(userID, p).Cluster().Status(ctx, &pb.StatusRequest{})
		must(c.t, err)
		if text := s.String(); strings.Contains(text, user) || strings.Contains(text, key) || len(s.GetAlarms()) == 0 {
			c.t.Errorf("%s tells a user: %s", p.name, text)
		}
		for _, sink := range s.GetAudit().GetSinks() {
			if sink.GetLastError() != "" {
				c.t.Errorf("a user is told %v", sink)
			}
		}
	}
	c.eventually("the sink that fails is a problem", func() bool { // after half a minute at the most
		out, _ := x.run(c.nodes, "cluster", "status")
		return strings.Contains(out, "its audit sink "+deadSink+" is ") || strings.Contains(out, "ALARM AUDIT_SINK_FAILING: the audit sink "+deadSink)
	}, c.nodes[0])
	out, _ := x.run(c.nodes, "cluster", "status")
	for _, text := range []string{
		"DEGRADED", "kms-2: ALARM REPEATED_DENIALS: a principal was denied 20 calls", user, "ALARM KEY_MATERIAL_EXPIRING: imported key material ends within 7 days: version 1 of key " + key, "kmsctl key import", "NODE   AUDIT SINK",
	} {
		if !strings.Contains(out, text) {
			c.t.Errorf("no %q in the status:\n%s", text, out)
		}
	}
	if n := strings.Count(out, "ALARM KEY_MATERIAL_EXPIRING"); n != 1 {
		c.t.Errorf("%d times in the status:\n%s", n, out)
	}
	if out, code := x.run(c.nodes, "doctor"); code != 1 || !strings.Contains(out, deadSink) || !strings.Contains(out, "ALARM REPEATED_DENIALS") || !strings.Contains(out, "records, signed are") {
		c.t.Errorf("doctor: %d:\n%s", code, out)
	}
	must(c.t, second(c.dial(adminID).Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: key})))
	c.until("what was deleted ends no more", func(s *pb.StatusResponse) bool { return holding(s, audit.MaterialExpiring) == nil }, c.nodes[0])
}

// oldDrill records a drill that was long ago, which is an alarm until there is a newer one.
func (c *testCluster) oldDrill(ctx context.Context, ctl kmsctl, h shareholders, backup string) {
	c.t.Helper()
	file := filepath.Join(c.dir, "drill.report")
	c.kmsdMust(nil, append([]string{"recovery", "verify", "--backup", backup, "--report", file}, h.with(2, 3)...)...)
	b, err := os.ReadFile(file)
	must(c.t, err)
	report, err := recovery.ParseReport(b)
	must(c.t, err)
	private, _, err := combineShares(recoveryFlags{shares: h.shares[:2], identities: h.keys[:2]})
	must(c.t, err)
	report.Created -= 200 * 24 * 60 * 60
	old, err := report.Sign(private)
	must(c.t, err)
	must(c.t, second(c.dial(operatorID).Recovery().RecordRecoveryReport(ctx, &pb.RecordRecoveryReportRequest{Report: old})))
	for _, p := range c.nodes {
		c.until("the drill is old", func(s *pb.StatusResponse) bool {
			return strings.Contains(holding(s, audit.DrillOld).GetText(), report.Recipient+" was tried 200 days ago")
		}, p)
	}
	if out, _ := ctl.run(c.nodes, "cluster", "status"); strings.Count(out, "200 days ago") != 1 || !strings.Contains(out, "ALARM RECOVERY_DRILL_OLD: the last recovery with "+report.Recipient) {
		c.t.Errorf("the status:\n%s", out)
	}
	told := func(e audit.Event) bool { return e.Alarm == audit.DrillOld }
	c.eventually("it is recorded", func() bool { return c.countRecords(told) > 0 }, c.nodes...)
	ctl.must(c.nodes, "recovery", "report", file)
	c.until("a newer one ends it", func(s *pb.StatusResponse) bool { return holding(s, audit.DrillOld) == nil }, c.nodes[0])
	if n := c.countRecords(told); n != 1 {
		c.t.Errorf("it is recorded %d times", n)
	}
}
