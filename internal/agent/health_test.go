package agent

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/xds"
)

// What Envoy 1.40 writes, one event a line.
const (
	failedFirst = `{"health_checker_type":"HTTP","host":{"socket_address":{"protocol":"TCP","address":"%s","resolver_name":"","ipv4_compat":false,"port_value":8080}},"cluster_name":"shop/front/80","health_check_failure_event":{"failure_type":"ACTIVE","first_check":true},"timestamp":"2026-11-25T06:50:00.123Z"}`
	failed      = `{"health_checker_type":"HTTP","host":{"socket_address":{"protocol":"TCP","address":"%s","resolver_name":"","ipv4_compat":false,"port_value":8080}},"cluster_name":"shop/front/80","eject_unhealthy_event":{"failure_type":"ACTIVE"},"timestamp":"2026-11-25T06:50:00.123Z"}`
	well        = `{"health_checker_type":"HTTP","host":{"socket_address":{"protocol":"TCP","address":"%s","resolver_name":"","ipv4_compat":false,"port_value":8080}},"cluster_name":"shop/front/80","add_healthy_event":{"first_check":false},"timestamp":"2026-11-25T06:50:00.123Z"}`
)

// envoyLog is where an Envoy would write, with its admin interface.
type envoyLog struct {
	*testing.T

	path  string
	admin *admin
	file  *os.File
	rings int
}

func newEnvoyLog(t *testing.T) *envoyLog {
	t.Helper()
	folder := t.TempDir()
	e := &envoyLog{T: t, path: filepath.Join(folder, healthLogFile), admin: newAdmin(filepath.Join(folder, "admin"))}
	listener, err := net.Listen("unix", filepath.Join(folder, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/reopen_logs" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		e.open()
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return e
}

func (e *envoyLog) open() {
	file, err := os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.Error(err)
	}
	e.file = file
}

func (e *envoyLog) write(text string) {
	e.Helper()
	if _, err := e.file.WriteString(text); err != nil {
		e.Fatal(err)
	}
}

func (e *envoyLog) event(format, address string) { e.write(fmt.Sprintf(format, address) + "\n") }

// agent is one that has just started.
func (e *envoyLog) agent(known ...string) *healthLog {
	return newHealthLog(e.path, e.admin, func(string) map[netip.AddrPort]bool {
		all := map[netip.AddrPort]bool{}
		for _, address := range known {
			all[netip.MustParseAddrPort(address)] = true
		}
		return all
	}, func() { e.rings++ }, testr.New(e.T))
}

func (e *envoyLog) finds(h *healthLog, when string, addresses ...string) {
	e.Helper()
	if err := h.look(e.Context()); err != nil {
		e.Fatal(err)
	}
	got := []string{}
	for _, endpoint := range h.Unhealthy() {
		got = append(got, endpoint.GetCluster()+" "+endpoint.GetAddress())
	}
	want := []string{}
	for _, address := range addresses {
		want = append(want, "shop/front/80 "+address)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		e.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestHealthLogTellsWhichEndpointsFail(t *testing.T) {
	e := newEnvoyLog(t)
	h := e.agent()
	e.finds(h, "before Envoy has written anything")
	e.open()
	e.event(failedFirst, "10.0.0.1")
	e.event(failed, "10.0.0.2")
	e.event(failed, "fd00::3")
	e.event(well, "10.0.0.4")
	e.write("no event at all\n{}\n")
	e.finds(h, "events", "10.0.0.1:8080", "10.0.0.2:8080", "[fd00::3]:8080")
	line := fmt.Sprintf(well, "10.0.0.2")
	e.write(line[:50])
	e.finds(h, "half an event", "10.0.0.1:8080", "10.0.0.2:8080", "[fd00::3]:8080")
	e.write(line[50:] + "\n")
	e.finds(h, "its other half", "10.0.0.1:8080", "[fd00::3]:8080")
	if e.rings != 2 {
		t.Errorf("it told %d times that something has changed", e.rings)
	}
	e.finds(e.agent(), "an agent that was restarted", "10.0.0.1:8080", "[fd00::3]:8080")
	h = e.agent("10.0.0.1:8080")
	e.finds(h, "again", "10.0.0.1:8080", "[fd00::3]:8080")
	h.forget()
	e.finds(h, "when the other endpoint has gone", "10.0.0.1:8080")
}

func TestHealthLogStaysSmall(t *testing.T) {
	e := newEnvoyLog(t)
	e.open()
	h := e.agent()
	e.event(failed, "10.0.0.1")
	for range 3 {
		e.write(strings.Repeat(fmt.Sprintf(failed, "10.0.0.2")+"\n"+fmt.Sprintf(well, "10.0.0.2")+"\n", healthLogSize/500))
		e.event(failed, "10.0.0.3")
		before := e.file
		e.finds(h, "a long file", "10.0.0.1:8080", "10.0.0.3:8080")
		if e.file == before {
			t.Fatal("Envoy was not asked to begin another file")
		}
		// Envoy may have written this before it was asked.
		if _, err := before.WriteString(fmt.Sprintf(well, "10.0.0.3") + "\n"); err != nil {
			t.Fatal(err)
		}
		e.finds(h, "the end of the old file", "10.0.0.1:8080")
		e.event(failed, "10.0.0.4")
		e.finds(h, "the new file", "10.0.0.1:8080", "10.0.0.4:8080")
		e.finds(e.agent(), "an agent that was restarted", "10.0.0.1:8080", "10.0.0.4:8080")
		e.event(well, "10.0.0.4")
		e.finds(h, "the new file again", "10.0.0.1:8080")
	}
	size := int64(0)
	for _, path := range []string{e.path, e.path + ".old"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > healthLogSize/100 {
		t.Errorf("%d bytes are kept to tell of one endpoint", size)
	}
}

func TestHealthLogTellsOfManyEndpoints(t *testing.T) {
	e := newEnvoyLog(t)
	e.open()
	h := e.agent()
	for i := range 2 * xds.MaxUnhealthy {
		e.event(failed, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	if err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(h.Unhealthy()); got != xds.MaxUnhealthy {
		t.Errorf("%d are reported", got)
	}
}
