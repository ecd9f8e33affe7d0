package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (p *process) trailFile() string {
	return p.path(filepath.Join("data", "audit", trail.Name(0, trail.RecordsEnd)))
}

// trail is a node's audit trail, every line of it a record and nothing else, with
// a sequence without gaps.
func (c *testCluster) trail(p *process) []audit.Event {
	c.t.Helper()
	all := c.records(p, 0)
	for i, e := range all {
		if e.Sequence != uint64(i+1) {
			c.t.Fatalf("%s: line %d has the sequence %d", p.name, i+1, e.Sequence)
		}
	}
	return all
}

// countRecords counts the records of all nodes that match.
func (c *testCluster) countRecords(match func(audit.Event) bool) (n int) {
	c.t.Helper()
	for _, p := range c.nodes {
		for _, e := range c.trail(p) {
			if match(e) {
				n++
			}
		}
	}
	return n
}

// records are those of a node's audit trail from an offset on.
func (c *testCluster) records(p *process, from int64) (out []audit.Event) {
	c.t.Helper()
	f, err := os.Open(p.trailFile())
	must(c.t, err)
	defer f.Close()
	_, err = f.Seek(from, io.SeekStart)
	must(c.t, err)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		var e audit.Event
		if err := d.Decode(&e); err != nil || d.More() {
			c.t.Fatalf("%s: line %d is no record: %v: %s", p.name, len(out)+1, err, lines.Text())
		}
		out = append(out, e)
	}
	must(c.t, lines.Err())
	return out
}

// recorded makes a call at p and returns the one record it left.
func (c *testCluster) recorded(p *process, what string, call func()) audit.Event {
	c.t.Helper()
	before, err := os.Stat(p.trailFile())
	must(c.t, err)
	began := time.Now().Add(-time.Second)
	call()
	added := slices.DeleteFunc(c.records(p, before.Size()), func(e audit.Event) bool { // what the tests ask for is denied often
		return e.Class == "node" && (e.Alarm == audit.RepeatedDenials || e.Name == "RepeatedDenialsOver")
	})
	if len(added) != 1 {
		c.t.Fatalf("%s left %d records: %+v", what, len(added), added)
	}
	e := added[0]
	if e.Time.Before(began) || e.Time.After(time.Now()) || !strings.HasPrefix(e.Node, p.name+".") || e.StateIndex == 0 ||
		!strings.HasPrefix(e.Source, "127.0.0.1:") {
		c.t.Errorf("%s: time, node, state index or source: %+v", what, e)
	}
	return e
}

// testAuditCalls makes every call as one who may, as one who may not, without
// effect and without a certificate.
func testAuditCalls(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	id := func(path string) string { return "spiffe://" + testDomain + path }
	callers := map[group]string{groupUse: userID, groupRegister: userID, groupAdminister: adminID, groupDelegate: adminID, groupRead: auditorID}
	names := map[string]string{"PutPolicy": "PutKeyPolicy", "DeletePolicy": "DeleteKeyPolicy", "GetPolicy": "GetKeyPolicy"} // as policies name them
	classes := map[string]string{userID: "user", adminID: "admin", auditorID: "auditor", operatorID: "operator", serviceID: "service"}
	clients := map[string]*client.Client{}
	for path := range classes {
		clients[path] = c.dial(path, p)
	}
	for _, how := range []string{"dry run", "denied", "success"} {
		o := c.fullObject(ctx, "alias/audited-"+strings.ReplaceAll(how, " ", "-"))
		o.dry = how == "dry run"
		c.level(ctx)
		for _, x := range catalogue(o) {
			caller := callers[x.group]
			if how == "denied" {
				caller = serviceID
			}
			e := c.recorded(p, x.name, func() { _ = x.call(ctx, clients[caller]) })
			want := audit.Event{
				Time: e.Time, Sequence: e.Sequence, Node: e.Node, Source: e.Source, StateIndex: e.StateIndex,
				KeyVersion: e.KeyVersion, Previous: e.Previous, CiphertextSHA256: e.CiphertextSHA256, RequestID: e.RequestID, Reason: e.Reason,
				Name: cmp.Or(names[x.name], x.name), Principal: id(caller), Class: classes[caller], Tenant: "default", DecidedBy: "default policy",
				KeyID: o.key, Alias: e.Alias, Target: e.Target, Grant: e.Grant, DryRun: o.dry && has(x.request, "dry_run"), Result: audit.Success,
				Algorithm: e.Algorithm, DestinationKeyID: e.DestinationKeyID, DestinationVersion: e.DestinationVersion, DestinationAlias: e.DestinationAlias,
				DestinationSHA256: e.DestinationSHA256, DestinationDecidedBy: e.DestinationDecidedBy,
			}
			switch {
			case how == "denied":
				want.Result, want.KeyID, want.DecidedBy = audit.Denied, e.KeyID, e.DecidedBy // whether the key is looked at depends
			case needsOther[x.name] != nil && how == "dry run":
				want.Result = audit.Failed
			case x.name == "CreateKey":
				want.KeyID = e.KeyID
			case x.group == groupRead:
				want.DecidedBy = "auditor of all tenants"
			case slices.Contains([]string{"GenerateMac", "VerifyMac"}, x.name):
				want.KeyID, want.Algorithm = o.mac, "HMAC_SHA_256"
			case slices.Contains([]string{"Sign", "Verify"}, x.name):
				want.KeyID, want.Algorithm = o.pair, "ECDSA_SHA_256"
			case x.name == "GetPublicKey":
				want.KeyID = o.pair
			}
			if strings.HasPrefix(e.DecidedBy, "default policy: default-") { // in so many words where the key has a policy too
				want.DecidedBy = e.DecidedBy
			}
			if fmt.Sprintf("%+v", e) != fmt.Sprintf("%+v", want) {
				c.t.Errorf("%s, %s:\ngot  %+v\nwant %+v", how, x.name, e, want)
			}
			c.checkDetails(how, x, o, e)
			c.checkRecorded(how+", "+x.name, x.request, e)
		}
	}
}

// checkDetails looks at the fields that only some calls fill.
func (c *testCluster) checkDetails(how string, x named, o object, e audit.Event) {
	c.t.Helper()
	bad := func(wrong bool, what string) {
		if wrong {
			c.t.Errorf("%s, %s: %s: %+v", how, x.name, what, e)
		}
	}
	bad((e.Reason == "") != (e.Result == audit.Success), "a reason of what is no success, and no other")
	bad(e.DecidedBy == "", "what decided")
	if _, err := uuid.Parse(e.RequestID); x.mutates() && err != nil {
		bad(true, "the request id")
	}
	if how != "success" {
		return
	}
	sealed := slices.Contains([]string{"Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "Decrypt", "ReEncrypt"}, x.name)
	bad(sealed != (len(e.CiphertextSHA256) == 2*sha256.Size), "the ciphertext's hash")
	bad(sealed && e.KeyVersion == 0, "the key version")
	sum := sha256.Sum256(o.blob)
	bad(x.name == "Decrypt" && e.CiphertextSHA256 != hex.EncodeToString(sum[:]), "the ciphertext's hash")
	switch x.name {
	case "CreateAlias":
		bad(e.Target != o.alias+"-new", "the alias")
	case "UpdateAlias", "DeleteAlias":
		bad(e.Target != o.alias, "the alias")
	case "CreateGrant":
		_, err := uuid.Parse(e.Grant)
		bad(err != nil || e.Target != "spiffe://"+testDomain+userID, "the grant and its grantee")
	case "RetireGrant":
		bad(e.Grant != o.retire, "the grant")
	case "RevokeGrant":
		bad(e.Grant != o.revoke, "the grant")
	case "BindResource", "ReleaseResource":
		bad(e.Target == "", "the resource")
	case "ReEncrypt":
		bad(!strings.HasSuffix(e.Target, o.key), "the destination")
	}
}

// testAuditFailures looks at the records of calls that come to nothing.
func testAuditFailures(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	user, operator := c.dial(userID, p), c.dial(operatorID, p)
	o := c.object(ctx, "alias/failures")
	ec := map[string]string{"b": "2", "a": "1"}
	for what, x := range map[string]struct {
		call func()
		want audit.Event
	}{
		"an empty plaintext": {
			func() { _, _ = user.Encrypt(ctx, o.key, nil, nil) },
			audit.Event{Name: "Encrypt", Class: "user", Result: audit.Failed, Reason: "plaintext of 0 bytes"},
		},
		"an unknown alias": {
			func() { _, _ = user.Encrypt(ctx, "alias/unknown", []byte("x"), ec) },
			audit.Event{Name: "Encrypt", Class: "user", Tenant: "default", Result: audit.Failed, Reason: "not found", Context: ec},
		},
		"a wrong context": {
			func() { _, _ = user.Decrypt(ctx, o.blob, ec) },
			audit.Event{Name: "Decrypt", Class: "user", Tenant: "default", KeyID: o.key, Result: audit.Failed, Reason: "does not verify", Context: ec},
		},
		"no ciphertext": {
			func() { _, _ = user.Decrypt(ctx, []byte("no ciphertext"), nil) },
			audit.Event{Name: "Decrypt", Class: "user", Result: audit.Failed, Reason: "malformed ciphertext"},
		},
		"two specs": {
			func() {
				_, _ = user.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: o.key, Spec: 1, NumberOfBytes: 1})
			},
			audit.Event{Name: "GenerateDataKey", Class: "user", Result: audit.Failed, Reason: "not both"},
		},
		"a user who administers": {
			func() { _, _ = user.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: o.key}) },
			audit.Event{Name: "DisableKey", Class: "user", Tenant: "default", KeyID: o.key, Result: audit.Denied, Reason: "may not administer"},
		},
		"another tenant": {
			func() { _, _ = user.Keys().ListKeys(ctx, &pb.ListKeysRequest{Tenant: "other"}) },
			audit.Event{Name: "ListKeys", Class: "user", Tenant: "other", Result: audit.Denied, Reason: "may not ListKeys for tenant other"},
		},
		"a list": {
			func() { _, _ = user.Keys().ListKeys(ctx, &pb.ListKeysRequest{}) },
			audit.Event{Name: "ListKeys", Class: "user", Tenant: "default", Result: audit.Success},
		},
		"random bytes": {
			func() { _, _ = user.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 8}) },
			audit.Event{Name: "GenerateRandom", Class: "user", Tenant: "default", Result: audit.Success},
		},
		"status": {
			func() { _, _ = operator.Cluster().Status(ctx, &pb.StatusRequest{}) },
			audit.Event{Name: "Status", Class: "operator", Result: audit.Success},
		},
		"an invitation": {
			func() { _, _ = operator.Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-7"}) },
			audit.Event{Name: "Invite", Class: "operator", Tenant: "default", Target: "kms-7", Result: audit.Success},
		},
		"an invitation that is refused": {
			func() { _, _ = operator.Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-1"}) },
			audit.Event{Name: "Invite", Class: "operator", Tenant: "default", Target: "kms-1", Result: audit.Failed, Reason: "is a member"},
		},
		"a removal that is refused": {
			func() { _, _ = operator.Cluster().Remove(ctx, &pb.RemoveRequest{Node: "nobody"}) },
			audit.Event{Name: "Remove", Class: "operator", Tenant: "default", Target: "nobody", Result: audit.Failed, Reason: "is no member"},
		},
		"no certificate": {
			func() {
				_, _ = pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(""))).ListKeys(ctx, &pb.ListKeysRequest{})
			},
			audit.Event{Name: "ListKeys", Principal: "anonymous", Result: audit.Failed, Reason: "no client certificate"},
		},
	} {
		e := c.recorded(p, what, x.call)
		if !strings.Contains(e.Reason, x.want.Reason) || (x.want.Reason == "") != (e.Reason == "") {
			c.t.Errorf("%s: reason %q, want %q", what, e.Reason, x.want.Reason)
		}
		got := audit.Event{Name: e.Name, Principal: x.want.Principal, Class: e.Class, Tenant: e.Tenant, KeyID: e.KeyID, Target: e.Target, Result: e.Result, Reason: x.want.Reason, Context: e.Context}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", x.want) || x.want.Principal == "anonymous" && e.Principal != "anonymous" {
			c.t.Errorf("%s:\ngot  %+v\nwant %+v", what, e, x.want)
		}
	}
}

// testCanaries plants secrets in calls that succeed and calls that fail, also
// across a crash of a node that logs all it can, and looks for them wherever nodes
// write.
func testCanaries(ctx context.Context, c *testCluster) {
	_, followers := c.split()
	p := followers[0]
	p.kill()
	before := len(c.trail(p))
	p.extra = "log: {level: debug}"
	p.configure("")
	p.start()
	c.waitVoters(3)
	user, operator := c.dial(userID, p), c.dial(operatorID, p)
	if len(c.trail(p)) <= before {
		c.t.Fatal("nothing was recorded after the crash")
	}
	o := c.object(ctx, "alias/canary")
	secrets := map[string][]byte{"user PIN": []byte(testPIN), "SO PIN": []byte(testSOPIN)}
	plant := func(what string) []byte {
		secrets[what] = []byte("canary of " + what + " " + uuid.NewString())
		return secrets[what]
	}
	blob, err := user.Encrypt(ctx, o.key, plant("Encrypt"), nil)
	must(c.t, err)
	must(c.t, second(user.Decrypt(ctx, blob, nil)))
	must(c.t, second(user.ReEncrypt(ctx, blob, nil, o.alias)))
	_, _ = user.Decrypt(ctx, blob, map[string]string{"wrong": "context"})
	_, _ = user.Encrypt(ctx, "alias/absent", plant("Encrypt without a key"), nil)
	_, _ = user.Encrypt(ctx, o.key, append(plant("Encrypt of too much"), make([]byte, 4096)...), nil)
	_, _ = user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: plant("a dry run"), DryRun: true})
	_, _ = user.Decrypt(ctx, plant("Decrypt of no ciphertext"), nil)
	_, _ = c.dial(operatorID, p).Encrypt(ctx, o.key, plant("Encrypt that is denied"), nil)
	secrets["data key"], _, err = user.GenerateDataKey(ctx, o.key, nil)
	must(c.t, err)
	random, err := user.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 32})
	must(c.t, err)
	secrets["random bytes"] = random.GetPlaintext()
	invited, err := operator.Cluster().Invite(ctx, &pb.InviteRequest{NodeName: "kms-8"})
	must(c.t, err)
	tokens := []string{invited.GetJoinToken()}
	for _, n := range c.nodes[1:] {
		b, err := os.ReadFile(n.path("join-token"))
		must(c.t, err)
		tokens = append(tokens, string(b))
	}
	for i, text := range tokens {
		token, err := cluster.ParseJoinToken(text)
		must(c.t, err)
		secrets[fmt.Sprint("join token ", i)] = []byte(text)
		secrets[fmt.Sprint("ticket ", i)] = token.Ticket.Seed()
	}
	p.terminate() // everything it had to write is written
	p.start()
	c.waitVoters(3)
	c.search(secrets)
	for _, p := range c.nodes {
		c.trail(p)
	}
}

// search looks for secrets in every file of the nodes but those that are made to
// hold them, and in what the nodes have logged.
func (c *testCluster) search(secrets map[string][]byte) {
	c.t.Helper()
	forms := map[string][]byte{}
	for what, secret := range secrets {
		forms[what] = secret
		forms[what+" in hex"] = []byte(hex.EncodeToString(secret))
		forms[what+" in upper-case hex"] = bytes.ToUpper(forms[what+" in hex"])
		for shift := range 3 { // at each place that base64 can begin
			text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), secret...))
			text = text[(shift*8+5)/6 : len(text)-2]
			forms[fmt.Sprint(what, " in base64, shifted by ", shift)] = []byte(text)
			forms[fmt.Sprint(what, " in URL base64, shifted by ", shift)] = []byte(strings.NewReplacer("+", "-", "/", "_").Replace(text))
		}
	}
	files, size := 0, 0
	look := func(where string, content []byte) {
		files, size = files+1, size+len(content)
		for what, form := range forms {
			if bytes.Contains(content, form) {
				c.t.Errorf("%s is in %s", what, where)
			}
		}
	}
	for _, p := range c.nodes {
		look("the log of "+p.name, []byte(p.history()))
		must(c.t, filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || slices.Contains([]string{"pin", "so-pin", "join-token"}, d.Name()) {
				return err
			}
			content, err := os.ReadFile(path)
			look(path, content)
			return err
		}))
	}
	if files < 30 || size < 1<<17 {
		c.t.Errorf("only %d files with %d bytes were searched", files, size)
	}
}
