package envoy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

// What requests become is asked of the real Envoy, running: golden files say
// only what it is told.
func TestBehaviour(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "backend saw %s%s", r.RequestURI, r.Header.Get(scopeHeader))
	}))
	t.Cleanup(backend.Close)

	const web, empty = "shop/web/80", "shop/empty/80"
	to := func(cluster string) []model.WeightedCluster {
		return []model.WeightedCluster{{Cluster: cluster, Weight: 1}}
	}
	forward := func(path, rewrite string) model.Route {
		return model.Route{
			Name: "shop/web" + path, Match: model.Match{Path: path},
			Backends: to(web), Rewrite: model.Rewrite{Prefix: rewrite}, Timeout: 5 * time.Second,
		}
	}
	long := "/" + strings.Repeat("long", 250)
	withHeader := forward("/plain", "/with-header")
	withHeader.Match.Headers = []model.ValueMatch{{Name: "x-version", Value: "2"}}
	exact := forward("/exact", "")
	exact.Match.Type = model.PathExact
	hosts := map[string][]model.Route{
		"rewrite": {
			forward(long, "/"),
			forward("/api/prometheus", "/"),
			forward("/a.b+(c)", "/"),
			forward("/a", "/b/"),
			forward("/c", "/d/e"),
			forward("/", "/x"),
		},
		"from-root": {forward("/", "/x/")},
		"no-op":     {forward("/", "/")},
		"match":     {exact, withHeader, forward("/plain", "")},
		"*.wild":    {forward("/", "/wildcard")},
		"shop.wild": {forward("/", "/exact")},
		"part.wild": {forward("/part", "")},
		"errors": {
			{Name: "missing", Match: model.Match{Path: "/missing"}, Backends: to(model.MissingCluster)},
			{Name: "unknown", Match: model.Match{Path: "/partly-missing"}, Backends: []model.WeightedCluster{
				{Cluster: model.MissingCluster, Weight: 1_000_000},
				{Cluster: model.MissingCluster + "2", Weight: 1}, // not known either
			}},
			{Name: "empty", Match: model.Match{Path: "/empty"}, Backends: to(empty)},
			{Name: "sorry", Match: model.Match{Path: "/sorry"}, Response: &model.Response{
				Status: 429, Body: "später", ContentType: "text/x-sorry; charset=utf-8",
			}},
		},
	}
	in := goldenCase{Endpoints: map[string][]model.Endpoint{web: {endpointOf(t, backend)}}}
	in.Gateway.Clusters = []model.Cluster{{Name: web}, {Name: empty}}
	port := model.Port{Number: freePort(t)}
	port.Bind = port.Number
	for hostname, routes := range hosts {
		port.VirtualHosts = append(port.VirtualHosts, model.VirtualHost{Hostname: hostname, Routes: routes})
	}
	in.Gateway.Ports = []model.Port{port}
	address := startEnvoy(t, in)

	cases := map[string]struct {
		host, path string
		header     string
		want       string
	}{
		"to the root: the prefix alone":            {host: "rewrite", path: "/api/prometheus", want: "200 backend saw /"},
		"to the root: with a slash":                {host: "rewrite", path: "/api/prometheus/", want: "200 backend saw /"},
		"to the root: the rest and the query stay": {host: "rewrite", path: "/api/prometheus/q/r?x=/api/prometheus/1", want: "200 backend saw /q/r?x=/api/prometheus/1"},
		"to the root: only a query":                {host: "rewrite", path: "/api/prometheus?x=1", want: "200 backend saw /?x=1"},
		"to the root: two slashes are one":         {host: "rewrite", path: "/api/prometheus//q", want: "200 backend saw /q"},
		"to the root: only the first is replaced":  {host: "rewrite", path: "/api/prometheus/api/prometheus/q", want: "200 backend saw /api/prometheus/q"},
		"to the root: not a path element":          {host: "rewrite", path: "/api/prometheusx", want: "200 backend saw /x/api/prometheusx"},
		"to the root: dots climb before matching":  {host: "rewrite", path: "/api/prometheus/../secret", want: "200 backend saw /x/api/secret"},
		"to the root: escapes stay":                {host: "rewrite", path: "/api/prometheus/a%2Fb%20c", want: "200 backend saw /a%2Fb%20c"},
		"to the root: special characters":          {host: "rewrite", path: "/a.b+(c)/d", want: "200 backend saw /d"},
		"to the root: special means nothing":       {host: "rewrite", path: "/aXbb(c)/d", want: "200 backend saw /x/aXbb(c)/d"},
		"to the root: a long prefix":               {host: "rewrite", path: long + "/q", want: "200 backend saw /q"},
		"to a prefix: the prefix alone":            {host: "rewrite", path: "/a", want: "200 backend saw /b"},
		"to a prefix: with a slash":                {host: "rewrite", path: "/a/", want: "200 backend saw /b/"},
		"to a prefix: with a rest":                 {host: "rewrite", path: "/a/c?x", want: "200 backend saw /b/c?x"},
		"to a longer prefix":                       {host: "rewrite", path: "/c/q", want: "200 backend saw /d/e/q"},
		"from the root":                            {host: "rewrite", path: "/q", want: "200 backend saw /x/q"},
		"from the root: the root":                  {host: "rewrite", path: "/", want: "200 backend saw /x/"},
		"from the root, with a slash":              {host: "from-root", path: "/q", want: "200 backend saw /x/q"},
		"from the root to the root":                {host: "no-op", path: "/q//r", want: "200 backend saw /q/r"},

		"exact":                    {host: "match", path: "/exact?x", want: "200 backend saw /exact?x"},
		"exact: nothing below":     {host: "match", path: "/exact/", want: "404 "},
		"header":                   {host: "match", path: "/plain/a", header: "X-Version: 2\r\n", want: "200 backend saw /with-header/a"},
		"header of another value":  {host: "match", path: "/plain/a", header: "X-Version: 20\r\n", want: "200 backend saw /plain/a"},
		"host with a port":         {host: "match:1234", path: "/plain", want: "200 backend saw /plain"},
		"host in capitals":         {host: "MATCH", path: "/plain", want: "200 backend saw /plain"},
		"wildcard":                 {host: "a.wild", path: "/", want: "200 backend saw /wildcard/"},
		"wildcard: several labels": {host: "a.b.wild", path: "/", want: "200 backend saw /wildcard/"},
		"wildcard: not the suffix": {host: "wild", path: "/", want: "404 "},
		"wildcard: in capitals":    {host: "A.Wild:80", path: "/", want: "200 backend saw /wildcard/"},
		"exact in capitals":        {host: "SHOP.wild", path: "/", want: "200 backend saw /exact/"},
		"exact, no such path":      {host: "part.wild", path: "/", want: "404 "},
		"exact, no path, capitals": {host: "PART.wild", path: "/", want: "404 "},
		"a scope of the client's":  {host: "part.wild", path: "/part", header: scopeHeader + ": x/*\r\n" + scopeHeader + ": x\r\n", want: "200 backend saw /part"},
		"exact before wildcard":    {host: "shop.wild", path: "/", want: "200 backend saw /exact/"},
		"no such host":             {host: "other", path: "/", want: "404 "},

		"no backend resolved":      {host: "errors", path: "/missing", want: "500 no backend of this route could be resolved\n"},
		"the share of a missing":   {host: "errors", path: "/partly-missing", want: "500 "},
		"a backend without a pod":  {host: "errors", path: "/empty", want: "503 no healthy upstream"},
		"an answer of the gateway": {host: "errors", path: "/sorry", want: "429 später"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Written by hand: net/http would tidy paths up.
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", c.path, c.host, c.header)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%d %s", response.StatusCode, body)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("answer to %s (-want +got):\n%s", c.path, diff)
			}
			if c.path == "/sorry" {
				if diff := cmp.Diff([]string{"text/x-sorry; charset=utf-8"}, response.Header.Values("Content-Type")); diff != "" {
					t.Errorf("content type (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// startEnvoy runs a gateway without any xDS, and returns the address of its
// first port once it answers. Its bootstrap may be changed before.
func startEnvoy(t *testing.T, in goldenCase, changes ...func(*bootstrapv3.Bootstrap)) string {
	t.Helper()
	binary := envoyBinary(t)
	path := filepath.Join(t.TempDir(), "bootstrap.yaml")
	bootstrap := static(t, resourcesOf(in))
	for _, change := range changes {
		change(bootstrap)
	}
	if err := os.WriteFile(path, mustYAML(t, bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	output := &bytes.Buffer{}
	command := exec.Command(binary, "--config-path", path, "--service-node", "test",
		"--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- command.Wait() }()
	t.Cleanup(func() {
		command.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("Envoy says:\n%s", output)
		}
	})

	address := fmt.Sprintf("127.0.0.1:%d", in.Gateway.Ports[0].Bind)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := http.Get("http://" + address)
		if err == nil {
			response.Body.Close()
			return address
		}
		select {
		case err := <-gone:
			gone <- err
			t.Fatalf("Envoy ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("Envoy does not answer: %v", err)
		}
	}
}

func endpointOf(t *testing.T, server *httptest.Server) model.Endpoint {
	t.Helper()
	address := server.Listener.Addr().(*net.TCPAddr)
	return model.Endpoint{Address: address.IP.String(), Port: int32(address.Port)}
}

func freePort(t *testing.T) int32 {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return int32(listener.Addr().(*net.TCPAddr).Port)
}
