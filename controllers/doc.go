// Package controllers is where the operator reads from and writes to the API
// server; what to do is decided by the pure packages.
//
//	dataplane_controller.go      every replica: objects ─► dataplane ─► agents
//	probes_controller.go         every replica: readinessProbes of pods ─► dataplane ─► agents
//	gateway_controller.go        the leader: Gateways ─► Deployments, Services, …
//	networkpolicy_controller.go  the leader: routes ─► NetworkPolicies of backends
//	refusal_controller.go        the leader: what Envoy refuses ─► ControllerRevisions
//	status_controller.go         the leader: what was judged and observed ─► statuses, MeshRoutes
//	certificates.go              every replica: the Secrets that Gateways refer to
//	authority.go                 every replica: the CA's Secret, and agents' tokens
//
// The first has the configuration path for itself: no status write is ever
// waited for before a gateway is told what is new.
package controllers

// What the operator may do: nothing but what the code calls; docs/install.md
// tells what each is for. It reads by list and watch (the cache answers every
// Get), and asks the API server itself for a Service where the cache may be
// behind, for the pods behind Services in use, whose readinessProbes it takes after,
// and for what it would make where the cache, which holds only what this
// operator made, knows of none. Server-side apply needs create and patch; a
// status needs patch on its subresource. It deletes what a Gateway leaves behind
// that changes its class.
//
// In every namespace, or in those that it is restricted to (config/namespaced):
//
// +kubebuilder:rbac:groups=meshroute.io,resources=serviceroutes;gatewayconfigs;healthpolicies,verbs=list;watch
// +kubebuilder:rbac:groups=meshroute.io,resources=serviceroutes/status;healthpolicies/status,verbs=patch
// +kubebuilder:rbac:groups=meshroute.io,resources=meshroutes,verbs=list;watch;create;delete
// +kubebuilder:rbac:groups=meshroute.io,resources=meshroutes/status,verbs=patch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gateways;referencegrants,verbs=list;watch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gateways/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=services;configmaps;serviceaccounts,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=apps,resources=controllerrevisions,verbs=list;watch;create;patch;delete
// +kubebuilder:rbac:groups=autoscaling,resources=horizontalpodautoscalers,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=get;list;watch;create;patch;delete

// Certificates that listeners refer to. The operator asks for single Secrets by
// name, so that who does not want it to read others can bind a Role that names
// these, in their namespace, instead of this one everywhere.
//
// +kubebuilder:rbac:roleName=meshroute-manager-certificates,groups="",resources=secrets,verbs=list;watch

// What belongs to no namespace: classes, the version of Gateway API, the labels
// of namespaces, who an agent is, and who may read metrics.
//
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups=gateway.networking.k8s.io,resources=gatewayclasses,verbs=list;watch
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups=gateway.networking.k8s.io,resources=gatewayclasses/status,verbs=patch
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups=apiextensions.k8s.io,resources=customresourcedefinitions,resourceNames=gateways.gateway.networking.k8s.io,verbs=list;watch
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups="",resources=namespaces,verbs=list;watch
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:roleName=meshroute-manager-cluster,groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// What it may do in its own namespace alone: keep its authority in one Secret
// and its leadership in one Lease (a name cannot restrict create).
//
// +kubebuilder:rbac:groups="",namespace=meshroute-system,resources=secrets,resourceNames=meshroute-ca,verbs=get;update
// +kubebuilder:rbac:groups="",namespace=meshroute-system,resources=secrets,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=meshroute-system,resources=leases,resourceNames=meshroute-manager,verbs=get;update
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=meshroute-system,resources=leases,verbs=create
