package cluster

import "time"

// Clock is a monotonic clock that goes on while the machine sleeps. Leases depend
// on its rate only, never on its zero.
type Clock interface {
	Now() time.Duration
}
