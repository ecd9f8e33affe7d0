package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Limits of a restore.
const (
	maxRestoreFiles = 16_384
	maxRestoreBytes = archive.MaxBackup + 1<<30
	maxFileName     = 255
	// confirmAtMost is how long a person may take to confirm.
	confirmAtMost = 30 * time.Minute
	progressEvery = 250 * time.Millisecond
)

// restore is one conversation.
type restore struct {
	server *backupServer
	stream pb.BackupService_RestoreServer
	begin  *pb.RestoreBegin
	plan   *archive.Restoration
}

func (s *backupServer) Restore(stream pb.BackupService_RestoreServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r := &restore{server: s, stream: stream, begin: first.GetBegin()}
	c := call(stream.Context(), first)
	if r.begin == nil {
		return s.kms.Refuse("RestoreBackup", c, fmt.Errorf("%w: the first message must begin a restore", fsm.ErrInvalid))
	}
	done, err := s.restore(c, r)
	if err != nil {
		return err
	}
	return stream.Send(&pb.RestoreResponse{
		Step: &pb.RestoreResponse_Done{Done: done}, IndexToken: kms.IndexToken(s.member.State()),
	})
}

// restore has one conversation at a time. Whoever has its answer may begin another.
func (s *backupServer) restore(c kms.Call, r *restore) (*pb.RestoreDone, error) {
	if !s.restoring.TryLock() {
		return nil, s.kms.Refuse("RestoreBackup", c, archive.ErrBusy)
	}
	defer s.restoring.Unlock()
	defer os.RemoveAll(s.restoreDir) //nolint:errcheck // the next restore removes it first
	return kms.Operate(r.stream.Context(), s.kms, kms.Operation[*pb.RestoreDone]{
		Name: "RestoreBackup", Target: fmt.Sprintf("backup %x", r.begin.GetBackupSha256()), Call: c,
		Params: []any{r.begin.GetBackupSha256(), r.begin.GetRecoveryEpoch(), r.begin.GetDisableKeys()},
		Check:  func() error { return r.prepare(r.stream.Context()) },
		Repeat: func(fsm.Result) (*pb.RestoreDone, error) { return r.done(cluster.Restored{}), nil },
		Run:    r.run,
	})
}

func (r *restore) done(x cluster.Restored) *pb.RestoreDone {
	c := r.server.member.State().Cluster()
	return &pb.RestoreDone{
		ClusterId: c.ID.String(), RaftId: r.server.member.ID(), RecoveryEpoch: c.RecoveryEpoch, Refused: uint64(x.Refused), //nolint:gosec // not negative
		RecoveryRecipients: describeRecipients(r.server.member.State().Recovery()),
	}
}

// prepare takes the files in, checks everything and answers with the plan.
func (r *restore) prepare(ctx context.Context) error {
	if err := r.server.member.MayRestore(); err != nil { // before files are sent for nothing
		return err
	}
	err := moving(ctx, func(_ context.Context, alive func()) error { return r.receive(alive) })
	if err != nil {
		return err
	}
	if err := r.read(ctx); err != nil {
		return err
	}
	return r.stream.Send(&pb.RestoreResponse{Step: &pb.RestoreResponse_Plan{Plan: r.planned()}})
}

func (r *restore) backupFile() string { return filepath.Join(r.server.restoreDir, "backup") }
func (r *restore) journals() string   { return filepath.Join(r.server.restoreDir, "journal") }

// receive writes the files into the restore directory.
func (r *restore) receive(alive func()) (err error) {
	if err := errors.Join(os.RemoveAll(r.server.restoreDir), os.MkdirAll(r.journals(), 0o700)); err != nil {
		return err
	}
	var file *os.File
	shut := func() error {
		f := file
		file = nil
		if f == nil {
			return nil
		}
		return f.Close()
	}
	defer func() { err = errors.Join(err, shut()) }()
	total, files := 0, 0
	for {
		m, err := r.stream.Recv()
		if err != nil {
			return err
		}
		alive()
		switch x := m.GetStep().(type) {
		case *pb.RestoreRequest_File:
			if err := shut(); err != nil {
				return err
			}
			if file, err = r.create(x.File.GetName(), files); err != nil {
				return err
			}
			files++
		case *pb.RestoreRequest_Data:
			if total += len(x.Data); total > maxRestoreBytes || file == nil {
				return fmt.Errorf("%w: data before a file, or more than %d bytes", fsm.ErrInvalid, maxRestoreBytes)
			}
			if _, err := file.Write(x.Data); err != nil {
				return err
			}
		case *pb.RestoreRequest_End:
			if files == 0 {
				return fmt.Errorf("%w: no backup was sent", fsm.ErrInvalid)
			}
			return nil
		default:
			return fmt.Errorf("%w: unexpected step %T", fsm.ErrInvalid, x)
		}
	}
}

func (r *restore) create(name string, before int) (*os.File, error) {
	switch {
	case before == 0:
		return os.OpenFile(r.backupFile(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	case before > maxRestoreFiles:
		return nil, fmt.Errorf("%w: more than %d files", fsm.ErrInvalid, maxRestoreFiles)
	case name == "" || len(name) > maxFileName || name != filepath.Base(name) || strings.HasPrefix(name, "."):
		return nil, fmt.Errorf("%w: file name %.80q", fsm.ErrInvalid, name)
	}
	return os.OpenFile(filepath.Join(r.journals(), name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// read checks what was received, and that this node's HSM can open it.
func (r *restore) read(ctx context.Context) error {
	file, err := os.Open(r.backupFile())
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	b, err := backup.NewReader(file)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(b.Header().Cluster)
	if err != nil {
		return fmt.Errorf("%w: %w", backup.ErrRefused, err)
	}
	key, err := r.server.member.RestoreKey(ctx, id)
	if err != nil {
		return err
	}
	if _, err := file.Seek(0, 0); err != nil {
		return err
	}
	if r.plan, err = archive.PlanRestore(file, key, r.begin.GetRecoveryEpoch(), r.journals()); err != nil {
		return err
	}
	if !bytes.Equal(r.plan.SHA256, r.begin.GetBackupSha256()) {
		return fmt.Errorf("%w: its SHA-256 is %x, %x was announced", backup.ErrRefused, r.plan.SHA256, r.begin.GetBackupSha256())
	}
	return r.server.member.HoldsDomain(ctx, r.plan.State)
}

func (r *restore) disable() bool { return r.begin.GetDisableKeys() || r.plan.Doubt != "" }

func (r *restore) planned() *pb.RestorePlan {
	p := r.plan
	out := &pb.RestorePlan{
		ClusterId: p.Cluster, BackupEpoch: p.RecoveryEpoch, Index: p.Index, Created: date(p.Created),
		SignerName: p.Signer.Name, SignerFingerprint: p.Fingerprint(), KeyCount: p.Keys, EnabledKeys: uint64(p.Enabled), //nolint:gosec // not negative
		RecoveryEpoch: p.Epoch, JournalSegments: uint32(p.Segments), JournalIndex: p.Covered.Index, Restrictions: uint64(len(p.Replay)), //nolint:gosec // bounded
		UnknownKeys: uint64(p.Unknown), DisableKeys: r.disable(), Doubt: p.Doubt, NodeName: r.server.node.Name, //nolint:gosec // not negative
		Wait: durationpb.New(cluster.LeaseWait(p.State)), RecoveryRecipients: describeRecipients(p.State.Recovery()),
	}
	if !p.Covered.Time.IsZero() {
		out.JournalTime = timestamppb.New(p.Covered.Time)
	}
	return out
}

// run waits for the confirmation and restores.
func (r *restore) run(ctx context.Context, p fsm.Proposal, _ kms.Propose) (*pb.RestoreDone, error) {
	if err := r.confirmed(ctx); err != nil {
		return nil, err
	}
	var told time.Time
	of := uint64(len(r.plan.Replay))
	restored, err := r.server.member.Restore(ctx, cluster.Restoration{
		State: r.plan.State, Backup: r.plan.SHA256, Epoch: r.plan.Epoch, Disable: r.disable(), JournalEnd: r.plan.JournalEnd(),
		Replay: r.plan.Replay, Proposal: p,
		Progress: func(done int) {
			if now := time.Now(); now.Sub(told) >= progressEvery {
				told = now
				// Where the client is gone, ctx ends too.
				_ = r.stream.Send(&pb.RestoreResponse{Step: &pb.RestoreResponse_Progress{
					Progress: &pb.RestoreProgress{Restrictions: uint64(done), Of: of}, //nolint:gosec // not negative
				}})
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return r.done(restored), nil
}

func (r *restore) confirmed(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() { // ends with the call
		m, err := r.stream.Recv()
		if id := m.GetConfirm().GetClusterId(); err == nil && id != r.plan.Cluster {
			err = fmt.Errorf("%w: confirmed was %.80q, the cluster is %s", fsm.ErrInvalid, id, r.plan.Cluster)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-time.After(confirmAtMost):
		return fmt.Errorf("%w: nobody confirmed the restore within %s", context.DeadlineExceeded, confirmAtMost)
	case <-ctx.Done():
		return ctx.Err()
	}
}
