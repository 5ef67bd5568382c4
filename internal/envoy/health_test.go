package envoy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"meshroute.io/meshroute/internal/model"
)

// patient is a backend that can fail its health check, and answers with its name.
type patient struct {
	*httptest.Server
	sick   atomic.Bool
	checks atomic.Int64
}

func newPatient(t *testing.T, name string) *patient {
	p := &patient{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			fmt.Fprint(w, name)
			return
		}
		p.checks.Add(1)
		switch {
		case r.Host != "web.shop":
			w.WriteHeader(http.StatusBadRequest)
		case p.sick.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func checkedCase(t *testing.T, check *model.HealthCheck, patients ...*patient) goldenCase {
	const web = "shop/web/80"
	in := goldenCase{Endpoints: map[string][]model.Endpoint{}}
	for _, patient := range patients {
		in.Endpoints[web] = append(in.Endpoints[web], endpointOf(t, patient.Server))
	}
	in.Gateway.Clusters = []model.Cluster{{Name: web}}
	in.Gateway.Health = map[string]model.Health{web: {Check: check}}
	number := freePort(t)
	in.Gateway.Ports = []model.Port{{Number: number, Bind: number, VirtualHosts: []model.VirtualHost{{
		Hostname: "*", Routes: []model.Route{{
			Name: "shop/web", Match: model.Match{Path: "/"},
			Backends: []model.WeightedCluster{{Cluster: web, Weight: 1}}, Timeout: 5 * time.Second,
		}},
	}}}}
	return in
}

func everyMoment() *model.HealthCheck {
	return &model.HealthCheck{
		Type: model.CheckHTTP, Path: "/healthz", Host: "web.shop", Statuses: []model.StatusRange{{Start: 200, End: 399}},
		Interval: 50 * time.Millisecond, Timeout: 5 * time.Second, HealthyThreshold: 1, UnhealthyThreshold: 3,
	}
}

// startBusyEnvoy runs a gateway whose endpoints have had requests: before that,
// those that are well are asked every minute only.
func startBusyEnvoy(t *testing.T, in goldenCase, patients ...*patient) string {
	t.Helper()
	for _, patient := range patients {
		patient.sick.Store(true)
	}
	address := startEnvoy(t, in)
	answers(t, address)
	for _, patient := range patients {
		patient.sick.Store(false)
	}
	return address
}

// answers counts who answers 20 requests.
func answers(t *testing.T, address string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range 20 {
		response, err := http.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %q: %v", response.StatusCode, body, err)
		}
		counts[string(body)]++
	}
	return counts
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("does not come about: %s", what)
		}
	}
}

// An endpoint that fails its check gets no request until it passes again; where
// all fail, all are asked.
func TestHealthCheck(t *testing.T) {
	t.Parallel()
	a, b := newPatient(t, "a"), newPatient(t, "b")
	address := startBusyEnvoy(t, checkedCase(t, everyMoment(), a, b), a, b)
	both := func() bool { counts := answers(t, address); return counts["a"] > 0 && counts["b"] > 0 }
	eventually(t, "both well, both are asked", both)

	a.sick.Store(true)
	eventually(t, "a fails, only b is asked", func() bool { return answers(t, address)["a"] == 0 })
	b.sick.Store(true)
	eventually(t, "both fail, both are asked", both)
	a.sick.Store(false)
	eventually(t, "b alone fails, only a is asked", func() bool { return answers(t, address)["b"] == 0 })
	b.sick.Store(false)
	eventually(t, "both well again, both are asked", both)
}

// A status that is not expected counts towards the threshold, as it does with
// the kubelet; Envoy by itself would believe the first.
func TestHealthCheckThreshold(t *testing.T) {
	t.Parallel()
	a, b := newPatient(t, "a"), newPatient(t, "b")
	check := everyMoment()
	check.UnhealthyThreshold = 10
	address := startBusyEnvoy(t, checkedCase(t, check, a, b), a, b)
	passed := a.checks.Load()
	eventually(t, "a passed, and is asked", func() bool { return a.checks.Load() >= passed+3 && answers(t, address)["a"] > 0 })
	before := a.checks.Load()
	a.sick.Store(true)
	eventually(t, "a gets no requests", func() bool { return answers(t, address)["a"] == 0 })
	if failed := a.checks.Load() - before; failed < 9 { // one may have been under way
		t.Errorf("a was set aside after %d checks, want 10", failed)
	}
}

// A translator hands out the same message as long as nothing changes.
func TestCheckedIsRemembered(t *testing.T) {
	t.Parallel()
	in := checkedCase(t, everyMoment())
	translator := Translator{}
	get := func() *clusterv3.Cluster {
		return translator.Translate(in.Gateway)[resource.ClusterType]["shop/web/80"].(*clusterv3.Cluster)
	}
	first := get()
	in.Gateway.Health = map[string]model.Health{"shop/web/80": {Check: everyMoment()}}
	if get() != first {
		t.Error("the same check gave another message")
	}
	in.Gateway.Health["shop/web/80"].Check.UnhealthyThreshold = 7
	changed := get()
	if changed == first || changed.GetHealthChecks()[0].GetUnhealthyThreshold().GetValue() != 7 {
		t.Errorf("a change did not come through: %v", changed.GetHealthChecks())
	}
	if first.GetHealthChecks()[0].GetUnhealthyThreshold().GetValue() != 3 {
		t.Error("what was handed out before was changed")
	}
	delete(in.Gateway.Health, "shop/web/80")
	if checks := get().GetHealthChecks(); len(checks) != 0 {
		t.Errorf("the check went, and is still there: %v", checks)
	}
}
