package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A network that lets an endpoint through from a moment on. What was sent before
// is lost.
type network map[netip.AddrPort]time.Time

func (n network) connect(ctx context.Context, endpoint netip.AddrPort) error {
	if time.Now().Before(n[endpoint]) {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func TestEndpointsAreAwaited(t *testing.T) {
	t.Parallel()
	near, late, never := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80"), netip.MustParseAddrPort("10.0.0.3:80")
	for name, test := range map[string]struct {
		endpoints []netip.AddrPort
		want      time.Duration
	}{
		"one that is let through at once":          {[]netip.AddrPort{near}, 0},
		"one that is a little later":               {[]netip.AddrPort{near, late}, 80 * time.Millisecond},
		"one that is not, for no longer than that": {[]netip.AddrPort{near, never, late}, reachTime},
		"none": {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				net := network{late: start.Add(70 * time.Millisecond), never: start.Add(time.Hour)}
				awaitReach(t.Context(), test.endpoints, net.connect)
				if took := time.Since(start); took != test.want {
					t.Errorf("took %s, wanted %s", took, test.want)
				}
			})
		})
	}
}

// Some network plugins do not drop but reject.
func TestARefusedConnectionIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var attempts atomic.Int32
		awaitReach(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}, func(context.Context, netip.AddrPort) error {
			if attempts.Add(1) < 4 {
				return errors.New("connection refused")
			}
			return nil
		})
		if took := time.Since(start); took != 3*tryAgain {
			t.Errorf("took %s after %d attempts", took, attempts.Load())
		}
	})
}
