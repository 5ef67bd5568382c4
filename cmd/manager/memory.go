package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Most of what the manager holds are objects of the cluster and what was made of
// them; a change makes little of it anew. So garbage is collected late, which
// keeps collections out of the way of changes, but not so late that thousands of
// routes are in memory four times over.
const (
	// gcPercent is how much the heap may grow before it is collected, as long as
	// it fits into memoryFloor.
	gcPercent = 300
	// memoryFloor is what Go's runtime may use before it collects sooner.
	memoryFloor = 240 << 20
	// headroom is the least share of what is in use that may be garbage: with
	// less, collections would be most of the work.
	headroom = 0.4
)

// memoryLimit is what the runtime may use (heap, stacks, its own), as long as live
// bytes of the heap are in use.
func memoryLimit(live uint64) int64 {
	return max(memoryFloor, int64(float64(live)*(1+headroom)))
}

// keepMemorySmall has the runtime follow memoryLimit until ctx ends. Who sets GOGC
// or GOMEMLIMIT knows better.
func keepMemorySmall(ctx context.Context) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for limit := int64(0); ; {
		metrics.Read(live)
		if now := memoryLimit(live[0].Value.Uint64()); now != limit {
			limit = now
			debug.SetMemoryLimit(limit)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
