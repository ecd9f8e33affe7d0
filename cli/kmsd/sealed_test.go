package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestSealedTrail: a node seals a whole segment of its trail with a key that it holds a grant of;
// auditors read and verify it through the node, and its files without one, until the key is
// disabled.
func TestSealedTrail(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.nodes[0]
	p.extra = "audit: {seal: alias/audit}"
	c.begin()
	ctx, x := t.Context(), &trails{kmsctl: c.buildKmsctl(), heads: filepath.Join(c.dir, "heads.json")}
	admin := c.dial(adminID)
	made, err := admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(t, err)
	key, self := made.GetKey().GetKeyId(), "spiffe://"+testDomain+"/node/"+p.name
	_, err = admin.Keys().CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: "alias/audit", KeyId: key})
	must(t, err)
	grant, err := admin.Grants().CreateGrant(ctx, &pb.CreateGrantRequest{
		KeyId: key, GranteePrincipal: self, Operations: []string{"GenerateDataKey", "Decrypt"},
		Constraints: &pb.GrantConstraints{EncryptionContextSubset: []*pb.ContextPair{{Key: "purpose", Value: trail.SealPurpose}}},
	})
	must(t, err)
	first := c.trail(p)

	// As many records as a segment has, written while the node is away.
	p.terminate()
	dir := filepath.Dir(p.trailFile())
	l, err := audit.Open(audit.Config{Dir: dir, Node: first[len(first)-1].Node, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	for range trail.SegmentRecords {
		must(t, l.Record(audit.Event{Name: "Encrypt", Principal: "spiffe://" + testDomain + userID, Class: "user", Tenant: "default", KeyID: "many", Result: audit.Success}))
	}
	must(t, l.Close())
	p.start()
	c.waitVoters(1)
	sealed, plain := filepath.Join(dir, trail.Name(0, trail.SealedEnd)), filepath.Join(dir, trail.Name(0, trail.CompressedEnd))
	c.eventually("the segment is sealed", func() bool {
		_, err := os.Stat(plain)
		_, err2 := os.Stat(sealed)
		return os.IsNotExist(err) && err2 == nil
	}, p)
	made2 := x.records(c, auditorID, "--principal", self, "--key-id", key)
	if len(made2) < 2 || made2[0].Name != "GenerateDataKey" || made2[1].Name != "Decrypt" {
		t.Fatalf("recorded: %+v", made2)
	}
	if e := made2[0]; e.Class != "node" || e.DecidedBy != "grant "+grant.GetGrantId() || e.Context["segment"] != "0" || e.Context["node"] != e.Node || e.Result != audit.Success {
		t.Errorf("recorded: %+v", e)
	}

	// Through the node it reads as before.
	if got := x.records(c, auditorID, "--operation", "CreateKey"); len(got) != 1 || got[0].KeyID != key {
		t.Errorf("searched: %+v", got)
	}
	if out, code := x.runAs(auditorID, c.nodes, "audit", "verify"); code != 0 || strings.Contains(out, "sealed") || !strings.Contains(out, "records 1 to ") {
		t.Errorf("verified online: %d: %s", code, out)
	}
	export := filepath.Join(c.dir, "export.jsonl")
	if out, code := x.runAs(auditorID, c.nodes, "audit", "export", "--out", export, "--proofs", "--operation", "CreateKey"); code != 0 {
		t.Errorf("exported: %d: %s", code, out)
	}
	if out, code := x.runAs(auditorID, c.nodes, "audit", "heads", "--out", x.heads); code != 0 {
		t.Fatalf("heads: %s", out)
	}
	if out, code := x.run(nil, "audit", "verify", "--export", export, "--heads", x.heads); code != 0 {
		t.Errorf("the export: %d: %s", code, out)
	}

	// Its files prove its hash; opened by who may, they are read.
	copied, opened := filepath.Join(c.dir, "copied"), filepath.Join(c.dir, "opened")
	must(t, os.CopyFS(copied, os.DirFS(dir)))
	if out, code := x.offline(c, copied); code != 0 || !strings.Contains(out, "records 1 to 65536 are sealed and WERE NOT READ") {
		t.Errorf("its files: %d: %s", code, out)
	}
	if out, code := x.runAs(auditorID, c.nodes, "audit", "open", copied, "--to", opened); code == 0 || !strings.Contains(out, "DENIED") {
		t.Errorf("opened by who may not: %d: %s", code, out)
	}
	if out, code := x.runAs(userID, c.nodes, "audit", "open", copied, "--to", opened); code != 0 || !strings.Contains(out, "1 of them were sealed") {
		t.Fatalf("opened: %d: %s", code, out)
	}
	if out, code := x.offline(c, opened); code != 0 || strings.Contains(out, "sealed") {
		t.Errorf("opened, its files: %d: %s", code, out)
	}
	b, err := os.ReadFile(filepath.Join(copied, filepath.Base(sealed)))
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(filepath.Join(copied, filepath.Base(sealed)), b, 0o600))
	if out, code := x.runAs(userID, c.nodes, "audit", "open", copied, "--to", filepath.Join(c.dir, "altered")); code != 4 || !strings.Contains(out, "segment 0 was altered") {
		t.Errorf("opened, altered: %d: %s", code, out)
	}

	// Without the key what is sealed is closed, and the node and its other records are not.
	_, err = admin.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})
	must(t, err)
	out, code := x.runAs(auditorID, c.nodes, "audit", "search", "--operation", "CreateKey")
	for _, want := range []string{"the records 1 to 65536, segment 0: sealed audit records cannot be read", key, "disabled"} {
		if code == 0 || !strings.Contains(out, want) {
			t.Errorf("searched with the key disabled: %d: %s, want %q", code, out, want)
		}
	}
	const anna = "/tenant/default/auditor/anna"
	c.issue(anna, "anna")
	if out, code := x.runAs(anna, c.nodes, "audit", "search", "--operation", "CreateKey"); code == 0 || !strings.Contains(out, "ask an auditor of all tenants") || strings.Contains(out, key) {
		t.Errorf("a tenant's auditor: %d: %s", code, out)
	}
	if out, code := x.runAs(auditorID, c.nodes, "audit", "verify"); code != 0 || !strings.Contains(out, "records 1 to 65536 are sealed") {
		t.Errorf("verified with the key disabled: %d: %s", code, out)
	}
	p.terminate()
	p.start()
	c.waitVoters(1)
	_, err = admin.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})
	must(t, err)
	if got := x.records(c, auditorID, "--operation", "CreateKey"); len(got) != 1 {
		t.Errorf("searched with the key enabled again: %+v", got)
	}
}
