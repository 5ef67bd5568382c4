#!/usr/bin/env bash
# Prints the folder with the programs of one of the Go modules beside this file,
# built at its first use:
#   hack/programs.sh kube            Kubernetes, by the names of its components
#   hack/programs.sh kind/coredns
# A module's programs are its own package main, or else the tools that its go.mod
# names: each module pins what one foreign program is made of.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# == 1 ]] || fail "usage: hack/programs.sh MODULE"
name=$1
module=$ROOT/hack/$name
[[ -f $module/go.mod ]] || fail "there is no Go module hack/$name"

# pinned MODULE_PATH prints the version that go.mod names.
pinned() { awk -v path="$1" '$1 == path { print $2; exit } $2 == path { print $3; exit }' "$module/go.mod"; }

flags=(-trimpath -buildvcs=false)
ldflags="-s -w"
tags=
links=()
about=
case $name in
kube)
  version=$(pinned k8s.io/kubernetes)
  IFS=. read -r major minor _ <<<"${version#v}"
  stamp=k8s.io/component-base/version
  ldflags+=" -X $stamp.gitVersion=$version -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor"
  # One binary, which looks at the name that it is called by.
  links=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl crictl)
  about=" $version (about 15 minutes on 2 cores)"
  ;;
kind/containerd)
  version=$(pinned github.com/containerd/containerd/v2)
  ldflags+=" -X github.com/containerd/containerd/v2/version.Version=$version"
  # Snapshotters that a node in a container has no use for.
  tags=no_btrfs,no_devmapper,no_zfs,no_aufs
  about=" $version (about 2 minutes on 2 cores)"
  ;;
kind/calico) about=" (about 3 minutes on 2 cores)" ;;
kind/coredns) about=" (about a minute on 2 cores)" ;;
esac
flags+=(-tags "$tags" -ldflags "$ldflags")

shopt -s nullglob
sources=("$module"/*.go)

build() {
  local work=$1 link packages=tool
  ((${#sources[@]} == 0)) || packages=.
  say "building $name from Go modules, once$about"
  CGO_ENABLED=0 go -C "$module" build -v "${flags[@]}" -o "$work/" "$packages" 2>&1 | progress "$name"
  # Its package is only called "server".
  [[ $name != etcd ]] || mv "$work/server" "$work/etcd"
  for link in "${links[@]}"; do ln -s "${name##*/}" "$work/$link"; done
}

folder=$CACHE/programs/${name##*/}-$(digest "$module/go.mod" "$module/go.sum" "${sources[@]}" "$GOTOOLCHAIN" "${flags[*]}" "${links[*]}" "$(uname -sm)")
[[ -d $folder ]] || require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"
once "$folder" build
echo "$folder"
