package xds

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/health_check/event_sinks/file/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// withHealthLog has Envoy write what its health checks of a cluster find to a file
// of this pod. Where that is only the agent knows, so it is no part of what
// managers send, and of no version.
func withHealthLog(r *discoveryv3.Resource, path string) *discoveryv3.Resource {
	cluster := &clusterv3.Cluster{}
	if err := proto.Unmarshal(r.GetResource().GetValue(), cluster); err != nil {
		return r // Envoy will refuse it
	}
	sink, err := anypb.New(&filev3.HealthCheckEventFileSink{EventLogPath: path})
	if err != nil {
		return r
	}
	for _, check := range cluster.GetHealthChecks() {
		check.EventLogger = []*corev3.TypedExtensionConfig{{Name: "envoy.health_check.event_sinks.file", TypedConfig: sink}}
	}
	body, err := proto.Marshal(cluster)
	if err != nil {
		return r
	}
	return &discoveryv3.Resource{
		Name: r.GetName(), Version: r.GetVersion(), Resource: &anypb.Any{TypeUrl: resource.ClusterType, Value: body},
	}
}
