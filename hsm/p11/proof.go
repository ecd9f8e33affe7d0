//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
)

// Known answers (doubt.go) are more calls than the making of a key itself. Those who make keys
// at the same time share them: a key is good if the token has answered rightly what it was
// asked after the key was made, whoever asked. So one proof runs at a time, by one of those who
// share it, and whoever comes meanwhile shares the next. Who waits holds no session. A proof that
// fails, whatever the reason, fails all that share it.

// proofs are those of a link.
type proofs struct {
	turn chan struct{} // holds one: taken by who runs a proof

	mu   sync.Mutex
	next *proof // has not begun; nil: nobody has asked for it
}

type proof struct {
	resident bool          // of what resident keys need too; set by who shares it, before it begins
	ended    chan struct{} // closed after err is set
	err      error
}

func newProofs() proofs { return proofs{turn: make(chan struct{}, 1)} }

// join is the proof that begins next. Whoever calls this has settle called.
func (q *proofs) join(resident bool) *proof {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.next == nil {
		q.next = &proof{ended: make(chan struct{})}
	}
	q.next.resident = q.next.resident || resident
	return q.next
}

// making runs fn, which makes a key, with a session, and has the token answer what is known
// afterwards.
func (p *Partition) making(ctx context.Context, resident bool, fn func(*session) error) error {
	l, err := p.current()
	if err != nil {
		return err
	}
	var shared *proof
	err = p.on(ctx, l, func(s *session) error {
		err := fn(s)
		if err == nil {
			shared = l.proofs.join(resident)
		}
		return err
	})
	if err != nil {
		return err
	}
	return p.proven(ctx, l, shared)
}

// proven is nil if the token answered rightly in a proof.
func (p *Partition) proven(ctx context.Context, l *link, shared *proof) error {
	return l.proofs.settle(ctx, l.gone, shared, func() error {
		return p.on(ctx, l, func(s *session) error {
			return l.proofs.ask(shared, func(resident bool) error {
				err := s.proves(p.traits)
				if resident {
					err = errors.Join(err, s.provesResident(p.traits))
				}
				return err
			})
		})
	})
}

// settle returns how a proof ends. It is run here, or by another who shares it: then the error
// is anothers. It waits as long as ctx and the link last. If run cannot ask, for want of a
// session, the proof is still the next, for the others.
func (q *proofs) settle(ctx context.Context, gone <-chan struct{}, p *proof, run func() error) error {
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-p.ended:
		return p.told()
	case <-gone:
		return fmt.Errorf("%w: the token was lost", hsm.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for known answers: %w", hsm.ErrUnavailable, context.Cause(ctx))
	}
	select {
	case <-p.ended: // while others had the turn
		return p.told()
	default: // so it is the next: only who has the turn begins one, and keeps the turn until it ends
		return run()
	}
}

// ask begins a proof: nobody joins it any more. It is called by who has the turn.
func (q *proofs) ask(p *proof, questions func(resident bool) error) error {
	q.mu.Lock()
	q.next = nil
	q.mu.Unlock()
	defer close(p.ended)
	p.err = errNoProof
	p.err = questions(p.resident)
	return p.err
}

// errNoProof is what others are told if the questions panic.
var errNoProof = fmt.Errorf("%w: known answers were not compared", hsm.ErrUnavailable)

// told is the outcome of a proof that has ended, for those who have not run it.
func (p *proof) told() error {
	if p.err == nil {
		return nil
	}
	return anothers{wrapped(p.err)}
}

// anothers is an error of another's session. It is what that is, but has no code, by which it
// would be judged again.
type anothers struct{ error }

// Is says what the error is.
func (e anothers) Is(target error) bool { return errors.Is(e.error, target) }
