package gate

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

var (
	errLease   = errors.New("no lease")
	errServes  = errors.New("not serving")
	errState   = errors.New("key disabled")
	errRecords = errors.New("disk full")
)

// world is everything the gate looks at, and the order in which it looked.
type world struct {
	steps                  []string
	records                []audit.Result
	lease, serves, writing error
	clock                  time.Duration
	slow                   int // how many checks take too long
	wiped                  bool
}

func (w *world) Usable() error {
	w.steps = append(w.steps, "lease")
	return w.lease
}

func (w *world) Confirm(context.Context) error { return nil }

func (w *world) State() *fsm.State {
	w.steps = append(w.steps, "state")
	return fsm.NewState()
}

func (w *world) Serves(*fsm.State) error { return w.serves }

func (w *world) Record(e audit.Event) error {
	w.steps = append(w.steps, "record")
	w.records = append(w.records, e.Result)
	return w.writing
}

func (w *world) RecordAll(all []audit.Event) error {
	w.steps = append(w.steps, "record")
	for _, e := range all {
		w.records = append(w.records, e.Result)
	}
	return w.writing
}

func (w *world) Healthy() error { return w.writing }

func (w *world) authorise(answer error) func(*fsm.State) error {
	return func(*fsm.State) error {
		w.steps = append(w.steps, "authorise")
		if w.slow > 0 {
			w.slow--
			w.clock += 2 * HandOver
		}
		return answer
	}
}

func (w *world) release(t *testing.T, allowed error) (string, error) {
	t.Helper()
	g := New(w, w, NewReleases(), func() time.Duration { return w.clock })
	p, err := Compute(t.Context(), func(context.Context) (string, error) { return "secret", nil }, func(string) { w.wiped = true })
	if err != nil {
		t.Fatal(err)
	}
	return Release(t.Context(), g, p, &audit.Event{Name: "Decrypt"}, w.authorise(allowed))
}

func TestReleaseOrder(t *testing.T) {
	w := &world{}
	got, err := w.release(t, nil)
	if err != nil || got != "secret" || w.wiped {
		t.Fatalf("%q, %v, wiped %v", got, err, w.wiped)
	}
	if want := []string{"record", "lease", "state", "authorise"}; !slices.Equal(w.steps, want) {
		t.Fatalf("looked in the order %v, want %v", w.steps, want)
	}
}

func TestWithheld(t *testing.T) {
	for name, c := range map[string]struct {
		world   world
		allowed error
		want    error
		records []audit.Result
	}{
		"no lease":     {world{lease: errLease}, nil, errLease, []audit.Result{audit.Success, audit.Withheld}},
		"removed":      {world{serves: errServes}, nil, errServes, []audit.Result{audit.Success, audit.Withheld}},
		"restricted":   {world{}, errState, errState, []audit.Result{audit.Success, audit.Withheld}},
		"unrecordable": {world{writing: errRecords}, nil, errRecords, []audit.Result{audit.Success}},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.world
			got, err := w.release(t, c.allowed)
			if got != "" || !errors.Is(err, c.want) || !w.wiped {
				t.Errorf("%q, %v, wiped %v", got, err, w.wiped)
			}
			if !slices.Equal(w.records, c.records) {
				t.Errorf("recorded %v, want %v", w.records, c.records)
			}
		})
	}
}

// TestSlowCheckIsRepeated: checks that took longer than the hand-over allows are
// stale and done again.
func TestSlowCheckIsRepeated(t *testing.T) {
	w := &world{slow: 2}
	if _, err := w.release(t, nil); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range w.steps {
		if s == "lease" {
			n++
		}
	}
	if n != 3 {
		t.Fatalf("the lease was looked at %d times, want 3", n)
	}
}

func TestComputeFailureWipes(t *testing.T) {
	wiped := ""
	_, err := Compute(t.Context(), func(context.Context) (string, error) { return "half", errState }, func(s string) { wiped = s })
	if !errors.Is(err, errState) || wiped != "half" {
		t.Fatalf("%v, wiped %q", err, wiped)
	}
}

// TestHandedOver: a restriction is acknowledged only when results that were checked
// before are out.
func TestHandedOver(t *testing.T) {
	w, out := &world{}, NewReleases()
	g := New(w, w, out, func() time.Duration { return w.clock })
	release := func(ctx context.Context) {
		t.Helper()
		p, err := Compute(ctx, func(context.Context) (string, error) { return "secret", nil }, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Release(ctx, g, p, &audit.Event{}, w.authorise(nil)); err != nil {
			t.Fatal(err)
		}
	}
	release(t.Context()) // without Carry it is out at once
	if err := out.HandedOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	early := Carry(t.Context())
	finishEarly := func() { Finish(early) }
	release(early)
	waited := make(chan error, 1)
	go func() { waited <- out.HandedOver(t.Context()) }()
	select {
	case err := <-waited:
		t.Fatalf("returned while a result was under way: %v", err)
	case <-time.After(20 * time.Millisecond): // a wrong return would need far less
	}
	late := Carry(t.Context())
	finishLate := func() { Finish(late) }
	release(late)
	finishEarly()
	if err := <-waited; err != nil { // the later one is not waited for
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := out.HandedOver(cancelled); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	finishLate()
	if err := out.HandedOver(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestPanicInCheck: a result is wiped and not counted as under way when a check
// panics.
func TestPanicInCheck(t *testing.T) {
	w, out := &world{}, NewReleases()
	g := New(w, w, out, func() time.Duration { return w.clock })
	p, err := Compute(t.Context(), func(context.Context) (string, error) { return "secret", nil }, func(string) { w.wiped = true })
	if err != nil {
		t.Fatal(err)
	}
	ctx := Carry(t.Context())
	finish := func() { Finish(ctx) }
	func() {
		defer func() { _ = recover() }()
		_, _ = Release(ctx, g, p, &audit.Event{}, func(*fsm.State) error { panic("broken rule") })
		t.Error("the panic was swallowed")
	}()
	finish()
	if !w.wiped {
		t.Error("the result was not wiped")
	}
	if err := out.HandedOver(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestChecksThatStaySlow(t *testing.T) {
	w := &world{slow: 1000}
	if _, err := w.release(t, nil); !errors.Is(err, context.DeadlineExceeded) || !w.wiped {
		t.Fatalf("%v, wiped %v", err, w.wiped)
	}
}

// TestRecheck: an answer that is handed over late is checked once more.
func TestRecheck(t *testing.T) {
	for name, c := range map[string]struct {
		late    time.Duration
		lease   error
		want    error
		records []audit.Result
	}{
		"in time":               {HandOver, errLease, nil, []audit.Result{audit.Success}},
		"late":                  {HandOver + 1, nil, nil, []audit.Result{audit.Success}},
		"late, and no lease":    {HandOver + 1, errLease, errLease, []audit.Result{audit.Success, audit.Withheld}},
		"hours late, no lease":  {time.Hour, errLease, errLease, []audit.Result{audit.Success, audit.Withheld}},
		"hours late, allowed":   {time.Hour, nil, nil, []audit.Result{audit.Success}},
		"at once, without hope": {0, errLease, nil, []audit.Result{audit.Success}},
	} {
		t.Run(name, func(t *testing.T) {
			w, out := &world{}, NewReleases()
			g := New(w, w, out, func() time.Duration { return w.clock })
			ctx := Carry(t.Context())
			finish := func() { Finish(ctx) }
			p, err := Compute(ctx, func(context.Context) (string, error) { return "secret", nil }, func(string) { w.wiped = true })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Release(ctx, g, p, &audit.Event{}, w.authorise(nil)); err != nil {
				t.Fatal(err)
			}
			w.clock, w.lease = w.clock+c.late, c.lease
			if err := Recheck(ctx); !errors.Is(err, c.want) || (err != nil) != w.wiped {
				t.Errorf("%v, wiped %v", err, w.wiped)
			}
			finish()
			if err := out.HandedOver(t.Context()); err != nil {
				t.Error(err)
			}
			if !slices.Equal(w.records, c.records) {
				t.Errorf("recorded %v, want %v", w.records, c.records)
			}
		})
	}
}

func TestRecheckOfNothing(t *testing.T) {
	if err := Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
}
