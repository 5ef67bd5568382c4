// Package model turns the objects that users write into what gateways are to
// do, in words of its own: neither Kubernetes' nor Envoy's.
//
//	Inputs ─► Build ─► Result{Gateways, statuses}     Gateways ─► internal/envoy, internal/workload
//
// Build is a function from values to values: it reads no clock and no network,
// never changes its inputs, and gives the same result for the same objects in
// any order. A Builder gives the same, sooner where little has changed. Why
// something is invalid is said where it is noticed, as a condition; one bad object
// never takes its neighbours along.
//
// What changes without any user having written something — endpoints, and what
// gateway pods have acknowledged — is kept apart: Endpoints and Observe join it
// to a Result, so that a pod coming or going costs no new Build.
package model

import (
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// MissingCluster is the cluster name that stands for a backend which could not
// be resolved. No such cluster ever exists, so its share of the requests is
// answered with 500.
const MissingCluster = "meshroute-missing-backend"

// Ports of a gateway pod that are its own: no listener is bound there.
const (
	// AgentPort is where the agent answers Kubernetes.
	AgentPort = 19001
	// ProbePort is where Envoy answers Kubernetes.
	ProbePort = 19002
)

// DefaultRequestTimeout bounds a request where its rule says nothing.
const DefaultRequestTimeout = 15 * time.Second

// DefaultDrainTimeout is how long clients of a pod that ends have to go where
// nothing is said.
const DefaultDrainTimeout = time.Minute

// Inputs are the objects that Build looks at, in any order. It never changes
// them, so they may be shared with a cache.
type Inputs struct {
	GatewayClasses  []*gatewayv1.GatewayClass
	Gateways        []*gatewayv1.Gateway
	GatewayConfigs  []*v1alpha1.GatewayConfig
	ServiceRoutes   []*v1alpha1.ServiceRoute
	Services        []*corev1.Service
	ReferenceGrants []*gatewayv1.ReferenceGrant
	HealthPolicies  []*v1alpha1.HealthPolicy
	Namespaces      []*corev1.Namespace
	// Certificates are what the Secrets hold that Certificates names, as far as
	// they exist.
	Certificates map[Key]*Certificate

	// Now is what validity of certificates is compared with; zero: it is not.
	Now time.Time

	// GatewayAPI is the version of Gateway API that is installed, as its CRDs
	// tell it; empty where there are no CRDs, in standalone mode.
	GatewayAPI string

	// OneHost tells that all gateways listen on one host's own ports, as they
	// do in standalone mode: listener ports are bound as they are, and two
	// gateways cannot have the same one.
	OneHost bool

	// IPv6 tells that pods have IPv6 addresses: gateways are reached by these, too.
	IPv6 bool
}

// Key names a namespaced object.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Result is what Build found.
type Result struct {
	// Gateways that are to run, sorted by key.
	Gateways []Gateway
	// Classes, GatewayStatuses, Routes and HealthPolicies tell how each object of
	// this operator was judged, sorted by key.
	Classes         []ClassStatus
	GatewayStatuses []GatewayStatus
	Routes          []*RouteStatus
	HealthPolicies  []PolicyStatus
	// Foreign are the Gateways of other controllers: what was made for them
	// while they were this one's is to go. A Gateway whose class does not exist
	// is nobody's, and not among them.
	Foreign []Key
}

// Gateway is one gateway: what its Envoys listen on, where they send requests,
// and how its pods are run.
type Gateway struct {
	Key
	// Class is the name of its GatewayClass.
	Class string
	// UID of the Gateway object, for owner references.
	UID string
	// IPv6 tells that it listens on IPv6 addresses, too.
	IPv6 bool
	// Ports it listens on, sorted by number.
	Ports []Port
	// Clusters that its routes send requests to, sorted by name.
	Clusters []Cluster
	// Health of those clusters that a HealthPolicy is for, by name. For the
	// others it is derived from their pods (Derive).
	Health map[string]Health
	// Failovers over them, sorted by name.
	Failovers []Failover
	// Services that these are ports of, sorted by key.
	Services []BackendService
	// Certificates that its ports serve, sorted by Secret.
	Certificates []*Certificate
	// Infrastructure is how its pods are run. Nil where that cannot be known
	// at the moment (a GatewayConfig is missing): what runs is left as it is.
	Infrastructure *Infrastructure
}

// Cluster returns the cluster of a name.
func (g *Gateway) Cluster(name string) (of Cluster, exists bool) {
	at, exists := slices.BinarySearchFunc(g.Clusters, name, func(c Cluster, name string) int { return strings.Compare(c.Name, name) })
	if !exists {
		return Cluster{}, false
	}
	return g.Clusters[at], true
}

// Service returns the Service of a key.
func (g *Gateway) Service(key Key) (of BackendService, exists bool) {
	at, exists := slices.BinarySearchFunc(g.Services, key, func(s BackendService, key Key) int { return CompareKeys(s.Key, key) })
	if !exists {
		return BackendService{}, false
	}
	return g.Services[at], true
}

// Port is a port that a gateway listens on.
type Port struct {
	// Number that clients connect to.
	Number int32
	// Bind is the port that Envoy listens on in its pod: above 1023, so that it
	// needs no privilege.
	Bind int32
	// HTTPS tells that clients speak TLS, and TLS what they get, sorted by
	// hostname.
	HTTPS bool
	TLS   []TLSListener
	// VirtualHosts, sorted by hostname.
	VirtualHosts []VirtualHost
}

// TLSListener is what clients get that ask for a hostname, in their server name
// indication. The most specific one counts; requests for hosts of another one
// are not served on its connections.
type TLSListener struct {
	// Hostname is exact, "*.suffix", or "*" for any other, and where none is asked
	// for.
	Hostname string
	// Certificates in Gateway.Certificates, by Secret. Of several the client's
	// abilities and the name that it asks for decide. Empty: it is not served.
	Certificates []Key
}

// Equal tells whether two listeners are the same.
func (l TLSListener) Equal(other TLSListener) bool {
	return l.Hostname == other.Hostname && slices.Equal(l.Certificates, other.Certificates)
}

// VirtualHost holds the routes of one hostname.
type VirtualHost struct {
	// Hostname is exact, "*.suffix", or "*" for any other.
	Hostname string
	// Routes in the order in which they are tried: most specific first.
	Routes []Route
}

// Route says what happens to requests that match.
type Route struct {
	// Name is namespace/route/rule/index of the match in its rule.
	Name  string
	Match Match

	// Backends share the requests. Empty where the gateway answers itself.
	Backends []WeightedCluster
	// FailsOver tells that there are Failovers among them.
	FailsOver bool
	// Hash is what of a request is hashed; nil where nothing is.
	Hash *Hash
	// Affinity is the cookie that binds clients to endpoints; nil where they are
	// not bound.
	Affinity *Cookie
	// Mirrors get copies of requests.
	Mirrors []Mirror
	// Rewrite changes the request on its way to the backend.
	Rewrite Rewrite
	// Timeout of the whole request; 0 means none.
	Timeout time.Duration
	// BackendTimeout of one attempt; 0 means none but Timeout.
	BackendTimeout time.Duration
	// IdleTimeout is how long nothing may move: 0 means forever, nil that the
	// route says nothing.
	IdleTimeout *time.Duration
	// CORS lets pages of other origins use the route.
	CORS *CORS

	// Response is what the gateway answers itself.
	Response *Response
	// Redirect is where it sends the client.
	Redirect *Redirect
	// StubStatus asks for the connection counters of the gateway pod.
	StubStatus bool

	// RequestHeaders and ResponseHeaders change what goes to the backend and
	// to the client.
	RequestHeaders, ResponseHeaders HeaderChanges
}

// Equal tells whether two virtual hosts are the same. It takes no time where a
// Builder has left one as it was.
func (h VirtualHost) Equal(other VirtualHost) bool {
	return h.Hostname == other.Hostname && (sameMemory(h.Routes, other.Routes) || reflect.DeepEqual(h.Routes, other.Routes))
}

func sameMemory[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// PathType is how a path is compared.
type PathType string

// A path is compared by path elements, as a whole, or by a regular expression
// that has to match the whole of it.
const (
	PathPrefix PathType = ""
	PathExact  PathType = "Exact"
	PathRegex  PathType = "RegularExpression"
)

// Match selects requests.
type Match struct {
	// Path to compare, or the regular expression.
	Path string
	Type PathType
	// Method of the request; empty means any.
	Method string
	// Headers that must be there, sorted by name, which is in lower case.
	Headers []ValueMatch
	// QueryParams that must be there, sorted by name.
	QueryParams []ValueMatch
}

// ValueMatch is a header or query parameter with the value that it must have,
// or the regular expression that the whole of its value must match.
type ValueMatch struct {
	Name, Value string
	Regex       bool
}

// WeightedCluster is a cluster's share of a route's requests.
type WeightedCluster struct {
	// Cluster is a name in Gateway.Clusters or Gateway.Failovers, or
	// MissingCluster.
	Cluster string
	// Weight, above 0; the share is weight divided by the sum of weights.
	Weight uint32
}

// Mirror is a cluster that gets copies of requests.
type Mirror struct {
	// Cluster is a name in Gateway.Clusters.
	Cluster string
	// PerMillion of the requests are copied: 1 to 1000000.
	PerMillion uint32
}

// Rewrite is what replaces parts of a request; what is empty stays.
type Rewrite struct {
	// Prefix replaces the prefix that matched, Path the whole path; one of them
	// at most.
	Prefix, Path string
	// Hostname replaces the Host header.
	Hostname string
}

// Redirect is where the client is sent; what is empty stays as it was.
type Redirect struct {
	Scheme   string
	Hostname string
	// Port of the URL: 0 stands for the usual one of Scheme, which is given
	// then, and is not written; KeepPort for the one that the client named.
	Port int32
	// Prefix replaces the prefix that matched, Path the whole path; one of them
	// at most.
	Prefix, Path string
	// Status of the answer: 301, 302, 303, 307 or 308.
	Status uint32
}

// KeepPort stands for the port that the client named.
const KeepPort = -1

// HeaderChanges change headers; a header is named by one of them only.
type HeaderChanges struct {
	// Set replaces what is there, Add adds to it. Sorted by name.
	Set, Add []Header
	// Remove, sorted.
	Remove []string
}

// Header is a header with its value. Its name is in lower case.
type Header struct{ Name, Value string }

// CORS is what browsers are told about pages of other origins.
type CORS struct {
	// Origins that are allowed, sorted.
	Origins []Origin
	// Methods and RequestHeaders that requests may have, ResponseHeaders that
	// scripts may read: as they are listed, or "*" alone.
	Methods, RequestHeaders, ResponseHeaders []string
	// Credentials are allowed.
	Credentials bool
	// MaxAge is how long a browser may remember an answer.
	MaxAge time.Duration
}

// Origin is an origin, or all origins of a kind.
type Origin struct {
	// Any stands for every origin; all else is empty then.
	Any bool
	// Scheme is "http" or "https", Host in lower case: exact, "*.suffix" or "*",
	// and Port empty where it is the usual one.
	Scheme, Host, Port string
}

// Response is an answer that the gateway gives itself.
type Response struct {
	Status      uint32
	Body        string
	ContentType string
}

// Cluster is a Service port that a gateway sends requests to. There is one for
// each Service, port and set of cluster-level settings, however many routes
// use it.
type Cluster struct {
	// Name is stable as long as Service, port and settings are.
	Name string
	// Service and Port it stands for.
	Service Key
	Port    ServicePort
	// DNSName is the host to resolve, for a Service of type ExternalName. Its
	// endpoints come from DNS, all others' from EndpointSlices.
	DNSName string
	// HTTP2 tells that the backend speaks HTTP/2 without TLS.
	HTTP2 bool
	// LoadBalancing is how an endpoint is chosen; empty: LeastRequest.
	LoadBalancing LoadBalancing
	// PreferZone tells that endpoints in the gateway pod's own zone are preferred.
	PreferZone bool
	// BackedUp tells that other clusters take over when this one has no endpoint
	// that could take a request.
	BackedUp bool
	// PreferIPv6 tells that IPv6 is the Service's first address family: it is the
	// one that counts for endpoints that have both.
	PreferIPv6 bool
	// TargetPort is the pods' own port, where that is known without asking the
	// pods; 0 where it is not.
	TargetPort int32
}

// ServicePort is a port of a Service.
type ServicePort struct {
	// Name of the port, empty where the Service has only one. EndpointSlices
	// are joined by it.
	Name   string
	Number int32
}

// Infrastructure is how the pods of a gateway are run.
type Infrastructure struct {
	// Replicas is the number of pods; with Autoscaling, the number to begin
	// with.
	Replicas    int32
	Autoscaling *Autoscaling
	Resources   corev1.ResourceRequirements
	ServiceType corev1.ServiceType
	// NodePorts wanted, by listener port.
	NodePorts map[int32]int32
	// DrainTimeout is how long the clients of a pod that ends have to go.
	DrainTimeout time.Duration
	// NodeSelector, Tolerations and PriorityClassName of the pods.
	NodeSelector      map[string]string
	Tolerations       []corev1.Toleration
	PriorityClassName string
	// NetworkPolicy is which policies are made for it.
	NetworkPolicy NetworkPolicy
	// Labels and Annotations for every object made for the gateway
	// (Gateway.spec.infrastructure).
	Labels, Annotations map[string]string
}

// Autoscaling is how many pods there may be, and how much of what it requests
// Envoy should use, in percent. MemoryPercent is 0 where memory does not count.
type Autoscaling struct {
	MinReplicas, MaxReplicas  int32
	CPUPercent, MemoryPercent int32
}

// ClassStatus is how a GatewayClass was judged.
type ClassStatus struct {
	Name       string
	Generation int64
	Conditions []metav1.Condition
}

// GatewayStatus is how a Gateway was judged. Programmed is not among the
// conditions: it depends on what gateway pods acknowledge.
type GatewayStatus struct {
	Key
	Generation int64
	Conditions []metav1.Condition
	Listeners  []ListenerStatus
	// Verify tells that its pods try whether network policies are enforced.
	Verify bool
	// Unserved tells why none of its listeners serves; empty where one does.
	Unserved string
}

// ListenerStatus is how a listener was judged.
type ListenerStatus struct {
	Name           string
	AttachedRoutes int32
	// SupportedKinds are the allowed kinds that this operator knows.
	SupportedKinds []gatewayv1.RouteGroupKind
	Conditions     []metav1.Condition
	// Unserved tells why it does not serve although it is accepted; empty where
	// it does.
	Unserved string
}

// RouteStatus is how a ServiceRoute was judged.
type RouteStatus struct {
	Key
	UID        string
	Generation int64
	// Hosts that the route answers for, over all parents, sorted.
	Hosts []string
	// Backends of its rules, each Service port once, sorted.
	Backends []BackendStatus
	// Groups are the clusters of its rules in which backends take over from each
	// other.
	Groups [][]string
	// Parents in the order of its parentRefs.
	Parents []ParentStatus
}

// SameConfiguration tells whether gateways have been told the same of a route:
// who reads conditions only sees the difference.
func (r *RouteStatus) SameConfiguration(other *RouteStatus) bool {
	return r == other || r.UID == other.UID && r.Generation == other.Generation &&
		slices.Equal(r.Hosts, other.Hosts) && reflect.DeepEqual(r.Backends, other.Backends)
}

// AttachedTo tells whether a route is attached to a gateway.
func (r *RouteStatus) AttachedTo(gateway Key) bool {
	return slices.ContainsFunc(r.Parents, func(p ParentStatus) bool { return p.Gateway != nil && *p.Gateway == gateway })
}

// ParentStatus is how a route was judged for one of its parents. Programmed is
// not among the conditions: it depends on what gateway pods acknowledge.
type ParentStatus struct {
	Ref gatewayv1.ParentReference
	// Gateway that the route is attached to; nil where it is not.
	Gateway    *Key
	Conditions []metav1.Condition
	// Unserved tells why no listener serves that the route is attached to; empty
	// where one does.
	Unserved string
}

// BackendStatus is a backend of a route.
type BackendStatus struct {
	Service Key
	// Port as the route names it.
	Port string
	// Cluster it resolved to; nil where it did not.
	Cluster *Cluster
	// Idle tells that no client waits for it: its weight is 0 in every rule, or
	// it gets nothing but copies.
	Idle bool
}

// condition returns a condition without times and generation: these are known
// where it is written.
func condition(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: bounded(message)}
}

// maxMessage keeps messages readable; the API allows 32768.
const maxMessage = 1024

func bounded(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	// Not within a character: what Kubernetes stores has to be UTF-8.
	return strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
}
