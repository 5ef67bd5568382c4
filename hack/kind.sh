#!/usr/bin/env bash
# A Kubernetes cluster of two nodes on this machine, with kind. Where an image
# registry answers, its nodes are kind's own; elsewhere they are made of Debian's
# packages and Go modules (hack/kind/node.sh).
#   hack/kind.sh up           makes the cluster, or mends one that is there
#   hack/kind.sh down         removes it, and nothing else
#   hack/kind.sh load FILE…   loads image archives into its nodes
#   hack/kind.sh kubeconfig   prints the path of its kubeconfig
#   hack/kind.sh kubectl      prints the path of a kubectl for it
# KIND_NAME names it. For `up`, KIND_PORT is the port of this machine that leads to
# node port 30888, KIND_TEST_PORTS a range of node ports which this machine has by
# the same numbers (all on 127.0.0.1), KIND_KUBERNETES the version of Kubernetes, and
# KIND_IP_FAMILY=dual gives pods and Services IPv6 addresses, too (auto: where that
# is possible).
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/kind/images.lib.sh
source "$ROOT/hack/kind/images.lib.sh"

NAME=${KIND_NAME:-meshroute}
PORT=${KIND_PORT:-8888}
NODE_PORT=30888
TEST_PORTS=${KIND_TEST_PORTS-30080-30087}
IP_FAMILY=${KIND_IP_FAMILY:-ipv4}
STATE=${XDG_STATE_HOME:-$HOME/.local/state}/meshroute-kind/$NAME
KUBECONFIG_FILE=$STATE/kubeconfig
# Of its own, so that it goes with the cluster, and wide enough for networks with
# an MTU of 9000 between nodes.
export KIND_EXPERIMENTAL_DOCKER_NETWORK=kind-$NAME

[[ $NAME =~ ^[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?$ ]] || fail "KIND_NAME is \"$NAME\": use up to 42 lower-case letters, digits, dashes and dots"
[[ $PORT =~ ^[0-9]+$ && $PORT -ge 1 && $PORT -le 65535 ]] || fail "KIND_PORT is \"$PORT\": use a port, for instance 8888"
[[ -z $TEST_PORTS || $TEST_PORTS =~ ^3[0-2][0-9]{3}-3[0-2][0-9]{3}$ ]] ||
  fail "KIND_TEST_PORTS is \"$TEST_PORTS\": use a range of node ports, for instance 30080-30087, or nothing"

[[ $IP_FAMILY =~ ^(ipv4|dual|auto)$ ]] || fail "KIND_IP_FAMILY is \"$IP_FAMILY\": use ipv4, dual or auto"

BEGUN=$SECONDS
step() { say "  $((SECONDS - BEGUN)) s: $*"; }

# admin is kubectl in the node, which is as old as the cluster.
admin() { docker exec -i "$NAME-control-plane" kubectl --kubeconfig=/etc/kubernetes/admin.conf "$@"; }

nodes() { docker ps --all --filter "label=io.x-k8s.kind.cluster=$NAME" --format '{{.Names}}' | sort; }

module() { go -C "$ROOT/hack/$1" mod download -json "$2" | jq -r .Dir; }

# choose sets IMAGE to the node image, and says where it is from.
choose() {
  local image pinned
  pinned=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$ROOT/hack/kube/go.mod")
  if [[ -n ${KIND_KUBERNETES:-} ]]; then
    [[ $KIND_KUBERNETES =~ ^v1\.[0-9]+\.[0-9]+$ ]] || fail "KIND_KUBERNETES is \"$KIND_KUBERNETES\": use a version such as $pinned"
    image=kindest/node:$KIND_KUBERNETES
  else
    image=$(sed -n 's/^const Image = "\(.*\)"$/\1/p' "$(module tools sigs.k8s.io/kind)/pkg/apis/config/defaults/image.go")
  fi
  if published "$image"; then
    IMAGE=$image
    say "an image registry answers: the nodes run $IMAGE"
    # Calico's own manifest gives pods IPv4 addresses only.
    [[ $IP_FAMILY != dual ]] || fail "KIND_IP_FAMILY=dual is for nodes that are built here: leave it out"
    IP_FAMILY=ipv4
    return
  fi
  [[ -z ${KIND_KUBERNETES:-} || $KIND_KUBERNETES == "$pinned" ]] ||
    fail "no image registry has $image here, and what is built from Go modules is Kubernetes $pinned: leave KIND_KUBERNETES out, or change hack/kube/go.mod"
  say "no image registry answers: the nodes are built from package registries (Kubernetes $pinned)"
  IMAGE=$("$ROOT/hack/kind/node.sh")
  if [[ $IP_FAMILY == auto ]]; then
    IP_FAMILY=ipv4
    [[ $(cat /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null) != 0 ]] || IP_FAMILY=dual
  fi
}

# configuration prints what kind is to make.
configuration() {
  local port
  cat <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  apiServerAddress: 127.0.0.1
  ipFamily: $IP_FAMILY
  # Calico takes its place.
  disableDefaultCNI: true
nodes:
# Each in a zone of its own.
- role: control-plane
  labels: {topology.kubernetes.io/zone: zone-a}
  # Pods may run on both nodes.
  kubeadmConfigPatches:
  - |
    kind: InitConfiguration
    nodeRegistration:
      taints: []
  extraPortMappings:
  - {hostPort: $PORT, containerPort: $NODE_PORT, listenAddress: 127.0.0.1}
YAML
  for port in $([[ -z $TEST_PORTS ]] || seq "${TEST_PORTS%-*}" "${TEST_PORTS#*-}"); do
    echo "  - {hostPort: $port, containerPort: $port, listenAddress: 127.0.0.1}"
  done
  echo "- role: worker"
  echo "  labels: {topology.kubernetes.io/zone: zone-b}"
  if [[ ! -f /sys/fs/cgroup/cgroup.controllers ]]; then
    # Kubernetes wants to be told that cgroups of version 1 are meant.
    cat <<YAML
kubeadmConfigPatches:
- |
  apiVersion: kubelet.config.k8s.io/v1beta1
  kind: KubeletConfiguration
  failCgroupV1: false
YAML
  fi
  if [[ $(docker info --format '{{.DefaultRuntime}}') == without-sys-resource ]]; then
    # Without CAP_SYS_RESOURCE nobody may make a process less likely to be killed.
    cat <<YAML
containerdConfigPatches:
- |
  [plugins."io.containerd.grpc.v1.cri"]
    restrict_oom_score_adj = true
YAML
  fi
}

# free makes sure that nobody listens on the ports of this machine that we take.
free() {
  local port taken=()
  for port in "$PORT" $([[ -z $TEST_PORTS ]] || seq "${TEST_PORTS%-*}" "${TEST_PORTS#*-}"); do
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then taken+=("$port"); fi
  done
  ((${#taken[@]} == 0)) ||
    fail "somebody listens on 127.0.0.1, port ${taken[*]}: end that, or choose others by KIND_PORT and KIND_TEST_PORTS"
}

create() {
  local ipv6=()
  free
  choose
  # Each node watches many files; Debian's limit is met with two of them.
  if (($(sysctl -n fs.inotify.max_user_instances) < 512)); then
    sysctl -qw fs.inotify.max_user_instances=1024 ||
      say "fs.inotify.max_user_instances is low: if pods say \"too many open files\", have root raise it"
  fi
  if [[ $IP_FAMILY == dual ]]; then
    # Docker has no range of its own for IPv6: a private one (RFC 4193), by the name.
    ipv6=(--ipv6 --subnet "$(sha256sum <<<"$NAME" | sed 's|^\(..\)\(....\)\(....\).*|fd\1:\2:\3::/64|')")
  fi
  docker network inspect "$KIND_EXPERIMENTAL_DOCKER_NETWORK" >/dev/null 2>&1 ||
    docker network create --label "meshroute.io/kind=$NAME" --opt com.docker.network.driver.mtu=9000 "${ipv6[@]}" "$KIND_EXPERIMENTAL_DOCKER_NETWORK" >/dev/null
  say "making the cluster $NAME: about half a minute"
  "$kind" create cluster --quiet --name "$NAME" --image "$IMAGE" --kubeconfig "$KUBECONFIG_FILE" --config <(configuration) >&2 ||
    fail "kind could not make the cluster: its reason is above"
  step "two nodes of Kubernetes $(admin version --output=json | jq -r .serverVersion.gitVersion) run"
}

# built tells whether the nodes are made by hack/kind/node.sh.
built() { [[ $(docker inspect --format '{{.Config.Image}}' "$NAME-control-plane") == meshroute.local/node:* ]]; }

# calico_manifest prints what runs on nodes that hack/kind/node.sh made. What is for
# IPv6 is there where the cluster has it, of which its nodes' ranges tell.
calico_manifest() {
  if [[ $(admin get nodes --output 'jsonpath={.items[0].spec.podCIDRs}') == *:* ]]; then
    sed -e 's/\(name: FELIX_IPV6SUPPORT, value: \)"false"/\1"true"/' \
      -e 's/"subnet": "usePodCidr"/"ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]/' "$ROOT/hack/kind/calico.yaml"
  else
    cat "$ROOT/hack/kind/calico.yaml"
  fi
}

# network installs Calico, which enforces NetworkPolicies, and Multus, which gives
# pods more networks. Done again, it changes nothing.
network() {
  local calico multus node programs
  calico=$(module kind/calico github.com/projectcalico/calico)
  multus=$(module kind/multus gopkg.in/k8snetworkplumbingwg/multus-cni.v4)
  if built; then
    for file in "$calico"/libcalico-go/config/crd/*.yaml; do
      echo ---
      cat "$file"
    done | admin apply --server-side --filename - >/dev/null
    admin wait --for=condition=Established --timeout=30s customresourcedefinition/clusterinformations.crd.projectcalico.org >/dev/null
    calico_manifest | admin apply --server-side --filename - >/dev/null
  else
    # Pods keep the usual MTU, whatever the nodes' network has.
    sed 's/veth_mtu: "0"/veth_mtu: "1480"/' "$calico/manifests/calico.yaml" | admin apply --server-side --filename - >/dev/null
    # kind's own nodes have only the plug-ins of its own network.
    for programs in "$("$ROOT/hack/programs.sh" kind/cni)" "$("$ROOT/hack/programs.sh" kind/multus)"; do
      for node in $(nodes); do docker cp "$programs/." "$node:/opt/cni/bin/" >&2; done
    done
  fi
  awk '/^---/ { if (crd) exit; next } { print } /^kind: CustomResourceDefinition/ { crd = 1 }' "$multus/deployments/multus-daemonset.yml" |
    admin apply --server-side --filename - >/dev/null
  admin apply --server-side --filename - <"$ROOT/hack/kind/multus.yaml" >/dev/null
  admin rollout status --namespace kube-system --timeout=180s daemonset/calico-node >/dev/null ||
    fail "Calico is not ready: \`kubectl -n kube-system describe pods -l k8s-app=calico-node\` says why"
  # Last, because nodes count as ready with the first configuration they have.
  for node in $(nodes); do
    docker exec -i "$node" sh -c 'cat >/etc/cni/net.d/.multus && mv /etc/cni/net.d/.multus /etc/cni/net.d/00-multus.conf' <<JSON
{"cniVersion": "0.3.1", "name": "multus", "type": "multus", "capabilities": {"portMappings": true},
 "kubeconfig": "/etc/kubernetes/kubelet.conf", "clusterNetwork": "/etc/cni/net.d/10-calico.conflist",
 "logLevel": "error", "logFile": "/var/log/multus.log"}
JSON
  done
  step "Calico and Multus are there"
}

ready() {
  admin wait --for=condition=Ready --timeout=180s nodes --all >/dev/null ||
    fail "a node is not ready: \`kubectl describe nodes\` says why"
  admin rollout status --namespace kube-system --timeout=180s deployment/coredns >/dev/null ||
    fail "CoreDNS is not ready: \`kubectl -n kube-system describe pods -l k8s-app=kube-dns\` says why"
  step "both nodes and the cluster's DNS are ready"
}

# --- what is asked ----------------------------------------------------------

prepare() {
  "$ROOT/hack/need.sh" jq flock
  require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"
  "$ROOT/hack/docker.sh"
  kind=$("$ROOT/hack/tool.sh" --path kind)
  mkdir -p "$STATE" 2>/dev/null || fail "cannot write $STATE: set XDG_STATE_HOME to a folder that can be written"
  exec {lock}>"$STATE.lock"
  flock "$lock"
}

up() {
  local node
  prepare
  if [[ -z $(nodes) ]]; then
    create
  else
    for node in $(nodes); do
      [[ $(docker inspect --format '{{.State.Running}}' "$node") == true ]] || docker start "$node" >/dev/null
    done
    "$kind" export kubeconfig --quiet --name "$NAME" --kubeconfig "$KUBECONFIG_FILE"
    step "the cluster $NAME is there"
  fi
  network
  ready
  cat <<END

use     export KUBECONFIG=$KUBECONFIG_FILE
stop    make kind-down$([[ $NAME == meshroute ]] || echo " KIND_NAME=$NAME")
END
}

down() {
  if ! command -v docker >/dev/null || ! timeout 20 docker info >/dev/null 2>&1; then
    say "docker does not answer: there is no cluster to remove"
    return
  fi
  prepare
  "$kind" delete cluster --quiet --name "$NAME" --kubeconfig "$KUBECONFIG_FILE"
  [[ -z $(docker network ls --quiet --filter "label=meshroute.io/kind=$NAME") ]] ||
    docker network rm "$KIND_EXPERIMENTAL_DOCKER_NETWORK" >/dev/null
  rm -rf "$STATE" "$STATE.lock"
}

# has NODE FILE tells whether a node has the image of an archive by all its names.
has() {
  local image id
  id=sha256:$(tar -xOf "$2" manifest.json | jq -r '.[0].Config | rtrimstr(".json") | ltrimstr("blobs/sha256/")')
  for image in $(tar -xOf "$2" manifest.json | jq -r '.[0].RepoTags[]'); do
    [[ $(docker exec "$1" crictl inspecti "$image" 2>/dev/null | jq -r .status.id) == "$id" ]] || return 1
  done
}

load() {
  local file node lacking
  prepare
  [[ -n $(nodes) ]] || fail "there is no cluster $NAME: make it with \`make kind-up\`"
  for file in "$@"; do
    [[ -f $file ]] || fail "there is no image archive $file: \`hack/images.sh\` makes those that there are"
    lacking=()
    for node in $(nodes); do
      has "$node" "$file" || lacking+=("$node")
    done
    ((${#lacking[@]})) || continue
    "$kind" load image-archive --quiet --name "$NAME" --nodes "$(
      IFS=,
      echo "${lacking[*]}"
    )" "$file"
    step "$(tar -xOf "$file" manifest.json | jq -r '.[0].RepoTags | join(", ")') is on ${lacking[*]}"
  done
}

kubeconfig() {
  [[ -f $KUBECONFIG_FILE ]] || fail "there is no cluster $NAME: make it with \`make kind-up\`"
  echo "$KUBECONFIG_FILE"
}

# kubectl_path is the one that was built along with the nodes, which is as old as
# they are, or else the one of this machine.
kubectl_path() {
  local folder
  if built; then
    folder=$("$ROOT/hack/programs.sh" kube)
  elif command -v kubectl; then
    return
  else
    folder=$("$ROOT/hack/envtest.sh")
  fi
  echo "$folder/kubectl"
}

case ${1:-} in
kubectl) kubectl_path ;;
up | down | load | kubeconfig) "$@" ;;
*) fail "usage: hack/kind.sh up|down|load FILE…|kubeconfig|kubectl" ;;
esac
