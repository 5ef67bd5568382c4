package model

import (
	"cmp"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// LoadBalancing is how an endpoint is chosen among those of a cluster.
type LoadBalancing string

// All ways to choose an endpoint.
const (
	LeastRequest LoadBalancing = ""
	RoundRobin   LoadBalancing = "round-robin"
	Random       LoadBalancing = "random"
	RingHash     LoadBalancing = "ring-hash"
	Maglev       LoadBalancing = "maglev"
)

// Hash is what of a request is hashed: one of a header, a cookie, and the
// client's address.
type Hash struct {
	// Header in lower case.
	Header string
	Cookie Cookie
	// Generate tells that clients without the cookie are given one.
	Generate bool
	// ClientAddress is where the connection comes from.
	ClientAddress bool
}

// Cookie is one that a gateway reads, and may set.
type Cookie struct {
	Name string
	// TTL is how long it is valid; 0: as long as the browser runs.
	TTL  time.Duration
	Path string
}

func loadBalancingOf(source *v1alpha1.LoadBalancing) (LoadBalancing, *Hash) {
	if source == nil {
		return LeastRequest, nil
	}
	switch source.Type {
	case v1alpha1.LoadBalancingRoundRobin:
		return RoundRobin, nil
	case v1alpha1.LoadBalancingRandom:
		return Random, nil
	case v1alpha1.LoadBalancingRingHash:
		return RingHash, hashOf(source.Hash)
	case v1alpha1.LoadBalancingMaglev:
		return Maglev, hashOf(source.Hash)
	default:
		return LeastRequest, nil
	}
}

func hashOf(source *v1alpha1.Hash) *Hash {
	switch {
	case source == nil:
		return nil // no schema admits it
	case source.Type == v1alpha1.HashHeader && source.Header != nil:
		return &Hash{Header: strings.ToLower(*source.Header)}
	case source.Type == v1alpha1.HashCookie && source.Cookie != nil:
		cookie := source.Cookie
		if cookie.TTL == nil {
			return &Hash{Cookie: Cookie{Name: string(cookie.Name)}}
		}
		return &Hash{Generate: true, Cookie: cookieOf(cookie.Name, cookie.TTL, cookie.Path)}
	default:
		return &Hash{ClientAddress: true}
	}
}

func affinityOf(source *v1alpha1.SessionAffinity) *Cookie {
	if source == nil {
		return nil
	}
	cookie := cookieOf(source.Cookie.Name, source.Cookie.TTL, source.Cookie.Path)
	return &cookie
}

func cookieOf(name v1alpha1.CookieName, ttl *gatewayv1.Duration, path *v1alpha1.CookiePath) Cookie {
	return Cookie{Name: string(name), TTL: durationOr(ttl, 0), Path: cmp.Or(string(valueOr(path, "/")), "/")}
}

// backedUp is the same cluster with others behind it. It is another one in Envoy,
// as settings are a part of the name.
func (c Cluster) backedUp() Cluster {
	if !c.BackedUp {
		c.BackedUp = true
		c.Name += "/backed-up"
	}
	return c
}
