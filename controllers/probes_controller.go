package controllers

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
)

const (
	// probesDelay is how long after a Service's endpoints changed its pods are
	// looked at: those of a rollout come one after the other.
	probesDelay = time.Second
	// podTime is how long it is waited for each pod of a Service before all of
	// them are read again.
	podTime = 20 * time.Millisecond
	// podsPage is how many pods are read at a time; of each a few bytes are kept.
	podsPage = 500
	// fewServices are read one by one; of more, all pods of their namespace are.
	fewServices = 3
	// probesBatch is after how many Services gateways are told.
	probesBatch = 500
)

// ProbesReconciler finds out what the pods of Services in use say of how they want
// to be asked whether they are ready. It runs in every replica, as what is built
// from it does.
//
// Pods are read from the API server when the pods of a Service are others than
// before, and are not kept: a watch would have each replica hold, and take in each
// change of, all pods of the cluster, of which few are behind a gateway.
type ProbesReconciler struct {
	// Client reads from the cache, Direct from the API server.
	Client    client.Reader
	Direct    client.Reader
	Dataplane *dataplane.Dataplane
	Clock     clock.PassiveClock
	// Built rings when Services may have come into use, Changed is told when a
	// check is another one.
	Built   <-chan event.GenericEvent
	Changed func()

	read map[model.Key]podsRead
}

// podsRead tells of which pods a Service's were read last.
type podsRead struct {
	pods uint64 // a hash of their UIDs
	at   time.Time
}

// probesRequest asks for the pods of a Service or, where it names none, of all
// Services that came into use.
type probesRequest struct{ Service model.Key }

// Reconcile reads pods and tells the dataplane.
func (r *ProbesReconciler) Reconcile(ctx context.Context, request probesRequest) (ctrl.Result, error) {
	if r.read == nil {
		r.read = map[model.Key]podsRead{}
	}
	if request.Service == (model.Key{}) {
		return ctrl.Result{}, r.newServices(ctx)
	}
	if _, used := r.Dataplane.Selector(request.Service); !used {
		delete(r.read, request.Service)
		return ctrl.Result{}, nil
	}
	pods, hash, err := r.podsOf(ctx, request.Service)
	if err != nil {
		return ctrl.Result{}, err
	}
	last, known := r.read[request.Service]
	if !known {
		return ctrl.Result{}, r.newServices(ctx) // it is seldom alone
	}
	if last.pods == hash {
		return ctrl.Result{}, nil
	}
	if wait := time.Duration(len(pods))*podTime - r.Clock.Since(last.at); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	return ctrl.Result{}, r.tell(ctx, request.Service.Namespace, []model.Key{request.Service})
}

// newServices reads the pods of all Services of which nothing is known.
func (r *ProbesReconciler) newServices(ctx context.Context) error {
	unknown := r.Dataplane.Unprobed() // sorted, so that namespaces are together
	for len(unknown) > 0 {
		namespace := unknown[0].Namespace
		n := slices.IndexFunc(unknown, func(key model.Key) bool { return key.Namespace != namespace })
		if n < 0 {
			n = len(unknown)
		}
		n = min(n, probesBatch)
		if err := r.tell(ctx, namespace, unknown[:n]); err != nil {
			return err
		}
		unknown = unknown[n:]
	}
	return nil
}

// tell reads the pods of Services of one namespace and tells the dataplane.
func (r *ProbesReconciler) tell(ctx context.Context, namespace string, services []model.Key) error {
	found := make(map[model.Key]dataplane.Probes, len(services))
	wanted := map[string][]model.Key{} // Services by the names of their pods
	hashes := make(map[model.Key]uint64, len(services))
	for _, service := range services {
		pods, hash, err := r.podsOf(ctx, service)
		if err != nil {
			return err
		}
		found[service], hashes[service] = nil, hash
		for _, pod := range pods {
			wanted[pod] = append(wanted[pod], service)
		}
	}
	take := func(pod *corev1.Pod) {
		if pod.DeletionTimestamp != nil {
			return // it gets no more requests
		}
		probes := model.ProbesOf(pod)
		for _, service := range wanted[pod.Name] {
			if !slices.ContainsFunc(found[service], probes.Equal) {
				found[service] = append(found[service], probes)
			}
		}
	}
	switch {
	case len(wanted) == 0:
	case len(services) > fewServices:
		if err := r.list(ctx, namespace, "", take); err != nil {
			return err
		}
	default:
		for _, service := range services {
			if selector, _ := r.Dataplane.Selector(service); selector != "" {
				if err := r.list(ctx, namespace, selector, take); err != nil {
					return err
				}
			}
		}
	}
	for service, probes := range found {
		slices.SortFunc(probes, model.ComparePodProbes)
		r.read[service] = podsRead{pods: hashes[service], at: r.Clock.Now()}
	}
	if r.Dataplane.SetProbes(found) {
		r.Changed()
	}
	return nil
}

// list reads pods page by page.
func (r *ProbesReconciler) list(ctx context.Context, namespace, selector string, take func(*corev1.Pod)) error {
	parsed, err := labels.Parse(selector)
	if err != nil {
		return fmt.Errorf("selector %q of pods in %s: %w", selector, namespace, err)
	}
	for next := ""; ; {
		var pods corev1.PodList
		if err := r.Direct.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: parsed},
			client.Limit(podsPage), client.Continue(next)); err != nil {
			return fmt.Errorf("read the pods in %s: %w", namespace, err)
		}
		for i := range pods.Items {
			take(&pods.Items[i])
		}
		if next = pods.Continue; next == "" {
			return nil
		}
	}
}

// podsOf are the names of the pods behind a Service, as its EndpointSlices tell
// them, with a hash that changes when others take their place.
func (r *ProbesReconciler) podsOf(ctx context.Context, service model.Key) (names []string, hash uint64, err error) {
	found, err := endpointSlices(ctx, r.Client, service)
	if err != nil {
		return nil, 0, err
	}
	sum := fnv.New64a()
	var ids []string
	for _, slice := range found {
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			terminating := endpoint.Conditions.Terminating != nil && *endpoint.Conditions.Terminating
			if ref := endpoint.TargetRef; ref != nil && ref.Kind == "Pod" && !terminating {
				names = append(names, ref.Name)
				ids = append(ids, string(ref.UID)+"/"+ref.Name)
			}
		}
	}
	slices.Sort(names)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		_, _ = sum.Write([]byte(id + "\n")) // never fails
	}
	return slices.Compact(names), sum.Sum64(), nil
}

// SetupWithManager registers the controller.
func (r *ProbesReconciler) SetupWithManager(mgr manager.Manager) error {
	later := func(object client.Object, queue probesQueue) {
		queue.AddAfter(probesRequest{Service: model.Key{
			Namespace: object.GetNamespace(), Name: object.GetLabels()[discoveryv1.LabelServiceName],
		}}, probesDelay)
	}
	endpoints := handler.TypedFuncs[client.Object, probesRequest]{
		CreateFunc: func(_ context.Context, e event.CreateEvent, queue probesQueue) { later(e.Object, queue) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, queue probesQueue) { later(e.ObjectNew, queue) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, queue probesQueue) { later(e.Object, queue) },
	}
	services := handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, client.Object) []probesRequest {
		return []probesRequest{{}}
	})
	return builder.TypedControllerManagedBy[probesRequest](mgr).
		Named("probes").
		Watches(&discoveryv1.EndpointSlice{}, endpoints).
		WatchesRawSource(source.TypedChannel(r.Built, services)).
		WithOptions(controller.TypedOptions[probesRequest]{
			MaxConcurrentReconciles: 1,
			NeedLeaderElection:      new(false),
		}).
		Complete(r)
}

type probesQueue = workqueue.TypedRateLimitingInterface[probesRequest]
