package v1alpha1

import gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

// Rewrite changes a request on its way to the backend.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!has(self.path) || !has(self.pathPrefix)",message="rewrite: path replaces the whole path and pathPrefix a part of it: only one of them"
type Rewrite struct {
	// PathPrefix replaces the prefix that path matched: with a match on
	// /api/prometheus and the replacement "/", the backend sees
	// /api/prometheus/query as /query.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="rewrite.pathPrefix must start with '/'"
	// +kubebuilder:validation:XValidation:rule="!self.contains('//') && self.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="rewrite.pathPrefix may hold only the characters of a URL path, without '//', '?' or '#'"
	PathPrefix *string `json:"pathPrefix,omitempty"`

	// Path replaces the whole path. The query string stays.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="rewrite.path must start with '/'"
	// +kubebuilder:validation:XValidation:rule="!self.contains('//') && self.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="rewrite.path may hold only the characters of a URL path, without '//', '?' or '#'"
	Path *string `json:"path,omitempty"`

	// Hostname replaces the Host header.
	//
	// +optional
	Hostname *gatewayv1.PreciseHostname `json:"hostname,omitempty"`
}

// Redirect answers with the URL that the client should ask instead: that of its
// request, with the parts replaced that are given here.
//
// +kubebuilder:validation:XValidation:rule="has(self.scheme) || has(self.hostname) || has(self.port) || has(self.path) || has(self.pathPrefix)",message="redirect needs a scheme, hostname, port, path or pathPrefix: without any it leads to where the client was"
// +kubebuilder:validation:XValidation:rule="!has(self.path) || !has(self.pathPrefix)",message="redirect: path replaces the whole path and pathPrefix a part of it: only one of them"
type Redirect struct {
	// Scheme of the URL; that of the request when left out.
	//
	// +optional
	// +kubebuilder:validation:Enum=http;https
	Scheme *string `json:"scheme,omitempty"`

	// Hostname of the URL; that of the request when left out.
	//
	// +optional
	Hostname *gatewayv1.PreciseHostname `json:"hostname,omitempty"`

	// Port of the URL. Left out, it is the one on which the Gateway serves scheme,
	// where that is given: the usual one (80 for http, 443 for https), unless it
	// has only another; else the listener's, where hostname is given; else the
	// one that the client named. A port that is the usual one of the URL's scheme
	// is not written.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port *int32 `json:"port,omitempty"`

	// PathPrefix replaces the prefix that path matched, as rewrite.pathPrefix
	// does.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="redirect.pathPrefix must start with '/'"
	// +kubebuilder:validation:XValidation:rule="!self.contains('//') && self.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="redirect.pathPrefix may hold only the characters of a URL path, without '//', '?' or '#'"
	PathPrefix *string `json:"pathPrefix,omitempty"`

	// Path replaces the whole path. The query string stays.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="redirect.path must start with '/'"
	// +kubebuilder:validation:XValidation:rule="!self.contains('//') && self.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="redirect.path may hold only the characters of a URL path, without '//', '?' or '#'"
	Path *string `json:"path,omitempty"`

	// StatusCode of the answer: 301 and 308 are permanent, 302, 303 and 307 are
	// not; 307 and 308 keep the method and the body, 303 asks for GET.
	//
	// +optional
	// +kubebuilder:default=302
	// +kubebuilder:validation:Enum=301;302;303;307;308
	StatusCode *int32 `json:"statusCode,omitempty"`
}

// HeaderChanges change the headers of a request or an answer. A header may be
// named by one of them only.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!has(self.set) || !has(self.add) || !self.set.exists(s, self.add.exists(a, a.name.lowerAscii() == s.name.lowerAscii()))",message="a header is either in set or in add, not in both"
// +kubebuilder:validation:XValidation:rule="!has(self.remove) || ((!has(self.set) || !self.set.exists(s, self.remove.exists(r, r.lowerAscii() == s.name.lowerAscii()))) && (!has(self.add) || !self.add.exists(a, self.remove.exists(r, r.lowerAscii() == a.name.lowerAscii()))))",message="a header in remove cannot be in set or add, too: set replaces it"
type HeaderChanges struct {
	// Set replaces the header, or adds it where it is not there.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.name.lowerAscii() == b.name.lowerAscii()))",message="set: header names are case-insensitive and must be unique"
	Set []HeaderValue `json:"set,omitempty"`

	// Add adds the value to those that the header has, as a header line of its
	// own.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.name.lowerAscii() == b.name.lowerAscii()))",message="add: header names are case-insensitive and must be unique"
	Add []HeaderValue `json:"add,omitempty"`

	// Remove removes the header with all of its values.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Remove []ChangeableHeader `json:"remove,omitempty"`
}

// ChangeableHeader is the name of a header, case-insensitive. Host is not among
// them, nor those that belong to a connection or tell where a body ends: they
// are the gateway's to write.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
// +kubebuilder:validation:XValidation:rule="self.lowerAscii() != 'host'",message="the Host header cannot be changed here: use rewrite.hostname"
// +kubebuilder:validation:XValidation:rule="!(self.lowerAscii() in ['connection', 'content-length', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade'])",message="headers of the connection (Connection, Content-Length, Keep-Alive, Proxy-Connection, TE, Trailer, Transfer-Encoding, Upgrade) are written by the gateway and cannot be changed"
// +kubebuilder:validation:XValidation:rule="!self.lowerAscii().startsWith('x-envoy-')",message="headers that start with 'x-envoy-' are Envoy's own and cannot be changed"
type ChangeableHeader string

// HeaderValue is a header with its value.
type HeaderValue struct {
	// Name of the header, case-insensitive.
	//
	// +required
	Name ChangeableHeader `json:"name"`

	// Value of the header, as it is: nothing in it is replaced.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:Pattern=`^[^\x00-\x08\x0A-\x1F\x7F]+$`
	Value string `json:"value"`
}

// Mirror is a Service that gets copies of requests.
//
// +kubebuilder:validation:XValidation:rule="!has(self.percent) || !has(self.fraction)",message="mirrors: either percent or fraction, not both"
type Mirror struct {
	ServiceReference `json:",inline"`

	// Percent of the requests that are copied. Where neither it nor fraction is
	// given, all are.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`

	// Fraction of the requests that are copied, where percent is too coarse.
	//
	// +optional
	Fraction *Fraction `json:"fraction,omitempty"`
}

// Fraction is numerator divided by denominator.
//
// +kubebuilder:validation:XValidation:rule="self.numerator <= self.denominator",message="fraction: numerator must not be above denominator"
type Fraction struct {
	// Numerator of the fraction.
	//
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Numerator int32 `json:"numerator"`

	// Denominator of the fraction.
	//
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Denominator *int32 `json:"denominator,omitempty"`
}

// Timeouts bound how long things may take. All are in the format of GEP-2257
// ("15s", "1m30s", "500ms"), and 0s means no limit.
//
// +kubebuilder:validation:XValidation:rule="!has(self.backendRequest) || (has(self.request) && duration(self.request) == duration('0s')) || duration(self.backendRequest) <= duration(has(self.request) ? self.request : '15s')",message="timeouts.backendRequest must not be above timeouts.request, which is 15s when left out"
type Timeouts struct {
	// Request is the time from the end of the client's request to the end of
	// the backend's answer, retries included. When it is over the client gets
	// 504. Left out it is 15s; 0s means no limit, which streaming needs.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="timeouts.request must not be above 24h; 0s means no limit"
	Request *gatewayv1.Duration `json:"request,omitempty"`

	// BackendRequest is the time for one attempt to get an answer from a
	// backend. When it is over, a request that may be repeated is tried on
	// another endpoint; others get 504. Left out, an attempt may take as long
	// as the request.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="timeouts.backendRequest must not be above 24h; 0s means no limit"
	BackendRequest *gatewayv1.Duration `json:"backendRequest,omitempty"`

	// Idle is how long nothing may move on a request or its answer, WebSockets
	// included. Left out it is 5m, or timeouts.request where that is longer.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="timeouts.idle must not be above 24h; 0s means no limit"
	Idle *gatewayv1.Duration `json:"idle,omitempty"`
}

// CORS tells browsers which pages of other origins may use what a rule serves,
// and how. The fields are those of Gateway API's CORS filter (GEP-1767).
//
// +kubebuilder:validation:XValidation:rule="!has(self.allowCredentials) || !self.allowCredentials || !has(self.exposeHeaders) || !('*' in self.exposeHeaders)",message="cors.exposeHeaders: '*' has no effect with allowCredentials, name the headers"
type CORS struct {
	// AllowOrigins that may do so: "https://shop.example.com", with the port
	// where it is not the scheme's usual one; "https://*.example.com" for all
	// names below example.com, and "https://*" for all names; "*" for every
	// origin.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="!('*' in self) || size(self) == 1",message="cors.allowOrigins: '*' stands for every origin, so it stands alone"
	AllowOrigins []CORSOrigin `json:"allowOrigins"`

	// AllowMethods beside GET, HEAD and POST, which are always allowed; "*" for
	// all.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="!('*' in self) || size(self) == 1",message="cors.allowMethods: '*' stands for every method, so it stands alone"
	AllowMethods []CORSMethod `json:"allowMethods,omitempty"`

	// AllowHeaders that requests may carry; "*" for all.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="!('*' in self) || size(self) == 1",message="cors.allowHeaders: '*' stands for every header, so it stands alone"
	AllowHeaders []CORSHeader `json:"allowHeaders,omitempty"`

	// ExposeHeaders of answers that scripts may read; "*" for all, where
	// credentials are not allowed.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="!('*' in self) || size(self) == 1",message="cors.exposeHeaders: '*' stands for every header, so it stands alone"
	ExposeHeaders []CORSHeader `json:"exposeHeaders,omitempty"`

	// AllowCredentials lets requests carry cookies, client certificates or an
	// Authorization header.
	//
	// +optional
	AllowCredentials *bool `json:"allowCredentials,omitempty"`

	// MaxAge is for how many seconds a browser may remember the answer to a
	// preflight request.
	//
	// +optional
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	MaxAge *int32 `json:"maxAge,omitempty"`
}

// CORSOrigin is an origin, or several with a wildcard.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^(\*|https?://((\*\.)?([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+|\*)(:[0-9]{1,5})?)$`
type CORSOrigin string

// CORSMethod is a method, or "*" for all.
//
// +kubebuilder:validation:Enum=GET;HEAD;POST;PUT;DELETE;OPTIONS;TRACE;PATCH;*
type CORSMethod string

// CORSHeader is the name of a header, or "*" for all.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
type CORSHeader string
