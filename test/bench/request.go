package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"meshroute.io/meshroute/test/harness"
)

// What each proxy is sent in a round.
const (
	requestRate        = 2000
	requestsInRound    = 6_000
	requestConnections = 32
	rounds             = 10
)

// proxy is something that passes requests on to the backend.
type proxy struct {
	name    string
	address string
	pids    func() []int
	// used is its CPU for each request, by round.
	used []time.Duration
}

// cpuPerRequest measures the CPU that a request costs in the gateway pod, and in
// other proxies that do nothing but pass it on to the same backend. They take
// turns, so that what else happens on the machine meets all of them.
func cpuPerRequest(ctx context.Context, b *bench) error {
	folder, err := os.MkdirTemp(b.folder, "proxies")
	if err != nil {
		return err
	}
	proxies := []*proxy{{name: "gateway pod", address: b.address(), pids: func() []int {
		return []int{b.pod.Envoy.PID(), b.pod.Agent.PID()}
	}}}
	var started []*harness.Process
	defer func() {
		for _, process := range started {
			process.Stop()
		}
	}()
	for _, start := range []func(string, string, string) (*harness.Process, error){bareEnvoy(b.binaries.Envoy), nginx, haproxy} {
		port, err := harness.FreePort()
		if err != nil {
			return err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		process, err := start(folder, address, fmt.Sprintf("%s:%d", b.backend.Address, b.backend.Port))
		if err != nil {
			row("CPU per request", "not measured: %v", err)
			continue
		}
		started = append(started, process)
		if err := harness.AwaitOK(ctx, "http://"+address+"/"); err != nil {
			return fmt.Errorf("%w: %s", err, process.Log())
		}
		proxies = append(proxies, &proxy{name: process.Name(), address: address, pids: func() []int {
			return processes(process.PID())
		}})
	}
	for round := range rounds + 1 {
		order := slices.Clone(proxies)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, p := range order {
			before := cpu(p.pids()...)
			if err := steady(ctx, p.address, hostOf(routeName(0))); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round == 0 {
				continue // warms up
			}
			p.used = append(p.used, (cpu(p.pids()...)-before)/requestsInRound)
		}
	}
	for _, p := range proxies {
		var ratios []float64
		for i, used := range proxies[0].used {
			ratios = append(ratios, float64(used)/float64(p.used[i]))
		}
		slices.Sort(ratios)
		used := slices.Clone(p.used)
		slices.Sort(used)
		compared := ""
		if p != proxies[0] {
			compared = fmt.Sprintf("; gateway pod ÷ this: median %.3f (%.3f to %.3f)", middle(ratios), ratios[0], ratios[len(ratios)-1])
		}
		row("CPU per request: "+p.name, "median %s (%s to %s)%s", micro(middle(used)), micro(used[0]), micro(used[len(used)-1]), compared)
	}
	row("… how", "%d rounds in turn, each %s requests (GET, answer of a few bytes) at %s/s on %d kept connections",
		rounds, grouped(requestsInRound), grouped(requestRate), requestConnections)
	return nil
}

func micro(d time.Duration) string { return fmt.Sprintf("%.1f µs", float64(d)/1000) }

// middle is the median of what is sorted.
func middle[T float64 | time.Duration](sorted []T) T {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// steady sends a round's requests at a constant rate. Every one of them must be
// answered with 200.
func steady(ctx context.Context, address, host string) error {
	request := []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for c := range requestConnections {
		group.Go(func() error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			reader := bufio.NewReader(conn)
			for i := c; i < requestsInRound; i += requestConnections {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / requestRate)))
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err := ask(conn, reader, request); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func ask(conn net.Conn, reader *bufio.Reader, request []byte) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return errors.Join(err, response.Body.Close())
}

// bareEnvoy passes everything on, with Envoy's defaults.
func bareEnvoy(binary string) func(folder, address, backend string) (*harness.Process, error) {
	return func(folder, address, backend string) (*harness.Process, error) {
		return startProxy("bare Envoy", folder, "envoy.yaml", envoyConfig, address, backend, nil, binary,
			"--config-path", filepath.Join(folder, "envoy.yaml"), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error")
	}
}

const envoyConfig = `static_resources:
  listeners:
  - address: {socket_address: {address: HOST, port_value: PORT}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bare
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: backend}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: backend
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: BACKEND_HOST, port_value: BACKEND_PORT}}}
`

func nginx(folder, address, backend string) (*harness.Process, error) {
	peers, environment, err := peers()
	if err != nil {
		return nil, err
	}
	return startProxy("nginx", folder, "nginx.conf", nginxConfig, address, backend, environment, filepath.Join(peers, "usr", "sbin", "nginx"),
		"-c", filepath.Join(folder, "nginx.conf"), "-p", folder, "-e", filepath.Join(folder, "nginx-error.log"))
}

const nginxConfig = `daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx-error.log;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream backend { server BACKEND; keepalive 64; keepalive_requests 1000000; }
  server {
    listen ADDRESS;
    location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }
  }
}
`

func haproxy(folder, address, backend string) (*harness.Process, error) {
	peers, environment, err := peers()
	if err != nil {
		return nil, err
	}
	return startProxy("HAProxy", folder, "haproxy.cfg", haproxyConfig, address, backend, environment, filepath.Join(peers, "usr", "sbin", "haproxy"),
		"-db", "-f", filepath.Join(folder, "haproxy.cfg"))
}

const haproxyConfig = `global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend all
  bind ADDRESS
  default_backend servers
backend servers
  http-reuse always
  server one BACKEND
`

// peers is the folder with nginx and HAProxy, and what their environment needs.
func peers() (string, []string, error) {
	root, err := harness.Root()
	if err != nil {
		return "", nil, err
	}
	command := exec.Command(filepath.Join(root, "hack", "peers.sh"))
	command.Stderr = log.Writer()
	output, err := command.Output()
	if err != nil {
		return "", nil, fmt.Errorf("nginx and HAProxy are not to be had: %w", err)
	}
	folder := strings.TrimSpace(string(output))
	libraries, err := filepath.Glob(filepath.Join(folder, "usr", "lib", "*-linux-gnu"))
	return folder, []string{"LD_LIBRARY_PATH=" + strings.Join(libraries, ":")}, err
}

// startProxy writes a configuration and starts who reads it.
func startProxy(name, folder, file, config, address, backend string, environment []string, path string, args ...string) (*harness.Process, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	backendHost, backendPort, err := net.SplitHostPort(backend)
	if err != nil {
		return nil, err
	}
	config = strings.NewReplacer("BACKEND_HOST", backendHost, "BACKEND_PORT", backendPort, "BACKEND", backend,
		"ADDRESS", address, "HOST", host, "PORT", port).Replace(config)
	if err := os.WriteFile(filepath.Join(folder, file), []byte(config), 0o600); err != nil {
		return nil, err
	}
	return harness.StartProcess(name, filepath.Join(folder, file+".log"), "env", append(append(environment, path), args...)...)
}
