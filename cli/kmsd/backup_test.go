package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

const (
	testKeep  = 3
	backupDir = "backups" // of a node
)

// TestBackups makes backups of one cluster by hand and on a schedule, and breaks the
// disks they go to.
func TestBackups(t *testing.T) {
	c := newCluster(t, 3)
	for _, p := range c.nodes {
		p.extra = fmt.Sprintf("backup: {dir: %s, every: 2s, keep: %d}", p.path(backupDir), testKeep)
		must(t, os.Mkdir(p.path(backupDir), 0o700))
	}
	c.nodes[1].mount(backupDir, smallDisk)
	c.begin()
	ctl := c.buildKmsctl()
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"UnderLoad", func(ctx context.Context, c *testCluster) { testBackupUnderLoad(ctx, c, ctl) }},
		{"Frozen", testBackupFrozen},
		{"Refused", func(ctx context.Context, c *testCluster) { testBackupRefused(ctx, c, ctl) }},
		{"Callers", testBackupCallers},
		{"Schedule", testSchedule},
		{"Journal", testJournal},
		{"JournalDiskFull", testJournalDiskFull},
		{"WithoutQuorum", func(_ context.Context, c *testCluster) { testBackupWithoutQuorum(c, ctl) }},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

// kmsctl runs the tool as an operator of a cluster.
type kmsctl struct {
	c    *testCluster
	path string
}

func (c *testCluster) buildKmsctl() kmsctl {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "kmsctl")
	build := exec.Command("go", "build", "-o", path, "github.com/quorumkms/quorumkms/cli/kmsctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		c.t.Fatalf("building kmsctl: %v: %s", err, out)
	}
	return kmsctl{c, path}
}

// run runs a command; to are the nodes it knows, none for a command without a cluster.
func (k kmsctl) run(to []*process, args ...string) (output string, code int) {
	k.c.t.Helper()
	return k.runAs(operatorID, to, args...)
}

// runAs is run as somebody else.
func (k kmsctl) runAs(id string, to []*process, args ...string) (output string, code int) {
	k.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := k.command(ctx, id, to, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		k.c.t.Fatalf("kmsctl %s: %v", strings.Join(args, " "), err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (k kmsctl) command(ctx context.Context, id string, to []*process, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.path, args...)
	base := filepath.Join(k.c.certs(), filepath.Base(id))
	cmd.Env = append(os.Environ(), "KMSCTL_CERT="+base+".crt", "KMSCTL_KEY="+base+".key", "KMSCTL_CA="+filepath.Join(k.c.certs(), transport.DevCACert),
		"KMSCTL_CONFIG=/dev/null")
	var addresses []string
	for _, p := range to {
		addresses = append(addresses, p.client)
	}
	cmd.Env = append(cmd.Env, "KMSCTL_ADDRESSES="+strings.Join(addresses, ","))
	return cmd
}

// must runs a command that must succeed.
func (k kmsctl) must(to []*process, args ...string) string {
	k.c.t.Helper()
	out, code := k.run(to, args...)
	if code != 0 {
		k.c.t.Fatalf("kmsctl %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// refuses runs a command that must fail, with all of these texts.
func (k kmsctl) refuses(to []*process, code int, texts []string, args ...string) {
	k.c.t.Helper()
	out, got := k.run(to, args...)
	for _, text := range texts {
		if got != code || !strings.Contains(out, text) {
			k.c.t.Errorf("kmsctl %s: exit code %d, want %d and %q: %s", strings.Join(args, " "), got, code, texts, out)
		}
	}
}

// snapshotIn is the snapshot in a backup, which has been checked.
func snapshotIn(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	b, err := backup.NewReader(f)
	must(t, err)
	all, err := io.ReadAll(b)
	must(t, err)
	return all
}

// testBackupUnderLoad makes backups through a follower while keys are made through
// all nodes: each holds every key that was acknowledged before.
func testBackupUnderLoad(ctx context.Context, c *testCluster, ctl kmsctl) {
	_, followers := c.split()
	to := followers[:1]
	load, stop := context.WithCancel(ctx)
	var mu sync.Mutex
	var acked []string
	var workers sync.WaitGroup
	for i := range 6 {
		admin := c.dial(adminID, c.nodes[i%3]).Keys()
		workers.Go(func() {
			for load.Err() == nil {
				r, err := admin.CreateKey(load, &pb.CreateKeyRequest{})
				if err == nil {
					mu.Lock()
					acked = append(acked, r.GetKey().GetKeyId())
					mu.Unlock()
				}
			}
		})
	}
	defer workers.Wait()
	defer stop()
	snapshot := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), acked...)
	}
	for round := range 4 {
		least := len(snapshot()) + 5
		c.eventually("some keys are made", func() bool { return len(snapshot()) >= least }, to...)
		before := snapshot()
		file := filepath.Join(c.dir, fmt.Sprintf("load-%d.qkb", round))
		var view struct {
			Index, Keys uint64
			SHA256      string
			Signer      string
		}
		must(c.t, json.Unmarshal([]byte(ctl.must(to, "backup", "create", file, "--output", "json")), &view))
		inside := snapshotIn(c.t, file)
		for _, id := range before {
			if !bytes.Contains(inside, []byte(`{"id":"`+id)) {
				c.t.Fatalf("round %d: key %s was acknowledged before the backup of index %d and is not in it", round, id, view.Index)
			}
		}
		b, err := os.ReadFile(file)
		must(c.t, err)
		if sum := sha256.Sum256(b); view.SHA256 != fmt.Sprintf("%x", sum) || view.Keys < uint64(len(before)) {
			c.t.Errorf("kmsctl says %+v of a file with the SHA-256 %x and %d keys at least", view, sum, len(before))
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			c.t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if _, err := os.Stat(file + ".partial"); !errors.Is(err, os.ErrNotExist) {
			c.t.Errorf("the partial file: %v", err)
		}
		ctl.must(to, "backup", "verify", file, "--offline", "--signer", c.fingerprint(to[0]))
		if out := ctl.must(c.nodes, "backup", "verify", file); !strings.Contains(out, "MAC, every record and the signer fit") || !strings.Contains(out, to[0].name) {
			c.t.Errorf("verified by the cluster: %s", out)
		}
	}
	c.t.Logf("%d keys were made meanwhile", len(snapshot()))
}

// testBackupFrozen asks a follower that slept while keys were made, before it can have
// learned of them.
func testBackupFrozen(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	p := followers[0]
	operator, admin := c.dial(operatorID, p), c.dial(adminID, leader).Keys()
	must(c.t, second(operator.Cluster().Status(ctx, &pb.StatusRequest{}))) // the connection stands
	must(c.t, p.cmd.Process.Signal(syscall.SIGSTOP))
	var made []string
	for range 20 {
		r, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{})
		must(c.t, err)
		made = append(made, r.GetKey().GetKeyId())
	}
	var file bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- operator.CreateBackup(ctx, &file) }()
	must(c.t, p.cmd.Process.Signal(syscall.SIGCONT))
	must(c.t, <-done)
	b, err := backup.NewReader(&file)
	must(c.t, err)
	inside, err := io.ReadAll(b)
	must(c.t, err)
	for _, id := range made {
		if !bytes.Contains(inside, []byte(`{"id":"`+id)) {
			c.t.Fatalf("key %s was made while %s slept, before the backup was asked for, and is not in it", id, p.name)
		}
	}
}

// fingerprint is that of a node's identity key.
func (c *testCluster) fingerprint(p *process) string {
	c.t.Helper()
	s, err := c.status(p)
	must(c.t, err)
	for _, m := range s.GetMembers() {
		if m.GetName() == p.name {
			return m.GetIdentityFingerprint()
		}
	}
	c.t.Fatalf("%s is no member", p.name)
	return ""
}

// testBackupRefused edits, cuts and extends a backup, and signs it with another key.
func testBackupRefused(_ context.Context, c *testCluster, ctl kmsctl) {
	good := filepath.Join(c.dir, "good.qkb")
	ctl.must(c.nodes, "backup", "create", good)
	ctl.refuses(c.nodes, 1, []string{"good.qkb exists", "--force"}, "backup", "create", good)
	ctl.must(c.nodes, "backup", "create", good, "--force")
	b, err := os.ReadFile(good)
	must(c.t, err)
	variant := func(name string, edit func(b []byte) []byte) string {
		path := filepath.Join(c.dir, name+".qkb")
		must(c.t, os.WriteFile(path, edit(bytes.Clone(b)), 0o600))
		return path
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[at] ^= 1
			return b
		}
	}
	for _, row := range []struct {
		file string
		text string
	}{
		{variant("edited-key", flip(bytes.Index(b, []byte(`"token"`))+12)), "backup refused"},
		{variant("edited-magic", flip(0)), "does not begin with QKB1"},
		{variant("edited-end", flip(len(b)-1)), "backup refused"},
		{variant("cut", func(b []byte) []byte { return b[:len(b)/2] }), "cut off"},
		{variant("cut-by-one", func(b []byte) []byte { return b[:len(b)-1] }), "cut off"},
		{variant("extended", func(b []byte) []byte { return append(b, 0) }), "bytes follow its end"},
		{variant("empty", func([]byte) []byte { return nil }), "does not begin with QKB1"},
	} {
		ctl.refuses(nil, 1, []string{row.text, row.file}, "backup", "verify", row.file, "--offline")
		f, err := os.Open(row.file)
		must(c.t, err)
		_, err = c.dial(operatorID, c.nodes[1]).VerifyBackup(c.t.Context(), func() (io.ReadCloser, error) { return f, nil })
		refused(codes.InvalidArgument, client.ErrInvalid, "refused").check(c.t, filepath.Base(row.file)+" sent to a node", err)
	}
	forged := filepath.Join(c.dir, "forged.qkb")
	own := forge(c.t, good, forged)
	if out := ctl.must(nil, "backup", "verify", forged, "--offline"); !strings.Contains(out, own) || !strings.Contains(out, "NOT KNOWN") {
		c.t.Errorf("a backup that a stranger signed: %s", out)
	}
	ctl.refuses(nil, 1, []string{"was signed by the key " + own}, "backup", "verify", forged, "--offline", "--signer", c.fingerprint(c.nodes[0]))
	ctl.refuses(c.nodes, 1, []string{"is and was no member", own}, "backup", "verify", forged)
}

// forge signs a backup with a new key and returns its fingerprint.
func forge(t *testing.T, from, to string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	f, err := os.Open(from)
	must(t, err)
	defer f.Close()
	b, err := backup.NewReader(f)
	must(t, err)
	h := b.Header()
	h.Signer = spki
	var out bytes.Buffer
	must(t, backup.Write(&out, h, func(w io.Writer) error {
		_, err := io.Copy(w, b)
		return err
	}, func(message []byte) ([]byte, error) {
		sum := sha256.Sum256(message)
		return ecdsa.SignASN1(rand.Reader, key, sum[:])
	}))
	must(t, os.WriteFile(to, out.Bytes(), 0o600))
	return h.Fingerprint()
}

// testBackupCallers: operators only, and on the record.
func testBackupCallers(ctx context.Context, c *testCluster) {
	p := c.nodes[2]
	for _, id := range []string{adminID, userID, auditorID, serviceID} {
		denied := refused(codes.PermissionDenied, client.ErrDenied)
		for name, call := range map[string]func() error{
			"CreateBackup": func() error { return c.dial(id, p).CreateBackup(ctx, io.Discard) },
			"VerifyBackup": func() error {
				_, err := c.dial(id, p).VerifyBackup(ctx, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("QKB1")), nil })
				return err
			},
		} {
			e := c.recorded(p, name, func() { denied.check(c.t, name+" by "+id, call()) })
			if e.Name != name || e.Result != audit.Denied || e.Principal != "spiffe://"+testDomain+id {
				c.t.Errorf("%s by %s left %+v", name, id, e)
			}
		}
	}
	e := c.recorded(p, "CreateBackup", func() { must(c.t, c.dial(operatorID, p).CreateBackup(ctx, io.Discard)) })
	if e.Name != "CreateBackup" || e.Result != audit.Success || e.Class != "operator" {
		c.t.Errorf("a backup left %+v", e)
	}
	broken := errors.New("the disk is full")
	if err := c.dial(operatorID, p).CreateBackup(ctx, failingWriter{broken}); !errors.Is(err, broken) {
		c.t.Errorf("a writer that fails: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// testBackupWithoutQuorum: a node that cannot prove its freshness makes no backup.
func testBackupWithoutQuorum(c *testCluster, ctl kmsctl) {
	p := c.nodes[0]
	file := filepath.Join(c.dir, "minority.qkb")
	for _, o := range c.nodes[1:] {
		o.kill()
	}
	ctl.refuses([]*process{p}, 3, []string{"no tick was committed in time"}, "backup", "create", file, "--timeout", "3s")
	if left, err := filepath.Glob(file + "*"); err != nil || len(left) > 0 {
		c.t.Errorf("left behind: %v, %v", left, err)
	}
	for _, o := range c.nodes[1:] {
		o.start()
	}
	c.waitVoters(3)
	ctl.must(c.nodes, "backup", "create", file)
}
