package hsm_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// TestMeter counts from many goroutines, and allocates nothing for a call that succeeds.
func TestMeter(t *testing.T) {
	const goroutines, calls = 8, 1000
	var m hsm.Meter
	began := time.Now().Add(-time.Millisecond)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range calls {
				m.Done(hsm.CallWrap, began, nil)
			}
		})
	}
	wg.Wait()
	m.Done(hsm.CallSession, began, errors.New("no session"))
	a := m.Count()
	i := slices.IndexFunc(a.Calls, func(c hsm.CallCount) bool { return c.Kind == hsm.CallWrap })
	if got := a.Calls[i]; got.Count != goroutines*calls || got.Errors != 0 || got.Time < goroutines*calls*time.Millisecond {
		t.Errorf("counted %+v", got)
	}
	if last := a.Calls[len(a.Calls)-1]; last.Kind != hsm.CallSession || last.Count != 1 || last.Errors != 1 {
		t.Errorf("counted %+v", last)
	}
	if a.LastError != "session: no session" || a.LastFault.IsZero() {
		t.Errorf("last error %q at %v", a.LastError, a.LastFault)
	}
	if n := testing.AllocsPerRun(100, func() { m.Done(hsm.CallEncrypt, began, nil) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
	var none *hsm.Meter
	none.Done(hsm.CallWrap, began, errors.New("x")) // counts nothing
}

// BenchmarkMeter is what the count costs a call of the token.
func BenchmarkMeter(b *testing.B) {
	var m hsm.Meter
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Done(hsm.CallEncrypt, time.Now(), nil)
		}
	})
}

// TestWrongAnswerIsCorrupt: who knows only the older word understands it.
func TestWrongAnswerIsCorrupt(t *testing.T) {
	if !errors.Is(hsm.ErrWrongAnswer, hsm.ErrCorrupt) || errors.Is(hsm.ErrCorrupt, hsm.ErrWrongAnswer) || errors.Is(hsm.ErrWrongAnswer, hsm.ErrUnavailable) {
		t.Error("a wrong answer is ErrCorrupt, and nothing else is a wrong answer")
	}
}
