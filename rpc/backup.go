package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// backupPiece is how much of a backup one message carries, in bytes.
	backupPiece = 256 << 10
	// streamStall is how long a client may keep a stream from moving on.
	streamStall = time.Minute
)

type backupServer struct {
	pb.UnimplementedBackupServiceServer
	kms     *kms.Service
	member  *cluster.Member
	archive *archive.Archive
	node    NodeView

	restoreDir string
	restoring  sync.Mutex // one restore at a time
}

// Create records the call before the first byte leaves; one that breaks off is
// recorded once more.
func (s *backupServer) Create(r *pb.CreateBackupRequest, stream pb.BackupService_CreateServer) error {
	ctx := stream.Context()
	c := call(ctx, r)
	state, err := kms.Operate(ctx, s.kms, kms.Operation[*fsm.State]{
		Name: "CreateBackup", Call: c,
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*fsm.State, error) { return nil, fsm.ErrRequestReused },
		Run: func(ctx context.Context, _ fsm.Proposal, _ kms.Propose) (*fsm.State, error) {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if err := s.member.Confirm(ctx); err != nil {
				return nil, err
			}
			return s.member.State(), nil
		},
	})
	if err != nil {
		return err
	}
	err = moving(ctx, func(ctx context.Context, alive func()) error {
		out := bufio.NewWriterSize(&download{stream, kms.IndexToken(state), alive}, backupPiece)
		if err := s.archive.Make(ctx, out, state); err != nil {
			return err
		}
		return out.Flush()
	})
	if err != nil {
		return s.kms.Refuse("CreateBackup", c, err)
	}
	return nil
}

// download sends a backup.
type download struct {
	stream pb.BackupService_CreateServer
	token  []byte // for the first message
	alive  func()
}

func (d *download) Write(p []byte) (int, error) {
	if err := d.stream.Send(&pb.CreateBackupResponse{Data: p, IndexToken: d.token}); err != nil {
		return 0, err
	}
	d.token = nil
	d.alive()
	return len(p), nil
}

func (s *backupServer) Verify(stream pb.BackupService_VerifyServer) error {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	found, err := kms.Operate(stream.Context(), s.kms, kms.Operation[archive.Found]{
		Name: "VerifyBackup", Call: call(stream.Context(), first),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (archive.Found, error) { return archive.Found{}, fsm.ErrRequestReused },
		Run: func(ctx context.Context, _ fsm.Proposal, _ kms.Propose) (archive.Found, error) {
			var found archive.Found // read only when moving says that it is there
			err := moving(ctx, func(_ context.Context, alive func()) (err error) {
				found, err = s.archive.Verify(&upload{stream, first.GetData(), alive})
				return err
			})
			if err != nil {
				return archive.Found{}, err
			}
			return found, nil
		},
	})
	if err != nil {
		return err
	}
	state := s.member.State()
	return stream.SendAndClose(&pb.VerifyBackupResponse{
		ClusterId: found.Cluster, RecoveryEpoch: found.RecoveryEpoch, Index: found.Index, Term: found.Term,
		Created: timestamppb.New(time.Unix(found.Created, 0)), Records: found.Records, KeyCount: found.Keys,
		SignerId: found.Signer.ID, SignerName: found.Signer.Name, SignerState: memberStates[found.Signer.State], SignerFingerprint: found.Fingerprint(),
		AppliedIndex: state.Index(), AppliedEpoch: state.Cluster().RecoveryEpoch, IndexToken: kms.IndexToken(state),
	})
}

// upload receives a backup.
type upload struct {
	stream pb.BackupService_VerifyServer
	data   []byte
	alive  func()
}

func (u *upload) Read(p []byte) (int, error) {
	for len(u.data) == 0 {
		m, err := u.stream.Recv()
		if err != nil {
			return 0, err
		}
		u.data = m.GetData()
		u.alive()
	}
	n := copy(p, u.data)
	u.data = u.data[n:]
	return n, nil
}

// errStalled is what a stream ends with that its client does not move on.
var errStalled = fmt.Errorf("%w: nothing moved", context.DeadlineExceeded)

// moving runs f as long as it reports that it is alive. Only the end of a call ends a
// blocked Send or Recv: so f may outlive moving, until the call's handler has returned.
func moving(ctx context.Context, f func(ctx context.Context, alive func()) error) error {
	return movingWithin(ctx, streamStall, f)
}

// movingWithin is moving with another limit.
func movingWithin(ctx context.Context, limit time.Duration, f func(ctx context.Context, alive func()) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beat, done := make(chan struct{}, 1), make(chan func() error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- func() error { panic(p) } // in the handler, where it is caught and logged
			}
		}()
		err := f(ctx, func() {
			select {
			case beat <- struct{}{}:
			default:
			}
		})
		done <- func() error { return err }
	}()
	stall := time.NewTimer(limit)
	defer stall.Stop()
	for {
		select {
		case end := <-done:
			return end()
		case <-beat:
			stall.Reset(limit)
		case <-stall.C:
			return fmt.Errorf("%w for %s", errStalled, limit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func backupStatus(s archive.Status) *pb.BackupStatus {
	out := &pb.BackupStatus{
		Directory: s.Dir, LastIndex: s.Backup.Index, BackupProblem: s.BackupProblem,
		JournalIndex: s.Journal.Index, JournalProblem: s.JournalProblem,
	}
	if !s.Backup.Time.IsZero() {
		out.LastBackup = timestamppb.New(s.Backup.Time)
	}
	if s.Every > 0 {
		out.Every = durationpb.New(s.Every)
	}
	if !s.DueSince.IsZero() {
		out.DueSince = timestamppb.New(s.DueSince)
	}
	if !s.Journal.Time.IsZero() {
		out.JournalTime = timestamppb.New(s.Journal.Time)
	}
	return out
}
