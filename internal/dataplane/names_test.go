package dataplane

import (
	"slices"
	"testing"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// The relay may import neither package whose names it has to know: a route to a
// cluster that it waited for in vain would never reach Envoy.
func TestRelayKnowsTheClustersThatNobodySends(t *testing.T) {
	t.Parallel()
	for _, name := range []string{model.MissingCluster, envoy.AgentCluster} {
		if !slices.Contains(xds.ReservedClusters, name) {
			t.Errorf("xds.ReservedClusters lacks %q", name)
		}
	}
}
