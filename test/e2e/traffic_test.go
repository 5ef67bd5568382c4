package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// answer is what a request got. The backends of this suite answer in JSON with
// the pod that they run in and the request as it reached them.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Echo   echo
}

type echo struct {
	Pod     string              `json:"pod"`
	Host    string              `json:"host"`
	Path    string              `json:"path"`
	From    string              `json:"from"`
	Headers map[string][]string `json:"headers"`
	// Checks are how often gateways have asked for the pod's health.
	Checks int64 `json:"checks"`
}

var newConnections = &http.Client{
	Timeout:       10 * time.Second,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// get asks an address (host:port) for a path of a hostname, over a connection of
// its own. headers are names and values in turn.
func get(address, host, path string, headers ...string) (answer, error) {
	request, err := newRequest(context.Background(), address, host, path, headers...)
	if err != nil {
		return answer{}, err
	}
	return do(newConnections, request)
}

func newRequest(ctx context.Context, address, host, path string, headers ...string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Host = host
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	return request, nil
}

func do(client *http.Client, request *http.Request) (answer, error) {
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	got := answer{Status: response.StatusCode, Header: response.Header, Body: string(body)}
	_ = json.Unmarshal(body, &got.Echo) // not every answer is an echo
	return got, nil
}

// status asks for the status code alone, for Eventually.
func status(address, host, path string, headers ...string) func() (int, error) {
	return func() (int, error) {
		got, err := get(address, host, path, headers...)
		return got.Status, err
	}
}

// traffic is a constant stream of requests from clients as they are: most keep
// their connections, some make a new one for each request.
type traffic struct {
	address, host string
	cancel        context.CancelFunc
	done          sync.WaitGroup
	// answered is told of each good answer, for tests that look at who gave it.
	answered func(echo, time.Time)

	mu     sync.Mutex
	report report
	times  []time.Duration
}

// report tells what came of a stream of requests.
type report struct {
	Sent, Failed int
	// Retried counts requests that the client itself sent twice, because a
	// connection that it had kept was closed before anything came back.
	Retried int
	P50     time.Duration
	P99     time.Duration
	Slowest time.Duration
	// Failures are the first few, in words.
	Failures []string

	all []failure
}

type failure struct {
	at  time.Time
	why string
}

func (r report) String() string {
	return fmt.Sprintf("sent %d, failed %d, p50 %s, p99 %s, slowest %s, sent again by the client %d %q",
		r.Sent, r.Failed, r.P50.Round(100*time.Microsecond), r.P99.Round(100*time.Microsecond), r.Slowest.Round(time.Millisecond), r.Retried, r.Failures)
}

// patience is how long a client waits for an answer.
const patience = 10 * time.Second

// startTraffic sends keeping requests a second over connections that are kept,
// and fresh ones over a connection each, whatever becomes of those before.
func startTraffic(address, host string, keeping, fresh int, answered func(echo, time.Time)) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	t := &traffic{address: address, host: host, cancel: cancel, answered: answered}
	t.stream(ctx, keeping, &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64}})
	t.stream(ctx, fresh, &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}})
	return t
}

func (t *traffic) stream(ctx context.Context, perSecond int, client *http.Client) {
	if perSecond == 0 {
		return
	}
	t.done.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		var inFlight sync.WaitGroup
		defer inFlight.Wait()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				inFlight.Go(func() { t.one(client) })
			}
		}
	})
}

func (t *traffic) one(client *http.Client) {
	connections := 0
	// A request that is on its way when the stream ends is waited for.
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections++ },
	})
	request, err := newRequest(ctx, t.address, t.host, "/")
	if err != nil {
		t.count(begun(time.Now()), answer{}, err, false)
		return
	}
	start := time.Now()
	got, err := do(client, request)
	t.count(begun(start), got, err, connections > 1)
}

type begun time.Time

func (t *traffic) count(start begun, got answer, err error, retried bool) {
	now := time.Now()
	if err == nil && got.Status != http.StatusOK {
		err = fmt.Errorf("%d: %.150s", got.Status, got.Body)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Sent++
	t.times = append(t.times, now.Sub(time.Time(start)))
	if retried {
		t.report.Retried++
	}
	if err != nil {
		t.report.Failed++
		t.report.all = append(t.report.all, failure{now, err.Error()})
		if len(t.report.Failures) < 8 {
			t.report.Failures = append(t.report.Failures, now.Format("15:04:05.000 ")+err.Error())
		}
		return
	}
	if t.answered != nil {
		t.answered(got.Echo, now)
	}
}

// sent is the number of requests answered so far, well or not.
func (t *traffic) sent() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.report.Sent
}

// stop ends the stream, waits for what is on its way and reports.
func (t *traffic) stop() report {
	t.cancel()
	t.done.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.times) > 0 {
		slices.Sort(t.times)
		t.report.P50, t.report.P99 = t.times[len(t.times)/2], t.times[len(t.times)*99/100]
		t.report.Slowest = t.times[len(t.times)-1]
	}
	return t.report
}
