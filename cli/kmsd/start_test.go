package main

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// edit replaces a part of the node's configuration.
func (p *process) edit(old, with string) {
	p.c.t.Helper()
	b, err := os.ReadFile(p.path("kmsd.yaml"))
	must(p.c.t, err)
	if !strings.Contains(string(b), old) {
		p.c.t.Fatalf("no %q in the configuration:\n%s", old, b)
	}
	must(p.c.t, os.WriteFile(p.path("kmsd.yaml"), []byte(strings.Replace(string(b), old, with, 1)), 0o600))
}

// write makes a file of the node, and the directories it is in.
func (p *process) write(name, text string, mode os.FileMode) {
	p.c.t.Helper()
	must(p.c.t, os.MkdirAll(filepath.Dir(p.path(name)), 0o700))
	must(p.c.t, os.WriteFile(p.path(name), []byte(text), mode))
	must(p.c.t, os.Chmod(p.path(name), mode))
}

// TestStartFailures starts a node with everything wrong that can be, one thing at a
// time: it ends at once, with the exit code of that kind and a text that says what
// to do.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.nodes[0]
	certs := c.certs()
	c.issue("/node/kms-2", "kms-2")
	expired := c.craft(certs, "expired-node", func(x *x509.Certificate) {
		x.URIs, x.NotAfter = uris("/node/kms-1"), time.Now().Add(-time.Minute)
		x.ExtKeyUsage = append(x.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	node := `{"raft_id": "kms-1.0011223344556677", "name": "kms-1", "stage": "%", "cluster": "00000000-0000-0000-0000-000000000000"}`
	for _, x := range []struct {
		what   string
		damage func()
		code   int
		texts  []string
	}{
		{"wrong PIN", func() { p.write("pin", "pin-of-another-token\n", 0o600) }, exitPIN, []string{"wrong pin", `token "kms-1"`}},
		{"PIN file that others can read", func() { must(t, os.Chmod(p.path("pin"), 0o644)) }, exitConfig, []string{"HSM PIN", "mode 0644", "chmod 0600"}},
		{"no PIN file", func() { must(t, os.Remove(p.path("pin"))) }, exitConfig, []string{"HSM PIN", "no such file"}},
		{"empty PIN file", func() { p.write("pin", "\n", 0o600) }, exitConfig, []string{"no HSM PIN"}},
		{"missing token", func() { p.edit("hsm: {token: kms-1", "hsm: {token: another") }, exitHSM, []string{`no token "another"`, `"kms-1"`}},
		{"missing module", func() { p.edit("hsm: {", "hsm: {module: /no/such/module.so, ") }, exitHSM, []string{"/no/such/module.so"}},
		{"module that is none", func() { p.edit("hsm: {", "hsm: {module: "+p.path("kmsd.yaml")+", ") }, exitHSM, []string{"not a PKCS#11 library"}},

		{"certificate of another node", func() { p.edit("kms-1.crt", "kms-2.crt"); p.edit("kms-1.key", "kms-2.key") }, exitConfig, []string{"/node/kms-2", "needs one of spiffe://quorumkms.test/node/kms-1"}},
		{"certificate of no node", func() { p.edit("kms-1.crt", "alice.crt"); p.edit("kms-1.key", "alice.key") }, exitConfig, []string{"alice.crt", "server authentication"}},
		{"expired certificate", func() { p.edit(certs+"/kms-1.crt", expired+".crt"); p.edit(certs+"/kms-1.key", expired+".key") }, exitConfig, []string{"expired-node.crt", "expired"}},
		{"missing certificate", func() { p.edit("kms-1.crt", "absent.crt") }, exitConfig, []string{"absent.crt", "no such file"}},
		{"key of another certificate", func() { p.edit("kms-1.key", "kms-2.key") }, exitConfig, []string{"kms-1.crt", "kms-2.key"}},
		{"CA file that is none", func() { p.edit(transport.DevCACert, transport.DevCAKey) }, exitConfig, []string{"CA file", "certificates only"}},
		{"another trust domain", func() { p.edit("trust_domain: "+testDomain, "trust_domain: elsewhere.test") }, exitConfig, []string{"elsewhere.test"}},

		{"configuration that is none", func() { p.write("kmsd.yaml", "name: [", 0o600) }, exitConfig, []string{"kmsd.yaml", "yaml"}},
		{"unknown field", func() { p.edit("name: kms-1", "nmae: kms-1") }, exitConfig, []string{"nmae"}},
		{"several mistakes", func() { p.edit("name: kms-1", "name: KMS"); p.edit(p.client, "nowhere") }, exitConfig, []string{`name "KMS"`, "client.listen", "host:port"}},
		{"no configuration", func() { must(t, os.Remove(p.path("kmsd.yaml"))) }, exitConfig, []string{"kmsd.yaml", "no such file"}},

		{"data directory that is a file", func() { p.write("data", "x", 0o600) }, exitConfig, []string{"data directory", "not a directory"}},
		{"data directory that cannot be written", func() { p.mount("data", "ro") }, exitConfig, []string{"data directory", "read-only"}},
		{"log directory that is a file", func() { p.write("data/raft", "x", 0o600) }, exitConfig, []string{"data directory", "raft"}},
		{"damaged node.json", func() { p.write("data/node.json", "{", 0o600) }, exitConfig, []string{"data directory", "node.json is damaged", "JSON"}},
		{"empty node.json", func() { p.write("data/node.json", "", 0o600) }, exitConfig, []string{"node.json is damaged"}},
		{"node.json without an id", func() { p.write("data/node.json", "{}", 0o600) }, exitConfig, []string{"node.json is damaged"}},
		{"node.json of an unknown stage", func() { p.write("data/node.json", strings.Replace(node, "%", "unheard-of", 1), 0o600) }, exitConfig, []string{"node.json is damaged", "unheard-of"}},
		{"data directory of another node", func() {
			p.write("data/node.json", strings.ReplaceAll(strings.Replace(node, "%", "new", 1), "kms-1", "kms-9"), 0o600)
		}, exitConfig, []string{"belongs to node kms-9, not kms-1"}},
		{"member without a log", func() { p.write("data/node.json", strings.Replace(node, "%", "member", 1), 0o600) }, exitConfig, []string{"log is missing", "join anew"}},
		{"damaged audit trail", func() { p.write("data/audit/audit.log", "no record\n", 0o600) }, exitAltered, []string{"audit trail", "behind record 0", "no record"}},
		{"audit directory that is a file", func() { p.write("data/audit", "x", 0o600) }, exitConfig, []string{"audit"}},

		{"peer port in use", func() { p.edit(p.peer, taken.Addr().String()) }, exitFailed, []string{"peer listener", "address already in use"}},
		{"client port in use", func() { p.edit(p.client, taken.Addr().String()) }, exitFailed, []string{"client listener", "address already in use"}},
	} {
		must(t, os.RemoveAll(p.path("data")))
		p.write("pin", testPIN+"\n", 0o600)
		p.configure("")
		x.damage()
		c.failsToStart(x.what, p, x.code, x.texts...)
		p.unmount("data")
	}
	// None of it did the token or the name any harm.
	must(t, os.RemoveAll(p.path("data")))
	p.configure("")
	p.start()
	c.found(p)
	out, code := kmsd(t, p.env, "run", "--config", p.path("kmsd.yaml"))
	if code != exitConfig || !strings.Contains(out, "another process uses it") {
		t.Errorf("a second process on the directory ended with %d: %s", code, out)
	}
	must(t, second(c.dial(operatorID).Cluster().Status(t.Context(), &pb.StatusRequest{})))
	c.createKey(t.Context())
	p.terminate()
	if code := p.waitExit(); code != exitOK {
		t.Errorf("asked to stop, the node ended with %d", code)
	}
}
