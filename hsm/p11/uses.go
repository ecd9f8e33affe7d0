//go:build cgo

package p11

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// A call into a token can hang for good: the vendor's library waits for a network or a card
// that is gone without a word. Nothing ends such a call from outside, and others would wait
// behind it until their time is over, so a token of which a call has not returned for long is
// not used. It is not lost: the session comes back with the call, and so does the token.

// uses are the sessions of a link that are in use.
type uses struct {
	since atomic.Int64 // unix nanoseconds: when the longest call that hangs began; 0: none does

	mu    sync.Mutex
	began map[*session]use
}

type use struct {
	at   time.Time // of its beginning, or of the last call that has returned
	long bool      // it makes a pair
}

// begins has a session that was taken out of a pool count as used.
func (l *link) begins(h pkcs11.SessionHandle) *session {
	s := &session{l, h}
	l.uses.mu.Lock()
	defer l.uses.mu.Unlock()
	if l.uses.began == nil {
		l.uses.began = map[*session]use{}
	}
	l.uses.began[s] = use{at: time.Now()}
	return s
}

func (l *link) ends(s *session) {
	l.uses.mu.Lock()
	defer l.uses.mu.Unlock()
	delete(l.uses.began, s)
}

// returned notes that a call of a session has returned: each has its own time.
func (l *link) returned(s *session) {
	l.uses.mu.Lock()
	defer l.uses.mu.Unlock()
	if u, counted := l.uses.began[s]; counted { // those of the self-test are not
		u.at = time.Now()
		l.uses.began[s] = u
	}
}

// takesLong says that what the session does next may take long, until done is called.
func (l *link) takesLong(s *session) (done func()) {
	set := func(long bool) {
		l.uses.mu.Lock()
		defer l.uses.mu.Unlock()
		if _, counted := l.uses.began[s]; counted {
			l.uses.began[s] = use{time.Now(), long}
		}
	}
	set(true)
	return func() { set(false) }
}

// judge finds the longest call that hangs, and tells for how long it does; 0: none does. What
// is new since it was last asked has changed.
func (l *link) judge(now time.Time, patience time.Duration) (changed bool, hung time.Duration) {
	l.uses.mu.Lock()
	defer l.uses.mu.Unlock()
	var since int64
	for _, u := range l.uses.began {
		allowed := patience
		if u.long {
			allowed *= pairPatience
		}
		if d := now.Sub(u.at); d > allowed && d > hung {
			hung, since = d, u.at.UnixNano()
		}
	}
	return (l.uses.since.Swap(since) != 0) != (since != 0), hung
}

// hangs tells whether a call hung when judge last looked, and for how long it does.
func (l *link) hangs() (time.Duration, bool) {
	since := l.uses.since.Load()
	return time.Since(time.Unix(0, since)), since != 0
}
