package integration_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("Statuses", Label("status"), func() {
	DescribeTable("of a route that cannot be served tell why and what to do",
		func(ctx SpecContext, change func(namespace string, route *v1alpha1.ServiceRoute), kind, prefix, todo string) {
			namespace := newNamespace(ctx)
			route := harness.Route(namespace, "r", hostOf(namespace), "app", harness.Parent("default", "main"))
			create(ctx, harness.Service(namespace, "app"))
			change(namespace, route)
			create(ctx, route)
			Eventually(routeCondition(ctx, route, kind)).Should(SatisfyAll(HavePrefix(prefix), ContainSubstring(todo)))
			Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(ContainSubstring(todo))
			Eventually(meshRoute(ctx, route)).Should(HaveField("Conditions", ContainElement(HaveField("Message", ContainSubstring(todo)))))
		},
		Entry("Service missing", func(_ string, r *v1alpha1.ServiceRoute) { r.Spec.Rules[0].Backends[0].Name = "none" },
			"ResolvedRefs", "False BackendNotFound:", "does not exist: create it or correct the backend's name"),
		Entry("port missing, by number", func(_ string, r *v1alpha1.ServiceRoute) {
			r.Spec.Rules[0].Backends[0].Port = intstr.FromInt32(81)
		}, "ResolvedRefs", "False PortNotFound:", "it has 80 (http)"),
		Entry("port missing, by name", func(_ string, r *v1alpha1.ServiceRoute) {
			r.Spec.Rules[0].Backends[0].Port = intstr.FromString("https")
		}, "ResolvedRefs", "False PortNotFound:", "correct the backend's port"),
		Entry("Gateway missing", func(_ string, r *v1alpha1.ServiceRoute) { r.Spec.ParentRefs[0].Name = "none" },
			"Accepted", "False GatewayNotFound:", "create it or correct parentRefs"),
		Entry("listener missing", func(_ string, r *v1alpha1.ServiceRoute) {
			r.Spec.ParentRefs[0].SectionName = new(gatewayv1.SectionName("none"))
		}, "Accepted", "False NoMatchingParent:", "correct sectionName or port"),
	)

	It("tell of a Gateway whose class does not exist", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, harness.Gateway(namespace, "orphan", "none", port+3))
		route := harness.Route(namespace, "r", hostOf(namespace), "app", harness.Parent(namespace, "orphan"))
		create(ctx, route)
		Eventually(routeCondition(ctx, route, "Accepted")).Should(
			SatisfyAll(HavePrefix("False GatewayClassNotFound:"), ContainSubstring(`GatewayClass "none", which does not exist`)))
	})

	It("of Gateways and their listeners follow Gateway API", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		gw := harness.Gateway(namespace, "odd", class, port+4)
		gw.Spec.Listeners = append(gw.Spec.Listeners, gatewayv1.Listener{Name: "tcp", Protocol: gatewayv1.TCPProtocolType, Port: 9})
		create(ctx, gw)
		Eventually(func() (gatewayv1.GatewayStatus, error) {
			err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(gw), gw)
			return gw.Status, err
		}).Should(SatisfyAll(
			HaveField("Conditions", ContainElement(SatisfyAll(HaveField("Type", "Accepted"), HaveField("Reason", "ListenersNotValid"), HaveField("Status", metav1.ConditionTrue)))),
			HaveField("Conditions", ContainElement(SatisfyAll(HaveField("Type", "Programmed"), HaveField("Reason", "NoGatewayPods")))),
			HaveField("Listeners", ContainElement(SatisfyAll(HaveField("Name", gatewayv1.SectionName("tcp")),
				HaveField("Conditions", ContainElement(HaveField("Reason", "UnsupportedProtocol")))))),
		))
		var main gatewayv1.Gateway
		Eventually(func() (string, error) {
			err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "main"}, &main)
			return condition(main.Status.Conditions, "Programmed"), err
		}).Should(HavePrefix("True Programmed:"))
		var gatewayClass gatewayv1.GatewayClass
		Expect(cluster.Client.Get(ctx, client.ObjectKey{Name: class}, &gatewayClass)).To(Succeed())
		Expect(condition(gatewayClass.Status.Conditions, "Accepted")).To(HavePrefix("True Accepted:"))
	})

	It("are what kubectl shows, for each route and for the namespace", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		good := harness.Route(namespace, "good", host, "app", harness.Parent("default", "main"))
		bad := harness.Route(namespace, "bad", "bad."+host, "none", harness.Parent("default", "main"))
		create(ctx, harness.Service(namespace, "app"), harness.Endpoints(namespace, "app", backend("app", nil)), good, bad)
		Eventually(func() (string, error) {
			table, err := cluster.Kubectl(ctx, "-n", namespace, "get", "meshroutes")
			lines := strings.Split(table, "\n")
			for i := range lines {
				lines[i] = strings.Join(strings.Fields(lines[i]), " ")
			}
			return strings.Join(lines, "\n"), err
		}).Should(SatisfyAll(
			HavePrefix("NAME HOSTS READY PROGRAMMED ENDPOINTS MESSAGE AGE\n"),
			ContainSubstring("\ngood "+host+" True 1/1 1/1 serving "),
			ContainSubstring("\nbad bad."+host+" False 1/1 0/0 rule \"all\": Service "+namespace+"/none does not exist"),
		))
		table, err := cluster.Kubectl(ctx, "-n", namespace, "get", "meshroutes", "status")
		Expect(err).NotTo(HaveOccurred())
		Expect(table).To(ContainSubstring("1 of 2 routes ready; not ready: bad"))
		_, err = cluster.Kubectl(ctx, "-n", namespace, "get", "mr,sr,gwc")
		Expect(err).NotTo(HaveOccurred())

		By("vanishing with the route")
		Expect(cluster.Client.Delete(ctx, bad)).To(Succeed())
		Eventually(func() (string, error) { return cluster.Kubectl(ctx, "-n", namespace, "get", "meshroutes") }).Should(
			SatisfyAll(Not(ContainSubstring("bad")), ContainSubstring("1 of 1 routes ready")))
	})
})

var _ = Describe("The objects of a gateway", Label("workload"), func() {
	name := client.ObjectKey{Namespace: "default", Name: "main-" + class}

	It("are there, owned by the Gateway, and fit for Pod Security restricted", func(ctx SpecContext) {
		for _, object := range []client.Object{
			&appsv1.Deployment{}, &corev1.Service{}, &corev1.ServiceAccount{}, &corev1.ConfigMap{}, &policyv1.PodDisruptionBudget{},
		} {
			Expect(cluster.Client.Get(ctx, name, object)).To(Succeed())
			Expect(object.GetOwnerReferences()).To(ConsistOf(SatisfyAll(HaveField("Kind", "Gateway"), HaveField("Name", "main"))))
			Expect(object.GetLabels()).To(HaveKeyWithValue("gateway.networking.k8s.io/gateway-name", "main"))
		}
		var deployment appsv1.Deployment
		Expect(cluster.Client.Get(ctx, name, &deployment)).To(Succeed())
		restricted := &corev1.Namespace{
			GenerateName: "restricted-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
		}
		create(ctx, restricted)
		sample := &corev1.Pod{Namespace: restricted.Name, Name: "p", Spec: deployment.Spec.Template.Spec}
		Expect(cluster.Client.Create(ctx, sample, client.DryRunAll)).To(Succeed())
	})

	It("are mended when somebody changes them, and follow their GatewayConfig", func(ctx SpecContext) {
		var deployment appsv1.Deployment
		Expect(cluster.Client.Get(ctx, name, &deployment)).To(Succeed())
		change(ctx, &deployment, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "else" })
		Eventually(func() (string, error) {
			err := cluster.Client.Get(ctx, name, &deployment)
			return deployment.Spec.Template.Spec.Containers[0].Image, err
		}).ShouldNot(Equal("else"))

		namespace := newNamespace(ctx)
		config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "big"}
		config.Spec.Replicas = new(int32(3))
		config.Spec.ServiceType = new(corev1.ServiceTypeNodePort)
		config.Spec.Ports = []v1alpha1.GatewayPort{{Port: 80, NodePort: new(int32(30088))}}
		gw := harness.Gateway(namespace, "big", class, 80)
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			Labels:        map[gatewayv1.LabelKey]gatewayv1.LabelValue{"team": "edge"},
			ParametersRef: &gatewayv1.LocalParametersReference{Group: "meshroute.io", Kind: "GatewayConfig", Name: "big"},
		}
		create(ctx, gw)
		Eventually(func() (string, error) {
			err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(gw), gw)
			return condition(gw.Status.Conditions, "Accepted"), err
		}).Should(SatisfyAll(HavePrefix("False InvalidParameters:"), ContainSubstring("GatewayConfig "+namespace+"/big does not exist")))
		create(ctx, config)
		own := client.ObjectKey{Namespace: namespace, Name: "big-" + class}
		Eventually(func() error { return cluster.Client.Get(ctx, own, &deployment) }).Should(Succeed())
		Expect(*deployment.Spec.Replicas).To(Equal(int32(3)))
		Expect(deployment.Labels).To(HaveKeyWithValue("team", "edge"))
		var service corev1.Service
		Eventually(func() error { return cluster.Client.Get(ctx, own, &service) }).Should(Succeed())
		Expect(service.Spec.Ports).To(ConsistOf(SatisfyAll(HaveField("Port", int32(80)), HaveField("NodePort", int32(30088)),
			HaveField("TargetPort", intstr.FromInt32(10080)))))
	})

	It("leave the number of pods to an autoscaler, and take it back, without a jump", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "own"}
		config.Spec.Replicas = new(int32(3))
		gw := harness.Gateway(namespace, "scaled", class, 80)
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			ParametersRef: &gatewayv1.LocalParametersReference{Group: "meshroute.io", Kind: "GatewayConfig", Name: "own"},
		}
		changes, err := cluster.Client.Watch(ctx, &appsv1.DeploymentList{}, client.InNamespace(namespace))
		Expect(err).NotTo(HaveOccurred())
		var seen []int32 // every number of pods there ever was, once in a row
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for change := range changes.ResultChan() {
				deployment, is := change.Object.(*appsv1.Deployment)
				if !is {
					return // the watch has ended
				}
				if replicas := *deployment.Spec.Replicas; len(seen) == 0 || seen[len(seen)-1] != replicas {
					seen = append(seen, replicas)
				}
			}
		}()

		create(ctx, config, gw)
		own := client.ObjectKey{Namespace: namespace, Name: "scaled-" + class}
		var deployment appsv1.Deployment
		Eventually(func() error { return cluster.Client.Get(ctx, own, &deployment) }).Should(Succeed())

		change(ctx, config, func(c *v1alpha1.GatewayConfig) {
			c.Spec.Replicas, c.Spec.Autoscaling = nil, &v1alpha1.Autoscaling{MaxReplicas: 8}
		})
		var autoscaler autoscalingv2.HorizontalPodAutoscaler
		Eventually(func() error { return cluster.Client.Get(ctx, own, &autoscaler) }).Should(Succeed())
		Expect(*autoscaler.Spec.MinReplicas).To(Equal(int32(2)))
		Expect(autoscaler.Spec.MaxReplicas).To(Equal(int32(8)))

		// As an autoscaler does it.
		Expect(cluster.Client.SubResource("scale").Update(ctx, &deployment, client.WithSubResourceBody(
			&autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 5}}))).To(Succeed())
		change(ctx, config, func(c *v1alpha1.GatewayConfig) { c.Spec.NodeSelector = map[string]string{"pool": "edge"} })
		Eventually(func() (map[string]string, error) {
			err := cluster.Client.Get(ctx, own, &deployment)
			return deployment.Spec.Template.Spec.NodeSelector, err
		}).Should(HaveKeyWithValue("pool", "edge"))

		change(ctx, config, func(c *v1alpha1.GatewayConfig) { c.Spec.Replicas, c.Spec.Autoscaling = new(int32(4)), nil })
		Eventually(func() (int32, error) {
			err := cluster.Client.Get(ctx, own, &deployment)
			return *deployment.Spec.Replicas, err
		}).Should(Equal(int32(4)))
		Expect(apierrors.IsNotFound(cluster.Client.Get(ctx, own, &autoscaler))).To(BeTrue(), "the autoscaler is gone")
		changes.Stop()
		<-watched
		Expect(seen).To(Equal([]int32{3, 5, 4}))
	})

	It("go when the Gateway's class becomes another, and are made anew under the new name", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		second, foreign := harness.GatewayClass(namespace), harness.GatewayClass(namespace+"-foreign")
		foreign.Spec.ControllerName = "example.com/another"
		for _, object := range []client.Object{second, foreign} {
			create(ctx, object)
			DeferCleanup(func(ctx SpecContext) { Expect(cluster.Client.Delete(ctx, object)).To(Succeed()) })
		}
		made := func() []string {
			GinkgoHelper()
			var names []string
			for _, list := range []client.ObjectList{
				&appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.ConfigMapList{}, &policyv1.PodDisruptionBudgetList{},
			} {
				Expect(cluster.Client.List(ctx, list, client.InNamespace(namespace))).To(Succeed())
				Expect(meta.EachListItem(list, func(item runtime.Object) error {
					names = append(names, item.(client.Object).GetName())
					return nil
				})).To(Succeed())
			}
			slices.Sort(names)
			return names
		}
		users := &corev1.ConfigMap{Namespace: namespace, Name: "users"}
		gw := harness.Gateway(namespace, "edge", class, 80)
		create(ctx, users, gw)
		five := func(name string) []string { return append(slices.Repeat([]string{name}, 5), "users") }
		Eventually(made).Should(Equal(five("edge-" + class)))
		change(ctx, gw, func(gw *gatewayv1.Gateway) { gw.Spec.GatewayClassName = gatewayv1.ObjectName(second.Name) })
		Eventually(made).Should(Equal(five("edge-" + second.Name)))
		change(ctx, gw, func(gw *gatewayv1.Gateway) { gw.Spec.GatewayClassName = gatewayv1.ObjectName(foreign.Name) })
		Eventually(made).Should(Equal([]string{"users"}))
	})

	It("cost nothing while nothing changes: no write to the API, no push to Envoy", func(ctx SpecContext) {
		// Events that change nothing are asked for; the rest is silence.
		// What specs before have left is written within seconds, that of a spec
		// which restarts the manager included: quiet is who wrote nothing for a
		// while.
		count, quiet := len(writes()), 0
		Eventually(func() int {
			before := count
			if count = len(writes()); count != before {
				quiet = 0
			} else {
				quiet++
			}
			return quiet
		}).WithTimeout(time.Minute).WithPolling(time.Second).Should(BeNumerically(">=", 6))
		pushes := func() (map[string]string, error) {
			return pod.Stat("cluster_manager.cds.update_attempt", "listener_manager.lds.update_attempt", fmt.Sprintf("http.port-%d.scoped_rds.scopes.update_attempt", port))
		}
		updates, err := pushes()
		Expect(err).NotTo(HaveOccurred())
		Expect(updates).To(HaveLen(3))

		main := harness.Gateway("default", "main", class, port)
		change(ctx, main, func(gw *gatewayv1.Gateway) { gw.Annotations = map[string]string{"note": time.Now().String()} })
		Consistently(func() []string { return writes()[count:] }).WithTimeout(4 * time.Second).WithPolling(time.Second).Should(BeEmpty())
		Expect(pushes()).To(Equal(updates))
	})
})

var _ = Describe("A gateway that cannot run", Label("status", "workload"), func() {
	var namespace string
	var gw *gatewayv1.Gateway
	var name client.ObjectKey
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		gw = harness.Gateway(namespace, "edge", class, 80)
		name = client.ObjectKey{Namespace: namespace, Name: "edge-" + class}
	})
	programmed := func(ctx SpecContext, gw *gatewayv1.Gateway) func() (string, error) {
		return func() (string, error) {
			err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(gw), gw)
			return condition(gw.Status.Conditions, "Programmed"), err
		}
	}
	deployed := func(ctx SpecContext) *appsv1.Deployment {
		GinkgoHelper()
		deployment := &appsv1.Deployment{}
		Eventually(func() error { return cluster.Client.Get(ctx, name, deployment) }).Should(Succeed())
		return deployment
	}

	It("says that its pods are refused, and why", func(ctx SpecContext) {
		create(ctx, gw)
		deployment := deployed(ctx)
		deployment.Status.Conditions = []appsv1.DeploymentCondition{{
			Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate",
			Message: `pods "edge-meshroute-1-2" is forbidden: exceeded quota: small, requested: cpu=110m, used: cpu=0, limited: cpu=1m`,
		}}
		Expect(cluster.Client.Status().Update(ctx, deployment)).To(Succeed())
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False PodsForbidden:"),
			ContainSubstring("exceeded quota: small, requested: cpu=110m"), ContainSubstring("raise the quota")))
	})

	It("says why its pods do not run, also to its routes, and is silent when they do", func(ctx SpecContext) {
		route := harness.Route(namespace, "r", hostOf(namespace), "app", harness.Parent(namespace, "edge"))
		create(ctx, gw, harness.Service(namespace, "app"), route)
		template := deployed(ctx).Spec.Template
		pod := &corev1.Pod{Namespace: namespace, Name: "edge-0", Labels: template.Labels, Spec: template.Spec}
		create(ctx, pod)
		pod.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes are available: 1 Insufficient cpu.",
		}}
		Expect(cluster.Client.Status().Update(ctx, pod)).To(Succeed())
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False PodsUnschedulable:"), ContainSubstring("1 Insufficient cpu")))

		pod.Status.Conditions = nil
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: "envoy", Image: "example.com/no:v1",
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}},
		}}
		Expect(cluster.Client.Status().Update(ctx, pod)).To(Succeed())
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False ImageUnavailable:"), ContainSubstring("example.com/no:v1")))
		Eventually(routeCondition(ctx, route, "Programmed")).Should(HavePrefix("False ImageUnavailable:"))
		Eventually(meshRoute(ctx, route)).Should(HaveField("Conditions", ContainElement(HaveField("Message", ContainSubstring("--envoy-image")))))

		pod.Status.ContainerStatuses = nil
		Expect(cluster.Client.Status().Update(ctx, pod)).To(Succeed())
		Eventually(programmed(ctx, gw)).Should(HavePrefix("False NoGatewayPods:"))
	})

	It("says that a quota refuses its Service, and starts when there is room", func(ctx SpecContext) {
		quota := &corev1.ResourceQuota{Namespace: namespace, Name: "none"}
		quota.Spec.Hard = corev1.ResourceList{"services": resource.MustParse("0")}
		create(ctx, quota)
		// What a controller does in a cluster.
		quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: quota.Spec.Hard}
		Expect(cluster.Client.Status().Update(ctx, quota)).To(Succeed())
		create(ctx, gw)
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False ObjectRefused:"),
			ContainSubstring("Service "+name.String()), ContainSubstring("exceeded quota: none"), ContainSubstring("raise the quota")))
		deployed(ctx) // what is not refused is there
		Expect(cluster.Client.Delete(ctx, quota)).To(Succeed())
		Eventually(programmed(ctx, gw)).WithTimeout(40 * time.Second).Should(HavePrefix("False NoGatewayPods:"))
		Expect(cluster.Client.Get(ctx, name, &corev1.Service{})).To(Succeed())
	})

	It("says that its nodePort is taken, and follows when another is chosen", func(ctx SpecContext) {
		config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "edge"}
		config.Spec.ServiceType = new(corev1.ServiceTypeNodePort)
		config.Spec.Ports = []v1alpha1.GatewayPort{{Port: 80, NodePort: new(int32(30077))}}
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			ParametersRef: &gatewayv1.LocalParametersReference{Group: "meshroute.io", Kind: "GatewayConfig", Name: "edge"},
		}
		taken := harness.Service(namespace, "taken")
		taken.Spec.Type = corev1.ServiceTypeNodePort
		taken.Spec.Ports[0].NodePort = 30077
		create(ctx, taken, config, gw)
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False ObjectRefused:"),
			ContainSubstring("30077"), ContainSubstring("choose another nodePort in the GatewayConfig")))
		change(ctx, config, func(c *v1alpha1.GatewayConfig) { c.Spec.Ports[0].NodePort = new(int32(30078)) })
		Eventually(programmed(ctx, gw)).Should(HavePrefix("False NoGatewayPods:"))
	})

	It("leaves an object alone that has the name of one of its own", func(ctx SpecContext) {
		users := &corev1.ConfigMap{Namespace: namespace, Name: name.Name, Data: map[string]string{"envoy.json": "mine"}}
		create(ctx, users, gw)
		Eventually(programmed(ctx, gw)).Should(SatisfyAll(HavePrefix("False NameTaken:"),
			ContainSubstring("ConfigMap "+name.String()+" exists and is not this Gateway's"), ContainSubstring("choose another name")))
		Expect(cluster.Client.Get(ctx, name, users)).To(Succeed())
		Expect(users.Data).To(Equal(map[string]string{"envoy.json": "mine"}))
		Expect(users.Labels).To(BeEmpty())
	})

	It("leaves those of another Gateway alone that come to the same names", func(ctx SpecContext) {
		longer := harness.GatewayClass("b-" + class)
		create(ctx, longer, gw)
		DeferCleanup(func(ctx SpecContext) { Expect(cluster.Client.Delete(ctx, longer)).To(Succeed()) })
		first := harness.Gateway(namespace, "a-b", class, 80)
		create(ctx, first)
		name = client.ObjectKey{Namespace: namespace, Name: "a-b-" + class}
		before := deployed(ctx)
		second := harness.Gateway(namespace, "a", longer.Name, 81)
		create(ctx, second)
		Eventually(programmed(ctx, second)).Should(HavePrefix("False NameTaken:"))
		Expect(deployed(ctx).Generation).To(Equal(before.Generation))
		Eventually(programmed(ctx, first)).Should(HavePrefix("False NoGatewayPods:"))
	})
})

// writes are what the operator has written to the API so far, from the API
// server's audit log.
func writes() []string {
	GinkgoHelper()
	content, err := os.ReadFile(cluster.AuditLog)
	Expect(err).NotTo(HaveOccurred())
	var found []string
	for line := range strings.Lines(string(content)) {
		var event struct {
			Verb, RequestURI string
			User             struct{ Username string }
			UserAgent        string
		}
		if json.Unmarshal([]byte(line), &event) == nil && strings.HasPrefix(event.UserAgent, "manager/") &&
			event.Verb != "get" && event.Verb != "list" && event.Verb != "watch" {
			found = append(found, event.Verb+" "+event.RequestURI)
		}
	}
	return found
}
