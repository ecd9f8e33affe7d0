package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fileOf is a file of a restore.
func fileOf(name string, b []byte) client.RestoreFile {
	return client.RestoreFile{Name: name, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// restoring is a restore that confirms everything and keeps the plan.
type restoring struct {
	client.Restore
	plan *pb.RestorePlan
}

func restoreOf(backup []byte, journal map[string][]byte) *restoring {
	r := &restoring{}
	r.Backup = fileOf("", backup)
	for name, b := range journal {
		r.Journals = append(r.Journals, fileOf(name, b))
	}
	r.Confirm = func(p *pb.RestorePlan) error {
		r.plan = p
		return nil
	}
	return r
}

func (r *restoring) into(ctx context.Context, c *testCluster, id string, p *process) (*pb.RestoreDone, error) {
	c.t.Helper()
	return c.dial(id, p).RestoreBackup(ctx, r.Restore)
}

// readJournal reads the segments in a directory.
func readJournal(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.qkj"))
	must(t, err)
	out := map[string][]byte{}
	for _, path := range paths {
		out[filepath.Base(path)], err = os.ReadFile(path)
		must(t, err)
	}
	return out
}

// newNode starts a node with an empty data directory that belongs to no cluster.
func (c *testCluster) newNode(p *process) {
	c.t.Helper()
	must(c.t, os.RemoveAll(p.path("data")))
	p.configure("")
	p.start()
	c.until(p.name+" is up", func(*pb.StatusResponse) bool { return true }, p)
}

// lostCluster is a cluster whose nodes are all dead, with what is left of it.
type lostCluster struct {
	made             restrictions // before the backup
	later, scheduled object       // revoked after it
	moved            object       // its alias led elsewhere after it
	lost             object       // made after it
	backup           []byte
	journal          map[string][]byte
}

// loseCluster makes keys, a backup, and changes behind it, and kills every node. The
// data directories are moved away.
func (c *testCluster) loseCluster(ctx context.Context, journal string) *lostCluster {
	c.t.Helper()
	l := &lostCluster{made: c.restrict(ctx), later: c.object(ctx, "alias/later"), scheduled: c.object(ctx, "alias/scheduled"), moved: c.object(ctx, "alias/moved")}
	var b bytes.Buffer
	must(c.t, c.dial(operatorID).CreateBackup(ctx, &b))
	l.backup = b.Bytes()

	admin := c.dial(adminID).Keys()
	l.lost = c.object(ctx, "alias/lost")
	must(c.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: l.later.key})))
	must(c.t, second(admin.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: l.scheduled.key})))
	must(c.t, second(admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: l.made.rotated.key})))
	must(c.t, second(admin.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: "alias/moved", KeyId: l.lost.key})))
	s, err := c.status(c.nodes[0])
	must(c.t, err)
	for _, p := range c.nodes {
		c.until("the journal of "+p.name+" covers everything", func(now *pb.StatusResponse) bool {
			return now.GetBackup().GetJournalIndex() >= s.GetAppliedIndex() && now.GetBackup().GetJournalTime() != nil
		}, p)
	}
	refused(codes.FailedPrecondition, client.ErrAlreadyInitialized, "empty data directory").check(c.t, "a restore into a member",
		second(restoreOf(l.backup, nil).into(ctx, c, operatorID, c.nodes[1])))
	for _, p := range c.nodes {
		p.kill()
		must(c.t, os.Rename(p.path("data"), p.path("old-data")))
	}
	l.journal = readJournal(c.t, journal)
	return l
}

// TestRestore loses every data directory of three nodes; their tokens stay.
func TestRestore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	journal := filepath.Join(c.dir, "journal")
	must(t, os.Mkdir(journal, 0o700))
	for _, p := range c.nodes {
		p.extra = fmt.Sprintf("backup: {dir: %s}", journal)
	}
	c.begin()
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	l := c.loseCluster(ctx, journal)
	first, others := c.nodes[0], c.nodes[1:]
	for _, p := range c.nodes {
		p.extra = ""
	}

	c.badRestores(ctx, l, first)
	c.restoreWithoutJournal(ctx, l, others[1])

	good := restoreOf(l.backup, l.journal)
	good.Epoch, good.RequestID = 5, "restore"
	done, err := good.into(ctx, c, operatorID, first)
	if err != nil {
		t.Fatalf("restore: %v\n%s", err, first.output())
	}
	p := good.plan
	if p.GetDisableKeys() || p.GetDoubt() != "" || p.GetUnknownKeys() != 1 || p.GetKeyCount() != 6 || p.GetEnabledKeys() != 5 ||
		p.GetRecoveryEpoch() != 5 || p.GetWait().AsDuration() != testLease*5/4 || p.GetJournalTime() == nil || p.GetNodeName() != first.name {
		t.Errorf("the plan was %v", p)
	}
	if done.GetRecoveryEpoch() != 5 || done.GetClusterId() != p.GetClusterId() || done.GetRefused() == 0 {
		t.Errorf("restored: %v", done)
	}
	again, err := good.into(ctx, c, operatorID, first)
	must(t, err)
	if again.GetRecoveryEpoch() != 5 {
		t.Errorf("the same request again: %v", again)
	}
	c.until("the restored node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, first)
	c.revokedStaysRevoked(ctx, l, first)
	rotated, err := c.dial(adminID, first).Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: l.made.rotated.key})
	must(t, err)
	if got := rotated.GetCurrentVersion(); got != 5<<20+1 {
		t.Errorf("version %d was minted, want a number of the new epoch", got)
	}
	if b, err := os.ReadFile(first.trailFile()); err != nil || !strings.Contains(string(b), `"RestoreBackup"`) {
		t.Errorf("the restore is not in the audit trail: %v", err)
	}

	for _, p := range others { // with what they had, together a majority of the lost cluster
		must(t, os.RemoveAll(p.path("data")))
		must(t, os.Rename(p.path("old-data"), p.path("data")))
		p.start()
	}
	for _, p := range others {
		if code := p.waitExit(); code != exitRemoved {
			t.Errorf("%s came back with its old data directory and ended with %d:\n%s", p.name, code, p.output())
		}
	}
	for _, p := range others {
		must(t, os.RemoveAll(p.path("data")))
		p.configure(c.inviteTo(ctx, first, p))
		p.start()
		c.until(p.name+" has joined", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	c.waitVoters(3)
	for _, p := range c.nodes {
		c.revokedStaysRevoked(ctx, l, p)
	}
	first.kill()
	first.start() // from its own disk
	c.waitVoters(3)
	c.revokedStaysRevoked(ctx, l, first)
}

// revokedStaysRevoked checks what a restore with the journal must come to.
func (c *testCluster) revokedStaysRevoked(ctx context.Context, l *lostCluster, p *process) {
	c.t.Helper()
	l.made.hold(ctx, c, p)
	user := c.dial(userID, p)
	must(c.t, second(user.Decrypt(ctx, l.moved.blob, nil)))
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, "disabled after the backup", second(user.Decrypt(ctx, l.later.blob, nil)))
	refused(codes.FailedPrecondition, client.ErrKeyPendingDeletion).check(c.t, "scheduled after the backup", second(user.Decrypt(ctx, l.scheduled.blob, nil)))
	notFound.check(c.t, "a key made after the backup", second(user.Decrypt(ctx, l.lost.blob, nil)))
	notFound.check(c.t, "an alias that led to that key", second(user.Encrypt(ctx, "alias/moved", []byte("x"), nil)))
}

// badRestores tries into a new node what must be refused; the node stays new.
func (c *testCluster) badRestores(ctx context.Context, l *lostCluster, p *process) {
	c.t.Helper()
	c.newNode(p)
	altered := bytes.Clone(l.backup)
	altered[len(altered)/2] ^= 1
	edited := map[string][]byte{}
	for name, b := range l.journal {
		edited[name] = bytes.Clone(b)
		edited[name][len(b)/2] ^= 1
	}
	stranger := c.addNode("kms-9")
	c.nodes = c.nodes[:len(c.nodes)-1]
	c.newNode(stranger)
	defer stranger.terminate()
	unsure := errors.New("unsure")
	bad := func(texts ...string) *refusal { return refused(codes.InvalidArgument, client.ErrInvalid, texts...) }
	for what, x := range map[string]struct {
		r    *restoring
		id   string
		p    *process
		want *refusal
	}{
		"an altered backup":     {restoreOf(altered, nil), operatorID, p, bad("refused")}, // by its signature, or by what the byte was part of
		"a truncated backup":    {restoreOf(l.backup[:len(l.backup)-1], nil), operatorID, p, bad("cut off")},
		"an empty backup":       {restoreOf(nil, nil), operatorID, p, bad("backup refused")},
		"an edited journal":     {restoreOf(l.backup, edited), operatorID, p, bad("journal refused", "altered")},
		"a bad file name":       {restoreOf(l.backup, map[string][]byte{"../x.qkj": nil}), operatorID, p, invalidWith("../x.qkj")},
		"an administrator":      {restoreOf(l.backup, nil), adminID, p, refused(codes.PermissionDenied, client.ErrDenied)},
		"a token without it":    {restoreOf(l.backup, nil), operatorID, stranger, recoveryRefused("does not hold the domain key")},
		"too high an epoch":     {&restoring{Restore: withEpoch(l, 4096)}, operatorID, p, invalidWith("recovery epoch 4096")},
		"a dry run, no journal": {dry(restoreOf(l.backup, nil)), operatorID, p, refused(codes.FailedPrecondition, client.ErrDryRun)},
	} {
		_, err := x.r.into(ctx, c, x.id, x.p)
		x.want.check(c.t, what, err)
	}
	// A journal that was cut before the backup is a gap; what is cut behind it looks like one
	// that ended earlier, and the plan says when.
	var plan *pb.RestorePlan
	for part := 2; part <= 8 && plan.GetDoubt() == ""; part++ {
		cut := map[string][]byte{}
		for name, b := range l.journal {
			cut[name] = b[:len(b)/part]
		}
		r := restoreOf(l.backup, cut)
		r.Confirm = func(p *pb.RestorePlan) error {
			plan = p
			return unsure
		}
		if _, err := r.into(ctx, c, operatorID, p); !errors.Is(err, unsure) {
			c.t.Errorf("a restore that nobody confirmed: %v", err)
		}
	}
	if plan.GetDoubt() == "" || !plan.GetDisableKeys() {
		c.t.Errorf("a journal that was cut: %v", plan)
	}
	s, err := c.status(p)
	must(c.t, err)
	if s.GetClusterId() != "" {
		c.t.Errorf("the node belongs to a cluster: %v", s)
	}
	if _, err := os.Stat(p.path("data/raft/raft.db")); !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("it has a log: %v", err)
	}
}

func dry(r *restoring) *restoring {
	r.DryRun = true
	return r
}

func withEpoch(l *lostCluster, epoch uint32) client.Restore {
	r := restoreOf(l.backup, l.journal)
	r.Epoch = epoch
	return r.Restore
}

// restoreWithoutJournal: nobody can say what was revoked after the backup.
func (c *testCluster) restoreWithoutJournal(ctx context.Context, l *lostCluster, p *process) {
	c.t.Helper()
	c.newNode(p)
	r := restoreOf(l.backup, nil)
	if _, err := r.into(ctx, c, operatorID, p); err != nil {
		c.t.Fatalf("restore: %v\n%s", err, p.output())
	}
	if !r.plan.GetDisableKeys() || r.plan.GetDoubt() != "there is no journal" || r.plan.GetRecoveryEpoch() != 1 {
		c.t.Errorf("the plan was %v", r.plan)
	}
	c.until("the restored node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	user := c.dial(userID, p)
	for _, o := range []object{l.made.open, l.made.rotated, l.made.disabled, l.later, l.scheduled, l.moved} {
		refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(c.t, o.alias+" without a journal", second(user.Decrypt(ctx, o.blob, nil)))
	}
	must(c.t, second(c.dial(adminID, p).Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: l.made.open.key})))
	must(c.t, second(user.Decrypt(ctx, l.made.open.blob, nil)))
	p.kill()
}
