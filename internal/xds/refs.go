package xds

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// ref names a resource that another one needs.
type ref struct {
	kind kind
	name string
}

func compareRefs(a, b ref) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), strings.Compare(a.name, b.name))
}

// clusterRefs is the name under which a cluster asks for endpoints, if it does,
// or the clusters that it is made of.
func clusterRefs(body []byte) ([]ref, error) {
	c := &clusterv3.Cluster{}
	if err := proto.Unmarshal(body, c); err != nil {
		return nil, err
	}
	if c.GetClusterType().GetName() == "envoy.clusters.aggregate" {
		aggregate := &aggregatev3.ClusterConfig{}
		if err := c.GetClusterType().GetTypedConfig().UnmarshalTo(aggregate); err != nil {
			return nil, err
		}
		var refs []ref
		for _, member := range aggregate.GetClusters() {
			refs = append(refs, ref{clusters, member})
		}
		slices.SortFunc(refs, compareRefs)
		return slices.Compact(refs), nil
	}
	if c.GetType() != clusterv3.Cluster_EDS {
		return nil, nil
	}
	return []ref{{endpoints, cmp.Or(c.GetEdsClusterConfig().GetServiceName(), c.GetName())}}, nil
}

// listenerRefs are the secrets that a listener gets by SDS.
func listenerRefs(body []byte) ([]ref, error) {
	l := &listenerv3.Listener{}
	if err := proto.Unmarshal(body, l); err != nil {
		return nil, err
	}
	var refs []ref
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		tls := &tlsv3.DownstreamTlsContext{}
		if config := chain.GetTransportSocket().GetTypedConfig(); !config.MessageIs(tls) {
			continue
		} else if err := config.UnmarshalTo(tls); err != nil {
			return nil, err
		}
		for _, secret := range tls.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
			refs = append(refs, ref{secrets, secret.GetName()})
		}
	}
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs), nil
}

// hasHealthChecks tells whether a cluster asks its endpoints whether they are
// well.
func hasHealthChecks(body []byte) bool {
	c := &clusterv3.Cluster{}
	return proto.Unmarshal(body, c) == nil && len(c.GetHealthChecks()) > 0
}

// unasked is a version of endpoints that are not asked whether they are well.
//
// A cluster that asks is not used before each endpoint that it begins with was
// asked once, which may take as long as the slowest takes to answer, and Envoy
// acknowledges no cluster meanwhile: one backend would hold up the routes of all.
// So a cluster begins with endpoints that are not asked, and is given the same
// again at once, as they are. From then on they are asked, and get requests
// meanwhile as long as none of them has passed.
func unasked(of *version) *version {
	assignment := &endpointv3.ClusterLoadAssignment{}
	if err := proto.Unmarshal(of.GetResource().GetValue(), assignment); err != nil {
		return of // Envoy will refuse it
	}
	for _, locality := range assignment.GetEndpoints() {
		for _, endpoint := range locality.GetLbEndpoints() {
			endpoint.GetEndpoint().HealthCheckConfig = &endpointv3.Endpoint_HealthCheckConfig{DisableActiveHealthCheck: true}
		}
	}
	body, err := proto.Marshal(assignment)
	if err != nil {
		return of
	}
	return &version{unasked: of, Resource: &discoveryv3.Resource{
		Name: of.GetName(), Version: of.GetVersion() + unaskedSuffix,
		Resource: &anypb.Any{TypeUrl: resource.EndpointType, Value: body},
	}}
}

const unaskedSuffix = "/unasked"

// withoutContent tells whether a resource is a secret that says "keep the one
// that you have".
func withoutContent(r *discoveryv3.Resource) bool {
	if r.GetResource().GetTypeUrl() != resource.SecretType {
		return false
	}
	secret := &tlsv3.Secret{}
	return proto.Unmarshal(r.GetResource().GetValue(), secret) == nil && secret.GetType() == nil
}

// fields is a set of paths through a message: field numbers, down to a string.
type fields map[protowire.Number]fields

// clusterNames are the paths on which a ScopedRouteConfiguration names clusters.
var (
	mirrorPolicy = fields{1: nil}
	clusterNames = fields{
		5: { // route_configuration
			13: mirrorPolicy, // request_mirror_policies
			2: { // virtual_hosts
				22: mirrorPolicy, // request_mirror_policies
				3: { // routes
					2: { // route
						1:  nil,           // cluster
						3:  {1: {1: nil}}, // weighted_clusters.clusters.name
						30: mirrorPolicy,  // request_mirror_policies
					},
				},
			},
		},
	}
)

// routeRefs are the clusters that routes name. It reads the bytes as they are:
// the routes of a hostname come again with each change of one of them, and there
// may be thousands; unmarshalling them takes longer than everything else that the
// relay does.
func routeRefs(body []byte) ([]ref, error) {
	seen := map[string]struct{}{}
	if err := find(body, clusterNames, seen); err != nil {
		return nil, err
	}
	refs := make([]ref, 0, len(seen))
	for name := range seen {
		if !reserved(name) {
			refs = append(refs, ref{clusters, name})
		}
	}
	slices.SortFunc(refs, compareRefs)
	return refs, nil
}

func find(body []byte, paths fields, found map[string]struct{}) error {
	for len(body) > 0 {
		number, wire, n := protowire.ConsumeTag(body)
		if n < 0 {
			return protowire.ParseError(n)
		}
		body = body[n:]
		below, wanted := paths[number]
		if !wanted {
			if n = protowire.ConsumeFieldValue(number, wire, body); n < 0 {
				return protowire.ParseError(n)
			}
			body = body[n:]
			continue
		}
		if wire != protowire.BytesType {
			return errors.New("unexpected wire type")
		}
		value, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return protowire.ParseError(n)
		}
		body = body[n:]
		if below != nil {
			if err := find(value, below, found); err != nil {
				return err
			}
		} else if _, ok := found[string(value)]; !ok && len(value) > 0 {
			found[string(value)] = struct{}{}
		}
	}
	return nil
}
