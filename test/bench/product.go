package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

const (
	namespace = "default"
	class     = "meshroute"
	gateway   = "bench"
)

// parallel is how many requests to the API server are under way when much is
// written at once.
const parallel = 16

// bench is the product under test.
type bench struct {
	sizes

	cluster  *harness.Cluster
	net      *harness.Net
	binaries harness.Binaries
	operator *harness.Operator
	pod      *harness.Pod
	backend  *harness.Backend
	port     int
	// routes that are present, beside those that measurements add, and the
	// Services that they share; 0: each has one of its own.
	routes, services int
	// folder of its files.
	folder string
	// profiler is the address of the manager's profiles; empty: there are none.
	profiler string
	// names counts what measurements add.
	names int
}

// start brings everything up, without any route.
func (b *bench) start(ctx context.Context, parent string) (err error) {
	if b.folder, err = os.MkdirTemp(parent, ""); err != nil {
		return err
	}
	if b.binaries, err = harness.Build(b.folder); err != nil {
		return err
	}
	if b.net, err = harness.NewNet(); err != nil {
		return err
	}
	if b.backend, err = b.net.Backend("backend", nil); err != nil {
		return err
	}
	if b.cluster, err = harness.StartCluster(b.folder); err != nil {
		return err
	}
	var flags []string
	if b.sizes.profiles != "" {
		port, err := harness.FreePort()
		if err != nil {
			return err
		}
		b.profiler = fmt.Sprintf("127.0.0.1:%d", port)
		flags = append(flags, "--pprof-bind-address", b.profiler)
	}
	if b.operator, err = b.cluster.StartOperator(ctx, b.binaries, b.folder, flags...); err != nil {
		return err
	}
	if b.port, err = harness.FreePort(); err != nil {
		return err
	}
	if err := b.create(ctx, harness.GatewayClass(class), harness.Gateway(namespace, gateway, class, b.port)); err != nil {
		return err
	}
	key := client.ObjectKey{Namespace: namespace, Name: gateway}
	if b.pod, err = b.cluster.StartPod(ctx, b.binaries, b.folder, key, class, "bench-0"); err != nil {
		return err
	}
	return harness.AwaitOK(ctx, b.pod.Readiness)
}

// grow adds routes until there are n, and waits until all are ready.
func (b *bench) grow(ctx context.Context, n int) error {
	if b.routes >= n {
		return nil
	}
	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := b.routes; i < n; i++ {
		group.Go(func() error {
			service := b.serviceOf(i)
			if b.services == 0 || i < b.services {
				if err := b.service(groupCtx, service); err != nil {
					return err
				}
			}
			return b.create(groupCtx, route(routeName(i), service))
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	log.Printf("%d routes are created after %s", n, time.Since(started).Round(time.Second))
	b.routes = n
	if err := b.allReady(ctx); err != nil {
		return err
	}
	log.Printf("%d routes are ready after %s", n, time.Since(started).Round(time.Second))
	return nil
}

func (b *bench) stop() error {
	if b == nil {
		return nil
	}
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

// serviceOf is the Service of a route that is present.
func (b *bench) serviceOf(i int) string {
	if b.services > 0 {
		return fmt.Sprintf("service-%04d", i%b.services)
	}
	return routeName(i)
}

func routeName(i int) string { return fmt.Sprintf("route-%04d", i) }

// fresh is a name that nothing had before.
func (b *bench) fresh(prefix string) string {
	b.names++
	return fmt.Sprintf("%s-%04d", prefix, b.names)
}

func route(name, service string) *v1alpha1.ServiceRoute {
	return harness.Route(namespace, name, hostOf(name), service, harness.Parent(namespace, gateway))
}

func hostOf(name string) string { return name + ".example.com" }

func (b *bench) address() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }
func (b *bench) url() string     { return "http://" + b.address() + "/" }

// touch changes a route so that Envoy has to be told.
func (b *bench) touch(ctx context.Context, name string, i int) error {
	patch := fmt.Sprintf(`[{"op":"add","path":"/spec/rules/0/timeouts","value":{"request":"%ds"}}]`, 10+i%50)
	return b.cluster.Client.Patch(ctx, route(name, name), client.RawPatch(types.JSONPatchType, []byte(patch)))
}

// allReady waits until every ServiceRoute is.
func (b *bench) allReady(ctx context.Context) error {
	for {
		var list v1alpha1.ServiceRouteList
		if err := b.cluster.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if isReady(&list.Items[i]) {
				ready++
			}
		}
		var shown v1alpha1.MeshRouteList
		if err := b.cluster.Client.List(ctx, &shown, client.InNamespace(namespace)); err != nil {
			return err
		}
		for i := range shown.Items {
			conditions := shown.Items[i].Status.Conditions
			if len(conditions) == 1 && conditions[0].Status == "True" {
				ready++
			}
		}
		if ready == 2*len(list.Items)+1 { // and the one that sums up
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d routes ready: %w", ready, len(list.Items), ctx.Err())
		// Looking at them costs the API server more the more there are.
		case <-time.After(200*time.Millisecond + time.Duration(len(list.Items)/5)*time.Millisecond):
		}
	}
}

// profile keeps what the manager holds in memory, where that was asked for. It
// has the manager collect its garbage first.
func (b *bench) profile(ctx context.Context, name string) (err error) {
	if b.profiler == "" {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.profiler+"/debug/pprof/heap?gc=1", http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	path := filepath.Join(b.sizes.profiles, stage{routes: b.routes, services: b.services}.title()+"-"+name+".pprof")
	file, err := os.Create(filepath.Clean(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, response.Body)
	log.Printf("%s has the manager's memory", path)
	return err
}

func isReady(route *v1alpha1.ServiceRoute) bool {
	for _, c := range route.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady && c.Status == "True" && c.ObservedGeneration == route.Generation {
			return true
		}
	}
	return false
}

// auditEnd is where the audit log ends now.
func (b *bench) auditEnd() (int64, error) {
	info, err := os.Stat(b.cluster.AuditLog)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// writesSince counts the manager's requests that are not reads, from a place in
// the audit log on.
func (b *bench) writesSince(offset int64) (map[string]int, error) {
	content, err := os.ReadFile(filepath.Clean(b.cluster.AuditLog))
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(content[offset:])) {
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
