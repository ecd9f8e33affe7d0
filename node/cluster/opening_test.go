package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/hsm"
)

func threeVoters() []raft.Server {
	return []raft.Server{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}, {ID: "c", Address: "c:1"}}
}

// others is openings whose members answer as a test says.
func others(t *testing.T, call func(address string, all []Opening) ([]string, error)) *openings {
	o := answering(call)
	t.Cleanup(o.stop)
	return o
}

// answering is others that the caller stops. No problem passes.
func answering(call func(address string, all []Opening) ([]string, error)) *openings {
	return &openings{queues: map[string]*openQueue{}, refuses: func(string, string) {}, call: func(_ context.Context, address string, all []Opening) ([]OpenResult, error) {
		problems, err := call(address, all)
		results := make([]OpenResult, len(problems))
		for i, problem := range problems {
			results[i].Problem = problem
		}
		return results, err
	}}
}

func anOpening() Opening {
	return Opening{Key: uuid.New(), Version: 1, Kind: hsm.Kind{Class: hsm.ClassAES}, Made: hsm.NewKey{Token: []byte("token")}}
}

// TestMajorityOpens: this node and one other are enough of three; the third may be silent,
// broken or down.
func TestMajorityOpens(t *testing.T) {
	silent := make(chan struct{})
	for name, third := range map[string]func() ([]string, error){
		"silent":  func() ([]string, error) { <-silent; return nil, errors.New("late") },
		"broken":  func() ([]string, error) { return []string{"corrupt"}, nil },
		"down":    func() ([]string, error) { return nil, errors.New("connection refused") },
		"strange": func() ([]string, error) { return nil, nil },
	} {
		o := answering(func(address string, all []Opening) ([]string, error) {
			if address == "b:1" {
				return make([]string, len(all)), nil
			}
			return third()
		})
		if err := o.majority(t.Context(), threeVoters(), "a", anOpening()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Cleanup(o.stop)
	}
	close(silent)
}

func TestAloneIsAMajority(t *testing.T) {
	o := others(t, func(string, []Opening) ([]string, error) { panic("nobody is there to ask") })
	if err := o.majority(t.Context(), threeVoters()[:1], "a", anOpening()); err != nil {
		t.Error(err)
	}
}

// TestTooFewOpen: the error says who did not open the token and why, at once where a
// majority is out of reach, and otherwise when the time is over.
func TestTooFewOpen(t *testing.T) {
	o := others(t, func(address string, _ []Opening) ([]string, error) {
		return []string{"its HSM says no at " + address}, nil
	})
	err := o.majority(t.Context(), threeVoters(), "a", anOpening())
	if !errors.Is(err, ErrUnopened) || !strings.Contains(err.Error(), "b: its HSM says no at b:1; c: its HSM says no at c:1") {
		t.Errorf("%v", err)
	}
	err = o.majority(t.Context(), threeVoters(), "elsewhere", anOpening())
	if !errors.Is(err, ErrUnopened) {
		t.Errorf("asked by a node without a vote: %v", err)
	}
	tries := make(chan struct{}, 1000)
	down := others(t, func(string, []Opening) ([]string, error) {
		tries <- struct{}{}
		return nil, errors.New("connection refused")
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 4 { // it asks again
			<-tries
		}
		cancel()
	}()
	err = down.majority(ctx, threeVoters(), "a", anOpening())
	if !errors.Is(err, ErrUnopened) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

// TestPassingRefusals: a member whose HSM cannot be used at the moment is asked again until it
// opens the token, or the call's time is over. Where the majority is lost for good, nobody is.
func TestPassingRefusals(t *testing.T) {
	var asked atomic.Int32
	answers := func(r func(n int32, address string) OpenResult) *openings {
		asked.Store(0)
		o := &openings{queues: map[string]*openQueue{}, refuses: func(string, string) {}}
		o.call = func(_ context.Context, address string, all []Opening) ([]OpenResult, error) {
			return slices.Repeat([]OpenResult{r(asked.Add(1), address)}, len(all)), nil
		}
		t.Cleanup(o.stop)
		return o
	}
	lost := OpenResult{Problem: "token lost", Passing: true}

	o := answers(func(n int32, _ string) OpenResult {
		if n < 4 {
			return lost
		}
		return OpenResult{}
	})
	if err := o.majority(t.Context(), threeVoters()[:2], "a", anOpening()); err != nil || asked.Load() != 4 {
		t.Errorf("an HSM that comes back: %v, asked %d times", err, asked.Load())
	}

	o = answers(func(_ int32, address string) OpenResult {
		if address == "b:1" {
			return lost
		}
		return OpenResult{Problem: "corrupt"}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for asked.Load() < 5 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	err := o.majority(ctx, threeVoters(), "a", anOpening())
	if !errors.Is(err, ErrUnopened) || !strings.Contains(err.Error(), "b: token lost; c: corrupt") {
		t.Errorf("an HSM that does not come back: %v", err)
	}

	o = answers(func(n int32, _ string) OpenResult {
		if n == 1 {
			return lost
		}
		return OpenResult{Problem: "corrupt"}
	})
	err = o.majority(t.Context(), threeVoters()[:2], "a", anOpening())
	if !errors.Is(err, ErrUnopened) || !strings.Contains(err.Error(), "b: corrupt") || asked.Load() != 2 {
		t.Errorf("a refusal for good behind one that passes: %v, asked %d times", err, asked.Load())
	}
}

// TestWhatPasses: what is wrong with a token, or wants people, is final.
func TestWhatPasses(t *testing.T) {
	for _, row := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("%w: token lost", hsm.ErrUnavailable), true},
		{hsm.ErrBusy, true},
		{hsm.ErrStale, true},
		{hsm.ErrWrongAnswer, true},
		{errGeneration, true},
		{fmt.Errorf("%w: %w", hsm.ErrUnavailable, hsm.ErrPIN), false},
		{hsm.ErrCorrupt, false},
		{hsm.ErrNotFound, false},
		{hsm.ErrUnsupported, false},
		{hsm.ErrRefused, false},
	} {
		if got := passes(row.err); got != row.want {
			t.Errorf("%v: %t", row.err, got)
		}
	}
}

// TestOpeningsShareCalls: what comes while a member is being asked goes into its next
// request, and what nobody waits for is not asked.
func TestOpeningsShareCalls(t *testing.T) {
	const n = 200
	begun, goOn := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var sizes []int
	o := others(t, func(_ string, all []Opening) ([]string, error) {
		mu.Lock()
		first := len(sizes) == 0
		sizes = append(sizes, len(all))
		mu.Unlock()
		if first {
			close(begun)
			<-goOn
		}
		return make([]string, len(all)), nil
	})
	two := threeVoters()[:2]
	var wait sync.WaitGroup
	errs := make(chan error, n+1)
	open := func(ctx context.Context) { errs <- o.majority(ctx, two, "a", anOpening()) }
	wait.Go(func() { open(t.Context()) })
	<-begun
	gone, leave := context.WithCancel(t.Context())
	for range n {
		wait.Go(func() { open(t.Context()) })
	}
	wait.Go(func() { _ = o.majority(gone, two, "a", anOpening()) })
	waiting := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.queues["b"].waiting)
	}
	for waiting() != n+1 {
		time.Sleep(time.Millisecond)
	}
	leave()
	close(goOn)
	wait.Wait()
	for range n + 1 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if want := []int{1, MaxOpenings, MaxOpenings, MaxOpenings, n - 3*MaxOpenings}; !slices.Equal(sizes, want) {
		t.Errorf("requests of %v tokens, want %v", sizes, want)
	}
}

// TestOpeningsAreBounded: where too many tokens wait for a member, another is refused.
func TestOpeningsAreBounded(t *testing.T) {
	goOn := make(chan struct{})
	o := others(t, func(_ string, all []Opening) ([]string, error) {
		<-goOn
		return make([]string, len(all)), nil
	})
	o.queues["b"] = &openQueue{busy: true, waiting: make([]asked, maxAsked)}
	err := o.majority(t.Context(), threeVoters()[:2], "a", anOpening())
	close(goOn)
	if !errors.Is(err, ErrUnopened) || !strings.Contains(err.Error(), "b: 1024 new keys wait for it") {
		t.Errorf("%v", err)
	}
}

// TestPrivateKeysAreOpenedByFew: what takes long to open comes in small requests.
func TestPrivateKeysAreOpenedByFew(t *testing.T) {
	o := others(t, func(string, []Opening) ([]string, error) { return nil, nil })
	q := &openQueue{busy: true}
	for range 20 {
		x := anOpening()
		x.Kind = hsm.Kind{Class: hsm.ClassRSA, Bits: 2048}
		q.waiting = append(q.waiting, asked{ctx: t.Context(), opening: x})
	}
	if n := len(o.next(q)); n != openAtOnce {
		t.Errorf("a request of %d, want %d", n, openAtOnce)
	}
}

// TestOpeningsEnd: a member that stops answers nobody any more, and waits for its calls.
func TestOpeningsEnd(t *testing.T) {
	o := others(t, func(string, []Opening) ([]string, error) { return nil, fmt.Errorf("down") })
	o.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.majority(ctx, threeVoters(), "a", anOpening()); !errors.Is(err, ErrUnopened) {
		t.Errorf("%v", err)
	}
}

// TestRefusalsAreToldOnce: an operator hears when a member's partition begins to refuse,
// and when it has stopped.
func TestRefusalsAreToldOnce(t *testing.T) {
	answers := []string{"broken", "broken", "", "", "broken"}
	var told []string
	o := others(t, func(string, []Opening) ([]string, error) {
		problem := answers[0]
		answers = answers[1:]
		return []string{problem}, nil
	})
	o.refuses = func(node, problem string) { told = append(told, node+":"+problem) }
	for len(answers) > 0 {
		_ = o.majority(t.Context(), threeVoters()[:2], "a", anOpening())
	}
	if want := []string{"b:broken", "b:", "b:broken"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
