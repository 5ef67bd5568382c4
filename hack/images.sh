#!/usr/bin/env bash
# Makes the images that a cluster on this machine needs, and prints an archive of
# each, which `hack/kind.sh load` and `docker load` take. No docker is needed where
# no image registry answers: there they are put together from what was built here
# and from Debian's packages.
#   operator                     IMG: manager and agent
#   backend                      meshroute-backend:dev, which tests and the sample
#                                send requests to
#   envoy, prometheus, influxdb  where they cannot be pulled
# Arguments choose some of them.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=hack/kind/images.lib.sh
source "$ROOT/hack/kind/images.lib.sh"

IMG=${IMG:-meshroute:latest}
VERSION=${VERSION:-$(git -C "$ROOT" describe --tags --always --dirty 2>/dev/null || echo dev)}
ENVOY_IMG=$(sed -n 's/.*"envoy-image", "\([^"]*\)".*/\1/p' "$ROOT"/cmd/manager/*.go)
# Archives of what changes with the checkout stay with it; the others are cached.
OUT=$ROOT/bin/images

# compile FOLDER NAME PACKAGE… makes static programs, in a folder that stays: what
# is there and current is not linked again.
compile() {
  mkdir -p "$1"
  CGO_ENABLED=0 GOFLAGS="$(go env GOFLAGS) -v" go -C "$ROOT" build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$VERSION" -o "$1/" "${@:3}" 2>&1 | progress "$2"
}

# operator makes by itself what the Dockerfile says: the Dockerfile's first image
# would come from a registry.
operator() {
  if published "golang:${GOTOOLCHAIN#go}"; then
    make -s -C "$ROOT" docker-build IMG="$IMG" VERSION="$VERSION" >&2
    docker save --output "$OUT/operator.tar" "$IMG"
  else
    compile "$OUT/operator" operator ./cmd/manager ./cmd/gateway-agent
    archive "$OUT/operator" "$OUT/operator.tar" '{"User": "65532:65532", "Entrypoint": ["/manager"]}' "$IMG"
  fi
  echo "$OUT/operator.tar"
}

backend() {
  compile "$OUT/backend" backend ./test/backend
  archive "$OUT/backend" "$OUT/backend.tar" '{"User": "65532:65532", "Entrypoint": ["/backend"]}' meshroute-backend:dev
  echo "$OUT/backend.tar"
}

envoy() {
  local binary debian
  ! published "$ENVOY_IMG" || return 0
  binary=$("$ROOT/hack/envoy.sh")
  debian=$("$ROOT/hack/kind/debian.sh")
  cached envoy make_envoy "$binary" "$debian" "$ENVOY_IMG"
}

make_envoy() {
  local binary=$1 debian=$2 image=$3 work=$4
  say "making the image $image from $binary"
  skeleton "$work/root"
  install -D "$binary" "$work/root/usr/local/bin/envoy"
  install -D -m644 "$debian/etc/ssl/certs/ca-certificates.crt" "$work/root/etc/ssl/certs/ca-certificates.crt"
  with_libraries "$debian" "$work/root" "$binary"
  archive "$work/root" "$work/image.tar" \
    '{"User": "65532", "Env": ["PATH=/usr/local/bin:/usr/bin"], "Entrypoint": ["/usr/local/bin/envoy"], "Cmd": ["-c", "/etc/envoy/envoy.yaml"]}' "$image"
  rm -r "$work/root"
}

# The servers of the monitoring sample, as Debian has them.
prometheus() { sample prometheus prometheus; }
influxdb() { sample influxdb influxd; }

sample() { # sample PACKAGE PROGRAM
  ! published "$(sed -n "s/.*image: \(.*$1:.*\)/\1/p" "$ROOT"/config/samples/monitoring-in-cluster/*.yaml)" || return 0
  local debian
  debian=$("$ROOT/hack/kind/debian.sh")
  cached "$1" make_sample "$1" "$2" "$debian"
}

make_sample() {
  local package=$1 program=$2 debian=$3 work=$4
  say "making the image meshroute-sample-$package:dev from Debian's package"
  "$ROOT/hack/kind/debian.sh" unpack "$work/debian" "$package"
  skeleton "$work/root"
  cp "$work/debian/usr/bin/$program" "$work/root/usr/bin/"
  with_libraries "$debian" "$work/root" "$work/root/usr/bin/$program"
  archive "$work/root" "$work/image.tar" \
    "{\"User\": \"65532\", \"Env\": [\"PATH=/usr/bin\"], \"Entrypoint\": [\"$program\"]}" "meshroute-sample-$package:dev"
  rm -r "$work/root" "$work/debian"
}

# cached NAME COMMAND ARGUMENT… prints the archive that COMMAND makes of these
# arguments, made once.
cached() {
  local name=$1 folder
  shift
  folder=$CACHE/images/$name-$(digest "${BASH_SOURCE[0]}" "$ROOT"/hack/kind/{images.lib,debian}.sh "$@" "$(uname -m)")
  once "$folder" "$@"
  echo "$folder/image.tar"
}

require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"
"$ROOT/hack/need.sh" jq flock make
mkdir -p "$OUT"
[[ $# -gt 0 ]] || set -- operator backend envoy prometheus influxdb
for name in "$@"; do
  case $name in
  operator | backend | envoy | prometheus | influxdb) "$name" ;;
  *) fail "there is no image $name: operator, backend, envoy, prometheus, influxdb" ;;
  esac
done
