package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

var (
	_ trail.Opener = (*trailSealer)(nil)
	_ audit.Sealer = (*trailSealer)(nil)
)

// dataKeyTimeout bounds the call for the data key of a segment.
const dataKeyTimeout = 10 * time.Second

// trailSealer seals and opens segments of the audit trail under data keys of a key that the
// node may use as any caller that holds a grant.
type trailSealer struct {
	key  string // audit.seal
	keys atomic.Pointer[trailKeys]
}

// trailKeys is what the sealer needs of the node, once it is wired.
type trailKeys struct {
	service *kms.Service
	member  *cluster.Member
	ending  func() bool
}

// ready is the key service, and the context of a segment.
func (t *trailSealer) ready(segment int64) (*trailKeys, map[string]string, error) {
	k := t.keys.Load()
	switch {
	case k == nil:
		return nil, nil, fmt.Errorf("%w: the node starts", fsm.ErrNotInitialized)
	case k.ending():
		return nil, nil, fmt.Errorf("%w: the node stops", cluster.ErrShutdown)
	}
	st := k.member.State()
	if !st.Initialized() {
		return nil, nil, fsm.ErrNotInitialized
	}
	return k, trail.SealContext(st.Cluster().ID.String(), k.member.ID(), segment), nil
}

// Seal implements audit.Sealer.
func (t *trailSealer) Seal(ctx context.Context, segment int64, to io.Writer, from io.Reader, size int64) error {
	keys, ec, err := t.ready(segment)
	if err != nil {
		return err
	}
	_, err = envelope.Seal(ctx, keys, t.key, ec, to, from, size)
	return err
}

// OpenSegment implements trail.Opener.
func (t *trailSealer) OpenSegment(ctx context.Context, segment int64, sealed io.Reader) (io.Reader, error) {
	keys, ec, err := t.ready(segment)
	if err != nil {
		return nil, err
	}
	r, err := envelope.NewOpenReader(ctx, keys, ec, sealed)
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, kms.ErrCiphertext), errors.Is(err, kms.ErrMalformed), errors.Is(err, envelope.ErrFormat), errors.Is(err, envelope.ErrCorrupt):
		return nil, fmt.Errorf("%w: the sealed file was altered, or is that of another segment: %v", trail.ErrTrail, err) //nolint:errorlint // it is no fault of a caller's
	case errors.Is(err, kms.ErrDenied), fsm.Code(err) != "" && !errors.Is(err, fsm.ErrHalted):
		return nil, fmt.Errorf("%w: %v", trail.ErrSealed, err) //nolint:errorlint // it is the node that may not, not who asks for records
	}
	return nil, err // it will pass
}

// GenerateDataKey implements envelope.DataKeys.
func (k *trailKeys) GenerateDataKey(ctx context.Context, key string, ec map[string]string) (plaintext, blob []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, dataKeyTimeout)
	defer cancel()
	sealed, err := k.service.TrailDataKey(ctx, key, envelope.DataKeySize, pairsOf(ec))
	return sealed.Plaintext, sealed.Ciphertext, err
}

// DecryptDataKey implements envelope.DataKeys.
func (k *trailKeys) DecryptDataKey(ctx context.Context, blob []byte, ec map[string]string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dataKeyTimeout)
	defer cancel()
	opened, err := k.service.OpenTrailDataKey(ctx, blob, pairsOf(ec))
	return opened.Plaintext, err
}

func pairsOf(ec map[string]string) (out []kms.Pair) {
	for key, value := range ec {
		out = append(out, kms.Pair{Key: key, Value: value})
	}
	return out
}
