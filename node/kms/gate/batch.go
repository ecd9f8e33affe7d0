package gate

import (
	"context"
	"errors"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// ReleaseAll is Release for the results of a batch, which leave in one answer: one lease check, and
// then one state on which authorise decides on every result, in their order. A result that it has an
// error for is withheld, which that one's error tells, and the others are handed over. events are the
// results' records.
//
// An answer that is handed over late (Recheck) leaves whole or not at all.
func ReleaseAll[T any](ctx context.Context, g *Gate, p Pending[[]T], events []audit.Event, authorise func(*fsm.State) []error) ([]T, []error, error) {
	released := false
	defer func() {
		if !released { // also when a check panics
			p.wipe(p.value)
		}
	}()
	for i := range events {
		events[i].Result = audit.Success
	}
	if err := g.records.RecordAll(events); err != nil {
		return nil, nil, err
	}
	b := batch{gate: g, events: events, authorise: authorise, wipe: func(i int) { p.wipe(p.value[i : i+1]) }}
	if err := g.pass(ctx, b.allowed, b.withholdAll); err != nil {
		return nil, nil, err
	}
	if err := b.withhold(b.refused); err != nil {
		return nil, nil, err
	}
	b.out, released = true, true
	return p.value, b.refused, nil
}

// batch is what a batch's results are checked by.
type batch struct {
	gate      *Gate
	events    []audit.Event
	authorise func(*fsm.State) []error
	wipe      func(i int)
	refused   []error // of results that do not go out; none: nil
	out       bool    // the others have been released
}

// allowed asks for every result. After their release it is one answer for all of them.
func (b *batch) allowed(st *fsm.State) error {
	refused := b.authorise(st)
	for i, err := range refused {
		switch {
		case err == nil:
		case !b.out:
			refused[i] = fmt.Errorf("no longer allowed: %w", err)
		case b.refused[i] == nil: // of the batch it is no answer: asked again, the others will have theirs
			return fmt.Errorf("part of an answer that was late (%w): %s", context.DeadlineExceeded, err.Error())
		}
	}
	if !b.out {
		b.refused = refused
	}
	return nil
}

// withholdAll withholds all results that have not been.
func (b *batch) withholdAll(why error) error {
	all := make([]error, len(b.events))
	for i := range all {
		if !b.out || b.refused == nil || b.refused[i] == nil {
			all[i] = why
		}
	}
	return errors.Join(why, b.withhold(all))
}

// withhold wipes the results that there is an error for, and records it.
func (b *batch) withhold(why []error) error {
	var records []audit.Event
	for i, err := range why {
		if err == nil {
			continue
		}
		b.wipe(i)
		b.events[i].Result, b.events[i].Reason = audit.Withheld, err.Error()
		records = append(records, b.events[i])
	}
	if records == nil {
		return nil
	}
	return b.gate.records.RecordAll(records)
}
