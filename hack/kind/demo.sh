#!/usr/bin/env bash
# The monitoring sample in a real cluster on this machine: makes the cluster and
# the images, deploys the operator and the sample, and asks on 127.0.0.1:8888
# (KIND_PORT). Done again, it brings all of that up to date.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
cd "$ROOT"

PORT=${KIND_PORT:-8888}
BEGUN=$SECONDS
step() { say "--- $((SECONDS - BEGUN)) s: $*"; }

"$ROOT/hack/need.sh" python3
hack/kind.sh up >/dev/null
KUBECONFIG=$(hack/kind.sh kubeconfig)
KUBECTL=$(hack/kind.sh kubectl)
export KUBECONFIG KUBECTL
step "the cluster is there"

archives=$(hack/images.sh)
step "the images are made"
# shellcheck disable=SC2086 # one path on each line, without spaces
hack/kind.sh load $archives
step "the nodes have them"

# Pods of an image that has changed since under the same name do not notice.
running=$("$KUBECTL" --namespace meshroute-system get pods --selector app.kubernetes.io/name=meshroute-manager --output 'jsonpath={.items[*].status.containerStatuses[*].imageID}')
"${MAKE:-make}" --no-print-directory deploy OVERLAY=config/kind IMG="${IMG:-meshroute:latest}" >/dev/null
if [[ -n $running && $running != *"$(tar -xOf bin/images/operator.tar manifest.json | jq -r '.[0].Config | rtrimstr(".json")')"* ]]; then
  "$KUBECTL" --namespace meshroute-system rollout restart deployment >/dev/null
fi
"$KUBECTL" --namespace meshroute-system rollout status deployment/meshroute-manager --timeout=120s >/dev/null ||
  fail "the operator does not run: \`kubectl -n meshroute-system describe pods\` says why"
step "the operator runs"

sample=config/samples/monitoring-in-cluster
[[ $archives != *prometheus* ]] || sample=config/kind/monitoring
"$KUBECTL" apply --server-side --kustomize "$sample" >/dev/null
for name in prometheus influxdb grafana; do
  "$KUBECTL" --namespace monitoring rollout status "deployment/$name" --timeout=120s >/dev/null ||
    fail "$name does not run: \`kubectl -n monitoring describe pods\` says why"
done
step "the sample runs"

report=$(python3 hack/demo/probe.py 60 "http://127.0.0.1:$PORT"/{health,nginx_status,api/prometheus/-/healthy,grafana/api/health,influxdb/ping}) || {
  say "$report"
  "$KUBECTL" get meshroutes --all-namespaces >&2
  fail "not everything answers: see the statuses above"
}
"$KUBECTL" --namespace monitoring wait --for=condition=Ready --timeout=60s meshroute/monitoring meshroute/status >/dev/null ||
  fail "the requests are answered, and MeshRoute monitoring does not say so: \`kubectl -n monitoring describe meshroutes\` says why"
step "everything answers"

echo
echo "$report"
for command in "get meshroutes --all-namespaces" "--namespace monitoring get meshroutes status"; do
  printf '\n$ kubectl %s\n' "$command"
  # shellcheck disable=SC2086 # words of a command
  "$KUBECTL" $command
done
cat <<END

use     export KUBECONFIG=$KUBECONFIG
stop    make kind-down
END
