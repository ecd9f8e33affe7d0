//go:build !linux

package cluster

import "time"

// SystemClock is Go's monotonic clock. It may stand still while the machine
// sleeps: this build is for development.
type SystemClock struct{}

var processStart = time.Now()

// Now implements Clock.
func (SystemClock) Now() time.Duration { return time.Since(processStart) }
