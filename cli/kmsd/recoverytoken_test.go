package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// offlineToken is an HSM token of a machine without a network: the process is never started.
type offlineToken struct {
	*process
	config      string // file with the part hsm only
	public      string // file of its recovery key
	fingerprint string
}

// recoveryToken prepares a token and makes a recovery key in it.
func (c *testCluster) recoveryToken(ctl kmsctl, dir, name string) offlineToken {
	c.t.Helper()
	o := offlineToken{process: c.prepare(dir, dir)}
	o.config, o.public = o.path("recovery.yaml"), o.path(name+".recovery")
	must(c.t, os.WriteFile(o.config, fmt.Appendf(nil, "hsm:\n  token: %s\n  pin_file: %s\n", dir, o.path("pin")), 0o600))
	out := c.kmsdMust(o.env, "recovery", "init-token", "--config", o.config, "--name", name, "--out", o.public)
	b, err := os.ReadFile(o.public)
	must(c.t, err)
	key, err := recovery.ParsePublicKey(b)
	must(c.t, err)
	o.fingerprint = key.Fingerprint()
	for _, out := range []string{out, ctl.must(nil, "recovery", "show", o.public)} {
		for _, text := range []string{"TOKEN", o.fingerprint, recovery.Fingerprint(key.Identity)} {
			if !strings.Contains(out, text) {
				c.t.Errorf("without %q the ceremony shows %s", text, out)
			}
		}
	}
	return o
}

// holders are the token as the harness of kind SHARES takes a recovery key.
func (o offlineToken) holders() shareholders {
	return shareholders{public: o.public, fingerprint: o.fingerprint}
}

// files are the objects in a token: SoftHSM keeps each in one. Its own state, which every login
// changes, is none.
func (o offlineToken) files() (all []string) {
	o.c.t.Helper()
	must(o.c.t, filepath.WalkDir(o.path("tokens"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".object") && d.Name() != "token.object" {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all = append(all, filepath.Base(path)+" "+recovery.Fingerprint(b))
		}
		return err
	}))
	return all
}

// TestRecoverFromToken loses every node of a cluster with its token. From nothing but a backup
// and the token that the recovery key is in a new cluster opens everything; the domain key is
// in HSMs only.
func TestRecoverFromToken(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	ctl := c.buildKmsctl()
	o := c.recoveryToken(ctl, "offline", "vault")
	c.initTokenRefuses(o)
	c.foundRecoverable(ctl, o.holders())
	x := c.fill(ctx)
	file := filepath.Join(c.dir, "all.qkb")
	ctl.must(c.nodes, "backup", "create", file)
	other := c.recoveryToken(ctl, "other", "safe")
	before := o.files()
	c.drillToken(ctl, o, other, file)
	if after := o.files(); !slices.Equal(after, before) {
		t.Errorf("after the drill the token has the objects %v, before %v", after, before)
	}
	c.addRecoveryToken(ctx, ctl, other)
	c.rewrapInToken(ctl, o, file)

	p := c.nodes[0]
	p.kill()
	for _, dir := range []string{"data", "tokens"} {
		must(t, os.RemoveAll(p.path(dir)))
	}
	must(t, os.Mkdir(p.path("tokens"), 0o700))
	c.kmsdMust(p.env, "hsm", "init-token", "--token", p.name, "--pin-file", p.path("pin"), "--so-pin-file", p.path("so-pin"))
	p.configure("")
	c.releaseFromToken(o, other, file, p)
	p.start()
	c.until(p.name+" is up", func(*pb.StatusResponse) bool { return true }, p)
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, second(restoreOf(b, nil).into(ctx, c, operatorID, p)))
	c.until("the restored node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	x.enable(ctx, c, p)
	x.opens(ctx, c, p)
}

// initTokenRefuses makes the key again, and in wrong ways.
func (c *testCluster) initTokenRefuses(o offlineToken) {
	c.t.Helper()
	command := func(name, out string, config ...string) []string {
		return append([]string{"recovery", "init-token", "--name", name, "--out", out, "--config"}, append(config, o.config)[0])
	}
	again := o.path("again.recovery")
	if out := c.kmsdMust(o.env, command("vault", again)...); !strings.Contains(out, "was there already") || !strings.Contains(out, o.fingerprint) {
		c.t.Errorf("the same name again: %s", out)
	}
	b, err := os.ReadFile(again)
	must(c.t, err)
	must(c.t, second(recovery.ParsePublicKey(b)))
	embedded := o.path("memory.yaml")
	must(c.t, os.WriteFile(embedded, []byte("hsm: {kind: embedded, in_memory: true}\n"), 0o600))
	for _, row := range []struct {
		what, text string
		code       int
		args       []string
	}{
		{"a file that is there", "exists", exitFailed, command("vault", again)},
		{"a bad name", "want 1 to 64 of a to z", exitConfig, command("Vault", o.path("x"))},
		{"no name", "--name is missing", exitConfig, command("", o.path("x"))},
		{"no configuration", "no such file", exitConfig, command("vault", o.path("x"), o.path("none.yaml"))},
		{"a partition in memory", "keeps no recovery key", exitConfig, command("vault", o.path("x"), embedded)},
	} {
		if out, code := kmsd(c.t, o.env, row.args...); code != row.code || !strings.Contains(out, row.text) {
			c.t.Errorf("%s: exit code %d: %s; want %d and %q", row.what, code, out, row.code, row.text)
		}
	}
}

// drillToken tries a recovery in a token, in right and in wrong ways, and records it.
func (c *testCluster) drillToken(ctl kmsctl, o, other offlineToken, file string) {
	c.t.Helper()
	report := filepath.Join(c.dir, "vault.report")
	verify := func(token offlineToken, file string, more ...string) []string {
		return append([]string{"recovery", "verify", "--backup", file, "--token", token.config, "--sample", "0"}, more...)
	}
	out := c.kmsdMust(o.env, verify(o, file, "--report", report)...)
	for _, pattern := range []string{`Recovery key: +vault, of kind TOKEN, ` + o.fingerprint, `Generations: +\[1 2\] of the domain key opened, 2 is active`, `Key versions: +\d+ of \d+ opened`} {
		if !regexp.MustCompile(pattern).MatchString(out) {
			c.t.Errorf("without %s the drill shows %s", pattern, out)
		}
	}
	whole, err := os.ReadFile(file)
	must(c.t, err)
	cut, edited, miscopied := filepath.Join(c.dir, "cut.qkb"), filepath.Join(c.dir, "edited.qkb"), filepath.Join(c.dir, "miscopied.qkb")
	must(c.t, os.WriteFile(cut, whole[:len(whole)-10], 0o600))
	wrong := bytes.Clone(whole)
	wrong[len(wrong)/2] ^= 1
	must(c.t, os.WriteFile(edited, wrong, 0o600))
	wrong = bytes.Clone(whole)
	at := bytes.LastIndex(whole, []byte(base64.StdEncoding.EncodeToString([]byte("DKX"))))
	if at < 0 {
		c.t.Fatal("the backup has no copy of the domain key")
	}
	wrong[at+400] ^= 1 // another digit
	must(c.t, os.WriteFile(miscopied, wrong, 0o600))
	empty := c.prepare("empty", "empty")
	config := empty.path("recovery.yaml")
	must(c.t, os.WriteFile(config, fmt.Appendf(nil, "hsm:\n  token: empty\n  pin_file: %s\n", empty.path("pin")), 0o600))
	for _, row := range []struct {
		what, text string
		env        []string
		code       int
		args       []string
	}{
		{"another token", `no recovery key in token "other" (safe) is of a recipient in this backup`, other.env, exitFailed, verify(other, file)},
		{"a token without recovery keys", `token "empty" has no recovery key`, empty.env, exitFailed, []string{"recovery", "verify", "--backup", file, "--token", config}},
		{"a token that is not there", "no token", empty.env, exitHSM, verify(o, file)},
		{"a recipient that is none", "is of a recipient in this backup", o.env, exitFailed, verify(o, file, "--recipient", "safe")},
		{"token and share", "--token, and --share", o.env, exitConfig, verify(o, file, "--share", o.public)},
		{"neither", "no share is given", o.env, exitConfig, []string{"recovery", "verify", "--backup", file}},
		{"no backup", "no backup", o.env, exitConfig, []string{"recovery", "verify", "--token", o.config}},
		{"a backup that is cut off", "cut off", o.env, exitFailed, verify(o, cut)},
		{"an edited backup", "refused", o.env, exitFailed, verify(o, edited)},
		{"an altered copy", "refused", o.env, exitFailed, verify(o, miscopied)},
		{"another signer", "signed it, not", o.env, exitFailed, verify(o, file, "--signer", "SHA256:"+strings.Repeat("0", 64))},
		{"a report that is there", "exists", o.env, exitFailed, verify(o, file, "--report", report)},
	} {
		if out, code := kmsd(c.t, row.env, row.args...); code != row.code || !strings.Contains(out, row.text) {
			c.t.Errorf("%s: exit code %d: %s; want %d and %q", row.what, code, out, row.code, row.text)
		}
	}

	// The state believes the token that the key is in, and no other.
	operator := c.dial(operatorID).Recovery()
	b, err := os.ReadFile(report)
	must(c.t, err)
	parsed, err := recovery.ParseReport(b)
	must(c.t, err)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	forge := func(change func(r *recovery.Report)) []byte {
		r := *parsed
		change(&r)
		file, err := r.SignWith(func(message []byte) ([]byte, error) {
			digest := sha256.Sum256(message)
			return ecdsa.SignASN1(rand.Reader, stranger, digest[:])
		})
		must(c.t, err)
		return file
	}
	for what, x := range map[string]struct {
		report []byte
		text   string
	}{
		"signed by another token": {forge(func(*recovery.Report) {}), "another token made it"},
		"about another key":       {forge(func(r *recovery.Report) { r.Key = other.fingerprint }), "report of the recovery key"},
		"altered":                 {bytes.Replace(b, []byte(`"active":2`), []byte(`"active":1`), 1), "does not verify"},
		"of another kind":         {bytes.Replace(b, []byte(recovery.KindToken), []byte(recovery.KindShares), 1), "vault is of kind TOKEN"},
	} {
		_, err := operator.RecordRecoveryReport(c.t.Context(), &pb.RecordRecoveryReportRequest{Report: x.report})
		refused(codes.InvalidArgument, client.ErrInvalid, x.text).check(c.t, "a report "+what, err)
	}
	ctl.must(c.nodes, "recovery", "report", report)
	if out := ctl.must(c.nodes, "recovery", "recipients", "list"); !regexp.MustCompile(`(?m)^vault +TOKEN +HSM token SHA256:[0-9a-f]{64} .*generation 2`).MatchString(out) {
		c.t.Errorf("after the drill the list says %s", out)
	}
	if out := ctl.must(c.nodes, "cluster", "status"); !regexp.MustCompile(`vault, HSM token SHA256:.*, last tried: .*generation 2`).MatchString(out) || regexp.MustCompile(`(?m)^WARNING`).MatchString(out) {
		c.t.Errorf("after the drill the status says %s", out)
	}
}

// addRecoveryToken makes the key of another token a recipient, by two operators, and tries it.
func (c *testCluster) addRecoveryToken(ctx context.Context, ctl kmsctl, other offlineToken) {
	c.t.Helper()
	c.issue("/operator/omar", "omar")
	ctl.must(c.nodes, "recovery", "recipients", "add", other.public)
	if out := ctl.must(c.nodes, "recovery", "recipients", "list"); !regexp.MustCompile(`add safe, HSM token SHA256:[0-9a-f]{64}, ` + other.fingerprint).MatchString(out) {
		c.t.Errorf("while it waits: %s", out)
	}
	omar := c.dial("/operator/omar").Recovery()
	r, err := omar.DescribeRecovery(ctx, &pb.DescribeRecoveryRequest{})
	must(c.t, err)
	must(c.t, second(omar.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: r.GetChange().GetId()})))
	c.until("the status says what is missing", func(s *pb.StatusResponse) bool {
		return slices.ContainsFunc(s.GetRecoveryAlarms(), func(a string) bool { return strings.Contains(a, "is not wrapped for safe") })
	}, c.nodes[0])
	c.trustRecovery(c.nodes[0], other.holders())
	c.until("copies were made", func(s *pb.StatusResponse) bool {
		return len(s.GetRecoveryAlarms()) == 0 && len(s.GetRecoveryRecipients()) == 2
	}, c.nodes[0])
	later := filepath.Join(c.dir, "later.qkb")
	ctl.must(c.nodes, "backup", "create", later)
	if out := c.kmsdMust(other.env, "recovery", "verify", "--backup", later, "--token", other.config, "--recipient", "safe"); !strings.Contains(out, "[1 2] of the domain key opened") {
		c.t.Errorf("with the other token: %s", out)
	}
}

// rewrapInToken has the recovery token wrap the keys of the older generation anew.
func (c *testCluster) rewrapInToken(ctl kmsctl, o offlineToken, file string) {
	c.t.Helper()
	out := filepath.Join(c.dir, "keys.rewrap")
	before := o.files()
	command := []string{"recovery", "rewrap", "--token", o.config, "--backup", file, "--out", out}
	officer := []string{"--so-pin-file", o.path("so-pin"), "--from", "1"}
	for _, row := range []struct {
		what, text string
		code       int
		args       []string
	}{
		{"no generation named", "--from", exitConfig, officer[:2]},
		{"no Security Officer", "no Security Officer's PIN", exitConfig, officer[2:]},
		{"a generation that is not there", "does not hold generation 9", exitHSM, []string{"--so-pin-file", o.path("so-pin"), "--from", "9"}},
		{"the wrong PIN", "wrong pin", exitPIN, []string{"--so-pin-file", o.path("pin"), "--from", "1"}},
	} {
		if said, code := kmsd(c.t, o.env, append(slices.Clone(command), row.args...)...); code != row.code || !strings.Contains(said, row.text) {
			c.t.Errorf("%s: exit code %d: %s; want %d and %q", row.what, code, said, row.code, row.text)
		}
	}
	said := c.kmsdMust(o.env, append(command, officer...)...)
	if !regexp.MustCompile(`[1-9]\d* key versions of generation 1 are wrapped under generation 2`).MatchString(said) {
		c.t.Errorf("rewrap: %s", said)
	}
	if applied := ctl.must(c.nodes, "domain", "rewrap", "apply", out); !regexp.MustCompile(`Applied +[1-9]`).MatchString(applied) || !regexp.MustCompile(`Refused +0`).MatchString(applied) {
		c.t.Errorf("apply: %s", applied)
	}
	twins := c.kmsdMust(o.env, "recovery", "twin", "list", "--config", o.config, "--cluster", c.clusterID())
	after := o.files()
	if twins != "" || len(after) > len(before)+1 { // a transfer key of an attempt that was refused may be left, until the next one
		c.t.Errorf("after the rewrap the token has the twins %q and %d objects, before %d", twins, len(after), len(before))
	}
}

// releaseFromToken gives the domain key of a backup to a node with a new token.
func (c *testCluster) releaseFromToken(o, other offlineToken, file string, p *process) {
	c.t.Helper()
	request, release := filepath.Join(c.dir, p.name+".request"), filepath.Join(c.dir, p.name+".release")
	out := c.kmsdMust(p.env, "recovery", "request", "--config", p.path("kmsd.yaml"), "--out", request)
	fingerprint := regexp.MustCompile(`SHA256:[0-9a-f]{64}`).FindString(out)
	give := func(token offlineToken, fingerprint string) []string {
		return []string{"recovery", "release", "--backup", file, "--for", request, "--out", release, "--token", token.config, "--fingerprint", fingerprint}
	}
	trust := func(more ...string) []string {
		return append([]string{"hsm", "trust", "--config", o.config, "--so-pin-file", o.path("so-pin")}, more...)
	}
	nobody := "SHA256:" + strings.Repeat("0", 64)
	c.kmsdRefuses("another fingerprint", o.env, "the fingerprint of the request", give(o, nobody)...)
	c.kmsdRefuses("another token", other.env, "is of a recipient in this backup", give(other, fingerprint)...)
	c.kmsdRefuses("before the Security Officer's trust", o.env, "kmsd hsm trust --config "+o.config+" --request "+request+" "+fingerprint, give(o, fingerprint)...)
	c.kmsdRefuses("trust under another fingerprint", o.env, "the fingerprint of the request", trust("--request", request, nobody)...)
	c.kmsdRefuses("trust in what does not wait", o.env, "data_dir is missing", trust(fingerprint)...)
	c.kmsdRefuses("trust in two keys", o.env, "one key is trusted at a time", trust("--request", request, "--recovery", o.public, fingerprint)...)
	c.kmsdMust(o.env, trust("--request", request, fingerprint)...)
	gave := c.kmsdMust(o.env, give(o, fingerprint)...)
	shown := func(what string) string {
		m := regexp.MustCompile(what + `: +(SHA256:[0-9a-f]{64})`).FindStringSubmatch(gave)
		if m == nil {
			c.t.Fatalf("no %s: %s", what, gave)
		}
		return m[1]
	}
	c.kmsdMust(o.env, "hsm", "untrust", "--config", o.config, "--so-pin-file", o.path("so-pin"), fingerprint)
	if out := c.kmsdMust(p.env, "recovery", "install", "--config", p.path("kmsd.yaml"), "--backup", file, release,
		"--signer", shown("Signed by"), "--donor", shown("Donor")); !strings.Contains(out, "[1 2] of the domain key installed") {
		c.t.Errorf("installed: %s", out)
	}
}
