//go:build cgo

package p11

import (
	"sync"
	"sync/atomic"
	"time"
)

// A call into a token can hang for good: the vendor's library waits for a network or a card
// that is gone without a word. Nothing ends such a call from outside, and others would wait
// behind it until their time is over, so a token of which a call has not returned for long is
// not used. It is not lost: the session comes back with the call, and so does the token.

// use is what a session does. Its owner alone writes it.
type use struct {
	since atomic.Int64 // moment of its beginning, or of the last call that has returned; 0: it is not in use
	long  atomic.Bool  // it makes a pair
}

// uses is what the uses of a link's sessions were judged to be.
type uses struct {
	judging sync.Mutex
	hung    atomic.Int64 // moment when the longest call that hangs began; 0: none does
}

// epoch is what moments are counted from, in nanoseconds: no clock that is set moves them.
var epoch = time.Now()

func moment() int64 { return int64(time.Since(epoch)) }

// begins has a session that was taken out of a pool count as used.
func (u *use) begins() { u.since.Store(moment()) }

func (u *use) ends() { u.since.Store(0) }

// returned notes that a call of a session has returned: each has its own time.
func (u *use) returned() {
	if u.since.Load() != 0 { // those of the self-test are not in use
		u.begins()
	}
}

// takesLong says that what the session does next may take long, until done is called.
func (u *use) takesLong() (done func()) {
	u.long.Store(true)
	u.returned()
	return func() {
		u.returned()
		u.long.Store(false) // last: judge asks for it first
	}
}

// judge finds the longest call that hangs, and tells for how long it does; 0: none does. What
// is new since it was last asked has changed.
func (l *link) judge(now time.Time, patience time.Duration) (changed bool, hung time.Duration) {
	l.uses.judging.Lock()
	defer l.uses.judging.Unlock()
	at, before := now.Sub(epoch), l.uses.hung.Load()
	for {
		u, since := l.longest(at, patience)
		l.uses.hung.Store(since)
		if u == nil {
			return before != 0, 0
		}
		if u.since.Load() == since { // who gives it back after this sees that it counts as hanging
			return before == 0, at - time.Duration(since)
		}
	}
}

// longest is the use whose call hangs the longest at a time, and since when; nil: none does.
func (l *link) longest(at, patience time.Duration) (longest *use, began int64) {
	for _, s := range l.sessions {
		allowed := patience
		if s.long.Load() {
			allowed *= pairPatience
		}
		since := s.since.Load()
		if since == 0 || at-time.Duration(since) <= allowed {
			continue
		}
		if longest == nil || since < began {
			longest, began = &s.use, since
		}
	}
	return longest, began
}

// hangs tells whether a call hung when judge last looked, and for how long it does.
func (l *link) hangs() (time.Duration, bool) {
	since := l.uses.hung.Load()
	return time.Duration(moment() - since), since != 0
}
