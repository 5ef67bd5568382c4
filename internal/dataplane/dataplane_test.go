package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

var edge = model.Key{Namespace: "shop", Name: "edge"}

// world is a Dataplane with its server, and the objects that it is told of.
type world struct {
	*Dataplane
	server *xds.Server
	moved  chan struct{}
	in     model.Inputs
	slices map[model.Key][]*discoveryv1.EndpointSlice
	now    time.Time
	read   []model.Key // Services whose EndpointSlices Configure asked for
	handed map[any]any // copies of the objects, since tests change these in place
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{moved: make(chan struct{}, 1), slices: map[model.Key][]*discoveryv1.EndpointSlice{}}
	w.server = xds.NewServer(func(context.Context) (xds.Peer, error) {
		return xds.Peer{Namespace: edge.Namespace, Name: edge.Name, Pod: "pod-1"}, nil
	}, testr.New(t))
	w.server.OnAcks = func(xds.Gateway) {
		select {
		case w.moved <- struct{}{}:
		default:
		}
	}
	w.Dataplane = New(w.server, nil)
	w.in.GatewayClasses = []*gatewayv1.GatewayClass{{
		Name: "meshroute", Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
	}}
	w.in.Gateways = []*gatewayv1.Gateway{newGateway(gatewayv1.HTTPProtocolType)}
	for i, name := range []string{"a", "b"} {
		w.in.Services = append(w.in.Services, newService(name, "http"))
		w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute(name, "/"+name))
		w.slices[model.Key{Namespace: "shop", Name: name}] = newSlices("http", fmt.Sprintf("10.0.0.%d", i+1))
	}
	return w
}

func newGateway(protocol gatewayv1.ProtocolType) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		Namespace: edge.Namespace, Name: edge.Name,
		Spec: gatewayv1.GatewaySpec{GatewayClassName: "meshroute", Listeners: []gatewayv1.Listener{{
			Name: "http", Protocol: protocol, Port: 8888,
		}}},
	}
}

func newService(name, portName string) *corev1.Service {
	return &corev1.Service{
		Namespace: "shop", Name: name,
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: portName, Port: 80}}},
	}
}

// newRoute sends a path to the Service of the same name.
func newRoute(name, path string) *v1alpha1.ServiceRoute {
	return &v1alpha1.ServiceRoute{
		Namespace: "shop", Name: name,
		Spec: v1alpha1.ServiceRouteSpec{
			ParentRefs: []gatewayv1.ParentReference{{Name: "edge"}},
			Rules: []v1alpha1.ServiceRouteRule{{
				Name:     "all",
				Matches:  []v1alpha1.RouteMatch{{Path: &v1alpha1.PathMatch{Type: v1alpha1.PathMatchPrefix, Value: path}}},
				Backends: []v1alpha1.Backend{{Name: gatewayv1.ObjectName(name), Port: intstr.FromInt32(80)}},
			}},
		},
	}
}

// changed is a route whose spec an API server has seen change.
func changed(route *v1alpha1.ServiceRoute, generation int64) *v1alpha1.ServiceRoute {
	route.Generation = generation
	return route
}

func newSlices(port string, addresses ...string) []*discoveryv1.EndpointSlice {
	return []*discoveryv1.EndpointSlice{{
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &port, Port: new(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: addresses}},
	}}
}

// copied returns copies of objects, the same ones as before of those that are
// what they were.
func copied[T interface {
	comparable
	DeepCopy() T
}](w *world, objects []T) []T {
	if w.handed == nil {
		w.handed = map[any]any{}
	}
	copies := make([]T, len(objects))
	for i, object := range objects {
		before, _ := w.handed[object].(T)
		if !reflect.DeepEqual(before, object) {
			before = object.DeepCopy()
			w.handed[object] = before
		}
		copies[i] = before
	}
	return copies
}

func (w *world) configure() {
	in := w.in
	in.GatewayClasses, in.Gateways = copied(w, in.GatewayClasses), copied(w, in.Gateways)
	in.GatewayConfigs = copied(w, in.GatewayConfigs)
	in.ServiceRoutes, in.Services = copied(w, in.ServiceRoutes), copied(w, in.Services)
	w.Configure(in, in.Now, func(service model.Key) []*discoveryv1.EndpointSlice {
		w.read = append(w.read, service)
		return w.slices[service]
	})
}

func (w *world) observe() model.Observed {
	observed, _ := w.Observe(time.Unix(1_000_000, 0), nil)
	return observed
}

// sequence of what the gateway is to have at present. (A Set without any type
// changes nothing.)
func (w *world) sequence() uint64 { return w.server.Set(xds.Gateway(edge), nil).Sequence }

// programmed is the Programmed condition of a route, as "status reason".
func (w *world) programmed(t *testing.T, route string) string {
	t.Helper()
	for _, parent := range w.observe().Routes[model.Key{Namespace: "shop", Name: route}].Parents {
		for _, c := range parent.Conditions {
			if c.Type == v1alpha1.ConditionProgrammed {
				return string(c.Status) + " " + c.Reason
			}
		}
	}
	return "none"
}

func TestTheSameObjectsAreNoNews(t *testing.T) {
	w := newWorld(t)
	w.configure()
	first := w.sequence()
	if first == 0 {
		t.Fatal("the gateway was told nothing")
	}
	w.configure()
	if got := w.sequence(); got != first {
		t.Errorf("sequence %d after %d", got, first)
	}
	services := []model.Key{{Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}}
	slices.SortFunc(w.read, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	if diff := cmp.Diff(services, w.read); diff != "" {
		t.Errorf("Services whose EndpointSlices were read, over both builds (-want +got):\n%s", diff)
	}
	// The same, as other objects with the same content.
	again := newWorld(t)
	w.in, w.slices = again.in, again.slices
	w.configure()
	if got := w.sequence(); got != first {
		t.Errorf("sequence %d after %d with copies of the objects", got, first)
	}
}

func TestEndpointsTouchOnlyEndpoints(t *testing.T) {
	w := newWorld(t)
	w.configure()
	envoy := w.connect(t)
	w.applied(t)
	envoy.forget()
	before := w.sequence()

	service := model.Key{Namespace: "shop", Name: "a"}
	if !w.SetEndpoints(service, newSlices("http", "10.0.0.9"), time.Time{}) {
		t.Error("new endpoints count as none")
	}
	envoy.has(t, "10.0.0.9:8080", "shop/a/80")
	if got := w.sequence(); got != before+1 {
		t.Errorf("sequence %d after %d", got, before)
	}
	if diff := cmp.Diff(map[string]int{resource.EndpointType: 1}, envoy.heard()); diff != "" {
		t.Errorf("resources sent by type (-want +got):\n%s", diff)
	}

	if w.SetEndpoints(service, newSlices("http", "10.0.0.9"), time.Time{}) || w.sequence() != before+1 {
		t.Error("the same endpoints count as new ones")
	}
	if w.SetEndpoints(model.Key{Namespace: "shop", Name: "unused"}, newSlices("http", "10.0.0.9"), time.Time{}) || w.sequence() != before+1 {
		t.Error("endpoints of a Service that no route uses were sent")
	}
	// A build afterwards keeps what is newer than what it could read.
	w.configure()
	if got := w.sequence(); got != before+1 {
		t.Errorf("a build undid the endpoints: sequence %d after %d", got, before+1)
	}
}

// An endpoint that is not ready gets no requests: it is news to the status, and
// none to Envoy.
func TestEndpointsThatServeNobodyAreNotSent(t *testing.T) {
	w := newWorld(t)
	w.configure()
	before := w.sequence()
	found := newSlices("http", "10.0.0.1")
	found[0].Endpoints = append(found[0].Endpoints, discoveryv1.Endpoint{
		Addresses: []string{"10.0.0.7"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)},
	})
	if !w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, found, time.Time{}) {
		t.Error("it is no news")
	}
	if got := w.sequence(); got != before {
		t.Errorf("it was sent: sequence %d after %d", got, before)
	}
	if got := w.observe().MeshRoutes[model.Key{Namespace: "shop", Name: "a"}].Display.Endpoints; got != "1/2" {
		t.Errorf("endpoints are shown as %s", got)
	}
}

// A Service may give a port another name. Its EndpointSlices follow, and may be
// heard of before it.
func TestPortIsRenamed(t *testing.T) {
	service := model.Key{Namespace: "shop", Name: "a"}
	rename := func(w *world) {
		w.in.Services = []*corev1.Service{newService("a", "web"), w.in.Services[1]}
		w.configure()
	}
	reslice := func(w *world) {
		w.slices[service] = newSlices("web", "10.0.0.1")
		w.SetEndpoints(service, w.slices[service], time.Time{})
	}
	for name, steps := range map[string][]func(*world){
		"the Service is heard of first":         {rename, reslice},
		"its EndpointSlices are heard of first": {reslice, rename},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure()
			for _, step := range steps {
				step(w)
			}
			if got := w.observe().MeshRoutes[service].Display.Endpoints; got != "1/1" {
				t.Errorf("ready endpoints: %s", got)
			}
		})
	}
}

// Envoy may take its time with a neighbour: what was programmed stays so.
func TestARouteStaysProgrammedWhileItsNeighbourChanges(t *testing.T) {
	w := newWorld(t)
	w.configure()
	if got := w.programmed(t, "a"); got != "False NoGatewayPods" {
		t.Errorf("without a pod: %s", got)
	}
	envoy := w.connect(t)
	w.until(t, "both programmed", func() bool {
		return w.programmed(t, "a") == "True Programmed" && w.programmed(t, "b") == "True Programmed"
	})

	envoy.answer(silent)
	envoy.forget()
	w.in.ServiceRoutes = []*v1alpha1.ServiceRoute{w.in.ServiceRoutes[0], changed(newRoute("b", "/other"), 2)}
	w.configure()
	envoy.until(t, "the changed routes", func() bool { return envoy.count[resource.ScopedRouteType] > 0 })
	if a, b := w.programmed(t, "a"), w.programmed(t, "b"); a != "True Programmed" || b != "False Waiting" {
		t.Errorf("while b is on its way: a %s, b %s", a, b)
	}
	gateway := w.observe().Gateways[edge]
	if got := conditionOf(gateway.Conditions, v1alpha1.ConditionProgrammed); got != "False Waiting" {
		t.Errorf("while b is on its way, the gateway is %s", got)
	}

	envoy.answer(refuse)
	w.until(t, "a refusal", func() bool { return w.programmed(t, "b") == "False "+v1alpha1.ReasonRefused })
	if a := w.programmed(t, "a"); a != "True Programmed" {
		t.Errorf("b was refused, and a is %s", a)
	}

	envoy.answer(accept)
	w.in.ServiceRoutes = []*v1alpha1.ServiceRoute{w.in.ServiceRoutes[0], changed(newRoute("b", "/mended"), 3)}
	w.configure()
	w.until(t, "b mended", func() bool { return w.programmed(t, "b") == "True Programmed" })
}

func TestAnInvalidGatewayKeepsHearingOfEndpoints(t *testing.T) {
	w := newWorld(t)
	w.configure()
	envoy := w.connect(t)
	w.applied(t)
	envoy.forget()

	w.in.Gateways = []*gatewayv1.Gateway{newGateway("SMTP")}
	before := w.sequence()
	w.configure()
	if got := w.sequence(); got != before {
		t.Errorf("the gateway was told something: sequence %d after %d", got, before)
	}
	if len(w.Result().Gateways) != 0 {
		t.Fatal("the gateway is valid, so this test tests nothing")
	}
	if !w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, newSlices("http", "10.0.0.9"), time.Time{}) {
		t.Error("its endpoints are of no interest")
	}
	envoy.has(t, "10.0.0.9:8080", "shop/a/80")
	if diff := cmp.Diff(map[string]int{resource.EndpointType: 1}, envoy.heard()); diff != "" {
		t.Errorf("resources sent by type (-want +got):\n%s", diff)
	}
}

func TestADeletedGatewayIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.configure()
	envoy := w.connect(t)
	w.applied(t)
	envoy.forget()

	w.in.Gateways = nil
	w.configure()
	select { // the stream ends: the pod keeps what it has
	case <-envoy.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream of a deleted gateway goes on")
	}
	if diff := cmp.Diff(map[string]int{}, envoy.heard()); diff != "" {
		t.Errorf("the gateway was sent something (-want +got):\n%s", diff)
	}
	if w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, newSlices("http", "10.0.0.9"), time.Time{}) {
		t.Error("endpoints of a deleted gateway are of interest")
	}
	if got := w.server.Acks(xds.Gateway(edge)); len(got.Pods)+got.Starting > 0 {
		t.Errorf("a deleted gateway has pods: %+v", got)
	}
	if _, known := w.observe().Gateways[edge]; known {
		t.Error("a deleted gateway has a status")
	}
	// One of the same name is another one: everything is read anew.
	w.read = nil
	w.in.Gateways = []*gatewayv1.Gateway{newGateway(gatewayv1.HTTPProtocolType)}
	w.configure()
	if len(w.read) != 2 {
		t.Errorf("EndpointSlices of %v were read", w.read)
	}
}

// One that another controller took over is as good as deleted; one whose class
// is gone is nobody's, and goes on.
func TestAGatewayThatIsNoLongerOursIsForgotten(t *testing.T) {
	foreign := &gatewayv1.GatewayClass{Name: "meshroute", Spec: gatewayv1.GatewayClassSpec{ControllerName: "example.com/another"}}
	for name, test := range map[string]struct {
		gateways []*gatewayv1.Gateway
		classes  []*gatewayv1.GatewayClass
		kept     bool
	}{
		"deleted":              {},
		"of another class":     {[]*gatewayv1.Gateway{newGateway(gatewayv1.HTTPProtocolType)}, []*gatewayv1.GatewayClass{foreign}, false},
		"its class is missing": {[]*gatewayv1.Gateway{newGateway(gatewayv1.HTTPProtocolType)}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure()
			w.in.Gateways, w.in.GatewayClasses = test.gateways, test.classes
			w.configure()
			kept := w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, newSlices("http", "10.0.0.9"), time.Time{})
			if kept != test.kept {
				t.Errorf("it is still told of endpoints: %v, wanted %v", kept, test.kept)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	nack := &xds.Nack{Message: "no"}
	for name, test := range map[string]struct {
		pods []xds.PodAck
		want model.Progress
	}{
		"no pods": {},
		"some have it": {
			pods: []xds.PodAck{{Sequence: 4}, {Sequence: 5}, {Sequence: 6}},
			want: model.Progress{Pods: 3, Acknowledged: 2},
		},
		"one refuses it": {
			pods: []xds.PodAck{{Sequence: 5}, {Sequence: 4, Nack: nack}},
			want: model.Progress{Pods: 2, Acknowledged: 1, Refused: "no"},
		},
		"one has it, and refuses what came later": {
			pods: []xds.PodAck{{Sequence: 5, Nack: nack}},
			want: model.Progress{Pods: 1, Acknowledged: 1},
		},
		"two found out about their network": {
			pods: []xds.PodAck{
				{Pod: "a", Sequence: 5, NetworkPolicy: reportv1.NetworkPolicy_NETWORK_POLICY_ENFORCED},
				{Pod: "b", Sequence: 5, NetworkPolicy: reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED},
				{Pod: "c", Sequence: 5},
			},
			want: model.Progress{Pods: 3, Acknowledged: 3, Isolated: 1, Open: "b"},
		},
		"the first refusal is told": {
			pods: []xds.PodAck{{Nack: nack}, {Nack: &xds.Nack{Message: "never"}}},
			want: model.Progress{Pods: 2, Refused: "no"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, progress(test.pods, 5)); diff != "" {
				t.Errorf("progress (-want +got):\n%s", diff)
			}
		})
	}
}

// Pods that have just gone count for a while, unless they said that they go; who
// refuses what is told in the same order each time.
func TestPods(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	all := []xds.PodAck{{Pod: "a", Sequence: 1}, {Pod: "b", Sequence: 2}, {Pod: "c", Sequence: 3}, {Pod: "d", Sequence: 4}}
	newer, leaves := xds.PodAck{Pod: "a", Sequence: 5}, xds.PodAck{Pod: "b", Sequence: 5, Draining: true}
	for name, test := range map[string]struct {
		after     time.Duration
		connected []xds.PodAck
		want      []xds.PodAck
		away      bool
	}{
		"all there":                        {0, all, all, false},
		"just gone":                        {absence, []xds.PodAck{newer}, []xds.PodAck{newer, all[1], all[2], all[3]}, true},
		"gone for too long":                {absence + 1, []xds.PodAck{newer}, []xds.PodAck{newer}, false},
		"one drains":                       {1, []xds.PodAck{all[0], leaves, all[2], all[3]}, []xds.PodAck{all[0], all[2], all[3]}, false},
		"one drains while another is away": {1, []xds.PodAck{all[0], leaves, all[2]}, []xds.PodAck{all[0], all[2], all[3]}, true},
	} {
		t.Run(name, func(t *testing.T) {
			gw := &gateway{seen: map[string]seenPod{}}
			for range 20 {
				got, away := gw.pods(all, start)
				if diff := cmp.Diff(all, got); diff != "" || away {
					t.Fatalf("pods at first, away: %v (-want +got):\n%s", away, diff)
				}
			}
			got, away := gw.pods(test.connected, start.Add(test.after))
			if diff := cmp.Diff(test.want, got); diff != "" || away != test.away {
				t.Errorf("pods, away: %v (-want +got):\n%s", away, diff)
			}
		})
	}
}

// applied waits until the pod has everything.
func (w *world) applied(t *testing.T) {
	t.Helper()
	w.until(t, "everything applied", func() bool {
		pods := w.server.Acks(xds.Gateway(edge)).Pods
		return len(pods) == 1 && pods[0].Sequence == w.sequence()
	})
}

// until waits for what follows from acknowledgements.
func (w *world) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !done() {
		select {
		case <-w.moved:
		case <-timeout:
			t.Fatalf("never came: %s; acks: %+v", what, w.server.Acks(xds.Gateway(edge)))
		}
	}
}

func conditionOf(conditions []metav1.Condition, kind string) string {
	for _, c := range conditions {
		if c.Type == kind {
			return string(c.Status) + " " + c.Reason
		}
	}
	return "none"
}

type answer int

const (
	accept answer = iota
	refuse
	silent
)

// fakeAgent speaks delta ADS to the server, and reports, as the agent of pod-1
// does.
type fakeAgent struct {
	pod    *xds.Pod
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	news   chan struct{}
	ended  chan struct{}

	mu         sync.Mutex
	mode       answer
	unanswered []*discoveryv3.DeltaDiscoveryResponse
	endpoints  map[string]string // by cluster
	count      map[string]int    // resources and removals, by type
	versions   map[string]map[string]string
	state      map[string]*reportv1.TypeState
	withheld   []*reportv1.Withheld
}

func (w *world) connect(t *testing.T) *fakeAgent {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(xds.ServerOptions(0)...)
	w.server.Register(server)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///manager", append(xds.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{
		pod:    w.server.Pod(xds.Peer{Namespace: edge.Namespace, Name: edge.Name, Pod: "pod-1"}),
		stream: stream, news: make(chan struct{}, 1), ended: make(chan struct{}),
		endpoints: map[string]string{}, count: map[string]int{},
		versions: map[string]map[string]string{}, state: map[string]*reportv1.TypeState{},
	}
	t.Cleanup(a.pod.Close)
	for _, url := range xds.Types() {
		a.versions[url], a.state[url] = map[string]string{}, &reportv1.TypeState{TypeUrl: url}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: []string{"*"}}); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer close(a.ended)
		for {
			response, err := stream.Recv()
			if err != nil {
				return
			}
			a.take(response)
		}
	}()
	return a
}

func (a *fakeAgent) take(response *discoveryv3.DeltaDiscoveryResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(response.GetResources()) + len(response.GetRemovedResources()); n > 0 {
		a.count[response.GetTypeUrl()] += n
	}
	for _, name := range response.GetRemovedResources() {
		delete(a.versions[response.GetTypeUrl()], name)
	}
	for _, r := range response.GetResources() {
		a.versions[response.GetTypeUrl()][r.GetName()] = r.GetVersion()
		assignment := &endpointv3.ClusterLoadAssignment{}
		if r.GetResource().MessageIs(assignment) && r.GetResource().UnmarshalTo(assignment) == nil {
			a.endpoints[r.GetName()] = addresses(assignment)
		}
	}
	a.unanswered = append(a.unanswered, response)
	a.send()
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// send answers what is to be answered. A stream that has ended needs no answer.
func (a *fakeAgent) send() {
	if a.mode == silent {
		return
	}
	for _, response := range a.unanswered {
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}
		content := digest(a.versions[response.GetTypeUrl()])
		state := &reportv1.TypeState{TypeUrl: response.GetTypeUrl(), Acknowledged: content}
		if response.GetTypeUrl() == resource.ScopedRouteType {
			state.Withheld = a.withheld
		}
		if a.mode == refuse {
			request.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: "no"}
			state.Acknowledged = a.state[response.GetTypeUrl()].GetAcknowledged()
			state.Refusal = &reportv1.Refusal{Content: content, Message: "no"}
		}
		a.state[response.GetTypeUrl()] = state
		_ = a.stream.Send(request)
	}
	a.unanswered = nil
	a.pod.Report(&reportv1.PodState{Types: slices.Collect(maps.Values(a.state))})
}

// digest is what report.proto says that it is.
func digest(versions map[string]string) []byte {
	var high, low uint64
	for name, version := range versions {
		sum := sha256.Sum256([]byte(name + "\x00" + version))
		high += binary.BigEndian.Uint64(sum[:8])
		low += binary.BigEndian.Uint64(sum[8:16])
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, high), low)
}

// answer sets how the agent answers from now on, and what it has not answered.
func (a *fakeAgent) answer(mode answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mode = mode
	a.send()
}

// withhold tells of an object that Envoy refuses.
func (a *fakeAgent) withhold(object, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.withheld = append(a.withheld, &reportv1.Withheld{Object: object, Message: message})
	a.state[resource.ScopedRouteType].Withheld = a.withheld
	a.send()
}

// forget has heard begin anew.
func (a *fakeAgent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count = map[string]int{}
}

// heard counts the resources of each type that came.
func (a *fakeAgent) heard() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.count)
}

// has waits until the endpoints of a cluster are these.
func (a *fakeAgent) has(t *testing.T, want, cluster string) {
	t.Helper()
	a.until(t, cluster+" has "+want, func() bool { return a.endpoints[cluster] == want })
}

func (a *fakeAgent) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		a.mu.Lock()
		is := done()
		a.mu.Unlock()
		if is {
			return
		}
		select {
		case <-a.news:
		case <-timeout:
			t.Fatalf("never came: %s", what)
		}
	}
}

func addresses(assignment *endpointv3.ClusterLoadAssignment) string {
	var all []string
	for _, locality := range assignment.GetEndpoints() {
		for _, endpoint := range locality.GetLbEndpoints() {
			at := endpoint.GetEndpoint().GetAddress().GetSocketAddress()
			all = append(all, fmt.Sprintf("%s:%d", at.GetAddress(), at.GetPortValue()))
		}
	}
	return strings.Join(all, " ")
}
