package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// prober asks for one hostname on one connection, as fast as answers come.
type prober struct{ client *http.Client }

func newProber() *prober {
	return &prober{&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: (&net.Dialer{}).DialContext, MaxIdleConnsPerHost: 1,
	}}}
}

func (p *prober) status(url, host string) (int, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Host = host
	response, err := p.client.Do(request)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, errors.Join(err, response.Body.Close())
}

// first waits for the first 200 and counts the other answers on the way.
func (p *prober) first(ctx context.Context, url, host string, others map[int]int) error {
	for ctx.Err() == nil {
		status, err := p.status(url, host)
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			return nil
		}
		others[status]++
		time.Sleep(500 * time.Microsecond) // leaves the cores to those who are measured
	}
	return ctx.Err()
}

// patience is how long a first 200 is waited for.
const patience = 30 * time.Second

// latencies are sorted before they are printed.
type latencies []time.Duration

func (l latencies) String() string {
	slices.Sort(l)
	at := func(q float64) time.Duration {
		return l[min(len(l)-1, int(q*float64(len(l))))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, most %s (%d samples)", at(0.5), at(0.9), at(0.99), l[len(l)-1].Round(100*time.Microsecond), len(l))
}

// addRoute measures from the request that creates a route to its first 200: to a
// Service that the gateway sends requests to already.
func addRoute(ctx context.Context, b *bench) error {
	if err := b.firsts(ctx, b.samples, "create a route to a Service in use → first 200", b.toServiceInUse); err != nil {
		return err
	}
	return b.allReady(ctx)
}

// addRouteChurn measures the same while others change their routes.
func addRouteChurn(ctx context.Context, b *bench) error {
	const perSecond = 20
	churn := b.startChurn(perSecond, func(i int) string { return routeName((i * 7) % b.routes) })
	// Not all are ready at once while they change: that is waited for below.
	err := b.firsts(ctx, b.samples, fmt.Sprintf("… while %d other routes change each second", perSecond), b.toServiceInUse)
	changes, churnErr := churn.stop()
	if err := errors.Join(err, churnErr); err != nil {
		return err
	}
	b.row("… changes made meanwhile", "%d (%.1f/s)", changes, churn.rate)
	return b.allReady(ctx)
}

func (b *bench) toServiceInUse(context.Context) (*v1alpha1.ServiceRoute, error) {
	return route(b.fresh("added"), b.serviceOf(0)), nil // there is always one
}

// addBackend measures the same to a Service that is new to the gateway: a network
// policy is written, and settles, before the route goes out.
func addBackend(ctx context.Context, b *bench) error {
	err := b.firsts(ctx, max(1, b.samples/4), "create a route to a new backend → first 200", func(ctx context.Context) (*v1alpha1.ServiceRoute, error) {
		name := b.fresh("backend")
		return route(name, name), b.service(ctx, name)
	})
	if err != nil {
		return err
	}
	return b.allReady(ctx)
}

func (b *bench) firsts(ctx context.Context, samples int, what string, prepare func(context.Context) (*v1alpha1.ServiceRoute, error)) error {
	prober, others := newProber(), map[int]int{}
	var taken latencies
	manager, agent, envoy := cpu(b.operator.PID()), cpu(b.pod.Agent.PID()), cpu(b.pod.Envoy.PID())
	var added []*v1alpha1.ServiceRoute
	for range samples {
		route, err := prepare(ctx)
		if err != nil {
			return err
		}
		added = append(added, route)
		next := time.Now().Add(200 * time.Millisecond) // not in step with the writing of statuses
		started := time.Now()
		if err := b.create(ctx, route); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		err = prober.first(limited, b.url(), string(route.Spec.Hostnames[0]), others)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: after %s, of which %d answered before: %w", what, time.Since(started), len(taken), err)
		}
		taken = append(taken, time.Since(started))
		time.Sleep(time.Until(next))
	}
	delete(others, http.StatusNotFound) // it is not there before it is
	b.row(what, "%s; other answers than 404 on the way: %v", taken, others)
	b.row("… CPU for each: manager, agent, Envoy", "%s, %s, %s",
		per(cpu(b.operator.PID())-manager, samples), per(cpu(b.pod.Agent.PID())-agent, samples), per(cpu(b.pod.Envoy.PID())-envoy, samples))
	// The next measurement finds what this one found.
	for _, route := range added {
		if err := b.cluster.Client.Delete(ctx, route); err != nil {
			return err
		}
	}
	return nil
}

// churn changes routes at a constant rate.
type churn struct {
	cancel  context.CancelFunc
	done    chan error
	changes atomic.Int64
	started time.Time
	rate    float64 // reached, known once it is stopped
}

// startChurn changes the i-th route that nameOf names, then the next.
func (b *bench) startChurn(perSecond int, nameOf func(i int) string) *churn {
	ctx, cancel := context.WithCancel(context.Background())
	c := &churn{cancel: cancel, done: make(chan error, 1), started: time.Now()}
	go func() {
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				c.done <- nil
				return
			case <-ticker.C:
			}
			if err := b.touch(ctx, nameOf(i), i); err != nil {
				if ctx.Err() != nil {
					err = nil
				}
				c.done <- err
				return
			}
			c.changes.Add(1)
		}
	}()
	return c
}

func (c *churn) stop() (changes int64, err error) {
	c.cancel()
	err = <-c.done
	changes = c.changes.Load()
	c.rate = float64(changes) / time.Since(c.started).Seconds()
	return changes, err
}

// endpointReady measures from the request that makes an endpoint ready to the
// first 200.
func endpointReady(ctx context.Context, b *bench) error {
	name := b.fresh("toggled")
	slice := harness.Endpoints(namespace, name, b.backend)
	if err := b.create(ctx, harness.Service(namespace, name), slice, route(name, name)); err != nil {
		return err
	}
	prober := newProber()
	if err := prober.first(ctx, b.url(), hostOf(name), map[int]int{}); err != nil {
		return err
	}
	set := func(ready bool) error {
		patch := client.MergeFrom(slice.DeepCopy())
		slice.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: new(ready)}
		return b.cluster.Client.Patch(ctx, slice, patch)
	}
	var taken latencies
	for range b.samples {
		if err := set(false); err != nil {
			return err
		}
		for {
			status, err := prober.status(b.url(), hostOf(name))
			if err != nil {
				return err
			}
			if status == http.StatusServiceUnavailable {
				break
			}
			time.Sleep(time.Millisecond)
		}
		started := time.Now()
		if err := set(true); err != nil {
			return err
		}
		if err := prober.first(ctx, b.url(), hostOf(name), map[int]int{}); err != nil {
			return err
		}
		taken = append(taken, time.Since(started))
	}
	b.row("endpoint Ready → first 200", "%s", taken)
	return nil
}
