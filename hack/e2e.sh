#!/usr/bin/env bash
# Runs the tests of test/e2e: the demo on this machine (label demo), then all
# others in a cluster: one that is made for them and removed afterwards, or the one
# of kubectl's current context.
#   E2E_CLUSTER=existing   takes the latter; its nodes need to have the images
#                          already and to be reachable from this machine
#   E2E_CLUSTER=keep       leaves the cluster that was made, for the next run
#   FOCUS, LABELS          choose tests, as everywhere; E2E_PROCS runs them side
#                          by side (3), those that take the cluster apart alone
#   E2E_ARTEFACTS          is where logs, events and configurations are kept
# Arguments are ginkgo's.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
MODE=${E2E_CLUSTER:-new}
[[ $MODE =~ ^(new|keep|existing)$ ]] || fail "E2E_CLUSTER is \"$MODE\": use new, keep or existing"
export IMG=${IMG:-meshroute:latest}
export E2E_ARTEFACTS=${E2E_ARTEFACTS:-${TMPDIR:-/tmp}/meshroute-e2e}
make=("${MAKE:-make}" --no-print-directory)
BEGUN=$SECONDS
step() { say "--- e2e: $((SECONDS - BEGUN)) s: $*"; }

ginkgo() { # ginkgo PACKAGE ARGUMENT…
  hack/tool.sh ginkgo run --require-suite --randomize-all --fail-on-pending --poll-progress-after=120s \
    ${FOCUS:+--focus="$FOCUS"} ${LABELS:+--label-filter="$LABELS"} "${@:2}" "$1"
}

clean() {
  local status=$?
  trap - EXIT
  [[ -z ${previous:-} ]] || {
    git worktree remove --force "$previous" 2>/dev/null || true
    rm -rf "${previous%/*}"
  }
  [[ $MODE != new ]] || "${make[@]}" kind-down || true
  exit "$status"
}

ginkgo ./test/e2e/demo --timeout=20m "$@"
[[ ${LABELS:-} != demo ]] || exit 0

if [[ $MODE != existing ]]; then
  # Beside a cluster that somebody may be using, and its port.
  export KIND_NAME=${KIND_NAME:-meshroute-e2e} KIND_PORT=${KIND_PORT:-18888} KIND_TEST_PORTS=
  trap clean EXIT
  trap 'exit 130' INT TERM
  "${make[@]}" kind-up
  KUBECONFIG=$(hack/kind.sh kubeconfig)
  export KUBECONFIG
  KUBECTL=$(hack/kind.sh kubectl)
  export KUBECTL
  step "the cluster is there"
  "${make[@]}" images kind-load
  step "it has the images"

  # What an upgrade starts from: the commit before this one, or the last one
  # where there are changes that are not committed.
  base=HEAD~1
  [[ -z $(git status --porcelain) ]] || base=HEAD
  previous=$(mktemp -d)/previous
  git worktree add --quiet --detach "$previous" "$base" 2>/dev/null ||
    fail "the commit before this one ($base) is not here: the upgrade is tested from it, so fetch the history (git fetch --unshallow)"
  export E2E_PREVIOUS=$previous E2E_PREVIOUS_IMG=meshroute:previous
  hack/kind.sh load "$(IMG=$E2E_PREVIOUS_IMG "$previous/hack/images.sh" operator)"
  step "and those of the commit before ($(git -C "$previous" log -1 --format='%h %s'))"
fi

"${make[@]}" deploy
# Pods in a cluster that was kept do not notice that an image has changed.
[[ $MODE != keep ]] || "$KUBECTL" --namespace meshroute-system rollout restart deployment >&2
"${KUBECTL:-kubectl}" --namespace meshroute-system rollout status deployment/meshroute-manager --timeout=180s >&2
step "the operator runs"

rm -rf "$E2E_ARTEFACTS"
status=0
ginkgo ./test/e2e --timeout=60m --procs="${E2E_PROCS:-3}" "$@" || status=$?
[[ ! -f $E2E_ARTEFACTS/lost-requests.md ]] || cat "$E2E_ARTEFACTS/lost-requests.md"
step "done"
(exit "$status")
