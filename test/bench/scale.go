package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
)

// idle counts what is written and pushed while nothing changes.
func idle(ctx context.Context, b *bench) error {
	if err := b.allReady(ctx); err != nil {
		return err
	}
	time.Sleep(5 * time.Second) // the last statuses, and what was made for routes that have gone
	// Whatever is pushed, of whatever kind, reaches Envoy through this cluster.
	received := func() (int, error) {
		const name = "cluster.meshroute-xds.upstream_cx_rx_bytes_total"
		stats, err := b.pod.Stat(name)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(stats[name])
	}
	offset, err := b.auditEnd()
	if err != nil {
		return err
	}
	before, err := received()
	if err != nil {
		return err
	}
	manager, agent := cpu(b.operator.PID()), cpu(b.pod.Agent.PID())
	length := b.length * 3 / 2
	time.Sleep(length)
	manager, agent = cpu(b.operator.PID())-manager, cpu(b.pod.Agent.PID())-agent
	writes, err := b.writesSince(offset)
	if err != nil {
		return err
	}
	after, err := received()
	if err != nil {
		return err
	}
	share := func(used time.Duration) string {
		return fmt.Sprintf("%s (%.2f %% of a core)", used.Round(time.Millisecond), 100*used.Seconds()/length.Seconds())
	}
	b.row(fmt.Sprintf("no change for %s: writes to the API, bytes pushed to Envoy", length), "%v, %d", writes, after-before)
	b.row("… CPU of manager, agent", "%s, %s", share(manager), share(agent))
	return nil
}

// memory shows what the processes hold now, and what they held at most.
func memory(ctx context.Context, b *bench) error {
	b.row("memory (RSS): manager, agent, Envoy", "%d, %d, %d MiB; at most %d, %d, %d MiB",
		rss(b.operator.PID()), rss(b.pod.Agent.PID()), rss(b.pod.Envoy.PID()),
		peak(b.operator.PID()), peak(b.pod.Agent.PID()), peak(b.pod.Envoy.PID()))
	return b.profile(ctx, "memory")
}

// coldStart starts the manager anew, with a change that was made while it was
// away: the change's status says so when pods have acknowledged everything.
func coldStart(ctx context.Context, b *bench) error {
	b.operator.Hold()
	offset, err := b.auditEnd()
	if err != nil {
		return err
	}
	added := route(b.fresh("meanwhile"), b.serviceOf(0))
	if err := b.create(ctx, added); err != nil {
		return err
	}
	started := time.Now()
	if err := b.operator.Resume(); err != nil {
		return err
	}
	others := map[int]int{}
	limited, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for {
		status, err := newProber().status(b.url(), hostOf(added.Name))
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			break
		}
		others[status]++
		select {
		case <-limited.Done():
			return limited.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	answered := time.Since(started)
	for {
		var now v1alpha1.ServiceRoute
		if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(added), &now); err != nil {
			return err
		}
		if isReady(&now) {
			break
		}
		select {
		case <-limited.Done():
			return limited.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	acknowledged := time.Since(started)
	used := cpu(b.operator.PID())
	writes, err := b.writesSince(offset)
	if err != nil {
		return err
	}
	delete(others, http.StatusNotFound)
	b.row("manager starts → a route created meanwhile answers; everything is acknowledged, and statuses say so", "%.1f s; %.1f s (CPU of the manager %s); other answers than 404 on the way: %v",
		answered.Seconds(), acknowledged.Seconds(), used.Round(100*time.Millisecond), others)
	b.row("… writes to the API by then", "%v", writes)
	time.Sleep(5 * time.Second)
	b.row("… memory of the manager after it", "%d MiB; at most %d MiB", rss(b.operator.PID()), peak(b.operator.PID()))
	if err := b.profile(ctx, "cold-start"); err != nil {
		return err
	}
	return b.cluster.Client.Delete(ctx, added)
}

// series counts what a scraper of the gateway gets, once every route has had a
// request: what nothing happened to is not counted in full.
func series(_ context.Context, b *bench) error {
	prober := newProber()
	for i := range b.routes {
		if status, err := prober.status(b.url(), hostOf(routeName(i))); err != nil || status != http.StatusOK {
			return fmt.Errorf("%s answers %d: %w", routeName(i), status, err)
		}
	}
	page, err := b.pod.Admin("/stats/prometheus")
	if err != nil {
		return err
	}
	all := 0
	families := map[string]int{}
	for line := range strings.Lines(page) {
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		all++
		name, _, _ := strings.Cut(line, "{")
		families[name]++
	}
	names := slices.SortedFunc(maps.Keys(families), func(a, b string) int { return families[b] - families[a] })
	var most []string
	for _, name := range names[:min(3, len(names))] {
		most = append(most, fmt.Sprintf("%s %d", name, families[name]))
	}
	b.row("Prometheus series of the gateway", "%d, %.1f for each route; a page of %d KiB (most: %s)",
		all, float64(all)/float64(b.routes), len(page)>>10, strings.Join(most, ", "))
	return nil
}
