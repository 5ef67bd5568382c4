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
	// most specific one wins: exact path before prefix, longer prefix before
	// shorter, more headers before fewer, older route before newer, earlier
	// rule before later.
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
// +kubebuilder:validation:XValidation:rule="has(self.backends) != has(self.directResponse)",message="a rule needs either backends or directResponse, and not both"
// +kubebuilder:validation:XValidation:rule="!has(self.rewrite) || self.matches.all(m, m.path.type == 'PathPrefix')",message="rewrite.pathPrefix replaces the matched prefix, so every match of the rule needs path.type PathPrefix"
// +kubebuilder:validation:XValidation:rule="!has(self.directResponse) || (!has(self.rewrite) && !has(self.timeouts))",message="rewrite and timeouts have no effect on a rule with directResponse: remove them"
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
	// ready endpoints answers 503.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.exists(b, b.weight > 0)",message="backends: at least one weight must be above 0"
	Backends []Backend `json:"backends,omitempty"`

	// DirectResponse answers without any backend.
	//
	// +optional
	DirectResponse *DirectResponse `json:"directResponse,omitempty"`

	// Rewrite changes the request before it goes to a backend.
	//
	// +optional
	Rewrite *Rewrite `json:"rewrite,omitempty"`

	// Timeouts bound how long a request may take.
	//
	// +optional
	Timeouts *Timeouts `json:"timeouts,omitempty"`
}

// RouteMatch matches a request when all of its parts do.
type RouteMatch struct {
	// Path the request must have. Query strings are not looked at.
	//
	// +optional
	// +kubebuilder:default={type: "PathPrefix", value: "/"}
	Path *PathMatch `json:"path,omitempty"`

	// Headers that the request must carry.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.name.lowerAscii() == b.name.lowerAscii()))",message="headers: header names are case-insensitive and must be unique"
	Headers []HeaderMatch `json:"headers,omitempty"`
}

// PathMatchType is how a path is compared.
// +kubebuilder:validation:Enum=Exact;PathPrefix
type PathMatchType string

const (
	// PathMatchExact compares the whole path, case-sensitively.
	PathMatchExact PathMatchType = "Exact"
	// PathMatchPrefix compares by path elements: /api matches /api and
	// /api/users, but not /apis. A slash at the end makes no difference.
	PathMatchPrefix PathMatchType = "PathPrefix"
)

// PathMatch compares the path of a request.
//
// +kubebuilder:validation:XValidation:rule="self.value.startsWith('/')",message="path.value must start with '/'"
// +kubebuilder:validation:XValidation:rule="!self.value.contains('//') && !self.value.contains('/./') && !self.value.contains('/../') && !self.value.endsWith('/.') && !self.value.endsWith('/..')",message="path.value must be normalized: no '//', '/./' or '/../' in it, because request paths are normalized before they are compared"
// +kubebuilder:validation:XValidation:rule="self.value.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="path.value may hold only the characters of a URL path: encode others as %XX, and leave out '?' and '#'"
type PathMatch struct {
	// Type of comparison.
	//
	// +optional
	// +kubebuilder:default=PathPrefix
	Type PathMatchType `json:"type,omitempty"`

	// Value to compare with, in the form that it has in a URL.
	//
	// +optional
	// +kubebuilder:default="/"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value,omitempty"`
}

// HeaderMatchType is how a header's value is compared.
// +kubebuilder:validation:Enum=Exact
type HeaderMatchType string

// HeaderMatchExact compares the whole value, case-sensitively.
const HeaderMatchExact HeaderMatchType = "Exact"

// HeaderMatch compares one header of a request.
type HeaderMatch struct {
	// Type of comparison.
	//
	// +optional
	// +kubebuilder:default=Exact
	Type HeaderMatchType `json:"type,omitempty"`

	// Name of the header, case-insensitive. Hostnames are matched by
	// spec.hostnames, not by a Host header.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
	// +kubebuilder:validation:XValidation:rule="!self.contains('_')",message="headers: headers with '_' in their names are dropped by gateways before they could match; use '-'"
	// +kubebuilder:validation:XValidation:rule="self.lowerAscii() != 'host'",message="headers: match hostnames by spec.hostnames, not by the Host header"
	Name string `json:"name"`

	// Value to compare with. When a request repeats the header, its values are
	// joined by commas first.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:Pattern=`^[^\x00-\x08\x0A-\x1F\x7F]+$`
	Value string `json:"value"`
}

// Backend is a Service that requests go to.
type Backend struct {
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

	// Weight is the backend's share of the requests: weight divided by the sum
	// of the weights of the rule's backends. 0 gets no requests.
	//
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Weight *int32 `json:"weight,omitempty"`
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

// Rewrite changes a request on its way to the backend.
type Rewrite struct {
	// PathPrefix replaces the prefix that path matched: with a match on
	// /api/prometheus and the replacement "/", the backend sees
	// /api/prometheus/query as /query.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="rewrite.pathPrefix must start with '/'"
	// +kubebuilder:validation:XValidation:rule="!self.contains('//') && self.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="rewrite.pathPrefix may hold only the characters of a URL path, without '//', '?' or '#'"
	PathPrefix string `json:"pathPrefix"`
}

// Timeouts bound how long things may take.
type Timeouts struct {
	// Request is the time from the end of the client's request to the end of
	// the backend's answer, retries included, in the format of GEP-2257
	// ("15s", "1m30s", "500ms"). When it is over the client gets 504. Left out
	// it is 15s; 0s means no limit, which streaming needs.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="timeouts.request must not be above 24h; 0s means no limit"
	Request *gatewayv1.Duration `json:"request,omitempty"`
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
