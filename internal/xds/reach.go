package xds

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
)

// awaitReach waits until the endpoints that a response adds can be reached, as far
// as RelayOptions.Reach waits for that. What came before it is served on.
func (r *Relay) awaitReach(ctx context.Context, resp *discoveryv3.DeltaDiscoveryResponse) {
	r.mu.Lock()
	added := r.state.addedEndpoints(resp)
	r.mu.Unlock()
	if len(added) > 0 {
		r.options.Reach(ctx, added)
	}
}

// addedEndpoints are the addresses that the manager has not named before for the
// same cluster, sorted; none at the start: what the manager has then is no news to
// the network, and Envoy waits for it.
func (s *relayState) addedEndpoints(resp *discoveryv3.DeltaDiscoveryResponse) []netip.AddrPort {
	if !s.serving() {
		return nil
	}
	added := map[netip.AddrPort]bool{}
	for _, r := range resp.GetResources() {
		if withoutContent(r) {
			continue
		}
		known := map[netip.AddrPort]bool{}
		if it := s.kinds[endpoints].items[r.GetName()]; it != nil && it.desired != nil {
			if it.desired.keep || it.desired.Resource == nil {
				continue // what Envoy has of it is not known here
			}
			known = addressesOf(it.desired.Resource)
		}
		for address := range addressesOf(r) {
			if !known[address] {
				added[address] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(added), netip.AddrPort.Compare)
}

// addressesOf are the endpoints of a cluster. What cannot be read has none: Envoy
// will refuse it.
func addressesOf(r *discoveryv3.Resource) map[netip.AddrPort]bool {
	var assignment endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(r.GetResource().GetValue(), &assignment); err != nil {
		return nil
	}
	addresses := map[netip.AddrPort]bool{}
	for _, locality := range assignment.GetEndpoints() {
		for _, endpoint := range locality.GetLbEndpoints() {
			socket := endpoint.GetEndpoint().GetAddress().GetSocketAddress()
			if address, err := netip.ParseAddr(socket.GetAddress()); err == nil {
				addresses[netip.AddrPortFrom(address, uint16(socket.GetPortValue()))] = true
			}
		}
	}
	return addresses
}
