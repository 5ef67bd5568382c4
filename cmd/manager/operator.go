package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/controllers"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/report"
	"meshroute.io/meshroute/internal/workload"
	"meshroute.io/meshroute/internal/xds"
)

type operatorOptions struct {
	namespace   string
	service     string
	xdsBind     string
	certBind    string
	probeBind   string
	metricsBind string
	pprofBind   string
	// watchNamespaces are the namespaces that are served; all where empty.
	watchNamespaces []string

	leaderElection bool
	podName        string
	podIP          string
	podIPs         []string
	envoyImage     string
	agentImage     string
}

func operatorCommand() *cobra.Command {
	var options operatorOptions
	command := newCommand("manager", "meshroute's operator", func(command *cobra.Command) error {
		return runOperator(command.Context(), options)
	})
	command.Long = "Runs gateways as routes say. The API server is found by --kubeconfig, the variable KUBECONFIG, or the pod's own service account."
	flags := command.Flags()
	flags.AddGoFlag(flag.Lookup("kubeconfig")) // controller-runtime's
	flags.StringVar(&options.namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), "meshroute-system"), "namespace that the operator runs in")
	flags.StringVar(&options.service, "service", "", "host by which agents reach this operator (default meshroute-manager.<namespace>.svc)")
	flags.StringVar(&options.xdsBind, "xds-bind-address", ":18000", "where agents get configuration, over mutual TLS")
	flags.StringVar(&options.certBind, "certificate-bind-address", ":18001", "where agents get their certificates")
	flags.StringVar(&options.probeBind, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served")
	flags.StringVar(&options.metricsBind, "metrics-bind-address", ":8443", "where metrics are served, over TLS, to who may get /metrics; 0 is nowhere")
	flags.StringVar(&options.pprofBind, "pprof-bind-address", "", "where profiles are served, without authentication; empty is nowhere")
	flags.StringSliceVar(&options.watchNamespaces, "watch-namespaces", nil, "serve Gateways, routes and Services of these namespaces alone, where the operator may read no others")
	flags.BoolVar(&options.leaderElection, "leader-elect", false, "let one replica of several write to the API")
	flags.StringVar(&options.podName, "pod-name", os.Getenv("POD_NAME"), "name of this replica, with --leader-elect")
	flags.StringVar(&options.podIP, "pod-ip", os.Getenv("POD_IP"), "address of this replica, at which agents report to it while it leads, with --leader-elect")
	flags.StringSliceVar(&options.podIPs, "pod-ips", strings.Split(os.Getenv("POD_IPS"), ","), "all addresses of this replica: with an IPv6 address among them, gateways listen on IPv6, too, for their pods have such addresses as well")
	flags.StringVar(&options.envoyImage, "envoy-image", "envoyproxy/envoy:distroless-v1.40.0", "image of gateways' Envoy")
	flags.StringVar(&options.agentImage, "agent-image", "meshroute:latest", "image of gateways' agent, usually the operator's own")
	return command
}

// newScheme knows the kinds that the operator works with. ReferenceGrants are the
// same in both of their versions, and are read in the one that is served.
func newScheme(grants schema.GroupVersion) (*runtime.Scheme, error) {
	scheme, gateways := runtime.NewScheme(), schema.GroupVersion(gatewayv1.GroupVersion)
	scheme.AddKnownTypes(gateways,
		&gatewayv1.GatewayClass{}, &gatewayv1.GatewayClassList{}, &gatewayv1.Gateway{}, &gatewayv1.GatewayList{})
	scheme.AddKnownTypes(grants, &gatewayv1.ReferenceGrant{}, &gatewayv1.ReferenceGrantList{})
	metav1.AddToGroupVersion(scheme, gateways)
	metav1.AddToGroupVersion(scheme, grants)
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

func runOperator(ctx context.Context, options operatorOptions) error {
	go keepMemorySmall(ctx)
	options.service = cmp.Or(options.service, "meshroute-manager."+options.namespace+".svc")
	log := ctrl.Log.WithName("operator")
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	// The API server has its own means against too many requests (priority and
	// fairness); a limit here only makes statuses late.
	config.QPS = -1
	grants, err := awaitKinds(ctx, config, options.probeBind)
	if err != nil {
		return err
	}
	scheme, err := newScheme(grants)
	if err != nil {
		return err
	}
	toStatus, toGateways, toPolicies := make(chan event.GenericEvent, 1), make(chan event.GenericEvent, 1), make(chan event.GenericEvent, 1)
	toProbes := make(chan event.GenericEvent, 1)
	toRefusals := make(chan event.GenericEvent, 1)
	statusChanged, gatewaysChanged := func() { ring(toStatus) }, func() { ring(toGateways) }
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	secrets, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	authority, err := controllers.LoadAuthority(ctx, direct, options.namespace, clock.RealClock{}, gatewaysChanged)
	if err != nil {
		return err
	}

	managerOptions := ctrl.Options{
		Scheme:                 scheme,
		HealthProbeBindAddress: options.probeBind,
		Metrics:                metricsOptions(options, authority.Authority),
		PprofBindAddress:       options.pprofBind,
		Cache:                  cacheOptions(options.watchNamespaces),
	}
	leader, err := elect(&managerOptions, config, options)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, managerOptions)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}

	server := xds.NewServer(peer, ctrl.Log.WithName("xds"))
	acked := make(chan xds.Gateway, 64) // for metrics: one that is lost is caught up with by the next
	server.OnAcks = func(gateway xds.Gateway) {
		ring(toRefusals)
		statusChanged()
		select {
		case acked <- gateway:
		default:
		}
	}
	plane := dataplane.New(server, &dataplane.PolicyNames{
		Gateway: workload.PolicyKey, Egress: workload.EgressKey, Isolation: workload.IsolationKey, Pods: workload.Pods,
	})
	plane.Version = version + ", " + options.envoyImage

	built := make(chan struct{})
	gateways := &controllers.GatewayReconciler{
		Client: mgr.GetClient(), Direct: direct, Dataplane: plane, Changed: toGateways, RefusalChanged: statusChanged,
		Clock: clock.RealClock{},
	}
	xdsPort, certPort := portOf(options.xdsBind), portOf(options.certBind)
	managerPorts, err := portNumbers(xdsPort, certPort)
	if err != nil {
		return err
	}
	var probePort int32 // 0 where nothing is served
	if numbers, err := portNumbers(portOf(options.probeBind)); err == nil {
		probePort = numbers[0]
	}
	for _, setup := range []func() error{
		func() error {
			return (&controllers.DataplaneReconciler{
				Client: mgr.GetClient(), Direct: direct, Dataplane: plane, Built: built, Clock: clock.RealClock{},
				Certificates: controllers.NewCertificates(secrets),
				IPv6:         slices.ContainsFunc(options.podIPs, isIPv6),
				Changed:      func() { ring(toPolicies); ring(toProbes); ring(toRefusals); statusChanged(); gatewaysChanged() },
			}).SetupWithManager(ctx, mgr)
		},
		func() error {
			return (&controllers.ProbesReconciler{
				Client: mgr.GetClient(), Direct: direct, Dataplane: plane, Clock: clock.RealClock{},
				Built: toProbes, Changed: statusChanged,
			}).SetupWithManager(mgr)
		},
		func() error {
			gateways.Options = func() workload.Options {
				return workload.Options{
					EnvoyImage: options.envoyImage, AgentImage: options.agentImage,
					XDSAddress:     net.JoinHostPort(options.service, xdsPort),
					CertificateURL: "https://" + net.JoinHostPort(options.service, certPort),
					ServerName:     options.service,
					Roots:          string(authority.RootsPEM()),

					ManagerNamespace: options.namespace,
					ManagerPorts:     managerPorts,
					ManagerProbePort: probePort,
				}
			}
			return gateways.SetupWithManager(mgr)
		},
		func() error {
			return (&controllers.NetworkPolicyReconciler{
				Client: mgr.GetClient(), Direct: direct, Dataplane: plane, Changed: toPolicies, RefusalChanged: statusChanged,
				Clock: clock.RealClock{},
			}).SetupWithManager(mgr)
		},
		func() error {
			return (&controllers.RefusalReconciler{
				Client: mgr.GetClient(), Dataplane: plane, Changed: toRefusals, Clock: clock.RealClock{},
			}).SetupWithManager(mgr)
		},
		func() error {
			return (&controllers.StatusReconciler{
				Client: mgr.GetClient(), Dataplane: plane, Refusal: gateways.Refusal, Built: built, Changed: toStatus, Clock: clock.RealClock{},
			}).SetupWithManager(mgr)
		},
		func() error { return mgr.Add(authority) },
		func() error {
			return errors.Join(controllers.RegisterMetrics(plane), mgr.Add(everyReplica(func(ctx context.Context) error {
				for {
					select {
					case gateway := <-acked:
						controllers.ObserveAcknowledged(plane, model.Key(gateway), time.Now())
					case <-ctx.Done():
						return nil
					}
				}
			})))
		},
		func() error {
			return mgr.Add(everyReplica(func(ctx context.Context) error {
				return whenBuilt(ctx, built, options.xdsBind, func(listener net.Listener) error {
					return serveXDS(ctx, listener, server, leader, authority.Authority, []string{options.service})
				})
			}))
		},
		func() error {
			verify := controllers.VerifyToken(direct, plane)
			return mgr.Add(everyReplica(func(ctx context.Context) error {
				return whenBuilt(ctx, built, options.certBind, func(listener net.Listener) error {
					return serveCertificates(ctx, listener, authority.Authority, verify, []string{options.service})
				})
			}))
		},
		func() error { return mgr.AddHealthzCheck("ping", healthz.Ping) },
		func() error {
			return mgr.AddReadyzCheck("built", func(*http.Request) error {
				select {
				case <-built:
					return nil
				default:
					return errors.New("the configuration is not built yet")
				}
			})
		},
	} {
		if err := setup(); err != nil {
			return err
		}
	}
	log.Info("Starting", "version", version, "namespace", options.namespace, "service", options.service)
	return mgr.Start(ctx)
}

// elect has one replica of several lead, and returns who does.
func elect(manager *ctrl.Options, config *rest.Config, options operatorOptions) (report.Leader, error) {
	xdsPort := portOf(options.xdsBind)
	if !options.leaderElection {
		return report.Alone(net.JoinHostPort(options.service, xdsPort)), nil
	}
	address, err := netip.ParseAddrPort(net.JoinHostPort(options.podIP, xdsPort))
	if err != nil || options.podName == "" || strings.Contains(options.podName, "_") {
		return nil, fmt.Errorf("--leader-elect needs this replica's name and IP address, from --pod-name (is %q) and --pod-ip (is %q), or from the variables POD_NAME and POD_IP",
			options.podName, options.podIP)
	}
	lock, err := controllers.NewLeaderLock(config, options.namespace, options.podName, address)
	if err != nil {
		return nil, err
	}
	manager.LeaderElection = true
	manager.LeaderElectionReleaseOnCancel = true
	manager.LeaderElectionResourceLockInterface = lock
	manager.LeaseDuration = new(controllers.LeaseDuration)
	manager.RenewDeadline = new(controllers.RenewDeadline)
	manager.RetryPeriod = new(controllers.RetryPeriod)
	return lock.Leader, nil
}

// ring wakes up who reads from the channel. One ring that was not yet heard is
// as good as two.
func ring(bell chan<- event.GenericEvent) {
	select {
	case bell <- event.GenericEvent{Object: &gatewayv1.Gateway{}}:
	default:
	}
}

// metricsOptions serve metrics with a certificate of the operator's own, to whom
// the API server knows by its token and permits to get /metrics.
func metricsOptions(options operatorOptions, authority *identity.Authority) metricsserver.Options {
	return metricsserver.Options{
		BindAddress:    options.metricsBind,
		SecureServing:  true,
		FilterProvider: filters.WithAuthenticationAndAuthorization,
		TLSOpts: []func(*tls.Config){func(config *tls.Config) {
			own := authority.ServerTLS([]string{options.service}, clock.RealClock{})
			config.MinVersion, config.GetCertificate = own.MinVersion, own.GetCertificate
		}},
	}
}

// cacheOptions keep out of memory what is not this operator's: of the kinds
// that it makes, it watches only what it has made.
//
// namespaces are those that it reads, all where there are none.
func cacheOptions(namespaces []string) cache.Options {
	made := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{workload.LabelManagedBy: workload.ManagedBy})}
	var watched map[string]cache.Config
	for _, namespace := range namespaces {
		if watched == nil {
			watched = map[string]cache.Config{}
		}
		watched[namespace] = cache.Config{}
	}
	crd := controllers.GatewayCRD()
	return cache.Options{
		ByObject: map[client.Object]cache.ByObject{
			// The only one that it may read.
			crd: {Field: fields.OneTermEqualSelector("metadata.name", crd.Name)},

			&corev1.ConfigMap{}:                      made,
			&corev1.ServiceAccount{}:                 made,
			&appsv1.Deployment{}:                     made,
			&appsv1.ControllerRevision{}:             made,
			&autoscalingv2.HorizontalPodAutoscaler{}: made,
			&corev1.Pod{}:                            made,
			&policyv1.PodDisruptionBudget{}:          made,
			&networkingv1.NetworkPolicy{}:            made,
		},
		DefaultTransform:  controllers.Strip,
		DefaultNamespaces: watched,
	}
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return port
}

func portNumbers(ports ...string) ([]int32, error) {
	numbers := make([]int32, len(ports))
	for i, port := range ports {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port %q on which agents are served: %w", port, err)
		}
		numbers[i] = int32(number)
	}
	return numbers, nil
}

// peer tells which gateway pod is at the other end of an xDS stream.
func peer(ctx context.Context) (xds.Peer, error) {
	id, err := identity.PeerGateway(ctx)
	if err != nil {
		return xds.Peer{}, err
	}
	return xds.Peer{Namespace: id.Namespace, Name: id.Name, Pod: id.Pod}, nil
}

// everyReplica is a Runnable that needs no leader election.
type everyReplica func(context.Context) error

func (run everyReplica) Start(ctx context.Context) error { return run(ctx) }
func (everyReplica) NeedLeaderElection() bool            { return false }

var _ manager.LeaderElectionRunnable = everyReplica(nil)

// whenBuilt serves an address once there is something to serve: until then
// agents find nobody, keep what they have and try the next replica.
func whenBuilt(ctx context.Context, built <-chan struct{}, address string, serve func(net.Listener) error) error {
	select {
	case <-built:
	case <-ctx.Done():
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve agents: %w", err)
	}
	return serve(listener)
}

func isIPv6(text string) bool {
	address, err := netip.ParseAddr(text)
	return err == nil && address.Unmap().Is6()
}
