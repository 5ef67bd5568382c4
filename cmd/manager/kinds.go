package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// kindsCheck is how often a cluster that lacks kinds is asked for them again.
const kindsCheck = 2 * time.Second

// awaitKinds waits until the API server serves every kind that the operator works
// with, and returns in which version it serves ReferenceGrants: v1 came with
// Gateway API 1.5. Meanwhile it answers the probes of the manager that is to
// come: alive, and not ready for want of what is missing.
func awaitKinds(ctx context.Context, config *rest.Config, probeBind string) (grants schema.GroupVersion, err error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return schema.GroupVersion{}, err
	}
	grants, missing, err := missingKinds(client)
	if err != nil || missing == "" {
		return grants, err
	}

	var told atomic.Value
	told.Store(missing)
	probes := http.NewServeMux()
	probes.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	probes.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, told.Load().(string), http.StatusServiceUnavailable)
	})
	listener, err := net.Listen("tcp", probeBind)
	if err != nil {
		return schema.GroupVersion{}, fmt.Errorf("serve probes: %w", err)
	}
	server := &http.Server{Handler: probes, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) }) // fails when it is closed
	defer func() {
		_ = server.Close()
		serving.Wait() // the manager is to have the port
	}()

	log := ctrl.Log.WithName("kinds")
	log.Info("Waiting for kinds", "missing", missing)
	ticker := time.NewTicker(kindsCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return schema.GroupVersion{}, ctx.Err()
		case <-ticker.C:
		}
		grants, missing, err = missingKinds(client)
		switch {
		case err != nil:
			log.Error(err, "Cannot tell which kinds the API server serves")
		case missing == "":
			return grants, nil
		case missing != told.Swap(missing):
			log.Info("Waiting for kinds", "missing", missing)
		}
	}
}

// missingKinds tells which kinds the API server does not serve and what to do;
// empty where it serves all.
func missingKinds(client discovery.ServerResourcesInterface) (grants schema.GroupVersion, missing string, err error) {
	served := func(version schema.GroupVersion, resources ...string) (lacking []string, err error) {
		list, err := client.ServerResourcesForGroupVersion(version.String())
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("ask which kinds of %s are served: %w", version, err)
		}
		for _, resource := range resources {
			if list == nil || !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
				lacking = append(lacking, resource+"."+version.Group+"/"+version.Version)
			}
		}
		return lacking, nil
	}
	gateways, errGateways := served(schema.GroupVersion(gatewayv1.GroupVersion), "gatewayclasses", "gateways")
	ours, errOurs := served(v1alpha1.GroupVersion, "serviceroutes", "gatewayconfigs", "healthpolicies", "meshroutes")
	grants = schema.GroupVersion(gatewayv1.GroupVersion)
	without, errGrants := served(grants, "referencegrants")
	if len(without) > 0 && errGrants == nil {
		grants = schema.GroupVersion(gatewayv1beta1.GroupVersion)
		without, errGrants = served(grants, "referencegrants")
	}
	if err := errors.Join(errGateways, errOurs, errGrants); err != nil {
		return schema.GroupVersion{}, "", err
	}
	if gateways = append(gateways, without...); len(gateways) > 0 {
		missing = fmt.Sprintf("the cluster lacks %s: install the CRDs of Gateway API, version 1.0 or newer", strings.Join(gateways, ", "))
	}
	if len(ours) > 0 {
		if missing != "" {
			missing += "; "
		}
		missing += fmt.Sprintf("the cluster lacks %s: install meshroute's CRDs (`make install`)", strings.Join(ours, ", "))
	}
	return grants, missing, nil
}
