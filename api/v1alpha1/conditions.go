package v1alpha1

// ControllerName is the controllerName of the GatewayClasses that this
// operator serves.
const ControllerName = "meshroute.io/gateway-controller"

// DefaultGatewayLabel marks the Gateway that a ServiceRoute without parentRefs
// attaches to: the marked one in its own namespace, else the cluster's. Its
// value is not looked at.
const DefaultGatewayLabel = "meshroute.io/default-gateway"

// IsolationLabel, with the value IsolationGateway, on a Service asks that its
// pods answer only the gateways that route to it
// (GatewayConfig.spec.networkPolicy.backends).
const (
	IsolationLabel   = "meshroute.io/isolation"
	IsolationGateway = "gateway"
)

// MeshRouteStatusName is the name of the MeshRoute that sums up its namespace.
// No ServiceRoute may have it.
const MeshRouteStatusName = "status"

// Condition types. Every object that the operator judges carries Accepted,
// ResolvedRefs and Programmed as far as they apply, and Ready, which sums them
// up: it is True when all of them are, and otherwise repeats the first that is
// not.
const (
	// ConditionAccepted tells whether the object is valid and attached.
	ConditionAccepted = "Accepted"
	// ConditionResolvedRefs tells whether everything it refers to exists and
	// may be used.
	ConditionResolvedRefs = "ResolvedRefs"
	// ConditionProgrammed tells whether every connected gateway pod has
	// acknowledged the configuration that came of it.
	ConditionProgrammed = "Programmed"
	// ConditionReady sums up the others.
	ConditionReady = "Ready"
	// ConditionPartiallyInvalid is present, and True, only while a part of the
	// object is left out and the rest serves.
	ConditionPartiallyInvalid = "PartiallyInvalid"
	// ConditionBackendsIsolated is present on a route whose backends' pods are to
	// answer gateways alone, and tells whether a policy for all of them is made.
	ConditionBackendsIsolated = "BackendsIsolated"
	// ConditionNetworkPolicyEnforced is present on a Gateway whose pods try
	// whether network policies are enforced, and tells what they found.
	ConditionNetworkPolicyEnforced = "NetworkPolicyEnforced"
	// ConditionCertificatesValid is present on an HTTPS listener that serves, and
	// tells whether clients take its certificates.
	ConditionCertificatesValid = "CertificatesValid"
)

// Reasons of conditions, beside those that Gateway API defines.
const (
	// ReasonReady: all other conditions are True.
	ReasonReady = "Ready"
	// ReasonNoDefaultGateway: the route names no parent and no Gateway carries
	// the label meshroute.io/default-gateway.
	ReasonNoDefaultGateway = "NoDefaultGateway"
	// ReasonGatewayClassNotFound: the parent Gateway names a GatewayClass that
	// does not exist.
	ReasonGatewayClassNotFound = "GatewayClassNotFound"
	// ReasonGatewayNotFound: the parent Gateway does not exist.
	ReasonGatewayNotFound = "GatewayNotFound"
	// ReasonRouteConflict: another route, older or listed earlier, already
	// matches the same host, path and headers on the same listener.
	ReasonRouteConflict = "RouteConflict"
	// ReasonInvalidRegularExpression: a match holds a regular expression that is
	// none, or that is too big.
	ReasonInvalidRegularExpression = "InvalidRegularExpression"
	// ReasonRedirectLoop: a redirect leads to where it comes from.
	ReasonRedirectLoop = "RedirectLoop"
	// ReasonPortNotFound: a backend names a port that its Service does not have.
	ReasonPortNotFound = "PortNotFound"
	// ReasonUnsupportedService: a backend's Service cannot be routed to.
	ReasonUnsupportedService = "UnsupportedService"
	// ReasonNoEndpoints: a backend has no ready endpoint, so requests to it get 503.
	ReasonNoEndpoints = "NoEndpoints"
	// ReasonEndpointsUnhealthy: every endpoint of a backend fails its health check.
	// Requests go to all of them then, for lack of better ones.
	ReasonEndpointsUnhealthy = "EndpointsUnhealthy"
	// ReasonRoutesNotReady: some routes of the namespace are not ready.
	ReasonRoutesNotReady = "RoutesNotReady"
	// ReasonNoGatewayPods: no pod of the gateway is connected to the operator.
	ReasonNoGatewayPods = "NoGatewayPods"
	// ReasonPodsForbidden: the API server refuses the gateway's pods: a quota,
	// Pod Security, a webhook.
	ReasonPodsForbidden = "PodsForbidden"
	// ReasonPodsUnschedulable: no node takes a pod of the gateway.
	ReasonPodsUnschedulable = "PodsUnschedulable"
	// ReasonImageUnavailable: an image of the gateway's pods cannot be pulled.
	ReasonImageUnavailable = "ImageUnavailable"
	// ReasonPodsCrashing: a container of the gateway's pods ends again and again.
	ReasonPodsCrashing = "PodsCrashing"
	// ReasonPodsNotRunning: the gateway's pods do not start, or were ended, for
	// another reason.
	ReasonPodsNotRunning = "PodsNotRunning"
	// ReasonObjectRefused: the API server refuses an object that runs the
	// gateway, for instance a Service whose nodePort is taken.
	ReasonObjectRefused = "ObjectRefused"
	// ReasonNameTaken: an object that runs the gateway would have the name of
	// one that is not this Gateway's.
	ReasonNameTaken = "NameTaken"
	// ReasonWaiting: the newest configuration is on its way to gateway pods.
	ReasonWaiting = "Waiting"
	// ReasonWaitingForNetworkPolicy: requests are sent to a backend only once the
	// policy that lets the gateway's pods reach it is there.
	ReasonWaitingForNetworkPolicy = "WaitingForNetworkPolicy"
	// ReasonEnforced: every connected pod of the gateway found that network
	// policies are enforced.
	ReasonEnforced = "Enforced"
	// ReasonNotEnforced: a pod of the gateway reached what a network policy
	// forbids.
	ReasonNotEnforced = "NotEnforced"
	// ReasonNotVerifiedYet: not every pod of the gateway knows whether network
	// policies are enforced.
	ReasonNotVerifiedYet = "NotVerifiedYet"
	// ReasonIsolated: policies let only gateways reach the backends' pods.
	ReasonIsolated = "Isolated"
	// ReasonNoSelector: a Service that is to be isolated has no selector, so it
	// is not known which pods are meant.
	ReasonNoSelector = "NoSelector"
	// ReasonNotInUse: a policy is in force for no backend of any gateway.
	ReasonNotInUse = "NotInUse"
	// ReasonCertificatesValid: the certificates are valid now, and for the
	// listener's hostname.
	ReasonCertificatesValid = "Valid"
	// ReasonCertificateExpired: a certificate has expired. It is served all the
	// same.
	ReasonCertificateExpired = "Expired"
	// ReasonCertificateNotYetValid: a certificate is not valid yet.
	ReasonCertificateNotYetValid = "NotYetValid"
	// ReasonCertificateNameMismatch: no certificate is for the listener's
	// hostname.
	ReasonCertificateNameMismatch = "NameMismatch"
	// ReasonListenerNotServed: no listener that the route is attached to has a
	// certificate that can be served.
	ReasonListenerNotServed = "ListenerNotServed"
	// ReasonRefused: Envoy refused the configuration, or a route; the previous one
	// serves on, if there was any.
	ReasonRefused = "RefusedByEnvoy"
)
