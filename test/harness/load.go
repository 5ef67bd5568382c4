package harness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Load is a constant stream of requests.
type Load struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	report Report
}

// Report tells what came of a Load.
type Report struct {
	Sent, Failed int
	// Worst is the longest time that a request took.
	Worst time.Duration
	// Failures are the first few, in words.
	Failures []string
}

func (r Report) String() string {
	return fmt.Sprintf("%d of %d failed, the longest took %v %v", r.Failed, r.Sent, r.Worst.Round(time.Millisecond), r.Failures)
}

// StartLoad sends requests at a constant rate, whatever becomes of those before.
// A request that does not get a 200 within 10 seconds has failed.
func StartLoad(perSecond int, url, host string) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel, done: make(chan struct{})}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	go func() {
		defer close(l.done)
		var inFlight sync.WaitGroup
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				inFlight.Wait()
				return
			case <-ticker.C:
				inFlight.Go(func() {
					began := time.Now()
					err := get(client, url, host)
					l.count(time.Since(began), err)
				})
			}
		}
	}()
	return l
}

func get(client *http.Client, url, host string) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Host = host
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %.100s", response.Status, body)
	}
	return nil
}

func (l *Load) count(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Sent++
	l.report.Worst = max(l.report.Worst, took)
	if err != nil {
		l.report.Failed++
		if len(l.report.Failures) < 5 {
			l.report.Failures = append(l.report.Failures, err.Error())
		}
	}
}

// Sent is the number of requests answered so far, well or not.
func (l *Load) Sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.report.Sent
}

// Stop ends the stream, waits for what is on its way and reports.
func (l *Load) Stop() Report {
	l.cancel()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.report
}
