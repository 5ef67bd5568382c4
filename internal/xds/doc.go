// Package xds brings a gateway's configuration from the manager to its Envoys
// and tells the manager what they made of it.
//
//	internal/envoy ─► Server (manager) ─ mTLS ─► Relay (agent) ─ Unix socket ─► Envoy
//
// Both hops speak delta ADS. The Server keeps the wanted resources of every
// gateway, sends differences, and knows from reports (package report) what each
// pod has; what the resources mean is no concern of its. The Relay stands in the gateway pod: it puts
// changes into the order in which no request is lost (clusters, their
// endpoints, then routes, then listeners; removals last), acknowledges only
// what its Envoy has, and keeps the last good configuration in a file, so that
// the gateway serves, and restarts, with every manager gone. Secrets are kept in
// a file of their own, in memory: keys never touch a disk.
//
// A secret without content says "keep the one that you have": the manager knows
// that there is one, and of none that is good. It is sent to no Envoy.
//
// # Answers between Relay and Server
//
// An ACK means that Envoy has everything of the type. A NACK means that Envoy
// refused something of the type, or that something waits for what Envoy
// refused. A NACK with the gRPC code Unavailable (a deferral) means "received,
// not applied yet, send on": the relay has no Envoy at present, or waits for
// something that only a later response can bring. It exists because
// go-control-plane sends nothing new of a type before the last response was
// answered, whatever the answer. The last response of a type may be answered
// again when the answer changed; the last answer counts.
package xds

import (
	"slices"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// kind is an index into kinds: a resource type, in the order of application.
type kind int

const (
	clusters kind = iota
	endpoints
	secrets
	routes
	listeners
	numKinds
)

// kinds is the one list of the resource types that travel.
var kinds = [numKinds]struct {
	url string
	// noun is what people call a resource of this type, label what metrics do.
	noun, label string
	// wildcard types are wanted whole by Envoy; of others it names what it wants.
	wildcard bool
	// refs finds what a resource needs; sorted, each once.
	refs func(body []byte) ([]ref, error)
	// users is the type whose resources need those of this one.
	users kind
}{
	clusters:  {url: resource.ClusterType, noun: "cluster", label: "clusters", wildcard: true, refs: clusterRefs, users: routes},
	endpoints: {url: resource.EndpointType, noun: "endpoints of cluster", label: "endpoints", users: clusters},
	secrets:   {url: resource.SecretType, noun: "secret", label: "secrets", users: listeners},
	routes:    {url: resource.ScopedRouteType, noun: "routes", label: "routes", wildcard: true, refs: routeRefs},
	listeners: {url: resource.ListenerType, noun: "listener", label: "listeners", wildcard: true, refs: listenerRefs},
}

// Types returns the type URLs that travel, in the order in which they are
// applied. A gateway is served once each of them was Set.
func Types() []string {
	urls := make([]string, 0, numKinds)
	for _, k := range kinds {
		urls = append(urls, k.url)
	}
	return urls
}

func kindOf(url string) (kind, bool) {
	for k := range numKinds {
		if kinds[k].url == url {
			return k, true
		}
	}
	return 0, false
}

// ReservedClusters are names that routes may use although no manager ever sends
// such a cluster: one stands for missing backends and does not exist on
// purpose, the other is in Envoy's bootstrap. No route waits for them.
var ReservedClusters = []string{"meshroute-missing-backend", "meshroute-agent"}

func reserved(name string) bool { return slices.Contains(ReservedClusters, name) }

// MaxMessageSize bounds one gRPC message on both hops: who comes new to a gateway
// with many thousand routes gets them in one message of some megabytes, and
// gRPC's own bound is 4 MiB.
const MaxMessageSize = 128 << 20

// maxNackMessage bounds what is passed on of Envoy's words.
const maxNackMessage = 1 << 10

// ServerOptions are for the manager's gRPC server. A dead agent is noticed
// after 15 s; agents may ping each 5 s, with or without a stream. Connections
// are closed at maxConnectionAge, a little later or earlier each (0: never), so
// that agents spread over the replicas again after one was away; an agent that
// comes back is sent only differences.
func ServerOptions(maxConnectionAge time.Duration) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: time.Second, // streams never end by themselves
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// LocalServerOptions are for the agent's gRPC server on the Unix socket. No
// keepalive: a socket's other end cannot vanish unnoticed.
func LocalServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(MaxMessageSize)}
}

// DialOptions are for the agent's connection to the manager, beside its
// credentials. A manager that vanished without closing its connections (a lost
// node) is noticed after 15 s.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageSize)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}
}
