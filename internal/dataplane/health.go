package dataplane

import (
	"maps"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// policySince remembers with which sequence what came of a policy last changed.
type policySince struct {
	generation int64
	clusters   []string
	sequence   uint64
}

// notePolicies remembers the sequence for those policies that changed, as note
// does for routes.
func (g *gateway) notePolicies(key model.Key, policies []model.PolicyStatus, sequence uint64) {
	noted := make(map[model.Key]policySince, len(g.policies))
	for _, policy := range policies {
		clusters := policy.InForce(key)
		if len(clusters) == 0 {
			continue
		}
		before, known := g.policies[policy.Key]
		if !known || before.generation != policy.Generation || !slices.Equal(before.clusters, clusters) {
			before = policySince{policy.Generation, clusters, sequence}
		}
		noted[policy.Key] = before
	}
	g.policies = noted
}

// Probes are what the pods of a Service say of how they want to be asked whether
// they are ready: those that differ.
type Probes []model.PodProbes

// derived is the check that follows from a Service's pods for a cluster, and what
// it follows from.
type derived struct {
	cluster model.Cluster
	port    int32
	probes  *Probes
	health  model.Health
}

// Unprobed lists the Services in use of whose pods nothing is known yet, although
// a check may follow from what they say.
func (d *Dataplane) Unprobed() []model.Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	var unknown []model.Key
	for service := range d.uses {
		if _, known := d.probes[service]; !known && service.Name != "" {
			unknown = append(unknown, service)
		}
	}
	slices.SortFunc(unknown, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	return unknown
}

// Selector is the selector of a Service's pods, in model.Peer.Pods' form. It tells
// whether the Service is in use; without a selector others than Kubernetes say
// what its endpoints are.
func (d *Dataplane) Selector(service model.Key) (selector string, used bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clusters, used := d.uses[service]
	for _, gw := range d.gateways {
		for _, cluster := range clusters {
			if r := gw.reach[cluster.Name]; r != nil {
				return r.service.Selector, used
			}
		}
	}
	return "", used
}

// SetProbes takes what the pods of Services say, and has gateways ask endpoints as
// follows from it. It tells whether anything changed.
func (d *Dataplane) SetProbes(found map[model.Key]Probes) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := false
	for service, probes := range found {
		before, known := d.probes[service]
		if _, used := d.uses[service]; !used || known && slices.EqualFunc(*before, probes, model.PodProbes.Equal) {
			continue
		}
		d.probes[service] = &probes
		changed = true
	}
	if changed {
		d.sendHealth()
	}
	return changed
}

// sendHealth sends gateways the checks that changed, and nothing else.
func (d *Dataplane) sendHealth() {
	for key, gw := range d.gateways {
		health := d.health(gw)
		if maps.EqualFunc(gw.told.Health, health, model.Health.Equal) {
			continue
		}
		gw.told.Health = health
		clusters := gw.translator.Translate(gw.told)[resource.ClusterType]
		gw.latest = d.server.Set(xds.Gateway(key), xds.Resources{resource.ClusterType: clusters}).Sequence
	}
}

// health are the checks of a gateway's clusters: those that HealthPolicies declare,
// and those that follow from the pods.
func (d *Dataplane) health(gw *gateway) map[string]model.Health {
	health := make(map[string]model.Health, len(gw.declared))
	maps.Copy(health, gw.declared)
	for _, cluster := range gw.told.Clusters {
		if _, declared := gw.declared[cluster.Name]; declared {
			continue
		}
		if follows := d.derive(cluster); follows.Check != nil {
			health[cluster.Name] = follows
		}
	}
	return health
}

// behindHostName is the check of a cluster with a host name: none.
var behindHostName = model.Health{Why: "what is behind a host name is for others to check"}

// derive is the check that follows from a Service's pods for a cluster; zero where
// that is not known yet.
func (d *Dataplane) derive(cluster model.Cluster) model.Health {
	endpoints := d.endpoints[cluster.Name]
	switch {
	case cluster.DNSName != "":
		return behindHostName
	case endpoints == nil:
		return model.Health{}
	}
	probes, known := d.probes[cluster.Service]
	if !known {
		return model.Health{} // nobody has looked yet
	}
	now := derived{cluster: cluster, port: model.PodPort(cluster, endpoints.set), probes: probes}
	before := d.derived[cluster.Name]
	if before.cluster == now.cluster && before.port == now.port && before.probes == now.probes {
		return before.health
	}
	now.health = model.Derive(cluster, now.port, *probes)
	d.derived[cluster.Name] = now
	return now.health
}
