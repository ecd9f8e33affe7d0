package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// shareholders are the people of a recovery key and their files.
type shareholders struct {
	public      string // file
	fingerprint string
	shares      []string // files
	keys        []string // files of their own
}

// recoveryKey holds the ceremony of a recovery key: 2 of 3.
func (c *testCluster) recoveryKey(ctl kmsctl, name string) shareholders {
	c.t.Helper()
	dir := filepath.Join(c.dir, "recovery", name)
	must(c.t, os.MkdirAll(dir, 0o700))
	made := filepath.Join(dir, "made")
	args := []string{"recovery", "init", "--name", name, "--threshold", "2", "--out", made}
	h := shareholders{public: filepath.Join(made, name+".recovery")}
	for i := range 3 {
		id, err := age.GenerateX25519Identity()
		must(c.t, err)
		key := filepath.Join(dir, fmt.Sprint("key-", i+1))
		must(c.t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
		h.keys = append(h.keys, key)
		h.shares = append(h.shares, filepath.Join(made, fmt.Sprintf("%s-%d-of-3.share.age", name, i+1)))
		args = append(args, "--holder", id.Recipient().String())
	}
	out := ctl.must(nil, args...)
	b, err := os.ReadFile(h.public)
	must(c.t, err)
	key, err := recovery.ParsePublicKey(b)
	must(c.t, err)
	h.fingerprint = key.Fingerprint()
	for _, out := range []string{out, ctl.must(nil, "recovery", "show", h.public)} {
		if !strings.Contains(out, h.fingerprint) || !strings.Contains(out, "2 of 3 shares") {
			c.t.Errorf("the ceremony shows %s", out)
		}
	}
	return h
}

// with are the flags that name some of the shares, and the keys that open them.
func (h shareholders) with(shares ...int) (args []string) {
	for _, n := range shares {
		args = append(args, "--share", h.shares[n-1], "--identity", h.keys[n-1])
	}
	return args
}

// kmsdMust runs the program, which must succeed.
func (c *testCluster) kmsdMust(env []string, args ...string) string {
	c.t.Helper()
	out, code := kmsd(c.t, env, args...)
	if code != 0 {
		c.t.Fatalf("kmsd %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// kmsdRefuses runs the program, which must fail and say why.
func (c *testCluster) kmsdRefuses(what string, env []string, text string, args ...string) {
	c.t.Helper()
	if out, code := kmsd(c.t, env, args...); code == 0 || !strings.Contains(out, text) {
		c.t.Errorf("%s: exit code %d: %s; want a refusal with %q", what, code, out, text)
	}
}

// trustRecovery is the step of a node's Security Officer.
func (c *testCluster) trustRecovery(p *process, h shareholders) {
	c.t.Helper()
	c.kmsdMust(p.env, "hsm", "trust", "--config", p.path("kmsd.yaml"), "--so-pin-file", p.path("so-pin"), "--recovery", h.public, h.fingerprint)
}

// foundRecoverable founds a cluster of the nodes prepared with a recovery recipient.
func (c *testCluster) foundRecoverable(ctl kmsctl, h shareholders) {
	c.t.Helper()
	first := c.nodes[0]
	first.configure("")
	first.start()
	c.until("the first node is up", func(*pb.StatusResponse) bool { return true }, first)
	found := []string{
		"cluster", "init", "--administrator", "spiffe://" + testDomain + adminID, "--recovery-recipient", h.public, "--lease", testLease.String(),
	}
	if out, code := ctl.run(c.nodes[:1], found...); code == 0 || !strings.Contains(out, "kmsd hsm trust --recovery") || !strings.Contains(out, h.fingerprint) {
		c.t.Fatalf("founded with a recovery key that nobody trusts: %s", out)
	}
	c.kmsdRefuses("trust under another fingerprint", first.env, "the fingerprint of recovery key vault is", "hsm", "trust", "--config", first.path("kmsd.yaml"),
		"--so-pin-file", first.path("so-pin"), "--recovery", h.public, "SHA256:"+strings.Repeat("0", 64))
	c.trustRecovery(first, h)
	if out, code := ctl.run(c.nodes[:1], append(found, "--no-recovery")...); code == 0 {
		c.t.Fatalf("founded with and without recovery: %s", out)
	}
	ctl.must(c.nodes[:1], found...)
	for _, p := range c.nodes[1:] {
		c.join(p)
	}
	c.waitVoters(len(c.nodes))
}

// treasure is what was made before everything is lost.
type treasure struct {
	sealed         []sealed
	rotated, later object
}

// fill makes keys of several kinds under two generations of the domain key.
func (c *testCluster) fill(ctx context.Context) (x treasure) {
	c.t.Helper()
	x.sealed = c.seal(ctx, 2)
	x.rotated = c.fullObject(ctx, "alias/rotated")
	r, err := c.dial(operatorID, c.nodes[0]).Cluster().RotateDomain(ctx, &pb.RotateDomainRequest{})
	must(c.t, err)
	c.trustWaiting("the generation is active", c.nodes[0], anyNode, isActive(r.GetGeneration()))
	if g := c.generation(c.nodes[0], r.GetGeneration()); g.GetNoRecovery() || !slices.Equal(g.GetRecoveryHolders(), []string{"vault"}) {
		c.t.Errorf("generation %v became active", g)
	}
	x.sealed = append(x.sealed, c.seal(ctx, 1)...)
	x.later = c.fullObject(ctx, "alias/later")
	return x
}

// opens checks that a node opens everything, after a restore without a journal, which
// leaves keys disabled.
func (x treasure) opens(ctx context.Context, c *testCluster, p *process) {
	c.t.Helper()
	user := c.dial(userID, p)
	for _, o := range []object{x.rotated, x.later} {
		must(c.t, second(user.Decrypt(ctx, o.blob, nil)))
		if err := user.VerifyMac(ctx, o.mac, []byte(proven), o.macOf, hmac256); err != nil {
			c.t.Errorf("the MAC under %s: %v", o.mac, err)
		}
		if err := user.Verify(ctx, o.pair, []byte(proven), o.sigOf, ecdsaP256); err != nil {
			c.t.Errorf("the signature under %s: %v", o.pair, err)
		}
		must(c.t, second(user.Sign(ctx, o.pair, []byte(proven), ecdsaP256)))
	}
	c.intact(ctx, p, x.sealed)
}

func (x treasure) enable(ctx context.Context, c *testCluster, p *process) {
	c.t.Helper()
	keys := []string{x.rotated.key, x.rotated.mac, x.rotated.pair, x.later.key, x.later.mac, x.later.pair}
	for _, s := range x.sealed {
		keys = append(keys, s.key)
	}
	for _, key := range keys {
		must(c.t, second(c.dial(adminID, p).Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})))
	}
}

// TestRecoverFromShares loses every node of a cluster with its token. From nothing but a
// backup and two of three shares a new cluster opens everything.
func TestRecoverFromShares(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	ctl := c.buildKmsctl()
	h := c.recoveryKey(ctl, "vault")
	c.foundRecoverable(ctl, h)
	x := c.fill(ctx)
	file := filepath.Join(c.dir, "all.qkb")
	ctl.must(c.nodes, "backup", "create", file)
	c.drill(ctl, h, file)

	for _, p := range c.nodes {
		p.kill()
		must(t, os.RemoveAll(p.path("data")))
		must(t, os.RemoveAll(p.path("tokens")))
		must(t, os.Mkdir(p.path("tokens"), 0o700))
		c.kmsdMust(p.env, "hsm", "init-token", "--token", p.name, "--pin-file", p.path("pin"), "--so-pin-file", p.path("so-pin"))
	}
	first := c.nodes[0]
	first.configure("")
	c.handOver(h, file, first)
	first.start()
	c.until(first.name+" is up", func(*pb.StatusResponse) bool { return true }, first)
	b, err := os.ReadFile(file)
	must(t, err)
	restored, err := restoreOf(b, nil).into(ctx, c, operatorID, first)
	must(t, err)
	if got := restored.GetRecoveryRecipients(); len(got) != 1 || got[0].GetName() != "vault" || got[0].GetKind() != "SHARES" || got[0].GetFingerprint() != h.fingerprint {
		t.Errorf("the restored state is recovered by %v", got)
	}
	c.until("the restored node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, first)
	x.enable(ctx, c, first)
	x.opens(ctx, c, first)
	for _, p := range c.nodes[1:] {
		p.configure(c.inviteTo(ctx, first, p))
		p.start()
		c.trustFirst(p)
		c.until(p.name+" has joined", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	c.waitVoters(3)
	for _, p := range c.nodes {
		x.opens(ctx, c, p)
	}
	for _, p := range c.nodes {
		if strings.Contains(p.history(), "RSA PRIVATE") {
			t.Errorf("%s has a private key in its log", p.name)
		}
	}
}

// drill tries a recovery, in right and in wrong ways, and records it.
func (c *testCluster) drill(ctl kmsctl, h shareholders, file string) {
	c.t.Helper()
	report := filepath.Join(c.dir, "vault.report")
	verify := func(file string, more ...string) []string {
		return append([]string{"recovery", "verify", "--backup", file, "--sample", "0"}, more...)
	}
	out := c.kmsdMust(nil, verify(file, append(h.with(1, 3), "--report", report)...)...)
	if !strings.Contains(out, "vault, SHARES, "+h.fingerprint) || !regexp.MustCompile(`Generations: +\[1 2\] of the domain key opened, 2 is active`).MatchString(out) || !regexp.MustCompile(`Key versions: +(\d+) of (\d+) opened`).MatchString(out) {
		c.t.Errorf("the drill shows %s", out)
	}
	plain := filepath.Join(c.dir, "share-2")
	ctl.must(nil, "recovery", "share", h.shares[1], "--identity", h.keys[1], "--out", plain)
	c.kmsdMust(nil, verify(file, "--share", plain, "--share", h.shares[0], "--identity", h.keys[0])...)

	altered := filepath.Join(c.dir, "share-altered")
	b, err := os.ReadFile(plain)
	must(c.t, err)
	value := regexp.MustCompile(`"value":"(.)`)
	at := value.FindSubmatchIndex(b)
	if b[at[2]] != 'A' {
		b[at[2]] = 'A'
	} else {
		b[at[2]] = 'B'
	}
	must(c.t, os.WriteFile(altered, b, 0o600))
	other := c.recoveryKey(ctl, "other")
	stranger := startCluster(c.t, 1)
	foreign := filepath.Join(c.dir, "foreign.qkb")
	kmsctl{stranger, ctl.path}.must(stranger.nodes, "backup", "create", foreign)
	cut := filepath.Join(c.dir, "cut.qkb")
	whole, err := os.ReadFile(file)
	must(c.t, err)
	must(c.t, os.WriteFile(cut, whole[:len(whole)-10], 0o600))
	edited := filepath.Join(c.dir, "edited.qkb")
	whole[len(whole)/2] ^= 1
	must(c.t, os.WriteFile(edited, whole, 0o600))
	for _, row := range []struct {
		what, file, text string
		args             []string
	}{
		{"no share", file, "no share is given", nil},
		{"one share", file, "1 of the 2 shares that open recovery key vault are given", h.with(1)},
		{"one share twice", file, "are both share 2", slices.Concat(h.with(2), []string{"--share", plain})},
		{"a wrong share", file, altered + ": ", append(h.with(1), "--share", altered)},
		{"a share of another key", file, "vault-1-of-3.share.age is a share of recovery key vault", append(h.with(1), other.with(2)...)},
		{"another recovery key", file, "recovery key other is no recipient in this backup", other.with(1, 2)},
		{"another's identity", file, "does not open", []string{"--share", h.shares[0], "--identity", h.keys[1]}},
		{"another cluster's backup", foreign, "whose recipients are: there is none", h.with(1, 2)},
		{"a backup that is cut off", cut, "cut off", h.with(1, 2)},
		{"an edited backup", edited, "refused", h.with(1, 2)},
		{"another signer", file, "signed it, not", append(h.with(1, 2), "--signer", "SHA256:"+strings.Repeat("0", 64))},
		{"a report that is there", file, "exists", append(h.with(1, 2), "--report", report)},
	} {
		c.kmsdRefuses(row.what, nil, row.text, verify(row.file, row.args...)...)
	}
	ctl.must(c.nodes, "recovery", "report", report)
	if out, code := ctl.run(c.nodes, "recovery", "report", report); code == 0 {
		c.t.Errorf("a report was recorded twice: %s", out)
	}
	if out, code := (kmsctl{stranger, ctl.path}).run(stranger.nodes, "recovery", "report", report); code == 0 || !strings.Contains(out, "the report is about cluster") {
		c.t.Errorf("a report about another cluster: %s", out)
	}
	if out := ctl.must(c.nodes, "cluster", "status"); !regexp.MustCompile(`vault, 2 of 3 shares, last tried: .*generation 2`).MatchString(out) || strings.Contains(out, "kmsd recovery verify") {
		c.t.Errorf("after the drill the status says %s", out)
	}
	stranger.nodes[0].kill()
}

// handOver gives the domain key of a backup to a node with a new token.
func (c *testCluster) handOver(h shareholders, file string, p *process) {
	c.t.Helper()
	request, release := filepath.Join(c.dir, p.name+".request"), filepath.Join(c.dir, p.name+".release")
	out := c.kmsdMust(p.env, "recovery", "request", "--config", p.path("kmsd.yaml"), "--out", request)
	fingerprint := regexp.MustCompile(`SHA256:[0-9a-f]{64}`).FindString(out)
	give := append([]string{"recovery", "release", "--backup", file, "--for", request, "--out", release}, h.with(2, 3)...)
	c.kmsdRefuses("another fingerprint", nil, "the fingerprint of the request", append(give, "--fingerprint", "SHA256:"+strings.Repeat("0", 64))...)
	gave := c.kmsdMust(nil, append(give, "--fingerprint", fingerprint)...)
	shown := func(out, what string) string {
		m := regexp.MustCompile(`(?m)^` + what + `: +(SHA256:[0-9a-f]{64})`).FindStringSubmatch(out)
		if m == nil {
			c.t.Fatalf("no %s is shown: %s", what, out)
		}
		return m[1]
	}
	signer, donor, nobody := shown(gave, "Signed by"), shown(gave, "Donor"), "SHA256:"+strings.Repeat("0", 64)
	take := []string{"recovery", "install", "--config", p.path("kmsd.yaml"), "--backup", file, release, "--signer", signer, "--donor", donor}
	wrong := slices.Clone(take)
	wrong[5] = filepath.Join(c.dir, "foreign.qkb")
	c.kmsdRefuses("another cluster's backup", p.env, "signed it, not "+signer, wrong...)
	foreign, err := os.Open(wrong[5])
	must(c.t, err)
	defer foreign.Close() //nolint:errcheck // only read
	r, err := backup.NewReader(foreign)
	must(c.t, err)
	header := r.Header()
	wrong[8] = header.Fingerprint()
	c.kmsdRefuses("another cluster's backup, and its signer", p.env, "the release is of cluster", wrong...)
	for _, row := range []struct {
		what, text string
		more       []string
	}{
		{"no signer", "--signer is missing", []string{"--donor", donor}},
		{"no donor", "--donor is missing", []string{"--signer", signer}},
		{"a signer that is no fingerprint", "--signer: ", []string{"--signer", "kms-1", "--donor", donor}},
		{"a donor that is no fingerprint", "--donor: ", []string{"--signer", signer, "--donor", "x"}},
		{"another signer", signer + " signed it, not " + nobody, []string{"--signer", nobody, "--donor", donor}},
		{"another donor", "is of the donor " + donor + ", not of " + nobody, []string{"--signer", signer, "--donor", nobody}},
	} {
		c.kmsdRefuses(row.what, p.env, row.text, append(slices.Clone(take[:7]), row.more...)...)
	}
	b, err := os.ReadFile(release)
	must(c.t, err)
	parsed, err := recovery.ParseRelease(b)
	must(c.t, err)
	parsed.Messages[0] = bytes.Clone(parsed.Messages[0])
	parsed.Messages[0][len(parsed.Messages[0])/2] ^= 1
	altered, err := parsed.Encode()
	must(c.t, err)
	must(c.t, os.WriteFile(release+".altered", altered, 0o600))
	wrong = slices.Clone(take)
	wrong[6] = release + ".altered"
	c.kmsdRefuses("an altered release", p.env, "refused", wrong...)
	forger, err := soft.Open(soft.Config{Label: "forger"})
	must(c.t, err)
	defer forger.Close() //nolint:errcheck // in memory only
	parsed, err = recovery.ParseRelease(b)
	must(c.t, err)
	parsed.Identity = forger.Identity()
	forged, err := parsed.Encode()
	must(c.t, err)
	must(c.t, os.WriteFile(release+".forged", forged, 0o600))
	wrong[6] = release + ".forged"
	c.kmsdRefuses("somebody else's release", p.env, "not of "+donor, wrong...)
	for range 2 { // again after an attempt that broke off
		if out := c.kmsdMust(p.env, take...); !strings.Contains(out, "[1 2] of the domain key installed") || !strings.Contains(out, "vault, SHARES, "+h.fingerprint) {
			c.t.Errorf("installed: %s", out)
		}
	}
}

// TestRecipients changes who can recover: several operators must agree, and the nodes whose
// Security Officers trust a new key wrap the domain key for it.
func TestRecipients(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	c.issue("/operator/omar", "omar")
	ctl := c.buildKmsctl()
	vault := c.recoveryKey(ctl, "vault")
	safe := c.recoveryKey(ctl, "safe")
	c.foundRecoverable(ctl, vault)
	file, err := os.ReadFile(safe.public)
	must(t, err)
	olga, omar := c.dial(operatorID).Recovery(), c.dial("/operator/omar").Recovery()

	_, err = olga.AddRecoveryRecipient(ctx, &pb.AddRecoveryRecipientRequest{RecoveryKey: bytes.Replace(file, []byte("safe"), []byte("same"), 1)})
	refused(codes.InvalidArgument, client.ErrInvalid, "signature").check(t, "a key that was renamed", err)
	for _, id := range []string{adminID, userID, auditorID, serviceID} {
		x := c.dial(id).Recovery()
		for what, err := range map[string]error{
			"DescribeRecovery":        second(x.DescribeRecovery(ctx, &pb.DescribeRecoveryRequest{})),
			"AddRecoveryRecipient":    second(x.AddRecoveryRecipient(ctx, &pb.AddRecoveryRecipientRequest{RecoveryKey: file})),
			"RemoveRecoveryRecipient": second(x.RemoveRecoveryRecipient(ctx, &pb.RemoveRecoveryRecipientRequest{Name: "vault"})),
			"ApproveRecipientChange":  second(x.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: 1})),
			"CancelRecipientChange":   second(x.CancelRecipientChange(ctx, &pb.CancelRecipientChangeRequest{Change: 1})),
			"ChangeRecoverySettings":  second(x.ChangeRecoverySettings(ctx, &pb.ChangeRecoverySettingsRequest{Settings: &pb.RecoverySettings{DrillDays: 30}})),
			"RecordRecoveryReport":    second(x.RecordRecoveryReport(ctx, &pb.RecordRecoveryReportRequest{Report: []byte("x")})),
		} {
			refused(codes.PermissionDenied, client.ErrDenied).check(t, id+" calls "+what, err)
		}
	}
	for what, bad := range map[string][]byte{"no key": nil, "no file of a key": []byte("{}"), "a long file": make([]byte, 900_000)} {
		_, err := olga.AddRecoveryRecipient(ctx, &pb.AddRecoveryRecipientRequest{RecoveryKey: bad})
		refused(codes.InvalidArgument, client.ErrInvalid, "recovery key").check(t, what, err)
		_, err = olga.RecordRecoveryReport(ctx, &pb.RecordRecoveryReportRequest{Report: bad})
		refused(codes.InvalidArgument, client.ErrInvalid, "report").check(t, what, err)
	}
	proposed, err := olga.AddRecoveryRecipient(ctx, &pb.AddRecoveryRecipientRequest{RecoveryKey: file, RequestId: "add"})
	must(t, err)
	again, err := olga.AddRecoveryRecipient(ctx, &pb.AddRecoveryRecipientRequest{RecoveryKey: file, RequestId: "add"})
	if err != nil || again.GetChange() != proposed.GetChange() || proposed.GetDone() {
		t.Errorf("proposed %v, again %v, %v", proposed, again, err)
	}
	for _, dry := range []bool{true, false} {
		_, err = olga.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: proposed.GetChange(), DryRun: dry})
		refused(codes.AlreadyExists, client.ErrExists, "another operator must").check(t, "the proposer's own approval", err)
	}
	if out := ctl.must(c.nodes, "recovery", "recipients", "list"); !strings.Contains(out, "add safe, 2 of 3 shares, "+safe.fingerprint) {
		t.Errorf("while it waits: %s", out)
	}
	done, err := omar.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: proposed.GetChange()})
	if err != nil || !done.GetDone() {
		t.Fatalf("approved: %v, %v", done, err)
	}

	c.changeSettings(ctx, olga, omar)
	lacking := func(s *pb.StatusResponse) bool {
		return slices.ContainsFunc(s.GetRecoveryAlarms(), func(a string) bool { return strings.Contains(a, "is not wrapped for safe") })
	}
	c.until("the status says what is missing", lacking, c.nodes[1])
	c.trustRecovery(c.nodes[1], safe) // another node than the one that was founded
	c.until("a copy was made", func(s *pb.StatusResponse) bool {
		return len(s.GetRecoveryAlarms()) == 0 && len(s.GetRecoveryRecipients()) == 2
	}, c.nodes[0])
	saved := filepath.Join(c.dir, "b.qkb")
	ctl.must(c.nodes, "backup", "create", saved)
	c.oldDrill(ctx, ctl, safe, saved)

	removal, err := omar.RemoveRecoveryRecipient(ctx, &pb.RemoveRecoveryRecipientRequest{Name: "vault"})
	must(t, err)
	must(t, second(olga.CancelRecipientChange(ctx, &pb.CancelRecipientChangeRequest{Change: removal.GetChange()})))
	_, err = olga.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: removal.GetChange()})
	refused(codes.NotFound, client.ErrNotFound, "cancelled").check(t, "approving what was cancelled", err)
	removal, err = omar.RemoveRecoveryRecipient(ctx, &pb.RemoveRecoveryRecipientRequest{Name: "vault"})
	must(t, err)
	ctl.must(c.nodes, "recovery", "recipients", "approve", fmt.Sprint(removal.GetChange()))
	after := filepath.Join(c.dir, "after.qkb")
	ctl.must(c.nodes, "backup", "create", after)
	c.kmsdRefuses("a recipient that was removed", nil, "recovery key vault is no recipient", append([]string{"recovery", "verify", "--backup", after}, vault.with(1, 2)...)...)
	_, err = olga.RemoveRecoveryRecipient(ctx, &pb.RemoveRecoveryRecipientRequest{Name: "safe"})
	refused(codes.FailedPrecondition, client.ErrGenerationRefused, "add another first").check(t, "removing the last one", err)

	// A generation that nobody can recover does not become active.
	for _, p := range c.nodes {
		if out, code := kmsd(t, p.env, "hsm", "untrust", "--config", p.path("kmsd.yaml"), "--so-pin-file", p.path("so-pin"), safe.fingerprint); code != 0 && p == c.nodes[1] {
			t.Fatalf("untrust: %s", out)
		}
	}
	r, err := c.dial(operatorID, c.nodes[0]).Cluster().RotateDomain(ctx, &pb.RotateDomainRequest{})
	must(t, err)
	c.trustWaiting("every node has it", c.nodes[0], anyNode, func(d *pb.DescribeDomainResponse) bool {
		return slices.ContainsFunc(d.GetGenerations(), func(g *pb.DomainGeneration) bool {
			return g.GetNumber() == r.GetGeneration() && len(g.GetInstalled()) == 2
		})
	})
	if g := c.generation(c.nodes[0], r.GetGeneration()); g.GetState() != pb.GenerationState_GENERATION_STATE_PROPOSED || !strings.Contains(g.GetWaitsFor(), "0 recovery recipients hold generation") {
		t.Errorf("without a recovery copy: %v", g)
	}
	c.trustRecovery(c.nodes[0], safe)
	c.eventually("the generation is active", func() bool {
		d, err := c.describeDomain(c.nodes[1])
		return err == nil && isActive(r.GetGeneration())(d)
	}, c.nodes...)
	for _, act := range []string{"AddRecoveryRecipient", "ChangeRecoverySettings", "ApproveRecipientChange", "CancelRecipientChange", "RemoveRecoveryRecipient"} {
		found := false
		for _, p := range c.nodes {
			b, err := os.ReadFile(p.trailFile())
			must(t, err)
			found = found || bytes.Contains(b, []byte(`"eventName":"`+act+`"`))
		}
		if !found {
			t.Errorf("%s is not recorded", act)
		}
	}
}

// changeSettings changes how many operators approve, and how often a recovery is tried.
func (c *testCluster) changeSettings(ctx context.Context, olga, omar pb.RecoveryServiceClient) {
	c.t.Helper()
	set := func(s *pb.RecoverySettings) *pb.ChangeRecoverySettingsRequest {
		return &pb.ChangeRecoverySettingsRequest{Settings: s}
	}
	for _, row := range []struct {
		what string
		s    *pb.RecoverySettings
		want *refusal
	}{
		{"nothing", nil, refused(codes.InvalidArgument, client.ErrInvalid, "no setting")},
		{"many approvals", &pb.RecoverySettings{Approvals: 1 << 31}, refused(codes.InvalidArgument, client.ErrInvalid, "operators")},
		{"more than there are", &pb.RecoverySettings{Required: 3}, refused(codes.FailedPrecondition, client.ErrGenerationRefused, "there are 2")},
		{"what is so", &pb.RecoverySettings{Required: 1, Approvals: 2}, refused(codes.AlreadyExists, client.ErrExists, "these already")},
	} {
		row.want.check(c.t, row.what, second(olga.ChangeRecoverySettings(ctx, set(row.s))))
	}
	dry := set(&pb.RecoverySettings{DrillDays: 30})
	dry.DryRun = true
	refused(codes.FailedPrecondition, client.ErrDryRun).check(c.t, "a dry run", second(olga.ChangeRecoverySettings(ctx, dry)))
	again := set(&pb.RecoverySettings{DrillDays: 30, Approvals: 1})
	again.RequestId = "settings"
	first, err := olga.ChangeRecoverySettings(ctx, again)
	must(c.t, err)
	if r, err := olga.ChangeRecoverySettings(ctx, again); err != nil || r.GetChange() != first.GetChange() || r.GetDone() {
		c.t.Errorf("asked again: %v, %v; at first %v", r, err, first)
	}
	r, err := omar.DescribeRecovery(ctx, &pb.DescribeRecoveryRequest{})
	if x := r.GetChange().GetSettings(); err != nil || x.GetDrillDays() != 30 || x.GetApprovals() != 1 || r.GetDrillDays() != 90 || r.GetApprovals() != 2 {
		c.t.Errorf("while it waits: %v, %v", r, err)
	}
	_, err = olga.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: first.GetChange()})
	refused(codes.AlreadyExists, client.ErrExists, "another operator must").check(c.t, "fewer approvals, by one operator", err)
	must(c.t, second(omar.ApproveRecipientChange(ctx, &pb.ApproveRecipientChangeRequest{Change: first.GetChange()})))
	if r, err = omar.DescribeRecovery(ctx, &pb.DescribeRecoveryRequest{}); err != nil || r.GetDrillDays() != 30 || r.GetApprovals() != 1 || r.GetRequired() != 1 || r.GetChange() != nil {
		c.t.Errorf("afterwards: %v, %v", r, err)
	}
	if r, err := olga.ChangeRecoverySettings(ctx, set(&pb.RecoverySettings{Approvals: 2})); err != nil || !r.GetDone() {
		c.t.Errorf("with one approval: %v, %v", r, err)
	}
}
