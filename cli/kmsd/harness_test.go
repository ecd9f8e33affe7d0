package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// The tests of this package run real nodes: processes of their own, each with a
// SoftHSM2 token in a directory of its own, over TLS on loopback. The test binary
// is kmsd when asMain is set in its environment.
const asMain = "KMSD_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main() // exits
	}
	os.Exit(m.Run())
}

const (
	testDomain = "quorumkms.test"
	operatorID = "/operator/olga"
	adminID    = "/tenant/default/admin/alice"
	userID     = "/tenant/default/user/storage-1"
	auditorID  = "/auditor/axel"
	serviceID  = "/service/obs"
	testPIN    = "pin-5d1f0c77e2"
	testSOPIN  = "so-pin-81b6a94c3e"
	testTiming = "heartbeat: 500ms, election: 500ms"
	testRenew  = "500ms"
	testLimits = "control_per_tenant: 0, restrict_per_tenant: 0, restrict_per_principal: 0, refused_per_principal: 0" // tests ask faster than people
	patience   = 90 * time.Second                                                                                     // for conditions on a slow machine; a passing test waits far less
)

// kmsd runs the program to its end.
func kmsd(t *testing.T, env []string, args ...string) (output string, code int) {
	t.Helper()
	return kmsdWithin(t, patience, env, args...)
}

// kmsdWithin is kmsd with another limit.
func kmsdWithin(t *testing.T, limit time.Duration, env []string, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(append(os.Environ(), asMain+"=1"), env...)
	out, err := c.CombinedOutput()
	if err != nil && c.ProcessState == nil {
		t.Fatalf("kmsd %s: %v", strings.Join(args, " "), err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// testCluster is a set of nodes on this machine.
type testCluster struct {
	t     *testing.T
	dir   string
	ca    *transport.DevCA
	nodes []*process
	lease time.Duration // of the cluster, if not testLease
}

// process is one node: its directory, and the process while it runs.
type process struct {
	c            *testCluster
	name         string
	program      string // the binary; empty: this one
	dir          string
	client, peer string
	limits       string // of its configuration, if not testLimits
	timing       string // of its configuration's raft line, if not testTiming
	raft         string // more of that line, beginning with a comma
	renew        string // how often it renews its lease, if not testRenew
	token        string // label of its token, if not its name
	hsm          string // more of its hsm line
	extra        string // further lines of its configuration
	env          []string
	userTrusts   bool     // its token has no Security Officer
	within       []string // a command that runs the node's, such as nsenter

	mu     sync.Mutex
	cmd    *exec.Cmd
	log    bytes.Buffer
	begun  int // where the log of the present run begins
	exited chan struct{}
}

// newCluster prepares nodes (certificates, tokens, configurations) and starts
// nothing.
func newCluster(t *testing.T, nodes int) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir()}
	certs := c.certs()
	must(t, transport.NewDevCA(certs, testDomain))
	var err error
	c.ca, err = transport.LoadDevCA(certs)
	must(t, err)
	for _, id := range []string{operatorID, adminID, userID, auditorID, serviceID} {
		c.issue(id, filepath.Base(id))
	}
	for i := range nodes {
		c.addNode(fmt.Sprintf("kms-%d", i+1))
	}
	return c
}

func (c *testCluster) certs() string { return filepath.Join(c.dir, "certs") }

func (c *testCluster) issue(path, file string) transport.Files {
	c.t.Helper()
	id, err := transport.ParseIdentity("spiffe://" + testDomain + path)
	must(c.t, err)
	files := transport.Files{
		Cert: filepath.Join(c.certs(), file+".crt"), Key: filepath.Join(c.certs(), file+".key"),
		CA: filepath.Join(c.certs(), transport.DevCACert),
	}
	must(c.t, c.ca.IssueFiles(transport.Files{Cert: files.Cert, Key: files.Key}, id, []string{"127.0.0.1"}, 24*time.Hour))
	return files
}

func (c *testCluster) addNode(name string) *process {
	c.t.Helper()
	p := c.prepareNode(name)
	c.nodes = append(c.nodes, p)
	return p
}

// prepareNode makes a node's certificate and directory; it lives as long as c.t.
func (c *testCluster) prepareNode(name string) *process {
	c.t.Helper()
	c.issue("/node/"+name, name)
	return c.prepare(name, name)
}

// prepare makes a directory with a token for a node that has its certificate.
func (c *testCluster) prepare(name, dir string) *process {
	c.t.Helper()
	p := &process{c: c, name: name, dir: filepath.Join(c.dir, dir), client: freeAddress(c.t), peer: freeAddress(c.t)}
	must(c.t, os.MkdirAll(filepath.Join(p.dir, "tokens"), 0o700))
	must(c.t, os.WriteFile(p.path("softhsm2.conf"), fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", p.path("tokens")), 0o600))
	must(c.t, os.WriteFile(p.path("pin"), []byte(testPIN+"\n"), 0o600))
	must(c.t, os.WriteFile(p.path("so-pin"), []byte(testSOPIN+"\n"), 0o600))
	p.env = []string{"SOFTHSM2_CONF=" + p.path("softhsm2.conf")}
	if out, code := kmsd(c.t, p.env, "hsm", "init-token", "--token", name, "--pin-file", p.path("pin"), "--so-pin-file", p.path("so-pin")); code != 0 {
		c.t.Fatalf("making the token of %s (is SoftHSM2 installed? scripts/softhsm.sh): %s", name, out)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the last of %s:\n%s", p.name, tail(p.history(), 40))
		}
		p.kill()
		for _, word := range []string{"DATA RACE", "panic"} {
			if strings.Contains(p.history(), word) {
				p.c.t.Errorf("%s: %s:\n%s", p.name, word, p.history())
			}
		}
	})
	return p
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// configure writes the node's configuration; join is a join token or empty.
func (p *process) configure(join string) {
	p.c.t.Helper()
	var seeds []string
	for _, o := range p.c.nodes {
		if o != p && o.cmd != nil { // it has run
			seeds = append(seeds, o.peer)
		}
	}
	certs := p.c.certs()
	token := ""
	if join != "" {
		must(p.c.t, os.WriteFile(p.path("join-token"), []byte(join), 0o600))
		token = p.path("join-token")
	}
	text := fmt.Sprintf(`name: %s
trust_domain: %s
data_dir: %s
peer: {listen: %q}
client: {listen: %q}
tls: {cert: %s, key: %s, ca: %s}
join: {addresses: [%s], token_file: %q}
hsm: {token: %s, pin_file: %s%s}
raft: {%s%s}
lease: {renew: %s}
limits: {%s}
%s
`, p.name, testDomain, p.path("data"), p.peer, p.client,
		filepath.Join(certs, p.name+".crt"), filepath.Join(certs, p.name+".key"), filepath.Join(certs, transport.DevCACert),
		strings.Join(seeds, ", "), token, cmp.Or(p.token, p.name), p.path("pin"), p.hsm, cmp.Or(p.timing, testTiming), p.raft, cmp.Or(p.renew, testRenew), cmp.Or(p.limits, testLimits), p.extra)
	must(p.c.t, os.WriteFile(p.path("kmsd.yaml"), []byte(text), 0o600))
}

// start runs the node.
func (p *process) start() {
	p.c.t.Helper()
	args := slices.Concat(p.within, []string{cmp.Or(p.program, os.Args[0]), "run", "--config", p.path("kmsd.yaml")})
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), asMain+"=1"), p.env...)
	out, err := cmd.StderrPipe()
	must(p.c.t, err)
	must(p.c.t, cmd.Start())
	exited := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.exited, p.begun = cmd, exited, p.log.Len()
	p.mu.Unlock()
	go func() {
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			p.mu.Lock()
			p.log.WriteString(line)
			p.mu.Unlock()
			if err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		close(exited)
	}()
}

// output is what the present run, or the last one, has written.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log.Bytes()[p.begun:])
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.SplitAfter(text, "\n")
	return strings.Join(all[max(0, len(all)-lines-1):], "")
}

// history is what all its runs have written.
func (p *process) history() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// signal sends a signal and waits for the end of the process.
func (p *process) signal(s os.Signal) {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s)
	select {
	case <-exited:
	case <-time.After(patience):
		p.c.t.Errorf("%s did not end after %s:\n%s", p.name, s, p.output())
		_ = cmd.Process.Kill()
		<-exited
	}
}

func (p *process) kill()      { p.signal(syscall.SIGKILL) }
func (p *process) terminate() { p.signal(syscall.SIGTERM) }

// waitExit waits until the process has ended by itself.
func (p *process) waitExit() (code int) {
	p.c.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.c.t.Fatalf("%s goes on running:\n%s", p.name, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// startCluster prepares and starts a cluster of voters.
func startCluster(t *testing.T, nodes int) *testCluster {
	t.Helper()
	c := newCluster(t, nodes)
	c.begin()
	return c
}

// begin starts a cluster of all the nodes prepared.
func (c *testCluster) begin() {
	c.t.Helper()
	first := c.nodes[0]
	first.configure("")
	first.start()
	c.found(first)
	for _, p := range c.nodes[1:] {
		c.join(p)
	}
	c.waitVoters(len(c.nodes))
}

func (c *testCluster) found(p *process) {
	c.t.Helper()
	op := c.dial(operatorID, p)
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	_, err := op.Cluster().Init(ctx, &pb.InitRequest{Administrator: "spiffe://" + testDomain + adminID, NoRecovery: true, LeaseDuration: durationpb.New(cmp.Or(c.lease, testLease))})
	if err != nil {
		c.t.Fatalf("init: %v\n%s", err, p.output())
	}
}

// join invites a node, starts it and plays the donor's Security Officer.
func (c *testCluster) join(p *process) { c.joinAs(p, &pb.InviteRequest{}, c.nodes[0]) }

// joinAs is join on other terms, asked for at a node.
func (c *testCluster) joinAs(p *process, r *pb.InviteRequest, ask *process) {
	c.t.Helper()
	c.startJoining(p, r, ask)
	c.trustFirst(p)
	c.until(p.name+" has joined", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	c.officer(p, "untrust")
}

func (c *testCluster) startJoining(p *process, r *pb.InviteRequest, ask *process) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	r.NodeName = p.name
	if r.Identity == "" && c.pins(ask) {
		r.Identity = c.nik(p)
	}
	inv, err := c.dial(operatorID, ask).Cluster().Invite(ctx, r)
	must(c.t, err)
	p.configure(inv.GetJoinToken())
	p.start()
}

// pins tells whether the cluster's release knows invitations that name an identity.
func (c *testCluster) pins(ask *process) bool {
	c.t.Helper()
	s, err := c.status(ask)
	must(c.t, err)
	return s.GetRelease() > fsm.FirstRelease
}

// nik is the fingerprint of the identity key in a node's partition, as its operator
// reads it off its console.
func (c *testCluster) nik(p *process) string {
	c.t.Helper()
	p.configure("")
	out, code := kmsd(c.t, p.env, "hsm", "identity", "--config", p.path("kmsd.yaml"))
	if code != 0 {
		c.t.Fatalf("the identity of %s: %s", p.name, out)
	}
	return strings.TrimSpace(out)
}

var (
	fingerprintLine = regexp.MustCompile(`--so-pin-file <file> (\S+)`)
	donorLine       = regexp.MustCompile(`This node asks node (\S+) for the domain key`)
)

// trustFirst reads the fingerprint off the joiner's console and trusts it on the
// donor it names.
func (c *testCluster) trustFirst(p *process) {
	c.t.Helper()
	c.eventually(p.name+" shows its fingerprint", func() bool { return fingerprintLine.MatchString(p.output()) }, p)
	c.officer(p, "trust")
}

// officer plays the Security Officer of the donor that a joiner's console names.
func (c *testCluster) officer(p *process, command string) {
	c.t.Helper()
	fingerprint := fingerprintLine.FindStringSubmatch(p.output())[1]
	donor := c.node(donorLine.FindStringSubmatch(p.output())[1])
	args := []string{"hsm", command, "--config", donor.path("kmsd.yaml"), fingerprint}
	if !donor.userTrusts {
		args = append(args, "--so-pin-file", donor.path("so-pin"))
	}
	if out, code := kmsd(c.t, donor.env, args...); code != 0 {
		c.t.Fatalf("%s on %s: %s", command, donor.name, out)
	}
}

func (c *testCluster) node(name string) *process {
	for _, p := range c.nodes {
		if p.name == name {
			return p
		}
	}
	c.t.Fatalf("no node %s", name)
	return nil
}

// dial makes a client with an identity that talks to the given nodes, or to all.
func (c *testCluster) dial(id string, to ...*process) *client.Client {
	c.t.Helper()
	fixed := len(to) > 0
	if !fixed {
		to = c.nodes
	}
	return c.connectSDK(id, to, func(config *client.Config) { config.Fixed = fixed })
}

// connectSDK makes a client of the nodes' addresses, whose configuration edit may
// change.
func (c *testCluster) connectSDK(id string, to []*process, edit func(*client.Config)) *client.Client {
	c.t.Helper()
	base := filepath.Join(c.certs(), filepath.Base(id))
	config := client.Config{
		TrustDomain: testDomain,
		Files:       client.Files{Cert: base + ".crt", Key: base + ".key", CA: filepath.Join(c.certs(), transport.DevCACert)},
	}
	for _, p := range to {
		config.Addresses = append(config.Addresses, p.client)
	}
	edit(&config)
	x, err := client.New(config)
	must(c.t, err)
	c.t.Cleanup(func() { _ = x.Close() })
	return x
}

// Ports of nodes are below those that systems give to outgoing connections: a node
// that is down for a while finds its own free again.
const (
	firstPort = 20_000
	lastPort  = 30_000
	// reserveHost is where a port is held for as long as this program runs, so that no
	// other test, nor another run, is given the same before a node listens there.
	reserveHost = "127.0.0.2"
)

var reserved sync.Map // net.Listener of each port that was given away

func freeAddress(t *testing.T) string {
	t.Helper()
	for range lastPort - firstPort {
		port := strconv.Itoa(firstPort + rand.IntN(lastPort-firstPort))
		held, err := net.Listen("tcp", net.JoinHostPort(reserveHost, port))
		if err != nil {
			continue
		}
		address := net.JoinHostPort("127.0.0.1", port)
		if l, err := net.Listen("tcp", address); err == nil {
			must(t, l.Close())
			reserved.Store(port, held)
			return address
		}
		must(t, held.Close())
	}
	t.Fatal("no free port")
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
