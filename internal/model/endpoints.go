package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Endpoint is an address that requests to a cluster can go to.
type Endpoint struct {
	Address string
	Port    int32
	// Zone of the endpoint, empty where unknown.
	Zone string
}

// EndpointSet is what EndpointSlices say of a cluster. A pod with addresses of
// both families is there once, with that of the Service's first family.
type EndpointSet struct {
	// Serving endpoints, sorted, each address once: the ready ones; where none
	// is ready, those that are terminating but still serve, so that the last
	// pod of a rollout is not cut off.
	Serving []Endpoint
	// All endpoints, whatever their state, sorted and without zones.
	All []Endpoint
	// Ready endpoints.
	Ready int
}

// Endpoints reads the endpoints of a cluster from the EndpointSlices of its
// Service. It is apart from Build because endpoints change far more often than
// routes do, and change nothing about them.
func Endpoints(cluster Cluster, slicesOfService []*discoveryv1.EndpointSlice) EndpointSet {
	type state struct {
		ready, draining bool
		zone            string
		backend         backend
		primary         bool // an address of the Service's first family
	}
	found := map[Endpoint]state{} // by address and port
	// preferred are the backends that have an address of the Service's first
	// family: their other one is not one more endpoint.
	preferred := map[backend]bool{}
	for _, slice := range slicesOfService {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		number, ok := portOf(slice, cluster.Port.Name)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			if len(endpoint.Addresses) == 0 {
				continue
			}
			// Kubernetes sees to it that these are addresses; files may hold host
			// names, for which Envoy would refuse its neighbours, too.
			address, err := netip.ParseAddr(endpoint.Addresses[0])
			if err != nil {
				continue
			}
			// Pods have a name. What has none may be the same backend in both
			// families, or not: there, one family is all.
			primary := address.Unmap().Is6() == cluster.PreferIPv6
			var behind backend
			if ref := endpoint.TargetRef; ref != nil {
				behind = backend{ref.Kind, Key{ref.Namespace, ref.Name}}
			}
			if primary {
				preferred[behind] = true
			}
			// All addresses of an endpoint are the same backend, and consumers
			// take the first (discovery/v1, Endpoint.addresses). Nil conditions
			// mean ready, serving and not terminating.
			at := Endpoint{Address: endpoint.Addresses[0], Port: number}
			is := endpoint.Conditions
			// An address may be in two slices while one is replaced by another.
			was := found[at]
			if strings.Compare(was.backend.String(), behind.String()) > 0 {
				behind = was.backend
			}
			found[at] = state{
				ready:    was.ready || valueOr(is.Ready, true),
				draining: was.draining || valueOr(is.Terminating, false) && valueOr(is.Serving, true),
				zone:     max(was.zone, valueOr(endpoint.Zone, "")),
				backend:  behind, primary: primary,
			}
		}
	}

	var set EndpointSet
	var draining []Endpoint
	for endpoint, is := range found {
		if !is.primary && preferred[is.backend] {
			continue
		}
		set.All = append(set.All, endpoint)
		endpoint.Zone = is.zone
		switch {
		case is.ready:
			set.Serving = append(set.Serving, endpoint)
		case is.draining:
			draining = append(draining, endpoint)
		}
	}
	set.Ready = len(set.Serving)
	if set.Ready == 0 {
		set.Serving = draining
	}
	slices.SortFunc(set.Serving, CompareEndpoints)
	slices.SortFunc(set.All, CompareEndpoints)
	return set
}

// backend is what an endpoint's address leads to: a pod, as a rule; nothing where
// the EndpointSlice does not say.
type backend struct {
	kind string
	Key
}

// CompareEndpoints orders endpoints of one cluster, of which each is there once.
func CompareEndpoints(a, b Endpoint) int {
	return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
}

func portOf(slice *discoveryv1.EndpointSlice, name string) (int32, bool) {
	for _, port := range slice.Ports {
		tcp := port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP
		if tcp && valueOr(port.Name, "") == name && port.Port != nil {
			return *port.Port, true
		}
	}
	return 0, false
}
