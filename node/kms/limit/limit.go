// Package limit holds quotas: how many calls a second a tenant and a principal may
// make of one node. What is beyond is refused at once, never queued.
//
// Reading order: Config, Limiter.Admit, quota.
package limit

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Lane is what a call is counted with. Lanes share neither tokens nor a lock.
type Lane int

// The lanes.
const (
	// Use is cryptography.
	Use Lane = iota
	// Control is mutations that are no restrictions, and reads of metadata.
	Control
	// Restrict is what takes something away: disable, revoke, freeze, retire, schedule
	// deletion. It has a lane of its own, so that no flood of other calls delays it.
	Restrict
	// Refused is what is refused before it is counted with another lane, and recorded.
	Refused

	lanes
)

// String is the lane's calls, as texts name them.
func (l Lane) String() string {
	switch l {
	case Use:
		return "cryptographic"
	case Control:
		return "control"
	case Restrict:
		return "restricting"
	case Refused:
		return "refused"
	case lanes:
	}
	return fmt.Sprintf("Lane(%d)", int(l))
}

const (
	// MaxRate bounds a quota, in calls a second.
	MaxRate = 1e9
	// maxBuckets bounds what a quota remembers, in tenants or principals.
	maxBuckets = 10_000
)

// Config is the quotas of a node, in calls a second: 0 is none, MaxRate the most. Each
// allows bursts of a second's worth, and of one call at least.
type Config struct {
	ControlPerTenant     float64
	RestrictPerTenant    float64
	UsePerTenant         float64
	UsePerPrincipal      float64
	ControlPerPrincipal  float64
	RestrictPerPrincipal float64
	RefusedPerPrincipal  float64
}

// Default is the quotas of a node whose configuration names none. A principal's of
// restrictions is well below its tenant's, so that one whose certificate was stolen does not
// keep an administrator from disabling it.
func Default() Config {
	return Config{ControlPerTenant: 50, RestrictPerTenant: 50, RestrictPerPrincipal: 20, RefusedPerPrincipal: 20}
}

// ErrExceeded means: a quota is used up. The error is an *Exceeded.
var ErrExceeded = errors.New("quota exceeded")

// Exceeded says which quota is used up, and for how long.
type Exceeded struct {
	Lane       Lane
	Limit      string        // its name in the configuration
	Of         string        // whose it is: "tenant" or "principal"
	Name       string        // that one's name; empty: of all callers that belong to none
	Rate       float64       // calls a second
	RetryAfter time.Duration // then there are the tokens, unless another call takes them
}

// Error implements error.
func (e *Exceeded) Error() string {
	who := fmt.Sprintf("%s %.256q", e.Of, e.Name)
	if e.Name == "" {
		who = "callers of no " + e.Of
	}
	wait := e.RetryAfter
	if up := wait.Truncate(time.Millisecond) + time.Millisecond; wait%time.Millisecond != 0 && up > 0 {
		wait = up
	}
	return fmt.Sprintf("%v: %s may make %g %s calls a second on one node (%s): try again in %s", ErrExceeded, who, e.Rate, e.Lane, e.Limit, wait)
}

// Unwrap gives ErrExceeded.
func (e *Exceeded) Unwrap() error { return ErrExceeded }

// Limiter counts the calls of one node. It may be used from any goroutine.
type Limiter struct {
	now   func() time.Time
	lanes [lanes]quotas
}

// quotas are those of a lane; nil: none.
type quotas struct {
	any       atomic.Bool // there is one
	mu        sync.Mutex
	tenant    *quota
	principal *quota
}

// New begins with every quota unused. A rate that is below 0 or no number counts as
// 0, one above MaxRate as that.
func New(c Config, now func() time.Time) *Limiter {
	l := &Limiter{now: now}
	l.Set(c)
	return l
}

// Set changes the quotas. One that changes begins unused, the others go on as they are.
func (l *Limiter) Set(c Config) {
	l.lanes[Use].set(newQuota("use_per_tenant", "tenant", c.UsePerTenant), newQuota("use_per_principal", "principal", c.UsePerPrincipal))
	l.lanes[Control].set(newQuota("control_per_tenant", "tenant", c.ControlPerTenant), newQuota("control_per_principal", "principal", c.ControlPerPrincipal))
	l.lanes[Restrict].set(newQuota("restrict_per_tenant", "tenant", c.RestrictPerTenant), newQuota("restrict_per_principal", "principal", c.RestrictPerPrincipal))
	l.lanes[Refused].set(nil, newQuota("refused_per_principal", "principal", c.RefusedPerPrincipal))
}

func (q *quotas) set(tenant, principal *quota) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.tenant.same(tenant) {
		q.tenant = tenant
	}
	if !q.principal.same(principal) {
		q.principal = principal
	}
	q.any.Store(q.tenant != nil || q.principal != nil)
}

// Admit counts a call, or refuses it with *Exceeded and counts it nowhere. It never
// waits for a token. The tenant is the one that the caller is known to act for, not
// one that it merely asks for: it could use up the quota of others.
func (l *Limiter) Admit(lane Lane, tenant, principal string) error {
	return l.AdmitMany(lane, 1, tenant, principal)
}

// AdmitMany counts a call that counts as n. One that is more than a quota's burst has to find it
// full, and leaves it in debt, so that over time it allows no more than its rate.
func (l *Limiter) AdmitMany(lane Lane, n int, tenant, principal string) error {
	q := &l.lanes[lane]
	if !q.any.Load() {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := l.now() // under the lock, so that a bucket's time does not go back
	byTenant, byPrincipal := q.tenant.bucket(tenant), q.principal.bucket(principal)
	waitTenant, waitPrincipal := q.tenant.wait(byTenant, n, now), q.principal.wait(byPrincipal, n, now)
	switch {
	case waitTenant > 0 && waitTenant >= waitPrincipal:
		return q.tenant.exceeded(lane, tenant, waitTenant)
	case waitPrincipal > 0:
		return q.principal.exceeded(lane, principal, waitPrincipal)
	}
	byTenant.take(n, now)
	byPrincipal.take(n, now)
	return nil
}
