package dataplane

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

func TestFigures(t *testing.T) {
	w := newWorld(t)
	w.configure()
	w.connect(t)
	w.applied(t)

	noticed := time.Unix(1_000_000, 0)
	w.in.Now = noticed
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("missing", "/missing"), newRoute("taken", "/a"))
	w.configure()
	w.applied(t)
	want := Figures{Pods: map[model.Key]PodFigures{edge: {Current: 1}}, Routes: RouteFigures{Valid: 2, Partial: 1, Invalid: 1}}
	if diff := cmp.Diff(want, w.Figures()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if took := w.Acknowledged(edge, noticed.Add(time.Second)); !slices.Equal(took, []time.Duration{time.Second}) {
		t.Errorf("the change took %v", took)
	}
	if again := w.Acknowledged(edge, noticed.Add(time.Minute)); len(again) != 0 {
		t.Errorf("it was told again: %v", again)
	}
}
