package dataplane

import (
	"slices"

	"meshroute.io/meshroute/internal/model"
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
