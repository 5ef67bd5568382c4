// Package envoy turns a model.Gateway into what Envoy understands: listeners,
// route configurations, clusters and endpoints (xDS v3), and the bootstrap that
// an Envoy starts from. It alone knows Envoy's words; it knows none of
// Kubernetes'.
//
// Names are stable and mean something to a reader of a config dump: listeners
// are "port-8888", the routes of a hostname "port-8888/shop.example.com",
// clusters and their endpoints "namespace/service/port", followed by what is
// special about them. The same Gateway gives the same bytes.
package envoy

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
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
func Translate(gw model.Gateway) Resources { return new(Translator).Translate(gw) }

// Translator translates the same gateway again and again. What has not changed
// since the last time is the same message as then, not only an equal one: a
// change costs what it changes, here and in whoever compares the results. The
// messages must not be changed. The zero Translator is ready for use.
type Translator struct {
	checked  map[string]checkedCluster
	clusters map[model.Cluster]proto.Message
	secrets  map[*model.Certificate]proto.Message
	ports    map[string]*translatedPort
	// failovers by name: it stands for all that they are.
	failovers map[string]proto.Message
}

// translatedPort is a port as it was translated last.
type translatedPort struct {
	number, bind int32
	https        bool
	tls          []model.TLSListener
	listener     *listenerv3.Listener // nil: nothing is served
	ipv6         *listenerv3.Listener // nil: nobody asked for it
	scopes       scopes
}

// Translate is as the function Translate.
func (t *Translator) Translate(gw model.Gateway) Resources {
	resources := Resources{
		resource.ListenerType:    make(map[string]proto.Message, len(gw.Ports)),
		resource.SecretType:      make(map[string]proto.Message, len(gw.Certificates)),
		resource.ScopedRouteType: {},
		resource.ClusterType:     make(map[string]proto.Message, len(gw.Clusters)),
	}
	ports := make(map[string]*translatedPort, len(gw.Ports))
	for _, port := range gw.Ports {
		name := portName(port)
		ports[name] = t.ports[name].translate(name, port)
		if listener := ports[name].listener; listener != nil {
			resources[resource.ListenerType][name] = listener
			if gw.IPv6 {
				resources[resource.ListenerType][ipv6Name(name)] = onIPv6(ports[name])
			}
		}
		ports[name].scopes.list(resources[resource.ScopedRouteType])
	}
	clusters := make(map[model.Cluster]proto.Message, len(gw.Clusters))
	for _, c := range gw.Clusters {
		made, known := t.clusters[c]
		if !known {
			made = cluster(c)
		}
		clusters[c] = made
		resources[resource.ClusterType][c.Name] = t.Checked(c.Name, made, gw.Health[c.Name].Check)
	}
	failovers := make(map[string]proto.Message, len(gw.Failovers))
	for _, f := range gw.Failovers {
		made, known := t.failovers[f.Name]
		if !known {
			made = failover(f)
		}
		failovers[f.Name] = made
		resources[resource.ClusterType][f.Name] = made
	}
	t.secrets = secrets(t.secrets, gw)
	for certificate, made := range t.secrets {
		resources[resource.SecretType][secretName(certificate.Secret)] = made
	}
	t.ports, t.clusters, t.failovers = ports, clusters, failovers
	for name := range t.checked {
		if _, there := resources[resource.ClusterType][name]; !there {
			delete(t.checked, name)
		}
	}
	return resources
}

// onIPv6 is the same listener for IPv6 alone. It is one of its own, so that the
// other stays as it is: Envoy drops connections when a listener's address changes.
func onIPv6(port *translatedPort) *listenerv3.Listener {
	if port.ipv6 == nil {
		port.ipv6 = alsoIPv6(port.listener)
	}
	return port.ipv6
}

// translate takes over from before, which may be nil, what has not changed.
func (before *translatedPort) translate(name string, port model.Port) *translatedPort {
	if before == nil || before.number != port.Number || before.bind != port.Bind {
		before = &translatedPort{https: port.HTTPS, tls: port.TLS, listener: listener(name, port)}
	}
	made := before.listener
	if before.https != port.HTTPS || !slices.EqualFunc(before.tls, port.TLS, model.TLSListener.Equal) {
		made = listener(name, port)
	}
	after := &translatedPort{
		number: port.Number, bind: port.Bind, https: port.HTTPS, tls: port.TLS, listener: made,
		scopes: before.scopes.translate(name, port.VirtualHosts),
	}
	if made == before.listener {
		after.ipv6 = before.ipv6
	}
	return after
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
