package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

const (
	// maxMaking and maxChecking bound the backups that are made and checked for callers
	// at the same time. A check needs as much memory as the state in the backup.
	maxMaking   = 2
	maxChecking = 1
	// MaxBackup is the largest backup that a node checks, in bytes: several times a
	// state with fsm.MaxKeys keys of one version.
	MaxBackup = 4 << 30
)

// ErrBusy means: as many backups as a node makes or checks at a time are under way.
var ErrBusy = errors.New("this node is busy with other backups")

// Make writes a backup of a state to w.
func (a *Archive) Make(ctx context.Context, w io.Writer, s *fsm.State) error {
	select {
	case a.making <- struct{}{}:
		defer func() { <-a.making }()
	default:
		return ErrBusy
	}
	return a.write(ctx, w, s)
}

func (a *Archive) write(ctx context.Context, w io.Writer, s *fsm.State) error {
	key, err := a.config.Member.LogKey()
	if err != nil {
		return err
	}
	c := s.Cluster()
	h := backup.Header{
		Cluster: c.ID.String(), RecoveryEpoch: c.RecoveryEpoch, Index: s.Index(), Term: s.Term(),
		Records: s.Records(), Keys: uint64(s.KeyCount()), //nolint:gosec // not negative
		Node: a.config.Member.ID(), Name: a.config.Name, Created: a.config.Now().Unix(), Signer: a.config.Signer.Identity(),
	}
	return backup.Write(contextWriter{ctx, w}, h,
		func(w io.Writer) error { return s.WriteSnapshot(w, key) },
		func(message []byte) ([]byte, error) { return a.config.Signer.SignIdentity(ctx, message) })
}

type contextWriter struct {
	ctx context.Context //nolint:containedctx // of one backup
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Found is what Verify has found.
type Found struct {
	backup.Header
	Signer fsm.Member // who signed, as this cluster or the backup knows it
}

// Verify reads a whole backup and checks everything: what package backup checks, the
// MAC under this cluster's log key, every record, the invariants of the state, and
// that its signer is or was a member. backup.ErrRefused and fsm.ErrSnapshot.
func (a *Archive) Verify(r io.Reader) (Found, error) {
	select {
	case a.check <- struct{}{}:
		defer func() { <-a.check }()
	default:
		return Found{}, ErrBusy
	}
	key, err := a.config.Member.LogKey()
	if err != nil {
		return Found{}, err
	}
	s, h, err := Open(&bounded{r, MaxBackup}, key)
	if err != nil {
		return Found{}, err
	}
	for _, known := range []*fsm.State{a.config.Member.State(), s} {
		if m, ok := known.Member(h.Node); ok && string(m.Identity) == string(h.Signer) {
			return Found{h, *m}, nil
		}
	}
	return Found{}, fmt.Errorf("%w: node %s, whose key %s signed it, is and was no member of this cluster", backup.ErrRefused, h.Node, h.Fingerprint())
}

// bounded refuses what is larger than a node can check.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("%w: it is larger than %d bytes", backup.ErrRefused, int64(MaxBackup))
	}
	return n, err
}

// Open reads a backup into a state and checks all but who signed it: structure,
// signature, MAC, every record and the invariants. backup.ErrRefused and
// fsm.ErrSnapshot.
func Open(r io.Reader, key fsm.LogKey) (*fsm.State, backup.Header, error) {
	b, err := backup.NewReader(r)
	if err != nil {
		return nil, backup.Header{}, err
	}
	h := b.Header()
	s, err := fsm.ReadSnapshot(b, key)
	if err != nil {
		return nil, h, err
	}
	if err := s.Check(); err != nil {
		return nil, h, fmt.Errorf("%w: %w", fsm.ErrSnapshot, err)
	}
	c := s.Cluster()
	if c.ID.String() != h.Cluster || c.RecoveryEpoch != h.RecoveryEpoch || s.Index() != h.Index || s.Term() != h.Term ||
		s.Records() != h.Records || uint64(s.KeyCount()) != h.Keys { //nolint:gosec // not negative
		return nil, h, fmt.Errorf("%w: its header and the snapshot in it differ", backup.ErrRefused)
	}
	return s, h, nil
}
