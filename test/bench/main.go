// Command bench measures what docs/benchmarks.md promises, with a real API
// server, manager, agent and Envoy on this machine, and prints the figures as
// Markdown. It judges nothing: whoever reads it compares with the bars.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

const (
	namespace = "default"
	class     = "meshroute"
	gateway   = "bench"
)

// bench is the product under test.
type bench struct {
	cluster  *harness.Cluster
	net      *harness.Net
	operator *harness.Operator
	pod      *harness.Pod
	backend  *harness.Backend
	port     int
	routes   int
}

func main() {
	routes := flag.Int("routes", 1000, "routes that are present, each with a Service of its own")
	samples := flag.Int("samples", 200, "samples of each latency")
	seconds := flag.Int("seconds", 20, "length of each run under load, and of the idle one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if err := run(ctx, *routes, *samples, time.Duration(*seconds)*time.Second); err != nil {
		log.Print("bench: ", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, routes, samples int, length time.Duration) (err error) {
	folder, err := os.MkdirTemp("", "mr")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	b := &bench{routes: routes}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.start(ctx, folder); err != nil {
		return err
	}
	fmt.Printf("%s, %d cores, %s, %s; %d routes, each with a Service of its own; Envoy with one worker\n\n",
		cpuModel(), runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.DateOnly), routes)
	fmt.Println("| what | measured |\n|---|---|")
	for _, measure := range []func(context.Context, int, time.Duration) error{
		b.addRoute, b.addBackend, b.endpointReady, b.undisturbed, b.reuse, b.idle, b.footprint,
	} {
		if err := measure(ctx, samples, length); err != nil {
			return err
		}
	}
	return nil
}

func row(what, format string, values ...any) {
	fmt.Printf("| %s | %s |\n", what, fmt.Sprintf(format, values...))
}

// start brings everything up, with all routes.
func (b *bench) start(ctx context.Context, folder string) error {
	binaries, err := harness.Build(folder)
	if err != nil {
		return err
	}
	if b.net, err = harness.NewNet(); err != nil {
		return err
	}
	if b.backend, err = b.net.Backend("backend", nil); err != nil {
		return err
	}
	if b.cluster, err = harness.StartCluster(folder); err != nil {
		return err
	}
	if b.operator, err = b.cluster.StartOperator(ctx, binaries, folder); err != nil {
		return err
	}
	if b.port, err = harness.FreePort(); err != nil {
		return err
	}
	if err := b.create(ctx, harness.GatewayClass(class), harness.Gateway(namespace, gateway, class, b.port)); err != nil {
		return err
	}
	key := client.ObjectKey{Namespace: namespace, Name: gateway}
	if b.pod, err = b.cluster.StartPod(ctx, binaries, folder, key, class, "bench-0"); err != nil {
		return err
	}
	if err := harness.AwaitOK(ctx, b.pod.Readiness); err != nil {
		return err
	}
	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range b.routes {
		group.Go(func() error {
			name := fmt.Sprintf("route-%04d", i)
			if err := b.service(groupCtx, name); err != nil {
				return err
			}
			return b.create(groupCtx, b.route(name))
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := b.allReady(ctx); err != nil {
		return err
	}
	log.Printf("%d routes are ready after %s", b.routes, time.Since(started).Round(time.Second))
	return nil
}

func (b *bench) stop() error {
	if b.pod != nil {
		b.pod.Stop()
	}
	if b.operator != nil {
		b.operator.Stop()
	}
	var failed error
	if b.cluster != nil {
		failed = b.cluster.Stop()
	}
	if b.net != nil {
		failed = errors.Join(failed, b.net.Close())
	}
	return failed
}

func (b *bench) create(ctx context.Context, objects ...client.Object) error {
	for _, object := range objects {
		if err := b.cluster.Client.Create(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// service makes a Service with an endpoint.
func (b *bench) service(ctx context.Context, name string) error {
	return b.create(ctx, harness.Service(namespace, name), harness.Endpoints(namespace, name, b.backend))
}

func (b *bench) route(name string) *v1alpha1.ServiceRoute {
	return harness.Route(namespace, name, hostOf(name), name, harness.Parent(namespace, gateway))
}

func hostOf(name string) string { return name + ".example.com" }

func (b *bench) url() string { return fmt.Sprintf("http://127.0.0.1:%d/", b.port) }

// allReady waits until every ServiceRoute is.
func (b *bench) allReady(ctx context.Context) error {
	for {
		var list v1alpha1.ServiceRouteList
		if err := b.cluster.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		ready := 0
		for _, route := range list.Items {
			for _, c := range route.Status.Conditions {
				if c.Type == v1alpha1.ConditionReady && c.Status == "True" && c.ObservedGeneration == route.Generation {
					ready++
				}
			}
		}
		var shown v1alpha1.MeshRouteList
		if err := b.cluster.Client.List(ctx, &shown, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, mesh := range shown.Items {
			if len(mesh.Status.Conditions) == 1 && mesh.Status.Conditions[0].Status == "True" {
				ready++
			}
		}
		if ready == 2*len(list.Items)+1 { // and the one that sums up
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d routes ready: %w", ready, len(list.Items), ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

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

// latencies are sorted.
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
func (b *bench) addRoute(ctx context.Context, samples int, _ time.Duration) error {
	const service = "route-0000" // there is always one
	return b.firsts(ctx, samples, "create a route to a Service in use → first 200", "added-%04d", func(name string) (*v1alpha1.ServiceRoute, error) {
		return harness.Route(namespace, name, hostOf(name), service, harness.Parent(namespace, gateway)), nil
	})
}

// addBackend measures the same to a Service that is new to the gateway: a network
// policy is written, and settles, before the route goes out.
func (b *bench) addBackend(ctx context.Context, samples int, _ time.Duration) error {
	return b.firsts(ctx, max(1, samples/4), "create a route to a new backend → first 200", "backend-%04d", func(name string) (*v1alpha1.ServiceRoute, error) {
		return b.route(name), b.service(ctx, name)
	})
}

func (b *bench) firsts(ctx context.Context, samples int, what, format string, prepare func(name string) (*v1alpha1.ServiceRoute, error)) error {
	prober, others := newProber(), map[int]int{}
	var taken latencies
	manager, agent, envoy := cpu(b.operator.PID()), cpu(b.pod.Agent.PID()), cpu(b.pod.Envoy.PID())
	for i := range samples {
		name := fmt.Sprintf(format, i)
		route, err := prepare(name)
		if err != nil {
			return err
		}
		next := time.Now().Add(200 * time.Millisecond) // not in step with the writing of statuses
		started := time.Now()
		if err := b.create(ctx, route); err != nil {
			return err
		}
		if err := prober.first(ctx, b.url(), hostOf(name), others); err != nil {
			return err
		}
		taken = append(taken, time.Since(started))
		time.Sleep(time.Until(next))
	}
	delete(others, http.StatusNotFound) // it is not there before it is
	row(fmt.Sprintf("%s, %d routes present", what, b.routes), "%s; other answers than 404 on the way: %v", taken, others)
	row("… CPU for each: manager, agent, Envoy", "%s, %s, %s",
		per(cpu(b.operator.PID())-manager, samples), per(cpu(b.pod.Agent.PID())-agent, samples), per(cpu(b.pod.Envoy.PID())-envoy, samples))
	return nil
}

// endpointReady measures from the request that makes an endpoint ready to the
// first 200.
func (b *bench) endpointReady(ctx context.Context, samples int, _ time.Duration) error {
	const name = "toggled"
	slice := harness.Endpoints(namespace, name, b.backend)
	if err := b.create(ctx, harness.Service(namespace, name), slice, b.route(name)); err != nil {
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
	for range samples {
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
	row(fmt.Sprintf("endpoint Ready → first 200, %d routes present", b.routes), "%s", taken)
	return nil
}

// undisturbed counts failed requests of a constant 200 a second while routes
// change and processes are killed.
func (b *bench) undisturbed(ctx context.Context, _ int, length time.Duration) error {
	load := func(disturb func(context.Context) error) (harness.Report, error) {
		load := harness.StartLoad(200, b.url(), hostOf("route-0000"))
		limited, cancel := context.WithTimeout(ctx, length)
		defer cancel()
		err := disturb(limited)
		<-limited.Done()
		if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		return load.Stop(), err
	}
	var changes atomic.Int64
	changing := func(ctx context.Context) error {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
			// Routes of others, and every third time the one under load.
			name := fmt.Sprintf("route-%04d", (i*7)%b.routes)
			if i%3 == 0 {
				name = "route-0000"
			}
			if err := b.touch(ctx, name, i); err != nil {
				return err
			}
			changes.Add(1)
		}
	}
	killing := func(kill func()) func(context.Context) error {
		return func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(length / 4):
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
		row("200 req/s, "+disturbance.what, "failed: %s", report)
		if err := harness.AwaitOK(ctx, b.pod.Readiness); err != nil {
			return err
		}
	}
	row("… changes made meanwhile", "%d", changes.Load())
	return b.allReady(ctx)
}

// touch changes a route so that Envoy has to be told.
func (b *bench) touch(ctx context.Context, name string, i int) error {
	route := b.route(name)
	if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(route), route); err != nil {
		return client.IgnoreNotFound(err)
	}
	patch := client.MergeFrom(route.DeepCopy())
	timeout := v1alpha1.Timeouts{Request: new(gatewayv1.Duration(fmt.Sprintf("%ds", 10+i%50)))}
	route.Spec.Rules[0].Timeouts = &timeout
	return b.cluster.Client.Patch(ctx, route, patch)
}

// reuse measures how many requests found a connection to the backend.
func (b *bench) reuse(_ context.Context, _ int, length time.Duration) error {
	count := func() (connections, requests int, err error) {
		prefix := "cluster." + namespace + "/route-0001/80.upstream_"
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
	load := harness.StartLoad(200, b.url(), hostOf("route-0001"))
	time.Sleep(length)
	report := load.Stop()
	nowConnections, nowRequests, err := count()
	if err != nil {
		return err
	}
	opened, sent := nowConnections-connections, nowRequests-requests
	row("connection reuse to the backend under 200 req/s", "%.2f %% (%d connections for %d requests; failed: %s)",
		100*(1-float64(opened)/float64(sent)), opened, sent, report)
	return nil
}

// idle counts what is written and pushed while nothing changes.
func (b *bench) idle(ctx context.Context, _ int, length time.Duration) error {
	if err := b.allReady(ctx); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // the last statuses
	pushes := func() (map[string]string, error) {
		return b.pod.Stat("cluster_manager.cds.update_attempt", "listener_manager.lds.update_attempt", "http.port-"+strconv.Itoa(b.port)+".scoped_rds.scopes.update_attempt")
	}
	writesBefore, err := b.writes()
	if err != nil {
		return err
	}
	before, err := pushes()
	if err != nil {
		return err
	}
	manager, agent := cpu(b.operator.PID()), cpu(b.pod.Agent.PID())
	time.Sleep(length)
	manager, agent = cpu(b.operator.PID())-manager, cpu(b.pod.Agent.PID())-agent
	writesAfter, err := b.writes()
	if err != nil {
		return err
	}
	for kind, count := range writesBefore {
		if writesAfter[kind] -= count; writesAfter[kind] == 0 {
			delete(writesAfter, kind)
		}
	}
	after, err := pushes()
	if err != nil {
		return err
	}
	pushed := 0
	for name, value := range after {
		if before[name] != value {
			pushed++
		}
	}
	row(fmt.Sprintf("unchanged state for %s: writes to the API, xDS updates", length), "%v, %d", writesAfter, pushed)
	row("… CPU of manager and agent", "%s, %s", manager, agent)
	return nil
}

// writes counts the manager's requests that are not reads.
func (b *bench) writes() (map[string]int, error) {
	content, err := os.ReadFile(b.cluster.AuditLog)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(content)) {
		var event struct {
			Verb, UserAgent string
			ObjectRef       struct{ Resource, Subresource string }
		}
		if json.Unmarshal([]byte(line), &event) != nil || !strings.HasPrefix(event.UserAgent, "manager/") {
			continue
		}
		if event.Verb != "get" && event.Verb != "list" && event.Verb != "watch" {
			counts[strings.TrimSpace(event.Verb+" "+event.ObjectRef.Resource+" "+event.ObjectRef.Subresource)]++
		}
	}
	return counts, nil
}

// footprint shows memory at the end.
func (b *bench) footprint(context.Context, int, time.Duration) error {
	row("memory (RSS) at the end: manager, agent, Envoy", "%d, %d, %d MiB",
		rss(b.operator.PID()), rss(b.pod.Agent.PID()), rss(b.pod.Envoy.PID()))
	return nil
}
