//go:build linux && !cgo

package cluster

import (
	"time"

	"golang.org/x/sys/unix"
)

// SystemClock is the machine's CLOCK_BOOTTIME.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("cluster: CLOCK_BOOTTIME: " + err.Error()) // no Linux that Go runs on lacks it
	}
	return time.Duration(ts.Nano())
}
