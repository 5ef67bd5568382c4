#!/usr/bin/env bash
# Applies the CRDs of Gateway API that the cluster lacks, in the version that
# go.mod names. What is there already stays as it is: it may belong to others.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kubectl=${KUBECTL:-kubectl}
require "$kubectl" "install it, or set KUBECTL to its path"
module=sigs.k8s.io/gateway-api
cd "$ROOT"
go mod download "$module"
folder=$(go list -m -f '{{.Dir}}' "$module")/config/crd/standard

applied=()
for file in "$folder"/gateway.networking.k8s.io_*.yaml; do
  # The folder also holds an admission policy, which guards upgrades of CRDs by
  # whoever looks after Gateway API in the cluster; that is not this script.
  grep -q '^kind: CustomResourceDefinition$' "$file" || continue
  name=$(awk '/^metadata:/ { inside = 1 } inside && $1 == "name:" { print $2; exit }' "$file")
  found=$("$kubectl" get customresourcedefinition "$name" --ignore-not-found -o name)
  [[ -z $found ]] || continue
  "$kubectl" apply --server-side -f "$file"
  applied+=("customresourcedefinition/$name")
done
if ((${#applied[@]})); then
  "$kubectl" wait --for=condition=Established --timeout=60s "${applied[@]}"
else
  say "the cluster has Gateway API's CRDs already"
fi
