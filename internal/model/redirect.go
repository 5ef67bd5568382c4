package model

import (
	"cmp"
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// circles tells whether a redirect, as it is for a hostname on a port, sends the
// client to the URL that it has just asked for, so that the same rule answers
// again. Circles over several rules, or by a path that matches as well, depend on
// what other rules there are, and are not looked for.
func (r *Route) circles(hostname string, p *port) bool {
	to := r.Redirect
	switch {
	case to == nil,
		cmp.Or(to.Scheme, p.scheme()) != p.scheme(),
		cmp.Or(to.Hostname, hostname) != hostname,
		to.Port != KeepPort && cmp.Or(to.Port, usualPorts[to.Scheme]) != p.number:
		return false
	case to.Path != "" && (r.Match.Type != PathExact || to.Path != r.Match.Path),
		to.Prefix != "" && (r.Match.Type != PathPrefix || to.Prefix != r.Match.Path):
		return false
	}
	// The client may come back another: by another method, or with a cookie.
	switch method := gatewayv1.HTTPMethod(r.Match.Method); to.Status {
	case 301, 302:
		if method == gatewayv1.HTTPMethodPost {
			return false
		}
	case 303:
		if method != "" && method != gatewayv1.HTTPMethodGet && method != gatewayv1.HTTPMethodHead {
			return false
		}
	}
	return !slices.ContainsFunc(slices.Concat(r.ResponseHeaders.Set, r.ResponseHeaders.Add), func(h Header) bool { return h.Name == "set-cookie" })
}

// circle is what is said of a rule's match that is left out because of that.
func circle(rule string, match Match, hostname string, p *port) string {
	return fmt.Sprintf("rule %q: %s on port %d is redirected to itself, without end (the match is left out there): name the listeners it is for in parentRefs, or redirect elsewhere",
		rule, match.describe(hostname), p.number)
}
