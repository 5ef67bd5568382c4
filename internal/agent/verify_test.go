package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"meshroute.io/meshroute/internal/report/reportv1"
)

const (
	unknown     = reportv1.NetworkPolicy_NETWORK_POLICY_UNKNOWN
	enforced    = reportv1.NetworkPolicy_NETWORK_POLICY_ENFORCED
	notEnforced = reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED
)

func TestVerify(t *testing.T) {
	closed := errors.New("closed")
	for name, test := range map[string]struct {
		leader string
		open   map[string]bool
		want   reportv1.NetworkPolicy
	}{
		"only what is allowed is reached":     {"10.0.0.1:18000", map[string]bool{"10.0.0.1:18000": true}, enforced},
		"what is forbidden is reached":        {"10.0.0.1:18000", map[string]bool{"10.0.0.1:18000": true, "10.0.0.1:8081": true}, notEnforced},
		"IPv6":                                {"[2001:db8::1]:18000", map[string]bool{"[2001:db8::1]:18000": true, "[2001:db8::1]:8081": true}, notEnforced},
		"the manager answers nobody":          {"10.0.0.1:18000", nil, unknown},
		"nobody leads":                        {"", nil, unknown},
		"the leader's own address is unknown": {"meshroute-manager.svc:18000", map[string]bool{"meshroute-manager.svc:18000": true}, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier{
				leader: func() string { return test.leader }, forbidden: 8081,
				connect: func(_ context.Context, address string) error {
					if test.open[address] {
						return nil
					}
					return closed
				},
			}
			if got := v.try(t.Context()); got != test.want {
				t.Errorf("found %s, wanted %s", got, test.want)
			}
		})
	}
}

// A packet that is lost on the way is no policy, and another leader no control.
func TestVerifyIsNotTakenIn(t *testing.T) {
	calls, leader := 0, "10.0.0.1:18000"
	v := verifier{leader: func() string { return leader }, forbidden: 8081}
	v.connect = func(context.Context, string) error {
		if calls++; calls == 1 {
			return context.DeadlineExceeded
		}
		return nil
	}
	if got := v.try(t.Context()); got != notEnforced {
		t.Errorf("one lost packet: found %s", got)
	}
	v.connect = func(_ context.Context, address string) error {
		leader = "10.0.0.2:18000"
		if address == "10.0.0.1:18000" {
			return nil
		}
		return context.DeadlineExceeded
	}
	if got := v.try(t.Context()); got != unknown {
		t.Errorf("the leader went meanwhile: found %s", got)
	}
}

// It is tried soon until there is an answer, then once a minute, and an answer
// stands until there is another.
func TestVerifyAgain(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	tries, found := make(chan reportv1.NetworkPolicy), make(chan reportv1.NetworkPolicy)
	var now reportv1.NetworkPolicy
	v := verifier{
		forbidden: 8081, clock: clk,
		leader: func() string { return "10.0.0.1:18000" },
		found:  func(f reportv1.NetworkPolicy) { found <- f },
	}
	first := true
	v.connect = func(_ context.Context, address string) error {
		if first {
			now = <-tries
		}
		first = now == notEnforced || address == "10.0.0.1:18000"
		if now == notEnforced || now == enforced && address == "10.0.0.1:18000" {
			return nil
		}
		return context.DeadlineExceeded
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.run(ctx) }()

	tries <- unknown // the ticker is there by now
	clk.Step(verifySoon)
	tries <- enforced
	if got := <-found; got != enforced {
		t.Errorf("found %s", got)
	}
	for range verifyInterval/verifySoon - 1 {
		clk.Step(verifySoon)
		select {
		case tries <- notEnforced:
			t.Fatal("tried again before the minute was over")
		default:
		}
	}
	clk.Step(verifySoon)
	tries <- notEnforced
	if got := <-found; got != notEnforced {
		t.Errorf("found %s", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
