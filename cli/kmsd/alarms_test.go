package main

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// testAlarms: what somebody should look at is a record, a metric and a line of the status, and
// each of them names it.
func (m *monitored) testAlarms(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	p := followers[0]
	o := c.object(ctx, "alias/wanted")
	denied := c.dial(adminID, p)
	for range kms.RepeatedDenials {
		if _, err := denied.Encrypt(ctx, o.key, []byte("denied"), nil); err == nil {
			c.t.Fatal("an administrator encrypts")
		}
	}
	external := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_SYMMETRIC)
	_, err := c.bring(ctx, external, randomBytes(32), func(r *pb.ImportKeyMaterialRequest) {
		r.ValidTo = timestamppb.New(time.Now().Add(3 * 24 * time.Hour).Truncate(time.Second))
	}, p, p)
	must(c.t, err)
	ctl := c.buildKmsctl()
	for _, x := range []struct {
		name      audit.Alarm
		at        *process // that records it
		subject   string
		operation string // of the record
	}{
		{audit.RepeatedDenials, p, "spiffe://" + testDomain + adminID, "RepeatedDenials"},
		{audit.MaterialExpiring, leader, external, "KeyMaterialExpiring"},
	} {
		c.eventually("the alarm "+string(x.name), func() bool {
			return m.scrape(p)[`quorumkms_alarm{alarm="`+string(x.name)+`"}`] == 1 && m.scrape(x.at)[`quorumkms_alarms_total{alarm="`+string(x.name)+`"}`] == 1
		}, x.at)
		var found []audit.Event
		for _, e := range c.trail(x.at) {
			if e.Alarm == x.name {
				found = append(found, e)
			}
		}
		if len(found) != 1 || found[0].Name != x.operation || !strings.Contains(found[0].Reason, x.subject) {
			c.t.Errorf("%s is recorded as %+v", x.name, found)
		}
		if out, _ := ctl.run(c.nodes, "cluster", "status"); !strings.Contains(out, "ALARM "+string(x.name)) || !strings.Contains(out, "kmsctl audit search --alarm="+string(x.name)) {
			c.t.Errorf("the status without %s:\n%s", x.name, out)
		}
	}
}
