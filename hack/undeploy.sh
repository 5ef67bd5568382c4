#!/usr/bin/env bash
# Removes what `make deploy` installed and all that the operator made, in every
# namespace. Gateways and other objects of Gateway API, and its CRDs, stay: they
# are their users'. Needs no operator that works, may be run again, and ends
# within minutes.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kubectl=${KUBECTL:-kubectl}
require "$kubectl" "install it, or set KUBECTL to its path"
cd "$ROOT"
namespace=meshroute-system
controller=meshroute.io/gateway-controller
made=app.kubernetes.io/managed-by=meshroute
# What the operator makes for gateways.
kinds=deployments,horizontalpodautoscalers,poddisruptionbudgets,services,configmaps,serviceaccounts,networkpolicies
# What is deployed, and is in no namespace or in those of others.
installed=app.kubernetes.io/part-of=meshroute
global=clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings


say "the operator ends"
# First, and with its pods: it would make anew what is deleted under its eyes.
"$kubectl" -n "$namespace" delete deployment meshroute-manager --ignore-not-found --cascade=foreground --timeout=90s ||
  say "its pods do not end (a node that is gone?): going on, its permissions are taken away next"
"$kubectl" delete clusterrolebindings -l "$installed" --ignore-not-found
"$kubectl" delete rolebindings --all-namespaces -l "$installed" --ignore-not-found

say "what was made for gateways goes"
"$kubectl" delete "$kinds" --all-namespaces -l "$made" --ignore-not-found
"$kubectl" wait pods --all-namespaces -l "$made" --for=delete --timeout=180s || true # what is left is told below

# Nobody keeps the statuses of users' Gateways any more: they go back to those of
# a Gateway that waits for a controller.
waiting() { # waiting TYPE
  printf '{"type":"%s","status":"Unknown","reason":"Pending","message":"Waiting for controller","lastTransitionTime":"1970-01-01T00:00:00Z"}' "$1"
}
if [[ -n $("$kubectl" get customresourcedefinition gatewayclasses.gateway.networking.k8s.io --ignore-not-found -o name) ]]; then
  "$kubectl" delete gatewayclasses -l "$installed" --ignore-not-found --wait=false
  classes=" meshroute "
  for class in $("$kubectl" get gatewayclasses -o "jsonpath={.items[?(@.spec.controllerName==\"$controller\")].metadata.name}"); do
    classes+="$class "
    "$kubectl" patch gatewayclass "$class" --subresource=status --type=merge -p "{\"status\":{\"conditions\":[$(waiting Accepted)]}}"
  done
  while read -r where name class; do
    [[ $classes == *" $class "* && $where != "$namespace" ]] || continue
    "$kubectl" -n "$where" patch gateway "$name" --subresource=status --type=merge \
      -p "{\"status\":{\"addresses\":null,\"listeners\":null,\"conditions\":[$(waiting Accepted),$(waiting Programmed)]}}"
  done < <("$kubectl" get gateways --all-namespaces -o 'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.gatewayClassName}{"\n"}{end}')
fi

say "what was installed goes"
"$kubectl" delete "$global" -l "$installed" --ignore-not-found
"$kubectl" delete -f config/crd/bases --ignore-not-found --timeout=120s
"$kubectl" delete namespace "$namespace" --ignore-not-found --timeout=180s

left=$("$kubectl" get "$kinds,pods" --all-namespaces -l "$made" -o name 2>/dev/null
  "$kubectl" get "$global" -l "$installed" -o name
  "$kubectl" get rolebindings --all-namespaces -l "$installed" -o name
  "$kubectl" get customresourcedefinitions -o name | grep '\.meshroute\.io$' || true
  "$kubectl" get namespace "$namespace" --ignore-not-found -o name)
[[ -z $left ]] || fail "these are left: $(tr '\n' ' ' <<<"$left")— see why they do not go (finalizers, a node that is gone), and run this again"
say "nothing of meshroute is left; Gateway API and its objects stay"
