// Command backend is what gateways are tested against in a cluster: a server
// that answers what it was asked, and behaves as it is told to.
//
//	backend                  serve on :8080 (and :8081, which no Service names)
//	backend dial HOST:PORT…  try to open connections, and print what came of it
//	backend grafana          stand in for Grafana in the monitoring sample
//
// A request may ask for ?status=503 and ?delay=200ms. /healthz answers 200, or what
// a request for /turn?status=503 said last; answers tell how often a gateway's
// check has asked for any page of this server. When it is told to end, it
// stops being ready, goes on for a while (DRAIN, 3s) until nobody sends any more,
// and finishes what it has begun: as a well-behaved server does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	var err error
	switch arguments := os.Args[1:]; {
	case len(arguments) == 0:
		err = serve(ctx, echo(), ":8080", ":8081")
	case arguments[0] == "dial" && len(arguments) > 1:
		dial(ctx, arguments[1:])
	case arguments[0] == "grafana" && len(arguments) == 1:
		err = serve(ctx, grafana(), ":3000")
	default:
		err = errors.New("usage: backend [dial HOST:PORT… | grafana]")
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "backend:", err)
		os.Exit(1)
	}
}

// serve serves addresses until ctx ends, and as long afterwards as it takes.
func serve(ctx context.Context, handler http.Handler, addresses ...string) error {
	drain := 3 * time.Second
	if value := os.Getenv("DRAIN"); value != "" {
		var err error
		if drain, err = time.ParseDuration(value); err != nil {
			return fmt.Errorf("DRAIN: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	var health atomic.Int64
	health.Store(http.StatusOK)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(health.Load())) })
	mux.HandleFunc("/turn", func(_ http.ResponseWriter, r *http.Request) { health.Store(int64(statusOf(r))) })
	var ending atomic.Bool
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ending.Load() {
			http.Error(w, "ending", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	failed := make(chan error, len(addresses))
	servers := make([]*http.Server, 0, len(addresses))
	for _, address := range addresses {
		server := &http.Server{Addr: address, Handler: counted(mux), ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, server)
		go func() { failed <- server.ListenAndServe() }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ending.Store(true)
	time.Sleep(drain)
	finish, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var ended sync.WaitGroup
	for _, server := range servers {
		ended.Go(func() { _ = server.Shutdown(finish) })
	}
	ended.Wait()
	return nil
}

// checks counts the requests of Envoys' health checks.
var checks atomic.Int64

func counted(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "Envoy/HC" {
			checks.Add(1)
		}
		handler.ServeHTTP(w, r)
	})
}

// statusOf is the status that a request asks for.
func statusOf(r *http.Request) int {
	status, err := strconv.Atoi(r.URL.Query().Get("status"))
	if err != nil || status < 200 || status > 599 {
		return http.StatusOK
	}
	return status
}

// echo answers with the request as it arrived, and with the pod's name.
func echo() http.Handler {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if delay, err := time.ParseDuration(query.Get("delay")); err == nil {
			select {
			case <-time.After(min(delay, time.Minute)):
			case <-r.Context().Done():
				return
			}
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return // the client is gone
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(statusOf(r))
		_ = json.NewEncoder(w).Encode(map[string]any{
			"pod": pod, "host": r.Host, "method": r.Method, "path": r.URL.RequestURI(), "proto": r.Proto,
			"headers": r.Header, "from": r.RemoteAddr, "length": len(body), "checks": checks.Load(),
		})
	})
}

// dial tries each address twice a second and prints a line for each attempt.
func dial(ctx context.Context, addresses []string) {
	out := json.NewEncoder(os.Stdout)
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, address := range addresses {
		all.Go(func() {
			ticker := time.NewTicker(500 * time.Millisecond)
			defer ticker.Stop()
			for {
				begun := time.Now()
				conn, err := (&net.Dialer{Timeout: 400 * time.Millisecond}).DialContext(ctx, "tcp", address)
				line := map[string]any{"target": address, "open": err == nil, "time": begun}
				if err != nil {
					line["error"] = err.Error()
				} else {
					_ = conn.Close()
				}
				mu.Lock()
				_ = out.Encode(line)
				mu.Unlock()
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
			}
		})
	}
	all.Wait()
}

// grafana answers /api/health in the shape of Grafana's own answer, and says in
// every answer that it is not Grafana.
func grafana() http.Handler {
	const label = "not Grafana: a stand-in of meshroute's demo"
	mux := http.NewServeMux()
	mux.HandleFunc("/api/health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		_ = json.NewEncoder(w).Encode(map[string]string{
			"commit": "none", "database": "ok", "version": "0.0.0-stand-in", "standIn": label,
		})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, label+". It answers /api/health as Grafana does, and nothing else.")
	})
	return mux
}
