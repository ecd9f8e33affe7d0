package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// streamStall is how long a stream may stand still.
	streamStall = time.Minute
	// uploadPiece is how much of a backup one message carries, in bytes.
	uploadPiece = 256 << 10
)

// CreateBackup has a node make a backup, which holds everything that was acknowledged
// before the call, and hands it to w as it comes: a file as package backup reads it.
// Until the first piece has come, other nodes are tried as for any call. An error of w
// is returned as it is; after any error, what w has got is no backup. ctx limits the
// whole; without a deadline, a backup may take as long as it moves on.
func (c *Client) CreateBackup(ctx context.Context, w io.Writer) error {
	return c.stream(ctx, func(ctx context.Context, conn *link, alive func()) (begun bool, err error) {
		r := &quorumkmsv1.CreateBackupRequest{Tenant: c.config.Tenant, IndexToken: c.indexToken()}
		s, err := quorumkmsv1.NewBackupServiceClient(conn).Create(ctx, r)
		for err == nil {
			var m *quorumkmsv1.CreateBackupResponse
			if m, err = s.Recv(); err != nil {
				break
			}
			alive()
			begun = true
			if _, failed := w.Write(m.GetData()); failed != nil {
				return begun, &ownError{failed}
			}
		}
		if errors.Is(err, io.EOF) {
			return begun, nil
		}
		return begun, err
	})
}

// VerifyBackup has a node check a backup. open is called for each attempt; what it
// returns is read to its end or to the first error, and closed.
func (c *Client) VerifyBackup(ctx context.Context, open func() (io.ReadCloser, error)) (*quorumkmsv1.VerifyBackupResponse, error) {
	var answer *quorumkmsv1.VerifyBackupResponse
	err := c.stream(ctx, func(ctx context.Context, conn *link, alive func()) (bool, error) {
		file, err := open()
		if err != nil {
			return false, &ownError{err}
		}
		defer file.Close() //nolint:errcheck // only read
		s, err := quorumkmsv1.NewBackupServiceClient(conn).Verify(ctx)
		if err != nil {
			return false, err
		}
		if err := c.upload(s, file, alive); err != nil {
			return false, err
		}
		answer, err = s.CloseAndRecv()
		return false, err
	})
	return answer, err
}

func (c *Client) upload(s quorumkmsv1.BackupService_VerifyClient, file io.Reader, alive func()) error {
	piece := make([]byte, uploadPiece)
	for {
		n, err := io.ReadFull(file, piece)
		if n > 0 {
			m := &quorumkmsv1.VerifyBackupRequest{Data: piece[:n], Tenant: c.config.Tenant, IndexToken: c.indexToken()}
			switch err := s.Send(m); {
			case errors.Is(err, io.EOF): // the node has made up its mind; CloseAndRecv says how
				return nil
			case err != nil:
				return err
			}
			alive()
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return &ownError{err}
		}
	}
}

// ownError is an error of the caller's reader or writer, which no other node changes.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }
func (e *ownError) Unwrap() error { return e.err }

// stream makes attempts, one node after the other, until one ends well, has begun, or
// ends for a reason that no other node changes, or the time for attempts is over.
func (c *Client) stream(ctx context.Context, attempt func(ctx context.Context, conn *link, alive func()) (begun bool, err error)) error {
	limit := c.config.Deadline
	if limit == 0 {
		limit = deadlineFactor * c.config.MutationTimeout
	}
	ctx = c.withHeaders(ctx)
	began := time.Now()
	var last *Error
	for round := 0; ; round++ {
		hope := false
		for _, e := range c.order() {
			if last != nil && c.config.Retrying != nil {
				c.config.Retrying(last.Address, last)
			}
			l := e.take()
			begun, err := streamOnce(ctx, l, attempt)
			refusal := l.refusal()
			e.give(l)
			if err == nil {
				c.answered(e, nil)
				return nil
			}
			if own, ok := errors.AsType[*ownError](err); ok {
				return own.err
			}
			failure := newError(e.address, err)
			if errors.Is(err, errStalled) {
				failure.Code, failure.Message = codes.Unavailable, errStalled.Error()
			}
			if ctx.Err() != nil {
				return outOfTime(ctx, failure)
			}
			if failure.Code == codes.Canceled { // not by the caller: the connection went
				failure.Code = codes.Unavailable
			}
			if begun || !failure.transient() {
				return failure
			}
			c.failed(e)
			c.learn(failure.Nodes)
			failure.cause = refusal
			last, hope = failure, hope || !failure.refused()
		}
		switch {
		case c.isClosed():
			return ErrClosed
		case !hope:
			return last
		case time.Since(began) > limit:
			return fmt.Errorf("client: no node could do it within %s; last: %w", limit, last)
		case !pause(ctx, round):
			return outOfTime(ctx, last)
		}
	}
}

var errStalled = errors.New("client: nothing moved for " + streamStall.String())

func streamOnce(ctx context.Context, l *link, attempt func(context.Context, *link, func()) (bool, error)) (begun bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(streamStall, func() { cancel(errStalled) })
	defer stall.Stop()
	begun, err = attempt(ctx, l, func() { stall.Reset(streamStall) })
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	return begun, err
}
