package xds

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The routes of a hostname are one resource, which Envoy takes or refuses whole;
// they may be those of many objects. A search finds out which objects Envoy
// refuses, by trying them on it: each as it is wanted, or as it was. What Envoy
// takes meanwhile serves. At the end all objects are as wanted but for the refused
// ones, which are as they were, or left out.
//
// Whose a route is says its name: namespace/object/…

// search is about one refused version of one resource.
type search struct {
	of     *version                          // what was refused
	wanted *routev3.ScopedRouteConfiguration // the same
	was    *routev3.ScopedRouteConfiguration // what Envoy had before; nil: nothing

	groups [][]string        // objects to be tried, each group together
	good   map[string]bool   // those that were taken
	bad    map[string]string // those that were not, with Envoy's words

	trial  *version // being tried, or the outcome
	trying []string // what is new in it; nil: it is the outcome
}

// newSearch begins with what is known already: objects that were refused as they
// are. It is nil where objects cannot be told apart, or none has changed.
func newSearch(of, was *version, known map[string]refusedObject) *search {
	s := &search{of: of, wanted: scopeOf(of), was: scopeOf(was), good: map[string]bool{}, bad: map[string]string{}}
	if s.wanted == nil || was != nil && s.was == nil {
		return nil
	}
	wanted, before := objectsOf(s.wanted), objectsOf(s.was)
	var changed []string
	for object, digest := range wanted {
		switch refused, again := known[object]; {
		case again && refused.digest == digest:
			s.bad[object] = refused.why
		case before[object] != digest:
			changed = append(changed, object)
		}
	}
	for object := range before {
		if _, stays := wanted[object]; !stays {
			s.good[object] = true // nobody refuses that something goes
		}
	}
	slices.Sort(changed)
	switch {
	case len(changed)+len(s.bad) == 0:
		return nil
	case len(changed) == 1 && of.refused != "":
		s.bad[changed[0]] = of.refused
	case len(s.bad) > 0:
		s.groups = [][]string{changed} // may be empty: then without the known ones
	default:
		s.groups = halves(changed)
	}
	s.next()
	return s
}

func halves(objects []string) [][]string {
	if len(objects) < 2 {
		return [][]string{objects}
	}
	return [][]string{objects[:len(objects)/2], objects[len(objects)/2:]}
}

// taken notes that Envoy has taken the trial.
func (s *search) taken() {
	for _, object := range s.trying {
		s.good[object] = true
	}
	s.next()
}

// refused notes that it has not. With a group of one its object is found.
func (s *search) refused(why string) {
	if len(s.trying) == 1 {
		s.bad[s.trying[0]] = why
	} else if len(s.trying) > 1 {
		s.groups = append(halves(s.trying), s.groups...)
	}
	s.next()
}

// why names the objects that were refused.
func (s *search) why() string {
	var why []string
	for _, object := range slices.Sorted(maps.Keys(s.bad)) {
		why = append(why, object+": "+s.bad[object])
	}
	return strings.Join(why, "; ")
}

// done tells that every object was tried.
func (s *search) done() bool { return s.trying == nil }

// next makes the next trial, or the outcome.
func (s *search) next() {
	s.trying = nil
	if len(s.groups) > 0 {
		s.trying, s.groups = s.groups[0], s.groups[1:]
		if s.trying == nil {
			s.trying = []string{}
		}
	}
	isNew := func(object string) bool { return s.good[object] || slices.Contains(s.trying, object) }
	// What was parsed can be written.
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(merge(s.wanted, s.was, isNew))
	sum := sha256.Sum256(body)
	refs, _ := routeRefs(body)
	s.trial = &version{
		Resource: &discoveryv3.Resource{
			Name: s.of.GetName(), Version: s.of.GetVersion() + "-" + hex.EncodeToString(sum[:8]),
			Resource: &anypb.Any{TypeUrl: s.of.GetResource().GetTypeUrl(), Value: body},
		},
		refs: refs,
	}
}

// refusedObject is an object that Envoy refused, as it was then.
type refusedObject struct {
	digest [sha256.Size]byte
	why    string
}

// remember adds what was found to what is known of a resource's objects, and
// forgets those that are no longer as they were.
func (s *search) remember() map[string]refusedObject {
	wanted := objectsOf(s.wanted)
	known := make(map[string]refusedObject, len(s.bad))
	for object, why := range s.bad {
		known[object] = refusedObject{wanted[object], why}
	}
	return known
}

func scopeOf(v *version) *routev3.ScopedRouteConfiguration {
	if v == nil || v.unknown {
		return nil
	}
	scope := &routev3.ScopedRouteConfiguration{}
	if proto.Unmarshal(v.GetResource().GetValue(), scope) != nil || scope.GetRouteConfiguration() == nil {
		return nil
	}
	return scope
}

// objectOf is whose a route is; "" for one that is nobody's.
func objectOf(route *routev3.Route) string {
	parts := strings.SplitN(route.GetName(), "/", 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[0] + "/" + parts[1]
}

// objectsOf is what each object says in a scope, as a digest.
func objectsOf(scope *routev3.ScopedRouteConfiguration) map[string][sha256.Size]byte {
	said := map[string]*bytes.Buffer{}
	for _, host := range scope.GetRouteConfiguration().GetVirtualHosts() {
		for _, route := range host.GetRoutes() {
			object := objectOf(route)
			if object == "" {
				continue
			}
			if said[object] == nil {
				said[object] = &bytes.Buffer{}
			}
			body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(route)
			said[object].WriteString(host.GetName() + "\x00")
			said[object].Write(body)
		}
	}
	digests := make(map[string][sha256.Size]byte, len(said))
	for object, text := range said {
		digests[object] = sha256.Sum256(text.Bytes())
	}
	return digests
}

// merge is a scope with some objects as in wanted, and all others as in was.
func merge(wanted, was *routev3.ScopedRouteConfiguration, isNew func(object string) bool) *routev3.ScopedRouteConfiguration {
	before := map[string]*routev3.VirtualHost{}
	for _, host := range was.GetRouteConfiguration().GetVirtualHosts() {
		before[host.GetName()] = host
	}
	made := proto.Clone(wanted).(*routev3.ScopedRouteConfiguration)
	hosts := made.GetRouteConfiguration().GetVirtualHosts()
	for _, host := range hosts {
		host.Routes = mergeRoutes(host.GetRoutes(), before[host.GetName()].GetRoutes(), isNew)
		delete(before, host.GetName())
	}
	for _, name := range slices.Sorted(maps.Keys(before)) { // hostnames that are wanted no more
		host := proto.Clone(before[name]).(*routev3.VirtualHost)
		host.Routes = mergeRoutes(nil, host.GetRoutes(), isNew)
		hosts = append(hosts, host)
	}
	hosts = slices.DeleteFunc(hosts, func(host *routev3.VirtualHost) bool { return len(host.GetRoutes()) == 0 })
	slices.SortFunc(hosts, func(a, b *routev3.VirtualHost) int { return cmp.Compare(a.GetName(), b.GetName()) })
	made.RouteConfiguration.VirtualHosts = hosts
	return made
}

// mergeRoutes keeps of wanted what is new or nobody's. What is to be as it was
// comes where it is wanted, or else before the route that it stood before.
func mergeRoutes(wanted, was []*routev3.Route, isNew func(string) bool) []*routev3.Route {
	var merged []*routev3.Route
	place := map[string]int{}
	for _, route := range wanted {
		if _, known := place[route.GetName()]; !known {
			place[route.GetName()] = len(merged)
		}
		if object := objectOf(route); object == "" || isNew(object) {
			merged = append(merged, route)
		}
	}
	end := len(merged)
	for end > 0 && objectOf(merged[end-1]) == "" {
		end-- // what answers for all that is left stays last
	}
	at := end
	before := make([][]*routev3.Route, len(merged)+1)
	for _, route := range slices.Backward(was) {
		object := objectOf(route)
		if to, known := place[route.GetName()]; known && object != "" {
			at = to
		}
		if object != "" && !isNew(object) {
			before[at] = append(before[at], route)
		}
	}
	var all []*routev3.Route
	for i := range before {
		slices.Reverse(before[i])
		all = append(all, before[i]...)
		if i < len(merged) {
			all = append(all, merged[i])
		}
	}
	return all
}
