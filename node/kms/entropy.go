package kms

import (
	"context"
	"crypto/rand"
	"crypto/subtle"

	"github.com/quorumkms/quorumkms/hsm"
)

// entropy gives random bytes that are the HSM's XORed with the process's: good as
// long as one of the two generators is. The HSM's are fetched hsm.MaxRandom at a
// time, used once and wiped.
type entropy struct {
	source KeyMaker

	turn chan struct{} // holds one token: whose turn it is
	pool [hsm.MaxRandom]byte
	left int // unused bytes, at the end of the pool
}

func newEntropy(source KeyMaker) *entropy {
	return &entropy{source: source, turn: make(chan struct{}, 1)}
}

func (e *entropy) read(ctx context.Context, b []byte) error {
	if _, err := rand.Read(b); err != nil {
		return err
	}
	for len(b) > 0 {
		n, err := e.mix(ctx, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// mix XORs as much of b as one turn at the HSM's bytes gives; others have theirs in between.
func (e *entropy) mix(ctx context.Context, b []byte) (n int, err error) {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if e.left == 0 {
		if err := e.source.Random(ctx, e.pool[:]); err != nil {
			return 0, err
		}
		e.left = len(e.pool)
	}
	n = min(len(b), e.left)
	part := e.pool[len(e.pool)-e.left:][:n]
	subtle.XORBytes(b, b[:n], part)
	clear(part)
	e.left -= n
	return n, nil
}
