package limit

import (
	"container/list"
	"math"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// maxWait is the longest wait that is told.
const maxWait = 100 * 365 * 24 * time.Hour

// quota is one limit: a bucket of tokens for each of at most maxBuckets names. The one
// that was asked for least recently goes first; when it comes back it is full again.
// With a call a second or more, one that has rested for a second is full anyway, so
// that forgetting is a gift only where more than maxBuckets names call within it, or to
// one that is in debt.
//
// A nil quota is none: its buckets never run empty.
type quota struct {
	limit, of string
	rate      float64 // tokens a second
	burst     int     // tokens
	buckets   map[string]*list.Element
	recent    list.List // of *bucket, the one asked for last at the front
}

type bucket struct {
	name   string
	tokens *rate.Limiter
}

func newQuota(limit, of string, perSecond float64) *quota {
	if perSecond <= 0 || math.IsNaN(perSecond) {
		return nil
	}
	perSecond = min(perSecond, MaxRate)
	return &quota{
		limit: limit, of: of, rate: perSecond, burst: int(math.Ceil(perSecond)),
		buckets: map[string]*list.Element{},
	}
}

// same tells whether two quotas allow the same.
func (q *quota) same(other *quota) bool {
	if q == nil || other == nil {
		return q == other
	}
	return q.rate == other.rate
}

// bucket finds a name's bucket, or makes it.
func (q *quota) bucket(name string) *bucket {
	if q == nil {
		return nil
	}
	if e, ok := q.buckets[name]; ok {
		q.recent.MoveToFront(e)
		return e.Value.(*bucket)
	}
	if len(q.buckets) >= maxBuckets {
		last := q.recent.Back()
		delete(q.buckets, q.recent.Remove(last).(*bucket).name)
	}
	b := &bucket{name: strings.Clone(name), tokens: rate.NewLimiter(rate.Limit(q.rate), q.burst)}
	q.buckets[b.name] = q.recent.PushFront(b)
	return b
}

// wait is how long it takes until b has n tokens, or is full: 0 if it is so. It takes none.
func (q *quota) wait(b *bucket, n int, now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	missing := float64(min(n, q.burst)) - b.tokens.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	// A nanosecond and a trillionth of a token more than floating point says, so that
	// waiting for exactly this long is enough.
	ns := (missing+1e-12)/q.rate*float64(time.Second) + 1
	return time.Duration(min(ns, float64(maxWait)))
}

func (q *quota) exceeded(lane Lane, name string, wait time.Duration) error {
	return &Exceeded{Lane: lane, Limit: q.limit, Of: q.of, Name: name, Rate: q.rate, RetryAfter: wait}
}

// take takes n tokens, for the first of which wait has looked; of what is more than the burst it
// runs into debt.
func (b *bucket) take(n int, now time.Time) {
	if b == nil {
		return
	}
	for n > 0 {
		part := min(n, b.tokens.Burst())
		b.tokens.ReserveN(now, part)
		n -= part
	}
}
