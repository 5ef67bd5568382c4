package model

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// routeOf returns what a rule says of all of its matches alike, without its
// backends and mirrors.
func routeOf(source *v1alpha1.ServiceRouteRule) Route {
	route := Route{ResponseHeaders: headerChangesOf(source.ResponseHeaders)}
	switch {
	case source.DirectResponse != nil && source.DirectResponse.Type == v1alpha1.DirectResponseStubStatus:
		route.StubStatus = true
	case source.DirectResponse != nil:
		route.Response = responseOf(source.DirectResponse)
	case source.Redirect != nil:
		route.Redirect = redirectOf(source.Redirect)
	default:
		route.RequestHeaders = headerChangesOf(source.RequestHeaders)
		route.Rewrite = rewriteOf(source.Rewrite)
		route.CORS = corsOf(source.CORS)
		route.setTimeouts(source.Timeouts)
	}
	return route
}

func responseOf(source *v1alpha1.DirectResponse) *Response {
	return &Response{
		Status:      uint32(valueOr(source.Status, 200)),
		Body:        valueOr(source.Body, ""),
		ContentType: valueOr(source.ContentType, "text/plain; charset=utf-8"),
	}
}

func rewriteOf(source *v1alpha1.Rewrite) Rewrite {
	if source == nil {
		return Rewrite{}
	}
	return Rewrite{
		Prefix:   valueOr(source.PathPrefix, ""),
		Path:     valueOr(source.Path, ""),
		Hostname: string(valueOr(source.Hostname, "")),
	}
}

func redirectOf(source *v1alpha1.Redirect) *Redirect {
	return &Redirect{
		Scheme:   valueOr(source.Scheme, ""),
		Hostname: string(valueOr(source.Hostname, "")),
		Port:     valueOr(source.Port, 0),
		Prefix:   valueOr(source.PathPrefix, ""),
		Path:     valueOr(source.Path, ""),
		Status:   uint32(valueOr(source.StatusCode, 302)),
	}
}

// usualPorts are the ports that no URL has to name.
var usualPorts = map[string]int32{"http": 80, "https": 443}

// on returns the redirect as it is for requests to a hostname on a port: what is
// left out of its URL depends on these.
func (r *Redirect) on(hostname string, p *port) *Redirect {
	if r == nil {
		return nil
	}
	made := *r
	switch {
	case made.Port != 0:
	case made.Scheme != "":
		made.Port = p.neighbour(made.Scheme, cmp.Or(made.Hostname, hostname))
	case made.Hostname != "":
		made.Port = p.number
	default:
		made.Port = KeepPort
		return &made
	}
	if usual := cmp.Or(made.Scheme, p.scheme()); usualPorts[usual] == made.Port {
		made.Scheme, made.Port = usual, 0
	}
	if made.Hostname == "" && !strings.HasPrefix(hostname, "*") {
		made.Hostname = hostname
	}
	return &made
}

// scheme is that of the URLs that lead to the port.
func (p *port) scheme() string {
	if p.https {
		return "https"
	}
	return "http"
}

// neighbour is the port on which the gateway answers for a hostname by another
// scheme: the usual one, unless there is only another.
func (p *port) neighbour(scheme, hostname string) int32 {
	found := int32(0)
	for number, other := range p.gateway.ports {
		serves := other.scheme() == scheme && slices.ContainsFunc(other.listeners, func(l *listener) bool {
			return covers(l.host(), hostname) || covers(hostname, l.host())
		})
		switch {
		case !serves:
		case number == usualPorts[scheme]:
			return number
		case found == 0 || number < found:
			found = number
		}
	}
	return cmp.Or(found, usualPorts[scheme])
}

func headerChangesOf(source *v1alpha1.HeaderChanges) HeaderChanges {
	if source == nil {
		return HeaderChanges{}
	}
	headers := func(values []v1alpha1.HeaderValue) []Header {
		var list []Header
		for _, value := range values {
			list = append(list, Header{strings.ToLower(string(value.Name)), value.Value})
		}
		slices.SortFunc(list, func(a, b Header) int { return cmp.Compare(a.Name, b.Name) })
		return list
	}
	changes := HeaderChanges{Set: headers(source.Set), Add: headers(source.Add)}
	for _, name := range source.Remove {
		changes.Remove = append(changes.Remove, strings.ToLower(string(name)))
	}
	slices.Sort(changes.Remove)
	changes.Remove = slices.Compact(changes.Remove)
	return changes
}

func corsOf(source *v1alpha1.CORS) *CORS {
	if source == nil {
		return nil
	}
	cors := &CORS{
		Methods:         texts(source.AllowMethods),
		RequestHeaders:  texts(source.AllowHeaders),
		ResponseHeaders: texts(source.ExposeHeaders),
		Credentials:     valueOr(source.AllowCredentials, false),
		MaxAge:          time.Duration(valueOr(source.MaxAge, 5)) * time.Second,
	}
	for _, origin := range source.AllowOrigins {
		cors.Origins = append(cors.Origins, originOf(string(origin)))
	}
	slices.SortFunc(cors.Origins, func(a, b Origin) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Scheme, b.Scheme), cmp.Compare(a.Port, b.Port))
	})
	cors.Origins = slices.Compact(cors.Origins)
	return cors
}

func texts[T ~string](list []T) []string {
	var made []string
	for _, text := range list {
		made = append(made, string(text))
	}
	return made
}

func originOf(source string) Origin {
	if source == "*" {
		return Origin{Any: true}
	}
	scheme, host, _ := strings.Cut(source, "://")
	host, port, _ := strings.Cut(host, ":")
	if port == strconv.Itoa(int(usualPorts[scheme])) {
		port = "" // browsers leave it out
	}
	return Origin{Scheme: scheme, Host: strings.ToLower(host), Port: port}
}

// perMillion is how many of a million requests a mirror gets.
func perMillion(source *v1alpha1.Mirror) uint32 {
	const million = 1_000_000
	numerator, denominator := int64(100), int64(100)
	switch {
	case source.Percent != nil:
		numerator = int64(*source.Percent)
	case source.Fraction != nil:
		numerator, denominator = int64(source.Fraction.Numerator), int64(valueOr(source.Fraction.Denominator, 100))
	}
	if denominator <= 0 {
		return 0
	}
	return uint32(min(max(numerator, 0)*million/denominator, million))
}

func (r *Route) setTimeouts(source *v1alpha1.Timeouts) {
	r.Timeout = DefaultRequestTimeout
	if source == nil {
		return
	}
	r.Timeout = durationOr(source.Request, DefaultRequestTimeout)
	r.BackendTimeout = durationOr(source.BackendRequest, 0)
	if source.Idle != nil {
		idle := durationOr(source.Idle, -1)
		if idle >= 0 {
			r.IdleTimeout = &idle
		}
	}
}

func durationOr(source *gatewayv1.Duration, fallback time.Duration) time.Duration {
	if source == nil {
		return fallback
	}
	// The schema's pattern admits only what ParseDuration takes.
	duration, err := time.ParseDuration(string(*source))
	if err != nil || duration < 0 {
		return fallback
	}
	return duration
}

// mirrors resolves the mirrors of a rule, and returns a sentence for each that
// cannot be, with the reason of the first.
func (b *linker) mirrors(namespace string, from *v1alpha1.ServiceRouteRule, to *rule) (reason string, problems []string) {
	for i := range from.Mirrors {
		mirror := &from.Mirrors[i]
		service := serviceOf(namespace, mirror.ServiceReference)
		cluster, why, problem := b.backend(namespace, service, mirror.Port, LeastRequest)
		if problem != "" {
			reason = cmp.Or(reason, why)
			problems = append(problems, fmt.Sprintf("rule %q: %s (nothing is mirrored to it)", from.Name, problem))
		}
		share := perMillion(mirror)
		if cluster != nil && share > 0 {
			to.route.Mirrors = append(to.route.Mirrors, Mirror{Cluster: cluster.Name, PerMillion: share})
		}
		if cluster != nil {
			to.clusters = append(to.clusters, *cluster)
		}
		to.backends = append(to.backends, BackendStatus{Service: service, Port: mirror.Port.String(), Cluster: cluster, Idle: true})
	}
	return reason, problems
}

// serviceOf is the Service that a reference in a namespace means.
func serviceOf(namespace string, reference v1alpha1.ServiceReference) Key {
	return Key{
		Namespace: string(valueOr(reference.Namespace, gatewayv1.Namespace(namespace))),
		Name:      string(reference.Name),
	}
}
