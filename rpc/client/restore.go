package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// RestoreFile is a file of a restore.
type RestoreFile struct {
	Name string // of a segment of the journal: as the node that wrote it gave it, without directories
	Open func() (io.ReadCloser, error)
}

// Restore says what is to be restored, and how.
type Restore struct {
	Backup   RestoreFile
	Journals []RestoreFile
	// Epoch is the least recovery epoch of the restored cluster; zero: one more than the
	// files tell of.
	Epoch uint32
	// DisableKeys brings every key back disabled, whatever the journal says.
	DisableKeys bool
	DryRun      bool   // ErrDryRun behind Confirm: all of it would have succeeded
	RequestID   string // empty: one is made
	// Confirm is told what the restore comes to; nothing happens if it fails.
	Confirm func(*quorumkmsv1.RestorePlan) error
	// Progress, optional, is told how many restrictions have been made again.
	Progress func(done, of uint64)
}

// RestoreBackup makes the one node of this client's addresses, which belongs to no
// cluster, the only member of the cluster of a backup. No other node is tried. It
// sends the files and returns when the node serves nothing older than the restore. If
// the connection breaks, the node stays as it was, or is done: repeat it with the same
// request id.
func (c *Client) RestoreBackup(ctx context.Context, r Restore) (*quorumkmsv1.RestoreDone, error) {
	nodes := c.order()
	if len(nodes) != 1 {
		return nil, fmt.Errorf("client: a backup is restored into one node, %d addresses are configured", len(nodes))
	}
	node := nodes[0]
	sum, err := hashOf(r.Backup)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(c.withHeaders(ctx))
	defer cancel()
	link := node.take()
	defer node.give(link)
	stream, err := quorumkmsv1.NewBackupServiceClient(link).Restore(ctx)
	if err != nil {
		return nil, newError(node.address, err)
	}
	if r.RequestID == "" {
		r.RequestID = uuid.NewString()
	}
	x := &restoring{client: c, stream: stream, restore: r}
	done, err := x.run(sum)
	if own, ok := errors.AsType[*ownError](err); ok {
		return nil, own.err
	}
	if err != nil {
		return nil, newError(node.address, err)
	}
	return done, nil
}

func hashOf(f RestoreFile) ([]byte, error) {
	file, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	return sum.Sum(nil), err
}

type restoring struct {
	client  *Client
	stream  quorumkmsv1.BackupService_RestoreClient
	restore Restore
}

func (x *restoring) run(sum []byte) (*quorumkmsv1.RestoreDone, error) {
	if err := x.send(sum); err != nil && !errors.Is(err, io.EOF) { // EOF: the node has made up its mind
		return nil, err
	}
	for {
		m, err := x.stream.Recv()
		if err != nil {
			return nil, err
		}
		switch step := m.GetStep().(type) {
		case *quorumkmsv1.RestoreResponse_Plan:
			if err := x.restore.Confirm(step.Plan); err != nil {
				return nil, &ownError{err}
			}
			confirm := &quorumkmsv1.RestoreConfirm{ClusterId: step.Plan.GetClusterId()}
			err := x.stream.Send(&quorumkmsv1.RestoreRequest{Step: &quorumkmsv1.RestoreRequest_Confirm{Confirm: confirm}})
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
		case *quorumkmsv1.RestoreResponse_Progress:
			if x.restore.Progress != nil {
				x.restore.Progress(step.Progress.GetRestrictions(), step.Progress.GetOf())
			}
		case *quorumkmsv1.RestoreResponse_Done:
			return step.Done, nil
		}
	}
}

// send sends the files.
func (x *restoring) send(sum []byte) error {
	r := x.restore
	err := x.stream.Send(&quorumkmsv1.RestoreRequest{
		Step: &quorumkmsv1.RestoreRequest_Begin{Begin: &quorumkmsv1.RestoreBegin{
			BackupSha256: sum, RecoveryEpoch: r.Epoch, DisableKeys: r.DisableKeys,
		}},
		DryRun: r.DryRun, RequestId: r.RequestID, Tenant: x.client.config.Tenant,
	})
	if err != nil {
		return err
	}
	for _, f := range append([]RestoreFile{r.Backup}, r.Journals...) {
		if err := x.sendFile(f); err != nil {
			return err
		}
	}
	return x.stream.Send(&quorumkmsv1.RestoreRequest{Step: &quorumkmsv1.RestoreRequest_End{End: &quorumkmsv1.RestoreEnd{}}})
}

func (x *restoring) sendFile(f RestoreFile) error {
	file, err := f.Open()
	if err != nil {
		return &ownError{err}
	}
	defer file.Close() //nolint:errcheck // only read
	err = x.stream.Send(&quorumkmsv1.RestoreRequest{Step: &quorumkmsv1.RestoreRequest_File{File: &quorumkmsv1.RestoreFile{Name: f.Name}}})
	if err != nil {
		return err
	}
	piece := make([]byte, uploadPiece)
	for {
		n, err := io.ReadFull(file, piece)
		if n > 0 {
			if err := x.stream.Send(&quorumkmsv1.RestoreRequest{Step: &quorumkmsv1.RestoreRequest_Data{Data: piece[:n]}}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return &ownError{err}
		}
	}
}
