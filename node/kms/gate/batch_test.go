package gate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// batchWorld is a world with a batch of three results.
type batchWorld struct {
	world
	events  []audit.Event
	allowed []error
	gone    []string // wiped
}

func (w *batchWorld) releaseAll(ctx context.Context, t *testing.T, out *Releases) ([]string, []error, error) {
	t.Helper()
	g := New(w, w, out, func() time.Duration { return w.clock })
	p, err := Compute(ctx, func(context.Context) ([]string, error) { return []string{"a", "b", "c"}, nil }, func(all []string) { w.gone = append(w.gone, all...) })
	if err != nil {
		t.Fatal(err)
	}
	w.events = make([]audit.Event, 3)
	return ReleaseAll(ctx, g, p, w.events, func(*fsm.State) []error {
		_ = w.authorise(nil)(nil)
		return slices.Clone(w.allowed)
	})
}

func TestReleaseAll(t *testing.T) {
	s, h := audit.Success, audit.Withheld
	none := make([]error, 3)
	for name, c := range map[string]struct {
		world   world
		allowed []error
		want    error    // of the batch
		wiped   []string // results
		records []audit.Result
	}{
		"all":          {world{}, none, nil, nil, []audit.Result{s, s, s}},
		"one less":     {world{}, []error{nil, errState, nil}, nil, []string{"b"}, []audit.Result{s, s, s, h}},
		"none":         {world{}, []error{errState, errState, errState}, nil, []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"no lease":     {world{lease: errLease}, none, errLease, []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"removed":      {world{serves: errServes}, none, errServes, []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"unrecordable": {world{writing: errRecords}, none, errRecords, []string{"a", "b", "c"}, []audit.Result{s, s, s}},
		"slow":         {world{slow: 2}, []error{nil, nil, errState}, nil, []string{"c"}, []audit.Result{s, s, s, h}},
		"too slow":     {world{slow: 1000}, none, context.DeadlineExceeded, []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &batchWorld{world: c.world, allowed: c.allowed}
			got, refused, err := w.releaseAll(t.Context(), t, NewReleases())
			if !errors.Is(err, c.want) || (err == nil) != (len(got) == 3) {
				t.Fatalf("%q, %v", got, err)
			}
			gone := slices.Compact(slices.Sorted(slices.Values(w.gone)))
			if !slices.Equal(gone, c.wiped) || !slices.Equal(w.records, c.records) {
				t.Errorf("wiped %v, recorded %v; want %v and %v", gone, w.records, c.wiped, c.records)
			}
			for i, r := range refused {
				if !errors.Is(r, c.allowed[i]) || (r == nil) != (c.allowed[i] == nil) || r != nil && w.events[i].Reason != r.Error() {
					t.Errorf("result %d: %v, recorded %q", i, r, w.events[i].Reason)
				}
			}
		})
	}
}

// TestReleaseAllLooksOnce: there is one check for all, behind their records.
func TestReleaseAllLooksOnce(t *testing.T) {
	w := &batchWorld{allowed: make([]error, 3)}
	if _, _, err := w.releaseAll(t.Context(), t, NewReleases()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"record", "lease", "state", "authorise"}; !slices.Equal(w.steps, want) {
		t.Fatalf("looked in the order %v, want %v", w.steps, want)
	}
}

// TestReleaseAllLate: an answer that is handed over late is checked again, and leaves whole or not at
// all; what had been withheld already is no reason.
func TestReleaseAllLate(t *testing.T) {
	s, h := audit.Success, audit.Withheld
	for name, c := range map[string]struct {
		first, later []error
		lease        error
		want         error
		reason       string
		wiped        []string
		records      []audit.Result
	}{
		"as before":    {[]error{nil, errState, nil}, []error{nil, errState, nil}, nil, nil, "", []string{"b"}, []audit.Result{s, s, s, h}},
		"one more":     {[]error{nil, errState, nil}, []error{nil, errState, errState}, nil, context.DeadlineExceeded, errState.Error(), []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"one of all":   {make([]error, 3), []error{errState, nil, nil}, nil, context.DeadlineExceeded, errState.Error(), []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"no lease":     {make([]error, 3), nil, errLease, errLease, errLease.Error(), []string{"a", "b", "c"}, []audit.Result{s, s, s, h, h, h}},
		"less than at": {[]error{nil, errState, nil}, make([]error, 3), nil, nil, "", []string{"b"}, []audit.Result{s, s, s, h}},
	} {
		t.Run(name, func(t *testing.T) {
			w, out := &batchWorld{allowed: c.first}, NewReleases()
			ctx := Carry(t.Context())
			if _, _, err := w.releaseAll(ctx, t, out); err != nil {
				t.Fatal(err)
			}
			w.clock, w.allowed, w.lease = w.clock+2*HandOver, c.later, c.lease
			err := Recheck(ctx)
			if !errors.Is(err, c.want) || errors.Is(err, errState) || err != nil && !strings.Contains(w.events[2].Reason, c.reason) {
				t.Errorf("%v, recorded %q", err, w.events[2].Reason)
			}
			gone := slices.Compact(slices.Sorted(slices.Values(w.gone)))
			if !slices.Equal(gone, c.wiped) || !slices.Equal(w.records, c.records) {
				t.Errorf("wiped %v, recorded %v; want %v and %v", gone, w.records, c.wiped, c.records)
			}
			Finish(ctx)
			if err := out.HandedOver(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
