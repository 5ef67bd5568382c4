package v1alpha1

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// LoadBalancingType is how an endpoint is chosen among those of a Service.
// +kubebuilder:validation:Enum=LeastRequest;RoundRobin;Random;RingHash;Maglev
type LoadBalancingType string

const (
	// LoadBalancingLeastRequest draws two endpoints and takes the one that has
	// fewer requests under way.
	LoadBalancingLeastRequest LoadBalancingType = "LeastRequest"
	// LoadBalancingRoundRobin takes one after the other.
	LoadBalancingRoundRobin LoadBalancingType = "RoundRobin"
	// LoadBalancingRandom draws one.
	LoadBalancingRandom LoadBalancingType = "Random"
	// LoadBalancingRingHash takes the endpoint that the request's hash selects
	// on a ring: when endpoints come or go, few requests change theirs.
	LoadBalancingRingHash LoadBalancingType = "RingHash"
	// LoadBalancingMaglev is as RingHash, with a table that spreads requests more
	// evenly and changes a little more when endpoints come or go.
	LoadBalancingMaglev LoadBalancingType = "Maglev"
)

// LoadBalancing says how an endpoint is chosen among those of a backend. Which
// backend it is, of several, their weights and priorities decide.
//
// +kubebuilder:validation:XValidation:rule="(self.type in ['RingHash', 'Maglev']) == has(self.hash)",message="loadBalancing.hash says what RingHash and Maglev hash: they need it, and the other types have no use for it"
type LoadBalancing struct {
	// Type of the choice.
	//
	// +required
	Type LoadBalancingType `json:"type"`

	// Hash says what of a request is hashed. Of several backends that share
	// requests by weight it selects the backend, too.
	//
	// +optional
	Hash *Hash `json:"hash,omitempty"`
}

// HashType is what of a request is hashed.
// +kubebuilder:validation:Enum=Header;Cookie;ClientAddress
type HashType string

const (
	// HashHeader hashes the value of a header.
	HashHeader HashType = "Header"
	// HashCookie hashes the value of a cookie.
	HashCookie HashType = "Cookie"
	// HashClientAddress hashes the address that the client's connection comes
	// from.
	HashClientAddress HashType = "ClientAddress"
)

// Hash says what of a request is hashed. Requests that have nothing of it go to
// any endpoint.
//
// +kubebuilder:validation:XValidation:rule="(self.type == 'Header') == has(self.header)",message="hash.header names the header of type Header: that type needs it, and the others do not take it"
// +kubebuilder:validation:XValidation:rule="(self.type == 'Cookie') == has(self.cookie)",message="hash.cookie is the cookie of type Cookie: that type needs it, and the others do not take it"
type Hash struct {
	// Type of what is hashed.
	//
	// +required
	Type HashType `json:"type"`

	// Header whose value is hashed, case-insensitive.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
	// +kubebuilder:validation:XValidation:rule="!self.contains('_')",message="hash.header: headers with '_' in their names are dropped by gateways before they could be hashed; use '-'"
	// +kubebuilder:validation:XValidation:rule="self.lowerAscii() != 'host'",message="hash.header: the Host header is the same for all clients of a hostname; hash another one"
	Header *string `json:"header,omitempty"`

	// Cookie whose value is hashed.
	//
	// +optional
	Cookie *HashCookieSource `json:"cookie,omitempty"`
}

// HashCookieSource is a cookie whose value is hashed.
//
// +kubebuilder:validation:XValidation:rule="has(self.ttl) || !has(self.path)",message="cookie.path is where the gateway's own cookie is valid, which it sets only where cookie.ttl is given"
type HashCookieSource struct {
	// Name of the cookie.
	//
	// +required
	Name CookieName `json:"name"`

	// TTL makes the gateway set the cookie, with a value that means nothing, for
	// clients that have none; 0s: for as long as the browser runs. Left out, only
	// the clients' own cookies are hashed.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('8760h')",message="cookie.ttl must not be above 8760h"
	TTL *gatewayv1.Duration `json:"ttl,omitempty"`

	// Path for which the cookie is set, "/" when left out.
	//
	// +optional
	Path *CookiePath `json:"path,omitempty"`
}

// CookieName is the name of a cookie (a token of RFC 9110).
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
type CookieName string

// CookiePath is the Path of a cookie: paths that begin with it carry the cookie.
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=256
// +kubebuilder:validation:Pattern=`^/[A-Za-z0-9/_.~!$&()*+,=:@%'-]*$`
type CookiePath string

// SessionAffinity keeps a client's requests at one endpoint.
type SessionAffinity struct {
	// Cookie that the gateway sets, and by which it knows the endpoint again. It
	// holds the endpoint's address and port, encoded and not encrypted: whoever
	// should not see these uses loadBalancing with a hashed cookie.
	//
	// +required
	Cookie AffinityCookie `json:"cookie"`
}

// AffinityCookie is a cookie that binds a client to an endpoint.
type AffinityCookie struct {
	// Name of the cookie.
	//
	// +required
	Name CookieName `json:"name"`

	// TTL is how long a client stays bound, from when it was; then an endpoint is
	// chosen anew. Left out or 0s: for as long as its browser runs.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('8760h')",message="cookie.ttl must not be above 8760h"
	TTL *gatewayv1.Duration `json:"ttl,omitempty"`

	// Path for which the cookie is set, "/" when left out. Requests whose path
	// does not begin with it are not bound.
	//
	// +optional
	Path *CookiePath `json:"path,omitempty"`
}
