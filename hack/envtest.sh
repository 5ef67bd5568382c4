#!/usr/bin/env bash
# Prints the folder with kube-apiserver, etcd and kubectl for tests against a
# real API server: $KUBEBUILDER_ASSETS if set, else what setup-envtest can
# download, else built from the Go modules in hack/kube and hack/etcd.
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
IFS=. read -r major_number minor_number _ <<<"${version#v}"
stamp=k8s.io/component-base/version
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=$major_number -X $stamp.gitMinor=$minor_number"
flags=(-trimpath -buildvcs=false)

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
  local work=$1
  say "building etcd and Kubernetes $version from Go modules: about 15 minutes on 2 cores, once"
  CGO_ENABLED=0 go -C "$ROOT/hack/etcd" build -v "${flags[@]}" -ldflags "-s -w" \
    -o "$work/etcd" go.etcd.io/etcd/server/v3 2>&1 | progress etcd
  CGO_ENABLED=0 go -C "$ROOT/hack/kube" build -v "${flags[@]}" -ldflags "$ldflags" \
    -o "$work/kube" . 2>&1 | progress kubernetes
  # One binary, which looks at the name that it is called by.
  ln -sf kube "$work/kube-apiserver"
  ln -sf kube "$work/kubectl"
}

provide() {
  local work=$1
  download "$work" || build "$work"
  chmod -R u+w "$work"
  rm -rf "$work/store"
  "$work/kube-apiserver" --version >&2
  "$work/etcd" --version >/dev/null
}

shopt -s nullglob
key=$(digest "$ROOT"/hack/{kube,etcd}/{go.mod,go.sum} "$ROOT"/hack/{kube,etcd}/*.go \
  "$GOTOOLCHAIN" "${flags[*]}" "$ldflags" "$(uname -sm)")
folder=$CACHE/envtest/$version-$key
if [[ ! -d $folder ]]; then
  require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"
  setup_envtest=$("$ROOT/hack/tool.sh" --path setup-envtest)
fi
once "$folder" provide
echo "$folder"
