package hsm

import (
	"math/bits"
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
	OfKeys     int // sessions that keys have of their own now

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
	Took   []uint64      // how many took at most CallTimes, each but the faster ones; the last: longer
}

// callTimes is how many durations calls are told apart by.
const callTimes = 10

// CallTimes are the durations that calls are told apart by: 16 µs and so on by four, to
// 4.3 s.
func CallTimes() []time.Duration {
	out := make([]time.Duration, callTimes)
	for i := range out {
		out[i] = 1 << (firstTime + 2*i)
	}
	return out
}

// firstTime is the binary logarithm of the first of CallTimes in nanoseconds.
const firstTime = 14

// timeClass is the place of a duration among CallTimes; callTimes: longer.
func timeClass(d time.Duration) int {
	return min(max(0, bits.Len64(uint64(max(1, d)-1))-firstTime+1)/2, callTimes)
}

// Meter counts a partition's calls of its token. It is ready to use; a nil Meter counts
// nothing. A call that succeeds costs two atomic additions.
type Meter struct {
	kinds [callKinds]struct {
		took                [callTimes + 1]atomic.Uint64
		errors, nanoseconds atomic.Uint64
	}
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
	c, took := &m.kinds[k], max(0, time.Since(began))
	c.took[timeClass(took)].Add(1)
	c.nanoseconds.Add(uint64(took))
	if err != nil {
		c.errors.Add(1)
		m.fault.Store(&fault{k.String() + ": " + err.Error(), time.Now()})
	}
}

// Count is an Activity with what was counted.
func (m *Meter) Count() (a Activity) {
	for k := range m.kinds {
		c := &m.kinds[k]
		x := CallCount{
			Kind: CallKind(k), Errors: c.errors.Load(), Took: make([]uint64, len(c.took)),
			Time: time.Duration(c.nanoseconds.Load()), //nolint:gosec // of 292 years
		}
		for i := range c.took {
			x.Took[i] = c.took[i].Load()
			x.Count += x.Took[i]
		}
		a.Calls = append(a.Calls, x)
	}
	if f := m.fault.Load(); f != nil {
		a.LastError, a.LastFault = f.text, f.when
	}
	return a
}
