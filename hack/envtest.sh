#!/usr/bin/env bash
# Prints the folder with kube-apiserver, etcd and kubectl for tests against a
# real API server: $KUBEBUILDER_ASSETS if set, else what setup-envtest can
# download, else built from the Go modules in hack/kube and hack/etcd, which
# clusters with kind share.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
  for binary in kube-apiserver etcd kubectl; do
    [[ -x $KUBEBUILDER_ASSETS/$binary ]] ||
      fail "KUBEBUILDER_ASSETS is set to $KUBEBUILDER_ASSETS, which has no $binary: set it to a folder that has kube-apiserver, etcd and kubectl, or unset it"
  done
  echo "$KUBEBUILDER_ASSETS"
  exit
fi

version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$ROOT/hack/kube/go.mod")
minor=${version%.*}

# download FOLDER fails, having said why, where there is nothing to download.
download() {
  local work=$1 list found from
  # Asking for the list first tells within seconds whether there is a way out.
  if ! list=$(timeout 20 "$setup_envtest" list --bin-dir "$work/store" "${minor#v}.x" 2>/dev/null); then
    say "setup-envtest cannot download here: building Kubernetes $version from its Go modules instead"
    return 1
  fi
  if ! grep -q "$minor\." <<<"$list"; then
    say "setup-envtest has no Kubernetes ${minor#v}: building $version from its Go modules instead"
    return 1
  fi
  found=$(timeout 300 "$setup_envtest" use --bin-dir "$work/store" -p path "${minor#v}.x" 2>/dev/null) || {
    say "setup-envtest could not finish its download: building Kubernetes $version from its Go modules instead"
    return 1
  }
  for from in kube-apiserver etcd kubectl; do
    cp "$found/$from" "$work/$from" || return 1
  done
  say "took Kubernetes $(basename "$found") from setup-envtest"
}

build() {
  local work=$1 kube etcd
  etcd=$("$ROOT/hack/programs.sh" etcd)
  kube=$("$ROOT/hack/programs.sh" kube)
  ln -s "$etcd/etcd" "$kube"/{kube-apiserver,kubectl} "$work/"
}

provide() {
  local work=$1
  download "$work" || build "$work"
  chmod -R u+w "$work"
  rm -rf "$work/store"
  "$work/kube-apiserver" --version >&2
  "$work/etcd" --version >/dev/null
}

folder=$CACHE/envtest/$version-$(digest "$ROOT"/hack/{kube,etcd}/{go.mod,go.sum} "$ROOT"/hack/kube/*.go "$ROOT/hack/programs.sh" "$GOTOOLCHAIN" "$(uname -sm)")
if [[ ! -d $folder ]]; then
  require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"
  setup_envtest=$("$ROOT/hack/tool.sh" --path setup-envtest)
fi
once "$folder" provide
echo "$folder"
