package limit

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a clock that stands still unless it is moved.
type clock struct{ t time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)} }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) forward(d time.Duration) { c.t = c.t.Add(d) }

// refused is the refusal of a call that must be refused.
func refused(t *testing.T, err error) *Exceeded {
	t.Helper()
	var e *Exceeded
	if !errors.As(err, &e) || !errors.Is(err, ErrExceeded) {
		t.Fatalf("%v, want a refusal", err)
	}
	return e
}

// admitted counts how many of n calls at once are admitted.
func admitted(l *Limiter, n int, lane Lane, tenant, principal string) (count int) {
	for range n {
		if l.Admit(lane, tenant, principal) == nil {
			count++
		}
	}
	return count
}

func TestRatesAndBursts(t *testing.T) {
	for _, row := range []struct {
		rate   float64
		burst  int           // calls at once
		pause  time.Duration // then
		after  int           // calls
		minute int           // calls, if one is tried every millisecond
	}{
		{rate: 50, burst: 50, pause: 100 * time.Millisecond, after: 5, minute: 3050},
		{rate: 50, burst: 50, pause: time.Hour, after: 50, minute: 3050},
		{rate: 1, burst: 1, pause: 999 * time.Millisecond, after: 0, minute: 61},
		{rate: 2.5, burst: 3, pause: 800 * time.Millisecond, after: 2, minute: 153},
		{rate: 0.1, burst: 1, pause: 10 * time.Second, after: 1, minute: 7},
		{rate: 500, burst: 500, pause: 20 * time.Millisecond, after: 10, minute: 30500},
	} {
		c := newClock()
		l := New(Config{UsePerTenant: row.rate}, c.now)
		if n := admitted(l, 2*row.burst+10, Use, "blue", "p"); n != row.burst {
			t.Errorf("%g a second: a burst of %d, want %d", row.rate, n, row.burst)
		}
		c.forward(row.pause)
		if n := admitted(l, 2*row.burst+10, Use, "blue", "p"); n != row.after {
			t.Errorf("%g a second: %d after %s, want %d", row.rate, n, row.pause, row.after)
		}
		n := 0
		for range 60_001 {
			n += admitted(l, 1, Use, "green", "p")
			c.forward(time.Millisecond)
		}
		if n < row.minute-1 || n > row.minute { // floating point may leave the last for the next minute
			t.Errorf("%g a second: %d a minute, want %d", row.rate, n, row.minute)
		}
	}
}

// TestLanes: a flood in one lane takes nothing from another.
func TestLanes(t *testing.T) {
	c := newClock()
	l := New(Config{ControlPerTenant: 5, RestrictPerTenant: 3, UsePerTenant: 7}, c.now)
	want := map[Lane]int{Use: 7, Control: 5, Restrict: 3}
	for _, lane := range []Lane{Use, Control, Restrict} {
		if n := admitted(l, 100, lane, "blue", "p"); n != want[lane] {
			t.Errorf("%s calls: %d, want %d", lane, n, want[lane])
		}
	}
}

// TestDefault: cryptography is free, what goes through the log is not.
func TestDefault(t *testing.T) {
	l := New(Default(), newClock().now)
	want := map[Lane]int{Use: 200, Control: 50, Restrict: 20, Refused: 20}
	for lane, calls := range want {
		if n := admitted(l, 200, lane, "blue", "p"); n != calls {
			t.Errorf("%s calls: %d, want %d", lane, n, calls)
		}
	}
}

// TestWhose: whose quota a call is counted with.
func TestWhose(t *testing.T) {
	for _, row := range []struct {
		name              string
		config            Config
		lane              Lane
		tenant, principal string // asks when blue's a has made 4 calls
		of, limit         string // "": admitted
	}{
		{"same tenant, same principal", Config{UsePerTenant: 4}, Use, "blue", "a", "tenant", "use_per_tenant"},
		{"same tenant, other principal", Config{UsePerTenant: 4}, Use, "blue", "b", "tenant", "use_per_tenant"},
		{"other tenant", Config{UsePerTenant: 4}, Use, "green", "a", "", ""},
		{"same principal", Config{UsePerPrincipal: 4}, Use, "blue", "a", "principal", "use_per_principal"},
		{"same principal, other tenant", Config{UsePerPrincipal: 4}, Use, "green", "a", "principal", "use_per_principal"},
		{"other principal", Config{UsePerPrincipal: 4}, Use, "blue", "b", "", ""},
		{"both, the principal's first", Config{UsePerTenant: 9, UsePerPrincipal: 4}, Use, "blue", "a", "principal", "use_per_principal"},
		{"both, the tenant's first", Config{UsePerTenant: 4, UsePerPrincipal: 9}, Use, "blue", "a", "tenant", "use_per_tenant"},
		{"both, equal", Config{UsePerTenant: 4, UsePerPrincipal: 4}, Use, "blue", "a", "tenant", "use_per_tenant"},
		{"control of a tenant", Config{ControlPerTenant: 4}, Control, "blue", "b", "tenant", "control_per_tenant"},
		{"control of a principal", Config{ControlPerPrincipal: 4}, Control, "green", "a", "principal", "control_per_principal"},
		{"restrictions of a tenant", Config{RestrictPerTenant: 4}, Restrict, "blue", "b", "tenant", "restrict_per_tenant"},
		{"restrictions of a principal", Config{RestrictPerPrincipal: 4}, Restrict, "green", "a", "principal", "restrict_per_principal"},
		{"restrictions of another one", Config{RestrictPerTenant: 9, RestrictPerPrincipal: 4}, Restrict, "blue", "b", "", ""},
		{"restrictions have their own", Config{ControlPerPrincipal: 4, UsePerPrincipal: 4, RefusedPerPrincipal: 4}, Restrict, "blue", "a", "", ""},
		{"refusals of a principal", Config{RefusedPerPrincipal: 4}, Refused, "", "a", "principal", "refused_per_principal"},
		{"refusals of another one", Config{RefusedPerPrincipal: 4}, Refused, "", "b", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := New(row.config, newClock().now)
			if n := admitted(l, 4, row.lane, "blue", "a"); n != 4 {
				t.Fatalf("%d calls, want 4", n)
			}
			err := l.Admit(row.lane, row.tenant, row.principal)
			if row.of == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e := refused(t, err)
			name := map[string]string{"tenant": row.tenant, "principal": row.principal}[row.of]
			if e.Of != row.of || e.Limit != row.limit || e.Name != name || e.Lane != row.lane || e.Rate != 4 || e.RetryAfter <= 0 {
				t.Errorf("%+v", e)
			}
		})
	}
}

// TestRefusalTakesNothing: what one quota refuses is not counted with the other.
func TestRefusalTakesNothing(t *testing.T) {
	t.Run("tenant", func(t *testing.T) {
		l := New(Config{UsePerTenant: 10, UsePerPrincipal: 2}, newClock().now)
		if n := admitted(l, 1000, Use, "blue", "greedy"); n != 2 {
			t.Fatalf("%d, want 2", n)
		}
		for i := range 8 {
			if err := l.Admit(Use, "blue", fmt.Sprint(i)); err != nil {
				t.Fatalf("call %d of the tenant: %v", i+3, err)
			}
		}
		if e := refused(t, l.Admit(Use, "blue", "another")); e.Of != "tenant" {
			t.Errorf("%v", e)
		}
	})
	t.Run("principal", func(t *testing.T) {
		l := New(Config{UsePerTenant: 2, UsePerPrincipal: 10}, newClock().now)
		if n := admitted(l, 1000, Use, "blue", "p"); n != 2 {
			t.Fatalf("%d, want 2", n)
		}
		for i := range 8 {
			if err := l.Admit(Use, fmt.Sprint(i), "p"); err != nil {
				t.Fatalf("call %d of the principal: %v", i+3, err)
			}
		}
		if e := refused(t, l.Admit(Use, "another", "p")); e.Of != "principal" {
			t.Errorf("%v", e)
		}
	})
}

// TestRetryAfter: waiting for exactly that long is enough, and a thousandth of it less
// is not.
func TestRetryAfter(t *testing.T) {
	for _, c := range []Config{
		{UsePerTenant: 50},
		{UsePerTenant: 3},
		{UsePerTenant: 1.0 / 3},
		{UsePerTenant: 7777.7},
		{UsePerTenant: 1e-6},
		{UsePerTenant: 1e-9},
		{UsePerPrincipal: 0.7},
		{UsePerTenant: 11, UsePerPrincipal: 3},
		{UsePerTenant: 3, UsePerPrincipal: 11},
		{UsePerTenant: 13, UsePerPrincipal: 13},
	} {
		clock := newClock()
		l := New(c, clock.now)
		admitted(l, 10_000, Use, "blue", "p")
		for i := range 2000 {
			clock.forward(time.Duration(i*i) * time.Nanosecond) // never quite a token
			err := l.Admit(Use, "blue", "p")
			if err == nil {
				continue
			}
			wait := refused(t, err).RetryAfter
			if early := wait / 1000; early > time.Microsecond {
				clock.forward(wait - early)
				refused(t, l.Admit(Use, "blue", "p"))
				clock.forward(early)
			} else {
				clock.forward(wait)
			}
			if err := l.Admit(Use, "blue", "p"); err != nil {
				t.Fatalf("%+v, call %d: refused after %d ns: %v", c, i, wait, err)
			}
		}
	}
}

// TestBothUsedUp: the refusal names the quota that makes the call wait for longer.
func TestBothUsedUp(t *testing.T) {
	for _, row := range []struct {
		config Config
		of     string
		wait   time.Duration
	}{
		{Config{UsePerTenant: 10, UsePerPrincipal: 2}, "principal", 500 * time.Millisecond},
		{Config{UsePerTenant: 2, UsePerPrincipal: 10}, "tenant", 500 * time.Millisecond},
	} {
		c := newClock()
		l := New(row.config, c.now)
		for i := range 10 {
			admitted(l, 10, Use, "blue", "p")
			admitted(l, 10, Use, "blue", fmt.Sprint(i))
			admitted(l, 10, Use, fmt.Sprint(i), "p")
		}
		e := refused(t, l.Admit(Use, "blue", "p"))
		if e.Of != row.of || e.RetryAfter.Round(time.Microsecond) != row.wait {
			t.Errorf("%+v: %+v, want %s's, %s", row.config, e, row.of, row.wait)
		}
		c.forward(e.RetryAfter)
		if err := l.Admit(Use, "blue", "p"); err != nil {
			t.Errorf("%+v: %v", row.config, err)
		}
	}
}

// TestBound: a quota remembers maxBuckets names, and forgets the one that has not
// asked for the longest time.
func TestBound(t *testing.T) {
	l := New(Config{UsePerTenant: 1, UsePerPrincipal: 1000, ControlPerTenant: 1}, newClock().now)
	name := func(i int) string { return fmt.Sprintf("tenant-%d", i) }
	if err := l.Admit(Control, name(0), "p"); err != nil {
		t.Fatal(err)
	}
	for i := range maxBuckets {
		if err := l.Admit(Use, name(i), name(i)); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, l.Admit(Use, name(0), "p")) // a refusal too is asking
	for i := range maxBuckets / 2 {
		if err := l.Admit(Use, name(maxBuckets+i), name(i)); err != nil {
			t.Fatal(err)
		}
	}
	q := l.lanes[Use].tenant
	if len(q.buckets) != maxBuckets || q.recent.Len() != maxBuckets {
		t.Errorf("%d names, %d in their order, want %d", len(q.buckets), q.recent.Len(), maxBuckets)
	}
	for _, row := range []struct {
		i     int
		known bool
	}{{0, true}, {1, false}, {maxBuckets / 2, false}, {maxBuckets/2 + 1, true}, {maxBuckets - 1, true}, {maxBuckets + maxBuckets/2 - 1, true}} {
		if _, known := q.buckets[name(row.i)]; known != row.known {
			t.Errorf("%s: remembered %t, want %t", name(row.i), known, row.known)
		}
	}
	refused(t, l.Admit(Use, name(0), "p"))
	if err := l.Admit(Use, name(1), "p"); err != nil {
		t.Errorf("forgotten, so full again: %v", err)
	}
	refused(t, l.Admit(Control, name(0), "p")) // another quota's bound is its own
}

// TestNone: without quotas everything is admitted, and nothing remembered.
func TestNone(t *testing.T) {
	clock := func() time.Time { t.Error("no quota needs the time"); return time.Time{} }
	for _, c := range []Config{
		{},
		{ControlPerTenant: -1, RestrictPerTenant: math.NaN(), UsePerTenant: math.Inf(-1), UsePerPrincipal: -1e-9, ControlPerPrincipal: math.NaN()},
	} {
		l := New(c, clock)
		for _, lane := range []Lane{Use, Control, Restrict} {
			if n := admitted(l, 1000, lane, "blue", "p"); n != 1000 {
				t.Errorf("%s: %d of 1000", lane, n)
			}
		}
	}
}

// TestExtremes: rates at the ends of what is allowed neither overflow nor lock.
func TestExtremes(t *testing.T) {
	for _, r := range []float64{math.Inf(1), math.MaxFloat64, MaxRate} {
		l := New(Config{UsePerTenant: r}, newClock().now)
		if n := admitted(l, 1000, Use, "blue", "p"); n != 1000 {
			t.Errorf("%g: %d of 1000", r, n)
		}
	}
	l := New(Config{UsePerTenant: math.SmallestNonzeroFloat64}, newClock().now)
	if n := admitted(l, 10, Use, "blue", "p"); n != 1 {
		t.Errorf("%d, want 1", n)
	}
	if e := refused(t, l.Admit(Use, "blue", "p")); e.RetryAfter != maxWait {
		t.Errorf("%v", e)
	}
}

// TestClockGoesBack: a clock that was set back gives nothing and takes nothing.
func TestClockGoesBack(t *testing.T) {
	c := newClock()
	l := New(Config{UsePerTenant: 2}, c.now)
	admitted(l, 1, Use, "blue", "p")
	c.forward(-time.Hour)
	if n := admitted(l, 10, Use, "blue", "p"); n != 1 {
		t.Errorf("%d, want 1", n)
	}
	c.forward(500 * time.Millisecond)
	if n := admitted(l, 10, Use, "blue", "p"); n != 1 {
		t.Errorf("%d, want 1", n)
	}
}

func TestText(t *testing.T) {
	for _, row := range []struct {
		e    Exceeded
		want string
	}{
		{
			Exceeded{Control, "control_per_tenant", "tenant", "blue", 50, 19_000_001},
			`quota exceeded: tenant "blue" may make 50 control calls a second on one node (control_per_tenant): try again in 20ms`,
		},
		{
			Exceeded{Use, "use_per_principal", "principal", "spiffe://x/tenant/blue/user/a", 0.5, 2 * time.Second},
			`quota exceeded: principal "spiffe://x/tenant/blue/user/a" may make 0.5 cryptographic calls a second on one node (use_per_principal): try again in 2s`,
		},
		{
			Exceeded{Restrict, "restrict_per_tenant", "tenant", "", 50, 1},
			`quota exceeded: callers of no tenant may make 50 restricting calls a second on one node (restrict_per_tenant): try again in 1ms`,
		},
	} {
		if got := row.e.Error(); got != row.want {
			t.Errorf("%s\nwant %s", got, row.want)
		}
	}
	long := Exceeded{Of: "tenant", Name: strings.Repeat("x", 10_000)}
	if n := len(long.Error()); n > 500 {
		t.Errorf("a text of %d bytes", n)
	}
}

// TestConcurrent: many goroutines together get what one would.
func TestConcurrent(t *testing.T) {
	const goroutines, calls = 8, 2000
	c := newClock()
	l := New(Config{UsePerTenant: 1000, UsePerPrincipal: 200, RestrictPerTenant: 100}, c.now)
	var all, restricted atomic.Int64
	each := make([]atomic.Int64, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for range calls {
				if l.Admit(Use, "blue", fmt.Sprint(g)) == nil {
					all.Add(1)
					each[g].Add(1)
				}
				if l.Admit(Restrict, "blue", "p") == nil {
					restricted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if all.Load() != 1000 || restricted.Load() != 100 {
		t.Errorf("%d calls and %d restrictions, want 1000 and 100", all.Load(), restricted.Load())
	}
	for g := range each {
		if n := each[g].Load(); n > 200 {
			t.Errorf("principal %d: %d, want at most 200", g, n)
		}
	}
}

// TestAllocations: admitting allocates nothing, with and without quotas.
func TestAllocations(t *testing.T) {
	for _, c := range []Config{{}, {UsePerTenant: MaxRate, UsePerPrincipal: MaxRate}} {
		l := New(c, time.Now)
		if n := testing.AllocsPerRun(1000, func() { _ = l.Admit(Use, "blue", "p") }); n != 0 {
			t.Errorf("%+v: %g allocations a call", c, n)
		}
	}
}

// BenchmarkAdmit: 8 goroutines, each a principal, of one tenant or of their own.
func BenchmarkAdmit(b *testing.B) {
	const goroutines = 8
	for _, row := range []struct {
		name   string
		config Config
	}{
		{"unlimited", Default()},
		{"tenant", Config{UsePerTenant: MaxRate}},
		{"both", Config{UsePerTenant: MaxRate, UsePerPrincipal: MaxRate}},
		{"refused", Config{UsePerTenant: 1e-3}},
	} {
		for _, workers := range []int{1, goroutines} {
			b.Run(fmt.Sprintf("%s/%d", row.name, workers), func(b *testing.B) {
				b.ReportAllocs()
				l := New(row.config, time.Now)
				var wg sync.WaitGroup
				for w := range workers {
					tenant, principal := fmt.Sprintf("tenant-%d", w%2), fmt.Sprintf("spiffe://kms.example/tenant/t/user/%d", w)
					wg.Go(func() {
						for range b.N / workers {
							_ = l.Admit(Use, tenant, principal)
						}
					})
				}
				wg.Wait()
			})
		}
	}
	b.Run("new name", func(b *testing.B) { // each call drops a bucket
		b.ReportAllocs()
		l := New(Config{UsePerTenant: 50}, time.Now)
		names := make([]string, 2*maxBuckets)
		for i := range names {
			names[i] = fmt.Sprintf("tenant-%d", i)
			_ = l.Admit(Use, names[i], "p")
		}
		for i := 0; b.Loop(); i++ {
			_ = l.Admit(Use, names[i%len(names)], "p")
		}
	})
}

// TestAdmitMany: a call that counts as several takes as many tokens, or none; one that is more than the
// burst finds the bucket full and leaves a debt, so that the rate holds over time.
func TestAdmitMany(t *testing.T) {
	c := newClock()
	l := New(Config{UsePerTenant: 10, UsePerPrincipal: 20}, c.now)
	take := func(n int) error { return l.AdmitMany(Use, n, "blue", "p") }
	for _, step := range []struct {
		n     int
		after time.Duration
		wait  time.Duration // then; 0: it is admitted
	}{
		{n: 7},
		{n: 5, wait: 200 * time.Millisecond},
		{n: 3},
		{n: 1, wait: 100 * time.Millisecond},
		{n: 10, after: 999 * time.Millisecond, wait: time.Millisecond},
		{n: 25, after: time.Millisecond}, // more than a burst: of a full bucket
		{n: 1, wait: 1600 * time.Millisecond},
		{n: 30, after: 1600 * time.Millisecond, wait: 900 * time.Millisecond},
		{n: 1},
	} {
		c.forward(step.after)
		err := take(step.n)
		if step.wait == 0 && err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		if step.wait > 0 {
			if e := refused(t, err); e.RetryAfter.Round(time.Millisecond) != step.wait || e.Limit != "use_per_tenant" {
				t.Errorf("%+v: %+v", step, e)
			}
		}
	}
	c.forward(time.Hour)
	counted := 0
	for range 60_000 { // a minute
		if take(64) == nil {
			counted += 64
		}
		c.forward(time.Millisecond)
	}
	if counted < 600 || counted > 600+64 {
		t.Errorf("%d in a minute, want 600", counted)
	}
}
