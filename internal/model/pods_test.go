package model

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

func TestPodTrouble(t *testing.T) {
	t.Parallel()
	deployment := func(conditions ...appsv1.DeploymentCondition) *appsv1.Deployment {
		return &appsv1.Deployment{Status: appsv1.DeploymentStatus{Conditions: conditions}}
	}
	refused := func(message string) *appsv1.Deployment {
		return deployment(appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: message})
	}
	stuck := deployment(appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Reason: "ProgressDeadlineExceeded"})
	pod := func(name string, containers ...corev1.ContainerStatus) *corev1.Pod {
		return &corev1.Pod{Namespace: "shop", Name: name, Status: corev1.PodStatus{ContainerStatuses: containers}}
	}
	waiting := func(name, reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{
			Name: name, Image: "example.com/" + name + ":v1",
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
		}
	}
	ended := func(container corev1.ContainerStatus, restarts int32, code int32, reason string) corev1.ContainerStatus {
		container.RestartCount = restarts
		container.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}
		return container
	}
	running := corev1.ContainerStatus{Name: "envoy", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	unschedulable := pod("a")
	unschedulable.Status.Conditions = []corev1.PodCondition{{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable",
		Message: "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
	}}
	evicted := pod("a")
	evicted.Status.Phase, evicted.Status.Reason, evicted.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: ephemeral-storage."
	leaving := pod("a", waiting("envoy", "ImagePullBackOff", ""))
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}

	const pull = `failed to pull and unpack image "example.com/envoy:v1": not found`
	noImage := &Trouble{v1alpha1.ReasonImageUnavailable, "image example.com/envoy:v1 of pod shop/a cannot be had (ErrImagePull: " + pull +
		"): correct the operator's flag --envoy-image, push the image, or let the nodes reach its registry"}
	crashing := &Trouble{
		v1alpha1.ReasonPodsCrashing,
		"container agent of pod shop/a ends again and again (exit code 1, Error): see `kubectl -n shop logs a -c agent --previous`",
	}

	for name, test := range map[string]struct {
		deployment *appsv1.Deployment
		pods       []*corev1.Pod
		want       *Trouble
	}{
		"no Deployment yet": {},
		"pods are starting": {deployment: deployment(), pods: []*corev1.Pod{pod("a", waiting("envoy", "ContainerCreating", ""))}},
		"pods run":          {deployment: deployment(), pods: []*corev1.Pod{pod("a", running)}},
		"no pods are wanted": {
			deployment: &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: new(int32(0))}},
			want:       &Trouble{v1alpha1.ReasonNoGatewayPods, "Gateway shop/edge is to have no pods: set replicas in its GatewayConfig to 1 or more"},
		},
		"a quota is used up": {
			deployment: refused(`pods "edge-meshroute-5d8-x7k2p" is forbidden: exceeded quota: small, requested: cpu=110m, used: cpu=1, limited: cpu=1`),
			want: &Trouble{v1alpha1.ReasonPodsForbidden, "the pods of Gateway shop/edge are refused: exceeded quota: small, requested: cpu=110m, used: cpu=1, limited: cpu=1" +
				": raise the quota, or lower replicas or resources in the GatewayConfig"},
		},
		"a quota asks for limits": {
			deployment: refused(`pods "edge-meshroute-5d8-x7k2p" is forbidden: failed quota: small: must specify limits.cpu for: agent,envoy`),
			want: &Trouble{v1alpha1.ReasonPodsForbidden, "the pods of Gateway shop/edge are refused: failed quota: small: must specify limits.cpu for: agent,envoy" +
				": set in the GatewayConfig the resources that the quota asks for"},
		},
		"a webhook refuses": {
			deployment: refused(`admission webhook "images.example.com" denied the request: unsigned`),
			want: &Trouble{v1alpha1.ReasonPodsForbidden, `the pods of Gateway shop/edge are refused: admission webhook "images.example.com" denied the request: unsigned` +
				": allow them in this namespace"},
		},
		"no node fits": {
			deployment: deployment(), pods: []*corev1.Pod{unschedulable},
			want: &Trouble{v1alpha1.ReasonPodsUnschedulable, "no node takes pod shop/a: Unschedulable: 0/2 nodes are available: 2 Insufficient memory" +
				": make room, add a node, or change resources or placement in the GatewayConfig"},
		},
		"an image cannot be pulled":         {deployment: deployment(), pods: []*corev1.Pod{pod("a", waiting("envoy", "ErrImagePull", pull))}, want: noImage},
		"the same, between two attempts":    {deployment: deployment(), pods: []*corev1.Pod{pod("a", waiting("envoy", "ImagePullBackOff", `Back-off pulling image "example.com/envoy:v1": ErrImagePull: `+pull))}, want: noImage},
		"the same, after the deadline":      {deployment: stuck, pods: []*corev1.Pod{pod("a", waiting("envoy", "ErrImagePull", pull))}, want: noImage},
		"a container crashes":               {deployment: deployment(), pods: []*corev1.Pod{pod("a", ended(waiting("agent", "CrashLoopBackOff", "back-off 5m0s"), 7, 1, "Error"))}, want: crashing},
		"the same, while it is tried again": {deployment: deployment(), pods: []*corev1.Pod{pod("a", ended(corev1.ContainerStatus{Name: "agent", State: running.State}, 8, 1, "Error"))}, want: crashing},
		"a container was restarted, and runs": {
			deployment: deployment(),
			pods:       []*corev1.Pod{pod("a", ended(corev1.ContainerStatus{Name: "agent", State: running.State, Ready: true}, 8, 1, "Error"))},
		},
		"a container needs more memory": {
			deployment: deployment(), pods: []*corev1.Pod{pod("a", ended(waiting("envoy", "CrashLoopBackOff", ""), 2, 137, "OOMKilled"))},
			want: &Trouble{v1alpha1.ReasonPodsCrashing, "container envoy of pod shop/a ends again and again (exit code 137, OOMKilled): raise its memory limit in the GatewayConfig"},
		},
		"a container cannot be made": {
			deployment: deployment(), pods: []*corev1.Pod{pod("a", waiting("envoy", "CreateContainerConfigError", `configmap "edge" not found`))},
			want: &Trouble{v1alpha1.ReasonPodsNotRunning, "container envoy of pod shop/a cannot be started (CreateContainerConfigError: configmap \"edge\" not found)" +
				": see `kubectl -n shop describe pod a`"},
		},
		"of several pods, the first by name that has something to tell": {
			deployment: deployment(),
			pods:       []*corev1.Pod{pod("c", waiting("envoy", "CrashLoopBackOff", "")), pod("a", waiting("envoy", "ErrImagePull", pull)), pod("0", running)},
			want:       noImage,
		},
		"a pod that is leaving does not count": {deployment: deployment(), pods: []*corev1.Pod{leaving, pod("b", running)}},
		"an evicted pod that was replaced":     {deployment: deployment(), pods: []*corev1.Pod{evicted, pod("b", running)}},
		"evicted pods alone": {
			deployment: deployment(), pods: []*corev1.Pod{evicted},
			want: &Trouble{v1alpha1.ReasonPodsNotRunning, "pod shop/a was ended (Evicted: The node was low on resource: ephemeral-storage.)" +
				": its node has too little of what it needs: see `kubectl -n shop describe pod a`"},
		},
		"not ready in time, and nobody knows why": {
			deployment: stuck, pods: []*corev1.Pod{pod("a", running)},
			want: &Trouble{v1alpha1.ReasonPodsNotRunning, "pods of Gateway shop/edge do not become ready" +
				": see `kubectl -n shop describe pods --selector gateway.networking.k8s.io/gateway-name=edge`"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(test.want, PodTrouble(Key{"shop", "edge"}, test.deployment, test.pods)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// That near endpoints are not preferred is told of routes that lead to a Service
// which asks for it, and only there.
func TestPodsWithoutZones(t *testing.T) {
	t.Parallel()
	pod := func(name, node, zone string) *corev1.Pod {
		made := &corev1.Pod{Namespace: "infra", Name: name, Spec: corev1.PodSpec{NodeName: node}}
		if zone != "" {
			made.Labels = map[string]string{corev1.LabelTopologyZone: zone}
		}
		return made
	}
	leaving := pod("edge-0", "one", "")
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	const serving = "Ready=True Ready: serving"
	for name, test := range map[string]struct {
		pods   []*corev1.Pod
		prefer bool
		want   string
	}{
		"all have one": {pods: []*corev1.Pod{pod("edge-1", "one", "a"), pod("edge-2", "two", "b")}, prefer: true, want: serving},
		"one has none": {pods: []*corev1.Pod{pod("edge-3", "one", ""), pod("edge-1", "one", "a"), pod("edge-2", "two", "")}, prefer: true, want: serving +
			"; Service shop/web has a trafficDistribution, and pod infra/edge-2 of the gateway no label topology.kubernetes.io/zone, so it prefers no endpoints" +
			": see that its node has that label (Kubernetes copies it to new pods since 1.35)"},
		"nobody wants to know":     {pods: []*corev1.Pod{pod("edge-1", "one", "")}, want: serving},
		"one that is leaving":      {pods: []*corev1.Pod{leaving, pod("edge-1", "one", "a")}, prefer: true, want: serving},
		"one that has no node yet": {pods: []*corev1.Pod{pod("edge-1", "", "")}, prefer: true, want: serving},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			route, gateway := Key{"shop", "web"}, Key{"infra", "edge"}
			accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "attached")
			out := Observe(Result{Routes: []*RouteStatus{{
				Key:      route,
				Backends: []BackendStatus{{Service: Key{"shop", "web"}, Port: "80", Cluster: &Cluster{Name: "web", PreferZone: test.prefer}}},
				Parents:  []ParentStatus{{Gateway: &gateway, Conditions: []metav1.Condition{accepted}}},
			}}}, Observations{
				Endpoints:     map[string]EndpointSet{"web": {Serving: []Endpoint{{Address: "10.0.0.1", Port: 80}}}},
				RouteProgress: func(Key, Key) Progress { return Progress{Pods: 1, Acknowledged: 1} },
				Workloads:     map[Key]Workload{gateway: {Zoneless: Zoneless(test.pods)}},
			})
			if diff := cmp.Diff([]string{test.want}, lines(t, 0, out.MeshRoutes[route].Conditions)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
