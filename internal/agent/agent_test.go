package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	testingclock "k8s.io/utils/clock/testing"

	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/xds"
)

func TestParseCounters(t *testing.T) {
	for name, test := range map[string]struct {
		stats   string
		want    counters
		wantErr string
	}{
		"one listener": {
			stats: `http.port-8888.downstream_cx_active: 2
http.port-8888.downstream_cx_total: 10
http.port-8888.downstream_rq_active: 1
http.port-8888.downstream_rq_total: 30
`,
			want: counters{activeConnections: 2, connections: 10, activeRequests: 1, requests: 30},
		},
		"several listeners are summed": {
			stats: `http.port-80.downstream_cx_active: 1
http.port-80.downstream_cx_total: 2
http.port-80.downstream_rq_active: 3
http.port-80.downstream_rq_total: 4
http.port-8888.downstream_cx_active: 10
http.port-8888.downstream_cx_total: 20
http.port-8888.downstream_rq_active: 30
http.port-8888.downstream_rq_total: 40
`,
			want: counters{activeConnections: 11, connections: 22, activeRequests: 33, requests: 44},
		},
		"no statistics yet": {},
		"some are missing": {
			stats: "http.port-80.downstream_cx_total: 7\n",
			want:  counters{connections: 7},
		},
		"others, and lines that are none, do not count": {
			stats: "hello\n\nhttp.port-80.downstream_rq_time: 9\nhttp.port-80.downstream_rq_total: 1\r\n",
			want:  counters{requests: 1},
		},
		"the largest number": {
			stats: "http.port-80.downstream_rq_total: 18446744073709551615\n",
			want:  counters{requests: 18446744073709551615},
		},
		"garbage for a number": {
			stats:   "http.port-80.downstream_cx_active: many\n",
			wantErr: `statistic http.port-80.downstream_cx_active of Envoy: strconv.ParseUint: parsing "many": invalid syntax`,
		},
		"a negative number": {
			stats:   "http.port-80.downstream_cx_active: -1\n",
			wantErr: `statistic http.port-80.downstream_cx_active of Envoy: strconv.ParseUint: parsing "-1": invalid syntax`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseCounters(test.stats)
			if message(err) != test.wantErr {
				t.Errorf("error %q, wanted %q", message(err), test.wantErr)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(counters{})); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
		})
	}
}

// The format is that of nginx, with its spaces at the ends of lines: programs
// read it by column.
func TestStubStatus(t *testing.T) {
	for name, test := range map[string]struct {
		counters counters
		want     string
	}{
		"idle": {
			want: "Active connections: 0 \nserver accepts handled requests\n 0 0 0 \nReading: 0 Writing: 0 Waiting: 0 \n",
		},
		"some wait": {
			counters: counters{activeConnections: 5, connections: 100, activeRequests: 2, requests: 1000},
			want:     "Active connections: 5 \nserver accepts handled requests\n 100 100 1000 \nReading: 0 Writing: 2 Waiting: 3 \n",
		},
		"HTTP/2 has more requests than connections": {
			counters: counters{activeConnections: 1, connections: 1, activeRequests: 8, requests: 9},
			want:     "Active connections: 1 \nserver accepts handled requests\n 1 1 9 \nReading: 0 Writing: 8 Waiting: 0 \n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.counters.stubStatus()); diff != "" {
				t.Errorf("page (-want +got):\n%s", diff)
			}
		})
	}
}

// fakeAdmin is Envoy's admin interface.
type fakeAdmin struct {
	*admin
	socket  string
	asked   atomic.Int64
	answer  atomic.Pointer[func(w http.ResponseWriter, r *http.Request)]
	lastURI atomic.Pointer[string]
}

func newFakeAdmin(t *testing.T) *fakeAdmin {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAdmin{admin: newAdmin(socket), socket: socket}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		f.lastURI.Store(new(r.URL.Path + "?" + r.URL.Query().Encode()))
		(*f.answer.Load())(w, r)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return f
}

func (f *fakeAdmin) says(status int, body string) {
	f.answer.Store(new(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
}

func TestShow(t *testing.T) {
	envoy := newFakeAdmin(t)
	page := strings.Repeat("a long page\n", maxAdminAnswer/8)
	envoy.says(http.StatusOK, page)
	var out strings.Builder
	if err := Show(t.Context(), envoy.socket, "/config_dump?include_eds", &out); err != nil || out.String() != page {
		t.Errorf("shows %d bytes of %d, and says %v", out.Len(), len(page), err)
	}
	if got := *envoy.lastURI.Load(); got != "/config_dump?include_eds=" {
		t.Errorf("asks for %s", got)
	}
	envoy.says(http.StatusMethodNotAllowed, "only by POST")
	if err := Show(t.Context(), envoy.socket, "/quitquitquit", io.Discard); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("a page that Envoy refuses: %v", err)
	}
}

func TestStubStatusIsCachedForASecond(t *testing.T) {
	envoy := newFakeAdmin(t)
	now := testingclock.NewFakePassiveClock(time.Unix(1_000_000, 0))
	page := newStubStatus(envoy.admin, now)
	envoy.says(http.StatusOK, "http.port-80.downstream_rq_total: 1\n")

	first := ask(page, "/")
	if first.Code != http.StatusOK || !strings.Contains(first.Body.String(), " 0 0 1 \n") || first.Header().Get("Content-Type") != "text/plain" {
		t.Fatalf("first: %d %q %q", first.Code, first.Header().Get("Content-Type"), first.Body)
	}
	if uri := *envoy.lastURI.Load(); !strings.HasPrefix(uri, "/stats?filter=") {
		t.Errorf("all statistics were asked for: %s", uri)
	}
	envoy.says(http.StatusOK, "http.port-80.downstream_rq_total: 2\n")
	now.SetTime(now.Now().Add(999 * time.Millisecond))
	if second := ask(page, "/"); second.Body.String() != first.Body.String() || envoy.asked.Load() != 1 {
		t.Errorf("within a second Envoy was asked %d times: %q", envoy.asked.Load(), second.Body)
	}
	now.SetTime(now.Now().Add(time.Millisecond))
	if third := ask(page, "/"); !strings.Contains(third.Body.String(), " 0 0 2 \n") || envoy.asked.Load() != 2 {
		t.Errorf("after a second Envoy was asked %d times: %q", envoy.asked.Load(), third.Body)
	}
	// An error is told and not kept.
	now.SetTime(now.Now().Add(time.Second))
	envoy.says(http.StatusInternalServerError, "out of order\n")
	if broken := ask(page, "/"); broken.Code != http.StatusBadGateway || !strings.Contains(broken.Body.String(), "500 Internal Server Error: out of order") {
		t.Errorf("Envoy's error: %d %q", broken.Code, broken.Body)
	}
	envoy.says(http.StatusOK, "")
	if mended := ask(page, "/"); mended.Code != http.StatusOK {
		t.Errorf("after an error: %d %q", mended.Code, mended.Body)
	}
}

func TestProbes(t *testing.T) {
	envoy := newFakeAdmin(t)
	relay := xds.NewRelay(xds.RelayOptions{Node: &corev3.Node{Id: "pod-1"}, Log: testr.New(t)})
	handler := probes(func() bool { return relay.Status().Applied }, idle(), envoy.admin)
	if alive := ask(handler, "/livez"); alive.Code != http.StatusOK {
		t.Errorf("/livez without a configuration: %d %q", alive.Code, alive.Body)
	}
	got := ask(handler, "/readyz")
	if got.Code != http.StatusServiceUnavailable || got.Body.String() != "Envoy has not acknowledged a configuration yet\n" {
		t.Errorf("/readyz without a configuration: %d %q", got.Code, got.Body)
	}
	if envoy.asked.Load() > 0 {
		t.Error("Envoy was asked although it has no configuration")
	}
}

func TestReadyIsWhoseEnvoyIs(t *testing.T) {
	for name, test := range map[string]struct {
		applied bool
		status  int
		body    string
		want    int
		says    string
	}{
		"ready":                       {true, http.StatusOK, "LIVE\n", http.StatusOK, "ok\n"},
		"Envoy starts":                {true, http.StatusServiceUnavailable, "INITIALIZING\n", http.StatusServiceUnavailable, "admin interface of Envoy answered 503 Service Unavailable: INITIALIZING\n"},
		"Envoy drains":                {true, http.StatusServiceUnavailable, "DRAINING\n", http.StatusServiceUnavailable, "admin interface of Envoy answered 503 Service Unavailable: DRAINING\n"},
		"live but not configured yet": {false, http.StatusOK, "LIVE\n", http.StatusServiceUnavailable, "Envoy has not acknowledged a configuration yet\n"},
	} {
		t.Run(name, func(t *testing.T) {
			envoy := newFakeAdmin(t)
			envoy.says(test.status, test.body)
			got := ask(probes(func() bool { return test.applied }, idle(), envoy.admin), "/readyz")
			if got.Code != test.want || got.Body.String() != test.says {
				t.Errorf("/readyz: %d %q, wanted %d %q", got.Code, got.Body, test.want, test.says)
			}
		})
	}
	t.Run("Envoy is gone", func(t *testing.T) {
		handler := probes(func() bool { return true }, idle(), newAdmin(filepath.Join(t.TempDir(), "s")))
		if got := ask(handler, "/readyz"); got.Code != http.StatusServiceUnavailable || !strings.HasPrefix(got.Body.String(), "ask Envoy's admin interface: ") {
			t.Errorf("/readyz: %d %q", got.Code, got.Body)
		}
		if got := ask(handler, "/livez"); got.Code != http.StatusOK {
			t.Errorf("/livez: %d %q: the agent would be restarted for Envoy's fault", got.Code, got.Body)
		}
	})
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false) // as one that was killed leaves it
	stale.Close()

	listener, err := listenUnix(path)
	if err != nil {
		t.Fatalf("with the socket of an agent before: %v", err)
	}
	defer listener.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("mode %v", info.Mode())
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestListenUnixSaysWhatIsWrong(t *testing.T) {
	folder := t.TempDir()
	for name, test := range map[string]struct{ path, want string }{
		"path too long": {filepath.Join(folder, strings.Repeat("x", 120)), "its path may have at most 107 bytes"},
		"no folder":     {filepath.Join(folder, "none", "s"), "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := listenUnix(test.path); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, wanted one with %q", err, test.want)
			}
		})
	}
}

// An agent that is asked to end has done nothing wrong, whether or not it ever
// found a manager.
func TestRunEndsWithoutAnError(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{
			Gateway:    identity.Gateway{Namespace: "shop", Name: "edge", Pod: "pod-1"},
			XDSAddress: "127.0.0.1:1", CertificateURL: "https://127.0.0.1:1", ServerName: "localhost",
			RootsFile: in("ca.crt"), TokenFile: in("token"), StateDir: in("state"),
			XDSSocket: in("x"), PagesSocket: in("p"), AdminSocket: in("a"), ProbeAddress: "127.0.0.1:0",
			Log: testr.New(t),
		})
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", in("p"))
	}}}
	defer client.CloseIdleConnections()
	if err := eventually(t.Context(), func() error {
		response, err := client.Get("http://agent/none")
		if err != nil {
			return err
		}
		return errors.Join(response.Body.Close())
	}); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Run ended with: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run did not end")
	}
}

// eventually tries until it succeeds, for up to 10 seconds.
func eventually(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it never came: %w", err)
		case <-ticker.C:
		}
	}
}

func ask(handler http.Handler, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return recorder
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// idle is the drain of an agent that is not asked to end.
func idle() *drain { return newDrain(time.Minute, nil, func() {}, logr.Discard()) }
