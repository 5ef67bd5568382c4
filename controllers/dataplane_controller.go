package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/consts"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

// DataplaneReconciler keeps gateways configured. It runs in every replica, so
// that agents may connect to any of them.
type DataplaneReconciler struct {
	Client    client.Client
	Dataplane *dataplane.Dataplane
	// Changed is told whenever something was built or endpoints have changed.
	// It must not block.
	Changed func()
	// Built is closed after the first build: before it, agents are not served.
	Built chan struct{}

	// Direct reads from the API server rather than from the cache.
	Direct client.Reader
	// Certificates are what listeners serve.
	Certificates *Certificates
	// IPv6 tells that pods have IPv6 addresses.
	IPv6  bool
	Clock clock.PassiveClock

	cache cache.Cache
	// first is when the first build was sent, built that agents are served.
	first time.Time
	built bool
	// queue is the controller's own, noticed since when what is in it waits.
	queue   workqueue.TypedRateLimitingInterface[dataplaneRequest]
	noticed noticed
	// checked are the generations of routes whose Services were looked for.
	checked map[model.Key]int64
	waited  int
	// reading is since when Secrets are read that are not known yet.
	reading time.Time
}

// catchUp is how long is waited for a cache that is behind, and catchUps how
// often.
const (
	catchUp  = 5 * time.Millisecond
	catchUps = 40
)

// startWait is how long agents are kept waiting at the start for network
// policies that are missing, such as all of them after an upgrade from a version
// that made none. What gateways have serves on meanwhile. After that it counts
// for more that they get what is new.
const startWait = 5 * time.Second

// behind tells whether the cache does not know yet of a Service, or its
// endpoints, that a new route refers to. Each kind comes by a watch of its own:
// who applies a Service and a route together may see the route arrive first, and
// its requests would be answered with 500 or 503 until the Service does.
//
// It is a courtesy to that route: where the API server does not answer, or there
// is more to ask than there is time, the others are not kept waiting.
func (r *DataplaneReconciler) behind(ctx context.Context, in model.Inputs) bool {
	// At the start the caches were just filled.
	if !r.first.IsZero() && r.waited < catchUps && r.anyBehind(ctx, in) {
		r.waited++
		return true
	}
	r.waited = 0
	r.check(in)
	return false
}

func (r *DataplaneReconciler) anyBehind(ctx context.Context, in model.Inputs) bool {
	ctx, cancel := context.WithTimeout(ctx, catchUp*catchUps)
	defer cancel()
	services := map[model.Key]bool{}
	for _, route := range in.ServiceRoutes {
		if r.checked[keyOf(route)] == route.Generation {
			continue
		}
		if len(services) == 0 {
			for _, service := range in.Services {
				services[keyOf(service)] = true
			}
		}
		for _, key := range model.Services(route) {
			behind, err := r.serviceBehind(ctx, key, services[key])
			if err != nil {
				ctrl.LoggerFrom(ctx).V(1).Info("Cannot tell whether the cache is behind", "service", key.String(), "reason", err.Error())
				return false
			}
			if behind {
				return true
			}
		}
	}
	return false
}

// check notes that the Services of these routes were looked for.
func (r *DataplaneReconciler) check(in model.Inputs) {
	if len(r.checked) > 2*len(in.ServiceRoutes) || r.checked == nil {
		r.checked = make(map[model.Key]int64, len(in.ServiceRoutes)) // most are of routes that went
	}
	for _, route := range in.ServiceRoutes {
		r.checked[keyOf(route)] = route.Generation
	}
}

// serviceBehind asks the API server where the cache knows no Service, or no
// endpoints of it.
func (r *DataplaneReconciler) serviceBehind(ctx context.Context, key model.Key, cached bool) (bool, error) {
	if !cached {
		err := r.Direct.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &corev1.Service{})
		return err == nil, client.IgnoreNotFound(err)
	}
	known, err := endpointSlices(ctx, r.Client, key)
	if err != nil || len(known) > 0 {
		return false, err
	}
	var list discoveryv1.EndpointSliceList
	err = r.Direct.List(ctx, &list, client.InNamespace(key.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: key.Name}, client.Limit(1))
	return len(list.Items) > 0, err
}

// dataplaneRequest asks for the endpoints of one Service; for everything, if a
// route refers to Service; for what waits for a network policy; for everything, if
// it is news that a route is refused; or for everything, where it names nothing.
type dataplaneRequest struct {
	Service   model.Key
	Endpoints bool
	Policy    model.Key
	Refused   model.Key
}

// noticed is when events came that requests in the queue are for: of several for
// one request, the first.
type noticed struct {
	mu    sync.Mutex
	first map[dataplaneRequest]time.Time
}

func (n *noticed) note(request dataplaneRequest, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.first == nil {
		n.first = map[dataplaneRequest]time.Time{}
	}
	if before, is := n.first[request]; !is || at.Before(before) {
		n.first[request] = at
	}
}

// take returns when the first event of a request came, or now where nobody has
// noted any: it was asked again.
func (n *noticed) take(request dataplaneRequest, now time.Time) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, is := n.first[request]
	if delete(n.first, request); !is {
		return now
	}
	return at
}

// Reconcile builds everything, or updates the endpoints of one Service.
func (r *DataplaneReconciler) Reconcile(ctx context.Context, request dataplaneRequest) (ctrl.Result, error) {
	noticed := r.noticed.take(request, r.Clock.Now())
	if request.Endpoints {
		return ctrl.Result{}, r.endpoints(ctx, request.Service, noticed)
	}
	if request != (dataplaneRequest{}) {
		build, err := r.news(ctx, request)
		if build {
			r.noticed.note(dataplaneRequest{}, noticed)
			r.queue.Add(dataplaneRequest{}) // one build for all that waits in the queue
		}
		return ctrl.Result{}, err
	}
	result, err := r.build(ctx, noticed)
	if err != nil || result.RequeueAfter == catchUp {
		r.noticed.note(request, noticed)
	}
	return result, err
}

// build builds everything, or asks to be called again, after catchUp, where what
// it needs is not read yet.
func (r *DataplaneReconciler) build(ctx context.Context, noticed time.Time) (ctrl.Result, error) {
	if r.first.IsZero() {
		if err := errors.Join(r.policies(ctx), r.refusals(ctx)); err != nil {
			return ctrl.Result{}, err
		}
	}
	in, err := gather(ctx, r.cache)
	if err != nil {
		return ctrl.Result{}, err
	}
	in.IPv6 = r.IPv6
	if in.Now = r.Clock.Now(); !r.readCertificates(&in) || r.behind(ctx, in) {
		return ctrl.Result{RequeueAfter: catchUp}, nil
	}
	var failed error
	r.Dataplane.Configure(in, noticed, func(service model.Key) []*discoveryv1.EndpointSlice {
		found, err := endpointSlices(ctx, r.Client, service)
		if err != nil {
			failed = err
		}
		return found
	})
	if failed != nil {
		return ctrl.Result{}, failed
	}
	took := r.Clock.Since(in.Now)
	buildSeconds.Observe(took.Seconds())
	ctrl.LoggerFrom(ctx).V(1).Info("Built", "routes", len(in.ServiceRoutes), "took", took.String())
	r.Changed()
	again := r.start()
	if next := model.NextChange(in.Certificates, in.Now); again == 0 && !next.IsZero() {
		again = next.Sub(in.Now) + time.Second // validity is told in whole seconds
	}
	return ctrl.Result{RequeueAfter: again}, nil
}

// readWait is how long a build waits for Secrets that were not read before: a
// listener that names another one than before would otherwise serve none for a
// moment. At the start, when all of them are new, startWait is the bound.
const readWait = 500 * time.Millisecond

// readCertificates adds what Gateways' Secrets hold to in. It is false while
// that is worth waiting for.
func (r *DataplaneReconciler) readCertificates(in *model.Inputs) bool {
	certificates, complete := r.Certificates.Read(model.Certificates(*in))
	in.Certificates = certificates
	if complete {
		r.reading = time.Time{}
		return true
	}
	if r.reading.IsZero() {
		r.reading = in.Now
	}
	most := readWait
	if r.first.IsZero() {
		most = startWait
	}
	return in.Now.Sub(r.reading) >= most
}

// news takes note of a change of one object. It tells whether to build because of
// it.
func (r *DataplaneReconciler) news(ctx context.Context, request dataplaneRequest) (build bool, err error) {
	switch {
	case request.Policy != (model.Key{}):
		return r.policy(ctx, request.Policy)
	case request.Refused != (model.Key{}):
		return r.refusal(ctx, request.Refused)
	default:
		// Looked at here rather than when the Service changed, so that a build that
		// was at work at that moment is taken into account.
		return r.Dataplane.Refers(request.Service), nil
	}
}

// start has agents served after the first build, once no gateway would be cut
// off from what it is told to use. It returns when to look again; 0: not at all.
func (r *DataplaneReconciler) start() time.Duration {
	if r.built {
		return 0
	}
	if r.first.IsZero() {
		r.first = r.Clock.Now()
	}
	if !r.Dataplane.AllPoliciesInForce(r.Clock.Now()) && r.Clock.Since(r.first) < startWait {
		return 100 * time.Millisecond
	}
	r.built = true
	close(r.Built)
	return 0
}

// policies reads the network policies that are there at the start: they have
// been in force for long.
func (r *DataplaneReconciler) policies(ctx context.Context) error {
	var list networkingv1.NetworkPolicyList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read NetworkPolicies: %w", err)
	}
	for i := range list.Items {
		if policy := workload.ReadPolicy(&list.Items[i]); policy != nil {
			r.Dataplane.SetPolicy(keyOf(&list.Items[i]), policy, time.Time{})
		}
	}
	return nil
}

// policy takes note of a network policy. It tells whether to build because of it.
func (r *DataplaneReconciler) policy(ctx context.Context, key model.Key) (build bool, err error) {
	var object networkingv1.NetworkPolicy
	err = r.Client.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &object, client.UnsafeDisableDeepCopy)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read NetworkPolicy %s: %w", key, err)
	}
	var policy *model.Policy
	if err == nil {
		policy = workload.ReadPolicy(&object)
	}
	if r.Dataplane.SetPolicy(key, policy, r.Clock.Now()) {
		r.Changed()
	}
	return r.Dataplane.Waiting(), nil
}

// refusals reads what is written down of refused routes: what is known to be
// refused is not told to gateways at the start, either.
func (r *DataplaneReconciler) refusals(ctx context.Context) error {
	var list appsv1.ControllerRevisionList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read ControllerRevisions: %w", err)
	}
	for i := range list.Items {
		if route, is := refusedRoute(&list.Items[i]); is {
			r.setRefusal(ctx, route, &list.Items[i])
		}
	}
	return nil
}

// refusal takes note of what is written down of a route, and tells whether that
// is news.
func (r *DataplaneReconciler) refusal(ctx context.Context, route model.Key) (news bool, err error) {
	var object appsv1.ControllerRevision
	err = r.Client.Get(ctx, client.ObjectKey{Namespace: route.Namespace, Name: refusalName(route)}, &object, client.UnsafeDisableDeepCopy)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read ControllerRevision %s/%s: %w", route.Namespace, refusalName(route), err)
	}
	return r.setRefusal(ctx, route, &object), nil
}

func (r *DataplaneReconciler) setRefusal(ctx context.Context, route model.Key, object *appsv1.ControllerRevision) bool {
	refusal, err := readRefusal(object)
	if err != nil {
		// As good as none: the pods hold back what Envoy refuses.
		ctrl.LoggerFrom(ctx).Error(err, "A ControllerRevision is not as this operator wrote it, and is not used", "route", route.String())
	}
	return r.Dataplane.SetRefusal(route, refusal)
}

func (r *DataplaneReconciler) endpoints(ctx context.Context, service model.Key, noticed time.Time) error {
	found, err := endpointSlices(ctx, r.Client, service)
	if err != nil {
		return err
	}
	if r.Dataplane.SetEndpoints(service, found, noticed) {
		r.Changed()
	}
	return nil
}

// serviceIndex finds the EndpointSlices of a Service, by namespace/name.
const serviceIndex = "service"

// endpointSlices reads from the cache, without copying: the result must not be
// changed.
func endpointSlices(ctx context.Context, c client.Reader, service model.Key) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	if err := c.List(ctx, &list, client.UnsafeDisableDeepCopy, client.InNamespace(service.Namespace),
		client.MatchingFields{serviceIndex: service.Name}); err != nil {
		return nil, fmt.Errorf("read the EndpointSlices of Service %s: %w", service, err)
	}
	return pointers(list.Items), nil
}

// gather reads everything that Build looks at from the cache, without copying:
// Build never changes its inputs.
func gather(ctx context.Context, c cache.Cache) (model.Inputs, error) {
	var (
		classes    gatewayv1.GatewayClassList
		gateways   gatewayv1.GatewayList
		configs    v1alpha1.GatewayConfigList
		routes     v1alpha1.ServiceRouteList
		health     v1alpha1.HealthPolicyList
		services   corev1.ServiceList
		grants     gatewayv1.ReferenceGrantList
		namespaces corev1.NamespaceList
	)
	crd := GatewayCRD()
	if err := client.IgnoreNotFound(c.Get(ctx, client.ObjectKeyFromObject(crd), crd)); err != nil {
		return model.Inputs{}, fmt.Errorf("read CustomResourceDefinition %s: %w", crd.Name, err)
	}
	in := model.Inputs{GatewayAPI: cmp.Or(crd.Annotations[consts.BundleVersionAnnotation], "unknown")}
	var failed [8]error
	in.GatewayClasses, failed[0] = all(ctx, c, &classes, &classes.Items)
	in.Gateways, failed[1] = all(ctx, c, &gateways, &gateways.Items)
	in.GatewayConfigs, failed[2] = all(ctx, c, &configs, &configs.Items)
	in.ServiceRoutes, failed[3] = all(ctx, c, &routes, &routes.Items)
	in.HealthPolicies, failed[4] = all(ctx, c, &health, &health.Items)
	in.Services, failed[5] = all(ctx, c, &services, &services.Items)
	in.ReferenceGrants, failed[6] = all(ctx, c, &grants, &grants.Items)
	in.Namespaces, failed[7] = all(ctx, c, &namespaces, &namespaces.Items)
	return in, errors.Join(failed[:]...)
}

// GatewayCRD is the CustomResourceDefinition whose annotations tell the version of
// Gateway API: its CRDs come together, and this is the one that matters most.
// There is no more of it in the cache than its metadata.
func GatewayCRD() *metav1.PartialObjectMetadata {
	crd := &metav1.PartialObjectMetadata{Name: "gateways.gateway.networking.k8s.io"}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	return crd
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// SetupWithManager registers the controller.
func (r *DataplaneReconciler) SetupWithManager(ctx context.Context, mgr manager.Manager) error {
	r.cache = mgr.GetCache()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &discoveryv1.EndpointSlice{}, serviceIndex, func(object client.Object) []string {
		return []string{object.GetLabels()[discoveryv1.LabelServiceName]}
	}); err != nil {
		return err
	}
	requests := func(of func(client.Object) (request dataplaneRequest, concerns bool)) handler.TypedEventHandler[client.Object, dataplaneRequest] {
		return handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []dataplaneRequest {
			request, concerns := of(object)
			if !concerns {
				return nil
			}
			r.noticed.note(request, r.Clock.Now())
			return []dataplaneRequest{request}
		})
	}
	everything := requests(func(client.Object) (dataplaneRequest, bool) { return dataplaneRequest{}, true })
	service := requests(func(object client.Object) (dataplaneRequest, bool) {
		return dataplaneRequest{Service: keyOf(object)}, true
	})
	endpoints := requests(func(object client.Object) (dataplaneRequest, bool) {
		return dataplaneRequest{Endpoints: true, Service: model.Key{
			Namespace: object.GetNamespace(), Name: object.GetLabels()[discoveryv1.LabelServiceName],
		}}, true
	})
	policy := requests(func(object client.Object) (dataplaneRequest, bool) {
		return dataplaneRequest{Policy: keyOf(object)}, true
	})
	refused := requests(func(object client.Object) (dataplaneRequest, bool) {
		route, is := refusedRoute(object)
		return dataplaneRequest{Refused: route}, is
	})
	// Statuses are written by this operator: they are no news to it.
	spec := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}))
	return builder.TypedControllerManagedBy[dataplaneRequest](mgr).
		Named("dataplane").
		Watches(&gatewayv1.GatewayClass{}, everything, spec).
		Watches(&gatewayv1.Gateway{}, everything, spec).
		Watches(&v1alpha1.GatewayConfig{}, everything, spec).
		Watches(&v1alpha1.ServiceRoute{}, everything, spec).
		Watches(&v1alpha1.HealthPolicy{}, everything, spec).
		Watches(&gatewayv1.ReferenceGrant{}, everything, spec).
		Watches(GatewayCRD(), everything, builder.WithPredicates(predicate.AnnotationChangedPredicate{})).
		Watches(&corev1.Namespace{}, everything, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		Watches(&corev1.Service{}, service, builder.WithPredicates(serviceSpecChanged)).
		Watches(&discoveryv1.EndpointSlice{}, endpoints).
		Watches(&networkingv1.NetworkPolicy{}, policy).
		WatchesRawSource(r.Certificates).
		Watches(&appsv1.ControllerRevision{}, refused).
		WatchesRawSource(source.TypedFunc[dataplaneRequest](func(_ context.Context, queue workqueue.TypedRateLimitingInterface[dataplaneRequest]) error {
			r.queue = queue
			queue.Add(dataplaneRequest{}) // a cluster without any object counts as built, too
			return nil
		})).
		WithOptions(controller.TypedOptions[dataplaneRequest]{
			// One at a time: what is built must not be overtaken by what was
			// read before it.
			MaxConcurrentReconciles: 1,
			NeedLeaderElection:      new(false),
		}).
		Complete(r)
}

// serviceSpecChanged drops changes of a Service's status and of labels that mean
// nothing here; Services have no generation to tell.
var serviceSpecChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*corev1.Service)
	after, ok2 := e.ObjectNew.(*corev1.Service)
	return !ok || !ok2 || !sameService(before, after) ||
		before.Labels[v1alpha1.IsolationLabel] != after.Labels[v1alpha1.IsolationLabel]
}}
