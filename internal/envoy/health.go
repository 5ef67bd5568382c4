package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

const (
	// failedInterval is how soon an endpoint that failed is asked again: it has no
	// requests to lose, and its Service less capacity than it should have.
	failedInterval = 5 * time.Second
	// idleInterval is how often endpoints are asked that have no requests to lose,
	// because nobody sends any.
	idleInterval = time.Minute
)

// checkedCluster is a cluster with its check as it was translated last.
type checkedCluster struct {
	from  proto.Message
	check *model.HealthCheck
	to    proto.Message
}

// Checked returns a cluster as it is with a check, which may be nil. It is the
// same message as the last time if nothing has changed since. made is not
// changed.
//
// The cluster keeps its name: Envoy goes on with the one that it has until every
// endpoint was asked once by the new rule, and then has the other take over.
func (t *Translator) Checked(name string, made proto.Message, check *model.HealthCheck) proto.Message {
	if check == nil {
		delete(t.checked, name)
		return made
	}
	if known, found := t.checked[name]; found && known.from == made && known.check.Equal(check) {
		return known.to
	}
	to := proto.CloneOf(made.(*clusterv3.Cluster))
	to.HealthChecks = []*corev3.HealthCheck{healthCheck(check)}
	if to.GetCommonLbConfig() == nil {
		to.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	}
	// Envoy tells its workers of one change at once, and of those that follow within
	// a second together. Of new endpoints the first that passes would have all
	// requests for that second.
	to.CommonLbConfig.UpdateMergeWindow = durationpb.New(0)
	if t.checked == nil {
		t.checked = map[string]checkedCluster{}
	}
	t.checked[name] = checkedCluster{made, check, to}
	return to
}

func healthCheck(from *model.HealthCheck) *corev3.HealthCheck {
	to := &corev3.HealthCheck{
		Interval:           durationpb.New(from.Interval),
		Timeout:            durationpb.New(from.Timeout),
		HealthyThreshold:   wrapperspb.UInt32(from.HealthyThreshold),
		UnhealthyThreshold: wrapperspb.UInt32(from.UnhealthyThreshold),
		// So that the many pods of many gateways do not ask in step.
		IntervalJitterPercent: 10,
		UnhealthyInterval:     durationpb.New(min(from.Interval, failedInterval)),
		HealthyEdgeInterval:   durationpb.New(min(from.Interval, failedInterval)),
		NoTrafficInterval:     durationpb.New(min(from.Interval, failedInterval)),
		// A connection of its own for each check, as the kubelet makes it: that new
		// ones are accepted is a part of the answer, and none is kept open that the
		// other end may close in the moment in which it is used.
		ReuseConnection: wrapperspb.Bool(false),
	}
	if from.Interval < idleInterval {
		to.NoTrafficHealthyInterval = durationpb.New(idleInterval)
	} else {
		to.NoTrafficHealthyInterval = durationpb.New(from.Interval)
	}
	switch from.Type {
	case model.CheckTCP:
		to.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
	case model.CheckGRPC:
		to.HealthChecker = &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{
			ServiceName: from.GRPCService, Authority: from.Host,
		}}
	default:
		http := &corev3.HealthCheck_HttpHealthCheck{
			Host: from.Host, Path: from.Path,
			// Otherwise one bad status would do, whatever the threshold.
			RetriableStatuses: []*typev3.Int64Range{{Start: 100, End: 600}},
		}
		for _, status := range from.Statuses {
			http.ExpectedStatuses = append(http.ExpectedStatuses, &typev3.Int64Range{Start: int64(status.Start), End: int64(status.End) + 1})
		}
		if from.HTTP2 {
			http.CodecClientType = typev3.CodecClientType_HTTP2
		}
		to.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: http}
	}
	return to
}
