package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// counters of the connections and requests of clients, over all listeners.
type counters struct {
	activeConnections, connections, activeRequests, requests uint64
}

// connectionStats are the counters and gauges of Envoy's connection managers,
// one for each listener: http.port-8888.downstream_cx_active and so on.
const connectionStats = `^http\.port-[0-9]+\.downstream_(cx_active|cx_total|rq_active|rq_total)$`

// parseCounters sums up what /stats printed, lines of "name: value".
func parseCounters(stats string) (counters, error) {
	var sum counters
	for line := range strings.Lines(stats) {
		name, text, found := strings.Cut(strings.TrimSpace(line), ": ")
		if !found {
			continue
		}
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return counters{}, fmt.Errorf("statistic %s of Envoy: %w", name, err)
		}
		switch name[strings.LastIndexByte(name, '.')+1:] {
		case "downstream_cx_active":
			sum.activeConnections += value
		case "downstream_cx_total":
			sum.connections += value
		case "downstream_rq_active":
			sum.activeRequests += value
		case "downstream_rq_total":
			sum.requests += value
		}
	}
	return sum, nil
}

// stubStatus renders counters in the text format of nginx's module
// ngx_http_stub_status_module. Envoy does not tell reading from waiting: a
// connection without a request in work counts as waiting. Every connection that
// Envoy accepts it handles.
func (c counters) stubStatus() string {
	waiting := uint64(0)
	if c.activeConnections > c.activeRequests {
		waiting = c.activeConnections - c.activeRequests
	}
	return fmt.Sprintf("Active connections: %d \n"+
		"server accepts handled requests\n %d %d %d \n"+
		"Reading: 0 Writing: %d Waiting: %d \n",
		c.activeConnections, c.connections, c.connections, c.requests, c.activeRequests, waiting)
}

// stubStatus serves the page.
type stubStatus struct {
	admin *admin
	clock clock.PassiveClock

	mu   sync.Mutex
	page string
	read time.Time
}

func newStubStatus(admin *admin, clk clock.PassiveClock) *stubStatus {
	return &stubStatus{admin: admin, clock: clk}
}

// pageAge is how old a page may be. Envoy walks through all of its statistics
// to find the few that are asked for, and clients decide how often they ask.
const pageAge = time.Second

func (s *stubStatus) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page, err := s.current(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = fmt.Fprint(w, page)
}

func (s *stubStatus) current(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	if s.page != "" && now.Sub(s.read) < pageAge {
		return s.page, nil
	}
	stats, err := s.admin.ask(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(connectionStats))
	if err != nil {
		return "", err
	}
	sum, err := parseCounters(stats)
	if err != nil {
		return "", err
	}
	s.page, s.read = sum.stubStatus(), now
	return s.page, nil
}
