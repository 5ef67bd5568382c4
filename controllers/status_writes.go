package controllers

import (
	"errors"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// After the start of a thousand routes there are thousands of statuses to write,
// and an endpoint that comes and goes may be behind as many.
const (
	// writers is how many are written at a time; more would only take the API
	// server from others.
	writers = 4
	// writeTime is how long statuses are written before is looked again what is
	// true, so that nobody waits for all of a storm.
	writeTime = time.Second
	// urgentShare is how many of those that somebody waits for come before one of
	// the others.
	urgentShare = 3
	// countPause is how often the status of a MeshRoute is written for nothing but
	// another number of endpoints, where there are more than countFew of these.
	countPause = 5 * time.Second
	countFew   = 20
)

// statusWrites are what is to be written: first what somebody waits for.
type statusWrites struct {
	urgent, others []func() error
	// counts are those for nothing but another number of endpoints.
	counts map[model.Key]func() error
	// postponed is when the first of those comes that have to wait; 0: none has.
	postponed time.Duration
}

func (w *statusWrites) add(urgent bool, write func() error) {
	if urgent {
		w.urgent = append(w.urgent, write)
	} else {
		w.others = append(w.others, write)
	}
}

// inOrder are all of them, so that none waits forever for the urgent ones.
func (w *statusWrites) inOrder() []func() error {
	ordered := make([]func() error, 0, len(w.urgent)+len(w.others))
	urgent, others := w.urgent, w.others
	for len(urgent)+len(others) > 0 {
		share := min(urgentShare, len(urgent))
		ordered, urgent = append(ordered, urgent[:share]...), urgent[share:]
		if len(others) > 0 {
			ordered, others = append(ordered, others[0]), others[1:]
		}
	}
	return ordered
}

// run writes for writeTime. It tells whether there was more to write.
func (w *statusWrites) run(now clock.PassiveClock) (left bool, err error) {
	end := now.Now().Add(writeTime)
	return parallel(w.inOrder(), func() bool { return now.Now().Before(end) })
}

// parallel runs writes, as long as there is time, and joins their errors: that one
// fails is no reason to leave out another. It tells whether any was left out.
func parallel(writes []func() error, inTime func() bool) (left bool, err error) {
	failed := make([]error, len(writes))
	var group errgroup.Group
	group.SetLimit(writers)
	for i, write := range writes {
		if left = !inTime(); left {
			break
		}
		group.Go(func() error {
			failed[i] = write()
			return nil
		})
	}
	_ = group.Wait() // never fails: errors are collected
	return left, errors.Join(failed...)
}

// allOf runs all writes.
func allOf(writes []func() error) error {
	_, err := parallel(writes, func() bool { return true })
	return err
}

// news tells whether somebody waits for a status: its object has changed since the
// last, or is ready and was not, or the other way round.
func news(before, after []metav1.Condition) bool {
	if len(before) == 0 || len(after) == 0 {
		return true
	}
	return before[0].ObservedGeneration != after[0].ObservedGeneration || before[0].Status != after[0].Status
}

// sameButCounts tells whether two statuses differ in numbers of endpoints alone.
func sameButCounts(a, b v1alpha1.MeshRouteStatus) bool {
	return sameMeshRouteStatus(uncounted(a), uncounted(b))
}

func uncounted(status v1alpha1.MeshRouteStatus) v1alpha1.MeshRouteStatus {
	status.Display.Endpoints = ""
	backends := make([]v1alpha1.MeshRouteBackend, len(status.Backends))
	for i, backend := range status.Backends {
		backend.Endpoints, backend.ReadyEndpoints, backend.HealthyEndpoints = 0, 0, nil
		backends[i] = backend
	}
	status.Backends = backends
	return status
}

// counted is when MeshRoutes were last written for nothing but another number of
// endpoints.
type counted map[model.Key]time.Time

// admit has those written that need not wait.
func (c *counted) admit(w *statusWrites, now time.Time) {
	if *c == nil {
		*c = counted{}
	}
	maps.DeleteFunc(*c, func(_ model.Key, last time.Time) bool { return now.Sub(last) >= countPause })
	for key, write := range w.counts {
		last, was := (*c)[key]
		if left := countPause - now.Sub(last); was && len(w.counts) > countFew {
			if w.postponed == 0 || left < w.postponed {
				w.postponed = left
			}
			continue
		}
		(*c)[key] = now
		w.others = append(w.others, write)
	}
}
