package dataplane

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

func TestFigures(t *testing.T) {
	w := newWorld(t)
	w.configure()
	agent := w.connect(t)
	w.applied(t)

	noticed := time.Unix(1_000_000, 0)
	w.in.Now = noticed
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("missing", "/missing"), newRoute("taken", "/a"))
	w.configure()
	w.applied(t)
	want := Figures{Agents: map[model.Key]int{edge: 1}, Pods: map[model.Key]PodFigures{edge: {Current: 1}}, Routes: RouteFigures{Valid: 2, Partial: 1, Invalid: 1}}
	now := w.Figures()
	sent := now.Sent
	if now.Sent = nil; !cmp.Equal(want, now) {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, now))
	}
	routes := slices.IndexFunc(sent, func(f xds.TypeFigures) bool { return f.Type == "routes" })
	if was := sent[routes]; was.Pushes != 2 || was.Resources != 2 || was.Refusals != 0 {
		t.Errorf("routes: %+v", was)
	}
	agent.answer(refuse)
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("more", "/more"))
	w.configure()
	w.until(t, "the refusal is counted", func() bool { return w.Figures().Sent[routes].Refusals == 1 })
	if took := w.Acknowledged(edge, noticed.Add(time.Second)); !slices.Equal(took, []time.Duration{time.Second}) {
		t.Errorf("the change took %v", took)
	}
	if again := w.Acknowledged(edge, noticed.Add(time.Minute)); len(again) != 0 {
		t.Errorf("it was told again: %v", again)
	}
}
