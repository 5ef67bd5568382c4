#!/usr/bin/env bash
# Prints the folder with a small Debian: the root file system of kind's nodes, and
# where images take their libraries from. It is made at its first use, from the
# mirror in this machine's own apt settings.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Bookworm, because its systemd still boots where the kernel's cgroups are of
# version 1.
suite=bookworm
packages=(
  systemd systemd-sysv dbus procps hostname util-linux mount kmod
  conntrack iptables nftables ipset ebtables iproute2 ethtool socat iputils-ping
  libseccomp2 runc jq curl ca-certificates
)

# mirror LABEL prints the address of the archive with this label.
mirror() {
  # shellcheck disable=SC2016 # these are apt's own placeholders
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' 'Created-By: Packages' |
    awk -F'|' -v label="$1" '$1 == "Debian" && $2 == label { print $3; exit }'
}

make_root() {
  local work=$1 main security settings sources
  command -v apt-get >/dev/null ||
    fail "the nodes' root file system is made of Debian's packages, and this machine has no apt-get to fetch them: use a Debian machine, or one that reaches an image registry"
  [[ $(id -u) == 0 ]] || fail "only root may make the nodes' root file system: run this as root"
  "$ROOT/hack/need.sh" mmdebstrap
  [[ -n $(mirror Debian) ]] || apt-get update -qq >&2
  main=$(mirror Debian)
  [[ -n $main ]] || fail "apt on this machine has no mirror of Debian (Ubuntu's has no $suite): use a Debian machine, or one that reaches an image registry"
  sources=("deb $main $suite main" "deb $main $suite-updates main")
  security=$(mirror Debian-Security)
  [[ -z $security ]] || sources+=("deb $security $suite-security main")

  say "making a Debian root file system, once: about a minute"
  settings=$(mktemp)
  # Proxies and the like hold for these downloads, too.
  apt-config dump Acquire >"$settings"
  SOURCE_DATE_EPOCH=0 mmdebstrap --quiet --mode=root --variant=minbase --format=directory --aptopt="$settings" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --include="$(
      IFS=,
      echo "${packages[*]}"
    )" "$suite" "$work" "${sources[@]}" >&2 ||
    fail "mmdebstrap could not make a Debian $suite (its reason is above)"
  rm -f "$settings"
}

folder=$CACHE/kind/debian-$(digest "${BASH_SOURCE[0]}" "$(uname -m)")
once "$folder" make_root
echo "$folder"
