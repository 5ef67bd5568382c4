package envoy

import (
	"regexp"
	"strings"
	"time"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"meshroute.io/meshroute/internal/model"
)

const (
	// handshakeTimeout is how long a client may take for its TLS handshake.
	handshakeTimeout = 10 * time.Second

	// secretTimeout is how long a new listener waits for its certificates. They
	// are at the agent beside it when it comes; should there be none for one
	// hostname, the others have waited long enough.
	secretTimeout = time.Second
)

// secretName is the name of a certificate among the secrets.
func secretName(secret model.Key) string { return secret.String() }

// secret is a certificate with its key; without content where there is none that
// is good, which says that Envoy is to keep the one that it has.
func secret(certificate *model.Certificate) *tlsv3.Secret {
	made := &tlsv3.Secret{Name: secretName(certificate.Secret)}
	if len(certificate.Chain) > 0 {
		inline := func(content []byte) *corev3.DataSource {
			return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
		}
		made.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(certificate.Chain),
			PrivateKey:       inline(certificate.PrivateKey),
		}}
	}
	return made
}

// secrets are the secrets of a gateway. What has not changed since before is the
// same message as then.
func secrets(before map[*model.Certificate]proto.Message, gw model.Gateway) map[*model.Certificate]proto.Message {
	now := make(map[*model.Certificate]proto.Message, len(gw.Certificates))
	for _, certificate := range gw.Certificates {
		made, known := before[certificate]
		if !known {
			made = secret(certificate)
		}
		now[certificate] = made
	}
	return now
}

// terminate makes a listener serve TLS: a filter chain for each hostname that
// has a certificate, chosen by what the client asks for. All of them serve the
// port's routes. It returns nil where there is no hostname to serve.
func terminate(made *listenerv3.Listener, manager *hcmv3.HttpConnectionManager, listeners []model.TLSListener) *listenerv3.Listener {
	made.FilterChains = nil
	for _, l := range listeners {
		if len(l.Certificates) == 0 {
			continue
		}
		own := proto.CloneOf(manager)
		if filter := misdirected(l.Hostname, listeners); filter != nil {
			own.HttpFilters = append([]*hcmv3.HttpFilter{filter}, own.GetHttpFilters()...)
		}
		chain := &listenerv3.FilterChain{
			Name: l.Hostname,
			Filters: []*listenerv3.Filter{{
				Name:       wellknown.HTTPConnectionManager,
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(own)},
			}},
			TransportSocket: &corev3.TransportSocket{
				Name:       wellknown.TransportSocketTls,
				ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustAny(downstreamTLS(l.Certificates))},
			},
			TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
		}
		if l.Hostname != anyHost {
			chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: []string{l.Hostname}}
		}
		made.FilterChains = append(made.FilterChains, chain)
	}
	if len(made.GetFilterChains()) == 0 {
		return nil
	}
	made.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       wellknown.TLSInspector,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustAny(&tlsinspectorv3.TlsInspector{})},
	}}
	return made
}

// anyHost is the hostname that stands for any other.
const anyHost = "*"

// downstreamTLS is what clients are offered. Envoy's own versions and ciphers are
// TLS 1.2 with forward secrecy and authenticated encryption, and TLS 1.3.
func downstreamTLS(certificates []model.Key) *tlsv3.DownstreamTlsContext {
	common := &tlsv3.CommonTlsContext{AlpnProtocols: []string{"h2", "http/1.1"}}
	source := adsConfigSource()
	source.InitialFetchTimeout = durationpb.New(secretTimeout)
	for _, certificate := range certificates {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs,
			&tlsv3.SdsSecretConfig{Name: secretName(certificate), SdsConfig: source})
	}
	return &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
}

// misdirected answers 421 to requests for hosts of other listeners than the one
// of their connection, as a client sends them that takes one connection for all
// names of a certificate; it then makes another one (RFC 9110, 15.5.20). Nil
// where there is no other.
func misdirected(own string, listeners []model.TLSListener) *hcmv3.HttpFilter {
	var narrower, others []string
	for _, other := range listeners {
		switch {
		case other.Hostname == own:
		case covers(own, other.Hostname):
			narrower = append(narrower, hostPattern(other.Hostname))
		default:
			others = append(others, hostPattern(other.Hostname))
		}
	}
	// Served here: what is this listener's, and what is nobody's (which gets
	// 404). A host of a wider listener is that one's if it is not this one's.
	var served *xdsmatcherv3.Matcher_MatcherList_Predicate
	if len(others) > 0 && own != anyHost {
		served = predicates(false, authority(hostPattern(own)), not(authority(others...)))
	}
	if len(narrower) > 0 {
		if notTheirs := not(authority(narrower...)); served == nil {
			served = notTheirs
		} else {
			served = predicates(true, served, notTheirs)
		}
	}
	if served == nil {
		return nil
	}
	return &hcmv3.HttpFilter{
		Name: "meshroute.misdirected",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: onlyWhere(not(served), wellknown.Fault, mustAny(&faultv3.HTTPFault{
			Abort: &faultv3.FaultAbort{
				ErrorType:  &faultv3.FaultAbort_HttpStatus{HttpStatus: 421},
				Percentage: &typev3.FractionalPercent{Numerator: 100},
			},
		}))},
	}
}

// covers tells whether every host that narrow stands for is one of wide's.
func covers(wide, narrow string) bool {
	suffix, wildcard := strings.CutPrefix(wide, "*")
	return wide == narrow || wildcard && strings.HasSuffix(narrow, suffix) && narrow != suffix
}

// hostPattern matches the hosts that a hostname stands for.
func hostPattern(hostname string) string {
	if hostname == anyHost {
		return ".*"
	}
	if suffix, wildcard := strings.CutPrefix(hostname, "*"); wildcard {
		return ".+" + regexp.QuoteMeta(suffix)
	}
	return regexp.QuoteMeta(hostname)
}

// authority matches the host of a request, with or without a port.
func authority(patterns ...string) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	return headerMatches(":authority", "(?i)("+strings.Join(patterns, "|")+")(:[0-9]+)?")
}

// predicates holds where all of them do, or any.
func predicates(all bool, of ...*xdsmatcherv3.Matcher_MatcherList_Predicate) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	list := &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: of}
	if all {
		return &xdsmatcherv3.Matcher_MatcherList_Predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher{AndMatcher: list}}
	}
	return &xdsmatcherv3.Matcher_MatcherList_Predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher{OrMatcher: list}}
}
