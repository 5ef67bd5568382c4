package main

import "testing"

func TestMemoryLimitFollowsWhatIsInUse(t *testing.T) {
	for _, tt := range []struct{ live, want uint64 }{
		{0, 240 << 20},
		{150 << 20, 240 << 20},
		{1000 << 20, 1400 << 20},
	} {
		if got := memoryLimit(tt.live); got != int64(tt.want) {
			t.Errorf("with %d MiB in use: %d MiB", tt.live>>20, got>>20)
		}
	}
}
