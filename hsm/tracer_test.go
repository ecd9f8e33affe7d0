package hsm_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// TestCallTimes: each duration is counted among those that are not shorter, and nowhere else.
func TestCallTimes(t *testing.T) {
	times := hsm.CallTimes()
	for i, want := range times {
		var m hsm.Meter
		m.Done(hsm.CallSign, time.Now().Add(-want/2-want/4), nil) // between this one and the one before
		c := m.Count().Calls[hsm.CallSign]
		if len(c.Took) != len(times)+1 || c.Count != 1 {
			t.Fatalf("%+v of %d times", c, len(times))
		}
		if i > 4 && c.Took[i] != 1 { // the clock's own time spoils the short ones
			t.Errorf("a call of 3/4 of %s is counted in %v", want, c.Took)
		}
	}
	var m hsm.Meter
	m.Done(hsm.CallSign, time.Now().Add(time.Hour), nil)
	m.Done(hsm.CallSign, time.Now().Add(-time.Hour), nil)
	if c := m.Count().Calls[hsm.CallSign]; c.Took[0] != 1 || c.Took[len(times)] != 1 {
		t.Errorf("less than nothing and an hour are counted in %v", c.Took)
	}
}

type callerKey struct{}

// follower is a CallTracer that notes whose messages each call carried.
type follower struct {
	mu    sync.Mutex
	calls [][]string
	ended int
}

func (f *follower) Shared(callers []context.Context) (context.Context, func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, c := range callers {
		names = append(names, c.Value(callerKey{}).(string))
	}
	f.calls = append(f.calls, names)
	return callers[0], func(error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended++
	}
}

// TestCallTracer: every caller's context is named in the one call that carries its message.
func TestCallTracer(t *testing.T) {
	f := &follower{}
	k := hsm.NewKeyring(&fakeHSM{onCall: func(context.Context, []byte) error { time.Sleep(time.Millisecond); return nil }}, hsm.KeyringConfig{Tracer: f})
	defer k.Close()
	const callers = 20
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			ctx := context.WithValue(t.Context(), callerKey{}, string(rune('a'+i)))
			if _, err := k.Derive(ctx, testRef(1), hsm.MessageInput{}, hsm.Seal); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, c := range f.calls {
		for _, name := range c {
			seen[name]++
		}
	}
	if len(seen) != callers || f.ended != len(f.calls) {
		t.Errorf("%d callers in %v, %d ended", len(seen), f.calls, f.ended)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s is named %d times", name, n)
		}
	}
	s := k.Stats()
	total := uint64(0)
	for _, n := range s.Batches {
		total += n
	}
	if s.Messages != callers || s.Calls != uint64(len(f.calls)) || total != s.Calls {
		t.Errorf("%+v for %d calls", s, len(f.calls))
	}
}
