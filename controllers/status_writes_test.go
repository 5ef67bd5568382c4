package controllers

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// A storm of statuses that take long to write is written in parts, and what
// somebody waits for comes first.
func TestStatusesOfAStorm(t *testing.T) {
	var mu sync.Mutex
	var written []string
	now := clocktesting.NewFakePassiveClock(time.Unix(1_000_000, 0))
	write := func(name string) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			written = append(written, name)
			now.SetTime(now.Now().Add(writeTime / 50))
			return nil
		}
	}
	var w statusWrites
	for i := range 1000 {
		w.add(false, write(fmt.Sprint("other ", i)))
	}
	for i := range 30 {
		w.add(true, write(fmt.Sprint("urgent ", i)))
	}
	left, err := w.run(now)
	if err != nil || !left || len(written) > 60 {
		t.Errorf("%d are written at once, left: %v, %v", len(written), left, err)
	}
	if urgent := strings.Count(strings.Join(written, "\n"), "urgent"); urgent != 30 || len(written) == urgent {
		t.Errorf("%d of %d are what somebody waits for, of 30", urgent, len(written))
	}

	failing := statusWrites{}
	failing.add(true, func() error { return errors.New("no") })
	failing.add(false, write("after it"))
	if left, err := failing.run(now); left || err == nil || written[len(written)-1] != "after it" {
		t.Errorf("one that fails: left %v, %v, last %s", left, err, written[len(written)-1])
	}
}

// An endpoint that comes and goes behind thousands of routes does not keep the API
// server at work; behind a few it is told at once.
func TestCountsOfManyRoutesWait(t *testing.T) {
	var c counted
	at := time.Unix(1_000_000, 0)
	admitted := func(routes int, after time.Duration) (int, time.Duration) {
		at = at.Add(after)
		w := statusWrites{counts: map[model.Key]func() error{}}
		for i := range routes {
			w.counts[model.Key{Namespace: "shop", Name: fmt.Sprint(i)}] = func() error { return nil }
		}
		c.admit(&w, at)
		return len(w.others), w.postponed
	}
	for _, step := range []struct {
		routes    int
		after     time.Duration
		want      int
		postponed time.Duration
	}{
		{3, 0, 3, 0},
		{3, time.Second, 3, 0},
		{100, time.Second, 97, 4 * time.Second},
		{100, time.Second, 0, 3 * time.Second},
		{3, 0, 3, 0},
		{100, countPause, 100, 0},
	} {
		if got, postponed := admitted(step.routes, step.after); got != step.want || postponed != step.postponed {
			t.Errorf("%+v: %d are written, the next after %v", step, got, postponed)
		}
	}
}

func TestWhatIsNews(t *testing.T) {
	with := func(generation int64, status metav1.ConditionStatus, endpoints int32) v1alpha1.MeshRouteStatus {
		return v1alpha1.MeshRouteStatus{
			Conditions: []metav1.Condition{{Type: "Ready", Status: status, ObservedGeneration: generation}},
			Display:    v1alpha1.MeshRouteDisplay{Endpoints: fmt.Sprint(endpoints)},
			Backends:   []v1alpha1.MeshRouteBackend{{Name: "front", Endpoints: endpoints, ReadyEndpoints: endpoints}},
		}
	}
	before := with(1, "True", 2)
	for name, tt := range map[string]struct {
		after        v1alpha1.MeshRouteStatus
		news, counts bool
	}{
		"another number of endpoints": {with(1, "True", 3), false, true},
		"no endpoint is left":         {with(1, "False", 0), true, false},
		"the route was changed":       {with(2, "True", 2), true, false},
	} {
		if news(before.Conditions, tt.after.Conditions) != tt.news || sameButCounts(before, tt.after) != tt.counts {
			t.Errorf("%s: news %v, counts alone %v", name, !tt.news, sameButCounts(before, tt.after))
		}
	}
	if before.Backends[0].Endpoints != 2 {
		t.Error("a status was changed by looking at it")
	}
}
