package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// reachTime is how long endpoints that are new are waited for. Network plugins
	// enforce a policy within that, seldom later (ADR 14 has figures); an endpoint
	// that does not answer at all is given to Envoy nevertheless, which knows what
	// to do with such ones.
	reachTime = 250 * time.Millisecond
	// tryAgain is how often a connection is attempted meanwhile. Each attempt is a
	// connection of its own: of one whose first packet was dropped, the kernel
	// sends the next after a second.
	tryAgain = 20 * time.Millisecond
	// mostTried bounds how many endpoints are tried of those that come at once,
	// and mostAtOnce how many of them at a time.
	mostTried  = 256
	mostAtOnce = 64
)

// reach returns what waits until endpoints can be connected to; nil where nobody
// wants to wait.
func reach(wanted bool) func(context.Context, []netip.AddrPort) {
	if !wanted {
		return nil
	}
	return func(ctx context.Context, endpoints []netip.AddrPort) { awaitReach(ctx, endpoints, connect) }
}

func connect(ctx context.Context, endpoint netip.AddrPort) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", endpoint.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// awaitReach tells by experiment that the network lets this pod through: there is
// nobody to ask whether a policy is in force on a node, but every pod can try for
// itself.
func awaitReach(ctx context.Context, endpoints []netip.AddrPort, connect func(context.Context, netip.AddrPort) error) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(mostAtOnce)
	for _, endpoint := range endpoints[:min(len(endpoints), mostTried)] {
		group.Go(func() error {
			untilConnected(ctx, endpoint, connect)
			return nil
		})
	}
	_ = group.Wait() // never fails
}

func untilConnected(ctx context.Context, endpoint netip.AddrPort, connect func(context.Context, netip.AddrPort) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ticker := time.NewTicker(tryAgain)
	defer ticker.Stop()
	for {
		go func() {
			if connect(ctx, endpoint) == nil {
				cancel()
			}
		}()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
