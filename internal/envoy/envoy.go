// Package envoy turns a model.Gateway into what Envoy understands: listeners,
// route configurations, clusters and endpoints (xDS v3), and the bootstrap that
// an Envoy starts from. It alone knows Envoy's words; it knows none of
// Kubernetes'.
//
// Names are stable and mean something to a reader of a config dump: listeners
// and route configurations are "port-8888", clusters and their endpoints
// "namespace/service/port". The same Gateway gives the same bytes.
package envoy

import (
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"meshroute.io/meshroute/internal/model"
)

// Names of the clusters that every bootstrap has.
const (
	// XDSCluster is where Envoy gets its configuration: the agent beside it.
	XDSCluster = "meshroute-xds"
	// AgentCluster answers pages that the agent renders, such as StubStatus.
	AgentCluster = "meshroute-agent"
)

// StubStatusPath is where the agent serves the page of StubStatus.
const StubStatusPath = "/stub_status"

// Resources are xDS resources by type URL and name.
type Resources = map[string]map[string]proto.Message

// Translate returns the listeners, route configurations and clusters of a
// gateway. Endpoints come apart from them, by Endpoints.
func Translate(gw model.Gateway) Resources {
	resources := Resources{
		resource.ListenerType: make(map[string]proto.Message, len(gw.Ports)),
		resource.RouteType:    make(map[string]proto.Message, len(gw.Ports)),
		resource.ClusterType:  make(map[string]proto.Message, len(gw.Clusters)),
	}
	for _, port := range gw.Ports {
		name := portName(port)
		resources[resource.ListenerType][name] = listener(name, port)
		resources[resource.RouteType][name] = routeConfiguration(name, port)
	}
	for _, c := range gw.Clusters {
		resources[resource.ClusterType][c.Name] = cluster(c)
	}
	return resources
}

// mustAny packs a message that this package built: it always can be packed.
func mustAny(message proto.Message) *anypb.Any {
	// Deterministic, so that the same input gives the same bytes and version.
	packed := &anypb.Any{}
	if err := anypb.MarshalFrom(packed, message, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err)
	}
	return packed
}
