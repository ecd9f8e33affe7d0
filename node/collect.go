package node

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapRoom is how much a node's heap grows at least between two collections, in bytes. What
	// lives on it is small as long as there are few keys: with Go's default (it may double) a busy
	// node would collect dozens of times a second, and shrink the stacks that its calls grow.
	heapRoom = 64 << 20
	// defaultGCPercent is Go's: with a large state the heap may double.
	defaultGCPercent = 100
	liveHeap         = "/gc/heap/live:bytes"
	tuneEvery        = 10 * time.Second
)

// tuneCollector keeps the collector's pace to heapRoom until ctx ends, unless GOGC sets it.
func tuneCollector(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(tuneEvery)
	defer tick.Stop()
	live := []metrics.Sample{{Name: liveHeap}}
	for {
		metrics.Read(live)
		debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcPercent is the pace for a heap of which so many bytes live.
func gcPercent(live uint64) int {
	const least = 4 << 20                                            // as Go takes it
	return max(defaultGCPercent, int(heapRoom*100/max(live, least))) //nolint:gosec // at most 1,600
}
