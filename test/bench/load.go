package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"meshroute.io/meshroute/test/harness"
)

// undisturbed counts failed requests of a constant 200 a second while routes
// change and processes are killed.
func undisturbed(ctx context.Context, b *bench) error {
	load := func(disturb func(context.Context) error) (harness.Report, error) {
		load := harness.StartLoad(200, b.url(), hostOf(routeName(0)))
		limited, cancel := context.WithTimeout(ctx, b.length)
		defer cancel()
		err := disturb(limited)
		<-limited.Done()
		if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		return load.Stop(), err
	}
	var changes int64
	changing := func(ctx context.Context) (err error) {
		// Routes of others, and every third time the one under load.
		churn := b.startChurn(10, func(i int) string {
			if i%3 == 0 {
				return routeName(0)
			}
			return routeName((i * 7) % b.routes)
		})
		<-ctx.Done()
		changes, err = churn.stop()
		return err
	}
	killing := func(kill func()) func(context.Context) error {
		return func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(b.length / 4):
					kill()
				}
			}
		}
	}
	for _, disturbance := range []struct {
		what    string
		disturb func(context.Context) error
	}{
		{"10 route changes/s", changing},
		{"manager killed and restarted, three times", killing(b.operator.Kill)},
		{"agent killed, three times", killing(b.pod.Agent.Kill)},
	} {
		report, err := load(disturbance.disturb)
		if err != nil {
			return fmt.Errorf("%s: %w", disturbance.what, err)
		}
		b.row("200 req/s, "+disturbance.what, "failed: %s", report)
		if err := harness.AwaitOK(ctx, b.pod.Readiness); err != nil {
			return err
		}
	}
	b.row("… changes made meanwhile", "%d", changes)
	return b.allReady(ctx)
}

// changeAll changes every route as fast as the API server takes it, the one
// under load among them.
func changeAll(ctx context.Context, b *bench) error {
	load := harness.StartLoad(200, b.url(), hostOf(routeName(0)))
	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range b.routes {
		group.Go(func() error { return b.touch(groupCtx, routeName(i), 40) })
	}
	err := group.Wait()
	written := time.Since(started)
	if err == nil {
		err = b.allReady(ctx)
	}
	ready := time.Since(started)
	report := load.Stop()
	if err != nil {
		return err
	}
	b.row("all changed at once under 200 req/s", "failed: %s; written within %s, every status tells that it is in force after %s",
		report, written.Round(100*time.Millisecond), ready.Round(100*time.Millisecond))
	return nil
}

// reuse measures how many requests found a connection to the backend.
func reuse(_ context.Context, b *bench) error {
	count := func() (connections, requests int, err error) {
		prefix := fmt.Sprintf("cluster.%s/%s/80.upstream_", namespace, b.serviceOf(1))
		stats, err := b.pod.Stat(prefix)
		if err != nil {
			return 0, 0, err
		}
		connections, err1 := strconv.Atoi(stats[prefix+"cx_total"])
		requests, err2 := strconv.Atoi(stats[prefix+"rq_total"])
		return connections, requests, errors.Join(err1, err2)
	}
	connections, requests, err := count()
	if err != nil {
		return err
	}
	load := harness.StartLoad(200, b.url(), hostOf(routeName(1)))
	time.Sleep(b.length)
	report := load.Stop()
	nowConnections, nowRequests, err := count()
	if err != nil {
		return err
	}
	opened, sent := nowConnections-connections, nowRequests-requests
	b.row("connection reuse to the backend under 200 req/s", "%.2f %% (%d connections for %d requests; failed: %s)",
		100*(1-float64(opened)/float64(sent)), opened, sent, report)
	return nil
}
