package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	acmeAdmin   = "/tenant/acme/admin/ada"
	acmeAuditor = "/tenant/acme/auditor/ann"
)

// TestTrails reads and verifies audit trails as auditors do, and does to the files of one what
// somebody may who has them, and then the node's key too. The steps build on each other.
func TestTrails(t *testing.T) {
	c := newCluster(t, 3)
	c.withDeadSink()
	c.begin()
	for _, id := range []string{acmeAdmin, acmeAuditor} {
		c.issue(id, filepath.Base(id))
	}
	x := &trails{kmsctl: c.buildKmsctl(), heads: filepath.Join(c.dir, "heads.json")}
	for _, s := range []struct {
		name string
		f    func(ctx context.Context, c *testCluster)
	}{
		{"records are merged and filtered", x.search},
		{"who may read what", x.authorised},
		{"exports are verified offline", x.export},
		{"verified online", x.verified},
		{"followed", x.followed},
		{"alarms", x.alarms},
		{"a node does not answer", x.stopped},
		{"files that were changed are named", x.attacked},
		{"the node refuses them", x.refusesAltered},
		{"with the node's key in hand", x.keyInHand},
		{"the cluster convicts the node", x.convicted},
	} {
		if !c.run(s.name, s.f) {
			break
		}
	}
}

type trails struct {
	kmsctl
	heads string // file, before anything was done to a trail
	key   string // of acme
}

// records runs a search and reads what it printed.
func (x *trails) records(c *testCluster, id string, args ...string) (out []audit.Event) {
	c.t.Helper()
	text, code := x.runAs(id, c.nodes, append([]string{"audit", "search", "--output", "json"}, args...)...)
	if code != 0 {
		c.t.Fatalf("search %v: %s", args, text)
	}
	for line := range strings.Lines(text) {
		var e audit.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.t.Fatalf("%v: %s", err, line)
		}
		out = append(out, e)
	}
	return out
}

func (x *trails) search(ctx context.Context, c *testCluster) {
	uri := func(path string) string { return "spiffe://" + testDomain + path }
	_, err := c.dial(operatorID).Tenants().CreateTenant(ctx, &pb.CreateTenantRequest{Name: "acme", Administrator: uri(acmeAdmin)})
	must(c.t, err)
	made, err := c.dial(acmeAdmin, c.nodes[0]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)
	x.key = made.GetKey().GetKeyId()
	c.level(ctx)
	_, err = c.dial(acmeAdmin, c.nodes[1]).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: x.key, GranteePrincipal: uri(serviceID), Operations: []string{"Encrypt"},
		Constraints: &pb.GrantConstraints{EncryptionContextSubset: []*pb.ContextPair{{Key: "resource", Value: "volume-1"}, {Key: "tenant", Value: "acme"}}},
	})
	must(c.t, err)
	c.level(ctx)
	for _, p := range c.nodes {
		service := c.connectSDK(serviceID, []*process{p}, func(config *client.Config) { config.Tenant, config.Fixed = "acme", true })
		_, err := service.Encrypt(ctx, x.key, []byte("x"), map[string]string{"tenant": "acme", "resource": "volume-1"})
		must(c.t, err)
	}
	own, err := c.dial(adminID, c.nodes[2]).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)

	all := x.records(c, auditorID)
	if !slices.IsSortedFunc(all, func(a, b audit.Event) int { return a.Time.Compare(b.Time) }) {
		c.t.Error("the records are not in the order of their times")
	}
	nodes := map[string]bool{}
	for _, e := range all {
		nodes[e.Node] = true
	}
	if len(nodes) < 3 {
		c.t.Errorf("records of %v", nodes)
	}
	names := func(list []audit.Event) (out []string) {
		for _, e := range list {
			out = append(out, e.Name)
		}
		return out
	}
	for what, row := range map[string]struct {
		args []string
		want []string
	}{
		"a key":              {[]string{"--key-id", x.key}, []string{"CreateKey", "CreateGrant", "Encrypt", "Encrypt", "Encrypt"}},
		"by its ARN":         {[]string{"--key-id", made.GetKey().GetArn(), "--operation", "CreateGrant"}, []string{"CreateGrant"}},
		"an operation":       {[]string{"--operation", "Encrypt", "--principal", uri(serviceID)}, []string{"Encrypt", "Encrypt", "Encrypt"}},
		"the oldest":         {[]string{"--key-id", x.key, "--limit", "1"}, []string{"CreateKey"}},
		"a tenant":           {[]string{"--tenant", "default", "--key-id", own.GetKey().GetKeyId()}, []string{"CreateKey"}},
		"another tenant":     {[]string{"--tenant", "acme", "--key-id", own.GetKey().GetKeyId()}, nil},
		"since a while":      {[]string{"--key-id", x.key, "--since", "24h", "--operation", "CreateKey"}, []string{"CreateKey"}},
		"until yesterday":    {[]string{"--key-id", x.key, "--until", "24h"}, nil},
		"a result":           {[]string{"--key-id", x.key, "--result", "denied"}, nil},
		"alarms":             {[]string{"--alarm", "--key-id", x.key}, nil},
		"its search is also": {[]string{"--operation", "SearchRecords", "--tenant", "acme", "--result", "FAILED"}, nil},
	} {
		if got := names(x.records(c, auditorID, row.args...)); !slices.Equal(got, row.want) {
			c.t.Errorf("%s: %v, want %v", what, got, row.want)
		}
	}
	out, code := x.runAs(auditorID, c.nodes, "audit", "search", "--key-id", x.key)
	if code != 0 || !strings.Contains(out, "OPERATION") || strings.Count(out, " service/obs ") != 3 {
		c.t.Errorf("the table: %d\n%s", code, out)
	}
}

func (x *trails) authorised(ctx context.Context, c *testCluster) {
	own := x.records(c, acmeAuditor)
	service := 0
	for _, e := range own {
		if e.Tenant != "acme" {
			c.t.Errorf("the tenant's auditor got %+v", e)
		}
		if e.Principal == "spiffe://"+testDomain+serviceID && e.Name == "Encrypt" {
			service++
		}
	}
	if service != 3 {
		c.t.Errorf("of the service the tenant's auditor got %d records", service)
	}
	for _, row := range []struct {
		id   string
		args []string
		code int
	}{
		{acmeAuditor, []string{"search", "--tenant", "default"}, 1},
		{acmeAuditor, []string{"verify"}, 1},
		{operatorID, []string{"search"}, 1},
		{adminID, []string{"search"}, 1},
		{userID, []string{"search"}, 1},
		{serviceID, []string{"search"}, 1},
		{adminID, []string{"heads", "--out", "-"}, 1},
		{operatorID, []string{"heads", "--out", "-"}, 0},
		{acmeAuditor, []string{"heads", "--out", "-"}, 0},
	} {
		if out, code := x.runAs(row.id, c.nodes, append([]string{"audit"}, row.args...)...); code != row.code || row.code != 0 && !strings.Contains(out, "DENIED") {
			c.t.Errorf("%s: audit %v: %d, want %d: %s", row.id, row.args, code, row.code, out)
		}
	}
	denied := x.records(c, auditorID, "--operation", "SearchRecords", "--result", "DENIED", "--principal", "spiffe://"+testDomain+userID)
	if len(denied) != 3 {
		c.t.Errorf("%d records of a search that was refused at each node", len(denied))
	}
	looked := x.records(c, auditorID, "--operation", "SearchRecords", "--principal", "spiffe://"+testDomain+acmeAuditor, "--result", "SUCCESS")
	if len(looked) != 3 || looked[0].Tenant != "acme" || looked[0].Target != "everything" {
		c.t.Errorf("the search of the tenant's auditor: %+v", looked)
	}
}

func (x *trails) export(_ context.Context, c *testCluster) {
	x.awaitHeads(c)
	file := filepath.Join(c.dir, "export.jsonl")
	if out, code := x.runAs(acmeAuditor, c.nodes, "audit", "export", "--out", file, "--proofs", "--key-id", x.key); code != 0 || !strings.Contains(out, "5 records") {
		c.t.Fatalf("export: %d: %s", code, out)
	}
	verify := func() (string, int) { return x.run(nil, "audit", "verify", "--export", file, "--heads", x.heads) }
	if out, code := verify(); code != 0 || !strings.Contains(out, "5, each as its node signed it") {
		c.t.Errorf("a sound export: %d: %s", code, out)
	}
	b, err := os.ReadFile(file)
	must(c.t, err)
	must(c.t, os.WriteFile(file, bytes.Replace(b, []byte("SUCCESS"), []byte("DENIED"), 1), 0o600))
	if out, code := verify(); code != 4 || !strings.Contains(out, "ALTERED: line 1 is not record") {
		c.t.Errorf("an altered export: %d: %s", code, out)
	}
}

// awaitHeads writes the file of heads once the cluster remembers all that is written now.
func (x *trails) awaitHeads(c *testCluster) {
	c.t.Helper()
	var last []uint64
	for _, p := range c.nodes {
		all := c.trail(p)
		last = append(last, all[len(all)-1].Sequence)
	}
	c.eventually("the cluster remembers the trails", func() bool {
		out, code := x.runAs(auditorID, c.nodes, "audit", "heads", "--out", x.heads)
		if code != 0 {
			c.t.Fatalf("heads: %s", out)
		}
		b, err := os.ReadFile(x.heads)
		must(c.t, err)
		h, err := trail.ParseHeads(b)
		must(c.t, err)
		for i, p := range c.nodes {
			n, ok := h.Find(p.name)
			if !ok || n.Checkpoint == "" {
				return false
			}
			k, err := trail.OpenCheckpoint([]byte(n.Checkpoint), n.Identity)
			must(c.t, err)
			if k.Size < int64(last[i]) {
				return false
			}
		}
		return true
	})
}

func (x *trails) verified(_ context.Context, c *testCluster) {
	for _, args := range [][]string{{"audit", "verify"}, {"audit", "verify", "--quick"}} {
		out, code := x.runAs(auditorID, c.nodes, args...)
		if code != 0 || !strings.Contains(out, "The memories of 3 nodes do not contradict each other.") || strings.Count(out, "proved up to record")+strings.Count(out, "goes on from") != 3 {
			c.t.Errorf("%v: %d: %s", args, code, out)
		}
	}
	if out, code := x.run(c.nodes, "audit", "verify", "--quick"); code != 0 {
		c.t.Errorf("quick, by an operator: %d: %s", code, out)
	}
}

// followed follows the trails of all nodes as a tenant's auditor, until its principal is disabled.
func (x *trails) followed(ctx context.Context, c *testCluster) {
	admin := c.dial(acmeAdmin, c.nodes[0])
	made, err := admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(c.t, err)
	key := made.GetKey().GetKeyId()
	c.level(ctx)
	tag := func(p *process, value string) {
		c.t.Helper()
		must(c.t, second(c.dial(acmeAdmin, p).Keys().TagResource(ctx, &pb.TagResourceRequest{KeyId: key, Tags: []*pb.Tag{{Key: "t", Value: value}}})))
		c.level(ctx)
	}
	for _, p := range c.nodes {
		tag(p, "before")
	}
	tail := x.command(ctx, acmeAuditor, c.nodes, "audit", "tail", "--output", "json", "--since", "24h", "--key-id", key, "--operation", "TagResource")
	lines, err := tail.StdoutPipe()
	must(c.t, err)
	tail.Stderr = tail.Stdout
	must(c.t, tail.Start())
	ended := make(chan struct{})
	var all, nodes []string
	var mu sync.Mutex
	var output strings.Builder
	go func() {
		defer close(ended)
		for scanner := bufio.NewScanner(lines); scanner.Scan(); {
			var e audit.Event
			mu.Lock()
			if json.Unmarshal(scanner.Bytes(), &e) == nil {
				all, nodes = append(all, e.RequestID), append(nodes, strings.SplitN(e.Node, ".", 2)[0])
			} else {
				output.WriteString(scanner.Text() + "\n")
			}
			mu.Unlock()
		}
	}()
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	c.eventually("what was there comes first", func() bool { return count() == 3 })
	for i, p := range []*process{c.nodes[2], c.nodes[0], c.nodes[1]} {
		tag(p, p.name)
		c.eventually("the record of "+p.name+" comes", func() bool { return count() == 4+i })
	}
	mu.Lock()
	if want := []string{"kms-1", "kms-2", "kms-3", "kms-3", "kms-1", "kms-2"}; !slices.Equal(nodes, want) {
		c.t.Errorf("followed: records of %v, want %v", nodes, want)
	}
	mu.Unlock()

	// One principal has so many streams at a node, of which kmsctl has one, and others have theirs.
	const each = 8
	open := func(ctx context.Context, id string) error {
		conn := c.connect(c.nodes[0].client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(id))))
		stream, err := pb.NewAuditServiceClient(conn).SearchRecords(ctx, &pb.SearchRecordsRequest{Follow: true})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	for range each - 1 {
		must(c.t, open(reading, acmeAuditor))
	}
	err = open(reading, acmeAuditor)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "at most 8") {
		c.t.Errorf("one stream too many: %v", err)
	}
	must(c.t, open(reading, auditorID))
	stop()
	again, end := context.WithCancel(ctx)
	defer end()
	c.eventually("their places are free again", func() bool { return open(again, acmeAuditor) == nil })

	// Who is disabled reads no further, at no node.
	must(c.t, second(admin.Tenants().DisablePrincipal(ctx, &pb.DisablePrincipalRequest{Principal: "spiffe://" + testDomain + acmeAuditor})))
	c.eventually("the follow ends", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	err = tail.Wait()
	mu.Lock()
	defer mu.Unlock()
	if err == nil || strings.Count(output.String(), "does not answer") != 3 || !strings.Contains(output.String(), "is disabled") {
		c.t.Errorf("the follow of who was disabled: %v: %s", err, output.String())
	}
}

func (x *trails) stopped(_ context.Context, c *testCluster) {
	x.awaitHeads(c)
	c.nodes[2].terminate()
	out, code := x.runAs(auditorID, c.nodes, "audit", "search", "--key-id", x.key)
	if code != 3 || !strings.Contains(out, "kms-3 does not answer") || strings.Count(out, "Encrypt") != 2 {
		c.t.Errorf("without kms-3: %d: %s", code, out)
	}
}

// offline verifies a directory with the heads alone.
func (x *trails) offline(c *testCluster, dir string, more ...string) (string, int) {
	c.t.Helper()
	return kmsd(c.t, nil, append([]string{"audit", "verify", "--dir", dir, "--heads", x.heads}, more...)...)
}

func (x *trails) attacked(_ context.Context, c *testCluster) {
	p := c.nodes[2]
	dir := filepath.Dir(p.trailFile())
	if out, code := x.offline(c, dir); code != 0 || !strings.Contains(out, "kms-3") || !strings.Contains(out, "are whole") {
		c.t.Fatalf("an untouched trail: %d: %s", code, out)
	}
	whole, err := os.ReadFile(p.trailFile())
	must(c.t, err)
	lines := bytes.SplitAfter(whole, []byte("\n"))
	lines = lines[:len(lines)-1]
	for what, row := range map[string]struct {
		lines [][]byte
		want  string
	}{
		"altered":   {slices.Concat(lines[:3], [][]byte{bytes.Replace(lines[3], []byte(`"result":"`), []byte(`"result":"X`), 1)}, lines[4:]), "ALTERED, records 4 to 5"},
		"removed":   {slices.Concat(lines[:3], lines[4:]), "REMOVED, record 4"},
		"inserted":  {slices.Concat(lines[:4], lines[3:]), "INSERTED, record 5"},
		"reordered": {slices.Concat(lines[:3], [][]byte{lines[4], lines[3]}, lines[5:]), "REORDERED, record 4"},
		"cut":       {lines[:5], "CUT_OFF, records 6 to"},
	} {
		copied := c.t.TempDir()
		must(c.t, os.CopyFS(copied, os.DirFS(dir)))
		must(c.t, os.WriteFile(filepath.Join(copied, filepath.Base(p.trailFile())), bytes.Join(row.lines, nil), 0o600))
		if out, code := x.offline(c, copied); code != exitFinding || !strings.Contains(out, row.want) {
			c.t.Errorf("%s: %d: %s, want %s", what, code, out, row.want)
		}
	}
	for what, row := range map[string]struct {
		args []string
		want string
	}{
		"another node's":      {[]string{"--node", "kms-1"}, "kms-1"},
		"a node there is not": {[]string{"--node", "kms-9"}, `knows no node "kms-9"`},
	} {
		if out, code := x.offline(c, dir, row.args...); code == 0 || !strings.Contains(out, row.want) {
			c.t.Errorf("%s: %d: %s", what, code, out)
		}
	}
	for _, row := range []struct {
		args []string
		code int
	}{
		{nil, exitConfig},
		{[]string{"--dir", dir}, exitConfig},
		{[]string{"--dir", dir, "--heads", p.trailFile()}, exitFailed},
		{[]string{"--dir", c.dir, "--heads", x.heads}, exitFailed},
	} {
		if out, code := kmsd(c.t, nil, append([]string{"audit", "verify"}, row.args...)...); code != row.code {
			c.t.Errorf("%v: %d: %s", row.args, code, out)
		}
	}
}

func (x *trails) refusesAltered(_ context.Context, c *testCluster) {
	p := c.nodes[2]
	whole, err := os.ReadFile(p.trailFile())
	must(c.t, err)
	must(c.t, os.WriteFile(p.trailFile(), bytes.Replace(whole, []byte(`"result":"SUCCESS"`), []byte(`"result":"DENIED"`), 1), 0o600))
	p.start()
	if code := p.waitExit(); code != exitAltered {
		c.t.Errorf("it ended with %d:\n%s", code, p.output())
	}
	must(c.t, os.WriteFile(p.trailFile(), whole, 0o600))
}

// keyInHand makes the whole trail anew without one record's result, signed by the node's HSM.
func (x *trails) keyInHand(ctx context.Context, c *testCluster) {
	p := c.nodes[2]
	events := c.trail(p)
	b, err := os.ReadFile(x.heads)
	must(c.t, err)
	heads, err := trail.ParseHeads(b)
	must(c.t, err)
	n, _ := heads.Find(p.name)
	c.t.Setenv("SOFTHSM2_CONF", strings.TrimPrefix(p.env[0], "SOFTHSM2_CONF="))
	partition, err := p11.Open(ctx, p11.Config{Token: cmp.Or(p.token, p.name), PIN: []byte(testPIN)})
	must(c.t, err)
	dir := filepath.Dir(p.trailFile())
	must(c.t, os.Rename(dir, dir+".was"))
	at := time.Time{}
	l, err := audit.Open(audit.Config{Dir: dir, Node: n.Node, Now: func() time.Time { return at }})
	must(c.t, err)
	for i, e := range events {
		if e.KeyID == x.key && e.Name == "Encrypt" {
			e.Name = "Decrypt"
		}
		at = e.Time
		must(c.t, l.Record(e))
		if i%20 == 0 || i == len(events)-1 {
			must(c.t, l.Checkpoint(ctx, heads.Cluster, partition))
		}
	}
	must(c.t, l.Close())
	must(c.t, partition.Close())
	alone := heads
	alone.Nodes = []trail.NodeHead{{Node: n.Node, Name: n.Name, Identity: n.Identity}}
	b, err = alone.Encode()
	must(c.t, err)
	keyOnly := filepath.Join(c.dir, "key-only.json")
	must(c.t, os.WriteFile(keyOnly, b, 0o600))
	if out, code := kmsd(c.t, nil, "audit", "verify", "--dir", dir, "--heads", keyOnly); code != 0 {
		c.t.Errorf("by the node's own signatures it must look well: %d: %s", code, out)
	}
	if out, code := x.offline(c, dir); code != exitFinding || !strings.Contains(out, "REWRITTEN") || !strings.Contains(out, "the cluster's memory") {
		c.t.Errorf("by the cluster's memory: %d: %s", code, out)
	}
}

func (x *trails) convicted(_ context.Context, c *testCluster) {
	p := c.nodes[2]
	p.start()
	c.until("the cluster records the conflict", func(s *pb.StatusResponse) bool {
		return slices.ContainsFunc(s.GetSplits(), func(text string) bool {
			return strings.Contains(text, "the audit trail of kms-3") && strings.Contains(text, "was rewritten")
		})
	}, c.nodes[0])
	c.waitVoters(3)
	out, code := x.run(c.nodes[:1], "cluster", "status")
	if code != 0 || !strings.Contains(out, "ALARM") {
		c.t.Errorf("the status: %d: %s", code, out)
	}
	var alarms []audit.Event
	c.eventually("each node records the alarm", func() bool {
		alarms = x.records(c, auditorID, "--alarm="+string(audit.TrailRewritten))
		return len(alarms) >= 3
	})
	if len(alarms) != 3 || alarms[0].Name != "AuditTrailConflict" || !strings.HasPrefix(alarms[0].Target, "kms-3") {
		c.t.Errorf("the alarms: %+v", alarms)
	}
	for _, args := range [][]string{{"audit", "verify"}, {"audit", "verify", "--quick"}} {
		if out, code := x.runAs(auditorID, c.nodes, args...); code != 4 || !strings.Contains(out, "REWRITTEN") || !strings.Contains(out, "kms-3") {
			c.t.Errorf("%v: %d: %s", args, code, out)
		}
	}
	// It is said once, however often nodes start.
	c.nodes[1].terminate()
	c.nodes[1].start()
	c.waitVoters(3)
	c.eventually("the node signs again", func() bool {
		d, err := c.dial(auditorID, c.nodes[1]).Audit().DescribeTrails(c.t.Context(), &pb.DescribeTrailsRequest{})
		return err == nil && d.GetPosition().GetSigned() > 0 && d.GetPosition().GetLast()-d.GetPosition().GetSigned() < 3
	}, c.nodes[1])
	if again := x.records(c, auditorID, "--alarm="+string(audit.TrailRewritten)); len(again) != 3 {
		c.t.Errorf("after a restart there are %d alarms: %s", len(again), fmt.Sprint(again))
	}
}
