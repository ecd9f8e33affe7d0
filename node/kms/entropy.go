package kms

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
)

// entropy gives random bytes that are the HSM's XORed with the process's: good as
// long as one of the two generators is. The HSM's are fetched hsm.MaxRandom at a
// time, used once and wiped.
type entropy struct {
	source interface {
		Random(ctx context.Context, b []byte) error
	}

	mu   sync.Mutex
	pool [hsm.MaxRandom]byte
	left int // unused bytes, at the end of the pool
}

func (e *entropy) read(ctx context.Context, b []byte) error {
	if _, err := rand.Read(b); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(b) > 0 {
		if e.left == 0 {
			if err := e.source.Random(ctx, e.pool[:]); err != nil {
				return err
			}
			e.left = len(e.pool)
		}
		n := min(len(b), e.left)
		part := e.pool[len(e.pool)-e.left:][:n]
		subtle.XORBytes(b, b[:n], part)
		clear(part)
		b, e.left = b[n:], e.left-n
	}
	return nil
}
