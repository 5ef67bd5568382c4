package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/core/v3"
	"github.com/go-logr/logr"
	"google.golang.org/protobuf/encoding/protojson"

	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

const (
	// healthLogFile is where Envoy writes what its health checks find, beside the
	// Unix sockets.
	healthLogFile = "health.log"
	// healthLogSize is when a new file is begun.
	healthLogSize = 1 << 20
	// healthLogLook is how often is looked whether Envoy has written something. It
	// does so every 500 ms (--file-flush-interval-msec).
	healthLogLook = time.Second
	// healthLogForget is how often endpoints are forgotten that have gone: Envoy
	// says nothing of that.
	healthLogForget = 10 * time.Second
	// maxHealthLine bounds one event.
	maxHealthLine = 64 << 10
)

// healthLog follows the file to which Envoy writes what its health checks find.
//
// Envoy tells nothing but changes, so the file is all that an agent has that was
// restarted. When it has become long, Envoy is asked to begin another, and of the
// old one is kept what says which endpoints fail.
type healthLog struct {
	path  string
	admin *admin
	// known are the endpoints that a cluster has now.
	known   func(cluster string) map[netip.AddrPort]bool
	changed func() // must not block
	log     logr.Logger

	current, old tail
	long         bool      // old is to be shortened
	asked        time.Time // when Envoy was asked to begin a new file

	mu     sync.Mutex
	failed map[xds.Endpoint][]byte // with the line that says so
}

func newHealthLog(path string, admin *admin, known func(cluster string) map[netip.AddrPort]bool, changed func(), log logr.Logger) *healthLog {
	return &healthLog{
		path: path, admin: admin, known: known, changed: changed, log: log, failed: map[xds.Endpoint][]byte{},
		current: tail{path: path}, old: tail{path: path + ".old"},
	}
}

// Unhealthy are the endpoints that fail their checks, sorted, as many as are
// reported.
func (h *healthLog) Unhealthy() []*reportv1.UnhealthyEndpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	endpoints := make([]*reportv1.UnhealthyEndpoint, 0, len(h.failed))
	for endpoint := range h.failed {
		endpoints = append(endpoints, &reportv1.UnhealthyEndpoint{Cluster: endpoint.Cluster, Address: endpoint.AddrPort.String()})
	}
	slices.SortFunc(endpoints, func(a, b *reportv1.UnhealthyEndpoint) int {
		return cmp.Or(strings.Compare(a.GetCluster(), b.GetCluster()), strings.Compare(a.GetAddress(), b.GetAddress()))
	})
	return endpoints[:min(len(endpoints), xds.MaxUnhealthy)]
}

// run follows the file until ctx ends.
func (h *healthLog) run(ctx context.Context) error {
	tick := time.NewTicker(healthLogLook)
	defer tick.Stop()
	told, forgotten := "", time.Now()
	for {
		if now := time.Now(); now.Sub(forgotten) >= healthLogForget {
			h.forget()
			forgotten = now
		}
		if err := h.look(ctx); err == nil {
			told = ""
		} else if message := err.Error(); message != told && ctx.Err() == nil {
			h.log.Error(err, "What health checks find cannot be read: statuses may call endpoints well that are not")
			told = message
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// forget forgets the endpoints that have gone.
func (h *healthLog) forget() {
	h.mu.Lock()
	byCluster := map[string][]xds.Endpoint{}
	for endpoint := range h.failed {
		byCluster[endpoint.Cluster] = append(byCluster[endpoint.Cluster], endpoint)
	}
	h.mu.Unlock()
	for cluster, endpoints := range byCluster {
		known := h.known(cluster)
		h.mu.Lock()
		for _, endpoint := range endpoints {
			if !known[endpoint.AddrPort] {
				delete(h.failed, endpoint)
			}
		}
		h.mu.Unlock()
	}
}

// look reads what is new, and begins another file where it has become long.
func (h *healthLog) look(ctx context.Context) error {
	// Envoy may go on with the old file for a moment after it was asked to begin
	// another, so the old one is read until there is a new one, and then once more.
	_, err := os.Stat(h.path)
	begun := err == nil
	if err := h.read(&h.old); err != nil {
		return err
	}
	if !begun {
		if h.old.offset == 0 {
			return nil // nothing was ever written
		}
		return h.reopen(ctx)
	}
	if h.long {
		if err := h.compact(); err != nil {
			return err
		}
	}
	if err := h.read(&h.current); err != nil {
		return err
	}
	if h.current.offset < healthLogSize {
		return nil
	}
	if err := os.Rename(h.path, h.old.path); err != nil {
		return fmt.Errorf("put the log of health checks aside: %w", err)
	}
	// Offset and what was read of an unfinished line go with the file.
	h.old.offset, h.old.rest, h.current = h.current.offset, h.current.rest, tail{path: h.path}
	h.long, h.asked = true, time.Time{}
	return h.reopen(ctx)
}

// reopen has Envoy begin a new file, which it may do only when it has something to
// write.
func (h *healthLog) reopen(ctx context.Context) error {
	if time.Since(h.asked) < healthLogForget {
		return nil
	}
	h.asked = time.Now()
	_, err := h.admin.ask(ctx, http.MethodPost, "/reopen_logs")
	return err
}

// compact leaves in the old file what says which endpoints fail.
func (h *healthLog) compact() error {
	h.mu.Lock()
	content := bytes.Join(slices.Collect(maps.Values(h.failed)), []byte("\n"))
	h.mu.Unlock()
	if len(content) > 0 {
		content = append(content, '\n')
	}
	temporary := h.old.path + ".new"
	err := os.WriteFile(temporary, content, 0o600)
	if err == nil {
		err = os.Rename(temporary, h.old.path)
	}
	if err != nil {
		return fmt.Errorf("shorten the log of health checks: %w", err)
	}
	h.old.offset, h.old.rest, h.long = int64(len(content)), nil, false
	return nil
}

// read takes the lines that were added to a file.
func (h *healthLog) read(from *tail) error {
	moved := false
	err := from.lines(func(line []byte) {
		endpoint, failed, err := readHealthEvent(line)
		if err != nil {
			h.log.V(1).Info("Not an event of a health check", "line", string(line), "reason", err.Error())
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		_, was := h.failed[endpoint]
		moved = moved || was != failed
		if delete(h.failed, endpoint); failed {
			h.failed[endpoint] = line
		}
	})
	if moved {
		h.changed()
	}
	return err
}

// readHealthEvent tells whether an endpoint fails its checks since an event.
func readHealthEvent(line []byte) (endpoint xds.Endpoint, failed bool, err error) {
	event := &datav3.HealthCheckEvent{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(line, event); err != nil {
		return endpoint, false, err
	}
	address := event.GetHost().GetSocketAddress()
	endpoint.Cluster = event.GetClusterName()
	endpoint.AddrPort, err = netip.ParseAddrPort(net.JoinHostPort(address.GetAddress(), strconv.Itoa(int(address.GetPortValue()))))
	if err != nil {
		return endpoint, false, err
	}
	switch event.GetEvent().(type) {
	case *datav3.HealthCheckEvent_EjectUnhealthyEvent, *datav3.HealthCheckEvent_HealthCheckFailureEvent:
		return endpoint, true, nil
	case *datav3.HealthCheckEvent_AddHealthyEvent, *datav3.HealthCheckEvent_SuccessfulHealthCheckEvent:
		return endpoint, false, nil
	default:
		return endpoint, false, errors.New("of no known kind")
	}
}

// tail reads a file that grows.
type tail struct {
	path   string
	offset int64
	rest   []byte // of a line that was not written whole yet
}

// lines calls take with each line that was added. What it is given is its own.
func (t *tail) lines(take func([]byte)) error {
	info, err := os.Stat(t.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Size() < t.offset:
		t.offset, t.rest = 0, nil // somebody has emptied it
	case info.Size() == t.offset:
		return nil
	}
	file, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(t.offset, io.SeekStart); err != nil {
		return err
	}
	reader := bufio.NewReader(file)
	for {
		part, err := reader.ReadSlice('\n')
		t.offset += int64(len(part))
		if t.rest = append(t.rest, part...); len(t.rest) > maxHealthLine {
			t.rest = t.rest[:0] // no event is as long as that
		}
		switch {
		case err == nil:
			if line := bytes.TrimSpace(t.rest); len(line) > 0 {
				take(bytes.Clone(line))
			}
			t.rest = t.rest[:0]
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}
