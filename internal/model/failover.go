package model

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
)

// Failover stands for several clusters in an order: requests go to the first of
// them that has an endpoint which could take them.
type Failover struct {
	// Name is made from its members: other members have another name.
	Name string
	// Members are names in Gateway.Clusters, each once, the preferred first.
	Members []string
}

// candidate is a backend of a rule while it is decided who gets which share.
type candidate struct {
	cluster  *Cluster // nil where it could not be resolved
	weight   uint32
	priority int32
}

// share divides a rule's requests among its backends, of which those with a
// weight of 0 are not given, and adds to the rule what leads there. Clusters that
// others back up become such here.
//
// With one priority, each backend has its share, come what may. With several,
// nothing is lost that anybody could answer: a share whose backend has no usable
// endpoint goes to the others of its priority, the heaviest first, and then to
// those of the next. So that weights count at every step, there is a Failover for
// each way to choose one backend of each priority, and it is used in proportion
// to the product of their weights.
func (r *rule) share(candidates []candidate) {
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.priority, b.priority) })
	if len(candidates) == 0 || candidates[0].priority == candidates[len(candidates)-1].priority {
		for _, c := range candidates {
			share := WeightedCluster{Cluster: MissingCluster, Weight: c.weight}
			if c.cluster != nil {
				share.Cluster = c.cluster.Name
				r.clusters = append(r.clusters, *c.cluster)
			}
			r.route.Backends = append(r.route.Backends, share)
		}
		return
	}

	groups := byPriority(candidates)
	if len(groups) == 0 {
		r.route.Backends = []WeightedCluster{{Cluster: MissingCluster, Weight: 1}}
		return
	}
	backedUp := map[string]bool{}
	for i, group := range groups {
		for _, c := range group {
			backedUp[c.cluster.Name] = i < len(groups)-1 || len(group) > 1
		}
	}
	for _, c := range candidates {
		if c.cluster != nil && backedUp[c.cluster.Name] {
			*c.cluster = c.cluster.backedUp()
		}
	}
	for _, group := range groups {
		for _, c := range group {
			r.clusters = append(r.clusters, *c.cluster)
			r.group = append(r.group, c.cluster.Name)
		}
	}
	for _, way := range ways(groups, weights(groups)) {
		cluster := way.members[0]
		if len(way.members) > 1 {
			failover := failoverOf(way.members)
			r.failovers = append(r.failovers, failover)
			r.route.FailsOver = true
			cluster = failover.Name
		}
		r.route.Backends = append(r.route.Backends, WeightedCluster{Cluster: cluster, Weight: way.weight})
	}
}

// byPriority groups what resolves, the heaviest of each group first. The same
// Service port is taken once, where it is preferred most.
func byPriority(candidates []candidate) [][]candidate {
	var groups [][]candidate
	seen := map[string]bool{}
	var last int32
	for _, c := range candidates {
		if c.cluster == nil || seen[c.cluster.Name] {
			continue
		}
		seen[c.cluster.Name] = true
		if len(groups) == 0 || c.priority != last {
			groups, last = append(groups, nil), c.priority
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], c)
	}
	for _, group := range groups {
		slices.SortStableFunc(group, func(a, b candidate) int { return cmp.Compare(b.weight, a.weight) })
	}
	return groups
}

// weights are the candidates' weights, in each group as small as their ratio
// allows, and so that all products together stay within what Envoy can add up.
func weights(groups [][]candidate) [][]uint64 {
	const most = math.MaxUint32
	all := make([][]uint64, len(groups))
	shared, product := 0, 1.0
	for i, group := range groups {
		divisor := uint64(0)
		for _, c := range group {
			divisor = greatestDivisor(divisor, uint64(c.weight))
		}
		sum := uint64(0)
		for _, c := range group {
			all[i] = append(all[i], uint64(c.weight)/divisor)
			sum += uint64(c.weight) / divisor
		}
		product *= float64(sum)
		if len(group) > 1 {
			shared++
		}
	}
	if product <= most {
		return all
	}
	// One group alone never gets here. Each may have the same part of the room;
	// rounding is upwards, so that nobody loses a share.
	room := uint64(math.Pow(most, 1/float64(shared)))
	for i, group := range all {
		sum := uint64(0)
		for _, weight := range group {
			sum += weight
		}
		if limit := room - uint64(len(group)); sum > limit {
			for j, weight := range group {
				all[i][j] = (weight*limit + sum - 1) / sum
			}
		}
	}
	return all
}

func greatestDivisor(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// way is an order of clusters, with its share of the requests.
type way struct {
	members []string
	weight  uint32
}

// ways returns every choice of one candidate of each group to go to first, with
// the rest of its group behind it.
func ways(groups [][]candidate, weights [][]uint64) []way {
	all := []way{{weight: 1}}
	for g, group := range groups {
		next := make([]way, 0, len(all)*len(group))
		for _, before := range all {
			for first := range group {
				members := append(slices.Clone(before.members), group[first].cluster.Name)
				for other := range group {
					if other != first {
						members = append(members, group[other].cluster.Name)
					}
				}
				next = append(next, way{members: members, weight: before.weight * uint32(weights[g][first])})
			}
		}
		all = next
	}
	return all
}

// failoverOf names an order of clusters: after the first of them, and in a way
// that no other order has.
func failoverOf(members []string) Failover {
	hash := sha256.New()
	for _, member := range members {
		hash.Write([]byte(member))
		hash.Write([]byte{'\n'})
	}
	return Failover{Name: members[0] + "/" + hex.EncodeToString(hash.Sum(nil)[:8]), Members: members}
}

// misses tells whether some requests of the rule find no backend at all, for it
// could not be resolved.
func (r *rule) misses() bool {
	return slices.ContainsFunc(r.route.Backends, func(share WeightedCluster) bool { return share.Cluster == MissingCluster })
}

// groups are the clusters of each rule in which backends take over from each other.
func groups(rules []rule) (of [][]string) {
	for i := range rules {
		if len(rules[i].group) > 1 {
			of = append(of, rules[i].group)
		}
	}
	return of
}
