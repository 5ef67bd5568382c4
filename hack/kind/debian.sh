#!/usr/bin/env bash
# Fetches Debian's packages from the mirror in this machine's own apt settings.
#   hack/kind/debian.sh                           prints the folder with a small
#       Debian, made at its first use: the root file system of kind's nodes, and
#       where images take their libraries from
#   hack/kind/debian.sh unpack FOLDER PACKAGE…    unpacks packages into a folder,
#       with what they depend on
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

# bootstrap FOLDER OPTION… fills a folder with packages.
bootstrap() {
  local folder=$1 main security settings sources
  shift
  command -v apt-get >/dev/null ||
    fail "images are made of Debian's packages, and this machine has no apt-get to fetch them: use a Debian machine, or one that reaches an image registry"
  [[ $(id -u) == 0 ]] || fail "only root may unpack Debian's packages as they are: run this as root, or on a machine that reaches an image registry"
  "$ROOT/hack/need.sh" mmdebstrap
  [[ -n $(mirror Debian) ]] || apt-get update -qq >&2
  main=$(mirror Debian)
  [[ -n $main ]] || fail "apt on this machine has no mirror of Debian (Ubuntu's has no $suite): use a Debian machine, or one that reaches an image registry"
  sources=("deb $main $suite main" "deb $main $suite-updates main")
  security=$(mirror Debian-Security)
  [[ -z $security ]] || sources+=("deb $security $suite-security main")

  settings=$(mktemp)
  # Proxies and the like hold for these downloads, too.
  apt-config dump Acquire >"$settings"
  SOURCE_DATE_EPOCH=0 mmdebstrap --quiet --mode=root --format=directory --aptopt="$settings" "$@" "$suite" "$folder" "${sources[@]}" >&2 ||
    fail "mmdebstrap could not fetch Debian's packages (its reason is above): check that apt-get works on this machine"
  rm "$settings"
}

make_root() {
  say "making a Debian root file system, once: about a minute"
  bootstrap "$1" --variant=minbase --include="$(join "${packages[@]}")" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*'
}

join() {
  local IFS=,
  echo "$*"
}

case ${1:-} in
'')
  folder=$CACHE/kind/debian-$(digest "$suite" "${packages[*]}" "$(declare -f bootstrap make_root)" "$(uname -m)")
  once "$folder" make_root
  echo "$folder"
  ;;
unpack) bootstrap "$2" --variant=extract --include="$(join "${@:3}")" ;;
*) fail "usage: hack/kind/debian.sh [unpack FOLDER PACKAGE…]" ;;
esac
