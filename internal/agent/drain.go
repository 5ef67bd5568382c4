package agent

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
)

// A pod ends when both of its containers are asked to: the agent by SIGTERM,
// Envoy by its preStop hook, which asks for /drained and holds back Envoy's
// SIGTERM until that answers. One of them alone means that one container is
// restarted, and no client has to go.
const (
	// togetherTime is how far apart the two may be.
	togetherTime = 3 * time.Second
	// maxWaiters bounds how many may ask for /drained at a time: the kubelet is
	// one, and asks again only if it was restarted.
	maxWaiters = 4
	// leastDrain is how long new connections are taken in any case: as long as
	// it may take until every node and load balancer knows that they should go
	// elsewhere.
	leastDrain = 5 * time.Second
	// quietDrain is how long no request may have been made or be on its way
	// until the clients that are still connected count as idle.
	quietDrain = 3 * time.Second
	drainPoll  = 500 * time.Millisecond
	// envoyEndTime is how long Envoy may take to end once its clients are gone.
	envoyEndTime = 5 * time.Second
)

// drain lets the clients of a pod that ends go to others.
type drain struct {
	// limit is when it is over, whoever is still there; 0: there is none.
	limit time.Duration
	// least, quiet and together are the constants above, but in tests.
	least, quiet, together time.Duration

	admin *admin
	tell  func() // the manager, when it begins
	log   logr.Logger

	draining atomic.Bool
	waiters  chan struct{} // as many as wait
	ending   chan struct{} // closed when the agent is asked to end
	asked    chan struct{} // rings when Envoy's container is, too
	drained  chan struct{} // closed when Envoy may end
}

func newDrain(limit time.Duration, admin *admin, tell func(), log logr.Logger) *drain {
	return &drain{
		limit: limit, least: leastDrain, quiet: quietDrain, together: togetherTime,
		admin: admin, tell: tell, log: log,
		waiters: make(chan struct{}, maxWaiters),
		ending:  make(chan struct{}), asked: make(chan struct{}, 1), drained: make(chan struct{}),
	}
}

// ServeHTTP answers once the clients of a pod that ends are gone; where the
// agent goes on, soon. It only waits: whoever asks changes nothing.
func (d *drain) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case d.waiters <- struct{}{}:
		defer func() { <-d.waiters }()
	default:
		http.Error(w, "enough are waiting", http.StatusTooManyRequests)
		return
	}
	select {
	case <-d.ending:
	case <-time.After(d.together):
		return
	case <-r.Context().Done():
		return
	}
	select {
	case d.asked <- struct{}{}:
	default:
	}
	select {
	case <-d.drained:
	case <-r.Context().Done():
	}
}

// run is called when the agent is asked to end, and returns when it may. Until
// then it has to go on: Envoy still needs it.
func (d *drain) run(ctx context.Context) {
	defer close(d.drained)
	close(d.ending)
	if d.limit <= 0 {
		return
	}
	select {
	case <-d.asked:
	case <-time.After(d.together):
		d.log.Info("Ending without draining: Envoy's container goes on")
		return
	case <-ctx.Done():
		return
	}
	d.draining.Store(true)
	d.tell()
	d.log.Info("Draining: clients are asked to go", "limit", d.limit.String())
	reason := d.wait(ctx)
	d.log.Info("Drained", "reason", reason)
}

// wait asks clients to go, and returns when that is over, and why.
func (d *drain) wait(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	ticker := time.NewTicker(drainPoll)
	defer ticker.Stop()
	progress := progress{least: d.least, quiet: d.quiet, began: time.Now()}
	failing := false
	for {
		if !failing {
			// From now on Envoy fails its readiness probe, and answers with
			// "Connection: close", or GOAWAY where clients speak HTTP/2.
			_, err := d.admin.ask(ctx, http.MethodPost, "/healthcheck/fail")
			failing = err == nil
		}
		stats, err := d.admin.ask(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(connectionStats))
		switch {
		case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist):
			return "Envoy has ended"
		case err == nil:
			now, err := parseCounters(stats)
			if err != nil {
				d.log.Error(err, "Envoy's statistics cannot be read; draining goes on to its limit")
				break
			}
			if reason := progress.judge(time.Now(), now); reason != "" {
				return reason
			}
		}
		select {
		case <-ctx.Done():
			return "the limit is reached; clients that are still connected are cut off"
		case <-ticker.C:
		}
	}
}

// envoyEnded waits until Envoy has ended, which is told to by the kubelet once
// /drained was answered: until then its configuration stays with it.
func (d *drain) envoyEnded(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, envoyEndTime)
	defer cancel()
	ticker := time.NewTicker(drainPoll / 5)
	defer ticker.Stop()
	for {
		if _, err := d.admin.ask(ctx, http.MethodGet, "/ready"); errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// progress judges how far a drain has come.
type progress struct {
	least, quiet time.Duration
	began        time.Time

	requests   uint64
	quietSince time.Time // zero: not quiet
}

// judge returns why the drain is over; "" while it is not.
func (p *progress) judge(now time.Time, seen counters) string {
	if seen.activeRequests > 0 || seen.requests != p.requests || p.quietSince.IsZero() {
		p.requests, p.quietSince = seen.requests, now
	}
	switch {
	case now.Sub(p.began) < p.least:
		return ""
	case seen.activeConnections == 0:
		return "no client is left"
	case seen.activeRequests == 0 && now.Sub(p.quietSince) >= p.quiet:
		return "the clients that are left are idle"
	}
	return ""
}
