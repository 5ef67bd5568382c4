// Package controllers is where the operator reads from and writes to the API
// server; what to do is decided by the pure packages.
//
//	dataplane_controller.go  every replica: objects ─► dataplane ─► agents
//	gateway_controller.go    the leader: Gateways ─► Deployments, Services, …
//	status_controller.go     the leader: what was judged and observed ─► statuses, MeshRoutes
//	authority.go             every replica: the CA's Secret, and agents' tokens
//
// The first has the configuration path for itself: no status write is ever
// waited for before a gateway is told what is new.
package controllers

// What the operator may do. Whatever it reads it reads cluster-wide, because
// routes and gateways may be in any namespace; Secrets only in its own, which
// authority.go's Role says.
//
// +kubebuilder:rbac:groups=meshroute.io,resources=serviceroutes;gatewayconfigs,verbs=get;list;watch
// +kubebuilder:rbac:groups=meshroute.io,resources=serviceroutes/status,verbs=get;patch
// +kubebuilder:rbac:groups=meshroute.io,resources=meshroutes,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=meshroute.io,resources=meshroutes/status,verbs=get;patch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gatewayclasses;gateways;referencegrants,verbs=get;list;watch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=gatewayclasses/status;gateways/status,verbs=get;patch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=services;configmaps;serviceaccounts,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups="",namespace=meshroute-system,resources=secrets,resourceNames=meshroute-ca,verbs=get;update
// +kubebuilder:rbac:groups="",namespace=meshroute-system,resources=secrets,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=meshroute-system,resources=leases,verbs=get;create;update
// +kubebuilder:rbac:groups=events.k8s.io,namespace=meshroute-system,resources=events,verbs=create;patch
