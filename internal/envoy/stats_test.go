package envoy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

// What Envoy counts costs memory for each cluster, and whoever scrapes it for
// each series: what is there is asked of the real Envoy.
func TestStatistics(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.URL.Path[1:])
		if err != nil {
			status = http.StatusOK
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(backend.Close)
	const used, unused = "shop/used/80", "shop/unused/80"
	port := freePort(t)
	in := goldenCase{
		Gateway: model.Gateway{
			Ports: []model.Port{{Number: port, Bind: port, VirtualHosts: []model.VirtualHost{{Hostname: "*", Routes: []model.Route{
				{Name: "shop/web/all/0", Match: model.Match{Path: "/"}, Backends: []model.WeightedCluster{{Cluster: used, Weight: 1}}, Timeout: time.Second},
			}}}}},
			Clusters: []model.Cluster{{Name: used}, {Name: unused}},
		},
		Endpoints: map[string][]model.Endpoint{used: {endpointOf(t, backend)}},
	}
	admin := freePort(t)
	address := startEnvoy(t, in, func(bootstrap *bootstrapv3.Bootstrap) {
		bootstrap.Admin = &bootstrapv3.Admin{Address: socketAddress("127.0.0.1", admin)}
	})
	page := func(address, path string) string {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	// Every class of answers, which are counted apart.
	for _, path := range []string{"/200", "/304", "/404", "/500", "/503"} {
		page(address, path)
	}

	stats := page(fmt.Sprintf("127.0.0.1:%d", admin), "/stats")
	of := func(cluster string) []string {
		var names []string
		for _, found := range regexp.MustCompile(`(?m)^cluster\.`+cluster+`\.(\S+):`).FindAllStringSubmatch(stats, -1) {
			names = append(names, found[1])
		}
		slices.Sort(names)
		return names
	}
	always := []string{
		"circuit_breakers.default.rq_open", "lb_healthy_panic", "membership_healthy", "membership_total",
		"outlier_detection.ejections_active", "outlier_detection.ejections_enforced_total",
		"upstream_cx_active", "upstream_cx_connect_fail", "upstream_cx_connect_timeout", "upstream_cx_none_healthy",
		"upstream_cx_rx_bytes_total", "upstream_cx_total", "upstream_cx_tx_bytes_total",
		"upstream_rq_active", "upstream_rq_pending_active", "upstream_rq_pending_overflow", "upstream_rq_per_try_timeout",
		"upstream_rq_retry", "upstream_rq_retry_overflow", "upstream_rq_retry_success", "upstream_rq_rx_reset",
		"upstream_rq_timeout", "upstream_rq_total",
	}
	if diff := cmp.Diff(always, of(unused)); diff != "" {
		t.Errorf("of a cluster without requests (-want +got):\n%s", diff)
	}
	withAnswers := append(slices.Clone(always), "upstream_rq_2xx", "upstream_rq_3xx", "upstream_rq_4xx", "upstream_rq_503", "upstream_rq_5xx", "upstream_rq_time")
	slices.Sort(withAnswers)
	if diff := cmp.Diff(withAnswers, of(used)); diff != "" {
		t.Errorf("of a cluster with requests (-want +got):\n%s", diff)
	}

	// The agent's page of StubStatus, and its draining, are made of these.
	for _, name := range []string{"downstream_cx_active", "downstream_cx_total", "downstream_rq_active", "downstream_rq_total"} {
		if name = fmt.Sprintf("http.port-%d.%s: ", port, name); !strings.Contains(stats, name) {
			t.Errorf("%s is not counted", name)
		}
	}

	series := 0
	for line := range strings.Lines(page(fmt.Sprintf("127.0.0.1:%d", admin), "/stats/prometheus")) {
		if strings.Contains(line, `envoy_cluster_name="`+used+`"`) {
			series++
		}
	}
	const healthChecks = 3 // where there are any
	if series += healthChecks; series < len(withAnswers) || series > 40 {
		t.Errorf("%d series of a cluster with every kind of answers and with health checks", series)
	}
}
