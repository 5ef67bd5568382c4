package agent

import (
	"context"
	"net"
	"strconv"
	"time"

	"k8s.io/utils/clock"

	"meshroute.io/meshroute/internal/report/reportv1"
)

const (
	// verifyInterval is how often network policies are tried, verifySoon how
	// often while there is no answer yet.
	verifyInterval = time.Minute
	verifySoon     = 5 * time.Second
	// connectTime is how long a connection may take. Within a cluster it takes
	// milliseconds, and a lost packet is sent again after a second.
	connectTime = 3 * time.Second
)

// verifier tries whether network policies are enforced, by an experiment with a
// control: of two ports of one manager, both of which are served, the policy of
// the gateway's pods lets one through and not the other.
type verifier struct {
	// leader is the address (host:port) of the manager that takes reports; empty
	// where it is not known.
	leader func() string
	// forbidden is the port that the policy does not let through.
	forbidden int
	connect   func(ctx context.Context, address string) error
	found     func(reportv1.NetworkPolicy)
	clock     clock.WithTicker
}

func dialOnce(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// run tries until ctx ends, and tells what it found.
func (v verifier) run(ctx context.Context) error {
	ticker := v.clock.NewTicker(verifySoon)
	defer ticker.Stop()
	var next time.Time
	for {
		if now := v.clock.Now(); !now.Before(next) {
			// No answer is no reason to forget the one before: a manager that is
			// restarted changes nothing about the network.
			if found := v.try(ctx); found != reportv1.NetworkPolicy_NETWORK_POLICY_UNKNOWN {
				next = now.Add(verifyInterval)
				v.found(found)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// try makes one experiment.
func (v verifier) try(ctx context.Context) reportv1.NetworkPolicy {
	allowed := v.leader()
	host, _, err := net.SplitHostPort(allowed)
	// A Service has no such port, whatever policies say: only the address of the
	// manager itself is of use.
	if err != nil || net.ParseIP(host) == nil {
		return reportv1.NetworkPolicy_NETWORK_POLICY_UNKNOWN
	}
	forbidden := net.JoinHostPort(host, strconv.Itoa(v.forbidden))
	for range 2 {
		if v.connect(ctx, forbidden) == nil {
			return reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED
		}
	}
	// Dropped or rejected, which is how some network plugins enforce; unless it
	// is the manager that does not answer at all.
	if v.connect(ctx, allowed) != nil || v.leader() != allowed {
		return reportv1.NetworkPolicy_NETWORK_POLICY_UNKNOWN
	}
	return reportv1.NetworkPolicy_NETWORK_POLICY_ENFORCED
}
