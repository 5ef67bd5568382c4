package dataplane

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
	"meshroute.io/meshroute/internal/xds"
)

// city is a gateway with many routes, each with a hostname of its own.
type city struct {
	*Dataplane
	in      model.Inputs
	slices  map[model.Key][]*discoveryv1.EndpointSlice
	now     time.Time
	version int64
}

func newCity(routes, services int) *city {
	c := &city{slices: map[model.Key][]*discoveryv1.EndpointSlice{}, now: time.Unix(1_000_000, 0)}
	server := xds.NewServer(func(context.Context) (xds.Peer, error) {
		return xds.Peer{Namespace: edge.Namespace, Name: edge.Name, Pod: "pod-1"}, nil
	}, logr.Discard())
	c.Dataplane = New(server, &PolicyNames{
		Gateway: workload.PolicyKey, Egress: workload.EgressKey, Isolation: workload.IsolationKey, Pods: workload.Pods,
	})
	c.in.GatewayAPI = "v1.7.0"
	c.in.GatewayClasses = []*gatewayv1.GatewayClass{{
		Name: "meshroute", Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
	}}
	c.in.Gateways = []*gatewayv1.Gateway{newGateway(gatewayv1.HTTPProtocolType)}
	for i := range services {
		name := fmt.Sprintf("service-%04d", i)
		service := newService(name, "http")
		service.UID, service.ResourceVersion = types.UID(name), "1"
		service.Spec.Selector = map[string]string{"app": name}
		c.in.Services = append(c.in.Services, service)
		c.slices[model.Key{Namespace: "shop", Name: name}] = newSlices("http", fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	for i := range routes {
		c.in.ServiceRoutes = append(c.in.ServiceRoutes, c.route(i, fmt.Sprintf("service-%04d", i%services)))
	}
	c.configure()
	changes, _ := c.NetworkPolicies(c.now)
	for _, object := range changes.Apply {
		c.SetPolicy(object.Key, &object.Policy, c.now)
	}
	return c
}

func (c *city) route(i int, service string) *v1alpha1.ServiceRoute {
	c.version++
	route := newRoute(service, "/")
	route.Name = fmt.Sprintf("route-%04d", i)
	route.UID, route.Generation = types.UID(route.Name), c.version
	route.CreationTimestamp = metav1.NewTime(c.now.Add(time.Duration(i/10) * time.Second))
	route.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(route.Name + ".example.com")}
	route.Spec.Rules[0].Timeouts = &v1alpha1.Timeouts{Request: new(gatewayv1.Duration(fmt.Sprintf("%dms", c.version)))}
	return route
}

func (c *city) configure() {
	c.Configure(c.in, c.in.Now, func(service model.Key) []*discoveryv1.EndpointSlice { return c.slices[service] })
}

// What one change costs where there are many routes: to build, and to find out
// what is new of policies and statuses.
func BenchmarkChange(b *testing.B) {
	for _, size := range []struct{ routes, services int }{{1000, 1000}, {5000, 50}, {5000, 5000}} {
		c := newCity(size.routes, size.services)
		run := func(name string, change func(i int)) {
			b.Run(fmt.Sprintf("%s/routes=%d/services=%d", name, size.routes, size.services), func(b *testing.B) {
				b.ReportAllocs()
				before := cpu(b)
				for i := 0; b.Loop(); i++ {
					change(i)
				}
				// What it costs, also where others use the same cores.
				b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
		touch := func(i, count int) {
			c.in.ServiceRoutes = slices.Clone(c.in.ServiceRoutes)
			for j := range count {
				at := (i*count + j) * 7 % size.routes
				c.in.ServiceRoutes[at] = c.route(at, fmt.Sprintf("service-%04d", at%size.services))
			}
			c.configure()
		}
		run("nothing", func(int) { c.configure() })
		run("route", func(i int) { touch(i, 1) })
		run("200-routes", func(i int) { touch(i, 200) })
		run("endpoint", func(i int) {
			name := fmt.Sprintf("service-%04d", i%size.services)
			c.SetEndpoints(model.Key{Namespace: "shop", Name: name}, newSlices("http", fmt.Sprintf("10.1.%d.%d", i/250%250, i%250)), time.Time{})
		})
		run("new-service", func(i int) {
			name := fmt.Sprintf("new-%d", i)
			service := newService(name, "http")
			service.Spec.Selector = map[string]string{"app": name}
			c.slices[model.Key{Namespace: "shop", Name: name}] = newSlices("http", "10.2.0.1")
			before := c.in
			c.in.Services = append(slices.Clone(c.in.Services), service)
			c.in.ServiceRoutes = append(slices.Clone(c.in.ServiceRoutes), c.route(size.routes+i, name))
			c.configure()
			c.in = before
		})
		run("policies", func(int) { c.NetworkPolicies(c.now) })
		run("observe", func(int) { c.Observe(c.now, nil) })
	}
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) int64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return used.Utime.Nano() + used.Stime.Nano()
}
