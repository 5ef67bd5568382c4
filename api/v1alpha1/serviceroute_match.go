package v1alpha1

// RouteMatch matches a request when all of its parts do.
type RouteMatch struct {
	// Path the request must have. Query strings are not looked at.
	//
	// +optional
	// +kubebuilder:default={type: "PathPrefix", value: "/"}
	Path *PathMatch `json:"path,omitempty"`

	// Method the request must have; any when left out.
	//
	// +optional
	Method *Method `json:"method,omitempty"`

	// Headers that the request must carry.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.name.lowerAscii() == b.name.lowerAscii()))",message="headers: header names are case-insensitive and must be unique"
	Headers []HeaderMatch `json:"headers,omitempty"`

	// QueryParams that the request must carry.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	QueryParams []QueryParamMatch `json:"queryParams,omitempty"`
}

// Method is the method of a request. CONNECT is not among them: it asks for a
// tunnel, which a gateway to Services has no use for.
// +kubebuilder:validation:Enum=GET;HEAD;POST;PUT;DELETE;OPTIONS;TRACE;PATCH
type Method string

// PathMatchType is how a path is compared.
// +kubebuilder:validation:Enum=Exact;PathPrefix;RegularExpression
type PathMatchType string

const (
	// PathMatchExact compares the whole path, case-sensitively.
	PathMatchExact PathMatchType = "Exact"
	// PathMatchPrefix compares by path elements: /api matches /api and
	// /api/users, but not /apis. A slash at the end makes no difference.
	PathMatchPrefix PathMatchType = "PathPrefix"
	// PathMatchRegularExpression compares the whole path with an expression in
	// the syntax of RE2.
	PathMatchRegularExpression PathMatchType = "RegularExpression"
)

// PathMatch compares the path of a request.
//
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || self.value.startsWith('/')",message="path.value must start with '/'"
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || !self.value.contains('//') && !self.value.contains('/./') && !self.value.contains('/../') && !self.value.endsWith('/.') && !self.value.endsWith('/..')",message="path.value must be normalized: no '//', '/./' or '/../' in it, because request paths are normalized before they are compared"
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || self.value.matches('^[A-Za-z0-9/_.~!$&()*+,;=:@%\\'-]*$')",message="path.value may hold only the characters of a URL path: encode others as %XX, and leave out '?' and '#'"
// +kubebuilder:validation:XValidation:rule="self.type != 'RegularExpression' || self.value.matches('^[!-~]+$')",message="path.value: a regular expression may hold only printable ASCII characters without spaces, because request paths hold no others: encode them as %XX"
type PathMatch struct {
	// Type of comparison.
	//
	// +optional
	// +kubebuilder:default=PathPrefix
	Type PathMatchType `json:"type,omitempty"`

	// Value to compare with, in the form that it has in a URL; of a
	// RegularExpression, which has to match the whole path, the expression.
	//
	// +optional
	// +kubebuilder:default="/"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value,omitempty"`
}

// ValueMatchType is how the value of a header or a query parameter is compared.
// +kubebuilder:validation:Enum=Exact;RegularExpression
type ValueMatchType string

const (
	// ValueMatchExact compares the whole value, case-sensitively.
	ValueMatchExact ValueMatchType = "Exact"
	// ValueMatchRegularExpression compares the whole value with an expression
	// in the syntax of RE2.
	ValueMatchRegularExpression ValueMatchType = "RegularExpression"
)

// HeaderMatch compares one header of a request.
//
// +kubebuilder:validation:XValidation:rule="self.type != 'RegularExpression' || (size(self.value) <= 1024 && self.value.matches('^[ -~]+$'))",message="headers: a regular expression may hold at most 1024 characters, all of them printable ASCII"
type HeaderMatch struct {
	// Type of comparison.
	//
	// +optional
	// +kubebuilder:default=Exact
	Type ValueMatchType `json:"type,omitempty"`

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

	// Value to compare with; of a RegularExpression, which has to match the
	// whole value, the expression. When a request repeats the header, one of
	// its values has to match.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:Pattern=`^[^\x00-\x08\x0A-\x1F\x7F]+$`
	Value string `json:"value"`
}

// QueryParamMatch compares one parameter of a request's query string, as it
// stands in the URL: %XX is not decoded. Of a parameter that a request repeats,
// the first value counts.
//
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' ? self.value.matches('^[!-~]+$') : self.value.matches('^[A-Za-z0-9/_.~!$()*+,;:@%?=\\'-]+$')",message="queryParams: a value may hold only the characters of a URL: encode others as %XX; a regular expression may hold printable ASCII characters without spaces"
type QueryParamMatch struct {
	// Type of comparison.
	//
	// +optional
	// +kubebuilder:default=Exact
	Type ValueMatchType `json:"type,omitempty"`

	// Name of the parameter, case-sensitive, in the form that it has in a URL.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9/_.~!$()*+,;:@%?'\[\]-]+$`
	Name string `json:"name"`

	// Value to compare with; of a RegularExpression, which has to match the
	// whole value, the expression.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Value string `json:"value"`
}
