package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const unitFile = "../../scripts/systemd/kmsd.service"

// unit is what the settings of the systemd unit say, each with all its values.
func unit(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(unitFile)
	must(t, err)
	out := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.ContainsAny(line[:1], "#[") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("line %q", line)
		}
		out[name] = append(out[name], value)
	}
	return out
}

// TestUnit: the systemd unit restarts the node unless its exit code forbids it, takes the
// secrets from credentials, and gives it no more than it needs.
func TestUnit(t *testing.T) {
	settings := unit(t)
	var final []string
	for _, x := range exits() {
		if x.final {
			final = append(final, strconv.Itoa(x.code))
		}
	}
	for name, want := range map[string][]string{
		"Type":                     {"notify"},
		"Restart":                  {"on-failure"},
		"RestartPreventExitStatus": {strings.Join(final, " ")},
		"LimitCORE":                {"0"},
		"LimitMEMLOCK":             {"infinity"},
		"NoNewPrivileges":          {"yes"},
		"ProtectSystem":            {"strict"},
		"StateDirectory":           {"quorumkms"},
		"LoadCredential":           {"pin:/etc/quorumkms/pin", "join-token:quorumkms.join-token"},
		"CapabilityBoundingSet":    {""},
	} {
		if !slices.Equal(settings[name], want) {
			t.Errorf("%s is %q, want %q", name, settings[name], want)
		}
	}
	if !slices.Equal(final, []string{"3", "5", "7", "8"}) {
		t.Errorf("no restart after %v: SECURITY.md and README.md say 3, 5, 7 and 8", final)
	}
	for _, name := range []string{"LimitNOFILE", "WatchdogSec", "ExecReload", "TimeoutStopSec"} {
		if len(settings[name]) != 1 || settings[name][0] == "" {
			t.Errorf("%s is %q", name, settings[name])
		}
	}
	if line := settings["ExecStart"]; len(line) != 1 || !strings.HasSuffix(line[0], "/kmsd run --config /etc/quorumkms/kmsd.yaml") {
		t.Errorf("ExecStart is %q", line)
	}
}

// TestExitCodesAreTold: help and README tell of every exit code what it means here.
func TestExitCodesAreTold(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	must(t, err)
	help, code := kmsd(t, nil, "help", "exit-codes")
	if code != 0 {
		t.Fatalf("kmsd help exit-codes: %d", code)
	}
	for i, x := range exits() {
		if x.code != i {
			t.Errorf("code %d is at place %d", x.code, i)
		}
		restart := "yes"
		if x.final {
			restart = "no"
		}
		if x.code == exitOK {
			restart = "–"
		}
		row := fmt.Sprintf("| %d | %s | %s | %s |\n", x.code, x.meaning, restart, x.do)
		if !strings.Contains(string(readme), row) {
			t.Errorf("README.md has no row %s", row)
		}
		if !strings.Contains(help, x.meaning) || !strings.Contains(help, x.do) {
			t.Errorf("the help says nothing of %d, %s", x.code, x.meaning)
		}
	}
}

// TestCommandsAreWhole: each command says what it does and how it is called.
func TestCommandsAreWhole(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || c.Runnable() && c.Example == "" {
			t.Errorf("%s: no short text or no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(line+" ", "kmsd "+strings.TrimPrefix(c.CommandPath(), "kmsd ")+" ") && !strings.Contains(strings.TrimSpace(line)+" ", c.CommandPath()+" ") && !strings.HasPrefix(line, "     ") {
				t.Errorf("%s: the example %q is of another command", c.CommandPath(), line)
			}
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(root())
}

// TestWrongPINOnce: the process ends with the code of a wrong PIN, and has logged in once: a
// token that counts down to its lock has lost one try.
func TestWrongPINOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.shimmed()[0].process
	logins := p.path("logins")
	p.env = append(p.env, "KMSD_TEST_LOGINS="+logins)
	p.write("pin", "pin-of-another-token\n", 0o600)
	p.configure("")
	c.failsToStart("wrong PIN", p, exitPIN, "wrong pin")
	if b, err := os.ReadFile(logins); err != nil || len(b) != 1 {
		t.Errorf("it has logged in %d times, %v; want once", len(b), err)
	}
}

// systemd is a supervisor's socket, and what it was told.
type systemd struct {
	mu   sync.Mutex
	told []string
}

func listenAsSystemd(t *testing.T, p *process, watchdog string) *systemd {
	t.Helper()
	dir, err := os.MkdirTemp("", "kmsd") // the path of a socket must be short
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	p.env = append(p.env, "NOTIFY_SOCKET="+socket.LocalAddr().String(), "WATCHDOG_USEC="+watchdog)
	s := &systemd{}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.told = append(s.told, strings.Split(string(b[:n]), "\n")...)
			s.mu.Unlock()
		}
	}()
	return s
}

// heard tells how often a line was told that begins so.
func (s *systemd) heard(line string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, told := range s.told {
		if strings.HasPrefix(told, line) {
			n++
		}
	}
	return n
}

func (s *systemd) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = nil
}

// TestSupervised: systemd is told when a node serves, not before; that it lives; and that it
// stops.
func TestSupervised(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	s := listenAsSystemd(t, a, "2000000")
	a.configure("")
	a.start()
	c.eventually("a node without a cluster is ready, and says what it waits for", func() bool {
		return s.heard("READY=1") == 1 && s.heard("STATUS=belongs to no cluster yet") == 1
	}, a)
	c.found(a)
	c.join(b)
	c.waitVoters(2)
	c.eventually("it says that it leads", func() bool { return s.heard("STATUS=serves, and leads the cluster") > 0 }, a)
	c.eventually("it gives signs of life", func() bool { return s.heard("WATCHDOG=1") > 3 }, a)
	if s.heard("STOPPING=1") != 0 {
		t.Error("it said that it stops")
	}
	// A member alone does not serve: it is not ready, and its start is extended.
	a.terminate()
	if s.heard("STOPPING=1") != 1 || s.heard("READY=1") != 1 {
		t.Errorf("told: %q", s.told)
	}
	b.kill()
	s.forget()
	a.start()
	c.eventually("the start is extended", func() bool {
		return s.heard("EXTEND_TIMEOUT_USEC=") > 2 && s.heard("WATCHDOG=1") > 2 && s.heard("STATUS=does not serve: ") > 0
	}, a)
	if s.heard("READY=1") != 0 {
		t.Errorf("a node that does not serve is ready: %q", s.told)
	}
	b.start()
	c.eventually("it is ready when it serves", func() bool { return s.heard("READY=1") == 1 }, a)
	if m, err := c.status(a); err != nil || !m.GetServing() {
		t.Errorf("ready, and serving: %v, %v", m.GetServing(), err)
	}
}

// TestHangup: at SIGHUP quotas, the backups' schedule and the log's level are those of the
// file; the log says what needs a restart; a file that is wrong changes nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.nodes[0]
	must(t, os.Mkdir(p.path("backups"), 0o700))
	p.extra = "backup: {dir: " + p.path("backups") + ", every: 700h}\nlog: {level: warn}\n"
	p.configure("")
	p.start()
	c.found(p)
	c.waitVoters(1)
	hangup := func(until string) {
		t.Helper()
		before := strings.Count(p.output(), until)
		must(t, p.cmd.Process.Signal(syscall.SIGHUP))
		c.eventually("it says: "+until, func() bool { return strings.Count(p.output(), until) > before }, p)
	}
	if strings.Contains(p.output(), "level=INFO") {
		t.Errorf("at level warn it says:\n%s", p.output())
	}
	p.edit("log: {level: warn}", "log: {level: info}")
	hangup("certificates and the configuration were read again")
	if strings.Contains(p.output(), "before a restart") {
		t.Errorf("nothing else has changed:\n%s", p.output())
	}
	ctx := t.Context()
	key := c.createKey(ctx, p)
	written := func() (files []string) {
		files, err := filepath.Glob(p.path("backups") + "/*.qkb")
		must(t, err)
		return files
	}
	c.eventually("the first backup is written", func() bool { return len(written()) == 1 }, p)

	p.edit("every: 700h", "every: 1s, keep: 2")
	p.edit("control_per_tenant: 0", "control_per_tenant: 1")
	p.edit("lease: {renew: "+testRenew+"}", "lease: {renew: 400ms}")
	p.edit("raft: {", "raft: {trailing_logs: 777, ")
	hangup("certificates and the configuration were read again")
	for _, line := range []string{
		`msg="changed in the configuration, and in effect" node=kms-1 keys="[limits.control_per_tenant backup.every backup.keep]"`,
		`msg="changed in the configuration, and not in effect before a restart" node=kms-1 keys="[raft.trailing_logs lease.renew]"`,
	} {
		if !strings.Contains(p.output(), line) {
			t.Errorf("it does not say %s:\n%s", line, p.output())
		}
	}
	keys := c.connectSDK(adminID, c.nodes, func(*client.Config) {}).Keys()
	c.eventually("the new quota refuses a call", func() bool {
		_, err := pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), "alice")))).DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
		return err != nil && errors.Is(fromStatus(err), client.ErrRateLimited)
	}, p)
	for i := 0; len(written()) < 2; i++ { // without a change no backup is written
		must(t, second(keys.UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: key, Description: strconv.Itoa(i)})))
	}

	// Twice the same is told once; a wrong file changes nothing.
	told := strings.Count(p.output(), "and in effect")
	hangup("certificates and the configuration were read again")
	if strings.Count(p.output(), "and in effect") != told {
		t.Errorf("the same is told again:\n%s", p.output())
	}
	p.edit("log: {level: info}", "log: {level: loud}\nlogg: 1")
	hangup("not everything was read again")
	for _, text := range []string{`log.level \"loud\"`, "unknown field logg: did you mean log?"} {
		if !strings.Contains(p.output(), text) {
			t.Errorf("it does not say %s:\n%s", text, p.output())
		}
	}
	if s, err := c.status(p); err != nil || !s.GetServing() || s.GetBackup().GetEvery().AsDuration().Seconds() != 1 {
		t.Errorf("after a wrong file: %v, %v", s.GetBackup(), err)
	}
}

// TestVerdict: a dead node, then a dead majority, and what kmsctl says to whom is called at
// three in the morning.
func TestVerdict(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		must(t, os.Mkdir(p.path("backups"), 0o700))
		p.extra = "backup: {dir: " + p.path("backups") + "}\n"
	}
	c.begin()
	ctl := c.buildKmsctl()
	for _, s := range []struct {
		name string
		f    func(ctx context.Context, c *testCluster, ctl kmsctl)
	}{{"Well", testVerdictWell}, {"OneDead", testVerdictOneDead}, {"MajorityDead", testVerdictDown}} {
		if !c.run(s.name, func(ctx context.Context, c *testCluster) { s.f(ctx, c, kmsctl{c, ctl.path}) }) {
			break
		}
	}
}

func testVerdictWell(_ context.Context, c *testCluster, ctl kmsctl) {
	c.eventually("nothing is wrong but that there are no recovery recipients", func() bool {
		out, code := ctl.run(c.nodes, "cluster", "status", "--check")
		return code == 1 && strings.HasPrefix(out, "DEGRADED: 1 problem\n  1. the domain key has no recovery recipient") && strings.Contains(out, "do: kmsctl recovery recipients add")
	}, c.nodes...)
	out, code := ctl.run(c.nodes, "doctor")
	for _, line := range []string{"own certificate", "own clock", "quorum", "clock", "disk", "audit", "certificate", "backup", "release"} {
		if code != 1 || !strings.Contains(out, "\n"+line+" ") {
			c.t.Errorf("doctor: %d, no %s:\n%s", code, line, out)
		}
	}
	for _, word := range []string{"FAULT", "OUTAGE"} {
		if strings.Contains(out, word) {
			c.t.Errorf("doctor:\n%s", out)
		}
	}
}

func testVerdictOneDead(_ context.Context, c *testCluster, ctl kmsctl) {
	dead, others := c.nodes[2], c.nodes[:2]
	dead.kill()
	c.eventually("the others have a leader", func() bool {
		s, err := c.status(others[0])
		return err == nil && s.GetServing() && s.GetLeaderId() != "" && !strings.HasPrefix(s.GetLeaderId(), dead.name)
	}, others...)
	out, code := ctl.run(others, "cluster", "status", "--check")
	for _, text := range []string{
		"DEGRADED: 3 problems, the worst first\n", "3 voters, 2 answer: 0 more may fail", "do: bring kms-3 back: systemctl start kmsd",
		"kms-3: it does not answer at " + dead.client, "do: on kms-3: systemctl status kmsd", "kmsctl cluster remove kms-3",
	} {
		if code != 1 || !strings.Contains(out, text) {
			c.t.Errorf("%d, without %q:\n%s", code, text, out)
		}
	}
	if out := ctl.must(others, "cluster", "status", "--output", "json"); !strings.Contains(out, `"verdict": "DEGRADED"`) || !strings.Contains(out, `"node": "kms-3"`) || !strings.Contains(out, `"cluster_id"`) {
		c.t.Errorf("as JSON:\n%s", out)
	}
}

func testVerdictDown(_ context.Context, c *testCluster, ctl kmsctl) {
	c.nodes[1].kill()
	alone := c.nodes[:1]
	c.eventually("it is down", func() bool {
		out, code := ctl.run(alone, "cluster", "status", "--check")
		return code == 2 && strings.HasPrefix(out, "DOWN: ") && strings.Contains(out, "there is no leader") && strings.Contains(out, "do: start kmsd on kms-2, kms-3: systemctl start kmsd") &&
			strings.Contains(out, "no node that answers serves cryptography")
	}, alone...)
	if _, code := ctl.run(alone, "doctor"); code != 2 {
		c.t.Errorf("doctor ends with %d", code)
	}
	c.nodes[0].kill()
	if out, code := ctl.run(alone, "cluster", "status", "--check", "--timeout", "500ms"); code != 2 || !strings.Contains(out, "no node answers") {
		c.t.Errorf("nobody answers: %d\n%s", code, out)
	}
	for _, p := range c.nodes {
		p.start()
	}
	c.waitVoters(3)
}

// TestConfigCheck: everything that is wrong with a file is told at once, with its line.
func TestConfigCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kmsd.yaml")
	must(t, os.WriteFile(path, []byte("name: KMS\ntrust_domain: x\ndata_dir: /d\npeer: {listen: \"127.0.0.1:1\"}\nclient: {listen: nowhere}\ntls: {cert: a, key: b, ca: c}\nhsm:\n  tokn: kms\n  token: kms\nraft:\n  heartbeat: fast\n"), 0o600))
	out, code := kmsd(t, nil, "config", "check", "--config", path)
	for _, line := range []string{
		path + `:1: name "KMS": must be`, path + `:5: client.listen "nowhere"`, path + ":8: unknown field hsm.tokn: did you mean hsm.token?", path + `:11: yaml: "fast" is no duration`, "5 problems in " + path,
	} {
		if code != exitConfig || !strings.Contains(out, line) {
			t.Errorf("%d, without %q:\n%s", code, line, out)
		}
	}
	_, err := node.LoadConfig(path)
	if _, ok := errors.AsType[*node.ConfigError](err); !ok {
		t.Errorf("%v is no ConfigError", err)
	}
}

// TestDoctor: on a node's own host each thing that keeps it from starting is found, without a
// try of the PIN, and without leaving anything.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.shimmed()[0].process
	logins := p.path("logins")
	p.env = append(p.env, "KMSD_TEST_LOGINS="+logins)
	doctor := func(args ...string) (string, int) {
		t.Helper()
		return kmsd(t, p.env, append([]string{"doctor", "--config", p.path("kmsd.yaml")}, args...)...)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	p.configure("")
	if out, code := doctor(); code != exitOK || strings.Contains(out, "WRONG") || exists(p.path("data")) {
		t.Errorf("of a new node: %d\n%s", code, out)
	}
	for _, x := range []struct {
		what   string
		damage func()
		text   string
	}{
		{"configuration", func() { p.edit("limits:", "limitss:") }, ": unknown field limitss: did you mean limits?"},
		{"PIN file", func() { must(t, os.Chmod(p.path("pin"), 0o644)) }, "do: chmod 0600 " + p.path("pin")},
		{"token", func() { p.edit("hsm: {token: kms-1", "hsm: {token: another") }, `no token "another"`},
		{"certificate", func() { p.edit("kms-1.crt", "alice.crt"); p.edit("kms-1.key", "alice.key") }, "have a certificate issued for spiffe://quorumkms.test/node/kms-1"},
		{"port", func() { p.edit(p.client, taken.Addr().String()) }, "address already in use"},
		{"data directory", func() { p.write("data/node.json", "{", 0o600) }, "node.json is damaged"},
		{"evidence", func() { p.write("data/diverged.txt", "then and there", 0o600) }, "then and there"},
		{"an audit sink", func() {
			p.edit("limits:", "audit: {sinks: [{type: file, path: /no/such/place/audit.log}]}\nlimits:")
		}, "audit sink file"},
		{"an audit sink's token", func() {
			p.write("bearer", "t", 0o644)
			p.edit("limits:", "audit: {sinks: [{type: webhook, url: \"https://logs.example/x\", token_file: "+p.path("bearer")+"}]}\nlimits:")
		}, "do: chmod 0600 " + p.path("bearer")},
		{"backups", func() { p.edit("limits:", "backup: {dir: /no/such/place}\nlimits:") }, "/no/such/place is no directory"},
	} {
		p.write("pin", testPIN+"\n", 0o600)
		p.configure("")
		x.damage()
		out, code := doctor()
		if code != exitFailed || !strings.Contains(out, x.text) || !strings.Contains(out, "do: ") || strings.Count(out, "WRONG") != 1 {
			t.Errorf("%s: %d, want %q:\n%s", x.what, code, x.text, out)
		}
		must(t, os.RemoveAll(p.path("data")))
	}
	if exists(logins) {
		t.Error("the doctor has tried the PIN")
	}
	p.configure("")
	if out, code := doctor("--pin", "--output", "json"); code != exitOK || !strings.Contains(out, "passes its self-test") || !strings.Contains(out, `"checks": [`) {
		t.Errorf("with the PIN: %d\n%s", code, out)
	}
	p.start()
	c.found(p)
	if out, code := doctor(); code != exitOK || !strings.Contains(out, "is in use: the node runs") {
		t.Errorf("while the node runs: %d\n%s", code, out)
	}
	p.terminate()
	if out, code := doctor(); code != exitOK || !strings.Contains(out, "(sealed member)") {
		t.Errorf("of a member that is down: %d\n%s", code, out)
	}
}
