package controllers

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
)

// docs/metrics.md tells what each of these is for.
var (
	buildSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "meshroute_build_seconds",
		Help:    "Time to read what has changed from the caches, build it and hand it to the server of the gateways.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
	})
	acknowledgedSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "meshroute_change_acknowledged_seconds",
		Help:    "Time from when the API server told of a change until every pod of the gateway has it. Only the manager that leads knows.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	podsDesc    = prometheus.NewDesc("meshroute_gateway_pods", "Pods of a gateway that report to this manager, by state: current, behind or refusing.", []string{"namespace", "gateway", "state"}, nil)
	routesDesc  = prometheus.NewDesc("meshroute_routes", "ServiceRoutes, by state: valid, partial or invalid.", []string{"state"}, nil)
	heldDesc    = prometheus.NewDesc("meshroute_routes_held", "Routes of which a newer version waits for a network policy, counted for each gateway.", nil, nil)
	agentsDesc  = prometheus.NewDesc("meshroute_agents_connected", "Agents of a gateway that get their configuration from this manager.", []string{"namespace", "gateway"}, nil)
	pushesDesc  = prometheus.NewDesc("meshroute_pushes_total", "Responses sent to agents, by type of their resources.", []string{"type"}, nil)
	pushedDesc  = prometheus.NewDesc("meshroute_pushed_resources_total", "Resources sent to agents: new, changed or removed.", []string{"type"}, nil)
	nacksDesc   = prometheus.NewDesc("meshroute_nacks_total", "What pods have reported that their Envoy refuses, each object once for each pod. Only the manager that leads knows.", []string{"type"}, nil)
	refusedDesc = prometheus.NewDesc("meshroute_routes_refused", "Routes that Envoy refuses as they are: their previous version serves, or they are left out.", nil, nil)
)

// RegisterMetrics has the metrics of a Dataplane served beside those of the
// controllers.
func RegisterMetrics(plane *dataplane.Dataplane) error {
	for _, collector := range []prometheus.Collector{buildSeconds, acknowledgedSeconds, figures{plane}} {
		if err := metrics.Registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}

// ObserveAcknowledged counts what the pods of a gateway have by now.
func ObserveAcknowledged(plane *dataplane.Dataplane, gateway model.Key, now time.Time) {
	for _, took := range plane.Acknowledged(gateway, now) {
		acknowledgedSeconds.Observe(took.Seconds())
	}
}

// figures are counted when they are asked for.
type figures struct{ of *dataplane.Dataplane }

// Describe names them.
func (figures) Describe(to chan<- *prometheus.Desc) {
	to <- podsDesc
	to <- routesDesc
	to <- heldDesc
	to <- refusedDesc
	to <- agentsDesc
	to <- pushesDesc
	to <- pushedDesc
	to <- nacksDesc
}

// Collect counts them.
func (f figures) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	counter := func(desc *prometheus.Desc, value uint64, label string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), label)
	}
	now := f.of.Figures()
	for key, pods := range now.Pods {
		gauge(podsDesc, pods.Current, key.Namespace, key.Name, "current")
		gauge(podsDesc, pods.Behind, key.Namespace, key.Name, "behind")
		gauge(podsDesc, pods.Refusing, key.Namespace, key.Name, "refusing")
	}
	for key, agents := range now.Agents {
		gauge(agentsDesc, agents, key.Namespace, key.Name)
	}
	for _, sent := range now.Sent {
		counter(pushesDesc, sent.Pushes, sent.Type)
		counter(pushedDesc, sent.Resources, sent.Type)
		counter(nacksDesc, sent.Refusals, sent.Type)
	}
	gauge(routesDesc, now.Routes.Valid, "valid")
	gauge(routesDesc, now.Routes.Partial, "partial")
	gauge(routesDesc, now.Routes.Invalid, "invalid")
	gauge(heldDesc, now.Routes.Held)
	gauge(refusedDesc, now.Routes.Refused)
}
