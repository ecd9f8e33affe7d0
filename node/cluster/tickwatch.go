package cluster

import (
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// muteAfter is how many heartbeats a leader's tick may take before the leader falls
	// silent: a leader whose disk hangs would otherwise go on sending heartbeats, and no
	// other could be elected while every node's lease runs out.
	muteAfter = 1.5
	// tickPatience is how long a leader's ticks may fail before its process ends.
	// Raft's flag of a leadership transfer can be stuck, and a leader whose disk hangs
	// still sends heartbeats.
	tickPatience = 10 * time.Second
	// stillFor is by how much the time between two looks at the ticks may exceed the usual
	// before the process, not its disk, is taken to have stood still.
	stillFor = tickPatience / 2
)

// tickWatch knows since when a leader's ticks have not come through. Times are on the
// member's Clock, which goes on while the machine is suspended.
type tickWatch struct {
	since  atomic.Int64  // when the tick that is under way, or the first that failed, began; 0: none
	looked time.Duration // when stuck was last asked; 0: never
}

func (w *tickWatch) begin(now time.Duration) { w.since.CompareAndSwap(0, int64(now)) }

func (w *tickWatch) end() { w.since.Store(0) }

// lasts is for how long no tick has come through; 0: none waits.
func (w *tickWatch) lasts(now time.Duration) time.Duration {
	if since := time.Duration(w.since.Load()); since != 0 {
		return now - since
	}
	return 0
}

// stuck tells whether no tick has come through for tickPatience. It is asked each usual by
// one goroutine: a process that was frozen or suspended has not tried meanwhile, and what
// was under way then is given its time anew.
func (w *tickWatch) stuck(now, usual time.Duration) bool {
	still := w.looked != 0 && now-w.looked > usual+stillFor
	w.looked = now
	if since := w.since.Load(); still && since != 0 {
		w.since.CompareAndSwap(since, int64(now))
	}
	return w.lasts(now) > tickPatience
}

// mute tells whether this node's last tick has been under way for too long.
func (e *engine) mute() bool {
	return e.ticks.lasts(e.config.Clock.Now()) > time.Duration(muteAfter*float64(e.config.Raft.Heartbeat))
}

// watchTicks ends the process of a leader that cannot commit.
func (e *engine) watchTicks() {
	stuck := e.ticks.stuck(e.config.Clock.Now(), e.config.Lease.Renew)
	switch {
	case !e.leads():
		e.ticks.end()
	case stuck:
		e.config.Halt(fmt.Errorf("%w for %s", ErrStuck, tickPatience))
	}
}
