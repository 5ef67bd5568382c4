#!/usr/bin/env bash
# Prints the folder with nginx and HAProxy of Debian's packages, unpacked at its
# first use and not installed: the benchmark measures them beside the gateway.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# With the libraries of HAProxy that few machines have.
packages=(nginx haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1)

unpack() {
  local work=$1 package
  if ! { command -v apt-get && command -v dpkg-deb; } >/dev/null; then
    fail "nginx and HAProxy are taken from Debian's packages, and this machine has no apt-get"
  fi
  say "fetching Debian's packages of nginx and HAProxy, once (they are unpacked in the cache, not installed)"
  download() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" >said 2>&1); }
  # A fresh machine may not have fetched its package lists yet, or long ago.
  download || { apt-get update -qq >&2 && download; } ||
    fail "apt-get could not fetch them ($(grep '^E:' "$work/said" | head -n 1))"
  for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work"; done
  rm -f "$work"/*.deb "$work/said"
}

# A program of one release may not run on another.
release=$(sed -n 's/^\(ID\|VERSION_ID\)="\?\([a-z0-9.-]*\).*/\2/p' /etc/os-release 2>/dev/null | paste -sd-) || true
folder=$CACHE/peers/${release:-unknown}-$(uname -m)-$(digest "${packages[@]}")
once "$folder" unpack
echo "$folder"
