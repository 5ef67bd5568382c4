package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ServiceRoute declares how requests reach Services: for which hostnames, by
// which rules, to which backends.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=sr,categories=mesh
// +kubebuilder:printcolumn:name="Hostnames",type=string,JSONPath=`.spec.hostnames`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name != 'status'",message="metadata.name: a ServiceRoute cannot be named 'status', because the MeshRoute of that name sums up the namespace"
type ServiceRoute struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the author wants.
	// +required
	Spec ServiceRouteSpec `json:"spec"`

	// Status is what the operator found, written by the operator only.
	// +optional
	Status ServiceRouteStatus `json:"status,omitempty,omitzero"`
}

// ServiceRouteSpec is the wanted routing.
type ServiceRouteSpec struct {
	// ParentRefs names the Gateways (or single listeners of them) that the
	// route attaches to. Without one it attaches to the default Gateway: the
	// one in its namespace, else the cluster's, that carries the label
	// meshroute.io/default-gateway.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(p, (!has(p.group) || p.group == 'gateway.networking.k8s.io') && (!has(p.kind) || p.kind == 'Gateway'))",message="parentRefs: a ServiceRoute attaches to Gateways of the group gateway.networking.k8s.io only"
	ParentRefs []gatewayv1.ParentReference `json:"parentRefs,omitempty"`

	// Hostnames that the route answers for: exact ("shop.example.com") or with
	// a wildcard as first label ("*.example.com"). None means every hostname
	// of the listeners it attaches to.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Hostnames []gatewayv1.Hostname `json:"hostnames,omitempty"`

	// Rules tell what happens to which requests. Of several rules that match a
	// request, on the same hostname and over all routes of the listener, the
	// most specific one wins: exact path before regular expression before
	// prefix, longer before shorter, a method before none, more headers before
	// fewer, more query parameters before fewer, older route before newer,
	// earlier rule before later.
	//
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Rules []ServiceRouteRule `json:"rules"`
}

// ServiceRouteRule sends the requests that match to backends, or answers them
// itself.
//
// +kubebuilder:validation:XValidation:rule="[has(self.backends), has(self.directResponse), has(self.redirect)].exists_one(x, x)",message="a rule needs either backends or directResponse or redirect, and only one of them"
// +kubebuilder:validation:XValidation:rule="!has(self.rewrite) || !has(self.rewrite.pathPrefix) || self.matches.all(m, m.path.type == 'PathPrefix')",message="rewrite.pathPrefix replaces the matched prefix, so every match of the rule needs path.type PathPrefix"
// +kubebuilder:validation:XValidation:rule="!has(self.redirect) || !has(self.redirect.pathPrefix) || self.matches.all(m, m.path.type == 'PathPrefix')",message="redirect.pathPrefix replaces the matched prefix, so every match of the rule needs path.type PathPrefix"
// +kubebuilder:validation:XValidation:rule="has(self.backends) || !(has(self.rewrite) || has(self.timeouts) || has(self.requestHeaders) || has(self.mirrors) || has(self.cors))",message="rewrite, timeouts, requestHeaders, mirrors and cors have no effect on a rule without backends: remove them"
// +kubebuilder:validation:XValidation:rule="has(self.backends) || (!has(self.loadBalancing) && !has(self.sessionAffinity))",message="loadBalancing and sessionAffinity have no effect on a rule without backends: remove them"
// +kubebuilder:validation:XValidation:rule="!has(self.sessionAffinity) || !has(self.backends) || size(self.backends.filter(b, b.weight > 0)) == 1",message="sessionAffinity binds clients to endpoints of one Service: exactly one backend may have a weight above 0"
type ServiceRouteRule struct {
	// Name of the rule, unique in the route. Policies and statuses refer to it.
	//
	// +required
	Name gatewayv1.SectionName `json:"name"`

	// Matches select requests: one of them has to match, with all of its parts.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:default={{path: {type: "PathPrefix", value: "/"}}}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Matches []RouteMatch `json:"matches,omitempty"`

	// Backends share the requests in proportion to their weights. A backend
	// that cannot be resolved keeps its share, answered with 500; one without
	// ready endpoints answers 503. Where priorities differ, others take over the
	// share of such a backend: those of its priority, then those of the next.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.exists(b, b.weight > 0)",message="backends: at least one weight must be above 0"
	// +kubebuilder:validation:XValidation:rule="size(self) <= 8 || !self.exists(b, has(b.priority) && b.priority > 0)",message="backends: at most 8 where priorities are given"
	Backends []Backend `json:"backends,omitempty"`

	// DirectResponse answers without any backend.
	//
	// +optional
	DirectResponse *DirectResponse `json:"directResponse,omitempty"`

	// Redirect sends the client elsewhere.
	//
	// +optional
	Redirect *Redirect `json:"redirect,omitempty"`

	// Rewrite changes the request before it goes to a backend.
	//
	// +optional
	Rewrite *Rewrite `json:"rewrite,omitempty"`

	// RequestHeaders changes the headers of the request before it goes to a
	// backend. Matches look at the headers as they came.
	//
	// +optional
	RequestHeaders *HeaderChanges `json:"requestHeaders,omitempty"`

	// ResponseHeaders changes the headers of the answer before it goes to the
	// client, also of one that the gateway gives itself.
	//
	// +optional
	ResponseHeaders *HeaderChanges `json:"responseHeaders,omitempty"`

	// Mirrors get copies of requests. Nobody waits for their answers, and
	// nobody sees them.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	Mirrors []Mirror `json:"mirrors,omitempty"`

	// Timeouts bound how long a request may take.
	//
	// +optional
	Timeouts *Timeouts `json:"timeouts,omitempty"`

	// CORS lets pages of other origins use what the rule serves. The gateway
	// answers their preflight requests itself.
	//
	// +optional
	CORS *CORS `json:"cors,omitempty"`

	// LoadBalancing says how an endpoint of a backend is chosen: by least
	// requests when left out.
	//
	// +optional
	LoadBalancing *LoadBalancing `json:"loadBalancing,omitempty"`

	// SessionAffinity keeps a client's requests at one endpoint of the backend,
	// for as long as that is there.
	//
	// +optional
	SessionAffinity *SessionAffinity `json:"sessionAffinity,omitempty"`
}

// ServiceReference names a port of a Service.
type ServiceReference struct {
	// Name of the Service.
	//
	// +required
	Name gatewayv1.ObjectName `json:"name"`

	// Namespace of the Service; the route's own when left out. Another
	// namespace has to allow it with a ReferenceGrant.
	//
	// +optional
	Namespace *gatewayv1.Namespace `json:"namespace,omitempty"`

	// Port of the Service, by number or by name. It is the Service's port, not
	// the pods'.
	//
	// +required
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="type(self) != int || (self >= 1 && self <= 65535)",message="port must be a number from 1 to 65535 or the name of a Service port"
	Port intstr.IntOrString `json:"port"`
}

// Backend is a Service that requests go to.
type Backend struct {
	ServiceReference `json:",inline"`

	// Weight is the backend's share of the requests: weight divided by the sum
	// of the weights of the rule's backends. 0 gets no requests.
	//
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Weight *int32 `json:"weight,omitempty"`

	// Priority orders backends for failover: requests go to those of the lowest
	// number, and to the next only while those have no endpoint that could take
	// them. Only the order of the numbers counts; 0 when left out. Among backends
	// of one priority weights decide.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Priority *int32 `json:"priority,omitempty"`
}

// DirectResponseType is where a direct response comes from.
// +kubebuilder:validation:Enum=Fixed;StubStatus
type DirectResponseType string

const (
	// DirectResponseFixed answers with the status and body given here.
	DirectResponseFixed DirectResponseType = "Fixed"
	// DirectResponseStubStatus answers with the connection counters of the
	// gateway pod in the text format of nginx's stub_status module, so that
	// existing scrapers go on working.
	DirectResponseStubStatus DirectResponseType = "StubStatus"
)

// DirectResponse is an answer that the gateway gives itself.
//
// +kubebuilder:validation:XValidation:rule="self.type != 'StubStatus' || (!has(self.status) && !has(self.body) && !has(self.contentType))",message="directResponse: type StubStatus takes no status, body or contentType"
type DirectResponse struct {
	// Type of the response.
	//
	// +optional
	// +kubebuilder:default=Fixed
	Type DirectResponseType `json:"type,omitempty"`

	// Status code of a Fixed response, 200 when left out.
	//
	// +optional
	// +kubebuilder:validation:Minimum=200
	// +kubebuilder:validation:Maximum=599
	Status *int32 `json:"status,omitempty"`

	// Body of a Fixed response, at most 4096 characters.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Body *string `json:"body,omitempty"`

	// ContentType of a Fixed response, "text/plain; charset=utf-8" when left
	// out.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *; *[A-Za-z0-9_.-]+=[A-Za-z0-9_."-]+)*$`
	ContentType *string `json:"contentType,omitempty"`
}

// ServiceRouteStatus is what the operator found.
type ServiceRouteStatus struct {
	// Conditions of the route over all of its parents: Ready.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Parents holds, for each parent, the conditions Accepted, ResolvedRefs
	// and Programmed.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Parents []gatewayv1.RouteParentStatus `json:"parents,omitempty"`
}

// ServiceRouteList is a list of ServiceRoutes.
//
// +kubebuilder:object:root=true
type ServiceRouteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ServiceRoute `json:"items"`
}
