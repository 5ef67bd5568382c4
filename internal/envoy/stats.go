package envoy

import (
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// clusterStats are what is counted for each cluster: what its requests became,
// how many connections they needed, and how many endpoints are left. Envoy has
// four times as many, most of which stay 0; with a cluster for each of 5,000
// routes they took a third of its memory, and whoever scrapes them pays again.
// No more than 40 series come of them, with every class of answers.
const clusterStats = `upstream_rq_(total|active|pending_active|pending_overflow|timeout|per_try_timeout|retry|retry_success|retry_overflow|rx_reset|[1-5]xx|503|time)` +
	`|upstream_cx_(total|active|connect_fail|connect_timeout|none_healthy|rx_bytes_total|tx_bytes_total)` +
	`|membership_(healthy|total)|lb_healthy_panic` +
	`|outlier_detection\.ejections_(active|enforced_total)` +
	`|health_check\.(attempt|failure|healthy)` +
	`|circuit_breakers\.default\.rq_open`

// managerStats are what a connection manager counts, and its filters do, and what
// routes have come.
const managerStats = `[^.]+(\.[^.]+)?|scoped_rds\.scopes\.[^.]+`

// otherStats is what is counted beside clusters and connection managers, all of
// it. None of it grows with the number of routes.
const otherStats = `cluster_manager|control_plane|http1|http2|listener|listener_manager` +
	`|main_thread|overload|runtime|server|workers`

// countedStats matches the whole of a name that is counted; a cluster's own name
// holds no dot. It is one regular expression, and none of it is left to Envoy's
// patterns for prefixes: what a pattern says of a name Envoy remembers, but a
// prefix it compares again each time, and it asks for eight names with each
// answer that it counts.
const countedStats = `cluster\.[^.]+\.(` + clusterStats + `)|http\.[^.]+\.(` + managerStats + `)|(` + otherStats + `)\..*`

// requestTime are the upper bounds, in milliseconds, of the histogram of how
// long a cluster took to answer. Envoy's own 19 would be more series than all
// else of a cluster.
var requestTime = []float64{5, 25, 100, 500, 2500, 10000}

// statistics says what Envoy counts.
func statistics() *metricsv3.StatsConfig {
	return &metricsv3.StatsConfig{
		StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{
			InclusionList: &matcherv3.ListStringMatcher{Patterns: []*matcherv3.StringMatcher{like(countedStats)}},
		}},
		HistogramBucketSettings: []*metricsv3.HistogramBucketSettings{{
			Match:   &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: ".upstream_rq_time"}},
			Buckets: requestTime,
		}},
	}
}
