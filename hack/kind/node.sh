#!/usr/bin/env bash
# Prints the name of a node image for kind, made of Debian's packages and Go
# modules, without an image registry. It is made at its first use, kept as an
# archive, and loaded into docker where docker has lost it.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/kind/images.lib.sh
source "$ROOT/hack/kind/images.lib.sh"

"$ROOT/hack/need.sh" jq
debian=$("$ROOT/hack/kind/debian.sh")
kube=$("$ROOT/hack/programs.sh" kube)
etcd=$("$ROOT/hack/programs.sh" etcd)
containerd=$("$ROOT/hack/programs.sh" kind/containerd)
cni=$("$ROOT/hack/programs.sh" kind/cni)
calico=$("$ROOT/hack/programs.sh" kind/calico)
multus=$("$ROOT/hack/programs.sh" kind/multus)
coredns=$("$ROOT/hack/programs.sh" kind/coredns)
pause=$("$ROOT/hack/programs.sh" kind/pause)
version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$ROOT/hack/kube/go.mod")
calico_version=v3.28.5

# --- images of what runs in pods --------------------------------------------

# network_tools FOLDER puts into a skeleton what kube-proxy and Calico's Felix
# call, and the shell that hack/kind/calico.yaml needs.
network_tools() {
  local folder=$1 libraries program name
  local programs=(usr/sbin/{xtables-nft-multi,xtables-legacy-multi,ipset,nft,conntrack} usr/bin/{ip,bash,kmod,mkdir,mv,sleep})
  for program in "${programs[@]}"; do cp "$debian/$program" "$folder/$program"; done
  for name in iptables ip6tables; do
    for program in "$name" "$name-save" "$name-restore"; do
      ln -s xtables-nft-multi "$folder/usr/sbin/$program"
      ln -s xtables-nft-multi "$folder/usr/sbin/${program/tables/tables-nft}"
      ln -s xtables-legacy-multi "$folder/usr/sbin/${program/tables/tables-legacy}"
    done
  done
  ln -s bash "$folder/usr/bin/sh"
  ln -s ../bin/kmod "$folder/usr/sbin/modprobe"
  cp "$debian"/etc/protocols "$debian"/etc/services "$folder/etc/"
  libraries=$(cd "$debian" && echo usr/lib/*-linux-gnu)
  mkdir -p "$folder/$libraries"
  cp -r "$debian/$libraries/xtables" "$folder/$libraries/"
  # iptables' extensions load libraries of their own, which no program names:
  # without libm, kube-proxy fails once a Service has two endpoints.
  with_libraries "$debian" "$folder" "${programs[@]/#/"$debian/"}" "$debian/$libraries"/xtables/*.so
}

# images sets IMAGE to the names that kubeadm takes for its components.
declare -A IMAGE
images() {
  local names name
  names=$("$kube/kubeadm" config images list --kubernetes-version "$version" 2>/dev/null)
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd coredns pause; do
    IMAGE[$name]=$(grep "/$name:" <<<"$names") || fail "kubeadm $version names no image of $name"
  done
}

# component_images FOLDER fills it with an archive for each image.
component_images() {
  local folder=$1 name
  local environment='"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin"]'

  # Kubernetes is one program, and so one image of several names.
  skeleton "$folder/kube"
  network_tools "$folder/kube"
  mkdir -p "$folder"/kube/usr/local/bin
  cp "$kube/kube" "$folder/kube/usr/local/bin/"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    ln -s kube "$folder/kube/usr/local/bin/$name"
  done
  archive "$folder/kube" "$folder/kube.tar" "{$environment}" \
    "${IMAGE[kube-apiserver]}" "${IMAGE[kube-controller-manager]}" "${IMAGE[kube-scheduler]}" "${IMAGE[kube-proxy]}"

  skeleton "$folder/calico"
  network_tools "$folder/calico"
  mkdir -p "$folder"/calico/usr/local/bin
  cp "$calico/calico-felix" "$folder/calico/usr/local/bin/"
  archive "$folder/calico" "$folder/calico.tar" "{$environment}" "meshroute.local/calico-felix:$calico_version"

  skeleton "$folder/etcd"
  cp "$etcd/etcd" "$folder/etcd/usr/bin/"
  archive "$folder/etcd" "$folder/etcd.tar" "{$environment}" "${IMAGE[etcd]}"

  skeleton "$folder/coredns"
  cp "$coredns/coredns" "$folder/coredns/usr/bin/"
  archive "$folder/coredns" "$folder/coredns.tar" "{$environment, \"Entrypoint\": [\"coredns\"]}" "${IMAGE[coredns]}"

  skeleton "$folder/pause"
  cp "$pause/pause" "$folder/pause/usr/bin/"
  archive "$folder/pause" "$folder/pause.tar" "{$environment, \"Entrypoint\": [\"pause\"]}" "${IMAGE[pause]}"
}

# store NODE ARCHIVE… puts images into the node's containerd, as an image archive
# would be on its first start. It runs here, on the node's folder, and unpacks
# nothing.
store() {
  local node=$1 work pid archive
  shift
  work=$(mktemp -d)
  cat >"$work/config.toml" <<TOML
version = 3
root = "$node/var/lib/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = "$work/socket"
[ttrpc]
address = "$work/socket.ttrpc"
TOML
  "$containerd/containerd" --config "$work/config.toml" --log-level error >"$work/log" 2>&1 &
  pid=$!
  until "$containerd/ctr" --address "$work/socket" version >/dev/null 2>&1; do
    kill -0 $pid 2>/dev/null || fail "containerd does not start: $(tail -n 3 "$work/log")"
    sleep 0.1
  done
  for archive in "$@"; do
    "$containerd/ctr" --address "$work/socket" --namespace k8s.io images import \
      --label io.cri-containerd.pinned=pinned --no-unpack "$archive" >"$work/said" 2>&1 ||
      fail "containerd does not take $archive: $(tail -n 3 "$work/said")"
  done
  kill $pid
  wait $pid || true
  rm -r "$work"
}

# --- the node ---------------------------------------------------------------

# root NODE makes the node's root file system: what kind's own image is made of,
# after the Dockerfile in kind's module, from which the scripts and units come.
root() {
  local node=$1 files unit
  files=$(go -C "$ROOT/hack/tools" mod download -json sigs.k8s.io/kind | jq -r .Dir)/images/base/files
  [[ -f $files/usr/local/bin/entrypoint ]] || fail "kind's module has no images/base/files/usr/local/bin/entrypoint"
  cp -a "$debian/." "$node/"
  chmod 755 "$node"
  mkdir -p "$node"/{kind/{bin,manifests},opt/cni/bin,etc/cni/net.d,etc/kubernetes/manifests,etc/containerd,usr/local/bin}
  cp -r --no-preserve=all "$files/kind/bin" "$node/kind/"
  cp -r --no-preserve=all "$files/etc/." "$node/etc/"
  cp --no-preserve=all "$files/usr/local/bin/entrypoint" "$node/usr/local/bin/"
  chmod 755 "$node"/kind/bin/* "$node/usr/local/bin/entrypoint"
  printf %s "$version" >"$node/kind/version"

  # Units that have no place in a container; those of the node start with it.
  rm -f "$node"/usr/lib/systemd/system/{sysinit.target.wants/systemd-tmpfiles-setup.service,multi-user.target.wants/*,local-fs.target.wants/*} \
    "$node"/usr/lib/systemd/system/{sockets.target.wants/*udev*,sockets.target.wants/*initctl*,basic.target.wants/*} \
    "$node"/etc/systemd/system/*.wants/*
  echo ReadKMsg=no >>"$node/etc/systemd/journald.conf"
  mkdir -p "$node/etc/systemd/system/multi-user.target.wants"
  for unit in kubelet containerd undo-mount-hacks; do
    ln -s "/etc/systemd/system/$unit.service" "$node/etc/systemd/system/multi-user.target.wants/"
  done
  ln -s /dev/null "$node/etc/systemd/system/systemd-binfmt.service"

  cp "$containerd"/{containerd,ctr,containerd-shim-runc-v2} "$node/usr/local/bin/"
  cp "$cni"/* "$calico/calico" "$multus/multus" "$node/opt/cni/bin/"
  cp "$kube/kube" "$node/usr/bin/"
  for unit in kubelet kubeadm kubectl crictl; do ln -s kube "$node/usr/bin/$unit"; done
  # containerd takes the sandbox image that kubeadm names.
  sed -i "s,sandbox_image = .*,sandbox_image = \"${IMAGE[pause]}\"," "$node/etc/containerd/config.toml"
  "$containerd/ctr" oci spec |
    jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' >"$node/etc/containerd/cri-base.json"
  cat >"$node/kind/manifests/default-storage.yaml" <<'YAML'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
provisioner: kubernetes.io/host-path
YAML
}

make_node() {
  local work=$1
  say "making the node image $name, once: about a minute"
  images
  component_images "$work/images"
  root "$work/node"
  store "$work/node" "$work"/images/*.tar
  OWNERS=kept archive "$work/node" "$work/image.tar" \
    '{"Entrypoint": ["/usr/local/bin/entrypoint", "/sbin/init"], "Env": ["container=docker", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "StopSignal": "SIGRTMIN+3"}' \
    "$name"
  rm -rf "$work/images" "$work/node"
}

key=$(digest "${BASH_SOURCE[0]}" "$ROOT/hack/kind/images.lib.sh" "$(grep -w sigs.k8s.io/kind "$ROOT/hack/tools/go.mod")" \
  "$debian" "$kube" "$etcd" "$containerd" "$cni" "$calico" "$multus" "$coredns" "$pause")
name=meshroute.local/node:$version-$key
folder=$CACHE/kind/node-$key
once "$folder" make_node
docker image inspect "$name" >/dev/null 2>&1 || {
  say "loading the node image into docker"
  docker load --quiet --input "$folder/image.tar" >/dev/null
}
echo "$name"
