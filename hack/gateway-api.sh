#!/usr/bin/env bash
# Applies the CRDs of Gateway API where the cluster has none, in the version that
# go.mod names. What is there stays as it is, older or newer: it may belong to
# others. Says in one line what it found and did.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kubectl=${KUBECTL:-kubectl}
require "$kubectl" "install it, or set KUBECTL to its path"
module=sigs.k8s.io/gateway-api
cd "$ROOT"
go mod download "$module"
own=$(go list -m -f '{{.Version}}' "$module")
folder=$(go list -m -f '{{.Dir}}' "$module")/config/crd/standard

# Lines of "name version", of the CRDs that are there.
template='{range .items[?(@.spec.group=="gateway.networking.k8s.io")]}{.metadata.name} {.metadata.annotations.gateway\.networking\.k8s\.io/bundle-version}{"\n"}{end}'
present=$("$kubectl" get customresourcedefinitions -o "jsonpath=$template")

# Without any, all are applied; otherwise those that meshroute cannot do without.
applied=()
for file in "$folder"/gateway.networking.k8s.io_*.yaml; do
  # The folder also holds an admission policy, which guards upgrades of CRDs by
  # whoever looks after Gateway API in the cluster; that is not this script.
  grep -q '^kind: CustomResourceDefinition$' "$file" || continue
  name=$(awk '/^metadata:/ { inside = 1 } inside && $1 == "name:" { print $2; exit }' "$file")
  if [[ -n $present ]]; then
    grep -q "^$name " <<<"$present" && continue
    case ${name%%.*} in
    gatewayclasses | gateways | referencegrants) ;;
    *) continue ;;
    esac
  fi
  "$kubectl" apply --server-side -f "$file" >&2
  applied+=("customresourcedefinition/$name")
done
if ((${#applied[@]})); then
  "$kubectl" wait --for=condition=Established --timeout=60s "${applied[@]}" >&2
  say "Gateway API $own: ${#applied[@]} CRDs installed, which the cluster lacked"
fi
[[ -n $present ]] || exit 0

version=$(awk '$1 == "gateways.gateway.networking.k8s.io" { print $2 }' <<<"$present")
if [[ -z $version ]]; then
  say "Gateway API: the cluster's CRDs do not tell their version, and stay as they are: meshroute works with them as far as they go"
elif [[ $version == "$own" ]]; then
  say "Gateway API $own is there already"
elif [[ $(printf '%s\n' "$version" "$own" | sort -V | head -n 1) == "$version" ]]; then
  say "Gateway API $version is there, older than $own, and stays as it is: \`kubectl get gatewayclass meshroute -o yaml\` tells whether it suffices; to update it, apply the CRDs in $folder"
else
  say "Gateway API $version is there, newer than $own, and stays as it is"
fi
