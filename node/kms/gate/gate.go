// Package gate is the only door out for what was computed with a key.
//
// A result is computed into a Pending, which nobody can read. Release writes the
// audit record, checks that this node may still answer (its lease), then reads the
// state and asks again whether the caller may have the result, in this order, and
// only then hands it over; otherwise the result is wiped. A restriction that the
// cluster has acknowledged is seen by one of the two checks: without a fresh
// state the lease is gone, and with a lease the state is fresh.
package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/rules"
)

// HandOver is how old the checks may be when the result leaves.
const HandOver = 100 * time.Millisecond

// Freshness is what the gate needs to know of this node's place in the cluster.
type Freshness interface {
	// Usable is nil while this node holds a lease.
	Usable() error
	// Confirm is nil when a tick that was asked for after the call has been committed
	// and applied here.
	Confirm(ctx context.Context) error
	// State is the present state.
	State() *fsm.State
	// Serves is nil if, in that state, this node is a member that may serve.
	Serves(*fsm.State) error
}

// Recorder writes audit records.
type Recorder interface {
	Record(audit.Event) error
	// RecordAll is Record for several.
	RecordAll([]audit.Event) error
	// Healthy is nil while records can be written.
	Healthy() error
}

// Gate releases results.
type Gate struct {
	fresh    Freshness
	records  Recorder
	releases *Releases
	clock    func() time.Duration // monotonic
}

// New makes the gate of a node. clock is monotonic, with any zero.
func New(fresh Freshness, records Recorder, releases *Releases, clock func() time.Duration) *Gate {
	return &Gate{fresh: fresh, records: records, releases: releases, clock: clock}
}

// Pending is a result that has not been released.
type Pending[T any] struct {
	value T
	wipe  func(T)
}

// Compute runs f and holds its result back. wipe erases a result that is not
// released; it must cope with a partial one.
func Compute[T any](ctx context.Context, f func(context.Context) (T, error), wipe func(T)) (Pending[T], error) {
	v, err := f(ctx)
	if err != nil {
		wipe(v)
		return Pending[T]{}, err
	}
	return Pending[T]{value: v, wipe: wipe}, nil
}

// Release records event as a success and hands the result over if the lease holds
// and authorise, called on the state read after the lease was checked, allows it.
// Otherwise the result is wiped, a second record says that it was withheld, and
// the error is the lease's or authorise's. What authorise adds to event stands in that
// record. ctx should come from Carry.
func Release[T any](ctx context.Context, g *Gate, p Pending[T], event *audit.Event, authorise func(*fsm.State) error) (T, error) {
	released := false
	defer func() {
		if !released { // also when a check panics
			p.wipe(p.value)
		}
	}()
	event.Result = audit.Success
	if err := g.records.Record(*event); err != nil {
		return p.none(), err
	}
	withhold := func(err error) error {
		p.wipe(p.value)
		event.Result, event.Reason = audit.Withheld, err.Error()
		return errors.Join(err, g.records.Record(*event))
	}
	if err := g.pass(ctx, authorise, withhold); err != nil {
		return p.none(), err
	}
	released = true
	return p.value, nil
}

func (Pending[T]) none() (zero T) { return zero }

// pass checks, and keeps the result counted as under way until the call's answer has
// been handed over, or ends the count if it is withheld.
func (g *Gate) pass(ctx context.Context, authorise func(*fsm.State) error, withhold func(error) error) error {
	epoch, carried := g.releases.begin(), false
	defer func() {
		if !carried {
			g.releases.end(epoch)
		}
	}()
	c, ok := ctx.Value(carrierKey{}).(*carrier)
	check := g.check
	if ok {
		check = g.look // Recheck tells whether it took too long
	}
	at, err := check(ctx, authorise)
	if err != nil {
		return withhold(err)
	}
	if ok {
		c.add(passage{releases: g.releases, epoch: epoch, again: func() error {
			if g.young(at) {
				return nil
			}
			if at, err = g.check(ctx, authorise); err != nil {
				return withhold(err)
			}
			return nil
		}})
		carried = true
	}
	return nil
}

// maxChecks bounds how often slow checks are repeated.
const maxChecks = 10

// check looks until the look was quick, and returns when it looked at the lease.
func (g *Gate) check(ctx context.Context, authorise func(*fsm.State) error) (at time.Duration, err error) {
	for range maxChecks {
		if at, err = g.look(ctx, authorise); err != nil || g.young(at) {
			return at, err
		}
	}
	return 0, fmt.Errorf("this node is too slow to answer in time: %w", context.DeadlineExceeded)
}

// young tells whether a look is young enough for its result to leave.
func (g *Gate) young(at time.Duration) bool { return g.clock()-at <= HandOver || rules.Recheck.Off() }

// look looks at the lease first, then at the state, and returns when it looked at the lease.
func (g *Gate) look(ctx context.Context, authorise func(*fsm.State) error) (at time.Duration, err error) {
	at = g.clock()
	if rules.FinalCheck.Off() {
		return at, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var s *fsm.State
	if rules.LeaseFirst.Off() {
		s = g.fresh.State()
	}
	if err := g.fresh.Usable(); err != nil {
		return 0, err
	}
	if !rules.LeaseFirst.Off() {
		s = g.fresh.State()
	}
	if err := g.fresh.Serves(s); err != nil {
		return 0, err
	}
	if err := authorise(s); err != nil {
		return 0, fmt.Errorf("no longer allowed: %w", err)
	}
	return at, nil
}
