//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// makers is a partition that nobody else uses, with a generation in it.
func makers(t *testing.T, sessions int) (*Partition, *link) {
	t.Helper()
	cfg := config(newToken(t))
	cfg.ReopenEvery, cfg.Sessions = time.Hour, sessions
	p := mustOpen(t, cfg)
	if _, err := p.CreateDomain(t.Context(), testCluster, 1); err != nil {
		t.Fatal(err)
	}
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	return p, l
}

// makes makes a key and shares a proof, without opening the key.
func makes(ctx context.Context, p *Partition, n int) error {
	spec := testSpec(byte(n))
	h, err := spec.Header()
	if err == nil {
		_, err = p.makeToken(ctx, spec.Kind(), h)
	}
	return err
}

func calls(p *Partition, k hsm.CallKind) uint64 {
	return p.Activity().Calls[k].Count
}

// waiting has n makers wait, with keys that are made, until the turn is given back; outcomes
// is what they say then.
func waiting(t *testing.T, p *Partition, l *link, n int) (goOn func(), outcomes chan error) {
	t.Helper()
	l.proofs.turn <- struct{}{}
	signed := calls(p, hsm.CallSign) + uint64(n)
	outcomes = make(chan error, n)
	for i := range n {
		go func() { outcomes <- makes(t.Context(), p, i) }()
	}
	eventually(t, "all have made their keys and wait", func() bool {
		return calls(p, hsm.CallSign) == signed && len(l.work) == cap(l.work)
	})
	return func() { <-l.proofs.turn }, outcomes
}

// share is a key made and proven, without a token.
func share(ctx context.Context, q *proofs, resident bool, questions func(resident bool) error) error {
	p := q.join(resident)
	return q.settle(ctx, nil, p, func() error { return q.ask(p, questions) })
}

// TestMakersShareAProof: those whose keys were made before it begins, more than there are
// sessions.
func TestMakersShareAProof(t *testing.T) {
	const n = 8
	p, l := makers(t, n/2)
	wraps, unwraps := calls(p, hsm.CallWrap), calls(p, hsm.CallUnwrap)
	goOn, outcomes := waiting(t, p, l, n)
	if got := calls(p, hsm.CallWrap) - wraps; got != n {
		t.Fatalf("%d keys are wrapped, want %d", got, n)
	}
	if got := calls(p, hsm.CallUnwrap) - unwraps; got != 0 {
		t.Fatalf("%d proofs before the turn is given", got)
	}
	goOn()
	for range n {
		if err := <-outcomes; err != nil {
			t.Error(err)
		}
	}
	if got := calls(p, hsm.CallUnwrap) - unwraps; got != 1 {
		t.Errorf("%d proofs for %d keys that were made before", got, n)
	}
	// The next does not share what has begun.
	if err := makes(t.Context(), p, n); err != nil {
		t.Error(err)
	}
	if got := calls(p, hsm.CallUnwrap) - unwraps; got != 2 {
		t.Errorf("%d proofs, want another one", got)
	}
}

// TestMakersOnOneSession: who waits for it and who waits for a proof do not keep each other.
func TestMakersOnOneSession(t *testing.T) {
	p, _ := makers(t, 1)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := p.GenerateKey(t.Context(), testSpec(byte(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// numbered is the outcome of a proof that is told from others.
type numbered int64

func (n numbered) Error() string { return fmt.Sprintf("proof %d", int64(n)) }

func (n numbered) Is(target error) bool { return target == hsm.ErrCorrupt }

// TestProofBeginsAfter: whatever the order, everybody is told of a proof that began after it
// asked, and one runs at a time.
func TestProofBeginsAfter(t *testing.T) {
	const goroutines, rounds = 32, 300
	q := newProofs()
	var begun, running atomic.Int64
	run := func(bool) error {
		if running.Add(1) != 1 {
			t.Error("two proofs at a time")
		}
		defer running.Add(-1)
		n := numbered(begun.Add(1))
		runtime.Gosched()
		return n
	}
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range rounds {
				before := begun.Load()
				err := share(context.Background(), &q, false, run)
				if other, shared := err.(anothers); shared {
					err = other.error
				}
				if n, ok := err.(numbered); !ok || int64(n) <= before {
					t.Errorf("told %v after %d had begun", err, before)
					return
				}
			}
		})
	}
	wg.Wait()
	if q.next != nil || len(q.turn) != 0 {
		t.Error("a proof is left")
	}
}

// TestSharedProofIsOfAll: what one of those who share a proof needs is asked, and not of the
// next; one that panics is none; who cannot ask leaves it to the others.
func TestSharedProofIsOfAll(t *testing.T) {
	q := newProofs()
	joined := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.next != nil && q.next.resident
	}
	var asked []bool
	run := func(resident bool) error { asked = append(asked, resident); return nil }
	q.turn <- struct{}{}
	var wg sync.WaitGroup
	for _, resident := range []bool{false, true, false} {
		wg.Go(func() {
			if err := share(t.Context(), &q, resident, run); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "one that needs more has joined", joined)
	<-q.turn
	wg.Wait()
	if err := share(t.Context(), &q, false, run); err != nil {
		t.Error(err)
	}
	if !slices.Contains(asked, true) || asked[len(asked)-1] {
		t.Errorf("asked for resident keys: %v", asked)
	}
	p := q.join(false)
	func() {
		defer func() { _ = recover() }()
		_ = share(t.Context(), &q, false, func(bool) error { panic("a proof") })
	}()
	<-p.ended
	if err := p.told(); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a proof that panics says %v", err)
	}
	if err := share(t.Context(), &q, false, run); err != nil {
		t.Errorf("after one that panics: %v", err)
	}
	p = q.join(false)
	if err := q.settle(t.Context(), nil, p, func() error { return hsm.ErrBusy }); !errors.Is(err, hsm.ErrBusy) {
		t.Errorf("who cannot ask says %v", err)
	}
	if q.join(false) != p {
		t.Error("a proof that has not begun is not the next")
	}
	if err := q.settle(t.Context(), nil, p, func() error { return q.ask(p, run) }); err != nil {
		t.Errorf("after one that cannot ask: %v", err)
	}
}

// TestErringTokenFailsAllWhoShare: what is wrong after the keys were made is told to everybody
// who has made one, and judged once.
func TestErringTokenFailsAllWhoShare(t *testing.T) {
	const n = 8
	t.Run("wrong answer", func(t *testing.T) {
		right := answers().mac[0]
		t.Cleanup(func() { answers().mac[0] = right }) // after the partition is closed
		p, l := makers(t, n)
		goOn, outcomes := waiting(t, p, l, n)
		sessions := calls(p, hsm.CallSession)
		answers().mac[0] ^= 1
		goOn()
		for range n {
			if err := <-outcomes; !errors.Is(err, hsm.ErrWrongAnswer) || code(err) != pkcs11.CKR_OK {
				t.Errorf("error %v, want %v", err, hsm.ErrWrongAnswer)
			}
		}
		if got := calls(p, hsm.CallSession) - sessions; got != 0 {
			t.Errorf("%d calls of sessions that are well", got)
		}
		if _, err := p.GenerateKey(t.Context(), testSpec(1)); !errors.Is(err, hsm.ErrWrongAnswer) {
			t.Errorf("error %v, want %v", err, hsm.ErrWrongAnswer)
		}
		if n := p.Activity().Losses; n != 1 {
			t.Errorf("a token that errs was lost %d times, want once", n)
		}
	})
	t.Run("loss", func(t *testing.T) {
		p, l := makers(t, n)
		goOn, outcomes := waiting(t, p, l, n)
		if err := intruder(t).CloseAllSessions(l.token.id); err != nil {
			t.Fatal(err)
		}
		goOn()
		judged := 0
		for range n {
			err := <-outcomes
			if !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("error %v, want %v", err, hsm.ErrUnavailable)
			}
			if code(err) != pkcs11.CKR_OK {
				judged++
			}
		}
		if losses := p.Activity().Losses; losses != 1 || judged != 1 {
			t.Errorf("lost %d times by %d errors, want once", losses, judged)
		}
	})
}

// TestWaitForProofEnds: with its context or its token, and takes nothing from others.
func TestWaitForProofEnds(t *testing.T) {
	p, l := makers(t, 4)
	l.proofs.turn <- struct{}{}
	waits := func() bool {
		l.proofs.mu.Lock()
		defer l.proofs.mu.Unlock()
		return l.proofs.next != nil
	}
	canceled, cancel := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { left <- makes(canceled, p, 1) }()
	eventually(t, "it waits", waits)
	go func() { stayed <- makes(t.Context(), p, 2) }()
	cancel()
	if err := <-left; !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait says %v", err)
	}
	<-l.proofs.turn
	if err := <-stayed; err != nil {
		t.Errorf("who stays is told %v", err)
	}
	l.proofs.turn <- struct{}{}
	go func() { left <- makes(t.Context(), p, 3) }()
	eventually(t, "it waits", waits)
	l.lose()
	if err := <-left; !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a lost token says %v", err)
	}
	<-l.proofs.turn
}
