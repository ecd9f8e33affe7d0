package hsm

import (
	"sync/atomic"
	"time"
)

// Activity is what a partition can do, and what it has done since it was opened.
type Activity struct {
	KeyWrap    uint64   // number of the PKCS#11 mechanism that is RFC 5649; 0 where there are no such numbers
	OAEPHashes []string // with which the token takes a domain key in
	Algorithms []Algorithm

	Sessions   int // calls it makes at one time at most; 0: no limit
	Busy       int // calls under way
	Waiting    int // calls that wait for a session
	MaxWaiting int // more are ErrBusy

	Calls     []CallCount // by kind, the self-test left out
	LastError string      // of a call; empty: none
	LastFault time.Time   // when that was

	Losses   uint64 // how often the token was lost
	Returns  uint64 // how often it was open again
	Lost     time.Time
	Returned time.Time
}

// CallKind is what a call of the token is for.
type CallKind uint8

// The kinds of calls.
const (
	CallEncrypt CallKind = iota // blocks, for message keys, and messages under resident keys
	CallDecrypt                 // RSA, and messages under resident keys
	CallSign                    // and MACs
	CallGenerate
	CallWrap
	CallUnwrap
	CallRandom
	CallObject  // objects found, read, made, destroyed
	CallSession // opened, looked at, closed
	callKinds   = iota
)

// String is the kind's name.
func (k CallKind) String() string {
	return [callKinds]string{"encrypt", "decrypt", "sign", "generate", "wrap", "unwrap", "random", "object", "session"}[k]
}

// CallCount counts calls of one kind.
type CallCount struct {
	Kind   CallKind
	Count  uint64 // the failed ones too
	Errors uint64
	Time   time.Duration // in all of them
}

// Meter counts a partition's calls of its token. It is ready to use; a nil Meter counts
// nothing. A call that succeeds costs three atomic additions.
type Meter struct {
	kinds [callKinds]struct{ count, errors, nanoseconds atomic.Uint64 }
	fault atomic.Pointer[fault] // the last
}

type fault struct {
	text string
	when time.Time
}

// Done counts a call that has ended.
func (m *Meter) Done(k CallKind, began time.Time, err error) {
	if m == nil {
		return
	}
	c := &m.kinds[k]
	c.count.Add(1)
	c.nanoseconds.Add(uint64(max(0, time.Since(began))))
	if err != nil {
		c.errors.Add(1)
		m.fault.Store(&fault{k.String() + ": " + err.Error(), time.Now()})
	}
}

// Count is an Activity with what was counted.
func (m *Meter) Count() (a Activity) {
	for k := range m.kinds {
		c := &m.kinds[k]
		a.Calls = append(a.Calls, CallCount{
			Kind: CallKind(k), Count: c.count.Load(), Errors: c.errors.Load(),
			Time: time.Duration(c.nanoseconds.Load()), //nolint:gosec // of 292 years
		})
	}
	if f := m.fault.Load(); f != nil {
		a.LastError, a.LastFault = f.text, f.when
	}
	return a
}
