#!/usr/bin/env bash
# Makes sure that this machine has what the arguments name, for instance
#   hack/need.sh python3 pip netns
# Run by root on Debian it installs what is missing; elsewhere it says what to
# do. netns stands for the right to make network namespaces.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Where daemons and network tools are, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin

has() {
  case $1 in
  pip) python3 -m pip --version >/dev/null 2>&1 ;;
  netns) command -v ip >/dev/null ;;
  *) command -v "$1" >/dev/null ;;
  esac
}

debian_package() {
  case $1 in
  pip) echo python3-pip ;;
  netns) echo iproute2 ;;
  flock) echo util-linux ;;
  dockerd) echo docker.io ;;
  docker) echo docker-cli ;;
  *) echo "$1" ;;
  esac
}

missing=()
packages=()
for what in "$@"; do
  has "$what" || {
    missing+=("$what")
    packages+=("$(debian_package "$what")")
  }
done

if ((${#missing[@]})); then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    fail "this needs ${packages[*]}: install it (Debian: apt-get install ${packages[*]}) and run this again"
  fi
  say "installing ${packages[*]} with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  install=(apt-get install -qq -y --no-install-recommends "${packages[@]}")
  # A fresh machine may not have fetched its package lists yet.
  "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; } >&2 ||
    fail "apt-get could not install ${packages[*]} (its reason is above)"
  for what in "${missing[@]}"; do
    has "$what" || fail "$what is still missing after apt-get installed ${packages[*]}: check your PATH"
  done
fi

# A real API server refuses loopback addresses in EndpointSlices, so tests give
# the backends a network namespace of their own.
for what in "$@"; do
  [[ $what == netns ]] || continue
  [[ $(id -u) == 0 ]] ||
    fail "this puts backends into network namespaces, which only root may make: run it as root (\`sudo -E env PATH=\"\$PATH\" make …\`)"
  probe=meshroute-probe-$$
  ip netns add "$probe" 2>/dev/null ||
    fail "root may not make network namespaces here (ip netns add failed): run this on a machine or in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN"
  ip netns delete "$probe"
done
